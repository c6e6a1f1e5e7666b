"""The index and its residual over blocks of machines that the engine keeps: the kernels' decisions, sooner.

A machine is laid into its block (`splitgym.schedulers.lanes`) only when an event has touched it; the kernels'
own arithmetic then runs over all of them.
"""

from splitgym.schedulers.choose import PAIR_ROWS
from splitgym.schedulers.index import HINGES, all_costs, cheapest, weights_of
from splitgym.schedulers.lanes import (
    BLOCK,
    CLOSED_PROMPT,
    CLOSED_TOKEN,
    LANES,
    lay_prompts,
    lay_request,
    lay_tokens,
    num_blocks,
)
from splitgym.schedulers.network import NETWORK_SCRATCH
from splitgym.schedulers.predict import asked, reference_of
from splitgym.schedulers.residual import all_residual_costs
from splitgym.sim.compiled.board import max_tokens_of
from splitgym.sim.compiled.show import *


@compiled
def lay_closed(sim, machine):
    """Write who may be chosen."""
    m = machine.index
    place = sim.lanes + 8 * (m // LANES * BLOCK + m % LANES)
    put_real(place, CLOSED_PROMPT * LANES, 1.0 - prompt_open(sim, machine))
    put_real(place, CLOSED_TOKEN * LANES, 1.0 - token_open(sim, machine))


@compiled
def lay_into(sim, machine, b):
    """Write what has changed of a machine into its block."""
    j = machine.index % LANES
    lay_prompts(
        b,
        j,
        machine.prompt_requests,
        machine.prompt_tokens,
        machine.prompt_queue_ns,
        shown_end(sim, machine),
        machine.prompt_share,
        machine.prompt_share_at_ns,
    )
    lay_tokens(
        b,
        j,
        tables_of(sim),
        machine.shown_row,
        machine.running,
        machine.inbound,
        machine.running_context_tokens,
        machine.running_prompt_tokens,
        machine.inbound_prompt_tokens,
        machine.kv_used_tokens,
    )


@compiled
def lay(sim, machine):
    """Write what has changed of a machine."""
    lay_into(sim, machine, reals(sim.lanes + 8 * BLOCK * (machine.index // LANES), BLOCK))
    lay_closed(sim, machine)


@compiled
def lay_touched(sim):
    """Bring the blocks up to date."""
    if weigh_touched(sim):
        for m in range(sim.num_machines):
            lay_closed(sim, machine_at(sim, m))
    for i in range(sim.touched):
        lay(sim, touched_machine(sim, i))
    none_touched(sim)


@with_schedulers
def lanes_with_request(sim, job, interference):
    """The blocks with a request laid, and its `Asked`."""
    mean = max(1.0, sim.mean_output[0] / sim.mean_output[1])
    tables, machines = tables_of(sim), sim.num_machines
    lanes = reals(sim.lanes, num_blocks(machines) * BLOCK)
    lay_request(lanes, machines, tables, job.prompt_tokens)
    ref = reference_of(tables, mean, job.prompt_tokens, max_tokens_of(sim, job))
    return lanes, asked(ref, job.prompt_tokens, sim.now, rules_of(sim), interference)


@with_schedulers
def least_cost(sim, lanes):
    """The best pair of blocks with costs."""
    steps = longs(sim.lane_steps, num_blocks(sim.num_machines) * PAIR_ROWS * LANES)
    return cheapest(lanes, steps, longs(sim.lane_least, PAIR_ROWS * LANES))


@with_schedulers
def index_route(sim, job):
    """(p, t) as `index_kernel`."""
    w = weights_of(reals(sim.routing_params, sim.num_params), HINGES)
    lanes, q = lanes_with_request(sim, job, w.w0)
    all_costs(lanes, q, w, reals(sim.lane_scratch, LANES))
    return least_cost(sim, lanes)


@with_schedulers
def residual_route(sim, job):
    """(p, t) as `residual_kernel`."""
    weights = reals(sim.routing_params, sim.num_params)
    lanes, q = lanes_with_request(sim, job, weights[0])
    scratch = reals(sim.lane_scratch, NETWORK_SCRATCH + sim.num_params)
    all_residual_costs(lanes, sim.num_machines, tables_of(sim), q, sim.tbt_slo, weights, scratch)
    return least_cost(sim, lanes)
