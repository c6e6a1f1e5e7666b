"""The reactive rule with a tiny network beside it, and thresholds of its own: evolution trains it for sizing.

The rule is read as two numbers: how far the prompt pool is over its high threshold while the token pool is
under its low one (a reason to move a machine to the prompts), and the same the other way round. 34 features
of the whole cluster go through a linear map and through one hidden layer to two numbers that are added; the
larger sum moves a machine if it is above 0. With zero output weights the moves are the reactive rule's.

Features are of the pools, not of single machines, and none grows with the cluster's size. Load is tracked
over 5, 20 and 60 s, and carried on in the direction in which it goes: a pool takes time to change.

All numbers are one flat vector, see `layout`. Like the routing residual, it decides the same on every machine
and knows no true output length.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator
from pydantic.dataclasses import dataclass

from splitgym.compile_cache import numba
from splitgym.config import STRICT
from splitgym.schedulers.builtin import CompiledSizing
from splitgym.schedulers.flat import Trained, Weights, length_of, pack_parts, unpack_parts
from splitgym.schedulers.network import ln, squash
from splitgym.schedulers.predict import MAX_SHARE, mean_output, promised_tokens, wait_ns
from splitgym.schedulers.sizing import (
    MOVED_AT,
    REQUESTS,
    TICK_AT,
    TOKENS,
    count_from_here,
    mean_prompt,
    needed_machines,
    prompt_pressure_after,
    token_pressure_after,
)
from splitgym.types import Pool
from splitgym.view import ARRIVED_PROMPT_TOKENS, ARRIVED_REQUESTS, SHARE_TIME_CONSTANT_NS, ClusterView

_PROMPT, _TOKEN = int(Pool.PROMPT), int(Pool.TOKEN)
_NS = 1e-9

FEATURES = 34
OUTPUTS = 2
HIDDEN = 12
HORIZONS_S = (5.0, 20.0, 60.0)
_FORECAST = len(HORIZONS_S)

RULE = {
    "prompt_high": 0.75,
    "prompt_low": 0.6,
    "token_high": 0.95,
    "token_low": 0.85,
    "cool_down_s": 6.0,
    "prompt_factor": 1.0,  # of the prompt machines that the tracked load needs: profiles err towards one side
    "reach": 0.1,  # further machines at once, of eight, where the sum is 1
}
"""The trained constants and where they begin; all are positive."""
NETWORK_AT = len(RULE)
"""Where the linear map and the network begin in the flat vector."""

_PROMPT_HIGH, _PROMPT_LOW, _TOKEN_HIGH, _TOKEN_LOW, _COOL_DOWN, _FACTOR, _REACH = range(NETWORK_AT)
_UTILISATION = 0.8
_MOST = 4.0
"""Pressures beyond this count as this."""

# Places in `state` after those of `splitgym.schedulers.sizing`: (weight [s], requests, tokens) a horizon.
_RATES, DIRECTION, _AWAY_S, MOVES = 6, 15, 16, 17


def layout(hidden: int = HIDDEN) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parts of the flat vector, in their order (row-major)."""
    return {
        "rule": (NETWORK_AT,),  # `RULE`
        "linear": (OUTPUTS, FEATURES),  # rows: towards prompts, towards tokens
        "input_weights": (hidden, FEATURES),
        "input_bias": (hidden,),
        "output_weights": (OUTPUTS, hidden),
        "output_bias": (OUTPUTS,),
    }


def size(hidden: int = HIDDEN) -> int:
    """Length of the flat vector."""
    return length_of(layout(hidden))


def hidden_of(length: int) -> int:
    """Width of the hidden layer of a flat vector.

    Raises:
        ValueError: no width has this length.
    """
    hidden, rest = divmod(length - size(0), FEATURES + 1 + OUTPUTS)
    if rest or hidden < 0:
        raise ValueError(
            f"{length} weights fit no sizing network: there are {size(0)}, and {FEATURES + 1 + OUTPUTS} more "
            "a hidden unit"
        )
    return hidden


def unpack(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The named parts of a flat vector, as views into it."""
    return unpack_parts(weights, layout(hidden_of(len(weights))))


def pack(parts: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The flat vector of named parts: undoes `unpack`.

    Raises:
        ValueError: a part is missing, unknown or of another shape.
    """
    hidden = len(parts["input_bias"]) if "input_bias" in parts else 0
    return pack_parts(parts, layout(hidden), "a sizing network")


def rule_weights(hidden: int = 0, **rule: float) -> NDArray[np.float64]:
    """The flat vector that is exactly the reactive rule.

    Args:
        hidden: width of the hidden layer.
        rule: constants of `RULE` that differ from there.
    """
    weights = np.zeros(size(hidden))
    weights[:NETWORK_AT] = list((RULE | rule).values())
    return weights


@numba.njit(cache=True)
def track(view, state):
    """Move the recent rates on to the view's time, and count what switching costs in machine-seconds."""
    now = np.float64(view.clock[0])
    elapsed_s = (now - state[TICK_AT]) * _NS
    if elapsed_s <= 0.0:
        return
    requests = np.float64(view.counters[ARRIVED_REQUESTS])
    tokens = np.float64(view.counters[ARRIVED_PROMPT_TOKENS])
    for h in range(_FORECAST):
        tau = HORIZONS_S[h]
        keep = tau / (tau + elapsed_s)
        at = _RATES + 3 * h
        state[at] = (state[at] + elapsed_s) * keep
        state[at + 1] = (state[at + 1] + requests - state[REQUESTS]) * keep
        state[at + 2] = (state[at + 2] + tokens - state[TOKENS]) * keep
    for m in range(view.home_pool.shape[0]):
        if not view.available[m]:
            state[_AWAY_S] += elapsed_s
    state[TICK_AT], state[REQUESTS], state[TOKENS] = now, requests, tokens


@numba.njit(cache=True)
def recent_rates(state, horizon):
    """(requests/s, prompt tokens/s) over one of the horizons; the first second is no spike."""
    at = _RATES + 3 * horizon
    weight = max(1.0, state[at])
    return state[at + 1] / weight, state[at + 2] / weight


@numba.njit(cache=True)
def rates(state, horizon):
    """`recent_rates`, and beyond the horizons the forecast: 2 x that of 20 s less that of 60 s.

    Of a load that rises evenly a mean of time constant tau lags by tau, so the forecast is of 20 s ahead.
    """
    if horizon < _FORECAST:
        return recent_rates(state, horizon)
    requests, tokens = recent_rates(state, 1)
    slow_requests, slow_tokens = recent_rates(state, 2)
    return max(0.0, 2.0 * requests - slow_requests), max(0.0, 2.0 * tokens - slow_tokens)


@numba.njit(cache=True)
def load_features(view, state, factor, at_home, machines, out):
    """Fill 0 to 6: the split that the load needs less the present one [machines], and how much it needs."""
    for horizon in range(_FORECAST + 1):
        requests, tokens = rates(state, horizon)
        prompt, token = needed_machines(view, requests, tokens, _UTILISATION)
        prompt *= factor
        need = prompt + token
        out[horizon] = 0.0
        if need > 0.0:
            out[horizon] = 0.5 * min(3.0, max(-3.0, machines * prompt / need - at_home))
        if horizon == 1:
            out[4] = min(2.0, need / max(1.0, machines)) - 1.0
        elif horizon == _FORECAST:
            out[5] = min(2.0, need / max(1.0, machines)) - 1.0
    fast, slow = recent_rates(state, 0)[0], recent_rates(state, 2)[0]
    out[6] = min(3.0, fast / slow) - 1.0 if slow > 0.0 else 0.0


@numba.njit(cache=True)
def pressure_features(view, prompts, tokens, out):
    """Fill 7 to 14 with the pools' pressures, now and after a move. Returns both as they are now.

    Args:
        view: `ClusterView`.
        prompts, tokens: available machines at home in each pool.
        out: (FEATURES,) filled.
    """
    prompt, token = prompt_pressure_after(view, 0), token_pressure_after(view, 0)
    now_p, now_t = min(_MOST, prompt), min(_MOST, token)
    more_p, more_t = min(_MOST, prompt_pressure_after(view, 1)), min(_MOST, token_pressure_after(view, 1))
    less_p = min(_MOST, prompt_pressure_after(view, -1)) if prompts > 1 else _MOST
    less_t = min(_MOST, token_pressure_after(view, -1)) if tokens > 1 else _MOST
    out[7], out[8] = now_p - 0.7, 2.0 * min(now_t, 2.0) - 1.5
    out[9], out[10] = more_p - 0.6, 2.0 * min(more_t, 2.0) - 1.3
    out[11], out[12] = less_p - 0.9, 2.0 * min(less_t, 2.0) - 1.8
    here = max(0.0, now_p - 0.8) + max(0.0, now_t - 0.9)
    out[13] = max(-1.0, min(1.0, here - max(0.0, more_p - 0.8) - max(0.0, less_t - 0.9)))
    out[14] = max(-1.0, min(1.0, here - max(0.0, less_p - 0.8) - max(0.0, more_t - 0.9)))
    return prompt, token


@numba.njit(cache=True)
def prompt_share(view, m):
    """Share of machine m's recent time given to prompts, decayed to now."""
    elapsed = max(0, view.clock[0] - view.prompt_share_at_ns[m])
    share = view.prompt_share[m] * SHARE_TIME_CONSTANT_NS / (SHARE_TIME_CONSTANT_NS + elapsed)
    return min(MAX_SHARE, share)


@numba.njit(cache=True)
def work_features(view, prompts, tokens, out):
    """Fill 15 to 24 with what the machines of each pool have to do. Arguments as for `pressure_features`."""
    wait = longest = share = queued = 0.0
    running = inbound = promised = 0.0
    foreign_decodes = foreign_prompts = decodes = pending = 0.0
    capacity = 0.0
    mean = mean_output(view)
    for m in range(view.home_pool.shape[0]):
        decodes += view.running[m] + view.inbound[m]
        pending += view.prompt_tokens[m]
        if view.home_pool[m] == _PROMPT:
            foreign_decodes += view.running[m] + view.inbound[m]
            if view.available[m]:
                own = wait_ns(view, m) * _NS
                wait += own
                longest = max(longest, own)
                queued += view.prompt_requests[m]
                share += prompt_share(view, m)
        elif view.home_pool[m] == _TOKEN:
            foreign_prompts += view.prompt_tokens[m]
            if view.available[m]:
                running += view.running[m]
                inbound += view.inbound[m]
                promised += promised_tokens(view, m, mean)
                capacity += view.kv_capacity_tokens[m]
    per_prompt, per_token = 1.0 / max(1, prompts), 1.0 / max(1, tokens)
    out[15] = ln(1.0 + wait * per_prompt) - 0.3
    out[16] = ln(1.0 + longest) - 0.6
    out[17] = min(queued * per_prompt, 16.0) / 8.0 - 0.3
    out[18] = 2.0 * (share * per_prompt) - 1.0
    out[19] = min(running * per_token, 128.0) / 32.0 - 0.7
    out[20] = min(inbound * per_token, 32.0) / 8.0 - 0.3
    out[21] = 2.0 * min(promised / max(1.0, capacity), 2.0) - 0.8
    out[22] = foreign_decodes / decodes if decodes > 0.0 else 0.0
    out[23] = foreign_prompts / pending if pending > 0.0 else 0.0
    out[24] = ln(mean) - 5.0


@numba.njit(cache=True)
def features(view, state, factor, out):
    """Fill all features of a control tick; `track` must have been called.

    Args:
        view: `ClusterView`.
        state: of the scheduler.
        factor: `RULE`'s prompt_factor.
        out: (FEATURES,) float64, filled.

    Returns:
        Pressure of the prompt and of the token pool, and machines that can move.
    """
    prompts = tokens = to_prompt = to_token = 0
    for m in range(view.home_pool.shape[0]):
        if view.home_pool[m] == _PROMPT:
            prompts += view.available[m] != 0
            to_prompt += view.available[m] == 0
        elif view.home_pool[m] == _TOKEN:
            tokens += view.available[m] != 0
            to_token += view.available[m] == 0
    at_home, machines = prompts + to_prompt, prompts + to_prompt + tokens + to_token
    load_features(view, state, factor, at_home, machines, out)
    prompt, token = pressure_features(view, prompts, tokens, out)
    work_features(view, prompts, tokens, out)
    out[25] = 0.5 * (ln(max(1.0, mean_prompt_20s(view, state))) - 6.9)
    out[26] = 2.0 * at_home / max(1, machines) - 1.0
    out[27] = 2.0 / max(1, prompts) - 0.5
    out[28] = 2.0 / max(1, tokens) - 0.5
    out[29], out[30] = 0.5 * min(to_prompt, 4), 0.5 * min(to_token, 4)
    since_s = (np.float64(view.clock[0]) - state[MOVED_AT]) * _NS
    out[31] = min(since_s, 20.0) / 10.0 - 1.0
    out[32] = state[DIRECTION] * 10.0 / (10.0 + since_s)
    out[33] = 0.5 * ln(1.0 + state[_AWAY_S] / max(1.0, state[MOVES]))
    return prompt, token, machines


@numba.njit(cache=True)
def mean_prompt_20s(view, state):
    """Mean prompt of the last 20 s [tokens]; of all requests so far where none came."""
    requests, tokens = recent_rates(state, 1)
    return tokens / requests if requests > 0.0 else mean_prompt(view)


@numba.njit(cache=True)
def add_network(x, network, sums):
    """Add the linear map and the network to the two sums.

    Args:
        x: (FEATURES,).
        network: the flat vector from NETWORK_AT on.
        sums: (OUTPUTS,) float64, changed.
    """
    linear = OUTPUTS * FEATURES
    hidden = (network.shape[0] - linear - OUTPUTS) // (FEATURES + 1 + OUTPUTS)
    bias_at = linear + hidden * FEATURES
    output_at = bias_at + hidden
    for out in range(OUTPUTS):
        sums[out] += network[output_at + OUTPUTS * hidden + out]
        for i in range(FEATURES):
            sums[out] += network[out * FEATURES + i] * x[i]
    for h in range(hidden):
        total = network[bias_at + h]
        for i in range(FEATURES):
            total += network[linear + h * FEATURES + i] * x[i]
        unit = squash(total)
        for out in range(OUTPUTS):
            sums[out] += network[output_at + out * hidden + h] * unit


@numba.njit(cache=True)
def sizing_net_kernel(view, params, state):
    """Machines to move towards the larger of two sums, if it is above 0."""
    track(view, state)
    now = np.float64(view.clock[0])
    if now - state[MOVED_AT] < params[_COOL_DOWN] / _NS:
        return 0
    x, sums = np.empty(FEATURES), np.empty(OUTPUTS)
    prompt, token, machines = features(view, state, params[_FACTOR], x)
    sums[0] = min(prompt - params[_PROMPT_HIGH], params[_TOKEN_LOW] - token)
    sums[1] = min(token - params[_TOKEN_HIGH], params[_PROMPT_LOW] - prompt)
    for out in range(OUTPUTS):
        sums[out] = min(1.0, max(-1.0, sums[out]))
    add_network(x, params[NETWORK_AT:], sums)
    up = sums[0] >= sums[1]
    best = sums[0] if up else sums[1]
    source = _TOKEN if up else _PROMPT
    left = 0
    for m in range(view.home_pool.shape[0]):
        left += view.available[m] != 0 and view.home_pool[m] == source
    if best <= 0.0 or left < 2:
        return 0
    moves = 1 + int(min(1.0, best * params[_REACH]) * machines / 8.0)
    if moves > left - 1:
        moves = left - 1
    state[MOVED_AT] = now
    state[DIRECTION] = 1.0 if up else -1.0
    state[MOVES] += moves
    return moves if up else -moves


@dataclass(frozen=True, config=STRICT)
class SizingNet(Trained, CompiledSizing):
    """The reactive rule with a trained network beside it; without arguments, the rule alone."""

    weights: Weights = tuple(rule_weights().tolist())
    """The flat vector, see `layout`."""
    label: str = "sizing-net"
    """What tables call it."""

    registered = "sizing-net"
    kernel = staticmethod(sizing_net_kernel)

    @field_validator("weights")
    @classmethod
    def _fits(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        hidden_of(len(weights))
        return weights

    def reset(self, view: ClusterView, seed: int) -> None:
        """Forget the last run; count arrivals from here on."""
        super().reset(view, seed)
        count_from_here(view, self.state)
