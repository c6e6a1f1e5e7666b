"""The benchmark beside the paper's simulator, against a stand-in of a few lines with its interface."""

import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from splitgym import trace

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

RUN = """
import csv, os, sys
from dataclasses import dataclass
import simulator

@dataclass
class Task:
    number: int = 0
    def __hash__(self):
        return self.number

class Trace(simulator.Simulator):
    def run(self):
        super().run()

if os.environ.get("PEER_FAILS"):
    raise RuntimeError("no such option")
Trace().run()
with open("traces/peer.csv", newline="") as file:
    rows = list(csv.DictReader(file))
os.makedirs("results/peer/detailed")
with open("results/peer/detailed/0.csv", "w") as file:
    print("equal", Task() == Task(), "hash", hash(Task(7)), "requests", len(rows), file=file)
    print(*sys.argv[1:], file=file)
"""
CONFIG = """defaults:
  - trace: test_trace
  - override hydra/launcher: ray
  - _self_
seed: 0
hydra:
  job:
    chdir: True
  launcher:
    ray:
      init:
        address: "127.0.0.1:6379"
"""


@pytest.fixture
def peer(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("peer", BENCHMARKS / "peer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path):
    place = tmp_path / "checkout"
    (place / "configs").mkdir(parents=True)
    (place / "traces").mkdir()
    (place / "run.py").write_text(RUN)
    (place / "simulator.py").write_text(
        "class Simulator:\n    def run(self):\n        return sum(range(10**5))\n"
    )
    (place / "configs" / "config.yaml").write_text(CONFIG)
    return place


REQUESTS = trace.Trace(np.array([0.5, 1.25]), np.array([10, 20]), np.array([3, 4]))


def test_both_runs_are_timed_and_one_compares_by_identity(peer, checkout, tmp_path):
    for comparison, equal in (("as_is", "True"), ("identity", "False")):
        copy = peer.copy_of(checkout, tmp_path / comparison, REQUESTS)
        cpu_s, table = peer.theirs(sys.executable, copy, comparison)
        assert 0 < cpu_s < 60
        first, arguments = table.decode().splitlines()
        assert first == f"equal {equal} hash 7 requests 2"
        assert "cluster.servers.1.count=40" in arguments and "trace.filename=peer" in arguments
    assert not (checkout / "results").exists()


def test_the_copy_has_the_trace_and_no_launcher(peer, checkout, tmp_path):
    copy = peer.copy_of(checkout, tmp_path / "copy", REQUESTS)
    kept = (copy / "configs" / "config.yaml").read_text()
    assert "launcher" not in kept and "address" not in kept
    assert "chdir: True" in kept and "trace: test_trace" in kept and "seed: 0" in kept
    with (copy / "traces" / "peer.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["arrival_timestamp"] for row in rows] == ["0.5", "1.25"]
    assert [(row["prompt_size"], row["token_size"]) for row in rows] == [("10", "3"), ("20", "4")]
    again = peer.read_csv(copy / "traces" / "peer.csv")
    np.testing.assert_array_equal(again.arrival_s, REQUESTS.arrival_s)
    np.testing.assert_array_equal(again.output_tokens, REQUESTS.output_tokens)


def test_what_goes_wrong_there_is_said(peer, checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("PEER_FAILS", "1")
    copy = peer.copy_of(checkout, tmp_path / "copy", REQUESTS)
    with pytest.raises(SystemExit, match="no such option"):
        peer.theirs(sys.executable, copy, "as_is")
    with pytest.raises(SystemExit, match="is no checkout of splitwise-sim"):
        peer.copy_of(tmp_path, tmp_path / "none", REQUESTS)


def test_without_a_checkout_it_is_skipped_in_one_sentence(peer, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peer.py"])
    peer.main()
    assert capsys.readouterr().out.count("\n") == 1
