"""One run over many clusters: each environment its own, each episode another workload."""

from typing import Any

import numpy as np
import pytest

th = pytest.importorskip("torch")

import agents.worlds  # noqa: E402
from agents import scenarios  # noqa: E402
from agents.config import resolve  # noqa: E402
from agents.evaluation import contender, load_agent, machines_of  # noqa: E402
from agents.models import build_model  # noqa: E402
from agents.priors import find_prior  # noqa: E402
from agents.routers import compiled_router  # noqa: E402
from agents.training import resume, train  # noqa: E402
from agents.worlds import draw_clusters, score_model, worlds  # noqa: E402
from splitgym.errors import ConfigError  # noqa: E402
from splitgym.evaluation import evaluate  # noqa: E402
from splitgym.policy import export_heuristic  # noqa: E402
from splitgym.schedulers import Residual, sizing  # noqa: E402

TINY: dict[str, Any] = {
    "algo": "maskable_ppo",
    "steps": 96,
    "environment": {"worlds": "many", "prior": "index-tuned"},
    "workload": {"warmup_s": 1.0, "episode_s": 4.0},
    "learner": {"num_envs": 3, "hidden": 8},
    "on_policy": {"n_steps": 16, "batch_size": 24, "n_epochs": 1, "start_kl": 0.5},
    "warm_start": {
        "teacher": "index",
        "options": {"preset": "tuned"},
        "fits": "value",
        "decisions": 60,
        "rounds": 1,
        "epochs": 1,
    },
    "evolution": {
        "machines": [2, 5],
        "models": ["llama2-70b"],
        "workloads": ["poisson:azure-code-synth", "stamps:azure-conv-synth"],
        "clusters_judged": ["h100-80gb:2M", "h100-80gb:1M+a100-80gb:2M"],
        "loads_judged": [0.9, 1.2],
    },
    "evaluation": {"every": 1000, "windows": 1, "temperature": 0.0},
    "checkpoint": {"every": 48, "keep": 5},
}


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    """Saturations are not what these tests are about, and take long to measure."""
    for module in (scenarios, agents.worlds):
        monkeypatch.setattr(module, "known_or_measured", lambda cluster, text: 1.5 * cluster.num_machines)


def model_of(made: Any, venv: Any = None) -> Any:
    venv = venv or worlds(made)
    prior = find_prior(made.environment.prior).tolist()
    return build_model(made, venv.observation_space, venv.action_space, venv, prior)


def test_every_environment_has_its_own_cluster_and_each_episode_its_own_load():
    made = resolve(TINY)
    assert machines_of(made) == 5
    clusters = draw_clusters(made, 12)
    assert len({cluster.config.machines for cluster in clusters}) > 4
    assert {cluster.num_machines for cluster in clusters} <= {2, 3, 4, 5}
    venv = worlds(made)
    venv.seed(4)
    seen, rng, lengths, steps = venv.reset(), np.random.default_rng(0), [], np.zeros(3, int)
    np.testing.assert_array_equal(seen["mask"].sum(axis=1), [c.num_machines for c in draw_clusters(made, 3)])
    for _ in range(400):
        masks = np.stack(venv.env_method("action_masks"))
        assert (masks[:, :5].sum(axis=1) == seen["mask"].sum(axis=1)).all()
        actions = np.array([[rng.choice(np.flatnonzero(row[:5]))] * 2 for row in masks])
        seen, rewards, dones, infos = venv.step(actions)
        steps += 1
        for i in np.flatnonzero(dones):
            lengths.append(int(steps[i]))
            steps[i] = 0
            assert infos[i]["invalid_actions"] == 0 and "episode_metrics" in infos[i]
    assert len(set(lengths)) > 3, "episodes differ in their load"
    assert np.isfinite(rewards).all()
    venv.close()


def test_a_policy_that_is_its_prior_scores_as_the_prior():
    made = resolve({**TINY, "environment": {"worlds": "many", "prior": "pretrained:routing"}})
    model, found = model_of(made), scenarios.judged(made)
    assert {len(one.cluster.machine_row) for one in found} == {2, 3} and len(found) > 4
    scheduler = Residual(weights=tuple(find_prior(made.environment.prior).tolist()))
    expected = np.array([scenarios.run((scheduler, sizing("static")), one)[:3] for one in found]).T
    np.testing.assert_array_equal(score_model(made, model, found), expected)
    th.nn.init.normal_(model.policy.decision_net.scores.weight, std=20.0)
    assert not np.array_equal(score_model(made, model, found), expected)


def test_a_run_learns_resumes_and_decides(tmp_path):
    made = resolve(TINY)
    ended = train(made, tmp_path / "run", show=False)
    assert ended.state == "finished" and (tmp_path / "run" / "prior.npz").is_file()
    rows = ended.run.evaluations()
    assert float(rows[0]["over_prior"]) == 0.0, "before learning it is the prior"
    agent = load_agent(tmp_path / "run")
    np.testing.assert_array_equal(agent.prior, find_prior("index-tuned"))
    start = agent.model.policy.start_net.state_dict()
    assert not start["scores.weight"].any(), "the start is kept, not what was learned"
    for checkpoint in sorted(ended.run.checkpoints.iterdir())[1:]:
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    ended.run.set_progress(0, 96, "interrupted")
    assert resume(tmp_path / "run", show=False).state == "finished"


POOLS: dict[str, Any] = {
    **TINY,
    "env": "pool_sizing",
    "cluster": {"model": "llama2-70b", "machines": [{"machine": "h100-80gb", "count": 2, "pool": "prompt"}]},
    "environment": {"worlds": "many", "router": "index-tuned"},
    "workload": {"warmup_s": 2.0, "episode_s": 10.0},
    "warm_start": {"teacher": "reactive", "options": {"cool_down_s": 2.0}, "decisions": 30, "epochs": 1},
}
POOLS["cluster"]["machines"].append({"machine": "h100-80gb", "count": 2, "pool": "token"})


def test_a_run_that_resizes_meets_shifting_loads_and_is_judged_beside_its_teacher(tmp_path):
    own = {
        **TINY["evolution"],
        "clusters": "own",
        "workloads": ["shifting:azure-conv-synth~azure-code-synth"],
    }
    made = resolve({**POOLS, "evolution": own})
    assert machines_of(made) == 4
    venv = worlds(made)
    assert len(venv.parts) == 1, "one cluster, one fleet"
    venv.close()
    ended = train(made, tmp_path / "run", show=False)
    row = ended.run.evaluations()[-1]
    teacher = sizing("reactive", cool_down_s=2.0)
    found = scenarios.judged(made)
    assert {one.workload.kind for one in found} == {"shifting"} and found[0].cluster.config.confine
    expected = np.mean([scenarios.run((compiled_router("index-tuned"), teacher), one)[0] for one in found])
    assert float(row["goodput"]) - float(row["over_teacher"]) == pytest.approx(expected)
    assert "goodput_shifting_azure-conv-synth~azure-code-synth" in row
    agent = load_agent(tmp_path / "run", "latest")
    results = evaluate([contender(agent, made)], found[0].cluster, [found[0].workload], [0])
    score = score_model(made, agent.model, found[:1])
    assert results.values("goodput", agent.name)[0] == pytest.approx(score[0, 0])


def test_clusters_with_pools_and_delays_are_drawn_for_what_resizes():
    many = {**TINY["evolution"], "switch_delays_s": [0.0, 5.0], "machines": [3, 5]}
    made = resolve({**POOLS, "evolution": many, "learner": {"num_envs": 6, "hidden": 8}})
    clusters = [cluster.config for cluster in draw_clusters(made, 12)]
    assert {c.switch_delay_s for c in clusters} == {0.0, 5.0} and all(c.confine for c in clusters)
    assert all({g.pool for g in c.machines} == {"prompt", "token"} for c in clusters)
    venv = worlds(made)
    seen = venv.reset()
    assert seen["machines"].shape[:2] == (6, 5) and len(venv.env_method("action_masks")[0]) == 3
    venv.close()


def test_what_worlds_and_priors_cannot_be():
    for over in (
        {"algo": "dqn", "environment": {"worlds": "many", "flat": True}},
        {"learner": {"vec": "subproc"}},
        {"env": "pool_sizing", "environment": {"prior": "index"}},
        {"algo": "es", "environment": {"prior": "index"}},
    ):
        with pytest.raises(ConfigError):
            resolve({**TINY, "warm_start": {"teacher": None}, **over})
    with pytest.raises(ConfigError, match="run folder"):
        find_prior("agents")


def test_a_prior_by_bundle(tmp_path):
    export_heuristic("index", tmp_path / "index", options={"preset": "tuned"})
    np.testing.assert_array_equal(find_prior(str(tmp_path / "index")), find_prior("index-tuned"))
    export_heuristic("jsq-tokens", tmp_path / "jsq")
    with pytest.raises(ConfigError, match="no costs"):
        find_prior(str(tmp_path / "jsq"))
