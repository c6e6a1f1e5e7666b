"""State of the compiled engine: a few integer matrices, one row a field.

A request in flight has a *slot*: a column of `jobs`. Lists (queues, transfers at a NIC) run through the slots
by links; NONE ends them. Everything is int64, so that it adds up exactly.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from splitgym.profile import ProfileTables
from splitgym.sim.outcomes import Outcomes
from splitgym.view import NUM_COUNTERS, ClusterView

Ints = NDArray[np.int64]
NONE = -1


def compiled(function: Any) -> Any:
    """Compile by Numba, without reference counts: those of every array of a `Sim`, at every call, would take
    three quarters of the time. So such a function makes no array and returns none; it may take views.
    """
    return numba.njit(cache=True, nogil=True, _nrt=False)(function)  # type: ignore[call-overload]


# Phases of a job, as `splitgym.sim.job.Phase`.
QUEUED, PROMPT, SHIPPING, READY, RUNNING, ELSEWHERE = range(6)
# ELSEWHERE: about to be routed again.

# ---- rows of `machines` -----------------------------------------------------------------------------------
(
    RESERVED,  # KV tokens reserved, outputs included
    BATCH,  # requests in the batch
    BATCH_CONTEXT,  # their prompt and generated tokens, as of SETTLED
    CARRY,  # fraction of a nanosecond of token iterations [ticks]
    ITERATIONS,  # token iterations so far: a task's last one is known when it joins
    AGED,  # tasks of the batch passed over too often
    BUSY,  # 0 idle, 1 an iteration with prompts, 2 contiguous token iterations
    START,  # start of the iteration in progress, or of the contiguous ones [ns]
    END,  # its end, or theirs [ns]
    PLANNED,  # contiguous iterations planned
    SETTLED,  # of these, counted already
    SETTLED_AT,  # end of the last one counted [ns]
    RUN_BASE,  # ticks of each contiguous iteration at context 0
    RUN_SLOPE,  # ticks per context token
    RUN_CONTEXT,  # context of the first one
    RUN_CARRY,  # fraction of a nanosecond before the first one [ticks]
    RUN_BATCH,  # tasks in them
    DECODES,  # token tasks in the iteration with prompts
    PARTIAL,  # some token tasks of the batch are left out of it
    ITERATION_TOKENS,  # prompt tokens in it
    VERSION,  # tells end events that were overtaken
    DOWN,  # failures in force
    SWITCHING,
    SWITCH_TIMER,
    SWITCH_NUMBER,
    IDLE,  # looked for work and found none; nobody has woken it since
    PROMPTS_HEAD,  # queue of prompts
    PROMPTS_TAIL,
    MEMORY_HEAD,  # those who wait for memory
    MEMORY_TAIL,
    OUTPUTS_HEAD,  # caches here without memory for their output
    OUTPUTS_TAIL,
    SEQUENCES_HEAD,  # vLLM: prompts in progress and token tasks, by when they started
    SEQUENCES_TAIL,
    SEATS,  # vLLM: their number
    SLACK,  # vLLM: KV tokens that the contiguous iterations planned do not need
    CURRENT_HEAD,  # prompts of the iteration in progress
    CURRENT_TAIL,
    FRESH_HEAD,  # tasks that have not decoded yet
    SENDING_HEAD,  # transfers in flight from here
    SENDING_TAIL,
    RECEIVING_HEAD,  # and to here
    RECEIVING_TAIL,
    FLIGHTS,  # number of both
    SHIPMENTS,  # transfers to or from here that have not arrived, those without bytes left included
    WATTS_NS,  # energy of iterations [W ns]
    PROMISED,  # KV tokens that the requests placed here will hold at most: for oracles only
    T_BUSY,  # time in iterations [ns]
    T_PROMPT_BUSY,  # of that, with prompts
    T_DOWN,  # time failed
    T_FAILED_AT,  # start of the failure in force
    T_GENERATED,  # output tokens computed
    T_PROMPTED,  # prompt tokens computed
    BANDWIDTH,  # NIC, in units of 64 bytes/s
    TOUCHED,  # flags for use within one function
    WAKE_LIST,  # machines to start, a heap of indices
    # What follows is the view's: each row is the array of that name in `ClusterView`.
    V_MACHINE_ROW,
    V_KV_CAPACITY_TOKENS,
    V_LINK_BYTES_PER_S,
    V_TRANSFER_CONSTANT_NS,
    V_HOME_POOL,
    V_POOL,
    V_PROMPT_REQUESTS,
    V_PROMPT_TOKENS,
    V_PROMPT_QUEUE_NS,
    V_ITERATION_END_NS,
    V_ITERATION_PROMPTS,
    V_PROMPT_SHARE_AT_NS,
    V_RUNNING,
    V_RUNNING_CONTEXT_TOKENS,
    V_RUNNING_PROMPT_TOKENS,
    V_INBOUND,
    V_INBOUND_PROMPT_TOKENS,
    V_TRANSFERS,
    V_KV_USED_TOKENS,
    V_ORACLE_PROMISED_TOKENS,
) = range(76)
MACHINE_FIELDS = 76
VIEW_ROWS = {
    "machine_row": V_MACHINE_ROW,
    "kv_capacity_tokens": V_KV_CAPACITY_TOKENS,
    "link_bytes_per_s": V_LINK_BYTES_PER_S,
    "transfer_constant_ns": V_TRANSFER_CONSTANT_NS,
    "home_pool": V_HOME_POOL,
    "pool": V_POOL,
    "prompt_requests": V_PROMPT_REQUESTS,
    "prompt_tokens": V_PROMPT_TOKENS,
    "prompt_queue_ns": V_PROMPT_QUEUE_NS,
    "iteration_end_ns": V_ITERATION_END_NS,
    "iteration_prompts": V_ITERATION_PROMPTS,
    "prompt_share_at_ns": V_PROMPT_SHARE_AT_NS,
    "running": V_RUNNING,
    "running_context_tokens": V_RUNNING_CONTEXT_TOKENS,
    "running_prompt_tokens": V_RUNNING_PROMPT_TOKENS,
    "inbound": V_INBOUND,
    "inbound_prompt_tokens": V_INBOUND_PROMPT_TOKENS,
    "transfers": V_TRANSFERS,
    "kv_used_tokens": V_KV_USED_TOKENS,
    "oracle_promised_tokens": V_ORACLE_PROMISED_TOKENS,
}

# ---- rows of `jobs` ---------------------------------------------------------------------------------------
(
    REQUEST,
    PROMPT_TOKENS,
    OUTPUT_TOKENS,
    PROMPT_MACHINE,
    TOKEN_MACHINE,
    PHASE,
    ATTEMPT,
    DECISION,
    HELD_PROMPT,
    HELD_TOKEN,
    PASSED,
    LEFT_OUT,
    WAITING,
    GRANTED,
    ALONE_NS,
    LAST,  # token iteration of its machine after which it is done
    JOINED,  # order of joining a batch
    FLIGHT,  # 0 no transfer, 1 bytes in flight, 2 bytes there and the prompt not over, 3 the constant runs
    LEFT,
    RATE,
    RATED_AT,
    FLIGHT_VERSION,
    QUEUE_NEXT,  # in the queue of prompts, the prompts of an iteration, or the requests without a machine
    QUEUE_PREV,
    MEMORY_NEXT,
    MEMORY_PREV,
    OUTPUT_NEXT,
    OUTPUT_PREV,
    FRESH_NEXT,
    SENDING_NEXT,
    SENDING_PREV,
    RECEIVING_NEXT,
    RECEIVING_PREV,
    RERATED,  # its rate has changed and no event is planned for it yet
    RERATED_NEXT,
    IN_USE,
    TARGET,  # tokens to compute before the next one can be generated
    COMPUTED,  # vLLM: of these, done
    CHUNK,  # vLLM: of these, in the iteration in progress
    GENERATED,  # vLLM: output tokens when it last joined the batch or left it
    SEQUENCE_NEXT,
    SEQUENCE_PREV,
) = range(42)
JOB_FIELDS = 42

# ---- places in `scalars` ----------------------------------------------------------------------------------
(
    NOW,
    HEAP_SIZE,
    NEXT_ROW,  # next request to arrive
    UNFINISHED,
    FINISHED,
    DECISIONS,
    PENDING,  # 0 no decision, 1 route, 2 resize
    ASKED,  # slot of the pending routing decision
    NEXT_CONTROL,
    WAKES,  # machines in `wakes`
    FREE_HEAD,  # free slots
    HELD_HEAD,  # requests that found no machine up
    HELD_TAIL,
    JOINS,
    SAMPLES,  # rows of the timeline
    EVENTS,  # rows of the log
    IN_SYSTEM,
    CAN_ROUTE,
    FRONTIER,  # largest key of the events that have happened at this time
    RERATED_HEAD,  # transfers whose rate has changed in this event
) = range(20)
COUNTERS = 20
"""The view's counters follow here."""
NUM_SCALARS = COUNTERS + NUM_COUNTERS

# Why `advance` returned.
DECIDE, DONE, GROW_JOBS, GROW_HEAP, GROW_TIMELINE, GROW_LOG = range(6)

# ---- places in `rules` ------------------------------------------------------------------------------------
(
    MAX_PROMPT_TOKENS,
    MAX_TASKS,
    MAX_PASSED_OVER,
    KV_BYTES,
    OVERLAP_MIN,
    SHARED,
    RESERVE_ALL,
    CONFINE,
    SWITCH_DELAY,
    CONTROL_INTERVAL,
    MIN_POOL,
    ORACLE,
    LOGGING,
    ROUTING,  # built-in routing scheduler, or -1 to ask
    SIZING,  # built-in sizing scheduler, or -1 to ask
    RULE,  # of batching: PAPER or VLLM
    BLOCK_SIZE,  # vLLM: KV tokens that are given out at once
) = range(17)
NUM_RULES = 17
PAPER, VLLM = range(2)

# ---- rows of `requests` (outcomes by request) -------------------------------------------------------------
OUTCOME_FIELDS = (
    "first_token_ns",
    "finish_ns",
    "prompt_start_ns",
    "prompt_end_ns",
    "transfer_start_ns",
    "transfer_end_ns",
    "decode_start_ns",
    "prompt_machine",
    "token_machine",
    "decision_id",
    "attempts",
    "preemptions",
    "prompts_computed",
    "lost_tokens",
)
(
    O_FIRST,
    O_FINISH,
    O_PROMPT_START,
    O_PROMPT_END,
    O_TRANSFER_START,
    O_TRANSFER_END,
    O_DECODE_START,
    O_PROMPT_MACHINE,
    O_TOKEN_MACHINE,
    O_DECISION,
    O_ATTEMPTS,
    O_PREEMPTIONS,
    O_PROMPTS,
    O_LOST,
    R_ARRIVAL,  # the trace
    R_PROMPT,
    R_OUTPUT,
    R_MAX,
    R_ORDER,  # requests in the order in which they completed
) = range(19)
REQUEST_FIELDS = 19


class Sim(NamedTuple):
    """One simulation: few arrays, since Numba hands each function every one of them."""

    machines: Ints  # (MACHINE_FIELDS, M)
    jobs: Ints  # (JOB_FIELDS, slots)
    batches: (
        Ints  # (M + 1, max_tasks) slots of a machine's batch, a heap by (LAST, JOINED); the last for sorting
    )
    scalars: Ints  # (NUM_SCALARS,)
    rules: Ints  # (NUM_RULES,)
    heap: Ints  # (3, capacity) time, key and version of events, by (time, key)
    requests: Ints  # (REQUEST_FIELDS, N)
    watts: Ints  # (2 K, width) power by prompt tokens, then by batch size; constant beyond the last column
    reals: NDArray[np.float64]  # (M + 2,) the view's `prompt_share`, then its `mean_output`
    flags: NDArray[np.uint8]  # (3, M) the view's `available`, `prompt_allowed`, `token_allowed`
    timeline: Ints  # (rows, len(TIMELINE_FIELDS))
    log: Ints  # (rows, 4)
    tables: ProfileTables


def view_of(sim: Sim, fresh: ClusterView) -> ClusterView:
    """A view whose arrays are the simulation's own, with the contents of `fresh`."""
    m = sim.machines.shape[1]
    arrays = {name: sim.machines[row] for name, row in VIEW_ROWS.items()}
    arrays.update(zip(("available", "prompt_allowed", "token_allowed"), sim.flags, strict=True))
    arrays["prompt_share"], arrays["mean_output"] = sim.reals[:m], sim.reals[m:]
    arrays["clock"] = sim.scalars[NOW : NOW + 1]
    arrays["counters"] = sim.scalars[COUNTERS:]
    for name, array in arrays.items():
        array[:] = getattr(fresh, name)
    return fresh._replace(**arrays)


def as_outcomes(sim: Sim, outcomes: Outcomes, idle_watts: Ints) -> None:
    """Bring `outcomes`, whose request arrays are rows of `sim.requests`, up to date."""
    now = int(sim.scalars[NOW])
    totals = sim.machines
    known = len(outcomes.finish_order)
    outcomes.finish_order += sim.requests[R_ORDER, known : sim.scalars[FINISHED]].tolist()
    outcomes.end_ns = now
    outcomes.busy_ns[:] = totals[T_BUSY]
    outcomes.prompt_busy_ns[:] = totals[T_PROMPT_BUSY]
    outcomes.generated_tokens[:] = totals[T_GENERATED]
    outcomes.prompted_tokens[:] = totals[T_PROMPTED]
    failing = np.where(sim.machines[DOWN] > 0, now - totals[T_FAILED_AT], 0)
    outcomes.up_ns[:] = now - totals[T_DOWN] - failing
    idle_ns = np.maximum(0, outcomes.up_ns - outcomes.busy_ns)
    outcomes.energy_j[:] = (sim.machines[WATTS_NS] + idle_watts * idle_ns) / 1e9
    known = len(outcomes.timeline)
    outcomes.timeline += [tuple(row) for row in sim.timeline[known : sim.scalars[SAMPLES]].tolist()]
