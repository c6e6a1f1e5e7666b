"""Read profiles: by (model, machine type, GPUs) from the shipped ones, or any file of the same format."""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from splitgym.config import STRICT
from splitgym.errors import ProfileError
from splitgym.profile.profile import Curve, Profile, seconds_to_ticks
from splitgym.profile.roofline import ROOFLINE_SUFFIX, roofline
from splitgym.profile.specs import MachineSpec, ModelSpec, build, machines, models, read_mapping
from splitgym.resources import shipped
from splitgym.types import to_ns

SUFFIXES = (".json", ".yaml", ".yml")
"""A machine type that ends in one of these is the path of a profile file."""


def _check_knots(what: str, x: tuple[int, ...], curves: dict[str, tuple[float, ...]], least: int) -> None:
    """Raise ValueError unless the knots make a curve."""
    if len(x) < least:
        raise ValueError(f"{what} has {len(x)} knots: give at least {least}")
    if x[0] < 1 or any(a >= b for a, b in pairwise(x)):
        raise ValueError(f"{what} must be ascending integers from 1 on")
    for name, y in curves.items():
        if len(y) != len(x):
            raise ValueError(f"{name} has {len(y)} values for {len(x)} knots in {what}")
        if not all(math.isfinite(v) and v >= 0 for v in y):
            raise ValueError(f"{name} must be finite and not negative")


def _check_rising(where: str, what: str, x: tuple[int, ...], y: tuple[float, ...]) -> None:
    """Raise ValueError where a curve decreases."""
    for (x0, y0), (x1, y1) in pairwise(zip(x, y, strict=True)):
        if y0 > y1:
            raise ValueError(f"{where} decreases from {y0:g} at {what} {x0} to {y1:g} at {x1}")


@dataclass(frozen=True, config=STRICT)
class PromptCurve:
    """Time of a prompt iteration by the tokens of the batch: linear between knots and beyond."""

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]

    @model_validator(mode="after")
    def _check(self) -> "PromptCurve":
        _check_knots("tokens", self.tokens, {"seconds": self.seconds}, least=2)
        if self.seconds[0] <= 0:
            raise ValueError("seconds must be positive")
        return self


@dataclass(frozen=True, config=STRICT)
class TokenCurve:
    """Time of a token iteration: seconds(batch) + seconds_per_context_token(batch) x context of the batch."""

    batch: tuple[int, ...]
    seconds: tuple[float, ...]
    seconds_per_context_token: tuple[float, ...] | float = 0.0
    """By `batch`, or one number for all."""

    @model_validator(mode="after")
    def _check(self) -> "TokenCurve":
        curves = {"seconds": self.seconds, "seconds_per_context_token": self.slopes}
        _check_knots("batch", self.batch, curves, least=1)
        if self.seconds[0] <= 0:
            raise ValueError("seconds must be positive")
        return self

    @property
    def slopes(self) -> tuple[float, ...]:
        slope = self.seconds_per_context_token
        return slope if isinstance(slope, tuple) else (slope,) * len(self.batch)


@dataclass(frozen=True, config=STRICT)
class PowerCurve:
    """Power of the machine's GPUs by phase [W]."""

    idle_w: float
    prompt_tokens: tuple[int, ...]
    prompt_w: tuple[float, ...]
    token_batch: tuple[int, ...]
    token_w: tuple[float, ...]

    @model_validator(mode="after")
    def _check(self) -> "PowerCurve":
        _check_knots("prompt_tokens", self.prompt_tokens, {"prompt_w": self.prompt_w}, least=1)
        _check_knots("token_batch", self.token_batch, {"token_w": self.token_w}, least=1)
        if not 0 <= self.idle_w < math.inf:
            raise ValueError(f"idle_w is {self.idle_w:g}: it must be at least 0")
        _check_rising("prompt_w", "prompt_tokens", self.prompt_tokens, self.prompt_w)
        _check_rising("token_w", "token_batch", self.token_batch, self.token_w)
        if min(self.prompt_w[0], self.token_w[0]) < self.idle_w:
            raise ValueError("prompt_w and token_w must not be below idle_w")
        return self


@dataclass(frozen=True, config=STRICT)
class ProfileFile:
    """What a profile file holds."""

    model: str | ModelSpec
    """A name in models.yaml, or the model's dimensions."""
    machine: str | MachineSpec
    """A name in machines.yaml, or the machine's specs."""
    tensor_parallel: int
    prompt: PromptCurve
    token: TokenCurve
    power: PowerCurve
    provenance: dict[str, str]
    mixed_factor: float = Field(default=1.1, ge=1)
    kv_bytes_per_token: int | None = Field(default=None, ge=1)
    """Replaces what follows from the model's dimensions."""
    raw_tables: bool = False
    """Take the times as they are: they may decrease and the batches may begin above 1 (extrapolated down).
    For tables of other simulators; a fitted profile never needs it."""

    @model_validator(mode="after")
    def _check(self) -> "ProfileFile":
        if self.raw_tables:
            return self
        _check_rising("prompt.seconds", "tokens", self.prompt.tokens, self.prompt.seconds)
        _check_rising("token.seconds", "batch", self.token.batch, self.token.seconds)
        _check_rising("token.seconds_per_context_token", "batch", self.token.batch, self.token.slopes)
        if self.token.batch[0] != 1:
            raise ValueError(f"token.batch begins at {self.token.batch[0]}: it must begin at 1")
        return self


def load(model: str, machine: str, tensor_parallel: int = 8) -> Profile:
    """The profile of a model on some GPUs of a machine type.

    A measured machine type is found in the shipped files. A machine type that nobody measured (and any, with
    `-roofline` after its name) gets a roofline profile, which says so in its provenance.

    Args:
        model: a name of `model_names()`.
        machine: a name of `machine_names()`, or the path of a profile file.
        tensor_parallel: GPUs that hold the model.

    Raises:
        ProfileError: unknown names, no measurement, or the model does not fit.
    """
    if machine.endswith(SUFFIXES):
        found = load_file(machine)
        if (found.model.name, found.tensor_parallel) != (model, tensor_parallel):
            raise ProfileError(
                f"{machine}: is for {found.model.name} on {found.tensor_parallel} GPUs, "
                f"not for {model} on {tensor_parallel}"
            )
        return found
    known_models, known_machines = models(), machines()
    if model not in known_models:
        choices = ", ".join(known_models)
        raise ProfileError(f"unknown model {model!r}: choose one of {choices}, or a profile file")
    base = machine.removesuffix(ROOFLINE_SUFFIX)
    if base not in known_machines:
        raise ProfileError(
            f"unknown machine type {machine!r}: choose one of {', '.join(known_machines)}, or a profile file"
        )
    part = known_machines[base].part(tensor_parallel)
    path = _path(model, machine, tensor_parallel)
    if path.is_file():
        return load_file(path)
    if machine != base or not _measured(machine):
        return roofline(known_models[model], part)
    if part.memory_bytes <= known_models[model].weights_bytes:
        return roofline(known_models[model], part)  # raises: does not fit
    measured = ", ".join(n for n in names() if n.startswith(f"{model}_{machine}_tp"))
    raise ProfileError(
        f"{model} was not measured on {tensor_parallel} GPUs of {machine} (measured: {measured or 'none'}); "
        f"name the machine {machine}{ROOFLINE_SUFFIX} for a roofline model of it"
    )


def find(text: str) -> Profile:
    """A profile by MODEL/MACHINE, MODEL/MACHINE/tpN, a shipped file's name, or the path of a profile file.

    Raises:
        ProfileError: nothing of that name, or another form.
    """
    if text.endswith(SUFFIXES):
        return load_file(text)
    parts = text.rsplit("_", 2) if text in names() else text.split("/")
    gpus = parts[2].removeprefix("tp") if len(parts) == 3 else "8"
    if len(parts) not in (2, 3) or not gpus.isdigit():
        raise ProfileError(
            f"profile {text!r}: write MODEL/MACHINE such as bloom-176b/h100-80gb, MODEL/MACHINE/tp4, "
            "or the path of a profile file"
        )
    return load(parts[0], parts[1], int(gpus))


def load_file(path: str | Path) -> Profile:
    """A profile from a JSON or YAML file (format: profiles/README.md).

    Raises:
        ProfileError: the file cannot be read, lacks a curve, has one that decreases, or its model does not
            fit; names file and field.
    """
    path = Path(path)
    return from_content(read_mapping(path), str(path), path.stem)


def from_content(data: Mapping[str, Any], where: str, name: str = "") -> Profile:
    """A profile from the content of a profile file.

    Args:
        data: as in a file (profiles/README.md).
        where: what to call the source in an error.
        name: name of the profile.

    Raises:
        ProfileError: see `load_file`.
    """
    for key in ("prompt", "token", "power"):
        if data.get(key) is None:
            raise ProfileError(f"{where}: {key}: the {key} curve is missing")
    content = build(ProfileFile, dict(data), where)
    try:
        model = _spec(content.model, models(), "model")
        machine = _spec(content.machine, machines(), "machine").part(content.tensor_parallel)
        return Profile(
            model=model,
            machine=machine,
            tensor_parallel=content.tensor_parallel,
            prompt_tokens=content.prompt.tokens,
            prompt_ns=tuple(to_ns(s) for s in content.prompt.seconds),
            token_batch=content.token.batch,
            token_base=tuple(seconds_to_ticks(s) for s in content.token.seconds),
            token_slope=tuple(seconds_to_ticks(s) for s in content.token.slopes),
            kv_bytes_per_token=content.kv_bytes_per_token or model.kv_bytes_per_token,
            prompt_power=Curve(content.power.prompt_tokens, content.power.prompt_w),
            token_power=Curve(content.power.token_batch, content.power.token_w),
            idle_power_w=content.power.idle_w,
            mixed_factor=content.mixed_factor,
            name=name,
            provenance=content.provenance,
        )
    except ProfileError as error:
        raise ProfileError(f"{where}: {error}") from None


def names() -> list[str]:
    """Shipped profiles, as MODEL_MACHINE_tpN."""
    return sorted(p.stem for p in shipped("profiles").glob("*_*_tp*.json"))


def model_names() -> list[str]:
    """Models with known dimensions."""
    return list(models())


def machine_names() -> list[str]:
    """Machine types with known specs. Add `-roofline` to a measured one for its roofline model."""
    return list(machines())


def _path(model: str, machine: str, tensor_parallel: int) -> Path:
    return shipped("profiles") / f"{model}_{machine}_tp{tensor_parallel}.json"


def _measured(machine: str) -> bool:
    return any(f"_{machine}_tp" in name for name in names())


def _spec(given: Any, known: dict[str, Any], what: str) -> Any:
    if not isinstance(given, str):
        return given
    if given not in known:
        choices = ", ".join(known)
        raise ProfileError(f"{what}: unknown name {given!r}: choose one of {choices}, or give its specs")
    return known[given]
