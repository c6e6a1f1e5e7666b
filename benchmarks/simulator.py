"""Simulated requests per second of one core, by engine, scheduler, cluster size and load.

    python benchmarks/simulator.py [--json FILE] [--repeats N] [--seconds 60]

40 machines serve 70 requests/s of the conversation trace (bloom-176b, 25 prompt and 15 token H100 machines:
the paper's design); other sizes have their share of that, for the same number of requests, but for
20 s at least above 40 machines. Half the load is measured at 40 machines. The specification runs at 8
and 40 machines only.
"""

from itertools import product

from harness import Report, arguments, seconds

from splitgym import schedulers, trace
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, parse_machines
from splitgym.sim import make_engine

SIZES = {
    4: ("h100-80gb:2P2T", 7.0),
    8: ("h100-80gb:5P3T", 14.0),
    40: ("h100-80gb:25P15T", 70.0),
    400: ("h100-80gb:250P150T", 700.0),
    4000: ("h100-80gb:2500P1500T", 7000.0),
}
BY_SPECIFICATION = (8, 40)


def rates(spec: str, workload: trace.Trace, kind: str, name: str, repeats: int) -> list[float]:
    """Requests per second of one core, once for each repeat."""
    cluster = Cluster.resolve(ClusterConfig(machines=parse_machines(spec)))
    engine = make_engine(cluster, schedulers.routing(name), schedulers.sizing("static"), kind)

    def run() -> None:
        engine.reset(workload)
        engine.run_until_decision()

    return [len(workload) / s for s in seconds(run, repeats)]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="length of the workload of 40 machines, simulated"
    )
    parser.add_argument("--trace", default="azure-conv-synth", help="trace to draw sizes from")
    options = parser.parse_args()
    sizes = trace.load(options.trace)
    report = Report(f"simulated requests per second of one core, {options.trace}")
    found: dict[tuple[str, int], list[float]] = {}
    for machines, (spec, rate) in SIZES.items():
        # The first seconds of an empty cluster are not what is asked for.
        length = max(options.seconds * 40 / machines, 20.0 if machines > 40 else 0.0)
        workload = trace.poisson(sizes, rate, length, seed=0)
        for kind, name in product(("simpy", "compiled"), ("splitwise", "index")):
            if kind == "compiled" or machines in BY_SPECIFICATION:
                values = rates(spec, workload, kind, name, options.repeats)
                report.add(f"simulator.{kind}.{name}.m{machines}.requests_per_s", values, "requests/s")
                if kind == "compiled":
                    found[name, machines] = values
    spec, rate = SIZES[40]
    workload = trace.poisson(sizes, rate / 2, 2 * options.seconds, seed=0)
    for name in ("splitwise", "index"):
        values = rates(spec, workload, "compiled", name, options.repeats)
        report.add(f"simulator.compiled.{name}.m40_half_load.requests_per_s", values, "requests/s")
        many = [a / b for a, b in zip(found[name, 4000], found[name, 40])]
        report.add(f"simulator.compiled.{name}.m4000_over_m40", many, "ratio")
    report.finish(options.json)


if __name__ == "__main__":
    main()
