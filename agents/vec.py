"""Environments stepped together in this process.

`Together` steps a fleet in one compiled call, in threads: the usual case. `InProcess` steps environments one
after the other, for those that compiled code does not know: stable-baselines3's DummyVecEnv without its deep
copies of every info (ours are made afresh each step).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from splitgym.envs import SchedulingEnv
from splitgym.envs.fleet import Fleet, compilable

MASKS = "action_masks"


def vec_env(makers: Sequence[Callable[[], Any]]) -> VecEnv:
    """Environments alike, stepped in the fastest way there is for them.

    Args:
        makers: one an environment; all make the same kind, with the same arguments.
    """
    first = makers[0]()
    env = getattr(first, "unwrapped", first)
    if isinstance(env, SchedulingEnv) and not compilable(env):
        return Together(env, len(makers))
    return InProcess([lambda: first, *makers[1:]])


class Together(VecEnv):
    """A fleet as stable-baselines3 wants it.

    Observations stay as they are until the step after the next one, which is as long as learners look at
    them. `infos` hold what a step must say, and a whole episode's metrics at its end; outcomes of requests
    are collected for `drain`.

    Args:
        env: a template of all.
        num_envs: how many.
        threads: that step them; None is one a core.
    """

    def __init__(self, env: SchedulingEnv, num_envs: int, threads: int | None = None) -> None:
        self.fleet = Fleet(env, num_envs, threads)
        self.num_envs, self._env = num_envs, env  # `get_attr` is called at once
        super().__init__(num_envs, env.observation_space, env.action_space)
        self._all = np.arange(num_envs)
        self._actions: Any = None

    def reset(self) -> Any:
        """Begin an episode of each, with the seeds given before."""
        options = self._options[0] or {}
        self.fleet.begin(self._all, dict(enumerate(self._seeds)), options.get("trace"))
        elapsed = self.fleet.elapsed_s
        self.reset_infos = [{"elapsed_s": float(elapsed[i])} for i in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return dict(self.fleet.observations)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions."""
        self._actions = actions

    def step_wait(self) -> Any:
        """Step all; where an episode ended, the next one has begun."""
        fleet = self.fleet
        fleet.step(self._actions)
        rewards = fleet.rewards.astype(np.float32)
        infos: list[dict[str, Any]] = [{"elapsed_s": s} for s in fleet.elapsed_s.tolist()]
        dones = fleet.over
        if fleet.any_over:
            self._restart(np.flatnonzero(dones), infos)
        return dict(fleet.observations), rewards, dones, infos

    def drain(self) -> tuple[NDArray[np.float64], dict[str, float]]:
        """What happened since the last call: see `Fleet.drain` and `Fleet.drain_terms`."""
        return self.fleet.drain(), self.fleet.drain_terms()

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Action masks. There are no environments with methods of their own to call."""
        if method_name != MASKS:
            raise AttributeError(f"environments that are stepped together have no method {method_name!r}")
        masks = self.fleet.action_masks()
        return [masks[i] for i in self._get_indices(indices)]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the template, which is the same for all."""
        return [getattr(self._env, attr_name)] * len(list(self._get_indices(indices)))

    def has_attr(self, attr_name: str) -> bool:
        """Has the template such an attribute?"""
        return hasattr(self._env, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: the environments are what they were made as."""
        raise NotImplementedError(f"environments that are stepped together keep their {attr_name}")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """None is."""
        return [False for _ in self._get_indices(indices)]

    def close(self) -> None:
        """End the threads."""
        self.fleet.close()

    def _restart(self, places: NDArray[np.int64], infos: list[dict[str, Any]]) -> None:
        fleet = self.fleet
        last = {key: array[places].copy() for key, array in fleet.observations.items()}
        invalid = fleet.invalid_actions
        for row, i in enumerate(places.tolist()):
            metrics, table = fleet.episode(i)
            infos[i] |= {
                "TimeLimit.truncated": True,
                "terminal_observation": {key: array[row] for key, array in last.items()},
                "episode_metrics": metrics,
                "requests": table,
                "invalid_actions": int(invalid[i]),
                "metrics": fleet.pools(i),
            }
        fleet.begin(places, keep_others=True)
        elapsed = fleet.elapsed_s
        for i in places.tolist():
            self.reset_infos[i] = {"elapsed_s": float(elapsed[i])}


class InProcess(DummyVecEnv):
    """See the module."""

    def step_wait(self) -> Any:
        """Step each environment, starting a new episode where one ended."""
        infos = []
        for i, env in enumerate(self.envs):
            observation, self.buf_rews[i], terminated, truncated, info = env.step(self.actions[i])
            self.buf_dones[i] = terminated or truncated
            info["TimeLimit.truncated"] = truncated and not terminated
            if self.buf_dones[i]:
                info["terminal_observation"] = observation
                observation, self.reset_infos[i] = env.reset()
            self._save_obs(i, observation)
            infos.append(info)
        return self._obs_from_buf(), np.copy(self.buf_rews), np.copy(self.buf_dones), infos

    def _obs_from_buf(self) -> Any:
        return {key: np.copy(array) for key, array in self.buf_obs.items()}
