"""Machines fail and recover, requests begin again, and a deadlock over memory is broken."""

from splitgym.sim.compiled.blocks import decoded, leave_sequences
from splitgym.sim.compiled.pools import back, route_again
from splitgym.sim.compiled.tasks import remove_task
from splitgym.sim.compiled.transfers import *
from splitgym.sim.compiled.vllm import drop_chunks


@compiled
def generated(sim, job):
    """Output tokens of a request so far."""
    if sim.rule == VLLM:
        if job.phase == RUNNING:
            return max(job.generated, decoded(machine_at(sim, job.target), job))
        return job.generated
    if job.phase == RUNNING:
        return max(1, decoded(machine_at(sim, job.target), job))
    return 1 if job.phase in (SHIPPING, READY) else 0


@compiled
def cancel(sim, job):
    """Take a request off its machines."""
    source, target = machine_at(sim, job.source), machine_at(sim, job.target)
    phase, prompt = job.phase, job.prompt_tokens
    tokens = generated(sim, job)
    row_of(sim, job).lost_tokens += tokens
    if phase == QUEUED:
        unlink_prompt(sim, source, job)
        leave_prompt_queue(sim, source, job)
        pause(sim, source)  # the next in the queue may start
        source.prompt_tokens -= job.goal
        if job.waiting:
            stop_waiting(sim, source, job)
        source.reserved -= job.held_prompt
        expect(sim, target, job, -1)
    elif phase == PROMPT and sim.rule == VLLM:
        drop_chunks(sim, source, job)
        expect(sim, target, job, -1)
    elif phase in (PROMPT, SHIPPING):
        abort_transfer(sim, job)
        if phase == PROMPT:
            unlink_current(sim, source, job)
        source.reserved -= job.held_prompt
        source.kv_used_tokens -= prompt + 1
        expect(sim, target, job, -1)
    else:
        if phase == RUNNING:
            remove_task(sim, target, job)
            if sim.rule == VLLM:
                leave_sequences(sim, target, job)
            target.batch_context -= prompt + tokens
        else:
            unlink_output(sim, target, job)
        target.reserved -= job.held_token
        target.running -= 1
        target.running_context_tokens -= prompt + tokens
        target.running_prompt_tokens -= prompt
        target.kv_used_tokens -= prompt + tokens
    touch(sim, source)
    touch(sim, target)
    promise(sim, job, -1)
    begin_attempt(sim, job, job.attempt + 1)
    route_again(sim, job)


@compiled
def fail(sim, machine):
    """A machine fails: what it had of requests is lost, and they begin again."""
    touch(sim, machine)
    machine.down += 1
    if machine.down > 1:
        return
    machine.failed_at = sim.now
    was_busy = machine.busy != 0
    if machine.busy == 2:
        settle(sim, machine, ended(sim, machine))
        spent = sim.now - machine.settled_at
        machine.watts_ns += token_watts(sim, machine, machine.run_batch) * spent
        machine.busy_ns += spent
    elif machine.busy == 1:
        spend_prompts(sim, machine)
    stop(sim, machine)
    machine.switch_number += 1
    lose_requests(sim, machine.index)
    machine.partial = machine.aged = machine.carry = 0
    machine.fresh_head = NONE
    for m in range(sim.num_machines):
        if short_at(sim.reached, m):
            settle_after(sim, machine_at(sim, m))
    if was_busy:
        machine.idle = 1


@compiled
def lose_requests(sim, m):
    """Cancel what machine m has of requests; the machines that they were on are `reached`."""
    for other in range(sim.num_machines):
        put_short(sim.reached, other, 0)
    for slot in range(sim.used_slots):
        job = job_at(sim, slot)
        if not job.in_use or job.phase == ELSEWHERE:
            continue
        if job.target == m or (job.source == m and job.phase <= SHIPPING):
            put_short(sim.reached, job.source, 1)
            put_short(sim.reached, job.target, 1)
            cancel(sim, job)


@compiled
def recover(sim, machine):
    """A machine is up again, with nothing to drain."""
    touch(sim, machine)
    machine.down -= 1
    if machine.down == 0:
        machine.down_ns += sim.now - machine.failed_at
        machine.switching = 0
        back(sim, machine)


@compiled
def blocked(sim, machine):
    """Somebody waits for memory, and no work or transfer in progress here will free any."""
    if machine.busy or machine.batch or machine.shipments:
        return False
    if sim.rule == VLLM:
        return (machine.prompts_head != NONE or machine.memory_head != NONE) and machine.seats == 0
    if machine.outputs_head == NONE and machine.memory_head == NONE:
        return False
    head = machine.prompts_head
    return head == NONE or not job_at(sim, head).granted


@compiled
def deadlocked(sim, machine):
    """Nothing frees memory here, nor at any machine that holds up caches of this one."""
    if not blocked(sim, machine):
        return False
    for m in range(sim.num_machines):
        put_short(sim.reached, m, 0)
    put_short(sim.reached, machine.index, 1)
    grows = True
    while grows:  # the set of machines reached, to a fixed point
        grows = False
        for slot in range(sim.used_slots):
            job = job_at(sim, slot)
            if not job.in_use or job.phase != SHIPPING:
                continue
            if short_at(sim.reached, job.source) and not short_at(sim.reached, job.target):
                target = machine_at(sim, job.target)
                if not blocked(sim, target) or not target.idle:
                    return False
                put_short(sim.reached, job.target, 1)
                grows = True
    return True


@compiled
def break_deadlock(sim, machine):
    """Let work go on where machines wait for each other's memory for ever; False where they do not."""
    if not deadlocked(sim, machine):
        return False
    slot = machine.outputs_head
    while slot != NONE:
        job = job_at(sim, slot)
        if fits(machine, output_need(sim, job)):
            admit(sim, machine, job)
            grant(sim, machine)
            return True
        slot = job.memory_next
    victim = job_at(sim, youngest(sim, machine))
    row_of(sim, victim).preemptions += 1
    source, target = machine_at(sim, victim.source), machine_at(sim, victim.target)
    cancel(sim, victim)
    settle_after(sim, source)
    if source.index != target.index:
        settle_after(sim, target)
    return True


@compiled
def youngest(sim, machine):
    """The youngest request with a cache here, but the first one that waits for its output."""
    victim, latest = NONE, NONE
    for slot in range(sim.used_slots):
        job = job_at(sim, slot)
        if not job.in_use or slot == machine.outputs_head:
            continue
        here = (job.phase == SHIPPING and job.source == machine.index) or (
            job.phase == READY and job.target == machine.index
        )
        if here and job.request > latest:
            victim, latest = slot, job.request
    return victim
