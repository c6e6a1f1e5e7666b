"""A whole question of a user, from the search to the tables, files and figures."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import log2
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from splitgym.errors import ConfigError
from splitgym.evaluation.plots import save
from splitgym.evaluation.report import TERMINAL_WIDTH
from splitgym.evaluation.workloads import Workload
from splitgym.provisioning import plots, report
from splitgym.provisioning.designs import QUANTITIES, Budget, Design
from splitgym.provisioning.plan import (
    Curve,
    Found,
    Frontier,
    Problem,
    curves,
    frontiers,
    least,
    most_rate,
)
from splitgym.provisioning.runs import Runs

CURVE_POINTS = 6


@dataclass(frozen=True)
class Request:
    """What is to be found. One of `budget`, `rate_per_s`, or numbers of machines in every design."""

    problem: Problem
    designs: tuple[Design, ...]
    budget: Budget | None = None
    rate_per_s: float | None = None
    minimise: str = "cost"
    """With a rate: cost, power or count."""
    also: Workload | None = None
    """Another workload that the clusters found are tried under."""
    figures: bool = False
    """Run what the figures need besides: latency by rate, the frontiers."""

    def __post_init__(self) -> None:
        open_designs = any(d.counts is None for d in self.designs)
        if self.budget is not None and self.rate_per_s is not None:
            raise ConfigError("a budget and a rate to reach exclude each other: give one")
        if self.budget is None and self.rate_per_s is None and open_designs:
            raise ConfigError("give a budget (power=40*h100-80gb), a rate to reach, or numbers of machines")
        if self.minimise not in QUANTITIES:
            raise ConfigError(f"minimise {self.minimise!r}: choose one of {', '.join(QUANTITIES)}")

    @property
    def expected_runs(self) -> int:
        """A guess, for a progress bar."""
        return len(self.designs) * round(8 + 2 * log2(self.problem.most_machines))

    def answer(self, runs: Runs, progress: Callable[[int], None] | None = None) -> "Answer":
        """Search.

        Args:
            runs: who simulates.
            progress: called with the number of searches still going, after each round of runs.

        Raises:
            ConfigError: nothing is feasible; says what comes nearest.
            ProfileError: the model does not fit a machine.
        """
        problem, rate, quantity = self.problem, self.rate_per_s, self.minimise
        if rate is not None:
            found = least(problem, self.designs, rate, quantity, runs, progress)  # type: ignore[arg-type]
        else:
            found = most_rate(problem, self.designs, self.budget, runs, progress)
        sized = [f.design for f in found]
        elsewhere: list[Found] = []
        if self.also is not None:
            there = replace(problem, workload=self.also)
            elsewhere = most_rate(there, sized, None, runs, progress)
        drawn: list[Curve] = []
        edges: list[Frontier] = []
        if self.figures:
            top = 1.2 * max(f.rate_per_s for f in found)
            rates = [float(f"{top * (i + 1) / CURVE_POINTS:.3g}") for i in range(CURVE_POINTS)]
            drawn = curves(problem, sized, rates, runs) if top > 0 else []
            if rate is not None:
                edges = frontiers(problem, found, rate, quantity, runs, progress=progress)  # type: ignore[arg-type]
        return Answer(self, found, elsewhere, drawn, edges)

    @property
    def title(self) -> str:
        """What was asked, in a line."""
        name = self.problem.workload.base_name
        if self.rate_per_s is not None:
            return f"{self.problem.model}, {name} at {self.rate_per_s:g} requests/s: least {self.minimise}"
        return f"{self.problem.model}, {name}: most requests/s, {self.budget or 'fixed sizes'}"


@dataclass(frozen=True)
class Answer:
    """What was found."""

    asked: Request
    found: list[Found]
    elsewhere: list[Found] = field(default_factory=list)
    """The same clusters under `Request.also`."""
    curves: list[Curve] = field(default_factory=list)
    frontiers: list[Frontier] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        asked = self.asked
        more: dict[str, Any] = {
            "budget": None if asked.budget is None else str(asked.budget),
            "rate_per_s": asked.rate_per_s,
            "minimise": asked.minimise if asked.rate_per_s is not None else None,
        }
        if asked.also is not None:
            more["also"] = {"workload": asked.also.base_name, "designs": [f.row() for f in self.elsewhere]}
        return report.as_json(asked.problem, self.found, self.frontiers, **more)

    def print_tables(self, file: TextIO | None = None) -> None:
        """To the terminal."""
        console = Console(file=file)
        if not console.is_terminal:
            console = Console(file=file, width=TERMINAL_WIDTH)
        console.print(report.table(self.found, self.asked.title))
        if self.asked.also is not None:
            console.print(
                report.table(self.elsewhere, f"the same clusters under {self.asked.also.base_name}")
            )

    def write(self, folder: Path) -> list[Path]:
        """CSV, JSON and figures into a folder, which is made."""
        files = report.write_files(folder, self.as_json())
        files += plots.write_plots(folder, self.found, self.curves, self.frontiers, self.asked.title)
        if self.asked.also is not None:
            title = f"{self.asked.problem.workload.base_name} and {self.asked.also.base_name}"
            figure = plots.robustness(self.found, self.elsewhere, title)
            files.append(save(figure, folder / "robustness.png"))
        return files
