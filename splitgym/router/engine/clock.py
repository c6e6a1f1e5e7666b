"""A live engine that keeps pace with the wall clock, inside an asyncio loop.

Every event has its place on one time line from the start on; timers only say when to look. A late timer makes
an event late by as much, and nothing after it: there is no drift.
"""

import asyncio
import math
import time

from splitgym.errors import ConfigError
from splitgym.sim.live import Live
from splitgym.sim.live_request import LiveRequest
from splitgym.types import NS_PER_S

_EVENTS_AT_A_TIME = 200  # then others in the loop have their turn


class RealTime:
    """Moves `live` with the wall clock.

    Args:
        live: a started engine.
        scale: simulated seconds a second.

    Raises:
        ConfigError: `scale` is not a positive number.
    """

    def __init__(self, live: Live, scale: float = 1.0):
        if not (math.isfinite(scale) and scale > 0):
            raise ConfigError(f"time-scale is {scale}: give a positive number of simulated seconds a second")
        self.live = live
        self.scale = scale
        self.late_s = 0.0  # how late the last event was, in wall seconds
        self.most_late_s = 0.0
        self._origin_s = time.monotonic()
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._due_s = math.inf  # what `_timer` waits for
        self._stopped = False

    def now_ns(self) -> int:
        """Simulated time."""
        return int((time.monotonic() - self._origin_s) * self.scale * NS_PER_S)

    def wall_s(self, simulated_ns: int) -> float:
        """Wall seconds that a span of simulated time takes."""
        return simulated_ns / NS_PER_S / self.scale

    def submit(self, request: LiveRequest) -> None:
        """The request arrives now."""
        self.live.submit(request, self.now_ns())
        self._arm()

    def cancel(self, request: LiveRequest) -> None:
        """The request is not wanted any more."""
        self.live.cancel(request, self.now_ns())
        self._arm()

    def stop(self) -> None:
        """Let time stand still for good."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        """Wait for the next event."""
        if self._stopped:
            return
        next_ns = self.live.next_ns
        due_s = self._origin_s + next_ns / NS_PER_S / self.scale
        if self._timer is not None:
            if due_s >= self._due_s:
                return
            self._timer.cancel()
            self._timer = None
        if next_ns == math.inf:
            return
        self._due_s = due_s
        delay_s = max(0.0, due_s - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._run)

    def _run(self) -> None:
        self._timer = None
        now_ns = self.now_ns()
        next_ns = self.live.next_ns
        if next_ns <= now_ns:
            self.late_s = self.wall_s(now_ns - int(next_ns))
            self.most_late_s = max(self.most_late_s, self.late_s)
            self.live.step_to(now_ns, _EVENTS_AT_A_TIME)
        self._due_s = math.inf
        self._arm()
