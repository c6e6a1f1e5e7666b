"""Two searches over the weights of the index and its residual: evolution strategies and cross-entropy.

Both search a vector `theta`: logarithms of the index's weights (all positive), its hinges, then the network's
weights as they are. A generation asks for candidates and is told their fitness; everything that a search
remembers is in `arrays`, so that a run can go on.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agents.config import EvolutionConfig
from splitgym.schedulers.index import NUM_WEIGHTS
from splitgym.schedulers.residual import NETWORK_AT, index_weights, layout, size, unpack

Floats = NDArray[np.float64]

SIGMA = {
    "index": 0.12,
    "hinges": 0.05,
    "input_weights": 0.06,
    "input_bias": 0.06,
    "output_weights": 0.05,
    "output_bias": 0.05,
}
"""ES: noise by part; the hinges' slopes, which are about 5, have `SLOPE_SIGMA`."""
SLOPE_SIGMA = 0.15
INPUT_SCALE, BIAS_SCALE = 0.35, 0.3
"""Standard deviations of the network's first input weights and biases; its output weights begin at 0."""
BETAS = (0.9, 0.99)

CEM_INDEX_STD, CEM_HINGE_STD = 0.5, (1.0, 0.1, 1.0, 0.1)
CEM_LEAST = 0.05
"""CEM: standard deviations at the start, and the share of them below which they do not fall."""


class Search(Protocol):
    """A population search. `arrays` holds all that it remembers, by name."""

    arrays: dict[str, Floats]

    def ask(self, rng: np.random.Generator) -> list[Floats]:
        """The next candidates, as flat weight vectors."""

    def tell(self, fitness: Floats, progress: float) -> None:
        """Their fitness, in order; `progress` is the share of the run that is done."""

    def result(self) -> Floats:
        """The flat weight vector that the search stands for now."""


def to_theta(weights: Floats) -> Floats:
    """From a flat weight vector to what is searched."""
    theta = np.array(weights, np.float64)
    theta[:NUM_WEIGHTS] = np.log(np.maximum(theta[:NUM_WEIGHTS], 1e-3))
    return theta


def to_weights(theta: Floats) -> Floats:
    """Undoes `to_theta`."""
    weights = theta.copy()
    weights[:NUM_WEIGHTS] = np.exp(theta[:NUM_WEIGHTS])
    return weights


def first_weights(hidden: int, rng: np.random.Generator) -> Floats:
    """Where ES begins: exactly the tuned index, with a random first layer that is not listened to yet."""
    weights = index_weights(hidden=hidden)
    parts = unpack(weights)
    parts["input_weights"][:] = rng.normal(0, INPUT_SCALE, parts["input_weights"].shape)
    parts["input_bias"][:] = rng.normal(0, BIAS_SCALE, parts["input_bias"].shape)
    return weights


def sigma(hidden: int) -> Floats:
    """ES: standard deviation of the noise, element by element of `theta`."""
    found = np.zeros(size(hidden))
    parts = unpack(found)
    for name in layout(hidden):
        parts[name][:] = SIGMA[name]
    parts["hinges"][[0, 2]] = SLOPE_SIGMA
    return found


def linear_ranks(fitness: Floats) -> Floats:
    """(n,) -0.5 for the worst to 0.5 for the best; equal ones share their mean rank."""
    order = np.argsort(fitness, kind="stable")
    ranks = np.empty(len(fitness))
    ranks[order] = np.arange(len(fitness))
    for value in np.unique(fitness):
        same = fitness == value
        ranks[same] = ranks[same].mean()
    return ranks / max(1, len(fitness) - 1) - 0.5


class EvolutionStrategies:
    """Mirrored noise, linear ranks, Adam in units of the noise; the result is a moving average of iterates.

    Source: Salimans et al., "Evolution strategies as a scalable alternative to reinforcement learning", 2017.
    """

    def __init__(self, config: EvolutionConfig, weights: Floats, hidden: int) -> None:
        theta = to_theta(weights)
        self._config = config
        self._sigma = sigma(hidden)
        self.arrays: dict[str, Floats] = {
            "theta": theta,
            "average": theta.copy(),
            "mean": np.zeros_like(theta),  # Adam's moments, in units of sigma
            "square": np.zeros_like(theta),
            "updates": np.zeros(1),
        }
        self._noise: Floats = np.zeros((0, len(theta)))

    def ask(self, rng: np.random.Generator) -> list[Floats]:
        """See `Search`."""
        half = rng.standard_normal((self._config.pairs, len(self._sigma)))
        self._noise = np.concatenate([half, -half])
        return [to_weights(self.arrays["theta"] + self._sigma * noise) for noise in self._noise]

    def tell(self, fitness: Floats, progress: float) -> None:
        """See `Search`."""
        a, config = self.arrays, self._config
        ranks = linear_ranks(fitness)
        gradient = (ranks[:, None] * self._noise).mean(axis=0)
        a["updates"] += 1
        n = int(a["updates"][0])
        a["mean"] = BETAS[0] * a["mean"] + (1 - BETAS[0]) * gradient
        a["square"] = BETAS[1] * a["square"] + (1 - BETAS[1]) * gradient**2
        mean, square = a["mean"] / (1 - BETAS[0] ** n), a["square"] / (1 - BETAS[1] ** n)
        rate = config.learning_rate * min(1.0, 1.0 - 0.9 * (2 * progress - 1))
        a["theta"] = a["theta"] + 2 * rate * self._sigma * mean / (np.sqrt(square) + 1e-12)
        # Early on a plain mean, so that the average does not drag its start along.
        weight = max(config.average, 1 / n)
        a["average"] = a["average"] + weight * (a["theta"] - a["average"])

    def result(self) -> Floats:
        """See `Search`."""
        return to_weights(self.arrays["average"])


class CrossEntropy:
    """The cross-entropy method over the index's weights and hinges; there is no network.

    Source: Rubinstein and Kroese, "The cross-entropy method", 2004.
    """

    def __init__(self, config: EvolutionConfig, weights: Floats) -> None:
        self._config = config
        self._rest = np.array(weights[NETWORK_AT:], np.float64)
        self._first = np.concatenate([np.full(NUM_WEIGHTS, CEM_INDEX_STD), CEM_HINGE_STD])
        self.arrays: dict[str, Floats] = {"mean": to_theta(weights)[:NETWORK_AT], "std": self._first.copy()}
        self._asked: Floats = np.zeros((0, NETWORK_AT))

    def ask(self, rng: np.random.Generator) -> list[Floats]:
        """See `Search`. The first candidate is the mean itself."""
        noise = rng.standard_normal((self._config.population, NETWORK_AT))
        noise[0] = 0
        self._asked = self.arrays["mean"] + self.arrays["std"] * noise
        return [to_weights(np.concatenate([theta, self._rest])) for theta in self._asked]

    def tell(self, fitness: Floats, progress: float) -> None:
        """See `Search`."""
        a, config = self.arrays, self._config
        count = max(2, round(config.elite * len(fitness)))
        elite = self._asked[np.argsort(-fitness, kind="stable")[:count]]
        new = config.smoothing
        a["mean"] = (1 - new) * a["mean"] + new * elite.mean(axis=0)
        a["std"] = np.maximum((1 - new) * a["std"] + new * elite.std(axis=0), CEM_LEAST * self._first)

    def result(self) -> Floats:
        """See `Search`."""
        return to_weights(np.concatenate([self.arrays["mean"], self._rest]))
