"""Two real vLLM servers: what the simulated engine imitates, and the router in front of them."""

import asyncio
import contextlib
import json
import re
import time
from types import SimpleNamespace

import aiohttp
import engine_probes
import openai
import pytest
from engine_help import PARAMS, REMOTE_DECODE, Client, engines, text_of
from vllm_server import VllmServer, make_model

from splitgym.types import Pool
from tests.fake_vllm import routed

RECORDED = engine_probes.recorded()
PROMPT = "how many tokens does this sentence have and a request is routed to a prompt server " * 9
BODY = {"model": "tiny", "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
CHAT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": PROMPT}],
    "max_tokens": 24,
    "temperature": 0,
}


def play(servers, scenario, shape="PT", **over):
    """Run `scenario(client of the router, clients of the servers)`; returns the log's requests."""
    log = servers[0].log.with_name("decisions.jsonl")
    log.unlink(missing_ok=True)
    named = [SimpleNamespace(name="ab"[i], url=server.url) for i, server in enumerate(servers)]

    async def whole():
        async with (
            routed(named, shape, log={"path": str(log)}, **over) as router,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session,
        ):
            await scenario(router, [Client(session, server.url) for server in servers])

    asyncio.run(whole())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if line["event"] == "request"]


def chat_text_of(events):
    return "".join(c["delta"]["content"] for e in events if e != "[DONE]" for c in e["choices"])


# ---- what the simulated engine imitates -------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers(vllm_servers):
    return engine_probes.record(vllm_servers[0].url)


@pytest.mark.parametrize("name", [probe.name for probe in engine_probes.PROBES])
def test_what_was_recorded_still_holds(answers, vllm_servers, name):
    (probe,) = (probe for probe in engine_probes.PROBES if probe.name == name)
    shape = answers["shapes"][name]
    tries = 50 if "stream" in name else 0
    while (
        shape != RECORDED["shapes"][name] and tries
    ):  # a server that is late puts several tokens into one event
        tries -= 1
        time.sleep(0.1)
        shape = engine_probes.shape_of(engine_probes.ask(vllm_servers[0].url, probe))
    assert shape == RECORDED["shapes"][name]
    assert answers["messages"].get(name) == RECORDED["messages"].get(name)


def test_the_recorded_metrics_are_there(answers):
    assert answers["version"] == RECORDED["version"]
    assert answers["metrics"] == RECORDED["metrics"]


def test_a_cache_that_cannot_be_pulled(vllm_servers):
    """The simulated engine's `kv_load_failure_policy: fail` says the same."""

    async def ask(client, prompt):
        body = {**BODY, "prompt": prompt, "kv_transfer_params": PARAMS}
        return await client.ask(**body), await client.stream(**body)

    async def scenario(router, clients):
        async with engines(kv_load_failure_policy="fail", served_model_name="tiny") as (_, (simulated,)):
            wanted = await ask(simulated, "a cache that is nowhere")
            assert await ask(clients[1], "a cache that is nowhere") == wanted

    play(vllm_servers, scenario)


# ---- split requests ---------------------------------------------------------------------------------------


def test_a_split_request_gives_the_text_of_a_whole_one(vllm_servers):
    async def scenario(router, clients):
        prompt, token = clients
        through = Client(prompt.session, router.url)
        source = {"source": "external_kv_transfer"}
        before = await token.metric("vllm:prompt_tokens_by_source_total", **source)
        whole = await prompt.post(**BODY)
        split = await through.post(**BODY)
        assert split["choices"][0]["text"] == whole["choices"][0]["text"]
        assert split["usage"] == whole["usage"]
        after = await token.metric("vllm:prompt_tokens_by_source_total", **source)
        assert after - before == whole["usage"]["prompt_tokens"]
        other = {**BODY, "prompt": "so " + PROMPT}
        whole = await prompt.post(**other)
        assert text_of(await through.stream(**other)) == whole["choices"][0]["text"]
        path = "/v1/chat/completions"
        whole_chat = await prompt.post(path, **CHAT)
        text = whole_chat["choices"][0]["message"]["content"]
        assert (await through.post(path, **CHAT))["choices"][0]["message"]["content"] == text
        assert chat_text_of(await through.stream(path, **CHAT)) == text

    log = play(vllm_servers, scenario)
    assert [[(a["prompt_server"], a["token_server"]) for a in r["attempts"]] for r in log] == [
        [("a", "b")]
    ] * 4


def test_a_pulled_cache_is_freed(vllm_servers):
    async def scenario(router, clients):
        prompt, token = clients
        body = {**BODY, "prompt": "freed " + PROMPT}
        first = await prompt.post(**{**body, "max_tokens": 1, "kv_transfer_params": REMOTE_DECODE})
        held = await prompt.metric("vllm:kv_cache_usage_perc")
        assert held > 0
        await token.post(**body, kv_transfer_params=first["kv_transfer_params"])
        async with asyncio.timeout(10):
            while await prompt.metric("vllm:kv_cache_usage_perc") >= held:
                await prompt.post(**{**BODY, "prompt": "a", "max_tokens": 1})

    play(vllm_servers, scenario)


def test_roles_flip_under_load(vllm_servers):
    async def scenario(router, clients):
        through = Client(clients[0].session, router.url)
        bodies = [{**BODY, "prompt": f"{number} {PROMPT}", "max_tokens": 60} for number in range(24)]
        wanted = [(await clients[0].post(**body))["choices"][0]["text"] for body in bodies]

        async def one(number):
            await asyncio.sleep(0.05 * number)
            if number % 2:
                return text_of(await through.stream(**bodies[number]))
            return (await through.post(**bodies[number]))["choices"][0]["text"]

        async def flips():
            pools, state = router.router.pools, router.router.parts.state
            while True:
                await asyncio.sleep(0.2)
                for server in router.router.parts.servers:
                    to = Pool.TOKEN if state.home(server.index) is Pool.PROMPT else Pool.PROMPT
                    await pools.move(server, to, "test")

        turning = asyncio.create_task(flips())
        try:
            assert await asyncio.gather(*map(one, range(len(bodies)))) == wanted
        finally:
            turning.cancel()
            await asyncio.gather(turning, return_exceptions=True)

    log = play(vllm_servers, scenario, pools={"min_machines": 0})
    assert all(len(request["attempts"]) == 1 for request in log)
    ways = {(r["attempts"][0]["prompt_server"], r["attempts"][0]["token_server"]) for r in log}
    assert {("a", "b"), ("b", "a")} <= ways


def test_the_openai_client_works(vllm_servers):
    async def scenario(router, clients):
        async with openai.AsyncOpenAI(base_url=router.url + "/v1", api_key="x") as api:
            done = await api.completions.create(
                model="tiny", prompt=PROMPT, n=2, seed=1, max_tokens=6, logprobs=1, temperature=1
            )
            assert len(done.choices) == 2 and done.usage.completion_tokens == 12
            assert all(len(choice.logprobs.tokens) == 6 for choice in done.choices)
            stream = await api.chat.completions.create(
                model="tiny",
                messages=CHAT["messages"],
                max_completion_tokens=5,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            chunks = [chunk async for chunk in stream]
            assert chunks[-1].usage.completion_tokens == 5
            whole = await api.completions.create(model="tiny", prompt=PROMPT, max_tokens=30, temperature=0)
            text = whole.choices[0].text
            assert len(text) >= 8, "the random weights say too little for a stop string"
            stop = text[4:7]
            cut = await api.completions.create(
                model="tiny", prompt=PROMPT, max_tokens=30, temperature=0, stop=[stop]
            )
            assert cut.choices[0].text == text[: text.index(stop)]
            assert cut.choices[0].finish_reason == "stop"

    play(vllm_servers, scenario)


def test_a_killed_server_loses_no_request_without_a_first_byte(vllm_servers):
    """It ends one of the servers."""

    async def scenario(router, clients):
        through = Client(clients[0].session, router.url)
        bodies = [{**BODY, "prompt": f"kill {number} {PROMPT}", "max_tokens": 400} for number in range(12)]
        wanted = [(await clients[0].post(**body))["choices"][0]["text"] for body in bodies]

        async def streamed(number):
            with contextlib.suppress(aiohttp.ClientError):
                return await through.stream(**bodies[number])

        begun = [asyncio.create_task(streamed(number)) for number in range(2)]
        waiting = [asyncio.create_task(through.post(**body)) for body in bodies]
        running = re.compile(r"vllm:num_requests_running\S* [1-9]")
        async with asyncio.timeout(30):
            while not running.search(await clients[1].get("/metrics")):
                await asyncio.sleep(0.01)
        vllm_servers[1].kill()
        answers = await asyncio.gather(*waiting)
        assert [answer["choices"][0]["text"] for answer in answers] == wanted
        await asyncio.gather(*begun)

    log = play(vllm_servers, scenario, limits={"attempts": 4})
    assert any(len(request["attempts"]) > 1 for request in log)


def test_tool_calls_come_through(vllm_servers, tmp_path):
    """After the last test for two servers: with a tool parser, which changes how chats are streamed."""
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    tool = {"type": "function", "function": {"name": "pick", "parameters": schema}}

    async def call(url):
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="x") as api:
            chat = await api.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "pick one"}],
                tools=[tool],
                tool_choice={"type": "function", "function": {"name": "pick"}},
                max_completion_tokens=30,
                temperature=0,
            )
            (found,) = chat.choices[0].message.tool_calls
            return found.function

    async def scenario(router, clients):
        through = await call(router.url)
        assert through.name == "pick" and through.arguments.startswith("{")
        assert through == await call(clients[0].url)

    for server in vllm_servers:
        server.stop()
    options = ["--enable-auto-tool-choice", "--tool-call-parser", "pythonic"]
    server = VllmServer(make_model(tmp_path / "model"), tmp_path / "log", *options)
    try:
        server.wait()
        play([server], scenario, "M")
    finally:
        server.stop()
