"""Discounting by simulated time instead of by step.

One step lasts until the next decision, a few milliseconds in a burst and seconds in a lull. So what lies `t`
seconds ahead counts `exp(-t / discount_s)`, and the traces of GAE decay as `exp(-t / (1 / (1 / discount_s + 1
/ trace_s)))`, whatever the number of decisions in between. stable-baselines3 has one gamma a model; these
buffers have one a step, computed from `info["elapsed_s"]`, which `RealTime` hands them.
"""

from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, DictRolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import DictReplayBufferSamples

Floats = NDArray[np.float32]


class RealTimeRollout:
    """What rollout buffers share. Mixed in before stable-baselines3's class."""

    buffer_size: int
    n_envs: int
    pos: int

    def __init__(
        self,
        *args: Any,
        discount_s: float = 10.0,
        trace_s: float = 10.0,
        reward_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.discount_s = discount_s
        self.trace_s = trace_s
        self.reward_scale = reward_scale
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Forget the last rollout."""
        self.elapsed_s: Floats = np.full((self.buffer_size, self.n_envs), np.nan, np.float32)
        super().reset()  # type: ignore[misc]

    def set_elapsed(self, elapsed_s: Floats) -> None:
        """Say how long the step that is added next took [s], (n_envs,)."""
        self.elapsed_s[self.pos] = elapsed_s

    def add(self, obs: Any, action: Any, reward: Any, *args: Any, **kwargs: Any) -> None:
        """See `RolloutBuffer.add`. `set_elapsed` comes first."""
        if np.isnan(self.elapsed_s[self.pos]).any():
            raise RuntimeError("no elapsed time for this step: learn with the RealTime callback")
        super().add(obs, action, reward * self.reward_scale, *args, **kwargs)  # type: ignore[misc]

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: NDArray[Any]) -> None:
        """GAE with the discount and the trace decay of each step."""
        values, rewards = self.values, self.rewards  # type: ignore[attr-defined]
        starts = self.episode_starts  # type: ignore[attr-defined]
        gamma = np.exp(-self.elapsed_s / self.discount_s)
        decay = gamma * np.exp(-self.elapsed_s / self.trace_s)
        advantages = np.zeros_like(rewards)
        next_values = last_values.clone().cpu().numpy().flatten()
        going_on = 1.0 - dones.astype(np.float32)
        carried = np.zeros(self.n_envs, np.float32)
        for step in reversed(range(self.buffer_size)):
            delta = rewards[step] + gamma[step] * next_values * going_on - values[step]
            carried = delta + decay[step] * going_on * carried
            advantages[step] = carried
            next_values = values[step]
            going_on = 1.0 - starts[step]
        self.advantages = advantages
        self.returns = advantages + values


class RealTimeRolloutBuffer(RealTimeRollout, DictRolloutBuffer):  # type: ignore[misc]
    """For PPO and A2C."""


class RealTimeMaskableRolloutBuffer(RealTimeRollout, MaskableDictRolloutBuffer):  # type: ignore[misc]
    """For MaskablePPO."""


class RealTimeReplayBuffer(DictReplayBuffer):
    """For DQN: each transition carries its own discount."""

    def __init__(
        self,
        *args: Any,
        discount_s: float = 10.0,
        reward_scale: float = 1.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.discount_s = discount_s
        self.reward_scale = reward_scale
        self.rng = np.random.default_rng([seed, 17])
        self.gammas = np.ones((self.buffer_size, self.n_envs), np.float32)

    def set_elapsed(self, elapsed_s: Floats) -> None:
        """Say how long the step that is added next took [s], (n_envs,)."""
        self.gammas[self.pos] = np.exp(-elapsed_s / self.discount_s)

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        """See `ReplayBuffer.add`."""
        super().add(obs, next_obs, action, reward * self.reward_scale, done, infos)

    def sample(self, batch_size: int, env: Any = None) -> DictReplayBufferSamples:  # type: ignore[override]
        """Transitions drawn at random with their discounts."""
        top = self.buffer_size if self.full else self.pos
        rows = self.rng.integers(0, top, size=batch_size)
        # DictReplayBuffer draws the environment inside `_get_samples`; here it must be known for the
        # discount.
        columns = self.rng.integers(0, self.n_envs, size=batch_size)

        def pick(arrays: dict[str, NDArray[Any]]) -> dict[str, th.Tensor]:
            return {key: self.to_torch(array[rows, columns]) for key, array in arrays.items()}

        ended = self.dones[rows, columns] * (1 - self.timeouts[rows, columns])
        return DictReplayBufferSamples(
            observations=pick(self.observations),
            actions=self.to_torch(self.actions[rows, columns]),
            next_observations=pick(self.next_observations),
            dones=self.to_torch(ended.reshape(-1, 1)),
            rewards=self.to_torch(self.rewards[rows, columns].reshape(-1, 1)),
            discounts=self.to_torch(self.gammas[rows, columns].reshape(-1, 1)),
        )


class RealTime(BaseCallback):
    """Hands `info["elapsed_s"]` of each step to the buffer before it stores the step.

    An episode's last step already holds the outcomes of every request still in the system, so nothing is left
    to
    bootstrap: the time limit's flag, which makes stable-baselines3 add a value there, is cleared.
    """

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        elapsed = np.array([info["elapsed_s"] for info in infos], np.float32)
        model: Any = self.model
        buffer = model.rollout_buffer if hasattr(model, "rollout_buffer") else model.replay_buffer
        buffer.set_elapsed(elapsed)
        for info in infos:
            info["TimeLimit.truncated"] = False
        return True
