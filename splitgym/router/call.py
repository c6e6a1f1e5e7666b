"""A client's request, and the small things that reading it and answering it take."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

from splitgym.router.http.heads import Headers
from splitgym.router.http.messages import Request, Response
from splitgym.router.protocol import Refused, usage_of
from splitgym.router.records import Record
from splitgym.router.servers import Server
from splitgym.router.upstream import Failed

REQUEST_ID = b"X-Request-Id"
JSON_TYPE = (b"Content-Type", b"application/json")


@dataclass(slots=True)
class Call:
    """One client's request on its way."""

    request: Request
    raw: bytes
    body: dict[str, Any]
    headers: Headers
    path: bytes  # with its query, as it came
    record: Record
    prompt_tokens: int
    characters: int
    start_s: float  # `time.monotonic`, which is the time of loops too (uvloop's, in whole milliseconds)
    avoid: set[int] = field(default_factory=set)
    answering: bool = False  # something has gone to the client

    @property
    def since_s(self) -> float:
        """Seconds since it came."""
        return time.monotonic() - self.start_s

    def by_s(self, seconds: float, total_s: float) -> float:
        """Loop time in so many seconds, or when the request's time is over."""
        return min(time.monotonic() + seconds, self.start_s + total_s)

    @property
    def stream(self) -> bool:
        """Did it ask for a stream?"""
        return self.body.get("stream") is True


def check_event(server: Server, piece: bytes) -> None:
    """Refuse a stream that begins with something that is no part of an answer.

    Raises:
        Failed: its first event is an error, or no JSON.
    """
    for event in piece.split(b"\n\n", 1)[0].splitlines():
        if event.startswith(b"data:") and event[5:].strip() != b"[DONE]":
            try:
                found = json.loads(event[5:])
            except (ValueError, RecursionError):
                raise Failed(server, "its stream begins with no JSON") from None
            if isinstance(found, dict) and "error" in found and "choices" not in found:
                raise Failed(server, "its stream begins with an error", 500)


def read_usage(answer: bytes) -> tuple[int | None, int | None]:
    try:
        return usage_of(json.loads(answer))
    except ValueError:
        return None, None


def rename(call: Call, request_id: str) -> None:
    """Another X-Request-Id."""
    kept = [pair for pair in call.headers if pair[0].lower() != REQUEST_ID.lower()]
    call.headers = [*kept, (REQUEST_ID, request_id.encode("latin-1"))]


def refused_answer(refused: Refused) -> Response:
    """An error object."""
    headers = [(b"Content-Type", b"application/json; charset=utf-8")]
    if refused.retry_after_s is not None:
        headers.append((b"Retry-After", b"%d" % max(1, round(refused.retry_after_s))))
    if refused.status == 401:
        headers.append((b"WWW-Authenticate", b"Bearer"))
    return Response(refused.status, refused.body, headers)
