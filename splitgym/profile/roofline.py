"""A profile from published numbers alone: a model, not a measurement."""

from dataclasses import dataclass

from splitgym.profile.profile import Curve, Profile, seconds_to_ticks
from splitgym.profile.specs import MachineSpec, ModelSpec
from splitgym.types import to_ns

ROOFLINE_SUFFIX = "-roofline"
PROVENANCE = "a model, not a measurement"


@dataclass(frozen=True)
class Efficiency:
    """How much of the published peaks an inference engine reaches. Assumed, not measured."""

    compute: float = 0.5
    """Share of peak FLOP/s in a prompt iteration."""
    memory: float = 0.6
    """Share of peak memory bandwidth in a token iteration."""
    layer_overhead_s: float = 50e-6
    """Fixed time of a layer: kernel launches and the two all-reduces of tensor parallelism."""


def flops_per_token(model: ModelSpec) -> float:
    """FLOPs of one token without attention: two for each weight."""
    return 2.0 * model.parameters


def attention_flops(model: ModelSpec, tokens: int) -> float:
    """FLOPs of causal attention over one prompt: in each layer half of 4 x tokens^2 x width."""
    return 2.0 * model.layers * model.heads * model.head_dim * float(tokens) ** 2


def prompt_seconds(model: ModelSpec, machine: MachineSpec, tokens: int, efficiency: Efficiency) -> float:
    """Time of one prompt [s]: the larger of its compute and reading the weights, plus overhead."""
    flops = flops_per_token(model) * tokens + attention_flops(model, tokens)
    compute = flops / (machine.gpus * machine.peak_flops_per_s * efficiency.compute)
    read = model.weights_bytes / (machine.gpus * machine.bandwidth_bytes_per_s * efficiency.memory)
    return max(compute, read) + model.layers * efficiency.layer_overhead_s


def token_seconds(
    model: ModelSpec, machine: MachineSpec, batch: int, context: int, efficiency: Efficiency
) -> float:
    """Time of a token iteration [s]; `context` is the sum over the batch."""
    compute = flops_per_token(model) * batch / (machine.gpus * machine.peak_flops_per_s * efficiency.compute)
    read = model.weights_bytes / (machine.gpus * machine.bandwidth_bytes_per_s * efficiency.memory)
    return (
        max(compute, read)
        + model.layers * efficiency.layer_overhead_s
        + context * context_seconds(model, machine, efficiency)
    )


def context_seconds(model: ModelSpec, machine: MachineSpec, efficiency: Efficiency) -> float:
    """Time of reading one token's keys and values [s]."""
    return model.kv_bytes_per_token / (machine.gpus * machine.bandwidth_bytes_per_s * efficiency.memory)


def roofline(
    model: ModelSpec,
    machine: MachineSpec,
    efficiency: Efficiency | None = None,
) -> Profile:
    """A profile of a dense transformer from its dimensions and the machine's published peaks.

    A prompt costs the larger of its FLOPs over the peak and the weights over the bandwidth; a token iteration
    reads the weights once and every task's keys and values (Williams et al. 2009; Pope et al. 2022).

    Args:
        model: the transformer.
        machine: all GPUs of it hold the model; use `MachineSpec.part` for fewer.
        efficiency: shares of the peaks; the default is documented in docs/profiles.md.

    Raises:
        ProfileError: the model does not fit.
    """
    e = efficiency or Efficiency()
    tokens = tuple(128 * k for k in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256))
    batch = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
    slope = seconds_to_ticks(context_seconds(model, machine, e))
    top = machine.power_cap_w
    idle = machine.gpus * machine.max_power_w * machine.idle_power
    return Profile(
        model=model,
        machine=machine,
        tensor_parallel=machine.gpus,
        prompt_tokens=tokens,
        prompt_ns=tuple(to_ns(prompt_seconds(model, machine, n, e)) for n in tokens),
        token_batch=batch,
        token_base=tuple(seconds_to_ticks(token_seconds(model, machine, b, 0, e)) for b in batch),
        token_slope=(slope,) * len(batch),
        kv_bytes_per_token=model.kv_bytes_per_token,
        prompt_power=Curve((1,), (top,)),
        token_power=Curve((1,), (max(idle, min(top, 0.65 * machine.gpus * machine.max_power_w)),)),
        idle_power_w=idle,
        name=f"{model.name}_{machine.name}{ROOFLINE_SUFFIX}_tp{machine.gpus}",
        provenance={
            "kind": PROVENANCE,
            "method": f"roofline: {e.compute:g} of peak FLOP/s, {e.memory:g} of peak bandwidth, "
            f"{e.layer_overhead_s * 1e6:g} us a layer",
            "machine": machine.source,
            "model": model.source,
            "assumed": f"{machine.assumed}; the efficiencies; prompt power at the cap, token power 0.65 of "
            "maximum or the cap",
        },
    )
