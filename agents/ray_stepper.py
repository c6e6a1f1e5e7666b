"""What an actor of `agents.ray_envs` does. It imports nothing heavy, so that a new one starts quickly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from splitgym.scale import must_be

MASKS = "action_masks"


@dataclass
class Episode:
    """What brings an environment to where it is."""

    seed: int | None = None
    """Of `reset`, where it was given one."""
    options: dict[str, Any] | None = None
    generator: dict[str, Any] | None = None
    """State of `np_random` before `reset`, where it was not."""
    actions: list[Any] = field(default_factory=list)


class Stepper:
    """The environments of one actor."""

    def make(self, makers: Sequence[Callable[[], Any]], expected: str) -> tuple[Any, Any, Any, bool]:
        """Make them.

        Args:
            makers: one an environment.
            expected: `fingerprint()` of the machine that asks.

        Returns:
            observation space, action space, render mode, and whether there are action masks.

        Raises:
            ConfigError: another splitgym here, or what a maker raises.
        """
        must_be(expected)
        self._envs = [make() for make in makers]
        env = self._envs[0]
        return env.observation_space, env.action_space, env.render_mode, hasattr(env.unwrapped, MASKS)

    def reset(self, episodes: list[Episode]) -> list[tuple[Any, Any, Episode]]:
        """Begin, or begin again, an episode of each environment and play what is known of it.

        Returns:
            for each the last observation (masks with it) and info, and the episode with its generator.
        """
        return [self._play(env, episode) for env, episode in zip(self._envs, episodes, strict=True)]

    def step(self, actions: Sequence[Any]) -> list[tuple[Any, float, bool, Any, Episode | None, Any]]:
        """Step each environment; where that ends an episode, begin the next.

        Returns:
            for each the observation (masks with it), reward, done, info, and the new episode with its reset
            info, if one began.
        """
        found = []
        for env, action in zip(self._envs, actions, strict=True):
            observation, reward, terminated, truncated, info = env.step(action)
            done, begun, reset_info = terminated or truncated, None, {}
            info["TimeLimit.truncated"] = truncated and not terminated
            if done:
                info["terminal_observation"] = observation
                begun = Episode(generator=env.unwrapped.np_random.bit_generator.state)
                observation, reset_info = env.reset()
            found.append((self._with_masks(env, observation), float(reward), done, info, begun, reset_info))
        return found

    def call(self, places: list[int], method: str, args: Any, kwargs: Any) -> list[Any]:
        """A method of some environments."""
        return [getattr(_holder(self._envs[i], method), method)(*args, **kwargs) for i in places]

    def get(self, places: list[int], name: str) -> list[Any]:
        """An attribute of some environments."""
        return [getattr(_holder(self._envs[i], name), name) for i in places]

    def close(self) -> None:
        """End the environments."""
        for env in self._envs:
            env.close()

    def _play(self, env: Any, episode: Episode) -> tuple[Any, Any, Episode]:
        if episode.seed is None:
            generator = env.unwrapped.np_random
            if episode.generator is not None:
                generator.bit_generator.state = episode.generator
            episode.generator = generator.bit_generator.state
        observation, info = env.reset(seed=episode.seed, options=episode.options)
        for action in episode.actions:
            observation, _, terminated, truncated, _ = env.step(action)
            assert not (terminated or truncated), "an episode in progress has ended while it was played again"
        return self._with_masks(env, observation), info, episode

    def _with_masks(self, env: Any, observation: Any) -> Any:
        return observation, getattr(env.unwrapped, MASKS, lambda: None)()


def _holder(env: Any, name: str) -> Any:
    return env if name in dir(env) else env.unwrapped
