"""KV memory, as in `splitgym.sim.rules`: who gets it, who waits for it, and what starts when it is there."""

from splitgym.sim.compiled.blocks import join_batch, join_sequences, settle_blocks, take_slack, whole_blocks
from splitgym.sim.compiled.network import *
from splitgym.sim.compiled.requests import *


@compiled
def prompt_need(sim, job):
    """KV tokens that the prompt machine reserves when the prompt starts."""
    if job.source != job.target or not sim.reserve_all:
        return job.prompt_tokens + 1
    return job.prompt_tokens + job.output_tokens


@compiled
def transfer_need(sim, job):
    """KV tokens that the token machine reserves when the transfer starts."""
    if sim.rule == VLLM:
        return whole_blocks(sim, job.prompt_tokens + 1)
    return job.prompt_tokens + (job.output_tokens if sim.reserve_all else 1)


@compiled
def output_need(sim, job):
    """KV tokens that the token machine reserves at the first decode."""
    return 0 if sim.reserve_all else job.output_tokens - 1


@compiled
def fits(machine, tokens):
    return machine.reserved + tokens <= machine.capacity


@compiled
def has_room(sim, machine, tokens):
    """May a newcomer take memory? Not before those who wait, nor before outputs of caches here."""
    return machine.memory_head == NONE and not starved(sim, machine) and fits(machine, tokens)


@compiled
def starved(sim, machine):
    """The first output that waits here does not fit: memory that frees is for it."""
    head = machine.outputs_head
    return head != NONE and not fits(machine, output_need(sim, job_at(sim, head)))


@compiled
def wait_for_memory(sim, machine, job):
    job.waiting = 1
    append_memory(sim, machine, job)


@compiled
def stop_waiting(sim, machine, job):
    job.waiting = 0
    unlink_memory(sim, machine, job)


@compiled
def reserve_prompt(sim, machine, job):
    """Memory for the prompt at the head of a machine's queue, or a place among those who wait."""
    if job.waiting:
        return False
    need = prompt_need(sim, job)
    if not has_room(sim, machine, need):
        wait_for_memory(sim, machine, job)
        return False
    machine.reserved += need
    job.held_prompt = need
    return True


@inlined
def await_output(sim, machine, job):
    """The cache is here; the request waits for memory for its output."""
    expect(sim, machine, job, -1)
    job.phase = READY
    append_output(sim, machine, job)
    machine.running += 1
    machine.running_context_tokens += job.prompt_tokens + 1
    machine.running_prompt_tokens += job.prompt_tokens


@inlined
def admit(sim, machine, job):
    """Reserve what the output needs; the request joins the batch."""
    pause(sim, machine)
    unlink_output(sim, machine, job)
    if sim.rule == VLLM:
        join_sequences(sim, machine, job)
        join_batch(sim, machine, job, job.generated)
        return
    need = output_need(sim, job)
    machine.reserved += need
    job.held_token += need
    job.passed = 0
    sim.joins += 1
    job.joined = sim.joins
    join_batch(sim, machine, job, 1)
    job.fresh_next = machine.fresh_head
    machine.fresh_head = job.slot


@compiled
def has_seat(sim, machine):
    """One more request may be in progress."""
    return (machine.seats if sim.rule == VLLM else machine.batch) < sim.max_tasks


@inlined
def grant(sim, machine):
    """Give memory to those who wait, if there are any."""
    if machine.memory_head & machine.outputs_head != NONE or sim.rule == VLLM:
        grant_waiting(sim, machine)


@compiled
def grant_waiting(sim, machine):
    """Give memory to those who wait: outputs of caches already here first, then FCFS."""
    vllm = sim.rule == VLLM
    if vllm and machine.memory_head != NONE:
        settle_blocks(sim, machine)
    while machine.outputs_head != NONE and has_seat(sim, machine) and not starved(sim, machine):
        admit(sim, machine, job_at(sim, machine.outputs_head))
        wake(sim, machine)
    while machine.memory_head != NONE and not starved(sim, machine):
        job = job_at(sim, machine.memory_head)
        starts_here = job.phase == QUEUED
        need = prompt_need(sim, job) if starts_here else transfer_need(sim, job)
        if not fits(machine, need):
            break
        stop_waiting(sim, machine, job)
        if starts_here:
            machine.reserved += need
            job.held_prompt = need
            job.granted = 1
            pause(sim, machine)
            wake(sim, machine)
        else:
            start_transfer(sim, job)
    if vllm and machine.prompts_head != NONE:
        pause(sim, machine)
        wake(sim, machine)


@compiled
def ask_transfer(sim, job):
    target = machine_at(sim, job.target)
    if sim.rule == VLLM:
        settle_blocks(sim, target)
    if has_room(sim, target, transfer_need(sim, job)):
        start_transfer(sim, job)
    else:
        wait_for_memory(sim, target, job)
        wake(sim, target)


@compiled
def start_transfer(sim, job):
    source, target = machine_at(sim, job.source), machine_at(sim, job.target)
    need = transfer_need(sim, job)
    target.reserved += need
    if sim.rule == VLLM:
        take_slack(sim, target, need)
    job.held_token = need
    target.kv_used_tokens += job.prompt_tokens + 1
    row_of(sim, job).transfer_start_ns = sim.now
    job.left = job.prompt_tokens * sim.kv_bytes * WORK_PER_BYTE
    job.flight = 1
    source.shipments += 1
    target.shipments += 1
    join_network(sim, job, source, target)
    touch_view(sim, source)
    touch_view(sim, target)
