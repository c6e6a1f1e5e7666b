"""Streamed runs: the cut into chunks changes nothing, memory does not grow, files are whole or absent."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pa_parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitgym import cli, schedulers
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, Fault, VllmBatchingConfig, parse_machines
from splitgym.errors import ConfigError, TraceError
from splitgym.evaluation.contenders import FunctionScheduler
from splitgym.evaluation.stream import simulate
from splitgym.metrics import request_table, summarise
from splitgym.sim import make_engine
from splitgym.sim.compiled import setup
from splitgym.trace import Trace, blocks, load, poisson, save

FIELDS = [
    "arrival_ns",
    "prompt_tokens",
    "output_tokens",
    "first_token_ns",
    "finish_ns",
    "prompt_start_ns",
    "prompt_end_ns",
    "transfer_start_ns",
    "transfer_end_ns",
    "decode_start_ns",
    "prompt_machine",
    "token_machine",
    "decision_id",
    "attempts",
    "preemptions",
    "prompts_computed",
    "lost_tokens",
]
TRACE = poisson(load("azure-conv-synth"), 12.0, 30.0, seed=3)


def cluster(**fields: Any) -> Cluster:
    config = ClusterConfig(model="llama2-70b", machines=parse_machines("h100-80gb:1P1T1M"), **fields)
    return Cluster.resolve(config)


def pieces(trace: Trace, size: int) -> Iterator[Trace]:
    for i in range(0, len(trace), size):
        part = slice(i, i + size)
        limits = None if trace.max_tokens is None else trace.max_tokens[part]
        yield Trace(
            trace.arrival_s[part], trace.prompt_tokens[part], trace.output_tokens[part], limits, "part"
        )


@settings(max_examples=20)
@given(
    name=st.sampled_from(["splitwise", "index", "python"]),
    size=st.integers(1, 400),
    drained=st.sampled_from([1, 7, 1000]),
    vllm=st.booleans(),
    fault=st.booleans(),
    limited=st.booleans(),
)
def test_the_cut_changes_nothing(name, size, drained, vllm, fault, limited) -> None:
    where = cluster(
        batching=VllmBatchingConfig() if vllm else ClusterConfig().batching,
        faults=(Fault(machine=1, at_s=4.0, duration_s=3.0),) if fault else (),
    )
    limits = np.where(np.arange(len(TRACE)) % 3 == 0, -1, TRACE.output_tokens + 5) if limited else None
    trace = Trace(TRACE.arrival_s, TRACE.prompt_tokens, TRACE.output_tokens, limits, "whole")

    def routing() -> Any:
        if name == "python":  # a longer answer may go elsewhere
            return FunctionScheduler(lambda view, request: (0, 1 + (request.max_tokens > 100)), "mine")
        return schedulers.routing(name)

    whole: Any = make_engine(where, routing(), schedulers.sizing("reactive"), "compiled")
    whole.reset(trace, 5)
    try:
        whole.run_until_decision()
    except Exception as error:  # a choice that a fault forbids is refused in both
        with pytest.raises(type(error)):
            make_engine(where, routing(), schedulers.sizing("reactive"), "compiled").stream(  # type: ignore
                pieces(trace, size), lambda rows: None, 5
            )
        return
    expected = whole.outcomes()
    engine: Any = make_engine(where, routing(), schedulers.sizing("reactive"), "compiled")
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "DRAINED_ROWS", drained)
        patch.setattr(setup, "FIRST_SLOTS", 2)
        totals = engine.stream(pieces(trace, size), found.append, 5)
    rows = np.concatenate(found)
    assert rows["request"].tolist() == expected.finish_order
    rows = rows[np.argsort(rows["request"])]
    for field in FIELDS:
        np.testing.assert_array_equal(rows[field], getattr(expected, field), err_msg=field)
    np.testing.assert_array_equal(totals.energy_j, expected.energy_j)
    assert totals.timeline == expected.timeline and totals.end_ns == expected.end_ns


def test_the_file_and_the_summary(tmp_path: Path) -> None:
    out = tmp_path / "outcomes.parquet"
    seen: list[int] = []
    found = simulate("index", cluster(), pieces(TRACE, 50), out=out, progress=seen.append)
    table = pa_parquet.read_table(out)
    assert table.num_rows == len(TRACE) == found.requests == seen[-1]
    assert set(FIELDS) <= set(table.column_names)
    assert [p.name for p in tmp_path.iterdir()] == ["outcomes.parquet"]
    engine = make_engine(cluster(), schedulers.routing("index"), schedulers.sizing("static"))
    engine.reset(TRACE)
    engine.run_until_decision()
    requests = request_table(engine.outcomes(), cluster().tables)
    metrics = summarise(
        requests,
        engine.outcomes(),
        window_s=30.0,
        completed_in_run=len(TRACE),
        cost_per_hour=cluster().cost_per_hour,
    )
    assert found.goodput == metrics.goodput
    assert found.energy_per_request_j == pytest.approx(metrics.energy_per_request_j)
    assert found.cost_per_request == pytest.approx(metrics.cost_per_request)
    assert found.utilisation == metrics.utilisation
    for kind in ("ttft", "tbt", "e2e"):
        values = requests.slowdown(kind)
        for p, value in zip((50, 90, 99), found.slowdowns[kind]):
            low, high = np.percentile(values, p, method="lower"), np.percentile(values, p, method="higher")
            assert low * 0.997 <= value <= high * 1.003


def test_nothing_is_left_of_a_run_that_fails(tmp_path: Path) -> None:
    out = tmp_path / "outcomes.parquet"

    def broken() -> Iterator[Trace]:
        yield from pieces(TRACE, 100)
        raise TraceError("the source is gone")

    with pytest.raises(TraceError, match="the source is gone"):
        simulate("splitwise", cluster(), broken(), out=out)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="cannot be written"):
        simulate("splitwise", cluster(), pieces(TRACE, 100), out=tmp_path / "no" / "such.parquet")


def test_bad_chunks() -> None:
    parts = list(pieces(TRACE, 100))
    with pytest.raises(TraceError, match="in the order of time"):
        simulate("splitwise", cluster(), [parts[1], parts[0]])
    with pytest.raises(TraceError, match="no requests"):
        simulate("splitwise", cluster(), [])
    huge = Trace(np.array([99.0]), np.array([10**8]), np.array([5]), name="huge")
    with pytest.raises(TraceError, match="huge"):
        simulate("splitwise", cluster(), [parts[0], huge])
    asking: Any = make_engine(cluster(), None, schedulers.sizing("static"), "compiled")
    with pytest.raises(ConfigError, match="both schedulers"):
        asking.stream(parts, lambda rows: None)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_blocks_of_a_file_are_the_file(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from splitgym.trace import loaders

    monkeypatch.setattr(loaders, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(loaders, "BLOCK_ROWS", 100)
    path = tmp_path / f"mine.{ending}"
    save(TRACE, path)
    parts = list(blocks(path))
    assert len(parts) > 2 and all(part.name == TRACE.name for part in parts)
    for field in ("arrival_s", "prompt_tokens", "output_tokens"):
        whole = np.concatenate([getattr(part, field) for part in parts])
        np.testing.assert_array_equal(whole, getattr(TRACE, field))
    with pytest.raises(TraceError, match="no such trace file"):
        list(blocks(tmp_path / f"other.{ending}"))


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "mine.parquet", tmp_path / "found" / "outcomes.parquet"
    save(TRACE, path)
    words = [
        "splitgym",
        "simulate",
        "--trace",
        str(path),
        "--cluster",
        "h100-80gb:1P1T1M",
        "--policy",
        "index",
    ]
    words += ["--model", "llama2-70b", "--out", str(out), "--json"]
    monkeypatch.setattr(cli, "add_learning_commands", lambda to: None)

    def run(*more: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [*words, *more])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        found = capsys.readouterr()
        return int(stopped.value.code or 0), found.out, found.err

    code, text, _ = run()
    assert code == 0 and json.loads(text)["requests"] == len(TRACE)
    code, text, error = run()
    assert (code, text) == (2, "") and "--force" in error
    assert run("--force")[0] == 0
