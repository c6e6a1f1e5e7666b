"""The command line: what users type, what they see, and one line where the input is bad."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from splitgym import cli, evaluation
from splitgym.cli import learning, shell
from splitgym.config import ClusterConfig
from splitgym.errors import SplitgymError
from splitgym.evaluation import Contender
from tests import terminal

SMALL = ["--cluster", "h100-80gb:1P1T", "--model", "llama2-70b", "--duration", "4", "--warmup", "1"]


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of `splitgym words`, through `main` as a user meets it."""
    monkeypatch.setattr(sys, "argv", ["splitgym", *words])
    monkeypatch.setattr(cli, "add_learning_commands", lambda to: None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code if isinstance(stopped.value.code, int) else 0


def test_evaluate_prints_a_table_and_writes_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--workload", "poisson:azure-code-synth", "--rates", "2,3", "--seeds", "2"]
    words += ["--policies", "round-robin, index", "--out", str(tmp_path)]
    assert run(monkeypatch, "evaluate", *words, *SMALL) == 0
    out = capsys.readouterr().out
    assert "round-robin" in out and "azure-code-synth@2" in out and "azure-code-synth@3" in out
    assert {"runs.csv", "summary.csv", "results.json"} <= {p.name for p in tmp_path.iterdir()}
    assert (tmp_path / "attainment-by-rate.png").is_file()


def test_json_is_all_that_stdout_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("SPLITGYM_DATA", str(tmp_path))
    monkeypatch.setenv("SPLITGYM_CACHE", str(tmp_path))
    words = ["--workload", "poisson:azure-code@2", "--seeds", "1", "--policies", "random", "--json"]
    assert run(monkeypatch, "evaluate", *words, *SMALL) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["policies"] == ["random"]
    assert "azure-code-synth was used" in found.err, "a stand-in is said, on stderr"


def test_pools_and_rules_are_compared_in_one_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["splitwise", "splitwise+reactive@h100-80gb:2P2T", "vllm"]
    words = ["--workload", "poisson:azure-code-synth@3", "--seeds", "1", "--policies", ",".join(names)]
    words += [*SMALL, "--cluster", "h100-80gb:3P1T", "--baseline", "vllm"]
    assert run(monkeypatch, "evaluate", *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["policies"] == names and set(found["own_clusters"]) == set(names[1:])
    assert found["own_clusters"]["vllm"]["batching"]["rule"] == "vllm"
    assert run(monkeypatch, "evaluate", *words) == 0
    assert "\u2026" not in capsys.readouterr().out, "no cell is cut"


def test_agents_come_from_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    class Module(ModuleType):
        @staticmethod
        def contender(run: str, cluster: ClusterConfig) -> Contender:
            asked.append(run)
            return replace(evaluation.contender("index"), name=run)

    (tmp_path / "splitgym").mkdir()
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "cli.py").touch()
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(learning, "__file__", str(tmp_path / "splitgym" / "cli" / "learning.py"))
    monkeypatch.setattr(learning.importlib, "import_module", lambda name: {"agents.cli": Module(name)}[name])
    words = ["--workload", "poisson:azure-code-synth@3", "--seeds", "1", *SMALL]
    words += ["--policies", "mine,runs/other,index", "--baseline", "runs/other"]
    assert run(monkeypatch, "evaluate", *words) == 0
    assert "runs/other" in capsys.readouterr().out and asked == ["mine", "runs/other"]

    (tmp_path / "agents" / "cli.py").unlink()
    assert run(monkeypatch, "evaluate", *words) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1
    assert "policy mine is an agent" in found.err and "checkout" in found.err


def test_max_rate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--workload", "poisson:azure-conv-synth@4", "--policies", "split-jsq", "--tolerance", "0.5"]
    assert run(monkeypatch, "max-rate", *words, *SMALL, "--json") == 0
    found = json.loads(capsys.readouterr().out)["split-jsq"]
    assert found["rate_per_s"] < found["failed_at_per_s"] and found["tried"][0]["rate_per_s"] == 4


def test_cluster_file_replaces_the_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("model: llama2-70b\nmachines:\n- {machine: a100-80gb, count: 2, pool: mixed}\n")
    words = ["--workload", "poisson:azure-conv-synth@1", "--seeds", "1", "--policies", "jsq-tokens", "--json"]
    words += ["--cluster-file", str(path), "--duration", "4", "--warmup", "1"]
    assert run(monkeypatch, "evaluate", *words) == 0
    assert json.loads(capsys.readouterr().out)["cluster"]["machines"][0]["machine"] == "a100-80gb"


def test_describe_and_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "trace", "describe", "azure-conv-synth", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["requests"] > 1000 and found["prompt_tokens_p50"] <= found["prompt_tokens_p90"]
    assert run(monkeypatch, "profile", "list", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert "bloom-176b" in found["models"] and "h100-80gb" in found["machines"]


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The whole command, with those that learn."""
    monkeypatch.setattr(cli.app, "registered_commands", [*cli.app.registered_commands])
    learning.add_learning_commands(cli.app)
    return typer.main.get_command(cli.app)


def commands(group: Any, path: str = "splitgym") -> Iterator[tuple[str, Any]]:
    """(path, command) of all that can be run."""
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "list_commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_help_fits_a_screen_and_shows_the_jobs_in_order(root: Any) -> None:
    text = CliRunner().invoke(cli.app, ["--help"], prog_name="splitgym", env={"COLUMNS": "80"}).output
    lines = text.splitlines()
    assert len(lines) <= 30 and max(map(len, lines)) <= 81
    places = [text.index(f"  {job}") for job in ("1 train", "2 evaluate", "3 provision", "4 deploy")]
    assert places == sorted(places)
    listed = {name for _, name, _ in shell.listed(root, typer.Context(root))}
    assert listed == set(root.list_commands(None))
    assert "more" not in {job for job, _, _ in shell.listed(root, typer.Context(root))}, "name it in JOBS"


def test_every_command_has_an_example_that_it_understands(root: Any) -> None:
    found = dict(commands(root))
    assert len(found) > 15
    for path, command in found.items():
        line = shell.example(command)
        assert line.startswith(path), f"{path}: its docstring has no paragraph 'Example: {path} ...'"
        words = shlex.split(line.removeprefix(path))
        command.make_context(path, words)  # raises where an option does not exist or a value is missing


def test_commands_that_print_tables_print_json(root: Any) -> None:
    without = {path.removeprefix("splitgym ") for path, c in commands(root) if "as_json" not in by_name(c)}
    assert without <= {"train", "tune", "improve", "export", "route", "engine", "warmup", "trace fetch"}


def by_name(command: Any) -> dict[str, Any]:
    return {param.name: param for param in command.params}


def test_types_of_options_are_plain_words(root: Any) -> None:
    command = root.get_command(None, "evaluate")
    metavars = {name: param.metavar for name, param in by_name(command).items()}
    expected = {"seeds": "N", "duration": "NUMBER", "workload": "TEXT", "out": "PATH", "as_json": ""}
    assert expected.items() <= metavars.items()


def test_completion_offers_values() -> None:
    def offered(line: str) -> set[str]:
        number = len(line.split(" ")) - 1
        env = {"_SPLITGYM_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(number)}
        return set(CliRunner().invoke(cli.app, [], prog_name="splitgym", env=env).output.split())

    assert {"evaluate", "export", "engine"} <= offered("splitgym e")
    assert "splitwise,index-tuned" in offered("splitgym evaluate --policies splitwise,index")
    assert offered("splitgym simulate --trace azure-code") == {"azure-code", "azure-code-synth"}
    assert "llama2-70b" in offered("splitgym evaluate --model lla")
    assert "h100-80gb:5P+a100-80gb:" in offered("splitgym evaluate --cluster h100-80gb:5P+a100-80")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["evaluate", "--sedes", "3"], "--seeds"),
        (["evaluate", "--seeds", "many"], "--seeds"),
        (["evalute"], "evaluate"),
        (["trace", "describe"], "splitgym trace describe --help"),
        (["evaluate", "--policies", "no-such"], "no-such"),
        (["evaluate", "--policies", "index", "--baseline", "random"], "baseline"),
        (["evaluate", "--policies", "index,splitwise@h100-80gb:5P2T"], "same machines"),
        (["evaluate", "--policies", "vllm+reactive"], "vllm has no pools"),
        (["evaluate", "--workload", "poisson:nothing@3"], "nothing"),
        (["evaluate", "--workload", "poisson:azure-code-synth", "--rates", "3,x"], "3,x"),
        (["evaluate", "--cluster", "h100-80gb:3Q"], "3Q"),
        (["evaluate", "--cluster", "h100-80gb:3P"], "token phase"),
        (["evaluate", "--cluster", "h900:3P1T"], "h900"),
        (["evaluate", "--part", "exam"], "part"),
        (["evaluate", "--cluster-file", "/no/such.yaml"], "/no/such.yaml"),
        (["evaluate", "--out", "/dev/null/here"], "/dev/null/here"),
        (["trace", "describe", "/no/such.csv"], "/no/such.csv"),
        (["trace", "fetch", "azure-codec"], "azure-codec"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *words) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1
    assert found.err.startswith("splitgym: ") and says in found.err


def test_learning_commands_come_from_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "splitgym" / "cli" / "learning.py"
    monkeypatch.setattr(learning, "__file__", str(fake))
    without = typer.Typer()
    learning.add_learning_commands(without)
    result = CliRunner().invoke(without, ["train", "--algo", "es"])
    assert isinstance(result.exception, SplitgymError) and "checkout" in str(result.exception)

    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "cli.py").touch()

    class Module(ModuleType):
        @staticmethod
        def register(to: typer.Typer) -> None:
            @to.command()
            def train() -> None:
                print("learning")

            @to.command()
            def other() -> None: ...

    monkeypatch.setattr(learning.importlib, "import_module", lambda name: {"agents.cli": Module(name)}[name])
    monkeypatch.setattr(sys, "path", [*sys.path])
    app = typer.Typer()
    learning.add_learning_commands(app)
    assert "learning" in CliRunner().invoke(app, ["train"]).output

    def no_torch(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(learning.importlib, "import_module", no_torch)
    bare = typer.Typer()
    learning.add_learning_commands(bare)
    result = CliRunner().invoke(bare, ["train"])
    assert "needs torch" in str(result.exception)


def test_help_is_quick_to_import() -> None:
    code = (
        "import sys, splitgym.cli; print([m for m in ('torch', 'matplotlib', 'simpy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]", "heavy packages are imported by the commands that need them"


def test_ctrl_c_leaves_what_was_finished(tmp_path: Path) -> None:
    """As at a terminal: the signal reaches the workers too, and the same command goes on afterwards."""
    words = [sys.executable, "-m", "splitgym.cli", "sweep", *SMALL[2:], "--cluster", "h100-80gb:1P1T"]
    words += ["--workload", "poisson:azure-code-synth", "--rates", "8,9,10", "--policies", "index"]
    words += ["--workers", "2", "--out", str(tmp_path), "--seeds"]
    process = terminal.start([*words, "2000"])
    kept = tmp_path / "sweep.jsonl"
    try:
        while process.poll() is None and not (kept.is_file() and kept.stat().st_size):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == shell.INTERRUPTED and out == "", err
    assert err.endswith(f"interrupted: the runs are in {tmp_path}, the same command goes on\n")
    assert "Traceback" not in err
    done = kept.read_text().splitlines()
    assert 0 < len(done) < 6000 and all(json.loads(line) for line in done)
    subprocess.run([*words, "1", "--workers", "1"], check=True, capture_output=True)
    assert kept.read_text().splitlines()[: len(done)] == done, "what was kept is used"
