"""Requests to servers: send a body, get an answer whole or piece by piece, tell whose fault a failure is."""

import ipaddress
import socket
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from splitgym.router.config import LimitsConfig
from splitgym.router.health import describe_error
from splitgym.router.http.answer import Answer, Broken
from splitgym.router.http.client import Addresses, Pool
from splitgym.router.http.heads import Headers
from splitgym.router.http.messages import Response
from splitgym.router.networks import in_networks
from splitgym.router.protocol import load_json
from splitgym.router.servers import Server

RETRIED_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Another server may do better."""
NOT_ITS_FAULT = frozenset((408, 425, 429))


class Failed(Exception):
    """A server did not do its part, and nothing has gone to the client yet.

    Args:
        server: whose fault.
        status: that the client gets if there is no further try.
        answer: the server's own answer, where it gave one.
    """

    def __init__(self, server: Server, why: str, status: int = 502, answer: Response | None = None) -> None:
        super().__init__(why)
        self.server = server
        self.why = why
        self.status = status
        self.answer = answer


class Upstream:
    """The client side of the router.

    Args:
        limits: time limits, size of answers.
        networks: in which servers may lie; names are resolved to these only.

    Attributes:
        session: for health checks and drivers, which are few; requests go through a pool of their own.
    """

    def __init__(self, limits: LimitsConfig, networks: tuple[str, ...]) -> None:
        self._limits = limits
        addresses = Addresses(lambda address: _allowed(address, networks))
        self._pool = Pool(addresses, limits.connect_s, limits.keepalive_s)
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=limits.keepalive_s, resolver=_Within(addresses)
        )
        self.session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_s),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    @property
    def connections(self) -> int:
        """Connections that carry a request."""
        return self._pool.busy

    async def close(self) -> None:
        """All connections."""
        await self._pool.close()
        await self.session.close()

    async def open(
        self, server: Server, method: bytes, path: bytes, headers: Headers, body: bytes, by_s: float
    ) -> Answer:
        """Send a request; returns when the headers of the answer are here. It must be released.

        Args:
            path: raw, with its query.
            by_s: loop time by which they must be.

        Raises:
            Failed: they did not come.
        """
        try:
            return await self._pool.request(server.origin, method, path, headers, body, by_s)
        except TimeoutError:
            raise Failed(server, "no answer in time", 504) from None
        except (Broken, OSError) as error:
            raise Failed(server, describe_error(error)) from None

    async def whole(self, server: Server, answer: Answer, by_s: float) -> bytes:
        """The whole body of an answer.

        Raises:
            Failed: it broke off, took too long or grew too large.
        """
        answer.by_s = by_s
        try:
            return await answer.read(self._limits.max_answer_bytes)
        except TimeoutError:
            raise Failed(server, "its answer did not end in time", 504) from None
        except Broken as error:
            raise Failed(server, f"its answer broke off: {describe_error(error)}") from None

    async def ask(
        self, server: Server, path: bytes, headers: Headers, body: bytes, by_s: float
    ) -> tuple[Response, Any]:
        """POST and take the whole answer: (the answer, what its JSON says or None).

        Raises:
            Failed: no answer, a status that another server may not give, or a 200 that is no JSON.
        """
        answer = await self.open(server, b"POST", path, headers, body, by_s)
        try:
            whole = await self.whole(server, answer, by_s)
        finally:
            answer.release()
        return Response(answer.status, whole, answer.headers), self.judge(server, answer, whole)

    @staticmethod
    def judge(server: Server, answer: Answer, body: bytes) -> Any:
        """What the JSON of a 200 says; None for other answers, and for one that is compressed.

        Raises:
            Failed: an answer that another server may do better.
        """
        status = answer.status
        if status in RETRIED_STATUS:
            raise Failed(server, f"status {status}", status, Response(status, body, answer.headers))
        if status == 200 and answer.named.get(b"content-encoding", b"identity").lower() == b"identity":
            try:
                return load_json(body)
            except (ValueError, RecursionError):
                raise Failed(server, "its answer is no JSON") from None
        return None


class _Within(AbstractResolver):
    """Names become addresses of the allowed networks only, whatever a name server says later."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See aiohttp."""
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in await self._addresses.find(host)
        ]

    async def close(self) -> None:
        """See aiohttp."""


def _allowed(address: str, networks: tuple[str, ...]) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return in_networks(address, networks)
