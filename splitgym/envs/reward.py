"""Rewards: what happened since the last decision -> named terms, whose sum is the reward of the step.

Give an environment a name (`reward="good-minus-bad"`), an object with `name` and `terms`, or a mapping of
names to weights (`reward={"good-minus-bad": 1, "energy": 1e-3}`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from splitgym.errors import ConfigError


class Completion(NamedTuple):
    """One completed request. Requests that arrived in the warm-up do not come here."""

    request_id: int
    decision_id: int
    """The routing decision that placed it."""
    good: bool
    ttft_slowdown: float
    tbt_slowdown: float
    """NaN for an output of 1 token."""
    e2e_slowdown: float


@dataclass
class Happened:
    """What happened between two decisions; in the last step, until every request had completed."""

    elapsed_s: float = 0.0
    """Simulated time."""
    counted_s: float = 0.0
    """The part of it after the warm-up."""
    completions: list[Completion] = field(default_factory=list)
    request_seconds: float = 0.0
    """Integral over time of the requests in the system, those of the warm-up left out."""
    energy_j: float = 0.0
    """Of all machines; 0 in steps that end in the warm-up."""
    cost: float = 0.0
    """Of the cluster during `counted_s`, in the profiles' currency."""
    last: bool = False


@runtime_checkable
class Reward(Protocol):
    """Anything with a name and terms."""

    @property
    def name(self) -> str:
        """What it is called."""

    def terms(self, happened: Happened) -> dict[str, float]:
        """Named terms of one step; the reward is their sum."""


@dataclass(frozen=True)
class GoodMinusBad:
    """+1 for each completion within both SLOs, -1 for each other one. The default.

    Over an episode the sum is good minus bad requests of the window, each counted once, because the last step
    receives the drained tail.
    """

    name: str = "good-minus-bad"

    def terms(self, happened: Happened) -> dict[str, float]:
        good = sum(c.good for c in happened.completions)
        return {"good": float(good), "bad": float(good - len(happened.completions))}


@dataclass(frozen=True)
class SlowdownClipped:
    """Minus the end-to-end slowdown of each completion beyond 1, clipped.

    Args:
        limit: the largest loss of one request; without it one hopeless request outweighs hundreds.
    """

    limit: float = 5.0
    name: str = "slowdown-clipped"

    def terms(self, happened: Happened) -> dict[str, float]:
        loss = sum(min(self.limit, max(0.0, c.e2e_slowdown - 1.0)) for c in happened.completions)
        return {"slowdown": -loss}


@dataclass(frozen=True)
class RequestsInSystem:
    """Minus the integral over time of the requests in the system (their total time in it, by Little's law).

    Known to train badly here: it is dominated by the long outputs that no decision can shorten, knows nothing
    of the SLOs, and in overload one step holds most of the episode's sum. It is here to be compared with.
    """

    name: str = "requests-in-system"

    def terms(self, happened: Happened) -> dict[str, float]:
        return {"requests_in_system": -happened.request_seconds}


@dataclass(frozen=True)
class Energy:
    """Minus the energy of all machines [kJ]. For a weighted sum: alone it says nothing of service."""

    name: str = "energy"

    def terms(self, happened: Happened) -> dict[str, float]:
        return {"energy": -happened.energy_j / 1000.0}


@dataclass(frozen=True)
class Cost:
    """Minus the cost of the cluster's time, in the profiles' currency.

    A cluster costs the same busy or idle, so within an episode only the time to drain the tail can change.
    """

    name: str = "cost"

    def terms(self, happened: Happened) -> dict[str, float]:
        return {"cost": -happened.cost}


@dataclass(frozen=True)
class WeightedSum:
    """Terms of several rewards, each times its weight."""

    parts: tuple[tuple[Reward, float], ...]
    name: str = "weighted-sum"

    def terms(self, happened: Happened) -> dict[str, float]:
        total: dict[str, float] = {}
        for part, weight in self.parts:
            for key, value in part.terms(happened).items():
                total[key] = total.get(key, 0.0) + weight * value
        return total


REWARDS: dict[str, Callable[[], Reward]] = {
    "good-minus-bad": GoodMinusBad,
    "slowdown-clipped": SlowdownClipped,
    "requests-in-system": RequestsInSystem,
    "energy": Energy,
    "cost": Cost,
}


def make_reward(reward: str | Mapping[str, float] | Reward) -> Reward:
    """The reward that `reward` names.

    Raises:
        ConfigError: no such name, no weight, or an object without `name` and `terms`.
    """
    if isinstance(reward, str):
        if reward not in REWARDS:
            raise ConfigError(
                f"reward {reward!r} is unknown: use one of {', '.join(REWARDS)}, or a mapping of weights"
            )
        return REWARDS[reward]()
    if isinstance(reward, Mapping):
        if not reward:
            raise ConfigError("reward is an empty mapping: name at least one reward and its weight")
        for name, weight in reward.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise ConfigError(f"reward {name!r}: the weight {weight!r} is not a number")
        return WeightedSum(tuple((make_reward(name), float(weight)) for name, weight in reward.items()))
    if not isinstance(reward, Reward):
        raise ConfigError(
            f"reward {reward!r} is neither a name, a mapping of weights nor an object with `terms`"
        )
    return reward
