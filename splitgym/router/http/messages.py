"""A client's request and a whole answer."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from splitgym.router.http.heads import BadMessage, Headers

if TYPE_CHECKING:
    from splitgym.router.http.connection import Connection


@dataclass(slots=True)
class Response:
    """A whole answer."""

    status: int
    body: bytes = b""
    headers: Headers = field(default_factory=list)


class Request:
    """A request that has come whole.

    Attributes:
        target: path and query as they came.
        path: decoded.
        headers: end-to-end ones.
        named: all headers by lower-case name.
    """

    __slots__ = (
        "body",
        "connection",
        "headers",
        "keep_alive",
        "method",
        "named",
        "old",
        "path",
        "refusal",
        "target",
    )

    def __init__(self, connection: "Connection", method: str, target: bytes) -> None:
        self.connection = connection
        self.method = method
        self.target, self.path = _target(target)
        self.headers = connection.headers
        self.named = connection.named
        self.old = False  # HTTP/1.0
        self.keep_alive = True
        self.refusal: Response | None = None  # known from its head
        self.body = b""


def _target(raw: bytes) -> tuple[bytes, str]:
    """(path with query, decoded path) of a request's target.

    Raises:
        BadMessage: it has no path.
    """
    if not raw.startswith(b"/"):
        start = raw.find(b"://")
        place = raw.find(b"/", start + 3) if start > 0 else -1
        if place < 0:
            raise BadMessage("the target has no path")
        raw = raw[place:]
    raw = raw.partition(b"#")[0]
    path = raw.partition(b"?")[0]
    if b"%" in path:
        path = unquote_to_bytes(path)
    return raw, path.decode("utf-8", "replace")


Handler = Callable[[Request], Awaitable[Response | None]]
"""Answers a request; None where it wrote the answer itself (`begin`, `write`, `end`)."""
Check = Callable[[Request], Response | None]
"""Looks at a head before its body is read; what it returns refuses it."""
