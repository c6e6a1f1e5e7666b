"""Fit the tables of the built-in generators (`splitgym/trace/synth.py`) to the Azure originals.

    python traces/fit.py [azure-code] [azure-conv]

(from a checkout with splitgym installed, as `make` does) finds or downloads the originals, writes
`traces/<name>-synth.json` and prints how near the generator comes. The tables are quantiles at evenly spaced
ranks and a few rates and probabilities: no row of an original is in them.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp, spearmanr

from splitgym.trace import load
from splitgym.trace.sources import CITE, ORIGINALS
from splitgym.trace.synth import HOUR_S, from_tables
from splitgym.trace.trace import Floats, Trace

HERE = Path(__file__).resolve().parent
CLUMP_GAP_S = 0.005  # nearer than Poisson arrivals within a second explain
SILENCE_S = 1.0  # a longer gap may be a silence ...
SILENT_SHARE = 0.2  # ... in a trace that is silent for this share of its time
PROMPT_POINTS, OUTPUT_BINS, OUTPUT_POINTS, TIME_POINTS = 257, 16, 65, 65
TUNE_HOURS = 200
SEEDS = 3000
HOURS = 200


def ranks(values: Any, points: int) -> list[float]:
    """Quantiles at evenly spaced ranks, four digits each."""
    found = np.quantile(np.asarray(values, np.float64), np.linspace(0, 1, points))
    return [float(f"{value:.4g}") for value in found]


def counts(arrival_s: Floats, width_s: float) -> NDArray[np.int64]:
    """Arrivals in each whole bin of `width_s`."""
    bins = int(arrival_s[-1] // width_s)
    return np.bincount((arrival_s / width_s).astype(np.int64), minlength=bins + 1)[:bins]


def dispersion(arrival_s: Floats, width_s: float) -> float:
    """Index of dispersion of counts: variance over mean, 1 for a Poisson process."""
    found = counts(arrival_s, width_s)
    return float(found.var() / found.mean())


def lag_correlation(values: NDArray[Any], lag: int) -> float:
    centred = values - values.mean()
    return float((centred[:-lag] * centred[lag:]).mean() / centred.var())


def fit_clumps(trace: Trace) -> tuple[float, list[float]]:
    """Probability that an arrival has a follower, and the gaps to it.

    The share of gaps under `CLUMP_GAP_S` beyond what Poisson arrivals at each second's own rate would have.
    """
    gaps = np.diff(trace.arrival_s)
    short = gaps[gaps < CLUMP_GAP_S]
    each = counts(trace.arrival_s, 1.0)
    expected = float((each * (1 - np.exp(-each * CLUMP_GAP_S))).sum() / each.sum())
    return max(0.0, (len(short) / len(gaps) - expected) / (1 - expected)), ranks(short, 33)


def fit_spells(trace: Trace) -> tuple[Floats, Floats] | None:
    """Lengths of active and silent spells; None for a trace that is hardly ever silent."""
    gaps = np.diff(trace.arrival_s)
    long = np.flatnonzero(gaps > SILENCE_S)
    if gaps[long].sum() < SILENT_SHARE * trace.duration_s:
        return None
    opens = trace.arrival_s[np.concatenate([[0], long + 1])]
    closes = trace.arrival_s[np.concatenate([long, [len(gaps)]])]
    return closes - opens, gaps[long]


def deconvolve(found: NDArray[Any], noise: float) -> Floats:
    """Counts shrunk towards their mean by as much variance as Poisson arrivals (x noise) add."""
    mean, spread = float(found.mean()), float(found.var())
    shrink = max(0.0, 1 - noise * mean / spread) ** 0.5
    return np.maximum(mean + shrink * (found - mean), 0.0)


def fit_arrivals(trace: Trace) -> dict[str, Any]:
    """Moments of counts, from milliseconds to minutes."""
    probability, gaps = fit_clumps(trace)
    noise = (1 + probability) / (1 - probability)  # variance over mean of a Poisson process of such clumps
    fitted: dict[str, Any] = {"clump_probability": round(probability, 4), "clump_gap_s": gaps}
    spells = fit_spells(trace)
    if spells is None:
        minutes = counts(trace.arrival_s, 60.0)
        # For a folded walk of steps up to s, the correlation decays about as exp(-pi^2 s^2 / 6) a minute.
        decay = -np.log(lag_correlation(minutes, 3) / (1 - noise * minutes.mean() / minutes.var())) / 3
        level = float(trace.rate_per_s * (1 - probability))
        return fitted | {
            "active_s": None,
            "silent_s": None,
            "level_per_s": [level, level],
            "level_hold": 0.0,
            "minute_factor": ranks(deconvolve(minutes, noise) / minutes.mean(), TIME_POINTS),
            "minute_step": round(float(np.sqrt(6 * decay) / np.pi), 4),
        }
    active, silent = spells
    each = []
    start = float(trace.arrival_s[0])
    for number, length in enumerate(active):
        inside = trace.arrival_s[(trace.arrival_s >= start) & (trace.arrival_s <= start + length)] - start
        whole = np.bincount(inside.astype(np.int64), minlength=int(length) + 1)[: int(length)]
        each.append(whole)
        start += float(length + (silent[number] if number < len(silent) else 0.0))
    seconds = np.concatenate(each)
    levels = deconvolve(seconds, noise) * (1 - probability)
    lag_products = [(x[:-1] - seconds.mean()) * (x[1:] - seconds.mean()) for x in each if len(x) > 1]
    signal = float(seconds.var()) - noise * float(seconds.mean())
    return fitted | {
        "active_s": ranks(active, TIME_POINTS),
        "silent_s": ranks(silent, TIME_POINTS),
        "level_per_s": ranks(levels, TIME_POINTS),
        "level_hold": round(float(np.clip(np.concatenate(lag_products).mean() / signal, 0, 0.99)), 4),
        "minute_factor": [1.0, 1.0],
        "minute_step": 0.0,
    }


def fit_sizes(trace: Trace) -> dict[str, Any]:
    """Quantiles of the prompts, and of the outputs in bins of equal numbers of requests, by prompt."""
    order = np.argsort(trace.prompt_tokens, kind="stable")
    bins = np.array_split(trace.output_tokens[order], OUTPUT_BINS)
    return {
        "prompt_tokens": ranks(trace.prompt_tokens, PROMPT_POINTS),
        "output_tokens": [ranks(outputs, OUTPUT_POINTS) for outputs in bins],
    }


def compare(synth: Trace, original: Trace) -> dict[str, float]:
    """Two-sample statistics: 0 (or a ratio of 1) is equal."""

    def rank_correlation(trace: Trace) -> float:
        return float(spearmanr(trace.prompt_tokens, trace.output_tokens).statistic)

    found = {
        "rate ratio": synth.rate_per_s / original.rate_per_s,
        "KS prompt": float(ks_2samp(synth.prompt_tokens, original.prompt_tokens).statistic),
        "KS output": float(ks_2samp(synth.output_tokens, original.output_tokens).statistic),
        "KS gaps": float(ks_2samp(np.diff(synth.arrival_s), np.diff(original.arrival_s)).statistic),
        "Spearman difference": rank_correlation(synth) - rank_correlation(original),
    }
    for width in (1, 10, 60):
        ratio = dispersion(synth.arrival_s, width) / dispersion(original.arrival_s, width)
        found[f"dispersion ratio {width} s"] = ratio
    return found


def tune_minutes(fitted: dict[str, Any], original: Trace) -> None:
    """Spread the minutes until the median of synthetic hours has the original's dispersion a minute.

    Neighbouring minutes are alike, so that one hour shows less than the process's whole spread.
    """
    target = dispersion(original.arrival_s, 60)
    factors = np.array(fitted["arrivals"]["minute_factor"])
    for _ in range(4 if fitted["arrivals"]["minute_step"] else 0):
        hours = [from_tables(fitted, HOUR_S, seed) for seed in range(HOURS)]
        middle = float(np.median([dispersion(hour.arrival_s, 60) for hour in hours]))
        factors = 1 + (factors - 1) * ((target - 1) / (middle - 1)) ** 0.5
        fitted["arrivals"]["minute_factor"] = [float(f"{max(0.0, factor):.4g}") for factor in factors]


def tune_rate(fitted: dict[str, Any], original: Trace) -> None:
    """Scale the levels until long runs have the original's mean rate (openings and clumps add to it)."""
    for _ in range(3):
        long_run = from_tables(fitted, TUNE_HOURS * HOUR_S, 1)
        scale = original.rate_per_s / long_run.rate_per_s
        levels = fitted["arrivals"]["level_per_s"]
        fitted["arrivals"]["level_per_s"] = [float(f"{level * scale:.4g}") for level in levels]


def find_hour(fitted: dict[str, Any], original: Trace) -> int:
    """The seed whose hour is nearest to the original's in rate and dispersion."""

    def distance(seed: int) -> float:
        trace = from_tables(fitted, HOUR_S, seed)
        ratios = [trace.rate_per_s / original.rate_per_s] * 2
        ratios += [dispersion(trace.arrival_s, w) / dispersion(original.arrival_s, w) for w in (1, 10, 60)]
        return float(np.abs(np.log(ratios)).max())

    return min(range(SEEDS), key=distance)


def fit(name: str) -> dict[str, Any]:
    """All tables of one generator."""
    original = load(name)
    fitted: dict[str, Any] = {
        "name": f"{name}-synth",
        "fitted_to": {
            "name": name,
            "sha256": ORIGINALS[name].sha256,
            "requests": len(original),
            "duration_s": original.duration_s,
            "rate_per_s": round(original.rate_per_s, 4),
        },
        "licence": "CC-BY 4.0, derived from the Azure Public Dataset (Microsoft)",
        "cite": CITE,
        "made_by": "traces/fit.py",
        "hour_seed": 0,
        "arrivals": fit_arrivals(original),
        "sizes": fit_sizes(original),
    }
    tune_minutes(fitted, original)
    tune_rate(fitted, original)
    fitted["hour_seed"] = find_hour(fitted, original)
    return fitted


def as_json(fitted: dict[str, Any]) -> str:
    """Indented, but with each table of numbers on one line."""
    text = json.dumps(fitted, indent=1)
    numbers = re.compile(r"\[\s*(-?[\d.e+-]+(?:,\s*-?[\d.e+-]+)*)\s*\]")
    return numbers.sub(lambda found: "[" + re.sub(r",\s*", ", ", found[1]) + "]", text) + "\n"


def main(chosen: list[str]) -> None:
    for name in chosen or list(ORIGINALS):
        fitted = fit(name)
        path = HERE / f"{name}-synth.json"
        path.write_text(as_json(fitted))
        original = load(name)
        one = compare(from_tables(fitted, HOUR_S, fitted["hour_seed"]), original)
        many = [compare(from_tables(fitted, HOUR_S, seed), original) for seed in range(HOURS)]
        print(f"{path.name}: seed {fitted['hour_seed']} | 5 %, 50 %, 95 % of seeds 0 to {HOURS - 1}")
        for key, value in one.items():
            low, middle, high = np.quantile([each[key] for each in many], [0.05, 0.5, 0.95])
            print(f"  {key:24} {value:7.3f} | {low:7.3f} {middle:7.3f} {high:7.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
