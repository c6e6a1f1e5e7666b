"""Hyperparameter search: the first trial takes the defaults, a study goes on, a trial cut off is finished."""

import json

import pytest
import yaml

pytest.importorskip("torch")
optuna = pytest.importorskip("optuna")

from agents import tuning  # noqa: E402
from agents.config import resolve  # noqa: E402
from agents.runs import RunFolder  # noqa: E402
from splitgym.errors import ConfigError  # noqa: E402

FIELDS = {"algo": "es", "steps": 3}


def pretend(config, folder, state="finished"):
    """A run whose fitness is how close its learning rate is to 0.4."""
    run = RunFolder(folder)
    if not run.config_file.exists():
        run.create({}, 0)
    run.set_progress(3, 3, state)
    if state == "finished":
        run.best.mkdir()
        value = 1 - abs(config.evolution.learning_rate - 0.4)
        (run.best / "metrics.json").write_text(json.dumps({"fitness": value, "goodput": 0.0}))


def params(folder):
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / "study.log"))
    )
    return [trial.params for trial in optuna.load_study(study_name=tuning.NAME, storage=storage).trials]


def test_a_study_finds_and_goes_on(tmp_path):
    whole = tuning.tune(FIELDS, tmp_path / "whole", 9, run=pretend)
    assert whole.trials == 9
    default = resolve(FIELDS).evolution
    first = params(tmp_path / "whole")[0]
    assert first["evolution.learning_rate"] == default.learning_rate
    assert first["evolution.hidden"] == default.hidden
    assert whole.value > 1 - abs(default.learning_rate - 0.4)
    best = resolve(yaml.safe_load((tmp_path / "whole" / "best.yaml").read_text()))
    assert 1 - abs(best.evolution.learning_rate - 0.4) == pytest.approx(whole.value)
    assert (best.algo, best.steps) == ("es", 3)
    tuning.tune(FIELDS, tmp_path / "parts", 4, run=pretend)
    tuning.tune(FIELDS, tmp_path / "parts", 9, run=pretend)
    assert params(tmp_path / "parts") == params(tmp_path / "whole")


def test_a_trial_cut_off_is_finished(tmp_path):
    def interrupted(config, folder):
        pretend(config, folder, "interrupted" if folder.name == "trial-0001" else "finished")

    with pytest.raises(KeyboardInterrupt):
        tuning.tune(FIELDS, tmp_path, 3, run=interrupted)
    seen = []

    def resumed(config, folder):
        seen.append((folder.name, (folder / "config.yaml").exists()))
        pretend(config, folder)

    assert tuning.tune(FIELDS, tmp_path, 3, run=resumed).trials == 3
    assert seen == [("trial-0001", True), ("trial-0002", False)]


def test_another_configuration_needs_another_folder(tmp_path):
    tuning.tune(FIELDS, tmp_path, 1, run=pretend)
    with pytest.raises(ConfigError, match="study of another configuration"):
        tuning.tune({**FIELDS, "steps": 4}, tmp_path, 2, run=pretend)


@pytest.mark.parametrize("algo", list(tuning.SPACES))
def test_every_range_is_a_field_with_a_default_inside(algo):
    env = "pool_sizing" if algo in ("dqn", "recurrent_ppo") else "routing"
    made = tuning.to_mapping(resolve({"algo": algo, "env": env}))
    for name, values in tuning.SPACES[algo].items():
        assert isinstance(tuning._get(made, name), (int, float))
        middle = tuning._nested({name: int(values.high) if values.whole else values.high})
        resolve({"algo": algo, "env": env, **middle})
