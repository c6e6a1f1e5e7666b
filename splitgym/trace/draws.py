"""Seeds and Poisson times of what is drawn; what operations on traces check and write down alike.

Only uniform, integer and exponential draws and plain arithmetic are used, so one seed gives one trace on
every machine.
"""

import numpy as np

from splitgym.errors import TraceError
from splitgym.trace.trace import Floats

Seed = int | np.random.Generator

MAX_REQUESTS = 2**30
"""More would not fit the memory of most machines; most likely a unit is wrong."""


def say(seed: Seed) -> str:
    """A seed as provenance names it."""
    return "generator" if isinstance(seed, np.random.Generator) else repr(int(seed))


def generators(seed: Seed, count: int) -> list[np.random.Generator]:
    """Independent streams, so that a longer series of one kind of draw does not change another kind's."""
    if not isinstance(seed, np.random.Generator) and int(seed) < 0:
        raise TraceError(f"seed {seed} is negative: expected an integer of at least 0")
    parent = np.random.default_rng(seed)
    return [np.random.default_rng(int(s)) for s in parent.integers(2**63 - 1, size=count)]


def poisson_times(draw: np.random.Generator, rate_per_s: float, duration_s: float) -> Floats:
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


def check_positive(where: str, **values: float) -> None:
    """Refuse numbers that are not positive and finite.

    Raises:
        TraceError: names the first.
    """
    for key, value in values.items():
        if not 0 < value < np.inf:
            raise TraceError(f"{where}: {key} is {value}, expected a positive number")


def extended(provenance: dict[str, str], did: str) -> dict[str, str]:
    """A provenance with one operation more."""
    before = provenance.get("operations")
    return {**provenance, "operations": f"{before} | {did}" if before else did}
