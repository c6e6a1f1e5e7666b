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
    SIZING,
    WAITS,
    head_at,
    office_at,
    seat_at,
)
from splitgym.observation import kernel as observation
from splitgym.observation.prior import fill_prior
from splitgym.sim.compiled import state as st
from splitgym.sim.compiled.decide import request_info
from splitgym.sim.compiled.loop import advance, answer_resize, answer_route
from splitgym.sim.compiled.reach import compiled, flag_at, long_at, real_at, with_schedulers
from splitgym.sim.compiled.records import OUTCOME, job_at, machine_at, record_reader
from splitgym.sim.compiled.show import view_of
from splitgym.types import NS_PER_S, UNKNOWN, Pool, RequestInfo

outcome_at = record_reader(OUTCOME)

_PROMPT, _TOKEN = int(Pool.PROMPT), int(Pool.TOKEN)
GOOD, BAD, SLOWDOWN, RESIDENCE, COST = range(5)
ROUTE, RESIZE = 1, 2


@with_schedulers
def step_seats(
    seats,
    places,
    office_address,
    actions,
    machines,
    cluster,
    request,
    mask,
    prior,
    prior_weights,
    allowed,
    scratch,
):
    """Step the environments in `places`.

    Args:
        seats: address of the `SEAT` records.
        places: (n,) int64 places of those to step.
        office_address: of the `OFFICE` record.
        actions: (E, 3) int64; those that answer are read.
        machines, cluster, request, mask: (E, M, F), (E, G), (E, R), (E, M) float32, written.
        prior: (E, M, 3) float32, written where there are weights.
        prior_weights: float64, empty for none.
        allowed: (E, A) uint8, the next action masks, written.
        scratch: (M, NUM_PREDICTIONS) float64.

    Returns:
        (environments whose simulation lacks something, environments that are over) of these.
    """
    lacking, ended = 0, 0
    office = office_at(office_address, 0)
    for i in range(places.shape[0]):
        e = places[i]
        seat = seat_at(seats, e)
        if seat.stage == WAITS:
            continue
        sim = head_at(seat.head, 0)
        if seat.stage == ANSWERS:
            seat.answered = seat.asked
            answer(sim, seat, office, actions[e, 0], actions[e, 1], actions[e, 2])
            seat.stage = RUNS
        seat.why = run(sim, seat)
        if seat.why:
            lacking += 1
            continue
        count(sim, seat, office)
        ended += seat.over
        seat.stage = WAITS if seat.over else ANSWERS
        cluster[e, :] = np.float32(0.0)
        request[e, :] = np.float32(0.0)
        observation.fill(
            view_of(sim),
            asked_for(sim, seat),
            seat.question == ROUTE,
            seat.memory,
            seat.last,
            scratch,
            machines[e],
            cluster[e],
            request[e],
            mask[e],
        )
        if prior_weights.shape[0]:
            if seat.question == ROUTE:
                fill_prior(view_of(sim), asked_for(sim, seat), prior_weights, prior[e])
            else:
                prior[e, :, :] = np.float32(0.0)
        show_allowed(sim, seat, office, allowed[e])
    return lacking, ended


@with_schedulers
def find_bad(seats, actions, sizes):
    """The first environment that answers and whose action is outside its space; -1 where none is."""
    for e in range(actions.shape[0]):
        if seat_at(seats, e).stage == ANSWERS:
            for k in range(sizes.shape[0]):
                if actions[e, k] < 0 or actions[e, k] >= sizes[k]:
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
