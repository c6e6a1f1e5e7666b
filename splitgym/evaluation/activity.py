"""What each machine did when, of one run: for pictures. Made from what the requests went through."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitgym.sim import Outcomes

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Activity:
    """One row a request; times in ns, -1 where they have not come, those of its last attempt."""

    machine_names: tuple[str, ...]  # (M,) type and home pool
    arrival_ns: Ints  # (N,)
    prompt_start_ns: Ints  # (N,)
    prompt_end_ns: Ints  # (N,)
    transfer_end_ns: Ints  # (N,)
    decode_start_ns: Ints  # (N,)
    finish_ns: Ints  # (N,)
    prompt_machine: Ints  # (N,)
    token_machine: Ints  # (N,)
    prompt_tokens: Ints  # (N,)

    @classmethod
    def of(cls, outcomes: Outcomes, machine_names: tuple[str, ...]) -> "Activity":
        """A copy of what the run leaves."""
        return cls(
            machine_names,
            *(
                np.array(getattr(outcomes, name))
                for name in (
                    "arrival_ns",
                    "prompt_start_ns",
                    "prompt_end_ns",
                    "transfer_end_ns",
                    "decode_start_ns",
                    "finish_ns",
                    "prompt_machine",
                    "token_machine",
                    "prompt_tokens",
                )
            ),
        )

    def waiting(self, edges_ns: Ints) -> NDArray[np.float64]:
        """(M, B) mean number of prompts that wait on each machine, in bins with B + 1 edges.

        A prompt waits from its arrival to the start of its computation.
        """
        return self._mean(edges_ns, self.prompt_machine, self.arrival_ns, self.prompt_start_ns)

    def decoding(self, edges_ns: Ints) -> NDArray[np.float64]:
        """(M, B) mean number of requests that decode on each machine, in bins with B + 1 edges."""
        return self._mean(edges_ns, self.token_machine, self.decode_start_ns, self.finish_ns)

    def _mean(self, edges_ns: Ints, machine: Ints, start_ns: Ints, end_ns: Ints) -> NDArray[np.float64]:
        edges = np.asarray(edges_ns, np.float64)
        found = np.zeros((len(self.machine_names), len(edges) - 1))
        for m in range(len(self.machine_names)):
            rows = (machine == m) & (start_ns >= 0)
            starts = start_ns[rows].astype(np.float64)
            ends = np.where(end_ns[rows] >= 0, end_ns[rows], edges[-1]).astype(np.float64)
            # Time spent before x, summed over requests: at x, min(x, end) - min(x, start).
            before = np.array([np.minimum(x, ends).sum() - np.minimum(x, starts).sum() for x in edges])
            found[m] = np.diff(before) / np.diff(edges)
        return found
