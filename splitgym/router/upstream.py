"""Requests to servers: send a body, get an answer whole or piece by piece, tell whose fault a failure is."""

import asyncio
import ipaddress
import json
import socket
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from splitgym.router.config import LimitsConfig
from splitgym.router.health import describe_error
from splitgym.router.networks import in_networks
from splitgym.router.protocol import forwarded
from splitgym.router.servers import Server

RETRIED_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Another server may do better."""
NOT_ITS_FAULT = frozenset((408, 425, 429))

Headers = list[tuple[str, str]]


class Failed(Exception):
    """A server did not do its part, and nothing has gone to the client yet.

    Args:
        server: whose fault.
        status: that the client gets if there is no further try.
        answer: the server's own answer, where it gave one.
    """

    def __init__(
        self, server: Server, why: str, status: int = 502, answer: tuple[int, Headers, bytes] | None = None
    ) -> None:
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
    """

    def __init__(self, limits: LimitsConfig, networks: tuple[str, ...]) -> None:
        self._limits = limits
        self._connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=limits.keepalive_s,
            resolver=_Within(networks),
            ttl_dns_cache=30,
        )
        self.session = aiohttp.ClientSession(
            connector=self._connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_s),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    @property
    def connections(self) -> int:
        """Connections in use."""
        return len(self._connector._acquired)

    async def close(self) -> None:
        """All connections."""
        await self.session.close()

    async def open(
        self, server: Server, method: str, path: str, headers: Headers, body: bytes | None, by_s: float
    ) -> aiohttp.ClientResponse:
        """Send a request; returns when the headers of the answer are here.

        Args:
            path: raw, with its query.
            by_s: loop time by which they must be.

        Raises:
            Failed: they did not come.
        """
        url = URL(server.url + path, encoded=True)
        try:
            async with asyncio.timeout_at(by_s):
                return await self.session.request(
                    method, url, data=body, headers=headers, allow_redirects=False
                )
        except TimeoutError:
            raise Failed(server, "no answer in time", 504) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Failed(server, describe_error(error)) from None

    async def whole(self, server: Server, response: aiohttp.ClientResponse, by_s: float) -> bytes:
        """The whole body of an answer.

        Raises:
            Failed: it broke off, took too long or grew too large.
        """
        pieces, size = [], 0
        try:
            async with asyncio.timeout_at(by_s):
                async for piece in response.content.iter_any():
                    size += len(piece)
                    if size > self._limits.max_answer_bytes:
                        raise Failed(
                            server, f"its answer is larger than {self._limits.max_answer_bytes} bytes"
                        )
                    pieces.append(piece)
        except TimeoutError:
            raise Failed(server, "its answer did not end in time", 504) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Failed(server, f"its answer broke off: {describe_error(error)}") from None
        return b"".join(pieces)

    async def ask(
        self, server: Server, path: str, headers: Headers, body: bytes, by_s: float
    ) -> tuple[int, Headers, bytes, Any]:
        """POST and take the whole answer: (status, headers, body, what its JSON says or None).

        Raises:
            Failed: no answer, a status that another server may not give, or a 200 that is no JSON.
        """
        response = await self.open(server, "POST", path, headers, body, by_s)
        try:
            answer = await self.whole(server, response, by_s)
        finally:
            response.release()
        found = response.status, forwarded(response.headers), answer
        return *found, self.judge(server, *found)

    @staticmethod
    def judge(server: Server, status: int, headers: Headers, answer: bytes) -> Any:
        """What the JSON of a 200 says; None for other answers, and for one that is compressed.

        Raises:
            Failed: an answer that another server may do better.
        """
        if status in RETRIED_STATUS:
            raise Failed(server, f"status {status}", status, (status, headers, answer))
        if status == 200 and not _encoded(headers):
            try:
                return json.loads(answer)
            except (ValueError, RecursionError):
                raise Failed(server, "its answer is no JSON") from None
        return None


def _encoded(headers: Headers) -> bool:
    return any(k.lower() == "content-encoding" and v.lower() != "identity" for k, v in headers)


class _Within(AbstractResolver):
    """Names become addresses of the allowed networks only, whatever a name server says later."""

    def __init__(self, networks: tuple[str, ...]) -> None:
        self._networks = networks
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See aiohttp."""
        found = await self._inner.resolve(host, port, family)
        inside = [item for item in found if _allowed(item["host"], self._networks)]
        if not inside:
            raise OSError(None, f"{host} lies in none of admin.allowed_networks")
        return inside

    async def close(self) -> None:
        """See aiohttp."""
        await self._inner.close()


def _allowed(address: str, networks: tuple[str, ...]) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return in_networks(address, networks)
