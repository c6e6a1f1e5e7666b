"""What was measured and is kept, so that docs/experiments.md can be written again from it.

`curves/NAME.json`: the evaluations of a training run. `kept/NAME.json`: a table of text cells, as a command
printed it (`KeptTable`), or routing policies on validation windows, as numbers (`KeptValidation`). All name
the command, and the date and revision where they are known.
"""

import csv
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from splitgym.config import STRICT, from_mapping
from splitgym.errors import ConfigError

HERE = Path(__file__).parent
CURVES = HERE / "curves"
KEPT = HERE / "kept"
MACHINE = "two cores, shared with other work"
METRICS = {"goodput": 3, "fitness": 3, "tail": 3, "ttft_slowdown_p99": 1}
"""What a curve keeps, and the places behind the point that tables show."""
_KEPT_PLACES = 6
_ABSOLUTE = re.compile(r"(?<![\w.])/(?:[\w.-]+/)+([\w.-]+)")
"""Where a run folder lay on that machine is of no interest: `runs/NAME` is what the page calls it."""


@dataclass(frozen=True, config=STRICT)
class KeptTable:
    """A table of text cells."""

    title: str
    """What it shows, in a line."""
    command: str
    """That measured it; `...` stands for what is not known any more."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    date: str
    """Of the measurement; "by DATE" where only the day is known at which it was written down."""
    git_revision: str | None
    machine: str = MACHINE
    remark: str = ""

    def __post_init__(self) -> None:
        """Raises: ConfigError: a row has more or fewer cells than there are columns."""
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ConfigError(
                    f"{self.title}: row {number} has {len(row)} cells for {len(self.columns)} columns"
                )


@dataclass(frozen=True, config=STRICT)
class AtLoad:
    """A policy at one load, the mean over windows."""

    load: float
    goodput: float
    ttft_slowdown_p99: float


@dataclass(frozen=True, config=STRICT)
class PolicyRow:
    """A policy over all windows, the mean over them."""

    goodput: float
    tail: float
    ttft_slowdown_p99: float
    gain: float
    """In goodput over the first policy on the same windows."""
    gain_error: float
    """1.96 standard errors of it."""
    by_load: tuple[AtLoad, ...]


@dataclass(frozen=True, config=STRICT)
class KeptValidation:
    """Routing policies on the same validation windows."""

    title: str
    command: str
    date: str
    git_revision: str | None
    windows: int
    """Of all clusters, workloads and loads."""
    policies: dict[str, PolicyRow]
    machine: str = MACHINE
    remark: str = ""


def read_table(name: str, folder: Path = KEPT) -> KeptTable:
    """A kept table.

    Raises:
        ConfigError: no such file, or not one of a table; names it.
    """
    return from_mapping(KeptTable, _data(folder / f"{name}.json"), f"{folder.name}/{name}.json")


def read_validation(name: str, folder: Path = KEPT) -> KeptValidation:
    """Kept figures of policies on validation windows.

    Raises:
        ConfigError: no such file, or not one of such figures; names it.
    """
    return from_mapping(KeptValidation, _data(folder / f"{name}.json"), f"{folder.name}/{name}.json")


def read_curve(name: str, folder: Path = CURVES) -> dict[str, Any]:
    """A kept curve: `command`, `git_revision` and `evaluations`, one mapping of metrics by `steps` each.

    Raises:
        ConfigError: no such file.
    """
    return _data(folder / f"{name}.json")


def keep_curve(run: str | Path, name: str, folder: Path = CURVES) -> Path:
    """Keep the curve of a run folder, with the command, configuration digest and revision it came of.

    Raises:
        ConfigError: no run folder, or nothing was evaluated in it.
    """
    from agents.evaluation import load_config
    from agents.runs import RunFolder

    config, found = load_config(run), RunFolder(run)
    rows = found.evaluations()
    if not rows:
        raise ConfigError(f"{run}: nothing was evaluated in this run yet")
    meta = json.loads((found.path / "meta.json").read_text())
    kept = {
        "algo": config.algo,
        "env": config.env,
        "seed": config.seed,
        "command": command_line(meta["command"]),
        "git_revision": meta.get("git_revision"),
        "evaluations": [
            {"steps": int(row["steps"])}
            | {key: round(float(row[key]), _KEPT_PLACES) for key in METRICS if key in row}
            for row in rows
        ],
    }
    return write(kept, name, folder)


def keep_table(source: Path, name: str, title: str, command: str, folder: Path) -> Path:
    """Keep a CSV file that a command wrote, cells as they are; today's date and the checkout's revision.

    Raises:
        ConfigError: no such file, or no table in it.
    """
    try:
        with source.open(newline="") as file:
            columns, *rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeError, ValueError) as error:
        raise ConfigError(f"{source}: no CSV file with a line of names and rows ({error})") from None
    kept = KeptTable(
        title=title,
        command=command,
        columns=tuple(columns),
        rows=tuple(map(tuple, rows)),
        date=today(),
        git_revision=revision(),
    )
    return write(asdict(kept), name, folder)


def keep_validation(kept: KeptValidation, name: str, folder: Path) -> Path:
    """Keep figures of policies on validation windows."""
    return write(asdict(kept), name, folder)


def command_line(words: Sequence[str]) -> str:
    """A command as it can be typed, without the folders of the machine it ran on."""
    return _ABSOLUTE.sub(r"runs/\1", shlex.join(words))


def today() -> str:
    """The date, in UTC."""
    return datetime.now(UTC).date().isoformat()


def revision() -> str:
    """Of this checkout."""
    from agents.runs import git_revision

    return git_revision(HERE)


def write(kept: dict[str, Any], name: str, folder: Path) -> Path:
    """Write `NAME.json`, each innermost list or mapping on one line, numbers with six places."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(_lines(_rounded(kept)) + "\n")
    return path


def _lines(value: Any, depth: int = 0) -> str:
    """JSON, each innermost list or mapping on one line."""
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not any(isinstance(item, dict | list) for item in items):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    shown = [_lines(item, depth + 1) for item in items]
    if isinstance(value, dict):
        shown = [f"{json.dumps(key)}: {item}" for key, item in zip(value, shown, strict=True)]
    pad, (first, last) = "\n" + " " * depth, "{}" if isinstance(value, dict) else "[]"
    return first + ",".join(f"{pad} {item}" for item in shown) + pad + last


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, _KEPT_PLACES) if isinstance(value, float) else value


def _data(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path.parent.name}/{path.name}: cannot be read ({error})") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path.parent.name}/{path.name}: expected a mapping of fields")
    return data
