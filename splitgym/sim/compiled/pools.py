"""Pools and machines that come back, as in `splitgym.sim.rules`."""

from splitgym.sim.compiled.machine import *


@compiled
def drained(sim, machine):
    """No work of either phase, no cache on its way out."""
    if machine.prompt_tokens or machine.running or machine.inbound:
        return False
    for slot in range(sim.used_slots):
        job = job_at(sim, slot)
        if job.in_use and job.phase == SHIPPING and job.source == machine.index:
            return False
    return True


@compiled
def check_drained(sim, machine):
    """A switching machine that has drained waits out the switching delay."""
    if machine.switching and not machine.switch_timer and drained(sim, machine):
        machine.switch_timer = 1
        push_event(sim, sim.now + sim.switch_delay, SWITCH_KEY | machine.index, machine.switch_number)


@compiled
def movable(machine, pool):
    """May be moved out of its home pool `pool`."""
    return machine.home_pool == pool and machine.down == 0 and not machine.switching


@compiled
def resize(sim, moves):
    """Move the least loaded available machines, lowest index on ties, as far as the minimum allows."""
    source, target = (TO_TOKEN, TO_PROMPT) if moves > 0 else (TO_PROMPT, TO_TOKEN)
    there = 0
    if moves:
        for m in range(sim.num_machines):
            there += movable(machine_at(sim, m), source)
    for _ in range(min(abs(moves), max(0, there - sim.min_pool))):
        best, least = NONE, 0
        for m in range(sim.num_machines):
            machine = machine_at(sim, m)
            if movable(machine, source):
                load = machine.inbound + machine.running if moves > 0 else machine.prompt_tokens
                if best == NONE or load < least:
                    best, least = m, load
        machine = machine_at(sim, best)
        machine.home_pool = target
        touch(sim, machine)
        if sim.switch_delay > 0:
            machine.switching = 1
            machine.switch_timer = 0
            machine.switch_number += 1
            check_drained(sim, machine)


@compiled
def route_again(sim, job):
    """Ask anew where this request goes, at this time."""
    push_event(sim, sim.now, REROUTE_KEY | job.request, job.slot)


@compiled
def hold(sim, job):
    """No machine is up: the request waits until one is back."""
    job.queue_next = NONE
    last = sim.held_tail
    if last == NONE:
        sim.held_head = job.slot
    else:
        job_at(sim, last).queue_next = job.slot
    sim.held_tail = job.slot


@compiled
def back(sim, machine):
    """A machine takes new work again: ask anew for the requests that found none."""
    touch(sim, machine)
    slot = sim.held_head
    sim.held_head = sim.held_tail = NONE
    while slot != NONE:
        job = job_at(sim, slot)
        route_again(sim, job)
        slot = job.queue_next
