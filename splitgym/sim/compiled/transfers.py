"""KV transfers from the first byte to the token phase, as in `splitgym.sim.rules`."""

from splitgym.sim.compiled.memory import *
from splitgym.sim.compiled.pools import check_drained
from splitgym.types import EventKind


@compiled
def overlaps(sim, job):
    """Shipped layer by layer while the prompt is computed."""
    return job.source != job.target and job.prompt_tokens >= sim.overlap_min


@compiled
def constant_runs(sim, job):
    """The bytes are there and the prompt is over: the rest of a layer-wise transfer takes its constant."""
    constant = machine_at(sim, job.source).transfer_constant_ns
    job.flight = 3
    plan_due(sim, job, max(sim.now, job.prompt_end + constant))


@inlined
def transfer_ends(sim, job):
    """A stage of a transfer is over."""
    if job.flight == 1:
        source, target = machine_at(sim, job.source), machine_at(sim, job.target)
        settle_transfer(sim, job)
        leave_network(sim, job, source, target)
        touch_view(sim, source)
        touch_view(sim, target)
        if job.phase == PROMPT:
            job.flight = 2
            leave_berth(sim, job)
            return
        if overlaps(sim, job):
            constant_runs(sim, job)
            return
    leave_berth(sim, job)
    if sim.large:
        fetch_due(sim)
    shipped(sim, job)


@compiled
def shipped(sim, job):
    """The cache is at the token machine."""
    source, target = machine_at(sim, job.source), machine_at(sim, job.target)
    if sim.logging:
        log_event(sim, sim.now, EventKind.TRANSFER_END, job.request, job.target)
    if sim.large:
        fetch_place(sim, target)
    row_of(sim, job).transfer_end_ns = sim.now
    job.flight = 0
    source.shipments -= 1
    target.shipments -= 1
    if sim.oracle:
        source.promised -= job.prompt_tokens + 1
    source.reserved -= job.held_prompt
    source.kv_used_tokens -= job.prompt_tokens + 1
    job.held_prompt = 0
    touch(sim, source)
    await_output(sim, target, job)
    settle_after(sim, source)
    settle_after(sim, target)


@compiled
def settle_after(sim, machine):
    """Memory was freed on a machine by a request that left it."""
    grant(sim, machine)
    check_drained(sim, machine)
    wake(sim, machine)


@compiled
def abort_transfer(sim, job):
    """The cache is not wanted any more; what the token machine set aside for it is free."""
    source, target = machine_at(sim, job.source), machine_at(sim, job.target)
    if job.waiting:
        stop_waiting(sim, target, job)
    if job.flight:
        if job.flight == 1:
            settle_transfer(sim, job)
            leave_network(sim, job, source, target)
        job.flight = 0
        leave_berth(sim, job)
        source.shipments -= 1
        target.shipments -= 1
        row_of(sim, job).transfer_start_ns = NONE
        target.reserved -= job.held_token
        target.kv_used_tokens -= job.prompt_tokens + 1
        job.held_token = 0
        touch_view(sim, source)
        touch(sim, target)
