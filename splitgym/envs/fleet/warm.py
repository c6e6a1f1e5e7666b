"""Compiles, by using it once, all that Numba compiles: engine, schedulers, observations, fleets."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from splitgym import schedulers
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig
from splitgym.envs.fleet.fleet import Fleet
from splitgym.envs.fleet.threads import LEAST_SHARE
from splitgym.envs.routing import RoutingEnv
from splitgym.sim import make_engine
from splitgym.trace import Trace

PIECES = 3
"""So many names `warm` gives."""


def warm() -> Iterator[str]:
    """Does it piece by piece; gives the name of the next piece before it."""
    cluster = Cluster.resolve(ClusterConfig())
    trace = Trace(np.array([0.0, 0.5, 1.0, 1.5]), np.full(4, 600), np.full(4, 20), name="warm-up")
    yield "the engine"
    for name in ("splitwise", "index"):
        engine = make_engine(cluster, schedulers.routing(name), schedulers.sizing("reactive"), "compiled")
        engine.reset(trace)
        engine.run_until_decision()
    yield "schedulers for Python"
    view, request = cluster.view(), None
    asked = make_engine(cluster, None, None, "compiled")
    asked.reset(trace)
    while request is None and (decision := asked.run_until_decision()) is not None:
        request = decision.request
        if request is None:
            asked.apply(0)
    assert request is not None
    asked.apply((0, 5))
    for name in schedulers.routing_names():
        scheduler: Any = schedulers.routing(name)
        scheduler.reset(view, 0)
        scheduler.route(view, request)
    for name in schedulers.sizing_names():
        sizing: Any = schedulers.sizing(name)
        sizing.reset(view, 0)
        sizing.resize(view)
    yield "environments"
    env = RoutingEnv(episode_s=2.0, warmup_s=0.0)
    observation, _ = env.reset(seed=0)
    env.step(np.array([0, 5]))
    count = 2 * LEAST_SHARE  # so many that two threads are worth while
    fleet = Fleet(RoutingEnv(episode_s=2.0, warmup_s=0.0), count)
    fleet.begin(np.arange(count), {i: i for i in range(count)})
    fleet.step(np.tile([0, 5], (count, 1)))
    fleet.close()
