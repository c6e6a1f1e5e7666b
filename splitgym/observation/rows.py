"""What an observation shows of each machine, kept from one observation to the next.

Machines stand in blocks of eight (`splitgym.schedulers.lanes`), with some rows more. What only the machine
itself changes is kept: its laid rows, and 21 of its features, as they are shown. The compiled engine writes
them anew for the machines that an event has touched (`splitgym.sim.compiled.observed`); an observer that is
given a view writes all.

The other 16 features depend on the time, on the request or on the mean output, so they are computed for every
machine at every observation, eight machines at once, by loops without a branch.
"""

import numpy as np

from splitgym.compile_cache import numba
from splitgym.observation.features import MACHINE_FEATURES
from splitgym.profile.tables import prompt_time_ns, token_time_ns
from splitgym.schedulers.lanes import (
    CAPACITY,
    CLOSED_PROMPT,
    CLOSED_TOKEN,
    INBOUND,
    LANES,
    LINK,
    OWN_NS,
    PREDICTED,
    QUEUED,
    ROWS,
    RUNNING,
    TYPE,
    USED,
    blank,
    lay_machine,
    num_blocks,
)
from splitgym.schedulers.predict import (
    HARM_PROMPT,
    HARM_TOKEN,
    ITERATION,
    MEMORY_PROMISED,
    PROMPT_TIME,
    SHARE,
    TBT_SAME,
    TBT_SPLIT,
    TTFT,
    WAIT_S,
    predict_block,
)
from splitgym.types import Pool

# Rows of a block after those of `splitgym.schedulers.lanes`.
PROMPT_SPEED, TOKEN_SPEED, MOVING = ROWS, ROWS + 1, ROWS + 2  # [tokens/s] of the machine; then the features
NUM_MOVING = 16
SEEN_BLOCK = (MOVING + NUM_MOVING) * LANES
"""Numbers of a block."""

NUM_FEATURES = len(MACHINE_FEATURES)
# The features that are computed each time: three from the first place on, the others from the second.
FIRST_MOVING, LATER_MOVING, NUM_FIRST = 15, 24, 3
AVAILABLE, PROMPT_ALLOWED, TOKEN_ALLOWED = 10, 11, 12
HOME_PROMPT, HOME_TOKEN, NOW_MIXED = 4, 5, 9
"""Features that others read."""

SPEED_BATCH = 32
SPEED_CONTEXT_TOKENS = 32 * 1024
"""Token speed is compared, and the cluster's token speed stated, at this batch."""

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
def seen_block(lanes, block):
    """(SEEN_BLOCK,) one block of `lanes`, which holds them one after the other."""
    return lanes[block * SEEN_BLOCK : (block + 1) * SEEN_BLOCK]


# ---- what a machine changes -------------------------------------------------------------------------------


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def lay_kind(b, j, shown, tables, rules, capacity):
    """Write a machine's hardware.

    Args:
        b, j: its block, with TYPE and LINK laid, and its place there.
        shown: (F,) float32, its features.
        tables, rules: the view's.
        capacity: KV tokens.
    """
    row, full = np.int64(b[TYPE * LANES + j]), rules.max_prompt_tokens
    prompt_ns = prompt_time_ns(tables, row, full)
    token_ns = token_time_ns(tables, row, SPEED_BATCH, SPEED_CONTEXT_TOKENS)
    b[PROMPT_SPEED * LANES + j] = full * 1e9 / prompt_ns
    b[TOKEN_SPEED * LANES + j] = SPEED_BATCH * 1e9 / token_ns
    shown[0] = squash(prompt_time_ns(tables, 0, full) / prompt_ns, 1.0)
    shown[1] = squash(token_time_ns(tables, 0, SPEED_BATCH, SPEED_CONTEXT_TOKENS) / token_ns, 1.0)
    shown[2] = squash(np.float64(capacity), 131072.0)
    shown[3] = squash(b[LINK * LANES + j] / rules.kv_bytes_per_token, 16384.0)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def lay_pools(shown, home, pool, available, prompt_allowed, token_allowed):
    """Write a machine's pools and flags; the arguments are the view's."""
    shown[HOME_PROMPT] = home == _PROMPT
    shown[HOME_TOKEN] = home == _TOKEN
    shown[6] = home == _MIXED
    shown[7] = pool == _PROMPT
    shown[8] = pool == _TOKEN
    shown[NOW_MIXED] = pool == _MIXED
    shown[AVAILABLE] = available != 0
    shown[PROMPT_ALLOWED] = prompt_allowed != 0
    shown[TOKEN_ALLOWED] = token_allowed != 0


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def lay_work(b, j, shown, prompt_tokens, running_context, inbound_prompts, transfers):
    """Write a machine's work, from its laid rows and these of the view."""
    shown[13] = squash(b[QUEUED * LANES + j], 4.0)
    shown[14] = squash(np.float64(prompt_tokens), 4096.0)
    shown[18] = squash(b[RUNNING * LANES + j], 32.0)
    shown[19] = squash(np.float64(running_context), 32768.0)
    shown[20] = squash(b[INBOUND * LANES + j], 8.0)
    shown[21] = squash(np.float64(inbound_prompts), 8192.0)
    shown[22] = squash(np.float64(transfers), 4.0)
    shown[23] = clip(b[USED * LANES + j] / b[CAPACITY * LANES + j], 0.0, 1.0)


@numba.njit(cache=True, error_model="numpy")
def lay_all(view, lanes, shown):
    """Write all machines of a view.

    Args:
        view: `ClusterView` of m machines.
        lanes: (at least SEEN_BLOCK x blocks of m,) float64.
        shown: (at least m, F) float32.
    """
    machines = view.machine_row.shape[0]
    for block in range(num_blocks(machines)):
        blank(seen_block(lanes, block))
    for m in range(machines):
        b, j, row = seen_block(lanes, m // LANES), m % LANES, shown[m]
        lay_machine(view, m, b)
        lay_kind(b, j, row, view.tables, view.rules, view.kv_capacity_tokens[m])
        lay_pools(
            row,
            view.home_pool[m],
            view.pool[m],
            view.available[m],
            view.prompt_allowed[m],
            view.token_allowed[m],
        )
        lay_work(
            b,
            j,
            row,
            view.prompt_tokens[m],
            view.running_context_tokens[m],
            view.inbound_prompt_tokens[m],
            view.transfers[m],
        )


# ---- what every observation computes ----------------------------------------------------------------------


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def predict_all(lanes, machines, tables, prompt_tokens, q):
    """Fill the predictions for a request on every machine: `predict_block`, with its prompt time laid."""
    before, own_ns = -1.0, 0.0
    for block in range(num_blocks(machines)):
        b = seen_block(lanes, block)
        for j in range(min(LANES, machines - block * LANES)):
            row = b[TYPE * LANES + j]
            if row != before:  # neighbours are mostly of one type
                before, own_ns = row, np.float64(prompt_time_ns(tables, np.int64(row), prompt_tokens))
            b[OWN_NS * LANES + j] = own_ns
        predict_block(b, q)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def least_open(lanes, machines, column, closed):
    """Least prediction of a machine that may be chosen; of any machine when none may be.

    Args:
        column: of `splitgym.schedulers.predict`.
        closed: CLOSED_PROMPT or CLOSED_TOKEN.
    """
    best = np.inf
    for block in range(num_blocks(machines)):
        b = seen_block(lanes, block)
        for j in range(LANES):
            own = b[(PREDICTED + column) * LANES + j] if b[closed * LANES + j] == 0.0 else np.inf
            best = min(best, own)
    if best == np.inf:
        for m in range(machines):
            best = min(best, seen_block(lanes, m // LANES)[(PREDICTED + column) * LANES + m % LANES])
    return best


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def move_block(b, wait_least, ttft_least, split_least):
    """Compute the features of a block that move with the time or the request, from its predictions."""
    for j in range(LANES):
        wait, ttft = b[(PREDICTED + WAIT_S) * LANES + j], b[(PREDICTED + TTFT) * LANES + j]
        split, same = b[(PREDICTED + TBT_SPLIT) * LANES + j], b[(PREDICTED + TBT_SAME) * LANES + j]
        b[MOVING * LANES + j] = squash(wait, 1.0)
        b[(MOVING + 1) * LANES + j] = squash(max(0.0, wait - wait_least), 0.25)
        b[(MOVING + 2) * LANES + j] = b[(PREDICTED + SHARE) * LANES + j]
        b[(MOVING + 3) * LANES + j] = 0.5 * clip(b[(PREDICTED + MEMORY_PROMISED) * LANES + j], 0.0, 2.0)
        b[(MOVING + 4) * LANES + j] = squash(ttft, 1.0)
        b[(MOVING + 5) * LANES + j] = clip(4.0 * (ttft - 0.8), 0.0, 1.0)
        b[(MOVING + 6) * LANES + j] = squash(max(0.0, ttft - ttft_least), 0.25)
        b[(MOVING + 7) * LANES + j] = squash(split, 1.0)
        b[(MOVING + 8) * LANES + j] = clip(6.0 * (split - 0.85), 0.0, 1.0)
        b[(MOVING + 9) * LANES + j] = squash(max(0.0, split - split_least), 0.25)
        b[(MOVING + 10) * LANES + j] = squash(same, 1.0)
        b[(MOVING + 11) * LANES + j] = clip(6.0 * (same - 0.85), 0.0, 1.0)
        b[(MOVING + 12) * LANES + j] = squash(b[(PREDICTED + ITERATION) * LANES + j], 1.0)
        b[(MOVING + 13) * LANES + j] = squash(b[(PREDICTED + PROMPT_TIME) * LANES + j], 1.0)
        b[(MOVING + 14) * LANES + j] = squash(b[(PREDICTED + HARM_PROMPT) * LANES + j], 1.0)
        b[(MOVING + 15) * LANES + j] = squash(max(0.0, b[(PREDICTED + HARM_TOKEN) * LANES + j]), 1.0)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fill_machines(lanes, shown, machines, out):
    """Write every machine's features, once its predictions are filled.

    Args:
        lanes, shown: what is kept.
        machines: m.
        out: (at least m, F) float32.
    """
    wait_least = least_open(lanes, machines, WAIT_S, CLOSED_PROMPT)
    ttft_least = least_open(lanes, machines, TTFT, CLOSED_PROMPT)
    split_least = least_open(lanes, machines, TBT_SPLIT, CLOSED_TOKEN)
    for block in range(num_blocks(machines)):
        b, first = seen_block(lanes, block), block * LANES
        move_block(b, wait_least, ttft_least, split_least)
        for j in range(min(LANES, machines - first)):
            for f in range(NUM_FEATURES):
                out[first + j, f] = shown[first + j, f]
            for k in range(NUM_FIRST):
                out[first + j, FIRST_MOVING + k] = b[(MOVING + k) * LANES + j]
            for k in range(NUM_FIRST, NUM_MOVING):
                out[first + j, LATER_MOVING - NUM_FIRST + k] = b[(MOVING + k) * LANES + j]
