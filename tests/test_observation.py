"""Observations: bounded, independent of the cluster's size, and true to the view."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, parse_machines
from splitgym.errors import ConfigError
from splitgym.observation import (
    CLUSTER_FEATURES,
    MACHINE_FEATURES,
    REQUEST_FEATURES,
    Observation,
    Observer,
    features,
    observation_space,
    schema,
    schema_hash,
)
from splitgym.schedulers import predict
from splitgym.types import UNKNOWN, Pool, RequestInfo
from splitgym.view import ClusterView

MACHINE = {f.name: i for i, f in enumerate(MACHINE_FEATURES)}
CLUSTER = {f.name: i for i, f in enumerate(CLUSTER_FEATURES)}
REQUEST = {f.name: i for i, f in enumerate(REQUEST_FEATURES)}
WHO = RequestInfo(0, 0, 1000, UNKNOWN, UNKNOWN, 0)


def make_view(machines: str = "h100-80gb:2P+a100-80gb:2T", model: str = "bloom-176b") -> ClusterView:
    return Cluster.resolve(ClusterConfig(model=model, machines=parse_machines(machines))).view()


def observe(view: ClusterView, request: RequestInfo | None = WHO, size: int | None = None) -> Observation:
    observer = Observer(size or len(view.machine_row))
    observer.reset(make_view())
    return observer.observe(view, request)


def fill(view: ClusterView, rng: np.random.Generator) -> None:
    """Random contents, consistent or not."""
    m = len(view.machine_row)
    for name in ("prompt_requests", "running", "inbound", "transfers", "iteration_prompts"):
        getattr(view, name)[:] = rng.integers(0, 10 ** rng.integers(1, 6), m)
    for name in ("prompt_tokens", "running_context_tokens", "running_prompt_tokens", "inbound_prompt_tokens"):
        getattr(view, name)[:] = rng.integers(0, 10 ** rng.integers(1, 9), m)
    for name in ("prompt_queue_ns", "iteration_end_ns", "prompt_share_at_ns"):
        getattr(view, name)[:] = rng.integers(0, 10**12, m)
    for name in ("available", "prompt_allowed", "token_allowed"):
        getattr(view, name)[:] = rng.integers(0, 2, m)
    for name in ("pool", "home_pool"):
        getattr(view, name)[:] = rng.integers(0, 3, m)
    view.kv_used_tokens[:] = rng.integers(0, view.kv_capacity_tokens + 1)
    view.prompt_share[:] = rng.random(m)
    view.counters[:] = rng.integers(0, 10**6, len(view.counters))
    view.clock[0] = rng.integers(0, 10**12)
    view.mean_output[:] = rng.random(2) * 1000 + [0, 1e-3]


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.integers(0, 2**31), st.booleans(), st.integers(1, 10**6), st.integers(-1, 10**6))
def test_bounds_hold_whatever_the_view_says(seed: int, present: bool, prompt: int, limit: int) -> None:
    rng = np.random.default_rng(seed)
    view = make_view("h100-80gb:2P+a100-80gb:2T+l40s-48gb:1M", "llama2-70b")
    space = observation_space(7)
    observer = Observer(7)
    observer.reset(view)
    for _ in range(3):
        fill(view, rng)
        request = RequestInfo(1, 0, prompt, limit or UNKNOWN, limit, 1) if present else None
        seen = observer.observe(view, request)
        for key, array in seen.items():
            assert array.dtype == np.float32 and np.isfinite(array).all(), key
        assert space.contains(seen)
        assert not seen["machines"][5:].any() and seen["mask"].tolist() == [1] * 5 + [0] * 2


def test_machines_may_come_in_any_order() -> None:
    rng = np.random.default_rng(3)
    view = make_view()
    fill(view, rng)
    seen = observe(view)
    order = np.array([2, 0, 3, 1])
    for name in view._fields:
        array = getattr(view, name)
        if isinstance(array, np.ndarray) and array.shape == (4,) and name != "counters":
            array[:] = array[order]
    again = observe(view)
    np.testing.assert_array_equal(again["machines"], seen["machines"][order])
    np.testing.assert_allclose(again["cluster"], seen["cluster"], rtol=1e-6)
    np.testing.assert_array_equal(again["request"], seen["request"])


def test_nothing_grows_with_the_size_of_the_cluster() -> None:
    """Ten times the machines with ten times the arrivals look the same."""
    seen = []
    for machines, factor in (("h100-80gb:2P2T", 1), ("h100-80gb:20P20T", 10)):
        view = make_view(machines)
        view.running[:] = 5
        view.running_context_tokens[:] = 5000
        view.prompt_queue_ns[:] = 10**9
        view.clock[0] = 10**10
        view.counters[:] = np.array([200, 200 * 700, 150, 150 * 200]) * factor
        observer = Observer(len(view.machine_row))
        observer.reset(make_view(machines))
        seen.append(observer.observe(view, WHO))
    np.testing.assert_allclose(seen[0]["cluster"], seen[1]["cluster"], rtol=1e-5)
    np.testing.assert_array_equal(seen[0]["machines"][0], seen[1]["machines"][0])
    np.testing.assert_array_equal(seen[0]["machines"][3], seen[1]["machines"][39])


Change = Callable[[ClusterView], None]


def put(name: str, value: float, at: int = 1) -> Change:
    def change(view: ClusterView) -> None:
        getattr(view, name)[at] = value

    return change


MACHINE_CHANGES: list[tuple[Change, str, float]] = [
    (put("home_pool", Pool.TOKEN), "home_token", 1.0),
    (put("home_pool", Pool.MIXED), "home_mixed", 1.0),
    (put("pool", Pool.TOKEN), "now_token", 1.0),
    (put("pool", Pool.MIXED), "now_mixed", 1.0),
    (put("available", 0), "available", 0.0),
    (put("prompt_allowed", 0), "prompt_allowed", 0.0),
    (put("token_allowed", 0), "token_allowed", 0.0),
    (put("prompt_requests", 4), "prompt_requests", 0.5),
    (put("prompt_tokens", 4096), "prompt_tokens", 0.5),
    (put("prompt_queue_ns", 10**9), "wait", 0.5),
    (put("prompt_queue_ns", 25 * 10**7), "wait_gap", 0.5),
    (put("iteration_end_ns", 3 * 10**9), "wait", 0.75),
    (put("prompt_share", 0.25), "prompt_share", 0.25),
    (put("running", 32), "running", 0.5),
    (put("running_context_tokens", 32768), "running_context", 0.5),
    (put("inbound", 8), "inbound", 0.5),
    (put("inbound_prompt_tokens", 8192), "inbound_prompt_tokens", 0.5),
    (put("transfers", 4), "transfers", 0.5),
]


@pytest.mark.parametrize(("change", "name", "value"), MACHINE_CHANGES)
def test_a_machine_feature_says_what_its_name_says(change: Change, name: str, value: float) -> None:
    view = make_view()
    before = observe(view)["machines"]
    change(view)
    after = observe(view)["machines"]
    assert after[1, MACHINE[name]] == pytest.approx(value, abs=1e-6)
    assert before[1, MACHINE[name]] != after[1, MACHINE[name]]
    own = [i for i in range(len(MACHINE_FEATURES)) if not MACHINE_FEATURES[i].name.endswith("_gap")]
    np.testing.assert_array_equal(before[[0, 2, 3]][:, own], after[[0, 2, 3]][:, own])


def test_predictions_are_those_of_the_schedulers() -> None:
    rng = np.random.default_rng(5)
    view = make_view()
    view.running[:] = rng.integers(1, 40, 4)
    view.running_context_tokens[:] = view.running * 900
    view.running_prompt_tokens[:] = view.running * 700
    view.prompt_queue_ns[:] = rng.integers(0, 10**9, 4)
    view.kv_used_tokens[:] = view.running_context_tokens
    out = np.zeros((4, predict.NUM_PREDICTIONS))
    predict.predict_request(view, WHO, out)
    rows = observe(view)["machines"]
    for name, column in (
        ("ttft", predict.TTFT),
        ("tbt_split", predict.TBT_SPLIT),
        ("tbt_same", predict.TBT_SAME),
        ("iteration", predict.ITERATION),
        ("own_prompt_time", predict.PROMPT_TIME),
        ("harm_prompt", predict.HARM_PROMPT),
        ("harm_token", predict.HARM_TOKEN),
    ):
        np.testing.assert_allclose(rows[:, MACHINE[name]], out[:, column] / (out[:, column] + 1), rtol=1e-6)
    hinge = np.clip(4 * (out[:, predict.TTFT] - 0.8), 0, 1)
    np.testing.assert_allclose(rows[:, MACHINE["ttft_hinge"]], hinge, rtol=1e-5)
    np.testing.assert_allclose(rows[:, MACHINE["kv_used"]], out[:, predict.MEMORY_USED], rtol=1e-6)
    np.testing.assert_allclose(
        rows[:, MACHINE["kv_promised"]], out[:, predict.MEMORY_PROMISED] / 2, rtol=1e-6
    )


def test_hardware_is_relative_to_the_reference_machine() -> None:
    rows = observe(make_view())["machines"]
    for name in ("prompt_speed", "token_speed"):
        assert rows[2, MACHINE[name]] == 0.5  # the A100 is the reference
        assert rows[0, MACHINE[name]] > 0.5  # the H100 is faster


def test_recent_rates_follow_the_arrivals() -> None:
    view = make_view()
    observer = Observer(4)
    observer.reset(view)
    for second in range(1, 121):  # 10 requests/s of 500 tokens, twice that for the last 5 s
        rate = 10 if second <= 115 else 20
        view.clock[0] = second * 10**9
        view.counters[:2] += [rate, rate * 500]
        seen = observer.observe(view, None)["cluster"]
    assert 0.58 < seen[CLUSTER["burst"]] < 0.62  # x / (1 + x) of about 1.5
    assert seen[CLUSTER["mean_prompt"]] == pytest.approx(500 / 1524, rel=1e-5)
    assert seen[CLUSTER["prompt_load_5s"]] > seen[CLUSTER["prompt_load_60s"]] > 0
    assert seen[CLUSTER["since_last"]] == pytest.approx(0.5)
    observer.reset(view)
    seen = observer.observe(view, None)["cluster"]
    assert seen[CLUSTER["prompt_load_5s"]] == seen[CLUSTER["since_last"]] == 0.0


def test_the_forecast_goes_on_as_the_load_went() -> None:
    def after(tokens_per_s: list[int]) -> np.ndarray:
        view = make_view()
        observer = Observer(4)
        observer.reset(view)
        for second, tokens in enumerate(tokens_per_s, 1):
            view.clock[0] = second * 10**9
            view.counters[:2] += [10, tokens]
            seen = observer.observe(view, None)["cluster"]
        return seen

    def load(squashed: float) -> float:
        return squashed / (1 - squashed)

    steady, rising, falling = (
        after(list(t)) for t in ([6000] * 400, range(2000, 10000, 20), range(10000, 2000, -20))
    )
    for name in ("prompt", "output"):
        assert load(steady[CLUSTER[f"{name}_forecast"]]) == pytest.approx(
            load(steady[CLUSTER[f"{name}_load_60s"]]), rel=0.02
        )
    assert steady[CLUSTER["prompt_need_forecast"]] == pytest.approx(
        steady[CLUSTER["prompt_need_20s"]], rel=0.01
    )
    # 20 tokens/s more each second: in 20 s there are 400 more than now. Steady is 6,000 tokens/s.
    at_6000 = load(steady[CLUSTER["prompt_load_60s"]])
    assert load(rising[CLUSTER["prompt_forecast"]]) == pytest.approx(at_6000 * 10400 / 6000, rel=0.05)
    assert load(falling[CLUSTER["prompt_forecast"]]) == pytest.approx(at_6000 * 1600 / 6000, rel=0.2)
    assert rising[CLUSTER["prompt_need_forecast"]] > rising[CLUSTER["prompt_need_20s"]]
    assert falling[CLUSTER["prompt_need_forecast"]] < falling[CLUSTER["prompt_need_20s"]]
    stopped = after([6000] * 100 + [0] * 30)
    assert stopped[CLUSTER["prompt_forecast"]] == 0.0  # the load cannot fall below nothing
    empty = observe(make_view())["cluster"]
    assert empty[CLUSTER["prompt_need_20s"]] == empty[CLUSTER["prompt_need_forecast"]] == 0.5


def test_request_features() -> None:
    view = make_view()
    plain = observe(view, RequestInfo(0, 0, 2048, UNKNOWN, UNKNOWN, 0))["request"]
    limited = observe(view, RequestInfo(0, 0, 2048, 64, UNKNOWN, 1))["request"]
    known = observe(view, RequestInfo(0, 0, 2048, 64, 32, 0))["request"]
    assert not observe(view, None)["request"].any()
    assert plain[REQUEST["present"]] == 1 and plain[REQUEST["prompt_tokens"]] == 0.5
    assert plain[REQUEST["max_tokens_known"]] == plain[REQUEST["max_tokens"]] == plain[REQUEST["retry"]] == 0
    assert limited[REQUEST["max_tokens_known"]] == limited[REQUEST["retry"]] == 1
    assert limited[REQUEST["max_tokens"]] == pytest.approx(64 / 576)
    assert plain[REQUEST["expected_output"]] == pytest.approx(150 / 406)
    assert limited[REQUEST["expected_output"]] == pytest.approx(64 / 320)
    assert known[REQUEST["expected_output"]] == pytest.approx(32 / 288)


def test_arrays_are_fresh_every_time() -> None:
    view = make_view()
    observer = Observer(4)
    observer.reset(view)
    first = observer.observe(view, WHO)
    copy = {key: array.copy() for key, array in first.items()}
    fill(view, np.random.default_rng(1))
    observer.observe(view, None)
    for key, array in first.items():
        np.testing.assert_array_equal(array, copy[key])


def test_schema_names_every_number_and_its_hash_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = observe(make_view())
    described = schema()
    assert seen["machines"].shape[1] == len(described["machines"]) == len(set(MACHINE))
    assert len(seen["cluster"]) == len(described["cluster"]) == len(set(CLUSTER))
    assert len(seen["request"]) == len(described["request"]) == len(set(REQUEST))
    before = schema_hash()
    changed = (MACHINE_FEATURES[0]._replace(high=2.0), *MACHINE_FEATURES[1:])
    monkeypatch.setattr(features, "MACHINE_FEATURES", changed)
    assert schema_hash() != before


def test_a_cluster_larger_than_the_observation_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_machines is 3, but the cluster has 4"):
        Observer(3).reset(make_view())
