"""A prior: an observation shows what a scheduler would pay, and a policy begins as that scheduler."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from make_view import make_view, requests, views
from test_residual import random_weights

from splitgym import policy
from splitgym.cluster import Cluster
from splitgym.envs import RoutingEnv
from splitgym.errors import ConfigError, PolicyError
from splitgym.observation import Observer, observation_space, prior_weights, schema_hash
from splitgym.observation.features import PRIOR_LIMIT
from splitgym.policy.golden import made_up_states
from splitgym.schedulers import Residual
from splitgym.schedulers.choose import best_pair
from splitgym.schedulers.residual import index_weights

PRIOR = prior_weights(random_weights(3, hidden=4))
FEW = settings(max_examples=100, deadline=None)


def as_pair(costs: np.ndarray) -> tuple[int, int]:
    """The pair that costs (M, 3) of an observation make best, by search over all pairs."""
    total = costs[:, 0, None] + costs[None, :, 1]
    total[np.diag_indices(len(total))] = costs[:, 0] + costs[:, 2]
    return divmod(int(total.argmin()), len(total))  # type: ignore[return-value]


@given(views(), requests)
@FEW
def test_the_costs_are_the_schedulers(view, request):
    observer = Observer(len(view.machine_row) + 2, PRIOR)
    observer.reset(view)
    seen = observer.observe(view, request)
    costs = seen["prior"][: len(view.machine_row)]
    assert not seen["prior"][len(view.machine_row) :].any()
    assert observation_space(len(seen["mask"]), prior=True).contains(seen)
    p, t = Residual(weights=tuple(PRIOR.tolist())).route(view, request)
    ours = as_pair(costs.astype(np.float64))
    if ours != (p, t):  # float32 may only turn what is as good as equal, or beyond the limit
        worth = [costs[a, 0] + (costs[b, 2] if a == b else costs[b, 1]) for a, b in ((p, t), ours)]
        assert worth[0] - worth[1] < 1e-4 or worth[0] > PRIOR_LIMIT


def test_machines_that_are_not_allowed_cost_the_most():
    view = make_view("PPTT")
    view.prompt_allowed[2:] = 0
    view.token_allowed[:2] = 0
    observer = Observer(4, prior_weights("index"))
    observer.reset(view)
    request = next(made_up_states(Cluster.resolve(RoutingEnv().cluster.config), 1))[1]
    costs = observer.observe(view, request)["prior"]
    assert (costs[2:, 0] == PRIOR_LIMIT).all() and (costs[:2, 1:] == PRIOR_LIMIT).all()
    assert costs[:2, 0].min() == 0.0 and costs[2:, 1:].min() == 0.0
    assert not observer.observe(view, None)["prior"].any(), "a control tick routes nothing"


def test_what_a_prior_can_be():
    tuned = prior_weights("index-tuned")
    np.testing.assert_array_equal(tuned, index_weights("tuned").astype(np.float32))
    assert len(prior_weights(None)) == 0
    for wrong in ("jsq", "index-default", np.zeros(7), [np.nan] * 17):
        with pytest.raises(ConfigError):
            prior_weights(wrong)
    assert schema_hash() != schema_hash(prior=True)
    assert "prior" not in RoutingEnv().observation_space.spaces


# ---- policies ---------------------------------------------------------------------------------------------


def prior_run(folder: Any, learned: float) -> Any:
    """A run folder whose policy has `PRIOR`; `learned` is the spread of its last layer."""
    th = pytest.importorskip("torch")
    from agents.evaluation import load_agent
    from agents.models import build_model
    from agents.priors import save_prior
    from agents.runs import RunFolder
    from splitgym.config import to_mapping
    from tests.test_agents_evaluation import config

    made = config(environment={"prior": "index"}, evaluation={"temperature": 0.0})
    th.manual_seed(0)
    codec_space = RoutingEnv(cluster=made.cluster).action_space
    model = build_model(made, observation_space(4, prior=True), codec_space, prior=PRIOR.tolist())
    th.nn.init.normal_(model.policy.decision_net.scores.weight, std=learned)
    run = RunFolder(folder)
    run.create(to_mapping(made), 0)
    save_prior(run.path, PRIOR)
    run.save_best(model, {"goodput": 0.5})
    return load_agent(folder)


@pytest.mark.parametrize("onnx", [False, True], ids=["numpy", "onnx"])
@pytest.mark.parametrize("learned", [0.0, 3.0])
def test_a_bundle_decides_as_torch_and_at_first_as_the_prior(tmp_path, onnx, learned):
    """From the run folder's own weights: `environment.prior` says index here, and is not read again."""
    from agents.export import export_run, torch_scores

    agent = prior_run(tmp_path / "run", learned)
    bundle = export_run(tmp_path / "run", tmp_path / "bundle", onnx=onnx)
    assert bundle.manifest.architecture.prior
    bundle = policy.load(tmp_path / "bundle")
    scheduler = Residual(weights=tuple(PRIOR.tolist()))
    cluster = Cluster.resolve(RoutingEnv(cluster="h100-80gb:4P+a100-80gb:3T").cluster.config)
    bundle.reset(cluster.view(), 0)
    as_prior = []
    for view, request in made_up_states(cluster, 60, seed=5):
        pair = bundle.route(view, request)
        as_prior.append(pair == scheduler.route(view, request))
        seen = Observer(7, PRIOR).observe(view, request)
        expected = torch_scores(agent.model.policy.decision_net, seen, "route")
        np.testing.assert_allclose(bundle.scores("route", seen), expected, rtol=1e-4, atol=2e-3)
    assert all(as_prior) if learned == 0.0 else not all(as_prior)


def test_a_bundle_without_its_priors_weights_is_refused(tmp_path):
    from agents.export import export_run
    from splitgym.policy.bundle import _build
    from splitgym.policy.runtimes import PRIOR as NAME

    prior_run(tmp_path / "run", 1.0)
    manifest = export_run(tmp_path / "run", tmp_path / "bundle").manifest
    with np.load(tmp_path / "bundle" / "weights.npz") as file:
        arrays = {name: file[name] for name in file.files if name != NAME}
    np.savez(tmp_path / "lacking.npz", **arrays)
    with pytest.raises(PolicyError, match="flat vector"):
        _build(manifest, "", {"weights.npz": (tmp_path / "lacking.npz").read_bytes()})


def test_learning_is_pulled_to_its_start():
    th = pytest.importorskip("torch")
    from agents.policies import MaskableScorerPolicy

    env = RoutingEnv(cluster="h100-80gb:2P2T", prior=tuple(PRIOR.tolist()))
    observation, _ = env.reset(seed=0)
    batch = {key: th.as_tensor(value[None]) for key, value in observation.items()}
    made = MaskableScorerPolicy(
        env.observation_space, env.action_space, lambda _: 1e-3, hidden=8, prior=PRIOR, pulled=True
    )
    actions = th.zeros(1, 2)
    made.pull, made.entropy_weight = 1.0, 0.0
    assert float(made.evaluate_actions(batch, actions)[2]) == 0.0, "it is at its start"
    th.nn.init.normal_(made.decision_net.scores.weight, std=2.0)
    now, start = (made._distribution(net, batch, None).pair for net in (made.decision_net, made.start_net))
    expected = float((now.exp() * (now - start)).sum())
    assert expected > 0.001
    assert float(made.evaluate_actions(batch, actions)[2]) == pytest.approx(-expected, rel=1e-4)
    assert made.divergences[-1] == pytest.approx(expected, rel=1e-4)
    made.keep_start()
    assert float(made.evaluate_actions(batch, actions)[2]) == pytest.approx(0.0, abs=1e-6)


def test_best_pair_agrees_with_the_search_over_all_pairs():
    rng = np.random.default_rng(0)
    for _ in range(50):
        costs = rng.normal(size=(3, 5))
        assert best_pair(costs) == as_pair(costs.T)
