"""Simple routing schedulers to compare with.

The four without a split (round-robin, random, jsq-requests, jsq-tokens) run a whole request on one machine.
Where confinement or failures leave no machine that may do both, they choose a machine for each phase by the
same rule. The split ones use machines at home in the pool of the phase, and mixed ones; any allowed one where
none of those is left.
"""

import numpy as np
from pydantic.dataclasses import dataclass

from splitgym.compile_cache import numba
from splitgym.config import STRICT
from splitgym.schedulers.builtin import CompiledRouting
from splitgym.schedulers.choose import (
    PROMPT_COST,
    SAME_COST,
    SPLIT_COST,
    at_home,
    best_pair,
    both_allowed,
    count,
    next_from,
    nth,
    random_below,
)
from splitgym.schedulers.predict import (
    ITERATION,
    NUM_PREDICTIONS,
    TTFT,
    fewest_pending,
    predict,
    transfer_ns,
)
from splitgym.types import Pool

_RANDOM, _NEXT_PROMPT, _NEXT_TOKEN = 0, 1, 2  # places in `state`
_PROMPT, _TOKEN = int(Pool.PROMPT), int(Pool.TOKEN)


@numba.njit(cache=True)
def _requests(view, m):
    """Requests on m: decodes here and to come, or prompts, whichever is more (a whole request is both)."""
    return max(view.running[m] + view.inbound[m], view.prompt_requests[m] + view.iteration_prompts[m])


@numba.njit(cache=True)
def round_robin_kernel(view, request, params, state):
    """The next machine in turn that may take a whole request."""
    m = next_from(both_allowed(view), state[_NEXT_PROMPT])
    if m >= 0:
        state[_NEXT_PROMPT] = m + 1
        return m, m
    p = next_from(view.prompt_allowed, state[_NEXT_PROMPT])
    t = next_from(view.token_allowed, state[_NEXT_TOKEN])
    state[_NEXT_PROMPT], state[_NEXT_TOKEN] = p + 1, t + 1
    return p, t


@numba.njit(cache=True)
def _any_of(flags, state):
    return nth(flags, random_below(state, _RANDOM, count(flags)))


@numba.njit(cache=True)
def random_kernel(view, request, params, state):
    """A random machine among those that may take a whole request."""
    whole = both_allowed(view)
    if count(whole) > 0:
        m = _any_of(whole, state)
        return m, m
    return _any_of(view.prompt_allowed, state), _any_of(view.token_allowed, state)


@numba.njit(cache=True)
def _fewest_requests(view, flags):
    best = -1
    for m in range(flags.shape[0]):
        if flags[m] and (best < 0 or _requests(view, m) < _requests(view, best)):
            best = m
    return best


@numba.njit(cache=True)
def jsq_requests_kernel(view, request, params, state):
    """The machine with the fewest requests."""
    m = _fewest_requests(view, both_allowed(view))
    if m >= 0:
        return m, m
    return _fewest_requests(view, view.prompt_allowed), _fewest_requests(view, view.token_allowed)


@numba.njit(cache=True)
def jsq_tokens_kernel(view, request, params, state):
    """The machine with the fewest pending tokens."""
    m = fewest_pending(view, both_allowed(view))
    if m >= 0:
        return m, m
    return fewest_pending(view, view.prompt_allowed), fewest_pending(view, view.token_allowed)


@numba.njit(cache=True)
def split_round_robin_kernel(view, request, params, state):
    """The next prompt machine and the next token machine, each in its own turn."""
    p = next_from(at_home(view.prompt_allowed, view.home_pool, _TOKEN), state[_NEXT_PROMPT])
    t = next_from(at_home(view.token_allowed, view.home_pool, _PROMPT), state[_NEXT_TOKEN])
    state[_NEXT_PROMPT], state[_NEXT_TOKEN] = p + 1, t + 1
    return p, t


@numba.njit(cache=True)
def _decodes(view, m):
    return view.running[m] + view.inbound[m]


@numba.njit(cache=True)
def split_jsq_kernel(view, request, params, state):
    """The prompt machine with the fewest pending prompt tokens, the token machine with the fewest decodes."""
    prompts = at_home(view.prompt_allowed, view.home_pool, _TOKEN)
    tokens = at_home(view.token_allowed, view.home_pool, _PROMPT)
    p = t = -1
    for m in range(prompts.shape[0]):
        if prompts[m] and (p < 0 or view.prompt_tokens[m] < view.prompt_tokens[p]):
            p = m
        if tokens[m] and (t < 0 or _decodes(view, m) < _decodes(view, t)):
            t = m
    return p, t


@numba.njit(cache=True)
def _two_of(flags, state):
    """Two random flagged machines in ascending order; the same one twice where there is but one."""
    n = count(flags)
    first = random_below(state, _RANDOM, n)
    second = first
    if n > 1:
        second = random_below(state, _RANDOM, n - 1)
        if second >= first:
            second += 1
    return nth(flags, min(first, second)), nth(flags, max(first, second))


@numba.njit(cache=True)
def power_of_two_kernel(view, request, params, state):
    """Two random candidates of each pool; of them the one with less of what `split-jsq` counts."""
    p, other = _two_of(at_home(view.prompt_allowed, view.home_pool, _TOKEN), state)
    if view.prompt_tokens[other] < view.prompt_tokens[p]:
        p = other
    t, other = _two_of(at_home(view.token_allowed, view.home_pool, _PROMPT), state)
    if _decodes(view, other) < _decodes(view, t):
        t = other
    return p, t


@numba.njit(cache=True)
def least_e2e_kernel(view, request, params, state):
    """The pair of least predicted time to first token + output x token time + transfer, in seconds."""
    machines = view.machine_row.shape[0]
    costs = np.full((3, machines), np.inf)
    x = np.empty((machines, NUM_PREDICTIONS))
    ref = predict(view, request, 0.0, x)
    ttft_s = ref.ttft_ns * view.rules.ttft_slo * 1e-9
    decode_s = ref.output_tokens * ref.tbt_ns * view.rules.tbt_slo * 1e-9
    for m in range(machines):
        if view.prompt_allowed[m]:
            costs[PROMPT_COST, m] = x[m, TTFT] * ttft_s
        if view.token_allowed[m]:
            costs[SAME_COST, m] = x[m, ITERATION] * decode_s
            costs[SPLIT_COST, m] = x[m, ITERATION] * decode_s + transfer_ns(view, request, m) * 1e-9
    return best_pair(costs)


@dataclass(frozen=True, config=STRICT)
class RoundRobin(CompiledRouting):
    """Whole requests, machines in turn."""

    registered = "round-robin"
    kernel = staticmethod(round_robin_kernel)


@dataclass(frozen=True, config=STRICT)
class Random(CompiledRouting):
    """Whole requests, a random machine each, drawn from the seed given to `reset`."""

    registered = "random"
    kernel = staticmethod(random_kernel)


@dataclass(frozen=True, config=STRICT)
class JsqRequests(CompiledRouting):
    """Whole requests, to the machine with the fewest requests."""

    registered = "jsq-requests"
    kernel = staticmethod(jsq_requests_kernel)


@dataclass(frozen=True, config=STRICT)
class JsqTokens(CompiledRouting):
    """Whole requests, to the machine with the fewest pending tokens (prompt tokens, and one a token task)."""

    registered = "jsq-tokens"
    kernel = staticmethod(jsq_tokens_kernel)


@dataclass(frozen=True, config=STRICT)
class SplitRoundRobin(CompiledRouting):
    """Prompt machines in turn, token machines in turn."""

    registered = "split-round-robin"
    kernel = staticmethod(split_round_robin_kernel)


@dataclass(frozen=True, config=STRICT)
class SplitJsq(CompiledRouting):
    """Fewest pending prompt tokens; fewest requests decoding or inbound."""

    registered = "split-jsq"
    kernel = staticmethod(split_jsq_kernel)


@dataclass(frozen=True, config=STRICT)
class PowerOfTwo(CompiledRouting):
    """Two random candidates of each pool, the less loaded of them."""

    registered = "power-of-two"
    kernel = staticmethod(power_of_two_kernel)


@dataclass(frozen=True, config=STRICT)
class LeastE2e(CompiledRouting):
    """Least predicted end-to-end time of this request over all pairs; no SLO, no regard for others."""

    registered = "least-e2e"
    kernel = staticmethod(least_e2e_kernel)
