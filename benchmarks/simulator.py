"""Simulated requests per second of one core, by engine, scheduler and cluster size.

    python benchmarks/simulator.py [--json FILE] [--repeats N]

40 machines serve 70 requests/s of the conversation trace (bloom-176b, 25 prompt and 15 token H100 machines:
the paper's design); 8 machines serve a fifth of that.
"""

from itertools import product

from harness import Report, arguments, seconds

from splitgym import schedulers, trace
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, parse_machines
from splitgym.sim import make_engine

SIZES = {8: ("h100-80gb:5P3T", 14.0), 40: ("h100-80gb:25P15T", 70.0)}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the workload, simulated")
    parser.add_argument("--trace", default="azure-conv-synth", help="trace to draw sizes from")
    options = parser.parse_args()
    sizes = trace.load(options.trace)
    report = Report(f"simulated requests per second of one core, {options.trace}")
    for machines, (spec, rate) in SIZES.items():
        cluster = Cluster.resolve(ClusterConfig(machines=parse_machines(spec)))
        workload = trace.poisson(sizes, rate, options.seconds, seed=0)
        for kind, name in product(("simpy", "compiled"), ("splitwise", "index")):
            engine = make_engine(cluster, schedulers.routing(name), schedulers.sizing("static"), kind)

            def run(engine=engine, workload=workload) -> None:
                engine.reset(workload)
                engine.run_until_decision()

            rates = [len(workload) / s for s in seconds(run, options.repeats)]
            report.add(f"simulator.{kind}.{name}.m{machines}.requests_per_s", rates, "requests/s")
    report.finish(options.json)


if __name__ == "__main__":
    main()
