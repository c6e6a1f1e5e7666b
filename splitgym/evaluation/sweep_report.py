"""A sweep's rows for people and programs: a terminal table, CSV and JSON, a plot of the metric by rate."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from splitgym.errors import ConfigError
from splitgym.evaluation.compare import bootstrap_mean, brackets
from splitgym.evaluation.plots import figure_of, save
from splitgym.evaluation.report import TERMINAL_WIDTH, plain
from splitgym.evaluation.sweep import Row
from splitgym.metrics import metric_names

_RUN = ("trace", "seed")
"""What tells the windows of one point from each other."""


def summarise(rows: Sequence[Row], metric: str) -> list[Row]:
    """One row a point of the sweep and policy: the metric's mean over windows, with its interval.

    `_low` and `_high` of fewer than six `windows` are the lowest and the highest (see `Interval`).

    Raises:
        ConfigError: no such metric.
    """
    check_metric(metric)
    points: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        points.setdefault(tuple(row[name] for name in _point(rows)), []).append(row)
    found = []
    for values, runs in points.items():
        interval = bootstrap_mean([run[metric] for run in runs])
        found.append(
            {
                **dict(zip(_point(rows), values, strict=True)),
                "windows": len(runs),
                metric: interval.mean,
                f"{metric}_low": interval.low,
                f"{metric}_high": interval.high,
            }
        )
    return found


def check_metric(metric: str) -> None:
    """Refuse what is no number of `Metrics`.

    Raises:
        ConfigError: it is none.
    """
    if metric not in metric_names():
        raise ConfigError(f"metric {metric!r} is unknown; there are {', '.join(metric_names())}")


def print_table(rows: Sequence[Row], metric: str, file: TextIO | None = None) -> None:
    """Print the metric of each point; what is the same everywhere stands in the title."""
    found = summarise(rows, metric)
    names = _point(rows)
    varied = [n for n in names if n == "policy" or len({str(row[n]) for row in found}) > 1]
    fixed = ", ".join(f"{n} {found[0][n]}" for n in names if n not in varied)
    fewest = min(row["windows"] for row in found)
    spreads = f"; brackets: {brackets(fewest)}" if fewest > 1 else ""
    drawn = Table(title=fixed or None, box=SIMPLE_HEAD, caption=f"{metric}: mean{spreads}")
    for name in varied:
        drawn.add_column(name, overflow="fold")
    drawn.add_column("windows", justify="right")
    drawn.add_column(metric, justify="right", no_wrap=True)
    for row in found:
        spread = f"{row[metric]:.4g}"
        if np.isfinite(row[f"{metric}_low"]):
            spread += f" [{row[f'{metric}_low']:.4g}, {row[f'{metric}_high']:.4g}]"
        drawn.add_row(*(str(row[name]) for name in varied), str(row["windows"]), spread)
    console = Console(file=file)
    if not console.is_terminal:
        console = Console(file=file, width=TERMINAL_WIDTH)
    console.print(drawn)


def write_files(rows: Sequence[Row], folder: Path, metric: str) -> list[Path]:
    """Write `runs.csv`, `summary.csv` and, where rates differ, `by-rate.png` into a folder.

    Returns:
        the files.
    """
    files = [folder / "runs.csv", folder / "summary.csv"]
    for path, table in zip(files, (rows, summarise(rows, metric))):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows({k: plain(v) for k, v in row.items()} for row in table)
    if len({row["rate_per_s"] for row in rows}) > 1:
        files.append(_plot(rows, metric, folder / "by-rate.png"))
    return files


def as_json(rows: Sequence[Row]) -> list[Row]:
    """The rows, ready for `json.dumps`."""
    found: list[Row] = plain(list(rows))
    return found


def _point(rows: Sequence[Row]) -> list[str]:
    """The columns before the metrics that name a point: the labels, policy, workload, rate."""
    names = list(rows[0])
    return [name for name in names[: names.index("seed")] if name not in _RUN]


def _plot(rows: Sequence[Row], metric: str, path: Path) -> Path:
    """The metric by rate: a line a policy, a panel for all else."""
    found = summarise(rows, metric)
    names = [n for n in _point(rows) if n not in ("policy", "rate_per_s")]
    varied = [n for n in names if len({str(row[n]) for row in found}) > 1]
    panels: dict[str, list[Row]] = {}
    for row in found:
        if row["rate_per_s"] is not None:
            panels.setdefault(", ".join(f"{n} {row[n]}" for n in varied), []).append(row)
    columns = min(3, len(panels))
    figure, axes = figure_of(-(-len(panels) // columns), columns)
    for ax, (title, points) in zip(axes, panels.items()):
        for policy in dict.fromkeys(row["policy"] for row in points):
            line = sorted((r["rate_per_s"], r[metric]) for r in points if r["policy"] == policy)
            ax.plot(*zip(*line), "o-", label=policy)
        ax.set(xlabel="requests/s", ylabel=metric)
        ax.set_title(title, fontsize="x-small")
        ax.grid(alpha=0.3)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    axes[0].legend(fontsize="small")
    return save(figure, path)
