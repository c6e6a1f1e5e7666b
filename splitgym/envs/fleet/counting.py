"""Rewards of environments, compiled: what has happened since the last question, as `splitgym.envs.ledger`."""

from splitgym.sim.compiled.reach import compiled, long_at, real_at
from splitgym.sim.compiled.records import OUTCOME, record_reader
from splitgym.types import NS_PER_S

outcome_at = record_reader(OUTCOME)

GOOD, BAD, SLOWDOWN, RESIDENCE, COST = range(5)


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
