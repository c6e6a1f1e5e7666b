"""Reads a folder of the open simulator's results: `micro/expected.csv`, `runs.csv`, `runs/`, `traces/`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitgym.errors import ConfigError, SplitgymError
from splitgym.evaluation.reference.setup import Setup, Tables, number, parse_setup, read_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MICRO = (
    "case",
    "model",
    "cluster",
    "request_id",
    "arrival_timestamp",
    "prompt_size",
    "token_size",
    "ttft_times",
    "response_times",
)
_RUNS = ("run", "model", "scheduler", "design", "n_prompt", "n_token", "trace_file")
_RUN = ("request_ids", "ttft_times", "response_times")
_TRACE = ("request_id", "arrival_timestamp", "prompt_size", "token_size")


@dataclass(frozen=True)
class Case:
    """What the open simulator was given, and what it said. Rows are sorted by arrival."""

    name: str
    kind: str
    """`micro` (a small exact case) or `run`."""
    setup: Setup
    arrival_s: Floats  # (N,)
    prompt_tokens: Ints  # (N,)
    output_tokens: Ints  # (N,)
    ttft_s: Floats  # (N,) NaN where the request did not complete
    e2e_s: Floats  # (N,) likewise

    def __len__(self) -> int:
        return len(self.arrival_s)


def read_folder(folder: Path) -> list[Case]:
    """Every case of a folder: the small ones, then the runs.

    Raises:
        ConfigError: no such folder, neither part is there, a file or a column is missing, a value is wrong.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder of reference results")
    cases = []
    micro, runs = folder / "micro" / "expected.csv", folder / "runs.csv"
    if micro.is_file():
        cases += list(_micro(micro))
    if runs.is_file():
        cases += list(_runs(runs))
    if not cases:
        raise ConfigError(f"{folder}: holds no case (looked for micro/expected.csv and runs.csv)")
    return cases


def find_cases(folder: Path | None, only: str = "") -> list[Case]:
    """The cases of a folder, by default the one that `SPLITGYM_REFERENCE` names.

    Args:
        folder: where they lie.
        only: what their names must contain.

    Raises:
        ConfigError: no folder was named, it cannot be read, or no case is left.
    """
    if folder is None:
        name = os.environ.get("SPLITGYM_REFERENCE")
        if not name:
            raise ConfigError("no folder of reference results: give --reference or set SPLITGYM_REFERENCE")
        folder = Path(name)
    cases = [case for case in read_folder(folder) if only in case.name]
    if not cases:
        raise ConfigError(f"{folder}: no case has {only!r} in its name")
    return cases


def check_setups(cases: list[Case], tables: Tables) -> None:
    """Refuse what cannot be run before anything is.

    Raises:
        SplitgymError: an unknown design, scheduler or model; names the case.
    """
    first = {case.setup: case.name for case in reversed(cases)}
    for setup, name in first.items():
        try:
            setup.cluster(tables)
            _ = setup.routing
        except SplitgymError as error:
            raise ConfigError(f"{name}: {error}") from None


def _micro(path: Path) -> Iterator[Case]:
    groups: dict[tuple[str, str, str], list[list[float]]] = {}
    for line, row in read_rows(path, _MICRO):
        values = _inputs(row, path, line)
        done = bool(row["response_times"])
        for name in ("ttft_times", "response_times"):
            values.append(number(row, name, path, line) if done else np.nan)
        groups.setdefault((row["case"], row["model"], row["cluster"]), []).append(values)
    for (case, model, cluster), rows in groups.items():
        try:
            setup = parse_setup(model, cluster)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        yield _case(f"{case} {model} {cluster}", "micro", setup, rows)


def _runs(path: Path) -> Iterator[Case]:
    folder = path.parent
    traces: dict[str, dict[int, list[float]]] = {}
    for line, row in read_rows(path, _RUNS):
        counts = [int(number(row, name, path, line)) for name in ("n_prompt", "n_token")]
        setup = Setup(row["model"], row["design"], counts[0], counts[1], row["scheduler"])
        if row["trace_file"] not in traces:
            traces[row["trace_file"]] = _trace(folder / "traces" / row["trace_file"])
        requests = {key: [*values, np.nan, np.nan] for key, values in traces[row["trace_file"]].items()}
        results = folder / "runs" / f"{row['run']}.csv.gz"
        if not results.is_file() and row.get("status", "ok") != "ok":
            continue  # it crashed and left nothing to compare with
        for at, result in read_rows(results, _RUN):
            key = int(number(result, "request_ids", results, at))
            if key not in requests:
                raise ConfigError(f"{results}, line {at}: request {key} is not in {row['trace_file']}")
            requests[key][3:] = [number(result, name, results, at) for name in _RUN[1:]]
        yield _case(row["run"], "run", setup, list(requests.values()))


def _trace(path: Path) -> dict[int, list[float]]:
    return {
        int(number(row, "request_id", path, line)): _inputs(row, path, line)
        for line, row in read_rows(path, _TRACE)
    }


def _inputs(row: dict[str, str], path: Path, line: int) -> list[float]:
    values = [number(row, name, path, line) for name in _TRACE[1:]]
    if values[0] < 0 or values[1] < 1 or values[2] < 1:
        raise ConfigError(f"{path}, line {line}: arrival must be at least 0, prompt and output at least 1")
    return values


def _case(name: str, kind: str, setup: Setup, rows: list[list[float]]) -> Case:
    if not rows:
        raise ConfigError(f"{name}: has no request")
    table = np.array(rows, np.float64)
    table = table[np.argsort(table[:, 0], kind="stable")]
    arrival, prompt, output, ttft, e2e = table.T
    return Case(name, kind, setup, arrival, prompt.astype(np.int64), output.astype(np.int64), ttft, e2e)
