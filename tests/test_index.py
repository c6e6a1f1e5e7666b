"""The index scheduler: its formula, exact separability, ties and special cases."""

import math

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_view import MS, make_request, make_view, requests, views

from splitgym.errors import ConfigError
from splitgym.profile.tables import prompt_time_ns, token_time_ns
from splitgym.schedulers import predict, routing
from splitgym.schedulers.choose import COST_STEP, best_pair
from splitgym.schedulers.index import PRESETS, index_costs
from splitgym.view import SHARE_TIME_CONSTANT_NS

FEW = settings(max_examples=150, deadline=None)
INF = math.inf
weights = st.lists(st.integers(0, 12).map(lambda n: n / 4), min_size=10, max_size=10).map(np.array)


@numba.njit
def brute_force(costs):
    """Every pair, in order."""
    best, pair = np.int64(1) << 62, (-1, -1)
    for p in range(costs.shape[1]):
        for t in range(costs.shape[1]):
            b = costs[2, t] if p == t else costs[1, t]
            if costs[0, p] == np.inf or b == np.inf:
                continue
            cost = np.int64(np.floor(costs[0, p] / COST_STEP + 0.5)) + np.int64(np.floor(b / COST_STEP + 0.5))
            if cost < best:
                best, pair = cost, (p, t)
    return pair


costs_with_ties = st.integers(1, 7).flatmap(
    lambda m: st.lists(
        st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, INF]), min_size=m, max_size=m), min_size=3, max_size=3
    ).map(np.array)
)


@given(costs_with_ties)
@settings(max_examples=600, deadline=None)
def test_best_pair_equals_brute_force_with_ties(costs):
    assert best_pair(costs) == brute_force(costs)


@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
@FEW
def test_best_pair_equals_brute_force_on_any_costs(m, seed):
    costs = np.random.default_rng(seed).normal(size=(3, m)) * 10
    assert best_pair(costs) == brute_force(costs)


@given(views(), requests, weights)
@FEW
def test_index_decides_as_brute_force(view, request, w):
    scheduler = routing("index", **{f"w{i}": float(x) for i, x in enumerate(w)})
    costs = np.empty((3, len(view.running)))
    index_costs(view, request, scheduler.params, costs)
    assert scheduler.route(view, request) == brute_force(costs)


@given(views(coarse=True), requests)
@FEW
def test_index_decides_as_brute_force_where_machines_tie(view, request):
    scheduler = routing("index-tuned")
    costs = np.empty((3, len(view.running)))
    index_costs(view, request, scheduler.params, costs)
    assert scheduler.route(view, request) == brute_force(costs)


def written_out(view, request, w):
    """Every pair's cost in plain Python, straight from the formula of docs/schedulers.md."""
    machines = range(len(view.running))
    now, rules, tables = int(view.clock[0]), view.rules, view.tables
    mean = view.mean_output[0] / view.mean_output[1]
    o = mean if request.max_tokens < 0 else min(mean, request.max_tokens)
    ttft_slo = rules.ttft_slo * prompt_time_ns(tables, 0, request.prompt_tokens)
    tbt_slo = rules.tbt_slo * token_time_ns(tables, 0, 1, request.prompt_tokens + int(o / 2))

    def wait(m):
        return view.prompt_queue_ns[m] + max(0, view.iteration_end_ns[m] - now)

    def own(m):
        return prompt_time_ns(tables, view.machine_row[m], request.prompt_tokens)

    def ttft(p):
        if not view.running[p]:
            return wait(p) + own(p)
        decodes = view.running[p], view.running_context_tokens[p]
        return 1.1 * wait(p) + max(1.1 * own(p), token_time_ns(tables, view.machine_row[p], *decodes))

    def token_time(t, extra):
        n = view.running[t] + view.inbound[t]
        context = view.running_context_tokens[t] + view.inbound_prompt_tokens[t]
        if n + extra == 0:
            return 0
        return token_time_ns(tables, view.machine_row[t], n + extra, context + extra * request.prompt_tokens)

    best = min(ttft(p) for p in machines if view.prompt_allowed[p])
    cost = {}
    for p in machines:
        for t in machines:
            if not (view.prompt_allowed[p] and view.token_allowed[t]):
                continue
            n = view.running[t] + view.inbound[t]
            u = view.prompt_share[t] * SHARE_TIME_CONSTANT_NS
            u = min(0.8, u / (SHARE_TIME_CONSTANT_NS + now - view.prompt_share_at_ns[t]))
            post = o * token_time(t, 1) * (1 + w[0] * u / (1 - u))
            placed = view.running_prompt_tokens[t] + view.inbound_prompt_tokens[t] + n * mean
            short = (
                max(placed, view.kv_used_tokens[t]) + request.prompt_tokens + o - view.kv_capacity_tokens[t]
            )
            post += max(0, short) / (n + 2) * token_time(t, 1)
            if p != t:
                if view.prompt_tokens[t] > 0:
                    post += wait(t)
                if request.prompt_tokens >= rules.overlap_min_tokens:
                    post += view.transfer_constant_ns[t]
                else:
                    size = rules.kv_bytes_per_token * request.prompt_tokens
                    post += size / view.link_bytes_per_s[t] * 1e9
            st_, sb = ttft(p) / ttft_slo, post / max(1, o - 1) / tbt_slo
            c = w[1] * st_ + w[2] * sb
            c += w[3] * min(1, max(0, 4 * (st_ - 0.8))) + w[4] * min(1, max(0, 6 * (sb - 0.85)))
            c += w[5] * (view.running[p] + view.inbound[p]) * own(p) / (mean * tbt_slo)
            c += w[7] * view.running[t] * (token_time(t, 1) - token_time(t, 0)) / tbt_slo
            c += w[8] * own(p) * rules.ttft_slo / ttft_slo
            if best > w[6] * ttft_slo:
                c -= w[9] * min(wait(p) / 1e9, 20)
            cost[p, t] = c
    return cost


@given(views(max_machines=4), requests, weights)
@FEW
def test_costs_are_those_of_the_formula(view, request, w):
    costs = np.empty((3, len(view.running)))
    index_costs(view, request, w, costs)
    expected = written_out(view, request, w)
    for p in range(costs.shape[1]):
        for t in range(costs.shape[1]):
            got = costs[0, p] + costs[2 if p == t else 1, t]
            assert got == pytest.approx(expected.get((p, t), INF), rel=1e-9, abs=1e-9)


def test_idle_cluster_ties_go_to_the_lowest_machines():
    view = make_view("PPTT")
    # Nothing to wait for anywhere: one machine saves the transfer.
    assert routing("index").route(view, make_request()) == (0, 0)
    # Decodes that this prompt would delay are on 0 and 1: the prompt goes to 2, its tokens stay.
    view.running[:2] = 20
    view.running_context_tokens[:2] = 20_000
    assert routing("index").route(view, make_request()) == (2, 2)


def test_diagonal_has_no_transfer_and_no_second_wait():
    view = make_view("MM")
    view.prompt_queue_ns[:] = 700 * MS
    view.prompt_tokens[:] = 2000
    out = np.empty((2, predict.NUM_PREDICTIONS))
    predict.predict_request(view, make_request(1000), out)
    tbt_limit = 1.5 * token_time_ns(view.tables, 0, 1, 1000 + 75)
    extra = (700 * MS + 5 * MS) / 149 / tbt_limit
    assert out[0, predict.TBT_SPLIT] - out[0, predict.TBT_SAME] == pytest.approx(extra)


def test_hopeless_requests_queue_where_the_wait_is_longest():
    view = make_view("MM")
    view.prompt_tokens[:] = 9000
    view.prompt_queue_ns[:] = 10_000 * MS, 15_000 * MS
    usual = {"w1": 0.001, "w2": 0, "w3": 0, "w4": 0}
    assert routing("index", **usual).route(view, make_request())[0] == 0
    assert routing("index", **usual, w9=1).route(view, make_request())[0] == 1
    assert routing("index", **usual, w9=1, w6=1000).route(view, make_request())[0] == 0


def test_memory_shortage_moves_the_token_phase():
    view = make_view("PTT")
    view.kv_used_tokens[1] = 99_900
    view.prompt_allowed[1:] = 0
    view.token_allowed[0] = 0
    assert routing("index").route(view, make_request()) == (0, 2)


def test_known_max_tokens_caps_the_estimate():
    view = make_view("M")
    assert predict.estimated_output(view, make_request(max_tokens=20)) == 20
    assert predict.estimated_output(view, make_request(max_tokens=2000)) == 150
    assert predict.estimated_output(view, make_request()) == 150


def test_presets_and_names():
    assert routing("index").params.tolist() == list(PRESETS["default"])
    assert routing("index-tuned").params.tolist() == list(PRESETS["tuned"])
    tuned = routing("index", preset="tuned", w3=2)
    assert tuned.name == "index-tuned" and tuned.params[3] == 2 and tuned.params[4] == 0.72
    with pytest.raises(ConfigError, match="w10"):
        routing("index", w10=1)
    with pytest.raises(ConfigError, match="preset"):
        routing("index", preset="best")
    with pytest.raises(ConfigError, match="w0"):
        routing("index", w0=math.nan)


def test_prompt_share_decays_by_a_rational_rule():
    view = make_view("M")
    view.prompt_share[0] = 0.6
    view.clock[0] = SHARE_TIME_CONSTANT_NS
    out = np.empty((1, predict.NUM_PREDICTIONS))
    predict.predict_request(view, make_request(), out)
    assert out[0, predict.SHARE] == pytest.approx(0.3)
    view.prompt_share[0], view.prompt_share_at_ns[0] = 0.95, SHARE_TIME_CONSTANT_NS
    predict.predict_request(view, make_request(), out)
    assert out[0, predict.SHARE] == predict.MAX_SHARE


@given(views(), requests)
@FEW
def test_predictions_are_finite_and_padding_is_left_alone(view, request):
    m = len(view.running)
    out = np.full((m + 2, predict.NUM_PREDICTIONS), -7.0)
    predict.predict_request(view, request, out)
    assert np.isfinite(out).all() and (out[:m] >= 0).all() and (out[m:] == -7).all()
    assert len(predict.PREDICTION_COLUMNS) == predict.MEMORY_PROMISED + 1
    assert (out[:m, predict.TBT_SPLIT] >= out[:m, predict.TBT_SAME]).all()
