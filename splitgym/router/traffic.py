"""The port for requests: who may come in, which way a request goes, errors as OpenAI's error objects.

It stands on aiohttp's low-level server: routes and middlewares cost a request more than the policy does.
"""

import posixpath
import sys
import time
from typing import Any

from aiohttp import web

from splitgym.router.access import Door, Keys
from splitgym.router.call import gone, multi, read_body, refusal
from splitgym.router.handler import Handler
from splitgym.router.parts import Parts
from splitgym.router.protocol import Refused, forwarded
from splitgym.router.servers import Server
from splitgym.router.upstream import Failed

BLOCKED = (
    "/metrics",
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/pd_role_switch",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/reset_encoder_cache",
    "/flush_cache",
    "/collective_rpc",
    "/start_profile",
    "/stop_profile",
    "/update_weights",
    "/init_weight",
    "/abort_request",
    "/scale_elastic_ep",
    "/pause",
    "/resume",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/server_info",
    "/get_server_info",
    "/workers",
    "/inject_faults",
)
"""Paths by which a client could change a server: not passed on. So is everything that begins with them."""
COMPLETIONS = frozenset(("/v1/completions", "/v1/chat/completions"))


class Traffic:
    """Answers requests.

    Args:
        parts: of the router.
        handler: of completions.
        keys: who may come in.
    """

    def __init__(self, parts: Parts, handler: Handler, keys: Keys) -> None:
        self._parts = parts
        self._completions = handler.completions
        self._keys = keys
        self._next_other = 0
        self.door: Door | None = None  # told of connections that have asked something

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Any request; never raises but for cancellation."""
        if self.door is not None:
            self.door.heard(request)
        self._parts.active += 1
        try:
            path = request.path
            if path == "/health" and request.method in ("GET", "HEAD"):
                return self._health()
            self._keys.check(request)
            if path in COMPLETIONS and request.method == "POST":
                return await self._completions(request)
            return await self._other(request)
        except Refused as refused:
            self._parts.metrics.unauthorized += refused.status == 401
            return refusal(refused)
        except web.HTTPException as error:
            return refusal(Refused(error.status, error.reason, "InvalidRequestError"))
        except ConnectionError:
            return gone(request)
        except Exception as error:
            print(f"router: {type(error).__name__} in {request.method} {request.path}", file=sys.stderr)
            return refusal(Refused(500, "internal error of the router", "InternalServerError"))
        finally:
            self._parts.active -= 1

    def _health(self) -> web.StreamResponse:
        healthy = [server.name for server in self._parts.servers if server.healthy]
        ready = bool(healthy) and not self._parts.gate.closed
        return web.json_response({"healthy_servers": len(healthy)}, status=200 if ready else 503)

    # ---- everything else goes to one server or another as it is -------------------------------------------

    async def _other(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = posixpath.normpath("/" + request.path.lstrip("/"))
        if any(asked == path or asked.startswith((path + "/", path + "_")) for path in BLOCKED):
            raise Refused(404, f"{request.path} is not passed on", "NotFoundError")
        config, upstream = self._parts.config, self._parts.upstream
        body = await read_body(request, config.listen.max_body_bytes)
        headers = forwarded(request.headers)
        last: Failed | None = None
        for server in self._others()[: config.limits.attempts]:
            try:
                path = request.rel_url.raw_path_qs
                by_s = time.monotonic() + config.limits.prompt_s
                found = await upstream.open(server, request.method, path, headers, body or None, by_s)
            except Failed as failed:
                server.broke(failed.why)
                last = failed
                continue
            return await self._relay(request, found)
        if last is None:
            raise Refused(503, "no server is healthy", "ServiceUnavailable", 5.0)
        raise Refused(last.status, f"no server answered: {last.why}", "BadGateway")

    async def _relay(self, request: web.BaseRequest, found: Any) -> web.StreamResponse:
        out = web.StreamResponse(status=found.status, headers=multi(forwarded(found.headers)))
        try:
            if found.content_length is not None:
                out.content_length = found.content_length
            await out.prepare(request)
            async for piece in found.content.iter_any():
                await out.write(piece)
            await out.write_eof()
        except BaseException:
            found.close()
            raise
        found.release()
        return out

    def _others(self) -> list[Server]:
        """Healthy servers, each in its turn first."""
        healthy = [server for server in self._parts.servers if server.healthy]
        self._next_other += 1
        turn = self._next_other % max(1, len(healthy))
        return healthy[turn:] + healthy[:turn]
