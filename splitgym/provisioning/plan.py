"""What is asked of the search and what it finds, with real clusters, rates and runs."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from splitgym.config import ClusterConfig
from splitgym.errors import ConfigError
from splitgym.evaluation.workloads import Workload
from splitgym.provisioning.designs import Budget, Counts, Design, Quantity
from splitgym.provisioning.runs import Failures, Percentiles, Runs, Task, slowdowns
from splitgym.provisioning.search import (
    NONE,
    Asking,
    Best,
    Question,
    Search,
    best_split,
    cheapest,
    drive,
    frontier,
    remember,
    together,
    translate,
)


@dataclass(frozen=True)
class Problem:
    """What the clusters must serve: a model, what arrives, and how finely rates are told apart."""

    model: str
    workload: Workload
    """Its rate does not matter: the search sets it."""
    seeds: tuple[int, ...] = (0,)
    tolerance: float = 0.03
    """Rates tried are `lowest_per_s` times powers of 1 + tolerance, the same for every design."""
    lowest_per_s: float = 0.1
    highest_per_s: float = 5000.0
    most_machines: int = 128
    """No pool of a cluster that is to reach a rate has more."""
    engine: str = "auto"
    rules: ClusterConfig | None = None
    """Transfer, batching, SLO and all else of a cluster but its model and machines; None is the default."""

    def __post_init__(self) -> None:
        if not (self.tolerance > 0 and 0 < self.lowest_per_s < self.highest_per_s and self.most_machines > 0):
            raise ConfigError(
                "provisioning: tolerance, rates and machines must be positive, lowest < highest"
            )

    @cached_property
    def rates(self) -> tuple[float, ...]:
        """The rates that are tried [requests/s]; a step is a place in them."""
        found = [self.lowest_per_s]
        while found[-1] < self.highest_per_s:
            found.append(found[-1] * (1 + self.tolerance))
        return tuple(float(f"{rate:.6g}") for rate in found)

    def task(self, design: Design, counts: Counts, rate_per_s: float) -> Task:
        """The run that tells whether a cluster holds a rate."""
        config = design.config(self.model, counts, self.rules)
        return Task(config, design.scheduler, self.workload.at_rate(rate_per_s), self.seeds, self.engine)


@dataclass(frozen=True)
class Found:
    """A cluster and the rate that it holds under all nine SLOs."""

    design: Design
    """With its `counts`."""
    rate_per_s: float
    """0 where even the lowest rate fails."""
    failed: Failures
    """SLOs that fail one step of the rates higher, as far as they were named."""
    machines: int
    cost_per_hour: float
    power: float
    reached: bool = True
    """False where a rate was to be reached and is not."""

    @property
    def counts(self) -> Counts:
        assert self.design.counts is not None
        return self.design.counts

    def row(self) -> dict[str, Any]:
        """Flat fields for a table."""
        return {
            "design": self.design.name,
            "cluster": self.design.describe(self.counts),
            **{p.pool: n for p, n in zip(self.design.pools, self.counts)},
            "rate_per_s": self.rate_per_s,
            "reached": self.reached,
            "machines": self.machines,
            "cost_per_hour": round(self.cost_per_hour, 6),
            "power": round(self.power, 6),
            "next_fails": " ".join(self.failed),
        }


@dataclass(frozen=True)
class Frontier:
    """Feasible clusters of a design at one rate: with `first[i]` machines in the first pool, at least
    `fewest[i]` in the second (None: not even `most`)."""

    design: Design
    rate_per_s: float
    prices: tuple[float, ...]
    minimised: Quantity
    first: tuple[int, ...]
    fewest: tuple[int | None, ...]
    most: int

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "design": self.design.name}


@dataclass(frozen=True)
class Curve:
    """Slowdowns of one cluster by rate."""

    name: str
    rates_per_s: tuple[float, ...]
    percentiles: tuple[Percentiles, ...]


def most_rate(
    problem: Problem, designs: Sequence[Design], budget: Budget | None, runs: Runs,
    progress: Callable[[int], None] | None = None,
) -> list[Found]:  # fmt: skip
    """The highest rate of each design within a budget, over all splits; or with the numbers that it has.

    Args:
        budget: for designs without numbers of their own.
        progress: called with the number of searches still going, after each round of runs.

    Raises:
        ConfigError: the budget buys no working cluster, or there is none.
        ProfileError: the model does not fit a machine.
    """
    searches: list[Search[Best]] = []
    top = len(problem.rates) - 1
    for design in designs:
        line = _line(problem, design, budget)
        guess = _guess(problem, line[len(line) // 2])
        searches.append(best_split(line, top, guess))
    bests = _solve(problem, designs, searches, lambda step: problem.rates[step], runs, progress)
    return [_found(problem, d, b.counts, b.step, runs) for d, b in zip(designs, bests)]


def least(
    problem: Problem, designs: Sequence[Design], rate_per_s: float, minimise: Quantity, runs: Runs,
    progress: Callable[[int], None] | None = None,
) -> list[Found]:  # fmt: skip
    """The cluster of each design that reaches a rate with the least cost, power or number of machines.

    Designs that do not reach it stand there with the highest rate that they do.

    Raises:
        ConfigError: no design reaches the rate (names the nearest feasible point), or one has fixed numbers.
        ProfileError: the model does not fit a machine.
    """
    fixed = [d.name for d in designs if d.counts is not None]
    if fixed:
        raise ConfigError(f"design {fixed[0]} has fixed numbers of machines: a rate to reach searches them")
    if not rate_per_s > 0:
        raise ConfigError(f"rate to reach is {rate_per_s}: it must be above 0")
    prices = [[p.each(minimise, problem.model) for p in d.pools] for d in designs]
    searches = [cheapest(price, problem.most_machines) for price in prices]
    bests = _solve(problem, designs, searches, lambda step: rate_per_s, runs, progress)
    short = [d for d, best in zip(designs, bests) if best is None]
    near = {
        f.design.name: replace(f, reached=False)
        for f in most_rate(problem, [_at_limit(problem, d) for d in short], None, runs, progress)
    }
    if len(short) == len(designs):
        nearest = max(near.values(), key=lambda f: f.rate_per_s)
        raise ConfigError(
            f"{rate_per_s:g} requests/s are not reached with up to {problem.most_machines} machines a pool; "
            f"the nearest feasible point: {nearest.rate_per_s:g} requests/s with {nearest.design.name} of "
            f"{nearest.design.describe(nearest.counts)} (then {' '.join(nearest.failed) or 'no SLO'} fails)"
        )
    found = []
    for design, best in zip(designs, bests):
        if best is None:
            found.append(near[design.name])
        else:
            found.append(replace(_found(problem, design, best.counts, NONE, runs), rate_per_s=rate_per_s))
    return found


def frontiers(
    problem: Problem, found: Sequence[Found], rate_per_s: float, minimise: Quantity, runs: Runs,
    columns: int = 15, progress: Callable[[int], None] | None = None,
) -> list[Frontier]:  # fmt: skip
    """The feasible frontier around the cheapest clusters of two pools: up to twice as many in each pool.

    Args:
        found: of `least`; designs of one pool and rates that were not reached are passed over.
        columns: numbers of machines in the first pool that are tried, at most.
    """
    there = [f for f in found if f.reached and len(f.counts) == 2]
    firsts, searches = [], []
    for f in there:
        step = max(1, -(-2 * f.counts[0] // columns))
        first = sorted({f.counts[0], *range(max(1, f.counts[0] % step), 2 * f.counts[0] + 1, step)})
        firsts.append(first)
        searches.append(frontier(first, 2 * f.counts[1] + 2))
    edges = _solve(problem, [f.design for f in there], searches, lambda step: rate_per_s, runs, progress)
    return [
        Frontier(
            f.design, rate_per_s, tuple(p.each(minimise, problem.model) for p in f.design.pools), minimise,
            tuple(first), tuple(edge), 2 * f.counts[1] + 2,
        )
        for f, first, edge in zip(there, firsts, edges)
    ]  # fmt: skip


def curves(
    problem: Problem, designs: Sequence[Design], rates_per_s: Sequence[float], runs: Runs
) -> list[Curve]:
    """Slowdown percentiles of sized designs by rate."""
    pairs = [(d, rate) for d in designs for rate in rates_per_s]
    tasks = [problem.task(d, d.counts or (), rate) for d, rate in pairs]
    found = list(runs.apply(slowdowns, tasks))
    n = len(rates_per_s)
    return [
        Curve(d.name, tuple(rates_per_s), tuple(found[i * n : (i + 1) * n])) for i, d in enumerate(designs)
    ]


def _solve(
    problem: Problem, designs: Sequence[Design], searches: Sequence[Search[Any]],
    rate: Callable[[int], float], runs: Runs, progress: Callable[[int], None] | None,
) -> list[Any]:  # fmt: skip
    """All searches at once over one pool of workers."""
    left = len(searches)

    def asking(design: Design, search: Search[Any]) -> Asking[Task, Failures, Any]:
        def task(question: Question) -> Task:
            return problem.task(design, question[0], rate(question[1]))

        nonlocal left
        result = yield from translate(remember(search), task, lambda failed: not failed)
        left -= 1
        return result

    def ask(tasks: list[Task]) -> list[Failures]:
        answers = runs.ask(tasks)
        if progress is not None:
            progress(left)
        return answers

    return drive(together([asking(d, s) for d, s in zip(designs, searches)]), ask)


def _line(problem: Problem, design: Design, budget: Budget | None) -> list[Counts]:
    for pool in design.pools:
        pool.spec(problem.model)  # a model that does not fit is an error of its own
    if design.counts is not None:
        return [design.counts]
    if budget is None:
        raise ConfigError(f"design {design.name}: give a budget, a rate to reach or numbers of machines")
    line = budget.buys([p.each(budget.quantity, problem.model) for p in design.pools])
    if not line:
        one = (1,) * len(design.pools)
        raise ConfigError(
            f"design {design.name}: budget {budget} buys no working cluster; the smallest, "
            f"{design.describe(one)}, takes {budget.quantity}="
            f"{design.amount(budget.quantity, problem.model, one):g}"
        )
    return line


def _at_limit(problem: Problem, design: Design) -> Design:
    return design.sized((problem.most_machines,) * len(design.pools))


def _guess(problem: Problem, counts: Counts) -> int:
    """A step to begin at: one request/s a machine. Only the number of runs depends on it."""
    return sum(rate <= sum(counts) for rate in problem.rates)


def _found(problem: Problem, design: Design, counts: Counts, step: int, runs: Runs) -> Found:
    above = min(step + 1, len(problem.rates) - 1)
    failed = runs.known(problem.task(design, counts, problem.rates[above]))
    model = problem.model
    return Found(
        design.sized(counts),
        problem.rates[step] if step > NONE else 0.0,
        failed or (),
        sum(counts),
        design.amount("cost", model, counts),
        design.amount("power", model, counts),
    )
