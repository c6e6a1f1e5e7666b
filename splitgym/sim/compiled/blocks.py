"""vLLM's sequences and the blocks of KV memory they hold, under contiguous iterations too.

While a machine jumps over token iterations, its tasks take blocks as their contexts grow. What is reserved is
brought up to date only where somebody asks (`settle_blocks`); everywhere else it is right as it stands.
"""

from splitgym.sim.compiled.machine import *


@compiled
def whole_blocks(sim, tokens):
    """KV tokens of the blocks that hold `tokens`."""
    size = sim.block_size
    return (tokens + size - 1) // size * size


@compiled
def decoded(machine, job):
    """Output tokens of a token task; one less where the iteration in progress is without it."""
    return job.output_tokens - job.last + machine.iterations


@compiled
def task_job(sim, machine, place):
    """The request at a place of a machine's batch."""
    return job_at(sim, task_at(batch_of(sim, machine.index), place).slot)


@compiled
def more_blocks(sim, machine, held, tokens):
    """KV tokens to add to `held` for blocks that hold `tokens`; -1 where they are not there."""
    extra = whole_blocks(sim, tokens) - held
    if extra <= 0:
        return 0
    if machine.reserved + extra > machine.capacity:
        return -1
    machine.reserved += extra
    return extra


@compiled
def hold_blocks(sim, machine, ahead):
    """Every token task holds blocks for its context and `ahead` tokens."""
    for i in range(machine.batch):
        job = task_job(sim, machine, i)
        reach = job.prompt_tokens + decoded(machine, job) + ahead
        extra = whole_blocks(sim, reach) - job.held_token
        if extra > 0:
            machine.reserved += extra
            job.held_token += extra


@compiled
def settle_blocks(sim, machine):
    """Reserve what the contiguous iterations so far, and the one in progress, have taken."""
    if machine.busy == 2 and not machine.partial:
        settle(sim, machine, ended(sim, machine))
        hold_blocks(sim, machine, 1)


@compiled
def needed_blocks(sim, machine, count):
    """KV tokens of the blocks that `count` more iterations over the batch take."""
    need = 0
    for i in range(machine.batch):
        job = task_job(sim, machine, i)
        reach = job.prompt_tokens + decoded(machine, job) + count
        need += max(0, whole_blocks(sim, reach) - job.held_token)
    return need


@compiled
def fitting(sim, machine, count):
    """Iterations over the batch, at most `count`, for which there are blocks. The first one has them."""
    free = machine.capacity - machine.reserved
    need = machine.batch * (count - 1 + sim.block_size - 1)  # at most
    if need > free:
        need = needed_blocks(sim, machine, count)
    if need > free:
        low, high = 1, count
        while high - low > 1:
            middle = (low + high) // 2
            if needed_blocks(sim, machine, middle) <= free:
                low = middle
            else:
                high = middle
        count = low
        need = needed_blocks(sim, machine, count)
    machine.slack = free - need
    return count


@compiled
def take_slack(sim, machine, tokens):
    """Memory was reserved while a machine may be jumping: are there still blocks for every iteration?"""
    if machine.busy == 2:
        machine.slack -= tokens
        if machine.slack < 0:
            pause(sim, machine)


@compiled
def join_sequences(sim, machine, job):
    """A request is in progress on a machine from now on."""
    append_sequence(sim, machine, job)
    machine.seats += 1
    sim.joins += 1
    job.joined = sim.joins


@compiled
def leave_sequences(sim, machine, job):
    """A request is not in progress on a machine any more."""
    unlink_sequence(sim, machine, job)
    machine.seats -= 1


@compiled
def join_batch(sim, machine, job, generated):
    """The request, whose cache is here with `generated` output tokens, decodes from the next iteration on."""
    job.phase = RUNNING
    # The iteration in progress goes on without it.
    running = 1 if machine.busy == 2 or (machine.busy == 1 and machine.decodes > 0) else 0
    job.last = machine.iterations + running + job.output_tokens - generated
    push_task(batch_of(sim, machine.index), machine.batch, order_of(job), job.slot)
    machine.batch += 1
    machine.batch_context += job.prompt_tokens + generated
