"""Heads of requests and answers: parsed, filtered, written."""

import asyncio
import time
from email.utils import formatdate

Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"host",
        b"content-length",
        b"expect",
    )
)
"""Hold for one connection, or are written anew."""
_PLAIN_CONNECTION = (b"keep-alive", b"close")


class BadMessage(Exception):
    """The other side does not speak HTTP as it should.

    Args:
        status: that a client gets.
    """

    def __init__(self, why: str, status: int = 400) -> None:
        super().__init__(why)
        self.status = status


class HeadReader(asyncio.Protocol):
    """What both sides share: collects a head from the parser's callbacks.

    Attributes:
        headers: end-to-end ones, as they came.
        named: all of them by lower-case name; those that came twice are joined by a comma.
    """

    _line_limit = 64 << 10
    _head_limit = 256 << 10

    def __init__(self) -> None:
        self.headers: Headers = []
        self.named: dict[bytes, bytes] = {}
        self._reading_head = True
        self._head_size = 0
        self._useful = False  # something came of what was read last
        self._overhead = 0  # bytes of which nothing came: part of a line, trailers, extensions of chunks

    def on_message_begin(self) -> None:
        """See httptools."""
        self.headers, self.named = [], {}
        self._reading_head = True
        self._head_size = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        if not self._reading_head:
            return  # trailers are dropped
        size = len(name) + len(value)
        self._head_size += size
        if size > self._line_limit or self._head_size > self._head_limit:
            raise BadMessage("the headers are too long")
        low = name.lower()
        if low in self.named:
            if low == b"host":
                raise BadMessage("two Host headers")
            self.named[low] += b", " + value
        else:
            self.named[low] = value
        if low not in HOP_BY_HOP:
            self.headers.append((name, value))

    def _head_ended(self) -> None:
        """Drop what `Connection` names; check the transfer coding.

        Raises:
            BadMessage: one that is not known here.
        """
        self._reading_head, self._useful = False, True
        connection = self.named.get(b"connection")
        if connection is not None and connection.lower() not in _PLAIN_CONNECTION:
            tokens = {token.strip() for token in connection.lower().split(b",")}
            self.headers = [pair for pair in self.headers if pair[0].lower() not in tokens]
        coding = self.named.get(b"transfer-encoding")
        if coding is not None and coding.strip().lower() != b"chunked":
            raise BadMessage("a transfer coding other than chunked", 501)

    def _count(self, size: int) -> None:
        """Bound what is held of a line that does not end, and what carries nothing.

        Args:
            size: of what was just parsed.

        Raises:
            BadMessage: too much of it.
        """
        self._overhead = 0 if self._useful else self._overhead + size
        self._useful = False
        if self._overhead > self._head_limit:
            raise BadMessage("the headers are too long")


def write_headers(start: bytes, headers: Headers) -> bytes:
    """A head but for its end: the start line and headers, each with its line's end."""
    return start + b"".join([b"%b: %b\r\n" % pair for pair in headers])


class _Date:
    """The Date header, made anew each second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def __call__(self) -> bytes:
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._line = b"Date: " + formatdate(now, usegmt=True).encode() + b"\r\n"
        return self._line


date_line = _Date()
