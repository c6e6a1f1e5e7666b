"""The rules of KV memory and of caches on their way: who gets memory, who waits, what is shipped."""

from splitgym.sim.cluster_state import ClusterState
from splitgym.sim.job import Job, Phase
from splitgym.sim.machine import Machine
from splitgym.sim.network import Transfer


class CacheRules(ClusterState):
    """How memory and transfers change the state of a cluster."""

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

    def _check_drained(self, machine: Machine) -> None:
        if machine.switching and not machine.switch_timer and machine.drained:
            machine.switch_timer = True
            self._wait_out_switch(machine)
