"""The learned residual: the index where its network is silent, its features, its layout, its engines."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_view import MS, make_request, make_view, requests, views
from test_engine_properties import clusters
from test_engine_properties import requests as rows_of_requests
from test_engines_agree import assert_same
from tiny import tiny_trace

from splitgym import schedulers
from splitgym.config import make
from splitgym.errors import ConfigError
from splitgym.profile.tables import token_time_ns
from splitgym.schedulers import Residual
from splitgym.schedulers.choose import COST_STEP
from splitgym.schedulers.index import HINGES, NUM_WEIGHTS, index_costs
from splitgym.schedulers.lanes import LANES, block_of
from splitgym.schedulers.network import (
    CLUSTER_FEATURES,
    MACHINE_FEATURES,
    cluster_features,
    ln,
    machine_features,
    squash,
)
from splitgym.schedulers.predict import NUM_PREDICTIONS, PREDICTION_COLUMNS, asked, predict, reference
from splitgym.schedulers.residual import (
    index_weights,
    lanes_with_costs,
    layout,
    pack,
    residual_costs,
    size,
    unpack,
)
from splitgym.sim.compiled_engine import CompiledEngine
from splitgym.sim.simpy_engine import simpy_engine

FEW = settings(max_examples=100, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def random_weights(seed, hidden=16):
    """A network that matters: outputs of the size of the index's own terms."""
    rng = np.random.default_rng(seed)
    weights = index_weights(hidden=hidden)
    parts = unpack(weights)
    parts["index"] *= np.exp(rng.normal(0, 0.3, NUM_WEIGHTS))
    for name in ("input_weights", "input_bias", "output_weights", "output_bias"):
        parts[name][:] = rng.normal(0, 0.4, parts[name].shape)
    return weights


def residual(weights, label="residual"):
    return Residual(weights=tuple(weights.tolist()), label=label)


@given(views(), requests, seeds)
@FEW
def test_zero_output_weights_are_exactly_the_index(view, request, seed):
    weights = random_weights(seed)
    parts = unpack(weights)
    parts["index"][:] = index_weights()[:NUM_WEIGHTS]
    parts["output_weights"][:] = parts["output_bias"][:] = 0
    index = schedulers.routing("index-tuned")
    assert residual(weights).route(view, request) == index.route(view, request)
    assert Residual().route(view, request) == index.route(view, request)
    ours, theirs = np.empty((2, 3, len(view.running)))
    residual_costs(view, request, weights, ours)
    index_costs(view, request, index.params, theirs)
    np.testing.assert_array_equal(ours, theirs)


def written_out(view, request, weights):
    """The features and the network in plain NumPy, from the list in docs/schedulers.md."""
    parts = unpack(weights)
    m = len(view.running)
    x = np.empty((m, NUM_PREDICTIONS))
    ref = predict(view, request, weights[0], x)
    p = dict(zip(PREDICTION_COLUMNS, x.T))
    prompts, tokens = view.prompt_allowed != 0, view.token_allowed != 0
    wait, k = p["wait_s"], view.running + view.inbound
    mean_wait = wait[prompts].mean() if prompts.any() else 0.0
    least = wait[prompts].min() if prompts.any() else 1e9
    longest = wait[prompts].max() if prompts.any() else 0.0
    machine = [
        np.minimum(p["ttft"], 4) - 1,
        2 * np.clip(5 * p["ttft"] - 4, 0, 1) - 1,
        2 * np.minimum(p["tbt_split"], 3) - 1.6,
        2 * np.minimum(p["tbt_same"], 3) - 1.6,
        np.log1p(wait) - 0.3,
        0.5 * (wait - mean_wait) / (mean_wait + 0.2),
        np.log1p(wait) - np.log1p(least),
        2 * view.kv_used_tokens / view.kv_capacity_tokens - 0.6,
        2 * p["share"] - 1,
        k / 32 - 0.7,
        4 * (p["prompt_time"] - 0.7),
        0.5 * p["harm_prompt"] - 0.5,
        2 * p["harm_token"] * 1.5,
        np.log1p(wait) - np.log1p(longest),
        np.minimum(view.prompt_requests, 32) / 8 - 0.3,
        view.inbound / 8 - 0.3,
        2 * np.minimum(p["memory_promised"], 2) - 0.6,
    ]
    all_prompts = request.prompt_tokens + (view.running_prompt_tokens + view.inbound_prompt_tokens).sum()
    mean_prompt = int(all_prompts) // (1 + int(k.sum()))
    o = ref.mean_output_tokens
    prompt_ns = np.interp(mean_prompt, view.tables.prompt_tokens[0], view.tables.prompt_ns[0])
    decode_ns = o / 32 * token_time_ns(view.tables, 0, 32, 32 * (mean_prompt + int(o / 2)))
    cluster = [
        np.log1p(mean_wait) - 0.3,
        2 * (prompt_ns / (prompt_ns + decode_ns) - 0.6),
        (p["ttft"][prompts] > 1).mean() - 0.3 if prompts.any() else -0.3,
        4 * p["prompt_time"][prompts].std() if prompts.any() else 0.0,
        0.5 * (math.log(request.prompt_tokens) - 6.9),
        2 * ((p["iteration"][tokens].mean() if tokens.any() else 0.0) - 0.7),
        (p["tbt_split"][tokens] > 1).mean() - 0.2 if tokens.any() else -0.2,
        2 * (p["share"][tokens].mean() if tokens.any() else 0.0) - 1,
        math.log(o) - 5,
        min(p["ttft"][prompts].min() if prompts.any() else 4.0, 4) - 1,
        np.log1p(longest) - 0.6,
        2 * min(p["memory_promised"][tokens].mean() if tokens.any() else 0.0, 2) - 0.6,
        (k[tokens].mean() if tokens.any() else 0.0) / 32 - 0.5,
    ]
    features = np.column_stack([np.array(machine).T, np.tile(cluster, (m, 1))])
    sums = features @ parts["input_weights"].T + parts["input_bias"]
    units = np.clip(sums, -3, 3)
    units = units * (27 + units**2) / (27 + 9 * units**2)
    return features, units @ parts["output_weights"].T + parts["output_bias"]


@given(views(max_machines=11), requests, seeds)
@FEW
def test_features_and_network_are_those_written_down(view, request, seed):
    weights = random_weights(seed)
    features, added = written_out(view, request, weights)
    m = len(view.running)
    lanes = lanes_with_costs(view, request, weights)
    q = asked(reference(view, request), request.prompt_tokens, view.clock[0], view.rules, weights[0])
    shared, own = np.empty(CLUSTER_FEATURES), np.empty(MACHINE_FEATURES * LANES)
    wait, least, longest = cluster_features(lanes, m, view.tables, q, shared)
    for i in range(m):
        block = block_of(lanes, i // LANES)
        machine_features(block, wait, ln(1 + least), ln(1 + longest), view.rules.tbt_slo, own)
        ours = own.reshape(MACHINE_FEATURES, LANES)[:, i % LANES]
        np.testing.assert_allclose(np.concatenate([ours, shared]), features[i], rtol=1e-6, atol=2e-6)
    costs, silent = np.empty((2, 3, m))
    residual_costs(view, request, weights, costs)
    mute = weights.copy()
    for name in ("output_weights", "output_bias"):
        unpack(mute)[name][:] = 0
    residual_costs(view, request, mute, silent)
    there = np.isfinite(costs)
    np.testing.assert_allclose(
        (costs - np.where(there, silent, 0))[there], added.T[there], rtol=1e-5, atol=1e-5
    )


@given(views(), requests, seeds)
@FEW
def test_it_decides_as_a_search_over_all_pairs(view, request, seed):
    weights = random_weights(seed)
    m = len(view.running)
    costs = np.empty((3, m))
    residual_costs(view, request, weights, costs)
    steps = [[math.floor(c / COST_STEP + 0.5) if c < math.inf else None for c in row] for row in costs]
    pairs = [(p, t) for p in range(m) for t in range(m)]
    cost = {(p, t): (steps[0][p], steps[2 if p == t else 1][t]) for p, t in pairs}
    allowed = {pair: sum(c) for pair, c in cost.items() if None not in c}
    best = min(allowed, key=lambda pair: (allowed[pair], pair)) if allowed else (-1, -1)
    assert residual(weights).route(view, request) == best


@given(clusters(ageing=("decodes",)), rows_of_requests, seeds)
@settings(max_examples=40)
def test_both_engines_agree(cluster, rows, seed):
    trace = tiny_trace(*rows)
    outcomes = []
    for engine in (simpy_engine, CompiledEngine):
        run = engine(cluster, residual(random_weights(seed)), schedulers.sizing("static"), record=True)
        run.reset(trace, seed)
        assert run.run_until_decision() is None
        outcomes.append((run.outcomes(), sorted(run.events)))
    assert outcomes[0][1] == outcomes[1][1]
    assert_same(outcomes[0][0], outcomes[1][0])


def test_the_network_changes_decisions():
    """Otherwise the tests above could pass with a network that is never asked."""
    view = make_view("PPTT")
    view.running[:] = (0, 0, 20, 20)
    weights = index_weights(hidden=1)
    parts = unpack(weights)
    parts["output_bias"][:] = (0.0, 100.0, 0.0)
    p, t = residual(weights).route(view, make_request())
    assert p == t
    parts["output_bias"][:] = (0.0, -100.0, 0.0)
    p, t = residual(weights).route(view, make_request())
    assert p != t


def test_the_order_of_machines_does_not_matter():
    view = make_view("PPTT", rows=[1, 2, 1, 2])
    view.prompt_queue_ns[:] = np.array([400, 30, 0, 90]) * MS
    view.running[:] = (3, 0, 25, 14)
    view.running_context_tokens[:] = view.running * 1000
    weights = random_weights(5)
    costs, turned = np.empty((2, 3, 4))
    residual_costs(view, make_request(), weights, costs)
    order = np.array([2, 0, 3, 1])
    for name in ("machine_row", "prompt_queue_ns", "running", "running_context_tokens", "home_pool"):
        array = getattr(view, name)
        array[:] = array[order]
    residual_costs(view, make_request(), weights, turned)
    np.testing.assert_allclose(turned, costs[:, order], rtol=1e-12)


@given(st.floats(-20, 20))
def test_squash_is_close_to_tanh(x):
    assert squash(x) == pytest.approx(math.tanh(x), abs=0.024)
    assert -1 <= squash(x) <= 1
    assert squash(-x) == -squash(x)


@given(st.floats(1e-6, 1e12))
def test_ln_is_close_to_the_logarithm(x):
    assert ln(x) == pytest.approx(math.log(x), rel=1e-7, abs=1e-7)


def test_golden_costs():
    """The same bits on every machine: written down on one."""
    view = make_view("PPTT", rows=[1, 2, 1, 2])
    view.prompt_queue_ns[:] = np.array([400, 30, 0, 90]) * MS
    view.running[:] = (3, 0, 25, 14)
    view.running_context_tokens[:] = view.running * 1000
    parts = unpack(index_weights(hidden=2))
    values = np.arange(60).reshape(2, 30) % 7 / 8 - 0.375
    parts["input_weights"][:] = values
    parts["output_weights"][:] = [[0.5, -0.25], [0.125, 1.0], [-1.0, 0.75]]
    costs = np.empty((3, 4))
    residual_costs(view, make_request(), pack(parts), costs)
    assert [[float(c).hex() for c in row] for row in costs] == GOLDEN


@given(st.integers(0, 20))
def test_parts_and_flat_vector(hidden):
    rng = np.random.default_rng(hidden)
    weights = rng.normal(size=size(hidden))
    parts = unpack(weights)
    assert {name: part.shape for name, part in parts.items()} == layout(hidden)
    np.testing.assert_array_equal(pack(parts), weights)


def test_wrong_weights_are_refused():
    with pytest.raises(ConfigError, match="18 weights fit no network"):
        make(Residual, weights=(0.0,) * 18)
    with pytest.raises(ConfigError, match="finite"):
        make(Residual, weights=(math.nan,) * size())
    parts = unpack(index_weights(hidden=3))
    with pytest.raises(ValueError, match="parts of a residual"):
        pack(parts | {"hinges": np.zeros(3)})


def test_presets():
    assert tuple(unpack(index_weights())["hinges"]) == HINGES
    assert Residual(label="mine").name == "mine"


GOLDEN = [
    ["0x1.2b549a98f2a71p+1", "0x1.baddfde4d188cp-1", "0x1.b9299cd43446ep+0", "0x1.2b64a1f92ff34p+0"],
    ["0x1.5cc4914bbc875p-1", "-0x1.5bdeeae248084p-3", "0x1.6a8b1138189f5p+1", "0x1.5ace1e5adb2c8p-3"],
    ["-0x1.5e549d790ce00p-8", "-0x1.00fbd69604196p+0", "0x1.dd445c4e20768p+0", "-0x1.57a0cbf4ea779p-1"],
]
