"""One training run: environments, warm start, learning, evaluations, checkpoints, resume."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch as th
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from agents.callbacks import Bar, Housekeeping, Pull, RolloutMetrics, Signals, tensorboard_logger
from agents.config import EVOLVED, RunConfig
from agents.discounting import RealTime
from agents.evaluation import with_own_prior
from agents.imitation import Teacher, warm_start
from agents.models import build_model, load_network, load_parameters, reward_scale
from agents.priors import find_prior, save_prior
from agents.runs import RunFolder, load_replay, read_state, restore_rng
from agents.vec import vec_env
from agents.worlds import worlds
from splitgym.config import load_yaml, to_mapping
from splitgym.errors import ConfigError


class Task(Protocol):
    """What a run is about: where the environments and the judgement come from."""

    def make_env(self) -> Any:
        """One environment. With `vec: subproc` or `ray` called in the worker: the task must pickle."""

    def teacher(self) -> Teacher:
        """The heuristic that `warm_start.teacher` names."""

    def judge(self, model: Any) -> dict[str, float]:
        """Metrics on the validation windows; one is "goodput"."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: RunFolder
    steps: int
    state: str
    """finished or interrupted"""
    goodput: float
    """Of the best model on the validation windows."""


def train(config: RunConfig, run_dir: str | Path, *, task: Task | None = None, show: bool = True) -> Outcome:
    """Start a run in a new folder.

    Raises:
        ConfigError: the folder holds a run already, or something in the configuration cannot be used.
    """
    run = RunFolder(run_dir)
    if config.algo in EVOLVED:
        return _evolve(config, run, show, new=True)
    task = task or _task(config)
    env = task.make_env()  # an error in the configuration shows before a folder is made
    env.close()
    run.create(to_mapping(config), config.seed)
    prior = find_prior(config.environment.prior)
    if len(prior):
        save_prior(run.path, prior)
    return _learn(with_own_prior(config, run), run, task, show)


def resume(run_dir: str | Path, *, task: Task | None = None, show: bool = True) -> Outcome:
    """Continue a run from its last checkpoint to the same total, with the same configuration.

    Raises:
        ConfigError: no run folder.
    """
    run = RunFolder(run_dir)
    run.require()
    config = with_own_prior(load_yaml(RunConfig, run.config_file), run)
    done = run.progress()
    what = "generations" if config.algo in EVOLVED else "decisions"
    if done["state"] == "finished":
        Console().print(f"{run.path} is finished: {done['steps']} of {config.steps} {what}. Nothing to do.")
        return Outcome(run, int(done["steps"]), "finished", run.best_score("goodput"))
    if config.algo in EVOLVED:
        return _evolve(config, run, show, new=False)
    return _learn(config, run, task or _task(config), show)


def _evolve(config: RunConfig, run: RunFolder, show: bool, new: bool) -> Outcome:
    from agents.evolution import evolve, make_search
    from agents.scenarios import judged

    if new:
        judged(config)  # an error in the configuration shows before a folder is made
        make_search(config)
        run.create(to_mapping(config), config.seed)
    ended = evolve(config, run, show)
    state = "finished" if ended.generation >= config.steps else "interrupted"
    return Outcome(run, ended.generation, state, run.best_score("goodput"))


def _task(config: RunConfig) -> Task:
    from agents.task import SimulatorTask

    return SimulatorTask(config)


def _learn(config: RunConfig, run: RunFolder, task: Task, show: bool) -> Outcome:
    th.set_num_threads(1)
    venv = make_vec_env(config, task)
    try:
        prior = find_prior(config.environment.prior).tolist()
        model = build_model(config, venv.observation_space, venv.action_space, venv, prior)
        state = _restore(model, venv, run, config)
        model.set_logger(tensorboard_logger(run, model.num_timesteps))
        housekeeping = Housekeeping(config, run, task.judge, state)
        housekeeping.init_callback(model)  # an end during the warm start saves, too
        with Signals(housekeeping):
            if not state and config.learner.start is not None:
                load_network(model, config.learner.start)
            if not state and config.warm_start.teacher:
                _warm_start(config, model, task, show)
            if not state and config.on_policy.start_kl > 0 and config.algo != "dqn":
                model.policy.keep_start()
            if not housekeeping.interrupted:
                _steps(config, model, housekeeping, run, show)
            housekeeping.finish()
        model.logger.close()
    finally:
        venv.close()
    ended = "interrupted" if housekeeping.interrupted else "finished"
    return Outcome(run, model.num_timesteps, ended, run.best_score("goodput"))


def make_vec_env(config: RunConfig, task: Task) -> VecEnv:
    """The environments of a run, stepped together."""
    if config.environment.worlds == "many":
        return worlds(config)
    makers = [task.make_env] * config.learner.num_envs
    if config.learner.vec == "subproc":
        return SubprocVecEnv(makers, start_method="forkserver")
    if config.learner.vec == "ray":
        from agents.ray_envs import RayEnvs

        return RayEnvs(makers, config.learner.ray)
    return vec_env(makers)


def _restore(model: Any, venv: VecEnv, run: RunFolder, config: RunConfig) -> dict[str, Any]:
    """Bring a fresh model to the last checkpoint. Returns the checkpoint's state, empty without one."""
    run.repair_best()
    checkpoint = run.latest_checkpoint()
    if checkpoint is None:
        run.rewind_evaluations(-1)
        return {}
    state = read_state(checkpoint)
    load_parameters(model, checkpoint / "model.zip")
    for name, value in state["counters"].items():
        setattr(model, name, value)
    replay = checkpoint / "replay.npz"
    if replay.is_file():
        load_replay(model.replay_buffer, replay)
    run.rewind_evaluations(int(state["steps"]))
    # Episodes in progress are not saved; new ones begin, with seeds that the run has not used.
    venv.seed(int(np.random.SeedSequence([config.seed, state["steps"]]).generate_state(1)[0]) >> 2)
    restore_rng(state["rng"])
    return state


def _steps(config: RunConfig, model: Any, housekeeping: Housekeeping, run: RunFolder, show: bool) -> None:
    left = config.steps - model.num_timesteps
    if left <= 0:
        return
    bar = Bar(config.steps, housekeeping, run, show)
    # RolloutMetrics puts the episode's return into the infos that SB3 reads after the callbacks.
    callbacks = CallbackList([RealTime(), RolloutMetrics(), Pull(config), housekeeping, bar])
    try:
        model.learn(left, callback=callbacks, reset_num_timesteps=False, log_interval=_log_interval(config))
    finally:
        bar.close()


def _log_interval(config: RunConfig) -> int:
    """Updates between TensorBoard rows: about one for each 500 decisions, at least one an update."""
    if config.algo == "dqn":
        return 4  # episodes
    return max(1, 500 // (config.learner.num_envs * config.on_policy.n_steps))


def _warm_start(config: RunConfig, model: Any, task: Task, show: bool) -> None:
    columns = (
        TextColumn("[bold]warm start"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    env = task.make_env()
    with Progress(*columns, disable=not show) as bar:
        row = bar.add_task("", total=1.0)
        measures = warm_start(
            model.policy,
            env,
            task.teacher(),
            config.warm_start,
            seed=config.seed + 1,
            discount_s=config.learner.discount_s,
            reward_scale=reward_scale(config),
            progress=lambda text, share: bar.update(row, description=text, completed=share),
        )
        bar.update(row, completed=1.0)
    env.close()
    for name, value in measures.items():
        model.logger.record(f"warm_start/{name}", value)
    model.logger.dump(0)


def check_total(config: RunConfig, steps: int | None) -> None:
    """Refuse another total than the run's own on resume.

    Raises:
        ConfigError: `steps` differs.
    """
    if steps is not None and steps != config.steps:
        raise ConfigError(f"a resumed run keeps its total of {config.steps} steps; leave out --steps")
