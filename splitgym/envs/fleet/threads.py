"""A few threads that share out short pieces of compiled work, with less ado than a pool of futures."""

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
Counts = tuple[int, int]
Work = Callable[[int, Places], Counts]

LEAST_SHARE = 16
"""Places a thread: fewer are done before another thread has woken up."""


class Threads:
    """Runs `work(thread, places)` on equal shares of places. The calling thread takes one share itself.

    Args:
        most: there is no use for more threads than this.
        count: None is one a core.
    """

    def __init__(self, most: int, count: int | None = None) -> None:
        self.count = max(1, min(most, count or os.cpu_count() or 1))
        self._orders: list[SimpleQueue[Any]] = []
        self._answers: SimpleQueue[Counts | BaseException] = SimpleQueue()

    def map(self, work: Work, places: Places) -> Counts:
        """Run and wait. Returns the sums of what the shares return.

        What a share raises is raised here, when all have ended.
        """
        share = max(LEAST_SHARE, -(-len(places) // self.count))
        others = range(share, len(places), share)
        self._hire(len(others))
        for thread, (order, start) in enumerate(zip(self._orders, others), 1):
            order.put((work, thread, places[start : start + share]))
        found: list[Counts | BaseException] = [_done(work, 0, places[:share])]
        found += [self._answers.get() for _ in others]
        first, second = 0, 0
        for counts in found:
            if isinstance(counts, BaseException):
                raise counts
            first, second = first + counts[0], second + counts[1]
        return first, second

    def close(self) -> None:
        """End the threads; a later `map` starts new ones."""
        for order in self._orders:
            order.put(None)
        self._orders = []

    def _hire(self, number: int) -> None:
        while len(self._orders) < number:
            order: SimpleQueue[Any] = SimpleQueue()
            threading.Thread(target=_serve, args=(order, self._answers), daemon=True).start()
            self._orders.append(order)


def _done(work: Work, thread: int, share: Places) -> Counts | BaseException:
    try:
        return work(thread, share)
    except BaseException as error:
        return error


def _serve(orders: SimpleQueue[Any], answers: SimpleQueue[Counts | BaseException]) -> None:
    while (order := orders.get()) is not None:
        answers.put(_done(*order))
