"""Built-in traces: generators fitted to the Azure originals, for use offline.

Arrivals are a doubly stochastic process on three time scales:

* minutes: a factor on the rate. Its rank among the original's minutes is a reflected random walk.
* seconds: active and silent spells in turn, and while active a rate that is held from second to second or
  drawn again. A trace that is never silent is one endless active spell.
* milliseconds: an arrival may bring a clump of followers.

Between them arrivals are Poisson. Sizes: the prompt by its quantiles, the output by its quantiles among the
requests of similar prompts. All tables are quantiles at evenly spaced ranks, fitted by `traces/fit.py`;
drawing from them is linear interpolation, so that a seed gives the same trace on every machine.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.errors import TraceError
from splitgym.resources import shipped
from splitgym.trace.draws import MAX_REQUESTS, Seed, generators, say
from splitgym.trace.trace import Floats, Trace

HOUR_S = 3600.0
TICKS_PER_S = 1_000_000
"""Arrivals are rounded to microseconds: below that, machines may differ in the last bit of a product."""

_FILES = {"azure-code-synth": "azure-code-synth.json", "azure-conv-synth": "azure-conv-synth.json"}


def names() -> tuple[str, ...]:
    """The generators that are shipped."""
    return tuple(_FILES)


@cache
def tables(name: str) -> Mapping[str, Any]:
    """The fitted tables of a generator, as in its JSON file.

    Raises:
        TraceError: no such generator.
    """
    if name not in _FILES:
        raise TraceError(f"{name!r} is no built-in generator: expected {' or '.join(_FILES)}")
    data: dict[str, Any] = json.loads((shipped("traces") / _FILES[name]).read_text())
    return data


def hour(name: str) -> Trace:
    """One hour with the generator's own seed: what `load(name)` gives."""
    return generate(name, HOUR_S, int(tables(name)["hour_seed"]))


def generate(name: str, duration_s: float, seed: Seed = 0) -> Trace:
    """A synthetic trace of any length.

    Args:
        name: `azure-code-synth` or `azure-conv-synth`.
        duration_s: arrivals lie in [0, duration_s).
        seed: integer or generator.

    Raises:
        TraceError: an unknown name, a duration that is not positive, or so short that nothing arrives.
    """
    return from_tables(tables(name), duration_s, seed)


def from_tables(fitted: Mapping[str, Any], duration_s: float, seed: Seed) -> Trace:
    """`generate` from tables at hand (the form of the JSON files)."""
    name = fitted["name"]
    rate_per_s = float(fitted["fitted_to"]["rate_per_s"])
    if not 0 < duration_s * rate_per_s < MAX_REQUESTS:
        raise TraceError(
            f"{name}: duration_s is {duration_s}, expected seconds, up to {MAX_REQUESTS} requests"
        )
    arrivals_draw, sizes_draw = generators(seed, 2)
    arrival_s = _arrivals(fitted["arrivals"], duration_s, arrivals_draw)
    if len(arrival_s) == 0:
        raise TraceError(
            f"{name}: no request arrives in {duration_s} s with seed {say(seed)}: make it longer"
        )
    prompt, output = _sizes(fitted["sizes"], len(arrival_s), sizes_draw)
    provenance = {
        "source": f"generated; fitted to {fitted['fitted_to']['name']}",
        **{key: str(fitted[key]) for key in ("licence", "cite") if key in fitted},
        "operations": f"generate(duration_s={duration_s!r}, seed={say(seed)})",
    }
    return Trace(arrival_s, prompt, output, None, name, provenance)


def read_tables(path: Path) -> dict[str, Any]:
    """Tables that `splitgym trace synth` wrote.

    Raises:
        TraceError: the file cannot be read, or holds something else.
    """
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise TraceError(f"{path}: is no JSON ({' '.join(str(error).split())}): was it cut off?") from None
    wanted = {"name", "fitted_to", "arrivals", "sizes"}
    if not isinstance(data, dict) or not wanted <= data.keys():
        raise TraceError(f"{path}: holds no tables of a generator: expected {', '.join(sorted(wanted))}")
    try:
        from_tables(data, 60.0 / float(data["fitted_to"]["rate_per_s"]), 0)
    except TraceError as error:
        if "no request arrives" not in str(error):
            raise
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise TraceError(f"{path}: its tables are damaged ({type(error).__name__}: {error})") from None
    return data


def quantile(table: Any, rank: Floats) -> Floats:
    """Linear interpolation in a table of quantiles at evenly spaced ranks from 0 to 1."""
    values = np.asarray(table, np.float64)
    at = rank * (len(values) - 1)
    low = np.minimum(at.astype(np.int64), len(values) - 2)
    return values[low] + (values[low + 1] - values[low]) * (at - low)


def _sizes(fitted: Mapping[str, Any], count: int, draw: np.random.Generator) -> tuple[Any, Any]:
    rank = draw.random(count)
    prompt = np.rint(quantile(fitted["prompt_tokens"], rank)).astype(np.int64)
    output = np.empty(count, np.int64)
    rows = fitted["output_tokens"]
    bins = np.minimum((rank * len(rows)).astype(np.int64), len(rows) - 1)
    output_rank = draw.random(count)
    for index, row in enumerate(rows):
        here = bins == index
        output[here] = np.rint(quantile(row, output_rank[here])).astype(np.int64)
    return np.maximum(prompt, 1), np.maximum(output, 1)


def _arrivals(fitted: Mapping[str, Any], duration_s: float, draw: np.random.Generator) -> Floats:
    minutes, seconds, points, clumps = generators(draw, 4)
    starts, lengths, openings = _pieces(fitted, duration_s, seconds)
    factor = _minute_factor(fitted, int(duration_s // 60) + 1, minutes)
    rate = _held_levels(fitted, len(starts), seconds)
    rate = rate * factor[np.minimum((starts / 60).astype(np.int64), len(factor) - 1)]
    parents = np.concatenate([openings, _points(starts, lengths, rate, points)])
    ticks = np.rint(np.sort(_clumped(fitted, parents, clumps)) * TICKS_PER_S)
    return ticks[ticks < duration_s * TICKS_PER_S] / TICKS_PER_S


def _pieces(
    fitted: Mapping[str, Any], duration_s: float, draw: np.random.Generator
) -> tuple[Floats, Floats, Floats]:
    """Pieces of at most 1 s in which the rate is constant: starts, lengths; and when active spells open.

    An active spell was fitted as a run of arrivals, so it opens with one.
    """
    if fitted["active_s"] is None:
        starts = np.arange(int(np.ceil(duration_s)), dtype=np.float64)
        return starts, np.minimum(1.0, duration_s - starts), np.empty(0)
    active_parts, silent_parts, total = [], [], 0.0
    while total < duration_s:
        ranks = draw.random((2, 256))
        active_parts.append(quantile(fitted["active_s"], ranks[0]))
        silent_parts.append(quantile(fitted["silent_s"], ranks[1]))
        total += float(active_parts[-1].sum() + silent_parts[-1].sum())
    active, silent = np.concatenate(active_parts), np.concatenate(silent_parts)
    ends = np.cumsum(active + silent)
    opens = ends - silent - active
    counts = np.ceil(active).astype(np.int64)
    spell = np.repeat(np.arange(len(active)), counts)
    second = np.arange(len(spell)) - np.repeat(np.cumsum(counts) - counts, counts)
    return opens[spell] + second, np.minimum(1.0, active[spell] - second), opens


def _minute_factor(fitted: Mapping[str, Any], count: int, draw: np.random.Generator) -> Floats:
    # A random walk folded into [0, 1] keeps a uniform rank uniform, and needs no logarithm.
    steps = fitted["minute_step"] * (2.0 * draw.random(count) - 1.0)
    steps[0] = 2.0 * draw.random()
    folded = np.cumsum(steps)
    folded -= 2.0 * np.floor(folded / 2.0)
    return quantile(fitted["minute_factor"], np.where(folded > 1.0, 2.0 - folded, folded))


def _held_levels(fitted: Mapping[str, Any], count: int, draw: np.random.Generator) -> Floats:
    ranks, held = draw.random(count), draw.random(count) < fitted["level_hold"]
    held[:1] = False
    drawn_at = np.maximum.accumulate(np.where(held, 0, np.arange(count)))
    return quantile(fitted["level_per_s"], ranks[drawn_at])


def _points(starts: Floats, lengths: Floats, rate: Floats, draw: np.random.Generator) -> Floats:
    """A Poisson process whose rate is constant in each piece: unit-rate arrivals, mapped back."""
    mass = np.cumsum(rate * lengths)
    total = float(mass[-1])
    chunks, now = [np.empty(0)], 0.0
    while now < total:
        at = now + np.cumsum(draw.exponential(size=4096))
        chunks.append(at)
        now = float(at[-1])
    at = np.concatenate(chunks)
    at = at[at < total]
    piece = np.searchsorted(mass, at, "right")
    into = (at - (mass[piece] - rate[piece] * lengths[piece])) / rate[piece]
    return np.asarray(starts[piece] + np.clip(into, 0.0, lengths[piece]))


def _clumped(fitted: Mapping[str, Any], parents: Floats, draw: np.random.Generator) -> Floats:
    """Each arrival is followed by another after a short gap with a probability, that one again, and so on."""
    all_arrivals: list[NDArray[np.float64]] = [parents]
    latest = parents
    while len(latest):
        followed = draw.random(len(latest)) < fitted["clump_probability"]
        latest = latest[followed] + quantile(fitted["clump_gap_s"], draw.random(int(followed.sum())))
        all_arrivals.append(latest)
    return np.concatenate(all_arrivals)
