"""From measured times to the curves of a profile: the fit, its residuals, its error on points held out.

Whoever measures (`splitgym.measuring` over HTTP, `splitgym profile torch` in place) fills a `Samples`; the
shapes are those of the shipped profiles (`curves`). Times in `curves` are milliseconds, here seconds.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from splitgym.errors import ProfileError
from splitgym.profile.curves import (
    Point,
    PromptFit,
    TokenFit,
    TokenPoint,
    held_out_prompts,
    held_out_tokens,
    mape,
    value,
)
from splitgym.profile.link import Link, Run, fit_link

K = TypeVar("K")
DEFAULT_MIXED = 1.1
SEEN = 1.1
"""A mixed iteration tells its factor only where its prompt time is this much above its decodes' time."""


@dataclass
class Samples:
    """What was measured [s]; a key that appears several times has been measured so often."""

    prompt: list[tuple[Point, float]] = field(default_factory=list)
    """((tokens of a prompt, prompts together), time of their iterations)."""
    token: list[tuple[TokenPoint, float]] = field(default_factory=list)
    """((tasks, context of all of them), time of an iteration)."""
    mixed: list[tuple[tuple[int, int, float], float]] = field(default_factory=list)
    """((prompt tokens and one a decode, decodes, their context), time of the iteration)."""
    transfer: list[Run] = field(default_factory=list)


@dataclass(frozen=True)
class Quality:
    """Mean absolute percentage errors of one curve; NaN where there is nothing to tell."""

    residual: float
    worst: float
    held_out: float
    noise: float
    """Single runs against their point's median."""

    def __str__(self) -> str:
        held = "too few points to hold one out" if np.isnan(self.held_out) else f"{self.held_out:.2f} %"
        return (
            f"mean absolute error {self.residual:.2f} % (worst {self.worst:.2f} %), held out {held}, "
            f"noise of single runs {self.noise:.2f} %"
        )


@dataclass(frozen=True)
class Fit:
    """Curves and how good they are. Times in seconds."""

    prompt: dict[int, float]
    token: TokenFit  # ms
    mixed_factor: float
    mixed_seen: int
    """Iterations that told the factor; none: it is assumed."""
    link: Link | None
    """None: not measured."""
    prompt_quality: Quality
    token_quality: Quality
    mixed_quality: Quality

    def token_seconds(self, batch: int, context: float) -> float:
        """Time of a token iteration [s]."""
        return self.token.time(batch, context) / 1e3

    def prompt_seconds(self, tokens: int) -> float:
        """Time of a prompt iteration [s]."""
        return value(self.prompt, tokens)


def fit(samples: Samples, least_slope_s: float = 0.0) -> Fit:
    """Fit the shapes of a profile.

    Args:
        samples: at least two prompt lengths and one batch of tokens.
        least_slope_s: a context token costs at least this [s].

    Raises:
        ProfileError: too little was measured.
    """
    prompts = {point: 1e3 * t for point, t in _medians(samples.prompt).items()}
    tokens = {point: 1e3 * t for point, t in _medians(samples.token).items()}
    if len({p for p, b in prompts if b == 1}) < 2:
        raise ProfileError("at least two lengths of single prompts must be measured to fit a profile")
    if 1 not in {b for b, _ in tokens}:
        raise ProfileError("token times at batch size 1 must be measured to fit a profile")
    shape = PromptFit.fit(prompts)
    curve = shape.curve()
    token = TokenFit.joint(tokens, 1e3 * least_slope_s)
    if min(token.base.values()) <= 0:
        raise ProfileError("token times do not fit: what context costs leaves nothing at context 0")
    factor, seen, mixed = _mixed(samples, curve, token)
    return Fit(
        prompt={n: t / 1e3 for n, t in curve.items()},
        token=token,
        mixed_factor=factor,
        mixed_seen=seen,
        link=fit_link(samples.transfer),
        prompt_quality=_quality(
            [shape.predict(point) / t - 1 for point, t in prompts.items()],
            held_out_prompts(prompts)[0],
            samples.prompt,
        ),
        token_quality=_quality(
            [token.time(*point) / t - 1 for point, t in tokens.items()],
            held_out_tokens(tokens, 1e3 * least_slope_s),
            samples.token,
        ),
        mixed_quality=mixed,
    )


def _mixed(samples: Samples, curve: dict[int, float], token: TokenFit) -> tuple[float, int, Quality]:
    """(factor, iterations that told it, errors)."""
    times: dict[Point, list[tuple[float, float, float]]] = defaultdict(list)
    for (tokens, batch, context), t in _medians(samples.mixed).items():
        times[tokens, batch].append((value(curve, tokens), token.time(batch, context), 1e3 * t))
    everything = [row for rows in times.values() for row in rows]
    factor, seen = _factor(everything)
    off = [max(factor * p, d) / t - 1 for p, d, t in everything]
    held = []
    for point, rows in times.items():
        other, others = _factor([row for key, kept in times.items() if key != point for row in kept])
        if others:
            held += [max(other * p, d) / t - 1 for p, d, t in rows]
    # Contexts are all different: a point is as many prompt tokens amid as many decodes.
    return factor, seen, _quality(off, held, [((n, batch), t) for (n, batch, _), t in samples.mixed])


def _factor(times: list[tuple[float, float, float]]) -> tuple[float, int]:
    """(factor, iterations that told it) from times [ms] of (prompt alone, decodes alone, both)."""
    ratios = [t / prompt for prompt, token, t in times if prompt > SEEN * token]
    return (max(1.0, statistics.median(ratios)) if ratios else DEFAULT_MIXED), len(ratios)


def _medians(runs: Iterable[tuple[K, float]]) -> dict[K, float]:
    found: dict[K, list[float]] = defaultdict(list)
    for key, t in runs:
        found[key].append(t)
    return {key: statistics.median(times) for key, times in sorted(found.items())}  # type: ignore[type-var]


def _quality(residual: list[float], held: list[float], runs: list[tuple[K, float]]) -> Quality:
    middle = _medians(runs)
    noise = [t / middle[key] - 1 for key, t in runs]
    nan = float("nan")
    return Quality(
        residual=mape(residual) if residual else nan,
        worst=100 * max(map(abs, residual)) if residual else nan,
        held_out=mape(held) if held else nan,
        noise=mape(noise) if noise else nan,
    )
