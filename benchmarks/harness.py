"""What every benchmark needs: repeats with medians and spread, one table, one JSON file."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import splitgym
from splitgym.cluster import Cluster
from splitgym.evaluation import Contender
from splitgym.evaluation.run import Task, perform
from splitgym.evaluation.saturate import with_rate
from splitgym.evaluation.workloads import Workload, find
from splitgym.trace import Trace

Change = Callable[[Cluster, Trace, int], tuple[Cluster, Trace]]
"""What is done to a cluster and a trace of a seed before a run."""


def as_it_is(cluster: Cluster, trace: Trace, seed: int) -> tuple[Cluster, Trace]:
    """No change."""
    return cluster, trace


def window_goodputs(
    cluster: Cluster,
    entrant: Contender,
    workloads: Iterable[Workload],
    seeds: int,
    change: Change = as_it_is,
) -> list[float]:
    """Goodput of so many windows of each workload, whose load is a share of saturation; compiled engine."""
    load = cache(find)
    found = []
    for wanted in workloads:
        workload = with_rate(wanted, cluster)
        for seed in range(seeds):
            where, what = change(cluster, workload.build(seed, cluster.num_machines, load), seed)
            run = perform(Task(entrant, where, workload, seed, what, "compiled", False))
            found.append(float(run.metrics.as_dict()["goodput"]))
    return found


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the metrics to FILE")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each case; the median is reported")
    return parser


def seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """CPU seconds of `work`, `repeats` times after one run that compiles and warms up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return times


class Report:
    """Collects metrics; prints them as one table and writes them as JSON."""

    def __init__(self, title: str):
        self._table = Table("metric", "median", "lowest", "highest", "unit", title=title)
        self._metrics: dict[str, float] = {}

    def add(self, name: str, values: list[float], unit: str) -> None:
        """One metric, from repeated measurements."""
        self._metrics[name] = statistics.median(values)
        cells = [f"{f(values):,.4g}" for f in (statistics.median, min, max)]
        self._table.add_row(name, *cells, unit)

    def finish(self, file: Path | None) -> None:
        """Print, and write `{"machine": {...}, "metrics": {name: number}}` where a file is given."""
        Console(width=120).print(self._table)
        if file is not None:
            machine = {
                "cpus": os.cpu_count(),
                "processor": platform.machine(),
                "python": platform.python_version(),
                "numpy": np.__version__,
                "splitgym": splitgym.__version__,
            }
            file.write_text(json.dumps({"machine": machine, "metrics": self._metrics}, indent=1) + "\n")
