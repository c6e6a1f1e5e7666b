"""The sizing network: the reactive rule where it is silent, the forecast, decisions in both engines."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_view import MS, make_view, views
from test_engine_properties import requests
from test_engines_agree import assert_same
from test_sizing import arrivals, at, decode
from tiny import tiny_cluster, tiny_trace

from splitgym.schedulers import SizingNet, routing, sizing
from splitgym.schedulers.sizing import prompt_pressure_after, token_pressure_after
from splitgym.schedulers.sizing_net import (
    FEATURES,
    HIDDEN,
    NETWORK_AT,
    RULE,
    features,
    hidden_of,
    layout,
    pack,
    rates,
    rule_weights,
    size,
    track,
    unpack,
)
from splitgym.sim.compiled_engine import CompiledEngine
from splitgym.sim.simpy_engine import simpy_engine


def net(seed=0, hidden=4, scale=0.3, **rule):
    weights = rule_weights(hidden, **rule)
    weights[NETWORK_AT:] = np.random.default_rng(seed).normal(0, scale, len(weights) - NETWORK_AT)
    return SizingNet(weights=tuple(weights.tolist()))


def seen(view, scheduler):
    """Features after `track`, as the kernel sees them."""
    x = np.empty(FEATURES)
    track(view, scheduler.state)
    features(view, scheduler.state, 1.0, x)
    return x


def test_the_flat_vector_and_its_parts():
    flat = np.arange(size(HIDDEN), dtype=float)
    assert {name: part.shape for name, part in unpack(flat).items()} == layout()
    np.testing.assert_array_equal(pack(unpack(flat)), flat)
    assert hidden_of(size(7)) == 7
    with pytest.raises(ValueError, match="fit no sizing network"):
        hidden_of(size(7) + 1)
    with pytest.raises(ValueError, match="sizing network"):
        SizingNet(weights=(1.0, 2.0))


@given(views(), st.integers(0, 10**6), st.integers(0, 10**9), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_without_a_voice_it_is_the_reactive_rule(view, arrived, tokens, hidden):
    weights = rule_weights(hidden)
    parts = unpack(weights)
    parts["input_weights"][:] = np.random.default_rng(hidden).normal(0, 1, parts["input_weights"].shape)
    moves = []
    for scheduler in (SizingNet(weights=tuple(weights.tolist())), sizing("reactive")):
        view.counters[:] = 0
        scheduler.reset(at(view, 0), 0)
        arrivals(view, arrived, tokens)
        moves.append([scheduler.resize(at(view, t)) for t in (10, 12, 14, 16, 20)])
    assert moves[0] == moves[1]


def test_the_rule_begins_as_reactive_does():
    reactive = sizing("reactive")
    for name, value in RULE.items():
        if hasattr(reactive, name):
            assert getattr(reactive, name) == value


def test_a_loud_network_moves_and_cools_down():
    up, down = (np.flatnonzero(rule_weights(0) == 0)[-2:]).tolist()  # the output biases
    for place, wanted in ((up, 1), (down, -1)):
        weights = rule_weights(0, cool_down_s=6.0)
        weights[place] = 3.0
        scheduler = SizingNet(weights=tuple(weights.tolist()))
        view = make_view("PPTT")
        scheduler.reset(at(view, 100), 0)
        assert [scheduler.resize(at(view, t)) for t in (110, 112, 116)] == [wanted, 0, wanted]
        view = make_view("PT")  # the last one of a pool stays
        scheduler.reset(at(view, 100), 0)
        assert scheduler.resize(at(view, 110)) == 0
    weights[NETWORK_AT - 1] = 1.0  # reach: one more for each eight machines
    big = SizingNet(weights=tuple(weights.tolist()))
    view = make_view("PPPPPPPPPPTTTTTTTTTT")
    big.reset(at(view, 100), 0)
    assert big.resize(at(view, 110)) == -3


def test_pressure_after_a_move():
    view = at(make_view("PPTT"), 100)
    view.prompt_tokens[:2], view.prompt_queue_ns[:2] = 9000, 2000 * MS
    decode(view, slice(2, 4), 40)
    for pressure in (prompt_pressure_after, token_pressure_after):
        assert pressure(view, 1) < pressure(view, 0) < pressure(view, -1)
    moved = at(make_view("PPPT"), 100)
    moved.prompt_tokens[:2], moved.prompt_queue_ns[:2] = 9000, 2000 * MS
    decode(moved, 3, 80)
    assert prompt_pressure_after(view, 1) == pytest.approx(prompt_pressure_after(moved, 0))
    assert token_pressure_after(view, -1) == pytest.approx(token_pressure_after(moved, 0))


def test_it_carries_a_rising_load_on():
    view = make_view("PPTT" * 4)
    scheduler = SizingNet()
    scheduler.reset(at(view, 0), 0)
    for second in range(2, 400, 2):
        arrivals(view, 20, 2 * (2000 + 20 * second))
        track(at(view, second), scheduler.state)
    now = 2000 + 20 * 398
    requests_ahead, tokens_ahead = rates(scheduler.state, 3)
    assert tokens_ahead == pytest.approx(now + 20 * 20, rel=0.02) and requests_ahead == pytest.approx(
        10, 0.01
    )
    assert rates(scheduler.state, 2)[1] < rates(scheduler.state, 1)[1] < rates(scheduler.state, 0)[1] < now
    x = seen(view, scheduler)
    assert x[5] > x[4]  # machines that the load needs: the forecast and of 20 s


def test_it_learns_what_a_move_costs():
    view = make_view("PPTT")
    weights = rule_weights(0)
    weights[-2] = 3.0  # towards prompts
    scheduler = SizingNet(weights=tuple(weights.tolist()))
    scheduler.reset(at(view, 0), 0)
    assert scheduler.resize(at(view, 10)) == 1
    view.home_pool[2], view.available[2] = 0, 0
    for second in (12, 14, 16):
        scheduler.resize(at(view, second))
    view.available[2] = 1
    assert seen(at(view, 18), scheduler)[33] == pytest.approx(0.5 * np.log(1 + 6))
    assert seen(view, scheduler)[29] == 0


def test_features_are_bounded_and_do_not_grow_with_the_cluster():
    found = []
    for factor in (1, 4):
        view = at(make_view("PPPTT" * factor), 50)
        scheduler = SizingNet()
        scheduler.reset(at(view, 0), 0)
        arrivals(view, 600 * factor, 900_000 * factor)
        prompts = view.home_pool == 0
        view.prompt_tokens[prompts], view.prompt_queue_ns[prompts] = 3000, 600 * MS
        decode(view, view.home_pool == 1, 30)
        found.append(seen(at(view, 30), scheduler))
    small, x = found
    # Distances to the split that is needed are in machines, and so are moves and the sizes of the pools.
    of_size = {0, 1, 2, 3, *range(9, 15), 27, 28}
    same = [i for i in range(FEATURES) if i not in of_size]
    np.testing.assert_allclose(x[same], small[same], atol=0.05)
    assert np.abs(x).max() < 4


@settings(max_examples=15)
@given(
    rows=requests,
    seed=st.integers(0, 2**32 - 1),
    delay_s=st.sampled_from([0.0, 0.4]),
    confine=st.booleans(),
    scale=st.sampled_from([0.1, 1.0]),
)
def test_both_engines_decide_alike(rows, seed, delay_s, confine, scale):
    cluster = tiny_cluster("PPTT", switch_delay_s=delay_s, confine=confine, control_interval_s=0.2)
    outcomes = []
    for engine in (simpy_engine, CompiledEngine):
        scheduler = net(seed % 1000, scale=scale, cool_down_s=0.2)
        run = engine(cluster, routing("index-tuned"), scheduler, record=True)
        run.reset(tiny_trace(*rows), seed)
        assert run.run_until_decision() is None
        outcomes.append((run.outcomes(), sorted(run.events)))
    assert outcomes[0][1] == outcomes[1][1]
    assert_same(outcomes[0][0], outcomes[1][0])


def test_it_runs_inside_the_compiled_engine():
    engine = CompiledEngine(tiny_cluster("PPTT"), routing("index"), net())
    assert engine.runs_inside


def test_no_true_output_length_is_in_its_features():
    """The oracle's array and reservations change nothing: what differs between two futures is not seen."""
    view = at(make_view("PPTT"), 100)
    decode(view, slice(2, 4), 20)
    scheduler = net(3)
    before = seen(view, dataclasses.replace(scheduler))
    view.oracle_promised_tokens[:] = 50_000
    np.testing.assert_array_equal(seen(view, dataclasses.replace(scheduler)), before)
