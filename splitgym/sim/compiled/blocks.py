"""vLLM's sequences and the blocks of KV memory they hold, under contiguous iterations too.

While a machine jumps over token iterations, its tasks take blocks as their contexts grow. What is reserved is
brought up to date only where somebody asks (`settle_blocks`); everywhere else it is right as it stands.
"""

from splitgym.sim.compiled.lists import append, push_task, unlink
from splitgym.sim.compiled.machine import ended as iterations_ended
from splitgym.sim.compiled.machine import pause, settle
from splitgym.sim.compiled.state import *


@compiled
def whole_blocks(sim, tokens):
    """KV tokens of the blocks that hold `tokens`."""
    size = sim.rules[BLOCK_SIZE]
    return (tokens + size - 1) // size * size


@compiled
def decoded(sim, m, slot):
    """Output tokens of a token task of machine m; one less where the iteration in progress is without it."""
    return sim.jobs[OUTPUT_TOKENS, slot] - sim.jobs[LAST, slot] + sim.machines[ITERATIONS, m]


@compiled
def allocate(sim, m, slot, row, tokens):
    """Let a sequence hold blocks for `tokens` tokens, counted in `row`; False where they are not there."""
    machines, jobs = sim.machines, sim.jobs
    extra = whole_blocks(sim, tokens) - jobs[row, slot]
    if extra > 0:
        if machines[RESERVED, m] + extra > machines[V_KV_CAPACITY_TOKENS, m]:
            return False
        machines[RESERVED, m] += extra
        jobs[row, slot] += extra
    return True


@compiled
def hold_blocks(sim, m, ahead):
    """Every token task holds blocks for its context and `ahead` tokens."""
    machines, jobs = sim.machines, sim.jobs
    for i in range(machines[BATCH, m]):
        slot = sim.batches[m, i]
        reach = jobs[PROMPT_TOKENS, slot] + decoded(sim, m, slot) + ahead
        extra = whole_blocks(sim, reach) - jobs[HELD_TOKEN, slot]
        if extra > 0:
            machines[RESERVED, m] += extra
            jobs[HELD_TOKEN, slot] += extra


@compiled
def settle_blocks(sim, m):
    """Reserve what the contiguous iterations so far, and the one in progress, have taken."""
    if sim.machines[BUSY, m] == 2 and not sim.machines[PARTIAL, m]:
        settle(sim, m, iterations_ended(sim, m))
        hold_blocks(sim, m, 1)


@compiled
def needed_blocks(sim, m, count):
    """KV tokens of the blocks that `count` more iterations over the batch take."""
    jobs = sim.jobs
    need = 0
    for i in range(sim.machines[BATCH, m]):
        slot = sim.batches[m, i]
        reach = jobs[PROMPT_TOKENS, slot] + decoded(sim, m, slot) + count
        need += max(0, whole_blocks(sim, reach) - jobs[HELD_TOKEN, slot])
    return need


@compiled
def fitting(sim, m, count):
    """Iterations over the batch, at most `count`, for which there are blocks. The first one has them."""
    machines = sim.machines
    free = machines[V_KV_CAPACITY_TOKENS, m] - machines[RESERVED, m]
    need = machines[BATCH, m] * (count - 1 + sim.rules[BLOCK_SIZE] - 1)  # at most
    if need > free:
        need = needed_blocks(sim, m, count)
    if need > free:
        low, high = 1, count
        while high - low > 1:
            middle = (low + high) // 2
            if needed_blocks(sim, m, middle) <= free:
                low = middle
            else:
                high = middle
        count = low
        need = needed_blocks(sim, m, count)
    machines[SLACK, m] = free - need
    return count


@compiled
def take_slack(sim, m, tokens):
    """Memory was reserved while machine m may be jumping: are there still blocks for every iteration?"""
    machines = sim.machines
    if machines[BUSY, m] == 2:
        machines[SLACK, m] -= tokens
        if machines[SLACK, m] < 0:
            pause(sim, m)


@compiled
def join_sequences(sim, m, slot):
    """A request is in progress on machine m from now on."""
    machines, jobs = sim.machines, sim.jobs
    append(machines, SEQUENCES_HEAD, SEQUENCES_TAIL, m, jobs, SEQUENCE_NEXT, SEQUENCE_PREV, slot)
    machines[SEATS, m] += 1
    sim.scalars[JOINS] += 1
    jobs[JOINED, slot] = sim.scalars[JOINS]


@compiled
def leave_sequences(sim, m, slot):
    """A request is not in progress on machine m any more."""
    machines = sim.machines
    unlink(machines, SEQUENCES_HEAD, SEQUENCES_TAIL, m, sim.jobs, SEQUENCE_NEXT, SEQUENCE_PREV, slot)
    machines[SEATS, m] -= 1


@compiled
def join_batch(sim, m, slot):
    """The request, whose cache is here, decodes from the next iteration on."""
    machines, jobs = sim.machines, sim.jobs
    jobs[PHASE, slot] = RUNNING
    # The iteration in progress goes on without it.
    busy = machines[BUSY, m]
    running = 1 if busy == 2 or (busy == 1 and machines[DECODES, m] > 0) else 0
    jobs[LAST, slot] = machines[ITERATIONS, m] + running + jobs[OUTPUT_TOKENS, slot] - jobs[GENERATED, slot]
    push_task(jobs, sim.batches[m], machines[BATCH, m], slot)
    machines[BATCH, m] += 1
    machines[BATCH_CONTEXT, m] += jobs[PROMPT_TOKENS, slot] + jobs[GENERATED, slot]
