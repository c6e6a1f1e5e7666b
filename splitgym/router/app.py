"""A running router: two HTTP servers, background tasks, signals, an orderly end."""

import asyncio
import signal
import ssl
from collections.abc import Callable
from contextlib import suppress

from aiohttp import web
from yarl import URL

from splitgym.errors import ConfigError, SplitgymError
from splitgym.router.access import Door, Keys, http_log
from splitgym.router.admin import Admin
from splitgym.router.config import RouterConfig
from splitgym.router.handler import Handler
from splitgym.router.health import Watch
from splitgym.router.http.server import HANDSHAKE_S, HttpServer
from splitgym.router.parts import Parts
from splitgym.router.pools import Pools
from splitgym.router.traffic import BLOCKED, Traffic


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
        self.traffic = Traffic(self.parts, self.handler, Keys(config.listen.keys.read()))
        self.pools = Pools(self.parts)
        self.admin = Admin(self.parts, self.pools, Keys(config.admin.keys.read()))
        self._tls = _tls(config)
        self._tasks: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None
        self._listening: list[asyncio.Server] = []
        limits = config.listen.max_connections, config.listen.max_header_bytes, config.listen.max_body_bytes
        self.door = HttpServer(self.traffic.answer, self.traffic.check, self.traffic.refusal, limits)

    async def start(self) -> None:
        """Begin to listen; returns when both ports are open.

        Raises:
            ConfigError: a port is taken.
        """
        self.parts.open()
        self.pools.open()
        listen, admin = self.config.listen, self.config.admin
        try:
            self.port = await self._listen(self.door, listen.host, listen.port, self._tls)
            self.admin_port = await self._listen(await self._pages(), admin.host, admin.port, None)
        except OSError as error:
            await self.stop(0.0)
            raise ConfigError(f"cannot listen ({error.strerror or error})") from None
        watch = Watch(self.parts.upstream.session, self.config.health, self.parts.servers, self.parts.state)
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
        self.door.close_idle()
        clean = await self.parts.drained(self.config.limits.shutdown_s if within_s is None else within_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.door.abort()
        if self._runner is not None:
            await self._runner.cleanup()
        await self.pools.close()
        self.parts.log.event("stop", clean=clean)
        await self.parts.close()
        return clean

    async def _pages(self) -> Door:
        """The admin port's protocols, aiohttp's."""
        listen = self.config.listen
        self._runner = web.AppRunner(
            self.admin.application(),
            handler_cancellation=True,  # a client that goes cancels its request
            access_log=None,
            logger=http_log(),
            max_line_size=listen.max_header_bytes,
            max_field_size=listen.max_header_bytes,
            keepalive_timeout=75.0,
            shutdown_timeout=1.0,
        )
        await self._runner.setup()
        return Door(self._runner.server, listen.max_connections)

    async def _listen(
        self, door: Callable[[], asyncio.BaseProtocol], host: str, port: int, tls: ssl.SSLContext | None
    ) -> int:
        loop = asyncio.get_running_loop()
        handshake_s = None if tls is None else HANDSHAKE_S
        server = await loop.create_server(
            door, host, port, ssl=tls, ssl_handshake_timeout=handshake_s, backlog=1024
        )
        self._listening.append(server)
        found: int = server.sockets[0].getsockname()[1]
        return found

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.parts.log.flush()


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


__all__ = ["BLOCKED", "Router", "run", "serve"]
