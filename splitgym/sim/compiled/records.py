"""The records of a simulation. A machine or a request lies together, first what most events touch.

`HEAD` is the simulation: its clock and counters, its rules, and the addresses of everything else, so that a
compiled function takes it as one pointer. The arrays themselves belong to a `Simulation` (setup.py).
"""

from typing import Any

import numpy as np

from splitgym.sim.compiled.reach import *
from splitgym.view import NUM_COUNTERS

LONG, REAL, FLAG = np.int64, np.float64, np.int8


def _record(*parts: tuple[Any, str]) -> np.dtype[Any]:
    """A record of fields of given types, each a text of names."""
    return np.dtype([(name, kind) for kind, names in parts for name in names.split()], align=True)


OUTCOME = _record(
    (LONG, "request arrival_ns prompt_tokens output_tokens"),
    (LONG, "first_token_ns finish_ns prompt_start_ns prompt_end_ns transfer_start_ns transfer_end_ns"),
    (LONG, "decode_start_ns prompt_machine token_machine decision_id attempts preemptions prompts_computed"),
    (LONG, "lost_tokens"),
)
"""One request: its row of the trace, then fields of `splitgym.sim.outcomes.Outcomes`."""
RESULTS = OUTCOME.names[4:]  # type: ignore[index]
"""What a run adds to the trace."""

# A request in flight, at its *slot* in `jobs`: three of the processor's cache lines of 64 bytes; what its
# completion needs lies in the first. Lists run through `..._next` and `..._prev`; NONE ends them.
# What is kept of it for the outcomes is written where these are, see `row_of`.
JOB = _record(
    (LONG, "request prompt_tokens output_tokens"),
    (SHORT, "slot row berth attempt"),
    (FLAG, "in_use"),
    (FLAG, "rerated"),  # its rate has changed and no event is planned for it yet
    # Blank at the begin of every attempt, from here on.
    (FLAG, "phase"),
    (FLAG, "flight"),  # 0 no transfer, 1 bytes in flight, 2 bytes there, prompt not over, 3 the constant runs
    (SHORT, "source target"),  # prompt and token machine
    (SHORT, "held_prompt held_token"),
    (SHORT, "queue_next"),  # prompts queued or in an iteration, requests without a machine, free slots
    # The second line.
    (LONG, "alone_ns"),  # predicted time of the prompt alone
    (LONG, "last"),  # token iteration of its machine after which it is done
    (LONG, "prompt_end"),  # when its prompt was computed
    (LONG, "left rate rated_at"),  # of its transfer
    (SHORT, "joined"),  # order of joining a batch
    (SHORT, "goal"),  # tokens to compute before the next one can be generated
    (SHORT, "queue_prev fresh_next"),
    # The third line.
    (SHORT, "memory_next memory_prev"),  # who waits for memory: prompts, caches, caches for their outputs'
    (SHORT, "sending_next sending_prev receiving_next receiving_prev sequence_next sequence_prev"),
    (SHORT, "passed"),
    (SHORT, "computed chunk"),  # vLLM: of `goal`, done, and in the iteration in progress
    (SHORT, "generated"),  # vLLM: output tokens when it last joined the batch or left it
    (FLAG, "left_out waiting granted"),
    # Up to here.
    (SHORT, "rerated_next"),  # the next transfer whose rate has changed in this event
    (LONG, "max_tokens"),  # the client's, or UNKNOWN
)
OUTCOME_BYTES, JOB_BYTES = OUTCOME.itemsize, JOB.itemsize
BLANK_FROM, BLANK_TO = (int(JOB.fields[name][1]) for name in ("phase", "rerated_next"))  # type: ignore[index]

# The first half is what contiguous token iterations touch; then prompts and transfers; then what is rare.
MACHINE = _record(
    (SHORT, "index row"),  # row: of the profile's tables
    (SHORT, "busy"),  # 0 idle, 1 an iteration with prompts, 2 contiguous token iterations
    (SHORT, "touched"),  # the view, or the scheduler's board, does not show its state
    (SHORT, "idle"),  # looked for work and found none; nobody has woken it since
    (SHORT, "batch run_batch"),  # requests in the batch, token tasks in the contiguous iterations
    (SHORT, "partial"),  # some tasks are left out of the iteration in progress
    (LONG, "start end"),  # of the iteration in progress, or of the contiguous ones [ns]
    (LONG, "planned settled settled_at"),  # contiguous iterations: planned, counted already, end of the last
    (LONG, "run_base run_slope"),  # ticks of each contiguous iteration at context 0, and per context token
    (LONG, "run_context run_carry"),  # context of the first one, fraction of a nanosecond before it [ticks]
    (LONG, "batch_context"),  # prompt and generated tokens of the batch, as of settled_at
    (LONG, "carry"),  # fraction of a nanosecond of token iterations [ticks]
    (LONG, "iterations"),  # token iterations so far
    (LONG, "reserved capacity"),  # KV tokens, outputs included
    (LONG, "running running_context_tokens running_prompt_tokens kv_used_tokens"),  # the view's
    (LONG, "watts_ns"),  # energy of iterations [W ns]
    (LONG, "busy_ns generated_tokens"),  # time in iterations, output tokens computed
    (SHORT, "prompts_head prompts_tail memory_head memory_tail"),  # queue; who waits for memory
    (SHORT, "outputs_head outputs_tail"),  # caches here that wait for their output's memory
    (SHORT, "fresh_head"),  # tasks that have not decoded yet
    (SHORT, "aged"),  # tasks passed over too often
    (np.int16, "down"),  # failures in force
    (FLAG, "switching"),
    (SHORT, "up pool home_pool"),  # `Pool` at home and by present work; up: may be chosen
    (SHORT, "posted"),  # the pool under which it is on the board, or NONE
    (SHORT, "shown_row"),  # the row that schedulers believe in
    (LONG, "inbound inbound_prompt_tokens prompt_requests prompt_tokens prompt_queue_ns"),  # the view's
    (LONG, "promised"),  # KV tokens that the requests placed here will hold at most: for oracles only
    (SHORT, "current_head current_tail decodes"),  # prompts and token tasks of the iteration with prompts
    (SHORT, "flights shipments"),  # transfers in flight here; those to or from here that have not arrived
    (SHORT, "sending_head sending_tail receiving_head"),
    (LONG, "iteration_prompts iteration_tokens"),  # prompts in the iteration with prompts, and their tokens
    (LONG, "prompt_share_at_ns"),
    (REAL, "prompt_share"),
    (LONG, "prompt_busy_ns prompted_tokens"),
    (SHORT, "receiving_tail switch_timer switch_number"),
    (SHORT, "sequences_head sequences_tail seats"),  # vLLM: prompts in progress and token tasks; their number
    (LONG, "slack"),  # vLLM: KV tokens that the contiguous iterations planned do not need
    (LONG, "bandwidth"),  # NIC, in units of 64 bytes/s
    (LONG, "transfer_constant_ns down_ns failed_at"),
)

MACHINE_BYTES = MACHINE.itemsize

TASK = _record((LONG, "order"), (SHORT, "slot"))
"""A task of a batch. `order` is (last iteration, order of joining) in one number."""

EVENT = _record((LONG, "time key version"))
"""A planned event; a later version voids it. (Ends of iterations and transfers are in trees of their own.)"""

DUE = _record((LONG, "time key"))
"""A node of the tree of transfers: when the first below it reaches its next stage; its request and berth."""

BERTH = _record((SHORT, "slot source target next_free"))
"""The transfer that has a berth, or the next free one behind it."""

HEAD = np.dtype(
    [
        *_record(
            (LONG, "now"),
            (LONG, "frontier"),  # largest key of the events that have happened at this time
            (LONG, "heap_size wakes"),  # planned events, machines to start
            (LONG, "rerated_head"),  # transfers whose rate has changed in this event
            (LONG, "pending asked"),  # 0 no decision, 1 route, 2 resize; slot of the routing decision
            (LONG, "next_row num_requests next_control"),  # next request to arrive, how many there are
            (
                LONG,
                "free_head used_slots",
            ),  # slots that are free again; none from `used_slots` on was ever used
            (LONG, "free_berth used_berths berth_leaves"),  # as slots; leaves of the tree of transfers
            (LONG, "unfinished finished decisions joins in_system can_route"),
            (LONG, "touched"),  # machines in `touched_list`
            (LONG, "samples events"),  # rows of the timeline and of the log
            (LONG, "held_head held_tail"),  # requests that found no machine up
            (LONG, "up_prompt up_token up_mixed"),  # machines that may be chosen, by pool
            (LONG, "streaming more"),  # outcomes are drained as requests finish; more are to be fed
            (LONG, "drained result_rows"),  # finished requests drained already; room for the others
            (LONG, "masks"),  # phases confined to their pools in the view's masks
            # Rules.
            (LONG, "max_prompt_tokens max_tasks max_passed_over kv_bytes overlap_min shared reserve_all"),
            (LONG, "confine switch_delay control_interval min_pool oracle logging"),
            (LONG, "fast"),  # the routing scheduler that has a form of its own here, see `decide`
            (LONG, "routing sizing"),  # built-in schedulers, or -1 to ask
            (LONG, "rule block_size"),  # of batching: PAPER or VLLM; KV tokens that are given out at once
            # Sizes.
            (LONG, "num_machines num_slots num_leaves heap_rows task_stride watt_columns"),
            (LONG, "large"),  # so many machines that the processor's caches do not hold their state
            (LONG, "num_padded num_blocks num_groups board_nodes few"),  # of the board
            (LONG, "timeline_rows log_rows log_margin num_types num_knots num_batches"),
            (LONG, "num_params num_sizing_params"),
            # Addresses.
            (LONG, "machines jobs batches heap dues berths leads tree tree_machines next_ends"),
            (LONG, "wake_list touched_list reached"),
            (LONG, "arrivals prompts outputs limits outcomes rows order timeline log watts"),
            (LONG, "view_longs view_reals view_flags clock_at mean_output_at counters_at"),
            (LONG, "knot_tokens knot_ns knot_counts token_base token_slope mixed_factor"),
            (LONG, "routing_params routing_state sizing_params sizing_state"),
            (LONG, "board_pending board_expected board_requests board_used board_low board_high"),
            (LONG, "lanes lane_steps lane_least lane_scratch shown"),
            # The view's constants.
            (LONG, "view_overlap_min"),
            (REAL, "ttft_slo tbt_slo"),
        ).descr,
        ("counters", LONG, (NUM_COUNTERS,)),
        ("mean_output", REAL, (2,)),
        ("means", REAL, (9,)),  # for which the board holds bounds: lowest, middle and highest, of each pool
    ],
    align=True,
)

_machine, _job, _outcome = record_reader(MACHINE), record_reader(JOB), record_reader(OUTCOME)
_event, _task = record_reader(EVENT), record_reader(TASK)
_due, _berth = record_reader(DUE), record_reader(BERTH)
_blank = blanker(BLANK_FROM, BLANK_TO, JOB.itemsize)
_fetch_machine, _fetch_job = fetcher(MACHINE.itemsize // 64), fetcher(JOB.itemsize // 64)
_fetch_tasks, _fetch_line = fetcher(8), fetcher(1)
_fetch_row = fetcher(3)
TASK_BYTES = TASK.itemsize


@compiled
def machine_at(sim, m):
    """Machine m."""
    return _machine(sim.machines, m)


@compiled
def job_at(sim, slot):
    """The request in a slot."""
    return _job(sim.jobs, slot)


@compiled
def row_of(sim, job):
    """The `OUTCOME` of a request in flight: its row of the outcomes, or of `rows` where these are drained."""
    return _outcome(sim.rows, job.row)


@compiled
def blank_job(sim, slot):
    """Forget an attempt; the outcomes of its request stay."""
    _blank(sim.jobs, slot)


@compiled
def event_at(sim, place):
    """A place of the heap of events."""
    return _event(sim.heap, place)


@compiled
def due_at(sim, place):
    """A node of the tree of transfers; the first one is at 1."""
    return _due(sim.dues, place)


@compiled
def berth_at(sim, berth):
    """A berth, see `berths`."""
    return _berth(sim.berths, berth)


@compiled
def task_at(batch, place):
    """A place of a batch, see `batch_of`."""
    return _task(batch, place)


@compiled
def batch_of(sim, m):
    """Where the tasks of machine m begin, a heap by (last, joined).

    There is one more after the machines', for sorting.
    """
    return sim.batches + m * sim.task_stride


@compiled
def fetch_alone(sim, m):
    """Have a machine at hand soon, without its batch."""
    _fetch_machine(sim.machines + m * MACHINE_BYTES)


@compiled
def fetch_machine(sim, m):
    """Have a machine and its batch, as far as batches usually go, at hand soon."""
    fetch_alone(sim, m)
    _fetch_tasks(batch_of(sim, m))


@compiled
def fetch_job(sim, slot):
    """Have a request at hand soon."""
    _fetch_job(sim.jobs + slot * JOB_BYTES)


@compiled
def fetch_row(sim, row):
    """Have an outcome at hand soon, to be written to."""
    _fetch_row(sim.rows + row * OUTCOME_BYTES)


@compiled
def lead(sim, machine, slot):
    """The iteration that a machine begins ends for this request first: a hint to fetch ahead."""
    if sim.large:
        put_short(sim.leads, machine.index, slot)


@compiled
def fetch_iteration(sim, m):
    """Have at hand soon what the end of machine m's iteration needs."""
    fetch_machine(sim, m)
    fetch_job(sim, short_at(sim.leads, m))


@compiled
def fetch_place(sim, machine):
    """Have at hand soon where a task that joins a batch goes first."""
    _fetch_line(batch_of(sim, machine.index) + TASK_BYTES * machine.batch)
    _fetch_line(batch_of(sim, machine.index) + TASK_BYTES * (machine.batch >> 1))
