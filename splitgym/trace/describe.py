"""What a trace is like, in numbers and in a picture."""

import math
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from splitgym.errors import TraceError
from splitgym.trace.statistics import counts, dispersion, gap_variation, lag_correlation, rank_correlation
from splitgym.trace.trace import Trace

WIDTHS_S = (1, 10, 60)
LAGS = (1, 2, 5, 10, 30)
QUANTILES = (1, 10, 25, 50, 75, 90, 99)


Told = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def describe(trace: Trace, progress: Told = lambda done, total: None) -> dict[str, Any]:
    """Rates, burstiness, autocorrelation and token quantiles of a trace, and where it comes from.

    `dispersion` is the variance of the arrivals in a window over their mean: 1 for Poisson arrivals.
    `gap_variation` is the coefficient of variation of the gaps, 1 for them too. `autocorrelation` is of the
    arrivals in windows, so many windows later. What a trace is too short for is None.
    """
    total, step = len(WIDTHS_S) + 4, count(1)
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
        progress(next(step), total)
    found["gap_variation"] = _number(gap_variation(trace.arrival_s))
    for width_s in (1, 60):
        each = counts(trace.arrival_s, width_s)
        for lag in LAGS:
            found[f"autocorrelation_{width_s}s_lag{lag}"] = _number(lag_correlation(each, lag))
    progress(next(step), total)
    for name in ("prompt_tokens", "output_tokens"):
        tokens = getattr(trace, name)
        found[f"{name}_mean"] = round(float(tokens.mean()), 2)
        for p in QUANTILES:
            found[f"{name}_p{p}"] = round(float(np.percentile(tokens, p)), 1)
        found[f"{name}_max"] = int(tokens.max())
        found[f"{name}_autocorrelation_lag1"] = _number(lag_correlation(tokens, 1))
        progress(next(step), total)
    found["prompt_output_rank_correlation"] = _number(rank_correlation(trace))
    progress(next(step), total)
    return {**found, **trace.provenance}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)


def plot(trace: Trace, path: Path, progress: Told = lambda done, total: None) -> None:
    """A picture: rate over time, autocorrelation, gaps, both sizes, and the one against the other.

    Raises:
        TraceError: the picture cannot be written, or its ending is none of a picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    FigureCanvasAgg(figure)
    draws = (_draw_rate, _draw_correlation, _draw_gaps, _draw_prompt, _draw_output, _draw_both)
    total = len(draws) + 1
    for done, (draw, axes) in enumerate(zip(draws, figure.subplots(2, 3).flat, strict=True), 1):
        draw(trace, axes)
        axes.grid(alpha=0.3)
        progress(done, total)
    figure.suptitle(f"{trace.name}: {len(trace)} requests in {trace.duration_s:.0f} s")
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: the picture cannot be written ({error})") from None
    progress(total, total)


def _draw_rate(trace: Trace, axes: Any) -> None:
    width_s = max(1.0, trace.duration_s / 300)
    each = counts(trace.arrival_s, width_s)
    axes.step(np.arange(len(each)) * width_s, each / width_s, where="post", linewidth=0.8)
    axes.set(xlabel="time [s]", ylabel=f"requests/s in {width_s:.3g} s", ylim=(0, None))


def _draw_correlation(trace: Trace, axes: Any) -> None:
    seconds = counts(trace.arrival_s, 1.0)
    lags = [lag for lag in range(1, 61) if len(seconds) > 4 * lag]
    axes.bar(lags, [lag_correlation(seconds, lag) for lag in lags])
    axes.set(xlabel="lag [s]", ylabel="autocorrelation of arrivals in 1 s")


def _draw_gaps(trace: Trace, axes: Any) -> None:
    between = np.sort(np.diff(trace.arrival_s))
    left = 1 - np.arange(len(between)) / max(1, len(between))
    axes.step(between[between > 0], left[between > 0], where="post", label="trace")
    if len(between) and between.mean() > 0:
        axes.plot(between, np.exp(-between / between.mean()), "k:", label="Poisson")
        axes.set(xscale="log", yscale="log", ylim=(0.5 / len(between), 1.5))
        axes.legend(fontsize="small")
    axes.set(xlabel="gap between arrivals [s]", ylabel="share of gaps that are longer")


def _draw_prompt(trace: Trace, axes: Any) -> None:
    _draw_sizes(trace.prompt_tokens, "prompt", axes)


def _draw_output(trace: Trace, axes: Any) -> None:
    _draw_sizes(trace.output_tokens, "output", axes)


def _draw_sizes(sizes: Any, name: str, axes: Any) -> None:
    tokens = np.sort(sizes)
    axes.step(tokens, np.arange(1, len(tokens) + 1) / len(tokens), where="post")
    axes.set(xlabel=f"{name} tokens", ylabel="share of requests", xscale="log", ylim=(0, 1.01))


def _draw_both(trace: Trace, axes: Any) -> None:
    sizes = trace.prompt_tokens, trace.output_tokens
    axes.hexbin(*sizes, gridsize=40, bins="log", xscale="log", yscale="log", mincnt=1)
    axes.set(xlabel="prompt tokens", ylabel="output tokens")
