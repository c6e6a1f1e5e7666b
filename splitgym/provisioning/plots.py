"""The figures of provisioning: the paper's three, and the map of costs with the feasible frontier."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from splitgym.evaluation.plots import file_name, save
from splitgym.metrics import KINDS
from splitgym.provisioning.plan import Curve, Found, Frontier
from splitgym.slo import NINE_SLOS, PERCENTILES


def latency_by_rate(curves: Sequence[Curve], title: str) -> Figure:
    """Slowdown percentiles by rate, a line a design; dotted: the nine SLOs."""
    figure = Figure(figsize=(11, 8), dpi=110, layout="constrained")
    panels = figure.subplots(3, 3, sharex=True)
    for row, kind in enumerate(KINDS):
        for column, (p, limit) in enumerate(zip(PERCENTILES, NINE_SLOS[kind])):
            axes = panels[row][column]
            for curve in curves:
                values = np.array([getattr(found, kind)[column] for found in curve.percentiles])
                axes.plot(curve.rates_per_s, np.minimum(values, 3 * limit), "o-", ms=3, label=curve.name)
            axes.axhline(limit, color="k", linestyle=":")
            axes.set(ylim=(0, 2 * limit), title=f"{kind.upper()} p{p}")
            axes.grid(alpha=0.3)
        panels[row][0].set_ylabel("slowdown")
    for axes in panels[2]:
        axes.set_xlabel("requests/s")
    panels[0][0].legend(fontsize="x-small")
    figure.suptitle(title)
    return figure


def summary_bars(groups: dict[str, Sequence[Found]]) -> Figure:
    """Rate, cost, power and machines of each design; a row a group (equal power, equal cost)."""
    figure = Figure(figsize=(13, 3.4 * len(groups)), dpi=110, layout="constrained")
    panels = figure.subplots(len(groups), 4, squeeze=False)
    for row, (title, found) in zip(panels, groups.items()):
        names = [f.design.name for f in found]
        columns = {
            "requests/s": [f.rate_per_s for f in found],
            "cost per hour": [f.cost_per_hour for f in found],
            "power": [f.power for f in found],
            "machines": [float(f.machines) for f in found],
        }
        for axes, (label, values) in zip(row, columns.items()):
            bars = axes.barh(names, values)
            axes.bar_label(bars, fmt="%.4g", fontsize="small")
            axes.set(xlabel=label, xlim=(0, 1.2 * max([*values, 1e-9])))
            axes.invert_yaxis()
            if axes is not row[0]:
                axes.set_yticklabels([])
        row[0].set_title(title, loc="left")
    return figure


def robustness(sized_here: Sequence[Found], sized_elsewhere: Sequence[Found], title: str) -> Figure:
    """Rates of designs sized for this workload beside the same designs sized for another one.

    Args:
        sized_here, sized_elsewhere: the same designs in the same order, both under this workload.
    """
    figure = Figure(figsize=(8, 3.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(sized_here))
    for offset, found, label in (
        (-0.2, sized_here, "sized for it"),
        (0.2, sized_elsewhere, "sized for other"),
    ):
        bars = axes.bar(places + offset, [f.rate_per_s for f in found], 0.4, label=label)
        axes.bar_label(bars, fmt="%.3g", fontsize="small")
    axes.set_xticks(places, [f.design.name for f in sized_here], fontsize="small")
    axes.set(ylabel="requests/s, all nine SLOs", title=title)
    axes.legend(fontsize="small")
    return figure


def cost_map(frontier: Frontier) -> Figure:
    """What (prompt machines, token machines) take, where the rate is held, and the edge between."""
    figure = Figure(figsize=(7, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    first = np.array(frontier.first)
    second = np.arange(1, frontier.most + 1)
    price = first[None, :] * frontier.prices[0] + second[:, None] * frontier.prices[1]
    fewest = np.array([np.inf if t is None else t for t in frontier.fewest])
    held = second[:, None] >= fewest[None, :]
    mesh = axes.pcolormesh(first, second, np.where(held, price, np.nan), shading="nearest", cmap="viridis")
    axes.pcolormesh(first, second, np.where(held, np.nan, price), shading="nearest", cmap="Greys", alpha=0.4)
    figure.colorbar(mesh, ax=axes, label=f"{frontier.minimised} where all nine SLOs hold")
    there = np.isfinite(fewest)
    axes.plot(first[there], fewest[there], "r.-", label="feasible frontier")
    if there.any():
        best = np.argmin(np.where(there, first * frontier.prices[0] + fewest * frontier.prices[1], np.inf))
        axes.plot(first[best], fewest[best], "r*", ms=14, label="least")
    one, two = frontier.design.pools
    axes.set(
        xlabel=f"prompt machines ({one.machine})",
        ylabel=f"token machines ({two.machine})",
        title=f"{frontier.design.name} at {frontier.rate_per_s:g} requests/s",
    )
    axes.legend(fontsize="small")
    return figure


def write_plots(
    folder: Path, found: Sequence[Found], curves: Sequence[Curve], frontiers: Sequence[Frontier], title: str
) -> list[Path]:
    """What `splitgym provision` draws, as PNG into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [save(summary_bars({title: found}), folder / "summary.png")]
    if curves:
        files.append(save(latency_by_rate(curves, title), folder / "latency-by-rate.png"))
    for edge in frontiers:
        path = folder / f"map-{file_name(edge.design.name)}.png"
        files.append(save(cost_map(edge), path))
    return files
