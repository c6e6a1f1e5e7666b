"""One machine: its queues, its KV memory, and phase-aware batching.

The rules of one machine, without time: what is in the next iteration, who gets memory. The
engine that owns the machine moves time and tells it what happened.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from splitgym.config import BatchingConfig, VllmBatchingConfig
from splitgym.sim.job import Job, Phase


@dataclass
class Iteration:
    """One iteration: prompts (whole, or a chunk of each), one token for each token task."""

    prompts: list[Job]
    decodes: list[Job]
    prompt_tokens: int  # computed in this iteration
    chunks: list[int] = field(default_factory=list)  # tokens of each prompt; empty where all are whole
    start_ns: int = 0
    end_ns: int = 0


class Machine:
    """State of one machine. All memory is counted in KV tokens.

    `reserved` is the machine's own bookkeeping and includes outputs still to come; `used` is what lies in
    memory now. Only `used` is visible to schedulers.
    """

    def __init__(self, index: int, capacity: int, batching: BatchingConfig | VllmBatchingConfig):
        self.index = index
        self.capacity = capacity
        self.batching = batching
        self.ticks_carry = 0  # fraction of a nanosecond carried from one token iteration to the next
        self.down = 0  # failures in force
        self.switching = False  # draining, or waiting out the switching delay
        self.switch_timer = False  # drained, the delay is running
        self.switch_number = 0  # tells a delay that a failure or a later switch made void
        self.clear()

    def clear(self) -> None:
        """Forget all work, as a failure does."""
        self.prompt_queue: deque[Job] = deque()
        self.batch: list[Job] = []  # token tasks admitted, in the order they came
        self.output_waiters: deque[Job] = deque()  # caches here, no memory for their output yet
        self.memory_waiters: deque[Job] = deque()  # prompts to start here and caches to come, FCFS
        self.iteration: Iteration | None = None
        self.outbound: dict[Job, None] = {}  # prompts done here whose caches are still here
        self.reserved = 0
        self.used = 0
        self.queued_prompt_tokens = 0
        self.queued_ns = 0
        self.batch_context = 0  # prompt and generated tokens of `batch`
        self.context = 0  # and of `output_waiters` too
        self.context_prompts = 0  # their prompt tokens alone
        self.inbound: dict[Job, None] = {}  # jobs to decode here whose cache is not here yet
        self.inbound_prompt_tokens = 0
        self.promised = 0  # KV tokens that the requests placed here will hold at most: for oracles only

    # ---- memory -------------------------------------------------------------------------------------------

    def fits(self, tokens: int) -> bool:
        return self.reserved + tokens <= self.capacity

    def reserve(self, tokens: int) -> None:
        self.reserved += tokens
        if self.reserved > self.capacity:
            raise AssertionError(
                f"machine {self.index}: {self.reserved} of {self.capacity} KV tokens reserved"
            )

    def release(self, reserved: int, used: int) -> None:
        self.reserved -= reserved
        self.used -= used
        if self.used < 0 or self.reserved < self.used:
            raise AssertionError(
                f"machine {self.index}: {self.used} used, {self.reserved} reserved KV tokens"
            )

    # ---- the next iteration -------------------------------------------------------------------------------

    def next_iteration(self, reserve_prompt: Callable[[Job], bool]) -> Iteration | None:
        """Choose what runs next; None when nothing can. `reserve_prompt` gets memory for a prompt, or cannot.

        Order: token tasks passed over too often; prompts, FCFS, up to `max_prompt_tokens` (a longer one runs
        alone); the other token tasks in the order they came, as far as they fit. Token tasks left out by
        prompts have been passed over once more.
        """
        limits = self.batching
        assert isinstance(limits, BatchingConfig)
        prompts: list[Job] = []
        aged = [job for job in self.batch if job.passed_over >= limits.max_passed_over]
        tasks, tokens = len(aged), len(aged)
        prompt_tokens = 0
        while self.prompt_queue and tasks < limits.max_tasks:
            job = self.prompt_queue[0]
            if tasks and tokens + job.prompt_tokens > limits.max_prompt_tokens:
                break
            if not job.granted and not reserve_prompt(job):
                break
            self.prompt_queue.popleft()
            prompts.append(job)
            tasks += 1
            tokens += job.prompt_tokens
            prompt_tokens += job.prompt_tokens
        if not prompts:
            for job in aged:
                job.passed_over = 0
            return Iteration([], list(self.batch), 0) if self.batch else None
        room = max(0, min(limits.max_tasks - tasks, limits.max_prompt_tokens - tokens))
        decodes = []
        for job in self.batch:
            if job.passed_over >= limits.max_passed_over:
                job.passed_over = 0
                decodes.append(job)
            elif room > 0:
                decodes.append(job)
                room -= 1
            else:
                job.passed_over += 1
        return Iteration(prompts, decodes, prompt_tokens)

    # ---- what the engine tells ----------------------------------------------------------------------------

    def enqueue_prompt(self, job: Job, alone_ns: int) -> None:
        """A prompt came to be computed here; `alone_ns` is its predicted time alone."""
        job.phase = Phase.QUEUED
        self.prompt_queue.append(job)
        self.count_queued(job, alone_ns)

    def count_queued(self, job: Job, alone_ns: int) -> None:
        """The job's tokens wait to be computed here."""
        job.queued_ns = alone_ns
        self.queued_prompt_tokens += job.target
        self.queued_ns += alone_ns

    def leave_prompt_queue(self, job: Job) -> None:
        """The prompt starts (it is out of the queue already) or is cancelled."""
        self.queued_prompt_tokens -= job.target
        self.queued_ns -= job.queued_ns

    def expect(self, job: Job) -> None:
        """A request was assigned to decode here."""
        self.inbound[job] = None
        self.inbound_prompt_tokens += job.prompt_tokens

    def unexpect(self, job: Job) -> None:
        del self.inbound[job]
        self.inbound_prompt_tokens -= job.prompt_tokens

    def admit(self, job: Job) -> None:
        """The job has its memory and joins the batch."""
        job.phase = Phase.RUNNING
        self.batch.append(job)
        self.batch_context += job.prompt_tokens + job.generated

    def cache_is_here(self, job: Job) -> None:
        """The KV cache arrived (or was computed here): the job is ready to decode."""
        self.unexpect(job)
        job.phase = Phase.READY
        self.context += job.prompt_tokens + job.generated
        self.context_prompts += job.prompt_tokens

    def forget_context(self, job: Job) -> None:
        """The job leaves the token phase here: done, or its cache is dropped."""
        if job.phase is Phase.RUNNING:
            self.batch_context -= job.prompt_tokens + job.generated
        self.context -= job.prompt_tokens + job.generated
        self.context_prompts -= job.prompt_tokens

    # ---- what others ask ----------------------------------------------------------------------------------

    @property
    def available(self) -> bool:
        """May get new work."""
        return self.down == 0 and not self.switching

    @property
    def has_seat(self) -> bool:
        """One more request may be in progress."""
        return len(self.batch) < self.batching.max_tasks

    @property
    def running(self) -> int:
        """Requests decoding here, or ready to."""
        return len(self.batch) + len(self.output_waiters)

    @property
    def has_prompt_work(self) -> bool:
        return bool(self.prompt_queue) or (self.iteration is not None and bool(self.iteration.prompts))

    @property
    def has_token_work(self) -> bool:
        return bool(self.batch or self.output_waiters or self.inbound)

    @property
    def drained(self) -> bool:
        """No work of either phase, no cache on its way out."""
        return not (self.has_prompt_work or self.has_token_work or self.outbound)

    @property
    def blocked(self) -> bool:
        """Somebody waits for memory, and no work or transfer in progress here will free any."""
        if self.iteration is not None or self.batch or not (self.output_waiters or self.memory_waiters):
            return False
        if self.prompt_queue and self.prompt_queue[0].granted:
            return False
        return not any(job.transfer for job in [*self.outbound, *self.inbound])

    @property
    def pending_prompt_tokens(self) -> int:
        """Prompt tokens queued and in the iteration in progress."""
        return self.queued_prompt_tokens + (self.iteration.prompt_tokens if self.iteration else 0)
