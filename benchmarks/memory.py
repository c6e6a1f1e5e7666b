"""Memory by length of the trace: what a completed request leaves behind, beside its recorded outcome.

    python benchmarks/memory.py [--json FILE]

Peak memory allocated during a run (tracemalloc), for traces of one and of four times the length, and the
bytes of one row of outcomes. What grows beyond that row would be a leak.
"""

import gc
import sys
import tracemalloc

import numpy as np
from harness import Report, arguments

from splitgym import schedulers, trace
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, parse_machines
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


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="length of the shorter workload, simulated"
    )
    options = parser.parse_args()
    cluster = Cluster.resolve(ClusterConfig(machines=parse_machines("h100-80gb:5P3T")))
    sizes = trace.load("azure-conv-synth")
    short, long = (trace.poisson(sizes, 10.0, options.seconds * k, seed=0) for k in (1, 4))
    peak_bytes(cluster, short)  # compiles
    growth = (peak_bytes(cluster, long) - peak_bytes(cluster, short)) / (len(long) - len(short))
    recorded = row_bytes(cluster, short)
    report = Report("memory of one more completed request")
    report.add("memory.simpy.bytes_per_request", [growth], "bytes")
    report.add("memory.simpy.recorded_bytes_per_request", [recorded], "bytes")
    report.finish(options.json)


if __name__ == "__main__":
    main()
