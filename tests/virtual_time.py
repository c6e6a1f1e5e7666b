"""An event loop in which waiting takes no time: its clock jumps to the next timer when no socket is ready.

Server and client of a test live in one such loop. Computing takes no time on its clock either, so what they
measure of each other is exact, on a busy machine too.
"""

import asyncio
import contextlib
import selectors
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest


class _Jumping(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    def __init__(self, clock: "Clock") -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found and timeout is not None and timeout > 0:
            self._clock.now_s += timeout
        elif not found and timeout is None:
            return super().select(1.0)
        return found


class Clock:
    """Seconds that pass in `select`, and a nanosecond with each look: nobody waits for a rounding error."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1e-9
        return self.now_s


@contextlib.contextmanager
def virtual_time(monkeypatch: pytest.MonkeyPatch, *modules: str) -> Iterator[tuple[Any, Clock]]:
    """(how to make such a loop, its clock).

    Args:
        monkeypatch: of the test.
        modules: names of modules whose `time` is to be this clock.
    """
    clock = Clock()

    class Loop(asyncio.SelectorEventLoop):
        def __init__(self) -> None:
            super().__init__(_Jumping(clock))

        def time(self) -> float:
            return clock()

    fake = SimpleNamespace(**{k: getattr(time, k) for k in ("time", "monotonic_ns", "sleep", "time_ns")})
    fake.monotonic = fake.perf_counter = clock
    for module in modules:
        monkeypatch.setattr(f"{module}.time", fake)
    yield Loop, clock
