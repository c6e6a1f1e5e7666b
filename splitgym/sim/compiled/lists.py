"""Heaps, a tree of minima and linked lists over the records."""

from collections.abc import Callable
from typing import Any

import numpy as np

from splitgym.sim.compiled.records import *
from splitgym.sim.compiled.state import *
from splitgym.sim.compiled.wide import opaque

# ---- events -----------------------------------------------------------------------------------------------


@compiled
def push_event(sim, time, key, version):
    """Add an event. The caller has made sure that there is room."""
    place = sim.heap_size
    sim.heap_size = place + 1
    while place > 0:
        parent = (place - 1) >> 1
        above = event_at(sim, parent)
        if above.time < time or (above.time == time and above.key <= key):
            break
        move_event(event_at(sim, place), above.time, above.key, above.version)
        place = parent
    move_event(event_at(sim, place), time, key, version)


@compiled
def move_event(event, time, key, version):
    event.time = time
    event.key = key
    event.version = version


@compiled
def drop_event(sim):
    """Remove the first event."""
    size = sim.heap_size - 1
    sim.heap_size = size
    last = event_at(sim, size)
    time, key, version = last.time, last.key, last.version
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        # Where there is no other child, the last event still stands in its place, and the search ends.
        below, other = event_at(sim, child), event_at(sim, child + 1)
        if other.time == below.time:
            child += other.key < below.key
        else:
            child -= opaque((other.time - below.time) >> 63)  # a branch would be guessed wrongly too often
        below = event_at(sim, child)
        if time < below.time or (time == below.time and key <= below.key):
            break
        move_event(event_at(sim, place), below.time, below.key, below.version)
        place = child
    move_event(event_at(sim, place), time, key, version)


@compiled
def set_end(sim, m, time):
    """The iteration, or the contiguous ones, of machine m end at `time` (FAR: none is in progress).

    Every node of the tree knows the machine whose iteration ends first below it, the lowest index of these.
    """
    tree, machines = sim.tree, sim.tree_machines
    place = sim.num_leaves + m
    if long_at(tree, place) == time:
        return
    put_long(tree, place, time)
    first = np.int64(m)
    while place > 1:
        other, rival = long_at(tree, place ^ 1), np.int64(short_at(machines, place ^ 1))
        # All bits where the other one is first: it ends sooner, or at the same time and stands on the left.
        # (A branch would be guessed wrongly every other time, which takes longer than all of this.)
        sooner = opaque((other - time - (place & 1)) >> 63)
        time += (other - time) & sooner
        first += (rival - first) & sooner
        place >>= 1
        put_long(tree, place, time)
        put_short(machines, place, first)


@compiled
def first_end(sim):
    """The machine whose iteration ends first, the lowest index of these; its time is in `tree[1]`."""
    return np.int64(short_at(sim.tree_machines, 1))


BESIDE_BITS = 4
"""There are so many levels of the tree below the one at which `runner_up` begins."""


@compiled
def runner_up(sim, m):
    """The machine whose iteration ends first but for machine m, which is the first, and those beside it.

    What is wanted is a good guess, so the machines beside m are not looked at.
    """
    tree, place = sim.tree, (sim.num_leaves + m) >> BESIDE_BITS
    least, best = FAR, place
    while place > 1:
        sibling = place ^ 1
        other = long_at(tree, sibling)
        sooner = opaque((other - least) >> 63)
        least += (other - least) & sooner
        best += (sibling - best) & sooner
        place >>= 1
    return np.int64(short_at(sim.tree_machines, best))


# ---- machines to start ------------------------------------------------------------------------------------


@compiled
def push_wake(sim, m):
    """Let an idle machine start, in the order of machines."""
    place = sim.wakes
    sim.wakes = place + 1
    while place > 0:
        parent = (place - 1) >> 1
        above = short_at(sim.wake_list, parent)
        if above <= m:
            break
        put_short(sim.wake_list, place, above)
        place = parent
    put_short(sim.wake_list, place, m)


@compiled
def pop_wake(sim):
    """The woken machine of the lowest index."""
    first = short_at(sim.wake_list, 0)
    size = sim.wakes - 1
    sim.wakes = size
    last = short_at(sim.wake_list, size)
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        below = short_at(sim.wake_list, child)
        if child + 1 < size and short_at(sim.wake_list, child + 1) < below:
            child += 1
            below = short_at(sim.wake_list, child)
        if last <= below:
            break
        put_short(sim.wake_list, place, below)
        place = child
    put_short(sim.wake_list, place, last)
    return first


# ---- tasks of a batch -------------------------------------------------------------------------------------


@compiled
def order_of(job):
    """By last iteration; at one iteration, the one that joined first."""
    return job.last << 32 | job.joined


@compiled
def move_task(task, order, slot):
    task.order = order
    task.slot = slot


@compiled
def sink(batch, size, place):
    """Restore a batch's heap downwards from `place`."""
    moved = task_at(batch, place)
    order, slot = moved.order, moved.slot
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        child += (child + 1 < size) & (task_at(batch, child + 1).order < task_at(batch, child).order)
        below = task_at(batch, child)
        if below.order >= order:
            break
        move_task(task_at(batch, place), below.order, below.slot)
        place = child
    move_task(task_at(batch, place), order, slot)


@compiled
def push_task(batch, size, order, slot):
    """Add a task to a batch of `size`."""
    place = size
    while place > 0:
        parent = (place - 1) >> 1
        above = task_at(batch, parent)
        if above.order <= order:
            break
        move_task(task_at(batch, place), above.order, above.slot)
        place = parent
    move_task(task_at(batch, place), order, slot)


@compiled
def heapify(batch, size):
    """Make a heap of a batch whose ends have changed."""
    for place in range(size // 2 - 1, -1, -1):
        sink(batch, size, place)


# ---- linked lists -----------------------------------------------------------------------------------------


def linked(ends: str, links: str) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Functions (append, prepend, unlink) of a machine's list with the ends `<ends>_head` and `<ends>_tail`
    through the jobs' links `<links>_next` and `<links>_prev`.
    """
    head, tail = f"{ends}_head", f"{ends}_tail"
    after, before = f"{links}_next", f"{links}_prev"

    @compiled
    def append(sim, machine, job):
        last = machine[tail]
        job[after] = NONE
        job[before] = last
        if last == NONE:
            machine[head] = job.slot
        else:
            job_at(sim, last)[after] = job.slot
        machine[tail] = job.slot

    @compiled
    def prepend(sim, machine, job):
        first = machine[head]
        job[after] = first
        job[before] = NONE
        if first == NONE:
            machine[tail] = job.slot
        else:
            job_at(sim, first)[before] = job.slot
        machine[head] = job.slot

    @compiled
    def unlink(sim, machine, job):
        front, back = job[before], job[after]
        if front == NONE:
            machine[head] = back
        else:
            job_at(sim, front)[after] = back
        if back == NONE:
            machine[tail] = front
        else:
            job_at(sim, back)[before] = front

    return append, prepend, unlink


append_prompt, prepend_prompt, unlink_prompt = linked("prompts", "queue")
append_current, _, unlink_current = linked("current", "queue")
append_memory, _, unlink_memory = linked("memory", "memory")
append_output, _, unlink_output = linked("outputs", "memory")
append_sending, _, unlink_sending = linked("sending", "sending")
append_receiving, _, unlink_receiving = linked("receiving", "receiving")
append_sequence, _, unlink_sequence = linked("sequences", "sequence")
