"""Times of a transformer in PyTorch on the local device, as a profile: `splitgym profile torch`."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch

from agents.torch_model import Transformer
from splitgym.errors import ProfileError
from splitgym.measuring.plan import CONTEXTS, Limits, Plan, Step, make_plan
from splitgym.profile.dense import Dimensions
from splitgym.profile.measured import Fit, Samples, fit
from splitgym.profile.measured_file import content, describe_machine
from splitgym.profile.specs import MachineSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WARM_UPS = 2
GPU_SHARE, CPU_SHARE = 0.9, 0.5
"""Of the memory that weights and cache may take: vLLM's default; half of a machine with other work."""
NOT_VLLM = (
    "plain PyTorch with random weights, not vLLM: no paged cache, no fused kernels but PyTorch's own, no "
    "scheduler and no server around it"
)

Tell = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Device:
    """Where it runs."""

    device: torch.device
    dtype: torch.dtype
    name: str
    memory_bytes: int
    """That weights and cache may take."""

    @classmethod
    def find(cls, device: str = "auto", dtype: str = "auto") -> "Device":
        """The local device.

        Args:
            device: auto (a GPU where there is one), cpu, cuda or cuda:N.
            dtype: auto (bfloat16 on a GPU, float32 on a CPU), or a name of `DTYPES`.

        Raises:
            ProfileError: there is no such device or dtype.
        """
        here = torch.cuda.is_available()
        try:
            found = torch.device(("cuda" if here else "cpu") if device == "auto" else device)
        except RuntimeError:  # PyTorch's own words name all of its kinds
            raise ProfileError(f"device {device}: expected auto, cpu, cuda or cuda:N") from None
        if found.type not in ("cpu", "cuda") or (found.type == "cuda" and not here):
            raise ProfileError(f"device {device}: PyTorch sees {'a GPU' if here else 'only the CPU'}")
        if dtype != "auto" and dtype not in DTYPES:
            raise ProfileError(f"dtype {dtype}: choose one of {', '.join(DTYPES)}")
        kind = DTYPES.get(dtype, torch.bfloat16 if found.type == "cuda" else torch.float32)
        if found.type == "cuda":
            about = torch.cuda.get_device_properties(found)
            return cls(found, kind, about.name, int(GPU_SHARE * about.total_memory))
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        threads = torch.get_num_threads()
        name = f"CPU ({platform.processor() or platform.machine()}), {threads} threads"
        return cls(found, kind, name, int(CPU_SHARE * total))

    def wait(self) -> None:
        """Until the device has done all."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def shape_on(shape: Dimensions, device: Device) -> Dimensions:
    """The shape with the device's bytes a value.

    Raises:
        ProfileError: its weights do not fit.
    """
    found = replace(shape, bytes_per_value=device.dtype.itemsize)
    need = found.parameters * found.bytes_per_value
    if need >= device.memory_bytes:
        raise ProfileError(
            f"{shape.name}: its weights are {need / 1e9:.1f} GB, {device.name} has "
            f"{device.memory_bytes / 1e9:.1f} for weights and cache: take fewer --layers or another device"
        )
    return found


def plan_for(shape: Dimensions, device: Device, limits: Limits, max_model_len: int = 16_384) -> Plan:
    """The steps of `profile measure`, within the device's memory."""
    left = device.memory_bytes - shape.parameters * shape.bytes_per_value
    capacity = left // shape.spec.kv_bytes_per_token
    return make_plan(limits, max_model_len=max_model_len, capacity_tokens=capacity, transfer=False)


def measure(
    shape: Dimensions, device: Device, plan: Plan, tell: Tell = lambda done, total, what: None
) -> tuple[Samples, str]:
    """Time every step: (samples, why it stopped early or "").

    Raises:
        ProfileError: the device's memory is full.
    """
    found = Samples()
    until = time.monotonic() + plan.limits.seconds
    try:
        model = Transformer(shape, device.device, device.dtype)
        for done, step in enumerate(plan.steps):
            tell(done, len(plan.steps), step.name)
            if time.monotonic() > until:
                return found, f"{plan.limits.seconds:g} s are over"
            times = _times(model, device, step, plan.limits.repeats)
            if step.kind == "prompt":
                found.prompt += [((step.tokens, step.batch), t) for t in times]
            elif step.kind == "token":
                found.token += [((step.batch, float(step.batch * step.tokens)), t) for t in times]
            else:
                key = (step.tokens + step.batch, step.batch, float(step.batch * CONTEXTS[0]))
                found.mixed += [(key, t) for t in times]
    except torch.OutOfMemoryError:
        raise ProfileError(
            f"{device.name}: its memory is full at {step.name}: lower --max-prompt or --max-batch"
        ) from None
    return found, ""


def _times(model: Transformer, device: Device, step: Step, repeats: int) -> list[float]:
    """Seconds of so many iterations of a step."""
    prompts = {"prompt": [step.tokens] * step.batch, "token": [], "mixed": [step.tokens]}[step.kind]
    decodes = 0 if step.kind == "prompt" else step.batch
    context = step.tokens if step.kind == "token" else CONTEXTS[0]
    layout = model.layout(prompts, decodes, context)
    ids = torch.randint(model.shape.vocabulary, (sum(prompts) + decodes,), device=device.device)

    def once() -> None:
        model.iteration(ids, layout)

    for _ in range(WARM_UPS):
        once()
    device.wait()
    # As engines do: decodes of one shape are recorded once and replayed.
    run = _graph(once) if device.device.type == "cuda" and step.kind == "token" else once
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        device.wait()
        times.append(time.perf_counter() - began)
    return times


def _graph(once: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    graph.replay()
    return graph.replay


def profile_content(
    shape: Dimensions,
    device: Device,
    samples: Samples,
    *,
    name: str,
    base: MachineSpec | None = None,
    power_w: tuple[float, float, float] | None = None,
) -> tuple[dict[str, Any], Fit]:
    """The profile file and the fit behind it.

    Args:
        shape: what was timed.
        device: where.
        samples: the times.
        name: of the machine type.
        base: published specs of the machine.
        power_w: (idle, prompt, token), where known.

    Raises:
        ProfileError: too little was measured.
    """
    fitted = fit(samples)
    model = shape.spec
    capacity = (device.memory_bytes - model.weights_bytes) // model.kv_bytes_per_token
    machine = describe_machine(
        model,
        fitted,
        gpus=1,
        capacity_tokens=int(capacity),
        kv_bytes_per_token=model.kv_bytes_per_token,
        base=base,
        name=name,
    )
    graphs = "recorded as CUDA graphs" if device.device.type == "cuda" else "without CUDA graphs (no GPU)"
    provenance = {
        "kind": "measured with PyTorch, not with vLLM",
        "source": f"{shape.name}: {NOT_VLLM}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": device.name,
        "versions": f"Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"CUDA {torch.version.cuda}",
        "method": f"splitgym profile torch: {device.dtype}, decodes {graphs}; described in docs/profiles.md",
        "runs": str(len(samples.prompt) + len(samples.token) + len(samples.mixed)),
        "kv_capacity": f"{capacity} tokens, what the device's memory leaves beside the weights",
    }
    facts: dict[str, Any] = {"kv_bytes_per_token": model.kv_bytes_per_token, "power_w": power_w}
    return content(model, machine, fitted, provenance=provenance, **facts), fitted
