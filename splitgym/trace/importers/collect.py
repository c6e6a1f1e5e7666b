"""Requests found in a file, gathered into a trace: their sizes checked, their clock watched."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from splitgym.errors import TraceError
from splitgym.trace.draws import generators
from splitgym.trace.trace import MAX_REQUEST_TOKENS, Trace
from splitgym.types import UNKNOWN

DAY_S = 86400.0
TOLD_LINES = 1_000
"""Lines between two words on the progress."""
Told = Callable[[int], None]
"""Is told the bytes read so far."""


class Place(NamedTuple):
    """Where something stands."""

    path: Path
    line: int
    """Counted from 1."""

    def error(self, what: str) -> TraceError:
        """A refusal that names the place."""
        return TraceError(f"{self.path}: line {self.line}: {what}")


@dataclass(frozen=True)
class Clock:
    """What is believed of a file's times.

    Args:
        back_s: a line may be so much earlier than the latest above it; more means that the clock was set.
        gap_s: a line may be so much later than the latest above it.
        trust: believe all of it: sort by time and ask nothing.
        scatter_s: for stamps that were rounded down: each arrival is moved by a random time below this.
        seed: of that.
    """

    back_s: float = 0.0
    gap_s: float = 7 * DAY_S
    trust: bool = False
    scatter_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.scatter_s <= DAY_S:
            raise TraceError(f"scatter: {self.scatter_s} s is not from 0 to {DAY_S:.0f} seconds")


@dataclass(frozen=True)
class Imported:
    """A trace, and what its reader says about it."""

    trace: Trace
    notes: tuple[str, ...]
    """What was left out or mended, one sentence each."""
    rows: tuple[int, ...]
    """Of each request in the trace: which one it was in the order of the file, from 0."""


@dataclass
class Collector:
    """Takes requests one by one, in the file's order.

    Args:
        source: what the file is, for the provenance.
        clock: of its times.
    """

    source: str
    clock: Clock
    notes: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    _rows: list[tuple[float, int, int, int]] = field(default_factory=list)
    _latest_s: float | None = None

    def add(self, place: Place, time_s: float, prompt: Any, output: Any, limit: Any = None) -> None:
        """One request.

        Args:
            place: for errors.
            time_s: by any clock.
            prompt, output: tokens, at least 1.
            limit: the client's limit on the output; None where there is none.

        Raises:
            TraceError: a size that is none, or a clock that jumps.
        """
        self._watch(place, time_s)
        sizes = (tokens(place, "prompt tokens", prompt), tokens(place, "output tokens", output))
        bound = UNKNOWN if limit is None else tokens(place, "the limit on the output", limit)
        self._rows.append((time_s, *sizes, bound))

    def _watch(self, place: Place, time_s: float) -> None:
        latest, clock = self._latest_s, self.clock
        if not np.isfinite(time_s):
            raise place.error(f"its time is {time_s}, expected a finite number")
        if latest is not None and not clock.trust:
            if time_s < latest - clock.back_s:
                raise place.error(
                    f"its time is {latest - time_s:.6g} s before an earlier line's: the clock was set back "
                    "or the file is not in order; cut the file there, or --trust-clock sorts it by time"
                )
            if time_s > latest + clock.gap_s:
                raise place.error(
                    f"its time is {(time_s - latest) / DAY_S:.6g} days after the line above's: the clock was "
                    "set, or the log has a hole; cut the file there, or --trust-clock takes it as it is"
                )
        self._latest_s = time_s if latest is None else max(latest, time_s)

    def __len__(self) -> int:
        return len(self._rows)

    def build(self, path: Path, name: str | None = None, **about: str) -> Imported:
        """The trace, sorted by time, its first arrival at 0.

        Args:
            path: of the file, or of the first.
            name: of the trace; default the file's.
            about: more provenance.

        Raises:
            TraceError: nothing was found.
        """
        found = sum(self.left_out.values())
        for reason, count in self.left_out.most_common():
            self.notes.append(f"left out: {count} of {found + len(self._rows)} ({reason})")
        if not self._rows:
            why = f" ({'; '.join(self.notes)})" if self.notes else ""
            raise TraceError(f"{path}: no request to make a trace of{why}")
        columns = np.array(self._rows, np.float64).T
        times = columns[0]
        self._say_rounded(times)
        if self.clock.scatter_s:
            (draw,) = generators(self.clock.seed, 1)
            times = times + draw.random(len(times)) * self.clock.scatter_s
            about["operations"] = f"scatter({self.clock.scatter_s!r}, seed={self.clock.seed})"
        order = np.argsort(times, kind="stable")
        first_s = float(times[order[0]])
        prompt, output, limit = (column[order].astype(np.int64) for column in columns[1:])
        # Seconds since 1970 have no more than some 1e-7 s of precision left.
        arrival_s = np.round(times[order] - first_s, 6)
        provenance = {"file": path.name, "format": self.source, "first_arrival_s": f"{first_s:.6f}", **about}
        if self.notes:
            provenance["notes"] = "; ".join(self.notes)
        limits = limit if (limit != UNKNOWN).any() else None
        trace = Trace(arrival_s, prompt, output, limits, name or path.stem, provenance)
        return Imported(trace, tuple(self.notes), tuple(order.tolist()))

    def _say_rounded(self, times: Any) -> None:
        shared = len(times) - len(np.unique(times))
        if self.clock.scatter_s == 0 and shared and (times == np.floor(times)).all():
            self.notes.append(
                f"all times are whole seconds and {shared} of {len(times)} repeat an earlier one: "
                "--scatter 1 spreads them at random over their second"
            )


def tokens(place: Place, what: str, value: Any) -> int:
    """A count of tokens.

    Raises:
        TraceError: none, not whole, below 1, or beyond any model.
    """
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not whole or not 1 <= value <= MAX_REQUEST_TOKENS:
        raise place.error(f"{what}: {value!r}, expected an integer from 1 to {MAX_REQUEST_TOKENS}")
    return int(value)
