"""Batching where every task that waits ages (`ageing: all`): times worked out by hand (see `tiny.py`)."""

import numpy as np
import pytest
from tiny import MS, Fixed, Moves, tiny_cluster, tiny_profile, tiny_trace

from splitgym.config import ClusterConfig, make
from splitgym.errors import ConfigError
from splitgym.sim.simpy_engine import simpy_engine
from splitgym.types import EventKind


def run(trace, *pairs, pools="M", profile=None, ageing="all", **fields):
    cluster = tiny_cluster(pools, profile, ageing=ageing, **fields)
    engine = simpy_engine(cluster, Fixed(*pairs), Moves(), record=True)
    engine.reset(trace)
    assert engine.run_until_decision() is None
    return engine


def iterations_ms(engine):
    ends = [t for t, kind, _, _ in engine.events if kind is EventKind.ITERATION_END]
    return (np.diff([0, *ends]) // MS).tolist()


@pytest.mark.parametrize(
    ("ageing", "expected"),
    [
        # Theirs chooses anew only when something has happened: the decode keeps the machine once it has it.
        ("all", [10, 2500, 2500, 2500, 2500, 10, 10, 2500, 2500]),
        # The paper's: one iteration, then prompts may pass it over again.
        ("decodes", [10, 2500, 2500, 2500, 2500, 10, 2500, 2500, 10]),
    ],
)
def test_a_decode_passed_over_four_times_goes_first(ageing, expected):
    rows = [(0.0, 10, 3)] + [(0.001 + 0.001 * i, 2500, 1) for i in range(6)]
    assert iterations_ms(run(tiny_trace(*rows), (0, 0), ageing=ageing)) == expected


@pytest.mark.parametrize(("ageing", "second"), [("all", 8), ("decodes", 7)])
def test_the_line_lets_a_young_prompt_jump_it(ageing, second):
    # SplitwiseSim's own order where a prompt takes 3.6 times the time between arrivals (its case m05).
    rows = [(0.827 * i, 3000, 800) for i in range(10)]
    engine = run(tiny_trace(*rows), (0, 0), ageing=ageing)
    order = np.argsort(engine.outcomes().prompt_start_ns).tolist()
    assert order[:8] == [0, 1, 2, 3, 4, 5, 6, second]


def test_a_prompt_that_does_not_fit_holds_up_later_ones_but_no_decode():
    # Request 0 has 119 of 230 KV tokens to the end; 2 would fit beside it, 1 does not.
    rows = [(0.0, 100, 20), (0.15, 150, 2), (0.16, 10, 2)]
    engine = run(tiny_trace(*rows), (0, 0), profile=tiny_profile(capacity=230))
    out = engine.outcomes()
    assert (out.finish_ns[0] // MS, out.prompt_start_ns[1] // MS) == (290, 290)
    assert out.prompt_start_ns[2] == out.prompt_start_ns[1]


def test_a_cache_takes_memory_before_outputs_that_wait():
    # 1's output does not fit while 0 decodes; 2's cache is shipped all the same.
    rows = [(0.0, 100, 60), (0.001, 40, 40), (0.002, 20, 2)]
    profile = tiny_profile(capacity=225, nic_tokens_per_ms=10)
    starts = {}
    for ageing in ("all", "decodes"):
        engine = run(
            tiny_trace(*rows), (0, 1), pools="PT", profile=profile, ageing=ageing, max_prompt_tokens=50
        )
        starts[ageing] = int(engine.outcomes().transfer_start_ns[2] // MS)
    assert starts["all"] == 160 and starts["decodes"] == 100 + 10 + 590


def test_ageing_is_one_of_two():
    with pytest.raises(ConfigError, match="ageing"):
        make(ClusterConfig, batching={"ageing": "prompts"})
