"""Plots of an evaluation. Figures are drawn with Agg canvases of their own: no global state, no display."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from splitgym.evaluation.run import Results, Run
from splitgym.evaluation.workloads import Workload
from splitgym.metrics import KINDS
from splitgym.sim.outcomes import TIMELINE_FIELDS
from splitgym.slo import NINE_SLOS, PERCENTILES

LABELS = {"ttft": "TTFT slowdown", "tbt": "TBT slowdown", "e2e": "E2E slowdown"}
POOLS = (("prompt_machines", "prompt"), ("token_machines", "token"), ("mixed_machines", "mixed"))


def latency_cdfs(results: Results, workload: Workload) -> Figure:
    """Share of requests below a slowdown, one panel each for TTFT, TBT and E2E; dots mark the nine SLOs."""
    figure, panels = figure_of(1, 3)
    for axes, kind in zip(panels, KINDS):
        for policy in results.policies:
            runs = results.select(policy, workload)
            values = np.concatenate([r.table.slowdown(kind) for r in runs])
            values = np.sort(values[~np.isnan(values)])
            share = np.arange(1, len(values) + 1) / max(1, len(values))
            axes.step(values[np.isfinite(values)], share[np.isfinite(values)], where="post", label=policy)
        limits = NINE_SLOS[kind]
        axes.plot(limits, np.array(PERCENTILES) / 100, "k.", label="SLO (p50, p90, p99)")
        axes.set(xlabel=LABELS[kind], xscale="log", ylim=(0, 1.01))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share of requests")
    panels[-1].legend(fontsize="small")
    figure.suptitle(workload.name)
    return figure


def attainment_by_rate(results: Results) -> Figure:
    """Goodput and SLOs held against the request rate, a line a policy; a row of panels a kind of workload."""
    bases = list(dict.fromkeys(w.base_name for w in results.workloads))
    figure, panels = figure_of(len(bases), 2)
    for row, base in enumerate(bases):
        loads = sorted(
            (w for w in results.workloads if w.base_name == base and w.rate_per_s is not None),
            key=lambda w: w.rate_per_s or 0.0,
        )
        rates = [w.rate_per_s or 0.0 for w in loads]
        for policy in results.policies:
            good = [results.values("goodput", policy, w) for w in loads]
            held = [results.values("slos_held", policy, w).mean() for w in loads]
            line = panels[2 * row].plot(rates, [g.mean() for g in good], "o-", label=policy)[0]
            panels[2 * row].fill_between(
                rates, [g.min() for g in good], [g.max() for g in good], alpha=0.15, color=line.get_color()
            )
            panels[2 * row + 1].plot(rates, held, "o-", label=policy)
        label = "goodput (band: worst to best window)"
        panels[2 * row].set(title=base, xlabel="requests/s", ylabel=label, ylim=(0, 1.02))
        panels[2 * row + 1].set(title=base, xlabel="requests/s", ylabel="SLOs held (of 9)", ylim=(0, 9.2))
        panels[2 * row].legend(fontsize="small")
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure


def pools_over_time(run: Run) -> Figure:
    """Machines in each pool, by their present work, over one run."""
    figure, (axes,) = figure_of(1, 1)
    columns = {name: run.timeline[:, i] for i, name in enumerate(TIMELINE_FIELDS)}
    times = columns["time_ns"] * 1e-9
    axes.stackplot(times, *(columns[f] for f, _ in POOLS), labels=[label for _, label in POOLS], step="post")
    axes.axvspan(0, run.workload.warmup_s, color="k", alpha=0.08, label="warm-up")
    axes.axvline(run.workload.end_s, color="k", linestyle=":", label="last arrival")
    axes.set(xlabel="time [s]", ylabel="machines", title=f"{run.policy} on {run.workload.name}")
    axes.legend(fontsize="small", loc="upper right")
    return figure


def write_plots(results: Results, folder: Path) -> list[Path]:
    """Every plot as PNG into a folder, which is made.

    Returns:
        the files: latency CDFs of each workload, attainment by rate where workloads differ in rate, pool
        sizes of each policy on the first window of each workload.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for workload in results.workloads:
        slug = file_name(workload.name)
        files.append(save(latency_cdfs(results, workload), folder / f"latency-{slug}.png"))
        for policy in results.policies:
            run = results.select(policy, workload)[0]
            if len(run.timeline):
                path = folder / f"pools-{slug}-{file_name(policy)}.png"
                files.append(save(pools_over_time(run), path))
    if len({w.rate_per_s for w in results.workloads}) > 1:
        files.append(save(attainment_by_rate(results), folder / "attainment-by-rate.png"))
    return files


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG."""
    FigureCanvasAgg(figure).print_png(str(path))
    return path


def file_name(text: str) -> str:
    """The text with everything but letters, digits, dots and dashes replaced by a dash."""
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in text)


def figure_of(rows: int, columns: int) -> tuple[Figure, list[Any]]:
    """A figure and its panels, row by row."""
    figure = Figure(figsize=(4.2 * columns if columns > 1 else 7, 3.4 * rows), dpi=110, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())
