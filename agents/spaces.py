"""What evolution searches: flat vectors of numbers, and the schedulers that they make.

A space names the parts of its vector, says which numbers are searched by their logarithm, how much noise each
takes, and where a search begins. `routing` is the index with its residual, `pool_sizing` the reactive rule
with its network (or the constants of a plain rule), `joint` both behind one another.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agents.config import RunConfig
from splitgym import schedulers
from splitgym.errors import ConfigError
from splitgym.schedulers import CompiledRouting, CompiledSizing, Residual, SizingNet, residual, sizing_net
from splitgym.schedulers.index import HINGES, NUM_WEIGHTS, Index
from splitgym.schedulers.sizing import Reactive

Floats = NDArray[np.float64]
Parts = dict[str, Floats]
Pair = tuple[CompiledRouting | None, CompiledSizing | None]

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
SIZING_SIGMA = {
    "rule": 0.12,
    "linear": 0.04,
    "input_weights": 0.06,
    "input_bias": 0.06,
    "output_weights": 0.06,
    "output_bias": 0.05,
}
INPUT_SCALE, BIAS_SCALE = 0.35, 0.3
"""Standard deviations of a network's first input weights and biases; its output weights begin at 0."""
CEM_LOG_STD, CEM_HINGE_STD = 0.5, (1.0, 0.1, 1.0, 0.1)
"""CEM: standard deviations at the start, of logarithms and of the index's hinges."""
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


def _listen_to_nothing(parts: Parts, rng: np.random.Generator) -> None:
    """Random first layer of a network whose output weights are 0."""
    parts["input_weights"][:] = rng.normal(0, INPUT_SCALE, parts["input_weights"].shape)
    parts["input_bias"][:] = rng.normal(0, BIAS_SCALE, parts["input_bias"].shape)


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
        if isinstance(start[0], Residual):
            return start[0].params.copy()
        weights = residual.index_weights(hidden=self.hidden)
        if isinstance(start[0], Index):
            weights[: residual.NETWORK_AT] = [*start[0].params, *HINGES]
        _listen_to_nothing(self.unpack(weights), rng)
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
class SizingSpace:
    """The reactive rule and its network."""

    hidden: int
    baseline = "reactive"

    def sigma(self) -> Floats:
        parts = self.unpack(np.zeros(sizing_net.size(self.hidden)))
        for name, part in parts.items():
            part[:] = SIZING_SIGMA[name]
        return self.pack(parts)

    def cem_std(self) -> Floats:
        parts = self.unpack(np.zeros(sizing_net.size(self.hidden)))
        parts["rule"][:] = CEM_LOG_STD
        return self.pack(parts)

    def logs(self) -> NDArray[np.bool_]:
        return np.arange(sizing_net.size(self.hidden)) < sizing_net.NETWORK_AT

    def plain(self) -> Floats:
        return sizing_net.rule_weights()

    def first(self, rng: np.random.Generator, start: Pair) -> Floats:
        given, rule = start[1], {}
        if isinstance(given, SizingNet) and len(given.weights) > sizing_net.size(0):
            return given.params.copy()
        if isinstance(given, Reactive):  # a tuned rule: it gets a network
            rule = {name: getattr(given, name) for name in sizing_net.RULE if hasattr(given, name)}
        weights = sizing_net.rule_weights(self.hidden, **rule)
        _listen_to_nothing(self.unpack(weights), rng)
        return weights

    def fitted(self, weights: Floats) -> "SizingSpace":
        return SizingSpace(sizing_net.hidden_of(len(weights)))

    def unpack(self, weights: Floats) -> Parts:
        return sizing_net.unpack(weights)

    def pack(self, parts: Mapping[str, Floats]) -> Floats:
        return sizing_net.pack({name: parts[name] for name in sizing_net.layout()})

    def schedulers(self, weights: Floats, label: str) -> Pair:
        return None, SizingNet(weights=tuple(weights.tolist()), label=label)


@dataclass(frozen=True)
class RuleSpace:
    """The options of a sizing rule, all positive numbers."""

    rule: str

    @property
    def baseline(self) -> str:
        """See `Space`."""
        return self.rule

    def _names(self) -> list[str]:
        return [field.name for field in fields(type(schedulers.sizing(self.rule))) if field.name != "step"]  # type: ignore[arg-type]

    def sigma(self) -> Floats:
        return np.full(len(self._names()), SIZING_SIGMA["rule"])

    def cem_std(self) -> Floats:
        return np.full(len(self._names()), CEM_LOG_STD)

    def logs(self) -> NDArray[np.bool_]:
        return np.ones(len(self._names()), np.bool_)

    def plain(self) -> Floats:
        return self._options(schedulers.sizing(self.rule))

    def _options(self, rule: CompiledSizing) -> Floats:
        return np.array([getattr(rule, name) for name in self._names()], np.float64)

    def first(self, rng: np.random.Generator, start: Pair) -> Floats:
        rule = start[1] if type(start[1]) is type(schedulers.sizing(self.rule)) else None
        return self.plain() if rule is None else self._options(rule)

    def fitted(self, weights: Floats) -> "RuleSpace":
        return self

    def unpack(self, weights: Floats) -> Parts:
        return {name: weights[i : i + 1] for i, name in enumerate(self._names())}

    def pack(self, parts: Mapping[str, Floats]) -> Floats:
        return np.concatenate([np.ravel(parts[name]) for name in self._names()])

    def schedulers(self, weights: Floats, label: str) -> Pair:
        options = dict(zip(self._names(), weights.tolist(), strict=True))
        if self.rule == "ewma":  # the search knows no upper and lower ends
            options["utilisation"] = min(1.0, options["utilisation"])
            options["band"] = max(0.5, options["band"])
        return None, schedulers.sizing(self.rule, **options)


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
