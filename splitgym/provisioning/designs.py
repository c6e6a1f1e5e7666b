"""What a cluster is made of: designs (machine types by pool), budgets, the paper's own numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from splitgym import profile as profiles
from splitgym.config import ClusterConfig, MachineGroup
from splitgym.errors import ConfigError
from splitgym.profile import MachineSpec

Counts = tuple[int, ...]
Quantity = Literal["power", "cost", "count"]
QUANTITIES: tuple[Quantity, ...] = ("power", "cost", "count")

_POOLS: dict[str, Literal["prompt", "token", "mixed"]] = {"P": "prompt", "T": "token", "M": "mixed"}
_POOL = re.compile(r"^(?P<machine>[a-z0-9.-]+?)(?:/tp(?P<tp>\d+))?:(?P<count>\d+)?(?P<pool>[PTM])$")
_BUDGET = re.compile(
    r"^(?P<what>power|cost|count)=(?P<amount>[0-9.]+)(?:\*(?P<machine>[a-z0-9.-]+?)(?:/tp(?P<tp>\d+))?)?$"
)


@dataclass(frozen=True)
class PoolOf:
    """One pool of a design: machines of one type."""

    machine: str
    pool: str
    """P (prompt), T (token) or M (mixed: always works for both phases)."""
    tensor_parallel: int = 8

    def spec(self, model: str) -> MachineSpec:
        """What one machine of the pool is and costs.

        Raises:
            ProfileError: no such profile, or the model does not fit the machine.
        """
        return profiles.load(model, self.machine, self.tensor_parallel).machine

    def each(self, quantity: Quantity, model: str) -> float:
        """Power (relative units), cost per hour or count of one machine.

        Raises:
            ConfigError: the machine type has no such number.
        """
        if quantity == "count":
            return 1.0
        spec = self.spec(model)
        value = spec.provisioned_power if quantity == "power" else spec.cost_per_hour
        if value <= 0:
            raise ConfigError(f"machine type {self.machine} has no {quantity}: give it one in its spec")
        return value


@dataclass(frozen=True)
class Design:
    """Machine types by pool; how many of each is what the search finds, unless `counts` says."""

    name: str
    pools: tuple[PoolOf, ...]
    scheduler: str
    counts: Counts | None = None

    def sized(self, counts: Counts) -> "Design":
        """The design with its numbers of machines, pool by pool."""
        return replace(self, counts=tuple(int(c) for c in counts))

    def config(self, model: str, counts: Counts, rules: ClusterConfig | None = None) -> ClusterConfig:
        """The cluster with so many machines in each pool, and all else as in `rules`."""
        groups = tuple(
            MachineGroup(p.machine, n, _POOLS[p.pool], p.tensor_parallel)
            for p, n in zip(self.pools, counts, strict=True)
            if n
        )
        return replace(rules or ClusterConfig(), model=model, machines=groups)

    def amount(self, quantity: Quantity, model: str, counts: Counts) -> float:
        """Power, cost per hour or number of so many machines."""
        return sum(p.each(quantity, model) * n for p, n in zip(self.pools, counts, strict=True))

    def describe(self, counts: Counts) -> str:
        """Such as `25P h100-80gb + 26T a100-80gb`."""
        return " + ".join(f"{n}{p.pool} {p.machine}" for p, n in zip(self.pools, counts, strict=True))


@dataclass(frozen=True)
class Budget:
    """At most so much power, cost or so many machines."""

    quantity: Quantity
    amount: float

    def buys(self, each: Sequence[float]) -> list[Counts]:
        """The largest clusters within the budget, by the number of machines in the first pool.

        Args:
            each: (1 or 2,) the price of a machine of each pool.

        Returns:
            counts, at least one machine in each pool; empty where even that is too much.
        """
        slack = self.amount * (1 + 1e-9)  # 70 x 24.8 is not below 1736 in floating point
        if len(each) == 1:
            n = int(slack / each[0])
            return [(n,)] if n else []
        first = int((slack - each[1]) / each[0])
        return [(p, int((slack - p * each[0]) / each[1])) for p in range(1, first + 1)]

    def __str__(self) -> str:
        return f"{self.quantity}={self.amount:g}"


def _paper(name: str, prompt: str, token: str | None = None) -> Design:
    if token is None:
        return Design(name, (PoolOf(prompt, "M"),), "jsq-tokens")
    return Design(name, (PoolOf(prompt, "P"), PoolOf(token, "T")), "splitwise")


PAPER_DESIGNS: dict[str, Design] = {
    d.name: d
    for d in (
        _paper("Baseline-A100", "a100-80gb"),
        _paper("Baseline-H100", "h100-80gb"),
        _paper("Splitwise-AA", "a100-80gb", "a100-80gb"),
        _paper("Splitwise-HH", "h100-80gb", "h100-80gb"),
        _paper("Splitwise-HA", "h100-80gb", "a100-80gb"),
        _paper("Splitwise-HHcap", "h100-80gb", "h100-80gb-pcap"),
    )
}
"""Section 5 of the paper. HHcap's token machines are H100 with their power capped."""

PAPER_COUNTS: dict[tuple[str, str], dict[str, Counts]] = {
    ("power", "azure-conv"): {
        "Baseline-A100": (70,),
        "Baseline-H100": (40,),
        "Splitwise-AA": (45, 25),
        "Splitwise-HH": (25, 15),
        "Splitwise-HA": (25, 26),
        "Splitwise-HHcap": (25, 21),
    },
    ("power", "azure-code"): {
        "Baseline-A100": (70,),
        "Baseline-H100": (40,),
        "Splitwise-AA": (55, 15),
        "Splitwise-HH": (35, 5),
        "Splitwise-HA": (35, 8),
        "Splitwise-HHcap": (35, 7),
    },
    ("cost", "azure-conv"): {
        "Baseline-A100": (86,),
        "Baseline-H100": (40,),
        "Splitwise-AA": (51, 35),
        "Splitwise-HH": (25, 15),
        "Splitwise-HA": (30, 21),
        "Splitwise-HHcap": (30, 10),
    },
    ("cost", "azure-code"): {
        "Baseline-A100": (86,),
        "Baseline-H100": (40,),
        "Splitwise-AA": (66, 20),
        "Splitwise-HH": (35, 5),
        "Splitwise-HA": (35, 10),
        "Splitwise-HHcap": (35, 7),
    },
}
"""Machines of the published designs by what is equal and by the trace they were sized for."""


def parse_design(text: str) -> Design:
    """A design from its text: a name of the paper's, or `[NAME=]TYPE:POOL[+TYPE:POOL]`.

    `h100-80gb:P+a100-80gb:T` leaves the numbers to the search, `h100-80gb:25P+a100-80gb:26T` fixes them;
    `a100-80gb/tp4:M` is a mixed pool of half machines.

    Raises:
        ConfigError: another form, some numbers but not all, or pools that cannot serve both phases.
    """
    known = {name.lower(): design for name, design in PAPER_DESIGNS.items()}
    if text.strip().lower() in known:
        return known[text.strip().lower()]
    label, _, body = text.rpartition("=")
    pools, counts = [], []
    for part in body.split("+"):
        match = _POOL.match(part.strip())
        if match is None:
            raise ConfigError(
                f"design {text!r}: {part.strip()!r} is none of {', '.join(PAPER_DESIGNS)} and not "
                "TYPE:POOL such as h100-80gb:P (P prompt, T token, M mixed; join with +; 25P is fixed)"
            )
        pools.append(PoolOf(match["machine"], match["pool"], int(match["tp"] or 8)))
        if match["count"]:
            counts.append(int(match["count"]))
    letters = [p.pool for p in pools]
    if letters not in (["M"], ["P", "T"]) and not counts:
        raise ConfigError(f"design {text!r}: the search knows one mixed pool, or a prompt and a token pool")
    if counts and (len(counts) != len(pools) or min(counts) < 1):
        raise ConfigError(f"design {text!r}: give every pool a number of at least 1, or none")
    scheduler = "jsq-tokens" if set(letters) == {"M"} else "splitwise"
    name = label.strip() or body.replace(" ", "")
    return Design(name, tuple(pools), scheduler, tuple(counts) or None)


def parse_designs(text: str) -> list[Design]:
    """Designs by comma; `paper` is all six of the paper.

    Raises:
        ConfigError: none, one twice, or see `parse_design`.
    """
    found: list[Design] = []
    for word in (w.strip() for w in text.split(",")):
        if word == "paper":
            found += PAPER_DESIGNS.values()
        elif word:
            found.append(parse_design(word))
    names = [d.name for d in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(f"two designs are called {twice[0]!r}: name them with NAME=")
    if not found:
        raise ConfigError("no design to search: name at least one (`paper` is the paper's six)")
    return found


def parse_budget(text: str, model: str) -> Budget:
    """A budget: `power=1760`, `cost=190.4`, `count=40`, or what so many machines take: `power=40*h100-80gb`.

    Raises:
        ConfigError: another form, or not positive.
        ProfileError: an unknown machine type.
    """
    match = _BUDGET.match(text.strip())
    if match is None:
        raise ConfigError(
            f"budget {text!r} is not power=N, cost=N, count=N or such as power=40*h100-80gb "
            "(the units are those of the machine specs)"
        )
    quantity: Quantity = match["what"]  # type: ignore[assignment]
    try:
        amount = float(match["amount"])
    except ValueError:
        raise ConfigError(f"budget {text!r}: {match['amount']} is no number") from None
    if match["machine"]:
        amount *= PoolOf(match["machine"], "M", int(match["tp"] or 8)).each(quantity, model)
    if not amount > 0:
        raise ConfigError(f"budget {text!r}: must be above 0")
    return Budget(quantity, round(amount, 9))
