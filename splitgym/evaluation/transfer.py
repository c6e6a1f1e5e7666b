"""What shipping the KV cache costs a request that is alone: serial and overlapped, against no split.

The experiment of the paper (Splitwise, ISCA 2024, section 6.1), run on an engine: one prompt and one token
machine, no batching, against one machine that does both phases.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitgym import profile as profiles
from splitgym import schedulers
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, MachineGroup, TransferConfig
from splitgym.sim import Outcomes, make_engine
from splitgym.trace import Trace
from splitgym.types import NS_PER_S

Mode = Literal["none", "serial", "layerwise"]
Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Alone:
    """Requests served one at a time; `serve_alone` makes it."""

    prompt_s: Seconds  # (N,) time of the prompt iteration
    visible_s: Seconds  # (N,) from the prompt's end to the cache's arrival; 0 without a split
    e2e_s: Seconds  # (N,)
    after_first_s: Seconds  # (N,) from the first token to the last


def serve_alone(
    model: str,
    machine: str,
    mode: Mode,
    prompt_tokens: ArrayLike,
    output_tokens: ArrayLike,
    *,
    tensor_parallel: int = 8,
    engine: str = "auto",
) -> Alone:
    """Serve requests far apart in time.

    Args:
        model: model of the profile.
        machine: machine type, of both machines.
        mode: `none` is one machine for both phases; `serial` and `layerwise` are two (the latter ships
            serially below 512 prompt tokens, as everywhere).
        prompt_tokens: (N,) one entry a request.
        output_tokens: (N,) or one number for all.
        tensor_parallel: GPUs of a machine.
        engine: simulator engine.

    Raises:
        ProfileError: no such profile.
        TraceError: a request that does not fit the machine.
    """
    prompts = np.atleast_1d(np.asarray(prompt_tokens, np.int64))
    outputs = np.broadcast_to(np.asarray(output_tokens, np.int64), prompts.shape)
    pools: tuple[Literal["prompt", "token", "mixed"], ...] = ("prompt", "token")
    if mode == "none":
        pools = ("mixed",)
    config = ClusterConfig(
        model=model,
        machines=tuple(
            MachineGroup(machine=machine, pool=pool, tensor_parallel=tensor_parallel) for pool in pools
        ),
        transfer=TransferConfig(mode="layerwise" if mode == "none" else mode),
    )
    profile = profiles.load(model, machine, tensor_parallel)
    # Twice the time without a transfer, and a second: the machine is idle again before the next one comes.
    gaps = [
        1.0 + 2.0 * (profile.prompt_time(int(p)) + int(o) * profile.token_time(1, int(p + o)))
        for p, o in zip(prompts, outputs)
    ]
    arrivals = np.concatenate([[0.0], np.cumsum(gaps)[:-1]])
    routing = schedulers.routing("round-robin" if mode == "none" else "split-round-robin")
    run = make_engine(Cluster.resolve(config), routing, schedulers.sizing("static"), engine)
    run.reset(Trace(arrivals, prompts, outputs, name="one at a time"))
    run.run_until_decision()
    return _seconds(run.outcomes())


def link_bytes_per_s(model: str, machine: str, prompt_tokens: int, tensor_parallel: int = 8) -> float:
    """Bandwidth that a serial transfer gets [bytes/s]: the cache's bytes over the time it took."""
    served = serve_alone(model, machine, "serial", prompt_tokens, 2, tensor_parallel=tensor_parallel)
    cache = prompt_tokens * profiles.load(model, machine, tensor_parallel).kv_bytes_per_token
    return float(cache / served.visible_s[0])


def _seconds(outcomes: Outcomes) -> Alone:
    split = outcomes.prompt_machine != outcomes.token_machine
    shipped = np.where(split, outcomes.transfer_end_ns - outcomes.prompt_end_ns, 0)
    return Alone(
        prompt_s=(outcomes.prompt_end_ns - outcomes.prompt_start_ns) / NS_PER_S,
        visible_s=shipped / NS_PER_S,
        e2e_s=(outcomes.finish_ns - outcomes.arrival_ns) / NS_PER_S,
        after_first_s=(outcomes.finish_ns - outcomes.first_token_ns) / NS_PER_S,
    )
