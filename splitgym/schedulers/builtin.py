"""What the built-in schedulers share: options as dataclass fields, decisions in a Numba kernel.

A kernel sees arrays only: the view, `params` (the options as numbers) and `state` (counters, random state).
`route` and `resize` call it from Python; the compiled engine calls it from inside Numba with the same arrays.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from splitgym.types import RequestInfo
from splitgym.view import ClusterView

STATE_SIZE = 4
"""Length of a routing scheduler's `state`."""
SIZING_STATE_SIZE = 18
"""Length of a sizing scheduler's `state`."""


def _option_values(scheduler: Any) -> NDArray[np.float64]:
    values = [getattr(scheduler, field.name) for field in dataclasses.fields(scheduler)]
    return np.array(values, np.float64)


class CompiledRouting:
    """Base of the built-in routing schedulers.

    A subclass is a frozen dataclass of options with a class attribute
    `kernel = staticmethod(function)`, where `function(view, request, params, state)` is compiled by Numba and
    returns (p, t), each allowed by the view's masks.
    """

    registered: ClassVar[str]
    kernel: ClassVar[Callable[..., Any]]

    @property
    def name(self) -> str:
        """What tables and reports call it."""
        return self.registered

    @cached_property
    def params(self) -> NDArray[np.float64]:
        """The options in the order of the fields, as the kernel reads them."""
        return _option_values(self)

    @cached_property
    def state(self) -> NDArray[np.int64]:
        """(STATE_SIZE,) everything that a kernel remembers between requests; `reset` fills it in place."""
        return np.zeros(STATE_SIZE, np.int64)

    def reset(self, view: ClusterView, seed: int) -> None:
        """Forget the last run. `state[0]` holds the random state, the rest counters from 0."""
        self.state[:] = 0
        self.state[0] = np.array(seed & (2**64 - 1), np.uint64).view(np.int64)

    def route(self, view: ClusterView, request: RequestInfo) -> tuple[int, int]:
        """(prompt machine, token machine) for a request."""
        pair: tuple[int, int] = self.kernel(view, request, self.params, self.state)
        return pair


class CompiledSizing:
    """Base of the built-in sizing schedulers: like `CompiledRouting`, with `kernel(view, params, state)`."""

    registered: ClassVar[str]
    kernel: ClassVar[Callable[..., Any]]

    @property
    def name(self) -> str:
        """What tables and reports call it."""
        return self.registered

    @cached_property
    def params(self) -> NDArray[np.float64]:
        """The options in the order of the fields, as the kernel reads them."""
        return _option_values(self)

    @cached_property
    def state(self) -> NDArray[np.float64]:
        """(SIZING_STATE_SIZE,) everything that a kernel remembers between control ticks."""
        return np.zeros(SIZING_STATE_SIZE)

    def reset(self, view: ClusterView, seed: int) -> None:
        """Forget the last run."""
        self.state[:] = 0.0

    def resize(self, view: ClusterView) -> int:
        """Machines to move: n > 0 from the token to the prompt pool, n < 0 the other way."""
        moved: int = self.kernel(view, self.params, self.state)
        return moved
