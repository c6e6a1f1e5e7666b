"""The Splitwise paper's scheduler: shortest queue within the pools, overflow through the mixed pool.

Source: Patel et al., "Splitwise", ISCA 2024, section 4.1; thresholds from its open simulator. A pool here is
a machine's *present* pool: who works for the other phase is in the mixed pool until that work has drained, so
converting a machine is just choosing it.
"""

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from splitgym.compile_cache import numba
from splitgym.config import STRICT
from splitgym.errors import ConfigError
from splitgym.schedulers.builtin import CompiledRouting
from splitgym.schedulers.choose import both_allowed
from splitgym.schedulers.predict import (
    estimated_output,
    fewest_pending,
    mean_output,
    pending_tokens,
    promised_tokens,
)
from splitgym.types import Pool

_PROMPT, _TOKEN, _MIXED = int(Pool.PROMPT), int(Pool.TOKEN), int(Pool.MIXED)


@numba.njit(cache=True)
def _promised(view, m, mean, oracle):
    """KV tokens used or promised on machine m: estimated, or what an oracle knows."""
    if oracle:
        return np.float64(view.oracle_promised_tokens[m])
    return promised_tokens(view, m, mean)


@numba.njit(cache=True)
def _least_memory(view, flags, mean, oracle):
    """The flagged machine with the least KV memory used or promised; -1 where none is flagged."""
    best = -1
    least = np.inf
    for m in range(flags.shape[0]):
        if flags[m]:
            promised = _promised(view, m, mean, oracle)
            if promised < least:
                best, least = m, promised
    return best


@numba.njit(cache=True)
def _prompt_machine(view, request, pool, max_pending):
    """The best prompt machine of a pool; -1 where it is empty or even the best queue is long."""
    m = fewest_pending(view, (view.prompt_allowed != 0) & (view.pool == pool))
    if m < 0 or view.prompt_requests[m] == 0:
        return m
    if pending_tokens(view, m) + request.prompt_tokens > max_pending:
        return -1
    return m


@numba.njit(cache=True)
def _token_machine(view, need, pool, mean, oracle):
    """The best token machine of a pool; -1 where it is empty or even the best memory is loaded."""
    m = _least_memory(view, (view.token_allowed != 0) & (view.pool == pool), mean, oracle)
    if m >= 0 and _promised(view, m, mean, oracle) + need >= view.kv_capacity_tokens[m]:
        return -1
    return m


@numba.njit(cache=True)
def splitwise_kernel(view, request, params, state):
    """Own pool, then mixed, then convert one of the opposite pool, then the whole request on one machine."""
    max_pending, oracle = params[0], params[1] != 0.0
    mean = mean_output(view)
    output = estimated_output(view, request)
    if oracle:
        if request.oracle_output_tokens < 1:
            raise ConfigError(
                "scheduler splitwise has oracle on, but the cluster does not reveal output lengths: "
                "set the cluster's oracle to true as well, or turn the scheduler's off"
            )
        output = np.float64(request.oracle_output_tokens)
    need = request.prompt_tokens + output

    p = _prompt_machine(view, request, _PROMPT, max_pending)
    if p < 0:
        p = _prompt_machine(view, request, _MIXED, max_pending)
    t = _token_machine(view, need, _TOKEN, mean, oracle)
    if t < 0:
        t = _token_machine(view, need, _MIXED, mean, oracle)
    if p < 0:
        p = fewest_pending(view, (view.prompt_allowed != 0) & (view.pool == _TOKEN))
    if t < 0:
        # A machine just converted for the prompt has left the token pool, not the prompt pool: no overlap.
        t = _least_memory(view, (view.token_allowed != 0) & (view.pool == _PROMPT), mean, oracle)
    if p >= 0 and t >= 0:
        return p, t

    whole = fewest_pending(view, both_allowed(view))
    if whole >= 0:
        return whole, whole
    # Confined pools without a machine for both phases: the thresholds no longer count.
    if p < 0:
        p = fewest_pending(view, view.prompt_allowed != 0)
    if t < 0:
        t = _least_memory(view, view.token_allowed != 0, mean, oracle)
    return p, t


@dataclass(frozen=True, config=STRICT)
class Splitwise(CompiledRouting):
    """The paper's mixed-pool scheduler."""

    max_pending_tokens: int = Field(default=8192, ge=0)
    """A prompt queue is long if a prompt waits in it and pending tokens + prompt exceed this."""
    oracle: bool = False
    """Use true output lengths, of the request and of those placed before, as the open simulator does. Needs
    the cluster's `oracle`."""

    registered = "splitwise"
    kernel = staticmethod(splitwise_kernel)
