"""Which requests an episode has: a window of a part of a trace, as it was stamped or resampled."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from splitgym import trace as traces
from splitgym.errors import ConfigError, TraceError
from splitgym.trace import Trace

MACHINES_A_COPY = 8
"""Above this many machines, stamps are superposed: one copy of the part for each so many (DESIGN.md, 7)."""

_TRIES = 20


@runtime_checkable
class TraceSource(Protocol):
    """Anything that makes the trace of an episode."""

    def draw(self, rng: np.random.Generator) -> Trace:
        """A trace with at least one request, from time 0 on."""


@dataclass(frozen=True)
class Workload:
    """Draws the trace of one episode.

    Attributes:
        source: the part of a trace that is drawn from.
        rate_per_s: mean arrivals per second; a (low, high) range is drawn from uniformly, once an episode;
            None is the trace's own rate.
        arrivals: `poisson` resamples arrivals at the rate, sizes drawn from the source (the Splitwise paper's
            method); `stamps` takes a random window of the source itself, sped up to the rate.
        duration_s: of the window, warm-up included.
        copies: rotated copies superposed under `stamps`.
    """

    source: Trace
    rate_per_s: tuple[float, float] | None
    arrivals: str
    duration_s: float
    copies: int = 1

    def draw(self, rng: np.random.Generator) -> Trace:
        """A trace with at least one request, from time 0 on.

        Raises:
            ConfigError: no window with a request was found.
        """
        rate = self.source.rate_per_s * (self.copies if self.arrivals == "stamps" else 1)
        if self.rate_per_s is not None:
            low, high = self.rate_per_s
            rate = float(rng.uniform(low, high)) if high > low else low
        for _ in range(_TRIES):
            try:
                if self.arrivals == "poisson":
                    return traces.poisson(self.source, rate, self.duration_s, rng)
                return self._stamps(rate, rng)
            except TraceError:  # an empty window: draw another
                continue
        raise ConfigError(
            f"trace {self.source.name!r}: {_TRIES} windows of {self.duration_s} s at {rate:.3g} requests/s "
            "had no request; raise rate_per_s or episode_s"
        )

    def _stamps(self, rate: float, rng: np.random.Generator) -> Trace:
        source = self.source
        factor = rate / (source.rate_per_s * self.copies)
        length = self.duration_s * factor  # of the window, in the source's own time
        if length > source.duration_s:
            raise ConfigError(
                f"trace {source.name!r} lasts {source.duration_s / factor:.0f} s at {rate:.3g} requests/s, "
                f"shorter than a window of {self.duration_s:.0f} s: lower rate_per_s or episode_s"
            )
        if self.copies > 1:
            source = traces.superpose(source, self.copies, rng)
        start = float(rng.uniform(0.0, source.duration_s - length)) if source.duration_s > length else 0.0
        cut = traces.window(source, start, start + length)
        return cut if factor == 1.0 else traces.speed_up(cut, factor)


def make_workload(
    trace: Trace | TraceSource | str,
    part: str | None,
    rate_per_s: float | tuple[float, float] | None,
    arrivals: str,
    duration_s: float,
    num_machines: int,
) -> TraceSource:
    """Check the arguments and load the trace.

    Raises:
        ConfigError: an argument that cannot be used.
        TraceError: the trace cannot be loaded.
    """
    if arrivals not in ("poisson", "stamps"):
        raise ConfigError(f"arrivals is {arrivals!r}, expected 'poisson' or 'stamps'")
    if part not in ("train", "validation", "test", None):
        raise ConfigError(
            f"part is {part!r}, expected 'train', 'validation', 'test' or None (the whole trace)"
        )
    rates = rate_per_s
    if rates is not None:
        rates = _range(rates)
    if isinstance(trace, str):
        trace = traces.load(trace, download=False)
    elif isinstance(trace, TraceSource):
        return trace
    elif not isinstance(trace, Trace):
        raise ConfigError(f"trace is {trace!r}, expected a Trace, a name, a path or an object with draw")
    source = trace if part is None else traces.part(trace, part)  # type: ignore[arg-type]
    if len(source) == 0 or source.duration_s <= 0:
        raise ConfigError(
            f"trace {source.name!r} has no duration: it needs at least two requests apart in time"
        )
    copies = -(-num_machines // MACHINES_A_COPY)
    workload = Workload(source, rates, arrivals, duration_s, copies)
    if arrivals == "stamps":
        top = source.rate_per_s * copies if rates is None else rates[1]
        length = duration_s * (top / (source.rate_per_s * copies))
        if length > source.duration_s:
            raise ConfigError(
                f"trace {source.name!r} is shorter than a window of {duration_s:.0f} s "
                f"(warmup_s + episode_s) at {top:.3g} requests/s: lower rate_per_s or episode_s"
            )
    return workload


def _range(rate: float | tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (rate, rate) if isinstance(rate, (int, float)) else rate
        low, high = float(low), float(high)
    except (TypeError, ValueError):
        raise ConfigError(f"rate_per_s is {rate!r}, expected a number or a (low, high) pair") from None
    if not 0 < low <= high < np.inf:
        raise ConfigError(f"rate_per_s is {rate!r}, expected positive numbers, low <= high")
    return low, high
