"""The runs behind a search: which of the nine SLOs does one cluster miss at one rate? On all cores."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym import schedulers
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, to_mapping
from splitgym.errors import ConfigError
from splitgym.evaluation.workloads import Workload, find
from splitgym.metrics import KINDS, RequestTable, nine_slos, percentiles, request_table
from splitgym.scale import Map
from splitgym.sim import make_engine
from splitgym.sim.outcomes import Outcomes
from splitgym.slo import NINE_SLOS, PERCENTILES, reference_times_s
from splitgym.trace import Trace
from splitgym.types import NS_PER_S

Floats = NDArray[np.float64]
Failures = tuple[str, ...]
Sources = Mapping[str, Trace]
"""Traces by the names that workloads have for them."""


@dataclass(frozen=True)
class Task:
    """One verdict to find: a cluster, who routes, and what arrives (at its rate)."""

    config: ClusterConfig
    scheduler: str
    workload: Workload
    seeds: tuple[int, ...] = (0,)
    engine: str = "auto"

    @property
    def key(self) -> str:
        """The same for the same task, on every machine."""
        text = json.dumps(
            [to_mapping(self.config), self.scheduler, to_mapping(self.workload), self.seeds, self.engine],
            sort_keys=True,
        )
        return sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Percentiles:
    """Slowdowns of one cluster at one rate, (p50, p90, p99) by kind."""

    ttft: tuple[float, float, float]
    tbt: tuple[float, float, float]
    e2e: tuple[float, float, float]


def failures(task: Task, sources: Sources | None = None) -> Failures:
    """Names of the SLOs that fail; none if all nine hold. `sources`: see `Runs`.

    The requests of all seeds are pooled. A run is left as soon as an SLO is certain to fail, so where several
    fail, not all may be named; whether any does is exact.
    """
    cluster = Cluster.resolve(task.config)
    traces = [_trace(task.workload, seed, cluster.num_machines, sources) for seed in task.seeds]
    watch = Watch(cluster, task.workload, traces)
    tables = []
    for seed, trace in zip(task.seeds, traces):
        table = _simulate(task, cluster, trace, seed, watch)
        if table is None:
            return watch.certain
        tables.append(table)
        watch.keep(table)
    return tuple(name for name, held in nine_slos(_pooled(tables)).items() if not held)


def slowdowns(task: Task, sources: Sources | None = None) -> Percentiles:
    """Percentiles of the slowdowns of all seeds' requests together; nothing is cut short."""
    cluster = Cluster.resolve(task.config)
    tables = []
    for seed in task.seeds:
        trace = _trace(task.workload, seed, cluster.num_machines, sources)
        table = _simulate(task, cluster, trace, seed, None)
        assert table is not None
        tables.append(table)
    pooled = _pooled(tables)
    return Percentiles(*(percentiles(pooled.slowdown(kind)) for kind in KINDS))


class Watch:
    """Sees while a run goes on that an SLO is certain to fail.

    A slowdown only grows while its request is unfinished, so the time so far bounds it from below. The p-th
    percentile of n values (linear interpolation) is at least the value of rank floor(p / 100 (n - 1)). Once
    so many values have reached the limit that this one must have, the percentile has.
    """

    def __init__(self, cluster: Cluster, workload: Workload, traces: Sequence[Trace]):
        self._tables = cluster.tables
        self._workload = workload
        self._finished: dict[str, list[Floats]] = {kind: [] for kind in KINDS}
        measured = [t.output_tokens[self._rows(np.asarray(t.arrival_s))] for t in traces]
        total = sum(len(output) for output in measured)
        longer = sum(int((output > 1).sum()) for output in measured)
        self._spare = {
            kind: [n - int(p * (n - 1) / 100) if n else 1 for p in PERCENTILES]
            for kind, n in (("ttft", total), ("tbt", longer), ("e2e", total))
        }
        self.certain: Failures = ()
        """The SLOs that were found to be lost."""

    def begin(self, trace: Trace) -> None:
        """The next run."""
        self._kept = np.flatnonzero(self._rows(np.asarray(trace.arrival_s)))
        self._output = trace.output_tokens[self._kept]
        self._reference = reference_times_s(self._tables, trace.prompt_tokens[self._kept], self._output)

    def lost(self, outcomes: Outcomes, now_ns: int) -> bool:
        """Is an SLO certain to fail, whatever comes?"""
        rows = self._kept
        arrival, first = outcomes.arrival_ns[rows], outcomes.first_token_ns[rows]
        finish = outcomes.finish_ns[rows]
        until = np.where(finish >= 0, finish, now_ns)
        so_far = {
            "ttft": np.where(first >= 0, first, now_ns) - arrival,
            "tbt": np.where(first >= 0, until - first, 0) / np.maximum(1, self._output - 1),
            "e2e": until - arrival,
        }
        failed = []
        for kind, reference in zip(KINDS, self._reference):
            # NaN (TBT of one token) reaches no limit; who has not arrived has a negative time.
            slowdown = so_far[kind] / NS_PER_S / reference
            limits = zip(PERCENTILES, NINE_SLOS[kind], self._spare[kind])
            for p, limit, needed in limits:
                reached = int((slowdown >= limit * (1 + 1e-9)).sum())
                reached += sum(int((x >= limit).sum()) for x in self._finished[kind])
                if reached >= needed:
                    failed.append(f"{kind}_p{p}")
        self.certain = tuple(failed)
        return bool(failed)

    def keep(self, table: RequestTable) -> None:
        """A run is over: its slowdowns count in the next one."""
        for kind in KINDS:
            self._finished[kind].append(table.slowdown(kind))

    def _rows(self, arrival_s: Floats) -> NDArray[np.bool_]:
        arrival = np.rint(arrival_s * NS_PER_S)
        return (arrival >= self._workload.warmup_s * 1e9) & (arrival < self._workload.end_s * 1e9)


def _simulate(
    task: Task, cluster: Cluster, trace: Trace, seed: int, watch: Watch | None
) -> RequestTable | None:
    """Run one window; None where `watch` found it lost. The engine asks at each control tick, which is when
    the watch looks; the answer is always to move no machine."""
    engine = make_engine(cluster, schedulers.routing(task.scheduler), None, engine=task.engine)
    engine.reset(trace, seed)
    if watch is not None:
        watch.begin(trace)
    while (decision := engine.run_until_decision()) is not None:
        if watch is not None and watch.lost(engine.outcomes(), decision.now_ns):
            return None
        engine.apply(0)
    return request_table(
        engine.outcomes(), cluster.tables, start_s=task.workload.warmup_s, end_s=task.workload.end_s
    )


@lru_cache(maxsize=8)
def _source(name: str) -> Trace:
    return find(name)


def _trace(workload: Workload, seed: int, machines: int, sources: Sources | None) -> Trace:
    return workload.build(seed, machines, _source if sources is None else sources.__getitem__)


def sources_of(workloads: Iterable[Workload]) -> dict[str, Trace]:
    """The traces of some workloads, as they are found on this machine."""
    return {name: _source(name) for workload in workloads for name in workload.sources}


def _pooled(tables: list[RequestTable]) -> RequestTable:
    names = RequestTable.__dataclass_fields__
    return RequestTable(**{n: np.concatenate([getattr(t, n) for t in tables]) for n in names})


@dataclass
class Runs:
    """Answers tasks, each once, and keeps the answers in a file so that an interrupted search goes on.

    Args:
        map: applies a function to many tasks.
        file: JSON of earlier answers, read if there and written as answers come; None keeps nothing.
        progress: called after each run.
        sources: traces to send along with the tasks, for workers on other machines (see `sources_of`): these
            may lack a file, and must not take a built-in trace for an original. None: each finds its own.
    """

    map: Map = map
    file: Path | None = None
    progress: Callable[[], None] | None = None
    sources: Sources | None = None
    count: int = 0
    """Runs made, without those that were known."""
    _known: dict[str, Failures] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file is not None and self.file.exists():
            try:
                data = json.loads(self.file.read_text())
                self._known = {str(key): tuple(failed) for key, failed in data.items()}
            except (OSError, ValueError, AttributeError, TypeError):
                raise ConfigError(
                    f"{self.file}: is no file of kept runs; remove it or name another"
                ) from None

    def ask(self, tasks: Sequence[Task]) -> list[Failures]:
        """Which SLOs fail, task by task."""
        keys = [task.key for task in tasks]
        fresh = {key: task for key, task in zip(keys, tasks) if key not in self._known}
        for key, failed in zip(fresh, self.apply(failures, list(fresh.values()))):
            self._known[key] = tuple(failed)
            self.count += 1
            self._save()
            if self.progress is not None:
                self.progress()
        return [self._known[key] for key in keys]

    def apply(self, function: Callable[..., Any], tasks: Sequence[Task]) -> Iterable[Any]:
        """`failures` or `slowdowns` of each task, in their order; nothing is kept."""
        return self.map(function if self.sources is None else partial(function, sources=self.sources), tasks)

    def known(self, task: Task) -> Failures | None:
        """The answer to a task that was asked before; None for another."""
        return self._known.get(task.key)

    def _save(self) -> None:
        if self.file is None:
            return
        draft = self.file.with_name(self.file.name + ".part")
        draft.write_text(json.dumps(self._known, indent=0, sort_keys=True) + "\n")
        draft.replace(self.file)
