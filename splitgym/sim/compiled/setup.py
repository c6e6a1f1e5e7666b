"""A simulation's arrays, made from Python."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.cluster import Cluster
from splitgym.errors import TraceError
from splitgym.observation import rows
from splitgym.schedulers.choose import PAIR_ROWS
from splitgym.schedulers.lanes import BLOCK, LANES, lanes_of, num_blocks
from splitgym.schedulers.network import NETWORK_SCRATCH
from splitgym.sim.compiled import board, decide, loop, show
from splitgym.sim.compiled import records as rec
from splitgym.sim.compiled import state as st
from splitgym.sim.outcomes import NEVER, TIMELINE_FIELDS, Outcomes
from splitgym.trace import Trace
from splitgym.types import NS_PER_S, to_ns
from splitgym.view import ClusterView

Ints = NDArray[np.int64]
FIRST_SLOTS = 256
DRAINED_ROWS = 1 << 16
"""Finished requests that a streaming simulation keeps before they are drained."""
_COUNTS = ("attempts", "preemptions", "prompts_computed", "lost_tokens")


def address_of(array: NDArray[Any]) -> int:
    """Where an array's numbers begin. (`array.ctypes.data` takes five times as long.)"""
    numbers = array.view(np.uint8) if array.dtype.names else array  # a record's names would be listed first
    address: int = numbers.__array_interface__["data"][0]
    return address


class Arrays:
    """One simulation's memory. `sim` is its record: what compiled functions take.

    Args:
        cluster: what is simulated.
        trace: the requests.
        watts: `power_watts` of the cluster.
        kinds: places of the schedulers in `ROUTING_KINDS` and `SIZING_KINDS`, or -1 to ask; `fast_form`.
        options: their (params, state, params, state).
        record: keep a log of all events.
        streaming: `trace` holds the first requests, others are fed later, and what has finished is drained;
            `outcomes` then holds the machines' totals only.
        slots: room for so many requests in flight from the start.
    """

    def __init__(
        self,
        cluster: Cluster,
        trace: Trace,
        watts: Ints,
        kinds: tuple[int, int, int],
        options: tuple[NDArray[Any], ...],
        record: bool = False,
        streaming: bool = False,
        slots: int = 0,
    ):
        self.cluster = cluster
        self._streaming = streaming
        self.outcomes = Outcomes.empty(None if streaming else trace, cluster.num_machines)
        self._head = np.zeros(1, np.dtype((np.record, rec.HEAD)) if rec.IN_PYTHON else rec.HEAD)
        self.sim = self._head[0]
        self._kept: dict[str, NDArray[Any]] = {}
        self._set_rules(record, kinds)
        self._set_machines()
        self._set_requests(trace, slots)
        self._set_tables(watts)
        self._set_view()
        for name, array in zip(
            ("routing_params", "routing_state", "sizing_params", "sizing_state"), options, strict=True
        ):
            self._keep(name, array)
        self._set(num_params=len(options[0]), num_sizing_params=len(options[2]))
        self.prepare(kinds[2], len(options[0]))
        self._set_log(trace)
        for fault in cluster.config.faults:
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

    def _set_rules(self, record: bool, kinds: tuple[int, int, int]) -> None:
        config = self.cluster.config
        batching = config.batching
        rules = self.cluster.blank.rules
        vllm = batching.rule == "vllm"
        self._set(
            max_prompt_tokens=batching.max_prompt_tokens,
            max_tasks=batching.max_tasks,
            max_passed_over=getattr(batching, "max_passed_over", 0),
            rule=st.VLLM if vllm else st.PAPER,
            block_size=getattr(batching, "block_size", 1),
            kv_bytes=self.cluster.kv_bytes_per_token,
            view_overlap_min=rules.overlap_min_tokens,
            # vLLM ships caches when the whole prompt is computed, and reserves no more than what is there:
            # outputs get blocks as they grow.
            overlap_min=np.iinfo(np.int64).max if vllm else rules.overlap_min_tokens,
            reserve_all=vllm or config.kv_reserve == "at_transfer",
            shared=config.transfer.shared,
            confine=config.confine,
            switch_delay=to_ns(config.switch_delay_s),
            control_interval=to_ns(config.control_interval_s),
            next_control=to_ns(config.control_interval_s),
            min_pool=config.min_pool_machines,
            oracle=config.oracle,
            logging=record,
            routing=kinds[0],
            sizing=kinds[1],
            fast=kinds[2],
            ttft_slo=rules.ttft_slo,
            tbt_slo=rules.tbt_slo,
            held_head=st.NONE,
            held_tail=st.NONE,
            rerated_head=st.NONE,
        )

    def _set_machines(self) -> None:
        cluster, count = self.cluster, self.cluster.num_machines
        machines = self._keep("machines", np.zeros(count, rec.MACHINE))
        for name in machines.dtype.names or ():
            if name.endswith(("_head", "_tail")):
                machines[name] = st.NONE
        machines["index"] = np.arange(count)
        machines["row"] = cluster.machine_row
        machines["home_pool"] = machines["pool"] = cluster.home_pools
        machines["capacity"] = cluster.kv_capacity_tokens
        machines["bandwidth"] = np.maximum(1, cluster.link_bytes_per_s // 64)
        machines["transfer_constant_ns"] = cluster.blank.transfer_constant_ns
        machines["idle"] = 1
        leaves = 1 << max(0, count - 1).bit_length()
        # A stride of whole pages would put all batches into the same sets of the processor's caches.
        stride = cluster.config.batching.max_tasks + 5
        self._set(num_machines=count, num_leaves=leaves)
        self._set(task_stride=stride * rec.TASK.itemsize)
        self._keep("batches", np.zeros((count + 1) * stride, rec.TASK))
        machines["posted"] = st.NONE
        padded = -(-count // board.BLOCK) * board.BLOCK
        self._set(num_padded=padded)
        self._keep("board_pending", np.full((board.POOLS, padded), st.FAR, np.int64))
        self._keep("board_least", np.full((board.POOLS, padded // board.BLOCK), st.FAR, np.int64))
        self._keep("board_expected", np.full((board.POOLS, padded), np.inf))
        self._keep("board_requests", np.zeros(padded))
        self._keep("tree", np.full(2 * leaves, st.FAR, np.int64))
        self._keep("next_ends", np.full(count, st.FAR, np.int64))
        self._keep("touched_list", np.zeros(count, rec.SHORT))
        self._keep("wake_list", np.zeros(count, rec.SHORT))
        self._keep("reached", np.zeros(count, rec.SHORT))

    def _set_requests(self, trace: Trace, slots: int) -> None:
        count = len(trace)
        if self._streaming:
            rows = DRAINED_ROWS + self.cluster.config.batching.max_tasks
            self._keep("outcomes", np.zeros(rows, rec.OUTCOME))
            self._set(streaming=1, result_rows=rows)
            self.feed(trace)
        else:
            self._set_outcomes(trace)
        self._set_slots(min(max(FIRST_SLOTS, slots), count + 1))
        heap_rows = 8 * (int(self.sim["num_slots"]) + self.cluster.num_machines) + 1024
        self._keep("heap", np.zeros(heap_rows, rec.EVENT))
        self._set(heap_rows=heap_rows)

    def _set_outcomes(self, trace: Trace) -> None:
        """A place for what becomes of each request."""
        out, count = self.outcomes, len(trace)
        results = self._keep("outcomes", np.empty(count, rec.OUTCOME))
        for name in rec.RESULTS:
            results[name] = 0 if name in _COUNTS else NEVER
            setattr(out, name, results[name])
        self._keep("order", np.zeros(count, np.int64))
        self._keep("arrivals", out.arrival_ns)
        self._keep("prompts", out.prompt_tokens)
        self._keep("outputs", out.output_tokens)
        if trace.max_tokens is not None:
            self._keep("limits", np.ascontiguousarray(trace.max_tokens, np.int64))
        self._set(num_requests=count, unfinished=count)

    def _set_slots(self, size: int) -> None:
        """Slots for requests in flight; those that there are, if any, are all in use."""
        jobs = np.zeros(size, rec.JOB)
        old = self._kept.get("jobs", jobs[:0])
        jobs[: len(old)] = old
        jobs["queue_next"][len(old) : -1] = np.arange(len(old) + 1, size)
        jobs["queue_next"][-1] = st.NONE
        self._keep("jobs", jobs)
        self._set(free_head=len(old), num_slots=size)

    def _set_tables(self, watts: Ints) -> None:
        tables = self.cluster.tables
        for name, array in zip(
            ("knot_tokens", "knot_ns", "knot_counts", "token_base", "token_slope", "mixed_factor"),
            tables,
            strict=True,
        ):
            self._keep(name, np.ascontiguousarray(array))
        self._keep("watts", watts)
        self._set(
            num_types=len(tables.prompt_knots),
            num_knots=tables.prompt_tokens.shape[1],
            num_batches=tables.token_base.shape[1],
            watt_columns=watts.shape[1],
        )

    def _set_view(self) -> None:
        """A view whose arrays are the simulation's own, with the contents of a fresh one."""
        fresh, count = self.cluster.blank, self.cluster.num_machines
        longs = self._keep("view_longs", np.zeros((len(show.VIEW_LONGS), count), np.int64))
        flags = self._keep("view_flags", np.ones((len(show.VIEW_FLAGS), count), np.uint8))
        arrays = dict(zip(show.VIEW_LONGS, longs, strict=True))
        arrays |= dict(zip(show.VIEW_FLAGS, flags, strict=True))
        arrays["prompt_share"] = self._keep("view_reals", np.zeros(count))
        arrays["clock"] = self._head["now"]
        arrays["counters"], arrays["mean_output"] = self._head["counters"][0], self._head["mean_output"][0]
        for name, array in arrays.items():
            array[:] = getattr(fresh, name)
        for name in ("clock", "counters", "mean_output"):
            self.sim[f"{name}_at"] = address_of(arrays[name])
        self.view: ClusterView = fresh._replace(**arrays)

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
