"""One machine: contiguous token iterations, the next iteration, what ends with it."""

from splitgym.profile.tables import TICK_BITS, mixed_time_ns, prompt_time_ns, token_time_ticks
from splitgym.sim.compiled.lists import KIND_SHIFT, append, heapify, push_event, sink
from splitgym.sim.compiled.state import *
from splitgym.types import EventKind

ITERATION_KEY = (int(EventKind.ITERATION_END) + 1) << KIND_SHIFT
TICK_MASK = (1 << TICK_BITS) - 1


@compiled
def run_ticks(machines, m, count):
    """Ticks from the start of machine m's contiguous iterations to the end of the `count`-th, and a fraction.

    Iteration i (from 0) takes base + slope x (context + i x batch); a sum over i in closed form.
    """
    growth = count * machines[RUN_CONTEXT, m] + machines[RUN_BATCH, m] * (count * (count - 1) // 2)
    return machines[RUN_CARRY, m] + count * machines[RUN_BASE, m] + machines[RUN_SLOPE, m] * growth


@compiled
def run_end_ns(machines, m, count):
    """End of the `count`-th contiguous iteration [ns]."""
    return machines[START, m] + (run_ticks(machines, m, count) >> TICK_BITS)


@compiled
def ended(sim, m):
    """Contiguous iterations of machine m that have ended, at most those planned.

    One that ends at this very time has ended if its event would have come already.
    """
    machines = sim.machines
    now = sim.scalars[NOW]
    if (ITERATION_KEY | m) > sim.scalars[FRONTIER]:
        now -= 1
    planned, count = machines[PLANNED, m], machines[SETTLED, m]
    if now >= machines[END, m]:
        return planned
    slope, batch = machines[RUN_SLOPE, m], machines[RUN_BATCH, m]
    ticks = machines[RUN_BASE, m] + slope * (machines[RUN_CONTEXT, m] + batch * count)
    elapsed = (now - machines[SETTLED_AT, m]) << TICK_BITS
    guess = elapsed // ticks
    if guess > 1:  # iterations get longer: divide by the length of the one in the middle
        guess = elapsed // (ticks + slope * batch * (guess // 2))
    count = min(planned, count + guess)
    while count > machines[SETTLED, m] and run_end_ns(machines, m, count) > now:
        count -= 1
    while count < planned and run_end_ns(machines, m, count + 1) <= now:
        count += 1
    return count


@compiled
def token_watts(sim, m, batch):
    """Power of machine m in a token iteration over `batch` tasks [W]."""
    kinds = sim.watts.shape[0] // 2
    return sim.watts[kinds + sim.machines[V_MACHINE_ROW, m], batch]


@compiled
def settle(sim, m, count):
    """Count the contiguous iterations up to `count`: tokens, memory, time and energy."""
    machines = sim.machines
    done = count - machines[SETTLED, m]
    if done <= 0:
        return
    batch = machines[RUN_BATCH, m]
    end = run_end_ns(machines, m, count)
    if sim.rules[LOGGING]:
        for i in range(machines[SETTLED, m] + 1, count + 1):
            log_event(sim, run_end_ns(machines, m, i), EventKind.ITERATION_END, NONE, m)
    spent = end - machines[SETTLED_AT, m]
    tokens = done * batch
    machines[SETTLED, m] = count
    machines[SETTLED_AT, m] = end
    machines[ITERATIONS, m] += done
    machines[BATCH_CONTEXT, m] += tokens
    machines[CARRY, m] = run_ticks(machines, m, count) & TICK_MASK
    machines[WATTS_NS, m] += token_watts(sim, m, batch) * spent
    sim.machines[V_RUNNING_CONTEXT_TOKENS, m] += tokens
    sim.machines[V_KV_USED_TOKENS, m] += tokens
    sim.machines[T_BUSY, m] += spent
    sim.machines[T_GENERATED, m] += tokens


@compiled
def log_event(sim, time, kind, request, machine):
    """Add a row to the log. The caller has made sure that there is room."""
    row = sim.scalars[EVENTS]
    sim.scalars[EVENTS] = row + 1
    sim.log[row, 0] = time
    sim.log[row, 1] = kind
    sim.log[row, 2] = request
    sim.log[row, 3] = machine


@compiled
def first_decodes(sim, m):
    """The tasks that have not decoded yet do so now."""
    jobs = sim.jobs
    slot = sim.machines[FRESH_HEAD, m]
    while slot != NONE:
        started(sim, slot)
        slot = jobs[FRESH_NEXT, slot]
    sim.machines[FRESH_HEAD, m] = NONE


@compiled
def started(sim, slot):
    """Record the first decode of a request, unless it is recorded."""
    request = sim.jobs[REQUEST, slot]
    if sim.requests[O_DECODE_START, request] == NONE:
        sim.requests[O_DECODE_START, request] = sim.scalars[NOW]


@compiled
def begin_tokens(sim, m):
    """Contiguous token iterations over the whole batch, up to the first completion."""
    machines, jobs = sim.machines, sim.jobs
    row = sim.machines[V_MACHINE_ROW, m]
    batch = machines[BATCH, m]
    if machines[AGED, m]:
        for i in range(batch):
            if jobs[PASSED, sim.batches[m, i]] >= sim.rules[MAX_PASSED_OVER]:
                jobs[PASSED, sim.batches[m, i]] = 0
        machines[AGED, m] = 0
    head = machines[PROMPTS_HEAD, m]
    count = 1  # a prompt that does not wait for memory is for the next iteration
    if head == NONE or jobs[WAITING, head]:
        count = jobs[LAST, sim.batches[m, 0]] - machines[ITERATIONS, m]
    first_decodes(sim, m)
    now = sim.scalars[NOW]
    context = machines[BATCH_CONTEXT, m]
    base = token_time_ticks(sim.tables, row, batch, 0)
    machines[BUSY, m] = 2
    machines[START, m] = machines[SETTLED_AT, m] = now
    machines[SETTLED, m] = 0
    machines[RUN_BASE, m] = base
    machines[RUN_SLOPE, m] = token_time_ticks(sim.tables, row, batch, 1) - base
    machines[RUN_CONTEXT, m] = context
    machines[RUN_CARRY, m] = machines[CARRY, m]
    machines[RUN_BATCH, m] = batch
    plan(sim, m, count)


@compiled
def plan(sim, m, count):
    """The contiguous iterations end after the `count`-th."""
    machines = sim.machines
    machines[PLANNED, m] = count
    machines[END, m] = run_end_ns(machines, m, count)
    machines[VERSION, m] += 1
    push_event(sim, machines[END, m], ITERATION_KEY | m, machines[VERSION, m])


@compiled
def pause(sim, m):
    """Something has come that the next iteration must see: end contiguous iterations at the next boundary."""
    machines = sim.machines
    if machines[BUSY, m] == 2:
        count = ended(sim, m)
        settle(sim, m, count)
        if count + 1 < machines[PLANNED, m]:
            plan(sim, m, count + 1)


@compiled
def choose_tasks(sim, m, room):
    """Token tasks beside prompts: the aged ones, then those that came first, `room` of them.

    Returns how many, and their context. Those left out have been passed over once more, and are marked.
    """
    machines, jobs = sim.machines, sim.jobs
    size = machines[BATCH, m]
    limit = sim.rules[MAX_PASSED_OVER]
    batch, order = sim.batches[m], sim.batches[sim.batches.shape[0] - 1]
    for i in range(size):  # insertion sort by the order of joining
        slot = batch[i]
        place = i
        while place > 0 and jobs[JOINED, order[place - 1]] > jobs[JOINED, slot]:
            order[place] = order[place - 1]
            place -= 1
        order[place] = slot
    taken = context = 0
    machines[AGED, m] = 0
    machines[PARTIAL, m] = 1
    machines[FRESH_HEAD, m] = NONE
    for i in range(size):
        slot = order[i]
        if jobs[PASSED, slot] >= limit:
            jobs[PASSED, slot] = 0
        elif room > 0:
            room -= 1
        else:
            jobs[LEFT_OUT, slot] = 1
            jobs[PASSED, slot] += 1
            if jobs[PASSED, slot] >= limit:
                machines[AGED, m] += 1
            if sim.requests[O_DECODE_START, jobs[REQUEST, slot]] == NONE:
                jobs[FRESH_NEXT, slot] = machines[FRESH_HEAD, m]
                machines[FRESH_HEAD, m] = slot
            continue
        taken += 1
        left = jobs[LAST, slot] - machines[ITERATIONS, m]
        context += jobs[PROMPT_TOKENS, slot] + jobs[OUTPUT_TOKENS, slot] - left
        started(sim, slot)
    return taken, context


@compiled
def end_tasks(sim, m):
    """The token tasks of an iteration with prompts have one more token each."""
    machines = sim.machines
    decodes = machines[DECODES, m]
    if decodes:
        machines[ITERATIONS, m] += 1
        machines[BATCH_CONTEXT, m] += decodes
        sim.machines[V_RUNNING_CONTEXT_TOKENS, m] += decodes
        sim.machines[V_KV_USED_TOKENS, m] += decodes
    if machines[PARTIAL, m]:
        end_left_out(sim, m, decodes)


@compiled
def end_left_out(sim, m, decodes):
    """The machine's count of token iterations went on without the tasks left out, if there were `decodes`."""
    machines, jobs = sim.machines, sim.jobs
    machines[PARTIAL, m] = 0
    batch = sim.batches[m]
    for i in range(machines[BATCH, m]):
        slot = batch[i]
        if jobs[LEFT_OUT, slot]:
            jobs[LEFT_OUT, slot] = 0
            if decodes:
                jobs[LAST, slot] += 1
    heapify(jobs, batch, machines[BATCH, m])


@compiled
def begin_prompts(sim, m, prompts, prompt_tokens, aged):
    """An iteration over the machine's current prompts, and the token tasks that fit beside them."""
    machines = sim.machines
    size = machines[BATCH, m]
    room = max(
        0, min(sim.rules[MAX_TASKS] - aged - prompts, sim.rules[MAX_PROMPT_TOKENS] - aged - prompt_tokens)
    )
    decodes, context = size, machines[BATCH_CONTEXT, m]
    if size:
        if aged == 0 and room >= size:
            first_decodes(sim, m)
        else:
            decodes, context = choose_tasks(sim, m, room)
    row = sim.machines[V_MACHINE_ROW, m]
    if decodes:
        length = mixed_time_ns(sim.tables, row, prompt_tokens + decodes, decodes, context)
    else:
        length = prompt_time_ns(sim.tables, row, prompt_tokens)
    now = sim.scalars[NOW]
    machines[BUSY, m] = 1
    machines[START, m] = now
    machines[END, m] = now + length
    machines[DECODES, m] = decodes
    machines[ITERATION_TOKENS, m] = prompt_tokens
    sim.machines[V_ITERATION_PROMPTS, m] = prompts
    machines[VERSION, m] += 1
    push_event(sim, now + length, ITERATION_KEY | m, machines[VERSION, m])


@compiled
def take_prompt(sim, m, slot):
    """The prompt at the head of the queue starts."""
    machines, jobs = sim.machines, sim.jobs
    after = jobs[QUEUE_NEXT, slot]
    machines[PROMPTS_HEAD, m] = after
    if after == NONE:
        machines[PROMPTS_TAIL, m] = NONE
    else:
        jobs[QUEUE_PREV, after] = NONE
    append(machines, CURRENT_HEAD, CURRENT_TAIL, m, jobs, QUEUE_NEXT, QUEUE_PREV, slot)
    jobs[GRANTED, slot] = 0
    sim.machines[V_KV_USED_TOKENS, m] += jobs[PROMPT_TOKENS, slot] + 1


@compiled
def remove_task(sim, m, slot):
    """Take a slot out of a batch, wherever it is."""
    machines, jobs = sim.machines, sim.jobs
    batch = sim.batches[m]
    size = machines[BATCH, m]
    for i in range(size):
        if batch[i] == slot:
            batch[i] = batch[size - 1]
            machines[BATCH, m] = size - 1
            heapify(jobs, batch, size - 1)
            return


@compiled
def first_done(sim, m):
    """The next task that is done with the machine's last iteration, out of the batch; NONE where none is."""
    machines, jobs = sim.machines, sim.jobs
    size = machines[BATCH, m]
    if size == 0:
        return NONE
    batch = sim.batches[m]
    slot = batch[0]
    if jobs[LAST, slot] > machines[ITERATIONS, m]:
        return NONE
    batch[0] = batch[size - 1]
    machines[BATCH, m] = size - 1
    sink(jobs, batch, size - 1, 0)
    return slot
