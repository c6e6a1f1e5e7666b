"""Two traces become one: sizes that move from one to the other, or both at the same time."""

import numpy as np
from numpy.typing import NDArray

from splitgym.errors import TraceError
from splitgym.trace.draws import Seed, check_positive, extended, generators, poisson_times, say
from splitgym.trace.trace import Floats, Ints, Trace
from splitgym.types import UNKNOWN


def shift_between(
    a: Trace,
    b: Trace,
    duration_s: float,
    period_s: float,
    rate_per_s: float | tuple[float, float],
    seed: Seed = 0,
    *,
    low: float = 0.0,
    high: float = 1.0,
) -> Trace:
    """Poisson arrivals whose sizes move from trace `a` to `b` and back.

    The share of `b` is a triangle wave: `low` at time 0, `high` after half a period, `low` after a period.

    Args:
        a: sizes for the share 1 - w(t).
        b: sizes for the share w(t).
        duration_s: arrivals lie in [0, duration_s).
        period_s: seconds of one wave.
        rate_per_s: total rate; or a pair (rate if all were a, rate if all were b): `a` then arrives at
            (1 - w) x its rate and `b` at w x its own.
        seed: integer or generator.
        low: smallest share of b, in [0, 1].
        high: largest share of b, in [low, 1].

    Raises:
        TraceError: an argument out of range, or nothing arrives.
    """
    rate_a, rate_b = rate_per_s if isinstance(rate_per_s, tuple) else (rate_per_s, rate_per_s)
    check_positive("shift_between", duration_s=duration_s, period_s=period_s, rate_a=rate_a, rate_b=rate_b)
    if not 0 <= low <= high <= 1:
        raise TraceError(f"shift_between: needs 0 <= low <= high <= 1, got low {low} and high {high}")
    stamps, which, sizes_a, sizes_b = generators(seed, 4)
    # Thinning of a Poisson process at the larger rate: the first w rb / top of the draws become b, the next
    # (1 - w) ra / top become a, the rest are no arrivals.
    top = max(rate_a, rate_b)
    times = poisson_times(stamps, top, duration_s)
    phase = times / period_s
    phase -= np.floor(phase)
    share = low + (high - low) * (1.0 - np.abs(2.0 * phase - 1.0))
    draw = which.random(len(times)) * top
    is_b = draw < share * rate_b
    kept = draw < share * rate_b + (1.0 - share) * rate_a
    if rate_a == rate_b:  # then nothing is thinned, whatever the rounding of the sum
        kept[:] = True
    rows_a = sizes_a.integers(len(a), size=len(times))
    rows_b = sizes_b.integers(len(b), size=len(times))
    times, is_b, rows_a, rows_b = times[kept], is_b[kept], rows_a[kept], rows_b[kept]
    if len(times) == 0:
        raise TraceError(
            f"shift_between at {rate_per_s}/s: no request arrives in {duration_s} s; make it longer"
        )
    did = (
        f"shift_between(a, b, duration_s={duration_s!r}, period_s={period_s!r}, rate_per_s={rate_per_s!r}, "
        f"seed={say(seed)}, low={low!r}, high={high!r})"
    )
    return _join(a, b, did, times, is_b, np.where(is_b, rows_b, rows_a), f"{a.name}~{b.name}")


def mix(a: Trace, b: Trace, fraction_b: float, seed: Seed = 0) -> Trace:
    """Two traces at the same time, with real stamps: `fraction_b` of the requests come from `b`.

    Over the duration that both have, as many requests as possible are kept; of the trace that has too many
    for the fraction, a random subset of exactly the right size. (Poisson: `poisson(mix(...), ...)`.)

    Raises:
        TraceError: a fraction outside [0, 1], or nothing is left.
    """
    if not 0 <= fraction_b <= 1:
        raise TraceError(f"mix: fraction_b is {fraction_b}, expected a number from 0 to 1")
    end_s = min(a.duration_s, b.duration_s)
    num_a = int(np.searchsorted(a.arrival_s, end_s, "right"))
    num_b = int(np.searchsorted(b.arrival_s, end_s, "right"))
    total = min(
        num_a / (1 - fraction_b) if fraction_b < 1 else np.inf,
        num_b / fraction_b if fraction_b > 0 else np.inf,
    )
    keep_b = min(num_b, round(total * fraction_b))
    keep_a = min(num_a, round(total * (1 - fraction_b)))
    if keep_a + keep_b == 0:
        raise TraceError(f"mix of {a.name} and {b.name}: no request arrives in the {end_s} s that both have")
    draw_a, draw_b = generators(seed, 2)
    rows_a = np.sort(draw_a.permutation(num_a)[:keep_a])
    rows_b = np.sort(draw_b.permutation(num_b)[:keep_b])
    times = np.concatenate([a.arrival_s[rows_a], b.arrival_s[rows_b]])
    order = np.argsort(times, kind="stable")
    is_b = (np.arange(len(times)) >= keep_a)[order]
    rows = np.concatenate([rows_a, rows_b])[order]
    did = f"mix(a, b, fraction_b={fraction_b!r}, seed={say(seed)})"
    return _join(a, b, did, times[order], is_b, rows, f"{a.name}+{b.name}")


def _join(
    a: Trace, b: Trace, did: str, times: Floats, is_b: NDArray[np.bool_], rows: Ints, name: str
) -> Trace:
    def pick(from_a: Ints, from_b: Ints) -> Ints:
        out = np.empty(len(rows), np.int64)
        out[is_b] = from_b[rows[is_b]]
        out[~is_b] = from_a[rows[~is_b]]
        return out

    limits = None
    if a.max_tokens is not None or b.max_tokens is not None:
        limits = pick(_limits(a), _limits(b))
    provenance = {f"a.{key}": value for key, value in {"name": a.name, **a.provenance}.items()}
    provenance |= {f"b.{key}": value for key, value in {"name": b.name, **b.provenance}.items()}
    return Trace(
        times,
        pick(a.prompt_tokens, b.prompt_tokens),
        pick(a.output_tokens, b.output_tokens),
        limits,
        name,
        extended(provenance, did),
    )


def _limits(trace: Trace) -> Ints:
    return np.full(len(trace), UNKNOWN, np.int64) if trace.max_tokens is None else trace.max_tokens
