"""A running router: two HTTP servers, background tasks, signals, an orderly end."""

import asyncio
import posixpath
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from aiohttp import web
from yarl import URL

from splitgym.errors import ConfigError, SplitgymError
from splitgym.router.access import Door, Keys, http_log
from splitgym.router.admin import Admin
from splitgym.router.call import gone, multi, read_body, refusal
from splitgym.router.config import RouterConfig
from splitgym.router.handler import Handler
from splitgym.router.health import Watch
from splitgym.router.parts import Parts
from splitgym.router.pools import Pools
from splitgym.router.protocol import Refused, forwarded
from splitgym.router.upstream import Failed

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]

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


class Router:
    """The router as an object: `start`, `stop`, and the ports it listens at.

    Args:
        config: the router's.

    Raises:
        SplitgymError: something in the configuration cannot be used.
    """

    def __init__(self, config: RouterConfig) -> None:
        self.config = config
        self.parts = Parts(config)
        self.handler = Handler(self.parts)
        self._keys = Keys(config.listen.keys.read())
        self.pools = Pools(self.parts)
        self.admin = Admin(self.parts, self.pools, Keys(config.admin.keys.read()))
        self._tls = _tls(config)
        self._tasks: list[asyncio.Task[None]] = []
        self._runners: list[web.AppRunner] = []
        self._listening: list[asyncio.Server] = []
        self.door: Door | None = None
        self._next_other = 0

    async def start(self) -> None:
        """Begin to listen; returns when both ports are open.

        Raises:
            ConfigError: a port is taken.
        """
        self.parts.open()
        self.pools.open()
        listen, admin = self.config.listen, self.config.admin
        try:
            self.port = await self._serve(self._traffic(), listen.host, listen.port, True)
            self.admin_port = await self._serve(self.admin.application(), admin.host, admin.port, False)
        except OSError as error:
            await self.stop(0.0)
            raise ConfigError(f"cannot listen ({error.strerror or error})") from None
        watch = Watch(self.parts.upstream.session, self.config.health, self.parts.servers, self.parts.state)
        assert self.door is not None
        for work in (watch.run(), self.pools.run(), self._flush(), self.door.sweep()):
            self._tasks.append(asyncio.create_task(work))

    async def stop(self, within_s: float | None = None) -> bool:
        """Refuse new requests, let those in progress end, close everything.

        Returns:
            False where requests were still in progress and have been cut off.
        """
        self.parts.gate.closed = True
        for server in self._listening:
            server.close()
        clean = await self.parts.drained(self.config.limits.shutdown_s if within_s is None else within_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for runner in self._runners:
            await runner.cleanup()
        await self.pools.close()
        self.parts.log.event("stop", clean=clean)
        await self.parts.close()
        return clean

    async def _serve(self, app: web.Application, host: str, port: int, traffic: bool) -> int:
        listen = self.config.listen
        runner = web.AppRunner(
            app,
            handler_cancellation=True,  # a client that goes cancels its request
            access_log=None,
            logger=http_log(),
            max_line_size=listen.max_header_bytes,
            max_field_size=listen.max_header_bytes,
            keepalive_timeout=75.0,
            shutdown_timeout=1.0,
        )
        await runner.setup()
        self._runners.append(runner)
        door = Door(runner.server, listen.max_connections)
        if traffic:
            self.door = door
        tls = self._tls if traffic else None
        loop = asyncio.get_running_loop()
        server = await loop.create_server(door, host, port, ssl=tls, backlog=1024)
        self._listening.append(server)
        found: int = server.sockets[0].getsockname()[1]
        return found

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.parts.log.flush()

    # ---- traffic ------------------------------------------------------------------------------------------

    def _traffic(self) -> web.Application:
        app = web.Application(middlewares=[self._around], client_max_size=self.config.listen.max_body_bytes)
        app.router.add_get("/health", self._health)
        app.router.add_post("/v1/completions", self.handler.completions)
        app.router.add_post("/v1/chat/completions", self.handler.completions)
        app.router.add_route("*", "/{path:.*}", self._other)
        return app

    @web.middleware
    async def _around(self, request: web.Request, handler: Respond) -> web.StreamResponse:
        """Keys, and errors as OpenAI's error objects."""
        assert self.door is not None
        self.door.heard(request)
        self.parts.active += 1
        try:
            if request.path != "/health":
                self._keys.check(request)
            return await handler(request)
        except Refused as refused:
            self.parts.metrics.unauthorized += refused.status == 401
            return refusal(refused)
        except web.HTTPException as error:
            return refusal(Refused(error.status, error.reason, "InvalidRequestError"))
        except ConnectionError:
            return gone(request)
        except Exception as error:
            print(f"router: {type(error).__name__} in {request.method} {request.path}", file=sys.stderr)
            return refusal(Refused(500, "internal error of the router", "InternalServerError"))
        finally:
            self.parts.active -= 1

    async def _health(self, request: web.Request) -> web.StreamResponse:
        healthy = [server.name for server in self.parts.servers if server.healthy]
        ready = bool(healthy) and not self.parts.gate.closed
        return web.json_response({"healthy_servers": len(healthy)}, status=200 if ready else 503)

    async def _other(self, request: web.Request) -> web.StreamResponse:
        """Everything else goes to one server or another as it is."""
        asked = posixpath.normpath("/" + request.path.lstrip("/"))
        if any(asked == path or asked.startswith((path + "/", path + "_")) for path in BLOCKED):
            raise Refused(404, f"{request.path} is not passed on", "NotFoundError")
        body = await read_body(request, self.config.listen.max_body_bytes)
        upstream, limits = self.parts.upstream, self.config.limits
        headers = forwarded(request.headers)
        loop = asyncio.get_running_loop()
        last: Failed | None = None
        for server in self._others()[: limits.attempts]:
            try:
                path = request.rel_url.raw_path_qs
                by_s = loop.time() + limits.prompt_s
                answer = await upstream.open(server, request.method, path, headers, body or None, by_s)
            except Failed as failed:
                server.broke(failed.why)
                last = failed
                continue
            return await self._relay(request, answer)
        if last is None:
            raise Refused(503, "no server is healthy", "ServiceUnavailable", 5.0)
        raise Refused(last.status, f"no server answered: {last.why}", "BadGateway")

    async def _relay(self, request: web.Request, answer: Any) -> web.StreamResponse:
        out = web.StreamResponse(status=answer.status, headers=multi(forwarded(answer.headers)))
        try:
            if answer.content_length is not None:
                out.content_length = answer.content_length
            await out.prepare(request)
            async for piece in answer.content.iter_any():
                await out.write(piece)
            await out.write_eof()
        except BaseException:
            answer.close()
            raise
        answer.release()
        return out

    def _others(self) -> list[Any]:
        """Healthy servers, each in its turn first."""
        healthy = [server for server in self.parts.servers if server.healthy]
        self._next_other += 1
        turn = self._next_other % max(1, len(healthy))
        return healthy[turn:] + healthy[:turn]


def _tls(config: RouterConfig) -> ssl.SSLContext | None:
    listen = config.listen
    if listen.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(listen.certificate, listen.private_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"listen.certificate {listen.certificate} cannot be used ({error})") from None
    return context


async def serve(config: RouterConfig, say: Callable[[str], None]) -> bool:
    """Run a router until SIGTERM or SIGINT; SIGHUP loads the configured policy again.

    Args:
        config: the router's.
        say: told what to show.

    Returns:
        False where requests were cut off at the end.
    """
    router = Router(config)
    await router.start()
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)

    def reload() -> None:
        task = loop.create_task(again())
        router._tasks.append(task)

    async def again() -> None:
        try:
            name = await router.admin.load_policy(None)
        except SplitgymError as error:
            say(f"policy kept: {error}")
        else:
            say(f"policy {name} loaded")

    with suppress(AttributeError, NotImplementedError):
        loop.add_signal_handler(signal.SIGHUP, reload)
    scheme = "https" if config.listen.certificate else "http"
    say(f"requests  {URL.build(scheme=scheme, host=config.listen.host, port=router.port)}")
    say(f"status    {URL.build(scheme='http', host=config.admin.host, port=router.admin_port)}")
    await over.wait()
    say("stopping: requests in progress are finished")
    return await router.stop()


def run(config: RouterConfig, say: Callable[[str], None]) -> bool:
    """`serve` in a loop of its own, uvloop's where it is installed."""
    try:
        import uvloop

        return uvloop.run(serve(config, say))
    except ImportError:
        return asyncio.run(serve(config, say))


__all__ = ["Router", "run", "serve"]
