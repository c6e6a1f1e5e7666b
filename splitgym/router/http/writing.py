"""The writing half of a client's connection: answers whole or in pieces."""

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from splitgym.router.http.heads import Headers, date_line, write_headers
from splitgym.router.http.messages import Request, Response

if TYPE_CHECKING:
    from splitgym.router.http.server import HttpServer

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_NO_BODY = (204, 304)


class AnswerWriter:
    """Writes the answers of one connection, one after the other."""

    _server: "HttpServer"
    transport: asyncio.Transport
    _chunked = False
    _bare = False

    def respond(self, request: Request, response: Response) -> None:
        """Write a whole answer."""
        length = b"" if response.status in _NO_BODY else b"Content-Length: %d\r\n" % len(response.body)
        head = self._head(request, response.status, response.headers) + length + b"\r\n"
        if request.method == "HEAD" or response.status in _NO_BODY:
            self.transport.write(head)
        else:
            self.transport.write(head + response.body)

    def begin(self, request: Request, status: int, headers: Headers, length: bytes | None = None) -> None:
        """Write the head of an answer that comes in pieces.

        Args:
            length: of the body if known; otherwise it goes in chunks (to an old client, until the end).
        """
        head = self._head(request, status, headers)
        self._bare = request.method == "HEAD" or status in _NO_BODY
        self._chunked = length is None and not request.old and not self._bare
        if length is not None:
            head += b"Content-Length: %b\r\n" % length
        elif self._chunked:
            head += b"Transfer-Encoding: chunked\r\n"
        elif not self._bare:
            request.keep_alive = False
        self.transport.write(head + b"\r\n")

    def write(self, piece: bytes) -> None:
        """A piece of the body."""
        if self._chunked:
            self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        elif not self._bare:
            self.transport.write(piece)

    def end(self) -> None:
        """The body is complete."""
        if self._chunked:
            self.transport.write(b"0\r\n\r\n")

    def _head(self, request: Request, status: int, headers: Headers) -> bytes:
        start = b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, b"Status"))
        head = write_headers(start, headers)
        if not any(name.lower() == b"date" for name, _ in headers):
            head += date_line()
        if not request.keep_alive or self._server.closing:
            request.keep_alive = False
            head += b"Connection: close\r\n"
        elif request.old:
            head += b"Connection: keep-alive\r\n"
        return head
