"""What a penalty on the tail costs: goodput against the TTFT of the unlucky, by `evolution.tail_weight`."""

from functools import partial

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.learned import weights
from benchmarks.learned.cases import CASES
from benchmarks.learned.measure import Bench, measure
from benchmarks.learned.page import Section, Table
from benchmarks.learned.statistics import estimate, mean
from splitgym import schedulers
from splitgym.evaluation import Contender
from splitgym.evaluation.plots import figure_of, save

OVERLOAD = 1.2
PREFIX = "tail-"
"""Kept weights are called so, with the tail weight behind it."""
FIGURE = "tail-weight.png"

Points = list[tuple[str, float, float]]


def tail(names: tuple[str, ...], bench: Bench) -> Section:
    """The trade-off curve.

    Args:
        names: of the cases.
        bench: how runs are made.
    """
    kept = sorted(weights.names(PREFIX), key=lambda name: float(name.removeprefix(PREFIX)))
    tables, curves = [], {}
    for name in names:
        case = CASES[name]
        found = [(f"weight {one.removeprefix(PREFIX)}", one) for one in kept] + [
            ("index tuned for this cluster", f"cem-{name}")
        ]
        entrants = [_entrant(label, one) for label, one in found]
        runs = measure(case, entrants, bench)
        rows, points = [], []
        for entrant in entrants:
            good = runs.of([entrant.name], "goodput", case.claimed_loads)
            over = runs.of([entrant.name], "goodput", (OVERLOAD,))
            late = runs.of([entrant.name], "ttft_slowdown_p99", (OVERLOAD,))
            rows.append((entrant.name, str(estimate(good)), f"{mean(over):.3f}", *_tails(late)))
            points.append((entrant.name.removeprefix("weight "), mean(late), mean(good)))
        columns = (
            "",
            "goodput, loads 0.9 to 1.35",
            "goodput at 1.2",
            "TTFT p99 at 1.2",
            "of the worst window",
        )
        tables.append(Table(case.title, columns, tuple(rows)))
        curves[case.title] = points
    (bench.out / "images").mkdir(parents=True, exist_ok=True)
    save(draw(curves), bench.out / "images" / FIGURE)
    text = (
        "The fitness of evolution is goodput - `tail_weight` x tail, where the tail is the mean of "
        "ln(max(TTFT slowdown, 6) / 6) over the worst 2 % of requests. One training seed: 40 generations "
        "from the first stage of seed 1 (trained with 0.05), each with its own weight.",
        f"![Goodput against TTFT p99 by tail weight](images/{FIGURE})",
    )
    return Section("The price of the tail", bench.command, text, tuple(tables), {})


def draw(curves: dict[str, Points]) -> Figure:
    """A panel a cluster: TTFT p99 against goodput, a point a weight (the last is the tuned index)."""
    figure, panels = figure_of(1, len(curves))
    for axes, (title, points) in zip(panels, curves.items()):
        *ours, index = points
        axes.plot([p99 for _, p99, _ in ours], [good for _, _, good in ours], "o-", label="tail weight")
        axes.plot(index[1], index[2], "ks", label=index[0])
        for label, p99, good in ours:
            axes.annotate(label, (p99, good), textcoords="offset points", xytext=(5, 5), fontsize="small")
        axes.set(title=title, xlabel="TTFT slowdown p99 at load 1.2", ylabel="goodput, loads 0.9 to 1.35")
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    return figure


def _tails(late: NDArray[np.float64]) -> tuple[str, str]:
    return f"{mean(late):.1f}", f"{np.nanmax(late):.0f}"


def _entrant(label: str, name: str) -> Contender:
    scheduler = weights.read(name)
    if scheduler is None:
        raise FileNotFoundError(f"no kept weights {name}: see benchmarks/learned/weights.py")
    return Contender(label, scheduler, schedulers.sizing("static"))


SECTIONS = {"tail": partial(tail, ("8h", "4h4a"))}
