"""`examples/closed_loop.sh`, whole, with small numbers: every command of the loop, as printed there."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from splitgym.policy import load
from splitgym.trace.decision_log import read_decision_log
from tests.ports import free_ports

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "MEASURE": "--repeats 1 --output-tokens 16,64 --max-prompt 1024 --max-batch 4 --max-seconds 60",
    "GENERATIONS": "1",
    "IMPROVE_GENERATIONS": "1",
    "RATE": "20",
    "LOAD_S": "26",
    "WINDOW_S": "8",
}


@pytest.mark.slow
def test_the_loop_closes(tmp_path):
    command = tmp_path / "splitgym"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m splitgym.cli "$@"\n')
    command.chmod(0o755)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    port = free_ports(12)
    env = {**os.environ, **SMALL, "PORT": str(port), "SPLITGYM": str(command), "PYTHON": sys.executable}
    words = ["bash", str(ROOT / "examples" / "closed_loop.sh")]
    where = {"cwd": tmp_path, "env": env | {"PYTHONPATH": paths}, "capture_output": True, "text": True}
    found = subprocess.run(words, **where)
    work = tmp_path / "closed-loop"
    logs = "".join(path.read_text() for path in work.glob("*.txt"))
    assert found.returncode == 0, found.stdout + found.stderr + logs
    steps = [line[3:].split(":")[0] for line in found.stdout.splitlines() if line.startswith("== ")]
    assert steps[1:7] == ["measure", "train", "evaluate", "route", "compare-log", "improve"]
    # What each of them leaves.
    traffic = read_decision_log(work / "today.jsonl")
    assert traffic.requests > 300 and traffic.runs[0].header["bundle"] == load(work / "bundles/first").sha256
    row = json.loads((work / "compare-log.json").read_text())
    assert row["requests"]["measured"] == traffic.requests
    # Measured and routed in real time, on a machine that may be busy: half or twice would be
    # another cluster. In simulated time the error is 0: tests/test_compare_log.py.
    assert abs(row["measures"]["tbt"]["error"]["p50"]) < 0.5, "it is the same cluster"
    verdict = json.loads((work / "improve/verdict.json").read_text())
    assert verdict["won"] == (work / "bundles/second").is_dir() == ("now decides with" in found.stdout)
    # Nobody is left behind, and nothing is overwritten.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    again = subprocess.run(words, **where)
    assert again.returncode == 2 and "is there already" in again.stderr
