"""Simulated engines for tests: tiny profile, ports that the system chooses, nothing left behind."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aiohttp
from tiny import tiny_profile

from splitgym.router.engine import EngineOptions, Engines, running

REMOTE_DECODE = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}

PARAMS = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_engine_id": "gone",
    "remote_request_id": "gone",
    "remote_block_ids": [[1]],
    "remote_host": "127.0.0.1",
    "remote_port": 9,
}
"""A cache that is nowhere."""


class Client:
    """Asks one server."""

    def __init__(self, session: aiohttp.ClientSession, url: str):
        self.session, self.url = session, url

    async def post(self, path: str = "/v1/completions", **body: Any) -> Any:
        """The JSON of an answer, which must be 200."""
        status, answer = await self.ask(path, **body)
        assert status == 200, answer
        return answer

    async def ask(self, path: str = "/v1/completions", **body: Any) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=body) as response:
            return response.status, await response.json()

    async def stream(self, path: str = "/v1/completions", **body: Any) -> list[Any]:
        """The events of a stream, `[DONE]` included."""
        async with self.session.post(self.url + path, json={**body, "stream": True}) as response:
            assert response.status == 200, await response.text()
            text = await response.text()
        return [event_of(part) for part in text.split("\n\n") if part]

    async def get(self, path: str) -> str:
        async with self.session.get(self.url + path) as response:
            return await response.text()

    async def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric that have these labels."""
        found = 0.0
        for line in (await self.get("/metrics")).splitlines():
            if line.startswith(name + "{") and all(f'{k}="{v}"' in line for k, v in labels.items()):
                found += float(line.rsplit(" ", 1)[1])
        return found


def event_of(part: str) -> Any:
    data = part.removeprefix("data: ")
    return data if data == "[DONE]" else json.loads(data)


def text_of(events: list[Any]) -> str:
    return "".join(c["text"] for e in events if e != "[DONE]" for c in e["choices"])


@contextlib.asynccontextmanager
async def engines(**options: Any) -> AsyncIterator[tuple[Engines, list[Client]]]:
    """Running engines and a client for each."""
    profile = options.pop("tiny", None) or tiny_profile()
    fields = {"port": 0, "time_scale": 100.0, "mean_output_tokens": 0, **options}
    async with (
        running(EngineOptions(**fields), profile) as there,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
    ):
        yield there, [Client(session, host.url) for host in there.hosts]


def play(scenario: Callable[[], Awaitable[None]], loop: Callable[[], Any] | None = None) -> None:
    """Run a scenario; no task may outlive it.

    Args:
        scenario: what happens.
        loop: makes another event loop, see `virtual_time`.
    """

    async def whole() -> None:
        await scenario()
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(whole())


def is_idle(there: Engines) -> bool:
    """No work, no memory held, nobody remembered."""
    live = there.time.live
    work = [m.reserved or m.used or m.batch or m.prompt_queue or m.inbound for m in live.machines]
    calls = [host.server.in_flight or len(host.server.caches) for host in there.hosts]
    return not any(work) and not any(calls) and not live.accounts.requests


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that is about to happen."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def in_thread(**options: Any) -> Iterator[tuple[Engines, list[str]]]:
    """Engines in a loop of another thread, for clients that block."""
    ready: list[Any] = []
    up, end = threading.Event(), []

    async def serve() -> None:
        stop = asyncio.Event()
        end.append((asyncio.get_running_loop(), stop))
        async with engines(**options) as (there, clients):
            ready.append((there, [c.url for c in clients]))
            up.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert up.wait(20), "the engines did not start"
        yield ready[0]
    finally:
        loop, stop = end[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join()
