"""vLLM's batching rule, case by case, with times worked out by hand (see `tiny.py`)."""

import numpy as np
import pytest
from tiny import MS, Fixed, Moves, tiny_cluster, tiny_profile, tiny_trace

from splitgym.config import ClusterConfig, VllmBatchingConfig, from_mapping
from splitgym.errors import ConfigError
from splitgym.sim.simpy_engine import simpy_engine
from splitgym.types import EventKind


def run(trace, *pairs, pools="MM", profile=None, **options):
    options.setdefault("block_size", 1)
    engine = simpy_engine(tiny_cluster(pools, profile, vllm=options), Fixed(*pairs), Moves(), record=True)
    engine.reset(trace)
    assert engine.run_until_decision() is None
    return engine


def iterations_ms(engine, machine=0):
    ends = [t for t, kind, _, m in engine.events if kind is EventKind.ITERATION_END and m == machine]
    return (np.diff([0, *ends]) / MS).tolist()


def test_a_long_prompt_is_cut_into_chunks():
    engine = run(tiny_trace((0.0, 250, 3)), (0, 0), max_num_batched_tokens=100)
    assert iterations_ms(engine) == [100, 100, 50, 10, 10]
    assert engine.outcomes().first_token_ns[0] == 250 * MS


def test_decodes_go_first_and_share_an_iteration_with_the_chunk():
    trace = tiny_trace((0.0, 10, 4), (0.001, 150, 1))
    engine = run(trace, (0, 0), max_num_batched_tokens=100)
    # 1.1 x (1 decode + 99 of the prompt), then 1.1 x (1 + 51), then the last decode alone.
    assert iterations_ms(engine) == pytest.approx([10, 110, 1.1 * 52, 10])
    assert engine.outcomes().first_token_ns[1] == engine.outcomes().arrival_ns[0] + round((120 + 57.2) * MS)


def test_later_chunks_pay_for_their_attention_to_earlier_ones():
    # A prompt whose time grows with the square of its length costs the same in chunks as whole.
    quadratic = tiny_profile()
    object.__setattr__(quadratic, "prompt_tokens", (0, 100, 200, 300))
    object.__setattr__(quadratic, "prompt_ns", (0, 10 * MS, 40 * MS, 90 * MS))
    engine = run(tiny_trace((0.0, 300, 1)), (0, 0), profile=quadratic, max_num_batched_tokens=100)
    assert iterations_ms(engine) == [10, 30, 50]


def test_seats():
    trace = tiny_trace(*[(0.0, 10, 3)] * 3)
    engine = run(trace, (0, 0), max_num_seqs=1)
    assert (engine.outcomes().finish_ns / MS).tolist() == [30, 60, 90]


def test_memory_is_given_out_by_blocks():
    # 3 blocks of 50: prompt 60 takes 2; the next prompt of 60 does not fit until the first is done.
    trace = tiny_trace((0.0, 60, 3), (0.0, 60, 1))
    engine = run(trace, (0, 0), profile=tiny_profile(capacity=150), block_size=50)
    assert engine.outcomes().prompt_start_ns[1] == engine.outcomes().finish_ns[0]
    assert engine.cluster.kv_capacity_tokens.tolist() == [150, 150]


def test_capacity_is_whole_blocks():
    cluster = tiny_cluster("MM", tiny_profile(capacity=159), vllm={"block_size": 50})
    assert cluster.kv_capacity_tokens.tolist() == [150, 150]


def test_the_latest_request_is_preempted_and_computed_again():
    # Each needs 30 tokens for its prompt and 20 for its output; 80 hold both prompts, not both outputs.
    trace = tiny_trace((0.0, 30, 20), (0.0, 30, 20))
    engine = run(trace, (0, 0), profile=tiny_profile(capacity=80))
    outcomes = engine.outcomes()
    assert outcomes.preemptions.tolist() == [0, 1]
    assert outcomes.lost_tokens.tolist() == [0, 0]  # what it had generated is computed again, not lost
    assert outcomes.attempts.tolist() == [1, 1]
    assert outcomes.prompted_tokens.sum() > 60
    assert outcomes.generated_tokens.sum() == 40
    assert outcomes.first_token_ns[1] == round((30 + 1.1 * 31) * MS)  # kept through the preemption
    assert outcomes.finish_ns[1] > outcomes.finish_ns[0]


def test_memory_that_a_second_preemption_frees_is_used_at_once():
    # At 310 ms the 59 + 41 tokens of the first two are all there are. The first is preempted; the second gets
    # its seat, the third's cache the memory, so that the second has no block and is preempted too: it starts
    # to compute its prompt again, in chunks, and does not wait for the third's transfer (until 368 ms).
    trace = tiny_trace((0.0, 30, 40), (0.0, 40, 20), (0.0, 58, 2))
    options = {"max_num_batched_tokens": 20, "max_num_seqs": 1}
    engine = run(trace, (0, 0), (1, 0), (1, 0), profile=tiny_profile(capacity=100), **options)
    assert iterations_ms(engine)[:31] == [20, *[10] * 29, 20]
    assert engine.outcomes().transfer_start_ns[2] == 310 * MS
    assert (engine.outcomes().preemptions[:2] >= 1).all()


def test_a_split_ships_the_cache_when_the_whole_prompt_is_computed():
    trace = tiny_trace((0.0, 100, 3))
    engine = run(trace, (0, 1), pools="PT", max_num_batched_tokens=40)
    outcomes = engine.outcomes()
    assert outcomes.transfer_start_ns[0] == 100 * MS
    assert outcomes.transfer_end_ns[0] == 200 * MS
    assert outcomes.finish_ns[0] == 220 * MS


def test_rule_is_chosen_by_name():
    config = from_mapping(ClusterConfig, {"batching": {"rule": "vllm", "max_num_seqs": 8}}, "test")
    assert config.batching == VllmBatchingConfig(max_num_seqs=8)
    with pytest.raises(ConfigError, match="max_num_sequences"):
        from_mapping(ClusterConfig, {"batching": {"rule": "vllm", "max_num_sequences": 8}}, "test")
    with pytest.raises(ConfigError, match="batching"):
        from_mapping(ClusterConfig, {"batching": {"rule": "orca"}}, "test")
