"""docs/experiments.md is what the command writes from entries and kept results."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.learned import experiments, kept, validation
from benchmarks.learned.experiments import ENTRIES, PAGE, Sources, page, rendered
from benchmarks.learned.kept import CURVES, KEPT, keep_curve, keep_validation, read_table
from benchmarks.learned.validation import measured
from splitgym.errors import ConfigError

PROSE = "# A page\n\nwords\n\n{}\n\nmore words\n"


def block(what: str) -> str:
    return PROSE.format(f"<!-- made: {what} -->")


def test_the_page_is_what_the_command_writes() -> None:
    assert page() == PAGE.read_text(), "run `make experiments`"


def test_every_table_of_the_page_comes_from_a_kept_file() -> None:
    entries = "\n".join(path.read_text() for path in sorted(ENTRIES.glob("*.md")))
    assert not re.search(r"^\s*\|", entries, re.M)
    tables = re.findall(r"^\|[-|]+\|$", PAGE.read_text(), re.M)
    assert len(tables) == entries.count("<!-- made:") >= 25
    named = set(re.findall(r"^<!-- made: table ([\w-]+) -->$", entries, re.M))
    cells = {" | ".join(row) for name in named for row in read_table(name).rows}
    shown = [row.strip("| ") for row in PAGE.read_text().splitlines() if row.startswith("| ")]
    assert len(cells) >= 100 and {cell.strip("| ") for cell in cells} <= set(shown)


def test_the_last_part_names_each_kept_file_with_its_command() -> None:
    last = PAGE.read_text().split("## Where the tables come from\n")[1]
    entries = "\n".join(path.read_text() for path in ENTRIES.glob("*.md"))
    for path in KEPT.glob("*.json"):
        if f" {path.stem}" in entries:
            assert f"`kept/{path.name}`: `{json.loads(path.read_text())['command']}`" in last
    assert "the run folder is not kept" in last and "`curves/es-seed1.json`: `train.py --algo es" in last


def test_check_tells_an_edited_figure_and_writes_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    copy = tmp_path / "page.md"
    shutil.copy(PAGE, copy)
    monkeypatch.setattr(sys, "argv", ["experiments", "--check", "--page", str(copy)])
    assert experiments.main() == 0
    edited = copy.read_text().replace("| 8 H100 | .786 |", "| 8 H100 | .886 |")
    copy.write_text(edited)
    assert experiments.main() == 1 and "make experiments" in capsys.readouterr().err
    assert copy.read_text() == edited
    monkeypatch.setattr(sys, "argv", ["experiments", "--page", str(copy)])
    assert experiments.main() == 0 and copy.read_text() == PAGE.read_text()


def test_tables_hold_what_was_kept_and_the_words_stay(tmp_path: Path) -> None:
    rows = [
        {"steps": 0, "goodput": 0.5, "fitness": 0.4, "ttft_slowdown_p99": 12.34},
        {"steps": 25, "goodput": 0.75, "fitness": 0.7, "ttft_slowdown_p99": 8.06},
        {"steps": 1500, "goodput": 0.8, "fitness": 0.6, "ttft_slowdown_p99": 9.0},
    ]
    (tmp_path / "one.json").write_text(json.dumps({"evaluations": rows}))
    (tmp_path / "two.json").write_text(json.dumps({"evaluations": rows[:2]}))
    sources = Sources(tmp_path, tmp_path, tmp_path)
    made = rendered(block('curve goodput one="seed 1" two every=25'), sources)
    assert "| goodput, generation | 0 | 25 | 1,500 |\n" in made and "made:" not in made
    assert "| seed 1 | .500 | .750 | .800 |" in made and "| two | .500 | .750 |  |" in made
    assert made.startswith("# A page\n\nwords\n") and made.endswith("more words\n")
    assert "| goodput, decisions |" in rendered(block("curve goodput one by=decisions"), sources)
    best = rendered(block("best one"), sources)
    assert "| generation | 25 |" in best and "| fitness | .700 |" in best and "| TTFT p99 | 8.1 |" in best
    claims = {"claims": {"a.b": 0.1, "a.b.ci_low": 0.05, "a.b.ci_high": 0.15, "c": 1.2}}
    table = {"title": "T", "columns": ["x"], "rows": [["1"]]}
    data = claims | {"sections": {"tail": {"tables": [table]}}}
    (tmp_path / "benchmark.json").write_text(json.dumps(data))
    found = rendered(block("claims a.b=ours c") + block("benchmark tail 0"), sources)
    assert "| ours | +0.100 [+0.050, +0.150] |" in found and "| `c` | +1.200 |" in found
    assert "**T**" in found and "| 1 |" in found


@pytest.mark.parametrize(
    "text",
    [
        block("curve goodput no-such-curve"),
        block("pie one"),
        block("benchmark tail 99"),
        block("table no-such-table"),
        block("table 05-test-8h 05-test-4h4a"),
        "a word <!-- made: curve goodput cem-8h -->\n",
        "<!-- /made -->\n",
    ],
)
def test_a_line_that_names_no_table_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="made"):
        rendered(text)


def test_an_entry_with_a_table_by_hand_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "01-mine.md").write_text("## 1. Mine\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    with pytest.raises(ConfigError, match=r"01-mine\.md: a table by hand"):
        page(tmp_path)
    with pytest.raises(ConfigError, match="no entry"):
        page(tmp_path / "nowhere")


def test_a_csv_is_kept_cell_for_cell(tmp_path: Path, monkeypatch, capsys) -> None:
    source = tmp_path / "out.csv"
    source.write_text('policy,goodput\n"a, b",.5\nc,".6 [.5, .7]"\n')
    monkeypatch.setattr(experiments, "KEPT", tmp_path)
    words = ["keep-table", str(source), "mine", "--title", "t", "--command", "measure --it"]
    monkeypatch.setattr(sys, "argv", ["experiments", *words])
    assert experiments.main() == 0 and capsys.readouterr().out.strip() == str(tmp_path / "mine.json")
    table = read_table("mine", tmp_path)
    assert table.columns == ("policy", "goodput") and table.rows == (("a, b", ".5"), ("c", ".6 [.5, .7]"))
    assert table.command == "measure --it" and re.fullmatch(r"\d{4}-\d\d-\d\d", table.date)
    made = rendered(block("table mine"), Sources(kept=tmp_path))
    assert "| a, b | .5 |\n| c | .6 [.5, .7] |" in made
    source.write_text("")
    assert experiments.main() == 2 and "out.csv" in capsys.readouterr().err


def test_a_kept_file_with_a_wrong_field_or_row_is_an_error(tmp_path: Path) -> None:
    good = json.loads((KEPT / "05-test-8h.json").read_text())
    for wrong, said in (({"colour": 1}, "colour"), ({"rows": [["1"]]}, "row 0 has 1 cells")):
        (tmp_path / "bad.json").write_text(json.dumps(good | wrong))
        with pytest.raises(ConfigError, match=said):
            read_table("bad", tmp_path)


def test_policies_on_validation_windows_are_kept_as_numbers(tmp_path: Path) -> None:
    first = np.array([[0.5, 0.1, 10.0], [np.nan] * 3, [0.3, 0.2, 30.0]])
    better = first + np.array([0.2, 0.0, -4.0])
    at, loads = np.array([0.9, 0.9, 1.2]), (0.9, 1.2)
    rows = {
        name: measured(found, first, at, loads) for name, found in (("index", first), ("runs/new", better))
    }
    assert rows["runs/new"].gain == pytest.approx(0.2) and rows["runs/new"].gain_error == pytest.approx(0)
    whole = kept.KeptValidation("t", "measure", "2026-01-01", None, 3, rows)
    text = keep_validation(whole, "mine", tmp_path).read_text()
    assert '"by_load": [' in text and '{"load": 0.9, "goodput": 0.5, "ttft_slowdown_p99": 10.0}' in text
    sources = Sources(kept=tmp_path)
    both = rendered(block("validation mine"), sources)
    assert "| validation, load | .9 | 1.2 | mean | TTFT p99 |" in both
    assert "| `runs/new` | .700 (6) | .500 (26) | .600 | 16 |" in both
    one = rendered(block('validation show=goodput mine/runs/new="the new one"'), sources)
    assert "| the new one | .700 | .500 | .600 | 16 |" in one and "index" not in one
    assert "`kept/mine.json`: `measure`" in experiments.origin([block("validation mine/index=a")], sources)
    with pytest.raises(ConfigError, match="a load of 1"):
        measured(first, first, at, (0.9, 1.5))


def test_validation_keeps_what_it_measured(tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(validation, "KEPT", tmp_path)
    row = measured(np.full((2, 3), 0.5), np.full((2, 3), 0.5), np.array([0.9, 0.9]), (0.9,))
    monkeypatch.setattr(validation, "measure", lambda names, *_: (dict.fromkeys(names, row), 2))
    words = ["validation", "/a/b/runs/x", "pretrained:routing", "--loads", "0.9", "--keep", "mine"]
    monkeypatch.setattr(sys, "argv", words)
    assert validation.main() == 0 and "mine.json" in capsys.readouterr().out
    found = kept.read_validation("mine", tmp_path)
    assert list(found.policies) == ["runs/x", "pretrained:routing"] and found.windows == 2
    assert found.command.endswith(
        "validation --loads 0.9 --clusters 8h,4h4a --windows 3 runs/x pretrained:routing"
    )


def test_a_curve_is_kept_with_its_command_and_without_places(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.bundles import make_run

    make_run(tmp_path / "run", "routing", "maskable_ppo")
    with pytest.raises(ConfigError, match="nothing was evaluated"):
        keep_curve(tmp_path / "run", "x", tmp_path / "curves")
    (tmp_path / "run" / "evaluations.csv").write_text("steps,goodput,tail,best\n0,0.1234567,1.5,1\n")
    meta = {"command": ["train.py", "--run-dir", "/somewhere/else/my-run", "--set", "evolution.start=/a/b/c"]}
    (tmp_path / "run" / "meta.json").write_text(json.dumps(meta))
    found = json.loads(keep_curve(tmp_path / "run", "x", tmp_path / "curves").read_text())
    assert found["evaluations"] == [{"steps": 0, "goodput": 0.123457, "tail": 1.5}]
    assert found["command"] == "train.py --run-dir runs/my-run --set evolution.start=runs/c"


def test_kept_files_name_no_place_and_keep_their_form(tmp_path: Path) -> None:
    for path in [*CURVES.glob("*.json"), *KEPT.glob("*.json")]:
        data = json.loads(path.read_text())
        assert not re.search(r"(^|[ =])/", data["command"]), path
        assert kept.write(data, "again", tmp_path).read_text() == path.read_text(), path


def test_a_cluster_that_the_benchmark_lacks_is_named():
    with pytest.raises(ConfigError, match="no cluster is called '9h': there are 8h, 4h4a, 40h"):
        validation.measure(["pretrained:index"], (1.2,), 1, ["8h", "9h"])
