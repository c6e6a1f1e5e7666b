"""A profile: what one model costs on one machine type, in seconds, tokens, bytes and watts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from splitgym.errors import ProfileError
from splitgym.profile.specs import MachineSpec, ModelSpec
from splitgym.profile.tables import TICK_BITS, ProfileTables, mixed_time_ns, prompt_time_ns, token_time_ns
from splitgym.types import NS_PER_S

MAX_BATCH = 512
"""Batch sizes up to here have their own entry in the tables; beyond, the last difference continues."""


@dataclass(frozen=True)
class Curve:
    """A piecewise linear curve by knots, constant outside them."""

    x: tuple[int, ...]
    y: tuple[float, ...]

    def __call__(self, x: float) -> float:
        """Value at `x`."""
        return float(np.interp(x, self.x, self.y))


@dataclass(frozen=True)
class Profile:
    """One model on one machine type. Make with `load`, `load_file` or `roofline`.

    Times are kept as the integers that the engines use: `prompt_time` and `token_time` return the engines'
    own nanoseconds, as seconds.
    """

    model: ModelSpec
    machine: MachineSpec
    """The part of the machine that holds the model: `tensor_parallel` GPUs with their share of all else."""
    tensor_parallel: int
    prompt_tokens: tuple[int, ...]
    """Knots of the prompt curve, ascending."""
    prompt_ns: tuple[int, ...]
    token_batch: tuple[int, ...]
    """Knots of the token curves by batch size, ascending; linear in between and beyond."""
    token_base: tuple[int, ...]
    """Ticks (2**-16 ns) of a token iteration at context 0, by `token_batch`."""
    token_slope: tuple[int, ...]
    """Ticks per context token of the whole batch, by `token_batch`."""
    kv_bytes_per_token: int
    prompt_power: Curve
    """Machine power [W] in a prompt iteration, by batch tokens."""
    token_power: Curve
    """Machine power [W] in a token iteration, by batch size."""
    idle_power_w: float
    mixed_factor: float = 1.1
    """A batch of prompts and token tasks costs the prompt time of all its tokens times this, or what its
    token tasks alone cost where that is more."""
    name: str = field(default="", compare=False)
    provenance: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Where the numbers come from, and how far they can be trusted."""

    def __post_init__(self) -> None:
        if self.kv_capacity_tokens < 1:
            raise ProfileError(
                f"{self.model.name} does not fit {self.tensor_parallel} GPUs of {self.machine.name}: "
                f"weights are {self.model.weights_bytes:,} bytes, memory is {self.machine.memory_bytes:,}; "
                "use more GPUs"
            )
        if min(_every_batch(self.token_batch, self.token_base)) < 1:
            raise ProfileError("token.seconds falls to 0 or below within 512 tasks: check its knots")

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens of KV cache that fit beside the weights."""
        return (self.machine.memory_bytes - self.model.weights_bytes) // self.kv_bytes_per_token

    @cached_property
    def tables(self) -> ProfileTables:
        """This profile alone, as row 0."""
        return stack_tables([self])

    def prompt_time(self, batch_tokens: int) -> float:
        """Time of a prompt iteration over `batch_tokens` tokens in all, at least 1 [s]."""
        return int(prompt_time_ns(self.tables, 0, _positive(batch_tokens, "batch_tokens"))) / NS_PER_S

    def token_time(self, batch_size: int, context_tokens: int) -> float:
        """Time of a token iteration [s].

        Args:
            batch_size: tasks in the batch, at least 1.
            context_tokens: prompt and generated tokens of the whole batch (the sum over its tasks).
        """
        if context_tokens < 0:
            raise ProfileError(f"context_tokens is {context_tokens}: it must be at least 0")
        ns = token_time_ns(self.tables, 0, _positive(batch_size, "batch_size"), int(context_tokens))
        return int(ns) / NS_PER_S

    def mixed_time(self, batch_tokens: int, batch_size: int = 1, context_tokens: int = 0) -> float:
        """Time of an iteration with prompts and token tasks [s].

        Args:
            batch_tokens: prompt tokens and one token a token task, at least 1.
            batch_size: token tasks, at least 1.
            context_tokens: prompt and generated tokens of the token tasks.
        """
        tokens, tasks = _positive(batch_tokens, "batch_tokens"), _positive(batch_size, "batch_size")
        if context_tokens < 0:
            raise ProfileError(f"context_tokens is {context_tokens}: it must be at least 0")
        return int(mixed_time_ns(self.tables, 0, tokens, tasks, int(context_tokens))) / NS_PER_S

    def prompt_power_w(self, batch_tokens: int) -> float:
        """Machine power in a prompt iteration [W]."""
        return self.prompt_power(batch_tokens)

    def token_power_w(self, batch_size: int) -> float:
        """Machine power in a token iteration [W]."""
        return self.token_power(batch_size)


def stack_tables(rows: Sequence[Profile]) -> ProfileTables:
    """Tables of several profiles; row k is `rows[k]`.

    Raises:
        ProfileError: no rows, or profiles of different models.
    """
    if not rows:
        raise ProfileError("no profile to stack")
    if len({row.model.name for row in rows}) > 1:
        raise ProfileError(f"profiles of different models: {', '.join(row.model.name for row in rows)}")
    width = max(len(row.prompt_tokens) for row in rows)
    return ProfileTables(
        prompt_tokens=_padded([row.prompt_tokens for row in rows], width),
        prompt_ns=_padded([row.prompt_ns for row in rows], width),
        prompt_knots=np.array([len(row.prompt_tokens) for row in rows], np.int64),
        token_base=np.array([_every_batch(row.token_batch, row.token_base) for row in rows], np.int64),
        token_slope=np.array([_every_batch(row.token_batch, row.token_slope) for row in rows], np.int64),
        mixed_factor=np.array([row.mixed_factor for row in rows], np.float64),
    )


def seconds_to_ticks(seconds: float) -> int:
    """Seconds to the nearest tick."""
    return round(seconds * NS_PER_S * (1 << TICK_BITS))


def _padded(rows: list[tuple[int, ...]], width: int) -> NDArray[np.int64]:
    return np.array([row + (row[-1],) * (width - len(row)) for row in rows], np.int64)


def _every_batch(knots: tuple[int, ...], values: tuple[int, ...]) -> list[int]:
    """(MAX_BATCH + 1,) values by batch size, linear between knots and beyond, in integers; 0 has 1's."""
    out = []
    high = 1
    for batch in range(1, MAX_BATCH + 1):
        while high < len(knots) - 1 and knots[high] < batch:
            high += 1
        if len(knots) == 1:
            out.append(values[0])
            continue
        x0, x1 = knots[high - 1], knots[high]
        y0, y1 = values[high - 1], values[high]
        out.append(y0 + (y1 - y0) * (batch - x0) // (x1 - x0))
    return [out[0], *out]


def _positive(value: int, name: str) -> int:
    if value < 1:
        raise ProfileError(f"{name} is {value}: it must be at least 1")
    return int(value)
