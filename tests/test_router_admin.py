"""The admin port: metrics, policies swapped while requests go on, roles, servers, the status page."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from splitgym import policy
from splitgym.router import admin as admin_module
from splitgym.router.admin import PAGE
from tests.bundles import edit, scorer_bundle
from tests.fake_vllm import FakeVllm, cluster, in_loop

CHROMIUM = "/usr/bin/chromium"


async def post(client, path, body, headers=None, method="post"):
    async with getattr(client.session, method)(client.admin + path, json=body, headers=headers) as response:
        return response.status, await response.json()


@in_loop
async def test_metrics_tell_what_happened():
    async with cluster("PT") as (client, a, b):
        for _ in range(3):
            await client.stream()
        await client.until(lambda: client.router.parts.servers[0].reports)
        async with client.session.get(client.admin + "/metrics") as response:
            assert response.content_type == "text/plain"
            text = await response.text()
        for line in (
            'splitgym_router_requests_total{endpoint="/v1/completions",outcome="ok"} 3.0',
            'splitgym_router_decisions_total{by="policy"} 3.0',
            'splitgym_router_server_pool{pool="prompt",server="a"} 1.0',
            'splitgym_router_server_reported_running{server="a"} 4.0',
            'splitgym_router_server_kv_capacity_tokens{server="b"} 16000.0',
            "splitgym_router_first_byte_seconds_count 3.0",
            "splitgym_router_output_tokens_total 15.0",
            "splitgym_router_active 0.0",
        ):
            assert line in text, line
        async with client.session.get(client.url + "/metrics") as response:
            assert response.status == 404, "not on the traffic's port"
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    board = json.loads((Path(admin_module.__file__).parent / "grafana.json").read_text())
    used = json.dumps(board)
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            assert any(name in target["expr"] for name in names), target["expr"]
    assert "splitgym_router_slo_total" in used


@in_loop
async def test_policies_are_swapped_while_requests_go_on():
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        bundles = Path(name)
        good, bad = scorer_bundle(bundles / "good"), scorer_bundle(bundles / "bad")
        edit(bad, lambda data: data.update(format=2))
        async with cluster("PPTT", admin={"port": 0, "bundles": name}) as (client, *servers):
            for server in servers:
                server.pause_s = 0.002
            tasks = [asyncio.create_task(client.stream()) for _ in range(30)]
            status, answer = await post(client, "/admin/policy", {"routing": "good", "sizing": "reactive"})
            assert status == 200 and answer["bundle"] == policy.load(good).sha256
            assert (await client.state())["policy"]["name"] == "small+reactive"
            status, answer = await post(client, "/admin/policy", {"routing": "bad"})
            assert status == 400 and "format 2" in answer["error"]["message"]
            assert (await client.state())["policy"]["name"] == "small+reactive", "the old one stays"
            for path in ("/etc", "../x", str(bundles.parent)):
                for asked in ({"routing": path}, {"routing": "good", "sizing": path}):
                    status, answer = await post(client, "/admin/policy", asked)
                    assert status == 403, asked
            status, answer = await post(client, "/admin/policy", {"routing": "index"})
            assert status == 200 and answer["policy"] == "index"
            assert (await post(client, "/admin/shadow", {"shadow": True}))[0] == 200
            assert (await client.state())["policy"]["shadow"] is True
            assert {(await task)[0] for task in tasks} == {200}
            assert client.router.parts.metrics.swaps == {"done": 2, "refused": 1}


@in_loop
async def test_roles_and_servers():
    async with cluster("PPT") as (client, a, b, c), FakeVllm("late") as late:
        status, _ = await post(client, "/admin/role", {"server": "b", "pool": "token"})
        assert status == 202
        await client.until(lambda: client.router.pools.changes)
        state = await client.state()
        assert [s["home"] for s in state["servers"]] == ["prompt", "token", "token"]
        assert state["changes"][0]["server"] == "b" and state["changes"][0]["why"] == "admin"
        for body, wanted in (
            ({"server": "nobody", "pool": "token"}, 404),
            ({"server": "a", "pool": "nowhere"}, 400),
            ({"server": "a", "pool": "token"}, 409),
            ({"server": 3}, 400),
            ({"surprise": 1}, 400),
        ):
            assert (await post(client, "/admin/role", body))[0] == wanted, body
        c.pause_s = 0.02
        running = asyncio.create_task(client.stream())
        new = {"name": "late", "url": late.url, "pool": "prompt"}
        assert (await post(client, "/admin/servers", new))[0] == 201
        assert (await post(client, "/admin/servers", new))[0] == 409
        for machine in ("/etc/hostname", "../profile.json", "surprise"):
            status, answer = await post(client, "/admin/servers", {**new, "name": "z", "machine": machine})
            assert status == 403 and "built-in" in answer["error"]["message"]
        for url, wanted in (("http://8.8.8.8:1", 403), ("http://x/y", 400), ("file:///etc/passwd", 400)):
            assert (await post(client, "/admin/servers", {"name": "z", "url": url}))[0] == wanted
        assert (await running)[0] == 200, "requests in flight keep their places"
        assert (await post(client, "/admin/servers/a", {}, method="delete"))[0] == 200
        assert (await client.stream())[0] == 200 and len(late.calls) == 1
        assert [s["name"] for s in (await client.state())["servers"]] == ["b", "c", "late"]
        assert not any(client.router.parts.state.busy(m) for m in range(4))


@in_loop
async def test_who_may_use_it():
    os.environ["SPLITGYM_TEST_ADMIN"] = "boss"
    try:
        keys = {"port": 0, "keys": {"env": "SPLITGYM_TEST_ADMIN"}}
        async with cluster("M", admin=keys) as (client, a):
            for path in ("/admin/state", "/metrics"):
                async with client.session.get(client.admin + path) as response:
                    assert response.status == 401
            good = {"Authorization": "Bearer boss"}
            async with client.session.get(client.admin + "/admin/state", headers=good) as response:
                assert response.status == 200 and "boss" not in await response.text()
            async with client.session.get(client.admin + "/") as response:
                assert response.status == 200, "the page asks for the key"
            assert (await client.complete())[0] == 200, "traffic has keys of its own"
    finally:
        del os.environ["SPLITGYM_TEST_ADMIN"]
    async with cluster("M") as (client, a):
        for headers in ({"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example:80"}):
            async with client.session.get(client.admin + "/admin/state", headers=headers) as response:
                assert response.status == 403, "a page of another site that resolves to loopback"
        async with client.session.post(
            client.admin + "/admin/shadow", data='{"shadow":true}', headers={"Content-Type": "text/plain"}
        ) as response:
            assert response.status == 415, "what a form elsewhere could send"


def test_the_page_needs_nothing_from_outside():
    page = PAGE.read_text()
    assert "http://www.w3.org/2000/svg" in page
    rest = page.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in rest and "https://" not in rest and "src=" not in rest
    assert "innerHTML" not in page, "text of servers and clients must never become markup"


@pytest.mark.parametrize("look", ["desktop", "phone in the dark"])
def test_the_page_in_a_browser(tmp_path, look):
    playwright = pytest.importorskip("playwright.async_api")
    if not Path(CHROMIUM).exists():
        pytest.skip("no chromium here")
    shots = Path(os.environ.get("SPLITGYM_ARTEFACTS", tmp_path))

    async def main():
        async with cluster("PPTM") as (client, *servers), playwright.async_playwright() as kit:
            phone = look != "desktop"
            browser = await kit.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = await browser.new_page(
                viewport={"width": 390, "height": 844} if phone else {"width": 1200, "height": 900},
                color_scheme="dark" if phone else "light",
            )
            wrong = []
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
            await page.goto(client.admin + "/")
            for _ in range(5):
                await client.stream()
            await client.complete(headers={"X-Request-Id": "<b id=evil>x</b>"})
            await post(client, "/admin/role", {"server": "b", "pool": "token"})
            await page.wait_for_selector("#changes td:has-text('admin')", timeout=10_000)
            assert await page.locator("article.server").count() == 4
            assert await page.locator("#decisions tbody tr").count() == 6
            assert await page.locator("#evil").count() == 0, "a request's id is text, not markup"
            assert "of 5" in await page.locator("#tiles").inner_text()
            wide = await page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wide <= 0, "no sideways scrolling"
            back = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (back == "rgb(20, 23, 28)") == phone
            await page.screenshot(path=str(shots / f"router-{look.split()[0]}.png"), full_page=True)
            assert not wrong
            await browser.close()

    in_loop(main)()
