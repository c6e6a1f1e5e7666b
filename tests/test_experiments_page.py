"""docs/experiments.md: its tables are what the command writes from kept results."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.learned import experiments
from benchmarks.learned.experiments import CURVES, PAGE, keep, rendered
from splitgym.errors import ConfigError

PROSE = "# A page\n\nwords\n\n{}\n\nmore words\n"


def block(what: str, table: str = "") -> str:
    return PROSE.format(f"<!-- made: {what} -->\n{table}<!-- /made -->")


def test_the_page_is_what_the_command_writes() -> None:
    text = PAGE.read_text()
    assert text.count("<!-- made:") >= 7
    assert rendered(text) == text, "run `make experiments`"


def test_check_tells_an_edited_figure_and_writes_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    page = tmp_path / "page.md"
    shutil.copy(PAGE, page)
    monkeypatch.setattr(sys, "argv", ["experiments", "--check", "--page", str(page)])
    assert experiments.main() == 0
    edited = page.read_text().replace("| 8 H100 | .786 |", "| 8 H100 | .886 |")
    page.write_text(edited)
    assert experiments.main() == 1 and "make experiments" in capsys.readouterr().err
    assert page.read_text() == edited
    monkeypatch.setattr(sys, "argv", ["experiments", "--page", str(page)])
    assert experiments.main() == 0 and page.read_text() == PAGE.read_text()


def test_tables_hold_what_was_kept_and_the_words_stay(tmp_path: Path) -> None:
    rows = [
        {"steps": 0, "goodput": 0.5, "fitness": 0.4, "ttft_slowdown_p99": 12.34},
        {"steps": 25, "goodput": 0.75, "fitness": 0.7, "ttft_slowdown_p99": 8.06},
        {"steps": 50, "goodput": 0.8, "fitness": 0.6, "ttft_slowdown_p99": 9.0},
    ]
    (tmp_path / "one.json").write_text(json.dumps({"evaluations": rows}))
    (tmp_path / "two.json").write_text(json.dumps({"evaluations": rows[:2]}))
    made = rendered(block('curve goodput one="seed 1" two every=25', "stale\n"), curves=tmp_path)
    assert "| goodput, generation | 0 | 25 | 50 |\n" in made and "stale" not in made
    assert "| seed 1 | .500 | .750 | .800 |" in made and "| two | .500 | .750 |  |" in made
    assert made.startswith("# A page\n\nwords\n") and made.endswith("more words\n")
    assert rendered(made, curves=tmp_path) == made
    best = rendered(block("best one"), curves=tmp_path)
    assert "| generation | 25 |" in best and "| fitness | .700 |" in best and "| TTFT p99 | 8.1 |" in best
    claims = {"claims": {"a.b": 0.1, "a.b.ci_low": 0.05, "a.b.ci_high": 0.15, "c": 1.2}}
    table = {"title": "T", "columns": ["x"], "rows": [["1"]]}
    data = claims | {"sections": {"tail": {"tables": [table]}}}
    (tmp_path / "benchmark.json").write_text(json.dumps(data))
    found = rendered(block("claims a.b=ours c") + block("benchmark tail 0"), docs=tmp_path)
    assert "| ours | +0.100 [+0.050, +0.150] |" in found and "| `c` | +1.200 |" in found
    assert "**T**" in found and "| 1 |" in found


@pytest.mark.parametrize(
    "text",
    [
        block("curve goodput no-such-curve"),
        block("pie one"),
        block("benchmark tail 99"),
        "<!-- made: curve goodput cem-8h -->\n",
        "<!-- /made -->\n",
    ],
)
def test_a_comment_that_names_no_table_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="made"):
        rendered(text)


def test_a_curve_is_kept_with_its_command_and_without_places(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.test_policy_bundle import make_run

    make_run(tmp_path / "run", "routing", "maskable_ppo")
    with pytest.raises(ConfigError, match="nothing was evaluated"):
        keep(tmp_path / "run", "x", tmp_path / "curves")
    (tmp_path / "run" / "evaluations.csv").write_text("steps,goodput,tail,best\n0,0.1234567,1.5,1\n")
    meta = {"command": ["train.py", "--run-dir", "/somewhere/else/my-run", "--set", "evolution.start=/a/b/c"]}
    (tmp_path / "run" / "meta.json").write_text(json.dumps(meta))
    kept = json.loads(keep(tmp_path / "run", "x", tmp_path / "curves").read_text())
    assert kept["evaluations"] == [{"steps": 0, "goodput": 0.123457, "tail": 1.5}]
    assert kept["command"] == "train.py --run-dir runs/my-run --set evolution.start=runs/c"


def test_kept_curves_name_no_place() -> None:
    for path in CURVES.glob("*.json"):
        command = json.loads(path.read_text())["command"]
        assert not re.search(r"(^|[ =])/", command) and json.loads(path.read_text())["evaluations"], path
