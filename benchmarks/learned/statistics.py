"""Interquartile means, stratified bootstrap intervals, probability of improvement.

Values are arrays (S, W, L, N): training seeds, workloads, loads, windows; NaN where a window does not exist.
A heuristic has S = 1. The statistics are those of Agarwal et al., "Deep reinforcement learning at the edge of
the statistical precipice" (NeurIPS 2021, the library rliable), for this shape:

- The bootstrap draws training seeds and, within each workload, windows. A window is drawn with all its loads
  and for all seeds, since these share requests; drawn apart they would make intervals too narrow.
- Policies meet on the same windows, so differences are taken window by window, and the probability of
  improvement is the chance that a random training seed does better on a random window (ties count half).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitgym.evaluation.compare import interquartile_mean

Floats = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2_000


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def signed(self) -> str:
        """As a difference is written."""
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def mean(values: Floats) -> float:
    """Of the windows that exist."""
    return float(np.nanmean(values))


def iqm(values: Floats) -> float:
    """Interquartile mean of the windows that exist, over all axes together."""
    flat = values.ravel()
    return interquartile_mean(flat[~np.isnan(flat)])


def improvement(difference: Floats) -> float:
    """Probability of improvement, from differences by seed and window."""
    there = difference[~np.isnan(difference)]
    return float(np.mean((there > 0) + 0.5 * (there == 0)))


def estimate(
    values: Floats,
    statistic: Callable[[Floats], float] = mean,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A statistic of (S, W, L, N) values with its 95 % stratified bootstrap interval.

    Args:
        values: see the module.
        statistic: of an array of that shape.
        resamples: bootstrap samples.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    seeds, workloads, _, windows = values.shape
    rows = np.arange(workloads)[:, None]
    found = np.empty(resamples)
    for i in range(resamples):
        drawn = values[rng.integers(seeds, size=seeds)]
        picked = rng.integers(windows, size=(workloads, windows))
        # (W, N, S, L) after indexing two axes apart, which the statistics do not mind.
        found[i] = statistic(drawn[:, rows, :, picked])
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return Estimate(statistic(values), float(low), float(high))


def best_of(candidates: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """What a baseline would reach that knew its best settings for each workload and load in advance.

    Args:
        candidates: (C, W, L, N) by setting.

    Returns:
        (1, W, L, N) values, and (W, L) which setting had the highest mean over windows.
    """
    there = ~np.isnan(candidates)
    means = np.where(there, candidates, 0.0).sum(axis=3) / np.maximum(1, there.sum(axis=3))
    chosen = means.argmax(axis=0)
    picked = np.take_along_axis(candidates, chosen[None, :, :, None], axis=0)
    return picked, chosen


def pick(candidates: Floats, chosen: NDArray[np.int64]) -> Floats:
    """(1, W, L, N) another measure of the settings that `best_of` chose."""
    return np.take_along_axis(candidates, chosen[None, :, :, None], axis=0)
