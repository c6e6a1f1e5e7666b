"""The rules of the cluster, without time: what happens to requests, machines, memory and caches.

An engine derives from `Rules`, moves time, and calls these methods when something has happened; the abstract
methods at the end are what the rules ask of it.
"""

from abc import ABC, abstractmethod

from splitgym.cluster import Cluster
from splitgym.sim.accounts import Accounts
from splitgym.sim.job import Job, Phase
from splitgym.sim.machine import Iteration, Machine
from splitgym.sim.network import Network, Transfer
from splitgym.sim.pools import machines_to_move
from splitgym.sim.visibility import Visibility
from splitgym.trace import Trace
from splitgym.types import Pool
from splitgym.view import ClusterView


class Rules(ABC):
    """State of a cluster and how it changes. `_set_up` makes the state for one run."""

    cluster: Cluster
    view: ClusterView

    def _set_up(self, trace: Trace) -> None:
        config = self.cluster.config
        self.view = self.cluster.view()
        self.machines = [self._make(m, int(c)) for m, c in enumerate(self.cluster.kv_capacity_tokens)]
        self.home = [Pool(p) for p in self.cluster.home_pools]
        self.network = Network(self.cluster.link_bytes_per_s.tolist(), config.transfer.shared)
        self.accounts = self._open_accounts(trace)
        self.visibility = Visibility(
            self.view,
            self.machines,
            self.home,
            self.network,
            config.confine,
            config.oracle,
            self.cluster.machine_row,
        )
        self._reserve_all = config.kv_reserve == "at_transfer"

    def _open_accounts(self, trace: Trace) -> Accounts:
        return Accounts(self.cluster, trace, self.view)

    def _make(self, index: int, capacity: int) -> Machine:
        return Machine(index, capacity, self.cluster.config.batching)

    # ---- routing and resizing -----------------------------------------------------------------------------

    def _route(self, job: Job, prompt_machine: int, token_machine: int) -> None:
        job.prompt_machine, job.token_machine = prompt_machine, token_machine
        self.accounts.routed(job)
        machine = self.machines[prompt_machine]
        machine.enqueue_prompt(job, self.visibility.prompt_alone_ns(machine, job.prompt_tokens))
        self.machines[token_machine].expect(job)
        self._promise(job, 1)
        self.visibility.changed(prompt_machine, token_machine)
        self._wake(machine)

    def _promise(self, job: Job, sign: int) -> None:
        """A request takes its place on two machines (+1), or gives back what it still has (-1)."""
        self.machines[job.token_machine].promised += sign * (job.prompt_tokens + job.output_tokens)
        if job.split and job.phase in (Phase.QUEUED, Phase.PROMPT, Phase.SHIPPING):
            self.machines[job.prompt_machine].promised += sign * (job.prompt_tokens + 1)

    def _resize(self, moves: int) -> None:
        """Move `moves` machines from the token to the prompt pool (the other way when negative)."""
        config = self.cluster.config
        target = Pool.PROMPT if moves > 0 else Pool.TOKEN
        for index in machines_to_move(self.machines, self.home, moves, config.min_pool_machines):
            self._move(index, target)

    def _move(self, index: int, target: Pool) -> None:
        """A machine gets another home pool."""
        machine = self.machines[index]
        self.home[index] = target
        self.visibility.changed(index)
        if self.cluster.config.switch_delay_s > 0:
            machine.switching = True
            machine.switch_timer = False
            machine.switch_number += 1
            self._check_drained(machine)

    def _check_drained(self, machine: Machine) -> None:
        if machine.switching and not machine.switch_timer and machine.drained:
            machine.switch_timer = True
            self._wait_out_switch(machine)

    # ---- iterations ---------------------------------------------------------------------------------------

    def _choose(self, machine: Machine) -> Iteration | None:
        """What the machine runs next."""
        return machine.next_iteration(lambda job: self._reserve_prompt(machine, job))

    def _begin(self, machine: Machine, iteration: Iteration) -> int:
        """Start an iteration; returns its length [ns]."""
        now = self.now_ns
        for job in iteration.prompts:
            machine.leave_prompt_queue(job)
            machine.used += job.prompt_tokens + 1
            job.phase = Phase.PROMPT
            job.granted = False
            self.accounts.prompt_started(job, now)
            if self._overlaps(job):
                self._ask_transfer(job)
        return self._run(machine, iteration)

    def _run(self, machine: Machine, iteration: Iteration) -> int:
        now = self.now_ns
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
        now = self.now_ns
        machine.iteration = None
        prompts = [job for job in iteration.prompts if job.phase is not Phase.CANCELLED]
        self.accounts.spent(machine.index, iteration, now)
        tokens = sum(job.prompt_tokens for job in prompts)
        self.accounts.produced(machine.index, tokens, len(prompts) + len(iteration.decodes))
        if iteration.prompts:
            self.visibility.prompts_ran(machine.index, iteration, now)
        self._end_decodes(machine, iteration.decodes)
        for job in prompts:
            self._end_prompt(machine, job)
        self._grant(machine)
        self._check_drained(machine)
        self.visibility.changed(machine.index)

    def _end_decodes(self, machine: Machine, decodes: list[Job]) -> None:
        # None of them is cancelled: a failure here would have cut the iteration short.
        done = []
        for job in decodes:
            job.generated += 1
            if job.generated == job.output_tokens:
                done.append(job)
        machine.used += len(decodes)
        machine.batch_context += len(decodes)
        machine.context += len(decodes)
        for job in done:
            machine.forget_context(job)
            machine.release(job.held_token, job.prompt_tokens + job.generated)
            self._finish(job)
        if done:
            machine.batch = [job for job in machine.batch if job.phase is Phase.RUNNING]

    def _end_prompt(self, machine: Machine, job: Job) -> None:
        now = self.now_ns
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
                self._check_drained(target)
        elif not job.split:
            job.held_token, job.held_prompt = job.held_prompt, 0
            machine.cache_is_here(job)
            machine.output_waiters.append(job)
        else:
            job.phase = Phase.SHIPPING
            machine.outbound[job] = None
            if not self._overlaps(job):
                self._ask_transfer(job)
            elif job.transfer is not None:
                self._prompt_over(job.transfer)

    def _finish(self, job: Job) -> None:
        self._promise(job, -1)
        job.phase = Phase.DONE
        self.accounts.finished(job, self.now_ns)

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
        """May a newcomer take memory? Not before those who wait, nor before outputs of caches here."""
        return not machine.memory_waiters and not self._starved(machine) and machine.fits(tokens)

    def _starved(self, machine: Machine) -> bool:
        """The first output that waits here does not fit: memory that frees is for it."""
        waiters = machine.output_waiters
        return bool(waiters) and not machine.fits(self._output_need(waiters[0]))

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
        while machine.output_waiters and machine.has_seat and not self._starved(machine):
            self._admit(machine, machine.output_waiters.popleft())
            self._wake(machine)
        while machine.memory_waiters and not self._starved(machine):
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

    def _admit(self, machine: Machine, job: Job) -> None:
        """Reserve what the output needs; the job joins the batch."""
        need = self._output_need(job)
        machine.reserve(need)
        job.held_token += need
        machine.admit(job)

    def _break_deadlock(self, machine: Machine) -> bool:
        """Let work go on where machines wait for each other's memory for ever; False where they do not.

        (Reserving outputs only at the first decode can fill a machine with prompts of which none can go on.)
        The first output that does fit goes ahead of the others; where none does, the youngest request with a
        cache here restarts from its prompt.
        """
        if not self._deadlocked(machine):
            return False
        for job in machine.output_waiters:
            if machine.fits(self._output_need(job)):
                machine.output_waiters.remove(job)
                self._admit(machine, job)
                self._grant(machine)
                return True
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
            if not stuck.blocked or (stuck is not machine and not self._asleep(stuck)):
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
        now = self.now_ns
        transfer = Transfer(job, job.prompt_tokens * self.cluster.kv_bytes_per_token, now)
        job.transfer = transfer
        self.accounts.transfer_started(job, now)
        self._rates_changed(self.network.join(transfer))
        self._launch(transfer)
        self.visibility.changed(job.prompt_machine, job.token_machine)

    def _leave_network(self, transfer: Transfer) -> None:
        transfer.settle(self.now_ns)
        self._rates_changed(self.network.leave(transfer))
        self.visibility.changed(transfer.source, transfer.target)

    def _shipped(self, job: Job) -> None:
        """The cache is at the token machine."""
        source, target = self.machines[job.prompt_machine], self.machines[job.token_machine]
        self.accounts.transfer_ended(job, self.now_ns)
        del source.outbound[job]
        source.release(job.held_prompt, job.prompt_tokens + 1)
        job.held_prompt = 0
        source.promised -= job.prompt_tokens + 1
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
            self._abort(transfer)
            self.accounts.transfer_aborted(job)
            target.release(job.held_token, job.prompt_tokens + 1)
            job.held_token = 0

    # ---- failures -----------------------------------------------------------------------------------------

    def _fail(self, machine: Machine) -> None:
        machine.down += 1
        if machine.down > 1:
            return
        self.accounts.failed(machine.index, machine.iteration, self.now_ns)
        if machine.iteration is not None:
            self._cut_short(machine)
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
            self._route_again(again)
        for index in touched:
            self._grant(self.machines[index])
            self._check_drained(self.machines[index])
            self._wake(self.machines[index])
        self.visibility.changed(*touched)

    def _cancel(self, job: Job) -> None:
        source, target = self.machines[job.prompt_machine], self.machines[job.token_machine]
        self.accounts.cancelled(job)
        self._promise(job, -1)
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

    # ---- what the rules ask of an engine ------------------------------------------------------------------

    @property
    @abstractmethod
    def now_ns(self) -> int:
        """Simulated time."""

    @abstractmethod
    def _wake(self, machine: Machine) -> None:
        """Let an idle machine look for work, before any other event of this time."""

    @abstractmethod
    def _asleep(self, machine: Machine) -> bool:
        """The machine has looked for work, found none, and nobody has woken it since."""

    @abstractmethod
    def _cut_short(self, machine: Machine) -> None:
        """The iteration in progress ends without a result."""

    @abstractmethod
    def _route_again(self, job: Job) -> None:
        """Ask anew where this request goes (a `REROUTE` event at this time)."""

    @abstractmethod
    def _wait_out_switch(self, machine: Machine) -> None:
        """The switching delay of a drained machine begins."""

    @abstractmethod
    def _launch(self, transfer: Transfer) -> None:
        """A transfer starts; call `_shipped` when its cache has arrived."""

    @abstractmethod
    def _rates_changed(self, transfers: list[Transfer]) -> None:
        """These transfers end at another time than was foreseen."""

    @abstractmethod
    def _prompt_over(self, transfer: Transfer) -> None:
        """The prompt whose cache is shipped layer by layer has ended."""

    @abstractmethod
    def _abort(self, transfer: Transfer) -> None:
        """The transfer will not arrive."""
