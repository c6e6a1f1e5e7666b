"""Decisions inside the engine: built-in schedulers run here; for any other, the caller is asked."""

from splitgym.schedulers import baselines
from splitgym.schedulers.builtin import SIZING_STATE_SIZE, STATE_SIZE
from splitgym.schedulers.index import Index, index_kernel
from splitgym.schedulers.residual import Residual, residual_kernel
from splitgym.schedulers.sizing import Ewma, Reactive, Static, ewma_kernel, reactive_kernel
from splitgym.schedulers.sizing_net import SizingNet, sizing_net_kernel
from splitgym.schedulers.splitwise import Splitwise, splitwise_kernel
from splitgym.sim.compiled.board import max_tokens_of, post_touched, splitwise_route
from splitgym.sim.compiled.observed import look
from splitgym.sim.compiled.pools import hold, resize
from splitgym.sim.compiled.requests import route
from splitgym.sim.compiled.show import *
from splitgym.sim.compiled.side_by_side import index_route, lay_touched, residual_route
from splitgym.sim.outcomes import TIMELINE_FIELDS
from splitgym.types import UNKNOWN, EventKind, RequestInfo

TIMELINE_WIDTH = len(TIMELINE_FIELDS)

ROUTING_KINDS = (
    Splitwise,
    Index,
    baselines.RoundRobin,
    baselines.Random,
    baselines.JsqRequests,
    baselines.JsqTokens,
    baselines.SplitRoundRobin,
    baselines.SplitJsq,
    baselines.PowerOfTwo,
    baselines.LeastE2e,
    Residual,
)
"""Schedulers that run inside the engine; the place is what a simulation's `routing` holds."""
SIZING_KINDS = (Static, Reactive, Ewma, SizingNet)


def fast_form(routing: object, observed: bool = False) -> int:
    """Which form of its own here a simulation's routing uses, by the constants of `state`; 0 for none."""
    if routing is None and observed:
        return OBSERVED
    if type(routing) is Splitwise:
        return 0 if routing.oracle else SPLITWISE
    return {Index: INDEX, Residual: RESIDUAL}.get(type(routing), 0)


@with_schedulers
def route_builtin(kind, view, request, params, state):
    """(p, t) by a scheduler of `ROUTING_KINDS`."""
    if kind == 0:
        return splitwise_kernel(view, request, params, state)
    if kind == 1:
        return index_kernel(view, request, params, state)
    if kind == 2:
        return baselines.round_robin_kernel(view, request, params, state)
    if kind == 3:
        return baselines.random_kernel(view, request, params, state)
    if kind == 4:
        return baselines.jsq_requests_kernel(view, request, params, state)
    if kind == 5:
        return baselines.jsq_tokens_kernel(view, request, params, state)
    if kind == 6:
        return baselines.split_round_robin_kernel(view, request, params, state)
    if kind == 7:
        return baselines.split_jsq_kernel(view, request, params, state)
    if kind == 8:
        return baselines.power_of_two_kernel(view, request, params, state)
    if kind == 9:
        return baselines.least_e2e_kernel(view, request, params, state)
    return residual_kernel(view, request, params, state)


@with_schedulers
def resize_builtin(kind, view, params, state):
    """Machines to move, by a scheduler of `SIZING_KINDS`."""
    if kind == 1:
        return reactive_kernel(view, params, state)
    if kind == 2:
        return ewma_kernel(view, params, state)
    if kind == 3:
        return sizing_net_kernel(view, params, state)
    return 0


@compiled
def request_info(sim, job):
    """What a scheduler may know of a request."""
    return RequestInfo(
        job.request,
        row_of(sim, job).arrival_ns,
        job.prompt_tokens,
        max_tokens_of(sim, job),
        job.output_tokens if sim.oracle else UNKNOWN,
        job.attempt,
    )


@with_schedulers
def run_builtin(sim, job):
    """(p, t) by the built-in scheduler of this simulation."""
    params = reals(sim.routing_params, sim.num_params)
    state = longs(sim.routing_state, STATE_SIZE)
    return route_builtin(sim.routing, view_of(sim), request_info(sim, job), params, state)


@inlined
def bring_up(sim):
    """Make true what the routing scheduler looks at."""
    if sim.fast == SPLITWISE:
        post_touched(sim)
    elif sim.fast == OBSERVED:
        look(sim)
    elif sim.fast:
        lay_touched(sim)
    else:
        refresh(sim)


@with_schedulers
def ask_route(sim, job):
    """Where does this request go? A built-in scheduler says, or the caller of `advance` is asked."""
    bring_up(sim)
    if not sim.can_route:
        hold(sim, job)
        return
    sim.decisions += 1
    if sim.fast == SPLITWISE:
        p, t = splitwise_route(sim, job, real_at(sim.routing_params, 0))
        route(sim, job, p, t)
    elif sim.fast == INDEX:
        p, t = index_route(sim, job)
        route(sim, job, p, t)
    elif sim.fast == RESIDUAL:
        p, t = residual_route(sim, job)
        route(sim, job, p, t)
    elif sim.routing >= 0:
        p, t = run_builtin(sim, job)
        route(sim, job, p, t)
    else:
        sim.pending = 1
        sim.asked = job.slot


@compiled
def sample(sim):
    """Add a row to the timeline."""
    row = sim.timeline + 8 * TIMELINE_WIDTH * sim.samples
    sim.samples += 1
    for column in range(TIMELINE_WIDTH):
        put_long(row, column, 0)
    put_long(row, 0, sim.now)
    for m in range(sim.num_machines):
        machine = machine_at(sim, m)
        add_long(row, 1 + machine.pool, 1)
        if machine.home_pool != TO_MIXED:
            add_long(row, 4 + machine.home_pool, 1)
        add_long(row, 6, machine.prompt_requests)
        add_long(row, 7, machine.prompt_tokens)
        add_long(row, 8, machine.running)
    put_long(row, 9, sim.in_system)


@compiled
def add_long(address, place, value):
    put_long(address, place, long_at(address, place) + value)


@with_schedulers
def control(sim):
    """A control tick: a row of the timeline, and perhaps a resize."""
    if sim.logging:
        log_event(sim, sim.now, EventKind.CONTROL, NONE, NONE)
    sim.next_control += sim.control_interval
    bring_up(sim)
    sample(sim)
    sim.decisions += 1
    if sim.fast and sim.fast != OBSERVED and sim.sizing:
        refresh_all(sim)
    if sim.sizing > 0:
        params = reals(sim.sizing_params, sim.num_sizing_params)
        state = reals(sim.sizing_state, SIZING_STATE_SIZE)
        resize(sim, resize_builtin(sim.sizing, view_of(sim), params, state))
    elif sim.sizing < 0:
        sim.pending = 2
