"""Throughput, memory and power of the prompt and of the token phase, and power over time, as arrays."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym import schedulers
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, MachineGroup
from splitgym.errors import ProfileError
from splitgym.profile import Profile
from splitgym.profile.profile import MAX_BATCH
from splitgym.sim import make_engine
from splitgym.slo import reference_times_s
from splitgym.trace import Trace
from splitgym.types import NS_PER_S

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CONTEXT_TOKENS = 1149
"""Median prompt and output of the Azure 2023 conversation trace: 1,020 + 129 tokens."""
THREE_REQUESTS = ((512, 128), (1024, 128), (2048, 128))
"""Prompt and output tokens of the requests whose power is drawn over time."""


@dataclass(frozen=True)
class PowerOverTime:
    """Machine power as steps: `watts[i]`, whole as in the engines, from `edges_s[i]` to `edges_s[i + 1]`."""

    edges_s: Floats  # (S + 1,)
    watts: Floats  # (S,)
    phase: tuple[str, ...]  # (S,) prompt, token or idle
    energy_j: float
    """The engine's own account of the run; the area under the steps."""
    requests: tuple[tuple[int, int], ...]
    """Prompt and output tokens of each."""


@dataclass(frozen=True)
class Characterization:
    """Both phases of one profile. Make with `characterize`."""

    profile: Profile
    context_tokens: int
    """Context of each task in a token batch."""
    prompt_tokens: Ints  # (K,) tokens of a prompt batch
    batch: Ints  # (B,) tasks of a token batch, from 1 to what memory holds

    @property
    def label(self) -> str:
        """Model, GPUs and machine."""
        p = self.profile
        return f"{p.model.name} on {p.tensor_parallel} x {p.machine.name}"

    @cached_property
    def prompt_s(self) -> Floats:
        """(K,) time of a prompt iteration."""
        return np.array([self.profile.prompt_time(int(n)) for n in self.prompt_tokens])

    @cached_property
    def token_s(self) -> Floats:
        """(B,) time of a token iteration, which is the time between tokens."""
        return np.array([self.profile.token_time(int(b), int(b) * self.context_tokens) for b in self.batch])

    @cached_property
    def prompt_tokens_per_s(self) -> Floats:
        """(K,) prompt throughput."""
        return self.prompt_tokens / self.prompt_s

    @cached_property
    def tokens_per_s(self) -> Floats:
        """(B,) token throughput."""
        return self.batch / self.token_s

    @cached_property
    def prompt_memory_bytes(self) -> Ints:
        """(K,) weights and the KV cache of the batch."""
        return self.profile.model.weights_bytes + self.prompt_tokens * self.profile.kv_bytes_per_token

    @cached_property
    def token_memory_bytes(self) -> Ints:
        """(B,) weights and the KV cache of every task's context."""
        kv = self.batch * (self.context_tokens * self.profile.kv_bytes_per_token)
        return self.profile.model.weights_bytes + kv

    @cached_property
    def prompt_power_w(self) -> Floats:
        """(K,) machine power in a prompt iteration."""
        return np.array([self.profile.prompt_power_w(int(n)) for n in self.prompt_tokens])

    @cached_property
    def token_power_w(self) -> Floats:
        """(B,) machine power in a token iteration."""
        return np.array([self.profile.token_power_w(int(b)) for b in self.batch])

    @property
    def max_power_w(self) -> float:
        """Published maximum of the GPUs."""
        return self.profile.machine.gpus * self.profile.machine.max_power_w

    @property
    def peak(self) -> tuple[int, float]:
        """Batch tokens of the greatest prompt throughput, and that throughput [tokens/s]."""
        best = int(self.prompt_tokens_per_s.argmax())
        return int(self.prompt_tokens[best]), float(self.prompt_tokens_per_s[best])

    @property
    def last_batch(self) -> int:
        """Largest token batch that the profile gives by a knot (for a fitted one: that was measured)."""
        return min(int(self.batch[-1]), self.profile.token_batch[-1])

    @cached_property
    def power_over_time(self) -> PowerOverTime:
        """`THREE_REQUESTS`, one after the other, on one machine that does both phases."""
        return simulate_power(self.profile, THREE_REQUESTS)


def characterize(profile: Profile, context_tokens: int = CONTEXT_TOKENS) -> Characterization:
    """Both phases of a profile.

    Args:
        profile: any, measured or roofline.
        context_tokens: context of each task in a token batch.

    Raises:
        ProfileError: not even one task of that context fits the memory.
    """
    capacity = profile.kv_capacity_tokens
    if not 1 <= context_tokens <= capacity:
        raise ProfileError(
            f"context {context_tokens}: a task must have 1 to {capacity} tokens "
            f"on {profile.name or 'this profile'}"
        )
    least, most = profile.prompt_tokens[0], min(profile.prompt_tokens[-1], capacity)
    grid = {int(n) for n in np.geomspace(max(1, least), most, 97).round()}
    knots = {n for n in profile.prompt_tokens if 1 <= n <= most}
    return Characterization(
        profile=profile,
        context_tokens=context_tokens,
        prompt_tokens=np.array(sorted(grid | knots), np.int64),
        batch=np.arange(1, min(MAX_BATCH, capacity // context_tokens) + 1),
    )


def simulate_power(
    profile: Profile, requests: tuple[tuple[int, int], ...], pause_s: float = 0.5
) -> PowerOverTime:
    """Power of one machine that serves requests one after the other, by the engine.

    Args:
        profile: of the machine.
        requests: (prompt tokens, output tokens) of each.
        pause_s: idle time before each, at least 0.
    """
    prompts, outputs = (np.array(column, np.int64) for column in zip(*requests))
    e2e = reference_times_s(profile.tables, prompts, outputs)[2]
    arrivals = np.cumsum(pause_s + np.concatenate([[0.0], e2e[:-1]]))
    group = MachineGroup(tensor_parallel=profile.tensor_parallel)
    cluster = Cluster(ClusterConfig(machines=(group,)), (profile, profile), np.array([1]))
    engine = make_engine(cluster, schedulers.routing("round-robin"), schedulers.sizing("static"))
    engine.reset(Trace(arrivals, prompts, outputs, name="one after the other"))
    engine.run_until_decision()
    out = engine.outcomes()
    edges, watts, phases = [0], [], []
    for i, tokens in enumerate(prompts):
        for until, power, phase in (
            (out.prompt_start_ns[i], profile.idle_power_w, "idle"),
            (out.prompt_end_ns[i], profile.prompt_power_w(int(tokens)), "prompt"),
            (out.finish_ns[i], profile.token_power_w(1), "token"),
        ):
            edges.append(int(until))
            watts.append(round(power))
            phases.append(phase)
    return PowerOverTime(
        np.array(edges) / NS_PER_S, np.array(watts), tuple(phases), float(out.energy_j.sum()), requests
    )


def facts(c: Characterization) -> list[dict[str, Any]]:
    """The figures in numbers: one row each with `what`, `value` and `unit`."""
    p, (tokens, speed) = c.profile, c.peak
    last = c.last_batch
    rows: list[tuple[str, float, str]] = [
        ("prompt throughput, peak", speed, "tokens/s"),
        ("prompt throughput, peak at", tokens, "tokens"),
        ("token throughput, batch 1", float(c.tokens_per_s[0]), "tokens/s"),
        (f"token throughput, batch {last}", float(c.tokens_per_s[last - 1]), "tokens/s"),
        (f"time between tokens, batch {last} to batch 1", float(c.token_s[last - 1] / c.token_s[0]), "x"),
        (
            "time of 1,500 prompt tokens, in output tokens",
            p.prompt_time(1500) / float(c.token_s[0]),
            "tokens",
        ),
        ("weights", p.model.weights_bytes / 1e9, "GB"),
        ("memory", p.machine.memory_bytes / 1e9, "GB"),
        ("KV cache of a token", p.kv_bytes_per_token / 1e6, "MB"),
        (
            f"tasks of {c.context_tokens:,} tokens that memory holds",
            p.kv_capacity_tokens // c.context_tokens,
            "tasks",
        ),
        ("prompt power, 512 tokens, of maximum", 100 * p.prompt_power_w(512) / c.max_power_w, "%"),
        ("prompt power, 2,048 tokens, of maximum", 100 * p.prompt_power_w(2048) / c.max_power_w, "%"),
        ("token power, batch 1, of maximum", 100 * p.token_power_w(1) / c.max_power_w, "%"),
        (f"token power, batch {last}, of maximum", 100 * p.token_power_w(last) / c.max_power_w, "%"),
        ("energy of the three requests", c.power_over_time.energy_j / 1e3, "kJ"),
    ]
    return [{"what": what, "value": value, "unit": unit} for what, value, unit in rows]
