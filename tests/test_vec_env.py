"""Environments stepped together give a learner the numbers of environments stepped one by one."""

from functools import partial
from typing import Any

import numpy as np
import pytest

th = pytest.importorskip("torch")

from agents.config import resolve  # noqa: E402
from agents.models import build_model, load_parameters  # noqa: E402
from agents.task import SimulatorTask  # noqa: E402
from agents.training import make_vec_env, train  # noqa: E402
from agents.vec import InProcess, Together, vec_env  # noqa: E402
from splitgym.envs import JointEnv, PoolSizingEnv, RoutingEnv  # noqa: E402

SMALL: dict[str, Any] = {
    "cluster": "h100-80gb:2P1T",
    "model": "llama2-70b",
    "trace": "azure-conv-synth",
    "rate_per_s": 5.0,
    "episode_s": 5.0,
    "warmup_s": 1.0,
}


def rollout(venv: Any, steps: int) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    venv.seed(3)
    rng = np.random.default_rng(0)
    seen, ended = [np.copy(x) for x in venv.reset().values()], []
    sizes = getattr(venv.action_space, "nvec", None)
    for _ in range(steps):
        seen.append(np.stack(venv.env_method("action_masks")))
        if sizes is None:
            actions = rng.integers(0, venv.action_space.n, venv.num_envs)
        else:
            actions = np.stack([rng.integers(0, n, venv.num_envs) for n in sizes], axis=1)
        observation, rewards, dones, infos = venv.step(actions)
        seen += [*(np.copy(x) for x in observation.values()), rewards, dones]
        seen.append(np.array([info["elapsed_s"] for info in infos]))
        ended += [info for info, done in zip(infos, dones) if done]
    venv.close()
    return seen, ended


@pytest.mark.parametrize("kind", [RoutingEnv, partial(RoutingEnv, flat=True), PoolSizingEnv, JointEnv])
def test_transitions_are_those_of_single_environments(kind: Any) -> None:
    make = partial(kind, **SMALL)
    together = vec_env([make] * 3)
    assert isinstance(together, Together)
    ours, our_ends = rollout(together, 80)
    theirs, their_ends = rollout(InProcess([make] * 3), 80)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(our_ends) == len(their_ends) > 2
    for a, b in zip(our_ends, their_ends):
        assert a["TimeLimit.truncated"] and repr(a["episode_metrics"]) == repr(b["episode_metrics"])
        assert a["invalid_actions"] == b["invalid_actions"]
        for key in a["terminal_observation"]:
            np.testing.assert_array_equal(a["terminal_observation"][key], b["terminal_observation"][key])
        assert a["metrics"].items() <= b["metrics"].items(), "pools"


def test_environments_that_compiled_code_does_not_know_are_stepped_one_by_one() -> None:
    assert isinstance(vec_env([partial(RoutingEnv, engine="simpy", **SMALL)] * 2), InProcess)


def test_what_is_set_would_be_lost() -> None:
    venv = vec_env([partial(RoutingEnv, **SMALL)] * 2)
    assert venv.has_attr("action_masks") and not venv.has_attr("no_such")
    assert venv.get_attr("max_machines") == [3, 3]
    with pytest.raises(NotImplementedError, match="max_machines"):
        venv.set_attr("max_machines", 4)
    with pytest.raises(AttributeError, match="no method"):
        venv.env_method("render")
    assert venv.env_is_wrapped(object) == [False, False]


@pytest.mark.parametrize("algo", ["maskable_ppo", "dqn"])
def test_training_learns_the_same_policy(algo: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = resolve(
        {
            "algo": algo,
            "env": "routing",
            "steps": 192,
            "cluster": {"model": "llama2-70b", "machines": [{"count": 2, "pool": "mixed"}]},
            "workload": {"trace": "azure-conv-synth", "rate_per_s": 6.0, "episode_s": 5.0, "warmup_s": 1.0},
            "learner": {"num_envs": 2, "hidden": 8},
            "on_policy": {"n_steps": 32, "batch_size": 32, "n_epochs": 2},
            "dqn": {"buffer_size": 200, "learning_starts": 20, "batch_size": 16},
            "environment": {"flat": algo == "dqn"},
            "warm_start": {"teacher": None},
            "evaluation": {"every": 1000, "windows": 1},
            "checkpoint": {"every": 1000},
        }
    )
    found, rewards = [], []
    for kind in (Together, InProcess):
        if kind is InProcess:
            monkeypatch.setattr("agents.vec.compilable", lambda env: "not today")
        venv = make_vec_env(made, SimulatorTask(made))
        assert isinstance(venv, kind)
        outcome = train(made, tmp_path / kind.__name__, show=False)
        model = build_model(made, venv.observation_space, venv.action_space)
        load_parameters(model, outcome.run.latest_checkpoint() / "model.zip")
        found.append(model.policy.state_dict())
        rewards.append(scalars(outcome.run, "steps/reward_good"))
        venv.close()
    for name, tensor in found[0].items():
        assert th.equal(tensor, found[1][name]), name
    assert rewards[0] == rewards[1] != []


def scalars(run: Any, name: str) -> list[float]:
    """A TensorBoard curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    return [event.value for event in events.Scalars(name)] if name in events.Tags()["scalars"] else []
