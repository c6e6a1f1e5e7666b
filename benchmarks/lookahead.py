"""What a longer look-ahead gives over the policy that it looks ahead with.

    python benchmarks/lookahead.py --policy pretrained:routing --horizons 0.5,2,5 --futures 8

Goodput on windows of the validation part; a row a horizon: the difference to the policy itself on the same
windows with a 95 % interval, the share of decisions that it changes, and its time a decision.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
from harness import window_goodputs

from splitgym.cli.learning import contender_of
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, parse_machines
from splitgym.evaluation import LookAhead, look_ahead, parse
from splitgym.evaluation.compare import bootstrap_mean

WORKLOADS = "poisson:azure-code,stamps:azure-code,shifting:azure-conv~azure-code,mixed:azure-conv+azure-code"
ROW = "| {:<14} | {:<26} | {:<8} | {:<8} | {:<13} | {}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", default="pretrained:routing", help="an index or residual")
    parser.add_argument("--horizons", default="0.5,2,5", help="of requests to come in a future [s]")
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--futures", type=int, default=8)
    parser.add_argument("--margin", type=float, default=0.5, help="good requests a future, see LookAhead")
    parser.add_argument("--cluster", default="h100-80gb:8M")
    parser.add_argument("--workloads", default=WORKLOADS)
    parser.add_argument("--load", default="1.2", help="fraction of saturation")
    parser.add_argument("--part", default="validation")
    parser.add_argument("--seeds", type=int, default=1, help="windows a workload")
    parser.add_argument("--duration", type=float, default=100.0, help="that counts [s]")
    parser.add_argument("--warmup", type=float, default=20.0, help="before that [s]")
    options = parser.parse_args()
    cluster = Cluster.resolve(ClusterConfig(machines=parse_machines(options.cluster)))
    base = contender_of(options.policy, cluster.config)
    workloads = [
        replace(
            parse(f"{text}@{options.load}sat", duration_s=options.duration, warmup_s=options.warmup),
            part=options.part,
        )
        for text in options.workloads.split(",")
    ]
    plain = window_goodputs(cluster, base, workloads, options.seeds)
    print(ROW.format("horizon", "difference", "goodput", "changed", "ms a decision", "by window |"))
    print(ROW.format(*["---"] * 5, "--- |"))
    by = " ".join(f"{goodput:.3f}" for goodput in plain)
    print(ROW.format("none", "", f"{np.mean(plain):.4f}", "", "", f"{by} |"), flush=True)
    for horizon in options.horizons.split(","):
        entrant = look_ahead(
            f"lookahead={options.candidates}x{options.futures}:{options.policy}", lambda _: base
        )
        looking = entrant.routing
        assert isinstance(looking, LookAhead)
        looking.horizon_s, looking.margin = float(horizon), options.margin
        started = time.process_time()
        goodput = window_goodputs(cluster, entrant, workloads, options.seeds)
        spent_ms = 1e3 * (time.process_time() - started) / looking.decisions
        gap = np.subtract(goodput, plain)
        interval = bootstrap_mean(gap)
        over = f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
        share = f"{100 * looking.changed / looking.decisions:.1f} %"
        by = " ".join(f"{one:+.3f}" for one in gap)
        print(
            ROW.format(f"{horizon} s", over, f"{np.mean(goodput):.4f}", share, f"{spent_ms:.1f}", f"{by} |"),
            flush=True,
        )


if __name__ == "__main__":
    main()
