"""Fit the tables of the built-in generators (`splitgym/trace/synth.py`) to the Azure originals.

    python traces/fit.py [azure-code] [azure-conv]

(from a checkout with splitgym installed, as `make` does) finds or downloads the originals, writes
`traces/<name>-synth.json` and prints how near the generator comes. The tables are quantiles at evenly spaced
ranks and a few rates and probabilities: no row of an original is in them.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from splitgym.trace import load
from splitgym.trace.fitting import as_json, fit_arrivals, fit_sizes, tune_minutes, tune_rate
from splitgym.trace.sources import CITE, ORIGINALS
from splitgym.trace.statistics import dispersion, rank_correlation, two_sample
from splitgym.trace.synth import HOUR_S, from_tables
from splitgym.trace.trace import Trace

HERE = Path(__file__).resolve().parent
TUNE_HOURS = 200
SEEDS = 3000
HOURS = 200


def compare(synth: Trace, original: Trace) -> dict[str, float]:
    """Two-sample statistics: 0 (or a ratio of 1) is equal."""
    found = {
        "rate ratio": synth.rate_per_s / original.rate_per_s,
        "KS prompt": two_sample("", synth.prompt_tokens, original.prompt_tokens).ks,
        "KS output": two_sample("", synth.output_tokens, original.output_tokens).ks,
        "KS gaps": two_sample("", np.diff(synth.arrival_s), np.diff(original.arrival_s)).ks,
        "Spearman difference": rank_correlation(synth) - rank_correlation(original),
    }
    for width in (1, 10, 60):
        ratio = dispersion(synth.arrival_s, width) / dispersion(original.arrival_s, width)
        found[f"dispersion ratio {width} s"] = ratio
    return found


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
        "arrivals": fit_arrivals(original, rows_a_number=1),
        "sizes": fit_sizes(original),
    }
    tune_minutes(fitted, original, HOURS)
    tune_rate(fitted, original, TUNE_HOURS * HOUR_S)
    fitted["hour_seed"] = find_hour(fitted, original)
    return fitted


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
