"""The simulator: engines behind one small interface."""

from splitgym.cluster import Cluster
from splitgym.errors import ConfigError
from splitgym.profile.tables import TICK_BITS
from splitgym.schedulers.protocol import RoutingScheduler, SizingScheduler
from splitgym.sim.engine import Engine
from splitgym.sim.outcomes import NEVER, TIMELINE_FIELDS, Outcomes

ENGINES = ("auto", "compiled", "simpy")
"""`simpy` is the specification, `compiled` the same, fast; `auto` is `compiled` where it can be."""


def make_engine(
    cluster: Cluster,
    routing: RoutingScheduler | None = None,
    sizing: SizingScheduler | None = None,
    engine: str = "auto",
) -> Engine:
    """An engine by name; see `splitgym.sim.engine.Engine` for what None means.

    Raises:
        ConfigError: no engine of that name, or `compiled` for token iterations under a nanosecond or with
            `ageing: all`.
    """
    if engine == "auto":
        specified = getattr(cluster.config.batching, "ageing", "decodes") == "all"
        long_enough = int(cluster.tables.token_base.min()) >= 1 << TICK_BITS
        engine = "compiled" if long_enough and not specified else "simpy"
    if engine == "compiled":
        from splitgym.sim.compiled_engine import CompiledEngine

        return CompiledEngine(cluster, routing, sizing)
    if engine == "simpy":
        from splitgym.sim.simpy_engine import simpy_engine

        return simpy_engine(cluster, routing, sizing)
    raise ConfigError(f"engine {engine!r} does not exist: choose one of {', '.join(ENGINES)}")


__all__ = ["ENGINES", "NEVER", "TIMELINE_FIELDS", "Engine", "Outcomes", "make_engine"]
