"""A few threads that share out short pieces of compiled work, with less ado than a pool of futures."""

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
Work = Callable[[int, Places], None]


class Threads:
    """Runs `work(thread, places)` on equal shares of places. The calling thread takes one share itself.

    Args:
        most: there is no use for more threads than this.
        count: None is one a core.
    """

    def __init__(self, most: int, count: int | None = None) -> None:
        self.count = max(1, min(most, count or os.cpu_count() or 1))
        self._orders: list[SimpleQueue[Any]] = []
        self._answers: SimpleQueue[BaseException | None] = SimpleQueue()

    def map(self, work: Work, places: Places) -> None:
        """Run and wait. What a share raises is raised here, when all have ended."""
        share = -(-len(places) // self.count)
        others = range(share, len(places), share or 1)
        self._hire(len(others))
        for thread, (order, start) in enumerate(zip(self._orders, others), 1):
            order.put((work, thread, places[start : start + share]))
        error: BaseException | None = None
        try:
            work(0, places[:share])
        except BaseException as raised:
            error = raised
        for _ in others:
            error = self._answers.get() or error
        if error is not None:
            raise error

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


def _serve(orders: SimpleQueue[Any], answers: SimpleQueue[BaseException | None]) -> None:
    while (order := orders.get()) is not None:
        work, thread, share = order
        try:
            work(thread, share)
            answers.put(None)
        except BaseException as error:
            answers.put(error)
