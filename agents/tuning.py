"""Hyperparameter search with Optuna: each trial is a run of its own, the study is a file that goes on.

FOLDER/study.log      every trial (Optuna's journal; no database is needed)
FOLDER/base.yaml      the configuration that all trials share, and how long they run
FOLDER/trial-0003/    a run folder; one that was cut off is resumed
FOLDER/best.yaml      fields of the best trial so far: train.py --config FOLDER/best.yaml
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from agents.config import EVOLVED, RunConfig, merge, resolve
from agents.runs import RunFolder, make_folder, write_atomic
from agents.training import resume, train
from splitgym.config import to_mapping
from splitgym.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """A number between two; on a logarithmic scale, or whole."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: optuna.Trial, name: str) -> float | int:
        """A value for a trial."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


_ON_POLICY = {
    "learner.learning_rate": Range(3e-5, 1e-3, log=True),
    "learner.discount_s": Range(3, 40, log=True),
    "on_policy.trace_s": Range(1, 20, log=True),
    "on_policy.ent_coef": Range(1e-5, 1e-2, log=True),
}
_PPO = _ON_POLICY | {
    "on_policy.clip_range": Range(0.1, 0.3),
    "on_policy.n_epochs": Range(2, 10, whole=True),
}
SPACES: dict[str, dict[str, Range]] = {
    "ppo": _PPO,
    "maskable_ppo": _PPO,
    "recurrent_ppo": _PPO,
    "a2c": _ON_POLICY,
    "dqn": {
        "learner.learning_rate": Range(3e-5, 1e-3, log=True),
        "learner.discount_s": Range(3, 40, log=True),
        "dqn.target_update_interval": Range(500, 8_000, log=True, whole=True),
        "dqn.exploration_fraction": Range(0.1, 0.6),
    },
    "es": {
        "evolution.learning_rate": Range(0.03, 0.6, log=True),
        "evolution.average": Range(0.005, 0.1, log=True),
        "evolution.hidden": Range(4, 48, log=True, whole=True),
    },
    "cem": {
        "evolution.elite": Range(0.1, 0.5),
        "evolution.smoothing": Range(0.3, 1.0),
    },
}
"""What is searched, by algorithm: nothing that changes what a step costs or what is judged."""

NAME = "splitgym"


@dataclass(frozen=True)
class Tuned:
    """How a study stands."""

    folder: Path
    trials: int
    value: float
    """Of the best trial: its best validation goodput (fitness, where evolution has a tail weight)."""
    fields: dict[str, Any]
    """Its hyperparameters."""


def tune(
    fields: Mapping[str, Any],
    folder: str | Path,
    trials: int,
    *,
    run: Callable[[RunConfig, Path], None] | None = None,
    show: bool = True,
) -> Tuned:
    """Search until there are so many trials, counting those of earlier calls. The first takes the defaults.

    Args:
        fields: of `RunConfig`, as for `agents.config.resolve`. They stay as they are, and what a trial
            suggests is put over them.
        folder: of the study; an existing one goes on.
        trials: in all.
        run: makes or resumes a run in a folder; None is `agents.training`.

    Raises:
        ConfigError: the folder holds a study of another configuration, or a value cannot be used.
    """
    base, place = resolve(fields), Path(folder)
    perform = run or (lambda config, path: _train(config, path, show))
    _claim(place, to_mapping(base))
    # The journal asks for a lock file beside it, so the folder must be there.
    storage = JournalStorage(JournalFileBackend(str(place / "study.log")))
    study = optuna.create_study(
        storage=storage, study_name=NAME, direction="maximize", load_if_exists=True, sampler=_sampler(base, 0)
    )
    if not study.trials:
        study.enqueue_trial({name: _get(to_mapping(base), name) for name in SPACES[base.algo]})
    for cut_off in study.get_trials(states=(TrialState.RUNNING,)):
        _finish(study, cut_off.number, cut_off.params, fields, place, perform)
    while sum(trial.state == TrialState.COMPLETE for trial in study.trials) < trials:
        # A sampler for each trial, so that one study gives one sequence however often it is cut off.
        study.sampler = _sampler(base, len(study.trials))
        trial = study.ask()
        for name, values in SPACES[base.algo].items():
            values.suggest(trial, name)
        _finish(study, trial.number, trial.params, fields, place, perform)
    return Tuned(place, len(study.trials), study.best_value, _nested(study.best_params))


def _sampler(base: RunConfig, number: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=base.seed * 100_003 + number, n_startup_trials=6)


def _finish(
    study: optuna.Study,
    number: int,
    params: Mapping[str, Any],
    fields: Mapping[str, Any],
    place: Path,
    perform: Callable[[RunConfig, Path], None],
) -> None:
    folder = place / f"trial-{number:04d}"
    config = resolve(merge(fields, _nested(params)))
    perform(config, folder)
    if RunFolder(folder).progress()["state"] == "interrupted":
        raise KeyboardInterrupt  # the trial stays open, and goes on with the next call
    value = RunFolder(folder).best_score("fitness" if config.algo in EVOLVED else "goodput")
    study.tell(number, value)
    write_atomic(place / "best.yaml", yaml.safe_dump(merge(fields, _nested(study.best_params))))


def _train(config: RunConfig, folder: Path, show: bool) -> None:
    if (folder / "config.yaml").is_file():
        resume(folder, show=show)
    else:
        train(config, folder, show=show)


def _claim(place: Path, base: Mapping[str, Any]) -> None:
    """Make the folder, or check that it is of the same configuration."""
    file = place / "base.yaml"
    if file.is_file():
        if yaml.safe_load(file.read_text()) != yaml.safe_load(yaml.safe_dump(dict(base))):
            raise ConfigError(f"{place} holds a study of another configuration: name another folder")
        return
    make_folder(place)
    write_atomic(file, yaml.safe_dump(dict(base), sort_keys=False))


def _get(mapping: Mapping[str, Any], name: str) -> Any:
    for part in name.split("."):
        mapping = mapping[part]
    return mapping


def _nested(params: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    found: dict[str, Any] = {}
    for name, value in params.items():
        group, _, field = name.partition(".")
        found.setdefault(group, {})[field] = value
    return found
