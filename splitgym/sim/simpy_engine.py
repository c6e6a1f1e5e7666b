"""The specification engine: a Splitwise cluster as SimPy processes, one event per iteration.

Whoever wants to know what the cluster does reads this file, with `rules.py` (requests, iterations, failures),
`cache_rules.py` (memory, transfers), `machine.py` (batching on one machine) and `network.py` (shared NICs).

Time is an integer number of nanoseconds. Events of one time happen in the order of `EventKind`, then of the
machine or request that they concern: no order of scheduling matters. When an iteration ends, its machine
begins the next one within the same event; an idle machine that gets work begins in a `START` event, before
anything else of that time.
"""

from collections.abc import Generator, Sequence
from typing import Any

import simpy

from splitgym.cluster import Cluster
from splitgym.config import VllmBatchingConfig
from splitgym.errors import ActionError
from splitgym.schedulers.protocol import RoutingScheduler, SizingScheduler
from splitgym.sim.ageing import AgeingRules
from splitgym.sim.job import Job, Phase
from splitgym.sim.machine import Machine
from splitgym.sim.network import Transfer
from splitgym.sim.outcomes import Outcomes
from splitgym.sim.rules import Rules
from splitgym.sim.visibility import check_route
from splitgym.sim.vllm import VllmRules
from splitgym.trace import Trace
from splitgym.types import UNKNOWN, Decision, DecisionKind, EventKind, Pool, RequestInfo, to_ns

Process = Generator[simpy.Event, Any, None]
RATE_CHANGED = "rate changed"
ABORTED = "aborted"


def _schedule(env: simpy.Environment, event: simpy.Event, delay_ns: int, kind: EventKind, index: int) -> None:
    """Let an event happen after `delay_ns`; at one time, events come in the order of `kind`, then `index`."""
    event._ok = True
    event._value = None
    # SimPy's own events (a process begins, is interrupted) have priorities 0 and 1: they come first.
    priority = (kind + 1) << 40 | index
    env.schedule(event, priority=priority, delay=delay_ns)  # type: ignore[arg-type]  # any integer sorts


class Timer(simpy.Event):
    """An event after `delay_ns`."""

    def __init__(self, env: simpy.Environment, delay_ns: int, kind: EventKind, index: int = 0):
        super().__init__(env)
        _schedule(env, self, delay_ns, kind, index)


class SimpyEngine(Rules):
    """See `splitgym.sim.engine.Engine`.

    Args:
        cluster: the machines and rules.
        routing: routes every request, or None to ask through `run_until_decision`.
        sizing: resizes pools at every control tick, or None to ask.
        record: keep every event as (time_ns, kind, request or -1, machine or -1) in `events`.
        roles: (time_ns, machine, pool) of machines that get another home pool, whatever `sizing` says.
    """

    def __init__(
        self,
        cluster: Cluster,
        routing: RoutingScheduler | None = None,
        sizing: SizingScheduler | None = None,
        record: bool = False,
        roles: Sequence[tuple[int, int, Pool]] = (),
    ):
        self.cluster = cluster
        self.roles = tuple(roles)
        self.routing = routing
        self.sizing = sizing
        self.events: list[tuple[int, EventKind, int, int]] | None = [] if record else None
        self.view = cluster.view()
        self.env = simpy.Environment()
        self._decision: Decision | None = None

    # ---- the interface ------------------------------------------------------------------------------------

    def reset(self, trace: Trace, seed: int = 0) -> None:
        self.cluster.check(trace)
        self.env = simpy.Environment(initial_time=0)
        self._set_up(trace)
        self._max_tokens = trace.max_tokens
        self._idle: list[simpy.Event | None] = [None] * len(self.machines)
        self._waiting: dict[Transfer, simpy.Event] = {}
        self._shipping: dict[Transfer, simpy.Process] = {}
        self._held: list[Job] = []  # no machine was up to route them to
        self._restarting: dict[Job, None] = {}  # their REROUTE event is due
        self._asked: Job | None = None
        self._decision = None
        self._decisions = 0
        if self.events is not None:
            self.events = []
        for scheduler in (self.routing, self.sizing):
            if scheduler is not None:
                scheduler.reset(self.view, seed)
        self._machine_process = [self.env.process(self._machine(m)) for m in self.machines]
        self._from_outside()

    def run_until_decision(self) -> Decision | None:
        step = self.env.step
        while self._decision is None and self.accounts.unfinished:
            step()
        if self._decision is None:
            self.visibility.refresh(self.now_ns)
        return self._decision

    def apply(self, action: tuple[int, int] | int) -> None:
        decision = self._decision
        if decision is None:
            raise ActionError("no decision is pending: call run_until_decision first")
        if decision.kind is DecisionKind.RESIZE:
            if not isinstance(action, int):
                raise ActionError(f"a resize decision takes a number of machines, not {action!r}")
            self._decision = None
            self._resize(action)
        else:
            if not isinstance(action, tuple):
                raise ActionError(f"a routing decision takes (prompt machine, token machine), not {action!r}")
            check_route(self.view, action, "the action")
            self._decision = None
            job, self._asked = self._asked, None
            assert job is not None
            self._route(job, *action)

    def outcomes(self) -> Outcomes:
        return self.accounts.close(self.now_ns)

    # ---- processes ----------------------------------------------------------------------------------------

    def _from_outside(self) -> None:
        """Start what does not come from the machines: faults, control ticks, arrivals."""
        config = self.cluster.config
        for fault in config.faults:
            machine = self.machines[fault.machine]
            self.env.process(self._fault(machine, to_ns(fault.at_s), to_ns(fault.duration_s)))
        for at_ns, index, pool in self.roles:
            self.env.process(self._role(at_ns, index, pool))
        self.env.process(self._control(to_ns(config.control_interval_s)))
        self.env.process(self._arrivals())

    def _arrivals(self) -> Process:
        outcomes = self.accounts.outcomes
        for request_id in range(len(outcomes.arrival_ns)):
            arrival_ns = int(outcomes.arrival_ns[request_id])
            prompt_tokens = int(outcomes.prompt_tokens[request_id])
            output_tokens = int(outcomes.output_tokens[request_id])
            yield Timer(self.env, arrival_ns - self.now_ns, EventKind.ARRIVAL, request_id)
            self._note(EventKind.ARRIVAL, request_id)
            self.accounts.arrived(prompt_tokens)
            self._ask_route(Job(request_id, prompt_tokens, output_tokens, attempt=0))

    def _machine(self, machine: Machine) -> Process:
        env = self.env
        while True:
            iteration = self._choose(machine)
            if iteration is None:
                if self._break_deadlock(machine):
                    continue
                self._idle[machine.index] = idle = simpy.Event(env)
                yield idle
                continue
            duration_ns = self._begin(machine, iteration)
            try:
                yield Timer(env, duration_ns, EventKind.ITERATION_END, machine.index)
            except simpy.Interrupt:  # the machine failed
                continue
            self._note(EventKind.ITERATION_END, machine=machine.index)
            self._end(machine, iteration)

    def _transfer(self, transfer: Transfer) -> Process:
        """Ship a cache; layer-wise, the last layers leave a constant after the prompt has ended."""
        env, job = self.env, transfer.job
        try:
            while True:
                try:
                    yield Timer(env, transfer.rest_ns, EventKind.TRANSFER_END, job.request_id)
                    break
                except simpy.Interrupt as interrupt:
                    if interrupt.cause is not RATE_CHANGED:
                        raise
            self._leave_network(transfer)
            if job.phase is Phase.PROMPT:
                self._waiting[transfer] = simpy.Event(env)
                yield self._waiting[transfer]
            if self._overlaps(job):
                constant = int(self.view.transfer_constant_ns[job.prompt_machine])
                ended = int(self.accounts.outcomes.prompt_end_ns[job.request_id])
                rest_ns = max(0, ended + constant - self.now_ns)
                yield Timer(env, rest_ns, EventKind.TRANSFER_END, job.request_id)
        except simpy.Interrupt:  # aborted
            return
        del self._shipping[transfer]
        job.transfer = None
        self._note(EventKind.TRANSFER_END, job.request_id, job.token_machine)
        self._shipped(job)

    def _control(self, interval_ns: int) -> Process:
        while True:
            yield Timer(self.env, interval_ns, EventKind.CONTROL)
            self._note(EventKind.CONTROL)
            self.visibility.refresh(self.now_ns)
            self.accounts.sample(self.now_ns, self.view)
            if self.sizing is not None:
                self._decisions += 1
                self._resize(self.sizing.resize(self.view))
            else:
                self._decision = self._new_decision(DecisionKind.RESIZE, None)

    def _role(self, at_ns: int, index: int, pool: Pool) -> Process:
        yield Timer(self.env, at_ns, EventKind.CONTROL, index)
        self._move(index, pool)

    def _fault(self, machine: Machine, at_ns: int, duration_ns: int) -> Process:
        yield Timer(self.env, at_ns, EventKind.FAILURE, machine.index)
        self._note(EventKind.FAILURE, machine=machine.index)
        self._fail(machine)
        yield Timer(self.env, duration_ns, EventKind.RECOVERY, machine.index)
        self._note(EventKind.RECOVERY, machine=machine.index)
        machine.down -= 1
        if machine.down == 0:
            self.accounts.recovered(machine.index, self.now_ns)
            machine.switching = False  # nothing is left to drain
            self._back(machine)

    def _switch(self, machine: Machine) -> Process:
        """A drained machine waits out the switching delay, then works for its new pool."""
        number = machine.switch_number
        delay_ns = to_ns(self.cluster.config.switch_delay_s)
        yield Timer(self.env, delay_ns, EventKind.SWITCH_END, machine.index)
        if machine.switching and machine.switch_number == number:  # no failure came between
            self._note(EventKind.SWITCH_END, machine=machine.index)
            machine.switching = False
            self._back(machine)

    def _reroute(self, job: Job) -> Process:
        yield Timer(self.env, 0, EventKind.REROUTE, job.request_id)
        self._note(EventKind.REROUTE, job.request_id)
        del self._restarting[job]
        self._ask_route(job)

    # ---- routing and resizing -----------------------------------------------------------------------------

    def _ask_route(self, job: Job) -> None:
        self.visibility.refresh(self.now_ns)
        if not self.visibility.can_route:
            self._held.append(job)  # until a machine is back
            return
        if self.routing is None:
            self._asked = job
            self._decision = self._new_decision(DecisionKind.ROUTE, self._info(job))
            job.decision_id = self._decision.decision_id
            return
        job.decision_id = self._decisions
        self._decisions += 1
        action = self.routing.route(self.view, self._info(job))
        check_route(self.view, action, f"scheduler {self.routing.name!r}")
        self._route(job, *action)

    def _new_decision(self, kind: DecisionKind, info: RequestInfo | None) -> Decision:
        decision = Decision(kind, self._decisions, self.now_ns, info)
        self._decisions += 1
        return decision

    def _info(self, job: Job) -> RequestInfo:
        return RequestInfo(
            request_id=job.request_id,
            arrival_ns=int(self.accounts.outcomes.arrival_ns[job.request_id]),
            prompt_tokens=job.prompt_tokens,
            max_tokens=UNKNOWN if self._max_tokens is None else int(self._max_tokens[job.request_id]),
            oracle_output_tokens=job.output_tokens if self.cluster.config.oracle else UNKNOWN,
            attempt=job.attempt,
        )

    def _back(self, machine: Machine) -> None:
        """The machine takes new work again: ask anew for the requests that found none."""
        self.visibility.changed(machine.index)
        held, self._held = self._held, []
        for job in held:
            self._route_again(job)

    # ---- what the rules ask for ---------------------------------------------------------------------------

    @property
    def now_ns(self) -> int:
        return self.env.now  # type: ignore[return-value]  # all delays are integers

    def _wake(self, machine: Machine) -> None:
        idle = self._idle[machine.index]
        if idle is not None:
            self._idle[machine.index] = None
            self._fire(idle, machine.index)

    def _asleep(self, machine: Machine) -> bool:
        return self._idle[machine.index] is not None

    def _cut_short(self, machine: Machine) -> None:
        self._machine_process[machine.index].interrupt()

    def _route_again(self, job: Job) -> None:
        self._restarting[job] = None
        self.env.process(self._reroute(job))

    def _wait_out_switch(self, machine: Machine) -> None:
        self.env.process(self._switch(machine))

    def _launch(self, transfer: Transfer) -> None:
        self._shipping[transfer] = self.env.process(self._transfer(transfer))

    def _rates_changed(self, transfers: list[Transfer]) -> None:
        for transfer in transfers:
            self._shipping[transfer].interrupt(RATE_CHANGED)

    def _prompt_over(self, transfer: Transfer) -> None:
        event = self._waiting.pop(transfer, None)
        if event is not None:
            self._fire(event, transfer.source)

    def _abort(self, transfer: Transfer) -> None:
        self._waiting.pop(transfer, None)
        self._shipping.pop(transfer).interrupt(ABORTED)

    # ---- small things -------------------------------------------------------------------------------------

    def _fire(self, event: simpy.Event, machine: int) -> None:
        _schedule(self.env, event, 0, EventKind.START, machine)

    def _note(self, kind: EventKind, request: int = -1, machine: int = -1) -> None:
        if self.events is not None:
            self.events.append((self.now_ns, kind, request, machine))


class AgeingSimpyEngine(AgeingRules, SimpyEngine):
    """The same cluster with machines where every task that waits ages."""


class VllmSimpyEngine(VllmRules, SimpyEngine):
    """The same cluster with machines that batch as vLLM does."""


def simpy_engine(
    cluster: Cluster,
    routing: RoutingScheduler | None = None,
    sizing: SizingScheduler | None = None,
    record: bool = False,
    roles: Sequence[tuple[int, int, Pool]] = (),
) -> SimpyEngine:
    """The engine for the cluster's batching rule; arguments as `SimpyEngine`."""
    batching = cluster.config.batching
    kind: type[SimpyEngine] = SimpyEngine
    if isinstance(batching, VllmBatchingConfig):
        kind = VllmSimpyEngine
    elif batching.ageing == "all":
        kind = AgeingSimpyEngine
    return kind(cluster, routing, sizing, record, roles)
