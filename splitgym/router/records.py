"""What is kept of each request: for the decision log, the metrics and the status page."""

import json
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from splitgym.errors import ConfigError
from splitgym.router.config import LogConfig

LOG_VERSION = 1
_ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


@dataclass(slots=True)
class Attempt:
    """One try at a request. Times are seconds since the request came."""

    decision_id: int
    prompt_server: str
    token_server: str
    by: str
    reason: str
    decided_s: float
    decide_us: float
    policy_wanted: tuple[str, str] | None = None
    prompt_s: float | None = None
    first_byte_s: float | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Without what is not known."""
        found: dict[str, Any] = {
            "decision_id": self.decision_id,
            "prompt_server": self.prompt_server,
            "token_server": self.token_server,
            "by": self.by,
            "reason": self.reason,
            "decided_s": round(self.decided_s, 6),
            "decide_us": round(self.decide_us, 6),
        }
        if self.policy_wanted is not None:
            found["policy_wanted"] = self.policy_wanted
        for name, value in (("prompt_s", self.prompt_s), ("first_byte_s", self.first_byte_s)):
            if value is not None:
                found[name] = round(value, 6)
        if self.error is not None:
            found["error"] = self.error
        return found


@dataclass(slots=True)
class Record:
    """One request from its arrival to its end."""

    request_id: str
    endpoint: str
    stream: bool
    unix_s: float
    arrival_s: float  # since the router began
    estimated_prompt_tokens: int
    max_tokens: int | None
    prompt_tokens: int | None = None  # as a server counted them
    output_tokens: int = 0
    status: int = 0
    outcome: str = "open"  # ok, refused, client_error, server_error, disconnected
    first_byte_s: float | None = None
    end_s: float = 0.0
    good: bool | None = None
    attempts: list[Attempt] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """A line of the log."""
        return {
            "v": LOG_VERSION,
            "event": "request",
            "request_id": self.request_id,
            "endpoint": self.endpoint,
            "stream": self.stream,
            "unix_s": round(self.unix_s, 6),
            "arrival_s": round(self.arrival_s, 6),
            "estimated_prompt_tokens": self.estimated_prompt_tokens,
            "max_tokens": self.max_tokens,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "status": self.status,
            "outcome": self.outcome,
            "first_byte_s": None if self.first_byte_s is None else round(self.first_byte_s, 6),
            "end_s": round(self.end_s, 6),
            "good": self.good,
            "attempts": [attempt.as_dict() for attempt in self.attempts],
        }


class DecisionLog:
    """JSON lines, flushed once a second by the router's own loop, renamed when they grow too long.

    Args:
        config: where to; without a path nothing is written.

    Raises:
        ConfigError: the file cannot be opened.
    """

    def __init__(self, config: LogConfig) -> None:
        self._config = config
        self._file: TextIO | None = None
        self._size = 0
        self._header: dict[str, Any] | None = None
        self.lost = 0
        self.before_event: Callable[[], None] | None = None
        """Brings what happened earlier into the log."""
        if config.path is not None:
            try:
                self._open()
            except OSError as error:
                raise ConfigError(f"log.path {config.path} cannot be written ({error.strerror})") from None

    def _open(self) -> None:
        assert self._config.path is not None
        # Prompts are not in it, but traffic is: for the owner alone.
        descriptor = os.open(self._config.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(descriptor, "a")
        self._size = os.fstat(descriptor).st_size
        if _cut_off(Path(self._config.path)):  # by a crash: what comes now is a line of its own
            self._file.write("\n")

    def write(self, line: dict[str, Any]) -> None:
        """Add a line. A full disk loses lines, never requests."""
        if self._file is None:
            return
        try:
            self._put(line)
            if self._size > self._config.max_bytes:
                self._rotate()
        except OSError:
            self.lost += 1

    def _put(self, line: dict[str, Any]) -> None:
        assert self._file is not None
        text = _ENCODE(line) + "\n"
        self._file.write(text)
        self._size += len(text)

    def event(self, kind: str, **fields: Any) -> None:
        """Add a line that is no request: the start, a policy, a role change."""
        if self.before_event is not None:
            self.before_event()
        self.write({"v": LOG_VERSION, "event": kind, "unix_s": round(time.time(), 6), **fields})

    def begin(self, **fields: Any) -> None:
        """The `start` line. Where the file is begun anew it is written again: each can be read alone."""
        now = round(time.time(), 6)
        self._header = {"v": LOG_VERSION, "event": "start", "unix_s": now, "began_unix_s": now, **fields}
        self.write(self._header)

    def amend(self, **fields: Any) -> None:
        """What has changed of the `start` line, for files to come."""
        if self._header is not None:
            self._header |= fields

    def flush(self) -> None:
        """To the disk's cache."""
        if self._file is not None:
            try:
                self._file.flush()
            except OSError:
                self.lost += 1

    def _rotate(self) -> None:
        self.close()
        path = Path(str(self._config.path))
        path.replace(path.with_name(path.name + ".1"))
        self._open()
        if self._header is not None:
            self._put(self._header)
            self._size = 0  # it must not fill the file by itself

    def close(self) -> None:
        """Flush and close."""
        if self._file is not None:
            self.flush()
            self._file.close()
            self._file = None


def _cut_off(path: Path) -> bool:
    """Does a file end within a line? (What is no plain file, such as a pipe, is not read.)"""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False


class Window:
    """Attainment over the last minutes.

    Args:
        seconds: how long a request counts.
    """

    def __init__(self, seconds: float = 300.0) -> None:
        self._seconds = seconds
        self._kept: deque[tuple[float, bool, float]] = deque(maxlen=100_000)

    def add(self, at_s: float, good: bool, ttft_s: float) -> None:
        """A request that could be judged."""
        self._kept.append((at_s, good, ttft_s))

    def summary(self, now_s: float) -> dict[str, float | int | None]:
        """Requests judged, share of good ones, TTFT percentiles [s]."""
        while self._kept and self._kept[0][0] < now_s - self._seconds:
            self._kept.popleft()
        ttft = sorted(item[2] for item in self._kept)
        count = len(ttft)
        return {
            "seconds": self._seconds,
            "requests": count,
            "good": sum(item[1] for item in self._kept) / count if count else None,
            "ttft_p50_s": ttft[count // 2] if count else None,
            "ttft_p99_s": ttft[min(count - 1, count * 99 // 100)] if count else None,
        }

    def series(self, now_s: float, buckets: int = 60) -> list[tuple[int, int]]:
        """(judged, good) in equal parts of the window, oldest first."""
        width = self._seconds / buckets
        found = [[0, 0] for _ in range(buckets)]
        for at_s, good, _ in self._kept:
            place = buckets - 1 - int((now_s - at_s) / width)
            if 0 <= place < buckets:
                found[place][0] += 1
                found[place][1] += good
        return [(judged, good) for judged, good in found]
