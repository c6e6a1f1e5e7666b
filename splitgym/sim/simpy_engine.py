"""The specification engine: a Splitwise cluster as SimPy processes, one event per iteration.

Whoever wants to know what the cluster does reads this file, with `machine.py` (batching and memory of one
machine) and `network.py` (shared NICs). Time is an integer number of nanoseconds. Events of one time happen in
the order of `EventKind`, then in the order in which they were scheduled. When an iteration ends, its machine
begins the next one within the same event; an idle machine that gets work begins in a `START` event, before
anything else of that time.
"""

from collections.abc import Generator
from typing import Any

import simpy

from splitgym.cluster import Cluster
from splitgym.errors import ActionError
from splitgym.schedulers.protocol import RoutingScheduler, SizingScheduler
from splitgym.sim.accounts import Accounts
from splitgym.sim.job import Job, Phase
from splitgym.sim.machine import Iteration, Machine
from splitgym.sim.network import Network, Transfer
from splitgym.sim.outcomes import Outcomes
from splitgym.sim.pools import machines_to_move
from splitgym.sim.visibility import Visibility
from splitgym.trace import Trace
from splitgym.types import UNKNOWN, Decision, DecisionKind, EventKind, Pool, RequestInfo, to_ns
from splitgym.view import ClusterView

Process = Generator[simpy.Event, Any, None]
RATE_CHANGED = "rate changed"
ABORTED = "aborted"


class Timer(simpy.Event):
    """An event that happens after `delay_ns`; at one time, events happen in the order of `kind`."""

    def __init__(self, env: simpy.Environment, delay_ns: int, kind: EventKind):
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, priority=int(kind), delay=delay_ns)


class SimpyEngine:
    """See `splitgym.sim.engine.Engine`.

    Args:
        cluster: the machines and rules.
        routing: routes every request, or None to ask through `run_until_decision`.
        sizing: resizes pools at every control tick, or None to ask.
        record: keep every event as (time_ns, kind, request or -1, machine or -1) in `events`.
    """

    def __init__(
        self,
        cluster: Cluster,
        routing: RoutingScheduler | None = None,
        sizing: SizingScheduler | None = None,
        record: bool = False,
    ):
        self.cluster = cluster
        self.routing = routing
        self.sizing = sizing
        self.events: list[tuple[int, EventKind, int, int]] | None = [] if record else None
        self.view: ClusterView = cluster.view()
        self.env = simpy.Environment()
        self._decision: Decision | None = None

    # ---- the interface ------------------------------------------------------------------------------------

    def reset(self, trace: Trace, seed: int = 0) -> None:
        self.cluster.check(trace)
        config = self.cluster.config
        self.env = simpy.Environment(initial_time=0)
        self.view = self.cluster.view()
        self.machines = [
            Machine(m, int(capacity), config.batching)
            for m, capacity in enumerate(self.cluster.kv_capacity_tokens)
        ]
        self.home = [Pool(p) for p in self.cluster.home_pools]
        self.network = Network(self.cluster.link_bytes_per_s.tolist(), config.transfer.shared)
        self.accounts = Accounts(self.cluster, trace, self.view)
        self.visibility = Visibility(self.view, self.machines, self.home, self.network, config.confine)
        self._max_tokens = None if trace.max_tokens is None else trace.max_tokens.tolist()
        self._reserve_all = config.kv_reserve == "at_transfer"
        self._idle: list[simpy.Event | None] = [None] * len(self.machines)
        self._waiting: dict[Transfer, simpy.Event] = {}
        self._shipping: dict[Transfer, simpy.Process] = {}
        self._held: list[Job] = []
        self._asked: Job | None = None
        self._decision = None
        self._decisions = 0
        if self.events is not None:
            self.events = []
        for scheduler in (self.routing, self.sizing):
            if scheduler is not None:
                scheduler.reset(self.view, seed)
        self._machine_process = [self.env.process(self._machine(m)) for m in self.machines]
        for fault in config.faults:
            machine = self.machines[fault.machine]
            self.env.process(self._fault(machine, to_ns(fault.at_s), to_ns(fault.duration_s)))
        self.env.process(self._control(to_ns(config.control_interval_s)))
        self.env.process(self._arrivals())

    def run_until_decision(self) -> Decision | None:
        step = self.env.step
        while self._decision is None and self.accounts.unfinished:
            step()
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
            self.visibility.check_route(action, "the action")
            self._decision = None
            job, self._asked = self._asked, None
            assert job is not None
            self._route(job, *action)

    def outcomes(self) -> Outcomes:
        return self.accounts.close(self.env.now)

    # ---- processes ----------------------------------------------------------------------------------------

    def _arrivals(self) -> Process:
        outcomes = self.accounts.outcomes
        rows = zip(
            outcomes.arrival_ns.tolist(),
            outcomes.prompt_tokens.tolist(),
            outcomes.output_tokens.tolist(),
            strict=True,
        )
        for request_id, (arrival_ns, prompt_tokens, output_tokens) in enumerate(rows):
            yield Timer(self.env, arrival_ns - self.env.now, EventKind.ARRIVAL)
            self._note(EventKind.ARRIVAL, request_id)
            self.accounts.arrived(prompt_tokens)
            self._ask_route(Job(request_id, prompt_tokens, output_tokens, attempt=0))

    def _machine(self, machine: Machine) -> Process:
        env = self.env
        while True:
            iteration = machine.next_iteration(lambda job: self._reserve_prompt(machine, job))
            if iteration is None:
                if self._break_deadlock(machine):
                    continue
                self._idle[machine.index] = simpy.Event(env)
                yield self._idle[machine.index]
                continue
            duration_ns = self._begin(machine, iteration)
            try:
                yield Timer(env, duration_ns, EventKind.ITERATION_END)
            except simpy.Interrupt:  # the machine failed
                continue
            self._end(machine, iteration)

    def _transfer(self, transfer: Transfer) -> Process:
        """Ship a cache; layer-wise, the last layers leave a constant after the prompt has ended."""
        env, job = self.env, transfer.job
        try:
            while True:
                try:
                    yield Timer(env, transfer.rest_ns, EventKind.TRANSFER_END)
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
                yield Timer(env, max(0, ended + constant - env.now), EventKind.TRANSFER_END)
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
            self.visibility.refresh(self.env.now)
            self.accounts.sample(self.env.now, self.view)
            if self.sizing is not None:
                self._decisions += 1
                self._resize(self.sizing.resize(self.view))
            else:
                self._decision = self._new_decision(DecisionKind.RESIZE, None)

    def _fault(self, machine: Machine, at_ns: int, duration_ns: int) -> Process:
        yield Timer(self.env, at_ns, EventKind.FAILURE)
        self._note(EventKind.FAILURE, machine=machine.index)
        self._fail(machine)
        yield Timer(self.env, duration_ns, EventKind.RECOVERY)
        self._note(EventKind.RECOVERY, machine=machine.index)
        machine.down -= 1
        if machine.down == 0:
            self.accounts.recovered(machine.index, self.env.now)
            machine.switching = False  # nothing is left to drain
            self._back(machine)

    def _switch(self, machine: Machine) -> Process:
        """A drained machine waits out the switching delay, then works for its new pool."""
        number = machine.switch_number
        yield Timer(self.env, to_ns(self.cluster.config.switch_delay_s), EventKind.SWITCH_END)
        if machine.switching and machine.switch_number == number:  # no failure came between
            self._note(EventKind.SWITCH_END, machine=machine.index)
            machine.switching = False
            self._back(machine)

    def _reroute(self, job: Job) -> Process:
        yield Timer(self.env, 0, EventKind.REROUTE)
        self._note(EventKind.REROUTE, job.request_id)
        self._ask_route(job)

    # ---- routing and resizing -----------------------------------------------------------------------------

    def _ask_route(self, job: Job) -> None:
        self.visibility.refresh(self.env.now)
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
        self.visibility.check_route(action, f"scheduler {self.routing.name!r}")
        self._route(job, *action)

    def _new_decision(self, kind: DecisionKind, info: RequestInfo | None) -> Decision:
        decision = Decision(kind, self._decisions, self.env.now, info)
        self._decisions += 1
        return decision

    def _info(self, job: Job) -> RequestInfo:
        return RequestInfo(
            request_id=job.request_id,
            arrival_ns=int(self.accounts.outcomes.arrival_ns[job.request_id]),
            prompt_tokens=job.prompt_tokens,
            max_tokens=UNKNOWN if self._max_tokens is None else self._max_tokens[job.request_id],
            oracle_output_tokens=job.output_tokens if self.cluster.config.oracle else UNKNOWN,
            attempt=job.attempt,
        )

    def _route(self, job: Job, prompt_machine: int, token_machine: int) -> None:
        job.prompt_machine, job.token_machine = prompt_machine, token_machine
        self.accounts.routed(job)
        machine = self.machines[prompt_machine]
        machine.enqueue_prompt(job, self.visibility.prompt_alone_ns(machine, job.prompt_tokens))
        self.machines[token_machine].expect(job)
        self.visibility.changed(prompt_machine, token_machine)
        self._wake(machine)

    def _resize(self, moves: int) -> None:
        """Move `moves` machines from the token to the prompt pool (the other way when negative)."""
        config = self.cluster.config
        target = Pool.PROMPT if moves > 0 else Pool.TOKEN
        for index in machines_to_move(self.machines, self.home, moves, config.min_pool_machines):
            machine = self.machines[index]
            self.home[index] = target
            self.visibility.changed(index)
            if config.switch_delay_s > 0:
                machine.switching = True
                machine.switch_timer = False
                machine.switch_number += 1
                self._check_drained(machine)

    def _check_drained(self, machine: Machine) -> None:
        if machine.switching and not machine.switch_timer and machine.drained:
            machine.switch_timer = True
            self.env.process(self._switch(machine))

    def _back(self, machine: Machine) -> None:
        """The machine takes new work again: ask anew for the requests that found none."""
        self.visibility.changed(machine.index)
        held, self._held = self._held, []
        for job in held:
            self.env.process(self._reroute(job))

    # ---- iterations ---------------------------------------------------------------------------------------

    def _begin(self, machine: Machine, iteration: Iteration) -> int:
        """Start an iteration; returns its length [ns]."""
        now = self.env.now
        for job in iteration.prompts:
            machine.leave_prompt_queue(job)
            machine.used += job.prompt_tokens + 1
            job.phase = Phase.PROMPT
            job.granted = False
            self.accounts.prompt_started(job, now)
            if self._overlaps(job):
                self._ask_transfer(job)
        for job in iteration.decodes:
            if job.generated == 1:
                self.accounts.decode_started(job, now)
        duration_ns = self.visibility.iteration_ns(machine, iteration)
        iteration.start_ns, iteration.end_ns = now, now + duration_ns
        machine.iteration = iteration
        self.visibility.changed(machine.index)
        return duration_ns

    def _end(self, machine: Machine, iteration: Iteration) -> None:
        """Every token task has one more token, every prompt its first."""
        now = self.env.now
        self._note(EventKind.ITERATION_END, machine=machine.index)
        machine.iteration = None
        self.accounts.iterated(machine.index, iteration, now)
        self.visibility.iterated(machine.index, iteration, now)
        self._end_decodes(machine, iteration)
        for job in iteration.prompts:
            if job.phase is not Phase.CANCELLED:
                self._end_prompt(machine, job)
        self._grant(machine)
        self._check_drained(machine)
        self.visibility.changed(machine.index)

    def _end_decodes(self, machine: Machine, iteration: Iteration) -> None:
        done = []
        alive = 0
        for job in iteration.decodes:
            if job.phase is Phase.CANCELLED:
                continue
            alive += 1
            job.generated += 1
            if job.generated == job.output_tokens:
                done.append(job)
        machine.used += alive
        machine.batch_context += alive
        machine.context += alive
        for job in done:
            machine.forget_context(job)
            machine.release(job.held_token, job.prompt_tokens + job.generated)
            self._finish(job)
        if done:
            machine.batch = [job for job in machine.batch if job.phase is Phase.RUNNING]

    def _end_prompt(self, machine: Machine, job: Job) -> None:
        now = self.env.now
        job.generated = 1
        self.accounts.prompt_ended(job, now)
        target = self.machines[job.token_machine]
        if job.output_tokens == 1:
            self._abort_transfer(job)
            target.unexpect(job)
            self.visibility.changed(job.token_machine)
            machine.release(job.held_prompt, job.prompt_tokens + 1)
            self._finish(job)
            if job.split:
                self._grant(target)
        elif not job.split:
            job.held_token, job.held_prompt = job.held_prompt, 0
            machine.cache_is_here(job)
            machine.output_waiters.append(job)
        else:
            job.phase = Phase.SHIPPING
            machine.outbound[job] = None
            if not self._overlaps(job):
                self._ask_transfer(job)
            elif job.transfer in self._waiting:
                self._fire(self._waiting.pop(job.transfer))

    def _finish(self, job: Job) -> None:
        job.phase = Phase.DONE
        self.accounts.finished(job, self.env.now)

    def _wake(self, machine: Machine) -> None:
        """Let an idle machine look for work, before any other event of this time."""
        idle = self._idle[machine.index]
        if idle is not None:
            self._idle[machine.index] = None
            self._fire(idle)

    def _fire(self, event: simpy.Event) -> None:
        event._ok = True
        event._value = None
        self.env.schedule(event, priority=int(EventKind.START))

    def _note(self, kind: EventKind, request: int = -1, machine: int = -1) -> None:
        if self.events is not None:
            self.events.append((self.env.now, kind, request, machine))

    # ---- memory -------------------------------------------------------------------------------------------

    def _prompt_need(self, job: Job) -> int:
        """KV tokens that the prompt machine reserves when the prompt starts."""
        if job.split or not self._reserve_all:
            return job.prompt_tokens + 1
        return job.prompt_tokens + job.output_tokens

    def _transfer_need(self, job: Job) -> int:
        """KV tokens that the token machine reserves when the transfer starts."""
        return job.prompt_tokens + (job.output_tokens if self._reserve_all else 1)

    def _output_need(self, job: Job) -> int:
        """KV tokens that the token machine reserves at the first decode."""
        return 0 if self._reserve_all else job.output_tokens - 1

    def _has_room(self, machine: Machine, tokens: int) -> bool:
        """May a newcomer take memory? Not before those who wait, nor before outputs of caches already here."""
        waiters = machine.output_waiters
        starved = bool(waiters) and not machine.fits(self._output_need(waiters[0]))
        return not machine.memory_waiters and not starved and machine.fits(tokens)

    def _reserve_prompt(self, machine: Machine, job: Job) -> bool:
        if job.waiting:
            return False
        need = self._prompt_need(job)
        if not self._has_room(machine, need):
            job.waiting = True
            machine.memory_waiters.append(job)
            return False
        machine.reserve(need)
        job.held_prompt = need
        return True

    def _grant(self, machine: Machine) -> None:
        """Give memory to those who wait: outputs of caches already here first, then FCFS."""
        while machine.output_waiters and len(machine.batch) < machine.batching.max_tasks:
            job = machine.output_waiters[0]
            need = self._output_need(job)
            if not machine.fits(need):
                return
            machine.output_waiters.popleft()
            machine.reserve(need)
            job.held_token += need
            machine.admit(job)
            self._wake(machine)
        while machine.memory_waiters:
            job = machine.memory_waiters[0]
            starts_here = job.phase is Phase.QUEUED
            need = self._prompt_need(job) if starts_here else self._transfer_need(job)
            if not machine.fits(need):
                return
            machine.memory_waiters.popleft()
            job.waiting = False
            if starts_here:
                machine.reserve(need)
                job.held_prompt = need
                job.granted = True
                self._wake(machine)
            else:
                self._start_transfer(job)

    def _break_deadlock(self, machine: Machine) -> bool:
        """Drop a cache where machines wait for each other's memory for ever; False where they do not.

        The youngest request with a cache here restarts from its prompt phase. (Reserving outputs only at the
        first decode can fill a machine with prompts of which none can go on.)
        """
        if not self._deadlocked(machine):
            return False
        victim = max([*machine.output_waiters][1:] + [*machine.outbound], key=lambda job: job.request_id)
        self.accounts.preempted(victim)
        self._restart([victim])
        return True

    def _deadlocked(self, machine: Machine) -> bool:
        """Nothing frees memory here, nor at any machine that holds up caches of this one."""
        seen = {machine.index}
        todo = [machine]
        while todo:
            stuck = todo.pop()
            if not stuck.blocked:
                return False
            for job in stuck.outbound:
                if job.token_machine not in seen:
                    seen.add(job.token_machine)
                    todo.append(self.machines[job.token_machine])
        return True

    # ---- KV transfer --------------------------------------------------------------------------------------

    def _overlaps(self, job: Job) -> bool:
        """Shipped layer by layer while the prompt is computed."""
        return job.split and job.prompt_tokens >= self.view.rules.overlap_min_tokens

    def _ask_transfer(self, job: Job) -> None:
        target = self.machines[job.token_machine]
        if self._has_room(target, self._transfer_need(job)):
            self._start_transfer(job)
        else:
            job.waiting = True
            target.memory_waiters.append(job)
            self._wake(target)

    def _start_transfer(self, job: Job) -> None:
        target = self.machines[job.token_machine]
        need = self._transfer_need(job)
        target.reserve(need)
        job.held_token = need
        target.used += job.prompt_tokens + 1
        now = self.env.now
        transfer = Transfer(job, job.prompt_tokens * self.cluster.kv_bytes_per_token, now)
        job.transfer = transfer
        self.accounts.transfer_started(job, now)
        self._rates_changed(self.network.join(transfer))
        self._shipping[transfer] = self.env.process(self._transfer(transfer))
        self.visibility.changed(job.prompt_machine, job.token_machine)

    def _leave_network(self, transfer: Transfer) -> None:
        transfer.settle(self.env.now)
        self._rates_changed(self.network.leave(transfer))
        self.visibility.changed(transfer.source, transfer.target)

    def _rates_changed(self, transfers: list[Transfer]) -> None:
        for transfer in transfers:
            self._shipping[transfer].interrupt(RATE_CHANGED)

    def _shipped(self, job: Job) -> None:
        """The cache is at the token machine."""
        source, target = self.machines[job.prompt_machine], self.machines[job.token_machine]
        self.accounts.transfer_ended(job, self.env.now)
        del source.outbound[job]
        source.release(job.held_prompt, job.prompt_tokens + 1)
        job.held_prompt = 0
        target.cache_is_here(job)
        target.output_waiters.append(job)
        for machine in (source, target):
            self._grant(machine)
            self._check_drained(machine)
            self._wake(machine)
        self.visibility.changed(source.index, target.index)

    def _abort_transfer(self, job: Job) -> None:
        """The cache is not wanted any more; what the token machine set aside for it is free."""
        target = self.machines[job.token_machine]
        if job.waiting:
            target.memory_waiters.remove(job)
            job.waiting = False
        transfer, job.transfer = job.transfer, None
        if transfer is not None:
            if transfer in self.network.in_flight[transfer.source]:
                self._leave_network(transfer)
            self._waiting.pop(transfer, None)
            self._shipping.pop(transfer).interrupt(ABORTED)
            target.release(job.held_token, job.prompt_tokens + 1)
            job.held_token = 0

    # ---- failures -----------------------------------------------------------------------------------------

    def _fail(self, machine: Machine) -> None:
        machine.down += 1
        if machine.down > 1:
            return
        self.accounts.failed(machine.index, machine.iteration, self.env.now)
        if machine.iteration is not None:
            self._machine_process[machine.index].interrupt()
        prompts = machine.iteration.prompts if machine.iteration else []
        here = [*machine.prompt_queue, *prompts, *machine.outbound]
        here += [*machine.inbound, *machine.output_waiters, *machine.batch]
        machine.iteration = None
        machine.switch_number += 1
        lost = {job for job in here if job.phase is not Phase.CANCELLED}
        self._restart(sorted(lost, key=lambda job: job.request_id))
        machine.ticks_carry = 0
        self.visibility.changed(machine.index)

    def _restart(self, jobs: list[Job]) -> None:
        """Drop what these requests have; each is routed again, in this order, and begins with its prompt."""
        touched: dict[int, None] = {}
        for job in jobs:
            self._cancel(job)
            touched[job.prompt_machine] = touched[job.token_machine] = None
            again = Job(job.request_id, job.prompt_tokens, job.output_tokens, job.attempt + 1)
            self.env.process(self._reroute(again))
        for index in touched:
            self._grant(self.machines[index])
            self._check_drained(self.machines[index])
            self._wake(self.machines[index])
        self.visibility.changed(*touched)

    def _cancel(self, job: Job) -> None:
        source, target = self.machines[job.prompt_machine], self.machines[job.token_machine]
        self.accounts.cancelled(job)
        if job.phase is Phase.QUEUED:
            source.prompt_queue.remove(job)
            source.leave_prompt_queue(job)
            if job.waiting:
                source.memory_waiters.remove(job)
            source.release(job.held_prompt, 0)
            target.unexpect(job)
        elif job.phase in (Phase.PROMPT, Phase.SHIPPING):
            self._abort_transfer(job)
            source.outbound.pop(job, None)
            source.release(job.held_prompt, job.prompt_tokens + 1)
            target.unexpect(job)
        else:
            (target.batch if job.phase is Phase.RUNNING else target.output_waiters).remove(job)
            target.forget_context(job)
            target.release(job.held_token, job.prompt_tokens + job.generated)
        job.phase = Phase.CANCELLED
