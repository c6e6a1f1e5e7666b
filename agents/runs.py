"""A run folder: everything that one training run leaves, written so that a kill at any moment loses no more
than the steps since the last checkpoint.

    config.yaml         the resolved configuration, every field
    prior.npz           weights of the scheduler that the policy begins as, if it does
    meta.json           git revision, package versions, seed, command, start time
    progress.json       steps done, total, state (running, interrupted, finished)
    checkpoints/        step-000012288/ {model.zip (optimizer included), state.json (RNGs, counters),
    replay.npz} best/               model.zip and metrics.json of the best evaluation evaluations.csv     one
    row an evaluation tensorboard/        event files

A checkpoint is written into a temporary folder which is then renamed; files are written beside themselves and
renamed.
"""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import yaml

from splitgym.errors import ConfigError

PRIOR_FILE = "prior.npz"
"""The weights of a run's prior, where it has one."""

PACKAGES = ("numpy", "numba", "torch", "gymnasium", "stable-baselines3", "sb3-contrib", "simpy", "splitgym")


def write_atomic(path: Path, text: str) -> None:
    """Write a file in one step: it is the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where it is not there yet.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made a folder ({error.strerror})") from None


def git_revision(folder: Path) -> str:
    """Revision of a checkout, with `+changes` if tracked files differ; "unknown" outside one."""
    try:
        revision, changes = (
            subprocess.run(
                ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return revision + ("+changes" if changes else "")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def rng_state() -> dict[str, Any]:
    """State of the generators that SB3 draws from (torch, NumPy's and Python's global ones), as JSON."""
    # SB3 shuffles its rollouts, explores and seeds by these global generators and takes no other: a run goes
    # on with the same bits only if they are kept. Nothing of `agents` or `splitgym` draws from them.
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    version, internal, gauss = random.getstate()
    return {
        "torch": b64encode(th.get_rng_state().numpy().tobytes()).decode(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Undo time: set the generators to what `rng_state` returned."""
    raw = np.frombuffer(b64decode(state["torch"]), np.uint8).copy()
    th.set_rng_state(th.from_numpy(raw))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


class RunFolder:
    """Reads and writes one run's folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.evaluations_file = self.path / "evaluations.csv"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.best = self.path / "best"

    def create(self, config: Mapping[str, Any], seed: int) -> None:
        """Start a run.

        Raises:
            ConfigError: there is a run already, or no folder can be made there.
        """
        if self.config_file.exists():
            raise ConfigError(
                f"{self.path} holds a run already: continue it with --resume, or name another folder"
            )
        for folder in (self.checkpoints, self.tensorboard):
            make_folder(folder)
        meta = {
            "git_revision": git_revision(Path(__file__).resolve().parent),
            "versions": versions(),
            "seed": seed,
            "command": sys.argv,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_atomic(self.path / "meta.json", json.dumps(meta, indent=1))
        write_atomic(self.config_file, yaml.safe_dump(dict(config), sort_keys=False))

    def require(self) -> None:
        """Refuse a folder that is no run of ours.

        Raises:
            ConfigError: it has no configuration.
        """
        if not self.config_file.is_file():
            raise ConfigError(f"{self.path} is no run folder: it has no config.yaml")

    def progress(self) -> dict[str, Any]:
        """What `set_progress` wrote last."""
        file = self.path / "progress.json"
        return dict(json.loads(file.read_text())) if file.is_file() else {"steps": 0, "state": "new"}

    def set_progress(self, steps: int, total: int, state: str) -> None:
        """Say how far the run is."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        content = {"steps": steps, "total": total, "state": state, "updated": now}
        write_atomic(self.path / "progress.json", json.dumps(content))

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        found = sorted(self.checkpoints.glob("step-*"))
        return found[-1] if found else None

    def save_checkpoint(self, model: Any, state: Mapping[str, Any], keep: int) -> Path:
        """Write a checkpoint of an SB3 model and drop all but the newest `keep`.

        Args:
            model: its `num_timesteps` names the checkpoint.
            state: counters of the callbacks, as JSON.
            keep: checkpoints to keep, at least 1.
        """
        for stale in self.checkpoints.glob(".tmp-*"):
            shutil.rmtree(stale)
        final = self.checkpoints / f"step-{model.num_timesteps:012d}"
        temporary = self.checkpoints / f".tmp-{model.num_timesteps}"
        temporary.mkdir(parents=True)
        model.save(temporary / "model.zip")
        content = {**state, "steps": model.num_timesteps, "rng": rng_state()}
        write_atomic(temporary / "state.json", json.dumps(content))
        replay = getattr(model, "replay_buffer", None)
        if replay is not None:
            save_replay(replay, temporary / "replay.npz")
        if final.exists():
            shutil.rmtree(final)
        temporary.replace(final)
        for old in sorted(self.checkpoints.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
        return final

    def save_best(self, model: Any, metrics: Mapping[str, float]) -> None:
        """Make `model` the best one."""
        temporary = self.path / ".tmp-best"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        model.save(temporary / "model.zip")
        (temporary / "metrics.json").write_text(json.dumps(dict(metrics), indent=1))
        old = self.path / ".old-best"
        shutil.rmtree(old, ignore_errors=True)
        if self.best.exists():
            self.best.replace(old)
        temporary.replace(self.best)
        shutil.rmtree(old, ignore_errors=True)

    def repair_best(self) -> None:
        """Finish a `save_best` that was killed between its two renames."""
        old = self.path / ".old-best"
        if old.exists() and not self.best.exists():
            old.replace(self.best)

    def best_score(self, key: str) -> float:
        """Metric `key` of the best model, minus infinity before there is one."""
        file = self.best / "metrics.json"
        return float(json.loads(file.read_text())[key]) if file.is_file() else -np.inf

    def evaluations(self) -> list[dict[str, str]]:
        """Rows of evaluations.csv."""
        if not self.evaluations_file.is_file():
            return []
        with self.evaluations_file.open(newline="") as file:
            return list(csv.DictReader(file))

    def write_evaluations(self, rows: list[dict[str, Any]]) -> None:
        """Replace evaluations.csv."""
        if not rows:
            self.evaluations_file.unlink(missing_ok=True)
            return
        names = list(rows[0])
        lines = [",".join(names)] + [",".join(str(row[name]) for name in names) for row in rows]
        write_atomic(self.evaluations_file, "\n".join(lines) + "\n")

    def rewind_evaluations(self, steps: int) -> None:
        """Drop the rows after a checkpoint: they will be made again."""
        self.write_evaluations([row for row in self.evaluations() if int(row["steps"]) <= steps])


def save_replay(buffer: Any, path: Path) -> None:
    """Write the filled part of a Dict replay buffer, without pickle."""
    top = buffer.buffer_size if buffer.full else buffer.pos
    arrays = {f"observations.{key}": array[:top] for key, array in buffer.observations.items()}
    arrays |= {f"next_observations.{key}": array[:top] for key, array in buffer.next_observations.items()}
    arrays |= {
        name: getattr(buffer, name)[:top] for name in ("actions", "rewards", "dones", "timeouts", "gammas")
    }
    drawn = json.dumps(buffer.rng.bit_generator.state)
    np.savez(path, position=np.array([buffer.pos, int(buffer.full)]), rng=np.array(drawn), **arrays)


def load_replay(buffer: Any, path: Path) -> None:
    """Undo `save_replay`."""
    with np.load(path, allow_pickle=False) as arrays:
        position, full = arrays["position"]
        buffer.pos, buffer.full = int(position), bool(full)
        for name in arrays.files:
            if name == "position":
                continue
            if name == "rng":
                buffer.rng.bit_generator.state = json.loads(str(arrays[name]))
                continue
            field, _, key = name.partition(".")
            target = getattr(buffer, field)
            array = arrays[name]
            (target[key] if key else target)[: len(array)] = array


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was told: steps, counters, RNGs."""
    return dict(json.loads((checkpoint / "state.json").read_text()))
