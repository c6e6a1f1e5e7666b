"""Attempts on their way through servers, and the counters of one server. No time, no inference."""

from dataclasses import dataclass, field
from enum import IntEnum

from splitgym.types import Pool
from splitgym.view import ClusterView


class Phase(IntEnum):
    """Where an attempt is."""

    NEW = 0
    QUEUED = 1  # sent to the prompt server, not started as far as can be told
    PROMPT = 2  # in a prompt iteration
    SHIPPING = 3  # prompt answered, cache on its way
    RUNNING = 4  # tokens come
    OVER = 5


@dataclass(eq=False, slots=True)
class Flight:
    """One attempt to serve one request.

    Args:
        prompt_tokens: as known or estimated.
        prompt_machine, token_machine: servers by index.
    """

    prompt_tokens: int
    prompt_machine: int
    token_machine: int
    phase: Phase = Phase.NEW
    generated: int = 0
    alone_ns: int = 0
    at_source: bool = False  # its prompt's cache is counted at the prompt server
    at_target: bool = False  # its cache is counted at the token server
    shipping: bool = False  # counted as a transfer in flight

    @property
    def split(self) -> bool:
        """Two servers."""
        return self.prompt_machine != self.token_machine


@dataclass(eq=False, slots=True)
class Counters:
    """Counters of one server. All memory is in KV tokens."""

    queue: dict[Flight, None] = field(default_factory=dict)
    queued_tokens: int = 0
    queued_ns: int = 0
    prompts: dict[Flight, None] = field(default_factory=dict)  # in the iteration in progress
    iteration_tokens: int = 0
    iteration_prompts: int = 0
    start_ns: int = 0
    end_ns: int = 0  # predicted; 0 when idle
    decodes: dict[Flight, None] = field(default_factory=dict)
    context: int = 0
    context_prompts: int = 0
    inbound: dict[Flight, None] = field(default_factory=dict)
    inbound_tokens: int = 0
    transfers: int = 0
    used: int = 0
    correction: int = 0  # what the server's own report adds to `used`
    share: float = 0.0
    share_at_ns: int = 0
    up: bool = True
    home: Pool = Pool.MIXED

    @property
    def pool(self) -> Pool:
        """The home pool, or MIXED while it works for the other phase too."""
        prompt_work = bool(self.queue) or self.iteration_prompts > 0
        token_work = bool(self.decodes or self.inbound)
        foreign = (self.home is Pool.PROMPT and token_work) or (self.home is Pool.TOKEN and prompt_work)
        return Pool.MIXED if foreign else self.home

    def leave_queue(self, flight: Flight) -> None:
        """A prompt does not wait here any more, if it did."""
        if self.queue.pop(flight, flight) is None:
            self.queued_tokens -= flight.prompt_tokens
            self.queued_ns -= flight.alone_ns

    def unexpect(self, flight: Flight) -> None:
        """A cache is not awaited here any more, if it was."""
        if self.inbound.pop(flight, flight) is None:
            self.inbound_tokens -= flight.prompt_tokens

    def write(self, view: ClusterView, m: int) -> bool:
        """Into row m of a view; True where the pool, or whether it is up, has changed there."""
        pool = self.pool
        changed = bool(view.available[m] != self.up or view.pool[m] != pool)
        view.available[m] = self.up
        view.home_pool[m] = self.home
        view.pool[m] = pool
        view.prompt_requests[m] = len(self.queue)
        view.prompt_tokens[m] = self.queued_tokens + self.iteration_tokens
        view.prompt_queue_ns[m] = self.queued_ns
        view.iteration_end_ns[m] = self.end_ns
        view.iteration_prompts[m] = self.iteration_prompts
        view.prompt_share[m] = self.share
        view.prompt_share_at_ns[m] = self.share_at_ns
        view.running[m] = len(self.decodes)
        view.running_context_tokens[m] = self.context
        view.running_prompt_tokens[m] = self.context_prompts
        view.inbound[m] = len(self.inbound)
        view.inbound_prompt_tokens[m] = self.inbound_tokens
        view.transfers[m] = self.transfers
        view.kv_used_tokens[m] = max(0, self.used + self.correction)
        return changed
