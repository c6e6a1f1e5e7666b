"""Measuring a live server: the known profile comes back, whatever the way there."""

import dataclasses
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from splitgym import profile as profiles
from splitgym.cli.learning import add_learning_commands
from splitgym.measuring import write
from splitgym.measuring.plan import FINER, Limits
from splitgym.measuring.run import transfers
from splitgym.profile import measured, measured_file
from splitgym.profile.link import KNOWN, Run, fit_link
from tests.measured_engines import BANDWIDTH, OPTIONS, in_virtual_time, slow_way
from tests.test_cli import run


def test_the_known_profile_is_recovered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within 3 %, over a way that takes longer than iterations differ by. Then the file is used."""
    slow_way(monkeypatch, 1)
    outcome = in_virtual_time(monkeypatch, Limits(repeats=2, output_tokens=8), tmp_path / "m.jsonl")
    assert outcome.stopped == "" and outcome.kv_bytes_per_token == 327_680
    model = write.find_model(outcome.about, None, None)
    data, fitted = write.profile_content(outcome, model, machine=None, gpus=8, name="mine")
    found, known = measured_file.write(tmp_path / "mine.json", data), profiles.find("llama2-70b/h100-80gb")
    for tokens in (16, 64, 100, *known.prompt_tokens[:13]):
        assert found.prompt_time(tokens) == pytest.approx(known.prompt_time(tokens), rel=0.03), tokens
    for batch in (1, 2, 3, 5, 8, 13, 16, 20, 32, 40, 64):
        for context in (batch * n for n in (20, 128, 512, 2048, 8000 // batch)):
            token = known.token_time(batch, context)
            assert found.token_time(batch, context) == pytest.approx(token, rel=0.03), (batch, context)
    for tokens, batch in ((300, 2), (520, 8), (1100, 16)):
        mixed = known.mixed_time(tokens, batch, 200 * batch)
        assert found.mixed_time(tokens, batch, 200 * batch) == pytest.approx(mixed, rel=0.03), (tokens, batch)
    assert found.machine.network_bytes_per_s == pytest.approx(BANDWIDTH, rel=0.03)
    # The engine gives out whole blocks of 16 tokens.
    assert found.kv_capacity_tokens == known.kv_capacity_tokens // 16 * 16
    assert fitted.mixed_seen and fitted.mixed_quality.held_out < 3
    assert (
        "held out" in data["provenance"]["mixed"]
        and 0 < fitted.prompt_quality.held_out < 3
        and fitted.token_quality.held_out < 3
    )
    assert 4 < float(data["provenance"]["not_in_it"].split(" ms")[0]) < 8

    words = ["--workload", "poisson:azure-code-synth@3", "--policies", "index", "--seeds", "1", "--json"]
    words += ["--cluster", f"{tmp_path}/mine.json/tp8:1P1T", "--model", "llama2-70b"]
    assert run(monkeypatch, "evaluate", *words, "--duration", "4", "--warmup", "1", "--engine", "simpy") == 0
    assert json.loads(capsys.readouterr().out)["policies"] == ["index"]


FAST = dataclasses.replace(OPTIONS, bandwidth_bytes_per_s=400_000_000_000)
FEW = Limits(repeats=1, output_tokens=4, max_batch=1, long_outputs=())


def test_a_fast_link_is_recovered_although_long_requests_take_long_to_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At 400 GB/s a token's cache takes 0.8 us; its digits in the request take half of that here."""
    slow_way(monkeypatch, 1, (0.0002, 0.0006), 0.0002, byte_s=1e-7)
    outcome = in_virtual_time(monkeypatch, FEW, tmp_path / "m.jsonl", FAST)
    data, fitted = write.profile_content(
        outcome, write.find_model(outcome.about, None, None), machine=None, gpus=8, name="mine"
    )
    assert fitted.link is not None and fitted.link.seen and fitted.link.error <= KNOWN
    found = measured_file.write(tmp_path / "mine.json", data)
    assert found.machine.network_bytes_per_s == pytest.approx(400e9, rel=0.03)
    assert "95 % interval" in data["provenance"]["transfer"] and "only" not in data["provenance"]["transfer"]


def test_a_link_that_is_too_fast_for_the_way_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not known to 3 %: the interval says how far, and holds the truth."""
    slow_way(monkeypatch, 2)
    outcome = in_virtual_time(monkeypatch, FEW, tmp_path / "m.jsonl", FAST)
    again = [step for step in outcome.plan.steps if step.kind == "transfer"]
    assert outcome.store is not None and outcome.store.done(again[-1]) == 1 + FINER, "as often as it may"
    link = fit_link(transfers(outcome.store))
    assert link is not None and link.error > KNOWN and link.low < 327_680 / 400e9 < link.high
    assert "known to" in link.text(327_680) or "too fast to be measured here: at least" in link.text(327_680)


def line(sizes: tuple[int, ...], count: int, s_per_token: float, noise_s: float, seed: int = 0) -> list[Run]:
    """Transfers of a link, with delays that are exponential and a reading of 0.5 us a token."""
    draw = random.Random(seed)

    def late() -> float:
        return draw.expovariate(1 / noise_s) if noise_s else 0.0

    return [
        (n, 0.03 + 0.001 + n * (s_per_token + 5e-7) + late(), 0.03, 0.0004 + n * 5e-7 + late())
        for n in sizes
        for _ in range(count)
    ]


def test_the_slope_of_transfers_is_the_link() -> None:
    exact = fit_link(line((256, 1024, 4096, 8192), 3, 8e-7, 0.0))
    assert exact is not None and exact.s_per_token == pytest.approx(8e-7, rel=1e-6)
    assert exact.error < 1e-6 and exact.constant_s == pytest.approx(0.0006)
    held = [fit_link(line((256, 1024, 4096, 8192), 12, 8e-7, 2e-4, seed)) for seed in range(40)]
    inside = [link.low <= 8e-7 <= link.high for link in held if link is not None]
    assert len(inside) == 40 and sum(inside) >= 34, "a 95 % interval"
    assert fit_link(line((256,), 12, 8e-7, 0.0)) is None and fit_link([]) is None
    unseen = fit_link(line((256, 8192), 3, 1e-8, 3e-3))
    assert unseen is not None and not unseen.seen and "at least" in unseen.text(327_680)
    vague = fit_link(line((256, 1024, 4096, 8192), 6, 8e-7, 6e-4))
    assert vague is not None and KNOWN < vague.error and ("known to" in vague.text(327_680)) == vague.seen
    # Without the refusals what a long prompt takes to be read counts as transfer.
    deaf = fit_link([(n, first, one, None) for n, first, one, _ in line((256, 8192), 3, 8e-7, 0.0)])
    assert deaf is not None and deaf.s_per_token == pytest.approx(13e-7, rel=1e-6)


SAMPLES = measured.Samples(
    prompt=[((n, 1), 0.01 + n * 1e-5) for n in (64, 512, 1024)],
    token=[((b, b * c), 0.01 + b * 1e-4 + b * c * 1e-8) for b in (1, 8) for c in (100.0, 900.0)],
)


def test_a_mixed_point_held_out_is_foretold_by_the_others() -> None:
    def quality(*factors: float) -> measured.Quality:
        points = ((512, 2), (1024, 4), (1024, 16))
        mixed = [
            ((n, b, 100.0 * b + i), f * (0.01 + n * 1e-5))
            for (n, b), f in zip(points, factors)
            for i in (0, 1)
        ]
        return measured.fit(replace(SAMPLES, mixed=mixed)).mixed_quality

    assert quality(1.2, 1.2, 1.2).held_out == pytest.approx(0.0, abs=1e-9)
    # Of 1.2, 1.2, 1.5 the middle is 1.2, of two the mean: 1.35 for 1.2 twice, 1.2 for 1.5.
    assert quality(1.2, 1.2, 1.5).held_out == pytest.approx(100 * (0.125 + 0.125 + 0.2) / 3)
    assert quality(1.2, 1.2, 1.5).residual == pytest.approx(100 * 0.2 / 3)
    assert math.isnan(quality(1.2).held_out), "nothing is left to foretell it"


def test_a_policy_trains_on_a_measured_profile(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    learning = typer.Typer()
    add_learning_commands(learning)
    model = profiles.ModelSpec("own", 2, 64, 4, 4, 16, weights_bytes=10_000)
    about = {"gpus": 1, "capacity_tokens": 50_000, "kv_bytes_per_token": model.kv_bytes_per_token}
    fitted = measured.fit(SAMPLES)
    machine = measured_file.describe_machine(model, fitted, **about)
    size = model.kv_bytes_per_token
    data = measured_file.content(model, machine, fitted, kv_bytes_per_token=size, provenance={})
    measured_file.write(tmp_path / "own.json", data)
    words = ["--cluster", f"{tmp_path}/own.json/tp1:1P2T", "--model", "own"]
    settings = [
        "evolution.clusters=own",
        "evolution.workloads=['poisson:azure-conv-synth@4']",
        "evolution.loads_judged=[1.0]",
        "evolution.scenarios=1",
        "evolution.pairs=1",
        "evolution.threads=1",
        "workload.warmup_s=1",
        "workload.episode_s=4",
    ]
    words += [word for text in settings for word in ("--set", text)]
    place = ["--run-dir", str(tmp_path / "run"), "--quiet"]
    trained = CliRunner().invoke(learning, ["train", "--algo", "es", "--steps", "1", *words, *place])
    assert trained.exit_code == 0, trained.output
    policy = ["--policies", f"{tmp_path}/run", "--workload", "poisson:azure-conv-synth@4", "--seeds", "1"]
    assert (
        run(monkeypatch, "evaluate", *words[:4], *policy, "--duration", "4", "--warmup", "1", "--json") == 0
    )
    assert json.loads(capsys.readouterr().out)["policies"] == [f"{tmp_path}/run"]


def test_a_model_of_its_own_is_its_own_reference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from splitgym.cluster import Cluster
    from splitgym.config import ClusterConfig, parse_machines

    fitted = measured.fit(SAMPLES)
    assert fitted.mixed_factor == 1.1 and "assumed" in str(measured_file._errors(fitted, 1)["mixed"])
    assert fitted.token.slope == pytest.approx(1e-5, rel=1e-6)
    model = profiles.ModelSpec("own", 2, 64, 4, 4, 16, weights_bytes=10_000)
    about = {"gpus": 1, "capacity_tokens": 5_000, "kv_bytes_per_token": model.kv_bytes_per_token}
    machine = measured_file.describe_machine(model, fitted, **about)
    data = measured_file.content(
        model, machine, fitted, kv_bytes_per_token=model.kv_bytes_per_token, provenance={}, power_w=(1, 3, 2)
    )
    measured_file.write(tmp_path / "own.json", data)
    machines = parse_machines(f"{tmp_path}/own.json/tp1:1P2T")
    cluster = Cluster.resolve(ClusterConfig(model="own", machines=machines))
    assert cluster.rows[0] == cluster.rows[1] and cluster.num_machines == 3
    assert cluster.kv_capacity_tokens.tolist() == [5_000] * 3
