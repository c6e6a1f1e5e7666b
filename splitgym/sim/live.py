"""The specification engine for requests that come while time goes on: what `splitgym engine` runs.

The rules are those of `simpy_engine.py`, untouched. What differs is who asks: a request is submitted at a
time and names its machine; nobody routes it here. Beside the cluster's own machines there is one more, the
*peer*. It stands for all engines of other processes: it never computes, has no limits, and its NIC never is
the narrow end.

A split is vLLM's pull. A `PROMPT` request computes its prompt, makes one token and leaves its cache here
until it is pulled or released. A `TOKEN` request ships a cache in (from a machine here, or from the peer) and
makes all of its tokens: vLLM's token server computes the last token of the prompt again and thus makes the
first output token a second time. To the rules it is a request with one output token more, of which the first
is there when the cache is; its schedule is that of the simulator's split with `transfer.mode: serial`.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import simpy

from splitgym.cluster import Cluster
from splitgym.sim.accounts import Accounts
from splitgym.sim.job import Job, Phase
from splitgym.sim.live_request import NOBODY, Kind, LiveAccounts, LiveRequest, WithPeer
from splitgym.sim.machine import Iteration, Machine
from splitgym.sim.simpy_engine import SimpyEngine, Timer, VllmSimpyEngine
from splitgym.trace import Trace
from splitgym.types import EventKind


class Live(SimpyEngine):
    """An engine that takes requests one at a time. Make with `live_engine`."""

    accounts: LiveAccounts

    def start(self) -> None:
        """Begin at time 0 with idle machines."""
        self._next_id = 0
        self._leaving: dict[Job, None] = {}  # cancelled within an iteration: they leave when it ends
        self.reset(NOBODY)

    # ---- what the owner asks ------------------------------------------------------------------------------

    @property
    def own_machines(self) -> list[Machine]:
        """All but the peer."""
        return self.machines[:-1]

    @property
    def next_ns(self) -> float:
        """Time of the next event; infinity when nothing is under way."""
        return self.env.peek()

    def step_to(self, now_ns: int, most_events: int = 1 << 62) -> bool:
        """Let everything happen up to and including `now_ns`; False when `most_events` were not enough."""
        env = self.env
        while env.peek() <= now_ns:
            if most_events == 0:
                return False
            most_events -= 1
            env.step()
        return True

    def submit(self, request: LiveRequest, at_ns: int) -> None:
        """A request arrives at `at_ns`, not before the present.

        What it needs (prompt and output, +1 for `TOKEN`) must fit its machine.
        """
        request.request_id = self._next_id
        self._next_id += 1
        request.arrival_ns = at_ns
        self.accounts.requests[request.request_id] = request
        self._at(at_ns, EventKind.ARRIVAL, request, self._arrive)

    def cancel(self, request: LiveRequest, at_ns: int) -> None:
        """Its client is gone; a cache that waits to be pulled is released. Without effect once it is done."""
        if not request.cancelled:
            request.cancelled = True
            self._at(at_ns, EventKind.FAILURE, request, self._forget)

    # ---- arrivals -----------------------------------------------------------------------------------------

    def _from_outside(self) -> None:
        """Requests come by `submit`, none from a trace."""

    def _open_accounts(self, trace: Trace) -> Accounts:
        return LiveAccounts(self.cluster, self.view)

    def _at(
        self, at_ns: int, kind: EventKind, request: LiveRequest, call: Callable[[LiveRequest], None]
    ) -> None:
        def happen(_: simpy.Event) -> None:
            self._note(kind, request.request_id, request.machine)
            call(request)

        timer = Timer(self.env, max(0, at_ns - self.now_ns), kind, request.request_id)
        assert timer.callbacks is not None
        timer.callbacks.append(happen)

    def _arrive(self, request: LiveRequest) -> None:
        if request.cancelled:
            if request.source is not None:
                self._forget(request.source)
            return
        if request.kind is Kind.TOKEN:
            if self._pull(request):
                return
            request.kind = Kind.WHOLE
        output_tokens = 2 if request.kind is Kind.PROMPT else request.output_tokens
        self._place(request, Job(request.request_id, request.prompt_tokens, output_tokens, attempt=0))

    def _place(self, request: LiveRequest, job: Job) -> None:
        """The request begins with its prompt, on its machine."""
        request.job = job
        target = len(self.machines) - 1 if request.kind is Kind.PROMPT else request.machine
        self._route(job, request.machine, target)

    def _pull(self, request: LiveRequest) -> bool:
        """The cache of a `TOKEN` request sets out; False where it is gone."""
        peer = self.machines[-1]
        target = self.machines[request.machine]
        if request.source is None:
            job = Job(request.request_id, request.prompt_tokens, request.output_tokens + 1, attempt=0)
            job.phase, job.generated = Phase.SHIPPING, 1
            job.prompt_machine = peer.index
            job.held_prompt = job.prompt_tokens + 1
            peer.reserve(job.held_prompt)
            peer.used += job.held_prompt
            peer.outbound[job] = None
        else:
            parked = request.source.job
            if parked is None or parked.phase is not Phase.SHIPPING:
                return False
            if request.source.machine == target.index:  # nothing to ship: it computes anew, as the rules do
                self._forget(request.source)
                return False
            job = parked
            self._promise(job, -1)
            peer.unexpect(job)
            request.source.job = None
            del self.accounts.requests[job.request_id]
            del self.accounts.requests[request.request_id]
            request.request_id = job.request_id
            self.accounts.requests[job.request_id] = request
            job.output_tokens = request.output_tokens + 1
        request.job = job
        job.token_machine = target.index
        target.expect(job)
        self._promise(job, 1)
        self._ask_transfer(job)
        return True

    # ---- what the rules ask for ---------------------------------------------------------------------------

    def _overlaps(self, job: Job) -> bool:
        return False  # nobody knows the token machine before the prompt has ended

    def _ask_transfer(self, job: Job) -> None:
        if job.token_machine < len(self.machines) - 1:
            super()._ask_transfer(job)

    def _ask_route(self, job: Job) -> None:
        """A request that gave way to others (see `_break_deadlock`) is computed again, on its own machine."""
        request = self.accounts.requests.get(job.request_id)
        if request is None or request.cancelled:
            return
        if request.kind is Kind.TOKEN:
            request.kind = Kind.WHOLE
            job.output_tokens = request.output_tokens
        self._place(request, job)

    def _shipped(self, job: Job) -> None:
        super()._shipped(job)
        request = self.accounts.requests[job.request_id]
        request.cache_ns = self.now_ns
        if request.on_cache is not None:
            request.on_cache(request)

    def _end(self, machine: Machine, iteration: Iteration) -> None:
        super()._end(machine, iteration)
        for job in iteration.prompts:
            self._tell(job)
        for job in iteration.decodes:
            self._tell(job)
        # Those of this iteration only: a job whose cache was pulled names two machines and runs on one.
        for job in [*iteration.prompts, *iteration.decodes] if self._leaving else ():
            if job in self._leaving:
                del self._leaving[job]
                self._leave(job)

    def _tell(self, job: Job) -> None:
        """Tell the owner of tokens that it has not heard of."""
        request = self.accounts.requests.get(job.request_id)
        if request is None or job.phase is Phase.CANCELLED:
            return
        tokens = job.generated - (request.kind is Kind.TOKEN)
        if tokens <= request.tokens:
            return
        now = self.now_ns
        if request.tokens == 0:
            request.first_token_ns = now
        request.tokens, request.last_token_ns = tokens, now
        if request.schedule is not None:
            request.schedule.append(now)
        if request.finished and request.kind is not Kind.PROMPT:
            del self.accounts.requests[job.request_id]
            request.job = None
        if request.on_token is not None and not request.cancelled:
            request.on_token(request, tokens)

    # ---- cancelling ---------------------------------------------------------------------------------------

    def _forget(self, request: LiveRequest) -> None:
        job, request.job = request.job, None
        if job is None:
            self.accounts.requests.pop(request.request_id, None)
            return
        machine = self.machines[request.machine]
        running = machine.iteration
        if running is not None and (job in running.prompts or job in running.decodes):
            self._leaving[job] = None
        else:
            self._leave(job)

    def _leave(self, job: Job) -> None:
        if job.phase not in (Phase.DONE, Phase.CANCELLED):
            touched = {job.prompt_machine, job.token_machine}
            self._cancel(job)
            for index in sorted(touched):
                self._grant(self.machines[index])
                self._wake(self.machines[index])
            self.visibility.changed(*touched)
        self.accounts.requests.pop(job.request_id, None)


class VllmLive(Live, VllmSimpyEngine):
    """The same with machines that batch as vLLM does."""


def live_engine(cluster: Cluster) -> Live:
    """A started engine of the cluster's machines; their pools and faults are not its business."""
    config = cluster.config
    peer = replace(config.machines[0], count=1)
    with_peer = WithPeer(
        replace(config, machines=(*config.machines, peer), faults=()),
        cluster.rows,
        np.append(cluster.machine_row, cluster.machine_row[0]),
    )
    kind = VllmLive if config.batching.rule == "vllm" else Live
    engine = kind(with_peer)
    engine.start()
    return engine
