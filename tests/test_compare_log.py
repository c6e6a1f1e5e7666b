"""Sim to real: a log that the simulator itself made has no error, and each way of being off is seen."""

import json
from dataclasses import replace

import numpy as np
import pytest
from logs import CONFIG, SERVERS, request, start, write
from tiny import Fixed, Moves
from typer.testing import CliRunner

from splitgym.cli import app
from splitgym.cluster import Cluster
from splitgym.config import MachineGroup
from splitgym.errors import ConfigError, TraceError
from splitgym.evaluation import contender, replay
from splitgym.evaluation.compare_log import compare_log
from splitgym.evaluation.logged import cluster_of
from splitgym.evaluation.replay import decide
from splitgym.profile import load
from splitgym.resources import shipped
from splitgym.sim.simpy_engine import simpy_engine
from splitgym.trace import Trace
from splitgym.trace.decision_log import read_decision_log
from splitgym.types import NS_PER_S, Pool


def simulated_log(path, pairs, seed=0, count=60, gap_s=0.08):
    """A log with the times of the specification engine; every split request has one token more there."""
    random = np.random.default_rng(seed)
    arrival = np.round(np.cumsum(random.exponential(gap_s, count)), 6)
    prompt, output = random.integers(50, 1500, count), random.integers(1, 40, count)
    split = np.array([pairs[i % len(pairs)][0] != pairs[i % len(pairs)][1] for i in range(count)])
    engine = simpy_engine(
        Cluster.resolve(CONFIG), Fixed(*(pairs[i % len(pairs)] for i in range(count))), Moves()
    )
    engine.reset(Trace(arrival, prompt, output + split))
    engine.run_until_decision()
    times = engine.outcomes()
    since = (
        np.stack([times.first_token_ns, times.prompt_end_ns, times.finish_ns]) - times.arrival_ns
    ) / NS_PER_S
    lines = []
    for i in range(count):
        first, prompt_end, end = (round(float(x), 6) for x in since[:, i])
        p, t = pairs[i % len(pairs)]
        fields = {"prompt_s": prompt_end, "first_byte_s": None} if split[i] else {"first_byte_s": first}
        tokens = {"prompt_tokens": int(prompt[i]), "output_tokens": int(output[i])}
        pair = SERVERS[p], SERVERS[t]
        lines.append(request(i, float(arrival[i]), pair, decided_s=0.0, end_s=end, **fields, **tokens))
    return write(path, start(CONFIG), *sorted(lines, key=lambda line: line["arrival_s"] + line["end_s"]))


def slower(path, factor):
    """The shipped profile with all times longer."""
    data = json.loads((shipped("profiles") / "llama2-70b_h100-80gb_tp8.json").read_text())
    for curve in ("prompt", "token"):
        data[curve]["seconds"] = [s * factor for s in data[curve]["seconds"]]
    slopes = data["token"]["seconds_per_context_token"]
    longer = [s * factor for s in slopes] if isinstance(slopes, list) else slopes * factor
    data["token"]["seconds_per_context_token"] = longer
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("pairs", [[(0, 0), (1, 1)], [(0, 2), (1, 3), (1, 2)]], ids=["whole", "split"])
def test_a_log_of_the_simulator_has_no_error(tmp_path, pairs):
    found = compare_log(read_decision_log(simulated_log(tmp_path / "log", pairs)))
    kinds = ("ttft", "tbt", "e2e") if pairs[0] == (0, 0) else ("e2e", "prompt")
    for kind in kinds:
        measure = found.measures[kind]
        assert len(measure.real_s) == 60 if kind != "tbt" else len(measure.real_s) > 50
        assert np.abs(measure.simulated_s - measure.real_s).max() < 3e-6, kind
    assert found.counts["measured"] == 60 and found.counts["split"] == (0 if kinds[0] == "ttft" else 60)
    if kinds[0] == "ttft":
        assert found.as_dict()["within_bar"] and found.goodput[0] == found.goodput[1]


def test_another_profile_is_seen_in_the_error(tmp_path):
    log = read_decision_log(simulated_log(tmp_path / "log", [(0, 0), (1, 1)], gap_s=6.0))
    found = compare_log(log, profile=[f"h100-80gb={slower(tmp_path / 'slow.json', 1.25)}"])
    for kind in ("ttft", "tbt", "e2e"):
        assert found.measures[kind].error(50) == pytest.approx(0.25, abs=0.03)
    row = found.as_dict()
    assert not row["within_bar"] and "splitgym profile measure" in row["verdict"]
    assert row["measures"]["tbt"]["per_request_error"]["median_absolute"] == pytest.approx(0.25, abs=0.03)
    with pytest.raises(ConfigError, match="the cluster has no a100, only h100-80gb"):
        compare_log(log, profile=["a100=llama2-70b/a100-80gb"])


def test_the_client_sees_the_first_token_after_the_transfer(tmp_path):
    """A lone split request: prompt, transfer, and an iteration that makes the first token again."""
    line = request(0, 0.0, decided_s=0.5, prompt_tokens=1000, output_tokens=2)
    log = read_decision_log(write(tmp_path / "log", start(CONFIG), line))
    measure = compare_log(log).measures["ttft"]
    profile, cluster = load("llama2-70b", "h100-80gb"), Cluster.resolve(CONFIG)
    link = int(cluster.link_bytes_per_s[0])
    wanted = 0.5 + profile.prompt_time(1000) + profile.token_time(1, 1001)
    wanted += 1001 * profile.kv_bytes_per_token / link
    assert measure.simulated_s[0] == pytest.approx(wanted, rel=0.02)
    assert measure.simulated_s[0] > 0.5 + profile.prompt_time(1000) + profile.token_time(1, 1001)


def test_what_servers_worked_for_in_vain_is_load_and_no_more(tmp_path):
    alone = request(0, 0.0, ("p0", "p0"), prompt_tokens=1000)
    others = {
        "disconnected": {"outcome": "disconnected", "output_tokens": 5},
        "server_error": {"outcome": "server_error", "output_tokens": 0},
        "client_error": {"outcome": "client_error", "output_tokens": 0},
    }
    took = {}
    for name, fields in {"nothing": None, **others}.items():
        lines = (
            []
            if fields is None
            else [request(1, 0.0, ("p0", "p0"), decided_s=0.0, prompt_tokens=1000, **fields)]
        )
        found = compare_log(read_decision_log(write(tmp_path / name, start(CONFIG), alone, *lines)))
        assert found.counts["measured"] == 1
        took[name] = float(found.measures["ttft"].simulated_s[0])
    assert took["disconnected"] > 1.5 * took["nothing"]
    assert took["server_error"] == took["client_error"] == took["nothing"]


def test_requests_that_were_not_streamed_have_an_end_to_end_time(tmp_path):
    log = write(tmp_path / "log", start(CONFIG), request(0, 0.0, stream=False, first_byte_s=None))
    found = compare_log(read_decision_log(log))
    assert found.as_dict()["measures"]["ttft"] == {"requests": 0} and len(found.measures["e2e"].real_s) == 1
    assert "cannot be compared" in found.verdict and "only their E2E" in found.notes[0]


def test_the_newest_requests_alone(tmp_path):
    log = read_decision_log(simulated_log(tmp_path / "log", [(0, 0), (1, 1)]))
    found = compare_log(log, last=10)
    assert found.counts["measured"] == 10
    # What was under way when they came is there too, but not what had long ended: idle machines at first.
    assert np.median(np.abs(found.measures["e2e"].simulated_s / found.measures["e2e"].real_s - 1)) < 0.02


def role(at_s, server, to, **fields):
    """A role change's line."""
    line = {"v": 1, "event": "role", "unix_s": 1000.0 + at_s, "server": server, "from": "token", "to": to}
    return line | {"why": "policy", "outcome": "done", "took_s": 0.1} | fields


def test_a_policy_finds_servers_in_the_roles_of_the_log(tmp_path, monkeypatch):
    """Confined to its pools, it uses t0 for prompts from its change on, and not before."""
    rows = [request(i, 0.1 * i, prompt_tokens=3000, output_tokens=4) for i in range(80)]
    begun = {**start(CONFIG), "confine": True}
    changes = [role(4.0, "t0", "prompt"), role(1.0, "t1", "prompt", outcome="not drained")]
    traffic = read_decision_log(write(tmp_path / "log", begun, *rows[:40], *changes, *rows[40:]))
    run = traffic.runs[0]
    assert [(c.at_s, c.server, c.pool) for c in run.roles] == [(4.0, "t0", Pool.PROMPT)]
    cluster, servers = cluster_of(run)

    def decided(run, policy="index"):
        return np.array(decide(run, cluster, contender(policy, cluster=cluster.config), True, servers))

    pairs, t0 = decided(run), servers.index("t0")
    prompts = pairs[:, 0] == t0
    assert not prompts[:40].any() and prompts[41:].any()
    still = replace(run, roles=[])
    before = decided(still)
    assert (before[:40] == pairs[:40]).all() and (before[41:, 0] != t0).all(), "one rulebook, two engines"
    found = compare_log(traffic, policy=lambda config: contender("index", cluster=config))
    assert "1 role changes in the log were replayed" in found.notes
    # How far it is, is told while it decides and while all is simulated, and only grows.
    monkeypatch.setattr(replay, "_PROGRESS_EVERY", 20)
    told: list[int] = []
    compare_log(traffic, policy=lambda config: contender("index", cluster=config), progress=told.append)
    assert told == [20, 40, 60, 80, 80, 100, 120, 140]
    seen: list[int] = []
    again = decide(
        run, cluster, contender("index", cluster=cluster.config), True, servers, progress=seen.append
    )
    assert seen == [20, 40, 60, 80] and (np.array(again) == pairs).all()
    # One that resizes goes its own way; logged decisions hold what the roles were.
    found = compare_log(traffic, policy=lambda config: contender("index+reactive", cluster=config))
    assert "1 role changes in the log went their own way" in found.notes
    assert not any("role" in note for note in compare_log(traffic).notes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            lambda: role(1.0, "t0", "prefill"),
            r"line 3: to is 'prefill', expected one of prompt, token, mixed",
        ),
        (lambda: role(1.0, None, "prompt"), r"line 3: server is None, expected a server's name"),
        (lambda: role(1.0, "t0", "prompt", unix_s=True), r"line 3: unix_s is True"),
        (lambda: role(1.0, "t9", "prompt"), r"line 3: server 't9' is none of p0, p1, t0, t1"),
    ],
)
def test_a_role_change_that_makes_no_sense_is_an_error_with_its_line(tmp_path, line, message):
    log = write(tmp_path / "log", start(CONFIG), request(0, 0.0), line())
    with pytest.raises(TraceError, match=message):
        compare_log(read_decision_log(log), policy=lambda config: contender("index", cluster=config))


def test_a_policy_decides_in_the_simulator(tmp_path):
    log = read_decision_log(simulated_log(tmp_path / "log", [(0, 0)], gap_s=0.05))
    there = compare_log(log)
    found = compare_log(log, policy=lambda config: contender("index", cluster=config))
    assert found.decisions == "index" and there.decisions == "logged"
    # All on one machine in the log; the index spreads them.
    assert found.measures["ttft"].error(90) < -0.2 and there.measures["ttft"].error(90) == pytest.approx(
        0, abs=1e-4
    )


def test_what_cannot_be_replayed_is_named(tmp_path):
    good = request(0, 0.0)
    for lines, error, says in (
        ([start(), good], ConfigError, "does not say what its servers are"),
        ([start(CONFIG), request(0, 0.0, ("p0", "x"))], TraceError, "log: line 2: server 'x' is none of p0"),
        (
            [start(CONFIG), request(0, 0.0, output_tokens=9**9)],
            TraceError,
            "log: line 2: .* never fit server",
        ),
        ([start(CONFIG), request(0, 0.0, outcome="refused")], TraceError, "log: no request was answered"),
    ):
        with pytest.raises(error, match=says):
            compare_log(read_decision_log(write(tmp_path / "log", *lines)))
    log = read_decision_log(write(tmp_path / "log", start(), good))
    with pytest.raises(ConfigError, match="the cluster has 1 machines, the log has 4 servers"):
        compare_log(log, cluster=replace(CONFIG, machines=(MachineGroup(),)))
    assert compare_log(log, cluster=CONFIG).counts["measured"] == 1


def test_the_command(tmp_path):
    log = simulated_log(tmp_path / "log", [(0, 0), (1, 1)], count=20)
    words = ["compare-log", str(log), "--plot", str(tmp_path / "cdf.png")]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0 and "within 10%" in shown.stdout and "TTFT" in shown.stdout
    assert (tmp_path / "cdf.png").stat().st_size > 5000
    again = CliRunner().invoke(app, words)
    assert isinstance(again.exception, ConfigError) and "is there already" in str(again.exception)
    row = json.loads(CliRunner().invoke(app, [*words, "--force", "--json", "--check"]).stdout)
    assert row["within_bar"] and row["measures"]["ttft"]["requests"] == 20
