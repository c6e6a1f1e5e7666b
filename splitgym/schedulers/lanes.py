"""What predictions need of each machine, laid out so that the processor computes eight machines at once.

Machines stand in blocks of `LANES`. A block is (ROWS, LANES) float64, flat: one row a quantity, one place in
it a machine. The rows up to `OWN_NS` change only when the machine does: the compiled engine keeps them and
lays the machines anew that an event has touched; a kernel that is given a view lays all of them. The rest is
computed for a request, by loops over whole rows without a branch, in the same order of arithmetic for every
machine, so with the same bits wherever it stands.

Whole numbers below 2**53 are exact here: times are below 104 days, a token iteration is below 137 s.
"""

import numpy as np

from splitgym.compile_cache import numba
from splitgym.profile.tables import prompt_time_ns, token_time_ns, token_time_ticks

LANES = 8

(
    TYPE,  # row of the profile's tables
    CAPACITY,  # KV tokens, at least 1
    LINK,  # NIC [bytes/s]
    CONSTANT_NS,  # what layer-wise overlap leaves of a transfer to here
    CLOSED_PROMPT,  # 1 where the machine may not be chosen for a prompt, else 0
    CLOSED_TOKEN,
    QUEUE_NS,  # predicted prompt times of the queued prompts
    END_NS,  # end of the iteration in progress
    QUEUED,  # prompts queued
    PROMPTING,  # 1 where prompts are queued or in progress, else 0
    SHARE,  # recent share of time given to prompts, as of SHARE_AT_NS
    SHARE_AT_NS,
    RUNNING,
    INBOUND,
    BATCH,  # running + inbound
    JOINED_TICKS,  # token iteration of the batch with one more request, whose context is left out
    JOINED_SLOPE,  # ticks for each of its context tokens
    ALONE_NS,  # token iteration of the batch as it is
    DECODES_NS,  # token iteration of what runs; 0 where nothing does
    FACTOR,  # of prompts' times beside decodes; 1 where nothing runs
    EXPECTED,  # prompt tokens of the batch
    USED,  # KV tokens held
    # For a request:
    OWN_NS,  # its prompt alone
    # Columns of `splitgym.schedulers.predict` follow, then the costs of pairs.
) = range(23)
PREDICTED = 23
NUM_PREDICTED = 11
COSTS = PREDICTED + NUM_PREDICTED
ROWS = COSTS + 3
BLOCK = ROWS * LANES

TICK = 2.0**-16
"""A tick in nanoseconds."""


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def num_blocks(machines):
    """Blocks for this many machines."""
    return (machines + LANES - 1) // LANES


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def block_of(lanes, block):
    """(BLOCK,) one block of `lanes`, which holds them one after the other."""
    return lanes[block * BLOCK : (block + 1) * BLOCK]


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def blank(b):
    """A block of machines that cannot be chosen; places without a machine stay so."""
    b[:] = 0.0
    for j in range(LANES):
        b[CLOSED_PROMPT * LANES + j] = b[CLOSED_TOKEN * LANES + j] = 1.0
        b[CAPACITY * LANES + j] = b[LINK * LANES + j] = b[FACTOR * LANES + j] = 1.0


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def lay_prompts(b, j, queued, tokens, queue_ns, end_ns, share, share_at_ns):
    """Write a machine's prompt work; the arguments are the view's."""
    b[QUEUED * LANES + j] = queued
    b[PROMPTING * LANES + j] = 1.0 if tokens > 0 else 0.0
    b[QUEUE_NS * LANES + j] = queue_ns
    b[END_NS * LANES + j] = end_ns
    b[SHARE * LANES + j] = share
    b[SHARE_AT_NS * LANES + j] = share_at_ns


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def lay_tokens(b, j, tables, row, running, inbound, running_context, running_prompts, inbound_prompts, used):
    """Write a machine's token work; the arguments are the view's."""
    batch, context = running + inbound, running_context + inbound_prompts
    base = token_time_ticks(tables, row, batch + 1, 0)
    slope = token_time_ticks(tables, row, batch + 1, 1) - base
    decodes, factor = np.int64(0), 1.0
    if running > 0:  # an iteration takes no less than the decodes in it
        decodes, factor = token_time_ns(tables, row, running, running_context), tables.mixed_factor[row]
    b[RUNNING * LANES + j] = running
    b[INBOUND * LANES + j] = inbound
    b[BATCH * LANES + j] = batch
    b[JOINED_TICKS * LANES + j] = base + slope * context
    b[JOINED_SLOPE * LANES + j] = slope
    b[ALONE_NS * LANES + j] = token_time_ns(tables, row, max(1, batch), context)
    b[DECODES_NS * LANES + j] = decodes
    b[FACTOR * LANES + j] = factor
    b[EXPECTED * LANES + j] = running_prompts + inbound_prompts
    b[USED * LANES + j] = used


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def lay_machine(view, m, b):
    """Lay machine m of a view into its block."""
    j, row = m % LANES, view.machine_row[m]
    b[TYPE * LANES + j] = row
    b[CAPACITY * LANES + j] = max(1, view.kv_capacity_tokens[m])
    b[LINK * LANES + j] = view.link_bytes_per_s[m]
    b[CONSTANT_NS * LANES + j] = view.transfer_constant_ns[m]
    lay_prompts(
        b,
        j,
        view.prompt_requests[m],
        view.prompt_tokens[m],
        view.prompt_queue_ns[m],
        view.iteration_end_ns[m],
        view.prompt_share[m],
        view.prompt_share_at_ns[m],
    )
    lay_tokens(
        b,
        j,
        view.tables,
        row,
        view.running[m],
        view.inbound[m],
        view.running_context_tokens[m],
        view.running_prompt_tokens[m],
        view.inbound_prompt_tokens[m],
        view.kv_used_tokens[m],
    )
    b[CLOSED_PROMPT * LANES + j] = 0.0 if view.prompt_allowed[m] else 1.0
    b[CLOSED_TOKEN * LANES + j] = 0.0 if view.token_allowed[m] else 1.0


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def lay_view(view, lanes):
    """Lay all machines of a view into `lanes`, see `lanes_of`."""
    for block in range(lanes.shape[0] // BLOCK):
        blank(block_of(lanes, block))
    for m in range(view.machine_row.shape[0]):
        lay_machine(view, m, block_of(lanes, m // LANES))


@numba.njit(cache=True, error_model="numpy")
def lanes_of(view):
    """The blocks of a view's machines, made anew."""
    lanes = np.empty(num_blocks(view.machine_row.shape[0]) * BLOCK)
    lay_view(view, lanes)
    return lanes


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def lay_request(lanes, machines, tables, prompt_tokens):
    """Write the time of a request's prompt alone on each machine."""
    before, own_ns = -1.0, 0.0
    for m in range(machines):
        place = (m // LANES) * BLOCK + m % LANES
        row = lanes[place + TYPE * LANES]
        if row != before:  # neighbours are mostly of one type
            before, own_ns = row, np.float64(prompt_time_ns(tables, np.int64(row), prompt_tokens))
        lanes[place + OWN_NS * LANES] = own_ns
