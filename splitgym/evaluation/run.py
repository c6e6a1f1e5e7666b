"""Run policies on the same windows and measure them: `evaluate`, which everything here uses."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, to_mapping
from splitgym.errors import ConfigError
from splitgym.evaluation.activity import Activity
from splitgym.evaluation.contenders import Contender, PolicyLike, cluster_for, contenders
from splitgym.evaluation.workloads import Workload, find, parse, stand_ins
from splitgym.metrics import Metrics, RequestTable, request_table, summarise
from splitgym.scale import Map
from splitgym.schedulers.protocol import SizingScheduler
from splitgym.sim import make_engine
from splitgym.sim.outcomes import TIMELINE_FIELDS
from splitgym.trace import Trace


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
    activity: Activity | None = None
    """What each machine did when, where it was recorded."""


@dataclass(frozen=True)
class Task:
    """One run to make. It pickles where the contender's schedulers do, so it can be made elsewhere."""

    contender: Contender
    cluster: Cluster
    workload: Workload
    seed: int
    trace: Trace
    engine: str
    record: bool = False


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
    own_clusters: dict[str, ClusterConfig] = field(default_factory=dict)
    """Of the policies that ran on other pools or rules than `cluster`."""

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
            "own_clusters": {name: to_mapping(own) for name, own in self.own_clusters.items()},
        }


def evaluate(
    policies: Mapping[str, PolicyLike] | Sequence[PolicyLike],
    cluster: Cluster | ClusterConfig,
    workloads: Sequence[Workload | str],
    seeds: Iterable[int] = (0, 1, 2),
    *,
    sizing: str | SizingScheduler = "static",
    engine: str = "auto",
    progress: Callable[[Run], None] | None = None,
    map: Map = map,
    record: bool = False,
) -> Results:
    """Run every policy on every workload and seed, and measure each run.

    Policies are paired: for a workload and a seed all see the same requests at the same times.

    Args:
        policies: built-in names (`"index"`, or `"index+reactive"` with pool sizing), objects with `reset` and
            `route` (see `RoutingScheduler`), functions (view, request) -> (prompt machine, token machine), or
            a mapping from your names to any of these. `"splitwise@h100-80gb:6P2T"` runs on other pools of the
            same machines; `"vllm"` is the baseline without a split, with vLLM's batching. A `Contender` may
            bring any configuration of the same machines.
        cluster: resolved, or its configuration.
        workloads: `Workload`s or their texts (`"poisson:azure-code@19"`).
        seeds: one window a seed.
        sizing: who sizes the pools for policies that do not bring it.
        engine: see `splitgym.sim.make_engine`.
        progress: called after each run.
        map: makes the runs; see `splitgym.scale` for processes and for a Ray cluster. The results are the
            same.
        record: keep what each machine did when (`Run.activity`) of the first window of each workload.

    Raises:
        SplitgymError: unknown names, a policy's own cluster of other machines, a trace or profile that cannot
            be used, a request that fits no machine; all before the first run.
        ActionError: a policy chose a machine that it must not.
    """
    from splitgym.evaluation.saturate import with_rate  # which measures by evaluating

    cluster = cluster if isinstance(cluster, Cluster) else Cluster.resolve(cluster)
    entrants = contenders(policies, sizing, cluster.config)
    clusters = {entrant.name: cluster_for(entrant, cluster) for entrant in entrants}
    loads = tuple(with_rate(parse(w) if isinstance(w, str) else w, cluster) for w in workloads)
    numbers = tuple(int(s) for s in seeds)
    if not (entrants and loads and numbers):
        raise ConfigError("nothing to evaluate: give at least one policy, one workload and one seed")
    load = cache(find)
    windows = [(w, s, w.build(s, cluster.num_machines, load)) for w in loads for s in numbers]
    for where in {id(c): c for c in clusters.values()}.values():
        for _, _, trace in windows:
            where.check(trace)
    tasks = [
        Task(entrant, clusters[entrant.name], workload, seed, trace, engine, record and seed == numbers[0])
        for entrant in entrants
        for workload, seed, trace in windows
    ]
    runs = []
    for run in map(perform, tasks):
        runs.append(run)
        if progress is not None:
            progress(run)
    names = tuple(clusters)
    own = {e.name: e.cluster for e in entrants if e.cluster is not None}
    return Results(cluster, names, loads, numbers, tuple(runs), stand_ins(loads, load), own)


def perform(task: Task) -> Run:
    """Simulate one window to its end and measure it."""
    contender, cluster, workload = task.contender, task.cluster, task.workload
    simulator = make_engine(cluster, contender.routing, contender.sizing, engine=task.engine)
    for scheduler in (contender.routing, contender.sizing):
        attach = getattr(scheduler, "attach", None)
        if attach is not None:  # a look-ahead copies the engine
            attach(simulator)
    simulator.reset(task.trace, task.seed)
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
    activity = Activity.of(outcomes, machine_names(cluster)) if task.record else None
    return Run(contender.name, workload, task.seed, task.trace.name, metrics, table, timeline, activity)


def machine_names(cluster: Cluster) -> tuple[str, ...]:
    """(M,) type and home pool of each machine."""
    return tuple(f"{g.machine} {g.pool}" for g in cluster.config.machines for _ in range(g.count))


def choose(
    policies: Mapping[str, PolicyLike],
    cluster: Cluster | ClusterConfig,
    workload: Workload | str,
    seeds: Iterable[int] = (0, 1),
    *,
    metric: str = "goodput",
    engine: str = "auto",
    map: Map = map,
) -> str:
    """The name of the best policy on the train part of a workload's trace; the first of equals.

    For what a baseline leaves open (its static split, its budget): run at its best, it is chosen as an agent
    is, without the windows on which it is judged.

    Args:
        policies: candidates by name.
        workload: its part is replaced by `train`.
        metric: a key of `Metrics.as_dict()`; the highest mean over windows wins.
        cluster, seeds, engine, map: as for `evaluate`.
    """
    load = parse(workload) if isinstance(workload, str) else workload
    results = evaluate(policies, cluster, [replace(load, part="train")], seeds, engine=engine, map=map)
    return max(results.policies, key=lambda name: float(results.values(metric, name).mean()))
