"""Machines at work: iterations begin and end, under the paper's rule and under vLLM's."""

from splitgym.profile.tables import mixed_time_ns, prompt_time_ns
from splitgym.sim.compiled.blocks import hold_blocks, leave_sequences
from splitgym.sim.compiled.failures import break_deadlock
from splitgym.sim.compiled.pools import check_drained
from splitgym.sim.compiled.tasks import *
from splitgym.sim.compiled.transfers import *
from splitgym.sim.compiled.vllm import begin_sequences, end_chunks
from splitgym.types import EventKind
from splitgym.view import SHARE_TIME_CONSTANT_NS


@compiled
def work(sim, machine):
    """A machine begins its next iteration, or goes idle."""
    vllm = sim.rule == VLLM
    while not (begin_sequences(sim, machine) if vllm else begin(sim, machine)):
        if not break_deadlock(sim, machine):
            machine.idle = 1
            stop(sim, machine)
            return


@inlined
def begin(sim, machine):
    """Token tasks passed over too often; prompts, FCFS; the other token tasks as far as they fit."""
    aged = machine.aged
    tasks = tokens = aged
    prompts = prompt_tokens = 0
    while machine.prompts_head != NONE and tasks < sim.max_tasks:
        job = job_at(sim, machine.prompts_head)
        size = job.prompt_tokens
        if tasks and tokens + size > sim.max_prompt_tokens:
            break
        if not job.granted and not reserve_prompt(sim, machine, job):
            break
        take_prompt(sim, machine, job)
        prompts += 1
        tasks += 1
        tokens += size
        prompt_tokens += size
    if prompts == 0:
        if machine.batch == 0:
            return False
        begin_tokens(sim, machine)
        return True
    slot = machine.current_head
    while slot != NONE:
        job = job_at(sim, slot)
        job.phase = PROMPT
        row_of(sim, job).prompt_start_ns = sim.now
        if overlaps(sim, job):
            ask_transfer(sim, job)
        slot = job.queue_next
    begin_prompts(sim, machine, prompts, prompt_tokens, aged)
    return True


@inlined
def take_prompt(sim, machine, job):
    """The prompt at the head of the queue starts."""
    if sim.large:
        fetch_alone(sim, job.target)
    unlink_prompt(sim, machine, job)
    append_current(sim, machine, job)
    job.granted = 0
    machine.kv_used_tokens += job.prompt_tokens + 1
    leave_prompt_queue(sim, machine, job)


@inlined
def begin_prompts(sim, machine, prompts, prompt_tokens, aged):
    """An iteration over the machine's current prompts, and the token tasks that fit beside them."""
    size = machine.batch
    room = max(0, min(sim.max_tasks - aged - prompts, sim.max_prompt_tokens - aged - prompt_tokens))
    decodes, context = size, machine.batch_context
    if size:
        if aged == 0 and room >= size:
            first_decodes(sim, machine)
        else:
            decodes, context = choose_tasks(sim, machine, room)
    if decodes:
        length = mixed_time_ns(tables_of(sim), machine.row, prompt_tokens + decodes, decodes, context)
    elif prompts == 1 and machine.row == machine.shown_row:
        length = job_at(sim, machine.current_head).alone_ns
    else:
        length = prompt_time_ns(tables_of(sim), machine.row, prompt_tokens)
    machine.decodes = decodes
    machine.iteration_tokens = prompt_tokens
    machine.iteration_prompts = prompts
    lead(sim, machine, machine.current_head)
    begin_iteration(sim, machine, length)


@compiled
def iteration_ends(sim, machine):
    """Every token task has one more token, every prompt its first; then the machine goes on."""
    touch(sim, machine)
    if machine.busy == 2:
        settle(sim, machine, machine.planned)
        machine.busy = 0
        if machine.partial:
            end_left_out(sim, machine, 1)
        complete_tasks(sim, machine)
        if sim.rule == VLLM and machine.planned > 1:
            hold_blocks(sim, machine, 0)
    else:
        prompts_ran(sim, machine)
        machine.busy = 0
        machine.generated_tokens += machine.decodes
        end_tasks(sim, machine)
        complete_tasks(sim, machine)
        if sim.rule == VLLM:
            end_chunks(sim, machine)
        else:
            end_prompts(sim, machine)
    grant(sim, machine)
    check_drained(sim, machine)
    work(sim, machine)


@inlined
def prompts_ran(sim, machine):
    """Time, energy and share of prompts of an iteration with prompts."""
    now = sim.now
    if sim.logging:
        log_event(sim, now, EventKind.ITERATION_END, NONE, machine.index)
    spend_prompts(sim, machine)
    tau = SHARE_TIME_CONSTANT_NS
    gap = machine.start - machine.prompt_share_at_ns
    spent = now - machine.start
    share = machine.prompt_share * tau / (tau + gap)
    machine.prompt_share = (share * tau + spent) / (tau + spent)
    machine.prompt_share_at_ns = now


@compiled
def complete_tasks(sim, machine):
    """Requests whose last token this was."""
    slot = first_done(sim, machine)
    while slot != NONE:
        job = job_at(sim, slot)
        prompt = job.prompt_tokens
        held = prompt + job.output_tokens
        machine.batch_context -= held
        machine.reserved -= job.held_token
        machine.running -= 1
        machine.running_context_tokens -= held
        machine.running_prompt_tokens -= prompt
        machine.kv_used_tokens -= held
        if sim.rule == VLLM:
            leave_sequences(sim, machine, job)
        finish(sim, job)
        slot = first_done(sim, machine)


@inlined
def end_prompts(sim, machine):
    """The prompts of an iteration that has ended."""
    slot = machine.current_head
    machine.current_head = machine.current_tail = NONE
    while slot != NONE:
        job = job_at(sim, slot)
        slot = job.queue_next
        machine.prompted_tokens += job.prompt_tokens
        machine.generated_tokens += 1
        end_prompt(sim, machine, job)


@inlined
def end_prompt(sim, machine, job):
    """The request has its first token."""
    row = row_of(sim, job)
    row.prompt_end_ns = job.prompt_end = sim.now
    if job.attempt == 0:  # to read the row would be to wait for it
        row.prompts_computed = 1
        row.first_token_ns = sim.now
    else:
        row.prompts_computed += 1
        if row.first_token_ns == NONE:
            row.first_token_ns = sim.now
    if job.output_tokens == 1:
        target = machine_at(sim, job.target)
        abort_transfer(sim, job)
        expect(sim, target, job, -1)
        machine.reserved -= job.held_prompt
        machine.kv_used_tokens -= job.prompt_tokens + 1
        split = job.target != machine.index
        finish(sim, job)
        if split:
            grant(sim, target)
            check_drained(sim, target)
    elif job.target == machine.index:
        job.held_token, job.held_prompt = job.held_prompt, 0
        await_output(sim, machine, job)
    else:
        job.phase = SHIPPING
        if not overlaps(sim, job):
            ask_transfer(sim, job)
        elif job.flight == 2:
            constant_runs(sim, job)
