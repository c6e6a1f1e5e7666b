"""KV caches that prompt engines hold for others: leases, and the side channel over which they are asked for.

What NIXL's side channel and notifications do, over HTTP: `POST /claim` finds a cache and renews its lease (a
token engine repeats it while its request waits), `POST /free` says that it has been pulled. The transfer
itself is simulated where it arrives.
"""

import asyncio
import ipaddress
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import aiohttp
from aiohttp import web

from splitgym.router.engine.clock import RealTime
from splitgym.sim.live_request import LiveRequest

log = logging.getLogger(__name__)

_NEEDED = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port", "remote_block_ids")
_TIMEOUT_S = 5.0  # NIXL gives a handshake as long


@dataclass(frozen=True)
class Ticket:
    """Where a cache is, from the `kv_transfer_params` of a token request."""

    engine_id: str
    request_id: str
    host: str
    port: int

    @classmethod
    def read(cls, params: Mapping[str, Any] | None) -> "Ticket | None":
        """None where the params name no cache."""
        if not params or not params.get("do_remote_prefill") or not all(params.get(k) for k in _NEEDED):
            return None
        engine_id, request_id, host, port = (params[k] for k in _NEEDED[:4])
        if not (isinstance(host, str) and isinstance(port, int) and 0 < port < 65536):
            return None
        return cls(str(engine_id), str(request_id), host, port)

    @property
    def body(self) -> dict[str, str]:
        return {"engine_id": self.engine_id, "request_id": self.request_id}


class Caches:
    """Caches that one engine holds.

    Args:
        time: of its live engine.
        lease_s: a cache is dropped when nobody has asked for it for so many simulated seconds.
    """

    def __init__(self, time: RealTime, lease_s: float):
        self.engine_id = str(uuid4())
        self.expired = 0
        self._time = time
        self._lease_s = lease_s
        self._held: dict[str, tuple[LiveRequest, asyncio.TimerHandle]] = {}

    @property
    def lease_s(self) -> float:
        """Of a cache, in wall seconds."""
        return self._lease_s / self._time.scale

    def hold(self, name: str, request: LiveRequest) -> None:
        """The request's cache waits to be pulled."""
        self._held[name] = request, self._expire_later(name)

    def claim(self, name: str) -> LiveRequest | None:
        """Renew a lease; None where there is no such cache (any more)."""
        if name not in self._held:
            return None
        request, timer = self._held[name]
        timer.cancel()
        self._held[name] = request, self._expire_later(name)
        return request

    def take(self, name: str) -> LiveRequest | None:
        """The cache leaves for a machine of this process; None where it is gone."""
        if name not in self._held:
            return None
        request, timer = self._held.pop(name)
        timer.cancel()
        return request

    def free(self, name: str) -> bool:
        """The cache is not needed any more; False where it was gone."""
        request = self.take(name)
        if request is not None:
            self._time.cancel(request)
        return request is not None

    def drop_all(self) -> None:
        """The engine dies; another one comes up in its place."""
        for name in list(self._held):
            self.free(name)
        self.engine_id = str(uuid4())

    def __len__(self) -> int:
        return len(self._held)

    def _expire_later(self, name: str) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self.lease_s, self._expire, name)

    def _expire(self, name: str) -> None:
        self.expired += 1
        log.warning("cache %s was not pulled within %g s: dropped", name, self._lease_s)
        self.free(name)


class SideChannel:
    """All caches of this process, and the way to those of others.

    Args:
        engines: this process's, whose `engine_id` changes when they restart.
        peers: hosts, beside loopback addresses, that may be asked.
    """

    def __init__(self, engines: list[Caches], peers: tuple[str, ...] = ()):
        self.host, self.port = "127.0.0.1", 0
        self._engines = engines
        self._peers = set(peers)
        self._session: aiohttp.ClientSession | None = None

    def here(self, ticket: Ticket) -> Caches | None:
        """The engine of this process that has the cache, or had it."""
        return next((e for e in self._engines if e.engine_id == ticket.engine_id), None)

    async def claim(self, ticket: Ticket) -> int | None:
        """Tokens of a cache of another process, its lease renewed; None where it cannot be had."""
        answer = await self._post(ticket, "claim")
        tokens = answer.get("prompt_tokens") if answer is not None else None
        return tokens if isinstance(tokens, int) else None

    async def free(self, ticket: Ticket) -> bool:
        """Tell another process that its cache was pulled; False where that failed."""
        return await self._post(ticket, "free") is not None

    async def open(self) -> None:
        """Before the first use."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S))

    async def close(self) -> None:
        """After the last one."""
        if self._session is not None:
            await self._session.close()

    def app(self) -> web.Application:
        """What other processes ask."""
        app = web.Application(client_max_size=1 << 16)
        app.add_routes([web.post("/claim", self._claim), web.post("/free", self._free)])
        return app

    async def _post(self, ticket: Ticket, what: str) -> dict[str, Any] | None:
        assert self._session is not None
        if not self._may_ask(ticket.host):
            log.warning("no cache is asked for at %s: name it in kv_peers to allow that", ticket.host)
            return None
        try:
            url = f"http://{ticket.host}:{ticket.port}/{what}"
            async with self._session.post(url, json=ticket.body, allow_redirects=False) as response:
                answer = await response.json() if response.status == 200 else None
                return answer if isinstance(answer, dict) else None
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
            log.warning("%s at %s:%s: %s", what, ticket.host, ticket.port, error or type(error).__name__)
            return None

    def _may_ask(self, host: str) -> bool:
        if host in self._peers or host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    async def _claim(self, request: web.Request) -> web.Response:
        caches, name = await self._named(request)
        held = caches.claim(name) if caches is not None else None
        if held is None:
            return web.json_response({"error": "no such cache"}, status=404)
        return web.json_response({"prompt_tokens": held.prompt_tokens})

    async def _free(self, request: web.Request) -> web.Response:
        caches, name = await self._named(request)
        found = caches is not None and caches.free(name)
        return web.json_response({}, status=200 if found else 404)

    async def _named(self, request: web.Request) -> tuple[Caches | None, str]:
        try:
            body = await request.json()
            ticket = Ticket(str(body["engine_id"]), str(body["request_id"]), "", 0)
        except (ValueError, KeyError, TypeError):
            raise web.HTTPBadRequest(text="give engine_id and request_id") from None
        return self.here(ticket), ticket.request_id
