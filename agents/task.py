"""The real task: splitgym's environments, a scheduler as teacher, `splitgym.evaluation` as judge."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np

from agents.config import RunConfig, cluster_of, rates
from agents.evaluation import Agent, contender, machines_of, make_codec
from agents.priors import find_prior
from agents.routers import compiled_router
from agents.teachers import SchedulerTeacher, find_scheduler
from splitgym import schedulers
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig
from splitgym.evaluation import Results, evaluate
from splitgym.evaluation.workloads import Workload, find
from splitgym.policy import NetworkPolicy
from splitgym.schedulers import Residual
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


def env_options(config: RunConfig, cluster: ClusterConfig | None = None) -> dict[str, Any]:
    """Keyword arguments of the run's environment, but for the trace.

    Args:
        config: the run.
        cluster: in place of its own, when the workload comes with it.
    """
    env, load = config.environment, config.workload
    prior = find_prior(env.prior)
    options: dict[str, Any] = {
        "cluster": cluster or cluster_of(config),
        "part": "train",
        "rate_per_s": rates(config) if cluster is None else None,
        "arrivals": load.arrivals,
        "episode_s": load.episode_s,
        "warmup_s": load.warmup_s,
        "max_machines": machines_of(config),
        "reward": env.reward,
        "confine": cluster_of(config).confine,
        "prior": tuple(prior.tolist()) if len(prior) else None,
    }
    if config.env == "routing":
        options["flat"] = env.flat
    else:
        options["max_moves"] = env.max_moves
    if config.env == "pool_sizing":
        options["routing"] = compiled_router(env.router)
    return options


@dataclass(frozen=True)
class SimulatorTask:
    """See the module. Pickles to its configuration, so that worker processes can make it again."""

    config: RunConfig

    def make_env(self) -> Any:
        """One environment on the train part."""
        if self.config.environment.worlds == "many":
            return self._any_world()
        trace = find(self.config.workload.trace)
        return gymnasium.make(
            IDS[self.config.env], trace=trace, disable_env_checker=True, **env_options(self.config)
        )

    def teacher(self) -> SchedulerTeacher:
        """Who the warm start imitates."""
        start, kind = self.config.warm_start, self.config.env
        assert start.teacher is not None
        first = find_scheduler(start.teacher, start.options, sizing=kind == "pool_sizing")
        if kind == "pool_sizing":
            return SchedulerTeacher(sizing=first)
        if kind == "routing":
            return SchedulerTeacher(first)
        if start.sizing is None and isinstance(first, NetworkPolicy) and first.resizes:
            return SchedulerTeacher(first, first)  # one that does both sees all decisions
        second = start.sizing or start.teacher
        options = start.sizing_options if start.sizing else start.options
        return SchedulerTeacher(first, find_scheduler(second, options, sizing=True))

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

    def _any_world(self) -> Any:
        from agents.worlds import AnyOf, draw_clusters, make_world

        clusters = draw_clusters(self.config, self.config.learner.num_envs)
        return AnyOf([make_world(self.config, cluster) for cluster in clusters])

    @cached_property
    def _worlds_judge(self) -> Any:
        from agents.worlds import WorldsJudge

        return WorldsJudge(self.config, self._begun())

    def _begun(self) -> tuple[Any, Any]:
        """Who routes and who resizes where learning begins: the prior, the run's router, the teacher."""
        env, start, kind = self.config.environment, self.config.warm_start, self.config.env
        prior = find_prior(env.prior)
        routing: Any = Residual(weights=tuple(prior.tolist())) if len(prior) else Residual()
        sizing: Any = schedulers.sizing("static")
        if kind == "pool_sizing":
            routing = compiled_router(env.router)
        if kind != "routing" and start.teacher is not None:
            sizing = self.teacher().sizing
        return routing, sizing

    def judge(self, model: Any) -> dict[str, float]:
        """Metrics of a model on the validation windows, the mean over them."""
        if self.config.environment.worlds == "many":
            found: dict[str, float] = self._worlds_judge(model)
            return found
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
