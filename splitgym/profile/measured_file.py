"""What was measured as a profile file: the machine, the curves, the errors."""

import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from splitgym.config import to_mapping
from splitgym.errors import ProfileError
from splitgym.profile.load import from_content
from splitgym.profile.measured import DEFAULT_MIXED, Fit
from splitgym.profile.profile import Profile
from splitgym.profile.roofline import flops_per_token
from splitgym.profile.specs import MachineSpec, ModelSpec, models

TOKEN_POWER = 0.65


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
