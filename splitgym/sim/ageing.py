"""The open simulator's batching: whatever waits for its machine ages, prompts too (`ageing: all`).

Tasks stand in one line, by how often they had been passed over when they joined it, then by arrival; a
request that runs whole on one machine has two places, for its prompt and its token task. A batch is chosen
anew when one with prompts has ended, a request is done, or something has come. Whoever is left out has been
passed over once more. First in a batch are those at the head of the line who were passed over too often; then
prompts, FCFS; then token tasks of earlier batches; then those that have not decoded yet. Memory is taken by
who is chosen, when chosen, so prompts pass outputs that wait for it. (SplitwiseSim, instance.py.)

Counts grow while their owners stand in line, so the line need not be in order any more when somebody joins
it; a place is found by bisection all the same. That is part of the rule, and why old tasks seldom come first.
"""

from bisect import insort
from collections.abc import Callable
from typing import NamedTuple

from splitgym.config import BatchingConfig
from splitgym.sim.job import Job, Phase
from splitgym.sim.machine import Iteration, Machine
from splitgym.sim.rules import Rules


class Place(NamedTuple):
    """A place in line."""

    job: Job
    prompt: bool
    """For its prompt; else for its token task."""

    @property
    def passed_over(self) -> int:
        """A token task does not age before its prompt is done."""
        early = not self.prompt and self.job.phase in (Phase.QUEUED, Phase.PROMPT)
        return 0 if early else self.job.passed_over


class AgeingMachine(Machine):
    """A machine whose waiting tasks stand in one line."""

    batching: BatchingConfig

    def clear(self) -> None:
        super().clear()
        self.line: list[Place] = []
        self.turn: list[Job] = []  # token tasks of the batch, in the order they joined it
        self.paused: list[Job] = []  # token tasks with memory that are not in it, by when they left
        self.news = True  # a batch is to be chosen anew

    def stand(self, job: Job, prompt: bool) -> None:
        """Join the line."""
        insort(self.line, Place(job, prompt), key=lambda p: (p.passed_over, p.job.request_id))

    def leave(self, job: Job) -> None:
        """The job has nothing to do with this machine any more."""
        self.line = [place for place in self.line if place.job is not job]
        for jobs in (self.turn, self.paused):
            if job in jobs:
                jobs.remove(job)
        self.news = True

    def next_iteration(self, take: Callable[[Job], bool]) -> Iteration | None:
        """Choose what runs next; None when nothing can. `take` gets the job's memory, or cannot."""
        if not self.news:
            return Iteration([], list(self.turn), 0)
        self.news = False
        chosen = self._select(take)
        for job in self.turn:
            if job not in chosen:
                self.stand(job, prompt=False)
                self.paused.append(job)
        decodes = [job for job in self.turn if job in chosen]
        prompts = [job for job in chosen if job.phase is Phase.QUEUED]
        decodes += [job for job in chosen if job.phase is Phase.RUNNING and job not in decodes]
        self.turn = decodes
        self.paused = [job for job in self.paused if job not in chosen]
        self.line = [p for p in self.line if p.job not in chosen or p.prompt != (p.job.phase is Phase.QUEUED)]
        for job in prompts:
            self.prompt_queue.remove(job)
        for job in (*self.prompt_queue, *self.output_waiters, *self.paused):
            job.passed_over += 1
        if not chosen:
            self.news = True
            return None
        return Iteration(prompts, list(decodes), sum(job.prompt_tokens for job in prompts))

    def _select(self, take: Callable[[Job], bool]) -> dict[Job, None]:
        """Who is in the next batch, in the order of choice."""
        limits = self.batching
        chosen: dict[Job, None] = {}
        tokens = 0

        def choose(job: Job, passes: bool = False) -> bool:
            """Take the job into the batch; False where nobody after it may be tried."""
            nonlocal tokens
            size = job.prompt_tokens if job.phase is Phase.QUEUED else 1
            if len(chosen) == limits.max_tasks or (chosen and tokens + size > limits.max_prompt_tokens):
                return False
            if job in chosen:
                return True
            if job.phase is not Phase.RUNNING and not take(job):
                return passes
            chosen[job] = None
            tokens += size
            return True

        for place in list(self.line):
            if place.passed_over < limits.max_passed_over or not choose(place.job, passes=True):
                break
        first = list(self.prompt_queue)
        waiting = sorted([*self.prompt_queue, *self.output_waiters], key=lambda job: job.request_id)
        for jobs in (first, list(self.paused), list(self.turn), waiting):
            for job in jobs:
                if not (jobs is waiting and job in chosen) and not choose(job):
                    break
        return chosen

    def admit(self, job: Job) -> None:
        super().admit(job)
        self.paused.append(job)  # until it is in a batch

    @property
    def blocked(self) -> bool:
        if self.iteration is not None or self.batch:
            return False
        if not (self.prompt_queue or self.output_waiters or self.memory_waiters):
            return False
        return not any(job.transfer for job in [*self.outbound, *self.inbound])


class AgeingRules(Rules):
    """The rules of the cluster where every task that waits ages."""

    machines: list[AgeingMachine]  # type: ignore[assignment]  # made by `_make`

    def _make(self, index: int, capacity: int) -> AgeingMachine:
        batching = self.cluster.config.batching
        assert isinstance(batching, BatchingConfig)
        return AgeingMachine(index, capacity, batching)

    def _route(self, job: Job, prompt_machine: int, token_machine: int) -> None:
        super()._route(job, prompt_machine, token_machine)
        machine = self.machines[prompt_machine]
        machine.stand(job, prompt=True)
        if not job.split:
            machine.stand(job, prompt=False)
        machine.news = True

    def _choose(self, machine: Machine) -> Iteration | None:
        return machine.next_iteration(lambda job: self._take(machine, job))

    def _take(self, machine: Machine, job: Job) -> bool:
        """Memory for who is chosen: for a prompt, or for the output of a cache that is here."""
        if job.phase is Phase.QUEUED:
            need = self._prompt_need(job)
            if not machine.fits(need):
                return False
            machine.reserve(need)
            job.held_prompt = need
            return True
        if not machine.has_seat or not machine.fits(self._output_need(job)):
            return False
        machine.output_waiters.remove(job)
        self._admit(machine, job)
        return True

    def _end(self, machine: Machine, iteration: Iteration) -> None:
        assert isinstance(machine, AgeingMachine)
        super()._end(machine, iteration)
        running = [job for job in machine.turn if job.phase is Phase.RUNNING]
        machine.news |= bool(iteration.prompts) or len(running) < len(machine.turn)
        machine.turn = running

    def _end_prompt(self, machine: Machine, job: Job) -> None:
        job.passed_over = 0
        if job.output_tokens == 1:
            self.machines[machine.index].leave(job)
        super()._end_prompt(machine, job)

    def _shipped(self, job: Job) -> None:
        super()._shipped(job)
        source, target = self.machines[job.prompt_machine], self.machines[job.token_machine]
        target.stand(job, prompt=False)
        source.news = target.news = True

    def _has_room(self, machine: Machine, tokens: int) -> bool:
        return not machine.memory_waiters and machine.fits(tokens)

    def _grant(self, machine: Machine) -> None:
        """Caches that wait to be shipped here, FCFS. All others take memory when they are chosen."""
        while machine.memory_waiters:
            job = machine.memory_waiters[0]
            if not machine.fits(self._transfer_need(job)):
                break
            machine.memory_waiters.popleft()
            job.waiting = False
            self._start_transfer(job)
        if machine.prompt_queue or machine.output_waiters:
            self._wake(machine)

    def _cancel(self, job: Job) -> None:
        super()._cancel(job)
        for index in (job.prompt_machine, job.token_machine):
            self.machines[index].leave(job)
