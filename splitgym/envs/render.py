"""Pictures of a cluster: text, or an image. Both read nothing but the view."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splitgym.types import NS_PER_S, Pool
from splitgym.view import ClusterView

POOL_NAME = {Pool.PROMPT: "prompt", Pool.TOKEN: "token", Pool.MIXED: "mixed"}
POOL_COLOUR = {Pool.PROMPT: "#3b6fb6", Pool.TOKEN: "#d98a29", Pool.MIXED: "#6a9a4b"}
DOWN_COLOUR = "#9a9a9a"

FULL_WAIT_S = 4.0
FULL_RUNNING = 64
"""A bar is full here."""

WIDTH_PX = 800
ROW_PX, HEAD_PX, MOST_PX = 32, 80, 2400
_DPI = 100


def _loads(view: ClusterView, m: int) -> tuple[float, int, float]:
    """(predicted wait of a prompt [s], requests decoding and inbound, share of KV memory in use)."""
    rest_ns = max(0, int(view.iteration_end_ns[m]) - int(view.clock[0]))
    wait_s = (int(view.prompt_queue_ns[m]) + rest_ns) / NS_PER_S
    requests = int(view.running[m]) + int(view.inbound[m])
    return wait_s, requests, int(view.kv_used_tokens[m]) / max(1, int(view.kv_capacity_tokens[m]))


def _title(view: ClusterView, goodput: float | None) -> str:
    good = "-" if goodput is None else f"{goodput:.3f}"
    return f"t = {int(view.clock[0]) / NS_PER_S:.2f} s   goodput so far {good}"


def ansi(view: ClusterView, names: Sequence[str], goodput: float | None) -> str:
    """Text with one line a machine.

    Args:
        view: the cluster now.
        names: (m,) machine types.
        goodput: share of good requests so far.
    """

    def bar(share: float, width: int = 12) -> str:
        filled = round(min(1.0, share) * width)
        return "#" * filled + "." * (width - filled)

    wide = max(len(name) for name in names)
    lines = [_title(view, goodput)]
    for m, name in enumerate(names):
        wait_s, requests, memory = _loads(view, m)
        state = POOL_NAME[Pool(int(view.pool[m]))] if view.available[m] else "away"
        lines.append(
            f"{m:3d} {name:<{wide}} home {POOL_NAME[Pool(int(view.home_pool[m]))]:<6} now {state:<6} "
            f"| wait {bar(wait_s / FULL_WAIT_S)} {wait_s:7.3f} s | decodes {bar(requests / FULL_RUNNING)} "
            f"{requests:4d} | KV {bar(memory)} {memory:4.0%}"
        )
    return "\n".join(lines)


def rgb_array(view: ClusterView, names: Sequence[str], goodput: float | None) -> NDArray[np.uint8]:
    """An image with one row a machine: three bars in the colour of its present pool, its home in words.

    Returns:
        (height, 800, 3) uint8; the height depends on the number of machines only.
    """
    # Imported here: rendering is rare, and matplotlib is slow to import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    count = len(names)
    height_px = min(MOST_PX, HEAD_PX + ROW_PX * count)
    figure = Figure(figsize=(WIDTH_PX / _DPI, height_px / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    loads = np.array([_loads(view, m) for m in range(count)])
    colours = [
        POOL_COLOUR[Pool(int(view.pool[m]))] if view.available[m] else DOWN_COLOUR for m in range(count)
    ]
    panels = (
        ("wait of a prompt [s]", FULL_WAIT_S, "{:.2f}"),
        ("decoding and inbound", float(FULL_RUNNING), "{:.0f}"),
        ("KV memory in use", 1.0, "{:.0%}"),
    )
    top, bottom, left, gap = 1 - 56 / height_px, 16 / height_px, 0.19, 0.02
    width = (0.985 - left - 2 * gap) / 3
    size = 8 if count <= 40 else 6
    for place, (title, full, form) in enumerate(panels):
        axes = figure.add_axes((left + place * (width + gap), bottom, width, top - bottom))
        axes.barh(range(count), np.full(count, full), color="#ececec", height=0.72)
        axes.barh(range(count), np.minimum(loads[:, place], full), color=colours, height=0.72)
        for m in range(count):
            axes.text(full * 0.985, m, form.format(loads[m, place]), ha="right", va="center", fontsize=size)
        axes.set_xlim(0, full)
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_title(title, fontsize=9, loc="left", pad=4)
        axes.set_xticks([])
        axes.set_yticks(range(count) if place == 0 else [])
        if place == 0:
            homes = [POOL_NAME[Pool(int(p))] for p in view.home_pool]
            axes.set_yticklabels([f"{m} {names[m]} · {homes[m]}" for m in range(count)], fontsize=size)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.text(0.012, 1 - 14 / height_px, _title(view, goodput), fontsize=10, va="center")
    patches = [Patch(color=POOL_COLOUR[p], label=POOL_NAME[p]) for p in Pool]
    patches.append(Patch(color=DOWN_COLOUR, label="failed or switching"))
    figure.legend(
        handles=patches,
        loc="center right",
        bbox_to_anchor=(0.99, 1 - 14 / height_px),
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
