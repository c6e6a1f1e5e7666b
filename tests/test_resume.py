"""A killed run goes on from its last checkpoint and ends as if nothing had happened."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

th = pytest.importorskip("torch")

from agents.callbacks import Housekeeping  # noqa: E402
from agents.config import resolve  # noqa: E402
from agents.runs import RunFolder  # noqa: E402
from agents.training import resume, train  # noqa: E402
from tests.stand_in_env import StandInTask  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

OPTIONS = {
    "steps": 3072,
    "algo": "maskable_ppo",
    "learner": {"num_envs": 2, "hidden": 8, "reward_scale": 0.1},
    "on_policy": {"n_steps": 64, "batch_size": 64, "n_epochs": 1},
    "warm_start": {"teacher": None},
    "evaluation": {"every": 500},
    "checkpoint": {"every": 256, "keep": 2},
}

PROGRAM = """
import sys, json
from agents.config import resolve
from agents.training import train, resume
from tests.stand_in_env import StandInTask
folder, how, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
task = StandInTask(pause_s=0.05)
if how == "train":
    train(resolve(options), folder, task=task, show=False)
else:
    resume(folder, task=task, show=False)
"""


def start(folder, how="train"):
    command = [sys.executable, "-c", PROGRAM, str(folder), how, json.dumps(OPTIONS)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def wait_for_checkpoint(folder, steps, process):
    run = RunFolder(folder)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        latest = run.latest_checkpoint() if run.checkpoints.is_dir() else None
        if latest is not None and int(latest.name.split("-")[1]) >= steps:
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint at {steps} steps; the run ended with {process.poll()}")


def check_evaluations(run):
    with run.evaluations_file.open(newline="") as file:
        steps = [int(row["steps"]) for row in csv.DictReader(file)]
    # One at the first update boundary (each 128 steps) at or after each multiple of 500, and the end's.
    wanted = {0, *(-(-m // 128) * 128 for m in range(500, 3072, 500)), 3072}
    assert steps == sorted(wanted)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "terminate"])
def test_a_killed_run_goes_on(tmp_path, number):
    folder = tmp_path / "run"
    process = start(folder)
    wait_for_checkpoint(folder, 768, process)
    process.send_signal(number)
    assert process.wait(timeout=60) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    run = RunFolder(folder)
    stopped_at = int(run.latest_checkpoint().name.split("-")[1])
    assert 768 <= stopped_at < 3072
    assert run.progress()["state"] == ("interrupted" if number == signal.SIGTERM else "running")
    outcome = resume(folder, task=StandInTask(), show=False)
    assert (outcome.state, outcome.steps) == ("finished", 3072)
    check_evaluations(run)
    assert run.progress()["state"] == "finished"


def test_a_kill_between_evaluation_and_checkpoint_loses_no_row(tmp_path, monkeypatch):
    """The row is there, the checkpoint is not: the resumed run makes the evaluation again, once."""
    made = resolve(OPTIONS)
    save = Housekeeping.save

    class Killed(Exception):
        pass

    def dies(self, state):
        if self.model.num_timesteps >= 1500:
            raise Killed
        save(self, state)

    monkeypatch.setattr(Housekeeping, "save", dies)
    with pytest.raises(Killed):
        train(made, tmp_path / "run", task=StandInTask(), show=False)
    run = RunFolder(tmp_path / "run")
    assert int(run.evaluations()[-1]["steps"]) > int(run.latest_checkpoint().name.split("-")[1])
    monkeypatch.setattr(Housekeeping, "save", save)
    resume(tmp_path / "run", task=StandInTask(), show=False)
    check_evaluations(run)


def test_half_a_checkpoint_is_not_used(tmp_path):
    made = resolve(OPTIONS | {"steps": 512})
    train(made, tmp_path / "run", task=StandInTask(), show=False)
    run = RunFolder(tmp_path / "run")
    whole = run.latest_checkpoint()
    (run.checkpoints / ".tmp-99999").mkdir()
    assert run.latest_checkpoint() == whole
    assert not list(run.path.glob(".tmp*")) and not list(run.path.glob(".old*"))


def test_a_kill_between_the_renames_of_the_best_model(tmp_path):
    made = resolve(OPTIONS | {"steps": 512})
    train(made, tmp_path / "run", task=StandInTask(), show=False)
    run = RunFolder(tmp_path / "run")
    run.best.rename(run.path / ".old-best")
    run.repair_best()
    assert (run.best / "model.zip").is_file()


def test_the_optimizer_and_the_counters_come_back(tmp_path):
    from agents.models import build_model, load_parameters

    made = resolve(OPTIONS | {"steps": 512})
    train(made, tmp_path / "run", task=StandInTask(), show=False)
    checkpoint = RunFolder(tmp_path / "run").latest_checkpoint()
    env = StandInTask().make_env()
    model = build_model(made, env.observation_space, env.action_space)
    assert not model.policy.optimizer.state_dict()["state"]
    load_parameters(model, checkpoint / "model.zip")
    assert model.policy.optimizer.state_dict()["state"]
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["counters"]["num_timesteps"] == 512 and state["counters"]["_n_updates"] > 0


def test_dqn_remembers_its_transitions(tmp_path):
    import numpy as np

    from agents.discounting import RealTimeReplayBuffer
    from agents.runs import load_replay, save_replay

    env = StandInTask("flat").make_env()

    def empty():
        return RealTimeReplayBuffer(50, env.observation_space, env.action_space, device="cpu", n_envs=2)

    first, second = empty(), empty()
    rng = np.random.default_rng(0)
    for _ in range(17):
        obs, following = (
            {k: rng.normal(size=(2, *s.shape)) for k, s in env.observation_space.items()} for _ in range(2)
        )
        first.set_elapsed(rng.random(2))
        first.add(obs, following, np.array([1, 2]), rng.random(2), np.zeros(2), [{}, {}])
    save_replay(first, tmp_path / "replay.npz")
    load_replay(second, tmp_path / "replay.npz")
    assert (second.pos, second.full) == (first.pos, first.full)
    for name in ("actions", "rewards", "gammas"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert np.array_equal(first.next_observations["machines"], second.next_observations["machines"])


def test_dqn_draws_from_its_own_generator_and_goes_on_with_it(tmp_path):
    import numpy as np

    from agents.discounting import RealTimeReplayBuffer
    from agents.runs import load_replay, save_replay

    env = StandInTask("flat").make_env()

    def buffer(seed):
        made = RealTimeReplayBuffer(
            50, env.observation_space, env.action_space, device="cpu", n_envs=2, seed=seed
        )
        made.pos, made.rewards[:20] = 20, np.arange(40).reshape(20, 2)
        return made

    def drawn(from_):
        return from_.sample(16).rewards.flatten().tolist()

    first, before = buffer(3), np.random.get_state()[1].tolist()  # noqa: NPY002
    early = drawn(first)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    assert drawn(buffer(3)) == early != drawn(buffer(4))
    save_replay(first, tmp_path / "replay.npz")
    second = buffer(3)
    load_replay(second, tmp_path / "replay.npz")
    assert drawn(second) == drawn(first) != early
