"""`splitgym validate` on a made-up folder in the layout of the open simulator's results."""

import csv
import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from splitgym import cli
from splitgym.evaluation import reference
from splitgym.evaluation import reference as other
from splitgym.evaluation.reference import Case, report

MICRO = ("case", "model", "cluster", "request_id", "arrival_timestamp", "prompt_size", "token_size")
RESULTS = ("ttft_times", "response_times")
RUN = ("run", "model", "scheduler", "design", "n_prompt", "n_token", "trace_file")
MODEL = "llama2-70b"
REQUESTS = [(1.0, 600, 20), (1.31, 900, 5), (1.52, 1400, 60), (2.07, 300, 9)]


def write(path: Path, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        csv.writer(file).writerows([columns, *rows])


def results(folder: Path, cluster: str, requests: list[tuple[float, int, int]]) -> list[tuple[float, float]]:
    """What a simulator that agrees with ours says: TTFT and E2E of each request."""
    arrival, prompt, output = (np.array(column) for column in zip(*requests, strict=True))
    setup = reference.parse_setup(MODEL, cluster)
    case = Case("made up", "micro", setup, arrival, prompt, output, arrival, arrival)
    ours = reference.run(case, reference.read_tables(folder / "perf_model.csv"))
    return list(zip(ours.ttft_s.tolist(), ours.e2e_s.tolist(), strict=True))


def add_micro(folder: Path, name: str, cluster: str, requests: list[tuple[float, int, int]]) -> None:
    path = folder / "micro" / "expected.csv"
    rows = list(csv.reader(path.open()))[1:] if path.exists() else []
    new = [
        (name, MODEL, cluster, i, *request, *result)
        for i, (request, result) in enumerate(zip(requests, results(folder, cluster, requests), strict=True))
    ]
    write(path, (*MICRO, *RESULTS), [*map(tuple, rows), *new])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two small cases and a run, with time tables."""
    write(
        tmp_path / "perf_model.csv",
        ("model", "hardware", "tensor_parallel", "prompt_size", "batch_size", "prompt_time", "token_time"),
        [
            (MODEL, machine, gpus, tokens, 1, slow * (20 + tokens / 10 + i), slow * (30 + tokens / 1e3))
            for machine, slow in (("a100-80gb", 2), ("h100-80gb", 1))
            for gpus in (4, 8)
            for tokens in (512, 1024, 4096)
            for i in (0, 1, 7)
        ],
    )
    add_micro(tmp_path, "four", "1base_A", REQUESTS)
    add_micro(tmp_path, "four", "1P1T_HA", REQUESTS)
    write(
        tmp_path / "traces" / "t.csv",
        ("request_id", "arrival_timestamp", "prompt_size", "token_size"),
        [(10 + i, *request) for i, request in enumerate(REQUESTS)],
    )
    there = results(tmp_path, "2P1T_HH", REQUESTS)
    done = [(float(10 + i), *result) for i, result in enumerate(there)]
    write(tmp_path / "runs" / "small.csv.gz", ("request_ids", *RESULTS), done[::-1])  # as they completed
    write(tmp_path / "runs.csv", RUN, [("small", MODEL, "mixed_pool", "HH", 2, 1, "t.csv")])
    return tmp_path


@pytest.fixture
def validate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple]:
    """Runs the command as a user does: (exit status, stdout, stderr)."""

    def run(folder: Path, *words: str, tables: bool = True) -> tuple[int, str, str]:
        where = ["--perf-model", str(folder / "perf_model.csv")] if tables else []
        monkeypatch.setattr(sys, "argv", ["splitgym", "validate", "--reference", str(folder), *where, *words])
        monkeypatch.setattr(cli, "add_learning_commands", lambda to: None)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


def alter(path: Path, line: int, column: str, change: Callable[[str], object]) -> None:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        rows = list(csv.DictReader(file))
    rows[line][column] = str(change(rows[line][column]))
    write(path, tuple(rows[0]), [tuple(row.values()) for row in rows])


def test_cases_that_agree(folder: Path, validate: Callable[..., tuple]) -> None:
    status, out, _ = validate(folder)
    lines = out.splitlines()
    assert status == 0 and len(lines) == 4
    assert all(": agrees; largest difference of a request: TTFT 0" in line for line in lines[:3])
    assert lines[-1] == "3 cases: 3 agree, 0 differ for a named oddity, 0 differ without one"


@pytest.mark.parametrize("column", RESULTS)
@pytest.mark.parametrize("factor", [0.99, 1.00001, 1.5])
def test_a_small_case_altered_on_purpose_fails(
    folder: Path, validate: Callable[..., tuple], column: str, factor: float
) -> None:
    alter(folder / "micro" / "expected.csv", 2, column, lambda x: float(x) * factor)
    status, out, _ = validate(folder)
    assert status == 1
    assert "four llama2-70b 1base_A: DIFFERS WITHOUT A NAMED ODDITY" in out
    assert out.splitlines()[-1] == "3 cases: 2 agree, 0 differ for a named oddity, 1 differ without one"


def test_a_run_agrees_at_its_percentiles_or_fails(folder: Path, validate: Callable[..., tuple]) -> None:
    path = folder / "runs" / "small.csv.gz"
    alter(path, 0, "response_times", lambda x: float(x) * 1.002)
    status, out, _ = validate(folder)
    assert status == 0 and "small: agrees at the percentiles (1 of 4 requests differ)" in out
    alter(path, 0, "response_times", lambda x: float(x) * 1.05)
    status, out, _ = validate(folder)
    assert status == 1 and "small: DIFFERS WITHOUT" in out


def test_a_request_that_never_completed_differs(folder: Path, validate: Callable[..., tuple]) -> None:
    path = folder / "micro" / "expected.csv"
    for column in RESULTS:
        alter(path, 3, column, lambda _: "")
    status, out, _ = validate(folder)
    assert status == 1 and "TTFT unbounded" in out
    assert json.loads(validate(folder, "--json")[1])[0]["ttft_difference"] is None


def test_an_oddity_excuses_only_what_comes_after_it(folder: Path, validate: Callable[..., tuple]) -> None:
    tied = [(1.0, 600, 20), (9.0, 700, 5), (9.0, 800, 5), (9.5, 900, 5)]
    add_micro(folder, "tied", "1base_H", tied)
    path = folder / "micro" / "expected.csv"
    alter(path, 10, "response_times", lambda x: float(x) * 1.1)
    status, out, _ = validate(folder, "--only", "tied")
    assert status == 0 and "differs for oddity 6 (1 of 4 requests)" in out
    assert "oddity 6: simultaneous arrivals" in out
    assert out.splitlines()[-1] == "1 cases: 0 agree, 1 differ for a named oddity, 0 differ without one"
    alter(path, 8, "response_times", lambda x: float(x) * 1.1)  # long over when the two arrive together
    assert validate(folder, "--only", "tied")[0] == 1


def test_too_large_a_request_is_named(folder: Path, validate: Callable[..., tuple]) -> None:
    add_micro(folder, "big", "1base_H", [(1.0, 600, 20), (2.0, 10**6, 2), (2.1, 50, 5)])
    path = folder / "micro" / "expected.csv"
    for row in (9, 10):  # theirs hangs
        for column in RESULTS:
            alter(path, row, column, lambda _: "")
    status, out, _ = validate(folder, "--only", "big")
    assert status == 0 and "differs for oddity 7 (1 of 3 requests)" in out


def test_json_is_all_that_stdout_holds(folder: Path, validate: Callable[..., tuple]) -> None:
    status, out, _ = validate(folder, "--json")
    found = json.loads(out)
    assert status == 0 and [entry["verdict"] for entry in found] == ["agrees"] * 3
    assert found[2]["case"] == "small" and found[2]["kind"] == "run" and found[2]["requests"] == 4


def test_the_page_keeps_what_others_wrote(
    folder: Path, validate: Callable[..., tuple], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Fidelity\n\nmine above\n")
    validate(folder, "--markdown", str(page))
    page.write_text(page.read_text() + "\n## Other section\n\nmine below\n")
    once = page.read_text()
    validate(folder, "--markdown", str(page))
    assert page.read_text() == once
    assert once.index("mine above") < once.index("| `small` | 4 | agrees") < once.index("mine below")
    assert once.count("## Agreement with the paper's simulator") == 1
    assert "| `four` | llama2-70b | = | = |" in once


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no case": (
        lambda f: [(f / "runs.csv").unlink(), (f / "micro" / "expected.csv").unlink()],
        "holds no case",
    ),
    "no results": (lambda f: (f / "runs" / "small.csv.gz").unlink(), "small.csv.gz: cannot be read (No such"),
    "no trace": (lambda f: (f / "traces" / "t.csv").unlink(), "t.csv: cannot be read (No such file"),
    "damaged": (
        lambda f: (f / "runs" / "small.csv.gz").write_bytes(b"no gzip"),
        "small.csv.gz: cannot be read",
    ),
    "no tables": (lambda f: (f / "perf_model.csv").unlink(), "perf_model.csv: cannot be read (No such file"),
    "no column": (
        lambda f: write(f / "micro" / "expected.csv", MICRO, [("a",) * 7]),
        "expected.csv: the column ttft_times is missing",
    ),
    "no number": (
        lambda f: alter(f / "micro" / "expected.csv", 1, "prompt_size", lambda _: "many"),
        "expected.csv, line 3: prompt_size is 'many', not a number",
    ),
    "nothing asked": (
        lambda f: alter(f / "micro" / "expected.csv", 1, "token_size", lambda _: 0),
        "expected.csv, line 3: arrival must be at least 0, prompt and output at least 1",
    ),
    "cluster": (
        lambda f: alter(f / "micro" / "expected.csv", 1, "cluster", lambda _: "one machine"),
        "cluster 'one machine': expected a name such as 1P1T_HA or 1base_A",
    ),
    "design": (lambda f: alter(f / "runs.csv", 0, "design", lambda _: "HX"), "design 'HX': expected two of"),
    "scheduler": (
        lambda f: alter(f / "runs.csv", 0, "scheduler", lambda _: "mine"),
        "scheduler 'mine': choose",
    ),
    "model": (lambda f: alter(f / "runs.csv", 0, "model", lambda _: "gpt"), "no times of gpt on 8 GPUs"),
    "machines": (lambda f: alter(f / "runs.csv", 0, "n_prompt", lambda _: 0), "count"),
    "stranger": (
        lambda f: alter(f / "runs" / "small.csv.gz", 0, "request_ids", lambda _: 99),
        "request 99 is not in t.csv",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_sentence(folder: Path, validate: Callable[..., tuple], what: str) -> None:
    spoil, message = BAD[what]
    spoil(folder)
    status, out, err = validate(folder)
    assert status == 2 and out == "" and message in err and err.count("\n") == 1 and "Traceback" not in err


def test_no_folder_named(
    folder: Path, validate: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status, _, err = validate(tmp_path / "nowhere")
    assert status == 2 and "nowhere: no such folder" in err
    monkeypatch.delenv("SPLITGYM_DATA", raising=False)
    status, _, err = validate(folder, tables=False)
    assert status == 2 and "--perf-model or set SPLITGYM_DATA" in err
    assert "no case has 'nothing'" in validate(folder, "--only", "nothing")[2]
    status, _, err = validate(folder, "--only", "four", "--markdown", str(tmp_path))
    assert status == 2 and "--markdown" in err


def test_the_page_is_what_the_command_writes() -> None:
    """docs/fidelity.md, by rows of its smallest cases; `splitgym validate --markdown` writes all of it."""
    if not os.environ.get("SPLITGYM_REFERENCE") or not os.environ.get("SPLITGYM_DATA"):
        pytest.skip("the results of the paper's simulator are not on this machine")
    cases = other.find_cases(None, "m01") + other.find_cases(None, "m02")
    tables = other.find_tables(None)
    page = (Path(__file__).parent.parent / "docs" / "fidelity.md").read_text().splitlines()
    found = report.markdown([other.compare(case, tables) for case in cases])
    rows = [row for row in found.splitlines() if "m01" in row or "m02" in row]
    assert rows and all(row in page for row in rows), "run `splitgym validate --markdown docs/fidelity.md`"
