"""The simulated vLLM server: caches that move between engines, and faults that it is told to have."""

import asyncio
import json

import aiohttp
import pytest
from engine_help import PARAMS, REMOTE_DECODE, Client, engines, is_idle, play, text_of, until
from tiny import MS, tiny_profile
from virtual_time import virtual_time

from splitgym.sim.live_request import Kind

WORDS = "the quick brown fox jumps over the lazy dog"

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


def test_a_lease_is_kept_while_the_cache_waits_and_runs_out_otherwise(monkeypatch):
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

    with virtual_time(monkeypatch, "splitgym.router.engine.clock") as (loop, _):
        play(scenario, loop)


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
