"""A port: its connections, how many there may be, and those that let us wait."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from splitgym.router.http.connection import Connection, State
from splitgym.router.http.messages import Check, Handler, Response

HANDSHAKE_S, HEAD_S, BODY_S, IDLE_S, LINGER_S, STUCK_S = 15.0, 15.0, 30.0, 75.0, 2.0, 60.0
"""Longest time for a TLS handshake, for a head, for a body, between two requests, to read what is refused, to
take an answer."""


class HttpServer:
    """All connections of one port.

    Args:
        handler: answers requests.
        check: looks at heads.
        refusal: makes the answer to what is no request: (status, why).
        limits: open connections, bytes of a header line (a whole head may have four times that), of a body.
    """

    def __init__(
        self,
        handler: Handler,
        check: Check,
        refusal: Callable[[int, str], Response],
        limits: tuple[int, int, int],
    ) -> None:
        self.handler, self.check, self.refusal = handler, check, refusal
        self._most, self.line_limit, self.body_limit = limits
        self.connections: set[Connection] = set()
        self.turned_away = 0
        self.closing = False

    def __call__(self) -> asyncio.BaseProtocol:
        """A protocol for a new connection."""
        if len(self.connections) >= self._most or self.closing:
            self.turned_away += 1
            return TurnedAway()
        connection = Connection(self)
        self.connections.add(connection)
        return connection

    async def sweep(self) -> None:
        """Hang up on those that let us wait, for ever."""
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for connection in list(self.connections):
                self._look(connection, now - connection.since_s)

    def _look(self, connection: Connection, waited_s: float) -> None:
        if not connection.made:
            if waited_s > 2 * HANDSHAKE_S:  # nobody tells of one that failed
                self.connections.discard(connection)
            return
        state, transport = connection.state, connection.transport
        if state is State.BODY and waited_s > BODY_S:
            connection.refuse(self.refusal(408, "the body did not come in time"))
        elif state is State.LINGERING and waited_s > LINGER_S:
            transport.close()
            if waited_s > STUCK_S:
                transport.abort()
        elif state is State.HEAD and waited_s > HEAD_S:
            transport.abort()
        elif state is State.IDLE:
            if waited_s > STUCK_S and transport.get_write_buffer_size():
                transport.abort()
            elif waited_s > IDLE_S:
                transport.close()

    def close_idle(self) -> None:
        """No more requests: connections without one are closed, the others after their answer."""
        self.closing = True
        for connection in list(self.connections):
            if connection.made and connection.state in (State.IDLE, State.HEAD):
                connection.close()

    async def abort(self) -> None:
        """Hang up on everybody, and wait until their requests have noticed."""
        tasks = []
        for connection in list(self.connections):
            if connection._task is not None:
                tasks.append(connection._task)
            if connection.made:
                connection.transport.abort()
        if tasks:
            with suppress(asyncio.CancelledError):
                await asyncio.wait(tasks, timeout=1.0)


class TurnedAway(asyncio.Protocol):
    """Hangs up at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        transport.close()
