"""Another future for a copy of a simulation: outputs that are still to come get other lengths.

Only for the paper's batching rule. What has happened stays as it is; what was planned by the true lengths is
planned anew, so a copy that has been revised holds none of them.
"""

from splitgym.sim.compiled.blocks import decoded
from splitgym.sim.compiled.lists import heapify
from splitgym.sim.compiled.machine import *


@compiled
def generated_so_far(sim, out):
    """Fill the output tokens that each request in flight has; -1 for slots without one.

    Args:
        sim: at a decision, so that contiguous iterations are counted.
        out: (at least `used_slots`,) int64.
    """
    for slot in range(sim.used_slots):
        job = job_at(sim, slot)
        out[slot] = -1
        if job.in_use:
            out[slot] = 0 if row_of(sim, job).first_token_ns == NONE else 1
            if job.phase == RUNNING:
                out[slot] = decoded(machine_at(sim, job.target), job)


@compiled
def revise(sim, lengths):
    """Give the requests in flight other output lengths.

    Args:
        sim: a copy at a decision.
        lengths: (at least `used_slots`,) int64, each above what is generated already.
    """
    for slot in range(sim.used_slots):
        job = job_at(sim, slot)
        if not job.in_use:
            continue
        change = lengths[slot] - job.output_tokens
        job.output_tokens += change
        if job.phase == ELSEWHERE:
            continue
        target = machine_at(sim, job.target)
        target.promised += change
        if job.phase == RUNNING:
            job.last += change
        if job.held_token and (sim.reserve_all or job.phase == RUNNING):
            job.held_token += change
            target.reserved += change
        if job.held_prompt and sim.reserve_all and job.source == job.target:
            job.held_prompt += change
            target.reserved += change
    for m in range(sim.num_machines):
        machine = machine_at(sim, m)
        batch = batch_of(sim, m)
        for i in range(machine.batch):
            task = task_at(batch, i)
            task.order = order_of(job_at(sim, task.slot))
        heapify(batch, machine.batch)
        if machine.busy == 2:  # it was to go on to the first completion
            count = ended(sim, machine)
            settle(sim, machine, count)
            plan(sim, machine, count + 1)
