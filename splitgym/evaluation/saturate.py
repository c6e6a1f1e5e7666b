"""Measure saturation: see `splitgym.saturation` for what it is and where the table lies."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from splitgym import saturation
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig
from splitgym.errors import TraceError
from splitgym.evaluation.max_rate import bisect_rate
from splitgym.evaluation.run import evaluate
from splitgym.evaluation.workloads import Workload, find, parse
from splitgym.scale import Map

_LOG = logging.getLogger("splitgym")

GOODPUT = 0.90
SHARE_OF_POISSON = 0.3
"""Real stamps of `azure-code` are saturated at no less than this share of the Poisson rate."""
BURSTY, POISSON = "stamps:azure-code", "poisson:azure-code"
WINDOWS = 8
POLICY = "index-tuned"


@dataclass(frozen=True)
class Saturation:
    """A row of the table."""

    rate_per_s: float
    goodput: float
    """Mean of the windows at that rate."""
    windows: int


def measure(
    cluster: Cluster | ClusterConfig,
    workload: str,
    windows: int = WINDOWS,
    *,
    tolerance: float = 0.01,
    map: Map = map,
) -> Saturation:
    """Saturation of a cluster under a workload, by bisection. Deterministic.

    Args:
        cluster: as for `evaluate`.
        workload: its name without a rate, such as `poisson:azure-code`.
        windows: of 100 s (after 20 s of warm-up) of the train part; their mean goodput counts.
        tolerance: relative.
        map: as for `evaluate`.

    A rate at which the part of the trace is too short for the window (real stamps, sped up) counts as too
    high.

    Raises:
        TraceError: a trace that cannot be loaded.
    """
    resolved = cluster if isinstance(cluster, Cluster) else Cluster.resolve(cluster)
    start = 2.0 * resolved.num_machines
    load = parse(f"{workload}@{start}", part="train")
    for source in load.sources:
        find(source)  # a missing trace is an error, not a rate too high
    tried: dict[float, float] = {}

    def failures(rate: float) -> tuple[str, ...]:
        tried[rate] = goodput(resolved, load.at_rate(rate), range(windows), map)
        return () if tried[rate] >= GOODPUT else ("goodput",)

    rate = bisect_rate(failures, start, tolerance=tolerance).rate_per_s
    if workload == BURSTY:
        least = SHARE_OF_POISSON * (known_or_measured(resolved, POISSON, windows, map=map))
        if rate < least:
            rate, tried[least] = least, goodput(resolved, load.at_rate(least), range(windows), map)
    return Saturation(rate, tried.get(rate, 0.0), windows)


def goodput(cluster: Cluster, workload: Workload, seeds: Iterable[int], map: Map = map) -> float:
    """Mean goodput of the tuned index over the windows with requests; 0 at a rate at which there are none."""
    try:
        results = evaluate([POLICY], cluster, [workload], seeds, map=map)
    except TraceError:
        return 0.0
    found = results.values("goodput", POLICY)
    return float(found[~np.isnan(found)].mean())


def known_or_measured(cluster: Cluster, workload: str, windows: int = WINDOWS, *, map: Map = map) -> float:
    """Saturation [requests/s] from the table, or measured where the table does not reach."""
    rate = saturation.known(cluster.config, workload)
    if rate is not None:
        return rate
    _LOG.warning("measuring the saturation of %s by %s", _machines(cluster.config), workload)
    return _measured(_Key(cluster.config), workload, windows)


@dataclass(frozen=True)
class _Key:
    """Configurations hold mappings in options, so they are compared as text."""

    config: ClusterConfig

    def __hash__(self) -> int:
        return hash(repr(self.config))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and repr(self.config) == repr(other.config)


@cache
def _measured(key: _Key, workload: str, windows: int) -> float:
    return measure(key.config, workload, windows).rate_per_s


def _machines(config: ClusterConfig) -> str:
    return saturation.write_hardware(saturation.hardware(config))


def row(cluster: ClusterConfig, workload: str, found: Saturation) -> dict[str, str]:
    """A row of the table."""
    return {
        "model": cluster.model,
        "machines": _machines(cluster),
        "workload": workload,
        "rate_per_s": f"{found.rate_per_s:.4g}",
        "goodput": f"{found.goodput:.3f}",
        "windows": str(found.windows),
    }


def with_rate(workload: Workload, cluster: Cluster) -> Workload:
    """A workload whose load is a fraction of saturation, with the rate that this is on a cluster."""
    if workload.load is None:
        return workload
    return replace(workload, rate_per_s=workload.load * known_or_measured(cluster, workload.base_name))
