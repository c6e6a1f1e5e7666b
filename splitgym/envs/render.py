"""Pictures of a cluster: text, an image, a window."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splitgym.envs import gantt
from splitgym.envs.gantt import POOL_NAME, Window
from splitgym.sim import Outcomes
from splitgym.types import NS_PER_S, Pool
from splitgym.view import ClusterView

FULL_WAIT_S = 4.0
FULL_RUNNING = 64
"""A bar is full here."""


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


def rgb_array(
    outcomes: Outcomes, view: ClusterView, names: Sequence[str], goodput: float | None
) -> NDArray[np.uint8]:
    """The last minute as an image with a lane a machine, see `splitgym.envs.gantt`.

    Returns:
        (height, 800, 3) uint8; the height depends on the number of machines only.
    """
    # Imported here: rendering is rare, and matplotlib is slow to import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = gantt.size_px(len(names))
    figure = Figure(figsize=(width / gantt.DPI, height / gantt.DPI), dpi=gantt.DPI)
    canvas = FigureCanvasAgg(figure)
    gantt.draw(figure, outcomes, view, names, _title(view, goodput), _texts(view))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


class Live:
    """`render_mode="human"`: a window with the last minute, drawn again while steps are made.

    Args:
        names: (M,) machine types.
        fps: pictures a second of the clock on the wall, at most; steps in between cost nothing.
    """

    def __init__(self, names: Sequence[str], fps: float) -> None:
        self._names, self._pause_s = names, 1.0 / fps
        self.window: Window | None = None
        self._drawn_at_s = -np.inf
        self.pictures = 0

    def show(self, outcomes: Outcomes, view: ClusterView, goodput: float | None, now: bool) -> None:
        """Draw, where it is time to, or `now`. A window that the user has closed stays closed."""
        if not now and time.monotonic() - self._drawn_at_s < self._pause_s:
            return
        if self.window is None:
            self.window = Window(len(self._names))
        if not self.window.open:
            return
        gantt.draw(self.window.figure, outcomes, view, self._names, _title(view, goodput), _texts(view))
        self.window.refresh()
        self._drawn_at_s = time.monotonic()
        self.pictures += 1

    def close(self) -> None:
        if self.window is not None:
            self.window.close()
            self.window = None


def _texts(view: ClusterView) -> list[str]:
    """What stands at the end of each lane."""
    loads = [_loads(view, m) for m in range(len(view.pool))]
    return [f"wait {wait_s:.1f} s  KV {memory:.0%}" for wait_s, _, memory in loads]
