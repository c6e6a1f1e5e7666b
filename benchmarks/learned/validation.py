"""Goodput of routing policies by load on validation windows, what docs/experiments.md, 15 and 16, chose by.

python -m benchmarks.learned.validation --loads 0.9,1.05,1.2,1.35,1.5,1.7 --windows 3 POLICY ... [--keep NAME]

On 8 H100 and 4 H100 + 4 A100, or `--clusters` of the benchmark, six workloads. A policy is a bundle or a run
folder of `es` or `cem`. With `--keep` figures stay in benchmarks/learned/kept/NAME.json;
`<!-- made: validation NAME -->` in an entry of docs/experiments.md shows them. With `--profile-error` and
`--length-shift` each window is disturbed as `evolution`'s fields of these names say, for all policies alike.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from agents import scenarios
from agents.config import resolve
from agents.routers import evolved_pair
from benchmarks.learned.cases import CASES
from benchmarks.learned.kept import (
    KEPT,
    AtLoad,
    KeptValidation,
    PolicyRow,
    command_line,
    keep_validation,
    revision,
    today,
)
from splitgym import schedulers
from splitgym.errors import ConfigError, SplitgymError

Floats = NDArray[np.float64]

MODEL = "bloom-176b"
DISTURBANCES = ("profile_error", "length_shift")
"""Of a window, as `evolution` names them."""


def measured(found: Floats, first: Floats, at: Floats, loads: tuple[float, ...]) -> PolicyRow:
    """What is said of a policy.

    Args:
        found: (W, 3) goodput, tail and TTFT p99 by window; NaN where a window has no request.
        first: the same of the first policy.
        at: (W,) load of each window.
        loads: that are told apart.

    Raises:
        ConfigError: a load without a window.
    """
    by_load = []
    for load in loads:
        rows = found[at == load]
        if not np.isfinite(rows[:, 0]).any():
            raise ConfigError(f"no validation window has a request at a load of {load:g}: leave it out")
        by_load.append(AtLoad(load, float(np.nanmean(rows[:, 0])), float(np.nanmean(rows[:, 2]))))
    goodput, tail, p99 = (float(value) for value in np.nanmean(found, axis=0))
    gain = found[:, 0] - first[:, 0]
    error = float(1.96 * np.nanstd(gain) / np.sqrt(np.isfinite(gain).sum()))
    return PolicyRow(goodput, tail, p99, float(np.nanmean(gain)), error, tuple(by_load))


def line(name: str, row: PolicyRow) -> str:
    """As it is printed."""
    by = " ".join(f"{at.load:g}: {at.goodput:.3f} ({at.ttft_slowdown_p99:.0f})" for at in row.by_load)
    over = f"{row.gain:+.4f} +- {row.gain_error:.4f}"
    return f"{name}: {row.goodput:.4f}, tail {row.tail:.3f}, p99 {row.ttft_slowdown_p99:.1f}, {over} | {by}"


def main() -> int:
    """Print a line a policy: goodput, tail, p99, the gain over the first, then goodput and p99 by load."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policies", nargs="+", metavar="POLICY")
    parser.add_argument("--loads", default="0.9,1.05,1.2,1.35,1.5,1.7")
    parser.add_argument("--clusters", default="8h,4h4a", help="of benchmarks/learned/cases.py")
    parser.add_argument("--windows", type=int, default=3, help="a cluster, workload and load")
    parser.add_argument("--profile-error", type=float, default=0.0)
    parser.add_argument("--length-shift", type=float, default=0.0)
    parser.add_argument("--keep", metavar="NAME", help="keep the figures in kept/NAME.json")
    options = parser.parse_args()
    loads = tuple(float(load) for load in options.loads.split(","))
    try:
        clusters = options.clusters.split(",")
        disturbed = {name: getattr(options, name) for name in DISTURBANCES if getattr(options, name)}
        rows, windows = measure(options.policies, loads, options.windows, clusters, disturbed)
        if options.keep:
            words = ["--loads", options.loads, "--clusters", options.clusters]
            words += ["--windows", str(options.windows)]
            for name, size in disturbed.items():
                words += [f"--{name.replace('_', '-')}", f"{size:g}"]
            words += options.policies
            how = " with wrong profiles or lengths" if disturbed else ""
            kept = KeptValidation(
                title=f"routing policies on validation windows{how} of {_titles(clusters)}, six workloads",
                command=command_line(["python", "-m", "benchmarks.learned.validation", *words]),
                date=today(),
                git_revision=revision(),
                windows=windows,
                policies={command_line([name]): row for name, row in rows.items()},
            )
            print(keep_validation(kept, options.keep, KEPT))
    except SplitgymError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _titles(clusters: Sequence[str]) -> str:
    return " and ".join(CASES[name].title for name in clusters)


def measure(
    policies: list[str],
    loads: tuple[float, ...],
    windows_each: int,
    clusters: Sequence[str] = ("8h", "4h4a"),
    disturbances: Mapping[str, float] | None = None,
) -> tuple[dict[str, PolicyRow], int]:
    """Run policies on the same windows, and print a line of each as it is done.

    Args:
        policies: bundles or run folders.
        loads: fractions of saturation.
        windows_each: a cluster, workload and load.
        clusters: of the benchmark, by name.
        disturbances: of each window, see `DISTURBANCES`; none: windows as they are.

    Returns:
        What is said of each policy, and the number of windows.

    Raises:
        ConfigError: no such cluster; and what `measured` raises.
    """
    if unknown := [name for name in clusters if name not in CASES or CASES[name].model != MODEL]:
        known = ", ".join(name for name, case in CASES.items() if case.model == MODEL)
        raise ConfigError(f"no cluster is called {unknown[0]!r}: there are {known}")
    machines = tuple(CASES[name].machines for name in clusters)
    config = resolve({"algo": "es", "env": "routing", "evolution": dict(disturbances or {})})
    evolution = replace(config.evolution, loads_judged=loads, clusters_judged=machines)
    evaluation = replace(config.evaluation, windows=windows_each)
    judged = scenarios.judged(replace(config, evolution=evolution, evaluation=evaluation))
    windows = [scenarios.disturbed(config, window, number) for number, window in enumerate(judged)]
    at = np.array([window.load for window in windows])
    static, first, rows = schedulers.sizing("static"), None, {}
    print(f"{len(windows)} validation windows", flush=True)
    with ThreadPoolExecutor() as threads:
        for name in policies:
            pairs = [(replace(evolved_pair(name)[0]), static) for _ in windows]
            found = np.array([row[:3] for row in threads.map(scenarios.run, pairs, windows)])
            first = found if first is None else first
            rows[name] = measured(found, first, at, loads)
            print(line(name, rows[name]), flush=True)
    return rows, len(windows)


if __name__ == "__main__":
    sys.exit(main())
