"""What a Splitwise cluster does, case by case, with times worked out by hand (see `tiny.py`)."""

import numpy as np
import pytest
from tiny import MS, Fixed, Moves, tiny_cluster, tiny_profile, tiny_trace

from splitgym.config import Fault
from splitgym.errors import ActionError, TraceError
from splitgym.sim.simpy_engine import SimpyEngine
from splitgym.types import DecisionKind, EventKind, Pool


def run(cluster, trace, *pairs, sizing=None):
    engine = SimpyEngine(cluster, Fixed(*pairs), sizing or Moves(), record=True)
    engine.reset(trace)
    assert engine.run_until_decision() is None
    return engine


def times_ms(engine, field):
    return (getattr(engine.outcomes(), field) / MS).tolist()


# ---- phases and transfer ----------------------------------------------------------------------------------


def test_one_request_takes_prompt_transfer_and_decodes():
    engine = run(tiny_cluster("PT"), tiny_trace((1.0, 100, 4)), (0, 1))
    assert times_ms(engine, "first_token_ns") == [1100]
    assert times_ms(engine, "transfer_start_ns") == [1100]
    assert times_ms(engine, "transfer_end_ns") == [1200]  # a token a millisecond
    assert times_ms(engine, "finish_ns") == [1230]  # three more tokens


def test_no_split_ships_nothing():
    engine = run(tiny_cluster("MM"), tiny_trace((0.0, 100, 4)), (1, 1))
    assert times_ms(engine, "finish_ns") == [130]
    assert engine.outcomes().transfer_start_ns[0] == -1


def test_one_output_token_needs_no_token_phase():
    engine = run(tiny_cluster("PT"), tiny_trace((0.0, 100, 1)), (0, 1))
    assert times_ms(engine, "finish_ns") == [100]
    assert engine.outcomes().transfer_start_ns[0] == -1
    assert [m.used for m in engine.machines] == [0, 0]


def test_layerwise_transfer_of_one_token_output_is_aborted():
    cluster = tiny_cluster("PT", mode="layerwise", overlap_min_tokens=50)
    engine = run(cluster, tiny_trace((0.0, 100, 1), (0.0, 100, 2)), (0, 1))
    assert times_ms(engine, "finish_ns")[0] == 100
    assert [m.used for m in engine.machines] == [0, 0]
    assert [m.reserved for m in engine.machines] == [0, 0]


def test_layerwise_overlap_leaves_the_constant():
    fast = tiny_profile(nic_tokens_per_ms=10)
    engine = run(tiny_cluster("PT", fast, mode="layerwise"), tiny_trace((0.0, 600, 2)), (0, 1))
    assert times_ms(engine, "transfer_start_ns") == [0]
    assert times_ms(engine, "transfer_end_ns") == [605]  # 60 ms of bytes hidden behind 600 ms of prompt
    assert times_ms(engine, "finish_ns") == [615]


def test_layerwise_overlap_cannot_beat_the_wire():
    slow = tiny_profile(nic_tokens_per_ms=0.5)
    engine = run(tiny_cluster("PT", slow, mode="layerwise"), tiny_trace((0.0, 600, 2)), (0, 1))
    assert times_ms(engine, "transfer_end_ns") == [1200]


def test_short_prompts_ship_serially_in_layerwise_mode():
    fast = tiny_profile(nic_tokens_per_ms=10)
    cluster = tiny_cluster("PT", fast, mode="layerwise", overlap_min_tokens=512)
    engine = run(cluster, tiny_trace((0.0, 500, 2)), (0, 1))
    assert times_ms(engine, "transfer_start_ns") == [500]
    assert times_ms(engine, "transfer_end_ns") == [550]


@pytest.mark.parametrize(("shared", "ends"), [(True, [300, 300]), (False, [200, 200])])
def test_transfers_to_one_machine_share_its_nic(shared, ends):
    cluster = tiny_cluster("PPT", shared=shared)
    engine = run(cluster, tiny_trace((0.0, 100, 2), (0.0, 100, 2)), (0, 2), (1, 2))
    assert times_ms(engine, "transfer_end_ns") == ends


def test_a_transfer_speeds_up_when_another_ends():
    # 50 and 150 tokens start together at half speed: 100 ms for the 50, then 100 tokens at full speed.
    cluster = tiny_cluster("PPT", max_prompt_tokens=1)
    trace = tiny_trace((0.0, 150, 2), (0.1, 50, 2))
    engine = run(cluster, trace, (0, 2), (1, 2))
    assert times_ms(engine, "transfer_start_ns") == [150, 150]
    assert times_ms(engine, "transfer_end_ns") == [350, 250]


# ---- batching ---------------------------------------------------------------------------------------------


def test_the_second_of_two_simultaneous_prompts_is_not_batched_with_the_first():
    engine = run(tiny_cluster("PT"), tiny_trace((0.0, 100, 1), (0.0, 100, 1), (0.0, 100, 1)), (0, 1))
    assert times_ms(engine, "first_token_ns") == [100, 300, 300]  # the others are batched together


def test_prompts_are_batched_up_to_the_limit_in_order():
    trace = tiny_trace((0.0, 10, 1), (0.001, 1500, 1), (0.002, 600, 1), (0.003, 500, 1))
    engine = run(tiny_cluster("PT"), trace, (0, 1))
    # 1500 + 600 is over 2,048, and the 500 behind must not overtake the 600.
    assert times_ms(engine, "first_token_ns") == [10, 1510, 2610, 2610]


def test_a_prompt_over_the_limit_runs_alone():
    trace = tiny_trace((0.0, 10, 1), (0.001, 3000, 1), (0.002, 10, 1))
    assert times_ms(run(tiny_cluster("PT"), trace, (0, 1)), "first_token_ns") == [10, 3010, 3020]


def test_a_prompt_over_the_limit_starts_on_a_mixed_machine_busy_with_decoding():
    # The open simulator leaves it until the batch changes by itself; here it waits for one iteration.
    trace = tiny_trace((0.0, 10, 100), (0.015, 2049, 1))
    engine = run(tiny_cluster("MM"), trace, (0, 0))
    assert times_ms(engine, "prompt_start_ns")[1] == 20
    assert times_ms(engine, "first_token_ns")[1] == 20 + 2049  # the decode does not fit beside it


def test_a_mixed_iteration_costs_the_prompt_time_of_all_tokens_times_the_factor():
    trace = tiny_trace((0.0, 10, 100), (0.015, 99, 1))
    engine = run(tiny_cluster("MM"), trace, (0, 0))
    assert times_ms(engine, "first_token_ns")[1] == 20 + 110  # 1.1 x (99 + 1) ms


def test_a_mixed_iteration_takes_no_less_than_its_decodes_alone():
    # 1.1 x (1 + 1) ms would be less than the decode's 10 ms and 1 ms for each of its context tokens.
    trace = tiny_trace((0.0, 10, 100), (0.03, 1, 1))
    engine = run(tiny_cluster("MM", tiny_profile(context_us=1000)), trace, (0, 0))
    assert times_ms(engine, "prompt_start_ns")[1] == 10 + 21
    assert times_ms(engine, "first_token_ns")[1] == 10 + 21 + 22


def test_the_floor_of_a_mixed_iteration_counts_the_decodes_in_it_alone():
    # Room for one decode, of 13 context tokens, beside the prompt of 4; the other has 23.
    trace = tiny_trace((0.0, 10, 100), (0.0, 20, 100), (0.08, 4, 1))
    cluster = tiny_cluster("MM", tiny_profile(context_us=1000), max_prompt_tokens=5)
    engine = run(cluster, trace, (0, 0))
    assert times_ms(engine, "prompt_start_ns") == [0, 10, 30 + (10 + 32) + (10 + 34)]
    assert times_ms(engine, "first_token_ns")[2] == 116 + 10 + 13


def test_a_token_task_passed_over_four_times_goes_first():
    # Long prompts keep coming; the decode is left out of four iterations, then runs although prompts wait.
    rows = [(0.0, 10, 3)] + [(0.011 + 0.001 * i, 2500, 1) for i in range(8)]
    engine = run(tiny_cluster("MM"), tiny_trace(*rows), (0, 0))
    ends = [t for t, kind, _, machine in engine.events if kind is EventKind.ITERATION_END and machine == 0]
    lengths = np.diff([0, *ends]) // MS
    assert lengths.tolist() == [10, 10, 2500, 2500, 2500, 2500, 10, 2500, 2500, 2500, 2500]


def test_at_most_max_tasks_in_a_batch():
    trace = tiny_trace(*[(0.0, 10, 3)] * 4)
    engine = run(tiny_cluster("PT", max_tasks=2), trace, (0, 1))
    assert max(len(m.batch) for m in engine.machines) == 0
    # Prompts: 10, then two, then one; decodes: two at a time on the token machine.
    assert times_ms(engine, "first_token_ns") == [10, 30, 30, 40]
    decoding = sorted(zip(times_ms(engine, "decode_start_ns"), times_ms(engine, "finish_ns"), strict=True))
    for start, _ in decoding:
        assert sum(s <= start < f for s, f in decoding) <= 2


def test_context_makes_each_token_iteration_longer_and_fractions_add_up():
    # 0.3 ns a context token: iterations of 10 ms and 30.3, 30.6, ... ns; the machine carries the fraction.
    profile = tiny_profile(context_us=0.0003)
    engine = run(tiny_cluster("MM", profile), tiny_trace((0.0, 100, 12)), (0, 0))
    slope = 0.0003 * 1000 * 65536
    exact = sum(10 * MS * 65536 + round(slope) * (100 + k) for k in range(1, 12)) >> 16
    assert engine.outcomes().finish_ns[0] - engine.outcomes().first_token_ns[0] == exact


# ---- memory -----------------------------------------------------------------------------------------------


def test_what_does_not_fit_waits_for_the_event_that_frees_memory():
    profile = tiny_profile(capacity=150)
    trace = tiny_trace((0.0, 100, 11), (0.01, 100, 2))
    engine = run(tiny_cluster("PPT", profile), trace, (0, 2), (1, 2))
    first, second = times_ms(engine, "finish_ns")
    assert first == 300  # prompt 100, transfer 100, ten tokens
    assert times_ms(engine, "transfer_start_ns")[1] == 300
    assert second == 300 + 100 + 10


def test_prompt_machine_holds_the_cache_until_it_is_shipped():
    profile = tiny_profile(capacity=150)
    trace = tiny_trace((0.0, 100, 2), (0.01, 100, 2))
    engine = run(tiny_cluster("PT", profile), trace, (0, 1))
    assert times_ms(engine, "prompt_start_ns")[1] == 200  # when the first transfer has ended


@pytest.mark.parametrize(("kv_reserve", "starts"), [("at_decode", 250), ("at_transfer", 260)])
def test_when_output_is_reserved(kv_reserve, starts):
    # The first request has 116 of the 210 tokens until 260 ms; the second needs 51, and 110 with its output.
    profile = tiny_profile(capacity=210, nic_tokens_per_ms=10)
    trace = tiny_trace((0.0, 100, 16), (0.2, 50, 60))
    engine = run(tiny_cluster("PPT", profile, kv_reserve=kv_reserve), trace, (0, 2), (1, 2))
    assert times_ms(engine, "finish_ns")[0] == 100 + 10 + 150
    assert times_ms(engine, "transfer_start_ns")[1] == starts


def test_machines_that_wait_for_each_other_for_ever_drop_the_youngest_cache():
    # Two prompts, batched behind a first one, fill the machine; neither output fits.
    profile = tiny_profile(capacity=110)
    trace = tiny_trace((0.0, 1, 1), (0.0, 50, 20), (0.0, 50, 20))
    engine = run(tiny_cluster("MM", profile), trace, (0, 0))
    outcomes = engine.outcomes()
    assert outcomes.preemptions.tolist() == [0, 0, 1]
    assert outcomes.lost_tokens.tolist() == [0, 0, 1]
    assert (outcomes.finish_ns > 0).all()


def test_an_output_that_fits_goes_ahead_before_a_cache_is_dropped():
    # The one that came first needs 60 more tokens for its output, the other only 5.
    profile = tiny_profile(capacity=110)
    trace = tiny_trace((0.0, 1, 1), (0.0, 50, 60), (0.0, 50, 6))
    outcomes = run(tiny_cluster("MM", profile), trace, (0, 0)).outcomes()
    assert outcomes.preemptions.sum() == 0
    assert outcomes.finish_ns[2] == (1 + 100 + 50) * MS
    assert outcomes.decode_start_ns[1] == outcomes.finish_ns[2]


def test_two_full_machines_that_ship_to_each_other_are_untangled():
    profile = tiny_profile(capacity=120)
    trace = tiny_trace((0.0, 100, 5), (0.0, 100, 5))
    engine = run(tiny_cluster("MM", profile), trace, (0, 1), (1, 0))
    outcomes = engine.outcomes()
    assert outcomes.preemptions.sum() == 1
    assert (outcomes.finish_ns > 0).all()


def test_a_request_that_can_never_fit_is_refused_before_the_run():
    with pytest.raises(TraceError, match=r"row 1: 200 tokens .* never fit machine 0"):
        SimpyEngine(tiny_cluster("PT", tiny_profile(capacity=150))).reset(
            tiny_trace((0.0, 100, 10), (0.0, 100, 100))
        )


# ---- pools ------------------------------------------------------------------------------------------------


def test_a_machine_is_in_the_mixed_pool_while_it_works_for_both_phases():
    engine = SimpyEngine(tiny_cluster("PT"), None, Moves())
    engine.reset(tiny_trace((0.0, 100, 3), (0.05, 100, 3), (1.0, 100, 3)))
    engine.run_until_decision()
    assert engine.view.pool.tolist() == [Pool.PROMPT, Pool.TOKEN]
    engine.apply((1, 1))
    engine.run_until_decision()
    assert engine.view.pool.tolist() == [Pool.PROMPT, Pool.MIXED]
    engine.apply((0, 0))
    engine.run_until_decision()  # all work is done: both are home again
    assert engine.view.pool.tolist() == [Pool.PROMPT, Pool.TOKEN]


def test_resizing_moves_the_least_loaded_machine_and_keeps_the_minimum():
    trace = tiny_trace((0.0, 10, 1000), (0.0, 10, 1000), (0.0, 10, 1000), (30.0, 10, 2))
    cluster = tiny_cluster("PTTT", control_interval_s=1.0)
    engine = run(cluster, trace, (0, 1), (0, 1), (0, 3), (0, 1), sizing=Moves(1, 1, 1, -1))
    home = [row[4] for row in engine.outcomes().timeline[:6]]  # as seen before each tick
    assert home == [1, 2, 3, 3, 2, 2]


def test_a_resized_machine_drains_then_waits_out_the_delay():
    cluster = tiny_cluster("PTT", control_interval_s=1.0, switch_delay_s=3.0)
    trace = tiny_trace((0.0, 10, 151), (0.0, 10, 151), (2.0, 10, 2), (6.0, 10, 2))
    engine = SimpyEngine(cluster, None, Moves(1), record=True)
    engine.reset(trace)
    for pair in ((0, 1), (0, 2)):
        engine.run_until_decision()
        engine.apply(pair)
    engine.run_until_decision()  # at 2 s: machine 1 still decodes, and takes nothing new
    assert engine.view.available.tolist() == [1, 0, 1]
    with pytest.raises(ActionError, match="prompt machine 1, which may not be chosen now"):
        engine.apply((1, 2))
    engine.apply((0, 2))
    engine.run_until_decision()
    assert engine.view.available.tolist() == [1, 1, 1]
    assert engine.view.home_pool.tolist() == [Pool.PROMPT, Pool.PROMPT, Pool.TOKEN]
    finish = engine.outcomes().finish_ns[0]
    assert [t for t, kind, _, _ in engine.events if kind is EventKind.SWITCH_END] == [finish + 3_000 * MS]


def test_confinement_masks_the_opposite_pool():
    engine = SimpyEngine(tiny_cluster("PTM", confine=True), None, Moves())
    engine.reset(tiny_trace((0.0, 10, 2)))
    engine.run_until_decision()
    assert engine.view.prompt_allowed.tolist() == [1, 0, 1]
    assert engine.view.token_allowed.tolist() == [0, 1, 1]


# ---- failures ---------------------------------------------------------------------------------------------


def test_requests_of_a_failed_machine_restart_from_the_prompt():
    cluster = tiny_cluster("PTT", faults=(Fault(1, 0.25, 10.0),))
    engine = SimpyEngine(cluster, Fixed((0, 1)), Moves())
    engine.routing.route = lambda view, request: (0, 1 if view.token_allowed[1] else 2)
    engine.reset(tiny_trace((0.0, 100, 21)))
    assert engine.run_until_decision() is None
    outcomes = engine.outcomes()
    assert outcomes.first_token_ns[0] == 100 * MS  # the client has seen it
    assert outcomes.attempts[0] == 2
    assert outcomes.lost_tokens[0] == 1 + 5  # the first token and five decodes from 200 to 250 ms
    assert outcomes.finish_ns[0] == (250 + 100 + 100 + 200) * MS
    assert outcomes.token_machine[0] == 2


def test_requests_wait_while_no_machine_is_up():
    cluster = tiny_cluster("MM", faults=(Fault(0, 0.5, 2.0), Fault(1, 0.5, 1.0)))
    engine = run(cluster, tiny_trace((0.0, 100, 2), (0.6, 100, 2)), (1, 1))
    assert times_ms(engine, "prompt_start_ns") == [0, 1500]
    assert engine.outcomes().up_ns[1] == engine.outcomes().end_ns - 1000 * MS


def test_a_failure_frees_what_the_other_machine_held():
    cluster = tiny_cluster("PTM", faults=(Fault(1, 0.15, 10.0),))
    engine = SimpyEngine(cluster, None, Moves())
    engine.reset(tiny_trace((0.0, 100, 9)))
    engine.run_until_decision()
    engine.apply((0, 1))
    decision = engine.run_until_decision()  # in the middle of the transfer
    assert decision.kind is DecisionKind.ROUTE and decision.request.attempt == 1
    assert [m.used for m in engine.machines] == [0, 0, 0]
    assert engine.view.kv_used_tokens.tolist() == [0, 0, 0]
    assert engine.network.in_flight == [{}, {}, {}]


# ---- energy -----------------------------------------------------------------------------------------------


def test_energy_by_phase():
    engine = run(tiny_cluster("PT"), tiny_trace((0.0, 100, 4)), (0, 1))
    outcomes = engine.outcomes()
    assert outcomes.energy_j[0] == pytest.approx(0.1 * 1000 + 0.13 * 100)
    assert outcomes.energy_j[1] == pytest.approx(0.03 * 400 + 0.2 * 100)


# ---- the interface ----------------------------------------------------------------------------------------


def test_decisions_and_their_order():
    engine = SimpyEngine(tiny_cluster("PT", control_interval_s=1.0))
    engine.reset(tiny_trace((1.0, 10, 2), (1.0, 10, 2)))
    kinds = []
    while (decision := engine.run_until_decision()) is not None:
        kinds.append((decision.kind, decision.decision_id, decision.now_ns))
        engine.apply((0, 1) if decision.kind is DecisionKind.ROUTE else 0)
    at = 1000 * MS  # the control tick comes before the arrivals of its time
    assert kinds[:3] == [
        (DecisionKind.RESIZE, 0, at),
        (DecisionKind.ROUTE, 1, at),
        (DecisionKind.ROUTE, 2, at),
    ]
    assert engine.outcomes().decision_id.tolist() == [1, 2]


@pytest.mark.parametrize("action", [(2, 0), (0, -1), 1])
def test_impossible_actions_are_refused(action):
    engine = SimpyEngine(tiny_cluster("PT"), None, Moves())
    engine.reset(tiny_trace((0.0, 10, 2)))
    engine.run_until_decision()
    with pytest.raises(ActionError):
        engine.apply(action)
    engine.apply((0, 1))  # the decision is still pending
    with pytest.raises(ActionError, match="no decision is pending"):
        engine.apply((0, 1))


@pytest.mark.parametrize("oracle", [True, False])
def test_true_output_lengths_are_shown_only_to_an_oracle(oracle):
    engine = SimpyEngine(tiny_cluster("PT", oracle=oracle))
    engine.reset(tiny_trace((0.0, 10, 7)))
    request = engine.run_until_decision().request
    assert request.oracle_output_tokens == (7 if oracle else -1)
