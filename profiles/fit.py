"""Fit the shipped profiles to the measurements published with the paper's simulator, and state the error.

    python profiles/fit.py                    # from splitwise-sim/perf_model.csv under SPLITGYM_DATA
    python profiles/fit.py --data perf_model.csv --out DIR --report docs/profiles-errors.md --plot fit.png

The method is described in docs/profiles.md.
"""

import argparse
import csv
import json
import math
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitgym.errors import ProfileError
from splitgym.profile.specs import MachineSpec, ModelSpec, machines, models
from splitgym.resources import data_folder

Point = tuple[int, int]  # (prompt tokens, batch size)
Key = tuple[str, str, int]  # model, machine, tensor parallel

FORMED_TOKENS = 2048
"""The paper's machines batch prompts up to here; a longer prompt runs alone."""
BATCH_PROMPT = 512
"""Batches were measured at this prompt length only."""
EXCLUDED = {
    ("llama2-70b", 2, (512, 64)): "(512, batch 64) on 2 GPUs: out of memory (its prompt is faster than batch 4's)"
}
H100_POWER = 1.75
SOURCE = "SplitwiseSim perf_model.csv (MIT, (c) 2024 Pratyush Patel), sha256 dbbe505d1d64fc4bd1ec03c50edf944643586de4"


@dataclass(frozen=True)
class Measured:
    """Medians of one model on one machine."""

    prompt_ms: dict[Point, float]
    token_ms: dict[Point, float]
    peak_power: dict[Point, float]  # share of the GPUs' maximum; empty where not measured
    average_power: dict[Point, float]


def read(path: Path) -> dict[Key, Measured]:
    """Medians over repeated runs by (prompt, batch).

    Token times and power come from the runs with 128 output tokens, the one length that all points have.

    Raises:
        ProfileError: the file cannot be read or lacks a column.
    """
    columns = ("prompt_ms", "token_ms", "peak_power", "average_power")
    raw: dict[Key, tuple[dict[Point, list[float]], ...]] = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                key = (row["model"], row["hardware"], int(row["tensor_parallel"]))
                point = (int(row["prompt_size"]), int(row["batch_size"]))
                if (key[0], key[2], point) in EXCLUDED:
                    continue
                lists = raw.setdefault(key, tuple(defaultdict(list) for _ in columns))
                lists[0][point].append(float(row["prompt_time"]))
                if row["token_size"] == "128":
                    lists[1][point].append(float(row["token_time"]))
                    if row["peak_power"] and float(row["peak_power"]) > 0:
                        lists[2][point].append(float(row["peak_power"]))
                        lists[3][point].append(float(row["average_power"]))
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read ({error.strerror})") from None
    except (KeyError, ValueError) as error:
        raise ProfileError(f"{path}: not the measurements expected ({error})") from None
    if not raw:
        raise ProfileError(f"{path}: no measurements")
    return {
        key: Measured(*({p: statistics.median(v) for p, v in part.items()} for part in parts))
        for key, parts in raw.items()
    }


# Curves -----------------------------------------------------------------------------------------------------------


def with_middles(knots: dict[int, float]) -> dict[int, float]:
    """The knots and, between each two, one more at their geometric middle.

    A convex curve lies below the chord and above its neighbours' segments drawn on: the new knot is half-way
    between the two bounds, and on the chord where the curve is not convex.
    """
    xs = sorted(knots)
    out = dict(knots)
    for i, (x0, x1) in enumerate(zip(xs, xs[1:], strict=False)):
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
        own, other, sign = (
            (self.batched, self.single, -1) if batched else (self.single, self.batched, 1)
        )
        known = {n: t * math.exp(sign * self.log_ratio(n)) for n, t in other.items()} | own
        return with_middles(dict(sorted(known.items())))

    def predict(self, point: Point) -> float:
        """Time of a point [ms]."""
        prompt, batch = point
        return value(self.series(batched=batch > 1), prompt * batch)

    def curve(self) -> dict[int, float]:
        """The profile's curve by batch tokens: what a machine under the paper's batching rule meets.

        Up to 2,048 tokens both single prompts and batches: the geometric mean of the two. Beyond, single prompts
        as far as they were measured, then batches.
        """
        single, batched = self.series(False), self.series(True)
        last = max(self.single)
        knots = {}
        for n in sorted({*self.single, *self.batched}):
            if n <= FORMED_TOKENS:
                knots[n] = math.sqrt(value(single, n) * value(batched, n))
            else:
                knots[n] = value(single, n) if n <= last else self.batched[n]
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

    def predict(self, point: Point) -> float:
        """Time of a point [ms]."""
        prompt, batch = point
        return value(self.base, batch) + self.slope * prompt * batch


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


# Errors -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Errors:
    """Mean absolute percentage errors."""

    prompt_held_out: float  # of the fit over (prompt, batch)
    curve_held_out: float  # of the profile's curve over the batches that the paper's rule forms
    curve_all: float  # of the profile's curve over all points, none held out
    least_possible: float  # the same for the best curve by batch tokens that there can be
    token_held_out: float
    token_all: float


def roofline_slope(model: ModelSpec, machine: MachineSpec) -> float:
    """Least time of a context token: its KV cache over the published bandwidth [ms]."""
    return model.kv_bytes_per_token / (machine.gpus * machine.bandwidth_bytes_per_s) * 1e3


def errors(measured: Measured, roofline: float) -> Errors:
    """Leave one (prompt, batch) point out, fit to the others, predict it; the ends of a series stay in."""
    prompt, token = measured.prompt_ms, measured.token_ms
    fit, curve = PromptFit.fit(prompt), PromptFit.fit(prompt).curve()
    held, formed, tokens = [], [], []
    most = max(p * b for p, b in prompt)
    for point, t in prompt.items():
        n = point[0] * point[1]
        if n in (min(fit.single), most):
            continue
        rest = PromptFit.fit({p: v for p, v in prompt.items() if p != point})
        held.append(rest.predict(point) / t - 1)
        if point[1] == 1 or n <= FORMED_TOKENS:
            formed.append(value(rest.curve(), n) / t - 1)
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


# Power ------------------------------------------------------------------------------------------------------------


def power(all_measured: dict[Key, Measured], key: Key, machine: MachineSpec) -> dict[str, object]:
    """Power by phase [W]: the A100's measurement, scaled for the H100, cut at the cap."""
    measured = all_measured[(key[0], "a100-80gb", key[2])]
    scale = machine.gpus * 400.0 * (1.0 if key[1] == "a100-80gb" else H100_POWER)
    by_tokens: dict[int, list[float]] = defaultdict(list)
    for (p, b), share in measured.peak_power.items():
        by_tokens[p * b].append(share)
    tokens = sorted(by_tokens)
    batches = sorted(b for p, b in measured.average_power if p == BATCH_PROMPT)
    prompt = isotonic([statistics.fmean(by_tokens[n]) for n in tokens], [len(by_tokens[n]) for n in tokens])
    token = isotonic([measured.average_power[(BATCH_PROMPT, b)] for b in batches], [1] * len(batches))

    def watts(shares: list[float]) -> list[float]:
        return [round(min(s * scale, scale, machine.power_cap_w), 1) for s in shares]

    return {
        "idle_w": round(machine.gpus * machine.max_power_w * machine.idle_power, 1),
        "prompt_tokens": tokens,
        "prompt_w": watts(prompt),
        "token_batch": batches,
        "token_w": watts(token),
    }


POWER_NOTE = {
    "a100-80gb": "measured on this machine: prompt = peak power, token = average power of the run with 128 output "
    "tokens, both made non-decreasing and cut at the GPUs' maximum; idle power is assumed",
    "h100-80gb": "assumed: the A100's measured curve times 1.75 (ratio of maximum power); idle power is assumed",
    "h100-80gb-pcap": "assumed: the A100's measured curve times 1.75 (ratio of maximum power), cut at the cap of 0.7 of "
    "maximum power; idle power is assumed",
}


# The files --------------------------------------------------------------------------------------------------------


def profile(all_measured: dict[Key, Measured], key: Key) -> dict[str, object]:
    """One profile as the content of its file."""
    measured = all_measured[key]
    model, machine = models()[key[0]], machines()[key[1]].part(key[2])
    slope = roofline_slope(model, machine)
    prompt, token, e = PromptFit.fit(measured.prompt_ms).curve(), None, errors(measured, slope)
    token = TokenFit.fit(measured.token_ms, slope)
    excluded = [why for (name, tp, _), why in EXCLUDED.items() if (name, tp) == (key[0], key[2])]
    derived = "; prompt times of the capped H100 are 1.3 x the H100's in the source" if "pcap" in key[1] else ""
    return {
        "model": key[0],
        "machine": key[1],
        "tensor_parallel": key[2],
        "prompt": {"tokens": list(prompt), "seconds": [round(v / 1e3, 7) for v in prompt.values()]},
        "token": {
            "batch": list(token.base),
            "seconds": [round(v / 1e3, 7) for v in token.base.values()],
            "seconds_per_context_token": round(token.slope / 1e3, 12),
        },
        "power": power(all_measured, key, machine),
        "provenance": {
            "kind": "fitted to measurements",
            "source": SOURCE + derived,
            "method": "profiles/fit.py, described in docs/profiles.md",
            "excluded": "; ".join(excluded) or "nothing",
            "prompt_error": f"held out, by prompt and batch: {e.prompt_held_out:.1f} %; held out, this curve over the "
            f"batches that the paper's rule forms: {e.curve_held_out:.1f} %; over all points, none held out: "
            f"{e.curve_all:.1f} % (no curve by batch tokens can be below {e.least_possible:.1f} %)",
            "token_error": f"held out: {e.token_held_out:.1f} %; over all points, none held out: {e.token_all:.1f} %",
            "power": POWER_NOTE[key[1]],
            "context": f"{token.slope / slope:.1f} x the roofline term (KV bytes over published bandwidth), from the "
            "batch-1 rows",
            "not_held_out": "the ends: 128 prompt tokens, the largest batch, and for token times 8,192 prompt tokens",
        },
    }


def text(content: dict[str, object]) -> str:
    """JSON with one line a list."""
    raw = json.dumps(content, indent=2)
    lines: list[str] = []
    depth = 0
    for line in raw.splitlines():
        if depth:
            lines[-1] += line.strip() if lines[-1].endswith("[") or line.strip() == "]" else " " + line.strip()
        else:
            lines.append(line)
        depth += line.count("[") - line.count("]")
    return "\n".join(line.replace("],", "],").rstrip() for line in lines) + "\n"


def report(all_measured: dict[Key, Measured]) -> str:
    """The table of errors, as Markdown."""
    rows = [
        "| model | machine | GPUs | prompt, held out | prompt curve, held out, batches formed | prompt curve, all points "
        "| least possible by tokens | token, held out | token, all points |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted(all_measured):
        slope = roofline_slope(models()[key[0]], machines()[key[1]].part(key[2]))
        e = errors(all_measured[key], slope)
        cells = (e.prompt_held_out, e.curve_held_out, e.curve_all, e.least_possible, e.token_held_out, e.token_all)
        rows.append(f"| {key[0]} | {key[1]} | {key[2]} | " + " | ".join(f"{c:.1f} %" for c in cells) + " |")
    return "\n".join(rows) + "\n"


def plot(all_measured: dict[Key, Measured], path: Path) -> None:
    """Fit against measurement for every profile."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    keys = sorted(all_measured)
    figure, axes = plt.subplots(len(keys), 3, figsize=(13, 2.6 * len(keys)), squeeze=False)
    for row, key in zip(axes, keys, strict=True):
        measured = all_measured[key]
        slope = roofline_slope(models()[key[0]], machines()[key[1]].part(key[2]))
        curve, token = PromptFit.fit(measured.prompt_ms).curve(), TokenFit.fit(measured.token_ms, slope)
        row[0].loglog(list(curve), list(curve.values()), "-", color="0.4", label="profile")
        for batched, mark in ((False, "o"), (True, "x")):
            points = [(p * b, t) for (p, b), t in measured.prompt_ms.items() if (b > 1) == batched]
            row[0].plot(*zip(*points, strict=True), mark, label="batches of 512" if batched else "one prompt")
        batches = [(b, t) for (p, b), t in sorted(measured.token_ms.items()) if p == BATCH_PROMPT]
        ones = [(p, t) for (p, b), t in sorted(measured.token_ms.items()) if b == 1]
        for axis, points, fit in (
            (row[1], batches, [token.predict((BATCH_PROMPT, b)) for b, _ in batches]),
            (row[2], ones, [token.predict((p, 1)) for p, _ in ones]),
        ):
            xs = [x for x, _ in points]
            axis.semilogx(xs, fit, "-", color="0.4", label="profile")
            axis.plot(xs, [t for _, t in points], "o", label="measured")
            axis.set_ylim(bottom=0)
        row[0].set_title(f"{key[0]} on {key[2]} x {key[1]}", fontsize=9)
        for axis, what in zip(row, ("prompt: batch tokens", "token: batch at 512", "token: context at batch 1"), strict=True):
            axis.set_xlabel(what, fontsize=8)
            axis.set_ylabel("ms", fontsize=8)
            axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Fit the shipped profiles and state their error.")
    parser.add_argument("--data", type=Path, help="perf_model.csv; default: splitwise-sim/ under SPLITGYM_DATA")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder of the profiles")
    parser.add_argument("--plot", type=Path, help="also draw fit against measurement")
    options = parser.parse_args()
    folder = data_folder()
    path = options.data or (folder / "splitwise-sim" / "perf_model.csv" if folder else None)
    if path is None:
        parser.error("name the measurements with --data, or set SPLITGYM_DATA")
    try:
        measured = read(path)
    except ProfileError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    for key in sorted(measured):
        name = f"{key[0]}_{key[1]}_tp{key[2]}.json"
        (options.out / name).write_text(text(profile(measured, key)))
    print(report(measured), end="")
    if options.plot:
        plot(measured, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
