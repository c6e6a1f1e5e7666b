"""Goodput of what resizes pools, by load on validation windows: docs/experiments.md, section 14, chose by it.

python -m benchmarks.learned.validation_sizing --windows 10 --skip 8 sizing-reactive-8h-0s sizing-es-seed51

8 H100 that begin as 5 prompt and 3 token machines, phases confined to their pools, no switching delay, the
tuned index as router where a policy has none of its own. A policy is the name of kept weights, a bundle, or
a run folder of `es` or `cem`; `ROUTER+SIZER` is the router of one beside the sizer of another. Differences
are to the first.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from agents import scenarios
from agents.config import resolve
from agents.evolution import load_evolved
from agents.routers import compiled_router, evolved_pair
from agents.scenarios import Scenario
from agents.space import Pair
from benchmarks.learned import weights
from benchmarks.learned.cases import CASES
from benchmarks.learned.validation import line, measured
from splitgym import policy, schedulers
from splitgym.config import parse_machines
from splitgym.errors import SplitgymError

POOLS = CASES["8h"].default_split


def main() -> int:
    """Print a line a policy, as `benchmarks.learned.validation` does, and the mean of all but the first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policies", nargs="+", metavar="POLICY")
    parser.add_argument("--loads", default="0.75,0.9,1.05,1.2,1.35")
    parser.add_argument("--windows", type=int, default=10, help="a workload and load")
    parser.add_argument("--skip", type=int, default=0, help="windows left out: those that runs are judged on")
    parser.add_argument("--workloads", help="by commas; default: all six")
    parser.add_argument("--latest", action="store_true", help="of run folders the latest model, not the best")
    options = parser.parse_args()
    loads = tuple(float(load) for load in options.loads.split(","))
    try:
        workloads = options.workloads.split(",") if options.workloads else ()
        windows = windows_of(loads, options.windows, options.skip, workloads)
        at = np.array([window.load for window in windows])
        print(f"{len(windows)} validation windows", flush=True)
        found = []
        with ThreadPoolExecutor() as threads:
            for name in options.policies:
                pairs = pairs_of(name, len(windows), options.latest)
                found.append(np.array([row[:3] for row in threads.map(scenarios.run, pairs, windows)]))
                print(line(name, measured(found[-1], found[0], at, loads)), flush=True)
        if len(found) > 2:
            print(line("mean of the others", measured(np.mean(found[1:], axis=0), found[0], at, loads)))
    except SplitgymError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def windows_of(
    loads: Sequence[float], windows: int, skip: int = 0, workloads: Sequence[str] = ()
) -> list[Scenario]:
    """Validation windows; of each workload and load without the first `skip`.

    Raises:
        ConfigError: the part is too short for all of them.
    """
    config = resolve({"algo": "es", "env": "pool_sizing"})
    evolution = replace(config.evolution, clusters="own", loads_judged=tuple(loads))
    if workloads:
        evolution = replace(evolution, workloads=tuple(workloads))
    cluster = replace(config.cluster, machines=parse_machines(POOLS), switch_delay_s=0.0)
    evaluation = replace(config.evaluation, windows=skip + windows)
    config = replace(config, evolution=evolution, evaluation=evaluation, cluster=cluster)
    seen: Counter[str] = Counter()
    kept = []
    for window in scenarios.judged(config):
        seen[window.workload.name] += 1
        if seen[window.workload.name] > skip:
            kept.append(window)
    return kept


def pairs_of(name: str, count: int, latest: bool = False) -> list[Any]:
    """So many copies of a policy's router and sizer, since they remember within a run.

    Raises:
        ConfigError: no such policy.
    """
    first = _pair(name, latest)
    if any(isinstance(part, policy.NetworkPolicy) for part in first):
        return [first, *(_pair(name, latest) for _ in range(count - 1))]
    return [tuple(replace(part) for part in first) for _ in range(count)]


def _pair(name: str, latest: bool) -> Any:
    router, beside, sizer = name.partition("+")
    if beside:
        return _pair(router, latest)[0], _pair(sizer, latest)[1]
    kept = weights.FOLDER / name
    bundle = str(kept) if kept.is_dir() else name
    if policy.is_bundle(bundle):
        found = policy.load(policy.locate(bundle))
        if isinstance(found, policy.NetworkPolicy):
            return policy.complete(found)
    return pair_of(name, latest)


def pair_of(name: str, latest: bool = False) -> Pair:
    """Router and sizer of a policy: the tuned index where it does not route, static where it only routes.

    Raises:
        ConfigError: no such policy.
    """
    if (weights.FOLDER / f"{name}.json").is_file():
        routing, sizing = weights.read_pair(name)
    elif policy.is_bundle(name) or not latest:
        routing, sizing = evolved_pair(name)
    else:
        routing, sizing = load_evolved(name, "latest")
    return routing or compiled_router("index-tuned"), sizing or schedulers.sizing("static")


if __name__ == "__main__":
    sys.exit(main())
