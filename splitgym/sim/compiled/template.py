"""What all simulations of a cluster have in common, made once: a run begins with copies of it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.cluster import Cluster
from splitgym.sim.compiled import board, show
from splitgym.sim.compiled import records as rec
from splitgym.sim.compiled import state as st
from splitgym.sim.compiled.wide import EMPTY, FAN
from splitgym.types import to_ns

Ints = NDArray[np.int64]

CACHE_LINE = 64
LARGE = 2048
"""From so many machines on their state leaves a core's own caches: what comes next is fetched ahead."""


def address_of(array: NDArray[Any]) -> int:
    """Where an array's numbers begin. (`array.ctypes.data` takes five times as long.)"""
    numbers = array.view(np.uint8) if array.dtype.names else array  # a record's names would be listed first
    address: int = numbers.__array_interface__["data"][0]
    return address


def aligned(count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """(count,) array that nobody has written to; its records begin where a cache line does."""
    size = count * dtype.itemsize
    room = np.empty(size + CACHE_LINE, np.uint8)
    start = -address_of(room) % CACHE_LINE
    return room[start : start + size].view(dtype)


class Template:
    """A simulation's record and arrays before its first event, but for requests and schedulers.

    Args:
        cluster: what is simulated.
        watts: `power_watts` of the cluster.
        kinds: places of the schedulers in `ROUTING_KINDS` and `SIZING_KINDS`, or -1 to ask.
        record: keep a log of all events.
    """

    def __init__(self, cluster: Cluster, watts: Ints, kinds: tuple[int, int], record: bool):
        self.cluster, self.kinds = cluster, kinds
        self.head = np.zeros(1, np.dtype((np.record, rec.HEAD)) if rec.IN_PYTHON else rec.HEAD)
        self.shared: dict[str, NDArray[Any]] = {"watts": watts}
        """Arrays that no simulation writes to."""
        self.own: dict[str, NDArray[Any]] = {}
        """Arrays of which each has a copy."""
        self._set_rules(record)
        self._set_tables()
        self._set_machines()
        self._set_board()
        self._set_view()
        for name, array in self.shared.items():
            self.head[name] = address_of(array)
        self._lay_out()

    def _lay_out(self) -> None:
        """Where each own array lies in one piece of memory, behind the others."""
        self._places: dict[str, tuple[int, Any, tuple[int, ...]]] = {}
        size = 0
        for name, array in self.own.items():
            self._places[name] = size, array.dtype, array.shape
            self.head[name] = size
            size += -(-array.nbytes // CACHE_LINE) * CACHE_LINE
        self._memory = aligned(size, np.dtype(np.uint8))
        for name, array in self.own.items():
            start = self._places[name][0]
            self._memory[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        fields = self.head.dtype.fields
        assert fields is not None
        self._addresses = np.array([fields[name][1] for name in self.own]) // 8

    def copy(self) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """A record of a simulation and its arrays: its own ones copied, those that all share."""
        head, memory = self.head.copy(), aligned(len(self._memory), self._memory.dtype)
        memory[:] = self._memory
        numbers = head.view(np.int64)
        numbers[self._addresses] += address_of(memory)
        kept = dict(self.shared)
        for name, (start, dtype, shape) in self._places.items():
            kept[name] = np.ndarray(shape, dtype, memory.data, start)
        return head, kept

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            self.head[name] = value

    def _set_rules(self, record: bool) -> None:
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
            routing=self.kinds[0],
            sizing=self.kinds[1],
            ttft_slo=rules.ttft_slo,
            tbt_slo=rules.tbt_slo,
            held_head=st.NONE,
            held_tail=st.NONE,
            rerated_head=st.NONE,
            free_head=st.NONE,
        )

    def _set_tables(self) -> None:
        tables = self.cluster.tables
        for name, array in zip(
            ("knot_tokens", "knot_ns", "knot_counts", "token_base", "token_slope", "mixed_factor"),
            tables,
            strict=True,
        ):
            self.shared[name] = np.ascontiguousarray(array)
        self._set(
            num_types=len(tables.prompt_knots),
            num_knots=tables.prompt_tokens.shape[1],
            num_batches=tables.token_base.shape[1],
            watt_columns=self.shared["watts"].shape[1],
        )

    def _set_machines(self) -> None:
        cluster, count = self.cluster, self.cluster.num_machines
        machines = np.zeros(count, rec.MACHINE)
        for name in machines.dtype.names or ():
            if name.endswith(("_head", "_tail")):
                machines[name] = st.NONE
        machines["index"] = np.arange(count)
        machines["row"] = cluster.machine_row
        machines["shown_row"] = cluster.shown_row
        machines["home_pool"] = machines["pool"] = cluster.home_pools
        machines["posted"] = st.NONE
        machines["capacity"] = cluster.kv_capacity_tokens
        machines["bandwidth"] = np.maximum(1, cluster.link_bytes_per_s // 64)
        machines["transfer_constant_ns"] = cluster.blank.transfer_constant_ns
        machines["idle"] = 1
        leaves = 1 << max(0, count - 1).bit_length()
        # The tree's nodes know the first machine below them.
        nodes = np.arange(2 * leaves)
        depth = np.frexp(np.maximum(nodes, 1))[1]
        first = (nodes << (leaves.bit_length() - depth)) - leaves
        # A stride of whole pages would put all batches into the same sets of the processor's caches.
        stride = cluster.config.batching.max_tasks + 5
        self._set(num_machines=count, num_leaves=leaves, large=count >= LARGE)
        self._set(task_stride=stride * rec.TASK.itemsize)
        self.own |= {
            "machines": machines,
            "tree": np.full(2 * leaves, st.FAR, np.int64),
            "tree_machines": first.astype(rec.SHORT),
            "next_ends": np.full(count, st.FAR, np.int64),
            "leads": np.zeros(count, rec.SHORT),
            "touched_list": np.zeros(count, rec.SHORT),
            "wake_list": np.zeros(count, rec.SHORT),
            "reached": np.zeros(count, rec.SHORT),
        }

    def _set_board(self) -> None:
        count, pools = self.cluster.num_machines, board.POOLS
        groups = -(-count // board.GROUP)
        padded, blocks = groups * board.GROUP, groups * FAN
        # Groups are looked at by blocks, too.
        nodes = padded + blocks + -(-groups // FAN) * FAN
        self._set(num_padded=padded, num_blocks=blocks, num_groups=groups, board_nodes=nodes)
        self._set(few=count <= board.FEW)
        self.own |= {
            "board_pending": np.full(pools * nodes, st.FAR, np.int64),
            "board_expected": np.full(pools * padded, np.inf),
            "board_requests": np.zeros(padded),
            "board_used": np.zeros(padded),
            "board_low": np.full(pools * nodes, EMPTY),
            "board_high": np.full(pools * nodes, EMPTY),
        }

    def _set_view(self) -> None:
        """The arrays of a fresh view."""
        fresh = self.cluster.blank
        self.own |= {
            "view_longs": np.array([getattr(fresh, name) for name in show.VIEW_LONGS], np.int64),
            "view_flags": np.array([getattr(fresh, name) for name in show.VIEW_FLAGS], np.uint8),
            "view_reals": fresh.prompt_share.copy(),
        }
        for name in ("counters", "mean_output"):
            self.head[name][0] = getattr(fresh, name)
        self.head["now"] = fresh.clock[0]
