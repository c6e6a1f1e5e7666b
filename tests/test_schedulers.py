"""Routing schedulers: masks, determinism, no leak of output lengths, and each one's rule."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_view import MS, make_request, make_view, requests, views

from splitgym.errors import ConfigError
from splitgym.schedulers import RoutingScheduler, routing, routing_names
from splitgym.schedulers.choose import next_random, random_below
from splitgym.types import UNKNOWN, Pool

FEW = settings(max_examples=60, deadline=None)
NO_SPLIT = ("round-robin", "random", "jsq-requests", "jsq-tokens")
names = st.sampled_from(routing_names())


@given(names, views(), st.lists(requests, min_size=1, max_size=4), st.integers(-5, 2**70))
@settings(max_examples=400, deadline=None)
def test_masks_are_respected(name, view, wanted, seed):
    scheduler = routing(name)
    scheduler.reset(view, seed)
    whole = (view.prompt_allowed & view.token_allowed).any()
    for request in wanted:
        p, t = scheduler.route(view, request)
        assert view.prompt_allowed[p] and view.token_allowed[t]
        if name in NO_SPLIT and whole:
            assert p == t


@given(names, views(), st.lists(requests, min_size=1, max_size=4), st.integers(0, 2**64 - 1))
@settings(max_examples=200, deadline=None)
def test_decisions_depend_on_view_requests_and_seed_alone(name, view, wanted, seed):
    scheduler, other = routing(name), routing(name)
    other.reset(view, seed + 1)
    other.route(view, wanted[0])
    decisions = []
    for each in (scheduler, other):
        each.reset(copy.deepcopy(view), seed)
        decisions.append([each.route(view, request) for request in wanted])
    assert decisions[0] == decisions[1]


@pytest.mark.parametrize("name", routing_names())
def test_true_output_length_is_not_read(name):
    scheduler = routing(name)
    view = make_view("PMT", rows=[1, 2, 1])
    view.running[1:], view.running_context_tokens[1:] = 8, 8000
    for used in range(98_000, 100_000, 100):  # an output of 10 fits machine 2, one of 2,000 does not
        view.kv_used_tokens[2] = used
        chosen = set()
        for output in (UNKNOWN, 1, 10, 200, 2000):
            scheduler.reset(view, used)
            chosen.add(scheduler.route(view, make_request(oracle=output)))
        assert len(chosen) == 1


@pytest.mark.parametrize("name", routing_names())
def test_schedulers_are_what_the_protocol_says(name):
    scheduler = routing(name)
    assert isinstance(scheduler, RoutingScheduler)
    assert scheduler.name == name
    assert scheduler.kernel is type(scheduler).kernel  # not bound to the instance: engines call it from Numba


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("fastest", {}, ("'fastest'", "round-robin", "index")),
        ("splitwise", {"threshold": 1}, ("threshold", "max_pending_tokens")),
        ("random", {"seed": 1}, ("seed", "none")),
        ("splitwise", {"max_pending_tokens": -1}, ("splitwise", "max_pending_tokens")),
        ("index-tuned", {"preset": "default"}, ("preset",)),
    ],
)
def test_bad_names_and_options_are_one_clear_error(name, options, words):
    with pytest.raises(ConfigError) as error:
        routing(name, **options)
    assert all(word in str(error.value) for word in words)


def test_random_numbers_are_splitmix64():
    state = np.array([1234567, 0], np.int64)
    # First outputs for seed 1234567, from the generator's public test vectors.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(next_random(state, 0)) for _ in range(3)] == expected
    draws = np.bincount([random_below(state, 0, 5) for _ in range(2000)], minlength=5)
    assert draws.min() > 300 and len(draws) == 5


# --- The paper's scheduler: own pool, mixed, opposite pool, whole request ---


def fill_prompts(view, m, tokens=8000):
    """Machine m has a long prompt queue for any prompt of 193 tokens or more."""
    view.prompt_requests[m], view.prompt_tokens[m] = 1, tokens


def fill_memory(view, m, used=99_000):
    view.kv_used_tokens[m] = used


def test_splitwise_takes_the_shortest_queue_and_least_memory_of_its_pools():
    view = make_view("PPMTT")
    view.prompt_tokens[:] = 300, 200, 0, 0, 0
    view.kv_used_tokens[:] = 0, 0, 0, 500, 400
    assert routing("splitwise").route(view, make_request()) == (1, 4)


def test_splitwise_counts_one_pending_token_a_token_task():
    view = make_view("PPT")
    view.prompt_tokens[:2] = 10, 10
    view.running[0], view.inbound[0] = 1, 1
    view.running[1] = 1
    assert routing("splitwise").route(view, make_request())[0] == 1


def test_splitwise_counts_promised_memory():
    view = make_view("PTT")
    view.kv_used_tokens[1:] = 100, 200
    view.inbound[1], view.inbound_prompt_tokens[1] = 1, 60  # expected to become 60 + 150
    assert routing("splitwise").route(view, make_request()) == (0, 2)


def test_splitwise_ties_go_to_the_lowest_index():
    assert routing("splitwise").route(make_view("TTPP"), make_request()) == (2, 0)


def test_splitwise_queue_is_long_only_if_something_waits_and_the_threshold_is_passed():
    view = make_view("PMT")
    view.prompt_tokens[0] = 9000  # all of it in the iteration in progress
    assert routing("splitwise").route(view, make_request())[0] == 0
    view.prompt_requests[0] = 1
    assert routing("splitwise").route(view, make_request())[0] == 1
    view.prompt_tokens[0] = 7192  # pending + prompt = 8192: not above
    assert routing("splitwise").route(view, make_request())[0] == 0
    assert routing("splitwise", max_pending_tokens=8191).route(view, make_request())[0] == 1


def test_splitwise_prompt_overflows_into_mixed_then_converts_a_token_machine():
    view = make_view("PPMTT")
    for m in (0, 1):
        fill_prompts(view, m)
    assert routing("splitwise").route(view, make_request()) == (2, 3)
    fill_prompts(view, 2)
    view.running[3] = 5
    view.kv_used_tokens[4] = 10_000
    assert routing("splitwise").route(view, make_request()) == (4, 3)


def test_splitwise_only_the_shortest_queue_of_a_pool_is_tested():
    view = make_view("PPMT")
    fill_prompts(view, 0, 8000)
    view.prompt_tokens[1] = 8100  # longer, though nothing waits in it
    assert routing("splitwise").route(view, make_request())[0] == 2


def test_splitwise_memory_is_loaded_from_capacity_on():
    view = make_view("PMT")
    view.kv_used_tokens[2] = 100_000 - 1150
    assert routing("splitwise").route(view, make_request())[1] == 1
    view.kv_used_tokens[2] -= 1
    assert routing("splitwise").route(view, make_request())[1] == 2


def test_splitwise_token_overflows_into_mixed_then_converts_a_prompt_machine():
    view = make_view("PPMTT")
    for m in (3, 4):
        fill_memory(view, m)
    assert routing("splitwise").route(view, make_request()) == (0, 2)
    fill_memory(view, 2)
    view.kv_used_tokens[0] = 10
    assert routing("splitwise").route(view, make_request()) == (0, 1)


def test_splitwise_goes_by_present_pools():
    view = make_view("PPTT")
    view.pool[0] = Pool.MIXED  # a prompt machine that decodes now
    assert routing("splitwise").route(view, make_request()) == (1, 2)
    fill_memory(view, 2)
    fill_memory(view, 3)
    assert routing("splitwise").route(view, make_request()) == (1, 0)


def test_splitwise_runs_the_whole_request_where_fewest_tokens_pend_when_nothing_is_left():
    view = make_view("MMM")
    for m, tokens in enumerate((9000, 8500, 8700)):
        fill_prompts(view, m, tokens)
    assert routing("splitwise").route(view, make_request()) == (1, 1)
    # A token machine alone is not enough either: both phases go together.
    view = make_view("MMM")
    view.running[0] = 1
    for m in range(3):
        fill_memory(view, m)
    assert routing("splitwise").route(view, make_request()) == (1, 1)


def test_splitwise_confined_pools_never_convert():
    view = make_view("PPTT")
    view.prompt_allowed[2:] = 0
    view.token_allowed[:2] = 0
    for m in (0, 1):
        fill_prompts(view, m, 9000 - m)
    for m in (2, 3):
        fill_memory(view, m, 99_900 - m)
    assert routing("splitwise").route(view, make_request()) == (1, 3)


def test_splitwise_estimates_the_output_unless_it_is_an_oracle():
    view = make_view("PMT")
    view.kv_used_tokens[2] = 100_000 - 1100  # room for 100 tokens of output; the mean is 150
    scheduler = routing("splitwise")
    assert scheduler.route(view, make_request())[1] == 1
    assert scheduler.route(view, make_request(max_tokens=50))[1] == 2
    assert scheduler.route(view, make_request(max_tokens=500))[1] == 1
    oracle = routing("splitwise", oracle=True)
    view.oracle_promised_tokens[2] = 100_000 - 1100
    assert oracle.route(view, make_request(oracle=50))[1] == 2
    assert oracle.route(view, make_request(oracle=100))[1] == 1
    with pytest.raises(ConfigError, match="oracle"):
        oracle.route(view, make_request(oracle=UNKNOWN))


# --- Baselines ---


def test_round_robin_takes_turns_among_machines_allowed_for_both_phases():
    view = make_view("MPTM")
    view.token_allowed[1] = 0
    scheduler = routing("round-robin")
    scheduler.reset(view, 0)
    assert [scheduler.route(view, make_request()) for _ in range(4)] == [(0, 0), (2, 2), (3, 3), (0, 0)]


def test_jsq_counts_requests_or_tokens():
    view = make_view("MMM")
    view.prompt_requests[:], view.inbound[:], view.running[:] = (2, 1, 0), (2, 1, 0), (0, 0, 3)
    view.prompt_tokens[:] = 1000, 1500, 1200
    assert routing("jsq-requests").route(view, make_request()) == (1, 1)
    assert routing("jsq-tokens").route(view, make_request()) == (0, 0)


@pytest.mark.parametrize("name", NO_SPLIT)
def test_no_split_falls_back_to_a_machine_for_each_phase(name):
    view = make_view("PT")
    view.token_allowed[0] = view.prompt_allowed[1] = 0
    assert routing(name).route(view, make_request()) == (0, 1)


def test_split_round_robin_keeps_two_turns():
    view = make_view("PTPMT")
    scheduler = routing("split-round-robin")
    scheduler.reset(view, 0)
    pairs = [scheduler.route(view, make_request()) for _ in range(4)]
    assert [p for p, _ in pairs] == [0, 2, 3, 0]
    assert [t for _, t in pairs] == [1, 3, 4, 1]


def test_split_jsq_uses_home_pools_while_one_is_allowed():
    view = make_view("PPTT")
    view.prompt_tokens[:2] = 50, 40
    view.running[2:], view.inbound[2:] = (3, 1), (0, 3)
    assert routing("split-jsq").route(view, make_request()) == (1, 2)
    view.prompt_allowed[:2] = 0
    assert routing("split-jsq").route(view, make_request()) == (2, 2)


@given(st.integers(0, 2**32))
@FEW
def test_power_of_two_with_two_candidates_takes_the_less_loaded(seed):
    view = make_view("PPTTT")
    view.prompt_tokens[:2] = 50, 40
    view.running[2:] = 3, 9, 1
    scheduler = routing("power-of-two")
    scheduler.reset(view, seed)
    p, t = scheduler.route(view, make_request())
    assert p == 1 and t in (2, 4)


def test_random_reaches_every_machine():
    view = make_view("MMMM")
    scheduler = routing("random")
    scheduler.reset(view, 3)
    assert {scheduler.route(view, make_request()) for _ in range(80)} == {(m, m) for m in range(4)}


def test_least_e2e_weighs_waiting_speed_and_transfer():
    view = make_view("MMM", rows=[1, 1, 2])  # machine 2 is twice as fast
    assert routing("least-e2e").route(view, make_request()) == (2, 2)
    view.prompt_queue_ns[2] = 50 * MS  # less than it saves
    assert routing("least-e2e").route(view, make_request()) == (2, 2)
    view.prompt_queue_ns[2] = 500 * MS
    assert routing("least-e2e").route(view, make_request()) == (0, 2)
    view.transfer_constant_ns[:] = 10_000 * MS  # shipping costs more than waiting
    assert routing("least-e2e").route(view, make_request()) == (2, 2)
