"""A connection to a server, and the answer that it is giving: whole, or in pieces as they come."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import httptools

from splitgym.router.http.heads import BadMessage, HeadReader

if TYPE_CHECKING:
    from splitgym.router.http.client import Origin, Pool

_BIG = 64 << 10
"""Bodies from here on are not copied to be sent with their head."""


class Broken(Exception):
    """A server could not be reached, or its answer is none."""


class Answer(HeadReader):
    """One connection to a server, and the answer that it is giving.

    Attributes:
        status: of the answer.
        done: all of it is here.
        by_s: loop time after which waiting ends; may be moved.
    """

    def __init__(self, pool: "Pool", origin: "Origin") -> None:
        super().__init__()
        self._pool = pool
        self.origin = origin
        self.transport: asyncio.Transport
        self.status = 0
        self.done = False
        self.by_s = 0.0
        self.idle_since_s = 0.0
        self.lost = False
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._limit = 0
        self._sink: Callable[[bytes], None] | None = None
        self._asking = self._bare = self._to_the_end = self._keep = False

    # ---- the transport ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if not self._asking or self.done:
            self._keep = False
            self.transport.abort()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
            self._count(len(data))
        except httptools.HttpParserUpgrade:
            self._fail(Broken("its answer changes the protocol"))
        except httptools.HttpParserError as error:
            if not self.done:  # otherwise it is what follows the answer that is wrong
                found = error.__context__
                why = str(found if isinstance(found, BadMessage) else error)[:200]
                self._fail(Broken(f"its answer is no HTTP: {why}"))
            self._keep = False
        except BadMessage as error:
            self._fail(Broken(str(error)))
        if self._sink is not None and self._pieces:
            self._pass_on(self._sink)
        if self.done:
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        self.lost = True
        self._pool.forget(self)
        if self._asking and not self.done:
            if error is None and self._to_the_end and not self._reading_head:
                self._complete()
                self._wake()
            else:
                self._fail(Broken(str(error or "the server hung up")[:200]))

    # ---- the parser ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """See httptools."""
        if self.done:
            raise BadMessage("more than one answer")
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See httptools."""
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200:
            return  # the answer proper is still to come
        self._head_ended()
        self._keep = self._parser.should_keep_alive()
        self._to_the_end = not ({b"content-length", b"transfer-encoding"} & self.named.keys())
        if self._bare:
            self._keep = False  # the parser would wait for a body
            self._complete()
        self._wake()

    def on_body(self, piece: bytes) -> None:
        """See httptools."""
        if self.done:
            raise BadMessage("a body where there should be none")
        self._useful = True
        self._pieces.append(piece)
        self._size += len(piece)
        if self._limit and self._size > self._limit:
            self._fail(self._too_large())
            raise BadMessage("too large")

    def _too_large(self) -> Broken:
        self._keep = False
        return Broken(f"its answer is larger than {self._limit} bytes")

    def on_message_complete(self) -> None:
        """See httptools."""
        if not self._reading_head:
            self._complete()

    def _complete(self) -> None:
        self.done = True

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if self._error is None and not self.done:
            self._error = error
            self._wake()
        self._keep = False
        if not self.lost:
            self.transport.abort()

    def expire(self) -> None:
        """Its time is over."""
        self._fail(TimeoutError())

    # ---- asking -------------------------------------------------------------------------------------------

    def ask(self, head: bytes, body: bytes, bare: bool, by_s: float) -> None:
        """Send a request."""
        self.done = False
        self._asking, self._bare, self.by_s = True, bare, by_s
        self._reading_head, self._keep, self._to_the_end = True, False, False
        self._overhead = self._size = self._limit = 0
        self._error = self._sink = None
        self._pieces = []
        if len(body) > _BIG:
            self.transport.write(head)
            self.transport.write(body)
        else:
            self.transport.write(head + body)

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._error is not None:
            raise self._error

    async def head(self) -> None:
        """Wait for the status and headers.

        Raises:
            Broken, TimeoutError: they do not come.
        """
        while self._reading_head and not self.done:
            await self._wait()

    async def read(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            Broken, TimeoutError: it does not come, or is larger than `limit`.
        """
        self._limit = limit
        while not self.done and self._size <= limit:
            await self._wait()
        if self._size > limit:
            raise self._too_large()
        if self._error is not None:
            raise self._error
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    async def pour(self, sink: Callable[[bytes], None]) -> None:
        """The body, piece by piece as it comes: the sink is called from the protocol, with no task between.

        Raises:
            Broken, TimeoutError: it does not end well. Whatever the sink raises.
        """
        if self._pieces:
            self._pass_on(sink)
        self._sink = sink
        while not self.done:
            await self._wait()
        if self._error is not None:
            raise self._error

    def _pass_on(self, sink: Callable[[bytes], None]) -> None:
        pieces, self._pieces = self._pieces, []
        try:
            sink(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        except BaseException as error:
            self.done = False
            self._fail(error)

    def pause(self, on: bool) -> None:
        """Whoever takes the body does not keep up, or does again."""
        if not self.lost and not self.transport.is_closing():
            with suppress(RuntimeError):
                if on:
                    self.transport.pause_reading()
                else:
                    self.transport.resume_reading()

    def release(self) -> None:
        """The answer was read, or nobody wants the rest: the connection is kept if it can be."""
        self._pool.put_back(self, self.done and self._keep and self._error is None)
