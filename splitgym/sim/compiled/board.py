"""The paper's scheduler over an index of the machines: the decisions of `schedulers.splitwise`, sooner.

The board holds, by pool, what the scheduler compares. Only machines that an event has touched are written,
so a decision costs what has changed since the last one, and a look at one number for 64 machines. What grows
while a machine decodes (KV tokens held) is computed for the machines that could be chosen.
"""

import numpy as np

from splitgym.sim.compiled.show import *

BLOCK_BITS = 6
BLOCK = 1 << BLOCK_BITS
POOLS = 3


@compiled
def max_tokens_of(sim, job):
    """The client's `max_tokens`, where it gave one."""
    return job.max_tokens


# ---- the board --------------------------------------------------------------------------------------------


@compiled
def post(sim, machine):
    """Write what the scheduler compares of a machine."""
    weigh(sim, machine)
    m = machine.index
    pool = machine.pool if machine.up else NONE
    before = machine.posted
    if before != pool:
        machine.posted = pool
        if before != NONE:
            post_prompts(sim, before, m, FAR)
            put_real(sim.board_expected + 8 * sim.num_padded * before, m, np.inf)
    if pool != NONE:
        requests = machine.running + machine.inbound
        post_prompts(sim, pool, m, machine.prompt_tokens + requests)
        tokens = machine.running_prompt_tokens + machine.inbound_prompt_tokens
        put_real(sim.board_expected + 8 * sim.num_padded * pool, m, np.float64(tokens))
        put_real(sim.board_requests, m, np.float64(requests))


@compiled
def post_prompts(sim, pool, m, pending):
    """A machine of a pool has this many pending tokens."""
    row = sim.board_pending + 8 * sim.num_padded * pool
    block = m >> BLOCK_BITS
    leasts = sim.board_least + 8 * (sim.num_padded >> BLOCK_BITS) * pool
    before, least = long_at(row, m), long_at(leasts, block)
    put_long(row, m, pending)
    if pending <= least:
        put_long(leasts, block, pending)
    elif before == least:
        put_long(leasts, block, least_of(row + 8 * BLOCK * block))


@compiled
def least_of(numbers):
    """The least number of a block."""
    least = FAR
    for i in range(BLOCK):
        least = min(least, long_at(numbers, i))
    return least


@compiled
def post_touched(sim):
    """Bring the board up to date."""
    for i in range(sim.touched):
        machine = machine_at(sim, short_at(sim.touched_list, i))
        machine.touched = 0
        post(sim, machine)
    sim.touched = 0
    sim.masks = confined(sim)
    sim.can_route = sim.up_prompt + sim.up_token + sim.up_mixed


# ---- prompts ----------------------------------------------------------------------------------------------


@compiled
def fewest_of(sim, pool):
    """(pending tokens, machine) with the fewest of a pool, the lowest index on ties; (FAR, NONE) if empty."""
    blocks = sim.num_padded >> BLOCK_BITS
    leasts = sim.board_least + 8 * blocks * pool
    least, block = FAR, 0
    for b in range(blocks):
        if long_at(leasts, b) < least:
            least, block = long_at(leasts, b), b
    if least == FAR:
        return FAR, NONE
    row = sim.board_pending + 8 * sim.num_padded * pool
    m = block << BLOCK_BITS
    while long_at(row, m) != least:
        m += 1
    return least, m


@compiled
def fewest_open(sim, closed):
    """The machine with the fewest pending tokens outside of a pool (NONE: of all)."""
    best, least = NONE, FAR
    for pool in range(POOLS):
        if pool != closed:
            pending, m = fewest_of(sim, pool)
            if m != NONE and (pending < least or (pending == least and m < best)):
                best, least = m, pending
    return best


@compiled
def prompt_machine(sim, job, pool, max_pending):
    """The best prompt machine of a pool; NONE where it is empty or even the best queue is long."""
    pending, m = fewest_of(sim, pool)
    if m == NONE or machine_at(sim, m).prompt_requests == 0:
        return m
    return NONE if pending + job.prompt_tokens > max_pending else m


# ---- tokens -----------------------------------------------------------------------------------------------


@compiled_any_order
def least_expected(tokens, requests, mean):
    """The least of tokens + requests x mean of a block."""
    least = np.inf
    for i in range(BLOCK):
        least = min(least, real_at(tokens, i) + real_at(requests, i) * mean)
    return least


@compiled
def promised_by(sim, m, expected):
    """KV tokens used or promised on machine m: the larger of what is held now and what is expected."""
    machine = machine_at(sim, m)
    if long_at(sim.next_ends, m) <= sim.now:
        settle(sim, machine, ended(sim, machine))
    return max(np.float64(machine.kv_used_tokens), expected)


@compiled
def least_memory(sim, pool, mean, best, least):
    """(machine, tokens) with the least KV memory used or promised of a pool, and of `best` with `least`."""
    row = sim.board_expected + 8 * sim.num_padded * pool
    for block in range(sim.num_padded >> BLOCK_BITS):
        first = block << BLOCK_BITS
        tokens, requests = row + 8 * first, sim.board_requests + 8 * first
        floor = least_expected(tokens, requests, mean)
        if floor > least or (floor == least and first > best):
            continue
        for i in range(BLOCK):
            expected = real_at(tokens, i) + real_at(requests, i) * mean
            m = first + i
            if expected < least or (expected == least and m < best):
                promised = promised_by(sim, m, expected)
                if promised < least or (promised == least and m < best):
                    best, least = m, promised
    return best, least


@compiled
def least_memory_open(sim, closed, mean):
    """The machine with the least KV memory used or promised outside of a pool (NONE: of all)."""
    best, least = NONE, np.inf
    for pool in range(POOLS):
        if pool != closed:
            best, least = least_memory(sim, pool, mean, best, least)
    return best


@compiled
def token_machine(sim, need, pool, mean):
    """The best token machine of a pool; NONE where it is empty or even the best memory is loaded."""
    m, promised = least_memory(sim, pool, mean, NONE, np.inf)
    if m != NONE and promised + need >= machine_at(sim, m).capacity:
        return NONE
    return m


# ---- the decision -----------------------------------------------------------------------------------------


@compiled
def splitwise_route(sim, job, max_pending):
    """(p, t) as `splitwise_kernel`, without its oracle."""
    mean = max(1.0, sim.mean_output[0] / sim.mean_output[1])
    limit = max_tokens_of(sim, job)
    output = min(mean, np.float64(limit)) if limit > 0 else mean
    need = job.prompt_tokens + output
    p = prompt_machine(sim, job, TO_PROMPT, max_pending)
    if p == NONE:
        p = prompt_machine(sim, job, TO_MIXED, max_pending)
    t = token_machine(sim, need, TO_TOKEN, mean)
    if t == NONE:
        t = token_machine(sim, need, TO_MIXED, mean)
    no_prompts = TO_TOKEN if sim.masks & PROMPT_MASK else NONE  # pools that are closed to a phase
    no_tokens = TO_PROMPT if sim.masks & TOKEN_MASK else NONE
    if p == NONE and no_prompts == NONE:
        p = fewest_of(sim, TO_TOKEN)[1]
    if t == NONE and no_tokens == NONE:
        t = least_memory(sim, TO_PROMPT, mean, NONE, np.inf)[0]
    if p != NONE and t != NONE:
        return p, t
    whole = fewest_whole(sim, no_prompts, no_tokens)
    if whole != NONE:
        return whole, whole
    if p == NONE:
        p = fewest_open(sim, no_prompts)
    if t == NONE:
        t = least_memory_open(sim, no_tokens, mean)
    return p, t


@compiled
def fewest_whole(sim, no_prompts, no_tokens):
    """The machine with the fewest pending tokens that may take a whole request."""
    if no_prompts != NONE and no_tokens != NONE:
        return fewest_of(sim, TO_MIXED)[1]
    return fewest_open(sim, no_prompts if no_tokens == NONE else no_tokens)
