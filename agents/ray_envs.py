"""Environments on the machines of a Ray cluster, stepped together: a VecEnv whose workers may die.

Each actor steps some of the environments, one after the other, as `InProcess` does here. Of each environment
this side remembers how its episode began and the actions since, so when an actor dies, another one plays them
again and goes on: the learner sees the same numbers as with environments of its own.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.util import dict_to_obs, obs_space_info

from agents.ray_stepper import MASKS, Episode, Stepper
from splitgym.errors import ConfigError, SplitgymError
from splitgym.scale import MAX_RETRIES, fingerprint, ray_connection


class RayEnvs(VecEnv):
    """See the module.

    Args:
        makers: one an environment; they must pickle.
        address: of the cluster, see `splitgym.scale.ray_connection`.
        actors: how many; None: as many as the cluster has CPUs, at most one an environment.

    Raises:
        ConfigError: no such cluster, or a worker without this very splitgym.
        SplitgymError: an actor died time and again.
    """

    def __init__(
        self, makers: Sequence[Callable[[], Any]], address: str = "local", actors: int | None = None
    ) -> None:
        self._open = ExitStack()
        self._open.enter_context(ray_connection(address))
        try:
            import ray

            number = actors or int(ray.cluster_resources().get("CPU", 1))
            places = np.array_split(np.arange(len(makers)), max(1, min(number, len(makers))))
            self._places = [list(map(int, some)) for some in places]
            self._makers = [[makers[i] for i in some] for some in self._places]
            self._actors: list[Any] = [None] * len(self._places)
            made = [self._start(k) for k in range(len(self._places))]
            spaces = ray.get(made)[0]
        except Exception as error:
            self._open.close()
            raise _cause(error) from error
        observation_space, action_space, self.render_mode, self._masked = spaces
        super().__init__(len(makers), observation_space, action_space)
        self.keys, shapes, dtypes = obs_space_info(observation_space)
        self._observations = {
            key: np.zeros((self.num_envs, *shapes[key]), dtype=dtypes[key]) for key in self.keys
        }
        self._masks: list[Any] = [None] * self.num_envs
        self._episodes = [Episode() for _ in makers]
        self._pending: list[Any] = []
        self._actions: Any = None

    def reset(self) -> Any:
        """Begin an episode of each environment, with the seeds given before."""
        for i in range(self.num_envs):
            self._episodes[i] = Episode(self._seeds[i], self._options[i] or None)
        calls = self._everywhere(lambda k: self._actors[k].reset.remote(self._of(self._episodes, k)))
        for k, call in enumerate(calls):
            for i, (seen, info, episode) in zip(self._places[k], self._answer(k, call, "reset"), strict=True):
                self._episodes[i], self.reset_infos[i] = episode, info
                self._see(i, seen)
        self._reset_seeds()
        self._reset_options()
        return self._seen()

    def step_async(self, actions: np.ndarray) -> None:
        """Send the actions."""
        self._actions = actions
        self._pending = self._everywhere(lambda k: self._actors[k].step.remote(self._of(actions, k)))

    def step_wait(self) -> Any:
        """Collect what came of them."""
        rewards = np.zeros(self.num_envs, np.float32)
        dones = np.zeros(self.num_envs, bool)
        infos: list[Any] = [None] * self.num_envs
        for k, call in enumerate(self._pending):
            for i, found in zip(self._places[k], self._answer(k, call, "step"), strict=True):
                seen, rewards[i], dones[i], infos[i], begun, reset_info = found
                if begun is None:
                    self._episodes[i].actions.append(np.copy(self._actions[i]))
                else:
                    self._episodes[i], self.reset_infos[i] = begun, reset_info
                self._see(i, seen)
        self._pending = []
        return self._seen(), rewards, dones, infos

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """A method of the environments; action masks are known here already."""
        chosen = list(self._get_indices(indices))
        if method_name == MASKS and not args and not kwargs:
            return [self._masks[i] for i in chosen]
        return self._ask(chosen, "call", method_name, args, kwargs)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the environments."""
        return self._ask(list(self._get_indices(indices)), "get", attr_name)

    def has_attr(self, attr_name: str) -> bool:
        """Is there such an attribute? (Action masks are a common question.)"""
        if attr_name == MASKS:
            return bool(self._masked)
        try:
            self.get_attr(attr_name)
        except AttributeError:
            return False
        return True

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: what is set here would be lost with the actor."""
        raise NotImplementedError(
            f"environments on Ray keep what they were made with; {attr_name} is not set"
        )

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """None is wrapped on this side."""
        return [False for _ in self._get_indices(indices)]

    def close(self) -> None:
        """End the actors, and the connection if it was made here."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        self._open.close()

    # ---- inside -------------------------------------------------------------------------------------------

    def _start(self, k: int) -> Any:
        """A new actor in the k-th place. Returns what will be its spaces."""
        import ray

        # Restarts are this side's own: only it knows what was played.
        kind = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(Stepper)
        self._actors[k] = kind.remote()
        return self._actors[k].make.remote(self._makers[k], fingerprint())

    def _everywhere(self, call: Callable[[int], Any]) -> list[Any]:
        return [call(k) for k in range(len(self._places))]

    def _of(self, items: Any, k: int) -> list[Any]:
        return [items[i] for i in self._places[k]]

    def _answer(self, k: int, call: Any, what: str) -> list[Any]:
        """The result of a reset or step; an actor that died is replaced, and asked again."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        for _ in range(MAX_RETRIES):
            try:
                found: list[Any] = ray.get(call)
                return found
            except RayTaskError as error:
                raise _cause(error) from error
            except RayActorError:
                self._start(k)
                call = self._actors[k].reset.remote(self._of(self._episodes, k))
                if what == "step":
                    call = self._actors[k].step.remote(self._of(self._actions, k))
        raise SplitgymError(
            f"a Ray worker with {len(self._places[k])} environments died {MAX_RETRIES} times in a row: "
            "look at its logs, or train without --ray"
        )

    def _ask(self, chosen: Iterable[int], how: str, *args: Any) -> list[Any]:
        import ray
        from ray.exceptions import RayTaskError

        found: dict[int, Any] = {}
        wanted = list(chosen)
        for k, places in enumerate(self._places):
            here = [i for i in wanted if i in places]
            if here:
                call = getattr(self._actors[k], how).remote([places.index(i) for i in here], *args)
                try:
                    found.update(zip(here, ray.get(call), strict=True))
                except RayTaskError as error:
                    raise _cause(error) from error
        return [found[i] for i in wanted]

    def _see(self, i: int, seen: Any) -> None:
        observation, self._masks[i] = seen
        for key in self.keys:
            self._observations[key][i] = observation if key is None else observation[key]

    def _seen(self) -> Any:
        copies = {key: np.copy(array) for key, array in self._observations.items()}
        return dict_to_obs(self.observation_space, copies)


def _cause(error: Exception) -> Exception:
    """What an actor raised, as it was raised there."""
    from ray.exceptions import RayTaskError

    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, Exception):
            return cause
        return ConfigError(str(error).strip().splitlines()[-1])
    return error
