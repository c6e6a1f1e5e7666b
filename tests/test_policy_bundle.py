"""Bundles of trained runs: what is exported decides as before, without torch."""

import json

import numpy as np
import pytest

from splitgym import cli, evaluation, policy
from splitgym.cluster import Cluster
from splitgym.errors import PolicyError
from splitgym.observation import Observer
from splitgym.policy.golden import made_up_states
from tests.bundles import LARGE, SMALL, make_run, replace_file
from tests.test_cli import run as command

KINDS = [
    ("routing", "maskable_ppo", {}),
    ("routing", "a2c", {}),
    ("routing", "dqn", {"environment": {"flat": True, "max_machines": 6}}),
    ("pool_sizing", "ppo", {"environment": {"max_moves": 2}}),
    ("pool_sizing", "dqn", {}),
    ("joint", "maskable_ppo", {}),
]


@pytest.mark.parametrize(("env", "algo", "over"), KINDS, ids=lambda x: x if isinstance(x, str) else "")
def test_numpy_decides_as_torch(tmp_path, env, algo, over):
    """On the observations of a simulated run, and on made-up states."""
    from agents.export import export_run, torch_scores
    from splitgym.sim import make_engine

    made, agent = make_run(tmp_path / "run", env, algo, **over)
    bundle = export_run(tmp_path / "run", tmp_path / "bundle")
    net = agent.model.q_net if algo == "dqn" else agent.model.policy.decision_net
    assert bundle.manifest.action.kind == env and bundle.manifest.metrics == {"goodput": 0.5, "odd": None}
    assert bundle.manifest.partner.routing is None if env != "pool_sizing" else True
    cluster = Cluster.resolve(SMALL)
    view = cluster.view()
    bundle.reset(view, 0)
    agent.reset(view, 0)
    observer = Observer(6 if over.get("environment", {}).get("flat") else 4)
    observer.reset(view)
    decided = set()
    for view, request in made_up_states(cluster, 60, seed=3):
        if bundle.routes:
            seen = observer.observe(view, request)
            ours = bundle.scores("route", seen)
            assert np.allclose(ours, torch_scores(net, seen, "route"), atol=1e-4)
            pair = bundle.route(view, request)
            assert pair == agent.route(view, request)
            decided.add(pair)
        if bundle.resizes:
            seen = observer.observe(view, None)
            ours = bundle.scores("resize", seen)
            assert np.allclose(ours, torch_scores(net, seen, "resize"), atol=1e-4)
            moved = bundle.resize(view)
            assert moved == agent.resize(view)
            decided.add(moved)
    assert len(decided) > 1, "a test on one decision proves little"

    trace = evaluation.parse("poisson:azure-code-synth@6", duration_s=10.0, warmup_s=2.0).build(0, 4)
    rows = []
    for who in (agent, policy.load(tmp_path / "bundle")):
        routing = who if bundle.routes else evaluation.contender("splitwise").routing
        engine = make_engine(cluster, routing, who if bundle.resizes else None)
        if not bundle.resizes:
            engine = make_engine(cluster, routing, evaluation.contender("splitwise").sizing)
        engine.reset(trace, 0)
        assert engine.run_until_decision() is None
        out = engine.outcomes()
        rows.append(np.stack([out.prompt_machine, out.token_machine, out.finish_ns]))
    assert np.array_equal(*rows)


def test_a_scorer_bundle_takes_any_number_of_machines(tmp_path):
    from agents.export import export_run, torch_scores

    made, agent = make_run(tmp_path / "run", "joint", "ppo")
    bundle = export_run(tmp_path / "run", tmp_path / "bundle")
    cluster = Cluster.resolve(LARGE)
    bundle.reset(cluster.view(), 0)
    observer, padded = Observer(12), Observer(20)
    for view, request in made_up_states(cluster, 20):
        p, t = bundle.route(view, request)
        assert 0 <= p < 12 and 0 <= t < 12
        seen, wide = observer.observe(view, request), padded.observe(view, request)
        ours = bundle.scores("route", seen)
        assert np.allclose(ours, bundle.scores("route", wide)[:12, :12], atol=1e-4), "padding plays no part"
        assert np.allclose(ours, torch_scores(agent.model.policy.decision_net, seen, "route"), atol=1e-4)
    entrant = policy.contender(tmp_path / "bundle", LARGE)
    assert entrant.cluster.confine and entrant.routing is entrant.sizing


def test_an_mlp_bundle_refuses_a_larger_cluster(tmp_path):
    from agents.export import export_run

    make_run(tmp_path / "run", "routing", "dqn", environment={"flat": True})
    export_run(tmp_path / "run", tmp_path / "bundle")
    with pytest.raises(PolicyError, match="knows 4 machines, the cluster has 12"):
        policy.contender(tmp_path / "bundle", LARGE)


@pytest.mark.parametrize("env", ["routing", "joint"])
def test_onnx_decides_as_numpy_for_any_number_of_machines(tmp_path, env):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from agents.export import export_run

    make_run(tmp_path / "run", env, "ppo")
    ours = export_run(tmp_path / "run", tmp_path / "numpy")
    theirs = export_run(tmp_path / "run", tmp_path / "onnx", onnx=True)
    assert (tmp_path / "onnx" / "policy.onnx").is_file() and not (tmp_path / "onnx" / "weights.npz").exists()
    cluster = Cluster.resolve(LARGE)
    for bundle in (ours, theirs):
        bundle.reset(cluster.view(), 0)
    for view, request in made_up_states(cluster, 20):
        assert ours.route(view, request) == theirs.route(view, request)
        if env == "joint":
            assert ours.resize(view) == theirs.resize(view)


def test_a_broken_onnx_file_is_one_sentence(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from agents.export import export_run

    make_run(tmp_path / "run", "routing", "ppo")
    export_run(tmp_path / "run", tmp_path / "b", onnx=True)
    replace_file(tmp_path / "b", "policy.onnx", b"no model at all")
    with pytest.raises(PolicyError, match="refused by onnxruntime"):
        policy.load(tmp_path / "b")


def test_a_temperature_draws_with_the_seed(tmp_path):
    from agents.export import export_run

    make_run(tmp_path / "run", "routing", "ppo", evaluation={"every": 256, "windows": 1, "temperature": 1.0})
    bundle = export_run(tmp_path / "run", tmp_path / "bundle")
    cluster = Cluster.resolve(SMALL)

    def decisions(seed: int) -> list[tuple[int, int]]:
        bundle.reset(cluster.view(), seed)
        return [bundle.route(view, request) for view, request in made_up_states(cluster, 50)]

    assert decisions(1) == decisions(1)
    assert decisions(1) != decisions(2)


def test_the_command_exports_a_run_and_compares_the_bundle(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "run", "routing", "maskable_ppo")
    out = tmp_path / "bundle"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "add_learning_commands", lambda to: None)
    assert command(monkeypatch, "export", "run", "-o", str(out), "--name", "mine") == 0
    assert "mine: routing, scorer" in capsys.readouterr().out
    words = ["--workload", "poisson:azure-code-synth@4", "--seeds", "1", "--duration", "5", "--warmup", "1"]
    words += ["--cluster", "h100-80gb:2P2T", "--policies", f"run/,{out}", "--json"]
    assert command(monkeypatch, "evaluate", *words) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows["policies"] == ["run/", str(out)]
    assert command(monkeypatch, "export", str(out), "-o", str(tmp_path / "again")) == 2
    assert "policy bundle already" in capsys.readouterr().err
    assert command(monkeypatch, "export", "run", "-o", str(out)) == 2
    assert "exists already" in capsys.readouterr().err
