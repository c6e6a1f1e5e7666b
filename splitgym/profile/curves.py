"""The shapes that profiles are fitted with, and their error on points held out (docs/profiles.md)."""

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Point = tuple[int, int]  # (prompt tokens, batch size)
TokenPoint = tuple[int, float]  # (batch size, context of the whole batch)

FORMED_TOKENS = 2048
"""The paper's machines batch prompts up to here; a longer prompt runs alone."""
SINGLE_TOKENS = 8192
"""As far as here, or as single prompts were measured, a curve follows single prompts."""
FOLDS = 5
BATCH_PROMPT = 512
"""Batches were measured at this prompt length only."""


def with_middles(knots: dict[int, float]) -> dict[int, float]:
    """The knots and, between each two, one more at their geometric middle.

    A convex curve lies below the chord and above its neighbours' segments drawn on: the new knot is half-way
    between the two bounds, and on the chord where the curve is not convex.
    """
    xs = sorted(knots)
    out = dict(knots)
    for i, (x0, x1) in enumerate(pairwise(xs)):
        x = round(math.sqrt(x0 * x1))
        if not x0 < x < x1:
            continue
        y0, y1 = knots[x0], knots[x1]
        chord = y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        below = y0
        if i > 0:
            below = max(below, y0 + (y0 - knots[xs[i - 1]]) / (x0 - xs[i - 1]) * (x - x0))
        if i + 2 < len(xs):
            below = max(below, y1 - (knots[xs[i + 2]] - y1) / (xs[i + 2] - x1) * (x1 - x))
        out[x] = (chord + min(chord, below)) / 2
    return dict(sorted(out.items()))


def never_decreasing(knots: dict[int, float]) -> dict[int, float]:
    """Lower what is above a later value: short runs that were slower than longer ones had not warmed up."""
    out, least = {}, math.inf
    for x in sorted(knots, reverse=True):
        least = min(least, knots[x])
        out[x] = least
    return dict(sorted(out.items()))


def value(knots: dict[int, float], x: float) -> float:
    """Piecewise linear, extrapolated with the last slope."""
    xs, ys = list(knots), list(knots.values())
    if x > xs[-1]:
        return ys[-1] + (ys[-1] - ys[-2]) / (xs[-1] - xs[-2]) * (x - xs[-1])
    return float(np.interp(x, xs, ys))


@dataclass(frozen=True)
class PromptFit:
    """Prompt time over (prompt, batch): that of single prompts, and the ratio of batches of 512 to them."""

    single: dict[int, float]  # ms by tokens of one prompt
    batched: dict[int, float]  # ms by tokens of a batch of 512-token prompts
    twins: tuple[tuple[float, float], ...]  # (log2 tokens, log(single / batched)) where both were measured

    @classmethod
    def fit(cls, points: dict[Point, float]) -> "PromptFit":
        single = {p: t for (p, b), t in points.items() if b == 1}
        batched = {p * b: t for (p, b), t in points.items() if p == BATCH_PROMPT}
        both = sorted(n for n in single if n in batched and n > BATCH_PROMPT)
        twins = ((math.log2(BATCH_PROMPT), 0.0),) + tuple(
            (math.log2(n), math.log(single[n] / batched[n])) for n in both
        )
        return cls(single, batched, twins)

    def log_ratio(self, tokens: int) -> float:
        """log(single / batched), linear in log2 tokens between the twins and one octave beyond the last."""
        x = math.log2(tokens)
        xs, ys = zip(*self.twins, strict=True)
        if x > xs[-1] and len(xs) > 1:
            return float(ys[-1] + (ys[-1] - ys[-2]) / (xs[-1] - xs[-2]) * min(x - xs[-1], 1.0))
        return float(np.interp(x, xs, ys))

    def series(self, batched: bool) -> dict[int, float]:
        """Times by tokens, all single or all batched; what was measured the other way only is converted."""
        own, other, sign = (self.batched, self.single, -1) if batched else (self.single, self.batched, 1)
        known = {n: t * math.exp(sign * self.log_ratio(n)) for n, t in other.items()} | own
        return with_middles(dict(sorted(known.items())))

    def predict(self, point: Point) -> float:
        """Time of a point [ms]."""
        prompt, batch = point
        return value(self.series(batched=batch > 1), prompt * batch)

    def curve(self) -> dict[int, float]:
        """The profile's curve by batch tokens: what a machine under the paper's batching rule meets.

        Up to 2,048 tokens both single prompts and batches: the geometric mean of the two. Beyond, single
        prompts as far as they were measured, then batches.
        """
        single, batched = self.series(False), self.series(True)
        knots = {}
        for n in sorted({*self.single, *self.batched}):
            if n <= FORMED_TOKENS:
                knots[n] = math.sqrt(value(single, n) * value(batched, n))
            else:
                knots[n] = value(single, n) if n <= max(SINGLE_TOKENS, *self.single) else self.batched[n]
        return with_middles(never_decreasing(knots))


@dataclass(frozen=True)
class TokenFit:
    """Token time: base(batch) + slope x context of the batch."""

    base: dict[int, float]  # ms by batch size
    slope: float  # ms per context token

    @classmethod
    def fit(cls, points: dict[Point, float], roofline_slope: float) -> "TokenFit":
        """The slope from the batch-1 rows, at least the roofline's; the base from the rows at 512 tokens."""
        ones = {p: t for (p, b), t in points.items() if b == 1}
        slope = max(float(np.polyfit(list(ones), list(ones.values()), 1)[0]), roofline_slope)
        raw = {1: statistics.fmean(t - slope * p for p, t in ones.items())}
        raw |= {b: t - slope * p * b for (p, b), t in points.items() if b > 1}
        weights = [len(ones)] + [1] * (len(raw) - 1)
        batches = sorted(raw)
        return cls(
            with_middles(dict(zip(batches, isotonic([raw[b] for b in batches], weights), strict=True))), slope
        )

    @classmethod
    def joint(cls, points: dict[TokenPoint, float], least_slope: float) -> "TokenFit":
        """One slope for all batches, from points at several contexts; the base is what it leaves.

        Least squares of the relative errors: each batch size has its own base, made non-decreasing after.

        Args:
            points: ms by (batch, context of the whole batch).
            least_slope: the slope is at least this [ms a context token].
        """
        batches = sorted({b for b, _ in points})
        above, below = 0.0, 0.0
        for batch in batches:
            rows = np.array([(c, t) for (b, c), t in points.items() if b == batch])
            weights = rows[:, 1] ** -2
            off = rows - np.average(rows, axis=0, weights=weights)
            above += float((weights * off[:, 0] * off[:, 1]).sum())
            below += float((weights * off[:, 0] ** 2).sum())
        slope = max(above / below if below > 0 else 0.0, least_slope)
        left = {b: [t - slope * c for (b_, c), t in points.items() if b_ == b] for b in batches}
        raw = [statistics.fmean(left[b]) for b in batches]
        base = isotonic(raw, [len(left[b]) for b in batches])
        return cls(with_middles(dict(zip(batches, base, strict=True))), slope)

    def predict(self, point: Point) -> float:
        """Time of a point [ms]."""
        prompt, batch = point
        return self.time(batch, prompt * batch)

    def time(self, batch: int, context: float) -> float:
        """Time of an iteration with this context of the whole batch [ms]."""
        return value(self.base, batch) + self.slope * context


def isotonic(values: list[float], weights: list[int]) -> list[float]:
    """Nearest non-decreasing values (least squares): pool adjacent violators."""
    blocks: list[list[float]] = []  # mean, weight, count
    for v, w in zip(values, weights, strict=True):
        blocks.append([v, w, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            b, a = blocks.pop(), blocks.pop()
            weight = a[1] + b[1]
            blocks.append([(a[0] * a[1] + b[0] * b[1]) / weight, weight, a[2] + b[2]])
    return [mean for mean, _, count in blocks for _ in range(int(count))]


@dataclass(frozen=True)
class Errors:
    """Mean absolute percentage errors."""

    prompt_held_out: float  # of the fit over (prompt, batch)
    curve_held_out: float  # of the profile's curve over the batches that the paper's rule forms
    curve_all: float  # of the profile's curve over all points, none held out
    least_possible: float  # the same for the best curve by batch tokens that there can be
    token_held_out: float
    token_all: float


def errors(prompt: dict[Point, float], token: dict[Point, float], roofline: float) -> Errors:
    """Leave one (prompt, batch) point out, fit to the others, predict it; the ends of a series stay in."""
    fit, curve = PromptFit.fit(prompt), PromptFit.fit(prompt).curve()
    held, formed = held_out_prompts(prompt)
    tokens = []
    last_batch = max(b for _, b in token)
    for point, t in token.items():
        if point in ((min(fit.single), 1), (max(fit.single), 1), (BATCH_PROMPT, last_batch)):
            continue
        left = TokenFit.fit({p: v for p, v in token.items() if p != point}, roofline)
        tokens.append(left.predict(point) / t - 1)
    full = TokenFit.fit(token, roofline)
    return Errors(
        prompt_held_out=mape(held),
        curve_held_out=mape(formed),
        curve_all=mape([value(curve, p * b) / t - 1 for (p, b), t in prompt.items()]),
        least_possible=least_error(prompt),
        token_held_out=mape(tokens),
        token_all=mape([full.predict(p) / t - 1 for p, t in token.items()]),
    )


def held_out_prompts(prompt: dict[Point, float]) -> tuple[list[float], list[float]]:
    """Relative errors of points left out: of the fit, and of the curve over batches that are formed."""
    held, formed = [], []
    least = min(p for p, b in prompt if b == 1)
    most = max(p * b for p, b in prompt)
    for point, t in prompt.items():
        n = point[0] * point[1]
        if n in (least, most):
            continue
        rest = PromptFit.fit({p: v for p, v in prompt.items() if p != point})
        held.append(rest.predict(point) / t - 1)
        if point[1] == 1 or n <= FORMED_TOKENS:
            formed.append(value(rest.curve(), n) / t - 1)
    return held, formed


def held_out_tokens(points: dict[TokenPoint, float], least_slope: float) -> list[float]:
    """Relative errors of points left out; the ends in batch size stay in."""
    found = []
    ends = {min(points)[0], max(points)[0]}
    for point, t in points.items():
        if point[0] in ends and sum(b == point[0] for b, _ in points) == 1:
            continue
        rest = TokenFit.joint({p: v for p, v in points.items() if p != point}, least_slope)
        found.append(rest.time(*point) / t - 1)
    return found


@dataclass(frozen=True)
class RunErrors:
    """Mean absolute percentage errors of single runs, every (prompt, batch) point with the same weight."""

    noise: float  # of a point's median: what no fit can explain
    held_out: float  # of the fit over (prompt, batch) to the medians of the other four fifths of the runs


def run_errors(runs: dict[Point, list[float]]) -> RunErrors:
    """Hold out a fifth of the runs of every point, in turn: an 80:20 split of runs, not of points."""
    off = {p: [t / statistics.median(times) - 1 for t in times] for p, times in runs.items()}
    held: dict[Point, list[float]] = {p: [] for p in runs}
    for fold in range(FOLDS):
        rest = {p: [t for i, t in enumerate(times) if i % FOLDS != fold] for p, times in runs.items()}
        fit = PromptFit.fit({p: statistics.median(times) for p, times in rest.items()})
        for p, times in runs.items():
            held[p] += [fit.predict(p) / t - 1 for t in times[fold::FOLDS]]
    return RunErrors(
        noise=statistics.fmean(mape(errors) for errors in off.values()),
        held_out=statistics.fmean(mape(errors) for errors in held.values()),
    )


def least_error(points: dict[Point, float]) -> float:
    """The error that no function of batch tokens alone can be below: points of equal tokens differ."""
    groups = defaultdict(list)
    for (p, b), t in points.items():
        groups[p * b].append(t)
    best = [min(sum(abs(c / t - 1) for t in times) for c in times) for times in groups.values()]
    return 100 * sum(best) / len(points)


def mape(relative: list[float]) -> float:
    """Mean absolute percentage error [%]."""
    return 100 * statistics.fmean(abs(r) for r in relative)
