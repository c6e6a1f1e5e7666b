"""What a run leaves: one row a request, totals a machine, and pool sizes over time."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.trace import Trace
from splitgym.types import NS_PER_S

Ints = NDArray[np.int64]

NEVER = -1
"""A time that has not come, a machine that was not used."""

RESULT_TIMES = (
    *("first_token_ns", "finish_ns", "prompt_start_ns", "prompt_end_ns"),
    *("transfer_start_ns", "transfer_end_ns", "decode_start_ns"),
    *("prompt_machine", "token_machine", "decision_id"),
)
RESULT_COUNTS = ("attempts", "preemptions", "prompts_computed", "lost_tokens")
"""What a run adds to the trace: `NEVER`, and 0, before it begins."""

TIMELINE_FIELDS = (
    "time_ns",
    "prompt_machines",
    "token_machines",
    "mixed_machines",
    "prompt_home",
    "token_home",
    "prompt_requests",
    "prompt_tokens",
    "running",
    "in_system",
)
"""Columns of `Outcomes.timeline`, one row a control tick."""


@dataclass
class Outcomes:
    """Struct of arrays. Row i of the request arrays is request i of the trace.

    Times are integer nanoseconds, `NEVER` where they have not come. A request that was restarted by a
    failure, or preempted, keeps its first `first_token_ns`: the client has seen that token.
    """

    arrival_ns: Ints  # (N,)
    prompt_tokens: Ints  # (N,)
    output_tokens: Ints  # (N,)
    first_token_ns: Ints  # (N,)
    finish_ns: Ints  # (N,)
    prompt_start_ns: Ints  # (N,) of the last attempt, like everything below
    prompt_end_ns: Ints  # (N,)
    transfer_start_ns: Ints  # (N,)
    transfer_end_ns: Ints  # (N,)
    decode_start_ns: Ints  # (N,)
    prompt_machine: Ints  # (N,)
    token_machine: Ints  # (N,)
    decision_id: Ints  # (N,) the routing decision that placed it
    attempts: Ints  # (N,) routings
    preemptions: Ints  # (N,) times its KV cache was dropped to free memory
    prompts_computed: Ints  # (N,) prompt computations that ended, recomputations included
    lost_tokens: Ints  # (N,) output tokens computed in attempts that were cut short
    finish_order: list[int]  # request ids in the order in which they completed
    energy_j: NDArray[np.float64]  # (M,)
    busy_ns: Ints  # (M,) time in iterations
    prompt_busy_ns: Ints  # (M,) of that, iterations with prompts
    up_ns: Ints  # (M,) time not failed
    generated_tokens: Ints  # (M,) output tokens computed, lost and recomputed ones included
    prompted_tokens: Ints  # (M,) prompt tokens computed, recomputed ones included
    timeline: list[tuple[int, ...]] = field(default_factory=list)  # rows of TIMELINE_FIELDS
    end_ns: int = 0  # time of the last event so far

    @classmethod
    def empty(
        cls, trace: Trace | None, num_machines: int, columns: dict[str, Ints] | None = None
    ) -> "Outcomes":
        """Outcomes of a run that has not begun; without a trace, of its machines alone.

        Args:
            trace: the requests.
            num_machines: of the cluster.
            columns: arrays for all that a run adds to the trace, where the caller has them.
        """
        n = 0 if trace is None else len(trace)

        def zeros(size: int) -> Ints:
            return np.zeros(size, np.int64)

        none = zeros(0)
        given: dict[str, Any] = dict(columns or {})
        if columns is None:
            given |= {name: np.full(n, NEVER, np.int64) for name in RESULT_TIMES}
            given |= {name: zeros(n) for name in RESULT_COUNTS}
        return cls(
            arrival_ns=none if trace is None else np.rint(trace.arrival_s * NS_PER_S).astype(np.int64),
            prompt_tokens=none if trace is None else trace.prompt_tokens.astype(np.int64),
            output_tokens=none if trace is None else trace.output_tokens.astype(np.int64),
            **given,
            finish_order=[],
            energy_j=np.zeros(num_machines),
            busy_ns=zeros(num_machines),
            prompt_busy_ns=zeros(num_machines),
            up_ns=zeros(num_machines),
            generated_tokens=zeros(num_machines),
            prompted_tokens=zeros(num_machines),
        )
