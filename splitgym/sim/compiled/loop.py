"""The event loop: the next event by (time, kind, machine or request), until a decision is asked."""

from splitgym.sim.compiled.decide import ask_route, control
from splitgym.sim.compiled.failures import fail, recover
from splitgym.sim.compiled.iterations import iteration_ends, work
from splitgym.sim.compiled.pools import back, resize
from splitgym.sim.compiled.requests import route, take_slot
from splitgym.sim.compiled.show import refresh_all
from splitgym.sim.compiled.transfers import *
from splitgym.types import EventKind
from splitgym.view import ARRIVED_PROMPT_TOKENS, ARRIVED_REQUESTS


@inlined_with_schedulers
def arrive(sim):
    """The next request of the trace comes."""
    request = sim.next_row
    sim.next_row = request + 1
    if sim.logging:
        log_event(sim, sim.now, EventKind.ARRIVAL, request, NONE)
    job = take_slot(sim, request)
    sim.in_system += 1
    sim.counters[ARRIVED_REQUESTS] += 1
    sim.counters[ARRIVED_PROMPT_TOKENS] += job.prompt_tokens
    ask_route(sim, job)


@compiled
def stale(sim, kind, index, version):
    """A later plan has overtaken this event."""
    if kind == EventKind.SWITCH_END:
        machine = machine_at(sim, index)
        return version != machine.switch_number or not machine.switching
    return False


@with_schedulers
def handle(sim, kind, index, version):
    """One of the rarer events."""
    if kind == EventKind.REROUTE:
        if sim.logging:
            log_event(sim, sim.now, kind, index, NONE)
        ask_route(sim, job_at(sim, version))
        return
    if sim.logging:
        log_event(sim, sim.now, kind, NONE, index)
    machine = machine_at(sim, index)
    if kind == EventKind.SWITCH_END:
        machine.switching = 0
        back(sim, machine)
    elif kind == EventKind.FAILURE:
        fail(sim, machine)
    else:
        recover(sim, machine)


@compiled
def lack(sim):
    """What has no room for one more event: a reason to return, or -1."""
    if sim.free_head == NONE and sim.used_slots == sim.num_slots:
        return GROW_JOBS
    if sim.heap_size + 2 * (sim.num_slots + sim.num_machines) + 64 > sim.heap_rows:
        return GROW_HEAP
    if sim.samples == sim.timeline_rows:
        return GROW_TIMELINE
    if sim.streaming:
        if sim.more and sim.next_row == sim.num_requests:
            return FEED
        if sim.finished - sim.drained + sim.max_tasks > sim.result_rows:
            return DRAIN
    if sim.logging and sim.events + sim.log_margin > sim.log_rows:
        return GROW_LOG
    return NONE


@compiled
def pass_time(sim, time, key):
    """The next event is at `time`."""
    if time > sim.now:
        sim.now = time
        sim.frontier = key
    else:
        sim.frontier = max(sim.frontier, key)


@with_schedulers
def advance(sim):
    """Run to the next decision, the end, or until an array must grow. Returns which."""
    while True:
        if sim.pending:
            return DECIDE
        if sim.unfinished == 0 and not sim.more:
            refresh_all(sim)
            return DONE
        why = lack(sim)
        if why >= 0:
            return why
        if sim.rerated_head != NONE:
            plan_transfers(sim)
        if sim.wakes:
            work(sim, machine_at(sim, pop_wake(sim)))
            continue
        step(sim)


@inlined_with_schedulers
def step(sim):
    """The next event happens."""
    time, key = sim.next_control, CONTROL_KEY
    row = sim.next_row
    if row < sim.num_requests:
        at = long_at(sim.arrivals, row)
        if at < time:
            time, key = at, ARRIVAL_KEY | row
    version = NONE
    if sim.heap_size:
        event = event_at(sim, 0)
        if event.time < time or (event.time == time and event.key < key):
            time, key, version = event.time, event.key, event.version
    # At one time the end of an iteration is the first kind, that of a transfer's stage the second.
    ends, due = long_at(sim.tree, 1), due_at(sim, 1)
    if ends <= min(time, due.time):
        m = first_end(sim)
        if sim.large:
            fetch_iteration(sim, runner_up(sim, m))
        pass_time(sim, ends, ITERATION_KEY | m)
        iteration_ends(sim, machine_at(sim, m))
    elif due.time <= time:
        pass_time(sim, due.time, TRANSFER_KEY | due.key >> BERTH_BITS)
        transfer_ends(sim, job_at(sim, berth_at(sim, due.key & BERTH_MASK).slot))
    elif version != NONE:
        planned(sim, time, key, version)
    else:
        pass_time(sim, time, key)
        if key == CONTROL_KEY:
            control(sim)
        else:
            arrive(sim)


@inlined_with_schedulers
def planned(sim, time, key, version):
    """The first event of the heap happens, unless it is stale."""
    drop_event(sim)
    kind, index = (key >> KIND_SHIFT) - 1, key & INDEX_MASK
    if not stale(sim, kind, index, version):
        pass_time(sim, time, key)
        handle(sim, kind, index, version)


@compiled
def answer_route(sim, p, t):
    """The pending request goes to p and t."""
    sim.pending = 0
    route(sim, job_at(sim, sim.asked), p, t)


@compiled
def answer_resize(sim, moves):
    """The pending control tick moves this many machines."""
    sim.pending = 0
    resize(sim, moves)


@compiled
def plan_fault(sim, m, at, end):
    """Machine m fails at `at` and is up again at `end`."""
    push_event(sim, at, FAILURE_KEY | m, 0)
    push_event(sim, end, RECOVERY_KEY | m, 0)
