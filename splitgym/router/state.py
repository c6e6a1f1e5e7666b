"""What the router knows of its servers, as the same `ClusterView` that the simulator fills.

Counters are exact where the router sees what happens: requests placed, prompts answered, tokens streamed.
Three things it does not see, and infers (`infer=True`) from the batching rule and the profile:

- a prompt starts when it reaches an idle server, or when the prompts before it have been answered;
- an iteration ends when its profile says so, or earlier when an answer or a token comes;
- a cache is on its way from the end of its prompt (or its start, where layers overlap) to the first token.

With `infer=False` somebody tells: a replay of the simulator, whose views must then be equal.
"""

from collections.abc import Callable, Iterable

from splitgym.cluster import Cluster
from splitgym.profile.tables import mixed_time_ns, prompt_time_ns, token_time_ns
from splitgym.router.board import Board
from splitgym.router.flights import Flight, Phase
from splitgym.types import NS_PER_S
from splitgym.view import (
    ARRIVED_PROMPT_TOKENS,
    ARRIVED_REQUESTS,
    COMPLETED_OUTPUT_TOKENS,
    COMPLETED_REQUESTS,
    OUTPUT_DECAY,
    SHARE_TIME_CONSTANT_NS,
)


class RouterState(Board):
    """Counters of all servers and the view over them.

    Args:
        cluster: one machine a server, in the order of the servers.
        clock: now [ns]; anything that never goes back.
        confine: restrict each phase to its own and the mixed pool; None is what the cluster says.
        infer: infer what cannot be seen, see the module.
    """

    def __init__(
        self, cluster: Cluster, clock: Callable[[], int], confine: bool | None = None, infer: bool = True
    ) -> None:
        super().__init__(cluster, clock, confine)
        self._infer = infer

    # ---- requests -----------------------------------------------------------------------------------------

    def arrived(self, prompt_tokens: int) -> None:
        """A request came; count it once, whatever becomes of it."""
        self.view.counters[ARRIVED_REQUESTS] += 1
        self.view.counters[ARRIVED_PROMPT_TOKENS] += prompt_tokens

    def place(self, flight: Flight) -> None:
        """An attempt was given its servers: its prompt waits at one, the other expects it."""
        p, t = flight.prompt_machine, flight.token_machine
        source, target = self._machines[p], self._machines[t]
        flight.phase = Phase.QUEUED
        flight.alone_ns = int(prompt_time_ns(self.view.tables, self._rows[p], flight.prompt_tokens))
        source.queue[flight] = None
        source.queued_tokens += flight.prompt_tokens
        source.queued_ns += flight.alone_ns
        target.inbound[flight] = None
        target.inbound_tokens += flight.prompt_tokens
        self._dirty.update((p, t))
        if self._infer and not source.prompts:
            self._next(p)

    def prompt_ended(self, flight: Flight) -> None:
        """The prompt server has answered (or the first token of an unsplit request is here)."""
        if flight.phase in (Phase.NEW, Phase.SHIPPING, Phase.RUNNING, Phase.OVER):
            return
        p, t = flight.prompt_machine, flight.token_machine
        machine = self._machines[p]
        if flight.phase is Phase.QUEUED:  # sooner than was foreseen
            self._start(p, flight)
        flight.generated = 1
        flight.phase = Phase.SHIPPING
        machine.prompts.pop(flight, None)
        self._dirty.update((p, t))
        if flight.split:
            if self._infer and not flight.shipping:
                self.transfer_started(flight)
        elif self._infer:
            self.cache_arrived(flight)
        if self._infer and not machine.prompts:
            self.iteration_ended(p)
            self._next(p)

    def transfer_started(self, flight: Flight) -> None:
        """The cache is on its way."""
        source, target = self._machines[flight.prompt_machine], self._machines[flight.token_machine]
        flight.shipping = flight.at_target = True
        source.transfers += 1
        target.transfers += 1
        target.used += flight.prompt_tokens + 1
        self._dirty.update((flight.prompt_machine, flight.token_machine))

    def transfer_ended(self, flight: Flight) -> None:
        """The NICs are free of it."""
        if flight.shipping:
            flight.shipping = False
            for m in (flight.prompt_machine, flight.token_machine):
                self._machines[m].transfers -= 1
                self._dirty.add(m)

    def cache_arrived(self, flight: Flight) -> None:
        """The request is ready to decode at its token server."""
        p, t = flight.prompt_machine, flight.token_machine
        source, target = self._machines[p], self._machines[t]
        self.transfer_ended(flight)
        if flight.split and flight.at_source:
            source.used -= flight.prompt_tokens + 1
            flight.at_source = False
        target.unexpect(flight)
        flight.at_source = False
        flight.at_target = True  # of an unsplit request, what its prompt took
        flight.phase = Phase.RUNNING
        target.decodes[flight] = None
        target.context += flight.prompt_tokens + flight.generated
        target.context_prompts += flight.prompt_tokens
        self._dirty.update((p, t))

    def tokens(self, flight: Flight, count: int) -> None:
        """`count` more tokens of a request came from its token server."""
        if flight.phase is Phase.OVER or count <= 0:
            return
        t = flight.token_machine
        machine = self._machines[t]
        if flight.phase is not Phase.RUNNING:
            self.prompt_ended(flight)
            if flight not in machine.decodes:
                self.cache_arrived(flight)
            if self._infer and not flight.split:
                count -= 1  # the prompt made the first one
        flight.generated += count
        machine.context += count
        machine.used += count
        self._dirty.add(t)
        if self._infer and not machine.prompts:
            self._foresee(t)

    def presume(self, flight: Flight) -> None:
        """By now its tokens should be coming, though nobody sees them: the answer is not streamed."""
        if flight.phase in (Phase.QUEUED, Phase.PROMPT, Phase.SHIPPING):
            self.prompt_ended(flight)
            if flight.phase is Phase.SHIPPING:
                self.cache_arrived(flight)
            if not self._machines[flight.token_machine].prompts:
                self._foresee(flight.token_machine)

    def decodes_in_s(self, flight: Flight) -> float:
        """Predicted seconds until the tokens of an attempt come: its prompt's turn, or its transfer."""
        t = flight.token_machine
        if flight.split:
            size = flight.prompt_tokens * self._rules.kv_bytes_per_token
            return size / max(1, int(self.view.link_bytes_per_s[t]))
        machine = self._machines[t]
        return (machine.queued_ns + max(0, machine.end_ns - self._clock())) / NS_PER_S

    def finished(self, flight: Flight, output_tokens: int) -> None:
        """A request was answered in full."""
        self.dropped(flight)
        view = self.view
        view.counters[COMPLETED_REQUESTS] += 1
        view.counters[COMPLETED_OUTPUT_TOKENS] += output_tokens
        view.mean_output[0] = OUTPUT_DECAY * view.mean_output[0] + output_tokens
        view.mean_output[1] = OUTPUT_DECAY * view.mean_output[1] + 1.0

    def dropped(self, flight: Flight) -> None:
        """An attempt is over, whatever it had reached: nothing of it stays in the counters."""
        if flight.phase in (Phase.NEW, Phase.OVER):
            flight.phase = Phase.OVER
            return
        p, t = flight.prompt_machine, flight.token_machine
        source, target = self._machines[p], self._machines[t]
        if flight.phase is Phase.QUEUED:
            source.leave_queue(flight)
        was_in_iteration = source.prompts.pop(flight, flight) is None
        self.transfer_ended(flight)
        target.unexpect(flight)
        if flight in target.decodes:
            del target.decodes[flight]
            target.context -= flight.prompt_tokens + flight.generated
            target.context_prompts -= flight.prompt_tokens
        if flight.at_source:
            source.used -= flight.prompt_tokens + 1
        if flight.at_target:
            target.used -= flight.prompt_tokens + max(1, flight.generated)
        flight.at_source = flight.at_target = False
        flight.phase = Phase.OVER
        self._dirty.update((p, t))
        if self._infer:
            if was_in_iteration and not source.prompts:
                self.iteration_ended(p)
                self._next(p)
            elif not target.decodes and not target.prompts:
                target.end_ns = 0

    # ---- iterations ---------------------------------------------------------------------------------------

    def iteration_began(self, m: int, flights: Iterable[Flight], end_ns: int) -> None:
        """Machine m began an iteration over these prompts (and its decodes).

        Args:
            end_ns: when it will end, by the profile.
        """
        machine = self._machines[m]
        machine.iteration_tokens = machine.iteration_prompts = 0
        machine.start_ns, machine.end_ns = self._clock(), end_ns
        for flight in flights:
            self._start(m, flight)
        self._dirty.add(m)

    def iteration_ended(self, m: int) -> None:
        """The iteration in progress is over; counts its time towards the share of prompts."""
        machine = self._machines[m]
        if machine.iteration_prompts:
            now, tau = self._clock(), SHARE_TIME_CONSTANT_NS
            gap, spent = machine.start_ns - machine.share_at_ns, now - machine.start_ns
            share = machine.share * tau / (tau + max(0, gap))
            machine.share = (share * tau + spent) / (tau + spent)
            machine.share_at_ns = now
        machine.prompts.clear()
        machine.iteration_tokens = machine.iteration_prompts = 0
        machine.end_ns = 0
        self._dirty.add(m)

    def _start(self, m: int, flight: Flight) -> None:
        """A prompt leaves the queue and joins the iteration."""
        machine = self._machines[m]
        machine.leave_queue(flight)
        if not machine.prompts and not machine.iteration_prompts and self._infer:
            machine.start_ns = self._clock()
        machine.prompts[flight] = None
        machine.iteration_tokens += flight.prompt_tokens
        machine.iteration_prompts += 1
        machine.used += flight.prompt_tokens + 1
        flight.at_source = True
        flight.phase = Phase.PROMPT
        if self._infer and flight.split and flight.prompt_tokens >= self._rules.overlap_min_tokens:
            self.transfer_started(flight)

    def _next(self, m: int) -> None:
        """Infer the next iteration: queued prompts up to the batch limit, first come first served."""
        machine = self._machines[m]
        tokens = 0
        chosen: list[Flight] = []
        for flight in machine.queue:
            if chosen and tokens + flight.prompt_tokens > self._rules.max_prompt_tokens:
                break
            if len(chosen) >= self._rules.max_tasks:
                break
            chosen.append(flight)
            tokens += flight.prompt_tokens
        if not chosen:
            self._foresee(m)
            return
        row, decodes = self._rows[m], len(machine.decodes)
        if decodes:
            took = mixed_time_ns(self.view.tables, row, tokens + decodes, decodes, machine.context)
        elif len(chosen) == 1:
            took = chosen[0].alone_ns
        else:
            took = prompt_time_ns(self.view.tables, row, tokens)
        self.iteration_began(m, chosen, self._clock() + int(took))

    def _foresee(self, m: int) -> None:
        """Infer a token iteration that begins now."""
        machine = self._machines[m]
        batch = len(machine.decodes)
        machine.end_ns = 0
        if batch:
            took = token_time_ns(self.view.tables, self._rows[m], batch, machine.context)
            machine.end_ns = self._clock() + int(took)
        self._dirty.add(m)


__all__ = ["Flight", "Phase", "RouterState"]
