"""The last minute of a cluster, machine by machine: prompts, caches on their way, how many requests decode.

The picture of the report (`splitgym evaluate --report`), drawn with matplotlib while an episode runs.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from splitgym.sim import Outcomes
from splitgym.sim.outcomes import NEVER
from splitgym.types import NS_PER_S, Pool
from splitgym.view import ClusterView

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POOL_NAME = {Pool.PROMPT: "prompt", Pool.TOKEN: "token", Pool.MIXED: "mixed"}
POOL_COLOUR = {Pool.PROMPT: "#2f6fb7", Pool.TOKEN: "#b35c00", Pool.MIXED: "#3f7d2c"}
DOWN_COLOUR = "#8a8a8a"

SPAN_S = 60.0
"""So much of the past is shown."""
BINS = 300
"""Steps of the number of requests decoding."""
WIDTH_PX = 800
ROW_PX, HEAD_PX, MOST_PX = 32, 80, 2400
DPI = 100

Rectangles = list[tuple[tuple[float, float], ...]]


def size_px(machines: int) -> tuple[int, int]:
    """(width, height) of the picture."""
    return WIDTH_PX, min(MOST_PX, HEAD_PX + ROW_PX * machines)


def draw(
    figure: "Figure",
    outcomes: Outcomes,
    view: ClusterView,
    names: Sequence[str],
    title: str,
    loads: Sequence[str],
    end_s: float | None = None,
) -> None:
    """Draw on a figure, in place of what it shows.

    Args:
        figure: of `size_px`; other sizes work, with other proportions.
        outcomes: of the run so far.
        view: the cluster now: pools, and what is up.
        names: (M,) machine types.
        title: above the lanes.
        loads: (M,) a short text at the end of each lane.
        end_s: time at the right edge [s]; None is the view's.
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Patch

    count = len(names)
    now_s = int(view.clock[0]) / NS_PER_S if end_s is None else end_s
    prompts, transfers = bars(outcomes, now_s)
    decoding = decodes(outcomes, now_s, count)
    height_px = figure.get_size_inches()[1] * figure.dpi
    figure.clear()
    left, bottom, top = 0.165, 24 / height_px, 1 - 40 / height_px
    axes = figure.add_axes((left, bottom, 0.685, top - bottom))
    axes.add_collection(
        PolyCollection(prompts, facecolors=POOL_COLOUR[Pool.PROMPT], edgecolors="white", linewidths=0.3)
    )
    axes.add_collection(PolyCollection(transfers, facecolors=POOL_COLOUR[Pool.MIXED]))
    at = np.linspace(now_s - SPAN_S, now_s, BINS)
    most = max(1.0, float(decoding.max(initial=0)))
    for m in range(count):
        base = m + 0.94
        axes.fill_between(
            at, base, base - 0.44 * decoding[m] / most, color=POOL_COLOUR[Pool.TOKEN], alpha=0.85, lw=0
        )
    axes.set_xlim(now_s - SPAN_S, now_s)
    axes.set_ylim(count, 0)
    axes.hlines(range(1, count), now_s - SPAN_S, now_s, color="#cccccc", lw=0.6)
    size = 8 if count <= 40 else 6
    axes.set_yticks(np.arange(count) + 0.5)
    labels = axes.set_yticklabels([f"{m} {names[m]}" for m in range(count)], fontsize=size)
    for m, label in enumerate(labels):
        label.set_color(POOL_COLOUR[Pool(int(view.pool[m]))] if view.available[m] else DOWN_COLOUR)
        axes.text(now_s + 0.008 * SPAN_S, m + 0.5, loads[m], fontsize=size - 1, va="center", color="#444444")
    axes.tick_params(axis="x", labelsize=8, length=2)
    axes.tick_params(axis="y", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.text(0.012, 1 - 14 / height_px, title, fontsize=10, va="center")
    named = (("prompt", Pool.PROMPT), ("KV transfer", Pool.MIXED), ("decoding", Pool.TOKEN))
    patches = [Patch(color=POOL_COLOUR[pool], label=name) for name, pool in named]
    figure.legend(
        handles=patches,
        loc="center right",
        bbox_to_anchor=(0.99, 1 - 14 / height_px),
        ncols=3,
        fontsize=8,
        frameon=False,
    )


def bars(outcomes: Outcomes, now_s: float) -> tuple[Rectangles, Rectangles]:
    """Corners of the bars in the last `SPAN_S`: of prompts, of transfers. What is not over ends now.

    Of a transfer, what follows the prompt is shown: layer by layer it begins with it.
    """
    begin_s = now_s - SPAN_S
    shipping = (outcomes.transfer_start_ns >= 0) & (outcomes.prompt_end_ns >= 0)
    shipped_ns = np.where(shipping, np.maximum(outcomes.transfer_start_ns, outcomes.prompt_end_ns), NEVER)
    found: list[Rectangles] = []
    for start_ns, end_ns in (
        (outcomes.prompt_start_ns, outcomes.prompt_end_ns),
        (shipped_ns, outcomes.transfer_end_ns),
    ):
        start, end = _span(start_ns, end_ns, now_s)
        shown = np.flatnonzero((start_ns >= 0) & (start < now_s) & (end > begin_s))
        lane = outcomes.prompt_machine[shown]
        found.append(
            [
                ((a, m + 0.08), (b, m + 0.08), (b, m + 0.46), (a, m + 0.46))
                for a, b, m in zip(start[shown].clip(begin_s), end[shown].clip(None, now_s), lane)
            ]
        )
    return found[0], found[1]


def decodes(outcomes: Outcomes, now_s: float, machines: int) -> NDArray[np.int64]:
    """(M, BINS) requests that decode on each machine, in the last `SPAN_S`."""
    begin_s, width_s = now_s - SPAN_S, SPAN_S / BINS
    start, end = _span(outcomes.decode_start_ns, outcomes.finish_ns, now_s)
    shown = np.flatnonzero((outcomes.decode_start_ns >= 0) & (start < now_s) & (end > begin_s))
    first = ((start[shown] - begin_s) / width_s).astype(np.int64).clip(0, BINS - 1)
    last = ((end[shown] - begin_s) / width_s).astype(np.int64).clip(0, BINS - 1)
    changes = np.zeros((machines, BINS + 1), np.int64)
    np.add.at(changes, (outcomes.token_machine[shown], first), 1)
    np.add.at(changes, (outcomes.token_machine[shown], last + 1), -1)
    return changes.cumsum(axis=1)[:, :BINS]


def _span(
    start_ns: NDArray[np.int64], end_ns: NDArray[np.int64], now_s: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Starts and ends [s]; what has begun but not ended ends now."""
    start = start_ns / NS_PER_S
    return start, np.where(end_ns >= start_ns, end_ns / NS_PER_S, now_s)


class Window:
    """A window that shows the picture and is drawn again while the episode runs.

    Where matplotlib has no window to open (a backend such as Agg), it draws all the same and says so once.
    """

    def __init__(self, machines: int) -> None:
        from matplotlib import pyplot

        width, height = size_px(machines)
        self.figure = pyplot.figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        self._number: Any = self.figure.number  # type: ignore[attr-defined]
        if pyplot.get_backend().lower() in ("agg", "pdf", "ps", "svg", "template", "cairo"):
            gym.logger.warn(f"matplotlib's backend {pyplot.get_backend()} opens no window: set MPLBACKEND")
        else:
            pyplot.show(block=False)

    @property
    def open(self) -> bool:
        """False once the user has closed it."""
        from matplotlib import pyplot

        return bool(pyplot.fignum_exists(self._number))

    def refresh(self) -> None:
        """Show what was drawn."""
        self.figure.canvas.draw()
        self.figure.canvas.flush_events()

    def close(self) -> None:
        from matplotlib import pyplot

        pyplot.close(self.figure)
