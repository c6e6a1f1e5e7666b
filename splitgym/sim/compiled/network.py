"""KV transfers that share NICs, as in `splitgym.sim.network`, over linked lists."""

from splitgym.sim.compiled.berths import *
from splitgym.sim.compiled.lists import *


@compiled
def share(sim, machine):
    """Bandwidth of one transfer at a machine's NIC."""
    if sim.shared and machine.flights > 1:
        return max(1, machine.bandwidth // machine.flights)
    return machine.bandwidth


@compiled
def settle_transfer(sim, job):
    """Count what was shipped since the last time."""
    job.left = max(0, job.left - job.rate * (sim.now - job.rated_at))
    job.rated_at = sim.now


@compiled
def rate(sim, job, new):
    """Give a transfer its present rate; `plan_transfers` plans its end when the event is over."""
    if new != job.rate:
        settle_transfer(sim, job)
        job.rate = new
        if not job.rerated:
            job.rerated = 1
            job.rerated_next = sim.rerated_head
            sim.rerated_head = job.slot


@compiled
def plan_transfers(sim):
    """Plan the end of each transfer whose rate has changed, once, however often it has."""
    slot = sim.rerated_head
    sim.rerated_head = NONE
    while slot != NONE:
        job = job_at(sim, slot)
        job.rerated = 0
        if job.flight == 1:
            plan_due(sim, job, sim.now + (job.left + job.rate - 1) // job.rate)
        slot = job.rerated_next


@compiled
def rate_all(sim, machine):
    """Rates of all transfers at a machine's NIC."""
    if machine.flights == 0:
        return
    here = share(sim, machine)
    slot = machine.sending_head
    while slot != NONE:
        job = job_at(sim, slot)
        rate(sim, job, min(here, share(sim, machine_at(sim, job.target))))
        slot = job.sending_next
    slot = machine.receiving_head
    while slot != NONE:
        job = job_at(sim, slot)
        rate(sim, job, min(here, share(sim, machine_at(sim, job.source))))
        slot = job.receiving_next


@compiled
def join_network(sim, job, source, target):
    """A transfer starts."""
    job.rate = 0
    job.rated_at = sim.now
    append_sending(sim, source, job)
    append_receiving(sim, target, job)
    source.flights += 1
    target.flights += 1
    rate_all(sim, source)
    rate_all(sim, target)


@compiled
def leave_network(sim, job, source, target):
    """A transfer has no bytes left, or is aborted."""
    unlink_sending(sim, source, job)
    unlink_receiving(sim, target, job)
    source.flights -= 1
    target.flights -= 1
    rate_all(sim, source)
    rate_all(sim, target)
