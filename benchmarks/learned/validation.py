"""Goodput of routing policies by load on validation windows, what docs/experiments.md, section 15, chose by.

python -m benchmarks.learned.validation --loads 0.9,1.05,1.2,1.35,1.5,1.7 --windows 3 POLICY ...

On 8 H100 and 4 H100 + 4 A100, six workloads. A policy is a bundle or the run folder of `es` or `cem`.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from agents import scenarios
from agents.config import resolve
from agents.routers import evolved_pair
from splitgym import schedulers


def main() -> None:
    """Print a line a policy: goodput, tail, p99, the gain over the first, then goodput and p99 by load."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policies", nargs="+", metavar="POLICY")
    parser.add_argument("--loads", default="0.9,1.05,1.2,1.35,1.5,1.7")
    parser.add_argument("--windows", type=int, default=3, help="a cluster, workload and load")
    options = parser.parse_args()
    loads = tuple(float(load) for load in options.loads.split(","))
    config = resolve({"algo": "es", "env": "routing"})
    evolution = replace(config.evolution, loads_judged=loads)
    evaluation = replace(config.evaluation, windows=options.windows)
    windows = scenarios.judged(replace(config, evolution=evolution, evaluation=evaluation))
    at = np.array([window.load for window in windows])
    static, first = schedulers.sizing("static"), None
    print(f"{len(windows)} validation windows")
    with ThreadPoolExecutor() as threads:
        for name in options.policies:
            pairs = [(replace(evolved_pair(name)[0]), static) for _ in windows]
            found = np.array([row[:3] for row in threads.map(scenarios.run, pairs, windows)])
            first = found if first is None else first
            good, tail, p99 = np.nanmean(found, axis=0)
            gain = found[:, 0] - first[:, 0]
            error = 1.96 * np.nanstd(gain) / np.sqrt(len(gain))
            by = " ".join(
                f"{load:g}: {np.nanmean(found[at == load, 0]):.3f} ({np.nanmean(found[at == load, 2]):.0f})"
                for load in loads
            )
            over = f"{np.nanmean(gain):+.4f} +- {error:.4f}"
            print(f"{name}: {good:.4f}, tail {tail:.3f}, p99 {p99:.1f}, {over} | {by}")


if __name__ == "__main__":
    main()
