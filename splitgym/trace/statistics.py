"""Numbers that say what arrivals and sizes are like: of one trace, and of two side by side."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitgym.trace.trace import Floats, Trace

MOST_SAMPLES = 20_000
"""Two-sample statistics of longer series take evenly spaced values of them."""


def counts(arrival_s: Floats, width_s: float) -> NDArray[np.int64]:
    """Arrivals in each whole bin of `width_s`."""
    bins = int(arrival_s[-1] // width_s)
    return np.bincount((arrival_s / width_s).astype(np.int64), minlength=bins + 1)[:bins]


def dispersion(arrival_s: Floats, width_s: float) -> float:
    """Index of dispersion of counts: variance over mean, 1 for Poisson; NaN with fewer than 2 bins."""
    found = counts(arrival_s, width_s)
    return float(found.var() / found.mean()) if len(found) > 1 and found.any() else float("nan")


def lag_correlation(values: NDArray[Any], lag: int) -> float:
    """Correlation of a series with itself, `lag` later; NaN where it is too short or constant."""
    if len(values) <= lag + 1 or values.var() == 0:
        return float("nan")
    centred = values - values.mean()
    return float((centred[:-lag] * centred[lag:]).mean() / centred.var())


def gap_variation(arrival_s: Floats) -> float:
    """Coefficient of variation of the gaps: 1 for a Poisson process; NaN with fewer than 2 gaps."""
    gaps = np.diff(arrival_s)
    return float(gaps.std() / gaps.mean()) if len(gaps) > 1 and gaps.any() else float("nan")


def rank_correlation(trace: Trace) -> float:
    """Spearman's, between prompt and output; NaN where one is constant."""
    from scipy.stats import spearmanr

    if np.ptp(trace.prompt_tokens) == 0 or np.ptp(trace.output_tokens) == 0:
        return float("nan")
    return float(spearmanr(trace.prompt_tokens, trace.output_tokens).statistic)


class TwoSample(NamedTuple):
    """How far two samples are from one distribution."""

    what: str
    ks: float
    """Kolmogorov-Smirnov: the largest distance of the two distribution functions, 0 to 1."""
    ks_p: float
    """Probability of such a distance, or a larger one, if both came from one distribution."""
    anderson: float
    """Anderson-Darling's k-sample statistic, which weighs the tails; NaN where all values are equal."""
    anderson_p: float
    """Its probability, which SciPy gives between .001 and .25."""


def two_samples(a: Trace, b: Trace) -> list[TwoSample]:
    """Sizes, gaps between arrivals, and arrivals in windows of 1, 10 and 60 s (from 20 windows on)."""
    found = [
        two_sample("prompt tokens", a.prompt_tokens, b.prompt_tokens),
        two_sample("output tokens", a.output_tokens, b.output_tokens),
    ]
    if min(len(a), len(b)) > 1:
        found.append(two_sample("gaps [s]", np.diff(a.arrival_s), np.diff(b.arrival_s)))
    for width_s in (1, 10, 60):
        one, other = counts(a.arrival_s, width_s), counts(b.arrival_s, width_s)
        if min(len(one), len(other)) >= 20:
            found.append(two_sample(f"arrivals in {width_s} s", one, other))
    return found


def two_sample(what: str, a: NDArray[Any], b: NDArray[Any]) -> TwoSample:
    """Both statistics of two series of values."""
    import warnings

    from scipy.stats import anderson_ksamp, ks_2samp

    one, other = _thinned(a), _thinned(b)
    ks = ks_2samp(one, other, method="asymp")
    if len(np.unique(np.concatenate([one, other]))) < 2:
        return TwoSample(what, float(ks.statistic), float(ks.pvalue), float("nan"), float("nan"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a p-value at the ends of its table
        anderson = anderson_ksamp([one, other])
    return TwoSample(
        what, float(ks.statistic), float(ks.pvalue), float(anderson.statistic), float(anderson.pvalue)
    )


def _thinned(values: NDArray[Any]) -> NDArray[Any]:
    if len(values) <= MOST_SAMPLES:
        return values
    return values[np.linspace(0, len(values) - 1, MOST_SAMPLES).astype(np.int64)]
