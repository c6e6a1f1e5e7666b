"""Ports that tests give to servers: no two processes at once get the same."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.ports import free_ports

ROOT = Path(__file__).resolve().parent.parent
HOLD = "from tests.ports import free_ports; print(free_ports(12), flush=True); input()"


def test_processes_and_calls_get_ports_of_their_own() -> None:
    words = [sys.executable, "-c", HOLD]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    others = [subprocess.Popen(words, **pipes) for _ in range(3)]
    try:
        firsts = [int(other.stdout.readline()) for other in others]
        firsts += [free_ports(15), free_ports(1)]
    finally:
        for other in others:
            other.communicate("\n", timeout=30)
    firsts.sort()
    assert all(later - first >= 16 for first, later in pairwise(firsts)), firsts


@pytest.mark.parametrize("count", [0, 16])
def test_a_block_has_fifteen_ports_to_give(count: int) -> None:
    with pytest.raises(AssertionError):
        free_ports(count)
