"""A process of simulated engines: one machine and one port each, one time line for all."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from uuid import uuid4

import numpy as np
from aiohttp import web

from splitgym import profile as profiles
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, MachineGroup, TransferConfig
from splitgym.errors import ConfigError
from splitgym.profile import Profile
from splitgym.profile.profile import MAX_BATCH
from splitgym.router.engine.caches import Caches, SideChannel
from splitgym.router.engine.call import Model
from splitgym.router.engine.clock import RealTime
from splitgym.router.engine.options import EngineOptions
from splitgym.router.engine.server import EngineServer
from splitgym.sim.live import live_engine
from splitgym.sim.live_request import LiveRequest

log = logging.getLogger(__name__)

GRACE_S = 5.0
"""On a signal, requests in flight have so long to end."""
_DEFAULT_MODEL_LEN = 32_768


class EngineHost:
    """One engine and its listener, which may go down and come back.

    Args:
        server: the engine.
        host, port: where; port 0 is any free one, kept from then on.
    """

    def __init__(self, server: EngineServer, host: str, port: int):
        self.server = server
        self.host, self.port = host, port
        self.up = False
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def start(self) -> None:
        """Listen."""
        if not self.up:
            self._runner, self.port = await listen(self.server.app(), self.host, self.port)
            self.up = True

    async def kill(self) -> None:
        """Die at once: connections are reset, caches are lost, nobody listens."""
        runner, self._runner, self.up = self._runner, None, False
        if runner is None:
            return
        for site in list(runner.sites):
            await site.stop()
        if runner.server is not None:
            for connection in list(runner.server.connections):
                if connection.transport is not None:
                    connection.transport.abort()
        self.server.caches.drop_all()
        await runner.cleanup()

    async def stop(self) -> None:
        """Stop listening, let requests in flight end."""
        runner, self._runner, self.up = self._runner, None, False
        if runner is not None:
            await runner.cleanup()
        await self.server.close()


class Engines:
    """The engines of this process; use `running`."""

    def __init__(self, options: EngineOptions, profile: Profile):
        self.options = options
        cluster = _cluster(options, profile)
        model = _model(options, profile, int(cluster.kv_capacity_tokens.min()))
        _warm_up(cluster)
        self.time = RealTime(live_engine(cluster), options.time_scale)
        caches = [Caches(self.time, options.kv_lease_s) for _ in range(options.engines)]
        self.side = SideChannel(caches, options.kv_peers)
        self.hosts = []
        for index, held in enumerate(caches):
            server = EngineServer(
                index, options, self.time, held, self.side, model, cluster.kv_bytes_per_token
            )
            port = options.port + index if options.port else 0
            self.hosts.append(EngineHost(server, options.host, port))
        self.admin_port: int | None = None
        self._runners: list[web.AppRunner] = []

    async def start(self) -> None:
        """Listen on all ports.

        Raises:
            ConfigError: a port is taken.
        """
        from splitgym.router.engine.admin import admin_app

        options = self.options
        await self.side.open()
        runner, self.side.port = await listen(self.side.app(), options.host, options.side_channel_port)
        self.side.host = options.host
        self._runners.append(runner)
        if options.admin_port is not None:
            runner, self.admin_port = await listen(admin_app(self), "127.0.0.1", options.admin_port)
            self._runners.append(runner)
        for host in self.hosts:
            await host.start()

    async def stop(self) -> None:
        """Let requests in flight end, close everything."""
        await asyncio.gather(*(host.stop() for host in self.hosts))
        self.time.stop()
        for runner in self._runners:
            await runner.cleanup()
        await self.side.close()


@contextlib.asynccontextmanager
async def running(options: EngineOptions, profile: Profile | None = None) -> AsyncIterator[Engines]:
    """Engines that listen within the context.

    Raises:
        ConfigError: a setting that does not fit, a port that is taken.
        ProfileError: no such profile.
    """
    engines = Engines(options, profile or profiles.find(options.profile))
    try:
        await engines.start()
        yield engines
    finally:
        await engines.stop()


def run(options: EngineOptions, say: Callable[[str], None] = print) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: a setting that does not fit, a port that is taken.
        ProfileError: no such profile.
    """
    try:
        import uvloop
    except ImportError:
        loop_factory = None
    else:
        loop_factory = uvloop.new_event_loop
    profile = profiles.find(options.profile)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_serve(options, profile, say))


async def _serve(options: EngineOptions, profile: Profile, say: Callable[[str], None]) -> None:
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    async with running(options, profile) as engines:
        for host in engines.hosts:
            server = host.server
            say(
                f"{host.url}  {server.model.name} on {profile.machine.name}, "
                f"role {options.role(server.index)}, up to {server.model.max_model_len} tokens"
            )
        side = f"side channel {engines.side.host}:{engines.side.port}"
        admin = f", faults http://127.0.0.1:{engines.admin_port}" if engines.admin_port else ""
        say(f"{options.time_scale:g} simulated seconds a second, {side}{admin}")
        await end.wait()
        say("stopping")


async def listen(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Serve an application; the runner, and the port that it listens on.

    Raises:
        ConfigError: the port is taken, or the host is not this machine.
    """
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=GRACE_S)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    await runner.setup()
    await web.SockSite(runner, bound).start()
    return runner, int(bound.getsockname()[1])


def _cluster(options: EngineOptions, profile: Profile) -> Cluster:
    group = MachineGroup(count=options.engines, tensor_parallel=profile.tensor_parallel)
    config = ClusterConfig(
        model=profile.model.name,
        machines=(group,),
        batching=options.batching,
        transfer=TransferConfig(mode="serial", bandwidth_bytes_per_s=options.bandwidth_bytes_per_s),
    )
    if options.batching.max_tasks > MAX_BATCH:
        raise ConfigError(f"{options.batching.max_tasks} requests in a batch: profiles reach {MAX_BATCH}")
    return Cluster(config, (profile, profile), np.ones(options.engines, np.int64))


def _warm_up(cluster: Cluster) -> None:
    """Compile the profile's functions, which would make the first request a second late."""
    live = live_engine(cluster)
    for arrival_ns in (0, 1):
        live.submit(LiveRequest(0, prompt_tokens=1, output_tokens=3), arrival_ns)
    live.step_to(1 << 62)


def _model(options: EngineOptions, profile: Profile, capacity: int) -> Model:
    most = capacity - 1  # the rules hold a token more for a request whose cache was pulled
    longest = options.max_model_len or min(most, _DEFAULT_MODEL_LEN)
    if longest > most:
        raise ConfigError(
            f"max_model_len is {longest}: {profile.machine.name} holds {most} tokens of KV cache beside "
            f"{profile.model.name}"
        )
    name = options.served_model_name or profile.model.name
    return Model(
        name=name,
        root=profile.model.name,
        max_model_len=longest,
        mean_output_tokens=options.mean_output_tokens,
        fingerprint=f"splitgym-{uuid4().hex[:8]}",
    )
