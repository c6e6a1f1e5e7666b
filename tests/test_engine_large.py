"""What the compiled engine does for clusters of hundreds of machines, and between runs: the same results."""

import numpy as np
import pytest
from test_engines_agree import assert_same
from tiny import tiny_cluster, tiny_trace

from splitgym import schedulers, trace
from splitgym.cluster import Cluster
from splitgym.compile_cache import numba
from splitgym.config import ClusterConfig, Fault, parse_machines
from splitgym.sim.compiled import board, template
from splitgym.sim.compiled.board import GROUP
from splitgym.sim.compiled.lists import BESIDE_BITS, first_end, runner_up, set_end
from splitgym.sim.compiled.state import FAR
from splitgym.sim.compiled.wide import (
    EMPTY,
    FAN,
    SAFE,
    bound_within,
    floor_within,
    least_bound,
    least_floor,
    least_long,
    long_within,
)
from splitgym.sim.compiled_engine import CompiledEngine
from splitgym.sim.simpy_engine import simpy_engine


def run_splitwise(make, cluster, workload):
    engine = make(cluster, schedulers.routing("splitwise"), schedulers.sizing("static"))
    engine.reset(workload)
    assert engine.run_until_decision() is None
    return engine


@pytest.mark.parametrize(
    ("machines", "rate_per_s"), [("h100-80gb:20P+a100-80gb:280T", 300.0), ("h100-80gb:290P10T", 700.0)]
)
def test_large_clusters_agree(machines, rate_per_s, monkeypatch):
    """Several groups on the board, and what comes next is fetched ahead; few prompt machines, then few token
    machines, so that pools overflow.
    """
    monkeypatch.setattr(template, "LARGE", 256)
    faults = (Fault(machine=3, at_s=0.5, duration_s=1.0), Fault(machine=295, at_s=0.7, duration_s=0.5))
    cluster = Cluster.resolve(ClusterConfig(machines=parse_machines(machines), faults=faults))
    assert cluster.num_machines > GROUP
    workload = trace.poisson(trace.load("azure-code-synth"), rate_per_s, 3.0, seed=5)
    spec = run_splitwise(simpy_engine, cluster, workload).outcomes()
    fast = run_splitwise(CompiledEngine, cluster, workload)
    assert fast._simulation.sim["large"]
    assert_same(spec, fast.outcomes())
    assert len(set(spec.prompt_machine)) > 20 and len(set(spec.token_machine)) > 20


@pytest.mark.parametrize(("machines", "few"), [("h100-80gb:14P+a100-80gb:26T", 1), ("h100-80gb:40P50T", 0)])
def test_middle_clusters_agree(machines, few):
    """Several blocks of the board, without bounds and with them, in one group; a pool overflows at times."""
    faults = (Fault(machine=3, at_s=0.5, duration_s=1.0), Fault(machine=35, at_s=0.7, duration_s=0.5))
    cluster = Cluster.resolve(ClusterConfig(machines=parse_machines(machines), faults=faults))
    workload = trace.poisson(trace.load("azure-code-synth"), 120.0, 4.0, seed=7)
    spec = run_splitwise(simpy_engine, cluster, workload).outcomes()
    fast = run_splitwise(CompiledEngine, cluster, workload)
    assert fast._simulation.sim["few"] == few
    assert_same(spec, fast.outcomes())
    assert len(set(spec.prompt_machine)) > 10 and len(set(spec.token_machine)) > 10


def test_sixteen_at_a_time():
    """The least of a block, and the first place that is low enough, as NumPy finds them; ties, and none."""
    rng = np.random.default_rng(2)
    arrays = [rng.integers(0, 12, 48).astype(np.float64) for _ in range(3)]
    longs = rng.integers(-6, 6, 48)
    addresses = [array.ctypes.data for array in (*arrays, longs)]
    low, high, third = arrays
    for first, factor in ((0, 0.0), (7, 0.5), (16, 0.25), (32, 1.0)):
        part = slice(first, first + FAN)
        expected = (
            longs[part],
            ((low + (high - low) * factor) * SAFE)[part],
            np.maximum(third, low + high * factor)[part],
        )
        for after in (0, 3, FAN - 1):
            for shift in (-1, 0, 3):
                found = search(*addresses, first, factor, shift, after)
                for numbers, (least, place) in zip(expected, found, strict=True):
                    assert least == numbers.min()
                    places = np.flatnonzero(numbers[after:] <= numbers.min() + shift)
                    assert place == after + places[0] if len(places) else place >= FAN


@numba.njit
def search(a, b, c, longs, first, factor, shift, after):
    """(least, first place that is at most `shift` above it) by each of the formulas."""
    number = least_long(longs, 0, 0, first, factor)
    bound = least_bound(a, b, 0, first, factor)
    floor = least_floor(a, b, c, first, factor)
    return (
        (number, long_within(longs, 0, 0, first, factor, number + shift, after)),
        (bound, bound_within(a, b, 0, first, factor, bound + shift, after)),
        (floor, floor_within(a, b, c, first, factor, floor + shift, after)),
    )


def test_the_boards_bounds_hold():
    """After a run: no machine of a block is expected to hold less than the block's bounds say."""
    cluster = Cluster.resolve(ClusterConfig(machines=parse_machines("h100-80gb:20P60T")))
    workload = trace.poisson(trace.load("azure-conv-synth"), 120.0, 10.0, seed=6)
    engine = CompiledEngine(cluster, schedulers.routing("splitwise"), None)
    engine.reset(workload)
    for _ in range(4):
        engine.run_until_decision()
        engine.apply(0)
    simulation = engine._simulation
    sim, kept = simulation.sim, simulation._kept
    expected = kept["board_expected"].reshape(3, -1)[1]
    low, high = (kept[name].reshape(3, -1)[1] for name in ("board_low", "board_high"))
    padded, blocks = int(sim["num_padded"]), int(sim["num_blocks"])
    lowest, _, highest = sim["means"].reshape(3, -1)[1]
    assert lowest < highest and np.isfinite(expected).sum() > FAN
    for mean in np.linspace(lowest, highest, 5):
        share = (mean - lowest) / (highest - lowest)
        ahead = np.maximum(kept["board_used"], expected + kept["board_requests"] * mean)
        for numbers, size in (
            (slice(padded, padded + blocks), FAN),
            (slice(padded + blocks, padded + blocks + 1), GROUP),
        ):
            bounds = low[numbers] + share * (high[numbers] - low[numbers])
            least = np.minimum(EMPTY, ahead).reshape(-1, size).min(axis=1)
            assert (bounds * (1 - 1e-9) <= least).all()
            filled = least < EMPTY
            assert filled.any() and (bounds[filled] >= 0.5 * least[filled]).all()  # and are worth something


def test_the_least_memory_is_found():
    """Five times in a run of 400 machines: the one that a look at all of them finds, whatever the mean."""
    cluster = Cluster.resolve(ClusterConfig(machines=parse_machines("h100-80gb:150P200T50M")))
    workload = trace.poisson(trace.load("azure-conv-synth"), 800.0, 12.0, seed=6)
    engine = CompiledEngine(cluster, schedulers.routing("splitwise"), None)
    engine.reset(workload)
    rng = np.random.default_rng(3)
    asked = 0
    for _ in range(5):
        engine.run_until_decision()
        sim, view = engine._simulation.sim, engine.view
        requests = view.running + view.inbound
        tokens = view.running_prompt_tokens + view.inbound_prompt_tokens
        for mean in rng.uniform(50.0, 400.0, 6):
            for near in mean * rng.uniform(
                0.99, 1.01, 4
            ):  # the bounds that were made for the first still hold
                promised = np.maximum(view.kv_used_tokens, tokens + requests * near)
                for pool in (1, 2):
                    among = np.where(view.pool == pool, promised, np.inf)
                    if np.isfinite(among).any():
                        m, least = board.least_memory(sim, pool, near, -1, np.inf)
                        assert (m, least) == (among.argmin(), among.min())
                        asked += 1
        engine.apply(0)
    assert asked > 150


def test_ends_of_iterations():
    """The first machine of all, the lowest index on ties; and the first of those not beside it."""
    count = 200
    engine = CompiledEngine(tiny_cluster("M" * count))
    engine.reset(tiny_trace((0.0, 10, 2)))
    sim = engine._simulation.sim
    rng = np.random.default_rng(1)
    ends, beside = np.full(count, FAR), np.arange(count) >> BESIDE_BITS
    for i in range(2_000):
        m, time = i % count if i < count else int(rng.integers(count)), int(rng.integers(40))
        set_end(sim, m, time)
        ends[m] = time
        if i < count:
            continue
        first = int(np.argmin(ends))
        assert first_end(sim) == first
        others = np.where(beside == beside[first], FAR, ends)
        assert ends[runner_up(sim, first)] == others.min()


def test_a_run_leaves_nothing_behind_for_the_next():
    """A reset in the middle of a run, with requests in every phase, then another trace."""
    cluster = tiny_cluster("PPTM")
    first = tiny_trace(*[(0.001 * i, 600 + i, 40) for i in range(300)])
    second = tiny_trace(*[(0.003 * i, 20 + 5 * i, 1 + i % 30) for i in range(200)])
    engine = CompiledEngine(cluster, None, schedulers.sizing("static"))
    engine.reset(first)
    for i in range(250):
        engine.run_until_decision()
        engine.apply((i % 4, (i + 1) % 4))
    outcomes = []
    for run in (engine, CompiledEngine(cluster, None, schedulers.sizing("static"))):
        run.reset(second)
        i = 0
        while run.run_until_decision() is not None:
            run.apply((i % 4, (i + i // 4) % 4))
            i += 1
        outcomes.append(run.outcomes())
    assert_same(*outcomes)
