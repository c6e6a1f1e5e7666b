"""The rules of the cluster, without time: what happens to requests, machines, memory and caches.

An engine derives from `Rules`, moves time, and calls these methods when something has happened. Memory and
transfers are in `cache_rules.py`; what the rules ask of an engine is in `cluster_state.py`.
"""

from splitgym.sim.cache_rules import CacheRules
from splitgym.sim.job import Job, Phase
from splitgym.sim.machine import Iteration, Machine
from splitgym.sim.pools import machines_to_move
from splitgym.types import Pool


class Rules(CacheRules):
    """How a cluster changes. `_set_up` makes its state for one run."""

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
