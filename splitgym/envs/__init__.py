"""Gymnasium environments over the simulator: see the class docstrings, and `splitgym.envs.config`.

The classes are imported on use, so that `import splitgym`, which registers the ids, stays light.
"""

from typing import TYPE_CHECKING, Any

from splitgym.envs.registration import IDS, register_all

if TYPE_CHECKING:
    from splitgym.envs.base import SchedulingEnv
    from splitgym.envs.joint import JointEnv
    from splitgym.envs.pool_sizing import PoolSizingEnv
    from splitgym.envs.routing import RoutingEnv

__all__ = ["IDS", "JointEnv", "PoolSizingEnv", "RoutingEnv", "SchedulingEnv", "register_all"]

_HOME = {
    "SchedulingEnv": "splitgym.envs.base",
    "JointEnv": "splitgym.envs.joint",
    "PoolSizingEnv": "splitgym.envs.pool_sizing",
    "RoutingEnv": "splitgym.envs.routing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
