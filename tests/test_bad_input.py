"""Bad input to the commands that close the loop: one line on stderr with file and line, nothing overwritten.

What each reader does with it is in its own tests; here each command is run as a person runs it.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from splitgym.cli import app
from splitgym.cli.learning import add_learning_commands
from splitgym.cli.shell import BAD_INPUT
from splitgym.policy import export_heuristic
from tests.logs import CONFIG, busy_log, request, start, write
from tests.ports import free_ports
from tests.test_cli import run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write into a folder of their own."""
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("torch")
    monkeypatch.setattr(app, "registered_commands", [*app.registered_commands])
    add_learning_commands(app)


def refused(monkeypatch: Any, capsys: Any, *words: str) -> str:
    """The one line that a command says when it refuses."""
    capsys.readouterr()
    assert run(monkeypatch, *words) == BAD_INPUT, words
    seen = capsys.readouterr()
    lines = [line for line in seen.err.splitlines() if not line.startswith("note:")]
    assert len(lines) == 1 and lines[0].startswith("splitgym: ") and seen.out == "", seen
    return lines[0]


LOG_COMMANDS = {
    "from-log": ("trace", "from-log", "{log}", "--out", "out.csv"),
    "compare-log": ("compare-log", "{log}", "--plot", "out.png"),
    "improve": ("improve", "{log}", "--bundle", "old", "--out", "out", "--generations", "1", "--quiet"),
}


@pytest.mark.parametrize("command", LOG_COMMANDS)
@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([start(CONFIG), request(0, 0.0), b'{"v": 1, "ev\n', request(1, 1.0)], "line 3"),
        ([start(CONFIG), request(0, 0.0), {**request(1, 1.0), "output_tokens": "many"}], "line 3"),
        ([b"arrival,prompt,output\n1,2,3\n"], "line 1"),
        ([{"v": 99, "event": "start"}, request(0, 0.0)], "line 1"),
        ([start(CONFIG)], "no request"),
        ([], ""),
    ],
    ids=["cut in the middle", "a wrong field", "another format", "a newer format", "no request", "empty"],
)
def test_a_bad_log(monkeypatch, capsys, command, lines, says):
    export_heuristic("index", "old", cluster=CONFIG)
    log = write(Path("log.jsonl"), *lines)
    words = [word.format(log=log) for word in LOG_COMMANDS[command]]
    line = refused(monkeypatch, capsys, *words)
    assert "log.jsonl" in line and says in line, line
    assert not list(Path().glob("out*")), "nothing is written"
    missing = refused(monkeypatch, capsys, *(word.replace("log.jsonl", "none.jsonl") for word in words))
    assert "none.jsonl" in missing


@pytest.mark.parametrize("command", ["from-log", "compare-log"])
def test_the_good_part_of_a_log_is_kept_where_that_is_safe(monkeypatch, capsys, command):
    """A last line that was cut off; with --skip-bad, one in the middle. A clock that jumps is no matter."""
    rows = [request(i, 0.5 * i) for i in range(8)]
    for row in rows[4:]:
        row["unix_s"] -= 3600.0  # the wall clock was set back
    log = write(Path("log.jsonl"), start(CONFIG), *rows, b'{"v": 1, "event": "requ')
    words = [word.format(log=log) for word in LOG_COMMANDS[command]]
    assert run(monkeypatch, *words, "--json") == 0
    seen = capsys.readouterr()
    found = json.loads(seen.out)
    assert (found["requests"]["measured"] if command == "compare-log" else found["requests"]) == 8
    assert "cut off" in seen.err + " ".join(found.get("notes", []))
    broken = write(Path("broken.jsonl"), start(CONFIG), *rows[:4], b"{half\n", *rows[4:])
    words = [word.format(log=broken) for word in LOG_COMMANDS[command]]
    assert "line 6" in refused(monkeypatch, capsys, *words, "--force")
    assert run(monkeypatch, *words, "--force", "--skip-bad") == 0


@pytest.mark.parametrize("command", ["compare-log", "improve"])
def test_half_a_profile(monkeypatch, capsys, command):
    export_heuristic("index", "old", cluster=CONFIG)
    log = busy_log(Path("log.jsonl"), CONFIG, 8.0, 20.0)
    words = [word.format(log=log) for word in LOG_COMMANDS[command]]
    for content in ('{"model": "llama2-70b", "machine"', "[]", '{"model": "llama2-70b"}'):
        Path("half.json").write_text(content)
        assert "half.json" in refused(monkeypatch, capsys, *words, "--profile", "half.json")
    assert "none.json" in refused(monkeypatch, capsys, *words, "--profile", "none.json")
    assert not list(Path().glob("out*"))
    refused(monkeypatch, capsys, "evaluate", "--cluster", "half.json/tp8:1P1T", "--model", "llama2-70b")


@pytest.mark.parametrize(
    "command", ["from-openai-jsonl", "from-burstgpt", "from-mooncake", "from-vllm-bench"]
)
def test_a_file_of_another_format(monkeypatch, capsys, command):
    Path("other.txt").write_text("this is\nno trace\n")
    line = refused(monkeypatch, capsys, "trace", command, "other.txt", "--out", "out.csv")
    assert "other.txt" in line and not Path("out.csv").exists()
    for word in ("describe", "synth"):
        assert "other.txt" in refused(monkeypatch, capsys, "trace", word, "other.txt")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("evaluate --report .", "--report .: is a folder"),
        ("max-rate --tolerance 0", "--tolerance 0"),
        ("max-rate --tolerance nan", "--tolerance nan"),
        ("simulate --trace azure-conv-synth --out out.csv", "written as .parquet, not as '.csv'"),
        ("trace synth azure-conv-synth --out out.json", "written as .csv or .parquet, not as '.json'"),
        ("trace describe azure-conv-synth --plot out.doc", "not as '.doc'"),
        ("trace from-log none.jsonl --out out.txt", "not as '.txt'"),
        ("profile torch --device nope --dry-run", "device nope"),
        ("train --resume .", "no run folder"),
        ("train --set seed=[1", "'[1' is no YAML value"),
        ("sweep --set transfer.mode=[x,serial --rates 2", "are no YAML values"),
        ("train --algo es --ray local", "--ray: es runs in threads of one machine"),
        (
            "train --algo cem --set learner.vec=subproc",
            "learner.vec: subproc: cem runs in threads of one machine",
        ),
        ("train --config nowhere.yaml", "nowhere.yaml: cannot be read: No such file"),
        ("train --config /dev/null", "/dev/null: is empty"),
        ("evaluate --policies index,index", "name each once"),
        ("evaluate --policies my-polcy", "no folder of a run or a bundle"),
        ("saturation --workload poisson:azure-conv@3", "leave the rate out"),
        ("saturation --table .", "--table .: is a folder"),
    ],
)
def test_what_cannot_work_is_said_before_the_work(monkeypatch, capsys, words, says):
    assert says in refused(monkeypatch, capsys, *words.split())
    assert not list(Path().iterdir())


@pytest.mark.parametrize("words", ["train --algo es --run-dir", "tune --algo es --out"])
def test_a_run_where_a_file_is(monkeypatch, capsys, words):
    Path("taken").write_text("precious")
    line = refused(monkeypatch, capsys, *words.split(), "taken", "--steps", "1", "--quiet")
    assert "taken" in line and "cannot be made a folder" in line


def test_a_wrong_field_of_a_run_names_its_file(monkeypatch, capsys):
    Path("own.yaml").write_text("surprise: 1\n")
    line = refused(monkeypatch, capsys, "train", "--config", "own.yaml")
    assert "own.yaml" in line and "surprise" in line


@pytest.mark.parametrize("option", ["--cluster-file", "--config"])
def test_yaml_that_breaks_off(monkeypatch, capsys, option):
    Path("half.yaml").write_text("model: [llama2-70b,\n")
    command = {"--cluster-file": "evaluate", "--config": "route"}[option]
    line = refused(monkeypatch, capsys, command, option, "half.yaml")
    assert "half.yaml" in line and "line 2, column 1" in line


def test_a_server_that_is_not_there(monkeypatch, capsys):
    pytest.importorskip("aiohttp")
    url = f"http://127.0.0.1:{free_ports(1)}"
    words = ("--model", "llama2-70b", "--out", "out.json")
    assert url in refused(monkeypatch, capsys, "profile", "measure", "--url", url, *words)
    assert not list(Path().glob("out*"))
    load = ("load", url, "--workload", "poisson:azure-conv-synth@4", "--duration", "1")
    assert url in refused(monkeypatch, capsys, *load)


def test_nothing_is_overwritten_unasked(monkeypatch, capsys):
    log = write(Path("log.jsonl"), start(CONFIG), request(0, 0.0), request(1, 1.0))
    for name in ("out.csv", "out.png", "out.json"):
        Path(name).write_text("precious")
    for command in ("from-log", "compare-log"):
        words = [word.format(log=log) for word in LOG_COMMANDS[command]]
        assert "--force" in refused(monkeypatch, capsys, *words)
    url = "http://127.0.0.1:9"
    assert "--force" in refused(monkeypatch, capsys, "profile", "measure", "--url", url, "--out", "out.json")
    assert "--force" in refused(monkeypatch, capsys, "trace", "synth", "azure-conv-synth", "--out", "out.csv")
    assert all(Path(f"out.{kind}").read_text() == "precious" for kind in ("csv", "png", "json"))
