"""Machines at work: iterations begin and end, machines fail, and a deadlock over memory is broken."""

from splitgym.sim.compiled.blocks import decoded, hold_blocks, leave_sequences
from splitgym.sim.compiled.lists import unlink
from splitgym.sim.compiled.machine import (
    begin_prompts,
    begin_tokens,
    end_left_out,
    end_tasks,
    first_done,
    log_event,
    pause,
    remove_task,
    settle,
    take_prompt,
    token_watts,
)
from splitgym.sim.compiled.machine import ended as iterations_ended
from splitgym.sim.compiled.rules import (
    abort_transfer,
    admit,
    ask_transfer,
    await_output,
    back,
    check_drained,
    constant_runs,
    expect,
    finish,
    fits,
    grant,
    leave_prompt_queue,
    new_job,
    output_need,
    overlaps,
    promise,
    reserve_prompt,
    route_again,
    stop_waiting,
    wake,
)
from splitgym.sim.compiled.state import *
from splitgym.sim.compiled.vllm import begin_sequences, drop_chunks, end_chunks
from splitgym.types import EventKind
from splitgym.view import SHARE_TIME_CONSTANT_NS


@compiled
def work(sim, m):
    """Machine m begins its next iteration, or goes idle."""
    vllm = sim.rules[RULE] == VLLM
    while not (begin_sequences(sim, m) if vllm else begin(sim, m)):
        if not break_deadlock(sim, m):
            sim.machines[IDLE, m] = 1
            return


@compiled
def begin(sim, m):
    """Token tasks passed over too often; prompts, FCFS; the other token tasks as far as they fit."""
    machines, jobs, rules = sim.machines, sim.jobs, sim.rules
    aged = machines[AGED, m]
    tasks = tokens = aged
    prompts = prompt_tokens = 0
    while machines[PROMPTS_HEAD, m] != NONE and tasks < rules[MAX_TASKS]:
        slot = machines[PROMPTS_HEAD, m]
        size = jobs[PROMPT_TOKENS, slot]
        if tasks and tokens + size > rules[MAX_PROMPT_TOKENS]:
            break
        if not jobs[GRANTED, slot] and not reserve_prompt(sim, m, slot):
            break
        take_prompt(sim, m, slot)
        leave_prompt_queue(sim, m, slot)
        prompts += 1
        tasks += 1
        tokens += size
        prompt_tokens += size
    if prompts == 0:
        if machines[BATCH, m] == 0:
            return False
        begin_tokens(sim, m)
        return True
    slot = machines[CURRENT_HEAD, m]
    while slot != NONE:
        jobs[PHASE, slot] = PROMPT
        sim.requests[O_PROMPT_START, jobs[REQUEST, slot]] = sim.scalars[NOW]
        if overlaps(sim, slot):
            ask_transfer(sim, slot)
        slot = jobs[QUEUE_NEXT, slot]
    begin_prompts(sim, m, prompts, prompt_tokens, aged)
    return True


@compiled
def iteration_ends(sim, m):
    """Every token task has one more token, every prompt its first; then the machine goes on."""
    machines, jobs, scalars = sim.machines, sim.jobs, sim.scalars
    now = scalars[NOW]
    if machines[BUSY, m] == 2:
        settle(sim, m, machines[PLANNED, m])
        machines[BUSY, m] = 0
        if machines[PARTIAL, m]:
            end_left_out(sim, m, 1)
        complete_tasks(sim, m)
        if sim.rules[RULE] == VLLM and machines[PLANNED, m] > 1:
            hold_blocks(sim, m, 0)
    elif sim.rules[RULE] == VLLM:
        prompts_ran(sim, m, now)
        machines[BUSY, m] = 0
        machines[T_GENERATED, m] += machines[DECODES, m]
        end_tasks(sim, m)
        complete_tasks(sim, m)
        end_chunks(sim, m)
    else:
        prompts_ran(sim, m, now)
        machines[BUSY, m] = 0
        tokens, prompts = 0, 0
        slot = machines[CURRENT_HEAD, m]
        while slot != NONE:
            tokens += jobs[PROMPT_TOKENS, slot]
            prompts += 1
            slot = jobs[QUEUE_NEXT, slot]
        sim.machines[T_PROMPTED, m] += tokens
        sim.machines[T_GENERATED, m] += prompts + machines[DECODES, m]
        end_tasks(sim, m)
        complete_tasks(sim, m)
        slot = machines[CURRENT_HEAD, m]
        machines[CURRENT_HEAD, m] = machines[CURRENT_TAIL, m] = NONE
        while slot != NONE:
            after = jobs[QUEUE_NEXT, slot]
            end_prompt(sim, m, slot)
            slot = after
    grant(sim, m)
    check_drained(sim, m)
    work(sim, m)


@compiled
def prompts_ran(sim, m, now):
    """Time, energy and share of prompts of an iteration with prompts."""
    machines = sim.machines
    if sim.rules[LOGGING]:
        log_event(sim, now, EventKind.ITERATION_END, NONE, m)
    spend_prompts(sim, m, now)
    tau = SHARE_TIME_CONSTANT_NS
    gap = machines[START, m] - sim.machines[V_PROMPT_SHARE_AT_NS, m]
    spent = now - machines[START, m]
    share = sim.reals[m] * tau / (tau + gap)
    sim.reals[m] = (share * tau + spent) / (tau + spent)
    sim.machines[V_PROMPT_SHARE_AT_NS, m] = now


@compiled
def spend_prompts(sim, m, now):
    """An iteration with prompts has ended, or was cut short by a failure."""
    machines = sim.machines
    spent = now - machines[START, m]
    watts = sim.watts[sim.machines[V_MACHINE_ROW, m]]
    tokens = min(machines[ITERATION_TOKENS, m], watts.shape[0] - 1)
    machines[WATTS_NS, m] += watts[tokens] * spent
    sim.machines[T_BUSY, m] += spent
    sim.machines[T_PROMPT_BUSY, m] += spent
    if sim.rules[RULE] == PAPER:
        sim.machines[V_PROMPT_TOKENS, m] -= machines[ITERATION_TOKENS, m]
    sim.machines[V_ITERATION_PROMPTS, m] = 0


@compiled
def complete_tasks(sim, m):
    """Requests whose last token this was."""
    machines, jobs = sim.machines, sim.jobs
    slot = first_done(sim, m)
    while slot != NONE:
        prompt = jobs[PROMPT_TOKENS, slot]
        held = prompt + jobs[OUTPUT_TOKENS, slot]
        machines[BATCH_CONTEXT, m] -= held
        machines[RESERVED, m] -= jobs[HELD_TOKEN, slot]
        sim.machines[V_RUNNING, m] -= 1
        sim.machines[V_RUNNING_CONTEXT_TOKENS, m] -= held
        sim.machines[V_RUNNING_PROMPT_TOKENS, m] -= prompt
        sim.machines[V_KV_USED_TOKENS, m] -= held
        if sim.rules[RULE] == VLLM:
            leave_sequences(sim, m, slot)
        finish(sim, slot)
        slot = first_done(sim, m)


@compiled
def end_prompt(sim, m, slot):
    """The request has its first token."""
    machines, jobs = sim.machines, sim.jobs
    request, now = jobs[REQUEST, slot], sim.scalars[NOW]
    sim.requests[O_PROMPT_END, request] = now
    sim.requests[O_PROMPTS, request] += 1
    if sim.requests[O_FIRST, request] == NONE:
        sim.requests[O_FIRST, request] = now
    target = jobs[TOKEN_MACHINE, slot]
    if jobs[OUTPUT_TOKENS, slot] == 1:
        abort_transfer(sim, slot)
        expect(sim, target, slot, -1)
        machines[RESERVED, m] -= jobs[HELD_PROMPT, slot]
        sim.machines[V_KV_USED_TOKENS, m] -= jobs[PROMPT_TOKENS, slot] + 1
        finish(sim, slot)
        if target != m:
            grant(sim, target)
            check_drained(sim, target)
    elif target == m:
        jobs[HELD_TOKEN, slot], jobs[HELD_PROMPT, slot] = jobs[HELD_PROMPT, slot], 0
        await_output(sim, m, slot)
    else:
        jobs[PHASE, slot] = SHIPPING
        if not overlaps(sim, slot):
            ask_transfer(sim, slot)
        elif jobs[FLIGHT, slot] == 2:
            constant_runs(sim, slot)


# ---- failures and deadlocks -------------------------------------------------------------------------------


@compiled
def generated(sim, slot):
    """Output tokens of a request so far."""
    jobs = sim.jobs
    phase = jobs[PHASE, slot]
    if sim.rules[RULE] == VLLM:
        if phase == RUNNING:
            return max(jobs[GENERATED, slot], decoded(sim, jobs[TOKEN_MACHINE, slot], slot))
        return jobs[GENERATED, slot]
    if phase == RUNNING:
        left = jobs[LAST, slot] - sim.machines[ITERATIONS, jobs[TOKEN_MACHINE, slot]]
        return max(1, jobs[OUTPUT_TOKENS, slot] - left)
    return 1 if phase in (SHIPPING, READY) else 0


@compiled
def cancel(sim, slot):
    """Take a request off its machines."""
    machines, jobs = sim.machines, sim.jobs
    source, target, phase = jobs[PROMPT_MACHINE, slot], jobs[TOKEN_MACHINE, slot], jobs[PHASE, slot]
    request, prompt = jobs[REQUEST, slot], jobs[PROMPT_TOKENS, slot]
    tokens = generated(sim, slot)
    sim.requests[O_LOST, request] += tokens
    if phase == QUEUED:
        unlink(machines, PROMPTS_HEAD, PROMPTS_TAIL, source, jobs, QUEUE_NEXT, QUEUE_PREV, slot)
        leave_prompt_queue(sim, source, slot)
        pause(sim, source)  # the next in the queue may start
        sim.machines[V_PROMPT_TOKENS, source] -= jobs[TARGET, slot]
        if jobs[WAITING, slot]:
            stop_waiting(sim, source, slot)
        machines[RESERVED, source] -= jobs[HELD_PROMPT, slot]
        expect(sim, target, slot, -1)
    elif phase == PROMPT and sim.rules[RULE] == VLLM:
        drop_chunks(sim, source, slot)
        expect(sim, target, slot, -1)
    elif phase in (PROMPT, SHIPPING):
        abort_transfer(sim, slot)
        if phase == PROMPT:
            unlink(machines, CURRENT_HEAD, CURRENT_TAIL, source, jobs, QUEUE_NEXT, QUEUE_PREV, slot)
        machines[RESERVED, source] -= jobs[HELD_PROMPT, slot]
        sim.machines[V_KV_USED_TOKENS, source] -= prompt + 1
        expect(sim, target, slot, -1)
    else:
        if phase == RUNNING:
            remove_task(sim, target, slot)
            if sim.rules[RULE] == VLLM:
                leave_sequences(sim, target, slot)
            machines[BATCH_CONTEXT, target] -= prompt + tokens
        else:
            unlink(machines, OUTPUTS_HEAD, OUTPUTS_TAIL, target, jobs, OUTPUT_NEXT, OUTPUT_PREV, slot)
        machines[RESERVED, target] -= jobs[HELD_TOKEN, slot]
        sim.machines[V_RUNNING, target] -= 1
        sim.machines[V_RUNNING_CONTEXT_TOKENS, target] -= prompt + tokens
        sim.machines[V_RUNNING_PROMPT_TOKENS, target] -= prompt
        sim.machines[V_KV_USED_TOKENS, target] -= prompt + tokens
    promise(sim, slot, -1)
    for row in (O_PROMPT_START, O_PROMPT_END, O_TRANSFER_START, O_TRANSFER_END, O_DECODE_START):
        sim.requests[row, request] = NONE
    new_job(sim, slot, request, jobs[ATTEMPT, slot] + 1)
    route_again(sim, slot)


@compiled
def settle_after(sim, m):
    """Memory was freed on machine m by a request that left it."""
    grant(sim, m)
    check_drained(sim, m)
    wake(sim, m)


@compiled
def fail(sim, m):
    """Machine m fails: what it had of requests is lost, and they begin again."""
    machines, jobs, now = sim.machines, sim.jobs, sim.scalars[NOW]
    machines[DOWN, m] += 1
    if machines[DOWN, m] > 1:
        return
    sim.machines[T_FAILED_AT, m] = now
    if machines[BUSY, m] == 2:
        settle(sim, m, iterations_ended(sim, m))
        spent = now - machines[SETTLED_AT, m]
        machines[WATTS_NS, m] += token_watts(sim, m, machines[RUN_BATCH, m]) * spent
        sim.machines[T_BUSY, m] += spent
    elif machines[BUSY, m] == 1:
        spend_prompts(sim, m, now)
    was_busy = machines[BUSY, m] != 0
    machines[BUSY, m] = 0
    machines[VERSION, m] += 1
    machines[SWITCH_NUMBER, m] += 1
    touched = sim.machines[TOUCHED]
    touched[:] = 0
    for slot in range(jobs.shape[1]):
        if not jobs[IN_USE, slot] or jobs[PHASE, slot] == ELSEWHERE:
            continue
        p, t = jobs[PROMPT_MACHINE, slot], jobs[TOKEN_MACHINE, slot]
        if t == m or (p == m and jobs[PHASE, slot] <= SHIPPING):
            touched[p] = touched[t] = 1
            cancel(sim, slot)
    machines[PARTIAL, m] = machines[AGED, m] = machines[CARRY, m] = 0
    machines[FRESH_HEAD, m] = NONE
    for other in range(touched.shape[0]):
        if touched[other]:
            settle_after(sim, other)
    if was_busy:
        machines[IDLE, m] = 1


@compiled
def recover(sim, m):
    """Machine m is up again, with nothing to drain."""
    machines = sim.machines
    machines[DOWN, m] -= 1
    if machines[DOWN, m] == 0:
        sim.machines[T_DOWN, m] += sim.scalars[NOW] - sim.machines[T_FAILED_AT, m]
        machines[SWITCHING, m] = 0
        back(sim)


@compiled
def blocked(sim, m):
    """Somebody waits for memory, and no work or transfer in progress here will free any."""
    machines = sim.machines
    if machines[BUSY, m] or machines[BATCH, m] or machines[SHIPMENTS, m]:
        return False
    if sim.rules[RULE] == VLLM:
        waiting = machines[PROMPTS_HEAD, m] != NONE or machines[MEMORY_HEAD, m] != NONE
        return waiting and machines[SEATS, m] == 0
    if machines[OUTPUTS_HEAD, m] == NONE and machines[MEMORY_HEAD, m] == NONE:
        return False
    head = machines[PROMPTS_HEAD, m]
    return head == NONE or not sim.jobs[GRANTED, head]


@compiled
def deadlocked(sim, m):
    """Nothing frees memory here, nor at any machine that holds up caches of this one."""
    if not blocked(sim, m):
        return False
    jobs, seen = sim.jobs, sim.machines[TOUCHED]
    seen[:] = 0
    seen[m] = 1
    grows = True
    while grows:  # the set of machines reached, to a fixed point
        grows = False
        for slot in range(jobs.shape[1]):
            if not jobs[IN_USE, slot] or jobs[PHASE, slot] != SHIPPING:
                continue
            t = jobs[TOKEN_MACHINE, slot]
            if seen[jobs[PROMPT_MACHINE, slot]] and not seen[t]:
                if not blocked(sim, t) or not sim.machines[IDLE, t]:
                    return False
                seen[t] = 1
                grows = True
    return True


@compiled
def break_deadlock(sim, m):
    """Let work go on where machines wait for each other's memory for ever; False where they do not."""
    machines, jobs = sim.machines, sim.jobs
    if not deadlocked(sim, m):
        return False
    slot = machines[OUTPUTS_HEAD, m]
    while slot != NONE:
        if fits(sim, m, output_need(sim, slot)):
            admit(sim, m, slot)
            grant(sim, m)
            return True
        slot = jobs[OUTPUT_NEXT, slot]
    victim = NONE
    for slot in range(jobs.shape[1]):
        if not jobs[IN_USE, slot] or slot == machines[OUTPUTS_HEAD, m]:
            continue
        phase = jobs[PHASE, slot]
        here = (phase == SHIPPING and jobs[PROMPT_MACHINE, slot] == m) or (
            phase == READY and jobs[TOKEN_MACHINE, slot] == m
        )
        if here and (victim == NONE or jobs[REQUEST, slot] > jobs[REQUEST, victim]):
            victim = slot
    sim.requests[O_PREEMPTIONS, jobs[REQUEST, victim]] += 1
    p, t = jobs[PROMPT_MACHINE, victim], jobs[TOKEN_MACHINE, victim]
    cancel(sim, victim)
    settle_after(sim, p)
    if t != p:
        settle_after(sim, t)
    return True
