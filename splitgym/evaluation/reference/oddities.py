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
from splitgym.sim.simpy_engine import AgeingSimpyEngine, SimpyEngine
from splitgym.trace import Trace
from splitgym.types import NS_PER_S, Pool

LONG_PROMPT, GOING_HOME, INPUTS, TOO_LARGE, ONE_MACHINE, POLLING, DEADLOCK = 4, 5, 6, 7, 9, 11, 13
CAUSES = {
    LONG_PROMPT: "a prompt beyond the batch limit waits for a decoding machine's batch to change by itself",
    GOING_HOME: "a machine is in theirs' mixed pool from its conversion until it is idle; in ours while it "
    "works for both phases",
    INPUTS: "simultaneous arrivals, an arrival at time 0 or an output of 1 token",
    TOO_LARGE: "a request that fits no machine blocks the queue for ever; ours refuses it",
    ONE_MACHINE: "kv_token_jsq gives everything to one machine",
    POLLING: "memory is full: theirs retries transfers every whole second; ours start when memory frees",
    DEADLOCK: "prompts fill the memory that their outputs need: theirs hangs, ours restarts the youngest",
}
"""The oddities that change results. Tables, definitions and options settle 1, 2, 3, 8, 12; 10 is right."""


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


class _Watching(SimpyEngine):
    """The specification engine, unchanged, with somebody who notes when an oddity would bite."""

    onsets: Onsets

    def reset(self, trace: Trace, seed: int = 0) -> None:
        super().reset(trace, seed)
        self._theirs_mixed = [False] * len(self.machines)

    def _route(self, job: Job, prompt_machine: int, token_machine: int) -> None:
        now, machine = self.now_ns, self.machines[prompt_machine]
        for other, theirs in zip(self.machines, self._theirs_mixed, strict=True):
            home = self.home[other.index]
            if home is not Pool.MIXED and (present_pool(other, home) is Pool.MIXED) != theirs:
                self.onsets.mark(GOING_HOME, now)
        if prompt_machine == token_machine and not self._theirs_mixed[prompt_machine]:
            # With no machine left in the other pool it may be theirs' last resort, which moves nobody.
            opposite = Pool.TOKEN if self.home[prompt_machine] is Pool.PROMPT else Pool.PROMPT
            left = [m for m, home in enumerate(self.home) if home is opposite and not self._theirs_mixed[m]]
            if Pool.MIXED not in self.home and not left:
                self.onsets.mark(GOING_HOME, now)
        iteration = machine.iteration
        decoding = iteration is not None and not iteration.prompts
        too_long = job.prompt_tokens > self.cluster.config.batching.max_prompt_tokens
        if too_long and decoding and prompt_machine != token_machine:
            self.onsets.mark(LONG_PROMPT, now)
        super()._route(job, prompt_machine, token_machine)
        self._theirs_mixed[prompt_machine] |= self.home[prompt_machine] is Pool.TOKEN
        self._theirs_mixed[token_machine] |= self.home[token_machine] is Pool.PROMPT

    def _end(self, machine: Machine, iteration: Iteration) -> None:
        super()._end(machine, iteration)
        if not (machine.prompt_queue or machine.batch or machine.output_waiters):
            self._theirs_mixed[machine.index] = False

    def _end_prompt(self, machine: Machine, job: Job) -> None:
        if job.output_tokens == 1 and (job.split or machine.batch or machine.prompt_queue):
            self.onsets.mark(INPUTS, self.now_ns)
        super()._end_prompt(machine, job)

    def _ask_transfer(self, job: Job) -> None:
        super()._ask_transfer(job)
        if job.waiting:
            self.onsets.mark(POLLING, self.now_ns)

    def _break_deadlock(self, machine: Machine) -> bool:
        broken = super()._break_deadlock(machine)
        if broken:
            self.onsets.mark(DEADLOCK, self.now_ns)
        return broken


class _AgeingWatch(_Watching, AgeingSimpyEngine):
    pass


def watch(
    cluster: Cluster, routing: RoutingScheduler, sizing: SizingScheduler, onsets: Onsets
) -> SimpyEngine:
    """The specification engine for a cluster under the paper's rule; marks `onsets` as it runs."""
    batching = cluster.config.batching
    assert isinstance(batching, BatchingConfig)
    kind = _AgeingWatch if batching.ageing == "all" else _Watching
    engine = kind(cluster, routing, sizing)
    engine.onsets = onsets
    return engine
