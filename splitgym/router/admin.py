"""The admin port: metrics, the status page and its data, policies, roles, servers."""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from aiohttp import web

from splitgym import profile as profiles
from splitgym.config import make, to_mapping
from splitgym.errors import SplitgymError
from splitgym.router.access import Keys, read_body, refusal, same_host
from splitgym.router.config import ServerConfig
from splitgym.router.decisions import Deciders
from splitgym.router.metrics import CONTENT_TYPE
from splitgym.router.networks import check_network
from splitgym.router.parts import Parts
from splitgym.router.pools import Pools
from splitgym.router.protocol import Refused, parse_body
from splitgym.router.servers import Server
from splitgym.types import Pool

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]

PAGE = Path(__file__).with_name("status.html")
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_MOST_BODY = 1 << 16


class Admin:
    """The admin interface.

    Args:
        parts, pools: of the router.
        keys: who may use it.
    """

    def __init__(self, parts: Parts, pools: Pools, keys: Keys) -> None:
        self._parts = parts
        self._pools = pools
        self._keys = keys
        self._loading = asyncio.Lock()

    def application(self) -> web.Application:
        """Its routes."""
        app = web.Application(middlewares=[self._around], client_max_size=_MOST_BODY)
        app.router.add_get("/", self._page)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/admin/state", self._state)
        app.router.add_post("/admin/policy", self._policy)
        app.router.add_post("/admin/shadow", self._shadow)
        app.router.add_post("/admin/role", self._role)
        app.router.add_post("/admin/servers", self._add_server)
        app.router.add_delete("/admin/servers/{name}", self._remove_server)
        return app

    @web.middleware
    async def _around(self, request: web.Request, handler: Respond) -> web.StreamResponse:
        try:
            if request.path != "/":  # the page itself holds nothing; it asks for the key
                self._keys.check(
                    request.headers.get("Authorization", ""), request.headers.get("X-Api-Key", "")
                )
            if not self._keys and not same_host(request):
                raise Refused(
                    403, "without keys the admin port answers to its own address alone", "Forbidden"
                )
            if request.method not in ("GET", "HEAD") and request.content_type != "application/json":
                # What a form on another page cannot send.
                raise Refused(415, "send application/json", "UnsupportedMediaType")
            return await handler(request)
        except Refused as refused:
            self._parts.metrics.unauthorized += refused.status == 401
            return refusal(refused)
        except SplitgymError as error:
            return refusal(Refused(400, str(error)))
        except web.HTTPException as error:
            return refusal(Refused(error.status, error.reason, "InvalidRequestError"))

    # ---- reading ------------------------------------------------------------------------------------------

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text=PAGE.read_text(), content_type="text/html", headers=_PAGE_HEADERS)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self._parts.metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _state(self, request: web.Request) -> web.StreamResponse:
        text = json.dumps(self.state(), allow_nan=False)
        return web.Response(text=text, content_type="application/json", headers={"Cache-Control": "no-store"})

    def state(self) -> dict[str, Any]:
        """What the status page shows."""
        parts = self._parts
        parts.settle()
        decisions, now_s = parts.decisions, parts.now_s()
        parts.state.refresh()
        return {
            "up_s": now_s,
            "policy": {
                "name": decisions.deciders.name,
                "bundle": decisions.deciders.sha256,
                "heuristic": decisions.heuristic.name,
                "shadow": decisions.shadow,
                "sizing": decisions.deciders.sizing.name,
            },
            "servers": [self._server(server) for server in parts.servers if not server.removed],
            "active": parts.active,
            "waiting": parts.gate.waiting,
            "decided": dict(decisions.decided),
            "fallbacks": dict(decisions.fallbacks),
            "attainment": parts.window.summary(now_s),
            "series": parts.window.series(now_s),
            "decisions": [
                {"request": request_id, **attempt.as_dict()}
                for request_id, attempt in list(decisions.recent)[-30:][::-1]
            ],
            "changes": list(self._pools.changes)[-20:][::-1],
            "requests": {f"{e} {o}": n for (e, o), n in parts.metrics.requests.items()},
        }

    def _server(self, server: Server) -> dict[str, Any]:
        view, m = self._parts.state.view, server.index
        reports = {k: v for k, v in server.reports.items() if math.isfinite(v)}
        return {
            "name": server.name,
            "url": server.url,
            "machine": server.config.machine,
            "home": Pool(int(view.home_pool[m])).name.lower(),
            "pool": Pool(int(view.pool[m])).name.lower(),
            "stage": self._pools.stage(server),
            "up": server.up,
            "circuit": str(server.circuit),
            "last_error": server.last_error,
            "active": server.active,
            "max_requests": server.config.max_requests,
            "prompt_tokens": int(view.prompt_tokens[m]),
            "running": int(view.running[m]),
            "inbound": int(view.inbound[m]),
            "kv": min(1.0, int(view.kv_used_tokens[m]) / int(view.kv_capacity_tokens[m])),
            "served": server.served,
            "failed": server.failed,
            "reports": reports,
        }

    # ---- changing -----------------------------------------------------------------------------------------

    async def load_policy(self, path: str | None, sizing: str | None = None) -> str:
        """Load a policy while requests go on; the old one stays until the new one has begun.

        Args:
            path: None loads the configured one again.
            sizing: who resizes: a built-in name, or a bundle as for `path`; None is what the configuration or
                the bundle says.

        Returns:
            its name.

        Raises:
            SplitgymError: it is refused; the old one stays.
            Refused: 403, the path is not one that may be named here.
        """
        parts = self._parts
        config = parts.config.policy
        text = config.routing if path is None else self._allowed(path)
        size = config.sizing if sizing is None else self._allowed(sizing)
        async with self._loading:
            try:
                # Reading and checking take a while: not in the loop that serves.
                found = await asyncio.to_thread(self._load, text, size, config.confine)
                parts.decisions.swap(found)
            except SplitgymError as error:
                parts.metrics.swaps["refused"] += 1
                parts.log.event("policy", outcome="refused", why=str(error))
                raise
        parts.metrics.swaps["done"] += 1
        parts.log.event("policy", outcome="done", policy=found.name, bundle=found.sha256)
        return found.name

    def _load(self, routing: str, sizing: str | None, confine: bool | None) -> Deciders:
        found = Deciders.load(routing, sizing, confine)
        found.warm(self._parts.scratch())
        return found

    def _allowed(self, path: str) -> str:
        from splitgym import schedulers
        from splitgym.policy.find import PRETRAINED

        config = self._parts.config.policy
        if path.startswith(PRETRAINED) or path in (config.routing, config.sizing):
            return path
        if path in schedulers.routing_names() or path in schedulers.sizing_names():
            return path
        folder = self._parts.config.admin.bundles
        if folder is not None and (Path(folder) / path).resolve().is_relative_to(Path(folder).resolve()):
            return str((Path(folder) / path).resolve())
        raise Refused(
            403, "bundles are taken from the configuration and from admin.bundles only", "Forbidden"
        )

    async def _policy(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request, {"routing", "sizing"})
        name = await self.load_policy(_text(body, "routing"), _text(body, "sizing"))
        return web.json_response({"policy": name, "bundle": self._parts.decisions.deciders.sha256})

    async def _shadow(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request, {"shadow"})
        if not isinstance(body.get("shadow"), bool):
            raise Refused(400, "shadow must be true or false")
        self._parts.decisions.shadow = body["shadow"]
        self._parts.log.event("shadow", shadow=body["shadow"])
        return web.json_response({"shadow": body["shadow"]})

    async def _role(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request, {"server", "pool"})
        server = self._find(_text(body, "server") or "")
        pool = str(body.get("pool", "")).upper()
        if pool not in Pool.__members__:
            raise Refused(400, "pool must be prompt, token or mixed")
        self._pools.move(server, Pool[pool], "admin")
        return web.json_response({"server": server.name, "to": pool.lower()}, status=202)

    async def _add_server(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request, {field.name for field in fields(ServerConfig)})
        config = make(ServerConfig, **body)
        known = {server.config.machine for server in self._parts.servers}
        if config.machine not in known | set(profiles.machine_names()):
            raise Refused(403, "machine must be a built-in one, or one that another server is", "Forbidden")
        for server in self._parts.servers:
            if not server.removed and (config.name == server.name or config.url == server.config.url):
                raise Refused(409, f"{server.name} has that name or url already", "Conflict")
        try:
            check_network(config.url, self._parts.config.admin.allowed_networks)
        except ValueError as error:
            raise Refused(403, str(error), "Forbidden") from None
        server = self._parts.add_server(config)
        about = {
            "servers": self._parts.logged_servers(),
            "cluster": to_mapping(self._parts.state.cluster.config),
        }
        self._parts.log.event("server", added=server.name, **about)
        self._parts.log.amend(**about)
        return web.json_response({"server": server.name}, status=201)

    async def _remove_server(self, request: web.Request) -> web.StreamResponse:
        server = self._find(request.match_info["name"])
        left = [s for s in self._parts.servers if not s.removed and s is not server]
        if not left:
            raise Refused(409, "the last server stays", "Conflict")
        server.removed = True
        server.tell()
        self._parts.log.event("server", removed=server.name)
        return web.json_response({"server": server.name, "in_progress": server.active})

    def _find(self, name: str) -> Server:
        for server in self._parts.servers:
            if server.name == name and not server.removed:
                return server
        raise Refused(404, f"no server is called {name[:80]!r}", "NotFoundError")


async def _json(request: web.Request, known: set[str]) -> dict[str, Any]:
    body = parse_body(await read_body(request, _MOST_BODY))
    unknown = sorted(body.keys() - known)
    if unknown:
        raise Refused(400, f"unknown field {unknown[0][:80]!r}")
    return body


def _text(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise Refused(400, f"{name} must be a text")
    return value
