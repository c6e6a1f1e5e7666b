"""Memory by length of the trace: what a completed request leaves behind, beside its recorded outcome.

    python benchmarks/memory.py [--json FILE] [--hours 2,8]
    python benchmarks/memory.py --hours 168          # a week at 70 requests/s: 42 million requests

Peak memory allocated during a run (tracemalloc), for traces of one and of four times the length, and the
bytes of one row of outcomes. What grows beyond that row would be a leak. Streamed runs (40 machines, 70
requests/s, the paper's scheduler, outcomes to Parquet) each have a process of their own, whose peak resident
memory is reported.
"""

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import Report, arguments

from splitgym import schedulers, trace
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, parse_machines
from splitgym.evaluation.stream import simulate
from splitgym.sim import make_engine


def peak_bytes(cluster: Cluster, workload: trace.Trace) -> int:
    """Peak of what a run allocates beyond what there was before."""
    engine = make_engine(cluster, schedulers.routing("splitwise"), schedulers.sizing("static"))
    gc.collect()
    tracemalloc.start()
    engine.reset(workload)
    engine.run_until_decision()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def row_bytes(cluster: Cluster, workload: trace.Trace) -> float:
    """Bytes of one request in the outcomes: its place in every (N,) array, and its id in `finish_order`."""
    engine = make_engine(cluster, schedulers.routing("splitwise"), schedulers.sizing("static"))
    engine.reset(workload)
    arrays = [v for v in vars(engine.outcomes()).values() if isinstance(v, np.ndarray)]
    return sum(a.nbytes for a in arrays if len(a) == len(workload)) / len(workload) + 8 + sys.getsizeof(1_000)


def hourly(hours: int, rate_per_s: float = 70.0) -> Iterator[trace.Trace]:
    """Poisson traffic, an hour a chunk, made when it is asked for."""
    sizes = trace.load("azure-conv-synth")
    for hour in range(hours):
        chunk = trace.poisson(sizes, rate_per_s, 3600.0, seed=hour)
        at = chunk.arrival_s + 3600.0 * hour
        yield trace.Trace(at, chunk.prompt_tokens, chunk.output_tokens, name=f"hour {hour}")


def streamed(hours: int) -> None:
    """Runs in a process of its own; prints requests, peak resident bytes and seconds."""
    cluster = Cluster.resolve(ClusterConfig(machines=parse_machines("h100-80gb:25P15T")))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "outcomes.parquet"
        started = time.perf_counter()
        found = simulate("splitwise", cluster, hourly(hours), out=out)
        spent = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps([found.requests, peak, spent, out.stat().st_size]))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="length of the shorter workload, simulated"
    )
    parser.add_argument("--hours", default="2,8", help="lengths of the streamed runs")
    parser.add_argument("--streamed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.streamed:
        streamed(options.streamed)
        return
    cluster = Cluster.resolve(ClusterConfig(machines=parse_machines("h100-80gb:5P3T")))
    sizes = trace.load("azure-conv-synth")
    short, long = (trace.poisson(sizes, 10.0, options.seconds * k, seed=0) for k in (1, 4))
    peak_bytes(cluster, short)  # compiles
    growth = (peak_bytes(cluster, long) - peak_bytes(cluster, short)) / (len(long) - len(short))
    recorded = row_bytes(cluster, short)
    report = Report("memory of one more completed request")
    report.add("memory.whole.bytes_per_request", [growth], "bytes")
    report.add("memory.whole.recorded_bytes_per_request", [recorded], "bytes")
    for hours in map(int, options.hours.split(",")):
        child = subprocess.run(
            [sys.executable, __file__, "--streamed", str(hours)], check=True, capture_output=True, text=True
        )
        requests, peak, spent, size = json.loads(child.stdout.splitlines()[-1])
        name = f"memory.streamed.hours{hours}"
        report.add(f"{name}.requests", [requests], "requests")
        report.add(f"{name}.peak_bytes", [peak], "bytes")
        report.add(f"{name}.seconds", [spent], "s")
        report.add(f"{name}.parquet_bytes", [size], "bytes")
    report.finish(options.json)


if __name__ == "__main__":
    main()
