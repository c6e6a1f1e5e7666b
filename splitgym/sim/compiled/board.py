"""The paper's scheduler over an index of the machines: the decisions of `schedulers.splitwise`, sooner.

The board holds, by pool, what the scheduler compares. Only machines that an event has touched are written,
so a decision costs what has changed since the last one. Machines stand in blocks of `FAN`, blocks in groups
of `FAN`, and of each the board knows the least: a search looks at the groups, at the blocks of the best one
and at the machines of the best of these. What grows while a machine decodes (KV tokens held) is computed for
the machines that could be chosen.

KV tokens expected depend on the mean output, which changes with every completion. The least of a block is a
concave function of the mean: a least of straight lines. So the board keeps it for two means, and for every
mean between them it is at least what lies between the two. A machine that holds more than what is expected of
it stands there with what it held when it was written; it holds no less now, since an event that frees memory
touches it. A block is looked at where its bound is low enough.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from splitgym.sim.compiled.show import *
from splitgym.sim.compiled.wide import (
    EMPTY,
    FAN,
    FAN_BITS,
    bound_within,
    floor_within,
    least_bound,
    least_floor,
    least_long,
    least_real,
    long_within,
    opaque,
    put_ends,
)

GROUP = FAN * FAN
POOLS = 3
SPREAD = 0.01
"""The board's bounds are for means so much around the one at which they were made."""
FEW = 4 * FAN
"""Up to so many machines there are no bounds: to look at all of them takes less than to keep bounds up."""


@compiled
def max_tokens_of(sim, job):
    """The client's `max_tokens`, where it gave one."""
    return job.max_tokens


# ---- the board --------------------------------------------------------------------------------------------


@inlined
def post(sim, machine):
    """Write what the scheduler compares of a machine."""
    weigh(sim, machine)
    m = machine.index
    pool = machine.pool if machine.up else NONE
    before = machine.posted
    if before != pool:
        machine.posted = pool
        if before != NONE:
            post_pending(sim, before, m, FAR)
            post_tokens(sim, before, m, np.inf, 0.0, 0.0)
    if pool != NONE:
        requests = machine.running + machine.inbound
        post_pending(sim, pool, m, machine.prompt_tokens + requests)
        tokens = machine.running_prompt_tokens + machine.inbound_prompt_tokens
        # Prompt machines are hardly ever asked for memory: it is not kept up for them.
        used = 0 if pool == TO_PROMPT else machine.kv_used_tokens
        post_tokens(sim, pool, m, np.float64(tokens), np.float64(requests), np.float64(used))


@inlined
def post_touched(sim):
    """Bring the board up to date."""
    for i in range(sim.touched):
        machine = machine_at(sim, short_at(sim.touched_list, i))
        machine.touched = 0
        post(sim, machine)
    sim.touched = 0
    sim.masks = confined(sim)
    sim.can_route = sim.up_prompt + sim.up_token + sim.up_mixed


@inlined
def post_pending(sim, pool, m, tokens):
    """A machine of a pool has `tokens` pending."""
    if sim.few:
        put_long(pending_of(sim, pool), m, tokens)
    else:
        put_pending(sim, pending_of(sim, pool), m, tokens)


@inlined
def post_tokens(sim, pool, m, tokens, requests, used):
    """A machine of a pool has, or expects, `requests` with `tokens` prompt tokens in all; it holds `used`."""
    if sim.few:
        put_real(sim.board_expected + 8 * sim.num_padded * pool, m, tokens)
        put_real(sim.board_requests, m, requests)
        put_real(sim.board_used, m, used)
    else:
        post_bounds(sim, pool, m, tokens, requests, used)


@compiled
def post_bounds(sim, pool, m, tokens, requests, used):
    """As `post_tokens`, with what bounds the machine, its block and its group."""
    row = sim.board_expected + 8 * sim.num_padded * pool
    same = tokens == real_at(row, m) and requests == real_at(sim.board_requests, m)
    if same and used >= real_at(sim.board_used, m):
        return
    put_real(row, m, tokens)
    put_real(sim.board_requests, m, requests)
    put_real(sim.board_used, m, used)
    put_bounds(sim, pool, m)


@compiled
def post_used(sim, pool, m):
    """A machine holds more than the board knew: it is not looked at again before others hold as much."""
    put_real(sim.board_used, m, np.float64(machine_at(sim, m).kv_used_tokens))
    if not sim.few:
        put_bounds(sim, pool, m)


@compiled
def put_bounds(sim, pool, m):
    """Write a machine's bounds."""
    low, high = ends_of(sim, pool, m)
    put_bound(sim, lows_of(sim, pool), m, low)
    put_bound(sim, highs_of(sim, pool), m, high)


@inlined
def ends_of(sim, pool, m):
    """KV tokens below which a machine is not, at the lowest and the highest mean of its pool's bounds."""
    tokens = real_at(sim.board_expected + 8 * sim.num_padded * pool, m)
    requests, used = real_at(sim.board_requests, m), real_at(sim.board_used, m)
    low, middle, high = sim.means[3 * pool], sim.means[3 * pool + 1], sim.means[3 * pool + 2]
    if used >= tokens + requests * middle:
        return used, used
    return min(EMPTY, tokens + requests * low), min(EMPTY, tokens + requests * high)


@compiled
def centre(sim, pool, mean):
    """Make a pool's bounds anew, around this mean."""
    low, high = (1.0 - SPREAD) * mean, (1.0 + SPREAD) * mean
    sim.means[3 * pool], sim.means[3 * pool + 1], sim.means[3 * pool + 2] = low, mean, high
    row, lows, highs = sim.board_expected + 8 * sim.num_padded * pool, lows_of(sim, pool), highs_of(sim, pool)
    # A group's number stands behind those of all blocks, as a block's behind those of all machines.
    low_least, high_least = lows + 8 * sim.num_padded, highs + 8 * sim.num_padded
    for place in range(sim.num_blocks + sim.num_groups):
        if real_at(low_least, place) >= EMPTY:  # none of this pool
            continue
        if place < sim.num_blocks:
            put_ends(row, sim.board_requests, sim.board_used, FAN * place, low, mean, high, lows, highs)
        put_real(low_least, place, least_real(lows, 0, 0, FAN * place, 0.0))
        put_real(high_least, place, least_real(highs, 0, 0, FAN * place, 0.0))


# ---- numbers with the least of every block and group ------------------------------------------------------


@compiled
def pending_of(sim, pool):
    """Where a pool's pending tokens stand: of machines, blocks, groups."""
    return sim.board_pending + 8 * sim.board_nodes * pool


@compiled
def lows_of(sim, pool):
    """Where a pool's bounds for the lowest mean stand: of machines, blocks, groups."""
    return sim.board_low + 8 * sim.board_nodes * pool


@compiled
def highs_of(sim, pool):
    """Where a pool's bounds for the highest mean stand: of machines, blocks, groups."""
    return sim.board_high + 8 * sim.board_nodes * pool


def ladder(at: Callable[..., Any], put: Callable[..., Any], least_of: Any) -> Callable[..., Any]:
    """A function that writes a machine's number, and the least of its block and group."""

    @compiled
    def put_number(sim, numbers, m, number):
        """Write a machine's number, and what the least of its block and of its group are then."""
        before = at(numbers, m)
        if before == number:
            return
        put(numbers, m, number)
        blocks, block = numbers + 8 * sim.num_padded, m >> FAN_BITS
        least = at(blocks, block)
        if number <= least:
            new = number
        elif before == least:
            new = least_of(numbers, 0, 0, FAN * block, 0.0)
        else:
            return
        if new == least:
            return
        put(blocks, block, new)
        groups, group = blocks + 8 * sim.num_blocks, block >> FAN_BITS
        before, least = least, at(groups, group)
        if new <= least:
            put(groups, group, new)
        elif before == least:
            put(groups, group, least_of(blocks, 0, 0, FAN * group, 0.0))

    return put_number


put_pending = ladder(long_at, put_long, least_long)
put_bound = ladder(real_at, put_real, least_real)


# ---- prompts ----------------------------------------------------------------------------------------------


@compiled
def fewest_of(sim, pool):
    """(pending tokens, machine) with the fewest of a pool, the lowest index on ties; (FAR, NONE) if empty."""
    numbers = pending_of(sim, pool)
    if sim.few:
        least, block = lowest_long(numbers, sim.num_machines)
    else:
        blocks = numbers + 8 * sim.num_padded
        groups = blocks + 8 * sim.num_blocks
        least, part = lowest_long(groups, sim.num_groups)
        group = FAN * part + long_within(groups, 0, 0, FAN * part, 0.0, least, 0)
        block = FAN * group + long_within(blocks, 0, 0, FAN * group, 0.0, least, 0)
    if least == FAR:
        return FAR, NONE
    return least, FAN * block + long_within(numbers, 0, 0, FAN * block, 0.0, least, 0)


@compiled
def lowest_long(numbers, count):
    """(number, its block) of the least of `count` integers, the first such block of `FAN`."""
    least, best = least_long(numbers, 0, 0, 0, 0.0), 0
    for block in range(1, (count + FAN - 1) >> FAN_BITS):
        number = least_long(numbers, 0, 0, FAN * block, 0.0)
        lower = opaque((number - least) >> 63)  # all bits where it is
        least += (number - least) & lower
        best += (block - best) & lower
    return least, best


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


@compiled
def promised_by(sim, m, expected):
    """KV tokens used or promised on machine m: the larger of what is held now and what is expected."""
    machine = machine_at(sim, m)
    if long_at(sim.next_ends, m) <= sim.now:
        settle(sim, machine, ended(sim, machine))
    return max(np.float64(machine.kv_used_tokens), expected)


@compiled
def most_promising(lows, highs, count, share):
    """The first block of `FAN` with the lowest of `count` bounds, and that. `share`: see `least_memory`."""
    least, best = least_bound(lows, highs, 0, 0, share), 0
    for block in range(1, (count + FAN - 1) >> FAN_BITS):
        number = least_bound(lows, highs, 0, FAN * block, share)
        if number < least:
            least, best = number, block
    return best, least


@compiled
def least_memory(sim, pool, mean, best, least):
    """(machine, tokens) with the least KV memory used or promised of a pool, and of `best` with `least`."""
    if sim.few:
        for block in range((sim.num_machines + FAN - 1) >> FAN_BITS):
            best, least = least_of_block(sim, pool, block, mean, best, least)
        return best, least
    low, high = sim.means[3 * pool], sim.means[3 * pool + 2]
    if not low <= mean <= high:
        centre(sim, pool, mean)
        low, high = sim.means[3 * pool], sim.means[3 * pool + 2]
    share = (mean - low) / (high - low)  # where the mean is between the two
    lows, highs = lows_of(sim, pool) + 8 * sim.num_padded, highs_of(sim, pool) + 8 * sim.num_padded
    group_lows, group_highs = lows + 8 * sim.num_blocks, highs + 8 * sim.num_blocks
    part, floor = most_promising(group_lows, group_highs, sim.num_groups, share)
    if floor >= 0.5 * EMPTY:
        return best, least
    group = FAN * part + bound_within(group_lows, group_highs, 0, FAN * part, share, floor, 0)
    floor = least_bound(lows, highs, 0, FAN * group, share)
    first = FAN * group + bound_within(lows, highs, 0, FAN * group, share, floor, 0)
    best, least = least_of_block(sim, pool, first, mean, best, least)
    for part in range(0, sim.num_groups, FAN):
        g = bound_within(group_lows, group_highs, 0, part, share, least, 0)
        while g < FAN:
            best, least = least_of_group(sim, pool, part + g, first, mean, share, best, least)
            g = bound_within(group_lows, group_highs, 0, part, share, least, g + 1)
    return best, least


@compiled
def least_of_group(sim, pool, group, but, mean, share, best, least):
    """As `least_memory`, of a group's blocks but for one."""
    lows, highs = lows_of(sim, pool) + 8 * sim.num_padded, highs_of(sim, pool) + 8 * sim.num_padded
    b = bound_within(lows, highs, 0, FAN * group, share, least, 0)
    while b < FAN:
        if FAN * group + b != but:
            best, least = least_of_block(sim, pool, FAN * group + b, mean, best, least)
        b = bound_within(lows, highs, 0, FAN * group, share, least, b + 1)
    return best, least


@compiled
def least_of_block(sim, pool, block, mean, best, least):
    """(machine, tokens) with the least KV memory used or promised of a block, and of `best` with `least`."""
    row, requests, used = sim.board_expected + 8 * sim.num_padded * pool, sim.board_requests, sim.board_used
    first = FAN * block
    while True:
        floor = least_floor(row, requests, used, first, mean)
        if floor > least or floor == np.inf:
            return best, least
        m = first + floor_within(row, requests, used, first, mean, floor, 0)
        if floor == least and m > best:
            return best, least
        promised = promised_by(sim, m, real_at(row, m) + real_at(requests, m) * mean)
        if promised < least or (promised == least and m < best):
            best, least = m, promised
        if promised == floor:  # no other one of the block holds less
            return best, least
        post_used(sim, pool, m)


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


@inlined
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
