"""A client's request, and the small things that reading it and answering it take."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from splitgym.router.protocol import Refused, usage_of
from splitgym.router.records import Record
from splitgym.router.servers import Server
from splitgym.router.upstream import Failed, Headers

REQUEST_ID = "X-Request-Id"


@dataclass(slots=True)
class Call:
    """One client's request on its way."""

    request: web.BaseRequest
    raw: bytes
    body: dict[str, Any]
    headers: Headers
    path: str
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


async def read_body(request: web.BaseRequest, limit: int, seconds: float = 30.0) -> bytes:
    """The whole body of a request.

    Raises:
        Refused: 413 where it is too large, 408 where it does not come.
    """
    too_large = Refused(413, f"the body is larger than {limit} bytes", "RequestEntityTooLarge")
    if (request.content_length or 0) > limit:
        raise too_large
    if request.content.is_eof():  # all of it came with the headers, which is the usual case
        whole = request.content.read_nowait()
        if len(whole) > limit:
            raise too_large
        return whole
    pieces, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.content.iter_any():
                size += len(piece)
                if size > limit:
                    raise too_large
                pieces.append(piece)
    except TimeoutError:
        raise Refused(408, "the body did not come in time", "RequestTimeout") from None
    return b"".join(pieces)


def read_usage(answer: bytes) -> tuple[int | None, int | None]:
    try:
        return usage_of(json.loads(answer))
    except ValueError:
        return None, None


def rename(call: Call, request_id: str) -> None:
    """Another X-Request-Id."""
    kept = [(k, v) for k, v in call.headers if k.lower() != REQUEST_ID.lower()]
    call.headers = [*kept, (REQUEST_ID, request_id)]


def multi(headers: Headers) -> Any:
    return CIMultiDict(headers)


def plain(status: int, headers: Headers, body: bytes) -> web.Response:
    return web.Response(status=status, headers=multi(headers), body=body)


def gone(request: web.BaseRequest) -> web.Response:
    """Hang up on a client that went away; what is returned reaches nobody, and is no error to aiohttp."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=499)


def refusal(refused: Refused) -> web.Response:
    """An error object."""
    headers = {}
    if refused.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(refused.retry_after_s)))
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(
        status=refused.status, body=refused.body, headers=headers, content_type="application/json"
    )
