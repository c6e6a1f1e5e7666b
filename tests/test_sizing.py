"""Sizing schedulers: when they move machines, which way, and when they leave them alone."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_view import MS, make_view, views

from splitgym.errors import ConfigError
from splitgym.schedulers import SizingScheduler, sizing, sizing_names
from splitgym.schedulers.sizing import needed_machines, prompt_pressure, token_pressure
from splitgym.types import NS_PER_S
from splitgym.view import ARRIVED_PROMPT_TOKENS, ARRIVED_REQUESTS


def at(view, seconds):
    view.clock[0] = round(seconds * NS_PER_S)
    return view


def arrivals(view, requests, prompt_tokens):
    view.counters[ARRIVED_REQUESTS] += requests
    view.counters[ARRIVED_PROMPT_TOKENS] += prompt_tokens


def decode(view, machines, requests, context=1000):
    view.running[machines] = requests
    view.running_prompt_tokens[machines] = view.running_context_tokens[machines] = requests * context


@given(st.sampled_from(sizing_names()), views(), st.integers(0, 10**6), st.integers(0, 10**9))
@settings(max_examples=150, deadline=None)
def test_same_view_same_moves_within_one_step(name, view, arrived, tokens):
    moves = []
    for _ in range(2):
        scheduler = sizing(name)
        view.counters[:] = 0
        scheduler.reset(at(view, 0), 0)
        arrivals(view, arrived, tokens)
        moves.append([scheduler.resize(at(view, t)) for t in (10, 12, 20)])
    assert moves[0] == moves[1]
    assert all(abs(n) <= 1 for n in moves[0])


@pytest.mark.parametrize("name", sizing_names())
def test_schedulers_are_what_the_protocol_says(name):
    scheduler = sizing(name)
    assert isinstance(scheduler, SizingScheduler)
    assert scheduler.name == name
    assert scheduler.resize(at(make_view("PPTT"), 100)) == 0  # an idle cluster stays as it is


def test_bad_names_and_options():
    with pytest.raises(ConfigError, match="ewma"):
        sizing("pid")
    with pytest.raises(ConfigError, match="cool_down_s"):
        sizing("reactive", cooldown=1)
    with pytest.raises(ConfigError, match="utilisation"):
        sizing("ewma", utilisation=1.5)


def pressed(prompts):
    """4 machines at 100 s: waiting prompts, or crowded decodes."""
    view = at(make_view("PPTT"), 100)
    if prompts:
        view.prompt_tokens[:2] = 9000
        view.prompt_queue_ns[:2] = 2000 * MS
    else:
        decode(view, slice(2, 4), 45)
    return view


def test_reactive_moves_towards_the_pressed_pool():
    assert sizing("reactive").resize(pressed(prompts=True)) == 1
    assert sizing("reactive").resize(pressed(prompts=False)) == -1
    assert sizing("reactive", step=2).resize(pressed(prompts=True)) == 2


def test_reactive_moves_nothing_while_both_pools_are_pressed_or_in_the_band():
    view = pressed(prompts=True)
    decode(view, slice(2, 4), 45)
    assert sizing("reactive").resize(view) == 0
    view = pressed(prompts=True)
    high = prompt_pressure(view)
    assert sizing("reactive", prompt_high=high * 1.01).resize(view) == 0
    assert sizing("reactive", prompt_high=high * 0.99).resize(view) == 1
    decode(view, slice(2, 4), 10)
    crowded = token_pressure(view)
    assert 0.5 < crowded < 1
    assert sizing("reactive", token_low=crowded * 0.99).resize(view) == 0
    assert sizing("reactive", token_low=crowded * 1.01).resize(view) == 1


def test_reactive_cools_down():
    scheduler = sizing("reactive", cool_down_s=6)
    view = pressed(prompts=True)
    assert [scheduler.resize(at(view, t)) for t in (100, 102, 105.9, 106)] == [1, 0, 0, 1]


@pytest.mark.parametrize("pools", ["PPT", "PTT"])
def test_reactive_leaves_the_last_machine_of_a_pool(pools):
    view = at(make_view(pools), 100)
    if pools == "PPT":
        view.prompt_tokens[:2], view.prompt_queue_ns[:2] = 9000, 2000 * MS
    else:
        decode(view, slice(1, 3), 45)
    assert sizing("reactive").resize(view) == 0


def test_pressures_ignore_mixed_machines_and_count_overflow():
    view = at(make_view("PTM"), 100)
    idle = prompt_pressure(view)
    view.prompt_tokens[2], view.prompt_queue_ns[2] = 9000, 2000 * MS
    decode(view, 2, 40)
    assert prompt_pressure(view) == idle and token_pressure(view) == 0
    view.prompt_tokens[1], view.prompt_queue_ns[1] = 9000, 2000 * MS
    assert prompt_pressure(view) > idle
    decode(view, 0, 10)
    crowded = token_pressure(view)
    assert crowded > 0
    view.available[1] = 0
    assert token_pressure(view) == np.inf


def test_token_pressure_sees_memory():
    view = at(make_view("PT", capacity=10_000), 100)
    decode(view, 1, 5, context=1800)
    assert token_pressure(view) == pytest.approx((5 * 1800 + 5 * 150) / 10_000)


def run_ewma(view, prompts_per_s, prompt, seconds=60, every=2, **options):
    """Moves of a load tracker over a constant load, applied to the pools as an engine would."""
    scheduler = sizing("ewma", **options)
    scheduler.reset(at(view, 0), 0)
    sizes = []
    for tick in range(1, seconds // every + 1):
        arrivals(view, prompts_per_s * every, prompts_per_s * every * prompt)
        n = scheduler.resize(at(view, tick * every))
        if n:
            source = np.flatnonzero(view.home_pool == (1 if n > 0 else 0))[0]
            view.home_pool[source] = 0 if n > 0 else 1
        sizes.append(int((view.home_pool == 0).sum()))
    return sizes


def test_ewma_moves_to_the_split_that_the_load_needs_and_stays():
    wanted = {}
    for name, prompt, output in (("prompts", 6000, 20), ("tokens", 200, 400)):
        view = make_view("PPPPTTTT")
        view.mean_output[:] = output * 30, 30
        sizes = run_ewma(view, 20, prompt)
        needs = needed_machines(view, 20.0, 20.0 * prompt, 0.8)
        wanted[name] = 8 * needs[0] / sum(needs)
        assert abs(sizes[-1] - min(max(wanted[name], 1), 7)) <= 0.75
        assert len(set(sizes[-10:])) == 1
        assert all(abs(a - b) <= 1 for a, b in pairwise(sizes))
    assert wanted["prompts"] > 5.5 and wanted["tokens"] < 2


def test_ewma_needs_grow_with_the_load():
    view = make_view("PPTT")
    one = needed_machines(view, 10.0, 10_000.0, 0.8)
    assert needed_machines(view, 20.0, 20_000.0, 0.8) == pytest.approx((2 * one[0], 2 * one[1]))
    assert needed_machines(view, 0.0, 0.0, 0.8) == (0, 0)
    # 2,048 prompt tokens take 320 ms on these machines.
    assert one[0] == pytest.approx(10_000 / (2048 / 0.320) / 0.8)


def test_ewma_counts_from_its_reset():
    view = make_view("PPPPTTTT")
    view.mean_output[:] = 300, 30
    arrivals(view, 10_000, 10)  # another run's: nearly no prompt tokens
    scheduler = sizing("ewma", cool_down_s=0)
    scheduler.reset(at(view, 50), 0)
    arrivals(view, 40, 400_000)
    assert scheduler.resize(at(view, 52)) == 1
