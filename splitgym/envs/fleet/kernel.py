"""One step of many environments, compiled: answer, advance, count, observe.

The same as `splitgym.envs.base` in Python, in the same order of arithmetic, so that rewards and observations
are equal to the last bit (tests/test_fleet.py).
"""

from typing import Any

import numpy as np

from splitgym.envs.fleet.records import (
    ANSWERS,
    JOINT,
    ROUTING,
    RUNS,
    SAID_ANSWERED,
    SAID_ASKED,
    SAID_ELAPSED,
    SAID_INVALID,
    SAID_OVER,
    SAID_REALS,
    SAID_REWARD,
    SIZING,
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
from splitgym.sim.compiled.loop import advance, answer_resize, answer_route
from splitgym.sim.compiled.machine import tables_of
from splitgym.sim.compiled.observed import look
from splitgym.sim.compiled.reach import (
    compiled,
    flag_at,
    flags,
    long_at,
    longs,
    put_long,
    put_real,
    real_at,
    reals,
    view_maker,
    with_schedulers,
)
from splitgym.sim.compiled.records import OUTCOME, job_at, machine_at, record_reader
from splitgym.sim.compiled.show import rules_of, view_of
from splitgym.types import NS_PER_S, UNKNOWN, Pool, RequestInfo
from splitgym.view import NUM_COUNTERS

outcome_at = record_reader(OUTCOME)
single_line, single_matrix = view_maker(np.float32, 1), view_maker(np.float32, 2)

_PROMPT, _TOKEN = int(Pool.PROMPT), int(Pool.TOKEN)
GOOD, BAD, SLOWDOWN, RESIDENCE, COST = range(5)
ROUTE, RESIZE = 1, 2
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


# ---- actions ----------------------------------------------------------------------------------------------


@compiled
def answer(sim, seat, office, first, second, third):
    """Apply an action; one that is not allowed is mapped as `splitgym.envs.action` says."""
    if seat.question == RESIZE:
        number = first if office.kind == SIZING else third
        moves = number - office.max_moves
        from_prompt, from_token = movable(sim, office.min_pool)
        settled = max(-from_prompt, min(from_token, moves))
        none = office.max_machines
        beside = office.kind == JOINT and not (first == none and second == none)
        if settled != moves or beside:
            seat.invalid += 1
        answer_resize(sim, settled)
        return
    p, t = first, second
    if office.flat:
        p, t = first // office.max_machines, first % office.max_machines
    size = sim.num_machines
    valid = p < size and t < size and prompt_open(sim, p) and token_open(sim, t)
    if not valid:
        p, t = next_open(sim, p, 1), next_open(sim, t, 2)
    if not valid or (office.kind == JOINT and third != office.max_moves):
        seat.invalid += 1
    answer_route(sim, p, t)


@compiled
def open_at(sim, m, row):
    return flag_at(sim.view_flags, row * sim.num_machines + m) != 0


@compiled
def prompt_open(sim, m):
    return open_at(sim, m, 1)


@compiled
def token_open(sim, m):
    return open_at(sim, m, 2)


@compiled
def next_open(sim, wanted, row):
    """The first machine at or above `wanted`, wrapping round, whose flag is set; `wanted` if none is."""
    size = sim.num_machines
    start = wanted if wanted < size else 0
    for step in range(size):
        m = (start + step) % size
        if open_at(sim, m, row):
            return m
    return start


@compiled
def movable(sim, min_pool):
    """(machines that can leave the prompt pool, the token pool), as `splitgym.envs.action.movable`."""
    prompt, token = 0, 0
    for m in range(sim.num_machines):
        machine = machine_at(sim, m)
        if open_at(sim, m, 0):
            prompt += machine.home_pool == _PROMPT
            token += machine.home_pool == _TOKEN
    return max(0, prompt - min_pool), max(0, token - min_pool)


@compiled
def show_allowed(sim, seat, office, out):
    """The next action masks, as the action codecs of `splitgym.envs.action`."""
    out[:] = 0
    count, size, moves = sim.num_machines, office.max_machines, office.max_moves
    if office.kind != ROUTING and seat.question != ROUTE:
        start = 0
        if office.kind == JOINT:
            out[size] = out[2 * size + 1] = 1
            start = 2 * size + 2
        from_prompt, from_token = movable(sim, office.min_pool)
        for number in range(max(0, moves - from_prompt), min(2 * moves, moves + from_token) + 1):
            out[start + number] = 1
        return
    if office.flat:
        for p in range(count):
            for t in range(count):
                out[p * size + t] = prompt_open(sim, p) and token_open(sim, t)
        return
    second = size + 1 if office.kind == JOINT else size
    for m in range(count):
        out[m] = prompt_open(sim, m)
        out[second + m] = token_open(sim, m)
    if office.kind == JOINT:
        out[2 * size + 2 + moves] = 1


# ---- counting ---------------------------------------------------------------------------------------------


@compiled
def count(sim, seat, office):
    """What has happened since the last question, as `splitgym.envs.ledger.Ledger`."""
    now = sim.now
    seat.reward = 0.0
    for i in range(seat.terms.shape[0]):
        seat.terms[i] = 0.0
    if not seat.begun:  # what was before the first decision belongs to the first step
        seat.begun = 1
        seat.before_ns = now
        seat.elapsed_s = now / NS_PER_S
        return
    before = seat.before_ns
    seat.before_ns = now
    seat.elapsed_s = (now - before) / NS_PER_S
    counted_s = max(0, now - max(before, seat.warmup_ns)) / NS_PER_S
    residence = arrivals(sim, seat, now)
    seat.finished_from = seat.finished_seen
    for place in range(seat.finished_seen, sim.finished):
        request = long_at(sim.order, place)
        if request >= seat.first:
            outcome = outcome_at(sim.outcomes, request)
            residence -= now - outcome.finish_ns
            complete(sim, seat, office, outcome)
    seat.finished_seen = sim.finished
    seat.terms[RESIDENCE] = -(residence / NS_PER_S)
    seat.terms[COST] = -(office.cost_per_hour * counted_s / 3600.0)
    seat.terms[SLOWDOWN] = -seat.terms[SLOWDOWN]
    for i in range(seat.terms.shape[0]):
        seat.sums[i] += seat.terms[i]
    for k in range(office.num_terms):
        seat.reward += office.weights[k] * seat.terms[office.columns[k]]


@compiled
def arrivals(sim, seat, now):
    """Time in the system since the last question of those who were there or came, if none had left [ns]."""
    since = max(seat.integral_ns, seat.warmup_ns)
    residence = (seat.arrived - seat.completed) * max(0, now - since)
    while seat.arrivals_seen < sim.num_requests and long_at(sim.arrivals, seat.arrivals_seen) <= now:
        residence += now - long_at(sim.arrivals, seat.arrivals_seen)
        seat.arrivals_seen += 1
        seat.arrived += 1
    seat.integral_ns = now
    return residence


@compiled
def complete(sim, seat, office, outcome):
    """One completed request."""
    place, size = outcome.request, sim.num_requests
    ttft = (outcome.first_token_ns - outcome.arrival_ns) * 1e-9 / real_at(seat.references, place)
    e2e = (outcome.finish_ns - outcome.arrival_ns) * 1e-9 / real_at(seat.references, 2 * size + place)
    good = ttft <= office.ttft_slo
    if outcome.output_tokens > 1:
        between = (outcome.finish_ns - outcome.first_token_ns) * 1e-9 / (outcome.output_tokens - 1)
        tbt = between / real_at(seat.references, size + place)
        good = good and tbt <= office.tbt_slo
        seat.slowdown_tbt += tbt
        seat.with_tbt += 1
    seat.slowdown_ttft += ttft
    seat.slowdown_e2e += e2e
    seat.completed += 1
    seat.good += good
    if good:
        seat.terms[GOOD] += 1.0
    else:
        seat.terms[BAD] -= 1.0
    seat.terms[SLOWDOWN] += min(office.slowdown_limit, max(0.0, e2e - 1.0))
