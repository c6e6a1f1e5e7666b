"""Spaces of evolution that size pools: the reactive rule with its network, or the options of a plain rule."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from agents.space import CEM_LOG_STD, Floats, Pair, Parts, listen_to_nothing
from splitgym import schedulers
from splitgym.schedulers import CompiledSizing, SizingNet, sizing_net
from splitgym.schedulers.sizing import Reactive

SIZING_SIGMA = {
    "rule": 0.12,
    "linear": 0.04,
    "input_weights": 0.06,
    "input_bias": 0.06,
    "output_weights": 0.06,
    "output_bias": 0.05,
}
"""ES: noise by part."""


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
        listen_to_nothing(self.unpack(weights), rng)
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
