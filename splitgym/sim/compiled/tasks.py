"""Token tasks of a batch: who decodes in an iteration, who is done, who is taken out."""

from splitgym.sim.compiled.blocks import decoded, task_job
from splitgym.sim.compiled.machine import *


@compiled
def forgive_aged(sim, machine):
    """Every task decodes: those passed over too often count from 0 again."""
    for i in range(machine.batch):
        job = task_job(sim, machine, i)
        if job.passed >= sim.max_passed_over:
            job.passed = 0
    machine.aged = 0


@inlined
def begin_tokens(sim, machine):
    """Contiguous token iterations over the whole batch, up to the first completion."""
    if machine.aged:
        forgive_aged(sim, machine)
    head = machine.prompts_head
    count = 1  # a prompt that does not wait for memory is for the next iteration
    if head == NONE or job_at(sim, head).waiting:
        count = first_last(sim, machine) - machine.iterations
    lead(sim, machine, task_at(batch_of(sim, machine.index), 0).slot)
    first_decodes(sim, machine)
    begin_run(sim, machine, machine.batch, machine.batch_context, count)


@compiled
def first_last(sim, machine):
    """The token iteration after which the next task is done."""
    return task_at(batch_of(sim, machine.index), 0).order >> 32


@compiled
def choose_tasks(sim, machine, room):
    """Token tasks beside prompts: the aged ones, then those that came first, `room` of them.

    Returns how many, and their context. Those left out have been passed over once more, and are marked.
    """
    size = machine.batch
    batch, order = batch_of(sim, machine.index), batch_of(sim, sim.num_machines)
    for i in range(size):
        task = task_at(batch, i)
        push_task(order, i, task.order & JOINED_MASK, task.slot)
    taken = context = 0
    machine.aged = 0
    machine.partial = 1
    machine.fresh_head = NONE
    for i in range(size):
        job = job_at(sim, task_at(order, 0).slot)
        last = task_at(order, size - 1 - i)
        move_task(task_at(order, 0), last.order, last.slot)
        sink(order, size - 1 - i, 0)
        if job.passed >= sim.max_passed_over:
            job.passed = 0
        elif room > 0:
            room -= 1
        else:
            leave_out(sim, machine, job)
            continue
        taken += 1
        context += job.prompt_tokens + decoded(machine, job)
        started(sim, job)
    return taken, context


@compiled
def leave_out(sim, machine, job):
    """A token task is not in the next iteration."""
    job.left_out = 1
    job.passed += 1
    if job.passed >= sim.max_passed_over:
        machine.aged += 1
    if row_of(sim, job).decode_start_ns == NONE:
        job.fresh_next = machine.fresh_head
        machine.fresh_head = job.slot


@inlined
def end_tasks(sim, machine):
    """The token tasks of an iteration with prompts have one more token each."""
    decodes = machine.decodes
    if decodes:
        machine.iterations += 1
        machine.batch_context += decodes
        machine.running_context_tokens += decodes
        machine.kv_used_tokens += decodes
    if machine.partial:
        end_left_out(sim, machine, decodes)


@compiled
def end_left_out(sim, machine, decodes):
    """The machine's count of token iterations went on without the tasks left out, if there were `decodes`."""
    machine.partial = 0
    batch = batch_of(sim, machine.index)
    for i in range(machine.batch):
        task = task_at(batch, i)
        job = job_at(sim, task.slot)
        if job.left_out:
            job.left_out = 0
            if decodes:
                job.last += 1
                task.order = order_of(job)
    heapify(batch, machine.batch)


@compiled
def remove_task(sim, machine, job):
    """Take a request out of a batch, wherever it is."""
    batch = batch_of(sim, machine.index)
    size = machine.batch
    for i in range(size):
        task = task_at(batch, i)
        if task.slot == job.slot:
            last = task_at(batch, size - 1)
            move_task(task, last.order, last.slot)
            machine.batch = size - 1
            heapify(batch, size - 1)
            return


@compiled
def first_done(sim, machine):
    """The next task that is done with the machine's last iteration, out of the batch; NONE where none is."""
    size = machine.batch
    if size == 0 or first_last(sim, machine) > machine.iterations:
        return NONE
    batch = batch_of(sim, machine.index)
    first, last = task_at(batch, 0), task_at(batch, size - 1)
    slot = first.slot
    move_task(first, last.order, last.slot)
    machine.batch = size - 1
    sink(batch, size - 1, 0)
    return slot
