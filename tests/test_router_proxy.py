"""What clients and servers see of the router: the split path, pass-through, retries, limits."""

import asyncio
import json
import os

import aiohttp
import pytest
from yarl import URL

from splitgym.router.protocol import StreamMeter, prompt_body, token_body
from tests.fake_vllm import FakeVllm, cluster, in_loop, routed
from tests.ports import free_ports

ASK = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


@in_loop
async def test_the_hand_over_of_a_cache():
    """The prompt server computes one token and keeps the cache; its parameters go on unchanged."""
    async with cluster("PT") as (client, a, b):
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "max_completion_tokens": 9,
            "min_tokens": 3,
            "min_completion_tokens": 2,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.25,
        }
        raw = json.dumps(body, indent=1).encode()
        headers = {"Content-Type": "application/json", "Authorization": "Bearer client", "X-Own": "1"}
        async with client.session.post(
            client.url + "/v1/chat/completions?x=%20y", data=raw, headers=headers
        ) as response:
            assert response.status == 200 and "event-stream" in response.headers["Content-Type"]
            got = await response.read()
        assert got.count(b"data: ") == 7 and got.endswith(b"data: [DONE]\n\n")
        ((path, asked, _, first),) = a.calls
        assert path == "/v1/chat/completions" and asked["kv_transfer_params"] == ASK
        assert asked["max_tokens"] == asked["max_completion_tokens"] == 1 and asked["stream"] is False
        assert (
            not {"stream_options", "min_tokens", "min_completion_tokens"} & asked.keys()
            and asked["temperature"] == 0.25
        )
        ((path, given, sent, second),) = b.calls
        assert given.pop("kv_transfer_params") == {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": "a",
            "remote_block_ids": [[1, 2, 3]],
            "remote_host": "127.0.0.1",
            "remote_port": 5600,
            "tp_size": 1,
        }
        assert given == body and sent.startswith(raw.rstrip()[:-1].rstrip()), "the client's own bytes"
        assert first["X-Request-Id"] == second["X-Request-Id"]
        for seen in (first, second):
            assert seen["Authorization"] == "Bearer client" and seen["X-Own"] == "1"
        state = await client.state()
        assert state["requests"] == {"/v1/chat/completions ok": 1} and state["attainment"]["requests"] == 1


@in_loop
async def test_one_server_gets_the_bytes_as_they_came():
    async with cluster("M") as (client, a):
        raw = b'{ "prompt":"x", "max_tokens" : 5, "seed": 12345678901234567890, "n": 1.0 }\n'
        async with client.session.post(
            client.url + "/v1/completions",
            data=raw,
            headers={"Content-Type": "application/json", "X-Request-Id": "mine"},
        ) as response:
            assert response.status == 200 and (await response.json())["by"] == "a"
        assert a.calls[0][2] == raw and a.calls[0][3]["X-Request-Id"] == "mine"
        status, texts, events = await client.stream()
        assert status == 200 and texts == ["a0 ", "a1 ", "a2 ", "a3 ", "a4 "] and events[-1] == "[DONE]"


@in_loop
async def test_everything_else_is_passed_on():
    async with cluster("MM") as (client, a, b):
        async with client.session.get(URL(client.url + "/v1/models?a=%2F", encoded=True)) as response:
            assert response.status == 200 and response.headers["X-Own"] in "ab"
        async with client.session.post(client.url + "/tokenize", data=b"\x00raw") as response:
            assert response.status == 200
        seen = a.others + b.others
        assert sorted(seen) == [("GET", "/v1/models?a=%2F", b""), ("POST", "/tokenize", b"\x00raw")]
        for path in ("/metrics", "/pd_role_switch", "/v1/load_lora_adapter", "/sleep", "/reset_prefix_cache"):
            async with client.session.post(client.url + path, json={}) as response:
                assert response.status == 404, path
        assert len(a.others + b.others) == 2
        async with client.session.get(client.url + "/health") as response:
            assert response.status == 200


@in_loop
async def test_a_server_without_a_cache_to_pull_costs_nothing_but_the_prompt():
    async with cluster("PT") as (client, a, b):
        a.no_transfer = True
        status, _, _ = await client.complete()
        assert status == 200 and "kv_transfer_params" not in b.calls[0][1]
        assert client.router.parts.metrics.no_transfer == 1


@pytest.mark.parametrize("how", ["status", "reset", "malformed", "hang"])
def test_a_prompt_server_that_fails_is_replaced(how):
    async def main():
        async with cluster("PPT", limits={"prompt_s": 0.3}) as (client, a, b, c):
            for server in (a, b):
                server.only = "prompt"
            bad = a
            setattr(bad, how, 503 if how == "status" else True)
            for _ in range(4):
                status, texts, _ = await client.stream()
                assert status == 200 and len(texts) == 5
            # The heuristic asks the first idle one first; after three failures its circuit is open.
            assert len(bad.calls) >= 1 and len(b.calls) == 4 and len(c.calls) == 4
            errors = [s["last_error"] for s in (await client.state())["servers"]]
            assert errors[0] and not errors[1]

    in_loop(main)()


@pytest.mark.parametrize("how", ["status", "reset", "malformed"])
def test_a_token_server_that_fails_before_its_first_byte_means_another_prompt(how):
    async def main():
        async with cluster("PTT") as (client, a, b, c):
            setattr(b, how, 500 if how == "status" else True)
            body = {"model": "m", "prompt": "x"}
            status, _, raw = await client.complete(body)
            assert status == 200 and json.loads(raw)["by"] == "c"
            assert len(a.calls) == 2 and len(b.calls) == len(c.calls) == 1, "prefilled again"
            assert client.router.parts.servers[0].leases == 1, "the first cache waits to be freed"
            state = client.router.parts.state
            assert not state.busy(0) and not state.busy(1) and not state.busy(2)

    in_loop(main)()


@in_loop
async def test_nothing_is_repeated_after_the_first_byte():
    async with cluster("MM") as (client, a, b):
        a.break_after = b.break_after = 2
        status, texts, events = await client.stream()
        assert status == 200 and len(texts) == 2
        assert "broke off" in json.loads(events[-1])["error"]["message"], "no end that looks whole"
        assert len(a.calls) + len(b.calls) == 1
        assert (await client.state())["requests"] == {"/v1/completions server_error": 1}


@in_loop
async def test_a_bad_request_is_the_clients():
    async with cluster("PT") as (client, a, b):
        a.status = 422
        status, _, raw = await client.complete()
        assert status == 422 and json.loads(raw) == {"error": {"message": "no", "code": 422}}
        assert len(a.calls) == 1 and not b.calls and client.router.parts.servers[0].failed == 0
        for data in (b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b'{"kv_transfer_params": {}}', b"[" * 100_000):
            async with client.session.post(client.url + "/v1/completions", data=data) as response:
                error = (await response.json())["error"]
                assert response.status == 400 and error["type"] == "BadRequestError" and error["message"]
        async with client.session.get(client.url + "/v1/completions") as response:
            assert response.status in (200, 405)
        assert len(a.calls) == 1


@in_loop
async def test_odd_but_valid_bodies_reach_the_server():
    """The router does not judge what it does not need."""
    async with cluster("M") as (client, a):
        odd = [{}, {"prompt": None}, {"prompt": [1, 2]}, {"prompt": [[1], [2, 3]]}, {"prompt": ["a", "b"]}]
        odd += [{"messages": "no"}, {"messages": [1, {"content": [{"text": "x"}, 3]}]}, {"max_tokens": "9"}]
        odd += [{"prompt": "x", "max_tokens": True}, {"prompt": "x", "max_tokens": -1}, {"prompt": 1e400}]
        for body in odd:
            status, _, _ = await client.complete(body)
            assert status == 200, body
        assert len(a.calls) == len(odd)


@in_loop
async def test_a_client_that_goes_cancels_its_request():
    async with cluster("PT") as (client, a, b):
        b.pause_s, b.tokens = 0.05, 200
        async with client.session.post(
            client.url + "/v1/completions", json={"prompt": "x", "stream": True}
        ) as response:
            await response.content.readany()
            response.close()
        await client.until(lambda: b.cancelled == 1)
        a.hang, a.only = True, "prompt"
        gone = asyncio.create_task(client.complete())
        await client.until(lambda: a.active == 1)
        gone.cancel()
        await client.until(lambda: a.cancelled == 1)
        await client.until(lambda: client.router.parts.active == 0)
        parts = client.router.parts
        parts.settle()
        assert parts.metrics.requests["/v1/completions", "disconnected"] == 2
        assert not parts.state.busy(0) and not parts.state.busy(1)
        assert all(server.active == 0 for server in parts.servers)


@in_loop
async def test_full_servers_queue_and_then_refuse():
    async with cluster("M", limits={"queue": 2, "queue_s": 60.0}) as (client, a):
        a.go = asyncio.Event()
        parts = client.router.parts
        object.__setattr__(parts.servers[0].config, "max_requests", 1)
        tasks = []
        for i in range(3):
            tasks.append(asyncio.create_task(client.complete({"prompt": f"{i}"})))
            await client.until(lambda i=i: a.active == 1 and parts.gate.waiting == i)
        refused = [await client.complete({"prompt": f"{i}"}) for i in (3, 4)]
        a.go.set()
        answers = [await task for task in tasks] + refused
        assert [status for status, _, _ in answers] == [200, 200, 200, 429, 429]
        assert answers[3][1]["Retry-After"] == "1" and a.most == 1
        assert [call[1]["prompt"] for call in a.calls] == ["0", "1", "2"], "first come, first served"


@in_loop
async def test_waiting_ends():
    async with cluster("M", limits={"queue": 5, "queue_s": 0.1}) as (client, a):
        object.__setattr__(client.router.parts.servers[0].config, "max_requests", 1)
        a.go = asyncio.Event()
        first = asyncio.create_task(client.complete())
        await client.until(lambda: a.active == 1)
        status, headers, _ = await client.complete()
        assert status == 429 and "Retry-After" in headers
        a.go.set()
        assert (await first)[0] == 200
        assert client.router.parts.gate.waiting == 0


@in_loop
async def test_dead_servers_come_back():
    a = FakeVllm("a", port=free_ports(1))
    async with a:
        pass  # it has a port, but nobody listens
    async with routed([a], "M", limits={"queue_s": 0.2}) as client:
        parts = client.router.parts
        await client.until(lambda: not parts.servers[0].healthy)
        status, headers, raw = await client.complete()
        assert status == 503 and "Retry-After" in headers and "healthy" in json.loads(raw)["error"]["message"]
        async with client.session.get(client.url + "/health") as response:
            assert response.status == 503
        async with a:
            await client.until(lambda: parts.servers[0].up)
            assert (await client.complete())[0] == 200
            assert parts.servers[0].circuit == "closed"


@in_loop
async def test_deadlines():
    async with cluster("M", limits={"prompt_s": 0.2, "attempts": 2}) as (client, a):
        a.hang = True
        status, _, raw = await client.complete({"prompt": "x", "stream": True})
        assert status == 504 and "no answer in time" in json.loads(raw)["error"]["message"]
        assert len(a.calls) == 2
    async with cluster("M", limits={"prompt_s": 0.5, "total_s": 1.5}) as (client, a):
        a.pause_s = 0.12
        assert (await client.complete())[0] == 200, "a whole answer may take longer than a prompt"
        a.hang = True
        status, _, _ = await client.complete()
        assert status == 504 and len(a.calls) == 2
    async with cluster("M", limits={"idle_s": 0.2}) as (client, a):
        a.pause_s = 1.0
        status, texts, events = await client.stream()
        assert status == 200 and len(texts) == 1 and "no more tokens in time" in events[-1]
        await client.until(lambda: a.cancelled == 1 and client.router.parts.upstream.connections == 0)


@in_loop
async def test_stopping_finishes_what_is_in_progress():
    async with cluster("M") as (client, a):
        a.pause_s = 0.05
        first = asyncio.create_task(client.complete())
        await client.until(lambda: a.active == 1)
        stopping = asyncio.create_task(client.router.stop())
        await asyncio.sleep(0.05)
        with pytest.raises(aiohttp.ClientConnectorError):
            async with aiohttp.ClientSession() as fresh:
                await fresh.get(client.url + "/health")
        assert (await first)[0] == 200 and await stopping


@in_loop
async def test_keys_and_sizes():
    os.environ["SPLITGYM_TEST_KEYS"] = "first, second"
    try:
        listen = {"port": 0, "keys": {"env": "SPLITGYM_TEST_KEYS"}, "max_body_bytes": 2000}
        async with cluster("M", listen=listen) as (client, a):
            for headers in (
                {},
                {"Authorization": "Bearer nope"},
                {"Authorization": "first"},
                {"X-Api-Key": "x"},
            ):
                status, got, raw = await client.complete(headers=headers)
                assert status == 401 and got["WWW-Authenticate"] == "Bearer" and b"API key" in raw
            assert not a.calls
            for headers in ({"Authorization": "Bearer second"}, {"X-Api-Key": "first"}):
                assert (await client.complete(headers=headers))[0] == 200
            good = {"Authorization": "Bearer first"}
            status, _, _ = await client.complete({"prompt": "x" * 3000}, headers=good)
            assert status == 413

            async def pieces():
                for _ in range(30):
                    yield b"x" * 100

            async with client.session.post(
                client.url + "/v1/completions", data=pieces(), headers=good
            ) as response:
                assert response.status == 413
            async with client.session.get(client.url + "/v1/models", headers={"X": "y" * 20_000}) as response:
                assert response.status == 400
    finally:
        del os.environ["SPLITGYM_TEST_KEYS"]


@in_loop
async def test_connections_are_bounded():
    async with cluster("M", listen={"port": 0, "max_connections": 3}) as (client, a):
        open_ = [await asyncio.open_connection("127.0.0.1", client.router.port) for _ in range(3)]
        reader, writer = await asyncio.open_connection("127.0.0.1", client.router.port)
        assert (await reader.read()).startswith(b"HTTP/1.1 503") and client.router.door.turned_away == 1
        for _, other in [*open_, (reader, writer)]:
            other.close()
        await client.until(lambda: not client.router.door.connections)
        assert (await client.complete())[0] == 200


def test_bodies_are_cut_and_joined_by_the_letter():
    assert json.loads(prompt_body({"a": 1}))["max_tokens"] == 1
    for raw in (b"{}", b" { } ", b'{"a": 1}', b'{"a": {}}\n'):
        joined = json.loads(token_body(raw, {"k": [1]}))
        assert joined.pop("kv_transfer_params") == {"k": [1]} and joined == json.loads(raw)


def test_streams_are_counted_however_they_are_cut():
    stream = b"".join(b'data: {"t": "data: \\n\\n"}\n\n' for _ in range(5))
    stream += b'data: {"usage": {"prompt_tokens": 3, "completion_tokens": 5}}\n\ndata: [DONE]\n\n'
    for size in (1, 2, 3, 7, 10_000):
        meter = StreamMeter()
        total = sum(meter.feed(stream[i : i + size]) for i in range(0, len(stream), size))
        assert total == meter.events == 7 and meter.done and meter.usage() == (3, 5)


@in_loop
async def test_a_stream_that_begins_badly_is_tried_elsewhere():
    async with cluster("MM") as (client, a, b):
        a.malformed = True
        for _ in range(3):
            status, texts, _ = await client.stream()
            assert status == 200 and len(texts) == 5
        assert a.calls and len(b.calls) == 3
        assert a.calls[0][3]["X-Request-Id"] + "-1" == b.calls[0][3]["X-Request-Id"], "a name of its own"


@in_loop
async def test_requests_that_are_not_streamed_count_as_decoding():
    """Nobody sees their tokens; the profile says when they begin."""
    async with cluster("M") as (client, a):
        a.pause_s = 0.3
        state, seen = client.router.parts.state, []
        presume = state.presume

        def watched(flight):
            before = state.refresh().prompt_tokens[0] > 0
            presume(flight)
            seen.append((before, int(state.refresh().prompt_tokens[0]), int(state.view.running[0])))

        state.presume = watched  # looked at as it happens: a busy machine may look too late
        assert (await client.complete({"prompt": "x" * 40}))[0] == 200
        assert seen == [(True, 0, 1)]
        assert not state.refresh().running.any()
