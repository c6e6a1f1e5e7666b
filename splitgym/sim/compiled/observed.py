"""What an observation keeps of each machine (`splitgym.observation.rows`), written anew where it was touched.

For simulations whose decisions are asked for by compiled code (`splitgym.envs.fleet`), which reads these rows
and writes an observation from them.
"""

import numpy as np

from splitgym.observation.rows import (
    NUM_FEATURES,
    PROMPT_ALLOWED,
    SEEN_BLOCK,
    TOKEN_ALLOWED,
    lay_pools,
    lay_work,
)
from splitgym.schedulers.lanes import CLOSED_PROMPT, CLOSED_TOKEN, LANES
from splitgym.sim.compiled.reach import view_maker
from splitgym.sim.compiled.show import *
from splitgym.sim.compiled.side_by_side import lay_into

single_line, single_matrix = view_maker(np.float32, 1), view_maker(np.float32, 2)


@compiled
def block_with(sim, m):
    """Where the block of machine m is."""
    return sim.lanes + 8 * SEEN_BLOCK * (m // LANES)


@compiled
def shown_of(sim, m):
    """Where the features of machine m are that are kept."""
    return sim.shown + 4 * NUM_FEATURES * m


@compiled
def lay_open(sim, machine):
    """Write who may be chosen, here and in the view."""
    m = machine.index
    show_flags(sim, machine)
    b, shown = reals(block_with(sim, m), SEEN_BLOCK), single_line(shown_of(sim, m), NUM_FEATURES)
    prompt, token = prompt_open(sim, machine), token_open(sim, machine)
    b[CLOSED_PROMPT * LANES + m % LANES] = 1.0 - prompt
    b[CLOSED_TOKEN * LANES + m % LANES] = 1.0 - token
    shown[PROMPT_ALLOWED], shown[TOKEN_ALLOWED] = prompt, token


@compiled
def lay_seen(sim, machine):
    """Write what has changed of a machine, here and in the view."""
    m = machine.index
    b, shown = reals(block_with(sim, m), SEEN_BLOCK), single_line(shown_of(sim, m), NUM_FEATURES)
    show(sim, machine)
    lay_into(sim, machine, b)
    lay_pools(
        shown,
        machine.home_pool,
        machine.pool,
        machine.up,
        prompt_open(sim, machine),
        token_open(sim, machine),
    )
    lay_work(
        b,
        m % LANES,
        shown,
        machine.prompt_tokens,
        machine.running_context_tokens,
        machine.inbound_prompt_tokens,
        machine.flights,
    )
    lay_open(sim, machine)


@compiled
def look(sim):
    """Bring the rows and the view up to date, as `refresh` does the view."""
    if weigh_touched(sim):
        for m in range(sim.num_machines):
            lay_open(sim, machine_at(sim, m))
    for i in range(sim.touched):
        lay_seen(sim, touched_machine(sim, i))
    none_touched(sim)
