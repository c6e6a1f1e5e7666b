"""The spaces of evolution's agents: `routing` is the index with its residual, `pool_sizing` the reactive rule
with its network (or the constants of a plain rule), `joint` both behind one another. See `agents.space`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.config import RunConfig
from agents.sizing_spaces import RuleSpace, SizingSpace
from agents.space import CEM_LOG_STD, Floats, Pair, Parts, Space, listen_to_nothing
from splitgym.errors import ConfigError
from splitgym.schedulers import Residual, residual, sizing_net
from splitgym.schedulers.index import HINGES, NUM_WEIGHTS, Index

ROUTING_SIGMA = {
    "index": 0.12,
    "hinges": 0.05,
    "input_weights": 0.06,
    "input_bias": 0.06,
    "output_weights": 0.05,
    "output_bias": 0.05,
}
"""ES: noise by part; the hinges' slopes, which are about 5, have `SLOPE_SIGMA`."""
SLOPE_SIGMA = 0.15
CEM_HINGE_STD = (1.0, 0.1, 1.0, 0.1)
"""CEM: standard deviations of the index's hinges at the start."""


@dataclass(frozen=True)
class RoutingSpace:
    """The index and its residual."""

    hidden: int
    baseline = "index"

    def sigma(self) -> Floats:
        parts = self.unpack(np.zeros(residual.size(self.hidden)))
        for name, part in parts.items():
            part[:] = ROUTING_SIGMA[name]
        parts["hinges"][[0, 2]] = SLOPE_SIGMA
        return self.pack(parts)

    def cem_std(self) -> Floats:
        parts = self.unpack(np.zeros(residual.size(self.hidden)))
        parts["index"][:], parts["hinges"][:] = CEM_LOG_STD, CEM_HINGE_STD
        return self.pack(parts)

    def logs(self) -> NDArray[np.bool_]:
        return np.arange(residual.size(self.hidden)) < NUM_WEIGHTS

    def plain(self) -> Floats:
        return residual.index_weights()

    def first(self, rng: np.random.Generator, start: Pair) -> Floats:
        given = start[0]
        if isinstance(given, Residual) and (self.hidden == 0 or len(given.weights) > residual.size(0)):
            return given.params.copy()
        weights = residual.index_weights(hidden=self.hidden)
        if isinstance(given, Residual):  # an index of `cem`, hinges and all: it gets a network
            weights[: residual.NETWORK_AT] = given.params[: residual.NETWORK_AT]
        elif isinstance(given, Index):
            weights[: residual.NETWORK_AT] = [*given.params, *HINGES]
        listen_to_nothing(self.unpack(weights), rng)
        return weights

    def fitted(self, weights: Floats) -> "RoutingSpace":
        return RoutingSpace(residual.hidden_of(len(weights)))

    def unpack(self, weights: Floats) -> Parts:
        return residual.unpack(weights)

    def pack(self, parts: Mapping[str, Floats]) -> Floats:
        return residual.pack({name: parts[name] for name in residual.layout()})

    def schedulers(self, weights: Floats, label: str) -> Pair:
        return Residual(weights=tuple(weights.tolist()), label=label), None


@dataclass(frozen=True)
class JointSpace:
    """Routing and sizing behind one another; parts are called routing.NAME and sizing.NAME."""

    routing: RoutingSpace
    sizing: SizingSpace
    baseline = "index_and_reactive"

    def _both(self, of: str) -> Any:
        return np.concatenate([getattr(self.routing, of)(), getattr(self.sizing, of)()])

    def sigma(self) -> Floats:
        return self._both("sigma")  # type: ignore[no-any-return]

    def cem_std(self) -> Floats:
        return self._both("cem_std")  # type: ignore[no-any-return]

    def logs(self) -> NDArray[np.bool_]:
        return self._both("logs")  # type: ignore[no-any-return]

    def plain(self) -> Floats:
        sizing = sizing_net.rule_weights(self.sizing.hidden)
        return np.concatenate([residual.index_weights(hidden=self.routing.hidden), sizing])

    def first(self, rng: np.random.Generator, start: Pair) -> Floats:
        return np.concatenate([self.routing.first(rng, start), self.sizing.first(rng, start)])

    def fitted(self, weights: Floats) -> "JointSpace":
        if len(weights) != len(self.sigma()):
            raise ConfigError(
                "evolution.start and start_sizing have networks of other widths than evolution.hidden "
                f"({self.routing.hidden}) and hidden_sizing ({self.sizing.hidden})"
            )
        return self

    def split(self, weights: Floats) -> tuple[Floats, Floats]:
        """The two flat vectors."""
        at = residual.size(self.routing.hidden)
        return weights[:at], weights[at:]

    def unpack(self, weights: Floats) -> Parts:
        routing, sizing = self.split(weights)
        found = {f"routing.{name}": part for name, part in self.routing.unpack(routing).items()}
        return found | {f"sizing.{name}": part for name, part in self.sizing.unpack(sizing).items()}

    def pack(self, parts: Mapping[str, Floats]) -> Floats:
        def of(prefix: str) -> Parts:
            return {k.removeprefix(prefix): v for k, v in parts.items() if k.startswith(prefix)}

        return np.concatenate([self.routing.pack(of("routing.")), self.sizing.pack(of("sizing."))])

    def schedulers(self, weights: Floats, label: str) -> Pair:
        routing, sizing = self.split(weights)
        return self.routing.schedulers(routing, label)[0], self.sizing.schedulers(sizing, label)[1]


def space_of(config: RunConfig) -> Space:
    """What a run of `es` or `cem` searches.

    Raises:
        ConfigError: ES over a rule that has no network.
    """
    hidden, rule = config.evolution.hidden, config.evolution.rule
    if config.env == "routing":
        return RoutingSpace(hidden if config.algo == "es" else 0)
    if config.env == "joint":
        return JointSpace(RoutingSpace(hidden), SizingSpace(config.evolution.hidden_sizing))
    if config.algo == "cem":
        return RuleSpace(rule)
    if rule != "reactive":
        raise ConfigError(f"es trains the network beside the reactive rule: evolution.rule {rule} is for cem")
    return SizingSpace(config.evolution.hidden_sizing)
