"""Simulated requests per second of one core beside those of the paper's open simulator, SplitwiseSim.

    python benchmarks/peer.py --splitwise-sim PATH [--peer-python PYTHON] [--trace-csv FILE] [--json FILE]

PATH is a checkout of https://github.com/Mutinifni/splitwise-sim; PYTHON an interpreter that has what it needs
(hydra-core, pandas, scipy, networkx, requests; default: this one). Both simulate the same requests on 25
prompt and 15 token H100 machines with bloom-176b and the paper's scheduler: 70 requests/s of the conversation
trace, or those of FILE, a trace in SplitwiseSim's format.

SplitwiseSim runs from a copy, as it is except that its launcher (Ray) is left out, and once more with the
comparison of its dataclasses replaced by identity: two thirds of its time is list membership that compares
all fields. Its results must be the same to the byte; this is its fair best. Both are measured by CPU time
without start-up and without reading the trace. Ours runs with its own profile, as users run it, and set up as
SplitwiseSim is: its time tables, its link, its knowledge of the outputs; then the times of every request are
compared, too.
"""

import csv
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import Report, arguments, seconds

from splitgym import schedulers, trace
from splitgym.cluster import Cluster
from splitgym.config import BatchingConfig, ClusterConfig, parse_machines
from splitgym.errors import TraceError
from splitgym.evaluation.reference.setup import parse_setup, read_tables
from splitgym.sim import make_engine

MODEL = "bloom-176b"
PROMPT_MACHINES, TOKEN_MACHINES = 25, 15
COLUMNS = ("request_id", "request_type", "application_id", "arrival_timestamp", "batch_size")
SIZES = ("prompt_size", "token_size")

DRIVER = """
import dataclasses, os, runpy, sys, time

identity, *overrides = sys.argv[1:]
if identity == "identity":
    original = dataclasses.dataclass

    def by_identity(cls=None, /, **options):
        if cls is None:
            return lambda cls: by_identity(cls, **options)
        file = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
        if os.path.dirname(os.path.abspath(file)) != os.getcwd():
            return original(cls, **options)
        made = original(cls, **(options | {"eq": False}))
        made.__eq__ = object.__eq__
        if made.__hash__ is None:
            made.__hash__ = object.__hash__
        return made

    dataclasses.dataclass = by_identity
sys.path.insert(0, ".")
import simulator

run = simulator.Simulator.run

def timed(self):
    start = time.process_time()
    run(self)
    print("CPU_S", time.process_time() - start)

simulator.Simulator.run = timed
sys.argv = ["run.py", *overrides]
runpy.run_path("run.py", run_name="__main__")
"""


def overrides() -> list[str]:
    """Its options for the cluster."""
    return [
        "applications.0.scheduler=mixed_pool",
        f"applications.0.model_architecture={MODEL}",
        f"applications.0.model_size={MODEL}-fp16",
        "cluster=half_half",
        "cluster.servers.0.count=0",
        f"cluster.servers.1.count={PROMPT_MACHINES + TOKEN_MACHINES}",
        "start_state=splitwise",
        "start_state.split_type=homogeneous",
        f"start_state.prompt.num_instances={PROMPT_MACHINES}",
        f"start_state.token.num_instances={TOKEN_MACHINES}",
        "performance_model=db",
        "trace.filename=peer",
        "seed=0",
        "hydra.run.dir=results/peer",
    ]


def copy_of(checkout: Path, folder: Path, requests: trace.Trace) -> Path:
    """A copy of the checkout that starts without Ray and has the trace."""
    if not (checkout / "run.py").is_file() or not (checkout / "configs" / "config.yaml").is_file():
        raise SystemExit(
            f"{checkout} is no checkout of splitwise-sim: it has no run.py or configs/config.yaml"
        )
    copy = folder / "splitwise-sim"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "results", "notebooks"))
    config = copy / "configs" / "config.yaml"
    kept, launcher = [], False
    for line in config.read_text(encoding="utf-8").splitlines():
        launcher = line.startswith("  launcher:") or (launcher and line.startswith("   "))
        if not launcher and "hydra/launcher" not in line:
            kept.append(line)
    config.write_text("\n".join(kept) + "\n", encoding="utf-8")
    with (copy / "traces" / "peer.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((*COLUMNS, *SIZES))
        columns = (requests.arrival_s, requests.prompt_tokens, requests.output_tokens)
        for i, (arrival, prompt, output) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            writer.writerow((i, 2, 0, arrival, 1, prompt, output))
    return copy


def theirs(python: str, copy: Path, comparison: str) -> tuple[float, bytes]:
    """CPU seconds of one run of SplitwiseSim, and its table of requests."""
    command = [python, "-c", DRIVER, comparison, *overrides()]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    times = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("CPU_S ")]
    if done.returncode or not times:
        raise SystemExit(f"splitwise-sim failed with {python}:\n{done.stderr.strip()[-2000:]}")
    return float(times[0]), (copy / "results" / "peer" / "detailed" / "0.csv").read_bytes()


def read_csv(path: Path) -> trace.Trace:
    """A trace in SplitwiseSim's format."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or any(name not in rows[0] for name in ("arrival_timestamp", *SIZES)):
        raise TraceError(f"{path}: a trace of splitwise-sim has arrival_timestamp, {' and '.join(SIZES)}")
    arrival = np.array([float(row["arrival_timestamp"]) for row in rows])
    prompt, output = (np.array([int(row[name]) for row in rows], np.int64) for name in SIZES)
    return trace.Trace(arrival, prompt, output, name=path.stem)


def ours(
    cluster: Cluster, routing: Any, requests: trace.Trace, repeats: int, kind: str
) -> tuple[list[float], Any]:
    """CPU seconds of each repeat, and the outcomes."""
    engine = make_engine(cluster, routing, schedulers.sizing("static"), kind)

    def run() -> None:
        engine.reset(requests)
        engine.run_until_decision()

    return seconds(run, repeats), engine.outcomes()


def furthest(outcomes: Any, table: bytes) -> float:
    """Largest relative difference of a time to first token or of an end-to-end time."""
    rows = list(csv.DictReader(table.decode().splitlines()))
    rows.sort(key=lambda row: int(float(row["request_ids"])))
    if len(rows) != len(outcomes.finish_ns):
        return float("inf")
    e2e = (outcomes.finish_ns - outcomes.arrival_ns) / 1e9
    ttft = (outcomes.first_token_ns - outcomes.arrival_ns) / 1e9
    pairs = ((ttft, "ttft_times"), (e2e, "response_times"))
    return max(float(np.max(np.abs(own / [float(r[name]) for r in rows] - 1))) for own, name in pairs)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--splitwise-sim", type=Path, metavar="PATH", help="checkout of the paper's simulator"
    )
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that runs it")
    parser.add_argument("--trace-csv", type=Path, metavar="FILE", help="requests, in its format")
    parser.add_argument("--seconds", type=float, default=120.0, help="length of the made trace, simulated")
    options = parser.parse_args()
    if options.splitwise_sim is None:
        print(
            "benchmarks/peer.py is skipped: give --splitwise-sim PATH, a checkout of the paper's simulator."
        )
        return
    if options.trace_csv is not None:
        requests = read_csv(options.trace_csv)
    else:
        requests = trace.poisson(trace.load("azure-conv-synth"), 70.0, options.seconds, seed=0)
    report = Report(
        f"requests per second of one core: {len(requests)} requests on 25 prompt, 15 token machines"
    )
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of(options.splitwise_sim.resolve(), Path(folder), requests)
        tables = read_tables(copy / "data" / "perf_model.csv")
        spent: dict[str, list[float]] = {"as_is": [], "identity": []}
        results = set()
        for _ in range(min(3, options.repeats)):
            for comparison, times in spent.items():
                cpu_s, table = theirs(options.peer_python, copy, comparison)
                times.append(cpu_s)
                results.add(table)
    for comparison, times in spent.items():
        report.add(f"peer.splitwise_sim.{comparison}.requests_per_s", rates(requests, times), "requests/s")
    report.add("peer.splitwise_sim.results", [float(len(results))], "different")
    own = Cluster.resolve(ClusterConfig(machines=parse_machines("h100-80gb:25P15T")))
    mine, _ = ours(own, schedulers.routing("splitwise"), requests, options.repeats, "compiled")
    report.add("peer.compiled.requests_per_s", rates(requests, mine), "requests/s")
    setup = parse_setup(MODEL, f"{PROMPT_MACHINES}P{TOKEN_MACHINES}T_HH")
    alike = setup.cluster(tables)
    # Its ageing (of waiting prompts, too) sets in only in mixed pools, which stay empty here.
    alike = replace(alike, config=replace(alike.config, batching=BatchingConfig()))
    same, outcomes = ours(alike, setup.routing, requests, options.repeats, "compiled")
    report.add("peer.compiled_alike.requests_per_s", rates(requests, same), "requests/s")
    report.add("peer.compiled_alike.largest_difference", [furthest(outcomes, table)], "relative")
    for name, times in (("compiled", mine), ("compiled_alike", same)):
        for comparison, others in spent.items():
            ratio = float(np.median(others)) / float(np.median(times))
            report.add(f"peer.{name}.over_{comparison}", [ratio], "ratio")
    report.finish(options.json)


def rates(requests: trace.Trace, times: list[float]) -> list[float]:
    """Requests per second of each run."""
    return [len(requests) / s for s in times]


if __name__ == "__main__":
    main()
