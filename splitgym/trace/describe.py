"""What a trace is like, in a few numbers."""

from typing import Any

import numpy as np

from splitgym.trace.trace import Trace


def describe(trace: Trace) -> dict[str, Any]:
    """Length, rate, burstiness and token percentiles of a trace, and where it comes from.

    `per_minute_dispersion` is the variance of the arrivals a minute over their mean: 1 for Poisson arrivals.
    """
    counts = np.bincount((trace.arrival_s // 60).astype(np.int64))
    mean = float(counts.mean())
    found: dict[str, Any] = {
        "name": trace.name,
        "requests": len(trace),
        "duration_s": round(trace.duration_s, 3),
        "rate_per_s": round(len(trace) / trace.duration_s, 4) if trace.duration_s else None,
        "per_minute_dispersion": round(float(counts.var()) / mean, 3) if mean else None,
    }
    for name in ("prompt_tokens", "output_tokens"):
        tokens = getattr(trace, name)
        found[f"{name}_mean"] = round(float(tokens.mean()), 2)
        for p in (50, 90, 99):
            found[f"{name}_p{p}"] = round(float(np.percentile(tokens, p)), 1)
        found[f"{name}_max"] = int(tokens.max())
    return {**found, **trace.provenance}
