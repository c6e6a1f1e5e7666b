"""Heaps and linked lists over plain arrays."""

from splitgym.sim.compiled.state import HEAP_SIZE, JOINED, LAST, NONE, WAKE_LIST, WAKES, compiled

KIND_SHIFT = 40
"""An event's key: its kind, then the machine or request that it concerns."""


@compiled
def push_event(sim, time, key, version):
    """Add an event. The caller has made sure that there is room."""
    times, keys, versions = sim.heap[0], sim.heap[1], sim.heap[2]
    place = sim.scalars[HEAP_SIZE]
    sim.scalars[HEAP_SIZE] = place + 1
    while place > 0:
        parent = (place - 1) >> 1
        if times[parent] < time or (times[parent] == time and keys[parent] <= key):
            break
        times[place], keys[place], versions[place] = times[parent], keys[parent], versions[parent]
        place = parent
    times[place], keys[place], versions[place] = time, key, version


@compiled
def drop_event(sim):
    """Remove the first event."""
    times, keys, versions = sim.heap[0], sim.heap[1], sim.heap[2]
    size = sim.scalars[HEAP_SIZE] - 1
    sim.scalars[HEAP_SIZE] = size
    time, key, version = times[size], keys[size], versions[size]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        other = child + 1
        if other < size and (
            times[other] < times[child] or (times[other] == times[child] and keys[other] < keys[child])
        ):
            child = other
        if time < times[child] or (time == times[child] and key <= keys[child]):
            break
        times[place], keys[place], versions[place] = times[child], keys[child], versions[child]
        place = child
    times[place], keys[place], versions[place] = time, key, version


@compiled
def push_wake(sim, machine):
    """Let an idle machine start, in the order of machines."""
    wakes = sim.machines[WAKE_LIST]
    place = sim.scalars[WAKES]
    sim.scalars[WAKES] = place + 1
    while place > 0:
        parent = (place - 1) >> 1
        if wakes[parent] <= machine:
            break
        wakes[place] = wakes[parent]
        place = parent
    wakes[place] = machine


@compiled
def pop_wake(sim):
    """The woken machine of the lowest index."""
    wakes = sim.machines[WAKE_LIST]
    first = wakes[0]
    size = sim.scalars[WAKES] - 1
    sim.scalars[WAKES] = size
    last = wakes[size]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and wakes[child + 1] < wakes[child]:
            child += 1
        if last <= wakes[child]:
            break
        wakes[place] = wakes[child]
        place = child
    wakes[place] = last
    return first


@compiled
def earlier(jobs, a, b):
    """Slot a ends before slot b; at one iteration, the one that joined first."""
    return jobs[LAST, a] < jobs[LAST, b] or (
        jobs[LAST, a] == jobs[LAST, b] and jobs[JOINED, a] < jobs[JOINED, b]
    )


@compiled
def sink(jobs, batch, size, place):
    """Restore a batch's heap downwards from `place`."""
    slot = batch[place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and earlier(jobs, batch[child + 1], batch[child]):
            child += 1
        if not earlier(jobs, batch[child], slot):
            break
        batch[place] = batch[child]
        place = child
    batch[place] = slot


@compiled
def push_task(jobs, batch, size, slot):
    """Add a slot to a batch of `size`."""
    place = size
    while place > 0:
        parent = (place - 1) >> 1
        if not earlier(jobs, slot, batch[parent]):
            break
        batch[place] = batch[parent]
        place = parent
    batch[place] = slot


@compiled
def heapify(jobs, batch, size):
    """Make a heap of a batch whose ends have changed."""
    for place in range(size // 2 - 1, -1, -1):
        sink(jobs, batch, size, place)


@compiled
def append(owner, head, tail, at, jobs, nxt, prv, slot):
    """Append a slot to the list with ends owner[head, at], owner[tail, at] and links jobs[nxt], jobs[prv]."""
    last = owner[tail, at]
    jobs[nxt, slot] = NONE
    jobs[prv, slot] = last
    if last == NONE:
        owner[head, at] = slot
    else:
        jobs[nxt, last] = slot
    owner[tail, at] = slot


@compiled
def prepend(owner, head, tail, at, jobs, nxt, prv, slot):
    """Put a slot first in such a list."""
    first = owner[head, at]
    jobs[nxt, slot] = first
    jobs[prv, slot] = NONE
    if first == NONE:
        owner[tail, at] = slot
    else:
        jobs[prv, first] = slot
    owner[head, at] = slot


@compiled
def unlink(owner, head, tail, at, jobs, nxt, prv, slot):
    """Take a slot out of such a list."""
    before, after = jobs[prv, slot], jobs[nxt, slot]
    if before == NONE:
        owner[head, at] = after
    else:
        jobs[nxt, before] = after
    if after == NONE:
        owner[tail, at] = before
    else:
        jobs[prv, after] = before
