"""Resizing: a control loop asks the policy, and a state machine carries a role change out.

    at home -> asked -> [draining: no new work; wait until empty, and until caches left here have run out]
            -> flipping (the driver) -> at home in the other pool, cooling down

A server that does not drain in time, or whose driver fails, goes back to the pool it came from.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from splitgym.router.drivers import Driver, DriverError, make_driver
from splitgym.router.parts import Parts
from splitgym.router.protocol import Refused
from splitgym.router.servers import Server
from splitgym.types import Pool

_POLL_S = 0.02


class Pools:
    """The pools of the servers.

    Args:
        parts: of the router.
        sleep: waits; for tests.
    """

    def __init__(self, parts: Parts, sleep: Callable[[float], Any] = asyncio.sleep) -> None:
        self._parts = parts
        self._config = parts.config.pools
        self._sleep = sleep
        self.driver: Driver
        self._moving: dict[int, asyncio.Task[bool]] = {}
        self._stage: dict[int, str] = {}
        self._last_change_s = float("-inf")
        self.changes: deque[dict[str, Any]] = deque(maxlen=100)
        self.paused = False

    def open(self) -> None:
        """What needs the connections to servers."""
        self.driver = make_driver(self._config, self._parts.upstream.session)

    async def close(self) -> None:
        """Changes in progress end where they are."""
        tasks = list(self._moving.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def run(self) -> None:
        """Ask the policy once an interval, for ever."""
        while True:
            await self._sleep(self._config.interval_s)
            self.tick()

    def tick(self) -> int:
        """One decision; returns how many servers begin to move."""
        moves = self._parts.decisions.resize()
        cooling = self._parts.now_s() - self._last_change_s < self._config.cool_down_s
        if moves == 0 or self.paused or cooling or self._moving:
            return 0
        to = Pool.PROMPT if moves > 0 else Pool.TOKEN
        begun = 0
        for server in self.candidates(to)[: abs(moves)]:
            self.move(server, to, "policy")
            begun += 1
        return begun

    def stage(self, server: Server) -> str:
        """Where a server is in a change: "" or draining, flipping."""
        return self._stage.get(server.index, "")

    def candidates(self, to: Pool) -> list[Server]:
        """Servers that may leave the other pool, least loaded first, so that enough stay there."""
        state = self._parts.state
        source = Pool.TOKEN if to is Pool.PROMPT else Pool.PROMPT
        there = [s for s in self._parts.servers if s.up and state.home(s.index) is source]

        def load(server: Server) -> tuple[int, int]:
            prompts, tokens = state.load(server.index)
            return (tokens if to is Pool.PROMPT else prompts), server.index

        return sorted(there, key=load)[: max(0, len(there) - self._config.min_machines)]

    def move(self, server: Server, to: Pool, why: str) -> asyncio.Task[bool]:
        """Begin a role change.

        Raises:
            Refused: 409, one is in progress, or the pool would be left too small.
        """
        state = self._parts.state
        home = state.home(server.index)
        if server.index in self._moving:
            raise Refused(409, f"{server.name} is changing its role already", "Conflict")
        if home is to:
            raise Refused(409, f"{server.name} is in the {to.name.lower()} pool already", "Conflict")
        there = [s for s in self._parts.servers if s.healthy and state.home(s.index) is home]
        mixed = [s for s in self._parts.servers if s.healthy and state.home(s.index) is Pool.MIXED]
        left = len(there) - (server in there)
        if home is not Pool.MIXED and left < self._config.min_machines and not mixed:
            raise Refused(409, f"the {home.name.lower()} pool would have {left} servers", "Conflict")
        task = asyncio.get_running_loop().create_task(self._change(server, home, to, why))
        self._moving[server.index] = task
        task.add_done_callback(lambda _: self._moving.pop(server.index, None))
        return task

    async def _change(self, server: Server, home: Pool, to: Pool, why: str) -> bool:
        start_s = self._parts.now_s()
        drains = self.driver.drains if self._config.drain is None else self._config.drain
        outcome = "cancelled"
        try:
            if drains and not await self._drain(server):
                outcome = "not drained"
                return False
            self._stage[server.index] = "flipping"
            await self.driver.flip(server, to)
            self._parts.state.set_home(server.index, to)
            outcome = "done"
            return True
        except DriverError as error:
            outcome = f"failed: {error}"
            return False
        finally:
            server.draining = False
            server.tell()
            self._stage.pop(server.index, None)
            self._last_change_s = self._parts.now_s()
            self._note(server, home, to, why, outcome, self._last_change_s - start_s)

    async def _drain(self, server: Server) -> bool:
        """No new work; wait for the old, and for caches that nobody pulled. False where it takes too long."""
        self._stage[server.index] = "draining"
        server.draining = True
        server.tell()
        end_s = self._parts.now_s() + self._config.drain_timeout_s
        while server.active or server.leases or self._parts.state.busy(server.index):
            if self._parts.now_s() >= end_s:
                return False
            await self._sleep(_POLL_S)
        return True

    def _note(self, server: Server, home: Pool, to: Pool, why: str, outcome: str, took_s: float) -> None:
        change = {
            "server": server.name,
            "from": home.name.lower(),
            "to": to.name.lower(),
            "why": why,
            "outcome": outcome,
            "took_s": round(took_s, 3),
        }
        self.changes.append({"unix_s": round(time.time(), 3), **change})
        self._parts.metrics.role_changes[to.name, outcome.split(":")[0]] += 1
        self._parts.log.event("role", **change)
