"""Chaos: a router in front of four simulated engines that are killed, stalled, slowed and broken at random.

    python benchmarks/chaos.py [--seconds 60] [--rate 200] [--seed 0] [--json FILE]

Requests come by a Poisson process, half of them streamed; some clients send slowly, some go away. Meanwhile
an engine is killed and started again, another stalls, answers errors, resets connections, breaks off its JSON
or writes slowly, and servers change their roles; two engines of the four are left alone at any time, so that
every request could be answered. Every answer is compared, token by token, with what an engine says that is
left in peace. Counted are: requests lost, answered twice or wrongly, and whatever is left over at the end.
Exit status 1 where there is any.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from splitgym.config import from_mapping
from splitgym.router.app import Router
from splitgym.router.call import Call
from splitgym.router.config import RouterConfig
from splitgym.router.engine import EngineOptions, Engines, running
from splitgym.router.engine.faults import FaultOptions
from splitgym.router.protocol import Refused, StreamMeter
from splitgym.router.records import Record
from splitgym.router.state import Flight
from splitgym.types import Pool

PROMPTS, TOKENS = 40, 10
KINDS = ("kill", "stall", "errors", "resets", "malformed", "slow bodies", "everything", "role", "role")
FAULTS = {
    "errors": FaultOptions(error_probability=0.5),
    "resets": FaultOptions(reset_probability=0.5),
    "malformed": FaultOptions(malformed_probability=0.5),
    "slow bodies": FaultOptions(slow_body_s=0.1),
    "everything": FaultOptions(
        error_probability=0.2, reset_probability=0.2, malformed_probability=0.2, slow_body_s=0.02
    ),
}
OURS = (Flight, Call, Record, StreamMeter)
"""Objects of which none may be left when no request is in progress."""


@dataclass
class Outcome:
    """What was counted.

    Attributes:
        answers: requests by how they ended: whole, stream, broken (after the first byte, and it says so),
            gone (the client went away), lost, wrong.
        first: an example of each of the last two.
        trouble: what was done to the engines.
        left: what remained at the end, by kind; all should be 0.
    """

    seconds: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    trouble: Counter[str] = field(default_factory=Counter)
    left: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    repeated_ids: int = 0
    memory_mb: list[float] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing lost, wrong, or left over."""
        bad = self.answers["lost"] + self.answers["wrong"] + self.repeated_ids
        return bad == 0 and not any(self.left.values())


class Chaos:
    """One run.

    Args:
        engines, router: running.
        rate_per_s: of requests.
        seed: of requests and trouble.
    """

    def __init__(self, engines: Engines, router: Router, rate_per_s: float, seed: int) -> None:
        self.engines, self.router, self.rate_per_s = engines, router, rate_per_s
        self.rng = np.random.default_rng(seed)
        self.found = Outcome()
        self.model = engines.hosts[0].server.model.name
        self.url = f"http://127.0.0.1:{router.port}"
        self.expected: list[str] = []
        self._troubled: set[int] = set()
        self._healing: set[asyncio.Task[None]] = set()

    def body(self, number: int, stream: bool) -> dict[str, Any]:
        """One of `PROMPTS` requests."""
        prompt = f"word {number} " * (5 + 7 * number)
        return {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": TOKENS,
            "temperature": 0.0,
            "stream": stream,
        }

    async def run(self, seconds: float) -> Outcome:
        """Requests and trouble for so long; then peace, and the count of what is left."""
        found = self.found
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            url = self.engines.hosts[0].url + "/v1/completions"
            for number in range(PROMPTS):
                async with session.post(url, json=self.body(number, False)) as response:
                    self.expected.append((await response.json())["choices"][0]["text"])
            begin = time.monotonic()
            trouble = asyncio.create_task(self._trouble())
            tasks: set[asyncio.Task[None]] = set()
            at_s, marks = 0.0, [seconds / 2, seconds]
            while (at_s := at_s + float(self.rng.exponential(1 / self.rate_per_s))) < seconds:
                await asyncio.sleep(max(0.0, begin + at_s - time.monotonic()))
                task = asyncio.create_task(self._one(session, int(self.rng.integers(PROMPTS))))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                if at_s > marks[0]:
                    found.memory_mb.append(_memory_mb())
                    marks.pop(0)
            trouble.cancel()
            await asyncio.gather(*tasks)
            found.seconds = time.monotonic() - begin
            await asyncio.gather(trouble, *self._healing, return_exceptions=True)
        found.memory_mb.append(_memory_mb())
        found.retries = self.router.parts.metrics.retries
        return found

    # ---- requests -----------------------------------------------------------------------------------------

    async def _one(self, session: aiohttp.ClientSession, number: int) -> None:
        way = float(self.rng.random())
        try:
            async with asyncio.timeout(60):
                if way < 0.03:
                    how, what = await self._gone(session, number)
                elif way < 0.5:
                    how, what = await self._stream(session, number)
                else:
                    how, what = await self._whole(session, number, slow=way > 0.97)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            how, what = "lost", repr(error)
        self.found.answers[how] += 1
        if how in ("lost", "wrong"):
            self.found.first.setdefault(how, what[:300])

    async def _whole(self, session: aiohttp.ClientSession, number: int, slow: bool) -> tuple[str, str]:
        raw = json.dumps(self.body(number, False)).encode()
        headers = {"Content-Type": "application/json"}
        data: Any = _slowly(raw) if slow else raw
        async with session.post(self.url + "/v1/completions", data=data, headers=headers) as response:
            text = await response.text()
            if response.status != 200:
                return "lost", f"{response.status} {text}"
            right = json.loads(text)["choices"][0]["text"] == self.expected[number]
            return ("whole" if right else "wrong"), text

    async def _stream(self, session: aiohttp.ClientSession, number: int) -> tuple[str, str]:
        async with session.post(self.url + "/v1/completions", json=self.body(number, True)) as response:
            text = await response.text()
            if response.status != 200:
                return "lost", f"{response.status} {text}"
        events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
        parsed = [json.loads(event) for event in events if event != "[DONE]"]
        said = "".join(event["choices"][0]["text"] for event in parsed if event.get("choices"))
        if events[-1] == "[DONE]":
            return ("stream" if said == self.expected[number] else "wrong"), text
        honest = "error" in parsed[-1] and said and self.expected[number].startswith(said)
        return ("broken" if honest else "wrong"), text

    async def _gone(self, session: aiohttp.ClientSession, number: int) -> tuple[str, str]:
        """A client that goes away while its answer is made."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(float(self.rng.random()) * 0.1):
                async with session.post(
                    self.url + "/v1/completions", json=self.body(number, True)
                ) as response:
                    await response.read()
        return "gone", ""

    # ---- trouble ------------------------------------------------------------------------------------------

    async def _trouble(self) -> None:
        while True:
            await asyncio.sleep(float(self.rng.uniform(0.2, 0.6)))
            kind = KINDS[int(self.rng.integers(len(KINDS)))]
            if kind == "role":
                self._change_a_role()
                continue
            calm = [m for m in range(len(self.engines.hosts)) if m not in self._troubled]
            if len(calm) <= 2:
                continue
            m = int(self.rng.choice(calm))
            self._troubled.add(m)
            self.found.trouble[kind] += 1
            task = asyncio.create_task(self._afflict(m, kind, float(self.rng.uniform(0.5, 2.0))))
            self._healing.add(task)
            task.add_done_callback(self._healing.discard)

    async def _afflict(self, m: int, kind: str, seconds: float) -> None:
        host = self.engines.hosts[m]
        try:
            if kind == "kill":
                await host.kill()
                await asyncio.sleep(seconds)
                await host.start()
            elif kind == "stall":
                host.server.faults.stall(seconds)
                await asyncio.sleep(seconds)
            else:
                host.server.faults.options = FAULTS[kind]
                await asyncio.sleep(seconds)
                host.server.faults.options = FaultOptions()
        finally:
            self._troubled.discard(m)

    def _change_a_role(self) -> None:
        parts, pools = self.router.parts, self.router.pools
        server = parts.servers[int(self.rng.integers(len(parts.servers)))]
        to = Pool.TOKEN if parts.state.home(server.index) is Pool.PROMPT else Pool.PROMPT
        with contextlib.suppress(Refused):  # it would leave a pool empty, or is changing already
            pools.move(server, to, "chaos")
            self.found.trouble["role change"] += 1


async def _slowly(raw: bytes) -> AsyncIterator[bytes]:
    """A body in pieces, with pauses."""
    for start in range(0, len(raw), 1 + len(raw) // 5):
        yield raw[start : start + 1 + len(raw) // 5]
        await asyncio.sleep(0.02)


def _memory_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _tasks() -> int:
    """Tasks but for those of idle connections, which aiohttp keeps."""
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
    return len([name for name in names if name != "RequestHandler.start"])


async def _left(router: Router, engines: Engines, tasks: int) -> dict[str, int]:
    """What is left when everybody has gone; waits a little for it to go."""
    parts = router.parts
    for _ in range(100):
        gc.collect()
        ours: Counter[str] = Counter(type(o).__name__ for o in gc.get_objects() if type(o) in OURS)
        left = {
            "requests": parts.active,
            "waiting": parts.gate.waiting,
            "at servers": sum(server.active for server in parts.servers),
            "busy servers": sum(parts.state.busy(m) for m in range(len(parts.servers))),
            "connections to servers": parts.upstream.connections,
            "tasks": max(0, _tasks() - tasks),
            "at engines": sum(host.server.in_flight for host in engines.hosts),
            **{f"{name} objects": n for name, n in ours.items()},
        }
        if not any(left.values()):
            break
        await asyncio.sleep(0.1)
    return left


def _repeated(log: Path) -> int:
    """Requests that the log has twice."""
    ids = Counter(
        json.loads(line)["request_id"] for line in log.read_text().splitlines() if '"request"' in line
    )
    return sum(count - 1 for count in ids.values())


async def chaos(seconds: float, rate_per_s: float, seed: int, folder: Path, scale: float = 5.0) -> Outcome:
    """Start everything, run, count.

    Args:
        folder: for the decision log.
        scale: simulated seconds a second.
    """
    options = EngineOptions(engines=4, port=0, time_scale=scale, mean_output_tokens=0.0, seed=seed)
    log = folder / "chaos.jsonl"
    async with running(options) as engines:
        servers = [
            {"name": f"s{m}", "url": host.url, "pool": "prompt" if m < 2 else "token"}
            for m, host in enumerate(engines.hosts)
        ]
        config = {
            "servers": servers,
            "listen": {"port": 0},
            "admin": {"port": 0},
            "policy": {"confine": True, "deadline_ms": 1000.0},
            "health": {"interval_s": 0.2, "timeout_s": 1.0, "open_s": 0.3, "open_max_s": 1.0},
            "limits": {"attempts": 8, "prompt_s": 2.0, "idle_s": 2.0, "queue": 4096},
            "pools": {"interval_s": 3600.0},
            "log": {"path": str(log)},
        }
        router = Router(from_mapping(RouterConfig, config, "chaos"))
        await router.start()
        try:
            tasks = _tasks()
            found = await Chaos(engines, router, rate_per_s, seed).run(seconds)
            found.left = await _left(router, engines, tasks)
        finally:
            await router.stop(5.0)
    found.repeated_ids = _repeated(log)
    return found


def main() -> None:
    """Run and tell."""
    import tempfile

    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was counted to FILE")
    args = parser.parse_args()
    logging.getLogger("splitgym.router.engine").setLevel(
        logging.ERROR
    )  # caches that nobody pulled are expected
    with tempfile.TemporaryDirectory() as folder:
        found = uvloop.run(chaos(args.seconds, args.rate, args.seed, Path(folder)))
    total = sum(found.answers.values())
    print(
        f"{total} requests in {found.seconds:.1f} s, {total / found.seconds:.0f}/s, {found.retries} retries"
    )
    print("answers ", dict(found.answers), "twice", found.repeated_ids)
    print("trouble ", dict(found.trouble))
    print("left    ", found.left)
    print("memory  ", " -> ".join(f"{mb:.0f} MB" for mb in found.memory_mb))
    for kind, example in found.first.items():
        print(kind, example)
    if args.json is not None:
        fields = {**vars(found), "clean": found.clean}
        args.json.write_text(json.dumps(fields, indent=1) + "\n")
    sys.exit(0 if found.clean else 1)


if __name__ == "__main__":
    main()
