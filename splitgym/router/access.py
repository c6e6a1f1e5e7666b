"""Who may come in: keys compared in constant time, a bounded number of connections, no slow openings."""

import asyncio
import hmac
import ipaddress
import logging
import time
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from splitgym.router.protocol import Refused

_HEADER_S = 15.0
"""A connection that has not sent a request by then is closed."""


class Keys:
    """API keys.

    Args:
        keys: any of them opens; without keys everybody may.
    """

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = tuple(key.encode() for key in keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def check(self, request: web.BaseRequest) -> None:
        """Let a request pass.

        Raises:
            Refused: 401, no valid key.
        """
        if not self._keys:
            return
        given = request.headers.get("Authorization", "")
        kind, _, token = given.partition(" ")
        offered = token.strip() if kind.lower() == "bearer" else request.headers.get("X-Api-Key", "")
        found = offered.encode("utf-8", "surrogateescape")
        # Every key is compared, whatever the first ones say.
        matches = [hmac.compare_digest(found, key) for key in self._keys]
        if not any(matches):
            raise Refused(401, "a valid API key is needed", "Unauthorized")


class Door:
    """Makes one protocol for each connection, as long as there are not too many.

    Args:
        server: aiohttp's.
        limit: open connections.
    """

    def __init__(self, server: Any, limit: int) -> None:
        self._server = server
        self._limit = limit
        self._silent: dict[Any, float] = {}  # connections that have not sent a request yet, since when
        self.turned_away = 0

    def __call__(self) -> asyncio.BaseProtocol:
        """A protocol for a new connection."""
        if len(self._server.connections) >= self._limit:
            self.turned_away += 1
            return _Closed()
        protocol = self._server()
        self._silent[protocol] = time.monotonic()
        found: asyncio.BaseProtocol = protocol
        return found

    def heard(self, request: web.BaseRequest) -> None:
        """A request came over its connection."""
        self._silent.pop(request.protocol, None)

    async def sweep(self) -> None:
        """Close connections that say nothing, for ever."""
        while True:
            await asyncio.sleep(_HEADER_S / 3)
            late = time.monotonic() - _HEADER_S
            for protocol, since in list(self._silent.items()):
                if protocol.transport is None:
                    del self._silent[protocol]
                elif since < late:
                    protocol.transport.abort()


class _NotHttp(logging.Filter):
    """Drops what a client alone is to blame for; anybody could fill the log with it."""

    def filter(self, record: logging.LogRecord) -> bool:
        found = record.exc_info[1] if record.exc_info else None
        return not isinstance(found, HttpProcessingError | ConnectionError)


def http_log() -> logging.Logger:
    """What aiohttp's server logs to."""
    log = logging.getLogger("splitgym.router.http")
    if not log.filters:
        log.addFilter(_NotHttp())
    return log


class _Closed(asyncio.Protocol):
    """Hangs up at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        transport.close()


def same_host(request: web.BaseRequest) -> bool:
    """Was the admin port asked by its own address? A page of another site that a browser resolves to loopback
    names itself in `Host`.
    """
    host = request.host.rsplit(":", 1)[0].strip("[]") if request.host else ""
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
