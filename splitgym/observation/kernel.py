"""The observation's arithmetic. Columns stand in the order of `features`."""

import numpy as np

from splitgym.compile_cache import numba
from splitgym.observation.rows import (
    AVAILABLE,
    HOME_PROMPT,
    HOME_TOKEN,
    NOW_MIXED,
    PROMPT_SPEED,
    TOKEN_SPEED,
    clip,
    fill_machines,
    lay_all,
    predict_all,
    seen_block,
    squash,
)
from splitgym.schedulers import predict
from splitgym.schedulers.lanes import CLOSED_PROMPT, CLOSED_TOKEN, INBOUND, LANES, PREDICTED, RUNNING
from splitgym.types import NS_PER_S, UNKNOWN
from splitgym.view import ARRIVED_PROMPT_TOKENS, ARRIVED_REQUESTS, COMPLETED_REQUESTS, NUM_COUNTERS

# Places in the observer's memory, a float64 array.
WEIGHT_5S, REQUESTS_5S, PROMPT_TOKENS_5S = 0, 1, 2
WEIGHT_60S, REQUESTS_60S, PROMPT_TOKENS_60S, COMPLETIONS_60S = 3, 4, 5, 6
WEIGHT_20S, REQUESTS_20S, PROMPT_TOKENS_20S = 7, 8, 9
NUM_MEMORY = 10
# And of what it saw last, an int64 array: the view's counters, then its clock.
LAST_CLOCK = NUM_COUNTERS
NUM_LAST = NUM_COUNTERS + 1

TYPICAL_PROMPT_TOKENS = 1024
"""Prompt of the request that predictions at a control tick are for, before any request has arrived."""


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def remember(now_ns, counters, memory, last):
    """Move the recent rates on to the present time; returns the seconds since the last call.

    A sum S over a time constant tau becomes (S + new) tau / (tau + dt), and so does the time it covers; their
    quotient is the rate. (exp(-dt / tau) would differ in its last bits between machines.)
    """
    elapsed_s = max(0, now_ns - last[LAST_CLOCK]) / NS_PER_S
    requests = np.float64(max(0, counters[ARRIVED_REQUESTS] - last[ARRIVED_REQUESTS]))
    tokens = np.float64(max(0, counters[ARRIVED_PROMPT_TOKENS] - last[ARRIVED_PROMPT_TOKENS]))
    completions = np.float64(max(0, counters[COMPLETED_REQUESTS] - last[COMPLETED_REQUESTS]))
    keep = 5.0 / (5.0 + elapsed_s)
    memory[WEIGHT_5S] = (memory[WEIGHT_5S] + elapsed_s) * keep
    memory[REQUESTS_5S] = (memory[REQUESTS_5S] + requests) * keep
    memory[PROMPT_TOKENS_5S] = (memory[PROMPT_TOKENS_5S] + tokens) * keep
    keep = 20.0 / (20.0 + elapsed_s)
    memory[WEIGHT_20S] = (memory[WEIGHT_20S] + elapsed_s) * keep
    memory[REQUESTS_20S] = (memory[REQUESTS_20S] + requests) * keep
    memory[PROMPT_TOKENS_20S] = (memory[PROMPT_TOKENS_20S] + tokens) * keep
    keep = 60.0 / (60.0 + elapsed_s)
    memory[WEIGHT_60S] = (memory[WEIGHT_60S] + elapsed_s) * keep
    memory[REQUESTS_60S] = (memory[REQUESTS_60S] + requests) * keep
    memory[PROMPT_TOKENS_60S] = (memory[PROMPT_TOKENS_60S] + tokens) * keep
    memory[COMPLETIONS_60S] = (memory[COMPLETIONS_60S] + completions) * keep
    for i in range(NUM_COUNTERS):
        last[i] = counters[i]
    last[LAST_CLOCK] = now_ns
    return elapsed_s


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def mean_prompt(memory):
    """Mean prompt tokens of the last 60 s; `TYPICAL_PROMPT_TOKENS` before any arrival."""
    if memory[REQUESTS_60S] <= 0.0:
        return np.float64(TYPICAL_PROMPT_TOKENS)
    return memory[PROMPT_TOKENS_60S] / memory[REQUESTS_60S]


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fill(view, request, present, memory, last, lanes, shown, machines, cluster, wanted, mask):
    """Fill one observation from a view alone.

    Args:
        view: `ClusterView` of m machines.
        request: `RequestInfo`; ignored unless `present`.
        present: is a request to be routed?
        memory, last: the observer's, (NUM_MEMORY,) float64 and (NUM_LAST,) int64; moved on.
        lanes, shown: scratch, see `lay_all`.
        machines, cluster, wanted, mask: (M, F), (G,), (R,), (M,) float32, filled; what lies beyond m machines
            is left alone.
    """
    lay_all(view, lanes, shown)
    fill_seen(
        lanes,
        shown,
        view.machine_row.shape[0],
        (view.clock[0], predict.mean_output(view), view.counters, view.tables, view.rules),
        (request.prompt_tokens, request.max_tokens, request.oracle_output_tokens, request.attempt),
        present,
        memory,
        last,
        machines,
        cluster,
        wanted,
        mask,
    )


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fill_seen(
    lanes, shown, num_machines, state, request, present, memory, last, machines, cluster, wanted, mask
):
    """Fill one observation from what is kept of each machine.

    Args:
        lanes, shown: see `splitgym.observation.rows`, true as of now.
        num_machines: m.
        state: (now [ns], mean output, counters, `ProfileTables`, `ClusterRules`), see `ClusterView`.
        request: (prompt tokens, max_tokens, oracle output or `UNKNOWN`, attempt), ignored unless `present`.
        present, memory, last, machines, cluster, wanted, mask: see `fill`.
    """
    now_ns, mean_output, counters, tables, rules = state
    since_s = remember(now_ns, counters, memory, last)
    prompt_tokens, max_tokens = np.int64(request[0]), np.int64(request[1])
    if not present:
        prompt_tokens, max_tokens = np.int64(max(1.0, mean_prompt(memory))), np.int64(UNKNOWN)
    ref = predict.reference_of(tables, mean_output, prompt_tokens, max_tokens)
    # Interference at weight 1: what an observation shows.
    q = predict.asked(ref, prompt_tokens, now_ns, rules, 1.0)
    predict_all(lanes, num_machines, tables, prompt_tokens, q)
    fill_machines(lanes, shown, num_machines, machines)
    prompt_speed, token_speed = speeds(lanes, shown, num_machines)
    fill_load(memory, mean_output, prompt_speed, token_speed, cluster)
    fill_pools(shown, num_machines, cluster)
    fill_prompt_side(lanes, num_machines, cluster)
    fill_token_side(lanes, num_machines, cluster)
    cluster[23] = squash(since_s, 1.0)
    for i in range(wanted.shape[0]):
        wanted[i] = 0.0
    if present:
        fill_request(ref, prompt_tokens, max_tokens, request[2], request[3], rules, memory, wanted)
    for m in range(num_machines):
        mask[m] = 1.0


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def speeds(lanes, shown, machines):
    """Prompt and token speed of all available machines together [tokens/s], each at least 1."""
    prompt_speed, token_speed = 0.0, 0.0
    for m in range(machines):
        b, j = seen_block(lanes, m // LANES), m % LANES
        prompt_speed += b[PROMPT_SPEED * LANES + j] * shown[m, AVAILABLE]
        token_speed += b[TOKEN_SPEED * LANES + j] * shown[m, AVAILABLE]
    return max(1.0, prompt_speed), max(1.0, token_speed)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fill_load(memory, mean_output, prompt_speed, token_speed, out):
    """Places 0 to 7, and the forecast. Arguments as for `fill_forecast`.

    A second without arrivals is added before the rates, so the first is no spike.
    """
    fast = memory[REQUESTS_5S] / (memory[WEIGHT_5S] + 1.0)
    slow = memory[REQUESTS_60S] / (memory[WEIGHT_60S] + 1.0)
    out[0] = squash(memory[PROMPT_TOKENS_5S] / (memory[WEIGHT_5S] + 1.0) / prompt_speed, 1.0)
    out[1] = squash(memory[PROMPT_TOKENS_60S] / (memory[WEIGHT_60S] + 1.0) / prompt_speed, 1.0)
    out[2] = squash(fast * mean_output / token_speed, 1.0)
    out[3] = squash(slow * mean_output / token_speed, 1.0)
    out[4] = 0.5
    if memory[REQUESTS_60S] > 0.0 and memory[WEIGHT_5S] > 0.0:
        recent, usual = memory[REQUESTS_5S] / memory[WEIGHT_5S], memory[REQUESTS_60S] / memory[WEIGHT_60S]
        out[4] = squash(recent / usual, 1.0)
    done, came = memory[COMPLETIONS_60S], memory[REQUESTS_60S]
    out[5] = squash(done / came, 1.0) if came > 0.0 else 0.5
    out[6] = squash(mean_prompt(memory), 1024.0)
    out[7] = squash(mean_output, 256.0)
    fill_forecast(memory, mean_output, prompt_speed, token_speed, out)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fill_forecast(memory, mean_output, prompt_speed, token_speed, out):
    """Places 24 to 27: where the loads of the last minute lead, and what they need of the machines.

    Of a load that rises evenly, a mean with time constant tau lags by tau. So 2 x the mean of 20 s less that
    of 60 s is what it will be in 20 s.

    Args:
        memory: the observer's.
        mean_output: tokens of a request.
        prompt_speed, token_speed: of all available machines together [tokens/s].
        out: (G,) filled.
    """
    fast, slow = max(1.0, memory[WEIGHT_20S]), max(1.0, memory[WEIGHT_60S])  # no spike at the start
    prompt = memory[PROMPT_TOKENS_20S] / fast / prompt_speed
    output = memory[REQUESTS_20S] / fast * mean_output / token_speed
    prompt_next = max(0.0, 2.0 * prompt - memory[PROMPT_TOKENS_60S] / slow / prompt_speed)
    output_next = max(0.0, 2.0 * output - memory[REQUESTS_60S] / slow * mean_output / token_speed)
    out[24], out[25] = squash(prompt_next, 1.0), squash(output_next, 1.0)
    out[26] = prompt / (prompt + output) if prompt + output > 0.0 else 0.5
    out[27] = prompt_next / (prompt_next + output_next) if prompt_next + output_next > 0.0 else 0.5


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fill_pools(shown, machines, out):
    """Places 8 to 11: shares of machines."""
    available, prompt, token, mixed = 0, 0, 0, 0
    for m in range(machines):
        available += shown[m, AVAILABLE] != 0.0
        prompt += shown[m, HOME_PROMPT] != 0.0
        token += shown[m, HOME_TOKEN] != 0.0
        mixed += shown[m, NOW_MIXED] != 0.0
    out[8], out[9] = available / machines, prompt / machines
    out[10], out[11] = token / machines, mixed / machines


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fill_prompt_side(lanes, machines, out):
    """Places 12 to 16, over machines that may take a prompt; zeros when there is none."""
    n, wait, low, high, share, missed = 0.0, 0.0, np.inf, 0.0, 0.0, 0.0
    for m in range(machines):  # the sums in this order; a product with 0 or 1 instead of a branch
        b, j = seen_block(lanes, m // LANES), m % LANES
        weight = 1.0 - b[CLOSED_PROMPT * LANES + j]
        own = b[(PREDICTED + predict.WAIT_S) * LANES + j] * weight
        n += weight
        wait += own
        low, high = min(low, own if weight else np.inf), max(high, own)
        share += b[(PREDICTED + predict.SHARE) * LANES + j] * weight
        missed += weight if b[(PREDICTED + predict.TTFT) * LANES + j] > 1.0 else 0.0
    for i in range(12, 17):
        out[i] = 0.0
    if n:
        out[12], out[13], out[14] = squash(wait / n, 1.0), squash(low, 1.0), squash(high, 1.0)
        out[15], out[16] = share / n, missed / n


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fill_token_side(lanes, machines, out):
    """Places 17 to 22, over machines that may take a token phase; zeros when there is none."""
    n, running, inbound, used, top, share, missed = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for m in range(machines):
        b, j = seen_block(lanes, m // LANES), m % LANES
        weight = 1.0 - b[CLOSED_TOKEN * LANES + j]
        own = clip(b[(PREDICTED + predict.MEMORY_USED) * LANES + j], 0.0, 1.0) * weight
        n += weight
        running += b[RUNNING * LANES + j] * weight
        inbound += b[INBOUND * LANES + j] * weight
        used += own
        top = max(top, own)
        share += b[(PREDICTED + predict.SHARE) * LANES + j] * weight
        missed += weight if b[(PREDICTED + predict.TBT_SPLIT) * LANES + j] > 1.0 else 0.0
    for i in range(17, 23):
        out[i] = 0.0
    if n:
        out[17], out[18] = squash(running / n, 32.0), squash(inbound / n, 8.0)
        out[19], out[20], out[21], out[22] = used / n, top, share / n, missed / n


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fill_request(ref, prompt_tokens, max_tokens, oracle_output, attempt, rules, memory, out):
    """(R,) of a request that is to be routed, from its `Reference` and the fields of its `RequestInfo`."""
    prompt, expected = np.float64(prompt_tokens), ref.output_tokens
    if oracle_output > 0:
        expected = np.float64(oracle_output)
    out[0] = 1.0
    out[1] = squash(prompt, 2048.0)
    out[2] = squash(prompt, 256.0)
    out[3] = 0.5 * clip(prompt / rules.max_prompt_tokens, 0.0, 2.0)
    out[4] = squash(prompt / mean_prompt(memory), 1.0)
    out[5] = squash(ref.ttft_ns / NS_PER_S, 1.0)
    if max_tokens > 0:
        out[6] = 1.0
        out[7] = squash(np.float64(max_tokens), 512.0)
    out[8] = squash(expected, 256.0)
    out[9] = attempt > 0
