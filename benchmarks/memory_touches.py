"""What memory alone costs the engine: its cache lines touched in its own order, and nothing computed.

    python benchmarks/memory_touches.py [--json FILE] [--repeats N] [--seconds 20]

A run of the compiled engine with the paper's scheduler tells when each request came, where it went and when
its stages were over. From that follows which records the engine has in its hands, in which order: machines,
requests, their outcomes, batches, the trees of iterations and of transfers, and the board. A loop then adds
1 to a number in each of these cache lines, in memory laid out as the engine's. It does so in two ways:

- `independent`: no addition waits for another, and lines are fetched ahead as far as it is best at that size:
  the least that they can cost.
- `in_turn`: an event's lines are known when those of the event before have come, as where a guess about them
  was wrong; what is fetched ahead are the lines of a later event, as far ahead as it is best.

(The engine reads some lines to learn which is next, and touches more where an iteration ends without a
completion.) `would_be_ratio` is what 4,000 machines over 40 would have been, had the lines cost as little
as at 40.
"""

from functools import partial

import numpy as np
from harness import Report, arguments, seconds
from simulator import SIZES

from splitgym import schedulers, trace
from splitgym.cluster import Cluster
from splitgym.compile_cache import numba
from splitgym.config import ClusterConfig, parse_machines
from splitgym.sim import make_engine
from splitgym.sim.compiled import records as rec
from splitgym.sim.compiled.board import FEW, GROUP
from splitgym.sim.compiled.reach import fetcher, long_at, put_long
from splitgym.sim.compiled.wide import FAN, opaque

ARRIVE, PROMPT_START, PROMPT_END, SHIPPED, DECODE_START, FINISH = range(6)
STAGES = ("arrival_ns", "prompt_start_ns", "prompt_end_ns", "transfer_end_ns", "decode_start_ns", "finish_ns")
AHEAD = (0, 16, 32, 64, 128, 256)
"""Lines fetched ahead: distances that are tried. 0: none is."""
EVENTS_AHEAD = (0, 1, 2, 4)
BOARD_ROWS = 4
TREE_BYTES, DUE_BYTES = 12, rec.DUE.itemsize
PLANNED = 2
"""Levels of the tree of transfers that a new one changes: it comes later than most."""

_fetch = fetcher(1)


@numba.njit
def note(touched, count, start, size):
    """Note the lines of `size` bytes from byte `start` on; returns how many are noted now."""
    for line in range(start >> 6, (start + size - 1 >> 6) + 1):
        touched[count] = line
        count += 1
    return count


@numba.njit
def note_tree(touched, count, start, leaf, levels, node_bytes):
    """A leaf of a tree has changed: a node and its neighbour at so many levels, or at all."""
    place = leaf
    while place > 1 and levels > 0:
        count = note(touched, count, start + node_bytes * (place & ~1), 2 * node_bytes)
        place >>= 1
        levels -= 1
    return count


@numba.njit
def note_sink(touched, count, start, size, item):
    """The first item of a heap is taken: two at every level, on some way down."""
    place, way = 0, size
    while place < size:
        count = note(touched, count, start + item * place, 2 * item)
        way = way * 1103515245 + 12345 & 0x7FFFFFFF
        place = 2 * place + 1 + (way >> 16 & 1)
    return count


@numba.njit
def note_board(touched, count, start, padded, bounds, m):
    """A machine is written on the board: a number in each row, and the bounds of its block and group."""
    for row in range(BOARD_ROWS + 2 * bounds):
        place = start + 8 * row * 2 * padded
        count = note(touched, count, place + 8 * m, 8)
        if bounds:
            count = note(touched, count, place + 8 * (padded + m // FAN), 8)
    return count


@numba.njit
def take(free, num_free, used):
    """(place, free places left, places ever used): the place that was freed last, else a fresh one."""
    if num_free:
        return free[num_free - 1], num_free - 1, used
    return used, 0, used + 1


@numba.njit
def lines_of(kinds, requests, sources, targets, sizes, bases, stride, touched, ends):
    """Fill the lines that the events touch, in order, and where each event's end; returns how many."""
    machines, leaves, dues, padded, bounds = sizes
    at_machines, at_jobs, at_rows, at_batches, at_dues, at_tree, at_board = bases
    every = 64  # levels
    slots, free = np.zeros(len(sources), np.int64), np.zeros(len(sources), np.int64)
    berths, empty = np.zeros(len(sources), np.int64), np.zeros(len(sources), np.int64)
    num_free = used = num_empty = flights = count = 0
    batch = np.zeros(machines, np.int64)
    for i in range(len(kinds)):
        kind, request = kinds[i], requests[i]
        p, t = sources[request], targets[request]
        if kind == ARRIVE:
            slots[request], num_free, used = take(free, num_free, used)
        job = at_jobs + rec.JOB_BYTES * slots[request]
        row = at_rows + rec.OUTCOME_BYTES * request
        source, target = at_machines + rec.MACHINE_BYTES * p, at_machines + rec.MACHINE_BYTES * t
        tasks = at_batches + stride * t
        if kind == ARRIVE:
            count = note(touched, count, job, rec.JOB_BYTES)
            count = note(touched, count, row, rec.OUTCOME_BYTES)
            for part in range(BOARD_ROWS - 1):  # the block in which the token machine is found
                block = at_board + 8 * (part * 2 * padded + t // FAN * FAN)
                count = note(touched, count, block, 8 * FAN)
            count = note(touched, count, source + 256, 192)
            count = note(touched, count, target + 256, 128)
        elif kind == PROMPT_START:
            count = note(touched, count, source, rec.MACHINE_BYTES)
            count = note(touched, count, job, rec.JOB_BYTES)
            count = note(touched, count, row, 64)
            count = note(touched, count, target, rec.MACHINE_BYTES)
            count = note_tree(touched, count, at_tree, leaves + p, every, TREE_BYTES)
            berths[request], num_empty, flights = take(empty, num_empty, flights)
            count = note_tree(touched, count, at_dues, dues + berths[request], PLANNED, DUE_BYTES)
        elif kind == PROMPT_END:
            count = note(touched, count, source, rec.MACHINE_BYTES)
            count = note(touched, count, job, 64)
            count = note(touched, count, row + 32, 64)
            count = note_tree(touched, count, at_tree, leaves + p, every, TREE_BYTES)
        elif kind == SHIPPED:
            count = note_tree(touched, count, at_dues, dues + berths[request], every, DUE_BYTES)
            empty[num_empty] = berths[request]
            num_empty += 1
            count = note(touched, count, job, rec.JOB_BYTES)
            count = note(touched, count, row + 64, 64)
            count = note(touched, count, source + 256, 192)
            count = note(touched, count, target, rec.MACHINE_BYTES)
            count = note(touched, count, tasks + rec.TASK_BYTES * batch[t], rec.TASK_BYTES)
            count = note(touched, count, tasks + rec.TASK_BYTES * (batch[t] >> 1), rec.TASK_BYTES)
            batch[t] += 1
            count = note_board(touched, count, at_board, padded, bounds, p)
        elif kind == DECODE_START:
            count = note(touched, count, target, 256)
            count = note(touched, count, row + 80, 8)
            count = note_tree(touched, count, at_tree, leaves + t, every, TREE_BYTES)
        else:
            count = note(touched, count, target, 256)
            count = note_sink(touched, count, tasks, batch[t], rec.TASK_BYTES)
            batch[t] -= 1
            count = note(touched, count, job, 64)
            count = note(touched, count, row + 40, 8)
            count = note_tree(touched, count, at_tree, leaves + t, every, TREE_BYTES)
            free[num_free] = slots[request]
            num_free += 1
        if kind in (ARRIVE, FINISH):
            count = note_board(touched, count, at_board, padded, bounds, t)
        ends[i] = count
    return count


@numba.njit
def touch_lines(memory, touched, ahead):
    """Add 1 to a number in every line; fetch the one that comes `ahead` later."""
    last = len(touched) - ahead
    for i in range(len(touched)):
        if ahead and i < last:
            _fetch(memory + 64 * touched[i + ahead])
        place = 8 * touched[i]
        put_long(memory, place, long_at(memory, place) + 1)


@numba.njit
def touch_events(memory, touched, ends, ahead):
    """As `touch_lines`, but no event's addresses are known before the numbers of the last one have come."""
    start = total = 0
    for i in range(len(ends)):
        if ahead and i + ahead < len(ends):
            for line in range(ends[i + ahead - 1], ends[i + ahead]):
                _fetch(memory + 64 * touched[line])
        base = memory + (opaque(total) - total)  # the same, but not for the processor
        for line in range(start, ends[i]):
            place = 8 * touched[line]
            number = long_at(base, place) + 1
            put_long(base, place, number)
            total += number
        start = ends[i]
    return total


def plan(outcomes, machines, stride):
    """(lines in order, where each event's end, bytes of memory) that a run of the engine touched."""
    count = len(outcomes.arrival_ns)
    times = np.stack([getattr(outcomes, name) for name in STAGES])
    kinds, requests = np.divmod(np.argsort(times, axis=None, kind="stable"), count)
    happened = times.reshape(-1)[kinds * count + requests] >= 0
    kinds, requests = kinds[happened], requests[happened]
    order = np.lexsort((kinds, times[kinds, requests]))
    leaves = 1 << (machines - 1).bit_length()
    steps = np.cumsum(np.where(kinds[order] == PROMPT_START, 1, 0) - (kinds[order] == SHIPPED))
    dues = 1 << (int(steps.max()) - 1).bit_length()
    padded = -(-machines // GROUP) * GROUP
    regions = (
        machines * rec.MACHINE_BYTES,
        count * rec.JOB_BYTES,
        count * rec.OUTCOME_BYTES,
        (machines + 1) * stride,
        2 * dues * DUE_BYTES,
        2 * leaves * TREE_BYTES,
        (BOARD_ROWS + 2) * 2 * padded * 8,
    )
    ends = np.cumsum([-(-size // 4096) * 4096 for size in regions])
    bases = tuple(int(base) for base in (0, *ends[:-1]))
    touched = np.empty(count * 400, np.int64)
    sizes = (machines, leaves, dues, padded, int(machines > FEW))
    where = outcomes.prompt_machine, outcomes.token_machine
    last = np.empty(len(order), np.int64)
    found = lines_of(kinds[order], requests[order], *where, sizes, bases, stride, touched, last)
    return touched[:found].astype(np.int32), last, int(ends[-1])


def measure(machines: int, length_s: float, repeats: int, report: Report) -> dict[str, float]:
    """ns a request of one core: `engine`, `independent`, `in_turn`."""
    spec, rate = SIZES[machines]
    workload = trace.poisson(trace.load("azure-conv-synth"), rate, length_s, seed=0)
    cluster = Cluster.resolve(ClusterConfig(machines=parse_machines(spec)))
    engine = make_engine(cluster, schedulers.routing("splitwise"), schedulers.sizing("static"), "compiled")

    def run() -> None:
        engine.reset(workload)
        engine.run_until_decision()

    run()
    stride = (cluster.config.batching.max_tasks + 5) * rec.TASK_BYTES
    touched, ends, size = plan(engine.outcomes(), machines, stride)
    memory = np.zeros(size + 64, np.uint8)
    address = memory.ctypes.data + -memory.ctypes.data % 64
    ways = {
        "engine": [run],
        "independent": [partial(touch_lines, address, touched, ahead) for ahead in AHEAD],
        "in_turn": [partial(touch_events, address, touched, ends, ahead) for ahead in EVENTS_AHEAD],
    }
    name = f"memory_touches.m{machines}"
    report.add(f"{name}.lines_per_request", [len(touched) / len(workload)], "lines")
    report.add(f"{name}.distinct_mb", [len(np.unique(touched)) * 64 / 1e6], "MB")
    found = {}
    for way, forms in ways.items():
        times = [np.array(seconds(form, repeats)) / len(workload) * 1e9 for form in forms]
        best = min(times, key=np.median)
        report.add(f"{name}.{way}", best.tolist(), "ns a request")
        found[way] = float(np.median(best))
    return found


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the workload, simulated")
    options = parser.parse_args()
    report = Report("one core's time for a request: the engine, and its cache lines alone")
    few = measure(40, 3 * options.seconds, 8 * options.repeats, report)
    many = measure(4000, options.seconds, options.repeats, report)
    report.add("memory_touches.ratio", [few["engine"] / many["engine"]], "ratio")
    for way in ("independent", "in_turn"):
        more = many[way] - few[way]
        report.add(f"memory_touches.would_be_ratio.{way}", [few["engine"] / (many["engine"] - more)], "ratio")
    report.finish(options.json)


if __name__ == "__main__":
    main()
