"""Rollouts from Ray actors: the numbers of environments of one's own, whatever dies on the way."""

from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest

th = pytest.importorskip("torch")

from agents.config import merge, resolve  # noqa: E402
from agents.models import build_model, load_parameters  # noqa: E402
from agents.ray_envs import RayEnvs  # noqa: E402
from agents.training import train  # noqa: E402
from agents.vec import InProcess  # noqa: E402
from splitgym import scale  # noqa: E402
from splitgym.envs import RoutingEnv  # noqa: E402
from splitgym.errors import ConfigError, SplitgymError  # noqa: E402
from tests.stand_in_env import Mortal, StandIn, StandInTask  # noqa: E402

pytestmark = pytest.mark.skipif(
    find_spec("ray") is None, reason='Ray is not installed: pip install "splitgym[scale]"'
)


def rollout(venv, steps: int) -> list[np.ndarray]:
    """Everything that a learner sees."""
    venv.seed(5)
    rng = np.random.default_rng(0)
    observation = venv.reset()
    seen = [np.copy(x) for x in observation.values()]
    for _ in range(steps):
        masks = np.stack(venv.env_method("action_masks"))
        m = masks.shape[1] // 2
        actions = np.stack(
            [[rng.choice(np.flatnonzero(row[:m])), rng.choice(np.flatnonzero(row[m:]))] for row in masks]
        )
        observation, rewards, dones, infos = venv.step(actions)
        seen += [masks, rewards, dones, *(np.copy(x) for x in observation.values())]
        seen += [np.array([info["elapsed_s"] for info in infos])]
        seen += [info["terminal_observation"]["machines"] for info in infos if "terminal_observation" in info]
    venv.close()
    return seen


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        np.testing.assert_array_equal(a, b)


def test_transitions_are_those_of_local_environments(ray_cluster: str) -> None:
    makers = [StandIn] * 5
    same(rollout(RayEnvs(makers, ray_cluster), 120), rollout(InProcess(makers), 120))


def test_the_simulator_over_ray(ray_cluster: str) -> None:
    make = partial(
        RoutingEnv,
        cluster="h100-80gb:2P1T",
        model="llama2-70b",
        trace="azure-conv-synth",
        rate_per_s=5.0,
        episode_s=4.0,
        warmup_s=1.0,
    )
    same(rollout(RayEnvs([make] * 2, ray_cluster), 60), rollout(InProcess([make] * 2), 60))


@pytest.mark.parametrize("at", [1, 4, 14])
def test_a_dead_actor_loses_nothing(ray_cluster: str, tmp_path, at: int) -> None:
    mark = tmp_path / "died"
    makers = [StandIn, partial(Mortal, mark, at), partial(StandIn, length=7)]
    found = rollout(RayEnvs(makers, ray_cluster, actors=2), 30)
    assert mark.exists(), "it has died"
    same(found, rollout(InProcess(makers), 30))


def test_an_actor_that_always_dies_is_one_sentence(ray_cluster: str) -> None:
    venv = RayEnvs([partial(Mortal, None, 1)], ray_cluster)
    venv.reset()
    with pytest.raises(SplitgymError, match="died 5 times in a row"):
        venv.step(np.zeros((1, 2), np.int64))
    venv.close()


def test_errors_are_those_of_the_environment(ray_cluster: str) -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        RayEnvs([partial(RoutingEnv, cluster="h100-80gb:nonsense")], ray_cluster)


def test_another_splitgym_is_refused(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import agents.ray_envs

    monkeypatch.setattr(agents.ray_envs, "fingerprint", lambda: "another")
    assert agents.ray_envs.fingerprint() != scale.fingerprint()
    with pytest.raises(ConfigError, match="with another splitgym"):
        RayEnvs([StandIn], ray_cluster)


def test_training_learns_the_same_policy(ray_cluster: str, tmp_path) -> None:
    small = {
        "algo": "maskable_ppo",
        "env": "routing",
        "steps": 256,
        "learner": {"num_envs": 2, "hidden": 16, "reward_scale": 0.1},
        "on_policy": {"n_steps": 64, "batch_size": 64, "n_epochs": 2},
        "warm_start": {"teacher": None},
        "evaluation": {"every": 200},
        "checkpoint": {"every": 100},
    }
    found = []
    for learner in ({}, {"vec": "ray", "ray": ray_cluster}):
        made = resolve(merge(small, {"learner": learner}))
        task = StandInTask("routing")
        outcome = train(made, tmp_path / f"run{len(found)}", task=task, show=False)
        env = task.make_env()
        model = build_model(made, env.observation_space, env.action_space)
        load_parameters(model, outcome.run.latest_checkpoint() / "model.zip")
        found.append(model.policy.state_dict())
    for name, tensor in found[0].items():
        assert th.equal(tensor, found[1][name]), name
