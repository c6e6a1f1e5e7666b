"""vLLM's batching rule, as in `splitgym.sim.vllm`, over the compiled engine's state."""

from splitgym.profile.tables import mixed_time_ns, prompt_time_ns, token_time_ticks
from splitgym.sim.compiled.blocks import (
    allocate,
    decoded,
    fitting,
    join_batch,
    join_sequences,
    leave_sequences,
)
from splitgym.sim.compiled.lists import append, prepend, push_event, unlink
from splitgym.sim.compiled.machine import ITERATION_KEY, plan, remove_task, started
from splitgym.sim.compiled.rules import ask_transfer, check_drained, expect, finish, grant
from splitgym.sim.compiled.state import *

# ---- the next iteration -----------------------------------------------------------------------------------


@compiled
def begin_sequences(sim, m):
    """Machine m begins its next iteration; False where there is none."""
    machines = sim.machines
    while True:
        preempted = choose(sim, m)
        prompts, decodes = machines[CURRENT_HEAD, m] != NONE, machines[DECODES, m]
        if preempted:  # those who wait get what was taken away, at once
            machines[BUSY, m] = 1 if prompts or decodes else 0
            grant(sim, m)
        if prompts:
            begin_chunks(sim, m)
            return True
        if decodes:
            begin_run(sim, m, preempted)
            return True
        if not preempted:
            return False


@compiled
def choose(sim, m):
    """Sequences in the order they started, then waiting prompts; True where any was preempted.

    What was chosen is in the machine's current prompts, DECODES, ITERATION_TOKENS and RUN_CONTEXT.
    """
    machines, jobs, rules = sim.machines, sim.jobs, sim.rules
    budget = rules[MAX_PROMPT_TOKENS]
    preempted = False
    decodes, context = 0, 0
    machines[ITERATION_TOKENS, m] = machines[V_ITERATION_PROMPTS, m] = 0
    slot = machines[SEQUENCES_HEAD, m]
    while slot != NONE and budget > 0:
        running = jobs[PHASE, slot] == RUNNING
        size = 1 if running else min(jobs[TARGET, slot] - jobs[COMPUTED, slot], budget)
        while not (take_token(sim, m, slot) if running else take_chunk(sim, m, slot, size)):
            preempted = True
            last = machines[SEQUENCES_TAIL, m]
            preempt(sim, m, last)
            if last == slot:
                slot = NONE
                break
        if slot != NONE:
            if running:
                decodes += 1
                context += jobs[PROMPT_TOKENS, slot] + decoded(sim, m, slot)
            budget -= size
            slot = jobs[SEQUENCE_NEXT, slot]
    leave_out(sim, m, slot)
    machines[DECODES, m] = decodes
    machines[RUN_CONTEXT, m] = context
    if not preempted:
        start_prompts(sim, m, budget)
    return preempted


@compiled
def start_prompts(sim, m, budget):
    """Waiting prompts, FCFS, get what is left of the budget."""
    machines, jobs = sim.machines, sim.jobs
    while (
        budget > 0
        and machines[PROMPTS_HEAD, m] != NONE
        and machines[MEMORY_HEAD, m] == NONE
        and machines[SEATS, m] < sim.rules[MAX_TASKS]
    ):
        slot = machines[PROMPTS_HEAD, m]
        size = min(jobs[TARGET, slot], budget)
        after = jobs[QUEUE_NEXT, slot]
        if not take_chunk(sim, m, slot, size):
            return
        machines[PROMPTS_HEAD, m] = after
        if after == NONE:
            machines[PROMPTS_TAIL, m] = NONE
        else:
            jobs[QUEUE_PREV, after] = NONE
        machines[V_PROMPT_REQUESTS, m] -= 1
        join_sequences(sim, m, slot)
        budget -= size


@compiled
def take_token(sim, m, slot):
    """A token task is in the next iteration, if there is a block for it."""
    tokens = decoded(sim, m, slot)
    if not allocate(sim, m, slot, HELD_TOKEN, sim.jobs[PROMPT_TOKENS, slot] + tokens + 1):
        return False
    if tokens == 1:
        started(sim, slot)
    return True


@compiled
def take_chunk(sim, m, slot, size):
    """The next `size` tokens of a prompt are in the next iteration, if there are blocks for them."""
    machines, jobs = sim.machines, sim.jobs
    reach = jobs[COMPUTED, slot] + size
    last = 1 if reach == jobs[TARGET, slot] else 0  # a prompt that ends has its first token too
    if not allocate(sim, m, slot, HELD_PROMPT, reach + last):
        return False
    jobs[CHUNK, slot] = size
    append(machines, CURRENT_HEAD, CURRENT_TAIL, m, jobs, QUEUE_NEXT, QUEUE_PREV, slot)
    machines[ITERATION_TOKENS, m] += size
    machines[V_ITERATION_PROMPTS, m] += 1
    return True


@compiled
def leave_out(sim, m, slot):
    """The budget is spent: the token tasks from `slot` on are not in the next iteration."""
    jobs = sim.jobs
    while slot != NONE:
        if jobs[PHASE, slot] == RUNNING:
            jobs[LEFT_OUT, slot] = 1
            sim.machines[PARTIAL, m] = 1
        slot = jobs[SEQUENCE_NEXT, slot]


@compiled
def preempt(sim, m, slot):
    """The cache is dropped; the request waits first in the queue and is computed again, here."""
    machines, jobs = sim.machines, sim.jobs
    sim.requests[O_PREEMPTIONS, jobs[REQUEST, slot]] += 1
    leave_sequences(sim, m, slot)
    if jobs[PHASE, slot] == RUNNING:
        prompt = jobs[PROMPT_TOKENS, slot]
        jobs[GENERATED, slot] = decoded(sim, m, slot)
        context = prompt + jobs[GENERATED, slot]
        remove_task(sim, m, slot)
        machines[BATCH_CONTEXT, m] -= context
        machines[V_RUNNING, m] -= 1
        machines[V_RUNNING_CONTEXT_TOKENS, m] -= context
        machines[V_RUNNING_PROMPT_TOKENS, m] -= prompt
        machines[RESERVED, m] -= jobs[HELD_TOKEN, slot]
        machines[V_KV_USED_TOKENS, m] -= context
        jobs[TARGET, slot] = context
        jobs[PROMPT_MACHINE, slot] = m
        expect(sim, m, slot, 1)
    else:
        release_chunks(sim, m, slot)
    jobs[HELD_TOKEN, slot] = jobs[HELD_PROMPT, slot] = jobs[COMPUTED, slot] = 0
    jobs[PHASE, slot] = QUEUED
    prepend(machines, PROMPTS_HEAD, PROMPTS_TAIL, m, jobs, QUEUE_NEXT, QUEUE_PREV, slot)
    target = jobs[TARGET, slot]
    alone = prompt_time_ns(sim.tables, machines[V_MACHINE_ROW, m], target)
    jobs[ALONE_NS, slot] = alone
    machines[V_PROMPT_REQUESTS, m] += 1
    machines[V_PROMPT_TOKENS, m] += target
    machines[V_PROMPT_QUEUE_NS, m] += alone


@compiled
def release_chunks(sim, m, slot):
    """A prompt in progress does not go on: its memory is free, its rest does not wait here any more."""
    machines, jobs = sim.machines, sim.jobs
    machines[RESERVED, m] -= jobs[HELD_PROMPT, slot]
    machines[V_KV_USED_TOKENS, m] -= jobs[COMPUTED, slot]
    machines[V_PROMPT_TOKENS, m] -= jobs[TARGET, slot] - jobs[COMPUTED, slot]
    machines[V_PROMPT_QUEUE_NS, m] -= jobs[ALONE_NS, slot]


@compiled
def drop_chunks(sim, m, slot):
    """A prompt in progress is cancelled; the iteration that it may be in goes on."""
    machines, jobs = sim.machines, sim.jobs
    if jobs[CHUNK, slot]:
        unlink(machines, CURRENT_HEAD, CURRENT_TAIL, m, jobs, QUEUE_NEXT, QUEUE_PREV, slot)
    leave_sequences(sim, m, slot)
    release_chunks(sim, m, slot)


# ---- iterations -------------------------------------------------------------------------------------------


@compiled
def begin_chunks(sim, m):
    """An iteration over the machine's current prompts and the token tasks chosen beside them."""
    machines, jobs, tables = sim.machines, sim.jobs, sim.tables
    row, now = machines[V_MACHINE_ROW, m], sim.scalars[NOW]
    tokens, decodes = machines[ITERATION_TOKENS, m], machines[DECODES, m]
    if decodes:
        length = mixed_time_ns(tables, row, tokens + decodes, decodes, machines[RUN_CONTEXT, m])
    else:
        length = prompt_time_ns(tables, row, tokens)
    slot = machines[CURRENT_HEAD, m]
    while slot != NONE:
        chunk, done = jobs[CHUNK, slot], jobs[COMPUTED, slot]
        if done:
            # Attention of a later chunk to those before it: what the whole costs more than its parts.
            reached = prompt_time_ns(tables, row, done + chunk)
            before = prompt_time_ns(tables, row, done)
            length += max(0, reached - before - prompt_time_ns(tables, row, chunk))
        else:
            jobs[PHASE, slot] = PROMPT
            if jobs[GENERATED, slot] == 0:
                sim.requests[O_PROMPT_START, jobs[REQUEST, slot]] = now
        share = jobs[ALONE_NS, slot] * chunk // (jobs[TARGET, slot] - done)
        jobs[ALONE_NS, slot] -= share
        machines[V_PROMPT_QUEUE_NS, m] -= share
        slot = jobs[QUEUE_NEXT, slot]
    machines[BUSY, m] = 1
    machines[START, m] = now
    machines[END, m] = now + length
    machines[VERSION, m] += 1
    push_event(sim, now + length, ITERATION_KEY | m, machines[VERSION, m])


@compiled
def begin_run(sim, m, preempted):
    """Contiguous iterations over all sequences, as long as nothing can change and there are blocks.

    What has kept the first waiting prompt from starting now (blocks, seats, budget, caches that wait for
    memory) does so until an event: that one pauses the run (`grant`).
    """
    machines, now = sim.machines, sim.scalars[NOW]
    row, decodes = machines[V_MACHINE_ROW, m], machines[DECODES, m]
    count = 1  # what was preempted may start in the next iteration, what was left out may decode
    if not (preempted or machines[PARTIAL, m]):
        count = fitting(sim, m, sim.jobs[LAST, sim.batches[m, 0]] - machines[ITERATIONS, m])
    base = token_time_ticks(sim.tables, row, decodes, 0)
    machines[BUSY, m] = 2
    machines[START, m] = machines[SETTLED_AT, m] = now
    machines[SETTLED, m] = 0
    machines[RUN_BASE, m] = base
    machines[RUN_SLOPE, m] = token_time_ticks(sim.tables, row, decodes, 1) - base
    machines[RUN_CARRY, m] = machines[CARRY, m]
    machines[RUN_BATCH, m] = decodes
    plan(sim, m, count)


@compiled
def end_chunks(sim, m):
    """The prompts of an iteration that has ended are so much further."""
    machines, jobs = sim.machines, sim.jobs
    slot = machines[CURRENT_HEAD, m]
    machines[CURRENT_HEAD, m] = machines[CURRENT_TAIL, m] = NONE
    while slot != NONE:
        after, chunk = jobs[QUEUE_NEXT, slot], jobs[CHUNK, slot]
        jobs[CHUNK, slot] = 0
        jobs[COMPUTED, slot] += chunk
        machines[T_PROMPTED, m] += chunk
        machines[V_KV_USED_TOKENS, m] += chunk
        machines[V_PROMPT_TOKENS, m] -= chunk
        if jobs[COMPUTED, slot] == jobs[TARGET, slot]:
            machines[T_GENERATED, m] += 1
            prompt_computed(sim, m, slot)
        slot = after


@compiled
def prompt_computed(sim, m, slot):
    """A prompt (or what a preempted request had before) is computed; it has one more token."""
    machines, jobs, now = sim.machines, sim.jobs, sim.scalars[NOW]
    request, prompt = jobs[REQUEST, slot], jobs[PROMPT_TOKENS, slot]
    target = jobs[TOKEN_MACHINE, slot]
    jobs[GENERATED, slot] += 1
    machines[V_KV_USED_TOKENS, m] += 1
    if jobs[GENERATED, slot] == 1:
        sim.requests[O_PROMPT_END, request] = now
        sim.requests[O_PROMPTS, request] += 1
        if sim.requests[O_FIRST, request] == NONE:
            sim.requests[O_FIRST, request] = now
    elif sim.requests[O_DECODE_START, request] == NONE:
        sim.requests[O_DECODE_START, request] = machines[START, m]
    if jobs[GENERATED, slot] == jobs[OUTPUT_TOKENS, slot]:
        leave_sequences(sim, m, slot)
        expect(sim, target, slot, -1)
        machines[RESERVED, m] -= jobs[HELD_PROMPT, slot]
        machines[V_KV_USED_TOKENS, m] -= jobs[TARGET, slot] + 1
        finish(sim, slot)
        check_drained(sim, target)
    elif target != m:
        leave_sequences(sim, m, slot)
        jobs[PHASE, slot] = SHIPPING
        ask_transfer(sim, slot)
    else:
        jobs[HELD_TOKEN, slot], jobs[HELD_PROMPT, slot] = jobs[HELD_PROMPT, slot], 0
        expect(sim, m, slot, -1)
        machines[V_RUNNING, m] += 1
        machines[V_RUNNING_CONTEXT_TOKENS, m] += prompt + jobs[GENERATED, slot]
        machines[V_RUNNING_PROMPT_TOKENS, m] += prompt
        join_batch(sim, m, slot)
