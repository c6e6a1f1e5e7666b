"""`splitgym improve`: a better bundle from a router's log, or none; resumed, and nothing overwritten."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from logs import CONFIG, SERVERS, busy_log, request, start, write
from typer.testing import CliRunner

pytest.importorskip("torch")

from agents import improve as improving
from agents.evolution import EvolutionRun
from agents.improve import ImproveOptions, Windows, improve, verdict_of
from splitgym.cli import app
from splitgym.cli.learning import add_learning_commands
from splitgym.errors import ConfigError, PolicyError, TraceError
from splitgym.evaluation import parse
from splitgym.policy import export_heuristic, load
from splitgym.trace import Trace, part
from splitgym.trace import load as load_trace
from splitgym.trace import save as save_trace

FEW = ImproveOptions(generations=3)


@pytest.fixture(scope="module")
def busy(tmp_path_factory):
    """A log of a busy router, and a bundle whose weights were not made for it."""
    folder = tmp_path_factory.mktemp("busy")
    export_heuristic("index", folder / "old", cluster=CONFIG)
    return busy_log(folder / "log.jsonl", CONFIG, 13.0, 70.0), str(folder / "old")


def run(busy, tmp_path, options=FEW, **fields):
    log, bundle = busy
    return improve(
        [log],
        bundle,
        tmp_path / "new",
        tmp_path / "run",
        options,
        show=False,
        say=lambda text: None,
        **fields,
    )


def test_a_better_bundle_comes_with_its_report(busy, tmp_path):
    found = run(busy, tmp_path)
    assert found.won and "The new bundle wins" in found.sentence
    content = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert content["difference"]["low"] > 0 and content["difference"]["windows"] == 6
    assert content["goodput"]["new"] > content["goodput"]["old"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<html" in page and "old" in page and "new" in page
    assert load(tmp_path / "new").sha256 == load(tmp_path / "run" / "candidate").sha256
    # It is compared on the newest part, and learned from the rest.
    trace = load_trace(tmp_path / "run" / "traffic.parquet")
    assert content["requests"] <= len(part(trace, "test"))
    config = (tmp_path / "run" / "search" / "config.yaml").read_text()
    assert "traffic.parquet@x1" in config and "algo: cem" in config
    # The same command again finds it done.
    before = (tmp_path / "run" / "verdict.json").stat().st_mtime_ns
    assert run(busy, tmp_path) == found
    assert (tmp_path / "run" / "verdict.json").stat().st_mtime_ns == before


def test_an_interrupted_search_goes_on_to_the_same_bundle(busy, tmp_path, monkeypatch):
    whole = run(busy, tmp_path / "a")
    step = EvolutionRun._step

    def once(self, pool):
        self.interrupted = True  # as `Signals` does on Ctrl-C
        return step(self, pool)

    monkeypatch.setattr(EvolutionRun, "_step", once)
    found = run(busy, tmp_path / "b")
    assert found.interrupted and not found.won and "after 1 of 3 generations" in found.sentence
    assert not (tmp_path / "b" / "new").exists()
    monkeypatch.undo()
    # A kill may leave halves behind.
    (tmp_path / "b" / "run" / "candidate").mkdir()
    (tmp_path / "b" / "run" / "candidate" / "weights.npz").write_bytes(b"half")
    (tmp_path / "b" / "run" / "verdict.json").write_text('{"won": tr')
    (tmp_path / "b" / ".new.part").mkdir()
    assert run(busy, tmp_path / "b").sentence == whole.sentence
    files = [tmp_path / name / "new" / "weights.npz" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["new", "run"]


def test_without_a_gain_the_old_bundle_stays(tmp_path):
    export_heuristic("index", tmp_path / "old", options={"preset": "tuned"}, cluster=CONFIG)
    log = busy_log(tmp_path / "log.jsonl", CONFIG, 5.0, 100.0)
    found = run((log, str(tmp_path / "old")), tmp_path, ImproveOptions(generations=1))
    assert not found.won and "no gain beyond doubt" in found.sentence and not (tmp_path / "new").exists()
    assert (tmp_path / "run" / "report.html").is_file()


def results(old, new, p99_old, p99_new):
    values = {"goodput": {"old": old, "new": new}, "ttft_slowdown_p99": {"old": p99_old, "new": p99_new}}
    return SimpleNamespace(values=lambda metric, policy: np.array(values[metric][policy], float))


@pytest.mark.parametrize(
    ("new", "p99_new", "won"),
    [
        ([0.9, 0.8, 0.9, 0.85], [9.0] * 4, True),
        ([0.9, 0.8, 0.9, 0.85], [12.0] * 4, False),  # a longer tail
        ([0.9, 0.6, 0.7, 0.75], [3.0] * 4, False),  # better on the mean alone
        ([0.6, 0.6, 0.6, 0.6], [3.0] * 4, False),
    ],
)
def test_who_wins(new, p99_new, won):
    found = verdict_of(results([0.7, 0.65, 0.72, 0.7], new, [10.0] * 4, p99_new), tail=1.1)
    assert found["won"] is won and ("wins" in found["verdict"]) is won


def test_a_window_without_requests_does_not_count():
    found = verdict_of(
        results([0.7, np.nan, 0.72, 0.7], [0.9, np.nan, 0.9, 0.85], [5.0] * 4, [5.0] * 4), tail=1.1
    )
    assert found["won"] and found["difference"]["windows"] == 3


def test_what_is_there_stays(busy, tmp_path):
    log, old = busy
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "precious.txt").write_text("x")
    with pytest.raises(PolicyError, match="is no bundle: name a new folder"):
        run(busy, tmp_path, force=True)
    (tmp_path / "new" / "precious.txt").unlink()
    (tmp_path / "new").rmdir()
    export_heuristic("splitwise", tmp_path / "new")
    with pytest.raises(PolicyError, match="--force replaces the bundle"):
        run(busy, tmp_path)
    assert run(busy, tmp_path, force=True).won and load(tmp_path / "new").name == "new"
    with pytest.raises(ConfigError, match="holds an improvement with other options"):
        run(busy, tmp_path, ImproveOptions(generations=2))
    other = busy_log(tmp_path / "log.jsonl", CONFIG, 12.0, 50.0, seed=1)
    with pytest.raises(ConfigError, match="holds an improvement with other logs"):
        run((other, old), tmp_path)
    (tmp_path / "run" / "improve.json").unlink()
    with pytest.raises(ConfigError, match="is there already, and holds no improvement"):
        run(busy, tmp_path, force=True)
    assert (tmp_path / "run" / "verdict.json").is_file()


def test_what_cannot_be_improved_is_said(busy, tmp_path):
    log, old = busy
    export_heuristic("splitwise", tmp_path / "splitwise")
    export_heuristic("index+reactive", tmp_path / "joint")
    for bundle, says in (("splitwise", "routing, splitwise"), ("joint", "joint, index")):
        with pytest.raises(
            PolicyError, match=rf"{bundle} \({says}\) cannot be improved from a log: what can"
        ):
            run((log, str(tmp_path / bundle)), tmp_path)
    short = write(tmp_path / "short", start(CONFIG), *(request(i, i * 0.1) for i in range(50)))
    with pytest.raises(TraceError, match="at least 120 are needed"):
        run((short, old), tmp_path)
    bare = write(tmp_path / "bare", start(), *(request(i, i * 0.1) for i in range(50)))
    with pytest.raises(ConfigError, match="does not say what its servers are"):
        run((bare, old), tmp_path / "x")
    broken = tmp_path / "half"
    broken.mkdir()
    text = json.dumps(json.loads((tmp_path / "splitwise" / "manifest.json").read_text()))
    (broken / "manifest.json").write_text(text[:400])
    with pytest.raises(PolicyError, match=r"half/manifest.json is no JSON"):
        run((log, str(broken)), tmp_path)
    assert not (tmp_path / "new").exists()


def test_windows_of_the_comparison_do_not_overlap(tmp_path):
    arrivals = np.arange(0.0, 100.0, 0.05)
    trace = Trace(arrivals, np.arange(1, 2001), np.full(2000, 3))
    save_trace(trace, tmp_path / "t.parquet")
    windows = Windows.of(trace)
    workload = windows.judged(tmp_path / "t.parquet")
    seen = [set(workload.build(seed, machines=40).prompt_tokens.tolist()) for seed in range(windows.count)]
    assert windows.count == 6 and all(len(rows) >= 99 for rows in seen)
    assert len(set.union(*seen)) == sum(map(len, seen)) and min(set.union(*seen)) > 1400
    with pytest.raises(TraceError, match="there are 6 pieces"):
        workload.build(6)
    with pytest.raises(TraceError, match="a piece lasts"):
        parse(f"stamps:{tmp_path / 't.parquet'}@x1", pieces=50, duration_s=5.0, warmup_s=0.0).build(0)


def test_the_command(busy, tmp_path, monkeypatch):
    add_learning_commands(app)
    log, old = busy
    seen = {}

    def improve(logs, bundle, out, folder, options, **fields):
        seen.update(logs=logs, bundle=bundle, out=out, folder=folder, options=options, **fields)
        return improving.Verdict(False, True, "interrupted after 1 of 9 generations", {})

    monkeypatch.setattr(improving, "improve", improve)
    words = ["improve", str(log), "--bundle", old, "--out", str(tmp_path / "new"), "--generations", "9"]
    shown = CliRunner().invoke(app, [*words, "--tail", "1.5", "--quiet"])
    assert shown.exit_code == 130 and "the same command goes on" in shown.output
    assert seen["folder"] == tmp_path / "new.run" and seen["options"] == ImproveOptions(9, 0, 1.5)
    assert not seen["force"] and not seen["show"] and len(SERVERS) == 4
