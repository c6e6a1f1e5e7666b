"""A simulation: its arrays grown and read from Python."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.sim.compiled import state as st
from splitgym.sim.compiled.setup import Arrays
from splitgym.sim.compiled.template import Ints, aligned
from splitgym.sim.outcomes import NEVER, RESULT_COUNTS, RESULT_TIMES, Outcomes
from splitgym.types import UNKNOWN, RequestInfo


class Simulation(Arrays):
    """One simulation, see `Arrays`."""

    def grow(self, why: int) -> None:
        """Double the array that is full."""
        if why == st.GROW_JOBS:
            old = self._kept["jobs"]  # all in use
            jobs = self._keep("jobs", self._doubled(old))
            jobs["in_use"][len(old) :] = 0
            if self._streaming:
                self._keep("rows", self._doubled(self._kept["rows"]))
            for name in ("dues", "berths"):
                self._keep(name, self._doubled(self._kept[name]))
            self._set(num_slots=len(jobs))
            return
        name, size = {
            st.GROW_HEAP: ("heap", "heap_rows"),
            st.GROW_TIMELINE: ("timeline", "timeline_rows"),
            st.GROW_LOG: ("log", "log_rows"),
        }[why]
        old = self._kept[name]
        self.sim[size] = len(self._keep(name, np.concatenate([old, np.zeros_like(old)])))

    @staticmethod
    def _doubled(old: NDArray[Any]) -> NDArray[Any]:
        """The same records with room for as many behind them."""
        new = aligned(2 * len(old), old.dtype)
        new.view(np.uint8)[: old.nbytes] = old.view(np.uint8)
        return new

    def drain(self) -> NDArray[Any]:
        """(K,) `OUTCOME` records of the requests that finished since the last call, in that order."""
        count = int(self.sim["finished"]) - int(self.sim["drained"])
        rows = self._kept["outcomes"][:count].copy()
        self._set(drained=int(self.sim["finished"]))
        return rows

    def request(self) -> RequestInfo:
        """The request of the pending routing decision."""
        job = self._kept["jobs"][self.sim["asked"]]
        return RequestInfo(
            request_id=int(job["request"]),
            arrival_ns=int(self._kept["rows" if self._streaming else "outcomes"][job["row"]]["arrival_ns"]),
            prompt_tokens=int(job["prompt_tokens"]),
            max_tokens=int(job["max_tokens"]),
            oracle_output_tokens=int(job["output_tokens"]) if self.cluster.config.oracle else UNKNOWN,
            attempt=int(job["attempt"]),
        )

    def log(self) -> list[list[int]]:
        """Rows (time, kind, request, machine) of a recorded run."""
        rows: list[list[int]] = self._kept["log"][: self.sim["events"]].tolist()
        return rows

    def read(self, idle_watts: Ints) -> Outcomes:
        """Outcomes as of now."""
        out, machines, now = self.outcomes, self._kept["machines"], int(self.sim["now"])
        if not self._streaming:
            self._blank_to_come()
            known = len(out.finish_order)
            out.finish_order += self._kept["order"][known : self.sim["finished"]].tolist()
        out.end_ns = now
        for name in ("busy_ns", "prompt_busy_ns", "generated_tokens", "prompted_tokens"):
            getattr(out, name)[:] = machines[name]
        failing = np.where(machines["down"] > 0, now - machines["failed_at"], 0)
        out.up_ns[:] = now - machines["down_ns"] - failing
        idle_ns = np.maximum(0, out.up_ns - out.busy_ns)
        out.energy_j[:] = (machines["watts_ns"] + idle_watts * idle_ns) / 1e9
        known = len(out.timeline)
        out.timeline += [tuple(row) for row in self._kept["timeline"][known : self.sim["samples"]].tolist()]
        return out

    def _blank_to_come(self) -> None:
        """What outcomes say of requests that have not come. Once: each writes its own when it comes."""
        if not self._blanked:
            rest = self._kept["outcomes"][self.sim["next_row"] :]
            for names, value in ((RESULT_TIMES, NEVER), (RESULT_COUNTS, 0)):
                for name in names:
                    rest[name] = value
            self._blanked = True
