"""Policy bundles: what is exported decides as before, and what was changed is refused with one sentence."""

import hashlib
import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from splitgym import cli, evaluation, policy
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, MachineGroup
from splitgym.errors import ConfigError, PolicyError
from splitgym.observation import CLUSTER_FEATURES, MACHINE_FEATURES, REQUEST_FEATURES, Observer
from splitgym.policy.choose import choose, choose_pair
from splitgym.policy.golden import made_up_states
from splitgym.policy.runtimes import ScorerRuntime
from tests.test_cli import run as command

SMALL = ClusterConfig(
    machines=(MachineGroup(count=2, pool="prompt"), MachineGroup(count=2, pool="token")),
)
LARGE = ClusterConfig(
    machines=(MachineGroup(count=7, pool="prompt"), MachineGroup(count=5, pool="token")),
)


# ---- trained runs -----------------------------------------------------------------------------------------


def make_run(folder: Path, env: str, algo: str, **over):
    """A run folder with a random network, as if trained; the agent that is in it."""
    pytest.importorskip("torch")
    from agents.evaluation import load_agent
    from agents.runs import RunFolder
    from splitgym.config import to_mapping
    from tests.test_agents_evaluation import config, fresh_agent

    over.setdefault("evaluation", {"every": 256, "windows": 1, "temperature": 0.0})
    made = config(env, algo, **over)
    agent = fresh_agent(made)
    centre(agent, env)
    run = RunFolder(folder)
    run.create(to_mapping(made), 0)
    run.save_best(agent.model, {"goodput": 0.5, "odd": float("nan")})
    return made, load_agent(folder)


def centre(agent, env: str) -> None:
    """Shift the last biases so that a random network does not always take the same decision."""
    import torch

    from agents.export import torch_scores

    dqn = hasattr(agent.model, "q_net")
    net = agent.model.q_net if dqn else agent.model.policy.decision_net
    if env == "routing" and not dqn:
        return
    last = net.q_net[-1] if dqn else net.sizes[-1]
    kind = "route" if env == "routing" else "resize"
    cluster = Cluster.resolve(SMALL)
    with torch.no_grad():
        last.weight.normal_(std=1.0)
        observer = Observer(agent._observer.max_machines)
        seen = [observer.observe(v, r if kind == "route" else None) for v, r in made_up_states(cluster, 40)]
        scores = np.stack([np.ravel(torch_scores(net, s, kind)) for s in seen])
        last.bias -= torch.as_tensor(scores.mean(axis=0))


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


# ---- heuristics -------------------------------------------------------------------------------------------


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


def test_bundles_travel_to_worker_processes(tmp_path, bundle):
    for folder in (bundle, tmp_path / "b"):
        if folder != bundle:
            policy.export_heuristic("index", folder)
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


# ---- what is refused --------------------------------------------------------------------------------------


def scorer_bundle(folder: Path, hidden: int = 8) -> Path:
    """A small random network as a bundle, without torch."""
    from splitgym.policy.golden import short
    from splitgym.policy.manifest import Action, Golden, Scorer

    random, shared = np.random.default_rng(0), len(CLUSTER_FEATURES) + len(REQUEST_FEATURES)
    shapes = {
        "encoder.own.weight": (hidden, len(MACHINE_FEATURES)),
        "encoder.own.bias": (hidden,),
        "encoder.shared.weight": (hidden, shared),
        "encoder.second.weight": (hidden, hidden),
        "encoder.second.bias": (hidden,),
        "encoder.context.weight": (hidden, 2 * hidden + shared),
        "encoder.context.bias": (hidden,),
        "machine.weight": (hidden, hidden),
        "machine.bias": (hidden,),
        "around.weight": (hidden, hidden),
        "scores.weight": (3, hidden),
        "scores.bias": (3,),
    }
    weights = {name: random.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    runtime = ScorerRuntime(weights, hidden, True, 0)
    cluster = Cluster.resolve(SMALL)
    observer, vectors = Observer(4), []
    for view, request in made_up_states(cluster, 3):
        seen = observer.observe(view, request)
        scores = runtime.pair_scores(seen)
        vectors.append(
            {
                "kind": "route",
                "observation": {name: short(array) for name, array in seen.items()},
                "prompt_allowed": [1] * 4,
                "token_allowed": [1] * 4,
                "scores": short(scores.ravel()),
                "decision": list(choose_pair(scores, view.prompt_allowed, view.token_allowed)),
            }
        )
    policy.write_bundle(
        folder,
        name="small",
        architecture=Scorer("scorer", hidden),
        action=Action("routing"),
        golden=Golden("observation", tuple(vectors)),
        weights=weights,
    )
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return scorer_bundle(tmp_path_factory.mktemp("bundles") / "original")


@pytest.fixture
def bundle(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "copy"))


def edit(folder: Path, change) -> None:
    """Change the manifest as plain data."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Change a file and its hash in the manifest: what somebody does who means harm."""
    (folder / name).write_bytes(content)
    edit(folder, lambda data: data["files"].update({name: hashlib.sha256(content).hexdigest()}))


def packed(arrays: dict) -> bytes:
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def weights_of(folder: Path) -> dict:
    with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
        return dict(arrays)


EDITS = {
    "format 2, this splitgym reads format 1": lambda d: d.update(format=2),
    "observation schema": lambda d: d["observation"].update(sha256="0" * 64),
    "is no known key|unexpected": lambda d: d.update(surprise=1),
    "file name '../weights.npz' is not allowed": lambda d: d["files"].update({"../weights.npz": "0" * 64}),
    "file name '/etc/passwd' is not allowed": lambda d: d["files"].update({"/etc/passwd": "0" * 64}),
    "file name 'manifest.json' is not allowed": lambda d: d["files"].update({"manifest.json": "0" * 64}),
    "is no sha256": lambda d: d["files"].update({"weights.npz": "abc"}),
    "needs the file weights.npz": lambda d: d["files"].clear(),
    "it decides": lambda d: d["golden"]["vectors"][1].update(decision=[0, 0], prompt_allowed=[0, 0, 1, 1]),
    "scores differ": lambda d: d["golden"]["vectors"][2]["scores"].__setitem__(0, 9.0),
    "no golden vectors": lambda d: d["golden"].update(vectors=[]),
    "golden vector 0 is malformed": lambda d: d["golden"]["vectors"][0].pop("scores"),
    "machines has shape": lambda d: d["golden"]["vectors"][0]["observation"]["machines"].pop(),
    "encoder.own.weight has shape": lambda d: d["architecture"].update(hidden=9),
    "lacks sizes.0.weight": lambda d: d["action"].update(kind="joint"),
    "architecture": lambda d: d.update(architecture={"kind": "pickle"}),
    "read a view, a scorer reads": lambda d: d["golden"].update(reads="view"),
    "limit is 8": lambda d: d["files"].update({f"f{i}": "0" * 64 for i in range(9)}),
}


@pytest.mark.parametrize("message", EDITS)
def test_a_changed_manifest_is_refused(bundle, message):
    edit(bundle, EDITS[message])
    with pytest.raises(PolicyError, match=message) as refused:
        policy.load(bundle)
    assert "\n" not in str(refused.value) and str(bundle) in str(refused.value)


def test_a_changed_file_is_refused(bundle):
    content = bytearray((bundle / "weights.npz").read_bytes())
    content[200] ^= 1
    (bundle / "weights.npz").write_bytes(bytes(content))
    with pytest.raises(PolicyError, match=r"weights\.npz has sha256 .* it was changed"):
        policy.load(bundle)


def test_other_weights_fail_the_golden_vectors(bundle):
    weights = weights_of(bundle)
    weights["machine.bias"] = weights["machine.bias"] + 0.5
    replace_file(bundle, "weights.npz", packed(weights))
    with pytest.raises(PolicyError, match=r"golden vector . fails: its scores differ"):
        policy.load(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w | {"extra": np.zeros(1, np.float32)}, "holds extra"),
        (lambda w: w | {"machine.bias": w["machine.bias"].astype(np.float64)}, "has type float64"),
        (lambda w: w | {"machine.bias": w["machine.bias"] * np.nan}, "not finite"),
        (lambda w: {k: v for k, v in w.items() if k != "machine.bias"}, "lacks machine.bias"),
    ],
)
def test_wrong_arrays_are_refused(bundle, change, message):
    replace_file(bundle, "weights.npz", packed(change(weights_of(bundle))))
    with pytest.raises(PolicyError, match=message):
        policy.load(bundle)


def test_no_pickle_is_read(bundle):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    arrays = {**weights_of(bundle), "machine.bias": np.array([Bomb()], object)}
    replace_file(bundle, "weights.npz", packed(arrays))
    with pytest.raises(PolicyError, match="cannot be read"):
        policy.load(bundle)


def test_a_zip_bomb_is_not_unpacked(bundle):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    replace_file(bundle, "weights.npz", made.getvalue())
    with pytest.raises(PolicyError, match="unpacks to"):
        policy.load(bundle)


def test_links_and_other_folders_are_refused(bundle, tmp_path):
    secret = tmp_path / "elsewhere.npz"
    secret.write_bytes((bundle / "weights.npz").read_bytes())
    (bundle / "weights.npz").unlink()
    (bundle / "weights.npz").symlink_to(secret)
    with pytest.raises(PolicyError, match="no plain file"):
        policy.load(bundle)
    (bundle / "weights.npz").unlink()
    with pytest.raises(PolicyError, match="cannot be read"):
        policy.load(bundle)
    with pytest.raises(PolicyError, match=r"manifest\.json cannot be read"):
        policy.load(tmp_path)
    (bundle / "manifest.json").write_text('{"format": NaN}')
    with pytest.raises(PolicyError, match="NaN is not allowed"):
        policy.load(bundle)
    (bundle / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(PolicyError, match="no JSON"):
        policy.load(bundle)


def test_a_heuristic_that_decides_otherwise_is_refused(tmp_path):
    policy.export_heuristic("splitwise", tmp_path / "b")
    edit(tmp_path / "b", lambda d: d["architecture"]["routing"].update(name="random"))
    with pytest.raises(PolicyError, match=r"golden vector . fails: it decides"):
        policy.load(tmp_path / "b")
    edit(tmp_path / "b", lambda d: d["architecture"]["routing"].update(name="gone"))
    with pytest.raises(PolicyError, match="no routing scheduler is called 'gone'"):
        policy.load(tmp_path / "b")


def test_scores_that_are_not_finite_are_an_error():
    scores = np.zeros((2, 2), np.float32)
    scores[1, 1] = np.nan
    with pytest.raises(PolicyError, match="not finite"):
        choose(scores, np.ones((2, 2)), 0.0, None)
    assert choose_pair(scores, np.array([1, 0]), np.array([0, 1])) == (0, 1), "masked ones do not count"


def test_draws_follow_the_softmax():
    random = np.random.default_rng(0)
    scores = np.log(np.array([1.0, 2.0, 4.0, 8.0], np.float32))
    allowed = np.array([1, 1, 0, 1])
    drawn = np.bincount([choose(scores, allowed, 1.0, random) for _ in range(4000)], minlength=4)
    assert np.allclose(drawn / 4000, np.array([1, 2, 0, 8]) / 11, atol=0.03)
    drawn = np.bincount([choose(scores, allowed, 0.5, random) for _ in range(4000)], minlength=4)
    assert np.allclose(drawn / 4000, np.array([1, 4, 0, 64]) / 69, atol=0.03)


def test_a_failed_export_leaves_nothing(tmp_path):
    from splitgym.policy.manifest import Action, Golden, Scorer

    with pytest.raises(PolicyError):
        policy.write_bundle(
            tmp_path / "b",
            name="x",
            architecture=Scorer("scorer", 8),
            action=Action("routing"),
            golden=Golden("observation", ({"kind": "route"},)),
            weights={},
        )
    assert list(tmp_path.iterdir()) == []
