"""The real task: splitgym's environments, a scheduler as teacher, `splitgym.evaluation` as judge."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np

from agents.config import RunConfig, rates
from agents.evaluation import Agent, contender, machines_of, make_codec
from splitgym import schedulers
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig
from splitgym.evaluation import Results, evaluate
from splitgym.evaluation.workloads import Workload, find
from splitgym.sim.outcomes import TIMELINE_FIELDS

IDS = {
    "routing": "splitgym/Routing-v0",
    "pool_sizing": "splitgym/PoolSizing-v0",
    "joint": "splitgym/Joint-v0",
}

POOL_FIELDS = (
    "prompt_machines",
    "token_machines",
    "mixed_machines",
    "prompt_home",
    "token_home",
    "in_system",
)
KEPT = ("goodput", "slos_held", "energy_per_request_j", "utilisation")


def cluster_of(config: RunConfig) -> ClusterConfig:
    """The run's cluster with its confinement: the environment's option, its default, or the cluster's own."""
    confine = config.environment.confine
    if confine is None:
        confine = config.cluster.confine or config.env != "routing"
    return replace(config.cluster, confine=confine)


def env_options(config: RunConfig) -> dict[str, Any]:
    """Keyword arguments of the run's environment, but for the trace."""
    env, load = config.environment, config.workload
    options: dict[str, Any] = {
        "cluster": cluster_of(config),
        "part": "train",
        "rate_per_s": rates(config),
        "arrivals": load.arrivals,
        "episode_s": load.episode_s,
        "warmup_s": load.warmup_s,
        "max_machines": machines_of(config),
        "reward": env.reward,
        "confine": cluster_of(config).confine,
    }
    if config.env == "routing":
        options["flat"] = env.flat
    else:
        options["max_moves"] = env.max_moves
    if config.env == "pool_sizing":
        options["routing"] = env.router
    return options


class SchedulerTeacher:
    """A routing or sizing heuristic as a teacher in an environment.

    Args:
        name, options: of the scheduler.
        sizing: it resizes pools instead of routing.
    """

    def __init__(self, name: str, options: dict[str, Any], sizing: bool) -> None:
        self._scheduler: Any = (schedulers.sizing if sizing else schedulers.routing)(name, **options)
        self._sizing = sizing

    def begin(self, env: Any, seed: int) -> None:
        """See `Teacher`."""
        self._scheduler.reset(env.engine.view, seed)

    def action(self, env: Any) -> Any:
        """See `Teacher`."""
        view = env.engine.view
        if self._sizing:
            top = int(env.action_space.n) // 2
            return top + max(-top, min(top, int(self._scheduler.resize(view))))
        prompt, token = self._scheduler.route(view, env.decision.request)
        if len(env.action_space.shape) == 0:
            return int(prompt * env.max_machines + token)
        return np.array([prompt, token], np.int64)


@dataclass(frozen=True)
class SimulatorTask:
    """See the module. Pickles to its configuration, so that worker processes can make it again."""

    config: RunConfig

    def make_env(self) -> Any:
        """One environment on the train part."""
        trace = find(self.config.workload.trace)
        return gymnasium.make(
            IDS[self.config.env], trace=trace, disable_env_checker=True, **env_options(self.config)
        )

    def teacher(self) -> SchedulerTeacher:
        """The warm start's heuristic."""
        start = self.config.warm_start
        assert start.teacher is not None
        return SchedulerTeacher(start.teacher, start.options, self.config.env == "pool_sizing")

    def workload(self, part: str, rate_per_s: float | None = None) -> Workload:
        """Windows of a part of the trace, at the evaluation's rate unless one is given."""
        load = self.config.workload
        rate = rate_per_s or self.config.evaluation.rate_per_s
        trained = rates(self.config)
        if rate is None and trained is not None:
            rate = float(np.mean(trained))
        if rate is None and load.arrivals == "poisson":
            rate = find(load.trace).rate_per_s
        return Workload(
            kind=load.arrivals,
            sources=(load.trace,),
            rate_per_s=rate,
            duration_s=load.episode_s,
            warmup_s=load.warmup_s,
            part=part,  # type: ignore[arg-type]
        )

    @cached_property
    def _cluster(self) -> Cluster:
        return Cluster.resolve(cluster_of(self.config))

    def judge(self, model: Any) -> dict[str, float]:
        """Metrics of a model on the validation windows, the mean over them."""
        size = machines_of(self.config)
        agent = Agent(
            model, make_codec(self.config, size), size, temperature=self.config.evaluation.temperature
        )
        seeds = range(self.config.evaluation.windows)
        name = "agent"
        policies = {name: contender(agent, self.config)}
        return summary(evaluate(policies, self._cluster, [self.workload("validation")], seeds), name)


def summary(results: Results, policy: str) -> dict[str, float]:
    """Metrics of one policy, the mean over its windows: goodput, slowdown percentiles, pools, queues."""
    runs = results.select(policy)
    rows = [run.metrics.as_dict() for run in runs]
    names = [*KEPT, *(name for name in rows[0] if "slowdown" in name)]
    means = {name: float(np.mean([row[name] for row in rows])) for name in names}
    for field in POOL_FIELDS:
        column = TIMELINE_FIELDS.index(field)
        ticks = [run.timeline[:, column] for run in runs if len(run.timeline)]
        means[f"pools/{field}"] = float(np.mean(np.concatenate(ticks))) if ticks else float("nan")
    return means
