"""A router's decision log, request by request and typed: what a simulation of it needs (docs/deploy.md).

`splitgym.trace.importers.router_log` reads the lines, also those that a crash or a clock has hurt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from splitgym.errors import TraceError
from splitgym.trace.importers.collect import Place
from splitgym.trace.importers.router_log import OUTCOMES, Run, read_log, say_drift
from splitgym.types import Pool


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request. Times are seconds; those of the answer count from the arrival."""

    place: Place
    """File and line."""
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


@dataclass(frozen=True, slots=True)
class RoleChange:
    """A server's move to another pool, done."""

    place: Place
    """File and line."""
    at_s: float
    """By the clock of the router's run."""
    server: str
    pool: Pool


@dataclass
class LoggedRun:
    """One run of the router: from its start to its end, or to the end of the file."""

    header: Mapping[str, Any]
    """Its `start` line; empty where the log does not have it."""
    requests: list[LoggedRequest] = field(default_factory=list)
    """In order of arrival."""
    events: list[Mapping[str, Any]] = field(default_factory=list)
    """Other lines: policies, roles, servers."""
    roles: list[RoleChange] = field(default_factory=list)
    """In the order of the log."""

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


def read_decision_log(
    paths: str | Path | Sequence[str | Path],
    *,
    skip_bad: bool = False,
    progress: Callable[[int], None] | None = None,
) -> LoggedTraffic:
    """Read a decision log, or several that belong together.

    Args:
        paths, skip_bad, progress: see `splitgym.trace.importers.router_log.read_log`.

    Raises:
        TraceError: as `read_log`; or a field of a request that cannot be used, or no request at all; names
            file, line and field.
    """
    log = read_log([paths] if isinstance(paths, str | Path) else paths, skip_bad=skip_bad, progress=progress)
    runs = []
    for number, found in enumerate(log.runs, 1):
        if found.requests:
            say_drift(log, number, found)
            runs.append(_run(found))
    if not runs:
        raise TraceError(f"{log.path}: there is no request in this decision log")
    return LoggedTraffic(log.path, runs, log.notes)


def _run(found: Run) -> LoggedRun:
    requests = [_Fields(place, line).request() for place, line in found.requests]
    requests.sort(key=lambda request: request.arrival_s)
    others = [(place, line) for place, line in found.events if line["event"] != "start"]
    began_s = (found.start or {}).get("began_unix_s")
    # Without the start line nobody knows when a role change was by the clock of the requests.
    done = [row for row in others if row[1]["event"] == "role" and row[1].get("outcome") == "done"]
    roles = [_Fields(place, line).role(float(began_s)) for place, line in done if began_s is not None]
    return LoggedRun(found.start or {}, requests, [line for _, line in others], roles)


class _Fields:
    """A line, field by field."""

    def __init__(self, place: Place, data: dict[str, Any]) -> None:
        self._place, self._data = place, data

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
            place=self._place,
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

    def role(self, began_s: float) -> RoleChange:
        """The change of a server's role.

        Args:
            began_s: Unix time of the run's beginning.

        Raises:
            TraceError: names the first field that is wrong.
        """
        server, to = self._name(self._data, "server"), self._data.get("to")
        pools = {pool.name.lower(): pool for pool in Pool}
        if server is None:
            self._fail("server", server, "a server's name")
        if to not in pools:
            self._fail("to", to, f"one of {', '.join(pools)}")
        at_s = self._seconds(self._data, "unix_s") - began_s
        return RoleChange(self._place, max(0.0, at_s), server, pools[to])

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
        raise self._place.error(f"{name} is {value!r:.60}, expected {expected}; repair the line or delete it")
