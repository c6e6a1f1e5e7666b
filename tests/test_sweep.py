"""Sweeps: every point of a grid, each run made once, the same wherever it is made."""

import csv
import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from splitgym import cli
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, MachineGroup
from splitgym.errors import ConfigError
from splitgym.evaluation import Contender, contender, evaluate, parse, sweep, sweep_report
from splitgym.scale import processes
from splitgym.schedulers import routing

LOADS = [parse(f"poisson:azure-conv-synth@{rate}", duration_s=4.0, warmup_s=1.0) for rate in (2.0, 5.0)]
CLUSTERS = ["h100-80gb:1P1T", "h100-80gb:1P+a100-80gb:1T"]


def entrants(config: ClusterConfig) -> list[Contender]:
    return [contender(name, cluster=config) for name in ("splitwise", "index")]


def counting(calls: list[int]) -> Callable[..., list[object]]:
    """A map that says how many tasks it was given."""

    def counted(function, tasks):
        calls.append(len(tasks))
        return [function(task) for task in tasks]

    return counted


def grid() -> list[sweep.Variant]:
    return sweep.variants(CLUSTERS, ["llama2-70b"], {"transfer.shared": [True, False]})


def test_the_grid_is_every_combination() -> None:
    found = grid()
    assert [(v.labels["cluster"], v.config.transfer.shared) for v in found] == [
        (cluster, shared) for cluster in CLUSTERS for shared in (True, False)
    ]
    assert found[2].config.machines == (
        MachineGroup(machine="h100-80gb", count=1, pool="prompt"),
        MachineGroup(machine="a100-80gb", count=1, pool="token"),
    )
    base = ClusterConfig(kv_reserve="at_transfer")
    assert all(v.config.kv_reserve == "at_transfer" for v in sweep.variants(CLUSTERS, ["a"], {}, base))


def test_rows_are_those_of_evaluate_wherever_they_are_made() -> None:
    rows = sweep.sweep(grid(), entrants, LOADS, [3, 4])
    assert len(rows) == 4 * 2 * 2 * 2
    expected = []
    for variant in grid():
        results = evaluate(["splitwise", "index"], Cluster.resolve(variant.config), LOADS, [3, 4])
        expected += [run["goodput"] for run in results.rows()]
    assert [row["goodput"] for row in rows] == expected
    with processes(2) as map:
        assert repr(sweep.sweep(grid(), entrants, LOADS, [3, 4], map=map)) == repr(rows)
        there = evaluate(["splitwise", "index"], Cluster.resolve(grid()[0].config), LOADS, [3, 4], map=map)
    here = evaluate(["splitwise", "index"], Cluster.resolve(grid()[0].config), LOADS, [3, 4])
    assert repr(there.rows()) == repr(here.rows())
    for ours, theirs in zip(here.runs, there.runs):
        for field in dataclasses.fields(ours.table):
            found = [getattr(run.table, field.name) for run in (ours, theirs)]
            np.testing.assert_array_equal(*found, err_msg=field.name)


def test_a_sweep_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    file, calls = tmp_path / "kept.jsonl", []
    first = sweep.sweep(grid()[:1], entrants, LOADS, [0], map=counting(calls), kept=sweep.Kept(file))
    file.write_text(file.read_text()[:-20])  # the last line was cut off while it was written
    again = sweep.sweep(grid(), entrants, LOADS, [0], map=counting(calls), kept=sweep.Kept(file))
    assert calls == [4, 13], "three of the four are known, the cut one and the other clusters' are made"
    assert again[:4] == first
    assert sweep.sweep(grid(), entrants, LOADS, [0], map=counting(calls), kept=sweep.Kept(file)) == again
    assert calls[-1] == 0


def test_a_run_is_known_only_if_nothing_it_depends_on_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, calls, one = sweep.Kept(), [], grid()[:1]

    def made(policies, loads=LOADS, seeds=(0,)) -> int:
        sweep.sweep(one, lambda config: policies, loads, seeds, map=counting(calls), kept=kept)
        return calls[-1]

    index = contender("index")
    assert made([index]) == 2
    assert made([index]) == 0
    assert made([replace(index, routing=routing("index", w5=2.0))]) == 2, "other weights"
    assert made([index], seeds=(1,)) == 2
    assert made([index], [replace(LOADS[0], warmup_s=2.0)]) == 1
    unknown = contender(lambda view, request: (0, 1), name="mine")
    assert (made([unknown]), made([unknown])) == (2, 2), "a plain function says nothing of what it does"
    monkeypatch.setattr(sweep, "fingerprint", lambda: "other code")
    assert made([index]) == 2


def test_no_other_file_is_taken_for_kept_rows(tmp_path: Path) -> None:
    file = tmp_path / "sweep.jsonl"
    file.write_text('{"key": "a", "row": {}}\n{"not": "a row"}\n')
    with pytest.raises(ConfigError, match=r"sweep\.jsonl, line 2"):
        sweep.Kept(file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("transfer.shared", "is not FIELD=VALUE"),
        ("transfer.shard=true", "'transfer.shard': no such field.*shared"),
        ("transfer.shared.more=1", "no such field"),
        ("transfer.shared=perhaps", "transfer.shared"),
        ("min_pool_machines=-1", "min_pool_machines"),
    ],
)
def test_bad_settings(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        name, values = sweep.parse_setting(text)
        sweep.variants(CLUSTERS, ["llama2-70b"], {name: values})


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["splitgym", "sweep", "--model", "llama2-70b", "--duration", "4", "--warmup", "1", "--seeds", "2"]
    words += ["--cluster", CLUSTERS[0], "--set", "transfer.mode=layerwise,serial", "--workers", "1"]
    words += ["--workload", "poisson:azure-conv-synth", "--rates", "2,4", "--out", str(tmp_path)]
    monkeypatch.setattr(cli, "add_learning_commands", lambda to: None)

    def run(*more: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [*words, *more])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        found = capsys.readouterr()
        return int(stopped.value.code or 0), found.out, found.err

    code, out, _ = run()
    assert code == 0 and "serial" in out and "layerwise" in out and "model llama2-70b" in out
    with (tmp_path / "runs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * 2 * 2
    with (tmp_path / "summary.csv").open() as file:
        assert {row["windows"] for row in csv.DictReader(file)} == {"2"}
    assert (tmp_path / "by-rate.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run("--json")
    assert code == 0 and len(json.loads(out)) == 16
    code, out, err = run("--metric", "goodness")
    assert (code, out) == (2, "") and "'goodness' is unknown" in err and err.count("\n") == 1


def test_metrics_of_the_table() -> None:
    rows = sweep.sweep(grid()[:1], entrants, LOADS, [0, 1])
    found = sweep_report.summarise(rows, "ttft_slowdown_p99")
    assert [row["windows"] for row in found] == [2, 2, 2, 2]
    ours = [row["ttft_slowdown_p99"] for row in rows if row["policy"] == "index" and row["rate_per_s"] == 5.0]
    assert found[3]["ttft_slowdown_p99"] == pytest.approx(sum(ours) / 2)
