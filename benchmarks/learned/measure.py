"""Runs of the benchmark: policies on the windows of a case. Each run is kept, so that it can go on later."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.learned.cases import Case
from benchmarks.learned.page import DOCS
from splitgym.cluster import Cluster
from splitgym.config import to_mapping
from splitgym.errors import TraceError
from splitgym.evaluation import Contender
from splitgym.evaluation.contenders import cluster_for
from splitgym.evaluation.max_rate import max_request_rate
from splitgym.evaluation.saturate import with_rate
from splitgym.evaluation.sweep import Kept, Variant, identity, sweep
from splitgym.evaluation.workloads import Workload, parse
from splitgym.metrics import KINDS
from splitgym.scale import Map, fingerprint
from splitgym.slo import PERCENTILES

Floats = NDArray[np.float64]

NINE = tuple(f"{kind}_slowdown_p{p}" for kind in KINDS for p in PERCENTILES)
MEASURES = ("goodput", *NINE)


@dataclass(frozen=True)
class Bench:
    """How runs are made and where they are kept."""

    kept: Kept = field(default_factory=Kept)
    map: Map = map
    command: str = "python -m benchmarks.learned"
    out: Path = DOCS
    """Folder of the page; figures go to `images` in it."""

    def say(self, text: str) -> None:
        """Progress, for a person."""
        print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Runs:
    """What policies did on a case's windows."""

    case: Case
    values: Mapping[str, Mapping[str, Floats]]
    """{policy: {measure: (W, L, N) by workload, load and window; NaN where the part is too short}}"""

    def of(self, policies: Sequence[str], measure: str, loads: Sequence[float] | None = None) -> Floats:
        """(S, W, L, N) a measure of policies, at some of the loads."""
        found = np.stack([self.values[policy][measure] for policy in policies])
        if loads is None:
            return found
        return found[:, :, [self.case.loads.index(load) for load in loads]]


def workloads_of(case: Case, cluster: Cluster, bench: Bench) -> dict[tuple[int, int], Workload]:
    """By place of the workload and of the load; without those that have no windows, which is said."""
    found = {}
    for i, name in enumerate(case.workloads):
        for j, load in enumerate(case.loads):
            made = parse(
                f"{name}@{load:g}sat", part=case.part, warmup_s=case.warmup_s, duration_s=case.duration_s
            )
            workload = with_rate(made, cluster)
            try:
                for window in range(case.windows):
                    workload.build(window, cluster.num_machines)
            except TraceError as error:
                bench.say(f"{case.name}: left out: {error}")
                continue
            found[i, j] = workload
    return found


def measure(case: Case, entrants: Sequence[Contender], bench: Bench) -> Runs:
    """Every policy on every window of a case.

    Args:
        case: where and what.
        entrants: policies, by name; those with a cluster of their own have the same machines in other pools.
        bench: how.
    """
    config = case.config()
    cluster = Cluster.resolve(config)
    there = workloads_of(case, cluster, bench)
    grid = [Variant({"model": case.model, "cluster": case.machines}, config)]
    total = len(entrants) * len(there) * case.windows

    def progress(done: int) -> None:
        if done % 500 == 0 or done == total:
            bench.say(f"{case.name}: {done} of {total} runs")

    rows = iter(
        sweep(
            grid,
            lambda _: entrants,
            list(there.values()),
            range(case.windows),
            map=bench.map,
            kept=bench.kept,
            progress=progress,
        )
    )
    shape = (len(case.workloads), len(case.loads), case.windows)
    values: dict[str, dict[str, Floats]] = {}
    for entrant in entrants:
        own = values[entrant.name] = {name: np.full(shape, np.nan) for name in MEASURES}
        for i, j in there:
            for window in range(case.windows):
                row = next(rows)
                assert (row["policy"], row["seed"]) == (entrant.name, window)
                for name in MEASURES:
                    own[name][i, j, window] = row[name]
    return Runs(case, values)


def highest_rate(case: Case, entrant: Contender, workload: str, bench: Bench, windows: int) -> float:
    """The highest rate [requests/s] at which a policy holds all nine SLOs; kept as other runs are.

    Args:
        case: where; the search begins at its saturation.
        entrant: the policy.
        workload: by name, without a rate.
        bench: how.
        windows: pooled before percentiles are taken.
    """
    cluster = Cluster.resolve(case.config())
    load = with_rate(
        parse(f"{workload}@1sat", part=case.part, warmup_s=case.warmup_s, duration_s=case.duration_s), cluster
    )
    what = [
        "max-rate",
        fingerprint(),
        to_mapping(cluster_for(entrant, cluster).config),
        to_mapping(load),
        [identity(entrant.routing), identity(entrant.sizing)],
        windows,
    ]
    key = None if None in what[4] else sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]
    row = bench.kept.find(key)
    if row is None:
        found = max_request_rate(entrant, cluster, load, range(windows), tolerance=0.01, map=bench.map)
        row = bench.kept.add(key, {"rate_per_s": found.rate_per_s})
    return float(row["rate_per_s"])
