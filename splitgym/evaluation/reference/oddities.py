"""Where the open simulator is wrong or odd, and when that bites in a case.

The numbers are those of the list in docs/fidelity.md. Ours follows the paper, so results part there, but not
before: each oddity has an *onset*, the first moment at which it can make a difference. A rule over the inputs
and our own run (which is the open simulator's run as well, up to that moment) finds it.
"""

from dataclasses import dataclass, field

import numpy as np

from splitgym.cluster import Cluster
from splitgym.config import BatchingConfig
from splitgym.evaluation.reference.cases import Case
from splitgym.schedulers.protocol import RoutingScheduler, SizingScheduler
from splitgym.sim.job import Job
from splitgym.sim.machine import Iteration, Machine
from splitgym.sim.pools import present_pool
from splitgym.sim.simpy_engine import SimpyEngine
from splitgym.trace import Trace
from splitgym.types import NS_PER_S, Pool

AGEING, LONG_PROMPT, GOING_HOME, INPUTS, TOO_LARGE, ONE_MACHINE, POLLING = 3, 4, 5, 6, 7, 9, 11
CAUSES = {
    AGEING: "a task is passed over 4 times: theirs starves it or lets later prompts jump the queue",
    LONG_PROMPT: "a prompt beyond the batch limit waits for a decoding machine's batch to change by itself",
    GOING_HOME: "theirs leaves the mixed pool when idle and only then; ours when foreign work has drained",
    INPUTS: "simultaneous arrivals, an arrival at time 0 or an output of 1 token",
    TOO_LARGE: "a request that fits no machine blocks the queue for ever; ours refuses it",
    ONE_MACHINE: "kv_token_jsq gives everything to one machine",
    POLLING: "memory is full: theirs retries transfers every whole second, lets others pass; ours is FCFS",
}
"""The oddities that change results. Tables, definitions and the oracle settle 1, 2, 8, 12; 10 is right."""


@dataclass
class Onsets:
    """First time [ns] at which each oddity may have made a difference."""

    ns: dict[int, int] = field(default_factory=dict)

    def mark(self, oddity: int, now_ns: int) -> None:
        """It may make a difference from now on."""
        self.ns[oddity] = min(now_ns, self.ns.get(oddity, now_ns))

    def before(self, now_s: float) -> tuple[int, ...]:
        """Oddities that were there at a time, the first one first."""
        there = [oddity for oddity, ns in self.ns.items() if ns <= now_s * NS_PER_S + 1]
        return tuple(sorted(there, key=lambda oddity: (self.ns[oddity], oddity)))


def onsets_of_inputs(case: Case, too_large: np.ndarray) -> Onsets:
    """What can be told from the inputs alone.

    Args:
        case: the inputs.
        too_large: (N,) bool, requests that fit no machine.
    """
    found = Onsets()
    arrival_ns = np.rint(case.arrival_s * NS_PER_S).astype(np.int64)
    if arrival_ns[0] == 0:
        found.mark(INPUTS, 0)
    same_time = np.diff(case.arrival_s) == 0
    other_size = (np.diff(case.prompt_tokens) != 0) | (np.diff(case.output_tokens) != 0)
    for row in np.flatnonzero(same_time & other_size)[:1]:
        found.mark(INPUTS, int(arrival_ns[row]))
    for row in np.flatnonzero(too_large)[:1]:
        found.mark(TOO_LARGE, int(arrival_ns[row]))
    setup = case.setup
    if setup.scheduler == "kv_token_jsq" and max(setup.prompt_machines, setup.token_machines) > 1:
        found.mark(ONE_MACHINE, int(arrival_ns[0]))
    return found


class Watch(SimpyEngine):
    """The specification engine, unchanged, with somebody who notes when an oddity would bite."""

    def __init__(
        self, cluster: Cluster, routing: RoutingScheduler, sizing: SizingScheduler, onsets: Onsets
    ) -> None:
        super().__init__(cluster, routing, sizing)
        self.onsets = onsets

    def reset(self, trace: Trace, seed: int = 0) -> None:
        super().reset(trace, seed)
        batching = self.cluster.config.batching
        assert isinstance(batching, BatchingConfig)
        self._limit, self._max_prompt_tokens = batching.max_passed_over, batching.max_prompt_tokens
        self._passes: dict[Job, int] = {}
        self._theirs_mixed = [False] * len(self.machines)

    def _route(self, job: Job, prompt_machine: int, token_machine: int) -> None:
        now, machine = self.now_ns, self.machines[prompt_machine]
        for other, theirs in zip(self.machines, self._theirs_mixed, strict=True):
            home = self.home[other.index]
            if home is not Pool.MIXED and (present_pool(other, home) is Pool.MIXED) != theirs:
                self.onsets.mark(GOING_HOME, now)
        iteration = machine.iteration
        decoding = iteration is not None and not iteration.prompts
        too_long = job.prompt_tokens > self._max_prompt_tokens
        if too_long and decoding and prompt_machine != token_machine:
            self.onsets.mark(LONG_PROMPT, now)
        super()._route(job, prompt_machine, token_machine)
        self._theirs_mixed[prompt_machine] |= self.home[prompt_machine] is Pool.TOKEN
        self._theirs_mixed[token_machine] |= self.home[token_machine] is Pool.PROMPT

    def _begin(self, machine: Machine, iteration: Iteration) -> int:
        duration_ns = super()._begin(machine, iteration)
        for job in (*machine.prompt_queue, *machine.output_waiters):
            self._passes[job] = passes = self._passes.get(job, 0) + 1
            if passes >= self._limit:
                self.onsets.mark(AGEING, self.now_ns)
        if iteration.prompts and any(job.passed_over >= self._limit for job in machine.batch):
            self.onsets.mark(AGEING, self.now_ns)
        return duration_ns

    def _end(self, machine: Machine, iteration: Iteration) -> None:
        super()._end(machine, iteration)
        if not (machine.prompt_queue or machine.batch or machine.output_waiters):
            self._theirs_mixed[machine.index] = False

    def _end_prompt(self, machine: Machine, job: Job) -> None:
        if job.output_tokens == 1 and (job.split or machine.batch or machine.prompt_queue):
            self.onsets.mark(INPUTS, self.now_ns)
        super()._end_prompt(machine, job)

    def _reserve_prompt(self, machine: Machine, job: Job) -> bool:
        reserved = super()._reserve_prompt(machine, job)
        if not reserved:
            self.onsets.mark(POLLING, self.now_ns)
        return reserved

    def _grant(self, machine: Machine) -> None:
        super()._grant(machine)
        if machine.output_waiters:
            self.onsets.mark(POLLING, self.now_ns)

    def _ask_transfer(self, job: Job) -> None:
        super()._ask_transfer(job)
        if job.waiting:
            self.onsets.mark(POLLING, self.now_ns)
