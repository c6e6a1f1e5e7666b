"""What one machine type is to another: by published numbers, by phase, and for one request."""

from dataclasses import dataclass

import numpy as np

from splitgym.evaluation.characterize.phases import Characterization
from splitgym.profile import Profile
from splitgym.slo import reference_times_s

TYPICAL_REQUESTS = {"code": (1469, 13), "conversation": (1020, 129)}
"""Median prompt and output of the Azure 2023 traces."""
FORMED_TOKENS = 2048
"""The paper's machines batch prompts up to here."""
EQUAL = 0.03
"""Ratios within this of 1 name no better machine: the profiles are not more precise."""


@dataclass(frozen=True)
class Ratio:
    """One row of a comparison: this machine over the other."""

    what: str
    this: float
    other: float
    unit: str
    higher_is_better: bool | None = None
    """None where neither is better by itself."""

    @property
    def ratio(self) -> float:
        return self.this / self.other if self.other else float("nan")

    def better(self, this: str, other: str) -> str:
        """Name of the better machine, "equal" within 3 %, or "" where that has no meaning."""
        if self.higher_is_better is None or np.isnan(self.ratio):
            return ""
        if abs(self.ratio - 1) <= EQUAL:
            return "equal"
        return this if (self.ratio > 1) == self.higher_is_better else other


def compare_specs(this: Profile, other: Profile) -> list[Ratio]:
    """What the machines' published numbers say (the paper's table 1, and more)."""
    pairs = (
        ("cost", "cost_per_hour", "relative units/h", 1.0),
        ("maximum power", "power_cap_w", "W", 1.0),
        ("power to provision", "provisioned_power", "relative units", 1.0),
        ("TFLOP/s, fp32 without tensor cores", "simt_flops_per_s", "TFLOP/s a GPU", 1e-12),
        ("TFLOP/s, dense fp16 tensor", "peak_flops_per_s", "TFLOP/s a GPU", 1e-12),
        ("HBM capacity", "memory_bytes", "GB", 1e-9),
        ("HBM bandwidth", "bandwidth_bytes_per_s", "GB/s a GPU", 1e-9),
        ("network", "network_bytes_per_s", "GB/s", 1e-9),
    )
    a, b = this.machine, other.machine
    rows = [
        Ratio(what, getattr(a, name) * scale, getattr(b, name) * scale, unit)
        for what, name, unit, scale in pairs
    ]
    for what, name, scale in (
        ("prompt: fp32 TFLOP/s", "simt_flops_per_s", 1e-12),
        ("prompt: tensor TFLOP/s", "peak_flops_per_s", 1e-12),
        ("token: HBM GB/s", "bandwidth_bytes_per_s", 1e-9),
    ):
        for per, divisor, unit in (
            ("cost", "cost_per_hour", "1/unit"),
            ("maximum power", "power_cap_w", "1/W"),
        ):
            if getattr(a, divisor) and getattr(b, divisor):
                x, y = (m.gpus * getattr(m, name) * scale / getattr(m, divisor) for m in (a, b))
                rows.append(Ratio(f"{what} per {per}", x, y, unit, higher_is_better=True))
    return rows


def compare_phases(this: Characterization, other: Characterization) -> list[Ratio]:
    """Throughput of each phase per cost, per power drawn and per power to provision.

    Prompts in batches of 2,048 tokens; tokens at batch 1 and at the largest batch that both profiles hold
    and give by a knot.
    """
    batch = min(this.last_batch, other.last_batch)
    rows = []
    for phase, size in (("prompt", FORMED_TOKENS), ("token", 1), ("token", batch)):
        speed, power = zip(*(_phase(c, phase, size) for c in (this, other)))
        unit = "tokens" if phase == "prompt" else "task" if size == 1 else "tasks"
        name = f"{phase}, batch of {size:,} {unit}"
        for per, divisors, unit in (
            ("", (1.0, 1.0), "tokens/s"),
            (" per cost", [c.profile.machine.cost_per_hour / 3600 for c in (this, other)], "tokens/unit"),
            (" per energy", power, "tokens/J"),
            (
                " per power to provision",
                [c.profile.machine.provisioned_power for c in (this, other)],
                "tokens/s/unit",
            ),
        ):
            if all(divisors):
                rows.append(
                    Ratio(
                        name + per,
                        speed[0] / divisors[0],
                        speed[1] / divisors[1],
                        unit,
                        higher_is_better=True,
                    )
                )
    return rows


def _phase(c: Characterization, phase: str, size: int) -> tuple[float, float]:
    """Throughput [tokens/s] and power [W] of a batch."""
    p = c.profile
    if phase == "prompt":
        return size / p.prompt_time(size), p.prompt_power_w(size)
    return size / p.token_time(size, size * c.context_tokens), p.token_power_w(size)


def alone(profile: Profile, prompt_tokens: int, output_tokens: int) -> dict[str, float]:
    """One request alone: TTFT, TBT and E2E [s], cost [relative units], energy [J]."""
    sizes = (np.array([prompt_tokens]), np.array([output_tokens]))
    ttft, tbt, e2e = (float(t[0]) for t in reference_times_s(profile.tables, *sizes))
    energy = ttft * profile.prompt_power_w(prompt_tokens) + (e2e - ttft) * profile.token_power_w(1)
    cost = profile.machine.cost_per_hour * e2e / 3600
    return {"ttft_s": ttft, "tbt_s": tbt, "e2e_s": e2e, "cost": cost, "energy_j": energy}


def compare_requests(this: Profile, other: Profile) -> list[Ratio]:
    """`TYPICAL_REQUESTS` alone on either machine (the paper's table 4)."""
    rows = []
    for name, sizes in TYPICAL_REQUESTS.items():
        a, b = alone(this, *sizes), alone(other, *sizes)
        label = f"{name} ({sizes[0]:,} + {sizes[1]})"
        for key, what, unit, scale in (
            ("ttft_s", "TTFT", "ms", 1e3),
            ("tbt_s", "TBT", "ms", 1e3),
            ("e2e_s", "E2E", "ms", 1e3),
            ("cost", "cost", "10^-3 units", 1e3),
            ("energy_j", "energy", "Wh", 1 / 3600),
        ):
            if b[key]:
                rows.append(
                    Ratio(f"{label}: {what}", a[key] * scale, b[key] * scale, unit, higher_is_better=False)
                )
    return rows
