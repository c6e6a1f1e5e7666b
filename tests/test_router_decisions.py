"""Guardrails: whatever a policy does, the request gets servers, and it is known why."""

import json
import tempfile
import time
from pathlib import Path

import pytest

from splitgym import policy, schedulers
from splitgym.config import from_mapping
from splitgym.errors import ConfigError, PolicyError
from splitgym.router.config import (
    KeysConfig,
    LogConfig,
    PolicyConfig,
    RouterConfig,
    TokensConfig,
    load_config,
)
from splitgym.router.decisions import Deciders, Decisions
from splitgym.router.estimate import PromptLength
from splitgym.router.health import parse_metrics
from splitgym.router.records import DecisionLog, Window
from splitgym.router.state import RouterState
from tests.bundles import scorer_bundle
from tests.fake_vllm import METRICS, cluster, in_loop
from tests.tiny import tiny_cluster

SERVERS = [{"name": "a", "url": "http://127.0.0.1:1"}]


class Bad:
    """A policy that misbehaves in one way."""

    name = "bad"

    def __init__(self, how):
        self.how, self.asked = how, 0

    def reset(self, view, seed):
        pass

    def route(self, view, request):
        self.asked += 1
        if self.how == "error":
            raise RuntimeError("oops")
        if self.how == "not_finite":
            raise PolicyError("the policy's scores are not finite")
        if self.how == "deadline":
            time.sleep(0.02)
        return {"not_allowed": (1, 0), "outside": (-1, 7)}.get(self.how, (0, 1))

    def resize(self, view):
        if self.how == "error":
            raise RuntimeError("oops")
        return {"outside": 99, "not_finite": float("nan")}.get(self.how, 1)


def decisions(how="fine", pools="PT", **options):
    now = [0]
    state = RouterState(tiny_cluster(pools), lambda: now[0], confine=True)
    bad = Bad(how)
    config = PolicyConfig(**{"deadline_ms": 10.0, **options})
    return Decisions(config, Deciders(bad, bad, "bad", "", True), state), now, bad


@pytest.mark.parametrize("how", ["error", "not_finite", "deadline", "not_allowed", "outside"])
def test_the_heuristic_stands_in(how):
    found, now, bad = decisions(how, suspend_after=3, suspend_s=2.0)
    reason = {"outside": "not_allowed"}.get(how, how)
    for _ in range(3):
        choice = found.route(100, None, 0)
        assert choice.pair == (0, 1) and choice.by == "heuristic" and choice.reason == reason
    choice = found.route(100, None, 0)
    assert choice.reason == "suspended" and bad.asked == 3, "a policy that keeps failing is left out"
    now[0] = 3_000_000_000
    assert found.route(100, None, 0).reason == reason and bad.asked == 4
    assert found.fallbacks == {reason: 4, "suspended": 1} and found.decided == {"heuristic": 5}


def test_a_good_policy_decides_and_shadow_only_watches():
    found, _, _ = decisions()
    assert found.route(10, 5, 0)[1:4] == ((0, 1), "policy", "")
    found, _, _ = decisions("fine", "PTT", shadow=True)
    found.heuristic = type("H", (), {"route": lambda self, v, r: (0, 2)})()
    choice = found.route(10, 5, 0)
    assert choice.pair == (0, 2) and choice.reason == "shadow" and found.resize() == 0
    assert choice.wanted == (0, 1) and found.agreed == {False: 1}
    found, _, _ = decisions("error", shadow=True)
    assert found.route(10, None, 0).reason == "error"


def test_even_a_failing_heuristic_costs_no_request():
    found, _, _ = decisions("error")
    found.heuristic = Bad("error")
    assert found.route(10, None, 0).pair == (0, 1)


def test_servers_that_failed_a_request_are_left_out_while_there_are_others():
    found, _, _ = decisions("fine", "PPTT")
    found.deciders = Deciders(schedulers.routing("splitwise"), schedulers.sizing("static"), "s", "", True)
    assert found.route(10, None, 1, avoid={0, 2}).pair == (1, 3)
    assert found.route(10, None, 1, avoid={0, 1, 2, 3}).pair == (1, 3), (
        "the last ones are still better than none"
    )
    view = found.state.view
    assert view.prompt_allowed.tolist() == [1, 1, 0, 0], "for this request only"
    for m in range(4):
        found.state.set_up(m, False)
    assert found.route(10, None, 0) is None


def test_a_learned_sizer_resizes_beside_any_router_and_confines_phases(tmp_path):
    from splitgym.schedulers import sizing_net

    weights = sizing_net.rule_weights(0, cool_down_s=6.0)
    weights[-2] = 3.0  # towards the prompts, whatever comes
    learned = schedulers.SizingNet(weights=tuple(weights.tolist()))
    policy.export_schedulers(None, learned, tmp_path / "b", name="sizer", confine=True)
    loaded = Deciders.load("index", str(tmp_path / "b"), None)
    assert loaded.name == "index+sizer" and loaded.confine
    assert not Deciders.load("index", str(tmp_path / "b"), False).confine
    assert not Deciders.load("index", "ewma", None).confine
    now = [0]
    found = Decisions(PolicyConfig(), loaded, RouterState(tiny_cluster("PTT"), lambda: now[0], confine=True))
    moved = []
    for second in (10, 12, 17):
        now[0] = second * 10**9
        moved.append(found.resize())
    assert moved == [1, 0, 1] and not found.sizing_fallbacks


def test_sizing_fails_safely():
    assert decisions("fine")[0].resize() == 1
    for how, reason in (("error", "error"), ("outside", "not_allowed"), ("not_finite", "error")):
        found, _, _ = decisions(how)
        assert found.resize() == 0 and found.sizing_fallbacks == {reason: 1}


def test_policies_are_found_by_name_or_folder(tmp_path):
    folder = scorer_bundle(tmp_path / "b")
    found = Deciders.load(str(folder), "reactive", None)
    assert found.name == "small+reactive" and len(found.sha256) == 64 and found.confine is False
    assert Deciders.load("index", None, True).confine is True
    for text, says in (
        ("nonsense", "is no scheduler"),
        (str(tmp_path), "no policy bundle"),
        ("pretrained:x", "x"),
    ):
        with pytest.raises((ConfigError, PolicyError), match=says):
            Deciders.load(text, None, None)
    with pytest.raises(ConfigError, match="does not resize"):
        Deciders.load("index", str(folder), None)


def test_a_policy_that_knows_fewer_machines_is_not_taken(tmp_path):
    pytest.importorskip("torch")
    from agents.export import export_run
    from tests.bundles import make_run

    make_run(tmp_path / "run", "routing", "dqn", environment={"flat": True})
    export_run(tmp_path / "run", tmp_path / "b")
    found, _, bad = decisions("fine", "PPPTT")
    with pytest.raises(ConfigError, match="max_machines is 4"):
        found.swap(Deciders.load(str(tmp_path / "b"), None, None))
    assert found.deciders.routing is bad, "the old one stays"


@in_loop
async def test_a_bundle_decides_in_the_router_and_is_logged():
    with tempfile.TemporaryDirectory() as name:
        folder, path = scorer_bundle(Path(name) / "b"), Path(name) / "log.jsonl"
        over = {"policy": {"routing": str(folder)}, "log": {"path": str(path)}}
        async with cluster("PPTT", **over) as (client, *servers):
            for _ in range(5):
                assert (await client.stream(stream_options={"include_usage": True}))[0] == 200
            servers[0].status = servers[1].status = 500
            await client.complete()
            state = await client.state()
            assert state["policy"]["bundle"] == policy.load(folder).sha256
            assert state["decided"]["policy"] >= 6 and not state["fallbacks"]
            assert state["decisions"][0]["by"] == "policy"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert path.stat().st_mode & 0o077 == 0
    assert [line["event"] for line in lines] == ["start", *["request"] * 6, "stop"]
    assert lines[0]["bundle"] == state["policy"]["bundle"] and len(lines[0]["servers"]) == 4
    one = lines[1]
    assert one["v"] == 1 and one["outcome"] == "ok" and one["status"] == 200 and one["stream"] is True
    assert one["prompt_tokens"] == 7 and one["output_tokens"] == 5 and one["max_tokens"] == 5
    assert isinstance(one["good"], bool) and 0 < one["first_byte_s"] <= one["end_s"]
    assert [line["arrival_s"] for line in lines[1:7]] == sorted(line["arrival_s"] for line in lines[1:7])
    (attempt,) = one["attempts"]
    assert attempt["by"] == "policy" and attempt["prompt_server"] in "abcd" and attempt["decide_us"] > 0
    assert "hello" not in path.name + json.dumps(lines), "no prompt is logged"


def test_the_log_is_renamed_when_it_is_long(tmp_path):
    log = DecisionLog(LogConfig(path=str(tmp_path / "log"), max_bytes=4096))
    for i in range(100):
        log.event("x", number=i, text="y" * 50)
    log.close()
    rows = [
        json.loads(line) for name in ("log.1", "log") for line in (tmp_path / name).read_text().splitlines()
    ]
    assert rows[-1]["number"] == 99 and len(rows) > 30
    assert (tmp_path / "log").stat().st_size < 4096
    with pytest.raises(ConfigError, match="cannot be written"):
        DecisionLog(LogConfig(path=str(tmp_path / "no" / "log")))


def test_attainment_is_of_the_last_minutes():
    window = Window(10.0)
    for i in range(20):
        window.add(float(i), i % 2 == 0, 0.1 * i)
    found = window.summary(19.5)
    assert found["requests"] == 10 and found["good"] == 0.5
    assert found["ttft_p50_s"] == pytest.approx(1.5) and found["ttft_p99_s"] == pytest.approx(1.9)
    series = window.series(19.5, 10)
    assert sum(judged for judged, _ in series) == 10 and series[-1] == (1, 0)
    assert Window().summary(0.0)["good"] is None


def test_prompts_are_measured_better_the_more_answers_come():
    config = from_mapping(RouterConfig, {"servers": SERVERS}, "x").tokens
    lengths = PromptLength(config)
    assert lengths.measure({"prompt": "x" * 400}) == (100, 400)
    assert lengths.measure({"prompt": [1, 2, 3]}) == (3, 0)
    assert lengths.measure({"messages": [{"content": "x" * 40}, {"content": [{"text": "y" * 40}]}]}) == (
        28,
        80,
    )
    for _ in range(300):
        lengths.learn(800, 100)
    assert lengths.characters_per_token == pytest.approx(8.0, rel=0.05)
    lengths.learn(0, 10)
    lengths.learn(10**9, 1)
    assert lengths.characters_per_token == 20.0, "one odd answer moves it only so far"


def test_prompts_are_measured_by_a_tokenizer_where_there_is_one(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: i for i, word in enumerate(["one", "two", "three", "?"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    config = TokensConfig(tokenizer=str(tmp_path / "tokenizer.json"), chat_tokens_per_message=3)
    lengths = PromptLength(config)
    assert lengths.measure({"prompt": "one two three four"}) == (4, 0)
    assert lengths.measure({"messages": [{"content": "one two"}, {"content": "three"}]}) == (9, 0)
    assert lengths.measure({"prompt": [5, 6, 7]}) == (3, 0)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read"):
        PromptLength(config)


def test_metrics_of_a_server():
    found = parse_metrics(METRICS.encode())
    assert found == {"running": 4.0, "waiting": 2.0, "kv_usage": 0.25, "kv_tokens": 16000.0}
    old = b'vllm:gpu_cache_usage_perc{a="b"} 5e-1\nvllm:num_requests_running NaN\nrubbish\n\xff'
    assert parse_metrics(old) == {"kv_usage": 0.5}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"servers": []}, "servers is empty"),
        ({"surprise": 1}, "surprise: is no known key"),
        ({"servers": SERVERS * 2}, "two servers have the name a"),
        ({"servers": [{"name": "a", "url": "http://8.8.8.8:1"}]}, "allowed_networks"),
        ({"servers": [{"name": "a", "url": "ftp://x"}]}, "expected http"),
        ({"servers": [{"name": "a", "url": "http://u:p@x:1"}]}, "scheme, host and port alone"),
        ({"servers": [{"name": "a b", "url": "http://127.0.0.1:1"}]}, "name"),
        ({"admin": {"host": "0.0.0.0"}}, "set admin.keys"),
        ({"listen": {"certificate": "x"}}, "certificate and private_key"),
        ({"listen": {"port": 99999}}, "listen.port"),
        ({"pools": {"driver": "vllm-router"}}, "needs driver_url"),
        ({"admin": {"allowed_networks": ["nowhere"]}}, "nowhere"),
    ],
)
def test_a_bad_configuration_is_one_sentence(change, says):
    with pytest.raises(ConfigError, match=says) as error:
        from_mapping(RouterConfig, {"servers": SERVERS, **change}, "router.yaml")
    assert "\n" not in str(error.value) and "router.yaml" in str(error.value)


def test_more_bad_configurations(tmp_path):
    (tmp_path / "x.yaml").write_text("servers: [a: b: c")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load_config(tmp_path / "x.yaml")
    prompts = from_mapping(RouterConfig, {"servers": [{**SERVERS[0], "pool": "prompt"}]}, "x")
    with pytest.raises(ConfigError, match="all servers are in the prompt pool"):
        prompts.cluster()
    for keys in (KeysConfig(env="SPLITGYM_NOT_SET"), KeysConfig(file=str(tmp_path / "no"))):
        with pytest.raises(ConfigError):
            keys.read()
    (tmp_path / "keys").write_text("one\n\n two \n")
    assert KeysConfig(file=str(tmp_path / "keys")).read() == ("one", "two")
