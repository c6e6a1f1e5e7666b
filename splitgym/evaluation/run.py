"""Run policies on the same windows and measure them: `evaluate`, which everything here uses."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym import schedulers
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, to_mapping
from splitgym.errors import ConfigError
from splitgym.evaluation.workloads import Workload, find, parse, stand_ins
from splitgym.metrics import Metrics, RequestTable, request_table, summarise
from splitgym.schedulers.protocol import RoutingScheduler, SizingScheduler
from splitgym.sim import make_engine
from splitgym.sim.outcomes import TIMELINE_FIELDS
from splitgym.trace import Trace
from splitgym.types import RequestInfo
from splitgym.view import ClusterView

RouteFunction = Callable[[ClusterView, RequestInfo], tuple[int, int]]


@dataclass(frozen=True)
class Contender:
    """A policy under a name: who routes, and who sizes the pools."""

    name: str
    routing: RoutingScheduler
    sizing: SizingScheduler


PolicyLike = str | RoutingScheduler | RouteFunction | Contender


class FunctionScheduler:
    """Makes a routing scheduler of a plain function (view, request) -> (prompt machine, token machine)."""

    def __init__(self, function: RouteFunction, name: str | None = None) -> None:
        self.function = function
        self.name: str = name or str(getattr(function, "__name__", type(function).__name__))

    def reset(self, view: ClusterView, seed: int) -> None:
        """A function has nothing to forget."""

    def route(self, view: ClusterView, request: RequestInfo) -> tuple[int, int]:
        prompt_machine, token_machine = self.function(view, request)
        return int(prompt_machine), int(token_machine)


@dataclass(frozen=True)
class Run:
    """One policy on one window."""

    policy: str
    workload: Workload
    seed: int
    trace: str
    """Name of the trace that was used (an original or its built-in likeness)."""
    metrics: Metrics
    table: RequestTable
    timeline: NDArray[np.int64]  # (ticks, fields) columns are `TIMELINE_FIELDS`


@dataclass(frozen=True)
class Results:
    """Every run of an evaluation; policies share windows and seeds, so runs can be compared in pairs."""

    cluster: Cluster
    policies: tuple[str, ...]
    workloads: tuple[Workload, ...]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    stand_ins: dict[str, str] = field(default_factory=dict)
    """Originals that were missing, and the built-in traces used instead."""

    def select(self, policy: str | None = None, workload: Workload | None = None) -> list[Run]:
        """Runs of a policy, of a workload, or both; in the order of workloads, then seeds."""
        return [
            r
            for r in self.runs
            if (policy is None or r.policy == policy) and (workload is None or r.workload == workload)
        ]

    def values(self, name: str, policy: str, workload: Workload | None = None) -> NDArray[np.float64]:
        """(windows,) one number a window: `name` is a key of `Metrics.as_dict()`."""
        return np.array([r.metrics.as_dict()[name] for r in self.select(policy, workload)], np.float64)

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a run: policy, workload, rate, seed and every metric."""
        return [
            {
                "policy": r.policy,
                "workload": r.workload.name,
                "rate_per_s": r.workload.rate_per_s,
                "trace": r.trace,
                "seed": r.seed,
                **r.metrics.as_dict(),
            }
            for r in self.runs
        ]

    def describe(self) -> dict[str, Any]:
        """What was run, as plain data."""
        return {
            "cluster": to_mapping(self.cluster.config),
            "policies": list(self.policies),
            "workloads": [to_mapping(w) | {"name": w.name} for w in self.workloads],
            "seeds": list(self.seeds),
            "stand_ins": self.stand_ins,
        }


def evaluate(
    policies: Mapping[str, PolicyLike] | Sequence[PolicyLike],
    cluster: Cluster | ClusterConfig,
    workloads: Sequence[Workload | str],
    seeds: Iterable[int] = (0, 1, 2),
    *,
    sizing: str | SizingScheduler = "static",
    engine: str = "simpy",
    progress: Callable[[Run], None] | None = None,
) -> Results:
    """Run every policy on every workload and seed, and measure each run.

    Policies are paired: for a workload and a seed all see the same requests at the same times.

    Args:
        policies: built-in names (`"index"`, or `"index+reactive"` with pool sizing), objects with `reset` and
            `route` (see `RoutingScheduler`), functions (view, request) -> (prompt machine, token machine), or
            a mapping from your names to any of these.
        cluster: resolved, or its configuration.
        workloads: `Workload`s or their texts (`"poisson:azure-code@19"`).
        seeds: one window a seed.
        sizing: who sizes the pools for policies that do not bring it.
        engine: "simpy", or another engine that `make_engine` knows.
        progress: called after each run.

    Raises:
        SplitgymError: unknown names, a trace or profile that cannot be used, a request that fits no machine;
            all before the first run.
        ActionError: a policy chose a machine that it must not.
    """
    cluster = cluster if isinstance(cluster, Cluster) else Cluster.resolve(cluster)
    contenders = _contenders(policies, sizing)
    loads = tuple(parse(w) if isinstance(w, str) else w for w in workloads)
    numbers = tuple(int(s) for s in seeds)
    if not (contenders and loads and numbers):
        raise ConfigError("nothing to evaluate: give at least one policy, one workload and one seed")
    load = cache(find)
    windows = [(w, s, w.build(s, cluster.num_machines, load)) for w in loads for s in numbers]
    for _, _, trace in windows:
        cluster.check(trace)
    runs = []
    for contender in contenders:
        for workload, seed, trace in windows:
            run = _run(contender, cluster, workload, seed, trace, engine)
            runs.append(run)
            if progress is not None:
                progress(run)
    names = tuple(c.name for c in contenders)
    return Results(cluster, names, loads, numbers, tuple(runs), stand_ins(loads, load))


def _run(
    contender: Contender, cluster: Cluster, workload: Workload, seed: int, trace: Trace, engine: str
) -> Run:
    simulator = make_engine(cluster, contender.routing, contender.sizing, engine=engine)
    simulator.reset(trace, seed)
    left = simulator.run_until_decision()
    assert left is None, "an engine with both schedulers runs to the end"
    outcomes = simulator.outcomes()
    slo = cluster.config.slo
    table = request_table(
        outcomes,
        cluster.tables,
        ttft_slo=slo.ttft_slowdown,
        tbt_slo=slo.tbt_slowdown,
        start_s=workload.warmup_s,
        end_s=workload.end_s,
    )
    metrics = summarise(
        table,
        outcomes,
        window_s=workload.duration_s,
        completed_in_run=len(outcomes.finish_order),
        cost_per_hour=cluster.cost_per_hour,
    )
    timeline = np.array(outcomes.timeline, np.int64).reshape(-1, len(TIMELINE_FIELDS))
    return Run(contender.name, workload, seed, trace.name, metrics, table, timeline)


def _contenders(
    policies: Mapping[str, PolicyLike] | Sequence[PolicyLike], sizing: str | SizingScheduler
) -> list[Contender]:
    if isinstance(policies, Mapping):
        found = [contender(p, sizing, name) for name, p in policies.items()]
    elif isinstance(policies, str):
        found = [contender(policies, sizing)]
    else:
        found = [contender(p, sizing) for p in policies]
    names = [c.name for c in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(f"two policies are called {twice[0]!r}: give a mapping from names to policies")
    return found


def contender(
    policy: PolicyLike, sizing: str | SizingScheduler = "static", name: str | None = None
) -> Contender:
    """A policy in any of its forms, made ready to run. See `evaluate`.

    Raises:
        ConfigError: an unknown name, or something that is no policy.
    """
    if isinstance(policy, Contender):
        return Contender(name or policy.name, policy.routing, policy.sizing)
    if isinstance(policy, str):
        routing_name, _, sizing_name = policy.partition("+")
        resize = schedulers.sizing(sizing_name) if sizing_name else _sizing(sizing)
        return Contender(name or policy, schedulers.routing(routing_name), resize)
    if isinstance(policy, RoutingScheduler):
        return Contender(name or policy.name, policy, _sizing(sizing))
    if callable(policy):
        function = FunctionScheduler(policy, name)
        return Contender(function.name, function, _sizing(sizing))
    raise ConfigError(f"{policy!r} is no policy: give a name, an object with reset and route, or a function")


def _sizing(sizing: str | SizingScheduler) -> SizingScheduler:
    return schedulers.sizing(sizing) if isinstance(sizing, str) else sizing
