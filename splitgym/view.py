"""ClusterView: all that a scheduler or a policy may know at decision time.

The simulator and the live router fill the same arrays; schedulers, observations and action masks read nothing
else. Everything here can be known by a router: its own counters, the profile's predictions, what the machines
report. True output lengths are not here, nor the machines' reservations for them, unless a study asks for an
oracle.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitgym.profile.tables import ProfileTables

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.uint8]

# Places in `ClusterView.counters`.
ARRIVED_REQUESTS, ARRIVED_PROMPT_TOKENS, COMPLETED_REQUESTS, COMPLETED_OUTPUT_TOKENS = range(4)
NUM_COUNTERS = 4

OUTPUT_PRIOR_TOKENS = 150.0
OUTPUT_PRIOR_WEIGHT = 30.0
OUTPUT_DECAY = 0.998
"""Output length is estimated as a decayed mean over completed requests (decay a completion, prior)."""

SHARE_TIME_CONSTANT_NS = 10_000_000_000
"""Time constant of `prompt_share`."""


class ClusterRules(NamedTuple):
    """The cluster's constants that predictions need."""

    max_prompt_tokens: int
    max_tasks: int
    kv_bytes_per_token: int
    overlap_min_tokens: int  # prompts from here on ship layer-wise; a huge number in serial mode
    ttft_slo: float  # slowdown against the reference machine (row 0 of the tables)
    tbt_slo: float


class ClusterView(NamedTuple):
    """Arrays over the M machines of a cluster and a few cluster-wide ones. Mutated in place by its owner."""

    # Fixed for a run.
    machine_row: Ints  # (M,) machine type: row of `tables`
    kv_capacity_tokens: Ints  # (M,) tokens of KV cache that fit beside the weights
    link_bytes_per_s: Ints  # (M,) NIC bandwidth
    transfer_constant_ns: Ints  # (M,) what layer-wise overlap leaves after the prompt, by the sending machine
    # Pools.
    available: Flags  # (M,) up, and not draining for a switch
    prompt_allowed: Flags  # (M,) may be chosen for a prompt now (availability and confinement)
    token_allowed: Flags  # (M,) may be chosen for the token phase now
    home_pool: Ints  # (M,) `Pool`
    pool: Ints  # (M,) `Pool` by present work: MIXED while a machine works for the other phase too
    # Prompt work.
    prompt_requests: Ints  # (M,) prompts queued, not started
    prompt_tokens: Ints  # (M,) prompt tokens pending: queued, and in the iteration in progress
    prompt_queue_ns: Ints  # (M,) sum of the predicted times of the queued prompts, each alone
    iteration_end_ns: Ints  # (M,) predicted end of the iteration in progress; at or before now when idle
    iteration_prompts: Ints  # (M,) prompts in the iteration in progress
    prompt_share: Floats  # (M,) recent share of time given to prompts, decayed; as of `prompt_share_at_ns`
    prompt_share_at_ns: Ints  # (M,)
    # Token work.
    running: Ints  # (M,) requests decoding here, or ready to
    running_context_tokens: Ints  # (M,) their prompt and generated tokens so far
    running_prompt_tokens: Ints  # (M,) their prompt tokens alone
    inbound: Ints  # (M,) requests assigned to decode here whose KV cache is not here yet
    inbound_prompt_tokens: Ints  # (M,) their prompt tokens
    transfers: Ints  # (M,) KV transfers in flight at this machine's NIC
    # Memory.
    kv_used_tokens: Ints  # (M,) KV tokens held here now, caches on their way out included
    # (M,) most KV tokens that the requests placed here will hold, true outputs included: 0 unless the
    # cluster's `oracle` flag is on, which is for studies only.
    oracle_promised_tokens: Ints
    # The cluster.
    clock: Ints  # (1,) now [ns]
    mean_output: Floats  # (2,) decayed sum of output tokens of completed requests, and its weight
    counters: Ints  # (NUM_COUNTERS,) cumulative counts, see the constants above
    tables: ProfileTables
    rules: ClusterRules


def empty_view(
    machine_row: Ints,
    kv_capacity_tokens: Ints,
    link_bytes_per_s: Ints,
    transfer_constant_ns: Ints,
    home_pool: Ints,
    tables: ProfileTables,
    rules: ClusterRules,
) -> ClusterView:
    """A view of an idle cluster at time 0.

    Args:
        machine_row, kv_capacity_tokens, link_bytes_per_s, transfer_constant_ns, home_pool: (M,) arrays.
        tables: the machine types' times; row 0 is the reference.
        rules: constants.
    """
    m = len(machine_row)

    def ints() -> Ints:
        return np.zeros(m, np.int64)

    return ClusterView(
        machine_row=np.array(machine_row, np.int64),
        kv_capacity_tokens=np.array(kv_capacity_tokens, np.int64),
        link_bytes_per_s=np.array(link_bytes_per_s, np.int64),
        transfer_constant_ns=np.array(transfer_constant_ns, np.int64),
        available=np.ones(m, np.uint8),
        prompt_allowed=np.ones(m, np.uint8),
        token_allowed=np.ones(m, np.uint8),
        home_pool=np.array(home_pool, np.int64),
        pool=np.array(home_pool, np.int64),
        prompt_requests=ints(),
        prompt_tokens=ints(),
        prompt_queue_ns=ints(),
        iteration_end_ns=ints(),
        iteration_prompts=ints(),
        prompt_share=np.zeros(m),
        prompt_share_at_ns=ints(),
        running=ints(),
        running_context_tokens=ints(),
        running_prompt_tokens=ints(),
        inbound=ints(),
        inbound_prompt_tokens=ints(),
        transfers=ints(),
        kv_used_tokens=ints(),
        oracle_promised_tokens=ints(),
        clock=np.zeros(1, np.int64),
        mean_output=np.array([OUTPUT_PRIOR_TOKENS * OUTPUT_PRIOR_WEIGHT, OUTPUT_PRIOR_WEIGHT]),
        counters=np.zeros(NUM_COUNTERS, np.int64),
        tables=tables,
        rules=rules,
    )
