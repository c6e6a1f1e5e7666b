"""One attempt to serve one request."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splitgym.sim.network import Transfer


class Phase(IntEnum):
    """Where a job is."""

    QUEUED = 0  # at the prompt machine, not started
    PROMPT = 1  # in a prompt iteration
    SHIPPING = 2  # prompt done, cache on its way (or waiting for the token machine's memory)
    READY = 3  # cache at the token machine, waiting for memory for its output
    RUNNING = 4  # in the batch of the token machine
    DONE = 5
    CANCELLED = 6  # a machine failed under it; another attempt replaces it


class Job:
    """A request on its way through two machines. A failure cancels the job and makes a new one."""

    __slots__ = (
        "attempt",
        "computed",
        "decision_id",
        "generated",
        "granted",
        "held_prompt",
        "held_token",
        "output_tokens",
        "passed_over",
        "phase",
        "prompt_machine",
        "prompt_tokens",
        "queued_ns",
        "request_id",
        "target",
        "token_machine",
        "transfer",
        "waiting",
    )

    def __init__(self, request_id: int, prompt_tokens: int, output_tokens: int, attempt: int):
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.attempt = attempt
        self.phase = Phase.QUEUED
        self.prompt_machine = -1
        self.token_machine = -1
        self.decision_id = -1
        self.target = prompt_tokens  # tokens to compute before the next one can be generated
        self.computed = 0  # of these, done (a prompt in chunks)
        self.generated = 0
        self.passed_over = 0
        self.waiting = False  # in some machine's `memory_waiters`
        self.granted = False  # memory for the prompt was set aside while it waited
        self.held_prompt = 0  # KV tokens reserved at the prompt machine
        self.held_token = 0  # at the token machine (all of them here when both are one machine)
        self.queued_ns = 0  # predicted time of its prompt alone, as counted in the machine's queue
        self.transfer: Transfer | None = None  # in flight

    @property
    def split(self) -> bool:
        """The two phases run on different machines."""
        return self.prompt_machine != self.token_machine

    def __repr__(self) -> str:
        return (
            f"Job(request {self.request_id}, attempt {self.attempt}, {self.phase.name}, "
            f"{self.prompt_machine}->{self.token_machine})"
        )
