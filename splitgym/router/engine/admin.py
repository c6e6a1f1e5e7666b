"""The fault switches of a process of engines, over HTTP on the loopback interface."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from splitgym.config import from_mapping, to_mapping
from splitgym.errors import ConfigError
from splitgym.router.engine.faults import FaultOptions
from splitgym.router.engine.process import EngineHost, Engines

Switch = Callable[[EngineHost, dict[str, Any]], Awaitable[None]]
MAX_STALL_S = 3600.0


def admin_app(engines: Engines) -> web.Application:
    """`GET /engines`; `PUT /engines/N/faults`; `POST /engines/N/kill`, `/restart`, `/stall`."""
    app = web.Application(client_max_size=1 << 16)

    async def show(request: web.Request) -> web.Response:
        return web.json_response([_state(host) for host in engines.hosts])

    def switch(do: Switch) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(request: web.Request) -> web.Response:
            index = int(request.match_info["index"])
            if index >= len(engines.hosts):
                return _error(f"there is no engine {index}: they are 0 to {len(engines.hosts) - 1}", 404)
            try:
                body = await request.json() if request.can_read_body else {}
                if not isinstance(body, dict):
                    raise ConfigError("the body must be an object")
                await do(engines.hosts[index], body)
            except (ConfigError, ValueError) as error:
                return _error(str(error), 400)
            return web.json_response(_state(engines.hosts[index]))

        return handler

    app.add_routes(
        [
            web.get("/engines", show),
            web.put(r"/engines/{index:\d{1,4}}/faults", switch(_faults)),
            web.post(r"/engines/{index:\d{1,4}}/kill", switch(_kill)),
            web.post(r"/engines/{index:\d{1,4}}/restart", switch(_restart)),
            web.post(r"/engines/{index:\d{1,4}}/stall", switch(_stall)),
        ]
    )
    return app


async def _faults(host: EngineHost, body: dict[str, Any]) -> None:
    host.server.faults.options = from_mapping(FaultOptions, body, "faults")


async def _kill(host: EngineHost, body: dict[str, Any]) -> None:
    await host.kill()


async def _restart(host: EngineHost, body: dict[str, Any]) -> None:
    await host.kill()
    await host.start()


async def _stall(host: EngineHost, body: dict[str, Any]) -> None:
    seconds = body.get("seconds")
    if not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_STALL_S:
        raise ConfigError(f"give seconds between 0 and {MAX_STALL_S:g}")
    host.server.faults.stall(float(seconds))


def _state(host: EngineHost) -> dict[str, Any]:
    server = host.server
    return {
        "engine": server.index,
        "url": host.url,
        "up": host.up,
        "role": server.options.role(server.index),
        "faults": to_mapping(server.faults.options),
        "stalled_s": server.faults.stalled_s,
        "requests": server.in_flight,
        "caches": len(server.caches),
    }


def _error(text: str, status: int) -> web.Response:
    return web.json_response({"error": text}, status=status)
