"""A trace: what arrives, when, and how large it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitgym.errors import TraceError
from splitgym.types import NS_PER_S, UNKNOWN

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_ARRIVAL_S = float(2**62 // NS_PER_S)
"""Simulated time is int64 nanoseconds; half of its range is left for the run itself."""
MAX_REQUEST_TOKENS = 2**31 - 1
"""Larger counts are a damaged file, and their KV bytes would overflow int64."""


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in order of arrival, as arrays. Construction validates; the arrays are read-only views.

    Args:
        arrival_s: (N,) seconds since the trace's start, finite, >= 0, not decreasing.
        prompt_tokens: (N,) integers >= 1.
        output_tokens: (N,) integers >= 1.
        max_tokens: (N,) the client's limit on the output, integers >= 1, or `UNKNOWN` (-1) where the client
            gave none; None when no request has one.
        name: what tables and plots call it.
        provenance: where it comes from and what was done to it, as text.

    Raises:
        TraceError: no rows, another shape, or a row that breaks a rule above; names the row.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    max_tokens: Ints | None = None
    name: str = "trace"
    provenance: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns: dict[str, NDArray[Any]] = {
            "arrival_s": _numbers(self.arrival_s, self.name, "arrival_s"),
            "prompt_tokens": _numbers(self.prompt_tokens, self.name, "prompt_tokens"),
            "output_tokens": _numbers(self.output_tokens, self.name, "output_tokens"),
        }
        if self.max_tokens is not None:
            columns["max_tokens"] = _numbers(self.max_tokens, self.name, "max_tokens")
        sizes = {len(column) for column in columns.values()}
        if len(sizes) > 1:
            lengths = ", ".join(f"{key} {len(column)}" for key, column in columns.items())
            raise TraceError(f"trace {self.name}: the columns differ in length ({lengths})")
        if sizes == {0}:
            raise TraceError(f"trace {self.name} has no requests: a trace needs at least one row")
        problem = find_problem(columns)
        if problem is not None:
            raise TraceError(f"trace {self.name}: row {problem[0]} (counted from 0): {problem[1]}")
        for key, column in columns.items():
            kind = np.float64 if key == "arrival_s" else np.int64
            view = column.astype(kind, copy=False).view()
            view.flags.writeable = False
            object.__setattr__(self, key, view)
        object.__setattr__(self, "provenance", {str(k): str(v) for k, v in self.provenance.items()})

    def __len__(self) -> int:
        return len(self.arrival_s)

    def __repr__(self) -> str:
        return f"Trace({self.name!r}, {len(self)} requests in {self.duration_s:.1f} s)"

    @property
    def duration_s(self) -> float:
        """Time of the last arrival: seconds from the trace's start."""
        return float(self.arrival_s[-1])

    @property
    def rate_per_s(self) -> float:
        """Requests per second, over `duration_s`; infinite when all arrive at time 0."""
        return len(self) / self.duration_s if self.duration_s > 0 else float("inf")

    def equals(self, other: "Trace") -> bool:
        """Whether all columns, the name and the provenance are the same."""
        return (
            self.name == other.name
            and self.provenance == other.provenance
            and np.array_equal(self.arrival_s, other.arrival_s)
            and np.array_equal(self.prompt_tokens, other.prompt_tokens)
            and np.array_equal(self.output_tokens, other.output_tokens)
            and (self.max_tokens is None) == (other.max_tokens is None)
            and (
                self.max_tokens is None
                or other.max_tokens is None
                or np.array_equal(self.max_tokens, other.max_tokens)
            )
        )


def _numbers(values: ArrayLike, name: str, column: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise TraceError(f"trace {name}: {column} has shape {array.shape}, expected one dimension")
    if array.size == 0:
        return array.astype(np.float64)
    if array.dtype.kind not in "iuf":
        raise TraceError(f"trace {name}: {column} holds {array.dtype} values, expected numbers")
    return array


def find_problem(columns: Mapping[str, NDArray[Any]], after_s: float = 0.0) -> tuple[int, str] | None:
    """The first row that breaks a rule of `Trace`, and what is wrong with it.

    Args:
        columns: `arrival_s`, `prompt_tokens`, `output_tokens` and perhaps `max_tokens`, of equal length and
            any real dtype (so that 1.5 tokens are found before a cast hides them).
        after_s: arrival of the row above the first, for a check block by block.

    Returns:
        (row counted from 0, what is wrong), or None.
    """
    found = [_arrival_problem(columns["arrival_s"], after_s)]
    for key in ("prompt_tokens", "output_tokens", "max_tokens"):
        if key in columns:
            found.append(_token_problem(key, columns[key], unknown=key == "max_tokens"))
    problems = [item for item in found if item is not None]
    return min(problems, key=lambda item: item[0]) if problems else None


def _first(mask: NDArray[np.bool_]) -> int | None:
    row = int(np.argmax(mask))
    return row if mask[row] else None


def _arrival_problem(times: NDArray[Any], after_s: float) -> tuple[int, str] | None:
    # One comparison covers NaN, infinity and the range; most traces end here.
    row = _first(~((times >= 0) & (times <= MAX_ARRIVAL_S)))
    early = 0 if 0 <= times[0] < after_s else _later(times)
    if early is not None and (row is None or early < row):
        now, above = float(times[early]), after_s if early == 0 else float(times[early - 1])
        return early, f"arrives at {now!r} s, before the row above ({above!r} s): sort the trace by time"
    if row is None:
        return None
    value = float(times[row])
    if not np.isfinite(value):
        return row, f"arrival time is {value}, expected a finite number of seconds"
    if value < 0:
        return row, f"arrival time {value!r} s is negative"
    return row, f"arrival time {value!r} s is over {MAX_ARRIVAL_S:.0f}: are these seconds?"


def _later(times: NDArray[Any]) -> int | None:
    if len(times) < 2:
        return None
    row = _first(times[1:] < times[:-1])
    return None if row is None else row + 1


def _token_problem(key: str, tokens: NDArray[Any], unknown: bool) -> tuple[int, str] | None:
    good = (tokens >= 1) & (tokens <= MAX_REQUEST_TOKENS)
    if unknown:
        good |= tokens == UNKNOWN
    if tokens.dtype.kind == "f":
        good &= tokens == np.floor(tokens)
    row = _first(~good)
    if row is None:
        return None
    value = tokens[row].item()
    or_unknown = f", or {UNKNOWN} for unknown" if unknown else ""
    return row, f"{key} is {value}, expected an integer from 1 to {MAX_REQUEST_TOKENS}{or_unknown}"
