"""What all environments of a fleet share, as compiled code reads it; which environments it can step."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.envs.base import SchedulingEnv
from splitgym.envs.fleet.records import JOINT, OFFICE, ROUTING, SIZING, TERMS
from splitgym.envs.joint import JointEnv
from splitgym.envs.pool_sizing import PoolSizingEnv
from splitgym.envs.reward import Cost, GoodMinusBad, RequestsInSystem, Reward, SlowdownClipped, WeightedSum
from splitgym.envs.routing import RoutingEnv
from splitgym.sim.compiled_engine import CompiledEngine

KINDS: dict[type[SchedulingEnv], int] = {RoutingEnv: ROUTING, PoolSizingEnv: SIZING, JointEnv: JOINT}
_TERMS_OF: dict[type, tuple[str, ...]] = {
    GoodMinusBad: ("good", "bad"),
    SlowdownClipped: ("slowdown",),
    RequestsInSystem: ("requests_in_system",),
    Cost: ("cost",),
}


def terms_of(reward: Reward) -> list[tuple[str, float]] | None:
    """(term, weight) in the order of the reward's own sum; None where compiled code does not count one."""
    if type(reward) is WeightedSum:
        found: dict[str, float] = {}
        for part, weight in reward.parts:
            inner = terms_of(part)
            if inner is None or any(name in found for name, _ in inner):
                return None
            found.update((name, weight * factor) for name, factor in inner)
        return list(found.items())
    names = _TERMS_OF.get(type(reward))
    return None if names is None else [(name, 1.0) for name in names]


def slowdown_limits(reward: Reward) -> set[float]:
    """Limits of the clipped slowdowns in a reward."""
    if isinstance(reward, WeightedSum):
        return set().union(*(slowdown_limits(part) for part, _ in reward.parts))
    return {reward.limit} if isinstance(reward, SlowdownClipped) else set()


def compilable(env: SchedulingEnv) -> str:
    """Why environments like this one cannot be stepped by compiled code; empty where they can."""
    if type(env) not in KINDS:
        return f"{type(env).__name__} is an environment of its own"
    engine = env.engine
    if not isinstance(engine, CompiledEngine):
        return "its engine is not the compiled one"
    if not engine.runs_inside:
        return "a scheduler inside it is not a built-in one"
    if terms_of(env.reward) is None:
        return f"its reward {env.reward.name!r} is not counted by compiled code"
    return ""


def weights_of(reward: Reward) -> list[tuple[int, float]]:
    """(column of `TERMS`, weight) in the order of the reward's own sum."""
    return [(TERMS.index(name), weight) for name, weight in terms_of(reward) or ()]


def make_office(env: SchedulingEnv) -> NDArray[Any]:
    """(1,) `OFFICE` record of environments like `env`."""
    office, limits, weights = np.zeros(1, OFFICE), slowdown_limits(env.reward), weights_of(env.reward)
    office["kind"] = KINDS[type(env)]
    office["one_number"] = getattr(env.config, "flat", False)
    office["max_machines"] = env.max_machines
    office["max_moves"] = getattr(env.config, "max_moves", 0)
    office["min_pool"] = env.cluster.config.min_pool_machines
    office["ttft_slo"] = env.cluster.config.slo.ttft_slowdown
    office["tbt_slo"] = env.cluster.config.slo.tbt_slowdown
    office["slowdown_limit"] = limits.pop() if limits else 0.0
    office["cost_per_hour"] = env.cluster.cost_per_hour
    office["num_terms"] = len(weights)
    for k, (column, weight) in enumerate(weights):
        office["columns"][0, k], office["weights"][0, k] = column, weight
    return office
