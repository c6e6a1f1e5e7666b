"""Goodput and tail of routing policies above and below saturation: the tables of docs/experiments.md.

    python benchmarks/routing.py --part test --policies index,index-tuned,runs/cem-8h,runs/es --cluster 8h

Every policy sees the same windows. `splitwise` is the paper's scheduler at its best: of all splits and
thresholds tried, the one with the highest mean goodput on these very windows, chosen anew for each workload
and load.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from splitgym.cli.learning import contender_of
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, make, parse_machines
from splitgym.errors import TraceError
from splitgym.evaluation import Contender, evaluate, paired_difference
from splitgym.evaluation.contenders import contender
from splitgym.evaluation.saturate import WORKLOADS
from splitgym.evaluation.workloads import Workload, parse
from splitgym.scale import threads
from splitgym.schedulers import routing, sizing

CLUSTERS = {
    "8h": ("bloom-176b", "h100-80gb:8M"),
    "4h4a": ("bloom-176b", "h100-80gb:4M+a100-80gb:4M"),
    "40h": ("bloom-176b", "h100-80gb:40M"),
    "20h20a": ("bloom-176b", "h100-80gb:20M+a100-80gb:20M"),
    "64h": ("bloom-176b", "h100-80gb:64M"),
    "llama": ("llama2-70b", "h100-80gb:8M"),
}
SPLITS = {
    "8h": ("h100-80gb:4P4T", "h100-80gb:5P3T", "h100-80gb:6P2T", "h100-80gb:7P1T"),
    "4h4a": (
        "h100-80gb:4P+a100-80gb:4T",
        "h100-80gb:3P1T+a100-80gb:4T",
        "h100-80gb:2P2T+a100-80gb:2P2T",
        "h100-80gb:4P+a100-80gb:1P3T",
        "h100-80gb:4P+a100-80gb:2P2T",
        "h100-80gb:3P1T+a100-80gb:4P",
    ),
}
THRESHOLDS = (2048, 8192, 65536)
MEASURES = ("goodput", "ttft_slowdown_p99", "tbt_slowdown_p99")


def at_its_best(name: str, config: ClusterConfig) -> list[Contender]:
    """The paper's scheduler on every split, at every threshold."""
    return [
        Contender(
            f"splitwise {split} {threshold}",
            routing("splitwise", max_pending_tokens=threshold),
            sizing("static"),
            make(ClusterConfig, model=config.model, machines=parse_machines(split)),
        )
        for split in SPLITS.get(name, ())
        for threshold in THRESHOLDS
    ]


def has_windows(workload: Workload, cluster: Cluster, seeds: int) -> bool:
    """False where the part of the trace is too short at this rate."""
    from splitgym.evaluation.saturate import with_rate

    try:
        for seed in range(seeds):
            with_rate(workload, cluster).build(seed, cluster.num_machines)
    except TraceError:
        return False
    return True


def measure(name: str, options: argparse.Namespace) -> dict[str, object]:
    """All policies on one cluster; {policy: {workload@load: {measure: values by window}}}."""
    model, machines = CLUSTERS[name]
    config = make(ClusterConfig, model=model, machines=parse_machines(machines))
    cluster = Cluster.resolve(config)
    policies = [p for p in options.policies.split(",") if p]
    entrants = [
        contender(contender_of(p, config), name=p, cluster=config) for p in policies if p != "splitwise"
    ]
    if "splitwise" in policies:
        entrants += at_its_best(name, config)
    loads = [float(x) for x in options.loads.split(",")]
    workloads = [parse(f"{w}@{load:g}sat", part=options.part) for w in WORKLOADS for load in loads]
    there = [w for w in workloads if has_windows(w, cluster, options.seeds)]
    for workload in workloads:
        if workload not in there:
            print(f"{name}: {workload.name} left out, the {options.part} part is too short", file=sys.stderr)
    with threads(options.threads) as map:
        results = evaluate(entrants, cluster, there, range(options.seeds), map=map)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for entrant in entrants:
        rows = found.setdefault(entrant.name, {})
        for workload in results.workloads:
            rows[workload.name] = {m: list(results.values(m, entrant.name, workload)) for m in MEASURES}
    if "splitwise" in policies:
        paper = {n: found.pop(n) for n in list(found) if n.startswith("splitwise ")}
        found["splitwise"] = {
            w: max((rows[w] for rows in paper.values()), key=lambda r: np.nanmean(r["goodput"]))
            for w in next(iter(paper.values()))
        }
    return {"loads": loads, "policies": found}


def show(name: str, found: dict[str, object], baseline: str) -> None:
    """Means over workloads and windows, by load; differences to a baseline with 95 % intervals."""
    policies: dict = found["policies"]  # type: ignore[assignment,type-arg]
    loads: list[float] = found["loads"]  # type: ignore[assignment]

    def values(policy: str, measure: str, load: float | None = None) -> np.ndarray:
        rows = policies[policy]
        ends = None if load is None else f"@{load:g}sat"
        picked = [r[measure] for w, r in rows.items() if ends is None or w.endswith(ends)]
        return np.concatenate([np.asarray(p, float) for p in picked])

    print(f"\n{name}: goodput (TTFT slowdown p99) by load; difference to {baseline}")
    print("| policy | " + " | ".join(f"{load:g}" for load in loads) + f" | all | to {baseline} |")
    print("|---" * (len(loads) + 3) + "|")
    for policy in policies:
        cells = []
        for load in loads:
            good, late = values(policy, "goodput", load), values(policy, "ttft_slowdown_p99", load)
            cells.append(f"{np.nanmean(good):.3f} ({np.nanmean(late):.0f})")
        ours, theirs = values(policy, "goodput"), values(baseline, "goodput")
        there = ~(np.isnan(ours) | np.isnan(theirs))
        difference = ""
        if policy != baseline:
            d = paired_difference(ours[there], theirs[there])
            difference = f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
        print(f"| {policy} | " + " | ".join(cells) + f" | {np.nanmean(ours):.3f} | {difference} |")
    print(
        "\nby workload: " + ", ".join(dict.fromkeys(w.split("@")[0] for w in next(iter(policies.values()))))
    )
    for policy, rows in policies.items():
        by: dict[str, list[float]] = {}
        for workload, row in rows.items():
            by.setdefault(workload.split("@")[0], []).extend(row["goodput"])
        print(f"| {policy} | " + " | ".join(f"{np.nanmean(v):.3f}" for v in by.values()) + " |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cluster", default="8h", help=f"comma-separated: {', '.join(CLUSTERS)}")
    parser.add_argument("--policies", default="splitwise,index,index-tuned")
    parser.add_argument("--baseline", default="index-tuned")
    parser.add_argument("--loads", default="0.9,1.05,1.2,1.35")
    parser.add_argument("--part", default="validation")
    parser.add_argument("--seeds", type=int, default=4, help="windows a workload and load")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="JSON with every number")
    options = parser.parse_args()
    everything = {}
    for name in options.cluster.split(","):
        everything[name] = measure(name, options)
        show(name, everything[name], options.baseline)
    if options.out is not None:
        options.out.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
