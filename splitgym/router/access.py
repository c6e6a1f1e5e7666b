"""Who may come in: keys compared in constant time; and what the admin port adds to aiohttp's server."""

import asyncio
import hmac
import ipaddress
import logging
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from splitgym.router.http.server import TurnedAway
from splitgym.router.protocol import Refused


class Keys:
    """API keys.

    Args:
        keys: any of them opens; without keys everybody may.
    """

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = tuple(key.encode() for key in keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def check(self, authorization: str, api_key: str) -> None:
        """Let a request pass.

        Args:
            authorization, api_key: its headers `Authorization` and `X-Api-Key`, "" where they are not there.

        Raises:
            Refused: 401, no valid key.
        """
        if not self._keys:
            return
        kind, _, token = authorization.partition(" ")
        offered = token.strip() if kind.lower() == "bearer" else api_key
        found = offered.encode("utf-8", "surrogateescape")
        # Every key is compared, whatever the first ones say.
        matches = [hmac.compare_digest(found, key) for key in self._keys]
        if not any(matches):
            raise Refused(401, "a valid API key is needed", "Unauthorized")


class Door:
    """The admin port's: makes one protocol for each connection, as long as there are not too many.

    Args:
        server: aiohttp's.
        limit: open connections.
    """

    def __init__(self, server: Any, limit: int) -> None:
        self._server = server
        self._limit = limit
        self.turned_away = 0

    def __call__(self) -> asyncio.BaseProtocol:
        """A protocol for a new connection."""
        if len(self._server.connections) >= self._limit:
            self.turned_away += 1
            return TurnedAway()
        found: asyncio.BaseProtocol = self._server()
        return found


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
