"""vLLM's own batching, beside the paper's: what a user would run without a split today.

An iteration has a budget of tokens. Requests in progress come first, in the order they started: a token for
each decode, the next chunk of each prompt. What is left of the budget goes to waiting prompts, FCFS. KV
memory is given out by blocks as it is needed; when none are left, the request that started last is preempted:
it loses its cache; its prompt and what it had generated are computed again. (vLLM V1,
v1/core/sched/scheduler.py.)

With a split, the cache ships when the whole prompt is computed (vLLM's NIXL connector pulls it then), and the
token machine takes blocks for it when the transfer starts.
"""

from collections.abc import Callable

from splitgym.config import VllmBatchingConfig
from splitgym.sim.job import Job, Phase
from splitgym.sim.machine import Iteration, Machine
from splitgym.sim.rules import Rules


class VllmMachine(Machine):
    """A machine under vLLM's rule. `prompt_queue` is vLLM's waiting queue, `sequences` its running list."""

    batching: VllmBatchingConfig

    def clear(self) -> None:
        super().clear()
        self.sequences: list[Job] = []  # prompts in progress and decodes, by when they started

    def blocks(self, tokens: int) -> int:
        """KV tokens of the blocks that hold `tokens`."""
        return -(-tokens // self.batching.block_size) * self.batching.block_size

    def allocate(self, job: Job, tokens: int) -> bool:
        """Let the job hold blocks for `tokens` tokens in all; False where they are not there."""
        extra = self.blocks(tokens) - (job.held_token or job.held_prompt)
        if not self.fits(extra):
            return False
        if extra > 0:
            self.reserve(extra)
            if job.phase is Phase.RUNNING:
                job.held_token += extra
            else:
                job.held_prompt += extra
        return True

    def next_sequences(self, preempt: Callable[[Job], None]) -> Iteration | None:
        """Choose what runs next; None when nothing can. `preempt` takes a job's memory away."""
        budget = self.batching.max_num_batched_tokens
        out = Iteration([], [], 0)
        preempted = False
        place = 0
        while place < len(self.sequences) and budget:
            job = self.sequences[place]
            tokens = 1 if job.phase is Phase.RUNNING else min(job.target - job.computed, budget)
            while not self.allocate(job, self._reach(job, tokens)):
                preempted = True
                last = self.sequences.pop()
                preempt(last)
                if last is job:
                    break
            else:
                self._take(out, job, tokens)
                budget -= tokens
                place += 1
        while not preempted and budget and self.prompt_queue and not self.memory_waiters and self.has_seat:
            job = self.prompt_queue[0]
            tokens = min(job.target, budget)
            if not self.allocate(job, self._reach(job, tokens)):
                break
            self.sequences.append(self.prompt_queue.popleft())
            self._take(out, job, tokens)
            budget -= tokens
        return out if out.prompts or out.decodes else None

    @staticmethod
    def _reach(job: Job, tokens: int) -> int:
        """KV tokens of the job after this iteration; a prompt that ends has its first token too."""
        if job.phase is Phase.RUNNING:
            return job.prompt_tokens + job.generated + 1
        return job.computed + tokens + (job.computed + tokens == job.target)

    @staticmethod
    def _take(out: Iteration, job: Job, tokens: int) -> None:
        if job.phase is Phase.RUNNING:
            out.decodes.append(job)
        else:
            out.prompts.append(job)
            out.chunks.append(tokens)
            out.prompt_tokens += tokens

    def admit(self, job: Job) -> None:
        super().admit(job)
        if job.computed != job.target or job.split:  # it was not computed here
            self.sequences.append(job)

    @property
    def has_seat(self) -> bool:
        return len(self.sequences) < self.batching.max_num_seqs

    @property
    def has_prompt_work(self) -> bool:
        return self.queued_prompt_tokens > 0

    @property
    def pending_prompt_tokens(self) -> int:
        return self.queued_prompt_tokens

    @property
    def blocked(self) -> bool:
        if self.iteration is not None or self.sequences or not (self.prompt_queue or self.memory_waiters):
            return False
        return not any(job.transfer for job in [*self.outbound, *self.inbound])


class VllmRules(Rules):
    """The rules of the cluster where its machines batch as vLLM does."""

    machines: list[VllmMachine]  # type: ignore[assignment]  # made by `_make`

    def _make(self, index: int, capacity: int) -> VllmMachine:
        return VllmMachine(index, capacity, self.cluster.config.batching)

    def _choose(self, machine: Machine) -> Iteration | None:
        assert isinstance(machine, VllmMachine)
        preempted: list[Job] = []

        def preempt(job: Job) -> None:
            preempted.append(job)
            self._preempt(machine, job)

        while True:
            preempted.clear()
            iteration = machine.next_sequences(preempt)
            if preempted:  # those who wait get what was taken away, at once
                self._grant(machine)
            if iteration is not None or not preempted:
                return iteration

    def _preempt(self, machine: VllmMachine, job: Job) -> None:
        """The cache is dropped; the request waits first in the queue and is computed again, here."""
        self.accounts.preempted(job)
        if job.phase is Phase.RUNNING:
            machine.forget_context(job)
            machine.batch.remove(job)
            machine.release(job.held_token, job.prompt_tokens + job.generated)
            job.target = job.prompt_tokens + job.generated
            job.prompt_machine = machine.index
            machine.expect(job)
        else:
            machine.release(job.held_prompt, job.computed)
            self._uncount(machine, job)
        job.held_token = job.held_prompt = job.computed = 0
        job.phase = Phase.QUEUED
        machine.prompt_queue.appendleft(job)
        machine.count_queued(job, self.visibility.prompt_alone_ns(machine, job.target))
        self.visibility.changed(machine.index)

    @staticmethod
    def _uncount(machine: Machine, job: Job) -> None:
        """The rest of a prompt in progress does not wait here any more."""
        machine.queued_prompt_tokens -= job.target - job.computed
        machine.queued_ns -= job.queued_ns

    # ---- iterations ---------------------------------------------------------------------------------------

    def _begin(self, machine: Machine, iteration: Iteration) -> int:
        for job, chunk in zip(iteration.prompts, iteration.chunks, strict=True):
            if job.computed == 0:
                job.phase = Phase.PROMPT
                if job.generated == 0:
                    self.accounts.prompt_started(job, self.now_ns)
            rest = job.target - job.computed
            share_ns = job.queued_ns * chunk // rest
            job.queued_ns -= share_ns
            machine.queued_ns -= share_ns
        return self._run(machine, iteration)

    def _end(self, machine: Machine, iteration: Iteration) -> None:
        assert isinstance(machine, VllmMachine)
        now = self.now_ns
        machine.iteration = None
        self.accounts.spent(machine.index, iteration, now)
        if iteration.prompts:
            self.visibility.prompts_ran(machine.index, iteration, now)
        self._end_decodes(machine, iteration.decodes)
        prompt_tokens, new_tokens = 0, len(iteration.decodes)
        for job, chunk in zip(iteration.prompts, iteration.chunks, strict=True):
            if job.phase is Phase.CANCELLED:
                continue
            prompt_tokens += chunk
            job.computed += chunk
            machine.used += chunk
            machine.queued_prompt_tokens -= chunk
            if job.computed == job.target:
                new_tokens += 1
                self._computed(machine, job, iteration.start_ns)
        self.accounts.produced(machine.index, prompt_tokens, new_tokens)
        machine.sequences = [j for j in machine.sequences if j.phase in (Phase.PROMPT, Phase.RUNNING)]
        self._grant(machine)
        self._check_drained(machine)
        self.visibility.changed(machine.index)

    def _computed(self, machine: VllmMachine, job: Job, start_ns: int) -> None:
        """A prompt (or what a preempted request had before) is computed; it has one more token."""
        job.generated += 1
        machine.used += 1
        if job.generated == 1:
            self.accounts.prompt_ended(job, self.now_ns)
        else:
            self.accounts.decode_started(job, start_ns)
        target = self.machines[job.token_machine]
        if job.generated == job.output_tokens:
            target.unexpect(job)
            self.visibility.changed(job.token_machine)
            machine.release(job.held_prompt, job.target + 1)
            self._finish(job)
            self._check_drained(target)
        elif job.split:
            job.phase = Phase.SHIPPING
            machine.outbound[job] = None
            self._ask_transfer(job)
        else:
            job.held_token, job.held_prompt = job.held_prompt, 0
            machine.cache_is_here(job)
            machine.admit(job)

    # ---- memory -------------------------------------------------------------------------------------------

    def _overlaps(self, job: Job) -> bool:
        return False

    def _transfer_need(self, job: Job) -> int:
        return self.machines[job.token_machine].blocks(job.prompt_tokens + 1)

    def _output_need(self, job: Job) -> int:
        return 0

    def _grant(self, machine: Machine) -> None:
        super()._grant(machine)
        if machine.prompt_queue:
            self._wake(machine)

    def _cancel(self, job: Job) -> None:
        machine = self.machines[job.prompt_machine]
        if job.phase is Phase.PROMPT:
            self.accounts.cancelled(job)
            self._promise(job, -1)
            machine.sequences.remove(job)
            self._uncount(machine, job)
            machine.release(job.held_prompt, job.computed)
            self.machines[job.token_machine].unexpect(job)
            job.phase = Phase.CANCELLED
            return
        if job.phase is Phase.RUNNING:
            self.machines[job.token_machine].sequences.remove(job)
        super()._cancel(job)
