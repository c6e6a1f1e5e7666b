"""The observation's arithmetic: one compiled pass over a view. Columns stand in the order of `features`."""

import numpy as np

from splitgym.compile_cache import numba
from splitgym.profile.tables import prompt_time_ns, token_time_ns
from splitgym.schedulers import predict
from splitgym.slo import reference_ttft_ns
from splitgym.types import NS_PER_S, UNKNOWN, Pool, RequestInfo
from splitgym.view import ARRIVED_PROMPT_TOKENS, ARRIVED_REQUESTS, COMPLETED_REQUESTS, NUM_COUNTERS

# Places in the observer's memory, a float64 array.
WEIGHT_5S, REQUESTS_5S, PROMPT_TOKENS_5S = 0, 1, 2
WEIGHT_60S, REQUESTS_60S, PROMPT_TOKENS_60S, COMPLETIONS_60S = 3, 4, 5, 6
WEIGHT_20S, REQUESTS_20S, PROMPT_TOKENS_20S = 7, 8, 9
NUM_MEMORY = 10
# And of what it saw last, an int64 array: the view's counters, then its clock.
LAST_CLOCK = NUM_COUNTERS
NUM_LAST = NUM_COUNTERS + 1

SPEED_BATCH = 32
SPEED_CONTEXT_TOKENS = 32 * 1024
"""Token speed is compared, and the cluster's token speed stated, at this batch."""
TYPICAL_PROMPT_TOKENS = 1024
"""Prompt of the request that predictions at a control tick are for, before any request has arrived."""

_PROMPT, _TOKEN, _MIXED = int(Pool.PROMPT), int(Pool.TOKEN), int(Pool.MIXED)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def squash(x, scale):
    """x / (x + scale), for x of at least 0."""
    return x / (x + scale)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def clip(x, low, high):
    """`x` within [low, high]."""
    return min(high, max(low, x))


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def remember(view, memory, last):
    """Move the recent rates on to the view's time; returns the seconds since the last call.

    A sum S over a time constant tau becomes (S + new) tau / (tau + dt), and so does the time it covers; their
    quotient is the rate. (exp(-dt / tau) would differ in its last bits between machines.)
    """
    elapsed_s = max(0, view.clock[0] - last[LAST_CLOCK]) / NS_PER_S
    requests = np.float64(max(0, view.counters[ARRIVED_REQUESTS] - last[ARRIVED_REQUESTS]))
    tokens = np.float64(max(0, view.counters[ARRIVED_PROMPT_TOKENS] - last[ARRIVED_PROMPT_TOKENS]))
    completions = np.float64(max(0, view.counters[COMPLETED_REQUESTS] - last[COMPLETED_REQUESTS]))
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
    last[:NUM_COUNTERS] = view.counters
    last[LAST_CLOCK] = view.clock[0]
    return elapsed_s


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def mean_prompt(memory):
    """Mean prompt tokens of the last 60 s; `TYPICAL_PROMPT_TOKENS` before any arrival."""
    if memory[REQUESTS_60S] <= 0.0:
        return np.float64(TYPICAL_PROMPT_TOKENS)
    return memory[PROMPT_TOKENS_60S] / memory[REQUESTS_60S]


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fill(view, request, present, memory, last, scratch, machines, cluster, wanted, mask):
    """Fill one observation.

    Args:
        view: `ClusterView` of m machines.
        request: `RequestInfo`; ignored unless `present`.
        present: is a request to be routed?
        memory, last: the observer's, (NUM_MEMORY,) float64 and (NUM_LAST,) int64; moved on.
        scratch: (at least m, NUM_PREDICTIONS) float64.
        machines, cluster, wanted, mask: (M, F), (G,), (R,), (M,) float32 zeros, filled.
    """
    since_s = remember(view, memory, last)
    if not present:
        typical = int(max(1.0, mean_prompt(memory)))
        request = RequestInfo(-1, view.clock[0], typical, UNKNOWN, UNKNOWN, 0)
    predict.predict_request(view, request, scratch)
    fill_machines(view, scratch, machines)
    fill_cluster(view, scratch, memory, since_s, cluster)
    if present:
        fill_request(view, request, memory, wanted)
    mask[: view.machine_row.shape[0]] = 1.0


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def least_allowed(values, allowed):
    """Least value of an allowed machine; of any machine when none is allowed."""
    best, found = np.inf, False
    for m in range(allowed.shape[0]):
        if allowed[m] and values[m] < best:
            best, found = values[m], True
    if not found:
        for m in range(allowed.shape[0]):
            best = min(best, values[m])
    return best


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fill_machines(view, scratch, out):
    """(M, F) from the view and its predictions."""
    tables, rules = view.tables, view.rules
    full = rules.max_prompt_tokens
    wait_min = least_allowed(scratch[:, predict.WAIT_S], view.prompt_allowed)
    ttft_min = least_allowed(scratch[:, predict.TTFT], view.prompt_allowed)
    split_min = least_allowed(scratch[:, predict.TBT_SPLIT], view.token_allowed)
    before, prompt_speed, token_speed = -1, 0.0, 0.0
    for m in range(view.machine_row.shape[0]):
        row, x, o = view.machine_row[m], scratch[m], out[m]
        if row != before:  # neighbours are mostly of one type
            before = row
            prompt_speed = prompt_time_ns(tables, 0, full) / prompt_time_ns(tables, row, full)
            token_speed = token_time_ns(tables, 0, SPEED_BATCH, SPEED_CONTEXT_TOKENS) / token_time_ns(
                tables, row, SPEED_BATCH, SPEED_CONTEXT_TOKENS
            )
        o[0] = squash(prompt_speed, 1.0)
        o[1] = squash(token_speed, 1.0)
        o[2] = squash(np.float64(view.kv_capacity_tokens[m]), 131072.0)
        o[3] = squash(view.link_bytes_per_s[m] / rules.kv_bytes_per_token, 16384.0)
        o[4] = view.home_pool[m] == _PROMPT
        o[5] = view.home_pool[m] == _TOKEN
        o[6] = view.home_pool[m] == _MIXED
        o[7] = view.pool[m] == _PROMPT
        o[8] = view.pool[m] == _TOKEN
        o[9] = view.pool[m] == _MIXED
        o[10] = view.available[m] != 0
        o[11] = view.prompt_allowed[m] != 0
        o[12] = view.token_allowed[m] != 0
        o[13] = squash(np.float64(view.prompt_requests[m]), 4.0)
        o[14] = squash(np.float64(view.prompt_tokens[m]), 4096.0)
        o[15] = squash(x[predict.WAIT_S], 1.0)
        o[16] = squash(max(0.0, x[predict.WAIT_S] - wait_min), 0.25)
        o[17] = x[predict.SHARE]
        o[18] = squash(np.float64(view.running[m]), 32.0)
        o[19] = squash(np.float64(view.running_context_tokens[m]), 32768.0)
        o[20] = squash(np.float64(view.inbound[m]), 8.0)
        o[21] = squash(np.float64(view.inbound_prompt_tokens[m]), 8192.0)
        o[22] = squash(np.float64(view.transfers[m]), 4.0)
        o[23] = clip(x[predict.MEMORY_USED], 0.0, 1.0)
        o[24] = 0.5 * clip(x[predict.MEMORY_PROMISED], 0.0, 2.0)
        o[25] = squash(x[predict.TTFT], 1.0)
        o[26] = clip(4.0 * (x[predict.TTFT] - 0.8), 0.0, 1.0)
        o[27] = squash(max(0.0, x[predict.TTFT] - ttft_min), 0.25)
        o[28] = squash(x[predict.TBT_SPLIT], 1.0)
        o[29] = clip(6.0 * (x[predict.TBT_SPLIT] - 0.85), 0.0, 1.0)
        o[30] = squash(max(0.0, x[predict.TBT_SPLIT] - split_min), 0.25)
        o[31] = squash(x[predict.TBT_SAME], 1.0)
        o[32] = clip(6.0 * (x[predict.TBT_SAME] - 0.85), 0.0, 1.0)
        o[33] = squash(x[predict.ITERATION], 1.0)
        o[34] = squash(x[predict.PROMPT_TIME], 1.0)
        o[35] = squash(x[predict.HARM_PROMPT], 1.0)
        o[36] = squash(max(0.0, x[predict.HARM_TOKEN]), 1.0)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fill_cluster(view, scratch, memory, since_s, out):
    """(G,) from the view, its predictions and the recent rates."""
    fill_load(view, memory, out)
    fill_pools(view, out)
    fill_prompt_side(view, scratch, out)
    fill_token_side(view, scratch, out)
    out[23] = squash(since_s, 1.0)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fill_load(view, memory, out):
    """Places 0 to 7, and the forecast.

    A second without arrivals is added before the rates, so the first is no spike.
    """
    tables, full = view.tables, view.rules.max_prompt_tokens
    prompt_speed, token_speed = 0.0, 0.0  # of all available machines [tokens/s]
    before, prompt_own, token_own = -1, 0.0, 0.0  # of one
    for m in range(view.machine_row.shape[0]):
        if view.available[m]:
            row = view.machine_row[m]
            if row != before:
                before = row
                prompt_own = full * 1e9 / prompt_time_ns(tables, row, full)
                token_own = SPEED_BATCH * 1e9 / token_time_ns(tables, row, SPEED_BATCH, SPEED_CONTEXT_TOKENS)
            prompt_speed += prompt_own
            token_speed += token_own
    prompt_speed, token_speed = max(1.0, prompt_speed), max(1.0, token_speed)
    mean_output = predict.mean_output(view)
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
def fill_pools(view, out):
    """Places 8 to 11: shares of machines."""
    m = view.machine_row.shape[0]
    available, prompt, token, mixed = 0, 0, 0, 0
    for i in range(m):
        available += view.available[i] != 0
        prompt += view.home_pool[i] == _PROMPT
        token += view.home_pool[i] == _TOKEN
        mixed += view.pool[i] == _MIXED
    out[8], out[9], out[10], out[11] = available / m, prompt / m, token / m, mixed / m


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fill_prompt_side(view, scratch, out):
    """Places 12 to 16, over machines that may take a prompt; zeros when there is none."""
    n, wait, low, high, share, missed = 0, 0.0, np.inf, 0.0, 0.0, 0
    for m in range(view.machine_row.shape[0]):
        if view.prompt_allowed[m]:
            own = scratch[m, predict.WAIT_S]
            n += 1
            wait += own
            low, high = min(low, own), max(high, own)
            share += scratch[m, predict.SHARE]
            missed += scratch[m, predict.TTFT] > 1.0
    if n:
        out[12], out[13], out[14] = squash(wait / n, 1.0), squash(low, 1.0), squash(high, 1.0)
        out[15], out[16] = share / n, missed / n


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fill_token_side(view, scratch, out):
    """Places 17 to 22, over machines that may take a token phase; zeros when there is none."""
    n, running, inbound, used, top, share, missed = 0, 0, 0, 0.0, 0.0, 0.0, 0
    for m in range(view.machine_row.shape[0]):
        if view.token_allowed[m]:
            own = clip(scratch[m, predict.MEMORY_USED], 0.0, 1.0)
            n += 1
            running += view.running[m]
            inbound += view.inbound[m]
            used += own
            top = max(top, own)
            share += scratch[m, predict.SHARE]
            missed += scratch[m, predict.TBT_SPLIT] > 1.0
    if n:
        out[17], out[18] = squash(running / n, 32.0), squash(inbound / n, 8.0)
        out[19], out[20], out[21], out[22] = used / n, top, share / n, missed / n


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fill_request(view, request, memory, out):
    """(R,) of a request that is to be routed."""
    prompt = np.float64(request.prompt_tokens)
    expected = predict.estimated_output(view, request)
    if request.oracle_output_tokens > 0:
        expected = np.float64(request.oracle_output_tokens)
    out[0] = 1.0
    out[1] = squash(prompt, 2048.0)
    out[2] = squash(prompt, 256.0)
    out[3] = 0.5 * clip(prompt / view.rules.max_prompt_tokens, 0.0, 2.0)
    out[4] = squash(prompt / mean_prompt(memory), 1.0)
    out[5] = squash(reference_ttft_ns(view.tables, request.prompt_tokens) / NS_PER_S, 1.0)
    if request.max_tokens > 0:
        out[6] = 1.0
        out[7] = squash(np.float64(request.max_tokens), 512.0)
    out[8] = squash(expected, 256.0)
    out[9] = request.attempt > 0
