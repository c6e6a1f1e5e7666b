"""KV transfers that share NICs, as in `splitgym.sim.network`, over linked lists."""

from splitgym.sim.compiled.lists import KIND_SHIFT, append, push_event, unlink
from splitgym.sim.compiled.state import *
from splitgym.types import EventKind

TRANSFER_KEY = (int(EventKind.TRANSFER_END) + 1) << KIND_SHIFT
SLOT_BITS = 24
"""A transfer event's version holds the slot in its low bits."""


@compiled
def transfer_event(sim, slot, time):
    """The slot's transfer reaches its next stage at `time`; earlier plans are void."""
    jobs = sim.jobs
    jobs[FLIGHT_VERSION, slot] += 1
    push_event(sim, time, TRANSFER_KEY | jobs[REQUEST, slot], jobs[FLIGHT_VERSION, slot] << SLOT_BITS | slot)


@compiled
def share(sim, m):
    """Bandwidth of one transfer at machine m's NIC."""
    if sim.rules[SHARED]:
        return max(1, sim.machines[BANDWIDTH, m] // sim.machines[FLIGHTS, m])
    return sim.machines[BANDWIDTH, m]


@compiled
def settle_transfer(sim, slot):
    """Count what was shipped since the last time."""
    jobs = sim.jobs
    now = sim.scalars[NOW]
    jobs[LEFT, slot] = max(0, jobs[LEFT, slot] - jobs[RATE, slot] * (now - jobs[RATED_AT, slot]))
    jobs[RATED_AT, slot] = now


@compiled
def rate(sim, slot):
    """Give a transfer its present rate; `plan_transfers` plans its end when the event is over."""
    jobs = sim.jobs
    new = min(share(sim, jobs[PROMPT_MACHINE, slot]), share(sim, jobs[TOKEN_MACHINE, slot]))
    if new != jobs[RATE, slot]:
        settle_transfer(sim, slot)
        jobs[RATE, slot] = new
        if not jobs[RERATED, slot]:
            jobs[RERATED, slot] = 1
            jobs[RERATED_NEXT, slot] = sim.scalars[RERATED_HEAD]
            sim.scalars[RERATED_HEAD] = slot


@compiled
def plan_transfers(sim):
    """One event for each transfer whose rate has changed, however often: events of one time stay few."""
    jobs = sim.jobs
    slot = sim.scalars[RERATED_HEAD]
    sim.scalars[RERATED_HEAD] = NONE
    while slot != NONE:
        jobs[RERATED, slot] = 0
        if jobs[FLIGHT, slot] == 1:
            rest = (jobs[LEFT, slot] + jobs[RATE, slot] - 1) // jobs[RATE, slot]
            transfer_event(sim, slot, sim.scalars[NOW] + rest)
        slot = jobs[RERATED_NEXT, slot]


@compiled
def rate_all(sim, source, target):
    """Rates of all transfers at two NICs."""
    machines, jobs = sim.machines, sim.jobs
    for m in (source, target):
        slot = machines[SENDING_HEAD, m]
        while slot != NONE:
            rate(sim, slot)
            slot = jobs[SENDING_NEXT, slot]
        slot = machines[RECEIVING_HEAD, m]
        while slot != NONE:
            rate(sim, slot)
            slot = jobs[RECEIVING_NEXT, slot]


@compiled
def join_network(sim, slot):
    """A transfer starts."""
    machines, jobs = sim.machines, sim.jobs
    source, target = jobs[PROMPT_MACHINE, slot], jobs[TOKEN_MACHINE, slot]
    jobs[RATE, slot] = 0
    jobs[RATED_AT, slot] = sim.scalars[NOW]
    append(machines, SENDING_HEAD, SENDING_TAIL, source, jobs, SENDING_NEXT, SENDING_PREV, slot)
    append(machines, RECEIVING_HEAD, RECEIVING_TAIL, target, jobs, RECEIVING_NEXT, RECEIVING_PREV, slot)
    for m in (source, target):
        machines[FLIGHTS, m] += 1
        sim.machines[V_TRANSFERS, m] += 1
    rate_all(sim, source, target)


@compiled
def leave_network(sim, slot):
    """A transfer has no bytes left, or is aborted."""
    machines, jobs = sim.machines, sim.jobs
    source, target = jobs[PROMPT_MACHINE, slot], jobs[TOKEN_MACHINE, slot]
    unlink(machines, SENDING_HEAD, SENDING_TAIL, source, jobs, SENDING_NEXT, SENDING_PREV, slot)
    unlink(machines, RECEIVING_HEAD, RECEIVING_TAIL, target, jobs, RECEIVING_NEXT, RECEIVING_PREV, slot)
    for m in (source, target):
        machines[FLIGHTS, m] -= 1
        sim.machines[V_TRANSFERS, m] -= 1
    rate_all(sim, source, target)
