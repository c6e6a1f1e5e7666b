"""`splitgym load`: at the trace's times, whatever the server does."""

import json

import numpy as np
import pytest
from engine_help import in_thread
from typer.testing import CliRunner

from splitgym.cli import app
from splitgym.config import make
from splitgym.errors import ConfigError
from splitgym.router.load import LoadOptions, send
from splitgym.trace import Trace
from tests.fake_vllm import FakeVllm, in_loop


def trace_of(count, gap_s=0.01, prompt=20, output=4):
    return Trace(np.arange(count) * gap_s, np.full(count, prompt), np.full(count, output))


def test_every_request_is_answered_as_long_as_it_was(tmp_path):
    with in_thread(engines=1) as (_, urls):
        shown = CliRunner().invoke(
            app,
            ["load", urls[0], "--workload", "poisson:azure-code-synth@20", "--duration", "1", "--json"],
        )
    assert shown.exit_code == 0, shown.output
    row = json.loads(shown.stdout)
    assert row["ok"] == row["sent"] > 5 and row["errors"] == {} and not row["stopped"]
    assert 0 < row["ttft_s"]["p50"] <= row["ttft_s"]["p99"] < row["e2e_s"]["p99"]


@in_loop
async def test_sizes_and_times_are_the_traces():
    async with FakeVllm("a") as server:
        found = await send(trace_of(30, gap_s=0.02), make(LoadOptions, url=server.url, model="m"))
        bodies = [entry[1] for entry in server.calls]
    assert len(found.answers) == found.sent == 30 and not found.errors
    assert [len(body["prompt"]) for body in bodies] == [20] * 30
    assert {body["max_tokens"] for body in bodies} == {4} and all(body["ignore_eos"] for body in bodies)
    assert len({tuple(body["prompt"]) for body in bodies}) == 30, "no prefix cache may help"
    assert found.wall_s >= 29 * 0.02, "not all at once"


@in_loop
async def test_what_goes_wrong_is_counted():
    async with FakeVllm("a") as server:
        server.break_after = 2
        found = await send(trace_of(5), make(LoadOptions, url=server.url, model="m"))
        assert sum(found.errors.values()) == 5 and not found.answers
        server.break_after = None
        server.pause_s = 0.2
        found = await send(
            trace_of(12, gap_s=0.001), make(LoadOptions, url=server.url, model="m", most_open=4)
        )
        assert found.sent == 4 and found.not_sent == 8
        found = await send(trace_of(2), make(LoadOptions, url=server.url, model="m", timeout_s=0.1))
        assert found.errors == {"timeout": 2}


@in_loop
async def test_a_server_that_refuses_is_an_error_of_one_sentence():
    with pytest.raises(ConfigError, match=r"cannot be reached .*: is the server up"):
        await send(trace_of(1), make(LoadOptions, url="http://127.0.0.1:9"))
    with pytest.raises(ConfigError, match="url"):
        make(LoadOptions, url="127.0.0.1:9")
