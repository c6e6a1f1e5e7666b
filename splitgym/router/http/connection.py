"""One client's connection: its requests in turn, answers whole or in pieces."""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

import httptools

from splitgym.router.http.heads import BadMessage, HeadReader
from splitgym.router.http.messages import Request, Response
from splitgym.router.http.writing import AnswerWriter

if TYPE_CHECKING:
    from splitgym.router.http.server import HttpServer

PIPELINE = 8
"""Requests that may wait behind the one in progress."""


class State(IntEnum):
    """What a connection waits for."""

    IDLE = 0
    HEAD = 1
    BODY = 2
    SERVING = 3
    LINGERING = 4  # refused; what still comes is thrown away
    CLOSED = 5


class Connection(HeadReader, AnswerWriter):
    """One client."""

    def __init__(self, server: "HttpServer") -> None:
        super().__init__()
        self._server = server
        self._line_limit, self._head_limit = server.line_limit, 4 * server.line_limit
        self.state = State.HEAD  # a new connection has the time of a head to say something
        self.since_s = time.monotonic()
        self.transport: asyncio.Transport  # not there during a TLS handshake
        self.made = False
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._coming: Request | None = None
        self._body: list[bytes] = []
        self._size = 0
        self._beside = 0  # bytes of the body that are still to be read, past the parser
        self._next: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closing = False  # after the answer in progress
        self.on_pause: Callable[[bool], None] | None = None
        """Told when the client does not keep up, and when it does again."""
        self.paused = False

    # ---- the transport ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self.transport, self.made = transport, True  # type: ignore[assignment]
        if self._server.closing:
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """The client has gone: so has its request."""
        self.state = State.CLOSED
        self._server.connections.discard(self)
        self._next.clear()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """See asyncio."""
        self.paused = True
        if self.on_pause is not None:
            self.on_pause(True)

    def resume_writing(self) -> None:
        """See asyncio."""
        self.paused = False
        if self.on_pause is not None:
            self.on_pause(False)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self.state >= State.LINGERING or self._closing:
            return
        if self.state is State.IDLE:
            self.state, self.since_s = State.HEAD, time.monotonic()
        try:
            self._feed(data)
            self._count(len(data))
        except httptools.HttpParserError as error:
            # What a callback raised is hidden in it.
            found = error.__context__
            self._bad(found if isinstance(found, BadMessage) else BadMessage("no valid HTTP request"))
        except BadMessage as error:
            self._bad(error)

    def _feed(self, data: bytes) -> None:
        while data:
            if self._beside:
                piece, data = data[: self._beside], data[self._beside :]
                self._beside -= len(piece)
                self.on_body(piece)
                if not self._beside:
                    self.on_message_complete()
                continue
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # Other protocols are not spoken here, which is said by answering in this one.
                data = data[upgrade.args[0] :]

    def _bad(self, error: BadMessage) -> None:
        if self.state >= State.LINGERING:
            return
        if self._task is not None:
            self._closing = True  # what was asked before is answered
        else:
            self.refuse(self._server.refusal(error.status, str(error)))

    # ---- the parser ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        self._url = b""
        self._body, self._size = [], 0

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        self._url += url
        if len(self._url) > self._line_limit:
            raise BadMessage("the request line is too long")

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._head_ended()
        parser, named = self._parser, self.named
        method = parser.get_method().decode("latin-1")
        if method == "CONNECT":
            raise BadMessage("CONNECT is not served", 405)
        request = Request(self, method, self._url)
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise BadMessage(f"HTTP/{version} is not served", 505)
        request.old = version == "1.0"
        request.keep_alive = parser.should_keep_alive()
        if not request.old and b"host" not in named:
            raise BadMessage("no Host header")
        if request.old and b"transfer-encoding" in named:
            raise BadMessage("HTTP/1.0 has no transfer codings")
        self._coming = request
        request.refusal = self._server.check(request)
        if parser.should_upgrade():  # then the parser takes what follows for another protocol
            if b"transfer-encoding" in named:
                raise BadMessage("Upgrade with a body in chunks is not served")
            self._beside = int(named.get(b"content-length", b"0"))
        length = int(named.get(b"content-length", b"0"))
        if length or b"transfer-encoding" in named:
            if request.refusal is None and length > self._server.body_limit:
                request.refusal = self._too_large()
            if request.refusal is not None:
                self._refuse_coming(request.refusal)
            if self._task is None:
                self._await_body(request)

    def _await_body(self, request: Request) -> None:
        self.state, self.since_s = State.BODY, time.monotonic()
        expected = request.named.get(b"expect")
        if expected is not None and not request.old:
            if expected.lower() != b"100-continue":
                raise BadMessage("an expectation that is not known", 417)
            if not self._size:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, piece: bytes) -> None:
        """See httptools."""
        self._useful = True
        self._size += len(piece)
        if self._size > self._server.body_limit:
            self._refuse_coming(self._too_large())
        self._body.append(piece)

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._beside:
            return
        request, self._coming = self._coming, None
        assert request is not None
        body, self._body = self._body, []
        request.body = body[0] if len(body) == 1 else b"".join(body)
        self._useful = True
        if self._task is None:
            self._begin(request)
        elif len(self._next) < PIPELINE:
            self._next.append(request)
        else:
            self._closing = True  # it may ask again over another connection

    def _too_large(self) -> Response:
        return self._server.refusal(413, f"the body is larger than {self._server.body_limit} bytes")

    def _refuse_coming(self, response: Response) -> None:
        """Refuse the request whose body is still to come; ends the parsing."""
        self._coming = None
        if self._task is None:
            self.refuse(response)
        else:
            self._closing = True
        raise BadMessage("refused")

    # ---- requests -----------------------------------------------------------------------------------------

    def _begin(self, request: Request) -> None:
        self.state = State.SERVING
        loop = asyncio.get_running_loop()
        if sys.version_info < (3, 12):
            self._task = loop.create_task(self._serve(request))
            return
        # It gets to its first wait at once, which spares a turn of the loop.
        task = asyncio.Task(self._serve(request), loop=loop, eager_start=True)
        self._task = None if task.done() else task

    async def _serve(self, request: Request) -> None:
        try:
            while True:
                response = request.refusal or await self._server.handler(request)
                if response is not None:
                    self.respond(request, response)
                self.on_pause = None
                if self.state is State.CLOSED:
                    return
                if not request.keep_alive or (self._closing and not self._next) or self._server.closing:
                    self.close()
                    return
                if not self._next:
                    break
                request = self._next.popleft()
            self.state, self.since_s = State.IDLE, time.monotonic()
            if self._coming is not None:
                self._await_body(self._coming)
        except BadMessage as error:
            self._task = None
            self._bad(error)
        except BaseException:
            self.transport.abort()  # a half answer must not look like a whole one
            raise
        finally:
            self._task = None

    def refuse(self, response: Response) -> None:
        """Answer now, and hang up: what follows on this connection is not read as HTTP."""
        request = Request(self, "", b"/")
        request.keep_alive = False
        self.respond(request, response)
        self.state, self.since_s = State.LINGERING, time.monotonic()

    def close(self) -> None:
        """Hang up when everything is written."""
        self.state, self.since_s = State.LINGERING, time.monotonic()
        self.transport.close()
