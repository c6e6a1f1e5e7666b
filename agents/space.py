"""What evolution searches: flat vectors of numbers, and the schedulers that they make.

A space names the parts of its vector, says which numbers are searched by their logarithm, how much noise each
takes, and where a search begins (`agents.spaces`, `agents.sizing_spaces`).
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from splitgym.schedulers import CompiledRouting, CompiledSizing

Floats = NDArray[np.float64]
Parts = dict[str, Floats]
Pair = tuple[CompiledRouting | None, CompiledSizing | None]

INPUT_SCALE, BIAS_SCALE = 0.35, 0.3
"""Standard deviations of a network's first input weights and biases; its output weights begin at 0."""
CEM_LOG_STD = 0.5
"""CEM: standard deviation of logarithms at the start."""
_LEAST = 1e-3


class Space(Protocol):
    """The numbers of one kind of agent, as one flat vector."""

    @property
    def baseline(self) -> str:
        """Name of the heuristic that `plain` is."""

    def sigma(self) -> Floats:
        """(n,) ES: standard deviation of the noise."""

    def cem_std(self) -> Floats:
        """(n,) CEM: standard deviation at the start; 0 where nothing is searched."""

    def logs(self) -> NDArray[np.bool_]:
        """(n,) which numbers are positive and searched by their logarithm."""

    def plain(self) -> Floats:
        """(n,) the heuristic that it is compared with; without a network where there may be one."""

    def first(self, rng: np.random.Generator, start: Pair) -> Floats:
        """(n,) where a search begins: the schedulers of `start`; where there are none of its kind, the
        heuristic beside a random network that nobody listens to.
        """

    def fitted(self, weights: Floats) -> "Space":
        """The space of a vector with another number of hidden units.

        Raises:
            ConfigError: it has another length all the same.
        """

    def unpack(self, weights: Floats) -> Parts:
        """The named parts of a vector, as views into it."""

    def pack(self, parts: Mapping[str, Floats]) -> Floats:
        """Undoes `unpack`; other names are passed over.

        Raises:
            KeyError, ValueError: a part is missing or of another shape.
        """

    def schedulers(self, weights: Floats, label: str) -> Pair:
        """Who routes and who resizes; None for the part that the agent leaves to others."""


def to_theta(space: Space, weights: Floats) -> Floats:
    """From a flat vector to what is searched."""
    theta, logs = np.array(weights, np.float64), space.logs()
    theta[logs] = np.log(np.maximum(theta[logs], _LEAST))
    return theta


def to_weights(space: Space, theta: Floats) -> Floats:
    """Undoes `to_theta`."""
    weights, logs = theta.copy(), space.logs()
    weights[logs] = np.exp(theta[logs])
    return weights


def listen_to_nothing(parts: Parts, rng: np.random.Generator) -> None:
    """Random first layer of a network whose output weights are 0."""
    parts["input_weights"][:] = rng.normal(0, INPUT_SCALE, parts["input_weights"].shape)
    parts["input_bias"][:] = rng.normal(0, BIAS_SCALE, parts["input_bias"].shape)
