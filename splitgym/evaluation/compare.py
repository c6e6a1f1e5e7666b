"""Is one policy better than another? Means and paired differences over windows, with bootstrap intervals."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from splitgym.evaluation.run import Results
from splitgym.evaluation.workloads import Workload

Floats = NDArray[np.float64]

LEVEL = 0.95
FEWEST = 6
"""Windows that an interval of 95 % takes. The range of n windows holds the median with probability
1 - 2^(1 - n): half of the time for two windows, 94 % for five."""
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Of 2 to `FEWEST` - 1 windows `low` and `high` are the lowest and the highest value, too few for such an
    interval; of fewer they are NaN. `brackets` says in words what stands in a table.
    """

    mean: float
    low: float
    high: float
    windows: int

    @property
    def excludes_zero(self) -> bool:
        """True where the sign of the mean is beyond doubt at this level: never below `FEWEST` windows."""
        return self.windows >= FEWEST and self.one_sign

    @property
    def one_sign(self) -> bool:
        """True where `low` and `high` lie on one side of zero."""
        return self.low > 0 or self.high < 0


def brackets(windows: int) -> str:
    """What `low` and `high` of so many windows are, for a caption: "95 % intervals over 8 windows"."""
    if windows >= FEWEST:
        return f"{100 * LEVEL:.0f} % intervals over {windows} windows"
    return f"lowest and highest of {windows} windows (fewer than {FEWEST} give no 95 % interval)"


def bootstrap_mean(
    values: ArrayLike, seed: int = 0, *, level: float = LEVEL, resamples: int = RESAMPLES
) -> Interval:
    """Mean and expanded-percentile bootstrap interval; of few values their range (see `Interval`).

    The plain percentile interval is too narrow for few values. Its quantiles are widened as Hesterberg does
    ("What teachers should know about the bootstrap", 2015): Phi(-sqrt(n / (n - 1)) t) with Student's t.

    Args:
        values: (n,) one number a window.
        seed: of the resampling.
        level: confidence.
        resamples: bootstrap samples.
    """
    found = np.asarray(values, np.float64)
    n = len(found)
    mean = float(found.mean()) if n else np.nan
    if n < 2 or not np.isfinite(found).all():
        return Interval(mean, np.nan, np.nan, n)
    if n < FEWEST:
        return Interval(mean, float(found.min()), float(found.max()), n)
    rng = np.random.default_rng(seed)
    means = found[rng.integers(n, size=(resamples, n))].mean(axis=1)
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), n)


def paired_difference(ours: ArrayLike, theirs: ArrayLike, seed: int = 0) -> Interval:
    """Interval of the mean of `ours - theirs`, element by element: (n,) values on the same n windows.

    Raises:
        ValueError: the lengths differ.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"pairs need equal shapes, found {a.shape} and {b.shape}")
    return bootstrap_mean(a - b, seed)


def interquartile_mean(values: ArrayLike) -> float:
    """Mean of the middle half: less moved by one odd window than the mean."""
    return float(stats.trim_mean(np.asarray(values, np.float64), 0.25))


@dataclass(frozen=True)
class Comparison:
    """One policy under one metric, alone and against the baseline on the same windows."""

    policy: str
    metric: str
    value: Interval
    difference: Interval | None
    """To the baseline; None for the baseline itself."""


def compare(
    results: Results, metric: str = "goodput", baseline: str | None = None, workload: Workload | None = None
) -> list[Comparison]:
    """Each policy's mean over windows and its paired difference to a baseline.

    Args:
        results: of `evaluate`.
        metric: a key of `Metrics.as_dict()`.
        baseline: a policy of the results; None is the first.
        workload: one of the results' workloads; None is all of them together.

    Raises:
        KeyError: no such metric or baseline.
    """
    base = baseline or results.policies[0]
    if base not in results.policies:
        raise KeyError(f"baseline {base!r} is not among {list(results.policies)}")
    theirs = results.values(metric, base, workload)
    found = []
    for policy in results.policies:
        ours = results.values(metric, policy, workload)
        difference = None if policy == base else paired_difference(ours, theirs)
        found.append(Comparison(policy, metric, bootstrap_mean(ours), difference))
    return found
