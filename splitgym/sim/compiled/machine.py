"""One machine: contiguous token iterations, and who must know that it has changed."""

from splitgym.profile.tables import TICK_BITS, ProfileTables, token_time_ticks
from splitgym.sim.compiled.lists import *
from splitgym.types import EventKind

TICK_MASK = (1 << TICK_BITS) - 1


@inlined
def touch(sim, machine):
    """What schedulers see of a machine has changed."""
    if not machine.touched:
        machine.touched = 1
        put_short(sim.touched_list, sim.touched, machine.index)
        sim.touched += 1


@inlined
def touch_view(sim, machine):
    """What schedulers see has changed, but nothing that the paper's scheduler compares by its board."""
    if sim.fast != SPLITWISE:
        touch(sim, machine)


@compiled
def tables_of(sim):
    """The profiles' times."""
    kinds, knots, batches = sim.num_types, sim.num_knots, sim.num_batches
    return ProfileTables(
        matrix(sim.knot_tokens, kinds, knots),
        matrix(sim.knot_ns, kinds, knots),
        longs(sim.knot_counts, kinds),
        matrix(sim.token_base, kinds, batches),
        matrix(sim.token_slope, kinds, batches),
        reals(sim.mixed_factor, kinds),
    )


@compiled
def wake(sim, machine):
    """Let an idle machine look for work before any other event of this time, if there can be any."""
    nothing = machine.prompts_head & machine.memory_head & machine.outputs_head == NONE and machine.batch == 0
    if machine.idle and not (nothing and sim.rule == PAPER):
        machine.idle = 0
        push_wake(sim, machine.index)


@compiled
def log_event(sim, time, kind, request, machine):
    """Add a row to the log. The caller has made sure that there is room."""
    row = 4 * sim.events
    sim.events += 1
    put_long(sim.log, row, time)
    put_long(sim.log, row + 1, kind)
    put_long(sim.log, row + 2, request)
    put_long(sim.log, row + 3, machine)


# ---- contiguous token iterations --------------------------------------------------------------------------


@compiled
def run_ticks(machine, count):
    """Ticks from the start of a machine's contiguous iterations to the end of the `count`-th, and a fraction.

    Iteration i (from 0) takes base + slope x (context + i x batch); a sum over i in closed form.
    """
    growth = count * machine.run_context + machine.run_batch * (count * (count - 1) >> 1)
    return machine.run_carry + count * machine.run_base + machine.run_slope * growth


@compiled
def run_end_ns(machine, count):
    """End of the `count`-th contiguous iteration [ns]."""
    return machine.start + (run_ticks(machine, count) >> TICK_BITS)


@compiled
def ended(sim, machine):
    """Contiguous iterations of a machine that have ended, at most those planned.

    One that ends at this very time has ended if its event would have come already.
    """
    now = sim.now
    if (ITERATION_KEY | machine.index) > sim.frontier:
        now -= 1
    settled, planned = machine.settled, machine.planned
    if long_at(sim.next_ends, machine.index) > now:
        return settled
    if now >= machine.end:
        return planned
    slope, batch = machine.run_slope, machine.run_batch
    ticks = machine.run_base + slope * (machine.run_context + batch * settled)
    elapsed = (now - machine.settled_at) << TICK_BITS
    guess = elapsed // ticks
    if guess > 1:  # iterations get longer: divide by the length of the one in the middle
        guess = elapsed // (ticks + slope * batch * (guess // 2))
    count = min(planned, settled + guess)
    while count > settled and run_end_ns(machine, count) > now:
        count -= 1
    while count < planned and run_end_ns(machine, count + 1) <= now:
        count += 1
    return count


@compiled
def token_watts(sim, machine, batch):
    """Power of a machine in a token iteration over `batch` tasks [W]."""
    return long_at(sim.watts, (sim.num_types + machine.row) * sim.watt_columns + batch)


@compiled
def settle(sim, machine, count):
    """Count the contiguous iterations up to `count`: tokens, memory, time and energy."""
    done = count - machine.settled
    if done <= 0:
        return
    batch = machine.run_batch
    ticks = run_ticks(machine, count)
    end = machine.start + (ticks >> TICK_BITS)
    if sim.logging:
        for i in range(machine.settled + 1, count + 1):
            log_event(sim, run_end_ns(machine, i), EventKind.ITERATION_END, NONE, machine.index)
    spent = end - machine.settled_at
    tokens = done * batch
    machine.settled = count
    machine.settled_at = end
    machine.iterations += done
    machine.batch_context += tokens
    machine.carry = ticks & TICK_MASK
    machine.watts_ns += token_watts(sim, machine, batch) * spent
    machine.running_context_tokens += tokens
    machine.kv_used_tokens += tokens
    machine.busy_ns += spent
    machine.generated_tokens += tokens
    put_long(sim.next_ends, machine.index, run_end_ns(machine, count + 1))
    touch_view(sim, machine)


@compiled
def started(sim, job):
    """Record the first decode of a request, unless it is recorded."""
    row = row_of(sim, job)
    if row.decode_start_ns == NONE:
        row.decode_start_ns = sim.now


@compiled
def first_decodes(sim, machine):
    """The tasks that have not decoded yet do so now."""
    slot = machine.fresh_head
    while slot != NONE:
        job = job_at(sim, slot)
        row_of(sim, job).decode_start_ns = sim.now
        slot = job.fresh_next
    machine.fresh_head = NONE


@inlined
def begin_run(sim, machine, batch, context, count):
    """Contiguous iterations over `batch` tasks with `context` tokens, `count` of them."""
    tables = tables_of(sim)
    base = token_time_ticks(tables, machine.row, batch, 0)
    machine.busy = 2
    machine.start = machine.settled_at = sim.now
    machine.settled = 0
    machine.run_base = base
    machine.run_slope = token_time_ticks(tables, machine.row, batch, 1) - base
    machine.run_context = context
    machine.run_carry = machine.carry
    machine.run_batch = batch
    put_long(sim.next_ends, machine.index, run_end_ns(machine, 1))
    plan(sim, machine, count)
    touch_view(sim, machine)


@compiled
def plan(sim, machine, count):
    """The contiguous iterations end after the `count`-th."""
    machine.planned = count
    machine.end = run_end_ns(machine, count)
    set_end(sim, machine.index, machine.end)


@inlined
def begin_iteration(sim, machine, length):
    """An iteration with prompts of `length` ns."""
    machine.busy = 1
    machine.start = sim.now
    machine.end = sim.now + length
    put_long(sim.next_ends, machine.index, FAR)
    set_end(sim, machine.index, machine.end)
    touch_view(sim, machine)


@compiled
def stop(sim, machine):
    """No iteration is in progress."""
    machine.busy = 0
    set_end(sim, machine.index, FAR)
    put_long(sim.next_ends, machine.index, FAR)
    touch_view(sim, machine)


@compiled
def pause(sim, machine):
    """Something has come that the next iteration must see: end contiguous iterations at the next boundary."""
    if machine.busy == 2:
        count = ended(sim, machine)
        settle(sim, machine, count)
        if count + 1 < machine.planned:
            plan(sim, machine, count + 1)


@inlined
def spend_prompts(sim, machine):
    """An iteration with prompts has ended, or was cut short by a failure."""
    spent = sim.now - machine.start
    tokens = min(machine.iteration_tokens, sim.watt_columns - 1)
    machine.watts_ns += long_at(sim.watts, machine.row * sim.watt_columns + tokens) * spent
    machine.busy_ns += spent
    machine.prompt_busy_ns += spent
    if sim.rule == PAPER:
        machine.prompt_tokens -= machine.iteration_tokens
    machine.iteration_prompts = 0
