"""The same cluster as the specification engine, fast: Numba over a few arrays and one heap.

A machine jumps over contiguous token iterations: until the next arrival, completion or pause nothing can
change, so k iterations are one event, and a task's last iteration is known when it joins. Built-in schedulers
run inside; any other is called from Python, once a decision. Events, outcomes and views equal the
specification's exactly (tests/test_engines_agree.py).
"""

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.cluster import Cluster
from splitgym.errors import ActionError, ConfigError, TraceError
from splitgym.schedulers.builtin import SIZING_STATE_SIZE, STATE_SIZE
from splitgym.schedulers.protocol import RoutingScheduler, SizingScheduler
from splitgym.sim.compiled import decide, loop
from splitgym.sim.compiled import state as st
from splitgym.sim.compiled.simulation import Simulation
from splitgym.sim.compiled.template import Template
from splitgym.sim.outcomes import Outcomes
from splitgym.sim.visibility import check_route
from splitgym.trace import Trace
from splitgym.types import Decision, DecisionKind, EventKind

_LOG = logging.getLogger("splitgym")
NOTICE_AFTER_S = 3.0

Rows = NDArray[Any]
"""(K,) `OUTCOME` records."""


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
        self._routing_kind = _place(routing, decide.ROUTING_KINDS)
        self._sizing_kind = _place(sizing, decide.SIZING_KINDS)
        self._routing_arrays = _arrays(routing, self._routing_kind, np.int64, STATE_SIZE)
        self._sizing_arrays = _arrays(sizing, self._sizing_kind, np.float64, SIZING_STATE_SIZE)
        kinds = (self._routing_kind, self._sizing_kind)
        self._template = Template(cluster, cluster.power_watts, kinds, record)
        self._idle_watts = np.array(
            [round(cluster.profile_of(m).idle_power_w) for m in range(cluster.num_machines)], np.int64
        )
        self.view = cluster.view()
        self.observed = False
        """From `reset` on, keep what observations show of each machine, for compiled code that reads it."""
        self._started: Simulation | None = None

    # ---- the interface ------------------------------------------------------------------------------------

    def reset(self, trace: Trace, seed: int = 0) -> None:
        self._start(trace, seed, streaming=False)

    def _start(self, trace: Trace, seed: int, streaming: bool) -> None:
        self.cluster.check(trace)
        self._started = Simulation(
            self._template,
            trace,
            (*self._routing_arrays, *self._sizing_arrays),
            decide.fast_form(self.routing, self.observed),
            streaming,
            self._started,
        )
        self.view = self._simulation.view
        for scheduler in (self.routing, self.sizing):
            if scheduler is not None:
                scheduler.reset(self.view, seed)

    def run_until_decision(self) -> Decision | None:
        while True:
            why = _advance(self._simulation.sim)
            if why == st.DONE:
                return None
            if why != st.DECIDE:
                self._simulation.grow(why)
                continue
            decision = self._pending()
            if not self._answered(decision):
                return decision

    def _answered(self, decision: Decision) -> bool:
        """Let a scheduler in Python decide, if there is one."""
        if decision.request is not None:
            if self.routing is None:
                return False
            action = self.routing.route(self.view, decision.request)
            check_route(self.view, action, f"scheduler {self.routing.name!r}")
            loop.answer_route(self._simulation.sim, *action)
            return True
        if self.sizing is None:
            return False
        loop.answer_resize(self._simulation.sim, self.sizing.resize(self.view))
        return True

    def stream(self, chunks: Iterable[Trace], sink: Callable[[Rows], None], seed: int = 0) -> Outcomes:
        """Simulate requests that come in chunks, in memory that does not grow with their number.

        Args:
            chunks: traces one after the other in time, each at the times of the whole; the cut between them
                changes nothing.
            sink: is given the requests that finished since its last call, in that order: records with the
                fields of `OUTCOME` (splitgym.sim.compiled.records).
            seed: of the schedulers.

        Returns:
            outcomes with the machines' totals, and no requests.

        Raises:
            ConfigError: the engine would ask for decisions, or keeps a log.
            TraceError: there is no request, one fits no machine, or chunks are not in the order of time.
        """
        if self.routing is None or self.sizing is None or self._record:
            raise ConfigError("a streamed simulation needs both schedulers, and keeps no log of events")
        source = iter(chunks)
        first = next(source, None)
        if first is None:
            raise TraceError("there are no requests to simulate: the first chunk is missing")
        self._start(first, seed, streaming=True)
        simulation = self._simulation
        while (why := _advance(simulation.sim)) != st.DONE:
            if why == st.FEED:
                chunk = next(source, None)
                if chunk is not None:
                    self.cluster.check(chunk)
                simulation.feed(chunk)
            elif why == st.DRAIN:
                sink(simulation.drain())
            elif why == st.DECIDE:
                self._answered(self._pending())
            else:
                simulation.grow(why)
        sink(simulation.drain())
        return simulation.read(self._idle_watts)

    def apply(self, action: tuple[int, int] | int) -> None:
        pending = 0 if self._started is None else self._simulation.sim["pending"]
        if not pending:
            raise ActionError("no decision is pending: call run_until_decision first")
        if pending == 2:
            if not isinstance(action, int):
                raise ActionError(f"a resize decision takes a number of machines, not {action!r}")
            loop.answer_resize(self._simulation.sim, action)
        else:
            if not isinstance(action, tuple):
                raise ActionError(f"a routing decision takes (prompt machine, token machine), not {action!r}")
            check_route(self.view, action, "the action")
            loop.answer_route(self._simulation.sim, *action)

    @property
    def runs_inside(self) -> bool:
        """Whatever decides, except for who is asked, is a built-in scheduler: no Python is called."""
        ask = (self.routing is None, self.sizing is None)
        return all(a or kind >= 0 for a, kind in zip(ask, (self._routing_kind, self._sizing_kind)))

    @property
    def address(self) -> int:
        """Where the simulation is, for compiled code that advances it (`splitgym.envs.fleet`)."""
        return self._simulation.address

    @property
    def finished(self) -> Any:
        """(N,) int64 requests in the order in which they complete; filled while the simulation goes on."""
        return self._simulation.order

    @property
    def recorded(self) -> Outcomes:
        """`outcomes` as they are written: no totals of machines, nothing of requests that have not come."""
        return self._simulation.outcomes

    def grow(self, why: int) -> None:
        """Make room for what the simulation lacks: a reason for which `loop.advance` returned."""
        self._simulation.grow(why)

    def outcomes(self) -> Outcomes:
        return self._simulation.read(self._idle_watts)

    @property
    def events(self) -> list[tuple[int, EventKind, int, int]] | None:
        """The log of a recorded run, in the order of (time, kind, request, machine)."""
        if not self._record:
            return None
        rows = self._simulation.log()
        return sorted((t, EventKind(kind), request, machine) for t, kind, request, machine in rows)

    @property
    def _simulation(self) -> Simulation:
        assert self._started is not None, "call reset first"
        return self._started

    def _pending(self) -> Decision:
        sim = self._simulation.sim
        number, now = int(sim["decisions"]) - 1, int(sim["now"])
        if sim["pending"] == 2:
            return Decision(DecisionKind.RESIZE, number, now, None)
        return Decision(DecisionKind.ROUTE, number, now, self._simulation.request())


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
