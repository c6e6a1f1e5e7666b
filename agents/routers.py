"""Who routes for an agent that only resizes: a scheduler by name, a bundle, or an evolved agent's run folder.

All of them are built-in schedulers, so they run inside the compiled engine.
"""

import dataclasses
from pathlib import Path
from typing import Any

from agents.space import Pair
from splitgym import policy, schedulers
from splitgym.errors import ConfigError
from splitgym.policy import SchedulerPolicy, SchedulerSpec
from splitgym.schedulers import CompiledRouting, CompiledSizing


def evolved_pair(text: str) -> Pair:
    """The router and the sizer of a bundle of schedulers, or of the run folder of `es` or `cem`.

    Raises:
        ConfigError: neither.
    """
    if policy.is_bundle(text):
        found = policy.load(policy.locate(text))
        if not isinstance(found, SchedulerPolicy):
            raise ConfigError(f"{text} is a network over observations: only schedulers can be built on here")
        return found.routing, found.sizing
    from agents.evolution import load_evolved

    return load_evolved(text)


def compiled_router(text: str) -> CompiledRouting:
    """A fresh router of the name, bundle or run folder. Of a bundle that only resizes, its partner.

    Raises:
        ConfigError: no such thing, or it does not route.
    """
    if text in schedulers.routing_names():
        return schedulers.routing(text)
    if not policy.is_bundle(text) and not Path(text).is_dir():
        raise ConfigError(
            f"router {text!r} is no scheduler ({', '.join(schedulers.routing_names())}), no bundle and no "
            "run folder"
        )
    return dataclasses.replace(_kept(text))  # type: ignore[type-var]  # a copy: schedulers remember


_KEPT: dict[str, CompiledRouting] = {}


def _kept(text: str) -> CompiledRouting:
    if text not in _KEPT:
        bundle = policy.load(policy.locate(text)) if policy.is_bundle(text) else None
        if bundle is not None and not bundle.routes:
            routing: Any = policy.complete(bundle)[0]
        else:
            routing, _ = evolved_pair(text)
        if routing is None:
            raise ConfigError(f"router {text!r} only resizes pools")
        _KEPT[text] = routing
    return _KEPT[text]


def spec_of(scheduler: CompiledRouting | CompiledSizing) -> SchedulerSpec:
    """A scheduler as a bundle's manifest names it, to be made again without its run folder."""
    fields = dataclasses.fields(scheduler)  # type: ignore[arg-type]
    values = {field.name: getattr(scheduler, field.name) for field in fields}
    options = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
    return SchedulerSpec(scheduler.registered, options)
