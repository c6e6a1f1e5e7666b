"""The simulated vLLM server: what it answers, and when."""

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

import engine_probes
import numpy as np
import openai
import pytest
from engine_help import engines, in_thread, is_idle, play, text_of, until
from hypothesis import given
from hypothesis import strategies as st
from tiny import Fixed, Moves, tiny_cluster, tiny_profile

from splitgym.errors import ConfigError
from splitgym.router.engine import EngineOptions
from splitgym.router.engine.bodies import Refusal
from splitgym.router.engine.protocol import chat_body
from splitgym.router.engine.text import Answer, key_of, natural_length, tokenize
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
            place = urlsplit(client.url)
            reader, writer = await asyncio.open_connection(place.hostname, place.port)
            writer.write(b"GET /v1/models HTTP/1.0\r\nAuthorization: Bearer \xff\r\n\r\n")
            assert b" 401 " in await reader.readline(), "a key that is no text is a wrong one"
            writer.close()
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
