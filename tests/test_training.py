"""Learning on a stand-in environment: every algorithm runs, learns, repeats, and leaves a whole folder."""

import json

import numpy as np
import pytest

th = pytest.importorskip("torch")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from agents.config import HYPERPARAMS, RunConfig, merge, resolve  # noqa: E402
from agents.models import load_parameters  # noqa: E402
from agents.runs import RunFolder, rng_state  # noqa: E402
from agents.training import make_vec_env, resume, train  # noqa: E402
from splitgym.config import load_yaml  # noqa: E402
from splitgym.errors import ConfigError  # noqa: E402
from tests.stand_in_env import StandIn, StandInTask  # noqa: E402

SMALL = {
    "steps": 512,
    "learner": {"num_envs": 2, "hidden": 16, "reward_scale": 0.1, "learning_rate": 1e-3},
    "on_policy": {"n_steps": 64, "batch_size": 64, "n_epochs": 2},
    "dqn": {"buffer_size": 500, "learning_starts": 50, "batch_size": 32, "target_update_interval": 100},
    "warm_start": {"teacher": None},
    "evaluation": {"every": 200},
    "checkpoint": {"every": 100},
}


def config(algo="maskable_ppo", env="routing", **over) -> RunConfig:
    return resolve(merge(merge(SMALL, {"algo": algo, "env": env}), over))


def stand_in(made: RunConfig) -> StandInTask:
    return StandInTask("flat" if made.environment.flat else made.env)


def parameters(run: RunFolder, made: RunConfig):
    from agents.models import build_model

    env = stand_in(made).make_env()
    model = build_model(made, env.observation_space, env.action_space)
    load_parameters(model, run.latest_checkpoint() / "model.zip")
    return model.policy.state_dict()


@pytest.mark.parametrize(
    ("algo", "env"),
    [
        ("maskable_ppo", "routing"),
        ("ppo", "joint"),
        ("a2c", "pool_sizing"),
        ("recurrent_ppo", "pool_sizing"),
        ("dqn", "routing"),
        ("dqn", "pool_sizing"),
    ],
)
def test_every_algorithm_makes_a_whole_run(tmp_path, algo, env):
    made = config(algo, env)
    outcome = train(made, tmp_path / "run", task=stand_in(made), show=False)
    assert outcome.state == "finished" and outcome.steps >= 512
    run = RunFolder(tmp_path / "run")
    assert load_yaml(RunConfig, run.config_file) == made
    meta = json.loads((run.path / "meta.json").read_text())
    assert meta["git_revision"] and meta["versions"]["torch"] == th.__version__ and meta["seed"] == 0
    assert run.progress()["state"] == "finished"
    steps = [int(row["steps"]) for row in run.evaluations()]
    assert steps == sorted(set(steps)) and steps[0] == 0 and steps[-1] == outcome.steps
    best = max(float(row["goodput"]) for row in run.evaluations())
    assert run.best_score("goodput") == pytest.approx(best)
    assert len(list(run.checkpoints.iterdir())) == made.checkpoint.keep
    events = EventAccumulator(str(run.tensorboard)).Reload()
    assert [e.step for e in events.Scalars("eval/goodput")] == steps
    assert "rollout/ep_rew_mean" in events.Tags()["scalars"]


def test_same_seed_same_parameters(tmp_path):
    made = config()
    for name in ("a", "b"):
        train(made, tmp_path / name, task=stand_in(made), show=False)
    a, b = (parameters(RunFolder(tmp_path / name), made) for name in ("a", "b"))
    assert all(th.equal(a[key], b[key]) for key in a)
    other = config(seed=1)
    train(other, tmp_path / "c", task=stand_in(other), show=False)
    c = parameters(RunFolder(tmp_path / "c"), made)
    assert any(not th.equal(a[key], c[key]) for key in a)


def test_it_learns(tmp_path):
    """On the stand-in, PPO finds short queues."""
    made = config(
        steps=8192,
        learner={"num_envs": 8, "learning_rate": 3e-3},
        on_policy={"n_steps": 128, "batch_size": 256, "n_epochs": 8, "target_kl": None},
        evaluation={"every": 8192},
    )
    outcome = train(made, tmp_path / "run", task=stand_in(made), show=False)
    rows = outcome.run.evaluations()
    assert float(rows[-1]["goodput"]) > float(rows[0]["goodput"]) + 0.1


def test_a_finished_run_says_so(tmp_path, capsys):
    made = config()
    train(made, tmp_path / "run", task=stand_in(made), show=False)
    before = sorted((tmp_path / "run").rglob("*"))
    assert resume(tmp_path / "run", task=stand_in(made), show=False).state == "finished"
    assert "finished" in capsys.readouterr().out
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_a_new_run_does_not_touch_an_old_one(tmp_path):
    made = config()
    train(made, tmp_path / "run", task=stand_in(made), show=False)
    with pytest.raises(ConfigError, match="--resume"):
        train(made, tmp_path / "run", task=stand_in(made), show=False)
    with pytest.raises(ConfigError, match="no run folder"):
        resume(tmp_path / "nothing")


def test_subprocess_environments_give_the_same_transitions():
    made = config()
    task = stand_in(made)
    envs = [make_vec_env(made, task), make_vec_env(config(learner={"vec": "subproc"}), task)]
    seen = []
    for venv in envs:
        venv.seed(3)
        observations = [venv.reset()["machines"].copy()]
        for step in range(60):  # beyond the end of an episode
            actions = np.full((2, 2), step % 3)
            observation, rewards, *_ = venv.step(actions)
            observations += [observation["machines"].copy(), rewards.copy()]
        seen.append(observations)
        venv.close()
    assert all(np.allclose(a, b) for a, b in zip(*seen, strict=True))


@pytest.mark.parametrize("path", sorted(HYPERPARAMS.glob("*.yaml")), ids=lambda p: p.stem)
def test_hyperparameter_files_resolve(path):
    env, algo = path.stem.rsplit("-", 1)
    made = resolve({"env": env, "algo": algo})
    assert (made.env, made.algo) == (env, algo)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"algo": "dqn", "env": "joint"}, "no hyperparameters"),
        ({"algo": "dqn", "environment": {"flat": False}}, "single integer"),
        ({"algo": "ppo", "env": "pool_sizing", "environment": {"flat": True}}, "flat"),
        ({"learner": {"learning_rat": 1e-3}}, "learner.learning_rat"),
        ({"steps": 0}, "steps"),
        ({"algo": "sac"}, "sac"),
    ],
)
def test_a_wrong_option_is_one_clear_error(options, says):
    with pytest.raises(ConfigError, match=says):
        resolve(options)


def test_random_states_survive_json():
    from agents.runs import restore_rng

    state = json.loads(json.dumps(rng_state()))
    first = (th.rand(3).tolist(), np.random.rand(3).tolist())  # noqa: NPY002
    restore_rng(state)
    assert (th.rand(3).tolist(), np.random.rand(3).tolist()) == first  # noqa: NPY002


def test_parameters_of_another_network_are_refused(tmp_path):
    from agents.models import build_model

    env = StandIn()
    small, large = (
        build_model(config(learner={"hidden": hidden}), env.observation_space, env.action_space)
        for hidden in (8, 16)
    )
    small.save(tmp_path / "model.zip")
    with pytest.raises(ConfigError, match=r"does not fit"):
        load_parameters(large, tmp_path / "model.zip")
