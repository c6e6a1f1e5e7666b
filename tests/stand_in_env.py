"""A small environment with the spaces of `splitgym/Routing-v0` and friends, for tests of learning alone.

Machines hold queues that drain with time; a good decision takes the shortest. No simulator is involved.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Obs = dict[str, NDArray[np.float32]]


class StandIn(gym.Env[Obs, Any]):
    """Episodes of `length` steps; reward is 1 minus what waits on the chosen machines.

    Args:
        kind: "routing", "flat", "pool_sizing" or "joint".
        max_machines, machines: M, and how many of them are real.
        length: steps of an episode.
    """

    def __init__(
        self, kind: str = "routing", max_machines: int = 4, machines: int = 3, length: int = 50
    ) -> None:
        m = max_machines
        self.kind, self.m, self.machines, self.length = kind, m, machines, length
        self.observation_space = spaces.Dict(
            {
                "machines": spaces.Box(-10, 10, (m, 3), np.float32),
                "cluster": spaces.Box(-10, 10, (2,), np.float32),
                "request": spaces.Box(-10, 10, (2,), np.float32),
                "mask": spaces.Box(0, 1, (m,), np.float32),
            }
        )
        self.action_space = {
            "routing": spaces.MultiDiscrete([m, m]),
            "flat": spaces.Discrete(m * m),
            "pool_sizing": spaces.Discrete(3),
            "joint": spaces.MultiDiscrete([m + 1, m + 1, 3]),
        }[kind]
        self.queue = np.zeros(m)
        self.steps = 0
        self.down = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict]:
        super().reset(seed=seed)
        self.queue = np.zeros(self.m)
        self.steps = 0
        self._draw()
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        numbers = np.atleast_1d(action)
        if self.kind == "flat":
            chosen = np.array(divmod(int(numbers[0]), self.m))
        elif self.kind == "pool_sizing":
            chosen = np.array([int(numbers[0])])
        else:
            chosen = numbers[:2]
        chosen = chosen[chosen < self.m]
        waiting = float(self.queue[chosen].sum())
        self.queue[chosen] += self.size
        elapsed = float(self.np_random.exponential(0.5))
        self.queue = np.maximum(0, self.queue - elapsed)
        self.steps += 1
        self._draw()
        info = {"elapsed_s": elapsed}
        return self._observe(), 1.0 - waiting, False, self.steps >= self.length, info

    def action_masks(self) -> NDArray[np.bool_]:
        """One real machine is down at each step; padded ones always are."""
        allowed = np.arange(self.m) < self.machines
        allowed[self.down] = False
        if self.kind == "flat":
            return (allowed[:, None] & allowed[None, :]).ravel()
        if self.kind == "pool_sizing":
            return np.ones(3, np.bool_)
        if self.kind == "joint":
            none = np.zeros(1, np.bool_)
            return np.concatenate([allowed, none, allowed, none, np.array([False, True, False])])
        return np.concatenate([allowed, allowed])

    def _draw(self) -> None:
        self.size = float(self.np_random.uniform(0.2, 1.0))
        self.down = int(self.np_random.integers(self.machines))

    def _observe(self) -> Obs:
        machines = np.zeros((self.m, 3), np.float32)
        machines[: self.machines, 0] = self.queue[: self.machines]
        machines[: self.machines, 1] = np.arange(self.machines) != self.down
        return {
            "machines": machines,
            "cluster": np.array([self.queue.mean(), 1.0], np.float32),
            "request": np.array([self.size, 0.0], np.float32),
            "mask": (np.arange(self.m) < self.machines).astype(np.float32),
        }


class ShortestQueue:
    """A teacher: the allowed machine with the shortest queue, for both parts."""

    def begin(self, env: Any, seed: int) -> None:
        pass

    def action(self, env: Any) -> Any:
        allowed = np.arange(env.m) < env.machines
        allowed[env.down] = False
        best = int(np.where(allowed, env.queue, np.inf).argmin())
        return best * env.m + best if env.kind == "flat" else np.array([best, best])


class Mortal(StandIn):
    """Its process dies at a step: once, when the file `mark` is not there yet; without one, always."""

    def __init__(self, mark: Path | None, at: int) -> None:
        super().__init__(length=9)
        self.mark, self.at, self.count = mark, at, 0

    def step(self, action):
        self.count += 1
        if self.count == self.at and not (self.mark and self.mark.exists()):
            if self.mark:
                self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class StandInTask:
    """The stand-in environment as a task; goodput is the mean reward of two fixed episodes."""

    def __init__(self, kind: str = "routing", pause_s: float = 0.0) -> None:
        self.kind, self.pause_s = kind, pause_s

    def make_env(self) -> StandIn:
        return StandIn(self.kind)

    def teacher(self) -> ShortestQueue:
        return ShortestQueue()

    def judge(self, model: Any) -> dict[str, float]:
        import torch

        from agents.evaluation import decide

        time.sleep(self.pause_s)
        random = torch.Generator().manual_seed(0)
        env = self.make_env()
        rewards = []
        for seed in (1, 2):
            observation, _ = env.reset(seed=seed)
            over = False
            while not over:
                action = decide(model, observation, env.action_masks(), 1.0, random)
                observation, reward, _, over, _ = env.step(action)
                rewards.append(reward)
        return {"goodput": float(np.mean(rewards)), "ttft_slowdown_p50": 1.0}
