"""vLLM's batching rule, as in `splitgym.sim.vllm`, over the compiled engine's state."""

from splitgym.profile.tables import mixed_time_ns, prompt_time_ns
from splitgym.sim.compiled.blocks import (
    decoded,
    fitting,
    join_batch,
    join_sequences,
    leave_sequences,
    more_blocks,
)
from splitgym.sim.compiled.memory import *
from splitgym.sim.compiled.pools import check_drained
from splitgym.sim.compiled.tasks import first_last, remove_task

# ---- the next iteration -----------------------------------------------------------------------------------


@compiled
def begin_sequences(sim, machine):
    """A machine begins its next iteration; False where there is none."""
    while True:
        preempted = choose(sim, machine)
        prompts, decodes = machine.current_head != NONE, machine.decodes
        if preempted:  # those who wait get what was taken away, at once
            machine.busy = 1 if prompts or decodes else 0
            grant(sim, machine)
        if prompts:
            begin_chunks(sim, machine)
            return True
        if decodes:
            begin_sequence_run(sim, machine, preempted)
            return True
        if not preempted:
            return False


@compiled
def choose(sim, machine):
    """Sequences in the order they started, then waiting prompts; True where any was preempted.

    What was chosen is in the machine's current prompts, `decodes`, `iteration_tokens` and `run_context`.
    """
    budget = sim.max_prompt_tokens
    preempted = False
    decodes, context = 0, 0
    machine.iteration_tokens = machine.iteration_prompts = 0
    slot = machine.sequences_head
    while slot != NONE and budget > 0:
        job = job_at(sim, slot)
        running = job.phase == RUNNING
        size = 1 if running else min(job.goal - job.computed, budget)
        while not (take_token(sim, machine, job) if running else take_chunk(sim, machine, job, size, False)):
            preempted = True
            last = machine.sequences_tail
            preempt(sim, machine, job_at(sim, last))
            if last == slot:
                slot = NONE
                break
        if slot != NONE:
            if running:
                decodes += 1
                context += job.prompt_tokens + decoded(machine, job)
            budget -= size
            slot = job.sequence_next
    leave_out_rest(sim, machine, slot)
    machine.decodes = decodes
    machine.run_context = context
    if not preempted:
        start_prompts(sim, machine, budget)
    return preempted


@compiled
def start_prompts(sim, machine, budget):
    """Waiting prompts, FCFS, get what is left of the budget."""
    while (
        budget > 0
        and machine.prompts_head != NONE
        and machine.memory_head == NONE
        and machine.seats < sim.max_tasks
    ):
        job = job_at(sim, machine.prompts_head)
        size = min(job.goal, budget)
        if not take_chunk(sim, machine, job, size, True):
            return
        machine.prompt_requests -= 1
        join_sequences(sim, machine, job)
        budget -= size


@compiled
def take_token(sim, machine, job):
    """A token task is in the next iteration, if there is a block for it."""
    tokens = decoded(machine, job)
    extra = more_blocks(sim, machine, job.held_token, job.prompt_tokens + tokens + 1)
    if extra < 0:
        return False
    job.held_token += extra
    if tokens == 1:
        started(sim, job)
    return True


@compiled
def take_chunk(sim, machine, job, size, queued):
    """The next `size` tokens of a prompt are in the next iteration, if there are blocks for them."""
    reach = job.computed + size
    last = 1 if reach == job.goal else 0  # a prompt that ends has its first token too
    extra = more_blocks(sim, machine, job.held_prompt, reach + last)
    if extra < 0:
        return False
    job.held_prompt += extra
    job.chunk = size
    if queued:
        unlink_prompt(sim, machine, job)
    append_current(sim, machine, job)
    machine.iteration_tokens += size
    machine.iteration_prompts += 1
    return True


@compiled
def leave_out_rest(sim, machine, slot):
    """The budget is spent: the token tasks from `slot` on are not in the next iteration."""
    while slot != NONE:
        job = job_at(sim, slot)
        if job.phase == RUNNING:
            job.left_out = 1
            machine.partial = 1
        slot = job.sequence_next


@compiled
def preempt(sim, machine, job):
    """The cache is dropped; the request waits first in the queue and is computed again, here."""
    row_of(sim, job).preemptions += 1
    leave_sequences(sim, machine, job)
    if job.phase == RUNNING:
        prompt = job.prompt_tokens
        tokens = decoded(machine, job)
        context = prompt + tokens
        job.generated = tokens
        remove_task(sim, machine, job)
        machine.batch_context -= context
        machine.running -= 1
        machine.running_context_tokens -= context
        machine.running_prompt_tokens -= prompt
        machine.reserved -= job.held_token
        machine.kv_used_tokens -= context
        job.goal = context
        job.source = machine.index
        expect(sim, machine, job, 1)
    else:
        release_chunks(machine, job)
    job.held_token = job.held_prompt = job.computed = 0
    job.phase = QUEUED
    prepend_prompt(sim, machine, job)
    enter_prompt_queue(sim, machine, job)


@compiled
def release_chunks(machine, job):
    """A prompt in progress does not go on: its memory is free, its rest does not wait here any more."""
    machine.reserved -= job.held_prompt
    machine.kv_used_tokens -= job.computed
    machine.prompt_tokens -= job.goal - job.computed
    machine.prompt_queue_ns -= job.alone_ns


@compiled
def drop_chunks(sim, machine, job):
    """A prompt in progress is cancelled; the iteration that it may be in goes on."""
    if job.chunk:
        unlink_current(sim, machine, job)
    leave_sequences(sim, machine, job)
    release_chunks(machine, job)


# ---- iterations -------------------------------------------------------------------------------------------


@compiled
def begin_chunks(sim, machine):
    """An iteration over the machine's current prompts and the token tasks chosen beside them."""
    tables, row = tables_of(sim), machine.row
    tokens, decodes = machine.iteration_tokens, machine.decodes
    if decodes:
        length = mixed_time_ns(tables, row, tokens + decodes, decodes, machine.run_context)
    else:
        length = prompt_time_ns(tables, row, tokens)
    slot = machine.current_head
    while slot != NONE:
        job = job_at(sim, slot)
        chunk, done = job.chunk, job.computed
        if done:
            # Attention of a later chunk to those before it: what the whole costs more than its parts.
            reached = prompt_time_ns(tables, row, done + chunk)
            before = prompt_time_ns(tables, row, done)
            length += max(0, reached - before - prompt_time_ns(tables, row, chunk))
        else:
            job.phase = PROMPT
            if job.generated == 0:
                row_of(sim, job).prompt_start_ns = sim.now
        part = job.alone_ns * chunk // (job.goal - done)
        job.alone_ns -= part
        machine.prompt_queue_ns -= part
        slot = job.queue_next
    begin_iteration(sim, machine, length)


@compiled
def begin_sequence_run(sim, machine, preempted):
    """Contiguous iterations over all sequences, as long as nothing can change and there are blocks.

    What has kept the first waiting prompt from starting now (blocks, seats, budget, caches that wait for
    memory) does so until an event: that one pauses the run (`grant`).
    """
    count = 1  # what was preempted may start in the next iteration, what was left out may decode
    if not (preempted or machine.partial):
        count = fitting(sim, machine, first_last(sim, machine) - machine.iterations)
    begin_run(sim, machine, machine.decodes, machine.run_context, count)


@compiled
def end_chunks(sim, machine):
    """The prompts of an iteration that has ended are so much further."""
    slot = machine.current_head
    machine.current_head = machine.current_tail = NONE
    while slot != NONE:
        job = job_at(sim, slot)
        slot, chunk = job.queue_next, job.chunk
        job.chunk = 0
        job.computed += chunk
        machine.prompted_tokens += chunk
        machine.kv_used_tokens += chunk
        machine.prompt_tokens -= chunk
        if job.computed == job.goal:
            machine.generated_tokens += 1
            prompt_computed(sim, machine, job)


@compiled
def prompt_computed(sim, machine, job):
    """A prompt (or what a preempted request had before) is computed; it has one more token."""
    now, prompt = sim.now, job.prompt_tokens
    row = row_of(sim, job)
    job.generated += 1
    machine.kv_used_tokens += 1
    if job.generated == 1:
        row.prompt_end_ns = now
        row.prompts_computed += 1
        if row.first_token_ns == NONE:
            row.first_token_ns = now
    elif row.decode_start_ns == NONE:
        row.decode_start_ns = machine.start
    target = machine_at(sim, job.target)
    if job.generated == job.output_tokens:
        leave_sequences(sim, machine, job)
        expect(sim, target, job, -1)
        machine.reserved -= job.held_prompt
        machine.kv_used_tokens -= job.goal + 1
        finish(sim, job)
        check_drained(sim, target)
    elif job.target != machine.index:
        leave_sequences(sim, machine, job)
        job.phase = SHIPPING
        ask_transfer(sim, job)
    else:
        job.held_token, job.held_prompt = job.held_prompt, 0
        expect(sim, machine, job, -1)
        machine.running += 1
        machine.running_context_tokens += prompt + job.generated
        machine.running_prompt_tokens += prompt
        join_batch(sim, machine, job, job.generated)
