"""Schedulers as a manifest names them: the built-in ones, and the learned ones with their weights."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from splitgym import schedulers
from splitgym.config import from_mapping
from splitgym.policy.manifest import SchedulerSpec
from splitgym.schedulers import CompiledRouting, CompiledSizing, Residual, SizingNet

RESIDUAL, SIZING_NET = Residual.registered, SizingNet.registered
SIZING_PREFIX = "sizing."
"""Before the names of the sizing scheduler's arrays in `weights.npz`; the router's have no prefix."""


def make_routing(spec: SchedulerSpec, arrays: Mapping[str, NDArray[Any]] | None = None) -> CompiledRouting:
    """A routing scheduler.

    Args:
        spec: its name and options.
        arrays: further options, flat arrays.

    Raises:
        ConfigError: no such scheduler or option.
    """
    own = {name: array for name, array in (arrays or {}).items() if not name.startswith(SIZING_PREFIX)}
    options = _with_arrays(spec, own)
    if spec.name == RESIDUAL:
        return from_mapping(Residual, options, f"scheduler {RESIDUAL!r}")
    return schedulers.routing(spec.name, **options)


def make_sizing(spec: SchedulerSpec, arrays: Mapping[str, NDArray[Any]] | None = None) -> CompiledSizing:
    """A sizing scheduler. See `make_routing`; its arrays' names begin with `SIZING_PREFIX`."""
    own = {
        name.removeprefix(SIZING_PREFIX): array
        for name, array in (arrays or {}).items()
        if name.startswith(SIZING_PREFIX)
    }
    options = _with_arrays(spec, own)
    if spec.name == SIZING_NET:
        return from_mapping(SizingNet, options, f"scheduler {SIZING_NET!r}")
    return schedulers.sizing(spec.name, **options)


def _with_arrays(spec: SchedulerSpec, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    return dict(spec.options) | {name: tuple(array.ravel().tolist()) for name, array in arrays.items()}
