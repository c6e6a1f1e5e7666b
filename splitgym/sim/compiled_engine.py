"""The same cluster as the specification engine, fast: Numba over a few arrays and one heap.

A machine jumps over contiguous token iterations: until the next arrival, completion or pause nothing can
change, so k iterations are one event, and a task's last iteration is known when it joins. Built-in schedulers
run inside; any other is called from Python, once a decision. Events, outcomes and views equal the
specification's exactly (tests/test_engines_agree.py).
"""

import logging
import threading
from typing import Any

import numpy as np

from splitgym.cluster import Cluster
from splitgym.errors import ActionError, ConfigError
from splitgym.schedulers.builtin import SIZING_STATE_SIZE, STATE_SIZE
from splitgym.schedulers.protocol import RoutingScheduler, SizingScheduler
from splitgym.sim.compiled import loop
from splitgym.sim.compiled import state as st
from splitgym.sim.outcomes import TIMELINE_FIELDS, Outcomes
from splitgym.sim.visibility import check_route
from splitgym.trace import Trace
from splitgym.types import UNKNOWN, Decision, DecisionKind, EventKind, RequestInfo, to_ns

_LOG = logging.getLogger("splitgym")
NOTICE_AFTER_S = 3.0
FIRST_SLOTS = 1024
LOG_ROWS = 1 << 20


class CompiledEngine:
    """See `splitgym.sim.engine.Engine`; arguments as `SimpyEngine`."""

    def __init__(
        self,
        cluster: Cluster,
        routing: RoutingScheduler | None = None,
        sizing: SizingScheduler | None = None,
        record: bool = False,
    ):
        if int(cluster.tables.token_base.min()) < 1 << 16:
            raise ConfigError("the compiled engine needs token iterations of at least 1 ns: use engine simpy")
        if getattr(cluster.config.batching, "ageing", "decodes") != "decodes":
            raise ConfigError(
                "the compiled engine has no batching with ageing of all tasks: use engine simpy"
            )
        self.cluster = cluster
        self.routing = routing
        self.sizing = sizing
        self._record = record
        self._routing_kind = _place(routing, loop.ROUTING_KINDS)
        self._sizing_kind = _place(sizing, loop.SIZING_KINDS)
        self._routing_arrays = _arrays(routing, self._routing_kind, np.int64, STATE_SIZE)
        self._sizing_arrays = _arrays(sizing, self._sizing_kind, np.float64, SIZING_STATE_SIZE)
        self._watts = cluster.power_watts
        self._idle_watts = np.array(
            [round(cluster.profile_of(m).idle_power_w) for m in range(cluster.num_machines)], np.int64
        )
        self.view = cluster.view()
        self._started = False

    # ---- the interface ------------------------------------------------------------------------------------

    def reset(self, trace: Trace, seed: int = 0) -> None:
        self.cluster.check(trace)
        self._outcomes = Outcomes.empty(trace, self.cluster.num_machines)
        self._sim = self._fresh(trace)
        self._started = True
        for scheduler in (self.routing, self.sizing):
            if scheduler is not None:
                scheduler.reset(self.view, seed)

    def run_until_decision(self) -> Decision | None:
        while True:
            why = _advance(self._sim, self.view, *self._routing_arrays, *self._sizing_arrays)
            if why == st.DONE:
                return None
            if why != st.DECIDE:
                self._grow(why)
                continue
            decision = self._pending()
            scheduler = self.routing if decision.kind is DecisionKind.ROUTE else self.sizing
            if scheduler is None:
                return decision
            if decision.request is not None:
                assert self.routing is not None
                action = self.routing.route(self.view, decision.request)
                check_route(self.view, action, f"scheduler {self.routing.name!r}")
                loop.answer_route(self._sim, *action)
            else:
                assert self.sizing is not None
                loop.answer_resize(self._sim, self.sizing.resize(self.view))

    def apply(self, action: tuple[int, int] | int) -> None:
        pending = self._sim.scalars[st.PENDING] if self._started else 0
        if not pending:
            raise ActionError("no decision is pending: call run_until_decision first")
        if pending == 2:
            if not isinstance(action, int):
                raise ActionError(f"a resize decision takes a number of machines, not {action!r}")
            loop.answer_resize(self._sim, action)
        else:
            if not isinstance(action, tuple):
                raise ActionError(f"a routing decision takes (prompt machine, token machine), not {action!r}")
            check_route(self.view, action, "the action")
            loop.answer_route(self._sim, *action)

    def outcomes(self) -> Outcomes:
        st.as_outcomes(self._sim, self._outcomes, self._idle_watts)
        return self._outcomes

    @property
    def events(self) -> list[tuple[int, EventKind, int, int]] | None:
        """The log of a recorded run, in the order of (time, kind, request, machine)."""
        if not self._record:
            return None
        rows = self._sim.log[: self._sim.scalars[st.EVENTS]]
        return sorted((t, EventKind(kind), request, machine) for t, kind, request, machine in rows.tolist())

    # ---- state --------------------------------------------------------------------------------------------

    def _fresh(self, trace: Trace) -> st.Sim:
        n, m = len(trace), self.cluster.num_machines
        batching = self.cluster.config.batching
        slots = min(FIRST_SLOTS, n + 1)
        machines = np.zeros((st.MACHINE_FIELDS, m), np.int64)
        for field in (
            *(
                st.PROMPTS_HEAD,
                st.PROMPTS_TAIL,
                st.MEMORY_HEAD,
                st.MEMORY_TAIL,
                st.OUTPUTS_HEAD,
                st.OUTPUTS_TAIL,
            ),
            *(st.CURRENT_HEAD, st.CURRENT_TAIL, st.FRESH_HEAD, st.SENDING_HEAD, st.SENDING_TAIL),
            *(st.RECEIVING_HEAD, st.RECEIVING_TAIL, st.SEQUENCES_HEAD, st.SEQUENCES_TAIL),
        ):
            machines[field] = st.NONE
        machines[st.IDLE] = 1
        machines[st.BANDWIDTH] = np.maximum(1, self.cluster.link_bytes_per_s // 64)
        jobs = np.zeros((st.JOB_FIELDS, slots), np.int64)
        _link_free(jobs, 0, st.NONE)
        scalars = np.zeros(st.NUM_SCALARS, np.int64)
        scalars[[st.HELD_HEAD, st.HELD_TAIL, st.RERATED_HEAD]] = st.NONE
        scalars[st.UNFINISHED] = n
        rules = self._rules()
        scalars[st.NEXT_CONTROL] = rules[st.CONTROL_INTERVAL]
        requests = np.full((st.REQUEST_FIELDS, n), st.NONE, np.int64)
        requests[[st.O_ATTEMPTS, st.O_PREEMPTIONS, st.O_PROMPTS, st.O_LOST]] = 0
        for row, name in enumerate(st.OUTCOME_FIELDS):
            setattr(self._outcomes, name, requests[row])
        for row, column in (
            (st.R_ARRIVAL, self._outcomes.arrival_ns),
            (st.R_PROMPT, self._outcomes.prompt_tokens),
            (st.R_OUTPUT, self._outcomes.output_tokens),
            (st.R_MAX, UNKNOWN if trace.max_tokens is None else trace.max_tokens),
        ):
            requests[row] = column
        sim = st.Sim(
            machines=machines,
            jobs=jobs,
            batches=np.zeros((m + 1, batching.max_tasks), np.int64),
            scalars=scalars,
            rules=rules,
            heap=np.zeros((3, 8 * (slots + m) + 1024), np.int64),
            requests=requests,
            watts=self._watts,
            reals=np.zeros(m + 2),
            flags=np.ones((3, m), np.uint8),
            timeline=np.zeros((256, len(TIMELINE_FIELDS)), np.int64),
            log=np.zeros((LOG_ROWS if self._record else 1, 4), np.int64),
            tables=self.cluster.tables,
        )
        self.view = st.view_of(sim, self.cluster.view())
        for fault in self.cluster.config.faults:
            at_ns = to_ns(fault.at_s)
            loop.plan_fault(sim, fault.machine, at_ns, at_ns + to_ns(fault.duration_s))
        return sim

    def _rules(self) -> st.Ints:
        config = self.cluster.config
        rules = np.zeros(st.NUM_RULES, np.int64)
        batching = config.batching
        rules[st.MAX_PROMPT_TOKENS] = batching.max_prompt_tokens
        rules[st.MAX_TASKS] = batching.max_tasks
        rules[st.KV_BYTES] = self.cluster.kv_bytes_per_token
        rules[st.OVERLAP_MIN] = self.cluster.view().rules.overlap_min_tokens
        rules[st.SHARED] = config.transfer.shared
        rules[st.RESERVE_ALL] = config.kv_reserve == "at_transfer"
        if batching.rule == "splitwise":
            rules[st.MAX_PASSED_OVER] = batching.max_passed_over
        else:
            rules[st.RULE], rules[st.BLOCK_SIZE] = st.VLLM, batching.block_size
            rules[st.OVERLAP_MIN] = np.iinfo(np.int64).max  # caches ship when the whole prompt is computed
            rules[st.RESERVE_ALL] = True  # no more than what is there: outputs get blocks as they grow
        rules[st.CONFINE] = config.confine
        rules[st.SWITCH_DELAY] = to_ns(config.switch_delay_s)
        rules[st.CONTROL_INTERVAL] = to_ns(config.control_interval_s)
        rules[st.MIN_POOL] = config.min_pool_machines
        rules[st.ORACLE] = config.oracle
        rules[st.LOGGING] = self._record
        rules[st.ROUTING] = self._routing_kind
        rules[st.SIZING] = self._sizing_kind
        return rules

    def _grow(self, why: int) -> None:
        """Double the array that is full."""
        sim = self._sim
        if why == st.GROW_JOBS:
            old = sim.jobs.shape[1]
            jobs = np.zeros((st.JOB_FIELDS, 2 * old), np.int64)
            jobs[:, :old] = sim.jobs
            _link_free(jobs, old, st.NONE)
            sim.scalars[st.FREE_HEAD] = old
            self._sim = sim._replace(jobs=jobs)
        elif why == st.GROW_HEAP:
            self._sim = sim._replace(heap=np.concatenate([sim.heap, np.zeros_like(sim.heap)], axis=1))
        else:
            self._sim = sim._replace(timeline=np.concatenate([sim.timeline, np.zeros_like(sim.timeline)]))

    def _pending(self) -> Decision:
        scalars = self._sim.scalars
        number, now = int(scalars[st.DECISIONS]) - 1, int(scalars[st.NOW])
        if scalars[st.PENDING] == 2:
            return Decision(DecisionKind.RESIZE, number, now, None)
        job = self._sim.jobs[:, scalars[st.ASKED]].tolist()
        request = job[st.REQUEST]
        info = RequestInfo(
            request_id=request,
            arrival_ns=int(self._outcomes.arrival_ns[request]),
            prompt_tokens=job[st.PROMPT_TOKENS],
            max_tokens=int(self._sim.requests[st.R_MAX, request]),
            oracle_output_tokens=job[st.OUTPUT_TOKENS] if self.cluster.config.oracle else UNKNOWN,
            attempt=job[st.ATTEMPT],
        )
        return Decision(DecisionKind.ROUTE, number, now, info)


def _advance(*arrays: Any) -> int:
    """`loop.advance`; says so where it has to be compiled first, which happens once after an installation."""
    if getattr(loop.advance, "signatures", True):  # none where Numba is switched off
        return int(loop.advance(*arrays))
    notice = threading.Timer(NOTICE_AFTER_S, _LOG.warning, ("compiling the engine: a minute or two, once",))
    notice.daemon = True
    notice.start()
    try:
        return int(loop.advance(*arrays))
    finally:
        notice.cancel()


def _place(scheduler: object, kinds: tuple[type, ...]) -> int:
    """Place of a scheduler's class among those that run inside, or -1. A subclass may do something else."""
    return kinds.index(type(scheduler)) if type(scheduler) in kinds else -1


def _arrays(scheduler: object, place: int, kind: type, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Options and state of a built-in scheduler; idle arrays of the same types for any other."""
    if place < 0:
        return np.zeros(1), np.zeros(size, kind)
    return scheduler.params, scheduler.state  # type: ignore[attr-defined]  # a built-in one


def _link_free(jobs: st.Ints, first: int, end: int) -> None:
    """Chain the slots from `first` on as free ones."""
    slots = jobs.shape[1]
    jobs[st.QUEUE_NEXT, first:] = np.arange(first + 1, slots + 1)
    jobs[st.QUEUE_NEXT, slots - 1] = end
