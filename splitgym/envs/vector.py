"""Vector environments: `gymnasium.make_vec("splitgym/Routing-v0", num_envs=64)`.

N simulations are stepped in one compiled call, in threads. Where compiled code cannot do it (a scheduler or a
reward of your own, the specification engine), the same arguments give Gymnasium's `SyncVectorEnv`.
"""

import logging
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from splitgym.envs.base import NO_DECISION, SchedulingEnv
from splitgym.envs.fleet import Fleet, compilable
from splitgym.envs.joint import JointEnv
from splitgym.envs.pool_sizing import PoolSizingEnv
from splitgym.envs.routing import RoutingEnv
from splitgym.errors import ConfigError
from splitgym.trace import Trace

_LOG = logging.getLogger("splitgym")

Arrays = dict[str, NDArray[np.float32]]


class FleetVectorEnv(VectorEnv[Arrays, Any, Any]):
    """N environments of one kind, as `env` is.

    Observations are those of the single environment with a first axis of N. They are views of one of two
    buffers: an observation stays as it is until the step after the next one; copy what you keep for longer.

    `infos` holds arrays: `elapsed_s`, `decision_id`, `next_decision_id`, `invalid_actions` and a dictionary
    `reward_terms`, each with its `_name` mask; where an episode ends, `episode_metrics` and `requests`. With
    `details=True` also `outcomes_by_decision`, which costs time.

    Args:
        env: a template.
        num_envs: N.
        autoreset_mode: `NextStep` (a step begins the next episode where the last one ended it; its action is
            not read and its reward is 0), `SameStep` (the step that ends an episode returns the next one's
            first observation; the last one is in `infos["final_obs"]`) or `Disabled`.
        threads: None is one a core.
        details: see above.

    Raises:
        ConfigError: `splitgym.envs.fleet.compilable` says why not.
    """

    def __init__(
        self,
        env: SchedulingEnv,
        num_envs: int,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        threads: int | None = None,
        details: bool = False,
    ) -> None:
        self.fleet = Fleet(env, num_envs, threads)
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**env.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = env.render_mode
        self.single_observation_space = env.observation_space  # type: ignore[assignment]
        self.single_action_space = env.action_space
        self.observation_space = batch_space(env.observation_space, num_envs)
        self.action_space = batch_space(env.action_space, num_envs)
        self._details = details
        self._begun = False
        self._all = np.arange(num_envs)
        self._every = np.ones(num_envs, np.bool_)
        self._every.flags.writeable = False

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        """Begin an episode in each environment.

        Args:
            seed: a number s gives seeds s, s + 1, ...; a list one each; None goes on.
            options: {"trace": Trace} for all; {"reset_mask": (N,) booleans} resets some.

        Raises:
            ConfigError: as the single environment, or a list or mask of another length.
        """
        given = dict(options or {})
        mask = given.pop("reset_mask", None)
        places = self._all if mask is None else np.flatnonzero(_checked_mask(mask, self.num_envs))
        trace = given.pop("trace", None)
        if trace is not None and not isinstance(trace, Trace):
            raise ConfigError(f"reset option trace is {trace!r}, expected a Trace")
        if isinstance(seed, int | np.integer):
            seeds: list[int | None] = [int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise ConfigError(f"seed has {len(seeds)} entries, expected {self.num_envs}")
        self.fleet.begin(places, {int(i): seeds[i] for i in places}, trace)
        self._begun = True
        chosen = np.isin(self._all, places)
        return self.fleet.observations, self._infos(chosen)

    def step(
        self, actions: Any
    ) -> tuple[Arrays, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Answer the pending decision of each environment and advance it to the next one.

        Raises:
            ActionError: an action outside the space; nothing has been stepped then.
        """
        if not self._begun:
            raise ResetNeeded("call reset() before step()")
        before = np.flatnonzero(self.fleet.over) if self.fleet.any_over else np.zeros(0, np.int64)
        if len(before) and self.autoreset_mode == AutoresetMode.DISABLED:
            raise ResetNeeded(f"environments {list(before)} have ended: reset them with options reset_mask")
        self.fleet.step(actions)
        if len(before):  # they wait, and begin now
            self.fleet.begin(before, keep_others=True)
        rewards, over = self.fleet.rewards, self.fleet.over
        ended = np.flatnonzero(over) if self.fleet.any_over else ()
        if len(ended) and self.autoreset_mode == AutoresetMode.SAME_STEP:
            infos = self._restart(np.asarray(ended))
        else:
            infos = self._infos(self._every, all_stepped=not len(before))
            if len(ended):
                self._add_ends(infos, np.asarray(ended))
        return self.fleet.observations, rewards, np.zeros(self.num_envs, np.bool_), over, infos

    def action_masks(self) -> NDArray[np.bool_]:
        """(N, A) which actions are allowed now, a row as the single environment's `action_masks`."""
        return self.fleet.action_masks()

    def close_extras(self, **kwargs: Any) -> None:
        """End the threads."""
        self.fleet.close()

    # ---- inside -------------------------------------------------------------------------------------------

    def _infos(self, chosen: NDArray[np.bool_], all_stepped: bool = False) -> dict[str, Any]:
        """What the last call says of the chosen environments; all have answered a decision, or look which."""
        fleet = self.fleet
        found: dict[str, Any] = {
            "elapsed_s": fleet.elapsed_s,
            "_elapsed_s": chosen,
            "decision_id": fleet.answered,
            "_decision_id": chosen,
            "next_decision_id": fleet.asked,
            "_next_decision_id": chosen,
            "invalid_actions": fleet.invalid_actions,
            "_invalid_actions": chosen,
        }
        stepped = chosen
        if not all_stepped:
            stepped = chosen & (found["decision_id"] != NO_DECISION)
            if not stepped.any():
                return found
        terms: dict[str, Any] = dict(fleet.terms())
        found["reward_terms"] = terms | {f"_{name}": stepped for name in terms}
        found["_reward_terms"] = stepped
        if self._details:
            rows = np.full(self.num_envs, None, object)
            for i in np.flatnonzero(stepped).tolist():
                rows[i] = fleet.outcomes(i)
            found["outcomes_by_decision"], found["_outcomes_by_decision"] = rows, stepped
        return found

    def _add_ends(self, infos: dict[str, Any], places: NDArray[np.int64]) -> None:
        """Add what is said of episodes that have ended, as Gymnasium's `_add_info` would."""
        ends = [self._last(i) for i in places.tolist()]
        there = np.zeros(self.num_envs, np.bool_)
        there[places] = True
        metrics: dict[str, Any] = {}
        for name, value in ends[0]["episode_metrics"].items():
            kind = object if isinstance(value, str) else type(value)
            metrics[name] = np.full(self.num_envs, None) if kind is object else np.zeros(self.num_envs, kind)
            metrics[name][places] = [end["episode_metrics"][name] for end in ends]
            metrics[f"_{name}"] = there
        tables = np.full(self.num_envs, None)
        for i, end in zip(places.tolist(), ends):
            tables[i] = end["requests"]
        infos |= {"episode_metrics": metrics, "_episode_metrics": there}
        infos |= {"requests": tables, "_requests": there}

    def _last(self, i: int) -> dict[str, Any]:
        metrics, table = self.fleet.episode(i)
        return {"episode_metrics": metrics, "requests": table}

    def _restart(self, places: NDArray[np.int64]) -> dict[str, Any]:
        """The next episodes begin in this very step: infos with what ended, as Gymnasium has it."""
        fleet = self.fleet
        last = self._infos(np.isin(self._all, places))
        final = {}
        for i in places.tolist():
            info = {name: last[name][i] for name in ("elapsed_s", "decision_id", "invalid_actions")}
            info |= {"next_decision_id": NO_DECISION, **self._last(i)}
            info["reward_terms"] = {name: float(terms[i]) for name, terms in fleet.terms().items()}
            if self._details:
                info["outcomes_by_decision"] = fleet.outcomes(i)
            seen = {key: array[i].copy() for key, array in fleet.observations.items()}
            final[i] = {"final_obs": seen, "final_info": info}
        fleet.begin(places, keep_others=True)
        infos = self._infos(self._every)
        for i, info in final.items():
            infos = self._add_info(infos, info, i)
        return infos


def _checked_mask(mask: Any, size: int) -> NDArray[np.bool_]:
    array = np.asarray(mask)
    if array.dtype != np.bool_ or array.shape != (size,) or not array.any():
        raise ConfigError(f"reset option reset_mask: expected ({size},) booleans with at least one True")
    return array


def _make(kind: type[SchedulingEnv], num_envs: int, options: dict[str, Any]) -> VectorEnv[Any, Any, Any]:
    """A fleet where one can be; otherwise environments one after the other."""
    own: dict[str, Any] = {
        name: options.pop(name) for name in ("autoreset_mode", "threads", "details") if name in options
    }
    env = kind(**options)
    why = compilable(env)
    if not why:
        return FleetVectorEnv(env, num_envs, **own)
    _LOG.info("environments are stepped one by one in Python: %s", why)
    made = [lambda: env, *([lambda: kind(**options)] * (num_envs - 1))]
    return SyncVectorEnv(made, autoreset_mode=own.get("autoreset_mode", AutoresetMode.NEXT_STEP))


def routing(num_envs: int = 1, **options: Any) -> VectorEnv[Any, Any, Any]:
    """N `splitgym/Routing-v0`; options as `RoutingEnv`, and those of `FleetVectorEnv`."""
    return _make(RoutingEnv, num_envs, options)


def pool_sizing(num_envs: int = 1, **options: Any) -> VectorEnv[Any, Any, Any]:
    """N `splitgym/PoolSizing-v0`; options as `PoolSizingEnv`, and those of `FleetVectorEnv`."""
    return _make(PoolSizingEnv, num_envs, options)


def joint(num_envs: int = 1, **options: Any) -> VectorEnv[Any, Any, Any]:
    """N `splitgym/Joint-v0`; options as `JointEnv`, and those of `FleetVectorEnv`."""
    return _make(JointEnv, num_envs, options)
