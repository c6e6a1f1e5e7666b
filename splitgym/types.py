"""Small types that every room shares. Imports nothing of the house but the errors."""

from enum import IntEnum
from typing import NamedTuple

NS_PER_S = 1_000_000_000
"""Simulated time is an integer number of nanoseconds."""

UNKNOWN = -1
"""What an integer field says when nothing is known (no `max_tokens` given, no oracle)."""


class Pool(IntEnum):
    """Pool of a machine: by its home, or by the work that it has now."""

    PROMPT = 0
    TOKEN = 1
    MIXED = 2


class EventKind(IntEnum):
    """What happens at one time happens in this order, then by index of the machine or request it concerns.

    (By machine: START, ITERATION_END, SWITCH_END, FAILURE, RECOVERY; by request: TRANSFER_END, REROUTE,
    ARRIVAL.)
    `START` is an idle machine that begins an iteration because work came: at once, before any other event
    of that time, so that the second of two simultaneous prompts is not batched with the first.
    """

    START = 0
    ITERATION_END = 1
    TRANSFER_END = 2
    SWITCH_END = 3
    FAILURE = 4
    RECOVERY = 5
    CONTROL = 6
    REROUTE = 7
    ARRIVAL = 8


class DecisionKind(IntEnum):
    """What an engine asks for."""

    ROUTE = 0
    RESIZE = 1


class RequestInfo(NamedTuple):
    """What a scheduler may know of the request that it routes.

    `max_tokens` is `UNKNOWN` where the client gave none. `oracle_output_tokens` is `UNKNOWN` unless the
    cluster's `oracle` flag is on, which is for studies only. `attempt` counts earlier routings of the same
    request (a machine failed under it).
    """

    request_id: int
    arrival_ns: int
    prompt_tokens: int
    max_tokens: int
    oracle_output_tokens: int
    attempt: int


class Decision(NamedTuple):
    """One question of an engine: where does this request go, or how are the pools resized?

    `request` is None for `RESIZE`. `decision_id` counts from 0 within a run; outcomes name it.
    """

    kind: DecisionKind
    decision_id: int
    now_ns: int
    request: RequestInfo | None


def to_ns(seconds: float) -> int:
    """Seconds to the nearest nanosecond."""
    return round(seconds * NS_PER_S)
