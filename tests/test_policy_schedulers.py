"""Bundles of heuristics and learned weights, shipped ones, and bundles in worker processes."""

import hashlib
import json
import pickle

import numpy as np
import pytest

from splitgym import evaluation, policy
from splitgym.cluster import Cluster
from splitgym.errors import ConfigError, PolicyError
from splitgym.policy.golden import made_up_states
from tests.bundles import LARGE, SMALL, scorer_bundle
from tests.test_cli import run as command


@pytest.mark.parametrize(
    "text", ["splitwise", "index", "random", "power-of-two", "splitwise+reactive", "+ewma"]
)
def test_a_heuristic_is_a_bundle_and_decides_as_itself(tmp_path, text):
    bundle = policy.export_heuristic(text, tmp_path / "bundle")
    routing, _, sizing = text.partition("+")
    assert (bundle.routes, bundle.resizes) == (bool(routing), bool(sizing))
    results = evaluation.evaluate(
        [
            policy.contender(tmp_path / "bundle", SMALL, name="bundle"),
            evaluation.contender(text if routing else f"splitwise{text}", name="itself"),
        ],
        SMALL,
        [evaluation.parse("poisson:azure-code-synth@6", duration_s=6.0, warmup_s=1.0)],
        [0],
    )
    ours, theirs = (results.select(name)[0].metrics for name in ("bundle", "itself"))
    assert ours == theirs


def test_options_are_kept(tmp_path, monkeypatch, capsys):
    words = ["--heuristic", "splitwise", "--option", "max_pending_tokens=77", "-o", str(tmp_path / "b")]
    assert command(monkeypatch, "export", *words) == 0
    assert policy.load(tmp_path / "b").routing.max_pending_tokens == 77
    assert command(monkeypatch, "export", "--heuristic", "nonsense", "-o", str(tmp_path / "c")) == 2
    assert "no routing scheduler is called 'nonsense'" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
    assert command(monkeypatch, "export", "-o", str(tmp_path / "c")) == 2
    with pytest.raises(ConfigError, match="no option 'nonsense'"):
        policy.export_heuristic("splitwise", tmp_path / "c", options={"nonsense": 1})


def test_a_learned_residual_is_a_bundle_with_its_weights_bit_for_bit(tmp_path):
    from splitgym import schedulers
    from splitgym.schedulers.residual import size

    flat = np.random.default_rng(0).normal(0, 1.0, size(4))
    bundle = policy.export_heuristic("residual", tmp_path / "b", name="grown", weights={"weights": flat})
    assert bundle.name == "grown" and np.array_equal(bundle.routing.params, flat)
    own = schedulers.Residual(weights=tuple(flat.tolist()))
    for view, request in made_up_states(Cluster.resolve(LARGE), 20):
        assert bundle.route(view, request) == own.route(view, request)


def joint_bundle(folder, seed=0):
    """A learned router and a learned sizer in one bundle."""
    from splitgym import schedulers
    from splitgym.schedulers import residual, sizing_net

    random = np.random.default_rng(seed)
    routing = schedulers.Residual(weights=tuple(random.normal(0, 1.0, residual.size(4)).tolist()))
    weights = sizing_net.rule_weights(3)
    weights[sizing_net.NETWORK_AT :] = random.normal(0, 1.0, len(weights) - sizing_net.NETWORK_AT)
    sizing = schedulers.SizingNet(weights=tuple(weights.tolist()))
    made = policy.export_schedulers(routing, sizing, folder, name="both", confine=True)
    return made, routing, sizing


def test_learned_routing_and_sizing_are_one_bundle(tmp_path):
    bundle, routing, sizing = joint_bundle(tmp_path / "b")
    assert (bundle.name, bundle.manifest.action.kind, bundle.manifest.action.confine) == (
        "both",
        "joint",
        True,
    )
    np.testing.assert_array_equal(bundle.routing.params, routing.params)
    np.testing.assert_array_equal(bundle.sizing.params, sizing.params)
    moves = {vector["decision"] for vector in bundle.manifest.golden.vectors if vector["kind"] == "resize"}
    assert len(moves) > 1  # vectors that ask for one and the same would check nothing
    entrant = policy.contender(tmp_path / "b", SMALL)
    assert entrant.cluster.confine and (entrant.routing, entrant.sizing) == (bundle.routing, bundle.sizing)
    workload = evaluation.parse("poisson:azure-code-synth@6", duration_s=6.0, warmup_s=1.0)
    own = evaluation.Contender("itself", routing, sizing, entrant.cluster)
    results = evaluation.evaluate([entrant, own], SMALL, [workload], [0])
    ours, theirs = (results.select(name)[0].metrics for name in results.policies)
    assert ours == theirs


def test_a_learned_sizer_brings_its_router(tmp_path):
    from splitgym import schedulers

    _, routing, sizing = joint_bundle(tmp_path / "b")
    partner = policy.SchedulerSpec("residual", {"weights": list(routing.weights), "label": "own"})
    made = policy.export_schedulers(None, sizing, tmp_path / "c", name="sizer", confine=True, partner=partner)
    assert (made.routes, made.resizes) == (False, True)
    entrant = policy.contender(tmp_path / "c", SMALL)
    assert isinstance(entrant.routing, schedulers.Residual) and entrant.routing.weights == routing.weights
    with pytest.raises(PolicyError, match="at least one"):
        policy.export_schedulers(None, None, tmp_path / "d", name="nobody")


def test_changed_sizing_weights_and_load_are_noticed(tmp_path):
    bundle, _, _ = joint_bundle(tmp_path / "b")
    folder = tmp_path / "b"
    manifest = json.loads((folder / "manifest.json").read_text())
    arrays = dict(np.load(folder / "weights.npz"))
    arrays["sizing.weights"] = -arrays["sizing.weights"]
    arrays["sizing.weights"][:7] *= -1  # constants stay positive
    np.savez(folder / "weights.npz", **arrays)
    with pytest.raises(PolicyError, match="it was changed"):
        policy.load(folder)
    digest = hashlib.sha256((folder / "weights.npz").read_bytes()).hexdigest()
    manifest["files"]["weights.npz"] = digest
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PolicyError, match=r"golden vector \d+ fails: it decides"):
        policy.load(folder)
    resize = next(v for v in manifest["golden"]["vectors"] if v["kind"] == "resize")
    resize["before"] = {"clock": [0]}
    manifest["golden"]["vectors"] = [resize]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PolicyError, match="before holds other fields than clock, counters"):
        policy.load(folder)


def test_bundles_travel_to_worker_processes(tmp_path):
    scorer_bundle(tmp_path / "network")
    policy.export_heuristic("index", tmp_path / "heuristic")
    for folder in tmp_path.iterdir():
        one = policy.load(folder)
        two = pickle.loads(pickle.dumps(one))
        view = Cluster.resolve(SMALL).view()
        for each in (one, two):
            each.reset(view, 0)
        for view, request in made_up_states(Cluster.resolve(SMALL), 5):
            assert one.route(view, request) == two.route(view, request)


def test_pretrained_names(tmp_path, monkeypatch):
    from splitgym.policy import find

    policy.export_heuristic("index", tmp_path / "mine")
    monkeypatch.setattr(find, "shipped", lambda kind: tmp_path)
    assert policy.bundled_names() == ("mine",)
    assert policy.load(policy.locate("pretrained:mine")).name == "index"
    assert policy.contender("pretrained:mine", SMALL).name == "pretrained:mine"
    with pytest.raises(PolicyError, match="'other': there are mine"):
        policy.locate("pretrained:other")
    with pytest.raises(PolicyError, match="no pretrained policy"):
        policy.locate("pretrained:../mine")
    with pytest.raises(PolicyError, match="no policy bundle"):
        policy.locate(tmp_path)


def test_shipped_bundles_load():
    names = policy.bundled_names()
    assert {"routing", "sizing", "joint", "index"} <= set(names)
    for name in names:
        loaded = policy.load(policy.locate(f"pretrained:{name}"))
        assert loaded.manifest.name == name and loaded.manifest.golden.vectors
