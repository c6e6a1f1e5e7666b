"""What a trace is like; a generator fitted to a user's own; both against series whose answer is known."""

import json
from pathlib import Path

import numpy as np
import pytest

from splitgym.errors import TraceError
from splitgym.trace import Trace, load, load_file, save
from splitgym.trace.describe import describe, plot
from splitgym.trace.fitting import fit
from splitgym.trace.statistics import counts, dispersion, lag_correlation, two_sample, two_samples
from splitgym.trace.synth import from_tables
from tests.test_cli import run


def made(seed: int, gaps: str, count: int = 4000, rate: float = 2.0) -> Trace:
    """Poisson or evenly spaced arrivals, or clumps of 20; lognormal sizes, outputs that follow prompts."""
    draw = np.random.default_rng(seed)
    if gaps == "poisson":
        times = np.cumsum(draw.exponential(1 / rate, count))
    elif gaps == "even":
        times = np.arange(count) / rate
    else:
        times = np.repeat(np.cumsum(draw.exponential(20 / rate, count // 20)), 20) + draw.random(count) * 0.5
    prompt = np.exp(draw.normal(6, 1, count)).astype(int) + 1
    output = np.maximum(1, (prompt * draw.uniform(0.1, 0.4, count)).astype(int))
    return Trace(np.sort(times), prompt, output, name=gaps)


def test_poisson_even_and_clumped_arrivals_are_told_apart() -> None:
    poisson, even, clumped = (describe(made(0, kind)) for kind in ("poisson", "even", "clumped"))
    assert poisson["dispersion_10s"] == pytest.approx(1, abs=0.25) and even["dispersion_10s"] < 0.05
    assert clumped["dispersion_10s"] > 10
    assert poisson["gap_variation"] == pytest.approx(1, abs=0.06) and even["gap_variation"] < 1e-6
    assert abs(poisson["autocorrelation_1s_lag1"]) < 0.05
    assert poisson["rate_per_s"] == pytest.approx(2, rel=0.05) and poisson["rate_60s_max_per_s"] < 3
    assert even["rate_1s_p50_per_s"] == even["rate_1s_max_per_s"] == 2
    assert poisson["prompt_output_rank_correlation"] > 0.8
    assert poisson["output_tokens_p10"] < poisson["output_tokens_p50"] < poisson["output_tokens_max"]


def test_a_rate_that_swings_shows_in_the_autocorrelation() -> None:
    times = np.concatenate([np.arange(k * 60, k * 60 + 60, 0.1 if k % 2 else 1.0) for k in range(40)])
    found = describe(Trace(times, np.full(len(times), 9), np.full(len(times), 9)))
    assert found["autocorrelation_60s_lag1"] < -0.9 and found["autocorrelation_60s_lag2"] > 0.8
    assert found["autocorrelation_1s_lag10"] > 0.5
    assert found["prompt_output_rank_correlation"] is None, "constant sizes have none"


def test_short_traces_say_what_they_cannot_tell() -> None:
    found = describe(Trace([0.0, 0.5], [1, 2], [3, 4]))
    assert found["dispersion_60s"] is None and found["autocorrelation_1s_lag1"] is None
    json.dumps(found, allow_nan=False)


def test_statistics_of_series_that_are_known() -> None:
    assert counts(np.array([0.0, 0.1, 1.5, 3.2]), 1.0).tolist() == [2, 1, 0], "the last bin is not whole"
    assert dispersion(np.array([0.0, 0.1, 1.5, 2.0]), 1.0) == pytest.approx(0.25 / 1.5)
    assert lag_correlation(np.array([1.0, -1.0] * 50), 1) == pytest.approx(-1)
    same = two_sample("x", np.arange(500), np.arange(500))
    far = two_sample("x", np.arange(500), np.arange(500) + 250)
    assert same.ks == 0 and same.ks_p == 1 and far.ks == 0.5 and far.ks_p < 1e-6
    assert same.anderson < 1 < 50 < far.anderson and far.anderson_p <= 0.001


@pytest.mark.parametrize("kind", ["poisson", "even", "clumped"])
def test_a_generator_of_ones_own_is_near(kind: str) -> None:
    """Sizes, rate and burstiness come back. (Even spacing cannot: within a second it is Poisson.)"""
    trace = made(1, kind)
    fitted = fit(trace, "mine")
    again = from_tables(fitted, 3 * trace.duration_s, 7)
    assert again.name == "mine" and again.rate_per_s == pytest.approx(trace.rate_per_s, rel=0.15)
    checks = {check.what: check for check in two_samples(trace, again)}
    assert checks["prompt tokens"].ks < 0.03 and checks["output tokens"].ks < 0.04
    if kind == "poisson":
        assert checks["gaps [s]"].ks < 0.04 and checks["arrivals in 10 s"].ks < 0.1
    if kind == "clumped":
        ratio = dispersion(again.arrival_s, 10) / dispersion(trace.arrival_s, 10)
        assert 0.5 < ratio < 2
    numbers = sum(len(table) for table in fitted["sizes"]["output_tokens"])
    assert 4 * (numbers + len(fitted["sizes"]["prompt_tokens"])) <= len(trace), "few numbers, no rows"
    assert kind not in json.dumps(fitted), "not even the name of the original"


@pytest.mark.parametrize(("count", "rate"), [(100, 5.0), (130, 0.02), (400, 50.0), (1000, 300.0)])
def test_small_sparse_and_dense_traces_can_be_fitted(count: int, rate: float) -> None:
    trace = made(2, "poisson", count, rate)
    again = from_tables(fit(trace, "mine"), 5 * trace.duration_s, 1)
    assert again.rate_per_s == pytest.approx(trace.rate_per_s, rel=0.25)


def test_too_little_to_fit() -> None:
    with pytest.raises(TraceError, match=r"has 99 requests in .*at least 100"):
        fit(made(3, "poisson", 99), "mine")
    with pytest.raises(TraceError, match="in 0 s: a generator is fitted"):
        fit(Trace(np.zeros(200), np.ones(200), np.ones(200)), "mine")


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own, out, tables = tmp_path / "own.csv", tmp_path / "synth.parquet", tmp_path / "t.json"
    save(made(4, "clumped", 1000), own)
    words = ["trace", "synth", str(own), "--out", str(out), "--tables", str(tables), "--name", "like"]
    assert run(monkeypatch, *words) == 0
    said = capsys.readouterr().out
    assert first_words(said) >= {"prompt tokens", "output tokens", "gaps [s]", "arrivals in 10 s"}
    assert load_file(out).name == "like" and "own" not in tables.read_text()
    assert run(monkeypatch, *words) == 2 and "--force" in capsys.readouterr().err
    assert run(monkeypatch, *words, "--force", "--json") == 0
    check = json.loads(capsys.readouterr().out)["check"]
    assert check[0]["what"] == "prompt tokens" and check[0]["ks"] < 0.1

    again = tmp_path / "again.csv"
    words = ["trace", "synth", str(tables), "--out", str(again), "--duration", "60", "--seed", "3"]
    assert run(monkeypatch, *words) == 0 and load_file(again).duration_s < 60
    capsys.readouterr()
    tables.write_text(tables.read_text()[:-300])
    assert run(monkeypatch, *words, "--force") == 2
    assert "t.json: is no JSON" in capsys.readouterr().err and load_file(again).duration_s < 60
    tables.write_text(json.dumps({"name": "x", "fitted_to": {"rate_per_s": 1}, "arrivals": {}, "sizes": {}}))
    assert run(monkeypatch, *words, "--force") == 2 and "tables are damaged" in capsys.readouterr().err

    picture = tmp_path / "p.png"
    assert run(monkeypatch, "trace", "describe", str(own), "--plot", str(picture)) == 0
    assert "gap_variation: " in capsys.readouterr().out and picture.read_bytes()[:4] == b"\x89PNG"
    assert run(monkeypatch, "trace", "describe", str(own), "--plot", str(picture)) == 2
    assert run(monkeypatch, "trace", "describe", str(own), "--plot", str(tmp_path / "p.doc")) == 2
    assert "p.doc: it is written as .png" in capsys.readouterr().err


def first_words(text: str) -> set[str]:
    return {line[:18].strip() for line in text.splitlines()}


def test_a_picture_of_any_trace(tmp_path: Path) -> None:
    from splitgym.trace.describe import plot

    for number, trace in enumerate(
        (Trace([0.0], [1], [1]), Trace([0.0, 0.0], [1, 5], [1, 1]), load("azure-conv-synth"))
    ):
        plot(trace, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 5_000


def test_describing_drawing_and_fitting_say_how_far_they_are(tmp_path: Path) -> None:
    """To the end, step by step, with the same total: so the bar knows the time left."""
    trace = load("azure-conv-synth")
    told: dict[str, list[tuple[int, ...]]] = {"describe": [], "plot": [], "fit": []}
    describe(trace, lambda *step: told["describe"].append(step))
    plot(trace, tmp_path / "x.png", lambda *step: told["plot"].append(step))
    fit(trace, "x", lambda *step: told["fit"].append(step))
    for name, seen in told.items():
        total = seen[0][1]
        assert seen == [(done, total) for done in range(1, total + 1)] and total > 1, name
