"""Heuristics for routing and pool sizing, found by name.

>>> from splitgym import schedulers
>>> schedulers.routing("index", preset="tuned").name
'index-tuned'
"""

import dataclasses
from typing import Any, TypeVar

from splitgym.config import from_mapping
from splitgym.errors import ConfigError
from splitgym.schedulers import baselines
from splitgym.schedulers.builtin import CompiledRouting, CompiledSizing
from splitgym.schedulers.index import Index
from splitgym.schedulers.protocol import RoutingScheduler, SizingScheduler
from splitgym.schedulers.residual import Residual
from splitgym.schedulers.sizing import Ewma, Reactive, Static
from splitgym.schedulers.sizing_net import SizingNet
from splitgym.schedulers.splitwise import Splitwise

__all__ = [
    "CompiledRouting",
    "CompiledSizing",
    "Residual",
    "RoutingScheduler",
    "SizingNet",
    "SizingScheduler",
    "routing",
    "routing_names",
    "sizing",
    "sizing_names",
]

T = TypeVar("T")

# name -> class, options that the name stands for
_ROUTING: dict[str, tuple[type[CompiledRouting], dict[str, Any]]] = {
    "splitwise": (Splitwise, {}),
    "index": (Index, {}),
    "index-tuned": (Index, {"preset": "tuned"}),
    "round-robin": (baselines.RoundRobin, {}),
    "random": (baselines.Random, {}),
    "jsq-requests": (baselines.JsqRequests, {}),
    "jsq-tokens": (baselines.JsqTokens, {}),
    "split-round-robin": (baselines.SplitRoundRobin, {}),
    "split-jsq": (baselines.SplitJsq, {}),
    "power-of-two": (baselines.PowerOfTwo, {}),
    "least-e2e": (baselines.LeastE2e, {}),
}
_SIZING: dict[str, tuple[type[CompiledSizing], dict[str, Any]]] = {
    "static": (Static, {}),
    "reactive": (Reactive, {}),
    "ewma": (Ewma, {}),
}


def routing_names() -> tuple[str, ...]:
    """Names that `routing` knows."""
    return tuple(_ROUTING)


def sizing_names() -> tuple[str, ...]:
    """Names that `sizing` knows."""
    return tuple(_SIZING)


def routing(name: str, **options: Any) -> CompiledRouting:
    """A built-in routing scheduler by name, see docs/schedulers.md.

    Raises:
        ConfigError: no such scheduler or option (names those that exist), or a value out of range.
    """
    kind, fixed = _find("routing scheduler", name, _ROUTING)
    return _make(name, kind, fixed, options)


def sizing(name: str, **options: Any) -> CompiledSizing:
    """A built-in sizing scheduler by name, see docs/schedulers.md.

    Raises:
        ConfigError: no such scheduler or option (names those that exist), or a value out of range.
    """
    kind, fixed = _find("sizing scheduler", name, _SIZING)
    return _make(name, kind, fixed, options)


def _find(
    what: str, name: str, known: dict[str, tuple[type[T], dict[str, Any]]]
) -> tuple[type[T], dict[str, Any]]:
    if name not in known:
        raise ConfigError(f"no {what} is called {name!r}: there are {', '.join(known)}")
    return known[name]


def _make(name: str, kind: type[T], fixed: dict[str, Any], options: dict[str, Any]) -> T:
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    exist = [field.name for field in fields if field.name not in fixed]
    for option in options:
        if option not in exist:
            listed = f"it has {', '.join(exist)}" if exist else "it has none"
            raise ConfigError(f"scheduler {name!r} has no option {option!r}: {listed}")
    return from_mapping(kind, {**fixed, **options}, f"scheduler {name!r}")
