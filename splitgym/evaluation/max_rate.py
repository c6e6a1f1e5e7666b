"""The highest request rate at which all nine SLOs hold, by bisection."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig
from splitgym.errors import ConfigError
from splitgym.evaluation.contenders import PolicyLike, contender
from splitgym.evaluation.run import evaluate
from splitgym.evaluation.workloads import Workload, parse
from splitgym.metrics import RequestTable, nine_slos
from splitgym.scale import Map


@dataclass(frozen=True)
class MaxRate:
    """`rate_per_s` meets the SLOs and `failed_at_per_s` does not; the true edge lies between."""

    rate_per_s: float
    """0 when even the lowest rate tried fails."""
    failed_at_per_s: float
    """Infinite when even the highest rate allowed holds."""
    tried: tuple[tuple[float, tuple[str, ...]], ...]
    """(rate, SLOs that failed there) in the order of trying."""

    def as_json(self) -> dict[str, Any]:
        """Plain data; infinity is null."""
        failed_at = self.failed_at_per_s if np.isfinite(self.failed_at_per_s) else None
        tried = [{"rate_per_s": rate, "failed_slos": list(failed)} for rate, failed in self.tried]
        return {"rate_per_s": self.rate_per_s, "failed_at_per_s": failed_at, "tried": tried}


def bisect_rate(
    failures: Callable[[float], tuple[str, ...]],
    start_per_s: float,
    *,
    tolerance: float = 0.02,
    lowest_per_s: float = 0.05,
    highest_per_s: float = 10_000.0,
) -> MaxRate:
    """Largest rate without failures, within a relative tolerance.

    From `start_per_s` the rate is doubled or halved until one rate holds and one fails, then the bracket is
    halved (geometrically). Where failures are not monotone in the rate, this is *an* edge: rates below it
    that were not tried may fail.

    Args:
        failures: names of what fails at a rate; must be deterministic.
        start_per_s: first rate.
        tolerance: stop when `failed_at_per_s` / `rate_per_s` - 1 is at most this.
        lowest_per_s, highest_per_s: give up beyond.
    """
    if not (tolerance > 0 and 0 < lowest_per_s <= start_per_s <= highest_per_s):
        raise ConfigError(
            f"max rate: needs a positive tolerance and {lowest_per_s} <= start <= {highest_per_s} "
            f"requests/s, found tolerance {tolerance} and start {start_per_s}"
        )
    tried: list[tuple[float, tuple[str, ...]]] = []

    def holds(rate: float) -> bool:
        failed = failures(rate)
        tried.append((rate, failed))
        return not failed

    low, high = 0.0, np.inf
    rate = start_per_s
    while lowest_per_s <= rate <= highest_per_s and not (low > 0 and np.isfinite(high)):
        if holds(rate):
            low, rate = rate, rate * 2
        else:
            high, rate = rate, rate / 2
    while low > 0 and np.isfinite(high) and high / low - 1 > tolerance:
        # np.sqrt is correctly rounded everywhere, so the rates tried are the same on every machine.
        rate = float(np.sqrt(low * high))
        if holds(rate):
            low = rate
        else:
            high = rate
    return MaxRate(low, float(high), tuple(tried))


def max_request_rate(
    policy: PolicyLike,
    cluster: Cluster | ClusterConfig,
    workload: Workload | str,
    seeds: Iterable[int] = (0,),
    *,
    start_per_s: float | None = None,
    tolerance: float = 0.02,
    engine: str = "auto",
    progress: Callable[[float, tuple[str, ...]], None] | None = None,
    map: Map = map,
) -> MaxRate:
    """Highest rate of a workload at which a policy meets all nine SLOs on a cluster.

    The requests of all seeds are pooled before percentiles are taken. Deterministic.

    Args:
        policy, cluster, seeds, engine, map: as for `evaluate`.
        workload: its rate is the first one tried, unless `start_per_s` is given.
        tolerance: relative.
        progress: called with each rate tried and what failed there.

    Raises:
        ConfigError: no rate to start from; and what `evaluate` raises.
    """
    resolved = cluster if isinstance(cluster, Cluster) else Cluster.resolve(cluster)
    load = parse(workload) if isinstance(workload, str) else workload
    start = start_per_s or load.rate_per_s
    if start is None:
        raise ConfigError(f"workload {load.name}: give a rate to start from (WORKLOAD@REQUESTS_PER_SECOND)")
    entrant = contender(policy, cluster=resolved.config)
    numbers = tuple(seeds)

    def failures(rate: float) -> tuple[str, ...]:
        results = evaluate([entrant], resolved, [load.at_rate(rate)], numbers, engine=engine, map=map)
        held = nine_slos(pool([run.table for run in results.runs]))
        failed = tuple(name for name, ok in held.items() if not ok)
        if progress is not None:
            progress(rate, failed)
        return failed

    return bisect_rate(failures, start, tolerance=tolerance)


def pool(tables: list[RequestTable]) -> RequestTable:
    """The requests of several runs in one table."""
    names = RequestTable.__dataclass_fields__
    return RequestTable(**{n: np.concatenate([getattr(t, n) for t in tables]) for n in names})
