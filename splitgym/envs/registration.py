"""The environments' ids, as data. `import splitgym` registers them."""

import gymnasium as gym

IDS: dict[str, str] = {
    "splitgym/Routing-v0": "splitgym.envs.routing:RoutingEnv",
    "splitgym/PoolSizing-v0": "splitgym.envs.pool_sizing:PoolSizingEnv",
    "splitgym/Joint-v0": "splitgym.envs.joint:JointEnv",
}
"""Id -> entry point. Entry points are imported when an environment is made."""


def register_all() -> None:
    """Register every id with Gymnasium; a second call changes nothing."""
    for name, entry_point in IDS.items():
        if name not in gym.registry:
            kind = entry_point.partition(":")[0].rpartition(".")[2]
            gym.register(id=name, entry_point=entry_point, vector_entry_point=f"splitgym.envs.vector:{kind}")
