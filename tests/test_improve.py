"""`splitgym improve`: a better bundle from a router's log, or none; resumed, and nothing overwritten."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from logs import CONFIG, SERVERS, busy_log, request, start, write
from typer.testing import CliRunner

pytest.importorskip("torch")

from agents import improve as improving
from agents import training
from agents.config import resolve
from agents.evaluation import load_agent, load_config
from agents.evolution import EvolutionRun, make_search
from agents.improve import ImproveOptions, Windows, improve, plans, verdict_of
from agents.models import load_network
from agents.spaces import space_of
from splitgym.cli import app
from splitgym.cli.learning import add_learning_commands
from splitgym.config import to_mapping
from splitgym.errors import ConfigError, PolicyError, TraceError
from splitgym.evaluation import parse
from splitgym.policy import export_heuristic, load, locate
from splitgym.trace import Trace, part
from splitgym.trace import load as load_trace
from splitgym.trace import save as save_trace
from tests.bundles import make_run
from tests.test_prior import prior_run

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
        ([0.9, 0.8, 0.9, 0.85, 0.9, 0.9], 9.0, True),
        ([0.9, 0.8, 0.9, 0.85, 0.9, 0.9], 12.0, False),  # a longer tail
        ([0.9, 0.6, 0.7, 0.75, 0.9, 0.6], 3.0, False),  # better on the mean alone
        ([0.6] * 6, 3.0, False),
        ([0.9, 0.8, 0.9, 0.85], 9.0, False),  # too few windows for an interval
    ],
)
def test_who_wins(new, p99_new, won):
    n = len(new)
    old = [0.7, 0.65, 0.72, 0.7, 0.71, 0.69][:n]
    found = verdict_of(results(old, new, [10.0] * n, [p99_new] * n), tail=1.1)
    assert found["won"] is won and ("wins" in found["verdict"]) is won


def test_a_window_without_requests_does_not_count():
    old = [0.7, np.nan, 0.72, 0.7, 0.71, 0.7, 0.71]
    new = [0.9, np.nan, 0.9, 0.85, 0.9, 0.9, 0.85]
    found = verdict_of(results(old, new, [5.0] * 7, [5.0] * 7), tail=1.1)
    assert found["won"] and found["difference"]["windows"] == 6


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
    for text, says in (
        ("splitwise", "routing, splitwise"),
        ("+static", "pool_sizing, static"),
        ("index+ewma", r"joint, index\+ewma"),
        ("jsq-tokens+reactive", r"joint, jsq-tokens\+reactive"),
    ):
        export_heuristic(text, tmp_path / text)
        with pytest.raises(
            PolicyError, match=rf" \({says}\) cannot be improved .* no weights to search; what"
        ):
            run((log, str(tmp_path / text)), tmp_path)
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


def scorer(folder, env, prior=None, onnx=False):
    """The bundle of a random network, as if trained by A2C."""
    from agents.export import export_run

    if prior:
        prior_run(folder / "trained", 0.5)
    else:
        make_run(folder / "trained", env, "a2c", learner={"discount_s": 7.0})
    return export_run(folder / "trained", folder / "old", onnx=onnx)


KINDS = {
    "sizing network": (lambda folder: "pretrained:sizing", "es", "pool_sizing"),
    "sizing rule": (lambda folder: export_heuristic("+ewma", folder / "old"), "cem", "pool_sizing"),
    "joint network": (lambda folder: "pretrained:joint", "es", "joint"),
    "routing by PPO": (lambda folder: scorer(folder, "routing"), "a2c", "routing"),
    "PPO on a prior": (lambda folder: scorer(folder, "routing", prior=True), "maskable_ppo", "routing"),
    "sizing by PPO": (lambda folder: scorer(folder, "pool_sizing"), "a2c", "pool_sizing"),
    "joint by PPO, as ONNX": (lambda folder: scorer(folder, "joint", onnx=True), "a2c", "joint"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_bundle_is_improved_by_what_made_it(busy, tmp_path, monkeypatch, kind):
    """One generation each, to the end: the run begins as the bundle, and its best is compared with it."""
    make, algo, env = KINDS[kind]
    monkeypatch.setattr(plans, "UPDATE", dict.fromkeys(plans.UPDATE, 32))
    monkeypatch.setattr(plans, "CLONED", dict.fromkeys(plans.CLONED, 96))
    made = make(tmp_path)
    bundle = made if isinstance(made, str) else str(tmp_path / "old")
    found = run((busy[0], bundle), tmp_path, ImproveOptions(generations=1))
    assert "goodput" in found.sentence and (tmp_path / "run" / "report.html").is_file()
    assert found.won == (tmp_path / "new").is_dir()
    config = load_config(tmp_path / "run" / "search")
    assert (config.algo, config.env) == (algo, env)
    old, new = load(locate(bundle)), load(tmp_path / "run" / "candidate")
    assert new.manifest.action.kind == env and new.manifest.action.confine == (env != "routing")
    if env == "pool_sizing":
        assert new.manifest.partner.routing.name == old.manifest.partner.routing.name
    if "PPO" in kind:
        assert config.learner.discount_s == (10.0 if "prior" in kind else 7.0), "as it was trained"
        assert np.array_equal(new.prior, old.prior) and bool(len(new.prior)) == ("prior" in kind)
        assert config.warm_start.fits == ("both" if "ONNX" in kind else "value")


def test_joint_heuristics_get_networks_and_keep_their_widths(tmp_path):
    policy = export_heuristic("index+reactive", tmp_path / "old")
    plan = plans.plan_of(policy, str(tmp_path / "old"), False)
    assert (plan.algo, plan.env, plan.confine) == ("es", "joint", True) and plan.steps(7) == 7
    shipped = plans.plan_of(load(locate("pretrained:joint")), "pretrained:joint", False)
    config = resolve({"env": "joint", "algo": "es", **shipped.fields})
    assert len(make_search(config)[1].result()) == len(space_of(config).plain())


def test_a_network_goes_on_where_it_stands(busy, tmp_path, monkeypatch):
    """Before the first update the run's network is the bundle's, and only the value was learned."""
    scorer(tmp_path, "routing", prior=True)
    monkeypatch.setattr(plans, "UPDATE", dict.fromkeys(plans.UPDATE, 32))
    monkeypatch.setattr(plans, "CLONED", dict.fromkeys(plans.CLONED, 96))

    def stop(config, model, housekeeping, run, show):
        housekeeping.interrupted = True

    monkeypatch.setattr(training, "_steps", stop)
    found = run((busy[0], str(tmp_path / "old")), tmp_path, ImproveOptions(generations=2))
    assert found.interrupted and found.sentence == "interrupted after 0 of 512 decisions"
    old = load(tmp_path / "old").runtime.weights
    agent = load_agent(tmp_path / "run" / "search", "latest")
    now = agent.model.policy.decision_net.state_dict()
    for name, array in old.items():
        np.testing.assert_array_equal(now[name].numpy(), array)
    monkeypatch.undo()
    fields = to_mapping(load_config(tmp_path / "run" / "search"))
    with pytest.raises(ConfigError, match=r"does not fit learner\.start"):
        load_network(agent.model, str(scorer_of_width(tmp_path, 8)))
    with pytest.raises(ConfigError, match=r"holds no network that `splitgym export` wrote"):
        load_network(agent.model, busy[1])
    fields |= {"algo": "es", "warm_start": {"teacher": None}}
    with pytest.raises(ConfigError, match=r"es begins from evolution\.start"):
        resolve(fields)


def scorer_of_width(folder, hidden):
    from agents.export import export_run

    make_run(folder / "narrow", "routing", "ppo", learner={"hidden": hidden})
    export_run(folder / "narrow", folder / "narrow-bundle")
    return folder / "narrow-bundle"


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
