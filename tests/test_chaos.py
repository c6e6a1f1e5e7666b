"""A short run of benchmarks/chaos.py (`make chaos` is the long one)."""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from chaos import Chaos, chaos


def test_nothing_is_lost_answered_twice_or_left_over(tmp_path):
    found = asyncio.run(chaos(seconds=8.0, rate_per_s=40.0, seed=1, folder=tmp_path))
    assert found.clean, (found.answers, found.first, found.left)
    assert found.retries, "some trouble reached the requests"
    assert found.answers["whole"] > 50 and found.answers["stream"] > 50 and found.answers["gone"]
    assert len(found.trouble) >= 4 and found.answers["broken"] < 0.25 * found.answers["stream"]


def test_a_wrong_answer_would_be_noticed(tmp_path, monkeypatch):
    plain = Chaos.body

    def other(self, number, stream):
        # What is asked in peace differs from what is asked through the router by one word.
        return plain(self, number if self.expected[number:] else number + 1, stream)

    monkeypatch.setattr(Chaos, "body", other)
    found = asyncio.run(chaos(seconds=1.0, rate_per_s=20.0, seed=1, folder=tmp_path))
    assert found.answers["wrong"] and not found.clean
