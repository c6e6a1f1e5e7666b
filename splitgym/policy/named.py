"""Schedulers as a manifest names them: the built-in ones, and the learned residual with its weights."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from splitgym import schedulers
from splitgym.config import from_mapping
from splitgym.policy.manifest import SchedulerSpec
from splitgym.schedulers import CompiledRouting, CompiledSizing, Residual

RESIDUAL = "residual"


def make_routing(spec: SchedulerSpec, arrays: Mapping[str, NDArray[Any]] | None = None) -> CompiledRouting:
    """A routing scheduler.

    Args:
        spec: its name and options.
        arrays: further options, flat arrays.

    Raises:
        ConfigError: no such scheduler or option.
    """
    options = dict(spec.options)
    options |= {name: tuple(array.ravel().tolist()) for name, array in (arrays or {}).items()}
    if spec.name == RESIDUAL:
        return from_mapping(Residual, options, f"scheduler {RESIDUAL!r}")
    return schedulers.routing(spec.name, **options)


def make_sizing(spec: SchedulerSpec) -> CompiledSizing:
    """A sizing scheduler.

    Raises:
        ConfigError: no such scheduler or option.
    """
    return schedulers.sizing(spec.name, **spec.options)
