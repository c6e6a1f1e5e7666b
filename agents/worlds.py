"""Many clusters in one run: each environment has a cluster of its own, each episode its workload and load.

Clusters, workloads and loads are drawn as for evolution (`evolution.machines`, `mixed`, `models`,
`workloads`, `loads`, see `agents.scenarios`). Observations and actions are padded to one number of machines.
Rewards are divided by what the cluster can serve, so that a value means the same on 4 machines and on 16.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from agents import scenarios
from agents.config import RunConfig
from agents.recurrent import forget
from agents.task import IDS, env_options
from agents.vec import Together
from splitgym.cluster import Cluster
from splitgym.envs import SchedulingEnv
from splitgym.envs.fleet import Fleet
from splitgym.evaluation.saturate import known_or_measured
from splitgym.trace import Trace

_CLUSTERS = 7


class Windows:
    """The episodes of one cluster: a `TraceSource` of environments."""

    def __init__(self, config: RunConfig, cluster: Cluster) -> None:
        self._config, self._cluster = config, cluster
        self.name = "many"

    def draw(self, rng: np.random.Generator) -> Trace:
        """A window of a workload and a load drawn anew."""
        return scenarios.draw_window(self._config, self._cluster, rng).trace


def make_world(config: RunConfig, cluster: Cluster, source: Any = None) -> SchedulingEnv:
    """The run's environment on a cluster.

    Args:
        config: the run.
        cluster: the machines.
        source: what makes the traces; None draws them.
    """
    options = env_options(config, cluster.config)
    rate = known_or_measured(cluster, config.evolution.workloads[0])
    reward = options["reward"]
    parts = reward if isinstance(reward, dict) else {reward: 1.0}
    options |= {
        "reward": {name: weight / (rate * config.learner.discount_s) for name, weight in parts.items()},
        "rate_per_s": None,
        "trace": source or Windows(config, cluster),
        "part": None,
    }
    made: Any = gym.make(IDS[config.env], disable_env_checker=True, engine="compiled", **options)
    return made.unwrapped  # type: ignore[no-any-return]


def draw_clusters(config: RunConfig, count: int) -> list[Cluster]:
    """The clusters of a run's environments, from its seed."""
    rng = np.random.default_rng([config.seed, _CLUSTERS])
    return [scenarios.draw_cluster(config, rng) for _ in range(count)]


def worlds(config: RunConfig) -> "Beside":
    """The environments of a run, stepped together."""
    parts = []
    for _, alike in groupby(draw_clusters(config, config.learner.num_envs), id):
        same = list(alike)  # `scenarios.resolved` makes each cluster once
        env = make_world(config, same[0])
        parts.append(Together(env, len(same), threads=1 if len(same) == 1 else None))
    return Beside(parts)


class AnyOf(gym.Env[Any, Any]):
    """One of several environments, another one each episode, drawn by the seed of `reset`.

    Args:
        envs: with the same spaces.
    """

    def __init__(self, envs: Sequence[SchedulingEnv]) -> None:
        self._envs = list(envs)
        self._now = self._envs[0]
        self.observation_space, self.action_space = self._now.observation_space, self._now.action_space

    @property
    def unwrapped(self) -> Any:
        """The environment of this episode."""
        return self._now

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """See `gymnasium.Env`."""
        super().reset(seed=seed)
        self._now = self._envs[int(self.np_random.integers(len(self._envs)))]
        return self._now.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        """See `gymnasium.Env`."""
        return self._now.step(action)


class Beside(VecEnv):
    """Vector environments with the same spaces as one.

    Args:
        parts: in their order.
    """

    def __init__(self, parts: Sequence[Together]) -> None:
        self.parts = list(parts)
        edges = np.cumsum([0, *(part.num_envs for part in self.parts)])
        self._slices = [slice(a, b) for a, b in pairwise(edges)]
        self.num_envs = int(edges[-1])  # `get_attr` is called at once
        super().__init__(self.num_envs, self.parts[0].observation_space, self.parts[0].action_space)
        self._actions: Any = None

    def reset(self) -> Any:
        """Begin an episode of each, with the seeds given before."""
        for part, own in zip(self.parts, self._slices, strict=True):
            part._seeds, part._options = list(self._seeds[own]), list(self._options[own])
        seen = [part.reset() for part in self.parts]
        self.reset_infos = [info for part in self.parts for info in part.reset_infos]
        self._reset_seeds()
        self._reset_options()
        return _joined(seen)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions."""
        self._actions = actions

    def step_wait(self) -> Any:
        """Step all; where an episode ended, the next one has begun."""
        found = []
        for part, own in zip(self.parts, self._slices, strict=True):
            part.step_async(self._actions[own])
            found.append(part.step_wait())
        seen, rewards, dones, infos = zip(*found, strict=True)
        self.reset_infos = [info for part in self.parts for info in part.reset_infos]
        return _joined(seen), np.concatenate(rewards), np.concatenate(dones), [i for p in infos for i in p]

    def drain(self) -> tuple[NDArray[np.float64], dict[str, float]]:
        """What happened since the last call: see `Together.drain`."""
        tables, sums = [], dict[str, float]()
        for part in self.parts:
            table, terms = part.drain()
            tables.append(table)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value
        return np.concatenate(tables), sums

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Action masks, see `Together.env_method`."""
        found = [one for part in self.parts for one in part.env_method(method_name, *args, **kwargs)]
        return [found[i] for i in self._get_indices(indices)]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of each environment."""
        found = [one for part in self.parts for one in part.get_attr(attr_name)]
        return [found[i] for i in self._get_indices(indices)]

    def has_attr(self, attr_name: str) -> bool:
        """Have the environments such an attribute?"""
        return self.parts[0].has_attr(attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused, as by its parts."""
        self.parts[0].set_attr(attr_name, value, indices)

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """None is."""
        return [False for _ in self._get_indices(indices)]

    def close(self) -> None:
        """End the threads."""
        for part in self.parts:
            part.close()


def _joined(seen: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {key: np.concatenate([one[key] for one in seen]) for key in seen[0]}


def score_model(
    config: RunConfig, model: Any, found: Sequence[scenarios.Scenario], temperature: float = 0.0
) -> NDArray[np.float64]:
    """(3, S) goodput, tail and TTFT p99 of a model on scenarios: `agents.scenarios.run` for networks.

    Scenarios of one cluster are stepped together.
    """
    rows = np.full((len(found), 3), np.nan)
    for cluster in {id(one.cluster): one.cluster for one in found}.values():
        places = [i for i, one in enumerate(found) if one.cluster is cluster]
        fleet = Fleet(make_world(config, cluster, Windows(config, cluster)), len(places))
        for seat, place in enumerate(places):
            fleet.begin(np.array([seat]), {seat: 0}, found[place].trace, keep_others=True)
        forget(model.policy)
        while not fleet.over.all():
            masks = fleet.action_masks()
            fleet.step(model.policy.decide(fleet.observations, masks, temperature))
        for seat, place in enumerate(places):
            table = fleet.episode(seat)[1]
            if len(table):
                rows[place] = scenarios.measures(table)
        fleet.close()
    return rows.T


class WorldsJudge:
    """Metrics of a model on the fixed validation scenarios of evolution, beside its prior's.

    Args:
        config: the run.
        begun: who routes and who resizes in the policy that learning begins as.
    """

    def __init__(self, config: RunConfig, begun: tuple[Any, Any]) -> None:
        self._config = config
        self._scenarios = scenarios.judged(config)
        self._than = "prior" if config.env == "routing" else "teacher"
        self._begun = np.array([scenarios.run(begun, one)[:3] for one in self._scenarios]).T

    def __call__(self, model: Any) -> dict[str, float]:
        own = score_model(self._config, model, self._scenarios, self._config.evaluation.temperature)
        goodput, tail, p99 = (float(np.nanmean(row)) for row in own)
        over = own - self._begun
        half = 1.96 * float(np.nanstd(over[0])) / np.sqrt(len(self._scenarios))
        return {
            "goodput": goodput,
            "fitness": goodput - self._config.evolution.tail_weight * tail,
            "tail": tail,
            "ttft_slowdown_p99": p99,
            f"over_{self._than}": float(np.nanmean(over[0])),
            f"over_{self._than}_half_width": half,
            f"tail_over_{self._than}": float(np.nanmean(over[1])),
            **scenarios.by_workload(self._scenarios, own[0]),
        }
