"""The rules of the cluster, as in `splitgym.sim.rules`, over the compiled engine's state."""

from splitgym.profile.tables import prompt_time_ns
from splitgym.sim.compiled.blocks import (
    join_batch,
    join_sequences,
    settle_blocks,
    take_slack,
    whole_blocks,
)
from splitgym.sim.compiled.lists import KIND_SHIFT, append, push_event, push_task, push_wake, unlink
from splitgym.sim.compiled.machine import ended as iterations_ended
from splitgym.sim.compiled.machine import log_event, pause, run_end_ns, settle
from splitgym.sim.compiled.network import (
    join_network,
    leave_network,
    settle_transfer,
    transfer_event,
)
from splitgym.sim.compiled.state import *
from splitgym.types import EventKind, Pool
from splitgym.view import COMPLETED_OUTPUT_TOKENS, COMPLETED_REQUESTS, OUTPUT_DECAY

REROUTE_KEY = (int(EventKind.REROUTE) + 1) << KIND_SHIFT
SWITCH_KEY = (int(EventKind.SWITCH_END) + 1) << KIND_SHIFT
TO_PROMPT, TO_TOKEN, TO_MIXED = int(Pool.PROMPT), int(Pool.TOKEN), int(Pool.MIXED)
WORK_PER_BYTE = 15_625_000


# ---- requests ---------------------------------------------------------------------------------------------


@compiled
def free_slot(sim, slot):
    """The request is done: its slot may be used again."""
    sim.jobs[IN_USE, slot] = 0
    sim.jobs[QUEUE_NEXT, slot] = sim.scalars[FREE_HEAD]
    sim.scalars[FREE_HEAD] = slot


@compiled
def new_job(sim, slot, request, attempt):
    """A slot for one attempt to serve a request."""
    jobs = sim.jobs
    flight_version, rerated, after = jobs[FLIGHT_VERSION, slot], jobs[RERATED, slot], jobs[RERATED_NEXT, slot]
    jobs[:, slot] = 0
    jobs[FLIGHT_VERSION, slot] = flight_version + 1
    jobs[RERATED, slot], jobs[RERATED_NEXT, slot] = rerated, after
    jobs[IN_USE, slot] = 1
    jobs[REQUEST, slot] = request
    jobs[PROMPT_TOKENS, slot] = sim.requests[R_PROMPT, request]
    jobs[OUTPUT_TOKENS, slot] = sim.requests[R_OUTPUT, request]
    jobs[TARGET, slot] = jobs[PROMPT_TOKENS, slot]
    jobs[PHASE, slot] = ELSEWHERE
    jobs[ATTEMPT, slot] = attempt


@compiled
def finish(sim, slot):
    """The request has all its tokens."""
    jobs, scalars = sim.jobs, sim.scalars
    promise(sim, slot, -1)
    request, output = jobs[REQUEST, slot], jobs[OUTPUT_TOKENS, slot]
    sim.requests[O_FINISH, request] = scalars[NOW]
    sim.requests[R_ORDER, scalars[FINISHED]] = request
    scalars[FINISHED] += 1
    scalars[UNFINISHED] -= 1
    scalars[IN_SYSTEM] -= 1
    scalars[COUNTERS + COMPLETED_REQUESTS] += 1
    scalars[COUNTERS + COMPLETED_OUTPUT_TOKENS] += output
    mean = sim.reals[sim.machines.shape[1] :]
    mean[0] = OUTPUT_DECAY * mean[0] + output
    mean[1] = OUTPUT_DECAY * mean[1] + 1.0
    free_slot(sim, slot)


@compiled
def promise(sim, slot, sign):
    """A request takes its place on two machines (+1), or gives back what it still has (-1)."""
    jobs = sim.jobs
    p, t, phase = jobs[PROMPT_MACHINE, slot], jobs[TOKEN_MACHINE, slot], jobs[PHASE, slot]
    sim.machines[PROMISED, t] += sign * (jobs[PROMPT_TOKENS, slot] + jobs[OUTPUT_TOKENS, slot])
    if p != t and phase <= SHIPPING:
        sim.machines[PROMISED, p] += sign * (jobs[PROMPT_TOKENS, slot] + 1)


@compiled
def expect(sim, m, slot, sign):
    """A request is (+1), or is no more (-1), to decode on machine m with its cache not there yet."""
    sim.machines[V_INBOUND, m] += sign
    sim.machines[V_INBOUND_PROMPT_TOKENS, m] += sign * sim.jobs[PROMPT_TOKENS, slot]


@compiled
def leave_prompt_queue(sim, m, slot):
    """The prompt starts or is cancelled: it is not queued any more."""
    sim.machines[V_PROMPT_REQUESTS, m] -= 1
    sim.machines[V_PROMPT_QUEUE_NS, m] -= sim.jobs[ALONE_NS, slot]


@compiled
def route(sim, slot, p, t):
    """The request goes to prompt machine p and token machine t."""
    jobs = sim.jobs
    jobs[PROMPT_MACHINE, slot], jobs[TOKEN_MACHINE, slot] = p, t
    jobs[PHASE, slot] = QUEUED
    request = jobs[REQUEST, slot]
    sim.requests[O_PROMPT_MACHINE, request] = p
    sim.requests[O_TOKEN_MACHINE, request] = t
    sim.requests[O_DECISION, request] = jobs[DECISION, slot]
    sim.requests[O_ATTEMPTS, request] += 1
    tokens = jobs[PROMPT_TOKENS, slot]
    alone = prompt_time_ns(sim.tables, sim.machines[V_MACHINE_ROW, p], tokens)
    jobs[ALONE_NS, slot] = alone
    append(sim.machines, PROMPTS_HEAD, PROMPTS_TAIL, p, jobs, QUEUE_NEXT, QUEUE_PREV, slot)
    sim.machines[V_PROMPT_REQUESTS, p] += 1
    sim.machines[V_PROMPT_TOKENS, p] += tokens
    sim.machines[V_PROMPT_QUEUE_NS, p] += alone
    expect(sim, t, slot, 1)
    promise(sim, slot, 1)
    pause(sim, p)
    wake(sim, p)


@compiled
def wake(sim, m):
    """Let an idle machine look for work, before any other event of this time."""
    if sim.machines[IDLE, m]:
        sim.machines[IDLE, m] = 0
        push_wake(sim, m)


# ---- memory -----------------------------------------------------------------------------------------------


@compiled
def prompt_need(sim, slot):
    """KV tokens that the prompt machine reserves when the prompt starts."""
    jobs = sim.jobs
    if jobs[PROMPT_MACHINE, slot] != jobs[TOKEN_MACHINE, slot] or not sim.rules[RESERVE_ALL]:
        return jobs[PROMPT_TOKENS, slot] + 1
    return jobs[PROMPT_TOKENS, slot] + jobs[OUTPUT_TOKENS, slot]


@compiled
def transfer_need(sim, slot):
    """KV tokens that the token machine reserves when the transfer starts."""
    if sim.rules[RULE] == VLLM:
        return whole_blocks(sim, sim.jobs[PROMPT_TOKENS, slot] + 1)
    return sim.jobs[PROMPT_TOKENS, slot] + (sim.jobs[OUTPUT_TOKENS, slot] if sim.rules[RESERVE_ALL] else 1)


@compiled
def output_need(sim, slot):
    """KV tokens that the token machine reserves at the first decode."""
    return 0 if sim.rules[RESERVE_ALL] else sim.jobs[OUTPUT_TOKENS, slot] - 1


@compiled
def fits(sim, m, tokens):
    return sim.machines[RESERVED, m] + tokens <= sim.machines[V_KV_CAPACITY_TOKENS, m]


@compiled
def has_room(sim, m, tokens):
    """May a newcomer take memory? Not before those who wait, nor before outputs of caches here."""
    return sim.machines[MEMORY_HEAD, m] == NONE and not starved(sim, m) and fits(sim, m, tokens)


@compiled
def starved(sim, m):
    """The first output that waits here does not fit: memory that frees is for it."""
    head = sim.machines[OUTPUTS_HEAD, m]
    return head != NONE and not fits(sim, m, output_need(sim, head))


@compiled
def wait_for_memory(sim, m, slot):
    sim.jobs[WAITING, slot] = 1
    append(sim.machines, MEMORY_HEAD, MEMORY_TAIL, m, sim.jobs, MEMORY_NEXT, MEMORY_PREV, slot)


@compiled
def stop_waiting(sim, m, slot):
    sim.jobs[WAITING, slot] = 0
    unlink(sim.machines, MEMORY_HEAD, MEMORY_TAIL, m, sim.jobs, MEMORY_NEXT, MEMORY_PREV, slot)


@compiled
def reserve_prompt(sim, m, slot):
    """Memory for the prompt at the head of m's queue, or a place among those who wait."""
    jobs = sim.jobs
    if jobs[WAITING, slot]:
        return False
    need = prompt_need(sim, slot)
    if not has_room(sim, m, need):
        wait_for_memory(sim, m, slot)
        return False
    sim.machines[RESERVED, m] += need
    jobs[HELD_PROMPT, slot] = need
    return True


@compiled
def await_output(sim, m, slot):
    """The cache is here; the request waits for memory for its output."""
    jobs = sim.jobs
    expect(sim, m, slot, -1)
    jobs[PHASE, slot] = READY
    append(sim.machines, OUTPUTS_HEAD, OUTPUTS_TAIL, m, jobs, OUTPUT_NEXT, OUTPUT_PREV, slot)
    sim.machines[V_RUNNING, m] += 1
    sim.machines[V_RUNNING_CONTEXT_TOKENS, m] += jobs[PROMPT_TOKENS, slot] + 1
    sim.machines[V_RUNNING_PROMPT_TOKENS, m] += jobs[PROMPT_TOKENS, slot]


@compiled
def admit(sim, m, slot):
    """Reserve what the output needs; the request joins the batch."""
    machines, jobs = sim.machines, sim.jobs
    pause(sim, m)
    unlink(machines, OUTPUTS_HEAD, OUTPUTS_TAIL, m, jobs, OUTPUT_NEXT, OUTPUT_PREV, slot)
    if sim.rules[RULE] == VLLM:
        join_sequences(sim, m, slot)
        join_batch(sim, m, slot)
        return
    need = output_need(sim, slot)
    machines[RESERVED, m] += need
    jobs[HELD_TOKEN, slot] += need
    jobs[PHASE, slot] = RUNNING
    jobs[PASSED, slot] = 0
    sim.scalars[JOINS] += 1
    jobs[JOINED, slot] = sim.scalars[JOINS]
    # The iteration in progress goes on without it.
    busy = machines[BUSY, m]
    running = 1 if busy == 2 or (busy == 1 and machines[DECODES, m] > 0) else 0
    jobs[LAST, slot] = machines[ITERATIONS, m] + running + jobs[OUTPUT_TOKENS, slot] - 1
    push_task(jobs, sim.batches[m], machines[BATCH, m], slot)
    machines[BATCH, m] += 1
    machines[BATCH_CONTEXT, m] += jobs[PROMPT_TOKENS, slot] + 1
    jobs[FRESH_NEXT, slot] = machines[FRESH_HEAD, m]
    machines[FRESH_HEAD, m] = slot


@compiled
def has_seat(sim, m):
    """One more request may be in progress."""
    return sim.machines[SEATS if sim.rules[RULE] == VLLM else BATCH, m] < sim.rules[MAX_TASKS]


@compiled
def grant(sim, m):
    """Give memory to those who wait: outputs of caches already here first, then FCFS."""
    machines, jobs = sim.machines, sim.jobs
    vllm = sim.rules[RULE] == VLLM
    if vllm and machines[MEMORY_HEAD, m] != NONE:
        settle_blocks(sim, m)
    while machines[OUTPUTS_HEAD, m] != NONE and has_seat(sim, m) and not starved(sim, m):
        admit(sim, m, machines[OUTPUTS_HEAD, m])
        wake(sim, m)
    while machines[MEMORY_HEAD, m] != NONE and not starved(sim, m):
        slot = machines[MEMORY_HEAD, m]
        starts_here = jobs[PHASE, slot] == QUEUED
        need = prompt_need(sim, slot) if starts_here else transfer_need(sim, slot)
        if not fits(sim, m, need):
            break
        stop_waiting(sim, m, slot)
        if starts_here:
            machines[RESERVED, m] += need
            jobs[HELD_PROMPT, slot] = need
            jobs[GRANTED, slot] = 1
            pause(sim, m)
            wake(sim, m)
        else:
            start_transfer(sim, slot)
    if vllm and machines[PROMPTS_HEAD, m] != NONE:
        pause(sim, m)
        wake(sim, m)


# ---- KV transfer ------------------------------------------------------------------------------------------


@compiled
def overlaps(sim, slot):
    """Shipped layer by layer while the prompt is computed."""
    jobs = sim.jobs
    if jobs[PROMPT_MACHINE, slot] == jobs[TOKEN_MACHINE, slot]:
        return False
    return jobs[PROMPT_TOKENS, slot] >= sim.rules[OVERLAP_MIN]


@compiled
def ask_transfer(sim, slot):
    target = sim.jobs[TOKEN_MACHINE, slot]
    if sim.rules[RULE] == VLLM:
        settle_blocks(sim, target)
    if has_room(sim, target, transfer_need(sim, slot)):
        start_transfer(sim, slot)
    else:
        wait_for_memory(sim, target, slot)
        wake(sim, target)


@compiled
def start_transfer(sim, slot):
    machines, jobs = sim.machines, sim.jobs
    source, target = jobs[PROMPT_MACHINE, slot], jobs[TOKEN_MACHINE, slot]
    need = transfer_need(sim, slot)
    machines[RESERVED, target] += need
    if sim.rules[RULE] == VLLM:
        take_slack(sim, target, need)
    jobs[HELD_TOKEN, slot] = need
    sim.machines[V_KV_USED_TOKENS, target] += jobs[PROMPT_TOKENS, slot] + 1
    sim.requests[O_TRANSFER_START, jobs[REQUEST, slot]] = sim.scalars[NOW]
    jobs[LEFT, slot] = jobs[PROMPT_TOKENS, slot] * sim.rules[KV_BYTES] * WORK_PER_BYTE
    jobs[FLIGHT, slot] = 1
    machines[SHIPMENTS, source] += 1
    machines[SHIPMENTS, target] += 1
    join_network(sim, slot)


@compiled
def constant_runs(sim, slot):
    """The bytes are there and the prompt is over: the rest of a layer-wise transfer takes its constant."""
    jobs, now = sim.jobs, sim.scalars[NOW]
    constant = sim.machines[V_TRANSFER_CONSTANT_NS, jobs[PROMPT_MACHINE, slot]]
    over = sim.requests[O_PROMPT_END, jobs[REQUEST, slot]]
    jobs[FLIGHT, slot] = 3
    transfer_event(sim, slot, max(now, over + constant))


@compiled
def transfer_ends(sim, slot):
    """A stage of a transfer is over."""
    jobs = sim.jobs
    if jobs[FLIGHT, slot] == 1:
        settle_transfer(sim, slot)
        leave_network(sim, slot)
        if jobs[PHASE, slot] == PROMPT:
            jobs[FLIGHT, slot] = 2
            return
        if overlaps(sim, slot):
            constant_runs(sim, slot)
            return
    shipped(sim, slot)


@compiled
def shipped(sim, slot):
    """The cache is at the token machine."""
    machines, jobs = sim.machines, sim.jobs
    source, target = jobs[PROMPT_MACHINE, slot], jobs[TOKEN_MACHINE, slot]
    request = jobs[REQUEST, slot]
    if sim.rules[LOGGING]:
        log_event(sim, sim.scalars[NOW], EventKind.TRANSFER_END, request, target)
    sim.requests[O_TRANSFER_END, request] = sim.scalars[NOW]
    jobs[FLIGHT, slot] = 0
    machines[SHIPMENTS, source] -= 1
    machines[SHIPMENTS, target] -= 1
    machines[PROMISED, source] -= jobs[PROMPT_TOKENS, slot] + 1
    machines[RESERVED, source] -= jobs[HELD_PROMPT, slot]
    sim.machines[V_KV_USED_TOKENS, source] -= jobs[PROMPT_TOKENS, slot] + 1
    jobs[HELD_PROMPT, slot] = 0
    await_output(sim, target, slot)
    for m in (source, target):
        grant(sim, m)
        check_drained(sim, m)
        wake(sim, m)


@compiled
def abort_transfer(sim, slot):
    """The cache is not wanted any more; what the token machine set aside for it is free."""
    machines, jobs = sim.machines, sim.jobs
    target = jobs[TOKEN_MACHINE, slot]
    if jobs[WAITING, slot]:
        stop_waiting(sim, target, slot)
    if jobs[FLIGHT, slot]:
        if jobs[FLIGHT, slot] == 1:
            settle_transfer(sim, slot)
            leave_network(sim, slot)
        jobs[FLIGHT, slot] = 0
        jobs[FLIGHT_VERSION, slot] += 1
        machines[SHIPMENTS, jobs[PROMPT_MACHINE, slot]] -= 1
        machines[SHIPMENTS, target] -= 1
        sim.requests[O_TRANSFER_START, jobs[REQUEST, slot]] = NONE
        machines[RESERVED, target] -= jobs[HELD_TOKEN, slot]
        sim.machines[V_KV_USED_TOKENS, target] -= jobs[PROMPT_TOKENS, slot] + 1
        jobs[HELD_TOKEN, slot] = 0


# ---- pools ------------------------------------------------------------------------------------------------


@compiled
def drained(sim, m):
    """No work of either phase, no cache on its way out."""
    if sim.machines[V_PROMPT_TOKENS, m] or sim.machines[V_RUNNING, m] or sim.machines[V_INBOUND, m]:
        return False
    for slot in range(sim.jobs.shape[1]):
        if (
            sim.jobs[IN_USE, slot]
            and sim.jobs[PHASE, slot] == SHIPPING
            and sim.jobs[PROMPT_MACHINE, slot] == m
        ):
            return False
    return True


@compiled
def check_drained(sim, m):
    """A switching machine that has drained waits out the switching delay."""
    machines = sim.machines
    if machines[SWITCHING, m] and not machines[SWITCH_TIMER, m] and drained(sim, m):
        machines[SWITCH_TIMER, m] = 1
        delay = sim.rules[SWITCH_DELAY]
        push_event(sim, sim.scalars[NOW] + delay, SWITCH_KEY | m, machines[SWITCH_NUMBER, m])


@compiled
def resize(sim, moves):
    """Move the least loaded available machines, lowest index on ties, as far as the minimum allows."""
    machines, rules = sim.machines, sim.rules
    source, target = (TO_TOKEN, TO_PROMPT) if moves > 0 else (TO_PROMPT, TO_TOKEN)
    there = 0
    for m in range(sim.machines.shape[1]):
        there += (
            sim.machines[V_HOME_POOL, m] == source and machines[DOWN, m] == 0 and not machines[SWITCHING, m]
        )
    for _ in range(min(abs(moves), max(0, there - rules[MIN_POOL]))):
        best, least = NONE, 0
        for m in range(sim.machines.shape[1]):
            if (
                sim.machines[V_HOME_POOL, m] == source
                and machines[DOWN, m] == 0
                and not machines[SWITCHING, m]
            ):
                load = (
                    sim.machines[V_INBOUND, m] + sim.machines[V_RUNNING, m]
                    if moves > 0
                    else sim.machines[V_PROMPT_TOKENS, m]
                )
                if best == NONE or load < least:
                    best, least = m, load
        sim.machines[V_HOME_POOL, best] = target
        if rules[SWITCH_DELAY] > 0:
            machines[SWITCHING, best] = 1
            machines[SWITCH_TIMER, best] = 0
            machines[SWITCH_NUMBER, best] += 1
            check_drained(sim, best)


@compiled
def route_again(sim, slot):
    """Ask anew where this request goes, at this time."""
    push_event(sim, sim.scalars[NOW], REROUTE_KEY | sim.jobs[REQUEST, slot], slot)


@compiled
def back(sim):
    """A machine takes new work again: ask anew for the requests that found none."""
    scalars = sim.scalars
    slot = scalars[HELD_HEAD]
    scalars[HELD_HEAD] = scalars[HELD_TAIL] = NONE
    while slot != NONE:
        route_again(sim, slot)
        slot = sim.jobs[QUEUE_NEXT, slot]


@compiled
def refresh(sim):
    """Make the view true as of now."""
    machines, scalars = sim.machines, sim.scalars
    any_up = any_prompt = any_token = False
    for m in range(sim.machines.shape[1]):
        busy = machines[BUSY, m]
        if busy == 2:
            settle(sim, m, iterations_ended(sim, m))
            sim.machines[V_ITERATION_END_NS, m] = run_end_ns(machines, m, machines[SETTLED, m] + 1)
        else:
            sim.machines[V_ITERATION_END_NS, m] = machines[END, m] if busy else 0
        home = sim.machines[V_HOME_POOL, m]
        pool = home
        tokens = sim.machines[V_RUNNING, m] + sim.machines[V_INBOUND, m] > 0
        prompts = sim.machines[V_PROMPT_TOKENS, m] > 0
        if (home == TO_PROMPT and tokens) or (home == TO_TOKEN and prompts):
            pool = TO_MIXED
        sim.machines[V_POOL, m] = pool
        up = 1 if machines[DOWN, m] == 0 and not machines[SWITCHING, m] else 0
        sim.flags[:, m] = up
        any_up |= up == 1
        any_prompt |= up == 1 and pool != TO_TOKEN
        any_token |= up == 1 and pool != TO_PROMPT
        if sim.rules[ORACLE]:
            sim.machines[V_ORACLE_PROMISED_TOKENS, m] = machines[PROMISED, m]
    scalars[CAN_ROUTE] = any_up
    if sim.rules[CONFINE]:
        # Where confinement would leave a phase without a machine, it is lifted for that phase.
        for m in range(sim.machines.shape[1]):
            if any_prompt and sim.machines[V_POOL, m] == TO_TOKEN:
                sim.flags[1, m] = 0
            if any_token and sim.machines[V_POOL, m] == TO_PROMPT:
                sim.flags[2, m] = 0
