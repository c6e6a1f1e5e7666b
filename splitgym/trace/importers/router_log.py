"""The router's decision log (docs/deploy.md) as a trace.

A log may hold several runs of the router: each began with a `start` line and counts `arrival_s` from its own
beginning, by a clock that never jumps; where it goes back, the router was started again. Runs are put one
after the other by the wall clock; where that clock was set back in between, a run follows right after the one
before it.
"""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from splitgym.errors import TraceError
from splitgym.trace.importers.collect import Clock, Collector, Imported, Place, Told
from splitgym.trace.importers.json_lines import objects

VERSION = 1
OUTCOMES = ("ok", "client_error", "server_error", "refused", "disconnected")
DRIFT_S = 1.0
"""The wall clock may move so much against the steady one before it is said."""
BACK_S = 1.0
"""Lines are written as requests end; one that ended so much earlier than those above is of another run."""
_OPENING = '{"v":'


@dataclass
class Run:
    """One run of the router."""

    start: dict[str, Any] | None
    """Its `start` line: servers, model, policy; None where the log begins later."""
    requests: list[tuple[Place, dict[str, Any]]] = field(default_factory=list)
    events: list[tuple[Place, dict[str, Any]]] = field(default_factory=list)
    latest_s: float = -math.inf
    """When its last request ended, by its own clock."""

    @property
    def began_unix_s(self) -> float:
        """Wall clock at `arrival_s` 0: the median over its requests, so that one jump does not move it."""
        return median(line["unix_s"] - line["arrival_s"] for _, line in self.requests)

    @property
    def drift_s(self) -> float:
        """How far the wall clock moved against the steady one during the run."""
        offsets = [line["unix_s"] - line["arrival_s"] for _, line in self.requests]
        return max(offsets) - min(offsets)


@dataclass
class RouterLog:
    """A decision log, read."""

    path: Path
    runs: list[Run]
    notes: list[str]

    @property
    def requests(self) -> list[tuple[Place, dict[str, Any]]]:
        """Of all runs, in the order of the file."""
        return [request for run in self.runs for request in run.requests]


def read_log(
    paths: Sequence[str | Path], *, skip_bad: bool = False, progress: Told | None = None
) -> RouterLog:
    """Read decision logs.

    Args:
        paths: files, oldest first (a rotated `decisions.jsonl.1` before `decisions.jsonl`).
        skip_bad: leave lines out that are no JSON object, instead of stopping.
        progress: called with the bytes read so far, of all files.

    Raises:
        TraceError: a file that is missing or no decision log; a line that is none of its lines; names it.
    """
    if not paths:
        raise TraceError("name at least one decision log")
    notes: list[str] = []
    runs: list[Run] = []
    before = 0
    for path in map(Path, paths):
        if not path.is_file():
            raise TraceError(f"{path}: no such decision log")
        tell = None if progress is None else partial(_told, progress, before)
        before += path.stat().st_size
        for place, line in objects(path, notes, skip_bad=skip_bad, mend=_after_a_crash, progress=tell):
            _check(place, line)
            if runs and _again(line, runs[-1].start):
                continue
            if line["event"] == "start" or not runs:
                runs.append(Run(line if line["event"] == "start" else None))
            if line["event"] == "request":
                back_s = runs[-1].latest_s - _end_s(line)
                if back_s > BACK_S:
                    notes.append(
                        f"{place.path}: line {place.line}: the router's clock goes back by {back_s:.6g} s: "
                        "taken as another run, whose start line is not there"
                    )
                    runs.append(Run(_old_start(runs[-1])))
                runs[-1].latest_s = max(runs[-1].latest_s, _end_s(line))
                runs[-1].requests.append((place, line))
            else:
                runs[-1].events.append((place, line))
    if not runs:
        raise TraceError(f"{Path(paths[0])}: the log is empty")
    return RouterLog(Path(paths[0]), runs, notes)


def _told(progress: Told, before: int, done: int) -> None:
    progress(before + done)


def from_log(
    paths: Sequence[str | Path],
    *,
    outcomes: Sequence[str] = ("ok",),
    skip_bad: bool = False,
    clock: Clock | None = None,
    name: str | None = None,
    progress: Told | None = None,
) -> Imported:
    """The requests of decision logs as a trace; `rows` count the requests of `read_log(paths).requests`.

    Args:
        paths, skip_bad, progress: see `read_log`.
        outcomes: which requests count; others have no output length, or not their own.
        clock: of the whole; gaps between runs are looked at, not those within.
        name: of the trace.

    Raises:
        TraceError: see `read_log`; or no request is left.
    """
    unknown = [word for word in outcomes if word not in OUTCOMES]
    if unknown:
        raise TraceError(f"outcome {unknown[0]!r}: expected {', '.join(OUTCOMES)}")
    log = read_log(paths, skip_bad=skip_bad, progress=progress)
    clock = clock or Clock()
    # Lines stand in the order in which requests ended; the steady clock needs no watching.
    out = Collector("router log", Clock(trust=True, scatter_s=clock.scatter_s, seed=clock.seed), log.notes)
    kept: list[int] = []
    number = -1
    estimated = 0
    for run, begins_s in zip(log.runs, _beginnings(log, clock)):
        for place, line in run.requests:
            number += 1
            outcome = line.get("outcome")
            if outcome not in outcomes:
                out.left_out[str(outcome)] += 1
                continue
            if not line.get("output_tokens"):
                out.left_out[f"{outcome}, no output counted"] += 1
                continue
            prompt = line.get("prompt_tokens")
            if prompt is None:
                prompt, estimated = line.get("estimated_prompt_tokens"), estimated + 1
            out.add(
                place, begins_s + line["arrival_s"], prompt, line["output_tokens"], line.get("max_tokens")
            )
            kept.append(number)
    if estimated:
        out.notes.append(f"{estimated} prompts were counted by no server: the router's estimates are taken")
    starts = [run.start for run in log.runs if run.start is not None]
    policies = sorted({str(start.get("policy")) for start in starts})
    found = out.build(log.path, name, runs=str(len(log.runs)), policies=", ".join(policies) or "unknown")
    return Imported(found.trace, found.notes, tuple(kept[row] for row in found.rows))


def _beginnings(log: RouterLog, clock: Clock) -> list[float]:
    """When each run began, on one time line."""
    found: list[float] = []
    end_s = 0.0
    shift_s = 0.0
    for number, run in enumerate(log.runs, 1):
        if not run.requests:
            found.append(end_s)
            continue
        place = run.requests[0][0]
        say_drift(log, number, run)
        begins_s = run.began_unix_s + shift_s
        first_s = begins_s + min(line["arrival_s"] for _, line in run.requests)
        if any(earlier.requests for earlier in log.runs[: number - 1]):
            if first_s < end_s and not clock.trust:
                log.notes.append(
                    f"{place.path}: line {place.line}: run {number} begins {end_s - first_s:.6g} s before "
                    "the one above it ended: the wall clock was set back; it is put right after that"
                )
                shift_s += end_s - first_s
                begins_s += end_s - first_s
            elif first_s > end_s + clock.gap_s and not clock.trust:
                raise place.error(
                    f"run {number} begins {(first_s - end_s) / 86400:.6g} days after the one above it ended: "
                    "give the runs apart, or --trust-clock takes it as it is"
                )
        end_s = max(end_s, begins_s + max(line["arrival_s"] for _, line in run.requests))
        found.append(begins_s)
    return found


def say_drift(log: RouterLog, number: int, run: Run) -> None:
    """A note where the wall clock moved within a run."""
    if run.requests and run.drift_s > DRIFT_S:
        log.notes.append(
            f"run {number}: the wall clock moved by {run.drift_s:.6g} s; the router's own clock is used"
        )


def _again(line: dict[str, Any], start: dict[str, Any] | None) -> bool:
    """The `start` line of a run that goes on: the router repeats it where it begins a new file."""
    began = line.get("began_unix_s")
    return line["event"] == "start" and began is not None and (start or {}).get("began_unix_s") == began


def _old_start(run: Run) -> dict[str, Any] | None:
    """What is known of the run after it: the servers are the same, it began at another time."""
    return None if run.start is None else {k: v for k, v in run.start.items() if k != "began_unix_s"}


def _end_s(line: dict[str, Any]) -> float:
    end_s = line.get("end_s", 0.0)
    return float(line["arrival_s"]) + (end_s if isinstance(end_s, int | float) and end_s == end_s else 0.0)


def _check(place: Place, line: dict[str, Any]) -> None:
    version = line.get("v")
    if "event" not in line or version is None:
        raise place.error("is no line of a decision log: it has no `v` and `event`")
    if version != VERSION:
        raise place.error(f"has version {version!r} of the decision log, this reader knows {VERSION}")
    if line["event"] != "request":
        return
    for name in ("unix_s", "arrival_s"):
        value = line.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise place.error(f"{name} is {value!r}, expected seconds")


def _after_a_crash(text: str) -> dict[str, Any] | None:
    """A router that was killed amid a line: the next run's first line stands behind the rest of it."""
    at = text.find(_OPENING, 1)
    while at > 0:
        with suppress(ValueError):
            found = json.loads(text[at:])
            if isinstance(found, dict) and "event" in found:
                return found
        at = text.find(_OPENING, at + 1)
    return None
