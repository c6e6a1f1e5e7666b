"""Traffic that others recorded: what each reader takes, mends, leaves out, and refuses by file and line."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitgym.errors import TraceError
from splitgym.router.config import LogConfig
from splitgym.router.records import DecisionLog, Record
from splitgym.trace import load_file
from splitgym.trace.importers import (
    Clock,
    from_burstgpt,
    from_log,
    from_mooncake,
    from_openai_jsonl,
    from_vllm_bench,
    read_log,
)
from tests.test_cli import run

UNIX = 1_780_000_000.0


def jsonl(path: Path, *lines: Any, tail: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return path


def request(arrival_s: float, prompt: int | None = 100, output: int = 7, **fields: Any) -> dict[str, Any]:
    began = fields.pop("began", UNIX)
    record = Record("id", "/v1/completions", True, began + arrival_s, arrival_s, 90, None, prompt, output)
    record.outcome = "ok"
    return record.as_dict() | fields


START = {"v": 1, "event": "start", "unix_s": UNIX, "policy": "index", "servers": []}


# ---- the router's log --------------------------------------------------------------------------------------


def test_a_log_that_the_router_wrote(tmp_path: Path) -> None:
    """Through `DecisionLog`: rotation included; lines stand in the order of their ends."""
    log = DecisionLog(LogConfig(path=str(tmp_path / "d.jsonl"), max_bytes=1 << 16))
    log.event("start", policy="index", servers=[])
    arrivals = np.round(np.random.default_rng(0).permutation(300) / 16, 6)
    for place, arrival_s in enumerate(arrivals):
        fields = {"max_tokens": place + 3, "end_s": 20.0 + place / 1000 - float(arrival_s)}
        log.write(request(float(arrival_s), prompt=place + 1, output=place + 2, **fields))
    log.close()
    assert (tmp_path / "d.jsonl.1").is_file(), "the test should see a rotated log"
    found = from_log([tmp_path / "d.jsonl.1", tmp_path / "d.jsonl"])
    order = np.argsort(arrivals)
    assert found.trace.arrival_s.tolist() == (np.arange(300) / 16).tolist()
    assert found.trace.prompt_tokens.tolist() == (order + 1).tolist() and found.rows == tuple(order)
    assert found.trace.max_tokens is not None and found.trace.max_tokens.tolist() == (order + 3).tolist()
    assert found.notes == () and found.trace.provenance["policies"] == "index"


def test_what_is_left_out_of_a_log_is_said(tmp_path: Path) -> None:
    lines = [
        START,
        request(5.0, prompt=None),
        request(6.0, outcome="refused", output_tokens=0),
        request(7.0, outcome="disconnected", output_tokens=3),
        request(8.0, output=0),
        {"v": 1, "event": "role", "unix_s": UNIX, "server": "a"},
        request(9.0),
    ]
    path = jsonl(tmp_path / "d.jsonl", *lines)
    found = from_log([path])
    assert found.trace.arrival_s.tolist() == [0.0, 4.0] and found.trace.prompt_tokens.tolist() == [90, 100]
    assert found.rows == (0, 4), "rows count the requests of the log"
    said = " ".join(found.notes)
    assert "1 of 5 (refused)" in said and "1 of 5 (disconnected)" in said and "no output counted" in said
    assert "1 prompts were counted by no server" in said and said.count("left out") == 3
    assert len(from_log([path], outcomes=("ok", "disconnected")).trace) == 3
    with pytest.raises(TraceError, match="outcome 'fine': expected ok"):
        from_log([path], outcomes=("fine",))
    with pytest.raises(TraceError, match=r"d\.jsonl: no request to make a trace of .*5 of 5 \(|.*left out"):
        from_log([path], outcomes=("server_error",))


def test_runs_follow_each_other_by_the_wall_clock(tmp_path: Path) -> None:
    second = [{**START, "policy": "learned"}, request(0.5, began=UNIX + 100), request(1.5, began=UNIX + 100)]
    found = from_log([jsonl(tmp_path / "d.jsonl", START, request(1.0), request(3.0), *second)])
    assert found.trace.arrival_s.tolist() == [0.0, 2.0, 99.5, 100.5]
    assert found.trace.provenance["policies"] == "index, learned" and not found.notes


def test_a_wall_clock_that_was_set_back(tmp_path: Path) -> None:
    """The runs keep their order and their inner times; nothing is lost."""
    second = [START, request(0.5, began=UNIX - 5000), request(1.5, began=UNIX - 5000)]
    third = [START, request(1.0, began=UNIX - 4990)]
    path = jsonl(tmp_path / "d.jsonl", START, request(1.0), request(3.0), *second, *third)
    found = from_log([path])
    assert found.trace.arrival_s.tolist() == [0.0, 2.0, 2.0, 3.0, 12.5]
    assert re.search(r"d\.jsonl: line 5: run 2 begins 5002\.5 s before", found.notes[0])


def test_a_wall_clock_that_jumps_within_a_run_is_not_used(tmp_path: Path) -> None:
    lines = [request(t, unix_s=UNIX + t + (3600.0 if t > 1.5 else 0.0)) for t in (0.0, 1.0, 2.0)]
    found = from_log([jsonl(tmp_path / "d.jsonl", START, *lines)])
    assert found.trace.arrival_s.tolist() == [0.0, 1.0, 2.0]
    assert "moved by 3600 s" in found.notes[0]


def test_runs_far_apart_are_asked_about(tmp_path: Path) -> None:
    later = request(0.0, began=UNIX + 30 * 86400)
    path = jsonl(tmp_path / "d.jsonl", START, request(1.0), START, later)
    with pytest.raises(TraceError, match=r"line 4: run 2 begins 30 days after .*--trust-clock"):
        from_log([path])
    assert from_log([path], clock=Clock(trust=True)).trace.duration_s == pytest.approx(30 * 86400 - 1)


def test_a_line_cut_at_the_end(tmp_path: Path) -> None:
    whole = json.dumps(request(2.0))
    path = jsonl(tmp_path / "d.jsonl", START, request(1.0), request(1.5), tail=whole[: len(whole) // 2])
    found = from_log([path])
    assert len(found.trace) == 2 and re.search(r"d\.jsonl: line 4, the last, is cut off", found.notes[0])
    complete = jsonl(tmp_path / "e.jsonl", START, request(1.0), tail=whole)
    assert len(from_log([complete]).trace) == 2, "a last line without its line break is whole"


def test_a_line_cut_by_a_crash(tmp_path: Path) -> None:
    """The log is appended to: the next run's first line stands right behind the cut one."""
    cut = (
        json.dumps(request(2.0), separators=(",", ":"))[:70] + json.dumps(START, separators=(",", ":")) + "\n"
    )
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(START) + "\n" + json.dumps(request(1.0)) + "\n" + cut)
    with path.open("a") as file:
        file.write(json.dumps(request(0.5, began=UNIX + 60)) + "\n")
    log = read_log([path])
    assert [len(run.requests) for run in log.runs] == [1, 1]
    found = from_log([path])
    assert (
        found.trace.arrival_s.tolist() == [0.0, 59.5] and "line 3: its first part was cut" in found.notes[0]
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken", r"line 2: is no JSON .*--skip-bad"),
        ("[1]", r"line 2: holds list, expected a JSON object"),
        ('{"a": 1}', r"line 2: is no line of a decision log"),
        ('{"v": 2, "event": "request"}', r"line 2: has version 2 of the decision log, this reader knows 1"),
        (json.dumps(request(1.0) | {"arrival_s": None}), r"line 2: arrival_s is None, expected seconds"),
        (json.dumps(request(1.0, prompt_tokens=1.5)), r"line 2: prompt tokens: 1.5, expected an integer"),
        (json.dumps(request(1.0, max_tokens=0)), r"line 2: the limit on the output: 0"),
    ],
)
def test_a_bad_line_of_a_log(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join([json.dumps(START), line, json.dumps(request(3.0))]) + "\n")
    with pytest.raises(TraceError, match=rf"d\.jsonl: {words}"):
        from_log([path])


def test_bad_lines_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join([json.dumps(START), "{broken", json.dumps(request(3.0))]) + "\n")
    found = from_log([path], skip_bad=True)
    assert len(found.trace) == 1 and "1 lines are no JSON object and left out (2)" in found.notes[0]


# ---- OpenAI's answers --------------------------------------------------------------------------------------


def answer(created: Any, prompt: int = 20, output: int = 5, **fields: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    return {"object": "chat.completion", "created": created, "usage": usage, **fields}


def test_answers_in_every_wrapping(tmp_path: Path) -> None:
    iso = "2026-05-28T20:26:40"
    lines = [
        answer(UNIX),
        {"timestamp": f"{iso}.500000Z", "response": answer(UNIX + 3), "request": {"max_tokens": 9}},
        {"custom_id": "a", "response": {"status_code": 200, "body": answer(UNIX + 4)}, "error": None},
        {"created_at": UNIX + 2, "usage": {"input_tokens": 8, "output_tokens": 2}, "max_output_tokens": 4},
        {"ts": (UNIX + 5) * 1000, "body": answer(UNIX + 9, max_completion_tokens=6)},
        {"response": {"status_code": 500, "body": {"error": {"message": "no"}}}},
        answer(UNIX + 6, output=0),
    ]
    found = from_openai_jsonl(jsonl(tmp_path / "a.jsonl", *lines))
    assert found.trace.arrival_s.tolist() == [0.0, 0.5, 2.0, 4.0, 5.0]
    assert found.trace.prompt_tokens.tolist() == [20, 20, 8, 20, 20] and found.rows == (0, 1, 3, 2, 4)
    assert found.trace.max_tokens is not None and found.trace.max_tokens.tolist() == [-1, 9, 4, -1, 6]
    assert any("(failed)" in note for note in found.notes) and any("(no output)" in n for n in found.notes)


def test_whole_seconds_are_said_and_can_be_scattered(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *(answer(UNIX + place // 10) for place in range(200)))
    plain = from_openai_jsonl(path)
    assert "180 of 200 repeat an earlier one: --scatter 1" in plain.notes[0]
    moved = from_openai_jsonl(path, clock=Clock(scatter_s=1.0, seed=3)).trace
    assert len(np.unique(moved.arrival_s)) == 200 and moved.duration_s < 20
    assert np.abs(moved.arrival_s - plain.trace.arrival_s).max() < 1.0
    assert moved.equals(from_openai_jsonl(path, clock=Clock(scatter_s=1.0, seed=3)).trace)
    assert moved.provenance["operations"] == "scatter(1.0, seed=3)"


def test_a_clock_that_jumps(tmp_path: Path) -> None:
    back = jsonl(tmp_path / "b.jsonl", answer(UNIX), answer(UNIX - 100), answer(UNIX - 4000))
    with pytest.raises(TraceError, match=r"b\.jsonl: line 3: its time is 4000 s before .*--trust-clock"):
        from_openai_jsonl(back)
    assert from_openai_jsonl(back, clock=Clock(trust=True)).trace.arrival_s.tolist() == [0.0, 3900.0, 4000.0]
    away = jsonl(tmp_path / "c.jsonl", answer(12.0), answer(UNIX))
    with pytest.raises(TraceError, match=r"c\.jsonl: line 2: its time is 20\d+\.?\d* days after"):
        from_openai_jsonl(away)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"a": 1}, "line 2: has no `usage`"),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 1}}, "line 2: has no time: expected one of"),
        (answer("noon"), "line 2: created is 'noon', expected seconds or an ISO date"),
        (answer(1e10), "line 2: created is 10000000000.0: no time between"),
        (answer(UNIX, prompt=-1), "line 2: prompt tokens: -1"),
    ],
)
def test_a_bad_answer(tmp_path: Path, line: dict[str, Any], words: str) -> None:
    with pytest.raises(TraceError, match=re.escape(words)):
        from_openai_jsonl(jsonl(tmp_path / "a.jsonl", answer(UNIX), line))


# ---- published traces --------------------------------------------------------------------------------------

BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"


def test_burstgpt(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    rows = ["5,ChatGPT,472,18,490,Conversation log", "45,ChatGPT,1087,0,1087,API log"]
    rows += ["45,GPT-4,417,276,693,API log", "118.5,ChatGPT,1,2,3,API log", "120,Chat"]
    path.write_text("\n".join([BURST, *rows]))
    found = from_burstgpt(path)
    assert found.trace.arrival_s.tolist() == [0.0, 40.0, 113.5]
    assert found.trace.output_tokens.tolist() == [18, 276, 2]
    assert any("line 6, the last, is cut off" in note for note in found.notes)
    assert any("1 of 4 (failed: no response tokens)" in note for note in found.notes)
    assert len(from_burstgpt(path, model="GPT-4", log_type="API log").trace) == 1
    with pytest.raises(TraceError, match="splitgym trace from-burstgpt"):
        load_file(path)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["9,A,1,1,2,x", "8,A,1,1,2,x"], r"line 3: its time is 1 s before an earlier line's"),
        (["9,A,1,1,2,x", "9,A", "9,A,1,1,2,x"], r"line 3: has fewer columns than the first line \(6\)"),
        (["9,A,many,1,2,x"], r"line 2: Request tokens is 'many', expected a number"),
        (["9,A,1.5,1,2,x"], r"line 2: prompt tokens: 1.5"),
        (["nan,A,1,1,2,x"], r"line 2: its time is nan"),
        (["0,A,1,1,2,x", "9999999,A,1,1,2,x"], r"line 3: its time is 115\.741 days after"),
        ([], r"no request to make a trace of"),
    ],
)
def test_a_bad_burstgpt(tmp_path: Path, rows: list[str], words: str) -> None:
    path = tmp_path / "b.csv"
    path.write_text("\n".join([BURST, *rows, ""]))
    with pytest.raises(TraceError, match=words):
        from_burstgpt(path)


def test_not_burstgpt(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(TraceError, match=r"line 1: lacks the column Timestamp of BurstGPT; it has a, b"):
        from_burstgpt(path)


def test_mooncake(tmp_path: Path) -> None:
    lines = [{"timestamp": t, "input_length": 6755, "output_length": n, "hash_ids": [0]} for t, n in
             ((0, 500), (0, 490), (3052, 0), (3052, 316))]  # fmt: skip
    found = from_mooncake(jsonl(tmp_path / "m.jsonl", *lines))
    assert found.trace.arrival_s.tolist() == [0.0, 0.0, 3.052]
    assert found.trace.output_tokens.tolist() == [500, 490, 316]
    for change, words in (
        ({"timestamp": -1}, "line 5: its time is 3.053 s before"),
        ({"timestamp": "x"}, "line 5: timestamp is 'x', expected milliseconds"),
        ({"input_length": 0}, "line 5: prompt tokens: 0"),
    ):
        with pytest.raises(TraceError, match=re.escape(words)):
            from_mooncake(jsonl(tmp_path / "m.jsonl", *lines, {**lines[3], **change}))
    with pytest.raises(TraceError, match="line 1: lacks input_length"):
        from_mooncake(jsonl(tmp_path / "m.jsonl", {"timestamp": 0}))


def test_vllm_bench(tmp_path: Path) -> None:
    result = {
        "date": "20261125-120000",
        "model_id": "m",
        "request_rate": 4.0,
        "input_lens": [10, 20, 30],
        "output_lens": [1, 0, 3],
        "start_times": [812.25, 812.5, 813.0],
        "errors": ["", "timeout", ""],
    }
    path = jsonl(tmp_path / "r.json", result)
    found = from_vllm_bench(path)
    assert found.trace.arrival_s.tolist() == [0.0, 0.75] and found.trace.prompt_tokens.tolist() == [10, 30]
    assert found.trace.provenance["arrivals"] == "as sent" and "1 of 3 (failed)" in found.notes[0]
    assert len(from_vllm_bench(jsonl(path, {"a": 1}, result)).trace) == 2, "the last result of several"
    old = {key: value for key, value in result.items() if key != "start_times"}
    with pytest.raises(TraceError, match=r"r\.json: line 1: has no start_times .*--rate R"):
        from_vllm_bench(jsonl(path, old))
    drawn = from_vllm_bench(path, rate_per_s=2.0, clock=Clock(seed=1)).trace
    assert "drawn: Poisson, 2.0/s, seed 1" in drawn.provenance["arrivals"]
    for change, words in (
        ({"input_lens": None}, "has no list input_lens: run `vllm bench serve` with --save-result"),
        ({"output_lens": [1]}, "input_lens has 3 values, output_lens 1"),
        ({"start_times": [0.0, "x", 1.0]}, "start_times holds 'x', expected seconds"),
    ):
        with pytest.raises(TraceError, match=re.escape(words)):
            from_vllm_bench(jsonl(path, {**result, **change}))
    path.write_text(json.dumps(result)[:-20])
    with pytest.raises(TraceError, match=r"r\.json: line 1: is no JSON .*cut off"):
        from_vllm_bench(path)


# ---- the command line --------------------------------------------------------------------------------------


def test_the_commands_write_and_never_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.csv").write_text(f"{BURST}\n5,GPT-4,472,18,490,API log\n6,GPT-4,4,1,5,API log\n")
    sources = {
        "from-log": jsonl(tmp_path / "d.jsonl", START, request(1.0), request(1.5), tail="{"),
        "from-openai-jsonl": jsonl(tmp_path / "a.jsonl", answer(UNIX), answer(UNIX + 1)),
        "from-burstgpt": tmp_path / "b.csv",
        "from-mooncake": jsonl(
            tmp_path / "m.jsonl",
            *({"timestamp": t, "input_length": 5, "output_length": 5} for t in (0, 1000)),
        ),
        "from-vllm-bench": jsonl(
            tmp_path / "r.json", {"input_lens": [1, 2], "output_lens": [1, 2], "start_times": [1, 2]}
        ),
    }
    for command, source in sources.items():
        out = tmp_path / f"{command}.parquet"
        assert run(monkeypatch, "trace", command, str(source), "--out", str(out)) == 0
        found = capsys.readouterr()
        assert f"{out}: 2 requests" in found.out and ("cut off" in found.err) == (command == "from-log")
        trace = load_file(out)
        assert len(trace) == 2 and trace.name == source.stem
        before = out.read_bytes()
        assert run(monkeypatch, "trace", command, str(source), "--out", str(out)) == 2
        assert "--force replaces it" in capsys.readouterr().err and out.read_bytes() == before
        words = ["--name", "mine", "--force", "--json"]
        assert run(monkeypatch, "trace", command, str(source), "--out", str(out), *words) == 0
        assert json.loads(capsys.readouterr().out)["name"] == "mine" and load_file(out).name == "mine"


@pytest.mark.parametrize("reads", ["openai", "burstgpt", "mooncake"])
def test_progress_tells_the_bytes_read(tmp_path: Path, reads: str) -> None:
    path, told = tmp_path / "many", []
    if reads == "burstgpt":
        head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        path.write_text(head + "".join(f"{i},GPT-4,7,3,10,API log\n" for i in range(2_500)))
        found = from_burstgpt(path, progress=told.append)
    elif reads == "mooncake":
        line = '{{"timestamp": {}, "input_length": 7, "output_length": 3, "hash_ids": []}}\n'
        path.write_text("".join(line.format(i) for i in range(2_500)))
        found = from_mooncake(path, progress=told.append)
    else:
        line = '{{"created": {}, "usage": {{"prompt_tokens": 7, "completion_tokens": 3}}}}\n'
        path.write_text("".join(line.format(1_700_000_000 + i) for i in range(2_500)))
        found = from_openai_jsonl(path, progress=told.append)
    assert len(found.trace) == 2_500
    assert len(told) >= 2 and told == sorted(told) and 0 < told[0] < told[-1] <= path.stat().st_size
