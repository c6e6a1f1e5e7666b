"""The view that schedulers see, brought up to date where it is asked for."""

import numpy as np

from splitgym.sim.compiled.machine import *
from splitgym.view import NUM_COUNTERS, ClusterRules, ClusterView

# Rows of the view's integers, (NUM_LONGS, M).
VIEW_LONGS = (
    "machine_row",
    "kv_capacity_tokens",
    "link_bytes_per_s",
    "transfer_constant_ns",
    "home_pool",
    "pool",
    "prompt_requests",
    "prompt_tokens",
    "prompt_queue_ns",
    "iteration_end_ns",
    "iteration_prompts",
    "prompt_share_at_ns",
    "running",
    "running_context_tokens",
    "running_prompt_tokens",
    "inbound",
    "inbound_prompt_tokens",
    "transfers",
    "kv_used_tokens",
    "oracle_promised_tokens",
)
VIEW_FLAGS = ("available", "prompt_allowed", "token_allowed")
PROMPT_MASK, TOKEN_MASK = 1, 2


@compiled
def weigh(sim, machine):
    """A machine's present pool, and whether it may be chosen; counts those that may."""
    home = machine.home_pool
    tokens, prompts = machine.running + machine.inbound > 0, machine.prompt_tokens > 0
    mixed = (home == TO_PROMPT and tokens) or (home == TO_TOKEN and prompts)
    pool = TO_MIXED if mixed else home
    up = 1 if machine.down == 0 and not machine.switching else 0
    if pool == machine.pool and up == machine.up:
        return
    if machine.up:
        count_up(sim, machine.pool, -1)
    machine.pool, machine.up = pool, up
    if up:
        count_up(sim, pool, 1)


@compiled
def count_up(sim, pool, sign):
    if pool == TO_PROMPT:
        sim.up_prompt += sign
    elif pool == TO_TOKEN:
        sim.up_token += sign
    else:
        sim.up_mixed += sign


@compiled
def confined(sim):
    """Phases confined to their pools: where that would leave one without a machine, it is lifted."""
    if not sim.confine:
        return 0
    prompts = PROMPT_MASK if sim.up_prompt + sim.up_mixed else 0
    tokens = TOKEN_MASK if sim.up_token + sim.up_mixed else 0
    return prompts | tokens


@compiled
def prompt_open(sim, machine):
    """1 where a machine may be chosen for a prompt, else 0."""
    closed = sim.masks & PROMPT_MASK and machine.pool == TO_TOKEN
    return 0 if closed else machine.up


@compiled
def token_open(sim, machine):
    """1 where a machine may be chosen for the token phase, else 0."""
    closed = sim.masks & TOKEN_MASK and machine.pool == TO_PROMPT
    return 0 if closed else machine.up


@compiled
def show_flags(sim, machine):
    """Write who may be chosen."""
    m, size = machine.index, sim.num_machines
    put_flag(sim.view_flags, m, np.uint8(machine.up))
    put_flag(sim.view_flags, size + m, np.uint8(prompt_open(sim, machine)))
    put_flag(sim.view_flags, 2 * size + m, np.uint8(token_open(sim, machine)))


@compiled
def shown_end(sim, machine):
    """End of a machine's iteration in progress [ns]; 0 when it is idle."""
    if not machine.busy:
        return 0
    return machine.end if machine.busy == 1 else long_at(sim.next_ends, machine.index)


@compiled
def show(sim, machine):
    """Write what changes in a run of a machine's columns."""
    size = sim.num_machines
    place = sim.view_longs + 8 * machine.index
    put_long(place, 4 * size, machine.home_pool)
    put_long(place, 5 * size, machine.pool)
    put_long(place, 6 * size, machine.prompt_requests)
    put_long(place, 7 * size, machine.prompt_tokens)
    put_long(place, 8 * size, machine.prompt_queue_ns)
    put_long(place, 9 * size, shown_end(sim, machine))
    put_long(place, 10 * size, machine.iteration_prompts)
    put_long(place, 11 * size, machine.prompt_share_at_ns)
    put_long(place, 12 * size, machine.running)
    put_long(place, 13 * size, machine.running_context_tokens)
    put_long(place, 14 * size, machine.running_prompt_tokens)
    put_long(place, 15 * size, machine.inbound)
    put_long(place, 16 * size, machine.inbound_prompt_tokens)
    put_long(place, 17 * size, machine.flights)
    put_long(place, 18 * size, machine.kv_used_tokens)
    if sim.oracle:
        put_long(place, 19 * size, machine.promised)
    put_real(sim.view_reals, machine.index, machine.prompt_share)
    show_flags(sim, machine)


@compiled
def settle_ended(sim):
    """Count the contiguous iterations that have ended, on every machine."""
    for m in range(sim.num_machines):
        if long_at(sim.next_ends, m) <= sim.now:
            machine = machine_at(sim, m)
            settle(sim, machine, ended(sim, machine))


@compiled
def weigh_touched(sim):
    """First part of showing what was touched since the last time. Returns whether the masks have changed."""
    settle_ended(sim)
    for i in range(sim.touched):
        weigh(sim, machine_at(sim, short_at(sim.touched_list, i)))
    masks = confined(sim)
    changed = masks != sim.masks
    sim.masks = masks
    return changed


@compiled
def touched_machine(sim, i):
    """A machine that was touched; it is about to be shown."""
    machine = machine_at(sim, short_at(sim.touched_list, i))
    machine.touched = 0
    return machine


@compiled
def none_touched(sim):
    """Last part: all that was touched is shown."""
    sim.touched = 0
    sim.can_route = sim.up_prompt + sim.up_token + sim.up_mixed


@compiled
def refresh(sim):
    """Make the view true as of now: the machines that were touched since the last time."""
    if weigh_touched(sim):
        for m in range(sim.num_machines):
            show_flags(sim, machine_at(sim, m))
    for i in range(sim.touched):
        show(sim, touched_machine(sim, i))
    none_touched(sim)


@compiled
def refresh_all(sim):
    """Make the view true as of now, whatever was touched: for a scheduler that does not look at it."""
    settle_ended(sim)
    for m in range(sim.num_machines):
        weigh(sim, machine_at(sim, m))
    sim.masks = confined(sim)
    for m in range(sim.num_machines):
        show(sim, machine_at(sim, m))


@compiled
def rules_of(sim):
    """The view's constants."""
    return ClusterRules(
        sim.max_prompt_tokens,
        sim.max_tasks,
        sim.kv_bytes,
        sim.view_overlap_min,
        sim.ttft_slo,
        sim.tbt_slo,
    )


@with_schedulers
def view_of(sim):
    """The view, as kernels take it."""
    m = sim.num_machines
    at, masks = sim.view_longs, sim.view_flags
    return ClusterView(
        longs(at, m),
        longs(at + 8 * m, m),
        longs(at + 16 * m, m),
        longs(at + 24 * m, m),
        flags(masks, m),
        flags(masks + m, m),
        flags(masks + 2 * m, m),
        longs(at + 32 * m, m),
        longs(at + 40 * m, m),
        longs(at + 48 * m, m),
        longs(at + 56 * m, m),
        longs(at + 64 * m, m),
        longs(at + 72 * m, m),
        longs(at + 80 * m, m),
        reals(sim.view_reals, m),
        longs(at + 88 * m, m),
        longs(at + 96 * m, m),
        longs(at + 104 * m, m),
        longs(at + 112 * m, m),
        longs(at + 120 * m, m),
        longs(at + 128 * m, m),
        longs(at + 136 * m, m),
        longs(at + 144 * m, m),
        longs(at + 152 * m, m),
        longs(sim.clock_at, 1),
        reals(sim.mean_output_at, 2),
        longs(sim.counters_at, NUM_COUNTERS),
        tables_of(sim),
        rules_of(sim),
    )
