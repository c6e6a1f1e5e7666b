"""From measured times to a profile: the fit, its residuals, its error on points held out, the file.

Whoever measures (`splitgym.measuring` over HTTP, `splitgym profile torch` in place) fills a `Samples`; the
shapes are those of the shipped profiles (`curves`). Times in `curves` are milliseconds, here seconds.
"""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from splitgym.config import to_mapping
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
from splitgym.profile.load import from_content
from splitgym.profile.profile import Profile
from splitgym.profile.roofline import flops_per_token
from splitgym.profile.specs import MachineSpec, ModelSpec, models

K = TypeVar("K")
DEFAULT_MIXED = 1.1
SEEN = 1.1
"""A mixed iteration tells its factor only where its prompt time is this much above its decodes' time."""
TOKEN_POWER = 0.65


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


# ---- the file ---------------------------------------------------------------------------------------------


def describe_machine(
    model: ModelSpec,
    fitted: Fit,
    *,
    gpus: int,
    capacity_tokens: int,
    kv_bytes_per_token: int,
    base: MachineSpec | None = None,
    name: str = "measured",
) -> MachineSpec:
    """The machine that was measured: memory from the KV cache it has room for, network from the transfers.

    Args:
        model: what ran on it.
        fitted: the times.
        gpus: that held the model.
        capacity_tokens: KV tokens beside the weights.
        kv_bytes_per_token: size of one.
        base: published specs of the machine; without them, the peaks are those that were reached.
        name: of the machine type.

    Raises:
        ProfileError: `base` has fewer GPUs.
    """
    needed = model.weights_bytes + capacity_tokens * kv_bytes_per_token
    per_gpu = -(-needed // gpus)
    if base is None:
        tokens, seconds = max(fitted.prompt.items(), key=lambda knot: knot[0] / knot[1])
        found = MachineSpec(
            name=name,
            gpus=gpus,
            memory_bytes_per_gpu=per_gpu,
            peak_flops_per_s=flops_per_token(model) * tokens / seconds / gpus,
            bandwidth_bytes_per_s=model.weights_bytes / fitted.token_seconds(1, 0) / gpus,
            max_power_w=400.0,
            links_per_machine=1,
            source="measured; peaks are those reached, not published ones",
            assumed="max_power_w, idle_power, cost_per_hour, and the network unless it was measured",
        )
    else:
        found = replace(base.part(gpus), name=name, memory_bytes_per_gpu=per_gpu)
    if fitted.link is not None and fitted.link.seen:
        speed = max(64, round(kv_bytes_per_token / fitted.link.s_per_token))
        found = replace(found, links_per_machine=1, link_bytes_per_s=speed)
    return found


def content(
    model: ModelSpec,
    machine: MachineSpec,
    fitted: Fit,
    *,
    kv_bytes_per_token: int,
    provenance: dict[str, str],
    power_w: tuple[float, float, float] | None = None,
) -> dict[str, Any]:
    """A profile file's content.

    Args:
        model, machine: what was measured.
        fitted: the times.
        kv_bytes_per_token: written where the model's dimensions give another.
        provenance: who measured what, when.
        power_w: (idle, prompt, token) of all GPUs; None assumes shares of the machine's maximum.
    """
    idle, prompt, token = power_w or _assumed_power(machine)
    known = models().get(model.name) == model
    found: dict[str, Any] = {
        "model": model.name if known else to_mapping(model),
        "machine": to_mapping(machine),
        "tensor_parallel": machine.gpus,
        "prompt": {
            "tokens": list(fitted.prompt),
            "seconds": [float(f"{t:.7g}") for t in fitted.prompt.values()],
        },
        "token": {
            "batch": list(fitted.token.base),
            "seconds": [float(f"{t / 1e3:.7g}") for t in fitted.token.base.values()],
            "seconds_per_context_token": float(f"{fitted.token.slope / 1e3:.6g}"),
        },
        "power": {
            "idle_w": idle,
            "prompt_tokens": [1],
            "prompt_w": [prompt],
            "token_batch": [1],
            "token_w": [token],
        },
        "mixed_factor": round(fitted.mixed_factor, 4),
        "provenance": provenance | _errors(fitted, kv_bytes_per_token) | _power_note(power_w is not None),
    }
    if kv_bytes_per_token != model.kv_bytes_per_token:
        found["kv_bytes_per_token"] = kv_bytes_per_token
    return found


def _assumed_power(machine: MachineSpec) -> tuple[float, float, float]:
    top = machine.gpus * machine.max_power_w
    idle = round(top * machine.idle_power, 1)
    return idle, max(idle, machine.power_cap_w), max(idle, min(machine.power_cap_w, TOKEN_POWER * top))


def _power_note(given: bool) -> dict[str, str]:
    if given:
        return {"power": "as given to the command"}
    return {"power": f"assumed: prompts at the cap, tokens {TOKEN_POWER} of maximum, idle as the machine's"}


def _errors(fitted: Fit, kv_bytes_per_token: int) -> dict[str, str]:
    found = {"prompt_error": str(fitted.prompt_quality), "token_error": str(fitted.token_quality)}
    if fitted.mixed_seen:
        found["mixed"] = f"from {fitted.mixed_seen} points: {fitted.mixed_quality}"
    else:
        found["mixed"] = f"assumed: {DEFAULT_MIXED}, no mixed iteration told it"
    if fitted.link is not None:
        found["transfer"] = fitted.link.text(kv_bytes_per_token)
    else:
        found["transfer"] = "not measured: the network is the machine's"
    return found


def as_text(data: dict[str, Any]) -> str:
    """JSON with one line a list."""
    raw = json.dumps(data, indent=2)
    return re.sub(r"\[\s+([^\]]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", raw) + "\n"


def write(path: Path, data: dict[str, Any]) -> Profile:
    """Write a profile file, whole or not at all, once it is known to load.

    Raises:
        ProfileError: the content is no profile, or the place cannot be written.
    """
    found = from_content(data, str(path), path.stem)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(as_text(data))
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise ProfileError(f"{path}: cannot be written ({error.strerror})") from None
    return found
