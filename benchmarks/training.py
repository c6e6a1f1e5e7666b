"""PPO steps per second on our environments against the learner's ceiling: environments that do nothing.

    python benchmarks/training.py [--json FILE] [--repeats N]

Routing-v0 with 8 machines, stable-baselines3's PPO with its MLP policy, 8 environments, batches of 512, 4
epochs, one torch thread. The ceiling is the same learner on environments of the same spaces that do nothing.
Ratios are taken in one run, the cases in turn.
"""

from functools import partial
from typing import Any

import numpy as np
import torch as th
from harness import Report, arguments, seconds
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from agents.vec import InProcess, Together, vec_env
from splitgym.envs import RoutingEnv

NUM_ENVS, N_STEPS, ROLLOUTS = 8, 512, 3


class Nothing(VecEnv):
    """Environments of the same spaces that do nothing: the observation stays, the reward is 0."""

    def __init__(self, like: VecEnv, episode: int) -> None:
        super().__init__(like.num_envs, like.observation_space, like.action_space)
        self._observation = {
            key: np.zeros((self.num_envs, *(box.shape or ())), np.float32)
            for key, box in like.observation_space.items()  # type: ignore[attr-defined]
        }
        self._episode, self._steps = episode, 0

    def reset(self) -> Any:
        return self._observation

    def step_async(self, actions: Any) -> None:
        pass

    def step_wait(self) -> Any:
        self._steps += 1
        over = self._steps % self._episode == 0
        infos: list[dict[str, Any]] = [{"elapsed_s": 0.05} for _ in range(self.num_envs)]
        if over:
            for info in infos:
                info["terminal_observation"] = {key: array[0] for key, array in self._observation.items()}
        return self._observation, np.zeros(self.num_envs, np.float32), np.full(self.num_envs, over), infos

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        pass

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def close(self) -> None:
        pass


def learner(venv: VecEnv) -> PPO:
    """PPO as the ceiling was measured elsewhere."""
    return PPO(
        "MultiInputPolicy", venv, n_steps=N_STEPS, batch_size=512, n_epochs=4, seed=0, device="cpu", verbose=0
    )


def main() -> None:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    th.set_num_threads(1)
    report = Report("PPO, MLP policy, Routing-v0 with 8 machines, 8 environments")
    make = partial(RoutingEnv)
    ours = vec_env([make] * NUM_ENVS)
    assert isinstance(ours, Together)
    steps = NUM_ENVS * N_STEPS * ROLLOUTS
    cases = {
        "together": learner(ours),
        "one_by_one": learner(InProcess([make] * NUM_ENVS)),
        "ceiling": learner(Nothing(ours, 1900)),
    }
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.repeats):
        for name, model in cases.items():
            spent = seconds(lambda model=model: model.learn(steps, reset_num_timesteps=False), 1)
            rates[name] += [steps / s for s in spent]
    for name, values in rates.items():
        report.add(f"training.ppo.{name}.steps_per_s", values, "steps/s")
    shares = [a / b for a, b in zip(rates["together"], rates["ceiling"])]
    report.add("training.ppo.over_ceiling", shares, "ratio")
    report.finish(options.json)


if __name__ == "__main__":
    main()
