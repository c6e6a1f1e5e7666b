"""What a trace is like, in numbers and in a picture."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from splitgym.errors import TraceError
from splitgym.trace.statistics import counts, dispersion, gap_variation, lag_correlation, rank_correlation
from splitgym.trace.trace import Trace

WIDTHS_S = (1, 10, 60)
LAGS = (1, 2, 5, 10, 30)
QUANTILES = (1, 10, 25, 50, 75, 90, 99)


def describe(trace: Trace) -> dict[str, Any]:
    """Rates, burstiness, autocorrelation and token quantiles of a trace, and where it comes from.

    `dispersion` is the variance of the arrivals in a window over their mean: 1 for Poisson arrivals.
    `gap_variation` is the coefficient of variation of the gaps, 1 for them too. `autocorrelation` is of the
    arrivals in windows, so many windows later. What a trace is too short for is None.
    """
    minutes = np.bincount((trace.arrival_s // 60).astype(np.int64))
    mean = float(minutes.mean())
    found: dict[str, Any] = {
        "name": trace.name,
        "requests": len(trace),
        "duration_s": round(trace.duration_s, 3),
        "rate_per_s": round(len(trace) / trace.duration_s, 4) if trace.duration_s else None,
        "per_minute_dispersion": round(float(minutes.var()) / mean, 3) if mean else None,
    }
    for width_s in WIDTHS_S:
        each = counts(trace.arrival_s, width_s)
        if len(each):
            rates = np.percentile(each, (50, 99, 100)) / width_s
            for name, rate in zip(("p50", "p99", "max"), rates):
                found[f"rate_{width_s}s_{name}_per_s"] = round(float(rate), 3)
        found[f"dispersion_{width_s}s"] = _number(dispersion(trace.arrival_s, width_s))
    found["gap_variation"] = _number(gap_variation(trace.arrival_s))
    for width_s in (1, 60):
        each = counts(trace.arrival_s, width_s)
        for lag in LAGS:
            found[f"autocorrelation_{width_s}s_lag{lag}"] = _number(lag_correlation(each, lag))
    for name in ("prompt_tokens", "output_tokens"):
        tokens = getattr(trace, name)
        found[f"{name}_mean"] = round(float(tokens.mean()), 2)
        for p in QUANTILES:
            found[f"{name}_p{p}"] = round(float(np.percentile(tokens, p)), 1)
        found[f"{name}_max"] = int(tokens.max())
        found[f"{name}_autocorrelation_lag1"] = _number(lag_correlation(tokens, 1))
    found["prompt_output_rank_correlation"] = _number(rank_correlation(trace))
    return {**found, **trace.provenance}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)


def plot(trace: Trace, path: Path) -> None:
    """A picture: rate over time, autocorrelation, gaps, both sizes, and the one against the other.

    Raises:
        TraceError: the picture cannot be written, or its ending is none of a picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    FigureCanvasAgg(figure)
    rate, correlation, gaps, prompt, output, both = figure.subplots(2, 3).flat
    width_s = max(1.0, trace.duration_s / 300)
    each = counts(trace.arrival_s, width_s)
    rate.step(np.arange(len(each)) * width_s, each / width_s, where="post", linewidth=0.8)
    rate.set(xlabel="time [s]", ylabel=f"requests/s in {width_s:.3g} s", ylim=(0, None))
    seconds = counts(trace.arrival_s, 1.0)
    lags = [lag for lag in range(1, 61) if len(seconds) > 4 * lag]
    correlation.bar(lags, [lag_correlation(seconds, lag) for lag in lags])
    correlation.set(xlabel="lag [s]", ylabel="autocorrelation of arrivals in 1 s")
    between = np.sort(np.diff(trace.arrival_s))
    left = 1 - np.arange(len(between)) / max(1, len(between))
    gaps.step(between[between > 0], left[between > 0], where="post", label="trace")
    if len(between) and between.mean() > 0:
        gaps.plot(between, np.exp(-between / between.mean()), "k:", label="Poisson")
        gaps.set(xscale="log", yscale="log", ylim=(0.5 / len(between), 1.5))
        gaps.legend(fontsize="small")
    gaps.set(xlabel="gap between arrivals [s]", ylabel="share of gaps that are longer")
    for axes, name in ((prompt, "prompt"), (output, "output")):
        tokens = np.sort(getattr(trace, f"{name}_tokens"))
        axes.step(tokens, np.arange(1, len(tokens) + 1) / len(tokens), where="post")
        axes.set(xlabel=f"{name} tokens", ylabel="share of requests", xscale="log", ylim=(0, 1.01))
    both.hexbin(
        trace.prompt_tokens,
        trace.output_tokens,
        gridsize=40,
        bins="log",
        xscale="log",
        yscale="log",
        mincnt=1,
    )
    both.set(xlabel="prompt tokens", ylabel="output tokens")
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    figure.suptitle(f"{trace.name}: {len(trace)} requests in {trace.duration_s:.0f} s")
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: the picture cannot be written ({error})") from None
