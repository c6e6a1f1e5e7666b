"""Threads that step a fleet's environments together, see `splitgym.envs.fleet.rounds`."""

import os
import threading
import time
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.envs.fleet import rounds
from splitgym.sim.compiled.reach import IN_PYTHON

LEAST_SHARE = 16
"""Environments a thread: fewer are done before another thread has woken up."""

NAME = "splitgym-fleet"
"""Of the threads."""

SPIN_S = 50e-6
"""A thread looks out for the next round for so long before it sleeps."""

YIELDS = 8
"""Who has finished yields to the others so many times before it sleeps, too."""

_LOOKS = 100_000


class Threads:
    """Runs rounds. The calling thread takes part.

    Args:
        office: (1,) `OFFICE` record of the fleet.
        most: there is no use for more threads than this.
        count: None is one a core.
    """

    def __init__(self, office: NDArray[Any], most: int, count: int | None = None) -> None:
        self.count = 1 if IN_PYTHON else max(1, min(most, count or os.cpu_count() or 1))
        self._office, self._office_at = office, office.ctypes.data  # to ask for an address takes 2 us
        self._wakers: list[threading.Semaphore] = []
        self._shared, self._shared_at = np.zeros(0, np.int64), 0

    def run(self, count: int) -> tuple[int, int]:
        """Step the first `count` of the office's places.

        Returns:
            (environments whose simulation lacks something, environments that are over) of these.
        """
        wanted = max(1, min(self.count, count // LEAST_SHARE))
        if wanted > len(self._wakers) + 1 or not len(self._shared):
            self._hire(wanted)
        threads = len(self._wakers) + 1
        shared, office = self._shared_at, self._office_at
        asleep = rounds.lead(office, shared, count, threads, wanted)
        if asleep >= 0:
            for thread, waker in enumerate(self._wakers, 1):
                if asleep >> thread & 1:
                    waker.release()
            waits = 0
            while not rounds.finish(office, shared, threads, 1 << 12):
                time.sleep(0.0 if waits < YIELDS else SPIN_S)  # the others may need this core
                waits += 1
        return int(self._shared[rounds.LACKING]), int(self._shared[rounds.OVER])

    def close(self) -> None:
        """End the threads; a later `run` starts new ones."""
        if len(self._shared):
            self._end()
        self._wakers, self._shared = [], np.zeros(0, np.int64)

    def _hire(self, number: int) -> None:
        """Start threads anew, so that there are `number` of them."""
        self.close()
        self._shared = shared = np.zeros(rounds.ROOM + rounds.THREAD_ROOM * number, np.int64)
        self._shared_at = shared.ctypes.data
        self._wakers = [threading.Semaphore(0) for _ in range(1, number)]
        self._end = weakref.finalize(self, _dismiss, shared, self._wakers)
        if self._wakers:  # compile here: a thread that compiles cannot be ended
            shared[rounds.OPEN] = rounds.CLOSED
            rounds.serve(self._office_at, self._shared_at, 1, number, 1)
            shared[rounds.OPEN] = 0
        for thread, waker in enumerate(self._wakers, 1):
            shared[rounds.of_thread(thread, rounds.ASLEEP)] = 1
            given = (self._office, shared, thread, number, waker, _patience(shared))
            threading.Thread(target=_serve, args=given, name=NAME, daemon=True).start()


def _patience(shared: NDArray[np.int64]) -> int:
    """Looks at a shared number that take `SPIN_S`."""
    rounds.look_out(shared.ctypes.data, 1)
    start = time.thread_time()
    rounds.look_out(shared.ctypes.data, _LOOKS)
    spent = time.thread_time() - start
    return int(min(max(SPIN_S / max(spent, 1e-9), 1e-3), 10.0) * _LOOKS)


def _dismiss(shared: NDArray[np.int64], wakers: list[threading.Semaphore]) -> None:
    shared[rounds.OPEN] = rounds.CLOSED
    for waker in wakers:
        waker.release()


def _serve(
    office: NDArray[Any],
    shared: NDArray[np.int64],
    thread: int,
    threads: int,
    waker: threading.Semaphore,
    patience: int,
) -> None:
    """A thread's life. It holds the arrays that it reads."""
    waker.acquire()
    while rounds.serve(office.ctypes.data, shared.ctypes.data, thread, threads, patience):
        waker.acquire()
