"""Operations on traces. Each returns a new trace whose provenance says what was done.

Randomness comes from `seed`: an integer, or a `numpy.random.Generator` that is drawn from. Only uniform,
integer and exponential draws and plain arithmetic are used, so one seed gives one trace on every machine
(`predict_outputs`, which is for studies, draws normal errors).
"""

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splitgym.errors import TraceError
from splitgym.trace.trace import Floats, Ints, Trace
from splitgym.types import UNKNOWN

Seed = int | np.random.Generator
Part = Literal["train", "validation", "test"]

MAX_REQUESTS = 2**30
"""More would not fit the memory of most machines; most likely a unit is wrong."""

PARTS: dict[str, tuple[float, float | None]] = {
    "train": (0.0, 0.5),
    "validation": (0.5, 0.7),
    "test": (0.7, None),
}
"""Fractions of a trace's duration (DESIGN.md, section 5)."""


def window(trace: Trace, start_s: float, end_s: float | None = None, *, keep_time: bool = False) -> Trace:
    """The requests that arrive in [start_s, end_s), with `start_s` as the new time 0.

    Args:
        trace: any trace.
        start_s: seconds.
        end_s: seconds; None is the end of the trace, its last request included.
        keep_time: leave the arrival times as they are.

    Raises:
        TraceError: the window is no window, or no request arrives in it.
    """
    if not (0 <= start_s < np.inf) or not (end_s is None or end_s > start_s):
        raise TraceError(f"window [{start_s}, {end_s}) s of trace {trace.name}: needs 0 <= start < end")
    first = int(np.searchsorted(trace.arrival_s, start_s, "left"))
    last = len(trace) if end_s is None else int(np.searchsorted(trace.arrival_s, end_s, "left"))
    if first == last:
        raise TraceError(
            f"window [{start_s}, {end_s}) s of trace {trace.name} holds no request: "
            f"the trace has requests from {float(trace.arrival_s[0])} to {trace.duration_s} s"
        )
    rows = slice(first, last)
    times = trace.arrival_s[rows] if keep_time else trace.arrival_s[rows] - start_s
    kept = ", keep_time" if keep_time else ""
    return _derive(trace, f"window({start_s!r}, {end_s!r}{kept})", times, rows)


def speed_up(trace: Trace, factor: float) -> Trace:
    """All arrival times divided by `factor`: another rate, the same burstiness.

    Raises:
        TraceError: the factor is not a positive finite number.
    """
    _positive("speed_up", factor=factor)
    return _derive(trace, f"speed_up({factor!r})", trace.arrival_s / factor, slice(None))


def at_rate(trace: Trace, rate_per_s: float) -> Trace:
    """`speed_up` to a mean rate of `rate_per_s` (requests divided by `duration_s`).

    Raises:
        TraceError: the rate is not positive, or all requests arrive at time 0.
    """
    _positive("at_rate", rate_per_s=rate_per_s)
    if trace.duration_s <= 0:
        raise TraceError(f"trace {trace.name} has no rate to change: all requests arrive at 0 s")
    factor = rate_per_s / trace.rate_per_s
    return _derive(trace, f"at_rate({rate_per_s!r})", trace.arrival_s / factor, slice(None))


def stretch_outputs(trace: Trace, factor: float) -> Trace:
    """All outputs `factor` times as long, at least 1 token: users or a model that have changed.

    Raises:
        TraceError: the factor is not a positive finite number.
    """
    _positive("stretch_outputs", factor=factor)
    made = _derive(trace, f"stretch_outputs({factor!r})", trace.arrival_s, slice(None))
    outputs = np.maximum(1, np.rint(trace.output_tokens * factor)).astype(np.int64)
    return replace(made, output_tokens=outputs)


def predict_outputs(trace: Trace, sigma: float, seed: Seed = 0) -> Trace:
    """A predictor of output lengths in front of the router: its prediction is in `max_tokens`.

    A prediction is the true length times exp(sigma z), z standard normal, rounded, at least 1. Schedulers
    take a `max_tokens` below their own estimate for the estimate; above it, it tells them nothing. They are
    made from what is to come, so such a trace is for studies of what a predictor would be worth only.

    Args:
        trace: whose `max_tokens` are replaced.
        sigma: the stated error, 0 for a perfect predictor. About 68 % of predictions are within a factor
            exp(sigma).
        seed: of the errors.

    Raises:
        TraceError: a negative or infinite error.
    """
    if not 0 <= sigma < np.inf:
        raise TraceError(f"predict_outputs: sigma is {sigma}, expected a number of at least 0")
    (draw,) = generators(seed, 1)
    errors = np.exp(sigma * draw.standard_normal(len(trace)))
    predicted = np.maximum(1, np.rint(trace.output_tokens * errors)).astype(np.int64)
    made = _derive(trace, f"predict_outputs({sigma!r}, {say(seed)})", trace.arrival_s, slice(None))
    return replace(made, max_tokens=predicted)


def poisson(trace: Trace, rate_per_s: float, duration_s: float, seed: Seed = 0) -> Trace:
    """Poisson arrivals with sizes drawn from the trace: the method of the Splitwise paper.

    A row (prompt, output, max_tokens) is drawn whole, with replacement. A longer duration with the same
    integer seed begins with the same requests.

    Args:
        trace: where the sizes come from; `poisson(part(trace, "train"), ...)` draws from that part only.
        rate_per_s: mean arrivals per second.
        duration_s: arrivals lie in [0, duration_s).
        seed: integer or generator.

    Raises:
        TraceError: a rate or duration that is not positive, or so short that nothing arrives.
    """
    _positive("poisson", rate_per_s=rate_per_s, duration_s=duration_s)
    stamps, sizes = generators(seed, 2)
    times = _poisson_times(stamps, rate_per_s, duration_s)
    if len(times) == 0:
        raise TraceError(f"poisson at {rate_per_s}/s for {duration_s} s: no request arrives; make it longer")
    rows = sizes.integers(len(trace), size=len(times))
    did = f"poisson(rate_per_s={rate_per_s!r}, duration_s={duration_s!r}, seed={say(seed)})"
    return _derive(trace, did, times, rows)


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
    _positive("shift_between", duration_s=duration_s, period_s=period_s, rate_a=rate_a, rate_b=rate_b)
    if not 0 <= low <= high <= 1:
        raise TraceError(f"shift_between: needs 0 <= low <= high <= 1, got low {low} and high {high}")
    stamps, which, sizes_a, sizes_b = generators(seed, 4)
    # Thinning of a Poisson process at the larger rate: the first w rb / top of the draws become b, the next
    # (1 - w) ra / top become a, the rest are no arrivals.
    top = max(rate_a, rate_b)
    times = _poisson_times(stamps, top, duration_s)
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


def superpose(trace: Trace, copies: int, seed: Seed = 0) -> Trace:
    """`copies` of the trace at once, each rotated by its own random offset (DESIGN.md, section 7).

    Copy j's request at t arrives at (t + offset_j) modulo the trace's duration: `copies` times the rate, with
    the burstiness of as many independent sources.

    Raises:
        TraceError: fewer than one copy.
    """
    if isinstance(copies, bool) or not isinstance(copies, (int, np.integer)) or copies < 1:
        raise TraceError(f"superpose: copies is {copies!r}, expected an integer of at least 1")
    (draw,) = generators(seed, 1)
    offsets = draw.random(int(copies)) * trace.duration_s
    times = (trace.arrival_s[None, :] + offsets[:, None]).ravel()
    if trace.duration_s > 0:
        times = np.where(times >= trace.duration_s, times - trace.duration_s, times)
    rows = np.tile(np.arange(len(trace)), int(copies))
    order = np.argsort(times, kind="stable")
    return _derive(trace, f"superpose(copies={copies}, seed={say(seed)})", times[order], rows[order])


def part(trace: Trace, which: Part) -> Trace:
    """The train (first 50 % by time), validation (next 20 %) or test (last 30 %) part, as a `window`.

    Every request is in exactly one part. Take the part first and transform it after: then neither stamps nor
    lengths of one part reach another.

    Raises:
        TraceError: no such part, or no request arrives in it.
    """
    if which not in PARTS:
        raise TraceError(f"part {which!r} of trace {trace.name}: expected train, validation or test")
    if trace.duration_s < 1e-6:
        raise TraceError(
            f"trace {trace.name} has no duration to divide into parts: all requests arrive at once"
        )
    start, end = PARTS[which]
    cut = window(trace, start * trace.duration_s, None if end is None else end * trace.duration_s)
    return Trace(
        cut.arrival_s, cut.prompt_tokens, cut.output_tokens, cut.max_tokens, f"{trace.name}/{which}",
        _extend(trace.provenance, f"part({which})"),
    )  # fmt: skip


def _derive(trace: Trace, did: str, times: Floats, rows: slice | NDArray[np.int64]) -> Trace:
    limits = None if trace.max_tokens is None else trace.max_tokens[rows]
    return Trace(
        times,
        trace.prompt_tokens[rows],
        trace.output_tokens[rows],
        limits,
        trace.name,
        _extend(trace.provenance, did),
    )


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
        _extend(provenance, did),
    )


def _limits(trace: Trace) -> Ints:
    return np.full(len(trace), UNKNOWN, np.int64) if trace.max_tokens is None else trace.max_tokens


def _extend(provenance: dict[str, str], did: str) -> dict[str, str]:
    before = provenance.get("operations")
    return {**provenance, "operations": f"{before} | {did}" if before else did}


def _positive(where: str, **values: float) -> None:
    for key, value in values.items():
        if not 0 < value < np.inf:
            raise TraceError(f"{where}: {key} is {value}, expected a positive number")


def say(seed: Seed) -> str:
    """A seed as provenance names it."""
    return "generator" if isinstance(seed, np.random.Generator) else repr(int(seed))


def generators(seed: Seed, count: int) -> list[np.random.Generator]:
    """Independent streams, so that a longer series of one kind of draw does not change another kind's."""
    if not isinstance(seed, np.random.Generator) and int(seed) < 0:
        raise TraceError(f"seed {seed} is negative: expected an integer of at least 0")
    parent = np.random.default_rng(seed)
    return [np.random.default_rng(int(s)) for s in parent.integers(2**63 - 1, size=count)]


def _poisson_times(draw: np.random.Generator, rate_per_s: float, duration_s: float) -> Floats:
    """Arrivals of a Poisson process in [0, duration_s)."""
    if rate_per_s * duration_s > MAX_REQUESTS:
        raise TraceError(
            f"{rate_per_s} requests/s for {duration_s} s is over {MAX_REQUESTS} requests: too many"
        )
    block = 4096  # fixed, so that a longer duration continues the same sums
    chunks, now = [], 0.0
    while now < duration_s:
        times = now + np.cumsum(draw.exponential(size=block) / rate_per_s)
        chunks.append(times)
        now = float(times[-1])
    times = np.concatenate(chunks)
    return times[: int(np.searchsorted(times, duration_s, "left"))]
