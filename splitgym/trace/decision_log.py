"""Read a router's decision log (docs/deploy.md), also one that a crash, a full disk or a clock has hurt.

A log holds one or several runs of the router, each with a clock of its own: `arrival_s` counts from its start
and never goes back; the wall clock may. Lines are in the order in which requests ended.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from splitgym.errors import TraceError

LOG_VERSION = 1
OUTCOMES = ("ok", "refused", "client_error", "server_error", "disconnected", "open")
MARKERS = ("start", "stop", "policy", "role", "server", "shadow")
"""Events that are no request."""

MOST_DAMAGED = 0.01
"""Share of lines (but at least 3) that may be damaged before the file is refused."""
CLOCK_JUMP_S = 2.0
"""The wall clock against the router's own: from here on it is worth a note."""
_BACKWARD_S = 1.0
"""Ends are logged as they come; one that lies further back belongs to another run of the router."""
_NOTED = 5


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request. Times are seconds; those of the answer count from the arrival."""

    line: int
    """In the file, from 1."""
    arrival_s: float
    """By the clock of the router's run."""
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None
    outcome: str
    stream: bool
    first_byte_s: float | None
    end_s: float
    decided_s: float
    """When the last attempt got its servers."""
    prompt_s: float | None
    """When the prompt server of the last attempt had answered; None where the request was not split."""
    prompt_server: str | None
    token_server: str | None
    """Of the last attempt; None where none was made."""
    attempts: int

    @property
    def split(self) -> bool:
        """Two servers."""
        return self.prompt_server != self.token_server


@dataclass
class LoggedRun:
    """One run of the router: from its start to its end, or to the end of the file."""

    header: Mapping[str, Any]
    """Its `start` line; empty where the log does not have it."""
    requests: list[LoggedRequest] = field(default_factory=list)
    """In order of arrival."""
    events: list[Mapping[str, Any]] = field(default_factory=list)
    """Other lines: policies, roles, servers."""

    @property
    def servers(self) -> tuple[str, ...]:
        """Names of the servers, in the order of the router's configuration."""
        listed = self.header.get("servers") or []
        for event in self.events:
            if event["event"] == "server" and "servers" in event:
                listed = event["servers"]
        return tuple(str(server["name"]) for server in listed)

    @property
    def cluster(self) -> Mapping[str, Any] | None:
        """The servers as a `ClusterConfig`'s fields; None where the log has none."""
        found = self.header.get("cluster")
        for event in self.events:
            if event["event"] == "server" and "cluster" in event:
                found = event["cluster"]
        return found if isinstance(found, Mapping) else None


@dataclass
class LoggedTraffic:
    """A whole log."""

    path: Path
    runs: list[LoggedRun]
    notes: list[str]
    """What was left out or looks odd, for people: one sentence each."""

    @property
    def requests(self) -> int:
        """In all runs."""
        return sum(len(run.requests) for run in self.runs)


def read_decision_log(path: str | Path) -> LoggedTraffic:
    """Read a decision log.

    A line that is no JSON (the last one of a router that was killed, a half-written one of a full disk) is
    left out and noted. A restart that left no `start` line is seen by the router's clock going back.

    Raises:
        TraceError: the file cannot be read, is no decision log, has more than 1 % of damaged lines, a line
            with a wrong field, or no request; names file, line and field.
    """
    reader = _Reader(Path(path))
    try:
        with Path(path).open("rb") as file:
            for number, raw in enumerate(file, 1):
                reader.line(number, raw)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from None
    return reader.close()


class _Reader:
    """Lines in, runs out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[LoggedRun] = []
        self.notes: list[str] = []
        self.damaged: list[int] = []
        self.lines = 0
        self._cut = False  # the last line has no end
        self._last_end_s = -math.inf
        self._offset_s: float | None = None  # wall clock minus the router's
        self._jumps: list[str] = []

    def line(self, number: int, raw: bytes) -> None:
        """Take in one line of the file."""
        if not raw.strip():
            return
        self.lines += 1
        whole = raw.endswith(b"\n")
        found = list(self._objects(number, raw))
        self._cut = not whole and not found
        for data in found:
            self._take(number, data)

    def _objects(self, number: int, raw: bytes) -> Iterator[dict[str, Any]]:
        """The JSON objects of a line: one; or, after a crash, what the next run wrote behind a broken one."""
        data = _parse(raw)
        if data is None:
            self.damaged.append(number)
            self._refuse_if_hopeless()
            later = raw.rfind(b'{"v":')
            data = _parse(raw[later:]) if later > 0 else None
        if data is not None:
            yield data

    def _refuse_if_hopeless(self) -> None:
        if not self.runs and self.lines == len(self.damaged) > 1:
            raise TraceError(
                f"{self.path}: line {self.damaged[0]} is no JSON, nor are those after it: expected a "
                "router's decision log (log.path of `splitgym route`)"
            )

    def _take(self, number: int, data: dict[str, Any]) -> None:
        kind = data.get("event")
        if not isinstance(kind, str):
            raise TraceError(
                f"{self.path}: line {number} has no event: expected a router's decision log (log.path of "
                "`splitgym route`)"
            )
        if data.get("v") != LOG_VERSION:
            raise TraceError(
                f"{self.path}: line {number} has format {data.get('v')!r}, this splitgym reads {LOG_VERSION}"
            )
        if kind == "start":
            self._start(data)
        elif kind == "request":
            self._request(number, data)
        elif kind in MARKERS:
            self._run().events.append(data)
        else:
            self.notes.append(f"line {number}: event {kind!r} is not known and was left out")

    def _start(self, data: dict[str, Any]) -> None:
        """A new run; or the header again, where the log was begun anew (it grew too long)."""
        began = data.get("began_unix_s")
        if self.runs and began is not None and self.runs[-1].header.get("began_unix_s") == began:
            return
        self.runs.append(LoggedRun(data))
        self._last_end_s, self._offset_s = -math.inf, None

    def _run(self) -> LoggedRun:
        if not self.runs:
            self.runs.append(LoggedRun({}))
            self.notes.append("the log begins within a run of the router: its start line is not there")
        return self.runs[-1]

    def _request(self, number: int, data: dict[str, Any]) -> None:
        run = self._run()
        request = _Fields(self.path, number, data).request()
        end_s = request.arrival_s + request.end_s
        if end_s < self._last_end_s - _BACKWARD_S:
            self.notes.append(
                f"line {number}: the router's clock goes back by {self._last_end_s - end_s:.1f} s; taken "
                "as a restart that left no start line"
            )
            self.runs.append(LoggedRun({k: v for k, v in run.header.items() if k != "began_unix_s"}))
            self._offset_s = None
            run = self.runs[-1]
        self._last_end_s = end_s
        self._watch_wall_clock(number, data, request)
        run.requests.append(request)

    def _watch_wall_clock(self, number: int, data: dict[str, Any], request: LoggedRequest) -> None:
        wall = data.get("unix_s")
        if not isinstance(wall, int | float) or not math.isfinite(wall):
            return
        offset = wall - request.arrival_s
        if self._offset_s is not None and abs(offset - self._offset_s) > CLOCK_JUMP_S:
            self._jumps.append(f"by {offset - self._offset_s:+.1f} s at line {number}")
        self._offset_s = offset

    def close(self) -> LoggedTraffic:
        """Everything that was read."""
        if len(self.damaged) > max(3, MOST_DAMAGED * self.lines):
            raise TraceError(
                f"{self.path}: line {self.damaged[0]} is no JSON, nor are {len(self.damaged) - 1} other "
                "lines: too damaged to be trusted"
            )
        for run in self.runs:
            run.requests.sort(key=lambda request: request.arrival_s)
        self.runs = [run for run in self.runs if run.requests]
        if not self.runs:
            what = "is empty" if not self.lines else "has no request in it"
            raise TraceError(f"{self.path}: the decision log {what}")
        if self._cut:
            self.notes.append(f"line {self.damaged.pop()}: the last line is cut off, and was left out")
        if self.damaged:
            self.notes.append(f"{_listed('line', self.damaged)}: no JSON, left out")
        if self._jumps:
            self.notes.append(
                f"the wall clock jumps {', '.join(self._jumps[:_NOTED])}; the router's own clock is used"
            )
        return LoggedTraffic(self.path, self.runs, self.notes)


class _Fields:
    """A request's line, field by field."""

    def __init__(self, path: Path, line: int, data: dict[str, Any]) -> None:
        self._path, self._line, self._data = path, line, data

    def request(self) -> LoggedRequest:
        """The request.

        Raises:
            TraceError: names the first field that is wrong.
        """
        data = self._data
        outcome = data.get("outcome")
        if outcome not in OUTCOMES:
            self._fail("outcome", outcome, f"one of {', '.join(OUTCOMES)}")
        attempts = data.get("attempts", [])
        if not isinstance(attempts, list) or not all(isinstance(attempt, dict) for attempt in attempts):
            self._fail("attempts", attempts, "a list of objects")
        last = attempts[-1] if attempts else {}
        prompt = self._count(data, "prompt_tokens", None)
        estimated = self._count(data, "estimated_prompt_tokens", 1)
        end_s = self._seconds(data, "end_s")
        first_s = self._seconds(data, "first_byte_s", None)
        if first_s is not None and first_s > end_s + 1e-6:
            self._fail("first_byte_s", first_s, f"at most end_s, which is {end_s}")
        return LoggedRequest(
            line=self._line,
            arrival_s=self._seconds(data, "arrival_s"),
            prompt_tokens=max(1, prompt or estimated or 1),
            output_tokens=self._count(data, "output_tokens", 0) or 0,
            max_tokens=self._count(data, "max_tokens", None) or None,
            outcome=str(outcome),
            stream=data.get("stream") is True,
            first_byte_s=first_s,
            end_s=end_s,
            decided_s=self._seconds(last, "decided_s", 0.0) or 0.0,
            prompt_s=self._seconds(last, "prompt_s", None),
            prompt_server=self._name(last, "prompt_server"),
            token_server=self._name(last, "token_server"),
            attempts=len(attempts),
        )

    def _count(self, data: Mapping[str, Any], name: str, missing: int | None) -> int | None:
        value = data.get(name)
        if value is None:
            return missing
        if type(value) is not int or not 0 <= value < 2**31:
            self._fail(name, value, "a whole number from 0 on")
        return int(value)

    def _seconds(self, data: Mapping[str, Any], name: str, *missing: float | None) -> Any:
        value = data.get(name)
        if value is None and missing:
            return missing[0]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e10:
            self._fail(name, value, "seconds from 0 on")
        return float(value)

    def _name(self, data: Mapping[str, Any], name: str) -> str | None:
        value = data.get(name)
        if value is not None and not isinstance(value, str):
            self._fail(name, value, "a server's name")
        return value

    def _fail(self, name: str, value: Any, expected: str) -> NoReturn:
        shown = json.dumps(value)
        raise TraceError(
            f"{self._path}: line {self._line}: {name} is {shown[:60]}, expected {expected}; repair the line "
            "or delete it"
        )


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _listed(what: str, numbers: list[int]) -> str:
    """`lines 3, 9, 12 and 4 more`."""
    shown = ", ".join(map(str, numbers[:_NOTED]))
    more = f" and {len(numbers) - _NOTED} more" if len(numbers) > _NOTED else ""
    return f"{what}{'s' if len(numbers) > 1 else ''} {shown}{more}"
