"""A log against its simulation, for people: a table, and CDFs."""

from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from splitgym.evaluation.compare_log import MEASURES, LogComparison
from splitgym.evaluation.plots import figure_of, save


def table_of(found: LogComparison) -> Table:
    """The comparison for a terminal."""
    drawn = Table(
        title=f"{found.log}: {found.counts['measured']} requests, decisions: {found.decisions}",
        caption="times in ms, p50 p90 p99; error of the simulated percentile; per request: absolute error, "
        "median and p90; prompt: end of the prompt of split requests",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    drawn.add_column("", no_wrap=True)
    for text in ("requests", "real", "simulated", "error", "per request"):
        drawn.add_column(text, justify="right", no_wrap=True)
    for kind, label in MEASURES.items():
        row = found.measures[kind].as_dict()
        if not row["requests"]:
            continue
        each = row["per_request_error"]
        drawn.add_row(
            label,
            str(row["requests"]),
            *(" ".join(f"{v * 1e3:,.1f}" for v in row[x].values()) for x in ("real_s", "simulated_s")),
            " ".join(f"{v:+.1%}" for v in row["error"].values()),
            f"{each['median_absolute']:.1%} {each['p90_absolute']:.1%}",
        )
    real, simulated = found.goodput
    if np.isfinite(real):
        drawn.add_row("goodput", str(found.counts["streamed"]), f"{real:.3f}", f"{simulated:.3f}", "", "")
    return drawn


def plot(found: LogComparison, path: Path) -> Path:
    """CDFs of what was measured, real and simulated, as PNG."""
    kinds = [kind for kind in ("ttft", "tbt", "e2e") if len(found.measures[kind].real_s)]
    figure, panels = figure_of(1, len(kinds))
    for axes, kind in zip(panels, kinds):
        measure = found.measures[kind]
        for values, label in ((measure.real_s, "real"), (measure.simulated_s, "simulated")):
            ordered = np.sort(values)
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            axes.step(ordered * 1e3, share, where="post", label=label)
        axes.set(xlabel=f"{MEASURES[kind]} [ms]", xscale="log", ylim=(0, 1.01))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share of requests")
    panels[-1].legend(fontsize="small")
    figure.suptitle(f"{found.log}, decisions: {found.decisions}")
    return save(figure, path)
