"""Goodput of what resizes pools, by load on validation windows: docs/experiments.md, 14 and 20, chose by it.

python -m benchmarks.learned.validation_sizing --windows 10 --skip 8 sizing-reactive-8h-0s sizing-es-seed51
python -m benchmarks.learned.validation_sizing --cluster 4h4a --delay 5 splitwise@best splitwise+reactive

A cluster of the benchmark (8 H100) that begins at its split (5 prompt and 3 token machines), phases confined
to their pools, no switching delay, and `--router` (the tuned index) where a policy has none of its own. A
policy is the name of kept weights, a bundle, or a run folder of `es` or `cem`; `ROUTER+SIZER` is the router
of one beside the sizer of another, both also schedulers by name, and `+SIZER` the `--router` beside it.
`POLICY@SPLIT` begins at other pools, and `POLICY@best` at the best of the cluster's splits for each workload
and load, in hindsight on these very windows. Differences are to the first. With `--keep` figures stay in
benchmarks/learned/kept/NAME.json, as `benchmarks.learned.validation` keeps them.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents import scenarios
from agents.config import resolve
from agents.evolution import load_evolved
from agents.routers import compiled_router, evolved_pair
from agents.scenarios import Scenario
from agents.space import Pair
from benchmarks.learned import weights
from benchmarks.learned.cases import CASES, Case
from benchmarks.learned.kept import (
    KEPT,
    KeptValidation,
    command_line,
    keep_validation,
    revision,
    today,
)
from benchmarks.learned.validation import line, measured
from splitgym import policy, schedulers
from splitgym.config import parse_machines
from splitgym.errors import SplitgymError
from splitgym.schedulers import CompiledRouting, CompiledSizing

Floats = NDArray[np.float64]

BEST = "best"


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
    parser.add_argument("--cluster", default="8h", choices=tuple(CASES), help="of the benchmark")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that switching pools takes")
    parser.add_argument("--router", default="index-tuned", help="routes for what only resizes")
    parser.add_argument("--latest", action="store_true", help="of run folders the latest model, not the best")
    parser.add_argument("--keep", metavar="NAME", help="keep the figures in kept/NAME.json")
    options = parser.parse_args()
    case = CASES[options.cluster]
    loads = tuple(float(load) for load in options.loads.split(","))
    try:
        workloads = options.workloads.split(",") if options.workloads else ()
        windows = windows_of(
            loads, options.windows, options.skip, workloads, cluster=case, delay_s=options.delay
        )
        at = np.array([window.load for window in windows])
        print(f"{len(windows)} validation windows", flush=True)
        found, rows = [], {}
        with ThreadPoolExecutor() as threads:
            for name in options.policies:
                found.append(results(name, windows, case, threads, options.router, options.latest))
                rows[command_line([name])] = measured(found[-1], found[0], at, loads)
                print(line(name, rows[command_line([name])]), flush=True)
        if len(found) > 2:
            print(line("mean of the others", measured(np.mean(found[1:], axis=0), found[0], at, loads)))
        if options.keep:
            kept = KeptValidation(
                title=f"pool sizing on validation windows of {case.title}",
                command=command_line(["python", "-m", "benchmarks.learned.validation_sizing", *sys.argv[1:]]),
                date=today(),
                git_revision=revision(),
                windows=len(windows),
                policies=rows,
            )
            print(keep_validation(kept, options.keep, KEPT))
    except SplitgymError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def results(
    name: str, windows: Sequence[Scenario], case: Case, threads: Executor, router: str, latest: bool
) -> Floats:
    """(W, 3) goodput, tail and TTFT p99 of a policy, at the pools that its name says.

    Raises:
        ConfigError: no such policy, or pools of other machines.
    """
    policy_name, _, pools = name.partition("@")
    splits = case.splits if pools == BEST else (pools or case.default_split,)
    tried = []
    for split in splits:
        pairs = pairs_of(policy_name, len(windows), latest, router)
        tried.append([row[:3] for row in threads.map(scenarios.run, pairs, at_pools(windows, split))])
    return best_in_hindsight(np.array(tried), windows)


def at_pools(windows: Sequence[Scenario], pools: str) -> list[Scenario]:
    """The same windows on machines that begin in these pools."""
    return [
        replace(
            window,
            cluster=scenarios.resolved(replace(window.cluster.config, machines=parse_machines(pools))),
        )
        for window in windows
    ]


def best_in_hindsight(tried: Floats, windows: Sequence[Scenario]) -> Floats:
    """(W, 3) of the split whose mean goodput is best at each workload and load.

    Args:
        tried: (splits, W, 3) goodput first.
        windows: W of them.
    """
    found = tried[0].copy()
    where = [(window.workload.name, window.load) for window in windows]
    for place in dict.fromkeys(where):
        at = [i for i, there in enumerate(where) if there == place]
        found[at] = tried[np.nanmean(tried[:, at, 0], axis=1).argmax(), at]
    return found


def windows_of(
    loads: Sequence[float],
    windows: int,
    skip: int = 0,
    workloads: Sequence[str] = (),
    *,
    cluster: Case = CASES["8h"],
    delay_s: float = 0.0,
) -> list[Scenario]:
    """Validation windows; of each workload and load without the first `skip`.

    Raises:
        ConfigError: the part is too short for all of them.
    """
    config = resolve({"algo": "es", "env": "pool_sizing"})
    evolution = replace(config.evolution, clusters="own", loads_judged=tuple(loads))
    if workloads:
        evolution = replace(evolution, workloads=tuple(workloads))
    machines = parse_machines(cluster.default_split)
    own = replace(config.cluster, model=cluster.model, machines=machines, switch_delay_s=delay_s)
    evaluation = replace(config.evaluation, windows=skip + windows)
    config = replace(config, evolution=evolution, evaluation=evaluation, cluster=own)
    seen: Counter[str] = Counter()
    kept = []
    for window in scenarios.judged(config):
        seen[window.workload.name] += 1
        if seen[window.workload.name] > skip:
            kept.append(window)
    return kept


def pairs_of(name: str, count: int, latest: bool = False, router: str = "index-tuned") -> list[Any]:
    """So many copies of a policy's router and sizer, since they remember within a run.

    Raises:
        ConfigError: no such policy.
    """
    first = _pair(name, latest, router)
    if any(isinstance(part, policy.NetworkPolicy) for part in first):
        return [first, *(_pair(name, latest, router) for _ in range(count - 1))]
    return [tuple(replace(part) for part in first) for _ in range(count)]


def _pair(name: str, latest: bool, router: str) -> Any:
    own, beside, sizer = name.partition("+")
    if beside:
        return _pair(own or router, latest, router)[0], _pair(sizer, latest, router)[1]
    kept = weights.FOLDER / name
    bundle = str(kept) if kept.is_dir() else name
    if policy.is_bundle(bundle):
        found = policy.load(policy.locate(bundle))
        if isinstance(found, policy.NetworkPolicy):
            routing, sizing = policy.complete(found)
            return (routing if found.routes else compiled_router(router)), sizing
    return pair_of(name, latest, router)


def pair_of(name: str, latest: bool = False, router: str = "index-tuned") -> Pair:
    """Router and sizer of a policy: `router` where it does not route, static where it only routes.

    Raises:
        ConfigError: no such policy.
    """
    routing: CompiledRouting | None = None
    sizing: CompiledSizing | None = None
    if name in schedulers.routing_names():
        routing = schedulers.routing(name)
    elif name in schedulers.sizing_names():
        sizing = schedulers.sizing(name)
    elif (weights.FOLDER / f"{name}.json").is_file():
        routing, sizing = weights.read_pair(name)
    elif policy.is_bundle(name) or not latest:
        routing, sizing = evolved_pair(name)
    else:
        routing, sizing = load_evolved(name, "latest")
    return routing or compiled_router(router), sizing or schedulers.sizing("static")


if __name__ == "__main__":
    sys.exit(main())
