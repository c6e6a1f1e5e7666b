"""The network beside the index: its features and its arithmetic, over blocks of machines.

Decisions are the same on every machine: only +, -, *, /, the square root (rounded correctly everywhere),
comparisons and exact scaling by powers of two. `tanh` and `log` of a system's library differ in their last
bit, so both are replaced here.
"""

import math

import numpy as np

from splitgym.compile_cache import numba
from splitgym.profile.tables import prompt_time_ns, token_time_ns
from splitgym.schedulers.lanes import (
    BATCH,
    BLOCK,
    CLOSED_PROMPT,
    CLOSED_TOKEN,
    COSTS,
    EXPECTED,
    INBOUND,
    LANES,
    PREDICTED,
    QUEUED,
    block_of,
)
from splitgym.schedulers.predict import (
    HARM_PROMPT,
    HARM_TOKEN,
    ITERATION,
    MEMORY_PROMISED,
    MEMORY_USED,
    PROMPT_TIME,
    SHARE,
    TBT_SAME,
    TBT_SPLIT,
    TTFT,
    WAIT_S,
)

MACHINE_FEATURES = 17
CLUSTER_FEATURES = 13
FEATURES = MACHINE_FEATURES + CLUSTER_FEATURES
OUTPUTS = 3

_LOAD_BATCH = 32
"""Decodes a batch when the prompts' share of the load is estimated."""

NETWORK_SCRATCH = (MACHINE_FEATURES + OUTPUTS) * LANES + CLUSTER_FEATURES
"""float64 numbers that `add_network` needs beside one a hidden unit."""


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def squash(x):
    """x (27 + x^2) / (27 + 9 x^2) up to |x| = 3, where it reaches +-1 with slope 0.

    The Pade approximant of tanh around 0, within 0.024 of it.
    """
    x = min(3.0, max(-3.0, x))
    square = x * x
    return x * (27.0 + square) / (27.0 + 9.0 * square)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def ln(x):
    """Natural logarithm within 1e-8, of a positive float64 that is not subnormal.

    ln(f 2^e) = e ln 2 + 2 artanh((f - 1) / (f + 1)). `f` and `e` are taken from the bits, so that several
    logarithms are computed at once; `f` in [2^-1/2, 2^1/2) leaves five terms of the series.
    """
    bits = np.float64(x).view(np.int64)
    exponent = (bits >> 52) - 1022
    fraction = np.int64((bits & ((1 << 52) - 1)) | (1022 << 52)).view(np.float64)  # in [1/2, 1)
    low = fraction < 0.7071067811865476
    fraction = 2.0 * fraction if low else fraction
    exponent = exponent - 1 if low else exponent
    s = (fraction - 1.0) / (fraction + 1.0)
    square = s * s
    series = 1.0 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9))))
    return exponent * 0.6931471805599453 + 2.0 * s * series


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def prompt_load(tables, prompt_tokens, requests, mean_output):
    """Prompts' share of the work that comes in, 0 to 1, as on the reference machine.

    Args:
        tables: `ProfileTables`.
        prompt_tokens, requests: of all in the system and of the request to be routed: the mean prompt.
        mean_output: recent mean output [tokens]; a decode is estimated in a batch of `_LOAD_BATCH`.
    """
    mean = max(1, prompt_tokens // requests)
    context = _LOAD_BATCH * (mean + np.int64(mean_output * 0.5))
    decode = mean_output * token_time_ns(tables, 0, _LOAD_BATCH, context) / _LOAD_BATCH
    prompt = np.float64(prompt_time_ns(tables, 0, mean))
    return prompt / (prompt + decode)


@numba.njit(cache=True, error_model="numpy")
def cluster_features(lanes, machines, tables, q, out):
    """Fill the features that all machines share.

    Args:
        lanes: blocks with predictions, see `splitgym.schedulers.lanes`.
        machines: M; places from M on are left out.
        tables, q: `ProfileTables` and the request's `Asked`.
        out: (at least CLUSTER_FEATURES,) float64, filled.

    Returns:
        Mean, least and longest wait for a prompt [s].

    Means are over the machines allowed for the phase.
    """
    prompts = tokens = 0
    wait = own = squares = late = iteration = slow = share = promised = longest = requests = 0.0
    all_tokens, all_requests = q.prompt_tokens, 1.0
    least = best = np.inf
    for m in range(machines):
        b, j = block_of(lanes, m // LANES), m % LANES
        all_tokens += b[EXPECTED * LANES + j]
        all_requests += b[BATCH * LANES + j]
        if b[CLOSED_PROMPT * LANES + j] == 0.0:
            own_wait, ttft = b[(PREDICTED + WAIT_S) * LANES + j], b[(PREDICTED + TTFT) * LANES + j]
            prompt_time = b[(PREDICTED + PROMPT_TIME) * LANES + j]
            prompts += 1
            wait += own_wait
            least = min(least, own_wait)
            longest = max(longest, own_wait)
            best = min(best, ttft)
            own += prompt_time
            squares += prompt_time * prompt_time
            late += ttft > 1.0
        if b[CLOSED_TOKEN * LANES + j] == 0.0:
            tokens += 1
            iteration += b[(PREDICTED + ITERATION) * LANES + j]
            slow += b[(PREDICTED + TBT_SPLIT) * LANES + j] > 1.0
            share += b[(PREDICTED + SHARE) * LANES + j]
            promised += b[(PREDICTED + MEMORY_PROMISED) * LANES + j]
            requests += b[BATCH * LANES + j]
    per_prompt, per_token = 1.0 / max(1, prompts), 1.0 / max(1, tokens)
    wait, own = wait * per_prompt, own * per_prompt
    load = prompt_load(tables, np.int64(all_tokens), np.int64(all_requests), q.mean_output_tokens)
    out[0] = ln(1.0 + wait) - 0.3
    out[1] = 2.0 * (load - 0.6)
    out[2] = late * per_prompt - 0.3
    out[3] = 4.0 * math.sqrt(max(0.0, squares * per_prompt - own * own))
    out[4] = 0.5 * (ln(max(1.0, q.prompt_tokens)) - 6.9)
    out[5] = 2.0 * (iteration * per_token - 0.7)
    out[6] = slow * per_token - 0.2
    out[7] = 2.0 * (share * per_token) - 1.0
    out[8] = ln(q.mean_output_tokens) - 5.0
    out[9] = min(best, 4.0) - 1.0
    out[10] = ln(1.0 + longest) - 0.6
    out[11] = 2.0 * min(promised * per_token, 2.0) - 0.6
    out[12] = requests * per_token / 32.0 - 0.5
    return wait, min(least, 1e9), longest


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def machine_features(b, wait, least_log, longest_log, tbt_slo, out):
    """Fill the own features of a block of machines.

    Args:
        b: (BLOCK,) float64 with predictions, see `splitgym.schedulers.lanes`.
        wait: mean over machines [s].
        least_log, longest_log: ln(1 + wait) of the least and of the longest wait.
        tbt_slo: of the view's rules.
        out: (at least MACHINE_FEATURES x LANES,) float64, flat, filled.
    """
    for j in range(LANES):
        own_wait = b[(PREDICTED + WAIT_S) * LANES + j]
        own_log = ln(1.0 + own_wait)
        ttft = b[(PREDICTED + TTFT) * LANES + j]
        out[j] = min(ttft, 4.0) - 1.0
        out[LANES + j] = 2.0 * min(1.0, max(0.0, 5.0 * ttft - 4.0)) - 1.0
        out[2 * LANES + j] = 2.0 * min(b[(PREDICTED + TBT_SPLIT) * LANES + j], 3.0) - 1.6
        out[3 * LANES + j] = 2.0 * min(b[(PREDICTED + TBT_SAME) * LANES + j], 3.0) - 1.6
        out[4 * LANES + j] = own_log - 0.3
        out[5 * LANES + j] = 0.5 * (own_wait - wait) / (wait + 0.2)
        out[6 * LANES + j] = own_log - least_log
        out[7 * LANES + j] = 2.0 * b[(PREDICTED + MEMORY_USED) * LANES + j] - 0.6
        out[8 * LANES + j] = 2.0 * b[(PREDICTED + SHARE) * LANES + j] - 1.0
        out[9 * LANES + j] = b[BATCH * LANES + j] / 32.0 - 0.7
        out[10 * LANES + j] = 4.0 * (b[(PREDICTED + PROMPT_TIME) * LANES + j] - 0.7)
        out[11 * LANES + j] = 0.5 * b[(PREDICTED + HARM_PROMPT) * LANES + j] - 0.5
        out[12 * LANES + j] = 2.0 * tbt_slo * b[(PREDICTED + HARM_TOKEN) * LANES + j]
        out[13 * LANES + j] = own_log - longest_log
        out[14 * LANES + j] = min(b[QUEUED * LANES + j], 32.0) / 8.0 - 0.3
        out[15 * LANES + j] = b[INBOUND * LANES + j] / 8.0 - 0.3
        out[16 * LANES + j] = 2.0 * min(b[(PREDICTED + MEMORY_PROMISED) * LANES + j], 2.0) - 0.6


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def inward(network, at):
    """The weights from a machine's features to the hidden unit whose weights begin at `at`."""
    w = network[at : at + MACHINE_FEATURES]
    first = (w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8])
    return (*first, w[9], w[10], w[11], w[12], w[13], w[14], w[15], w[16])


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def add_unit(first, w, outward, lanes):
    """Add what one hidden unit gives to the outputs of `LANES` machines.

    Args:
        first: its bias and what the cluster's features give it.
        w: MACHINE_FEATURES weights to it.
        outward: its OUTPUTS weights.
        lanes: (MACHINE_FEATURES + OUTPUTS, LANES) float64, flat: features, then outputs, which are changed.

    The sum is written out, and all weights are at hand: only so does the compiler take the machines together.
    """
    for j in range(LANES):
        total = first + w[0] * lanes[j] + w[1] * lanes[LANES + j]
        total = total + w[2] * lanes[2 * LANES + j] + w[3] * lanes[3 * LANES + j]
        total = total + w[4] * lanes[4 * LANES + j] + w[5] * lanes[5 * LANES + j]
        total = total + w[6] * lanes[6 * LANES + j] + w[7] * lanes[7 * LANES + j]
        total = total + w[8] * lanes[8 * LANES + j] + w[9] * lanes[9 * LANES + j]
        total = total + w[10] * lanes[10 * LANES + j] + w[11] * lanes[11 * LANES + j]
        total = total + w[12] * lanes[12 * LANES + j] + w[13] * lanes[13 * LANES + j]
        total = total + w[14] * lanes[14 * LANES + j] + w[15] * lanes[15 * LANES + j]
        total = total + w[16] * lanes[16 * LANES + j]
        unit = squash(total)
        lanes[17 * LANES + j] += outward[0] * unit
        lanes[18 * LANES + j] += outward[1] * unit
        lanes[19 * LANES + j] += outward[2] * unit


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def hidden_units(network):
    """Width of the hidden layer of `add_network`'s vector."""
    return (network.shape[0] - OUTPUTS) // (FEATURES + 1 + OUTPUTS)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def add_network(lanes, machines, tables, q, tbt_slo, network, scratch):
    """Add the network's outputs to the costs.

    Args:
        lanes, machines, tables, q: as for `cluster_features`; the rows from COSTS on are changed, infinite
            stays infinite.
        tbt_slo: of the view's rules.
        network: the flat vector from `residual.NETWORK_AT` on, of at least one hidden unit.
        scratch: (NETWORK_SCRATCH + hidden units,) float64.

    What the cluster's features give each hidden unit is the same for all machines, so it is summed once.
    `LANES` machines at a time go through the network side by side: each has the same sums in the same order
    as alone, so the same bits.
    """
    hidden = hidden_units(network)
    bias_at = hidden * FEATURES
    output_at = bias_at + hidden
    output_bias_at = output_at + OUTPUTS * hidden
    side = scratch[: (MACHINE_FEATURES + OUTPUTS) * LANES]
    shared = scratch[(MACHINE_FEATURES + OUTPUTS) * LANES : NETWORK_SCRATCH]
    sums = scratch[NETWORK_SCRATCH : NETWORK_SCRATCH + hidden]
    wait, least, longest = cluster_features(lanes, machines, tables, q, shared)
    least_log, longest_log = ln(1.0 + least), ln(1.0 + longest)
    for h in range(hidden):
        total = network[bias_at + h]
        for i in range(CLUSTER_FEATURES):
            total += network[h * FEATURES + MACHINE_FEATURES + i] * shared[i]
        sums[h] = total
    for block in range(lanes.shape[0] // BLOCK):
        b = block_of(lanes, block)
        machine_features(b, wait, least_log, longest_log, tbt_slo, side)
        for output in range(OUTPUTS):
            bias = network[output_bias_at + output]
            for j in range(LANES):
                side[(MACHINE_FEATURES + output) * LANES + j] = bias
        for h in range(hidden):
            at = output_at + h
            outward = (network[at], network[at + hidden], network[at + 2 * hidden])
            add_unit(sums[h], inward(network, h * FEATURES), outward, side)
        for output in range(OUTPUTS):
            for j in range(LANES):
                b[(COSTS + output) * LANES + j] += side[(MACHINE_FEATURES + output) * LANES + j]
