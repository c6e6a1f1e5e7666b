"""Admission: who waits while every server is full, who is sent away, and in which order they go on."""

import asyncio
from collections import deque
from collections.abc import Collection

from splitgym.router.config import LimitsConfig
from splitgym.router.decisions import Choice, Decisions
from splitgym.router.protocol import Refused
from splitgym.router.servers import Server


class Gate:
    """First come, first served. A decision is taken when its turn has come, not before.

    Args:
        limits: of the queue.
        decisions: asked for servers.
        servers: all of them.
    """

    def __init__(self, limits: LimitsConfig, decisions: Decisions, servers: list[Server]) -> None:
        self._limits = limits
        self._decisions = decisions
        self._servers = servers
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.closed = False
        self.refused = 0

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def wake(self) -> None:
        """A server may have room: the first in the queue looks."""
        for turn in self._waiting:
            if not turn.done():
                turn.set_result(None)
                return

    async def choose(
        self, prompt_tokens: int, max_tokens: int | None, attempt: int, avoid: Collection[int]
    ) -> Choice:
        """Servers for a request.

        Raises:
            Refused: 429 where the queue is full or the wait too long, 503 where no server is healthy or the
                router is stopping.
        """
        if self.closed:
            raise Refused(503, "the router is shutting down", "ServiceUnavailable", 1.0)
        if not self._waiting:
            choice = self._decisions.route(prompt_tokens, max_tokens, attempt, avoid)
            if choice is not None:
                return choice
        if len(self._waiting) >= self._limits.queue:
            raise self._full()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._limits.queue_s):
                while True:
                    await turn
                    choice = self._decisions.route(prompt_tokens, max_tokens, attempt, avoid)
                    if choice is not None:
                        return choice
                    again: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiting[self._waiting.index(turn)] = again
                    turn = again
        except TimeoutError:
            raise self._full() from None
        finally:
            self._waiting.remove(turn)
            # One may go on now; whether the next may, it must see for itself.
            asyncio.get_running_loop().call_soon(self.wake)

    def _full(self) -> Refused:
        self.refused += 1
        if any(server.healthy for server in self._servers):
            return Refused(429, "every server is busy; try again later", "RateLimitError", 1.0)
        return Refused(503, "no server is healthy", "ServiceUnavailable", 5.0)
