"""The simulated vLLM server: what it answers, when, and what goes wrong when it is told to."""

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import engine_probes
import numpy as np
import openai
import pytest
from engine_help import PARAMS, REMOTE_DECODE, Client, engines, in_thread, is_idle, play, text_of, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import MS, Fixed, Moves, tiny_cluster, tiny_profile

from splitgym.errors import ConfigError
from splitgym.router.engine import EngineOptions
from splitgym.router.engine.bodies import Refusal
from splitgym.router.engine.protocol import chat_body, completion_body, parse_json
from splitgym.router.engine.text import Answer, key_of, natural_length, tokenize
from splitgym.sim.live import Kind
from splitgym.sim.simpy_engine import simpy_engine
from splitgym.trace import Trace

RECORDED = engine_probes.recorded()
WORDS = "the quick brown fox jumps over the lazy dog"


# ---- vLLM's answers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers():
    with in_thread(served_model_name="tiny", max_model_len=2048) as (_, urls):
        return engine_probes.record(urls[0])


@pytest.mark.parametrize("name", [probe.name for probe in engine_probes.PROBES])
def test_answers_have_the_shape_of_vllms(answers, name):
    assert answers["shapes"][name] == RECORDED["shapes"][name]


def test_refusals_say_what_vllm_says(answers):
    def without_numbers(messages):
        return {name: re.sub(r"\d+", "#", text) for name, text in messages.items()}

    assert without_numbers(answers["messages"]) == without_numbers(RECORDED["messages"])


def test_tools_are_refused_as_by_a_server_without_a_tool_parser():
    tool = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(Refusal, match='"auto" tool choice requires --enable-auto-tool-choice'):
        chat_body({"messages": [{"role": "user", "content": "a"}], "tools": [tool]})


def test_metrics_have_vllms_names_and_labels(answers):
    ours = {name: labels for name, labels in answers["metrics"].items() if "cache_config" not in name}
    assert ours == {name: RECORDED["metrics"].get(name) for name in ours}
    wanted = {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens_total"}
    wanted |= {"generation_tokens_total", "prompt_tokens_by_source_total", "request_success_total"}
    wanted |= {"time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket"}
    assert {f"vllm:{name}" for name in wanted} <= ours.keys()


# ---- the official client ----------------------------------------------------------------------------------


def test_the_openai_client_works():
    async def scenario():
        async with engines(api_key="secret") as (there, (client,)):
            async with openai.AsyncOpenAI(base_url=client.url + "/v1", api_key="secret") as api:
                (model,) = (await api.models.list()).data
                done = await api.completions.create(model=model.id, prompt=WORDS, max_tokens=5, logprobs=2)
                assert done.usage.completion_tokens == 5 and done.usage.prompt_tokens == 11
                assert "".join(done.choices[0].logprobs.tokens) == done.choices[0].text
                messages = [{"role": "user", "content": WORDS}]
                chat = await api.chat.completions.create(
                    model=model.id, messages=messages, n=2, max_completion_tokens=4, seed=1
                )
                texts = [choice.message.content for choice in chat.choices]
                assert len(set(texts)) == 2 and chat.usage.completion_tokens == 8
                stream = await api.chat.completions.create(
                    model=model.id,
                    messages=messages,
                    max_tokens=4,
                    seed=1,
                    stream=True,
                    stream_options={"include_usage": True},
                )
                chunks = [chunk async for chunk in stream]
                assert "".join(c.choices[0].delta.content for c in chunks[:-1]) == texts[0]
                assert chunks[-1].usage.completion_tokens == 4
                with pytest.raises(openai.NotFoundError):
                    await api.completions.create(model="other", prompt="a")
            async with openai.AsyncOpenAI(base_url=client.url + "/v1", api_key="wrong") as api:
                with pytest.raises(openai.AuthenticationError):
                    await api.models.list()
            assert is_idle(there)

    play(scenario)


# ---- text -------------------------------------------------------------------------------------------------


def test_text_depends_on_the_prompt_the_seed_and_the_choice_alone():
    async def scenario():
        async with engines(engines=2) as (_, (one, other)):
            body = {"prompt": WORDS, "max_tokens": 9}
            first = (await one.post(**body))["choices"][0]["text"]
            assert (await other.post(**body))["choices"][0]["text"] == first
            assert text_of(await other.stream(**body)) == first
            assert (await one.post(**body, seed=3))["choices"][0]["text"] != first
            assert (await one.post(**body, seed=3, temperature=0))["choices"][0]["text"] == first
            both = (await one.post(**body, n=2, seed=3))["choices"]
            assert both[0]["text"] != both[1]["text"]
            assert (await one.post(prompt=WORDS + ".", max_tokens=9))["choices"][0]["text"] != first

    play(scenario)


def test_a_token_is_four_characters():
    assert [len(tokenize("x" * n)) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
    assert tokenize("abcdxyz1")[0] == tokenize("abcd")[0] != tokenize("abce")[0]
    assert len(tokenize("\ud800 and \U0001f600")) == 2


def test_answers_end_by_themselves_at_the_mean_length():
    lengths = [natural_length(key_of(tokenize(str(i)), None, 0), 150) for i in range(4000)]
    assert min(lengths) == 1 and np.mean(lengths) == pytest.approx(150, rel=0.05)
    ended = Answer(key=7, max_tokens=50, natural=5)
    assert (ended.length, ended.finish_reason, ended.piece(4)) == (5, "stop", "")
    assert len(ended.until(5)) == 16
    assert Answer(key=7, max_tokens=50, natural=5, min_tokens=9).length == 10
    assert Answer(key=7, max_tokens=5, natural=50).finish_reason == "length"


@given(
    st.integers(0, 1 << 60),
    st.integers(1, 60),
    st.lists(st.tuples(st.integers(0, 150), st.integers(1, 7)), max_size=3),
    st.booleans(),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_a_stream_never_shows_what_a_stop_string_takes_back(key, tokens, places, keep, least, random):
    text = Answer(key, tokens).until(tokens)
    stop = [text[at : at + size] for at, size in places if text[at : at + size]]
    answer = Answer(key, tokens, min_tokens=least, stop=stop, keep_stop=keep)
    ends = sorted({random.randint(1, answer.length) for _ in range(4)} | {answer.length})
    shown = "".join([answer.until(end) for end in ends])
    assert shown == Answer(key, tokens, min_tokens=least, stop=stop, keep_stop=keep).until(tokens)
    assert text.startswith(shown)
    if answer.stop_reason is None:
        assert shown == text
    else:
        assert text[len(shown) :].startswith(answer.stop_reason) or shown.endswith(answer.stop_reason)
        assert answer.length > least and answer.finish_reason == "stop"


# ---- time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batching", [{"rule": "vllm", "max_num_batched_tokens": 64}, {"rule": "splitwise"}])
def test_every_token_has_the_simulators_time(batching):
    """The schedule is compared to the nanosecond, with arrivals as the server saw them."""
    profile = tiny_profile(context_us=7, capacity=3000)
    sizes = [(5 + 13 * i % 90, 1 + 7 * i % 12) for i in range(40)]

    async def scenario():
        options = EngineOptions(port=0, batching=batching).batching
        async with engines(tiny=profile, batching=options, record=True) as (there, (client,)):

            async def one(index):
                prompt, output = sizes[index]
                await asyncio.sleep(0.002 * (index // 3))
                stream = {"stream": True} if index % 2 else {}
                body = {"prompt": [9] * prompt, "max_tokens": output, **stream}
                async with client.session.post(client.url + "/v1/completions", json=body) as response:
                    await response.read()

            await asyncio.gather(*map(one, range(len(sizes))))
            assert is_idle(there)
            compare(sorted(there.hosts[0].server.recorded, key=lambda r: (r.arrival_ns, r.request_id)))

    def compare(recorded):
        trace = Trace(
            np.array([r.arrival_ns for r in recorded]) / 1e9,
            np.array([r.prompt_tokens for r in recorded]),
            np.array([r.output_tokens for r in recorded]),
        )
        fields = {"vllm": {"max_num_batched_tokens": 64}} if batching["rule"] == "vllm" else {}
        simulated = simpy_engine(tiny_cluster("M", profile, **fields), Fixed((0, 0)), Moves())
        simulated.reset(trace)
        simulated.run_until_decision()
        out = simulated.outcomes()
        assert out.arrival_ns.tolist() == [r.arrival_ns for r in recorded]
        assert out.first_token_ns.tolist() == [r.schedule[0] for r in recorded]
        assert out.finish_ns.tolist() == [r.schedule[-1] for r in recorded]
        assert [len(r.schedule) for r in recorded] == [r.output_tokens for r in recorded]

    play(scenario)


def test_the_wall_clock_follows():
    async def scenario():
        async with engines(time_scale=2.0) as (there, (client,)):
            loop = asyncio.get_running_loop()
            begin = loop.time()
            events = await client.stream(prompt=[9] * 100, max_tokens=31)  # 100 ms + 30 x 10 ms
            assert len(events) == 32
            assert 0.2 <= loop.time() - begin < 5.0
            assert 0 <= there.time.most_late_s < 1.0

    play(scenario)


def test_metrics_count():
    async def scenario():
        async with engines(engines=2) as (there, (client, _)):
            await client.post(prompt=[9] * 100, max_tokens=7)
            running = asyncio.create_task(client.post(prompt=[9] * 500, max_tokens=400))
            waiting = asyncio.create_task(client.post(prompt=[9] * 20_000, max_tokens=1))
            await until(lambda: there.hosts[0].server.metrics.running == 2)
            assert await client.metric("vllm:num_requests_running") == 2
            assert await client.metric("vllm:kv_cache_usage_perc") > 0.005
            await asyncio.gather(running, waiting)
            assert await client.metric("vllm:prompt_tokens_total") == 20_600
            assert await client.metric("vllm:generation_tokens_total") == 408
            assert await client.metric("vllm:request_success_total", finished_reason="length") == 3
            assert await client.metric("vllm:time_to_first_token_seconds_count") == 3
            assert await client.metric("vllm:inter_token_latency_seconds_count") == 405
            assert await client.metric("vllm:kv_cache_usage_perc") == 0

    play(scenario)


# ---- KV transfer ------------------------------------------------------------------------------------------


async def split(one: Client, other: Client, **body):
    """What a router does: the prompt there, its answer's params here."""
    first = await one.post(**{**body, "max_tokens": 1, "kv_transfer_params": REMOTE_DECODE})
    return await other.post(**body, kv_transfer_params=first["kv_transfer_params"])


def test_a_split_request_within_a_process():
    async def scenario():
        async with engines(engines=2, record=True, tiny=tiny_profile(nic_tokens_per_ms=0.5)) as (
            there,
            clients,
        ):
            one, other = clients
            body = {"prompt": WORDS * 9, "max_tokens": 12}
            whole = await one.post(**body)
            answer = await split(one, other, **body)
            assert answer["choices"][0]["text"] == whole["choices"][0]["text"]
            assert answer["kv_transfer_params"] is None
            (pulled,) = there.hosts[1].server.recorded
            assert pulled.kind is Kind.TOKEN and pulled.tokens == 12
            assert pulled.cache_ns - pulled.start_ns == 97 * 2 * MS
            assert pulled.schedule[0] == pulled.cache_ns + 10 * MS
            source = "external_kv_transfer"
            assert await other.metric("vllm:prompt_tokens_by_source_total", source=source) == 97
            assert await other.metric("vllm:nixl_bytes_transferred_sum") == 97 * 1024
            assert is_idle(there)

    play(scenario)


def test_a_split_request_between_processes():
    async def scenario():
        async with engines() as (here, (one,)), engines() as (there, (other,)):
            body = {"prompt": WORDS * 9, "max_tokens": 12, "stream": False}
            whole = await one.post(**body)
            first = await one.post(**{**body, "max_tokens": 1, "kv_transfer_params": REMOTE_DECODE})
            params = first["kv_transfer_params"]
            assert params["remote_port"] == here.side.port and len(here.hosts[0].server.caches) == 1
            answer = await other.post(**body, kv_transfer_params=params)
            assert answer["choices"][0]["text"] == whole["choices"][0]["text"]
            await until(lambda: is_idle(here))  # the cache was freed
            assert is_idle(there)
            source = "external_kv_transfer"
            assert await other.metric("vllm:prompt_tokens_by_source_total", source=source) == 97
            again = await other.post(**body, kv_transfer_params=params)  # it is gone: computed again
            assert again["choices"][0]["text"] == whole["choices"][0]["text"]
            assert await other.metric("vllm:nixl_num_failed_transfers_total") == 1

    play(scenario)


def test_a_lease_is_kept_while_the_cache_waits_and_runs_out_otherwise():
    async def scenario():
        slow = tiny_profile(nic_tokens_per_ms=0.05)  # 97 tokens in 1.94 s, the lease is 0.6 s
        async with (
            engines(kv_lease_s=0.6, time_scale=10.0) as (here, (one,)),
            engines(tiny=slow, kv_lease_s=0.6, time_scale=10.0) as (there, (other,)),
        ):
            answer = await split(one, other, prompt=WORDS * 9, max_tokens=3)
            assert answer["usage"]["completion_tokens"] == 3
            assert there.hosts[0].server.metrics.failed_transfers == 0
            await until(lambda: is_idle(here))
            assert here.hosts[0].server.caches.expired == 0
            await one.post(prompt=WORDS, max_tokens=1, kv_transfer_params=REMOTE_DECODE)
            assert not is_idle(here)
            await until(lambda: is_idle(here))
            assert await one.metric("vllm:nixl_num_kv_expired_reqs_total") == 1

    play(scenario)


@pytest.mark.parametrize(
    "change", [{}, {"remote_host": "192.0.2.1"}, {"remote_host": None}, {"remote_port": "x"}, {"tp_size": {}}]
)
def test_a_cache_that_is_nowhere_is_computed_again(change):
    async def scenario():
        async with engines() as (there, (client,)):
            wanted = await client.post(prompt=WORDS, max_tokens=3)
            answer = await client.post(prompt=WORDS, max_tokens=3, kv_transfer_params={**PARAMS, **change})
            assert answer["choices"][0]["text"] == wanted["choices"][0]["text"]
            assert await client.metric("vllm:prompt_tokens_by_source_total", source="local_compute") == 22
            assert is_idle(there)

    play(scenario)


def test_vllms_own_policy_fails_then():
    async def scenario():
        async with engines(kv_load_failure_policy="fail") as (there, (client,)):
            status, answer = await client.ask(prompt=WORDS, max_tokens=3, kv_transfer_params=PARAMS)
            assert (status, answer["error"]["type"]) == (500, "InternalServerError")
            events = await client.stream(prompt=WORDS, max_tokens=3, kv_transfer_params=PARAMS)
            assert events[0]["error"]["code"] == 500 and events[1] == "[DONE]"
            assert is_idle(there)

    play(scenario)


def test_roles():
    async def scenario():
        async with engines(engines=3, roles=("prompt", "token", "none")) as (there, (prompt, token, none)):
            remote = {"prompt": WORDS, "max_tokens": 1, "kv_transfer_params": REMOTE_DECODE}
            assert (await token.post(**remote))["kv_transfer_params"] is None
            assert (await none.post(**remote))["kv_transfer_params"] is None
            params = (await prompt.post(**remote))["kv_transfer_params"]
            await none.post(prompt=WORDS, max_tokens=2, kv_transfer_params=params)
            assert len(there.hosts[0].server.caches) == 1
            await token.post(prompt=WORDS, max_tokens=2, kv_transfer_params=params)
            assert is_idle(there)

    play(scenario)


def test_a_client_that_leaves_frees_everything():
    async def scenario():
        async with engines(engines=2, time_scale=1.0) as (there, (one, other)):
            params = (await one.post(prompt=WORDS, max_tokens=1, kv_transfer_params=REMOTE_DECODE))[
                "kv_transfer_params"
            ]
            for body in (
                {"prompt": WORDS, "max_tokens": 5000, "stream": True},
                {"prompt": WORDS, "max_tokens": 5000},
                {"prompt": [9] * 800, "max_tokens": 2},
                {"prompt": WORDS, "max_tokens": 5000, "kv_transfer_params": params},
            ):
                call = asyncio.create_task(other.stream(**body) if body.get("stream") else other.post(**body))
                await until(lambda: there.hosts[1].server.in_flight == 1)
                await asyncio.sleep(0.03)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
                await until(lambda: there.hosts[1].server.in_flight == 0)
            await until(lambda: is_idle(there))
            assert await other.metric("vllm:request_success_total", finished_reason="abort") == 4

    play(scenario)


# ---- faults -----------------------------------------------------------------------------------------------


async def set_faults(there, client, **faults):
    url = f"http://127.0.0.1:{there.admin_port}/engines/0/faults"
    async with client.session.put(url, json=faults) as response:
        assert response.status == 200, await response.text()


def test_faults_on_the_wire():
    async def scenario():
        body = {"prompt": WORDS, "max_tokens": 20}
        async with engines(admin_port=0, seed=3) as (there, (client,)):
            wanted = (await client.post(**body))["choices"][0]["text"]
            await set_faults(there, client, refuse=True)
            with pytest.raises(aiohttp.ClientError):
                await client.post(**body)
            await set_faults(there, client, error_probability=1)
            assert (await client.ask(**body))[0] == 500
            await set_faults(there, client, reset_probability=1, reset_after_chunks=5)
            for ask in (client.ask, client.stream):
                with pytest.raises(aiohttp.ClientError):
                    await ask(**body)
            await set_faults(there, client, malformed_probability=1)
            for ask in (client.ask, client.stream):
                with pytest.raises(json.JSONDecodeError):
                    await ask(**body)
            await set_faults(there, client, slow_body_s=0.05)
            begin = asyncio.get_running_loop().time()
            assert text_of(await client.stream(**body)) == wanted
            assert asyncio.get_running_loop().time() - begin > 0.045
            await set_faults(there, client)
            assert (await client.post(**body))["choices"][0]["text"] == wanted
            await until(lambda: is_idle(there))

    play(scenario)


def test_faults_are_drawn_from_the_seed():
    async def statuses(seed):
        async with engines(admin_port=0, seed=seed) as (there, (client,)):
            await set_faults(there, client, error_probability=0.5)
            return [(await client.ask(prompt="a", max_tokens=1))[0] for _ in range(20)]

    async def scenario():
        first = await statuses(1)
        assert set(first) == {200, 500} and first == await statuses(1) != await statuses(2)

    play(scenario)


def test_kill_restart_and_stall():
    async def scenario():
        async with engines(engines=2, admin_port=0, time_scale=1.0) as (there, (one, other)):
            admin = f"http://127.0.0.1:{there.admin_port}/engines/0"
            answer = await one.post(prompt=WORDS, max_tokens=1, kv_transfer_params=REMOTE_DECODE)
            params = answer["kv_transfer_params"]
            running = asyncio.create_task(one.stream(prompt=WORDS, max_tokens=5000))
            await until(lambda: there.hosts[0].server.in_flight == 1)
            await one.session.post(admin + "/kill")
            with pytest.raises(aiohttp.ClientError):
                await running
            with pytest.raises(aiohttp.ClientError):
                await one.get("/health")
            await other.post(prompt=WORDS, max_tokens=2, kv_transfer_params=params)
            assert await other.metric("vllm:nixl_num_failed_transfers_total") == 1
            await one.session.post(admin + "/restart")
            answer = await one.post(prompt=WORDS, max_tokens=1, kv_transfer_params=REMOTE_DECODE)
            again = answer["kv_transfer_params"]
            assert again["remote_engine_id"] != params["remote_engine_id"]
            await one.session.post(admin + "/stall", json={"seconds": 0.2})
            begin = asyncio.get_running_loop().time()
            await one.get("/health")
            assert asyncio.get_running_loop().time() - begin > 0.15
            await other.post(prompt=WORDS, max_tokens=2, kv_transfer_params=again)
            await until(lambda: is_idle(there))
            state = json.loads(await Client(one.session, admin.removesuffix("/0")).get(""))
            assert [engine["up"] for engine in state] == [True, True]

    play(scenario)


def test_bad_switches_are_refused():
    async def scenario():
        async with engines(admin_port=0) as (there, (client,)):
            base = f"http://127.0.0.1:{there.admin_port}/engines"
            for method, path, body, status in (
                ("PUT", "/0/faults", {"refused": True}, 400),
                ("PUT", "/0/faults", {"error_probability": 2}, 400),
                ("PUT", "/0/faults", [1], 400),
                ("PUT", "/7/faults", {}, 404),
                ("POST", "/0/stall", {"seconds": -1}, 400),
                ("POST", "/0/stall", {"seconds": "long"}, 400),
                ("POST", "/0/stall", {}, 400),
                ("POST", "/x/kill", {}, 404),
            ):
                async with client.session.request(method, base + path, json=body) as response:
                    assert response.status == status, (path, body)

    play(scenario)


# ---- bad bodies -------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda s: st.lists(s, max_size=4) | st.dictionaries(st.text(max_size=6), s, max_size=3),
    max_leaves=8,
)
FIELDS = """prompt messages max_completion_tokens n stop stream stream_options logprobs top_logprobs seed
temperature top_p top_k min_p echo ignore_eos min_tokens tools tool_choice kv_transfer_params return_token_ids
request_id model presence_penalty include_stop_str_in_output"""
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "tool"])},
        optional={"content": st.text(max_size=5) | VALUES, "tool_calls": VALUES},
    ),
    max_size=3,
)
BODIES = st.fixed_dictionaries(
    {"max_tokens": st.sampled_from([1, 3, 5])},
    optional=dict.fromkeys(FIELDS.split(), VALUES)
    | {"prompt": st.text(min_size=1, max_size=9) | VALUES, "messages": MESSAGES | VALUES}
    | {"kv_transfer_params": st.just(PARAMS) | st.just(REMOTE_DECODE) | VALUES},
)


@pytest.fixture(scope="module")
def server():
    with in_thread(max_model_len=2048) as (there, urls):
        yield there, urls[0]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BODIES | VALUES, st.sampled_from(["/v1/completions", "/v1/chat/completions", "/tokenize"]))
def test_no_body_breaks_it(server, body, path):
    there, url = server
    probe = engine_probes.Probe("any", path, json.dumps(body).encode())
    answer = engine_probes.ask(url, probe)
    assert answer.status in (200, 400, 404), (answer, body)
    if answer.status != 200:
        assert set(json.loads(answer.text)["error"]) == {"message", "type", "param", "code"}
        assert len(answer.text) < 20_000
    assert engine_probes.ask(url, engine_probes.Probe("up", "/health", method="GET")).status == 200


@given(st.binary(max_size=40))
def test_no_bytes_break_the_parser(content):
    try:
        data = parse_json(content, "application/json; charset=utf-8")
    except Refusal as refusal:
        assert refusal.status == 400
        return
    for read in (completion_body, chat_body):
        try:
            read(data)
        except Refusal as refusal:
            assert refusal.status == 400


def test_deep_json_and_huge_numbers_are_refused():
    for content in (b"[" * 200_000, b'{"max_tokens":' + b"9" * 5000 + b"}", b"\xff"):
        with pytest.raises(Refusal) as found:
            parse_json(content, "application/json")
        assert found.value.status == 400


# ---- starting ---------------------------------------------------------------------------------------------


def test_a_taken_port_is_one_sentence():
    async def scenario():
        async with engines() as (there, _):
            port = there.hosts[0].port
            with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
                async with engines(port=port):
                    pass

    play(scenario)


def test_a_length_that_does_not_fit_is_refused():
    async def scenario():
        with pytest.raises(ConfigError, match=r"max_model_len is 5000: .* holds 991 tokens"):
            async with engines(max_model_len=5000, tiny=tiny_profile(capacity=1000)):
                pass

    play(scenario)


def test_a_signal_lets_requests_end(tmp_path):
    log = (tmp_path / "log").open("w+")
    command = [sys.executable, "-m", "splitgym.cli", "engine", "--port", "0", "--mean-output-tokens", "0"]
    with subprocess.Popen(command, stdout=log, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        try:
            while not (found := re.search(r"(http://\S+)", Path(log.name).read_text())):
                assert process.poll() is None
                time.sleep(0.1)
            there = http.client.HTTPConnection(urlsplit(found[1]).netloc, timeout=30)
            body = {"prompt": WORDS, "max_tokens": 40, "stream": True}
            there.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = there.getresponse()
            assert response.readline().startswith(b"data: ")
            process.send_signal(signal.SIGTERM)
            assert response.read().endswith(b"data: [DONE]\n\n")
            assert process.wait(30) == 0
        finally:
            process.kill()
    log.close()
