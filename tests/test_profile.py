"""Profiles: seconds and integer tables agree, curves never decrease, bad files are refused by name."""

import json
from fractions import Fraction
from itertools import pairwise
from math import floor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitgym import profile as profiles
from splitgym.errors import ProfileError
from splitgym.profile import Efficiency, Profile, stack_tables
from splitgym.profile.tables import TICK_BITS, mixed_time_ns, prompt_time_ns, token_time_ns, token_time_ticks

MODELS = ("bloom-176b", "llama2-70b")
MACHINES = ("a100-80gb", "h100-80gb", "h100-80gb-pcap")
SHIPPED = [("bloom-176b", m, 8) for m in MACHINES] + [
    ("llama2-70b", m, t) for m in MACHINES for t in (2, 4, 8)
]
PROFILES = [profiles.load(*key) for key in SHIPPED] + [profiles.load("llama2-70b", "h200-141gb", 4)]
BLOOM = [p for p in PROFILES if p.model.name == "bloom-176b"]
ANY = st.sampled_from(PROFILES)


def test_all_named_profiles_are_shipped() -> None:
    assert profiles.names() == sorted(f"{m}_{h}_tp{t}" for m, h, t in SHIPPED)
    assert {p.provenance["kind"] for p in PROFILES} == {
        "fitted to measurements",
        "a model, not a measurement",
    }


@given(ANY, st.integers(1, 100_000), st.integers(1, 600), st.integers(0, 2_000_000))
def test_seconds_are_the_engines_nanoseconds(p: Profile, tokens: int, batch: int, context: int) -> None:
    tables = stack_tables([PROFILES[9], p]) if p.model == PROFILES[9].model else stack_tables([BLOOM[0], p])
    assert round(p.prompt_time(tokens) * 1e9) == prompt_time_ns(tables, 1, tokens)
    assert round(p.token_time(batch, context) * 1e9) == token_time_ns(tables, 1, batch, context)
    assert round(p.mixed_time(tokens, batch, context) * 1e9) == mixed_time_ns(
        tables, 1, tokens, batch, context
    )


@given(ANY, st.integers(1, 100_000), st.integers(1, 600), st.integers(0, 2_000_000))
def test_a_mixed_iteration_takes_no_less_than_its_decodes_alone(
    p: Profile, tokens: int, batch: int, context: int
) -> None:
    alone = p.token_time(batch, context)
    together = p.mixed_factor * p.prompt_time(tokens + batch)
    assert p.mixed_time(tokens + batch, batch, context) == pytest.approx(max(alone, together), abs=1e-9)


@given(ANY, st.integers(1, 100_000), st.integers(1, 600), st.integers(0, 2_000_000))
def test_integer_functions_match_a_plain_restatement(
    p: Profile, tokens: int, batch: int, context: int
) -> None:
    knots = list(zip(p.prompt_tokens, p.prompt_ns, strict=True))
    segments = list(pairwise(knots))
    (x0, y0), (x1, y1) = next((s for s in segments if tokens <= s[1][0]), segments[-1])
    exact = Fraction((y1 - y0) * (tokens - x0), x1 - x0)
    assert prompt_time_ns(p.tables, 0, tokens) == max(1, y0 + floor(exact + Fraction(1, 2)))

    base, slope = p.tables.token_base[0].tolist(), p.tables.token_slope[0].tolist()
    assert len(base) == 513
    expected = base[min(batch, 512)] + max(0, batch - 512) * (base[512] - base[511])
    expected += slope[min(batch, 512)] * context
    assert token_time_ticks(p.tables, 0, batch, context) == expected
    assert token_time_ns(p.tables, 0, batch, context) == expected >> TICK_BITS


@given(ANY, st.integers(1, 60_000), st.integers(0, 5_000), st.integers(1, 600), st.integers(0, 20))
def test_more_work_never_takes_less_time(p: Profile, tokens: int, more: int, batch: int, tasks: int) -> None:
    assert 0 < p.prompt_time(tokens) <= p.prompt_time(tokens + more)
    assert 0 < p.token_time(batch, tokens) <= p.token_time(batch + tasks, tokens)
    assert p.token_time(batch, tokens) <= p.token_time(batch, tokens + more)
    assert (
        p.idle_power_w <= p.prompt_power_w(tokens) <= p.prompt_power_w(tokens + more) <= p.machine.power_cap_w
    )
    assert p.idle_power_w <= p.token_power_w(batch) <= p.token_power_w(batch + tasks) <= p.machine.power_cap_w


def test_time_grows_with_batch_and_context() -> None:
    for p in PROFILES:
        assert p.token_time(64, 64 * 512) > 1.15 * p.token_time(1, 512) or "model" in p.provenance["kind"]
        assert p.token_time(8, 8 * 4096) > p.token_time(8, 8 * 512)


@settings(max_examples=30)
@given(ANY, st.integers(1, 512), st.integers(0, 1_000_000))
def test_token_time_is_never_below_the_roofline(p: Profile, batch: int, context: int) -> None:
    read = p.model.weights_bytes + context * p.kv_bytes_per_token
    assert p.token_time(batch, context) >= read / (p.machine.gpus * p.machine.bandwidth_bytes_per_s) - 1e-9


def test_kv_bytes_follow_the_models_kv_heads() -> None:
    specs = profiles.models()
    assert specs["llama2-70b"].kv_bytes_per_token == 80 * 2 * 8 * 128 * 2 == 327_680
    assert specs["bloom-176b"].kv_bytes_per_token == 70 * 2 * 14_336 * 2 == 4_014_080


@pytest.mark.parametrize(
    ("model", "gpus", "tokens"),
    [
        ("bloom-176b", 8, 89_234),
        ("llama2-70b", 8, 1_685_164),
        ("llama2-70b", 4, 636_588),
        ("llama2-70b", 2, 112_300),
    ],
)
def test_capacity_is_what_the_weights_leave(model: str, gpus: int, tokens: int) -> None:
    p = profiles.load(model, "h100-80gb", gpus)
    assert (
        p.kv_capacity_tokens == tokens == (gpus * 80 * 2**30 - p.model.weights_bytes) // p.kv_bytes_per_token
    )


def test_a_part_of_a_machine_has_its_share() -> None:
    whole, part = profiles.load("llama2-70b", "h100-80gb", 8), profiles.load("llama2-70b", "h100-80gb", 2)
    assert (whole.machine.cost_per_hour, whole.machine.network_bytes_per_s) == (4.76, 8 * 50_000_000_000)
    assert (part.machine.cost_per_hour, part.machine.network_bytes_per_s) == (1.19, 2 * 50_000_000_000)
    capped = profiles.load("llama2-70b", "h100-80gb-pcap", 8).machine
    assert (capped.cost_per_hour, capped.power_cap_w) == (4.76, pytest.approx(0.7 * 8 * 700))


def test_machine_ratios_of_the_papers_table() -> None:
    a, h = profiles.machines()["a100-80gb"], profiles.machines()["h100-80gb"]
    ratios = {
        "cost": h.cost_per_hour / a.cost_per_hour,
        "power": h.max_power_w / a.max_power_w,
        "flops": h.simt_flops_per_s / a.simt_flops_per_s,
        "capacity": h.memory_bytes / a.memory_bytes,
        "bandwidth": h.bandwidth_bytes_per_s / a.bandwidth_bytes_per_s,
    }
    rounded = {k: round(v, 2) for k, v in ratios.items()}
    assert rounded == {"cost": 2.15, "power": 1.75, "flops": 3.43, "capacity": 1.0, "bandwidth": 1.64}


def test_power_of_the_h100_is_the_a100s_scaled() -> None:
    a, h, c = (profiles.load("bloom-176b", m, 8) for m in MACHINES)
    for tokens in (128, 600, 5000):
        assert h.prompt_power_w(tokens) == pytest.approx(1.75 * a.prompt_power_w(tokens), abs=0.2)
        assert c.prompt_power_w(tokens) == pytest.approx(min(h.prompt_power_w(tokens), 3920), rel=0.01)
    assert "assumed" in h.provenance["power"] and "measured" in a.provenance["power"]


def test_equal_profiles_are_equal_and_hashable() -> None:
    a, b = profiles.load("bloom-176b", "a100-80gb", 8), profiles.load("bloom-176b", "a100-80gb", 8)
    assert a == b and hash(a) == hash(b) and a != profiles.load("bloom-176b", "h100-80gb", 8)


# Roofline


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("machine", ["a100-80gb", "h100-80gb"])
def test_roofline_is_within_a_factor_of_the_measurement(model: str, machine: str) -> None:
    """The factor stated in docs/profiles.md."""
    measured, modelled = profiles.load(model, machine, 8), profiles.load(model, f"{machine}-roofline", 8)
    for tokens in (128, 512, 2048, 8192):
        assert 0.9 < measured.prompt_time(tokens) / modelled.prompt_time(tokens) < 4.5
    for batch in (1, 8, 64):
        assert 0.9 < measured.token_time(batch, 512 * batch) / modelled.token_time(batch, 512 * batch) < 4.5
    assert modelled.provenance["kind"] == "a model, not a measurement"


def test_roofline_for_any_dense_transformer() -> None:
    model = profiles.ModelSpec("tiny-8b", 32, 4096, 32, 8, 128, weights_bytes=16_000_000_000)
    for name, machine in profiles.machines().items():
        p = profiles.roofline(model, machine.part(1))
        assert p.kv_capacity_tokens == (machine.memory_bytes_per_gpu - 16_000_000_000) // (
            32 * 2 * 8 * 128 * 2
        ), name
        better = profiles.roofline(
            model, machine.part(1), Efficiency(compute=1.0, memory=1.0, layer_overhead_s=0)
        )
        assert better.prompt_time(2048) < p.prompt_time(2048) and better.token_time(1, 1) < p.token_time(1, 1)
    fast, slow = profiles.machines()["b200-180gb"], profiles.machines()["l40s-48gb"]
    assert profiles.roofline(model, fast).prompt_time(4096) < profiles.roofline(model, slow).prompt_time(4096)


# Files


def content() -> dict:
    return {
        "model": "bloom-176b",
        "machine": "h100-80gb",
        "tensor_parallel": 8,
        "prompt": {"tokens": [128, 1024], "seconds": [0.05, 0.1]},
        "token": {"batch": [1, 64], "seconds": [0.03, 0.06], "seconds_per_context_token": 1e-7},
        "power": {"idle_w": 1, "prompt_tokens": [1], "prompt_w": [9], "token_batch": [1], "token_w": [5]},
        "provenance": {"kind": "test"},
    }


def put(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_a_file_is_found_by_path(tmp_path: Path) -> None:
    path = put(tmp_path / "mine.json", content())
    p = profiles.load("bloom-176b", str(path), 8)
    assert p == profiles.load_file(path) and p.name == "mine" and p.prompt_time(1024) == 0.1
    assert p.token_time(64, 1000) == pytest.approx(0.0601)
    with pytest.raises(
        ProfileError, match=r"mine.json: is for bloom-176b on 8 GPUs, not for llama2-70b on 4"
    ):
        profiles.load("llama2-70b", str(path), 4)


def test_a_file_can_bring_its_own_model_and_machine(tmp_path: Path) -> None:
    text = """
model: {name: m, layers: 2, hidden: 8, heads: 2, kv_heads: 1, head_dim: 4, weights_bytes: 100}
machine: {name: h, gpus: 1, memory_bytes_per_gpu: 420, peak_flops_per_s: 1.0, bandwidth_bytes_per_s: 1.0,
  max_power_w: 3}
tensor_parallel: 1
prompt: {tokens: [1, 2], seconds: [1, 2]}
token: {batch: [1], seconds: [1]}
power: {idle_w: 0, prompt_tokens: [1], prompt_w: [1], token_batch: [1], token_w: [1]}
provenance: {}
"""
    path = tmp_path / "own.yaml"
    path.write_text(text)
    p = profiles.load_file(path)
    assert (p.kv_bytes_per_token, p.kv_capacity_tokens, p.token_time(300, 10**6)) == (32, 10, 1.0)


def test_raw_tables_of_another_simulator() -> None:
    data = content() | {"raw_tables": True, "kv_bytes_per_token": 2_621_440}
    data["token"] = {"batch": [128, 256, 512], "seconds": [0.05, 0.04, 0.06]}
    data["prompt"]["seconds"] = [0.06, 0.05]
    p = profiles.from_content(data, "tables")
    assert p.token_time(1, 10**6) == pytest.approx(0.05 + 0.01 * 127 / 128)
    assert p.token_time(384, 0) == pytest.approx(0.05)
    assert p.prompt_time(128) == 0.06 and p.kv_bytes_per_token == 2_621_440


def changed(**fields: object) -> dict:
    return content() | fields


BAD = {
    "prompt: the prompt curve is missing": {k: v for k, v in content().items() if k != "prompt"},
    "token: the token curve is missing": changed(token=None),
    "power: the power curve is missing": {k: v for k, v in content().items() if k != "power"},
    "prompt.seconds": changed(prompt={"tokens": [1, 2]}),
    "prompt.seconds decreases from 2 at tokens 1 to 1 at 2": changed(
        prompt={"tokens": [1, 2], "seconds": [2, 1]}
    ),
    "token.seconds decreases": changed(token={"batch": [1, 2], "seconds": [2, 1]}),
    "token.seconds_per_context_token decreases": changed(
        token={"batch": [1, 2], "seconds": [1, 2], "seconds_per_context_token": [2, 1]}
    ),
    "token.batch begins at 2": changed(token={"batch": [2, 3], "seconds": [1, 2]}),
    "tokens must be ascending": changed(prompt={"tokens": [2, 2], "seconds": [1, 2]}),
    "tokens has 1 knots": changed(prompt={"tokens": [2], "seconds": [1]}),
    "seconds has 3 values for 2 knots": changed(prompt={"tokens": [1, 2], "seconds": [1, 2, 3]}),
    "finite and not negative": changed(prompt={"tokens": [1, 2], "seconds": [1, float("nan")]}),
    "must be positive": changed(prompt={"tokens": [1, 2], "seconds": [0, 1]}),
    "prompt_w decreases": changed(power=content()["power"] | {"prompt_tokens": [1, 2], "prompt_w": [9, 8]}),
    "must not be below idle_w": changed(power=content()["power"] | {"idle_w": 7}),
    "speed: is no known key": changed(speed=3),
    "model: unknown name 'gpt'": changed(model="gpt"),
    "machine: unknown name 'tpu'": changed(machine="tpu"),
    "kv_heads is 3": changed(
        model={
            "name": "m",
            "layers": 1,
            "hidden": 8,
            "heads": 4,
            "kv_heads": 3,
            "head_dim": 2,
            "weights_bytes": 1,
        }
    ),
    "tensor_parallel 16 is not possible": changed(tensor_parallel=16),
    "does not fit 2 GPUs of h100-80gb: weights are 329,000,000,000 bytes": changed(tensor_parallel=2),
    "mixed_factor": changed(mixed_factor=0.5),
    "provenance": {k: v for k, v in content().items() if k != "provenance"},
    "expected a mapping": [1],
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_file_is_refused_by_name_and_field(message: str, tmp_path: Path) -> None:
    path = put(tmp_path / "bad.json", BAD[message])
    with pytest.raises(ProfileError) as caught:
        profiles.load_file(path)
    text = str(caught.value)
    assert "bad.json" in text and message in text and "\n" not in text


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"none.json: no such file"):
        profiles.load_file(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"model": ')
    with pytest.raises(ProfileError, match=r"torn.json: cannot be read"):
        profiles.load_file(tmp_path / "torn.json")


def test_bad_names_and_numbers() -> None:
    with pytest.raises(ProfileError, match=r"unknown model 'gpt'.*bloom-176b"):
        profiles.load("gpt", "a100-80gb", 8)
    with pytest.raises(ProfileError, match=r"unknown machine type 'tpu'.*h100-80gb"):
        profiles.load("bloom-176b", "tpu", 8)
    with pytest.raises(ProfileError, match=r"bloom-176b does not fit 2 GPUs of a100-80gb"):
        profiles.load("bloom-176b", "a100-80gb", 2)
    with pytest.raises(
        ProfileError, match=r"was not measured on 4 GPUs.*bloom-176b_h100-80gb_tp8.*-roofline"
    ):
        profiles.load("bloom-176b", "h100-80gb", 4)
    with pytest.raises(ProfileError, match="8 GPUs: tensor_parallel 9"):
        profiles.load("bloom-176b", "h100-80gb", 9)
    p = PROFILES[0]
    for call in (lambda: p.prompt_time(0), lambda: p.token_time(0, 5), lambda: p.token_time(1, -1)):
        with pytest.raises(ProfileError, match="must be at least"):
            call()
    with pytest.raises(ProfileError, match="different models"):
        stack_tables([PROFILES[0], PROFILES[-1]])
    with pytest.raises(ProfileError, match="no profile"):
        stack_tables([])


def test_tables_pad_with_the_last_knot() -> None:
    short = profiles.from_content(content(), "here")
    tables = stack_tables([profiles.load("bloom-176b", "a100-80gb", 8), short])
    assert tables.prompt_knots.tolist() == [17, 2]
    assert np.all(tables.prompt_tokens[1, 2:] == 1024) and tables.prompt_tokens.dtype == np.int64
