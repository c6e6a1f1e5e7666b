"""Fit the generator of `splitgym.trace.synth` to a trace: quantiles, some rates and probabilities, no row."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.errors import TraceError
from splitgym.trace.statistics import counts, dispersion, lag_correlation
from splitgym.trace.synth import HOUR_S, from_tables
from splitgym.trace.trace import Floats, Trace

CLUMP_GAP_S = 0.005  # nearer than Poisson arrivals within a second explain
SILENCE_S = 1.0  # a longer gap may be a silence ...
SILENT_SHARE = 0.2  # ... in a trace that is silent for this share of its time
LONG_GAPS = (
    10  # ... and in any trace a silence is so many times the mean gap, which Poisson arrivals never are
)
PROMPT_POINTS, OUTPUT_BINS, OUTPUT_POINTS, TIME_POINTS, CLUMP_POINTS = 257, 16, 65, 65, 33
LEAST_REQUESTS = 100
ROWS_A_NUMBER = 4  # a table has at most one number for so many rows
LEAST_MINUTES = 10  # fewer do not tell how a rate walks
TUNE_REQUESTS = 400_000


def fit(
    trace: Trace, name: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """The tables of a generator for a trace of the user's own.

    Args:
        trace: with at least 100 requests, not all at one time.
        name: of the generator, and of the traces that it makes.
        progress: called with (steps done, steps in all).

    Raises:
        TraceError: the trace is too short to fit.
    """
    if len(trace) < LEAST_REQUESTS or trace.duration_s <= 0:
        raise TraceError(
            f"trace {trace.name} has {len(trace)} requests in {trace.duration_s:g} s: a generator is fitted "
            f"to at least {LEAST_REQUESTS} that do not all arrive at once"
        )
    mean_gap_s = trace.duration_s / len(trace)
    silences = sorted({SILENCE_S, max(SILENCE_S, LONG_GAPS * mean_gap_s)})
    found: list[tuple[float, dict[str, Any]]] = []
    for done, silence_s in enumerate(silences):
        fitted = _fit(trace, name, silence_s)
        progress(2 * done + 1, 2 * len(silences))
        found.append((_distance(fitted, trace), fitted))
        progress(2 * done + 2, 2 * len(silences))
    return min(found, key=lambda pair: pair[0])[1]


def _fit(trace: Trace, name: str, silence_s: float) -> dict[str, Any]:
    fitted: dict[str, Any] = {
        "name": name,
        "fitted_to": {
            "name": f"a trace of {len(trace)} requests",
            "requests": len(trace),
            "duration_s": round(trace.duration_s, 3),
            "rate_per_s": float(f"{trace.rate_per_s:.6g}"),
        },
        "made_by": "splitgym trace synth",
        "arrivals": fit_arrivals(trace, silence_s),
        "sizes": fit_sizes(trace),
    }
    length_s = float(np.clip(TUNE_REQUESTS / trace.rate_per_s, trace.duration_s, 40 * HOUR_S))
    tune_minutes(fitted, trace, runs=10, rounds=2, length_s=min(HOUR_S, trace.duration_s))
    tune_rate(fitted, trace, length_s)
    return fitted


def _distance(fitted: dict[str, Any], trace: Trace) -> float:
    """How far the burstiness of synthetic traces is from the original's, on its worst time scale."""
    made = []
    for seed in range(3):
        with suppress(TraceError):  # nothing arrived
            made.append(from_tables(fitted, trace.duration_s, seed).arrival_s)
    worst = 0.0 if made else np.inf
    for width_s in (1, 10, 60):
        target = dispersion(trace.arrival_s, width_s)
        if trace.duration_s > 20 * width_s and target > 0 and made:
            middle = float(np.nanmedian([dispersion(arrival_s, width_s) for arrival_s in made]))
            worst = max(worst, abs(np.log(max(middle, 1e-9) / target)))
    return worst


def ranks(values: Any, points: int) -> list[float]:
    """Quantiles at evenly spaced ranks, four digits each."""
    found = np.quantile(np.asarray(values, np.float64), np.linspace(0, 1, points))
    return [float(f"{value:.4g}") for value in found]


def _points(rows: int, most: int, rows_a_number: int = ROWS_A_NUMBER) -> int:
    """Numbers in a table that is made of so many rows."""
    return int(np.clip(rows // rows_a_number, 2, most))


def fit_clumps(trace: Trace) -> tuple[float, list[float]]:
    """Probability that an arrival has a follower, and the gaps to it.

    The share of gaps under `CLUMP_GAP_S` beyond what Poisson arrivals at each second's own rate would have.
    """
    gaps = np.diff(trace.arrival_s)
    short = gaps[gaps < CLUMP_GAP_S]
    each = counts(trace.arrival_s, 1.0)
    if len(short) < 2 * ROWS_A_NUMBER or not each.any():
        return 0.0, [0.0, CLUMP_GAP_S]
    expected = float((each * (1 - np.exp(-each * CLUMP_GAP_S))).sum() / each.sum())
    share = max(0.0, (len(short) / len(gaps) - expected) / (1 - expected))
    # At 1 an arrival would be followed for ever.
    return min(share, 0.95), ranks(short, _points(len(short), CLUMP_POINTS))


def fit_spells(trace: Trace, silence_s: float = SILENCE_S) -> tuple[Floats, Floats] | None:
    """Lengths of active and silent spells; None for a trace that is hardly ever silent."""
    gaps = np.diff(trace.arrival_s)
    long = np.flatnonzero(gaps > silence_s)
    if len(long) < 2 * ROWS_A_NUMBER or gaps[long].sum() < SILENT_SHARE * trace.duration_s:
        return None
    opens = trace.arrival_s[np.concatenate([[0], long + 1])]
    closes = trace.arrival_s[np.concatenate([long, [len(gaps)]])]
    return closes - opens, gaps[long]


def deconvolve(found: NDArray[Any], noise: float) -> Floats:
    """Counts shrunk towards their mean by as much variance as Poisson arrivals (x noise) add."""
    mean, spread = float(found.mean()), float(found.var())
    shrink = max(0.0, 1 - noise * mean / spread) ** 0.5 if spread > 0 else 0.0
    return np.maximum(mean + shrink * (found - mean), 0.0)


def fit_arrivals(
    trace: Trace, silence_s: float = SILENCE_S, rows_a_number: int = ROWS_A_NUMBER
) -> dict[str, Any]:
    """Moments of counts, from milliseconds to minutes.

    Args:
        trace: to fit.
        silence_s: a longer gap may be a silence.
        rows_a_number: tables of spells have at most one number for so many.
    """
    probability, gaps = fit_clumps(trace)
    noise = (1 + probability) / (1 - probability)  # variance over mean of a Poisson process of such clumps
    fitted: dict[str, Any] = {"clump_probability": round(probability, 4), "clump_gap_s": gaps}
    spells = fit_spells(trace, silence_s)
    if spells is None:
        level = float(trace.rate_per_s * (1 - probability))
        return fitted | {
            "active_s": None,
            "silent_s": None,
            "level_per_s": [level, level],
            "level_hold": 0.0,
            **_fit_minutes(trace, noise),
        }
    active, silent = spells
    each = _seconds_of_spells(trace, active, silent)
    seconds = np.concatenate(each)
    fitted |= {
        "active_s": ranks(active, _points(len(active), TIME_POINTS, rows_a_number)),
        "silent_s": ranks(silent, _points(len(silent), TIME_POINTS, rows_a_number)),
        "minute_factor": [1.0, 1.0],
        "minute_step": 0.0,
    }
    if not seconds.any():  # each spell is shorter than a second: what it holds is its opening and its clump
        level = float(f"{trace.rate_per_s * (1 - probability):.4g}")
        return fitted | {"level_per_s": [level, level], "level_hold": 0.0}
    levels = deconvolve(seconds, noise) * (1 - probability)
    return fitted | {
        "level_per_s": ranks(levels, _points(len(levels), TIME_POINTS)),
        "level_hold": _hold(each, seconds, noise),
    }


def _fit_minutes(trace: Trace, noise: float) -> dict[str, Any]:
    """How the rate moves from minute to minute; constant where too few minutes tell."""
    minutes = counts(trace.arrival_s, 60.0)
    enough = len(minutes) >= LEAST_MINUTES and minutes.var() > 0
    spare = 1 - noise * minutes.mean() / minutes.var() if enough else 0.0
    if spare <= 0:
        return {"minute_factor": [1.0, 1.0], "minute_step": 0.0}
    # For a folded walk of steps up to s, the correlation decays about as exp(-pi^2 s^2 / 6) a minute.
    kept = float(np.clip(lag_correlation(minutes, 3) / spare, 0.01, 0.999))
    points = TIME_POINTS if len(minutes) >= TIME_POINTS else _points(len(minutes), TIME_POINTS)
    return {
        "minute_factor": ranks(deconvolve(minutes, noise) / minutes.mean(), points),
        "minute_step": round(float(np.sqrt(6 * -np.log(kept) / 3) / np.pi), 4),
    }


def _seconds_of_spells(trace: Trace, active: Floats, silent: Floats) -> list[NDArray[np.int64]]:
    """Arrivals in each whole second of each active spell."""
    each = []
    start = float(trace.arrival_s[0])
    for number, length in enumerate(active):
        inside = trace.arrival_s[(trace.arrival_s >= start) & (trace.arrival_s <= start + length)] - start
        each.append(np.bincount(inside.astype(np.int64), minlength=int(length) + 1)[: int(length)])
        start += float(length + (silent[number] if number < len(silent) else 0.0))
    return each


def _hold(each: list[NDArray[np.int64]], seconds: NDArray[np.int64], noise: float) -> float:
    """Probability that a second's rate is the one before it."""
    products = [(x[:-1] - seconds.mean()) * (x[1:] - seconds.mean()) for x in each if len(x) > 1]
    signal = float(seconds.var()) - noise * float(seconds.mean())
    if signal <= 0 or not products:
        return 0.0
    return round(float(np.clip(np.concatenate(products).mean() / signal, 0, 0.99)), 4)


def fit_sizes(trace: Trace) -> dict[str, Any]:
    """Quantiles of the prompts, and of the outputs in bins of equal numbers of requests, by prompt."""
    rows = len(trace)
    order = np.argsort(trace.prompt_tokens, kind="stable")
    number = int(np.clip(rows // (8 * ROWS_A_NUMBER), 1, OUTPUT_BINS))
    bins = np.array_split(trace.output_tokens[order], number)
    # Half of the numbers for the prompts, half for all bins of outputs.
    prompts = _points(rows // 2, PROMPT_POINTS)
    outputs = _points(rows // (2 * number), OUTPUT_POINTS)
    return {
        "prompt_tokens": ranks(trace.prompt_tokens, prompts),
        "output_tokens": [ranks(each, outputs) for each in bins],
    }


def tune_minutes(
    fitted: dict[str, Any], original: Trace, runs: int, rounds: int = 4, length_s: float = HOUR_S
) -> None:
    """Spread the minutes until the median of synthetic runs has the original's dispersion a minute.

    Neighbouring minutes are alike, so that one run shows less than the process's whole spread.
    """
    target = dispersion(original.arrival_s, 60)
    factors = np.array(fitted["arrivals"]["minute_factor"])
    for _ in range(rounds if fitted["arrivals"]["minute_step"] else 0):
        found = [dispersion(from_tables(fitted, length_s, seed).arrival_s, 60) for seed in range(runs)]
        middle = float(np.median(found))
        if middle <= 1 or target <= 1:
            return
        factors = 1 + (factors - 1) * ((target - 1) / (middle - 1)) ** 0.5
        fitted["arrivals"]["minute_factor"] = [float(f"{max(0.0, factor):.4g}") for factor in factors]


def tune_rate(fitted: dict[str, Any], original: Trace, length_s: float) -> None:
    """Scale the levels until long runs have the original's mean rate (openings and clumps add to it)."""
    for _ in range(3):
        long_run = from_tables(fitted, length_s, 1)
        scale = original.rate_per_s / long_run.rate_per_s
        levels = fitted["arrivals"]["level_per_s"]
        fitted["arrivals"]["level_per_s"] = [float(f"{level * scale:.4g}") for level in levels]


def as_json(fitted: dict[str, Any]) -> str:
    """Indented, but with each table of numbers on one line."""
    text = json.dumps(fitted, indent=1)
    numbers = re.compile(r"\[\s*(-?[\d.e+-]+(?:,\s*-?[\d.e+-]+)*)\s*\]")
    return numbers.sub(lambda found: "[" + re.sub(r",\s*", ", ", found[1]) + "]", text) + "\n"
