"""Measuring a live server: the steps of a measurement, and trouble on the way. Nothing measured is lost."""

import asyncio
import json
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from splitgym import profile as profiles
from splitgym.errors import ProfileError
from splitgym.measuring.client import Client
from splitgym.measuring.plan import Limits, Step, make_plan
from splitgym.measuring.store import Store
from splitgym.measuring.sweep import Sweep
from splitgym.router.engine import EngineOptions, running
from splitgym.router.engine.server import EngineServer
from tests.engine_help import in_thread
from tests.measured_engines import BATCHING, OPTIONS, in_virtual_time
from tests.ports import free_ports
from tests.test_cli import run
from tests.tiny import tiny_profile
from tests.virtual_time import virtual_time

# ---- the plan ---------------------------------------------------------------------------------------------


def test_a_plan_keeps_to_the_room_there_is() -> None:
    room: Any = {"max_model_len": 2048, "capacity_tokens": 4096, "transfer": True}
    plan = make_plan(Limits(max_batch=16), **room)
    for step in plan.steps:
        assert step.tokens < 2048 and step.batch <= 16
        assert step.batch * step.tokens <= 4096, step.name
    assert any("prompts over 2047 tokens" in line for line in plan.lines())
    assert {"prompt", "token", "mixed", "transfer"} == {step.kind for step in plan.steps}
    assert plan.all_requests == 3 * sum(map(plan.requests, plan.steps))
    assert not any(s.kind == "transfer" for s in make_plan(Limits(), **{**room, "transfer": False}).steps)
    assert {(s.output, s.batch) for s in plan.steps if s.output} == {(64, 1), (64, 8), (256, 1)}
    assert "128x1-out256" in "\n".join(plan.lines())
    long = make_plan(Limits(long_outputs=(64, 1024)), **room)
    assert "outputs of 1024 tokens" in long.left_out and {s.output for s in long.steps} == {0, 64}
    with pytest.raises(ProfileError, match="output_tokens is 64, expected less than any long output"):
        Limits(output_tokens=64)
    with pytest.raises(ProfileError, match=r"prompts of 20 tokens at most .*too short to measure"):
        make_plan(Limits(), **{**room, "max_model_len": 21})


def test_steps_ask_for_what_they_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Requests are counted before they are sent, so that the limit holds."""
    limits = Limits(requests=20, repeats=1, output_tokens=4, max_prompt=256, max_batch=2)
    options = replace(OPTIONS, port=free_ports(2))  # the same for both calls
    outcome = in_virtual_time(monkeypatch, limits, tmp_path / "m.jsonl", options)
    assert outcome.stopped == "20 requests were sent" and 16 < outcome.requests <= 20
    again = in_virtual_time(monkeypatch, replace(limits, requests=900), tmp_path / "m.jsonl", options)
    assert again.stopped == "" and again.store is not None
    names = [run["step"] for run in again.store.runs]
    assert names == [step.name for step in again.plan.steps], "each once: what was there was not run again"


def test_a_server_that_gives_up_loses_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limits = Limits(repeats=1, output_tokens=4, max_prompt=256, max_batch=2)
    # The same address again: what is kept names it.
    options = replace(OPTIONS, port=free_ports(OPTIONS.engines))
    left, answer = [12], EngineServer._answer

    async def tired(self: EngineServer, request: Any, body: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("out of memory")
        return await answer(self, request, body)

    with monkeypatch.context() as patch:
        patch.setattr(EngineServer, "_answer", tired)
        with pytest.raises(ProfileError, match="refused a request with 500: "):
            in_virtual_time(monkeypatch, limits, tmp_path / "m.jsonl", options)
    before = (tmp_path / "m.jsonl").read_text()
    assert before.count('"step"') >= 2
    again = in_virtual_time(monkeypatch, limits, tmp_path / "m.jsonl", options)
    assert again.stopped == "" and (tmp_path / "m.jsonl").read_text().startswith(before)


def test_prompts_that_come_too_late_are_sent_behind_a_longer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocker takes 2.6 ms and a request 8 ms to get there: what is timed then would be too long."""
    read = EngineServer._read

    async def later(self: EngineServer, request: Any) -> Any:
        await asyncio.sleep(0.008)
        return await read(self, request)

    monkeypatch.setattr(EngineServer, "_read", later)
    room: Any = {"max_model_len": 5000, "capacity_tokens": None, "transfer": False}
    sweeps = []

    async def whole() -> Any:
        options = EngineOptions(engines=1, port=0, mean_output_tokens=0, batching=BATCHING)
        profile = tiny_profile(prompt_ms=0.005)
        async with running(options, profile) as engines, aiohttp.ClientSession() as session:
            client = Client(session, engines.hosts[0].url)
            await client.about()
            sweeps.append(Sweep(client, make_plan(Limits(), **room)))
            await sweeps[0].warm_up()
            sweeps[0].blocker, sweeps[0].blocker_s = 512, 0.0106
            return await sweeps[0].run(Step("prompt", 512))

    modules = ("splitgym.router.engine.clock", "splitgym.measuring.client", "splitgym.measuring.run")
    with virtual_time(monkeypatch, *modules) as (loop, _), asyncio.Runner(loop_factory=loop) as runner:
        samples, facts = runner.run(whole())
    assert samples == [[512, 1, pytest.approx(512 * 5e-6, rel=0.01)]]
    assert facts["overhead_s"] == pytest.approx(0.008, rel=0.01)
    assert sweeps[0].blocker == 2048


def test_long_outputs_tell_what_context_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token by token the context grows: each window of an output is a sample of its own."""
    room: Any = {"max_model_len": 5000, "capacity_tokens": None, "transfer": False}
    profile = tiny_profile(context_us=5.0)

    async def whole() -> Any:
        options = EngineOptions(engines=1, port=0, mean_output_tokens=0, batching=BATCHING)
        async with running(options, profile) as engines, aiohttp.ClientSession() as session:
            client = Client(session, engines.hosts[0].url)
            await client.about()
            return await Sweep(client, make_plan(Limits(), **room)).run(Step("token", 128, 2, 256))

    modules = ("splitgym.router.engine.clock", "splitgym.measuring.client", "splitgym.measuring.run")
    with virtual_time(monkeypatch, *modules) as (loop, _), asyncio.Runner(loop_factory=loop) as runner:
        samples, _ = runner.run(whole())
    contexts = [context for _, context, _ in samples]
    assert len(samples) == 4 and contexts[0] < 2 * 180 and contexts[-1] > 2 * 330
    for batch, context, seconds in samples:
        assert batch == 2 and seconds == pytest.approx(0.010 + 5e-6 * context, rel=0.005)


def test_growing_context_is_not_noise(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "m.jsonl", {"url": "u"})
    step = Step("token", 128, 1, 256)
    noisy = Step("token", 128, 8, 256)
    for k, more in enumerate((0.0, 1e-4, 2e-4)):
        store.add(step, [[1, 160.0 + 64 * k, 0.01 * (1 + k) + more] for k in range(4)])
        store.add(noisy, [[1, 160.0, 0.01 * (1 + k)]])
    assert store.steady(step) and not store.steady(noisy)


def test_unsteady_steps_are_run_again(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "m.jsonl", {"url": "u"})
    step = Step("prompt", 512)
    for seconds in (1.0, 1.3, 0.8):
        store.add(step, [[512, 1, seconds]])
    assert not store.steady(step)
    for _ in range(4):
        store.add(step, [[512, 1, 1.0]])
    assert store.steady(step) and store.done(step) == 7


# ---- trouble ----------------------------------------------------------------------------------------------


def test_measurements_that_were_cut_off_are_mended(tmp_path: Path) -> None:
    path, step = tmp_path / "m.jsonl", Step("token", 128, 2)
    Store.open(path, {"url": "u"}).add(step, [[2, 260.0, 0.1]])
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[1][:20])
    store = Store.open(path, {"url": "u"})
    assert store.done(step) == 1 and "line 3, the last, was cut off" in store.notes[0]
    assert path.read_text() == whole
    path.write_text(whole + "{broken\n" + whole.splitlines()[1] + "\n")
    with pytest.raises(ProfileError, match=r"m\.jsonl: line 3: is no line of measurements; .*--fresh"):
        Store.open(path, {"url": "u"})
    path.write_text(whole)
    with pytest.raises(ProfileError, match=r"holds measurements with url 'u', now it is 'v': name another"):
        Store.open(path, {"url": "v"})
    assert path.read_text() == whole
    assert Store.open(path, {"url": "v"}, fresh=True).runs == []


SMALL = ["--repeats", "1", "--output-tokens", "4", "--max-prompt", "256", "--max-batch", "2"]


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """In real time, without a connector: plan, run, resume, refuse. Exactness is another test's matter."""
    out = tmp_path / "p.json"
    profile = tiny_profile(prompt_ms=0.5, context_us=5.0)
    with in_thread(tiny=profile, time_scale=2.0, engines=2, roles=("none",)) as (_, urls):
        words = ["profile", "measure", "--url", urls[0], "--out", str(out), *SMALL]
        assert run(monkeypatch, *words) == 2
        assert "calls its model 'tiny', whose dimensions are not known" in capsys.readouterr().err
        config = tmp_path / "config.json"
        config.write_text(
            json.dumps(
                {
                    "hidden_size": 64,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "vocab_size": 256,
                    "intermediate_size": 128,
                }
            )
        )
        words += ["--config", str(config), "--model", "mine"]
        assert list(tmp_path.iterdir()) == [config], "nothing is measured for a model that nobody knows"
        assert run(monkeypatch, *words, "--dry-run") == 0
        assert "prompt time" in capsys.readouterr().out and not list(tmp_path.glob("p.*"))
        assert run(monkeypatch, *words, "--dry-run", "--json") == 0
        assert json.loads(capsys.readouterr().out)["requests"] < 40
        assert run(monkeypatch, *words, "--max-requests", "12") == 2
        assert "12 requests were sent: " in capsys.readouterr().err and not out.exists()
        assert run(monkeypatch, *words, "--name", "box") == 0
        found = capsys.readouterr().out
        assert "held out" in found and f"--model mine --cluster {out}/tp1:1P1T" in found
        made = profiles.load_file(out)
        assert made.machine.name == "box" and made.model.name == "mine" and made.kv_capacity_tokens > 90_000
        assert run(monkeypatch, *words) == 2 and "--force" in capsys.readouterr().err
        assert run(monkeypatch, *words, "--force", "--json") == 0
        assert json.loads(capsys.readouterr().out)["requests"] < 10, "all runs were there already"
        pair = ["--prompt-url", urls[0], "--token-url", urls[1], "--force", "--fresh"]
        assert run(monkeypatch, *words, *pair) == 2
        assert "returned no kv_transfer_params" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--url", "http://127.0.0.1:9"], "cannot be asked"),
        (["--url", "127.0.0.1:9"], "write http://HOST:PORT"),
        (
            ["--url", "http://127.0.0.1:9", "--prompt-url", "http://127.0.0.1:9"],
            "give --prompt-url and --token-url",
        ),
        (["--url", "http://127.0.0.1:9", "--machine", "h900"], "machine 'h900': choose one of"),
        (["--url", "http://127.0.0.1:9", "--power", "1,2"], "expected three numbers"),
        (["--url", "http://127.0.0.1:9", "--repeats", "0"], "repeats is 0"),
        (
            ["--url", "http://127.0.0.1:9", "--output-tokens", "16,x"],
            "--output-tokens '16,x': expected numbers",
        ),
        (["--url", "http://127.0.0.1:9", "--output-tokens", "8.5"], "expected whole numbers"),
        (["--url", "http://127.0.0.1:9", "--output-tokens", "2,8"], "output_tokens is 2"),
    ],
)
def test_bad_input(
    words: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert run(monkeypatch, "profile", "measure", *words, "--out", str(tmp_path / "p.json")) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1 and says in found.err
    assert not list(tmp_path.iterdir())


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        return bytes(answer.read())


def test_a_busy_server_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("splitgym.measuring.run._IDLE_S", 0.3)
    body = json.dumps({"model": "tiny", "prompt": [1] * 50, "max_tokens": 5000, "ignore_eos": True}).encode()
    with in_thread(time_scale=20.0, engines=1) as (_, urls):
        request = urllib.request.Request(
            urls[0] + "/v1/completions", body, {"Content-Type": "application/json"}
        )
        other = threading.Thread(target=lambda: urllib.request.urlopen(request).read())
        other.start()
        while b'num_requests_running{engine="0",model_name="tiny"} 1.0' not in _get(urls[0] + "/metrics"):
            time.sleep(0.01)
        words = ["profile", "measure", "--url", urls[0], "--out", str(tmp_path / "p.json"), *SMALL]
        words += ["--model", "llama2-70b"]
        assert run(monkeypatch, *words) == 2
        assert "works at 1 requests of others" in capsys.readouterr().err
        other.join()


def test_without_aiohttp_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("splitgym.measuring")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert run(monkeypatch, "profile", "measure", "--url", "http://127.0.0.1:9") == 2
    assert "needs aiohttp: pip install 'splitgym[router]'" in capsys.readouterr().err
