"""A simulation's arrays, made from Python."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.errors import TraceError
from splitgym.observation import rows
from splitgym.schedulers.choose import PAIR_ROWS
from splitgym.schedulers.lanes import BLOCK, LANES, lanes_of, num_blocks
from splitgym.schedulers.network import NETWORK_SCRATCH
from splitgym.sim.compiled import decide, loop, show
from splitgym.sim.compiled import records as rec
from splitgym.sim.compiled.berths import FIRST_BERTHS, NO_DUES
from splitgym.sim.compiled.state import NONE
from splitgym.sim.compiled.template import Ints, Template, address_of, aligned
from splitgym.sim.outcomes import TIMELINE_FIELDS, Outcomes
from splitgym.trace import Trace
from splitgym.types import NS_PER_S, to_ns
from splitgym.view import ClusterView

FIRST_SLOTS = 256
DRAINED_ROWS = 1 << 16
"""Finished requests that a streaming simulation keeps before they are drained."""
_SPARE = ("jobs", "heap", "dues", "berths", "batches")
"""Arrays whose contents mean nothing at the begin of a run: they are taken over from the one before."""


class Arrays:
    """One simulation's memory. `sim` is its record: what compiled functions take.

    Args:
        template: of the cluster and the schedulers.
        trace: the requests.
        options: the schedulers' (params, state, params, state).
        fast: how the routing decisions are made, see `decide.fast_form`.
        streaming: `trace` holds the first requests, others are fed later, and what has finished is drained;
            `outcomes` then holds the machines' totals only.
        before: a simulation of the same template that nobody needs any more; its memory is used again.
    """

    def __init__(
        self,
        template: Template,
        trace: Trace,
        options: tuple[NDArray[Any], ...],
        fast: int = 0,
        streaming: bool = False,
        before: "Arrays | None" = None,
    ):
        self.cluster = template.cluster
        self._streaming, self._blanked = streaming, False
        self._head, self._kept = template.copy()
        self.sim = self._head[0]
        self._set_requests(trace)
        self._set_room(min(FIRST_SLOTS, len(trace) + 1), before)
        self._set_view()
        for name, array in zip(
            ("routing_params", "routing_state", "sizing_params", "sizing_state"), options, strict=True
        ):
            self._keep(name, array)
        self._set(fast=fast, num_params=len(options[0]), num_sizing_params=len(options[2]))
        self.prepare(fast, len(options[0]))
        self._set_log(trace)
        for fault in self.cluster.config.faults:
            at_ns = to_ns(fault.at_s)
            loop.plan_fault(self.sim, fault.machine, at_ns, at_ns + to_ns(fault.duration_s))

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            self.sim[name] = value

    def _keep(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """Hold an array, and tell the simulation where it is."""
        assert array.flags.c_contiguous
        self._kept[name] = array
        self.sim[name] = address_of(array)
        if name == "outcomes" and not self._streaming:  # a request fills in its own when it comes
            self.sim["rows"] = self.sim[name]
        return array

    @property
    def address(self) -> int:
        """Of the record."""
        return int(self._head.ctypes.data)

    @property
    def order(self) -> Ints:
        """(N,) requests in the order in which they complete; the rest of it is not meant."""
        return self._kept["order"]

    # ---- making -------------------------------------------------------------------------------------------

    def _set_requests(self, trace: Trace) -> None:
        count, machines = len(trace), self.cluster.num_machines
        if self._streaming:
            self.outcomes = Outcomes.empty(None, machines)
            rows = DRAINED_ROWS + self.cluster.config.batching.max_tasks
            self._keep("outcomes", np.empty(rows, rec.OUTCOME))
            self._set(streaming=1, result_rows=rows)
            self.feed(trace)
            return
        results = self._keep("outcomes", aligned(count, rec.OUTCOME))
        self.outcomes = out = Outcomes.empty(trace, machines, {name: results[name] for name in rec.RESULTS})
        self._keep("order", np.empty(count, np.int64))
        self._keep("arrivals", out.arrival_ns)
        self._keep("prompts", out.prompt_tokens)
        self._keep("outputs", out.output_tokens)
        if trace.max_tokens is not None:
            self._keep("limits", np.ascontiguousarray(trace.max_tokens, np.int64))
        self._set(num_requests=count, unfinished=count)

    def _set_room(self, slots: int, before: "Arrays | None") -> None:
        """Slots for requests in flight, batches, a heap of events, and berths of transfers, few at first."""
        if before is not None:
            for name in _SPARE:
                self._keep(name, before._kept[name])
            self._kept["jobs"]["in_use"][: before.sim["used_slots"]] = 0
        else:
            machines = self.cluster.num_machines
            self._keep("jobs", aligned(slots, rec.JOB))["in_use"] = 0
            self._keep("heap", aligned(8 * (slots + machines) + 1024, rec.EVENT))
            leaves = max(
                FIRST_BERTHS, 1 << (slots - 1).bit_length()
            )  # as many as requests in flight, at most
            self._keep("dues", aligned(2 * leaves, rec.DUE))
            self._keep("berths", aligned(leaves, rec.BERTH))
            rows = (machines + 1) * int(self.sim["task_stride"]) // rec.TASK.itemsize
            self._keep("batches", aligned(rows, rec.TASK))
        if self._streaming:
            self._keep("rows", np.empty(len(self._kept["jobs"]), rec.OUTCOME))
        self._set(num_slots=len(self._kept["jobs"]), heap_rows=len(self._kept["heap"]))
        self._kept["dues"][: len(NO_DUES)] = NO_DUES
        self._set(free_berth=NONE, used_berths=0, berth_leaves=FIRST_BERTHS)

    def _set_view(self) -> None:
        """A view whose arrays are the simulation's own."""
        arrays: dict[str, Any] = dict(zip(show.VIEW_LONGS, self._kept["view_longs"], strict=True))
        arrays |= zip(show.VIEW_FLAGS, self._kept["view_flags"], strict=True)
        arrays["prompt_share"] = self._kept["view_reals"]
        arrays["clock"] = self._head["now"]
        arrays["counters"], arrays["mean_output"] = self._head["counters"][0], self._head["mean_output"][0]
        for name in ("clock", "counters", "mean_output"):
            self.sim[f"{name}_at"] = address_of(arrays[name])
        self.view: ClusterView = self.cluster.blank._replace(**arrays)

    def prepare(self, fast: int, num_params: int) -> None:
        """Make what a routing scheduler's fast form looks at; the next decision shows it all machines.

        Args:
            fast: the form, see `decide.fast_form`.
            num_params: numbers among the scheduler's options.
        """
        count = self.cluster.num_machines
        self._kept["machines"]["touched"] = 1
        self._kept["touched_list"][:] = np.arange(count)
        self._set(touched=count)
        if fast == decide.OBSERVED:
            lanes = self._keep("lanes", np.empty(num_blocks(count) * rows.SEEN_BLOCK))
            shown = self._keep("shown", np.zeros((count, rows.NUM_FEATURES), np.float32))
            rows.lay_all(self.cluster.blank, lanes, shown)
        if fast not in (decide.INDEX, decide.RESIDUAL):
            return
        blocks = self._keep("lanes", lanes_of(self.cluster.blank))
        count = len(blocks) // BLOCK
        self._keep("lane_steps", np.zeros(count * PAIR_ROWS * LANES, np.int64))
        self._keep("lane_least", np.zeros(PAIR_ROWS * LANES, np.int64))
        self._keep("lane_scratch", np.zeros(NETWORK_SCRATCH + num_params))

    def _set_log(self, trace: Trace) -> None:
        self._keep("timeline", np.zeros((256, len(TIMELINE_FIELDS)), np.int64))
        # One decision may count all contiguous iterations of every machine.
        margin = self.cluster.num_machines * (int(trace.output_tokens.max(initial=0)) + 8) + 1024
        rows = 2 * margin if self.sim["logging"] else 1
        self._keep("log", np.zeros((rows, 4), np.int64))
        self._set(timeline_rows=256, log_rows=rows, log_margin=margin)

    def feed(self, trace: Trace | None) -> None:
        """The next requests; None: there are no more. Those fed before have all come.

        Raises:
            TraceError: they come before those fed earlier.
        """
        if trace is None:
            self._set(more=0)
            return
        arrivals = np.rint(trace.arrival_s * NS_PER_S).astype(np.int64)
        before = self._kept.get("arrivals")
        if before is not None and len(before) and len(arrivals) and arrivals[0] < before[-1]:
            raise TraceError(
                f"{trace.name}: its first request comes at {arrivals[0] / 1e9:g} s, before the last of the "
                f"chunk above ({before[-1] / 1e9:g} s): give chunks in the order of time"
            )
        count, known = len(trace), int(self.sim["num_requests"])
        columns = {"arrivals": arrivals, "prompts": trace.prompt_tokens, "outputs": trace.output_tokens}
        if trace.max_tokens is not None:
            columns["limits"] = trace.max_tokens
        self._set(limits=0)
        for name, column in columns.items():
            self._keep(name, np.ascontiguousarray(column, np.int64))
            self.sim[name] -= 8 * known  # compiled code counts from the very first request
        self._set(num_requests=known + count, unfinished=int(self.sim["unfinished"]) + count, more=1)
