"""Requests come, are placed, and go: slots, and the counts of a machine that they change."""

from splitgym.profile.tables import prompt_time_ns
from splitgym.sim.compiled.machine import *
from splitgym.types import UNKNOWN
from splitgym.view import COMPLETED_OUTPUT_TOKENS, COMPLETED_REQUESTS, OUTPUT_DECAY

_copy = copier(OUTCOME.itemsize)


@inlined
def take_slot(sim, request):
    """A slot for the request in row `request` of the trace: the one that was freed last, else a fresh one."""
    slot = sim.free_head
    if slot == NONE:
        slot = sim.used_slots
        sim.used_slots = slot + 1
        job = job_at(sim, slot)
        job.berth, job.rerated = NONE, 0
    else:
        job = job_at(sim, slot)
        sim.free_head = job.queue_next
    if sim.large:
        fetch_row(sim, (slot if sim.streaming else request) + 1)
    job.slot = slot
    job.row = slot if sim.streaming else request
    job.in_use = 1
    row = row_of(sim, job)
    job.request = row.request = request
    row.arrival_ns = long_at(sim.arrivals, request)
    job.prompt_tokens = row.prompt_tokens = long_at(sim.prompts, request)
    job.output_tokens = row.output_tokens = long_at(sim.outputs, request)
    job.max_tokens = long_at(sim.limits, request) if sim.limits else UNKNOWN
    row.first_token_ns = row.finish_ns = row.prompt_machine = row.token_machine = row.decision_id = NONE
    row.attempts = row.preemptions = row.prompts_computed = row.lost_tokens = 0
    begin_attempt(sim, job, 0)
    return job


@compiled
def begin_attempt(sim, job, attempt):
    """An attempt to serve a request, from its prompt."""
    row = row_of(sim, job)
    row.prompt_start_ns = row.prompt_end_ns = row.transfer_start_ns = row.transfer_end_ns = NONE
    row.decode_start_ns = NONE
    blank_job(sim, job.slot)
    job.goal = job.prompt_tokens
    job.phase = ELSEWHERE
    job.attempt = attempt


@inlined
def finish(sim, job):
    """The request has all its tokens."""
    promise(sim, job, -1)
    row_of(sim, job).finish_ns = sim.now
    if sim.streaming:
        place = sim.outcomes + OUTCOME_BYTES * (sim.finished - sim.drained)
        _copy(place, sim.rows + OUTCOME_BYTES * job.row)
    else:
        put_long(sim.order, sim.finished, job.request)
    sim.finished += 1
    sim.unfinished -= 1
    sim.in_system -= 1
    sim.counters[COMPLETED_REQUESTS] += 1
    sim.counters[COMPLETED_OUTPUT_TOKENS] += job.output_tokens
    sim.mean_output[0] = OUTPUT_DECAY * sim.mean_output[0] + job.output_tokens
    sim.mean_output[1] = OUTPUT_DECAY * sim.mean_output[1] + 1.0
    if sim.large:  # it is the next that is taken, and was last seen long ago
        fetch_job(sim, job.slot)
    job.in_use = 0
    job.queue_next = sim.free_head
    sim.free_head = job.slot


@inlined
def promise(sim, job, sign):
    """A request takes its place on two machines (+1), or gives back what it still has (-1): for oracles."""
    if not sim.oracle:
        return
    target = machine_at(sim, job.target)
    target.promised += sign * (job.prompt_tokens + job.output_tokens)
    if job.source != job.target and job.phase <= SHIPPING:
        source = machine_at(sim, job.source)
        source.promised += sign * (job.prompt_tokens + 1)


@inlined
def expect(sim, machine, job, sign):
    """A request is (+1), or is no more (-1), to decode on a machine with its cache not there yet."""
    machine.inbound += sign
    machine.inbound_prompt_tokens += sign * job.prompt_tokens
    touch(sim, machine)


@inlined
def leave_prompt_queue(sim, machine, job):
    """The prompt starts or is cancelled: it is not queued any more."""
    machine.prompt_requests -= 1
    machine.prompt_queue_ns -= job.alone_ns
    touch(sim, machine)


@inlined
def enter_prompt_queue(sim, machine, job):
    """The prompt, or what a preempted request had before, is queued."""
    tokens = job.goal
    alone = prompt_time_ns(tables_of(sim), machine.shown_row, tokens)
    job.alone_ns = alone
    machine.prompt_requests += 1
    machine.prompt_tokens += tokens
    machine.prompt_queue_ns += alone
    touch(sim, machine)


@inlined
def route(sim, job, p, t):
    """The request goes to prompt machine p and token machine t."""
    job.source, job.target = p, t
    job.phase = QUEUED
    row = row_of(sim, job)
    row.prompt_machine = p
    row.token_machine = t
    row.decision_id = sim.decisions - 1
    row.attempts += 1
    machine = machine_at(sim, p)
    append_prompt(sim, machine, job)
    enter_prompt_queue(sim, machine, job)
    expect(sim, machine_at(sim, t), job, 1)
    promise(sim, job, 1)
    pause(sim, machine)
    wake(sim, machine)
