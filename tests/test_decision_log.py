"""Reading decision logs: whole ones, and those that crashes, full disks and clocks have hurt."""

import json

import pytest
from logs import SERVERS, request, start, write

from splitgym.errors import TraceError
from splitgym.router.config import LogConfig
from splitgym.router.records import DecisionLog
from splitgym.trace.decision_log import read_decision_log


def test_what_the_router_writes_is_read(tmp_path):
    lines = [request(i, i * 0.5, ("p0", "t1") if i % 2 else ("t0", "t0")) for i in range(4)]
    lines[3]["attempts"].insert(0, {**lines[3]["attempts"][0], "error": "p0: gone"})
    found = read_decision_log(write(tmp_path / "log", start(), *lines, {"v": 1, "event": "stop"}))
    (run,) = found.runs
    assert not found.notes and found.requests == 4 and run.servers == SERVERS and run.cluster is None
    one = run.requests[1]
    assert (one.place.line, one.arrival_s, one.prompt_tokens, one.output_tokens, one.max_tokens) == (
        3,
        0.5,
        100,
        20,
        20,
    )
    assert (one.prompt_server, one.token_server, one.prompt_s, one.decided_s) == ("p0", "t1", 0.1, 0.001)
    assert one.split and not run.requests[0].split and run.requests[3].attempts == 2
    assert [event["event"] for event in run.events] == ["stop"]


def test_requests_are_in_the_order_of_arrival(tmp_path):
    late = request(0, 0.0, end_s=9.0)
    found = read_decision_log(write(tmp_path / "log", start(), request(1, 1.0), late))
    assert [r.arrival_s for r in found.runs[0].requests] == [0.0, 1.0]


def test_a_prompt_that_nobody_counted_has_its_estimate(tmp_path):
    found = read_decision_log(write(tmp_path / "log", start(), request(0, 0.0, prompt_tokens=None)))
    assert found.runs[0].requests[0].prompt_tokens == 90


def test_a_line_that_is_cut_off_at_the_end_is_left_out(tmp_path):
    cut = json.dumps(request(9, 3.0)).encode()[:70]
    found = read_decision_log(write(tmp_path / "log", start(), request(0, 0.0), cut))
    assert found.requests == 1
    assert found.notes == [f"{tmp_path / 'log'}: line 3, the last, is cut off and left out"]


def test_a_crash_within_a_line_costs_that_line_alone(tmp_path):
    """A router of old begins its lines behind the broken one; a new one on a line of its own."""
    cut = json.dumps(request(9, 3.0)).encode()[:70]
    glued = cut + json.dumps(start(began_unix_s=2000.0)).encode() + b"\n"
    found = read_decision_log(write(tmp_path / "log", start(), request(0, 0.0), glued, request(1, 0.5)))
    assert [len(run.requests) for run in found.runs] == [1, 1] and "line 3" in found.notes[0]
    config = LogConfig(path=str(tmp_path / "log"))
    with (tmp_path / "log").open("ab") as file:
        file.write(cut)
    log = DecisionLog(config)
    log.begin(servers=[])
    log.close()
    assert json.loads((tmp_path / "log").read_bytes().splitlines()[-1])["event"] == "start"


def test_damage_in_the_middle_stops_unless_it_is_to_be_skipped(tmp_path):
    log = write(tmp_path / "log", start(), request(0, 0.0), b"\x00\x00\n", b'{"v":1,"eve\n', request(1, 1.0))
    with pytest.raises(TraceError, match=r"log: line 3: is no JSON .*--skip-bad"):
        read_decision_log(log)
    found = read_decision_log(log, skip_bad=True)
    assert found.requests == 2 and "2 lines are no JSON object and left out (3, 4)" in found.notes[0]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([b"TIMESTAMP,ContextTokens\n", b"1,2\n"], "line 1: is no JSON"),
        ([b'{"prompt": 3}\n'], "line 1: is no line of a decision log"),
        ([{"v": 2, "event": "start"}], "line 1: has version 2 of the decision log"),
        ([], "the log is empty"),
        ([start()], "there is no request"),
        ([start(), {**request(0, 0.0), "arrival_s": -1}], "line 2: arrival_s is -1, expected seconds"),
        ([start(), {**request(0, 0.0), "end_s": float("nan")}], "line 2: end_s is nan"),
        ([start(), {**request(0, 0.0), "output_tokens": 2.5}], "line 2: output_tokens is 2.5"),
        ([start(), {**request(0, 0.0), "outcome": "great"}], "line 2: outcome is 'great'"),
        (
            [start(), {**request(0, 0.0), "first_byte_s": 5.0}],
            "line 2: first_byte_s is 5.0, expected at most",
        ),
        ([start(), {**request(0, 0.0), "attempts": {}}], "line 2: attempts is {}"),
    ],
)
def test_what_is_no_log_is_refused_by_file_and_line(tmp_path, lines, says):
    with pytest.raises(TraceError) as caught:
        read_decision_log(write(tmp_path / "log", *lines))
    assert str(tmp_path / "log") in str(caught.value) and says in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TraceError, match="no/log: no such decision log"):
        read_decision_log(tmp_path / "no" / "log")


def test_the_wall_clock_may_jump(tmp_path):
    jumped = request(1, 1.0, unix_s=5000.0)
    found = read_decision_log(write(tmp_path / "log", start(), request(0, 0.0), jumped))
    assert found.notes == ["run 1: the wall clock moved by 3999 s; the router's own clock is used"]
    assert [r.arrival_s for r in found.runs[0].requests] == [0.0, 1.0]


def test_a_clock_that_goes_back_is_a_restart(tmp_path):
    found = read_decision_log(write(tmp_path / "log", start(), request(0, 500.0), request(1, 3.0)))
    assert [len(run.requests) for run in found.runs] == [1, 1] and found.runs[1].servers == SERVERS
    assert "line 3: the router's clock goes back by 497 s" in found.notes[0]


def test_a_log_begun_anew_can_be_read_alone(tmp_path):
    log = DecisionLog(LogConfig(path=str(tmp_path / "log"), max_bytes=4096))
    log.begin(servers=[{"name": name} for name in SERVERS])
    for i in range(12):
        log.write(request(i, float(i)))
    log.close()
    assert (tmp_path / "log.1").exists()
    both = (tmp_path / "log.1").read_bytes() + (tmp_path / "log").read_bytes()
    (tmp_path / "both").write_bytes(both)
    assert read_decision_log(tmp_path / "log").runs[0].servers == SERVERS
    assert len(read_decision_log(tmp_path / "both").runs) == 1, "the header again is no new run"


def test_a_header_longer_than_the_limit_does_not_turn_in_circles(tmp_path):
    log = DecisionLog(LogConfig(path=str(tmp_path / "log"), max_bytes=4096))
    log.begin(servers=[{"name": "x" * 50} for _ in range(200)])
    log.write(request(0, 0.0))
    log.close()
    assert read_decision_log(tmp_path / "log").requests == 1


def test_bytes_read_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("splitgym.trace.importers.json_lines.TOLD_LINES", 2)
    first = write(tmp_path / "one", start(), *(request(i, float(i)) for i in range(4)))
    second = write(tmp_path / "two", *(request(i, float(i)) for i in range(4, 7)))
    told = []
    read_decision_log([first, second], progress=told.append)
    assert told == sorted(told) and len(told) == 2 + 1 + 1 + 1
    assert told[2] == first.stat().st_size and told[-1] == told[2] + second.stat().st_size
