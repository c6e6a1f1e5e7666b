"""What a wrong profile, other output lengths, or a predictor of them do to routing policies.

    python benchmarks/robustness.py --policies index-tuned,pretrained:routing

Goodput over six workloads and two loads near and above saturation, on windows of the validation part; a row a
condition, a column a policy, and beside it the difference to the same policy on the same windows without the
condition, with a 95 % interval. Profiles are wrong in the scheduler's view only (`Cluster.misjudged`);
lengths change in the trace; predictions of a stated error come as `max_tokens` (`trace.predict_outputs`).
"""

import argparse
from dataclasses import replace

import numpy as np
from harness import Change, as_it_is, window_goodputs

from splitgym.cli.learning import contender_of
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, parse_machines
from splitgym.evaluation import parse
from splitgym.evaluation.compare import bootstrap_mean
from splitgym.saturation import WORKLOADS
from splitgym.trace import predict_outputs, stretch_outputs

ROW = "| {:<28} |{}"


def misjudged(prompt: float, token: float) -> Change:
    """The policy believes in times that are off by these factors."""
    return lambda cluster, trace, seed: (cluster.misjudged(prompt, token), trace)


def stretched(factor: float) -> Change:
    """Outputs are `factor` times as long as recorded."""
    return lambda cluster, trace, seed: (cluster, stretch_outputs(trace, factor))


def predicted(sigma: float) -> Change:
    """A predictor of output lengths with this error."""
    return lambda cluster, trace, seed: (cluster, predict_outputs(trace, sigma, seed))


CONDITIONS: dict[str, Change] = {
    "as it is": as_it_is,
    "prompt times believed x0.8": misjudged(0.8, 1.0),
    "prompt times believed x1.2": misjudged(1.2, 1.0),
    "token times believed x0.8": misjudged(1.0, 0.8),
    "token times believed x1.2": misjudged(1.0, 1.2),
    "outputs x0.7": stretched(0.7),
    "outputs x1.3": stretched(1.3),
    "lengths known": predicted(0.0),
    "lengths predicted, sigma 0.3": predicted(0.3),
    "lengths predicted, sigma 0.6": predicted(0.6),
    "lengths predicted, sigma 1": predicted(1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", default="index-tuned,pretrained:routing")
    parser.add_argument("--cluster", default="h100-80gb:8M")
    parser.add_argument("--loads", default="1.05,1.2")
    parser.add_argument("--part", default="validation")
    parser.add_argument("--seeds", type=int, default=1, help="windows a workload and load")
    parser.add_argument("--only", default="", help="conditions whose name holds this")
    options = parser.parse_args()
    cluster = Cluster.resolve(ClusterConfig(machines=parse_machines(options.cluster)))
    entrants = [contender_of(name, cluster.config) for name in options.policies.split(",")]
    print(ROW.format("", "".join(f" {entrant.name} | |" for entrant in entrants)))
    print(ROW.format("---", "---|---|" * len(entrants)))
    workloads = [
        replace(parse(f"{text}@{load}sat"), part=options.part)
        for text in WORKLOADS
        for load in options.loads.split(",")
    ]
    plain: dict[str, list[float]] = {}
    for name, change in CONDITIONS.items():
        if plain and options.only not in name:
            continue
        cells = ""
        for entrant in entrants:
            goodput = window_goodputs(cluster, entrant, workloads, options.seeds, change)
            before = plain.setdefault(entrant.name, goodput)
            gap = bootstrap_mean(np.subtract(goodput, before))
            cells += f" {np.mean(goodput):.3f} | {gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] |"
        print(ROW.format(name, cells), flush=True)


if __name__ == "__main__":
    main()
