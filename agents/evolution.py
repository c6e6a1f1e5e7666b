"""Runs of `es` and `cem`: generations on the compiled engine in threads, in the run folder of other agents.

Each generation draws its scenarios and its noise from the seed and its own number, so a resumed run goes on
with the same bits. A checkpoint's `model.zip` holds arrays by name (NumPy's own format, nothing pickled): the
parts of the result's flat vector (`agents.spaces`) and, as `search.NAME`, what the search remembers.
"""

import os
import time
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agents import scenarios
from agents.callbacks import Signals, tensorboard_logger
from agents.config import EVOLVED, RunConfig
from agents.routers import evolved_pair
from agents.runs import RunFolder
from agents.search import CrossEntropy, EvolutionStrategies, Search
from agents.space import Pair, Space
from agents.spaces import space_of
from splitgym.config import load_yaml
from splitgym.errors import ConfigError
from splitgym.schedulers import Residual

Floats = NDArray[np.float64]

MODEL = "model.zip"
_NOISE, _SCENARIOS, _FIRST = range(3)


class Evolved:
    """What a run folder saves of a search: it looks like a model of stable-baselines3."""

    def __init__(
        self, space: Space, weights: Floats, search: Mapping[str, Floats], num_timesteps: int
    ) -> None:
        self.space = space
        self.weights = weights
        self.search = search
        self.num_timesteps = num_timesteps

    def save(self, path: Path) -> None:
        """Write the arrays."""
        remembered = {f"search.{name}": array for name, array in self.search.items()}
        with path.open("wb") as file:
            np.savez(file, **self.space.unpack(self.weights), **remembered)  # type: ignore[arg-type]


def read_arrays(path: Path, space: Space) -> tuple[Floats, dict[str, Floats]]:
    """The flat weight vector of a saved search, and what the search remembers.

    Args:
        path: of a `model.zip`.
        space: what was searched.

    Raises:
        ConfigError: the file is no such model.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], np.float64) for name in file.files}
        weights = space.pack(arrays)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}: no weights of an evolved agent ({error})") from None
    prefix = "search."
    return weights, {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def make_search(config: RunConfig) -> tuple[Space, Search]:
    """What is searched, and a fresh search."""
    evolution = config.evolution
    routing, sizing = (None, None) if evolution.start is None else evolved_pair(evolution.start)
    if evolution.start_sizing is not None:
        sizing = evolved_pair(evolution.start_sizing)[1]
    space = space_of(config)
    first = space.first(np.random.default_rng([config.seed, 0, _FIRST]), (routing, sizing))
    space = space.fitted(first)
    if config.algo == "cem":
        return space, CrossEntropy(evolution, space, first)
    return space, EvolutionStrategies(evolution, space, first)


def newest_model(folder: RunFolder, which: str = "best") -> Path:
    """The model of a run folder: the best, or where there is none (or `latest` is asked) the newest.

    Raises:
        ConfigError: nothing was saved yet.
    """
    latest = folder.latest_checkpoint()
    places = [folder.best] if which == "best" else []
    places += [latest] if latest is not None else []
    for place in places:
        if (place / MODEL).is_file():
            return place / MODEL
    raise ConfigError(f"{folder.path} holds no model yet: train for at least one checkpoint")


def load_evolved(run: str | Path, which: str = "best", name: str = "") -> Pair:
    """The schedulers of an `es` or `cem` run: who routes, who resizes; None for what it does not decide.

    Raises:
        ConfigError: no such run, or nothing was saved in it.
    """
    folder = RunFolder(run)
    folder.require()
    config = load_yaml(RunConfig, folder.config_file)
    if config.algo not in EVOLVED:
        raise ConfigError(f"{folder.path} is a run of {config.algo}: only schedulers can be built on here")
    space = space_of(config)
    weights, _ = read_arrays(newest_model(folder, which), space)
    return space.schedulers(weights, name or folder.path.name)


def load_residual(run: str | Path, which: str = "best", name: str = "") -> Residual:
    """The routing scheduler of an `es` or `cem` run. It decides on clusters of any size.

    Raises:
        ConfigError: no such run, nothing was saved in it, or it only resizes.
    """
    routing, _ = load_evolved(run, which, name)
    if not isinstance(routing, Residual):
        raise ConfigError(f"{run} only resizes pools")
    return routing


class Judge:
    """Metrics of a flat weight vector on the fixed validation scenarios, beside the heuristic's."""

    def __init__(self, config: RunConfig, space: Space, threads: Executor) -> None:
        self._config = config
        self._space = space
        self._threads = threads
        self._scenarios = scenarios.judged(config)
        self._plain = self._score(space.plain())

    def _score(self, weights: Floats) -> scenarios.Scores:
        router = self._config.environment.router
        return scenarios.score([weights], self._space, self._scenarios, self._threads, router)

    def __call__(self, weights: Floats) -> dict[str, float]:
        found = self._score(weights)
        than = self._space.baseline
        metrics = {
            "goodput": float(np.nanmean(found.goodput)),
            "fitness": float(found.fitness(self._config.evolution)[0]),
            "tail": float(np.nanmean(found.tail)),
            "ttft_slowdown_p99": float(np.nanmean(found.ttft_p99)),
            "energy_per_request_kj": float(np.nanmean(found.energy_kj)),
            "slo_excess": float(np.nanmean(found.excess)),
            f"over_{than}": float(np.nanmean(found.goodput - self._plain.goodput)),
            f"tail_over_{than}": float(np.nanmean(found.tail - self._plain.tail)),
        }
        return metrics | scenarios.by_workload(self._scenarios, found.goodput[0])


class EvolutionRun:
    """One run: generations, evaluations, checkpoints."""

    def __init__(self, config: RunConfig, run: RunFolder, show: bool) -> None:
        self.config, self.run = config, run
        self.interrupted = False  # set by `Signals`
        self.space, self.search = make_search(config)
        self.generation = 0
        self.evaluated_at = self.saved_at = -1
        self._restore()
        self._logger = tensorboard_logger(run, self.generation)
        self._bar = Progress(
            TextColumn("[bold]evolving"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]:.0f} requests/s, validation goodput {task.fields[goodput]}"),
            TimeRemainingColumn(),
            disable=not show,
        )

    def _restore(self) -> None:
        self.run.repair_best()
        checkpoint = self.run.latest_checkpoint()
        self.run.rewind_evaluations(-1 if checkpoint is None else int(checkpoint.name.split("-")[1]))
        if checkpoint is None:
            return
        _, self.search.arrays = read_arrays(checkpoint / MODEL, self.space)
        self.generation = self.saved_at = int(checkpoint.name.split("-")[1])
        rows = self.run.evaluations()
        self.evaluated_at = int(rows[-1]["steps"]) if rows else -1

    def learn(self) -> None:
        """To the end, or until a signal."""
        total = self.config.steps
        threads = self.config.evolution.threads or os.cpu_count() or 1
        with ThreadPoolExecutor(threads) as pool, self._bar:
            row = self._bar.add_task("", total=total, completed=self.generation, speed=0.0, goodput="-")
            judge = Judge(self.config, self.space, pool)
            while not self.interrupted:
                goodput = self._housekeeping(judge)
                if goodput is not None:
                    self._bar.update(row, goodput=f"{goodput:.3f}")
                if self.generation >= total:
                    break
                speed = self._step(pool)
                self._bar.update(row, completed=self.generation, speed=speed)
        if self.saved_at != self.generation:
            self._save("interrupted")
        state = "finished" if self.generation >= total else "interrupted"
        self.run.set_progress(self.generation, total, state)
        self._logger.close()

    def _step(self, pool: Executor) -> float:
        """One generation. Returns simulated requests per second."""
        config, seed = self.config, [self.config.seed, self.generation]
        started = time.perf_counter()
        drawn = scenarios.draw(config, np.random.default_rng([*seed, _SCENARIOS]))
        candidates = self.search.ask(np.random.default_rng([*seed, _NOISE]))
        scores = scenarios.score(candidates, self.space, drawn, pool, config.environment.router)
        fitness = scores.fitness(config.evolution)
        self.search.tell(scores.merit(config.evolution), self.generation / config.steps)
        self.generation += 1
        took = time.perf_counter() - started
        speed = len(candidates) * sum(len(s.trace) for s in drawn) / took
        for name, value in {
            "generation/fitness_mean": fitness.mean(),
            "generation/fitness_best": fitness.max(),
            "generation/fitness_std": fitness.std(),
            "generation/goodput": np.nanmean(scores.goodput),
            "generation/tail": np.nanmean(scores.tail),
            "generation/energy_per_request_kj": np.nanmean(scores.energy_kj),
            "time/requests_per_s": speed,
        }.items():
            self._logger.record(name, float(value))
        self._logger.dump(self.generation)
        return speed

    def _housekeeping(self, judge: Judge) -> float | None:
        """Evaluate and save where it is time to. Returns the goodput of an evaluation."""
        goodput, every = None, self.config.evaluation.every
        last = self.generation >= self.config.steps
        if self.generation != self.evaluated_at and (self.generation % every == 0 or last):
            goodput = self._evaluate(judge)
        due = self.saved_at < 0 or self.generation - self.saved_at >= self.config.checkpoint.every
        if due or (last and self.saved_at != self.generation):
            self._save("finished" if last else "running")
        return goodput

    def _evaluate(self, judge: Judge) -> float:
        metrics = judge(self.search.result())
        for name, value in metrics.items():
            self._logger.record(f"eval/{name}", value)
        for name, part in self.space.unpack(self.search.result()).items():
            self._logger.record(f"weights/{name}", float(np.sqrt(np.mean(part**2))) if part.size else 0.0)
        self._logger.dump(self.generation)
        rows: list[dict[str, Any]] = list(self.run.evaluations())
        rows = [row for row in rows if int(row["steps"]) < self.generation]
        best = metrics["fitness"] > self.run.best_score("fitness")
        self.run.write_evaluations([*rows, {"steps": self.generation, **metrics, "best": int(best)}])
        if best:
            self.run.save_best(self._model(), {"steps": self.generation, **metrics})
        self.evaluated_at = self.generation
        return metrics["goodput"]

    def _save(self, state: str) -> None:
        self.run.save_checkpoint(self._model(), {}, self.config.checkpoint.keep)
        self.saved_at = self.generation
        self.run.set_progress(self.generation, self.config.steps, state)

    def _model(self) -> Evolved:
        return Evolved(self.space, self.search.result(), self.search.arrays, self.generation)


def evolve(config: RunConfig, run: RunFolder, show: bool) -> EvolutionRun:
    """Start or continue a run in its folder."""
    running = EvolutionRun(config, run, show)
    with Signals(running):
        running.learn()
    return running
