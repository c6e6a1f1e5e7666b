"""One step of many environments, compiled: answer, advance, count, observe.

The same as `splitgym.envs.base` in Python, in the same order of arithmetic, so that rewards and observations
are equal to the last bit (tests/test_fleet.py).
"""

from typing import Any

import numpy as np

from splitgym.envs.fleet.actions import ROUTE, answer, show_allowed
from splitgym.envs.fleet.counting import count
from splitgym.envs.fleet.records import (
    ANSWERS,
    RUNS,
    SAID_ANSWERED,
    SAID_ASKED,
    SAID_ELAPSED,
    SAID_INVALID,
    SAID_OVER,
    SAID_REALS,
    SAID_REWARD,
    WAITS,
    head_at,
    office_at,
    seat_at,
)
from splitgym.observation import kernel as observation
from splitgym.observation import rows
from splitgym.observation.features import CLUSTER_FEATURES, PRIOR_FEATURES, REQUEST_FEATURES
from splitgym.observation.prior import fill_prior
from splitgym.schedulers.lanes import num_blocks
from splitgym.sim.compiled import state as st
from splitgym.sim.compiled.decide import OBSERVED, request_info
from splitgym.sim.compiled.loop import advance, answer_resize
from splitgym.sim.compiled.machine import tables_of
from splitgym.sim.compiled.observed import look
from splitgym.sim.compiled.reach import (
    compiled,
    flags,
    long_at,
    longs,
    put_long,
    put_real,
    reals,
    view_maker,
    with_schedulers,
)
from splitgym.sim.compiled.records import job_at
from splitgym.sim.compiled.show import rules_of, view_of
from splitgym.types import UNKNOWN, RequestInfo
from splitgym.view import NUM_COUNTERS

single_line, single_matrix = view_maker(np.float32, 1), view_maker(np.float32, 2)

NUM_CLUSTER, NUM_REQUEST, NUM_PRIOR = len(CLUSTER_FEATURES), len(REQUEST_FEATURES), len(PRIOR_FEATURES)


LACKS, GOES_ON, ENDED = range(3)
"""What came of a step: the simulation lacks something and is to be stepped again when it has grown; it has a
question; it is over."""


@with_schedulers
def step_seat(office, e):
    """Step an environment, and write what came of it into the fleet's arrays.

    Args:
        office: `OFFICE` record.
        e: which one.

    Returns:
        LACKS, GOES_ON or ENDED.
    """
    seat = seat_at(office.seats, e)
    if seat.stage == WAITS:
        return GOES_ON
    sim = head_at(seat.head, 0)
    if seat.stage == ANSWERS:
        seat.answered = seat.asked
        at = 3 * e
        answer(
            sim,
            seat,
            office,
            long_at(office.actions, at),
            long_at(office.actions, at + 1),
            long_at(office.actions, at + 2),
        )
        seat.stage = RUNS
    seat.why = run(sim, seat)
    if seat.why:
        return LACKS
    count(sim, seat, office)
    seat.stage = WAITS if seat.over else ANSWERS
    observe(sim, seat, office, e)
    show_allowed(sim, seat, office, flags(office.allowed + e * office.num_allowed, office.num_allowed))
    say(seat, office, e)
    return ENDED if seat.over else GOES_ON


@with_schedulers
def observe(sim, seat, office, e):
    """Write the observation."""
    size, row = office.max_machines, office.turn * office.num_envs + e
    machines = single_matrix(office.machines + 4 * size * rows.NUM_FEATURES * row, size, rows.NUM_FEATURES)
    cluster = single_line(office.cluster + 4 * NUM_CLUSTER * row, NUM_CLUSTER)
    request = single_line(office.request + 4 * NUM_REQUEST * row, NUM_REQUEST)
    mask = single_line(office.mask + 4 * size * row, size)
    asked, routes = asked_for(sim, seat), seat.question == ROUTE
    if sim.fast == OBSERVED:
        look(sim)
        count = sim.num_machines
        observation.fill_seen(
            reals(sim.lanes, num_blocks(count) * rows.SEEN_BLOCK),
            single_matrix(sim.shown, count, rows.NUM_FEATURES),
            count,
            (
                sim.now,
                max(1.0, sim.mean_output[0] / sim.mean_output[1]),
                longs(sim.counters_at, NUM_COUNTERS),
                tables_of(sim),
                rules_of(sim),
            ),
            (asked.prompt_tokens, asked.max_tokens, asked.oracle_output_tokens, asked.attempt),
            routes,
            seat.memory,
            seat.last,
            machines,
            cluster,
            request,
            mask,
        )
    else:  # a built-in scheduler routes, and this is a control tick: all machines have changed
        observe_view(sim, asked, routes, seat.memory, seat.last, machines, cluster, request, mask)
    if office.num_prior:
        prior = single_matrix(office.prior + 4 * size * NUM_PRIOR * row, size, NUM_PRIOR)
        if routes:
            fill_prior(view_of(sim), asked, reals(office.prior_weights, office.num_prior), prior)
        else:
            prior[:, :] = np.float32(0.0)


@with_schedulers
def observe_view(sim, asked, routes, memory, last, machines, cluster, request, mask):
    """Write the observation of a simulation that keeps no rows for it."""
    lanes = np.empty(num_blocks(sim.num_machines) * rows.SEEN_BLOCK)
    shown = np.empty((sim.num_machines, rows.NUM_FEATURES), np.float32)
    view = view_of(sim)
    observation.fill(view, asked, routes, memory, last, lanes, shown, machines, cluster, request, mask)


@compiled
def say(seat, office, e):
    """Write what the step says."""
    envs = office.num_envs
    put_real(office.said_reals, SAID_REWARD * envs + e, seat.reward)
    put_real(office.said_reals, SAID_ELAPSED * envs + e, seat.elapsed_s)
    for k in range(office.num_terms):
        place = (SAID_REALS + k) * envs + e
        put_real(office.said_reals, place, office.weights[k] * seat.terms[office.columns[k]])
    put_long(office.said_longs, SAID_ANSWERED * envs + e, seat.answered)
    put_long(office.said_longs, SAID_ASKED * envs + e, seat.asked)
    put_long(office.said_longs, SAID_INVALID * envs + e, seat.invalid)
    put_long(office.said_longs, SAID_OVER * envs + e, seat.over)


@compiled
def find_bad(office_address):
    """The first environment that answers and whose action is outside its space; -1 where none is."""
    office = office_at(office_address, 0)
    for e in range(office.num_envs):
        if seat_at(office.seats, e).stage == ANSWERS:
            for k in range(office.num_sizes):
                action = long_at(office.actions, 3 * e + k)
                if action < 0 or action >= long_at(office.sizes, k):
                    return e
    return -1


@with_schedulers
def run(sim, seat):
    """Advance to the next question for the agent. Returns 0, or what the simulation lacks."""
    while True:
        why = advance(sim)
        if why == st.DONE:
            seat.over, seat.question, seat.asked = 1, 0, -1
            return 0
        if why != st.DECIDE:
            return why
        if sim.pending == ROUTE or sim.now < seat.end_ns:
            seat.question, seat.asked = sim.pending, sim.decisions - 1
            return 0
        answer_resize(sim, 0)  # after the window's end pools stay as they are while it drains


@compiled
def asked_for(sim, seat):
    """The request to be routed; a blank one where there is none."""
    if seat.question == ROUTE:
        found = request_info(sim, job_at(sim, sim.asked))
        attempt: Any = np.int64(found[5])  # one type for both
        return RequestInfo(found[0], found[1], found[2], found[3], found[4], attempt)
    return RequestInfo(UNKNOWN, 0, 1, UNKNOWN, UNKNOWN, 0)
