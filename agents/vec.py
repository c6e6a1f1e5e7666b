"""Environments stepped one after the other in this process: stable-baselines3's DummyVecEnv without its
copies.

DummyVecEnv deep-copies every info at every step. Ours hold the outcomes of completed requests, are made
afresh each step and are not kept by the environment, so the copy would only cost time.
"""

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv


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
