"""The client's side: connections that are kept, one request at a time on each; names and addresses."""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from splitgym.router.http.answer import Answer
from splitgym.router.http.heads import Headers, write_headers

_TICK_S = 0.05
"""Deadlines are looked after so often, all with one timer."""


class Addresses:
    """What names stand for.

    Args:
        allowed: may this address be used?
        keep_s: asked again after this long.
    """

    def __init__(self, allowed: Callable[[str], bool], keep_s: float = 30.0) -> None:
        self._allowed = allowed
        self._keep_s = keep_s
        self._found: dict[str, tuple[float, list[str]]] = {}

    async def find(self, host: str) -> list[str]:
        """Addresses of a name.

        Raises:
            OSError: there are none that may be used.
        """
        now = time.monotonic()
        kept = self._found.get(host)
        if kept is not None and now < kept[0]:
            return kept[1]
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(host, None, type=1)
        found = [str(info[4][0]) for info in infos if self._allowed(str(info[4][0]))]
        if not found:
            raise OSError(None, f"{host} lies in none of admin.allowed_networks")
        self._found[host] = now + self._keep_s, found
        return found


@dataclass(frozen=True)
class Origin:
    """A server's address."""

    host: str
    port: int
    tls: bool
    name: bytes
    """For the Host header."""

    @classmethod
    def of(cls, url: str) -> "Origin":
        """Of http(s)://HOST[:PORT]."""
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        return cls(parts.hostname or "", parts.port or (443 if tls else 80), tls, parts.netloc.encode())


class Pool:
    """Connections to servers.

    Args:
        addresses: of names.
        connect_s: longest time to connect.
        keepalive_s: idle connections are closed after this.
    """

    def __init__(self, addresses: Addresses, connect_s: float, keepalive_s: float) -> None:
        self._addresses = addresses
        self._connect_s = connect_s
        self._keepalive_s = keepalive_s
        self._idle: dict[Origin, deque[Answer]] = {}
        self._busy: set[Answer] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._fast = False
        self._tls: ssl.SSLContext | None = None
        self._closed = False

    @property
    def busy(self) -> int:
        """Connections in use."""
        return len(self._busy)

    async def request(
        self, origin: Origin, method: bytes, target: bytes, headers: Headers, body: bytes, by_s: float
    ) -> Answer:
        """Send a request; returns when the headers of its answer are here. `release` it in the end.

        Args:
            target: path and query, raw.
            headers: without Host and lengths, which are written here.
            by_s: loop time by which they must be.

        Raises:
            Broken, OSError, TimeoutError: they are not.
        """
        start = b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (method, target, origin.name)
        head = write_headers(start, headers)
        if body or method not in (b"GET", b"HEAD", b"DELETE", b"OPTIONS"):
            head += b"Content-Length: %d\r\n" % len(body)
        answer = self._kept(origin) or await self._connect(origin, by_s)
        self._busy.add(answer)
        try:
            answer.ask(head + b"\r\n", body, method == b"HEAD", by_s)
            self._tick()
            await answer.head()
        except BaseException:
            answer.release()
            raise
        return answer

    def _kept(self, origin: Origin) -> Answer | None:
        idle = self._idle.get(origin)
        while idle:
            answer = idle.pop()
            if answer.lost or answer.transport.is_closing():
                continue
            if time.monotonic() - answer.idle_since_s > self._keepalive_s:
                answer.transport.abort()
                continue
            return answer
        return None

    async def _connect(self, origin: Origin, by_s: float) -> Answer:
        loop = asyncio.get_running_loop()
        last: BaseException = OSError(None, f"{origin.host} has no address")
        async with asyncio.timeout_at(min(by_s, time.monotonic() + self._connect_s)):
            for address in await self._addresses.find(origin.host):
                try:
                    _, answer = await loop.create_connection(
                        lambda: Answer(self, origin),
                        address,
                        origin.port,
                        ssl=self._context() if origin.tls else None,
                        server_hostname=origin.host if origin.tls else None,
                    )
                    return answer
                except OSError as error:
                    last = error
        raise last

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def put_back(self, answer: Answer, keep: bool) -> None:
        """An answer is over."""
        if answer not in self._busy:
            return
        self._busy.discard(answer)
        answer._asking = False
        answer._sink = None
        answer._pieces = []
        if answer.lost:
            return
        transport = answer.transport
        if keep and not (self._closed or transport.is_closing() or transport.get_write_buffer_size()):
            answer.idle_since_s = time.monotonic()
            self._idle.setdefault(answer.origin, deque()).append(answer)
            self._tick()
        else:
            transport.abort()

    def forget(self, answer: Answer) -> None:
        """A connection was lost."""
        idle = self._idle.get(answer.origin)
        if idle is not None:
            with suppress(ValueError):
                idle.remove(answer)
            if not idle:
                del self._idle[answer.origin]

    def _tick(self) -> None:
        """See that the timer runs: fast while there are requests, slowly while connections are idle."""
        if self._closed or (self._timer is not None and (self._fast or not self._busy)):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._fast = bool(self._busy)
        delay_s = _TICK_S if self._fast else min(1.0, self._keepalive_s)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        """Deadlines, and connections that were idle for too long."""
        self._timer = None
        now = time.monotonic()
        for answer in list(self._busy):
            if now > answer.by_s:
                answer.expire()
        for idle in list(self._idle.values()):
            for answer in list(idle):
                if now - answer.idle_since_s > self._keepalive_s:
                    answer.transport.abort()
        if self._busy or self._idle:
            self._tick()

    async def close(self) -> None:
        """All connections."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for answer in [*self._busy, *(answer for idle in self._idle.values() for answer in idle)]:
            answer.transport.abort()
        self._idle.clear()
        await asyncio.sleep(0)
