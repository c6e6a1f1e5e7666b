"""The event loop: the next event by (time, kind, machine or request), until a decision is asked."""

import numba

from splitgym.schedulers import baselines
from splitgym.schedulers.index import Index, index_kernel
from splitgym.schedulers.residual import Residual, residual_kernel
from splitgym.schedulers.sizing import Ewma, Reactive, Static, ewma_kernel, reactive_kernel
from splitgym.schedulers.splitwise import Splitwise, splitwise_kernel
from splitgym.sim.compiled.iterations import fail, iteration_ends, recover, work
from splitgym.sim.compiled.lists import KIND_SHIFT, drop_event, pop_wake, push_event
from splitgym.sim.compiled.machine import log_event
from splitgym.sim.compiled.network import SLOT_BITS, plan_transfers
from splitgym.sim.compiled.rules import (
    TO_PROMPT,
    TO_TOKEN,
    back,
    new_job,
    refresh,
    resize,
    route,
    transfer_ends,
)
from splitgym.sim.compiled.state import *
from splitgym.types import UNKNOWN, EventKind, RequestInfo
from splitgym.view import ARRIVED_PROMPT_TOKENS, ARRIVED_REQUESTS

ARRIVAL_KEY = (int(EventKind.ARRIVAL) + 1) << KIND_SHIFT
FAILURE_KEY = (int(EventKind.FAILURE) + 1) << KIND_SHIFT
RECOVERY_KEY = (int(EventKind.RECOVERY) + 1) << KIND_SHIFT
CONTROL_KEY = (int(EventKind.CONTROL) + 1) << KIND_SHIFT
INDEX_MASK = (1 << KIND_SHIFT) - 1
SLOT_MASK = (1 << SLOT_BITS) - 1

with_schedulers = numba.njit(cache=True, nogil=True)
"""For the functions that lead to a scheduler's kernel, which makes arrays. (Numba hands the want of reference
counts down to what it compiles on the way.)"""

ROUTING_KINDS = (
    Splitwise,
    Index,
    baselines.RoundRobin,
    baselines.Random,
    baselines.JsqRequests,
    baselines.JsqTokens,
    baselines.SplitRoundRobin,
    baselines.SplitJsq,
    baselines.PowerOfTwo,
    baselines.LeastE2e,
    Residual,
)
"""Schedulers that run inside the engine; the place is what `rules[ROUTING]` holds."""
SIZING_KINDS = (Static, Reactive, Ewma)


@with_schedulers
def route_builtin(kind, view, request, params, state):
    """(p, t) by a scheduler of `ROUTING_KINDS`."""
    if kind == 0:
        return splitwise_kernel(view, request, params, state)
    if kind == 1:
        return index_kernel(view, request, params, state)
    if kind == 2:
        return baselines.round_robin_kernel(view, request, params, state)
    if kind == 3:
        return baselines.random_kernel(view, request, params, state)
    if kind == 4:
        return baselines.jsq_requests_kernel(view, request, params, state)
    if kind == 5:
        return baselines.jsq_tokens_kernel(view, request, params, state)
    if kind == 6:
        return baselines.split_round_robin_kernel(view, request, params, state)
    if kind == 7:
        return baselines.split_jsq_kernel(view, request, params, state)
    if kind == 8:
        return baselines.power_of_two_kernel(view, request, params, state)
    if kind == 9:
        return baselines.least_e2e_kernel(view, request, params, state)
    return residual_kernel(view, request, params, state)


@with_schedulers
def resize_builtin(kind, view, params, state):
    """Machines to move, by a scheduler of `SIZING_KINDS`."""
    if kind == 1:
        return reactive_kernel(view, params, state)
    if kind == 2:
        return ewma_kernel(view, params, state)
    return 0


@compiled
def request_info(sim, slot):
    """What a scheduler may know of the request in a slot."""
    jobs = sim.jobs
    request = jobs[REQUEST, slot]
    return RequestInfo(
        request,
        sim.requests[R_ARRIVAL, request],
        jobs[PROMPT_TOKENS, slot],
        sim.requests[R_MAX, request],
        jobs[OUTPUT_TOKENS, slot] if sim.rules[ORACLE] else UNKNOWN,
        jobs[ATTEMPT, slot],
    )


@with_schedulers
def ask_route(sim, view, slot, params, state):
    """Where does this request go? A built-in scheduler says, or the caller of `advance` is asked."""
    scalars, rules = sim.scalars, sim.rules
    refresh(sim)
    if not scalars[CAN_ROUTE]:
        append_held(sim, slot)
        return
    sim.jobs[DECISION, slot] = scalars[DECISIONS]
    scalars[DECISIONS] += 1
    if rules[ROUTING] >= 0:
        p, t = route_builtin(rules[ROUTING], view, request_info(sim, slot), params, state)
        route(sim, slot, p, t)
    else:
        scalars[PENDING] = 1
        scalars[ASKED] = slot


@compiled
def append_held(sim, slot):
    """No machine is up: the request waits until one is back."""
    jobs, scalars = sim.jobs, sim.scalars
    jobs[QUEUE_NEXT, slot] = NONE
    last = scalars[HELD_TAIL]
    if last == NONE:
        scalars[HELD_HEAD] = slot
    else:
        jobs[QUEUE_NEXT, last] = slot
    scalars[HELD_TAIL] = slot


@with_schedulers
def arrive(sim, view, params, state):
    """The next request of the trace comes."""
    scalars = sim.scalars
    request = scalars[NEXT_ROW]
    scalars[NEXT_ROW] = request + 1
    if sim.rules[LOGGING]:
        log_event(sim, scalars[NOW], EventKind.ARRIVAL, request, NONE)
    scalars[IN_SYSTEM] += 1
    scalars[COUNTERS + ARRIVED_REQUESTS] += 1
    scalars[COUNTERS + ARRIVED_PROMPT_TOKENS] += sim.requests[R_PROMPT, request]
    slot = scalars[FREE_HEAD]
    scalars[FREE_HEAD] = sim.jobs[QUEUE_NEXT, slot]
    new_job(sim, slot, request, 0)
    ask_route(sim, view, slot, params, state)


@with_schedulers
def control(sim, view, params, state):
    """A control tick: a row of the timeline, and perhaps a resize."""
    scalars, rules = sim.scalars, sim.rules
    if rules[LOGGING]:
        log_event(sim, scalars[NOW], EventKind.CONTROL, NONE, NONE)
    scalars[NEXT_CONTROL] += rules[CONTROL_INTERVAL]
    refresh(sim)
    row = sim.timeline[scalars[SAMPLES]]
    scalars[SAMPLES] += 1
    row[:] = 0
    row[0] = scalars[NOW]
    for m in range(sim.machines.shape[1]):
        row[1 + sim.machines[V_POOL, m]] += 1
        row[4] += sim.machines[V_HOME_POOL, m] == TO_PROMPT
        row[5] += sim.machines[V_HOME_POOL, m] == TO_TOKEN
        row[6] += sim.machines[V_PROMPT_REQUESTS, m]
        row[7] += sim.machines[V_PROMPT_TOKENS, m]
        row[8] += sim.machines[V_RUNNING, m]
    row[9] = scalars[IN_SYSTEM]
    scalars[DECISIONS] += 1
    if rules[SIZING] >= 0:
        resize(sim, resize_builtin(rules[SIZING], view, params, state))
    else:
        scalars[PENDING] = 2


@compiled
def stale(sim, kind, index, version):
    """A later plan has overtaken this event."""
    if kind == EventKind.ITERATION_END:
        return version != sim.machines[VERSION, index]
    if kind == EventKind.TRANSFER_END:
        return version >> SLOT_BITS != sim.jobs[FLIGHT_VERSION, version & SLOT_MASK]
    if kind == EventKind.SWITCH_END:
        return version != sim.machines[SWITCH_NUMBER, index] or not sim.machines[SWITCHING, index]
    return False


@with_schedulers
def handle(sim, view, kind, index, version, params, state):
    """One of the rarer events."""
    now = sim.scalars[NOW]
    if kind == EventKind.REROUTE:
        if sim.rules[LOGGING]:
            log_event(sim, now, kind, index, NONE)
        ask_route(sim, view, version, params, state)
        return
    if sim.rules[LOGGING]:
        log_event(sim, now, kind, NONE, index)
    if kind == EventKind.SWITCH_END:
        sim.machines[SWITCHING, index] = 0
        back(sim)
    elif kind == EventKind.FAILURE:
        fail(sim, index)
    else:
        recover(sim, index)


@compiled
def room(sim):
    """What has no room for one more event: a reason to return, or -1."""
    scalars = sim.scalars
    slots, machines = sim.jobs.shape[1], sim.machines.shape[1]
    if scalars[FREE_HEAD] == NONE:
        return GROW_JOBS
    if scalars[HEAP_SIZE] + 4 * (slots + machines) + 64 > sim.heap.shape[1]:
        return GROW_HEAP
    if scalars[SAMPLES] == sim.timeline.shape[0]:
        return GROW_TIMELINE
    return -1


@with_schedulers
def advance(sim, view, routing_params, routing_state, sizing_params, sizing_state):
    """Run to the next decision, the end, or until an array must grow. Returns which."""
    scalars = sim.scalars
    while True:
        if scalars[PENDING]:
            return DECIDE
        if scalars[UNFINISHED] == 0:
            refresh(sim)
            return DONE
        lack = room(sim)
        if lack >= 0:
            return lack
        if scalars[RERATED_HEAD] != NONE:
            plan_transfers(sim)
        if scalars[WAKES]:
            work(sim, pop_wake(sim))
            continue
        time, key = scalars[NEXT_CONTROL], CONTROL_KEY
        row = scalars[NEXT_ROW]
        if row < sim.requests.shape[1]:
            at = sim.requests[R_ARRIVAL, row]
            if at < time:
                time, key = at, ARRIVAL_KEY | row
        heap = False
        if scalars[HEAP_SIZE]:
            at = sim.heap[0, 0]
            if at < time or (at == time and sim.heap[1, 0] < key):
                time, key, heap = at, sim.heap[1, 0], True
        kind, index = (key >> KIND_SHIFT) - 1, key & INDEX_MASK
        version = sim.heap[2, 0] if heap else 0
        if heap:
            drop_event(sim)
            if stale(sim, kind, index, version):
                continue
        if time > scalars[NOW]:
            scalars[NOW] = time
            scalars[FRONTIER] = key
        else:
            scalars[FRONTIER] = max(scalars[FRONTIER], key)
        if kind == EventKind.ITERATION_END:
            iteration_ends(sim, index)
        elif kind == EventKind.TRANSFER_END:
            transfer_ends(sim, version & SLOT_MASK)
        elif heap:
            handle(sim, view, kind, index, version, routing_params, routing_state)
        elif kind == EventKind.ARRIVAL:
            arrive(sim, view, routing_params, routing_state)
        else:
            control(sim, view, sizing_params, sizing_state)


@compiled
def answer_route(sim, p, t):
    """The pending request goes to p and t."""
    sim.scalars[PENDING] = 0
    route(sim, sim.scalars[ASKED], p, t)


@compiled
def answer_resize(sim, moves):
    """The pending control tick moves this many machines."""
    sim.scalars[PENDING] = 0
    resize(sim, moves)


@compiled
def plan_fault(sim, m, at, end):
    """Machine m fails at `at` and is up again at `end`."""
    push_event(sim, at, FAILURE_KEY | m, 0)
    push_event(sim, end, RECOVERY_KEY | m, 0)
