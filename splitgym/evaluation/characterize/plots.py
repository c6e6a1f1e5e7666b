"""The figures of a characterisation, of one profile or of two in one frame."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from splitgym.evaluation.characterize.phases import Characterization
from splitgym.evaluation.plots import save

PHASES = {"prompt": "C3", "token": "C0", "idle": "0.6"}
GB = 1e9


def throughput(found: Sequence[Characterization]) -> Figure:
    """Prompt throughput by batch tokens, its peak marked; token throughput by batch size."""
    figure, (left, right) = _panels()
    for i, c in enumerate(found):
        tokens, speed = c.peak
        left.plot(c.prompt_tokens, c.prompt_tokens_per_s, color=f"C{i}", label=_name(c, found))
        left.plot(tokens, speed, "o", color=f"C{i}")
        left.annotate(
            f"{speed:,.0f} at {tokens:,}",
            (tokens, speed),
            (0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
        _token_line(right, c, c.tokens_per_s, i, _name(c, found))
    left.set(
        xlabel="prompt batch [tokens]", ylabel="prompt throughput [tokens/s]", ylim=(0, None), xscale="log"
    )
    left.set_ylim(0, 1.12 * left.get_ylim()[1])
    _token_axis(right, found)
    right.set(ylabel="token throughput [tokens/s]", ylim=(0, None))
    return _finish(figure, (left, right), found)


def memory(found: Sequence[Characterization]) -> Figure:
    """Weights and KV cache by prompt batch and by token batch, under what the GPUs have."""
    figure, (left, right) = _panels()
    for i, c in enumerate(_distinct(found)):
        alike = [o for o in found if _key(o) == _key(c)]
        left.plot(c.prompt_tokens, c.prompt_memory_bytes / GB, color=f"C{i}")
        _token_line(right, c, c.token_memory_bytes / GB, i, ", ".join(_name(o, found) for o in alike))
        top = c.profile.machine.memory_bytes / GB
        for axes in (left, right):
            axes.axhline(top, color=f"C{i}", linewidth=1, linestyle="--")
            axes.axhline(c.profile.model.weights_bytes / GB, color="0.5", linewidth=1, linestyle=":")
        text = f"memory of {', '.join(dict.fromkeys(o.profile.machine.name for o in alike))}"
        left.text(0.02, top, text, transform=_left_edge(left), va="bottom", fontsize=8)
    weights = found[0].profile.model.weights_bytes / GB
    left.text(0.98, weights, "weights", transform=_left_edge(left), ha="right", va="top", fontsize=8)
    left.set(xlabel="prompt batch [tokens]", ylabel="weights + KV cache [GB]", xscale="log")
    _token_axis(right, found)
    right.set(ylabel="weights + KV cache [GB]")
    for axes in (left, right):
        axes.set_ylim(0, 1.15 * max(c.profile.machine.memory_bytes for c in found) / GB)
    return _finish(figure, (left, right), found)


def power(found: Sequence[Characterization]) -> Figure:
    """Power of either phase by the size of its batch, as a share of the GPUs' maximum."""
    figure, (left, right) = _panels()
    for i, c in enumerate(found):
        left.plot(
            c.prompt_tokens,
            100 * c.prompt_power_w / c.max_power_w,
            _style(i),
            color=f"C{i}",
            label=_name(c, found),
        )
        right.plot(
            c.batch, 100 * c.token_power_w / c.max_power_w, _style(i), color=f"C{i}", label=_name(c, found)
        )
    left.set(xlabel="prompt batch [tokens]", ylabel="power [% of the GPUs' maximum]", xscale="log")
    _token_axis(right, found)
    right.set(ylabel="power [% of the GPUs' maximum]")
    for axes in (left, right):
        axes.set_ylim(0, 108)
    return _finish(figure, (left, right), found)


def power_over_time(c: Characterization) -> Figure:
    """Power of one machine that serves three requests one after the other: each prompt is a spike."""
    run = c.power_over_time
    figure = Figure(figsize=(8.4, 3.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    for phase, color in PHASES.items():
        for start, end, watts, which in zip(run.edges_s, run.edges_s[1:], run.watts, run.phase):
            if which == phase:
                axes.fill_between([start, end], 0, watts / 1e3, color=color, alpha=0.35, linewidth=0)
    axes.stairs(run.watts / 1e3, run.edges_s, baseline=None, color="0.2", linewidth=1.2)
    axes.axhline(c.max_power_w / 1e3, color="0.4", linewidth=1, linestyle="--")
    for phase, color in PHASES.items():
        axes.fill_between([], [], color=color, alpha=0.35, label=phase)
    axes.plot([], [], color="0.4", linewidth=1, linestyle="--", label="maximum of the GPUs")
    axes.set(xlabel="time [s]", ylabel="power of the machine [kW]", xlim=(0, run.edges_s[-1]))
    axes.set_ylim(0, 1.3 * c.max_power_w / 1e3)
    sizes = [f"{p:,} + {o}" for p, o in run.requests]
    axes.set_title(f"{c.label}: three requests of {', '.join(sizes)} tokens", fontsize="medium")
    axes.legend(fontsize="small", loc="upper center", ncols=4, frameon=False)
    return figure


def write_plots(found: Sequence[Characterization], folder: Path) -> list[Path]:
    """Every figure as PNG into a folder, which is made. Power over time is of the first profile.

    Returns:
        the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "throughput": throughput(found),
        "memory": memory(found),
        "power": power(found),
        "power-over-time": power_over_time(found[0]),
    }
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def _panels() -> tuple[Figure, Any]:
    figure = Figure(figsize=(9, 3.5), dpi=100, layout="constrained")
    return figure, figure.subplots(1, 2)


def _name(c: Characterization, found: Sequence[Characterization]) -> str:
    """The machine, and the model where that differs."""
    same = len({other.profile.model.name for other in found}) == 1
    return c.profile.machine.name if same else c.label


def _style(i: int) -> str:
    """The second line is dashed, so that it does not hide the first where the two are equal."""
    return "-" if i == 0 else "--"


def _distinct(found: Sequence[Characterization]) -> list[Characterization]:
    """Those that differ in memory or model: equal ones have one line."""
    return [c for i, c in enumerate(found) if _key(c) not in [_key(o) for o in found[:i]]]


def _key(c: Characterization) -> tuple[str, int, int, int]:
    p = c.profile
    return p.model.name, p.kv_bytes_per_token, p.machine.memory_bytes, c.last_batch


def _left_edge(axes: Any) -> Any:
    """x as a share of the axis, y in data."""
    return axes.get_yaxis_transform()


def _token_line(axes: Any, c: Characterization, values: Any, i: int, label: str) -> None:
    """Solid as far as the profile has knots, dotted where it is extended."""
    last = c.last_batch
    axes.plot(c.batch[:last], values[:last], color=f"C{i}", label=label)
    if last < len(c.batch):
        axes.plot(c.batch[last - 1 :], values[last - 1 :], ":", color=f"C{i}")


def _token_axis(axes: Any, found: Sequence[Characterization]) -> None:
    contexts = " or ".join(f"{n:,}" for n in sorted({c.context_tokens for c in found}))
    axes.set(xlabel=f"token batch [tasks of {contexts} tokens]", xlim=(0, None))


def _finish(figure: Figure, panels: Sequence[Any], found: Sequence[Characterization]) -> Figure:
    for axes in panels:
        axes.grid(alpha=0.3)
        if axes.get_xscale() == "log":
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    panels[0].set_title("prompt phase", fontsize="medium")
    panels[1].set_title("token phase", fontsize="medium")
    dotted = any(line.get_linestyle() == ":" and len(line.get_xdata()) > 2 for line in panels[1].lines)
    title = "dotted: beyond the profile's knots" if dotted else None
    panels[1].legend(fontsize="small", loc="best", title=title, title_fontsize="x-small")
    titles = dict.fromkeys(f"{c.profile.model.name} on {c.profile.tensor_parallel} GPUs" for c in found)
    figure.suptitle(", ".join(titles) if len(found) > 1 else found[0].label)
    return figure
