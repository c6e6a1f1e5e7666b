"""Operations on one trace (on two: `blends`). Each returns a new trace whose provenance says what was done.

Randomness comes from `seed`: an integer, or a `numpy.random.Generator` that is drawn from. Only uniform,
integer and exponential draws and plain arithmetic are used, so one seed gives one trace on every machine
(`predict_outputs`, which is for studies, draws normal errors).
"""

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splitgym.errors import TraceError
from splitgym.trace.draws import Seed, check_positive, extended, generators, poisson_times, say
from splitgym.trace.trace import Floats, Trace

Part = Literal["train", "validation", "test"]


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
    check_positive("speed_up", factor=factor)
    return _derive(trace, f"speed_up({factor!r})", trace.arrival_s / factor, slice(None))


def at_rate(trace: Trace, rate_per_s: float) -> Trace:
    """`speed_up` to a mean rate of `rate_per_s` (requests divided by `duration_s`).

    Raises:
        TraceError: the rate is not positive, or all requests arrive at time 0.
    """
    check_positive("at_rate", rate_per_s=rate_per_s)
    if trace.duration_s <= 0:
        raise TraceError(f"trace {trace.name} has no rate to change: all requests arrive at 0 s")
    factor = rate_per_s / trace.rate_per_s
    return _derive(trace, f"at_rate({rate_per_s!r})", trace.arrival_s / factor, slice(None))


def stretch_outputs(trace: Trace, factor: float) -> Trace:
    """All outputs `factor` times as long, at least 1 token: users or a model that have changed.

    Raises:
        TraceError: the factor is not a positive finite number.
    """
    check_positive("stretch_outputs", factor=factor)
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
    check_positive("poisson", rate_per_s=rate_per_s, duration_s=duration_s)
    stamps, sizes = generators(seed, 2)
    times = poisson_times(stamps, rate_per_s, duration_s)
    if len(times) == 0:
        raise TraceError(f"poisson at {rate_per_s}/s for {duration_s} s: no request arrives; make it longer")
    rows = sizes.integers(len(trace), size=len(times))
    did = f"poisson(rate_per_s={rate_per_s!r}, duration_s={duration_s!r}, seed={say(seed)})"
    return _derive(trace, did, times, rows)


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
        extended(trace.provenance, f"part({which})"),
    )  # fmt: skip


def _derive(trace: Trace, did: str, times: Floats, rows: slice | NDArray[np.int64]) -> Trace:
    limits = None if trace.max_tokens is None else trace.max_tokens[rows]
    return Trace(
        times,
        trace.prompt_tokens[rows],
        trace.output_tokens[rows],
        limits,
        trace.name,
        extended(trace.provenance, did),
    )
