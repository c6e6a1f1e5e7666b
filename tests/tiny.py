"""A cluster whose times can be worked out by hand: 1 ms a prompt token, 10 ms a token iteration.

A token iteration costs 10 ms whatever the batch; a KV token is 1,024 bytes; a NIC carries 1,024,000 bytes/s
(one token a millisecond) unless told otherwise.
"""

import numpy as np

from splitgym.cluster import Cluster
from splitgym.config import (
    BatchingConfig,
    ClusterConfig,
    MachineGroup,
    SloConfig,
    TransferConfig,
    VllmBatchingConfig,
)
from splitgym.profile import Profile
from splitgym.profile.profile import Curve, seconds_to_ticks
from splitgym.profile.specs import MachineSpec, ModelSpec
from splitgym.trace import Trace

MS = 1_000_000
KV_BYTES = 1_024
MODEL = ModelSpec(
    name="tiny", layers=1, hidden=1, heads=1, kv_heads=1, head_dim=1, weights_bytes=KV_BYTES, source="made up"
)


def tiny_profile(
    capacity: int = 100_000,
    nic_tokens_per_ms: float = 1.0,
    constant_s: float = 0.005,
    token_ms: float = 10.0,
    prompt_ms: float = 1.0,
    context_us: float = 0.0,
    name: str = "tiny",
) -> Profile:
    """One machine type of its own."""
    machine = MachineSpec(
        name=name,
        gpus=1,
        memory_bytes_per_gpu=(capacity + 1) * KV_BYTES,
        peak_flops_per_s=1.0,
        bandwidth_bytes_per_s=1.0,
        max_power_w=1_000.0,
        links_per_machine=1,
        link_bytes_per_s=round(nic_tokens_per_ms * 1_000 * KV_BYTES),
        kv_overlap_constant_s=constant_s,
        cost_per_hour=1.0,
        source="made up",
    )
    return Profile(
        model=MODEL,
        machine=machine,
        tensor_parallel=1,
        prompt_tokens=(0, 10_000),
        prompt_ns=(0, round(10_000 * prompt_ms * MS)),
        token_batch=(1, 2),
        token_base=(seconds_to_ticks(token_ms / 1e3),) * 2,
        token_slope=(seconds_to_ticks(context_us / 1e6),) * 2,
        kv_bytes_per_token=KV_BYTES,
        prompt_power=Curve((1,), (1_000.0,)),
        token_power=Curve((1,), (400.0,)),
        idle_power_w=100.0,
        name=name,
    )


def tiny_cluster(pools: str, profile: Profile | None = None, **fields) -> Cluster:
    """A cluster of tiny machines: `pools` such as "PT" or "MM"; `fields` go to the configuration.

    `mode`, `shared` and `overlap_min_tokens` go to the transfer, `max_prompt_tokens`, `max_tasks`,
    `max_passed_over` and `ageing` to the batching; `vllm` holds the options of vLLM's batching instead.
    """
    profile = profile or tiny_profile()
    names = {"P": "prompt", "T": "token", "M": "mixed"}
    transfer = {k: fields.pop(k) for k in ("mode", "shared", "overlap_min_tokens") if k in fields}
    batching = {
        k: fields.pop(k)
        for k in ("max_prompt_tokens", "max_tasks", "max_passed_over", "ageing")
        if k in fields
    }
    transfer.setdefault("mode", "serial")
    vllm = fields.pop("vllm", None)
    config = ClusterConfig(
        model="tiny",
        machines=tuple(MachineGroup(machine="tiny", pool=names[c], tensor_parallel=1) for c in pools),
        transfer=TransferConfig(**transfer),
        batching=BatchingConfig(**batching) if vllm is None else VllmBatchingConfig(**vllm),
        slo=SloConfig(reference_machine="tiny", reference_tensor_parallel=1),
        **fields,
    )
    return Cluster(config, (profile, profile), np.ones(len(pools), np.int64))


def tiny_trace(*rows: tuple[float, int, int]) -> Trace:
    """A trace of (arrival s, prompt tokens, output tokens)."""
    arrival, prompt, output = zip(*rows, strict=True)
    return Trace(
        arrival_s=np.array(arrival, np.float64),
        prompt_tokens=np.array(prompt, np.int64),
        output_tokens=np.array(output, np.int64),
        max_tokens=None,
        name="tiny",
        provenance={"source": "made up"},
    )


class Fixed:
    """Routes request i to the i-th pair given (the last one ever after)."""

    name = "fixed"

    def __init__(self, *pairs: tuple[int, int]):
        self.pairs = pairs

    def reset(self, view, seed):
        pass

    def route(self, view, request):
        return self.pairs[min(request.request_id, len(self.pairs) - 1)]


class Moves:
    """Resizes by the given numbers, one a control tick, then not at all."""

    name = "moves"

    def __init__(self, *moves: int):
        self.moves = moves

    def reset(self, view, seed):
        self.left = list(self.moves)

    def resize(self, view):
        return self.left.pop(0) if self.left else 0
