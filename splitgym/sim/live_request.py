"""Requests of the live engine, what is written into them, and a cluster with the peer; see `live.py`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from splitgym.cluster import Cluster
from splitgym.sim.accounts import Accounts
from splitgym.sim.job import Job
from splitgym.sim.outcomes import NEVER
from splitgym.trace import Trace
from splitgym.view import ClusterView

_NO_LIMIT = 1 << 60
# A trace has at least one row; this one never arrives.
NOBODY = Trace(np.zeros(1), np.ones(1, np.int64), np.ones(1, np.int64), name="live")


class Kind(IntEnum):
    """What a request wants of its machine."""

    WHOLE = 0  # both phases
    PROMPT = 1  # the prompt and one token; its cache waits to be pulled
    TOKEN = 2  # all tokens, from a cache that is pulled


@dataclass(eq=False, slots=True)
class LiveRequest:
    """A request and what has become of it. Times are nanoseconds of the engine, `NEVER` until they come.

    Args:
        machine: where it runs.
        prompt_tokens, output_tokens: its sizes; a `PROMPT` request has 1 output token.
        kind: see `Kind`.
        source: for `TOKEN`, the `PROMPT` request whose cache is pulled; None when the peer has it.
        on_token: called with (request, tokens so far) when another token is there.
        on_cache: called with (request) when the cache of a `TOKEN` request has arrived.
        schedule: given a list, the time of every token is appended to it.
    """

    machine: int
    prompt_tokens: int
    output_tokens: int
    kind: Kind = Kind.WHOLE
    source: "LiveRequest | None" = None
    on_token: Callable[["LiveRequest", int], None] | None = None
    on_cache: Callable[["LiveRequest"], None] | None = None
    schedule: list[int] | None = None
    request_id: int = -1
    arrival_ns: int = NEVER
    start_ns: int = NEVER  # its prompt, or its transfer, has begun
    cache_ns: int = NEVER  # its cache has arrived
    first_token_ns: int = NEVER
    last_token_ns: int = NEVER
    tokens: int = 0
    preemptions: int = 0
    cancelled: bool = False
    job: Job | None = field(default=None, repr=False)

    @property
    def finished(self) -> bool:
        """It has all of its tokens."""
        return self.tokens == self.output_tokens


@dataclass(frozen=True)
class WithPeer(Cluster):
    """The cluster and, as its last machine, the peer."""

    @cached_property
    def kv_capacity_tokens(self) -> NDArray[np.int64]:
        return self._unlimited(super().kv_capacity_tokens)

    @cached_property
    def link_bytes_per_s(self) -> NDArray[np.int64]:
        return self._unlimited(super().link_bytes_per_s)

    @staticmethod
    def _unlimited(values: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.append(values[:-1], _NO_LIMIT)


class LiveAccounts(Accounts):
    """Writes what happens into the requests themselves: there is no end at which arrays would be full."""

    def __init__(self, cluster: Cluster, view: ClusterView):
        super().__init__(cluster, NOBODY, view)
        self.requests: dict[int, LiveRequest] = {}

    def arrived(self, prompt_tokens: int) -> None:
        pass

    def routed(self, job: Job) -> None:
        pass

    def prompt_started(self, job: Job, now_ns: int) -> None:
        request = self.requests[job.request_id]
        if request.start_ns == NEVER:
            request.start_ns = now_ns

    def prompt_ended(self, job: Job, now_ns: int) -> None:
        pass

    def transfer_started(self, job: Job, now_ns: int) -> None:
        self.requests[job.request_id].start_ns = now_ns

    def transfer_ended(self, job: Job, now_ns: int) -> None:
        pass

    def transfer_aborted(self, job: Job) -> None:
        pass

    def decode_started(self, job: Job, now_ns: int) -> None:
        pass

    def preempted(self, job: Job) -> None:
        self.requests[job.request_id].preemptions += 1

    def cancelled(self, job: Job) -> None:
        pass

    def finished(self, job: Job, now_ns: int) -> None:
        pass
