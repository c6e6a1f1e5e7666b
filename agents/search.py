"""Two searches over the weights of a scheduler: evolution strategies and cross-entropy.

Both search a vector `theta`: logarithms of the constants that are positive, the others and the networks'
weights as they are (`agents.spaces`). A generation asks for candidates and is told their fitness; everything
that a search remembers is in `arrays`, so that a run can go on.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agents.evolution_config import EvolutionConfig
from agents.space import Space, to_theta, to_weights

Floats = NDArray[np.float64]

BETAS = (0.9, 0.99)

CEM_LEAST = 0.05
"""CEM: the share of its first standard deviations below which they do not fall."""


class Search(Protocol):
    """A population search. `arrays` holds all that it remembers, by name."""

    arrays: dict[str, Floats]

    def ask(self, rng: np.random.Generator) -> list[Floats]:
        """The next candidates, as flat weight vectors."""

    def tell(self, fitness: Floats, progress: float) -> None:
        """Their fitness, in order; `progress` is the share of the run that is done."""

    def result(self) -> Floats:
        """The flat weight vector that the search stands for now."""


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

    def __init__(self, config: EvolutionConfig, space: Space, weights: Floats) -> None:
        theta = to_theta(space, weights)
        self._config = config
        self._space = space
        self._sigma = space.sigma()
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
        theta = self.arrays["theta"]
        return [to_weights(self._space, theta + self._sigma * noise) for noise in self._noise]

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
        return to_weights(self._space, self.arrays["average"])


class CrossEntropy:
    """The cross-entropy method over the constants of the index or of a sizing rule; no network is searched.

    Source: Rubinstein and Kroese, "The cross-entropy method", 2004.
    """

    def __init__(self, config: EvolutionConfig, space: Space, weights: Floats) -> None:
        self._config = config
        self._space = space
        self._theta = to_theta(space, weights)
        first = space.cem_std()
        self._searched = np.flatnonzero(first)
        self._first = first[self._searched]
        self.arrays: dict[str, Floats] = {"mean": self._theta[self._searched], "std": self._first.copy()}
        self._asked: Floats = np.zeros((0, len(self._searched)))

    def _weights(self, searched: Floats) -> Floats:
        theta = self._theta.copy()
        theta[self._searched] = searched
        return to_weights(self._space, theta)

    def ask(self, rng: np.random.Generator) -> list[Floats]:
        """See `Search`. The first candidate is the mean itself."""
        noise = rng.standard_normal((self._config.population, len(self._searched)))
        noise[0] = 0
        self._asked = self.arrays["mean"] + self.arrays["std"] * noise
        return [self._weights(searched) for searched in self._asked]

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
        return self._weights(self.arrays["mean"])
