"""Role changes: asked for, drained, flipped, undone when they fail; and how they reach other software."""

import asyncio
import json
from urllib.parse import unquote

import aiohttp
import pytest
from aiohttp import web

from splitgym.router.drivers import DriverError, RustRouter, Sglang
from splitgym.router.protocol import Refused
from splitgym.router.servers import Circuit, Server
from splitgym.types import Pool
from tests.fake_vllm import cluster, in_loop
from tests.test_router_decisions import SERVERS


class Wants:
    """A sizing scheduler that wants the given moves."""

    name = "wants"

    def __init__(self, *moves):
        self.moves = list(moves)

    def reset(self, view, seed):
        pass

    def resize(self, view):
        return self.moves.pop(0) if self.moves else 0


def use(client, *moves):
    decisions = client.router.parts.decisions
    object.__setattr__(decisions.deciders, "sizing", Wants(*moves))
    return client.router.pools


@in_loop
async def test_the_policy_moves_the_least_loaded_server_and_pools_stay_large_enough():
    async with cluster("PPPT", pools={"interval_s": 60.0, "cool_down_s": 0.0}) as (client, *_):
        parts = client.router.parts
        pools = use(client, -1, -1, -1, 1)
        parts.servers[0].enter()
        for _ in range(4):
            pools.tick()
            await client.until(lambda: not pools._moving)
        homes = [parts.state.home(m).name for m in range(4)]
        assert homes.count("PROMPT") + homes.count("TOKEN") == 4 and homes.count("PROMPT") == 2
        assert [c["outcome"] for c in pools.changes] == ["done"] * 3, (
            "the third would have left no prompt server"
        )
        assert parts.metrics.role_changes["TOKEN", "done"] == 2
        parts.servers[0].leave()


@in_loop
async def test_changes_cool_down_and_can_be_paused():
    async with cluster("PPT", pools={"interval_s": 60.0, "cool_down_s": 60.0}) as (client, *_):
        pools = use(client, -1, 1)
        pools.paused = True
        assert pools.tick() == 0
        pools = use(client, -1, 1)
        pools.paused = False
        assert pools.tick() == 1
        await client.until(lambda: not pools._moving)
        assert pools.tick() == 0, "too soon"


@in_loop
async def test_roles_change_under_load_without_a_failed_request():
    """vLLM's pull serves either role: nothing is drained, nothing fails."""
    async with cluster("PPTT") as (client, *servers):
        for server in servers:
            server.pause_s = 0.005
        pools, parts = client.router.pools, client.router.parts
        tasks = [asyncio.create_task(client.stream()) for _ in range(60)]
        for m, to in ((0, Pool.TOKEN), (3, Pool.PROMPT), (0, Pool.PROMPT)):
            await asyncio.sleep(0.02)
            assert await pools.move(parts.servers[m], to, "test")
        answers = [await task for task in tasks]
        assert all(status == 200 and len(texts) == 5 for status, texts, _ in answers)
        assert [c["outcome"] for c in pools.changes] == ["done"] * 3
        assert not any(parts.state.busy(m) for m in range(4))


@in_loop
async def test_a_server_drains_before_its_role_changes():
    async with cluster("PTT", pools={"interval_s": 60.0, "drain": True}) as (client, a, b, c):
        b.go = c.go = held = asyncio.Event()
        parts, pools = client.router.parts, client.router.pools
        first = asyncio.create_task(client.stream())
        await client.until(lambda: b.active + c.active == 1)
        m, busy, idle = (1, b, c) if b.active else (2, c, b)
        task = pools.move(parts.servers[m], Pool.PROMPT, "test")
        await client.until(lambda: pools.stage(parts.servers[m]) == "draining")
        assert pools.stage(parts.servers[m]) == "draining" and not parts.servers[m].up
        with pytest.raises(Refused, match="changing its role already"):
            pools.move(parts.servers[m], Pool.PROMPT, "test")
        assert parts.state.home(m) is Pool.TOKEN
        idle.go = None
        assert (await client.stream())[0] == 200 and len(idle.calls) == 1, "new work goes elsewhere"
        held.set()
        assert (await first)[0] == 200 and await task
        assert parts.state.home(m) is Pool.PROMPT and parts.servers[m].up


@in_loop
async def test_caches_that_nobody_pulled_are_waited_out():
    over = {"interval_s": 60.0, "drain": True, "kv_lease_s": 0.3}
    async with cluster("PPT", pools=over, limits={"attempts": 1}) as (client, a, b, c):
        c.status, c.only = 500, "token"
        await client.complete()
        parts = client.router.parts
        m = 0 if parts.servers[0].leases else 1
        assert parts.servers[m].leases == 1
        start = parts.now_s()
        assert await client.router.pools.move(parts.servers[m], Pool.TOKEN, "test")
        assert parts.now_s() - start > 0.1 and parts.servers[m].leases == 0


@in_loop
async def test_a_server_that_does_not_drain_goes_back():
    over = {"interval_s": 60.0, "drain": True, "drain_timeout_s": 0.1}
    async with cluster("PTT", pools=over) as (client, a, b, c):
        b.go = c.go = asyncio.Event()
        parts, pools = client.router.parts, client.router.pools
        first = asyncio.create_task(client.stream())
        await client.until(lambda: b.active + c.active == 1)
        m = 1 if b.active else 2
        assert not await pools.move(parts.servers[m], Pool.PROMPT, "test")
        b.go.set()
        assert parts.state.home(m) is Pool.TOKEN and parts.servers[m].up
        assert pools.changes[-1]["outcome"] == "not drained" and (await first)[0] == 200


@in_loop
async def test_pools_never_become_empty():
    async with cluster("PT") as (client, *_):
        with pytest.raises(Refused, match="would have 0 servers"):
            client.router.pools.move(client.router.parts.servers[0], Pool.TOKEN, "test")
        with pytest.raises(Refused, match="in the prompt pool already"):
            client.router.pools.move(client.router.parts.servers[0], Pool.PROMPT, "test")


# ---- other software ---------------------------------------------------------------------------------------


class Other:
    """SGLang's switch and the Rust router's /workers, as far as the drivers use them."""

    def __init__(self):
        self.role, self.refuse, self.seen = "prefill", False, []
        self.workers = {}

    async def __aenter__(self):
        app = web.Application()
        app.router.add_post("/pd_role_switch", self._switch)
        app.router.add_get("/workers", self._list)
        app.router.add_post("/workers", self._create)
        app.router.add_delete("/workers/{url}", self._delete)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        self.session = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *error):
        await self.session.close()
        await self.runner.cleanup()

    async def _switch(self, request):
        body = await request.json()
        self.seen.append((body, request.headers.get("Authorization")))
        if self.refuse:
            return web.json_response({"success": False, "message": "busy"}, status=400)
        old, self.role = self.role, body["new_role"]
        return web.json_response({"success": True, "message": "ok", "old_role": old, "new_role": self.role})

    async def _list(self, request):
        return web.json_response({"workers": [{"url": u, **w} for u, w in self.workers.items()]})

    async def _create(self, request):
        body = await request.json()
        self.seen.append(("POST", body))
        if self.refuse and body["worker_type"] == "decode":
            return web.json_response({"error": "no", "code": "X"}, status=400)
        self.workers[body.pop("url")] = body
        return web.json_response({"success": True, "message": "added"})

    async def _delete(self, request):
        url = unquote(request.match_info["url"])
        self.seen.append(("DELETE", url))
        del self.workers[url]
        return web.json_response({"success": True, "message": "removed"})


def a_server(url):
    config = type("C", (), {"name": "a", "url": url, "max_requests": 2})()
    health = type("H", (), {"failures": 2, "open_s": 1.0, "open_max_s": 4.0})()
    now = [0]
    return Server(0, config, health, lambda: now[0], lambda i, up: None), now


@in_loop
async def test_sglang_is_told_to_switch():
    async with Other() as other:
        driver, (server, _) = Sglang(other.session, ("secret",)), a_server(other.url)
        assert driver.drains
        await driver.flip(server, Pool.TOKEN)
        assert other.role == "decode" and other.seen == [({"new_role": "decode"}, "Bearer secret")]
        other.refuse = True
        with pytest.raises(DriverError, match="status 400"):
            await driver.flip(server, Pool.PROMPT)


@in_loop
async def test_the_rust_router_gets_its_worker_back_in_the_other_type():
    async with Other() as other:
        driver, (server, _) = RustRouter(other.session, other.url, ()), a_server("http://10.0.0.5:8000")
        with pytest.raises(DriverError, match="has no worker"):
            await driver.flip(server, Pool.TOKEN)
        other.workers["http://10.0.0.5:8000"] = {"worker_type": "prefill", "model_id": "m", "priority": 50}
        await driver.flip(server, Pool.TOKEN)
        added = {"worker_type": "decode", "model_id": "m", "priority": 50}
        assert other.workers == {"http://10.0.0.5:8000": added}
        other.workers["http://10.0.0.5:8000"]["worker_type"] = "prefill"
        other.refuse = True
        with pytest.raises(DriverError):
            await driver.flip(server, Pool.TOKEN)
        assert other.workers["http://10.0.0.5:8000"]["worker_type"] == "prefill", "put back as it was"


@in_loop
async def test_a_driver_that_fails_leaves_the_role():
    async with Other() as other:
        over = {"interval_s": 60.0, "driver": "vllm-router", "driver_url": other.url}
        async with cluster("PPT", pools=over) as (client, *_):
            parts, pools = client.router.parts, client.router.pools
            assert not await pools.move(parts.servers[0], Pool.TOKEN, "test")
            assert parts.state.home(0) is Pool.PROMPT and parts.servers[0].up
            assert pools.changes[-1]["outcome"].startswith("failed: the router")
            assert json.dumps(list(pools.changes)) and SERVERS


def test_the_circuit_breaker():
    server, now = a_server("http://127.0.0.1:1")
    server.broke("x")
    assert server.up and server.circuit is Circuit.CLOSED
    server.broke("x")
    assert not server.up and server.circuit is Circuit.OPEN
    server.checked(True)
    assert server.circuit is Circuit.OPEN, "not before its time"
    now[0] = 1_000_000_000
    server.checked(True)
    assert server.circuit is Circuit.HALF_OPEN and server.up
    server.enter()
    assert not server.up, "one probe at a time"
    server.broke("again")
    server.leave()
    assert server.circuit is Circuit.OPEN
    now[0] = 2_900_000_000
    server.checked(True)
    assert server.circuit is Circuit.OPEN, "twice as long after a failed probe"
    now[0] = 3_000_000_000
    server.checked(True)
    server.enter()
    server.succeeded()
    server.leave()
    assert server.circuit is Circuit.CLOSED and server.up
    server.enter()
    server.enter()
    assert not server.up, "full"
