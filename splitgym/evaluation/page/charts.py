"""Charts as SVG text: lines with bands, stacked areas, heat maps. Colours are the page's style sheet's."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 42
MOST_POINTS = 240
"""A line has no more: a page stays small, and the eye sees no difference."""


@dataclass(frozen=True)
class Line:
    """A line of a chart, with a band around it where there are intervals."""

    name: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None


@dataclass(frozen=True)
class Axis:
    """Range, label and ticks of one side."""

    label: str
    low: float
    high: float
    log: bool = False

    def place(self, value: ArrayLike) -> NDArray[np.float64]:
        """Share of the way from low to high, clipped to [0, 1]."""
        x = np.asarray(value, np.float64)
        if self.log:
            x = np.log(np.maximum(x, self.low) / self.low) / np.log(self.high / self.low)
        else:
            x = (x - self.low) / (self.high - self.low)
        return np.clip(x, 0.0, 1.0)

    def ticks(self) -> list[float]:
        """About five round numbers; powers of ten, and 2 and 5 times them, on a logarithmic axis."""
        if self.log:
            powers = range(int(np.floor(np.log10(self.low))), int(np.ceil(np.log10(self.high))) + 1)
            steps = (1,) if self.high / self.low > 1e3 else (1, 2, 5)
            found = [s * 10.0**p for p in powers for s in steps]
        else:
            raw = (self.high - self.low) / 5
            step = min(
                (s * 10.0 ** np.floor(np.log10(raw)) for s in (1, 2, 5, 10)), key=lambda s: abs(s - raw)
            )
            found = list(np.arange(np.ceil(self.low / step) * step, self.high + step / 2, step))
        return [float(t) for t in found if self.low * (1 - 1e-9) <= t <= self.high * (1 + 1e-9)]


def axis_for(label: str, values: Sequence[ArrayLike], log: bool = False, low: float | None = None) -> Axis:
    """An axis that holds all finite values."""
    found = np.concatenate([np.ravel(np.asarray(v, np.float64)) for v in values])
    found = found[np.isfinite(found) & ((found > 0) | (not log))]
    if not len(found):
        return Axis(label, 0.1 if log else 0.0, 1.0, log)
    bottom, top = float(found.min()) if low is None else low, float(found.max())
    if top <= bottom:
        top = bottom * 2 if bottom > 0 else bottom + 1
    return Axis(label, bottom, top, log)


def line_chart(
    title: str, x: Axis, y: Axis, lines: Sequence[Line], marks: Sequence[tuple[float, float]] = ()
) -> str:
    """Lines over two axes. `marks` are points to reach, such as SLOs."""
    parts = [_frame(x, y)]
    for i, line in enumerate(lines):
        px, py = _points(line, x, y)
        if line.low is not None and line.high is not None:
            _, low = _points(Line("", line.x, line.low), x, y)
            _, high = _points(Line("", line.x, line.high), x, y)
            corners = [*zip(px, high), *zip(px[::-1], low[::-1])]
            parts.append(f'<polygon class="band s{i % 8}" points="{_text(corners)}"/>')
        parts.append(f'<polyline class="line s{i % 8}" points="{_text(zip(px, py))}"/>')
        if len(px) <= 20:
            dot = f'<circle class="dot s{i % 8}" r="3" '
            parts += [f'{dot}cx="{a:.1f}" cy="{b:.1f}"/>' for a, b in zip(px, py)]
    for a, b in marks:
        cx, cy = _across(x, a), _up(y, b)
        parts.append(f'<path class="mark" d="M{cx - 4:.1f} {cy:.1f}h8M{cx:.1f} {cy - 4:.1f}v8"/>')
    return _svg(title, parts)


def stack_chart(title: str, x: Axis, y: Axis, at: ArrayLike, layers: Sequence[ArrayLike]) -> str:
    """Areas on top of each other, as steps."""
    times = np.asarray(at, np.float64)
    keep = _thin(len(times))
    parts, below = [], np.zeros(len(keep))
    for i, layer in enumerate(layers):
        above = below + np.asarray(layer, np.float64)[keep]
        xs = [_across(x, t) for t in times[keep]]
        outline = [*_steps(xs, y, above), *_steps(xs, y, below)[::-1]]
        parts.append(f'<polygon class="area p{i}" points="{_text(outline)}"/>')
        below = above
    return _svg(title, [*parts, _frame(x, y)])


def heat_map(title: str, x: Axis, rows: Sequence[str], values: NDArray[np.float64], unit: str) -> str:
    """One row a name, one column a bin of the x axis; a fuller colour is more.

    Args:
        values: (rows, bins), not negative.
        unit: of the values, for the legend.
    """
    count, bins = values.shape
    height = TOP + BOTTOM + max(14, min(26, 380 // max(1, count))) * count
    most = float(values.max()) if values.size else 0.0
    cell_w = (WIDTH - LEFT - RIGHT) / max(1, bins)
    cell_h = (height - TOP - BOTTOM) / max(1, count)
    parts = []
    for r in range(count):
        for c in range(bins):
            if values[r, c] > 0 and most > 0:
                parts.append(
                    f'<rect class="heat" x="{LEFT + c * cell_w:.1f}" y="{TOP + r * cell_h:.1f}" '
                    f'width="{cell_w + 0.2:.1f}" height="{cell_h - 1:.1f}" '
                    f'opacity="{(values[r, c] / most) ** 0.5:.2f}"/>'
                )
        parts.append(
            f'<text class="tick" x="{LEFT - 5}" y="{TOP + (r + 0.5) * cell_h + 3:.1f}" '
            f'text-anchor="end">{escape(rows[r])}</text>'
        )
    parts.append(_x_ticks(x, height))
    says = f"most: {most:.3g} {escape(unit)}"
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{height - 6}" text-anchor="end">{says}</text>')
    return _svg(title, parts, height)


def legend(names: Sequence[str], kind: str = "s") -> str:
    """The names with their colours, as HTML."""
    items = "".join(
        f'<li><span class="key {kind}{i % 8}" aria-hidden="true"></span>{escape(name)}</li>'
        for i, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def _svg(title: str, parts: Sequence[str], height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _frame(x: Axis, y: Axis) -> str:
    parts = []
    for t in y.ticks():
        at = _up(y, t)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{at + 3:.1f}" text-anchor="end">{t:g}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="label" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.label)}</text>"
    )
    return "".join(parts) + _x_ticks(x, HEIGHT)


def _x_ticks(x: Axis, height: float) -> str:
    parts = [f'<path class="axis" d="M{LEFT} {height - BOTTOM:.1f}H{WIDTH - RIGHT}"/>']
    for t in x.ticks():
        at = f'x="{_across(x, t):.1f}" y="{height - BOTTOM + 14:.1f}"'
        parts.append(f'<text class="tick" {at} text-anchor="middle">{t:g}</text>')
    parts.append(
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 8:.1f}" text-anchor="middle">'
        f"{escape(x.label)}</text>"
    )
    return "".join(parts)


def _across(x: Axis, value: float) -> float:
    return LEFT + float(x.place(value)) * (WIDTH - LEFT - RIGHT)


def _up(y: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - float(y.place(value)) * (HEIGHT - TOP - BOTTOM)


def _points(line: Line, x: Axis, y: Axis) -> tuple[list[float], list[float]]:
    xs, ys = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
    there = np.flatnonzero(np.isfinite(xs) & np.isfinite(ys))
    keep = there[_thin(len(there))]
    return [_across(x, v) for v in xs[keep]], [_up(y, v) for v in ys[keep]]


def _thin(count: int) -> NDArray[np.int64]:
    if count <= MOST_POINTS:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, MOST_POINTS).astype(np.int64))


def _steps(xs: Sequence[float], y: Axis, values: ArrayLike) -> list[tuple[float, float]]:
    """Corners of a line that keeps each value until the next."""
    ups = [_up(y, value) for value in np.asarray(values)]
    return [p for a, b, up in zip(xs, [*xs[1:], xs[-1]], ups) for p in ((a, up), (b, up))]


def _text(points: object) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)  # type: ignore[attr-defined]
