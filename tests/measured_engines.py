"""Simulated engines to measure, in virtual time and over a slow way."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from splitgym.measuring.plan import Limits
from splitgym.measuring.run import Outcome, Servers, measure
from splitgym.router.engine import EngineOptions, running
from splitgym.router.engine.call import Call
from splitgym.router.engine.server import EngineServer
from tests.virtual_time import virtual_time

BANDWIDTH = 10_000_000_000
BATCHING: Any = {"rule": "vllm", "max_num_batched_tokens": 8192}
OPTIONS = EngineOptions(
    engines=2, port=0, mean_output_tokens=0, bandwidth_bytes_per_s=BANDWIDTH, batching=BATCHING
)


def slow_way(
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    there_s: tuple[float, float] = (0.002, 0.006),
    back_s: float = 0.002,
    byte_s: float = 0.0,
) -> None:
    """Requests take 2 to 6 ms to the engine, and so long a byte to read; tokens up to 2 ms back."""
    draw = random.Random(seed)
    read, get = EngineServer._read, Call.get

    async def later(self: EngineServer, request: Any) -> Any:
        await asyncio.sleep(draw.uniform(*there_s) + byte_s * (request.content_length or 0))
        return await read(self, request)

    async def late(self: Call) -> Any:
        found = await get(self)
        await asyncio.sleep(draw.uniform(0, back_s))
        return found

    monkeypatch.setattr(EngineServer, "_read", later)
    monkeypatch.setattr(Call, "get", late)


def in_virtual_time(
    monkeypatch: pytest.MonkeyPatch, limits: Limits, path: Path, options: EngineOptions = OPTIONS
) -> Outcome:
    async def whole() -> Outcome:
        async with running(options) as engines:
            one, two = (host.url for host in engines.hosts)
            return await measure(Servers(one, one, two), limits, path)

    modules = ("splitgym.router.engine.clock", "splitgym.measuring.client", "splitgym.measuring.run")
    with virtual_time(monkeypatch, *modules) as (loop, _), asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(whole())
