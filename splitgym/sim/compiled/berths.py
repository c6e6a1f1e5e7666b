"""When transfers reach their next stage: a tree of minima over their *berths*.

A transfer has a berth while its next stage has a time. Berths that are free again are taken first, so there
are about as many as transfers at once, far fewer than requests in flight. Of two stages at one time that of
the request with the lower number comes first, as in `splitgym.sim.simpy_engine`.
"""

import numpy as np

from splitgym.sim.compiled.records import *
from splitgym.sim.compiled.state import *
from splitgym.sim.compiled.wide import opaque

FIRST_BERTHS = 16
NO_DUES = np.zeros(2 * FIRST_BERTHS, DUE)
"""(2 x FIRST_BERTHS,) the tree where no berth is taken. No two times of free berths are the same."""
for _place in range(2 * FIRST_BERTHS):
    _first = max(_place, 1) << (FIRST_BERTHS.bit_length() - max(_place, 1).bit_length())
    NO_DUES[_place] = FAR + _first - FIRST_BERTHS, _first - FIRST_BERTHS


@compiled
def set_due(sim, berth, time, key):
    """What has a berth comes at `time`; from FAR on: nothing does. Every node of the tree knows the first."""
    place = sim.berth_leaves + berth
    move_due(due_at(sim, place), time, key)
    while place > 1:
        rival = due_at(sim, place ^ 1)
        before = rival.time - time
        if before == 0:
            before = rival.key - key
        sooner = opaque(before >> 63)  # all bits; a branch would be guessed wrongly too often
        time += (rival.time - time) & sooner
        key += (rival.key - key) & sooner
        place >>= 1
        node = due_at(sim, place)
        if node.key == key and node.time == time:
            return
        move_due(node, time, key)


@compiled
def move_due(due, time, key):
    due.time = time
    due.key = key


@compiled
def clear_berth(sim, berth):
    """Nothing has this berth any more."""
    set_due(sim, berth, FAR + berth, berth)


@compiled
def widen(sim):
    """Twice as many berths."""
    before = sim.berth_leaves
    leaves = sim.berth_leaves = 2 * before
    for berth in range(before):
        old = due_at(sim, before + berth)
        move_due(due_at(sim, leaves + berth), old.time, old.key)
    for berth in range(before, leaves):
        move_due(due_at(sim, leaves + berth), FAR + berth, berth)
    for place in range(leaves - 1, 0, -1):
        first, other = due_at(sim, 2 * place), due_at(sim, 2 * place + 1)
        if other.time < first.time or (other.time == first.time and other.key < first.key):
            first = other
        move_due(due_at(sim, place), first.time, first.key)


@compiled
def plan_due(sim, job, time):
    """The request's transfer reaches its next stage at `time`; what was planned before is void."""
    berth = job.berth
    if berth == NONE:
        berth = sim.free_berth
        if berth == NONE:
            berth = sim.used_berths
            if berth == sim.berth_leaves:
                widen(sim)
            sim.used_berths = berth + 1
        else:
            sim.free_berth = berth_at(sim, berth).next_free
        job.berth = berth
        place = berth_at(sim, berth)
        place.slot, place.source, place.target = job.slot, job.source, job.target
    set_due(sim, berth, time, job.request << BERTH_BITS | berth)


@compiled
def leave_berth(sim, job):
    """The request's transfer has no next stage, or none with a time."""
    berth = job.berth
    if berth != NONE:
        job.berth = NONE
        berth_at(sim, berth).next_free = sim.free_berth
        sim.free_berth = berth
        clear_berth(sim, berth)


@compiled
def fetch_due(sim):
    """Have at hand soon what the next stage needs, and the request of one that may follow it."""
    first, left, right = due_at(sim, 1), due_at(sim, 2), due_at(sim, 3)
    if first.time < FAR:
        berth = berth_at(sim, first.key & BERTH_MASK)
        fetch_job(sim, berth.slot)
        fetch_alone(sim, berth.source)
        fetch_alone(sim, berth.target)
    later = right if left.key == first.key else left
    if later.time < FAR:
        fetch_job(sim, berth_at(sim, later.key & BERTH_MASK).slot)
