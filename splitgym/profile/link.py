"""The bandwidth between two servers, from how long the token server takes to its first token.

    first token = way + reading the request + transfer + one token iteration

The way is the same for all sizes. Reading the request is not, and at hundreds of GB/s it takes as long a
token as the transfer does; so the same prompt is sent once more for a model that the server does not have,
which it reads and refuses. The iteration is the one that follows on the same stream. What is left grows with
the prompt by the transfer alone, and its slope is the bandwidth.

Whatever disturbs a time makes it longer, so sizes are compared by their lower quartiles.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Run = tuple[int, float, float, float | None]
"""(prompt tokens, request to first token, one token iteration, reading and refusal; None where the server
does not refuse) [s]."""

QUANTILE = 0.25
KNOWN = 0.03
"""Half of the 95 % interval, as a share, within which a bandwidth counts as known."""
SURE, LEAST_RUNS = 0.02, 8
"""When measuring may stop: below `KNOWN`, since one stops where the interval happens to be narrow."""
UNSEEN = 0.3
"""Beyond this it was too fast to be seen, and only its lower bound is said."""
_RESAMPLED = 400
_NORMAL = 1.96


@dataclass(frozen=True)
class Link:
    """What transfers tell of a link. Times in seconds a token of KV cache."""

    s_per_token: float
    low: float
    high: float
    """Ends of the 95 % interval; `low` may be 0 or less, where any bandwidth would do."""
    constant_s: float
    """Beside a transfer: there, back, and the hand-over."""
    runs: int
    ends: int
    """Runs of the shortest or the longest, whichever are fewer."""

    @property
    def known(self) -> bool:
        """Well enough to stop: an interval of few runs is itself not known."""
        return self.ends >= LEAST_RUNS and self.seen and self.error <= SURE

    @property
    def error(self) -> float:
        """Half of the 95 % interval, as a share of the estimate."""
        return (self.high - self.low) / 2 / self.s_per_token if self.s_per_token > 0 else float("inf")

    @property
    def seen(self) -> bool:
        """May the estimate be used at all?"""
        return self.low > 0 and self.error <= UNSEEN

    def text(self, kv_bytes_per_token: int) -> str:
        """A sentence for people."""
        least = kv_bytes_per_token / self.high / 1e9
        if not self.seen:
            return (
                f"too fast to be measured here: at least {least:.4g} GB/s (95 %, {self.runs} transfers); the "
                "network is the machine's"
            )
        found, most = (kv_bytes_per_token / t / 1e9 for t in (self.s_per_token, self.low))
        text = (
            f"{found:.4g} GB/s, 95 % interval {least:.4g} to {most:.4g}, {self.runs} transfers; "
            f"{1e3 * max(0.0, self.constant_s):.3g} ms beside each"
        )
        if self.error > KNOWN:
            text += (
                f"; known to {self.error:.0%} only, not to {KNOWN:.0%}: too fast for the noise of these "
                "times (longer prompts, more --repeats or a quieter machine tell more)"
            )
        return text


def fit_link(runs: Sequence[Run], seed: int = 0) -> Link | None:
    """A straight line through the transfers by size; None below two sizes or six runs.

    Args:
        runs: of any sizes.
        seed: of the bootstrap over the runs of each size.
    """
    by_size: dict[int, list[Run]] = defaultdict(list)
    for run in runs:
        by_size[run[0]].append(run)
    if len(by_size) < 2 or len(runs) < 6:
        return None
    sizes = np.array(sorted(by_size), np.float64)
    groups = [by_size[int(n)] for n in sizes]
    weights = np.array([len(group) for group in groups], np.float64)
    rng = np.random.default_rng(seed)
    drawn = np.stack([_transfers(group, rng) for group in groups])  # (sizes, 1 + _RESAMPLED)
    slopes, constants = _line(sizes, drawn, weights)
    slope, constant = float(slopes[0]), float(constants[0])
    few = min(weights[0], weights[-1])
    spread = float(np.std(slopes[1:])) * np.sqrt(few / (few - 1)) if few > 1 else np.inf
    # Few runs of a size draw too narrow an interval; sizes off the line say so.
    half = _NORMAL * max(spread, _deviation(sizes, drawn[:, 0] - constant - slope * sizes, weights))
    return Link(slope, slope - half, slope + half, constant, len(runs), int(few))


def _transfers(runs: Sequence[Run], rng: np.random.Generator) -> Floats:
    """(1 + _RESAMPLED,) transfer and constant [s] of one size: as measured, then of runs drawn anew."""
    _, first, iteration, read = zip(*runs, strict=True)
    told = [t for t in read if t is not None] or [0.0]
    found = np.zeros(1 + _RESAMPLED)
    for times, share, sign in ((first, QUANTILE, 1), (iteration, 0.5, -1), (told, QUANTILE, -1)):
        again = rng.choice(np.array(times), (_RESAMPLED, len(times)))
        found[0] += sign * np.quantile(times, share)
        found[1:] += sign * np.quantile(again, share, axis=1)
    return found


def _line(sizes: Floats, times: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """(slopes, constants) of weighted least squares.

    Args:
        sizes, weights: (S,)
        times: (S, N) a line a column.
    """
    middle = np.average(sizes, weights=weights)
    level = np.average(times, axis=0, weights=weights)
    pull = weights * (sizes - middle)
    slopes = pull @ (times - level) / (pull @ (sizes - middle))
    return slopes, level - slopes * middle


def _deviation(sizes: Floats, off: Floats, weights: Floats) -> float:
    """Of the slope, by how far sizes lie off the line; 0 for two sizes."""
    if len(sizes) < 3:
        return 0.0
    spread = float((weights * off**2).sum() / (len(sizes) - 2))
    middle = float(np.average(sizes, weights=weights))
    return float(np.sqrt(spread / (weights * (sizes - middle) ** 2).sum()))
