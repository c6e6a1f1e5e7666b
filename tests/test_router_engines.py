"""The router in front of simulated engines: the real protocol, real timing, real trouble."""

import asyncio
import json
import ssl
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest

from splitgym.policy import load
from splitgym.router.engine import EngineOptions, running
from tests.fake_vllm import Client, FakeVllm, in_loop, routed

OPTIONS = EngineOptions(engines=4, port=0, time_scale=20.0, mean_output_tokens=0.0)


def names(engines):
    """What `routed` needs of the engines."""
    return [SimpleNamespace(name="abcd"[i], url=host.url) for i, host in enumerate(engines.hosts)]


async def metric(session, url, name, **labels):
    async with session.get(url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    wanted = [f'{k}="{v}"' for k, v in labels.items()]
    found = [line for line in lines if line.startswith(name + "{") and all(w in line for w in wanted)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


@in_loop
async def test_caches_are_pulled_and_the_official_client_works():
    openai = pytest.importorskip("openai")
    async with running(OPTIONS) as engines, routed(names(engines), "PPTT") as client:
        official = openai.AsyncOpenAI(base_url=client.url + "/v1", api_key="none", max_retries=0)
        model = (await official.models.list()).data[0].id
        done = await official.completions.create(model=model, prompt="one two three " * 40, max_tokens=8)
        assert done.usage.completion_tokens == 8 and done.choices[0].finish_reason == "length"
        chat = [{"role": "user", "content": "tell me " * 30}]
        whole = await official.chat.completions.create(model=model, messages=chat, max_tokens=6, n=2)
        assert len(whole.choices) == 2 and all(c.message.content for c in whole.choices)
        pieces = [
            piece
            async for piece in await official.chat.completions.create(
                model=model, messages=chat, max_tokens=6, stream=True, stream_options={"include_usage": True}
            )
        ]
        assert pieces[-1].usage.completion_tokens == 6
        with pytest.raises(openai.NotFoundError):
            await official.completions.create(model="nobody", prompt="x")
        with pytest.raises(openai.BadRequestError):
            await official.completions.create(model=model, prompt="x", max_tokens=-1)
        pulled = 0.0
        for host in engines.hosts[2:]:
            pulled += await metric(
                client.session, host.url, "vllm:prompt_tokens_by_source_total", source="external_kv_transfer"
            )
        assert pulled >= done.usage.prompt_tokens + whole.usage.prompt_tokens
        seen = (await client.state())["servers"]
        assert seen[0]["served"] and seen[2]["served"]
        await official.close()


@in_loop
async def test_a_killed_engine_loses_no_request_that_had_not_begun():
    async with running(OPTIONS) as engines, routed(names(engines), "PPTT", limits={"attempts": 4}) as client:
        model = engines.hosts[0].server.model.name
        tasks = []
        for i in range(60):
            body = {"model": model, "prompt": "word " * 200, "max_tokens": 20}
            tasks.append(asyncio.create_task(client.complete(body)))
            await asyncio.sleep(0.005)
            if i == 20:
                await engines.hosts[0].kill()
            if i == 40:
                await engines.hosts[3].kill()
        answers = [await task for task in tasks]
        assert [status for status, _, _ in answers] == [200] * 60
        assert all(json.loads(raw)["usage"]["completion_tokens"] == 20 for _, _, raw in answers)
        await client.until(lambda: not client.router.parts.servers[0].healthy)
        state = client.router.parts.state
        assert not any(state.busy(m) for m in range(4)) and client.router.parts.active == 0


# ---- the command ------------------------------------------------------------------------------------------


def test_the_command_serves_reloads_and_stops(tmp_path):
    """SIGHUP loads the policy again, SIGTERM lets requests end."""
    import signal

    from splitgym.policy import export_heuristic

    export_heuristic("index", tmp_path / "bundle")

    async def main():
        async with FakeVllm("a") as a:
            a.pause_s = 0.1
            (tmp_path / "router.yaml").write_text(
                json.dumps(
                    {
                        "servers": [{"name": "a", "url": a.url}],
                        "listen": {"port": 0},
                        "admin": {"port": 0},
                        "policy": {"routing": str(tmp_path / "bundle")},
                    }
                )
            )
            words = [sys.executable, "-m", "splitgym.cli", "route", "--config", str(tmp_path / "router.yaml")]
            process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE)

            async def line():
                return (await process.stdout.readline()).decode()

            try:
                ports = [int((await line()).strip().rsplit(":", 1)[1].strip("/")) for _ in range(2)]
                async with aiohttp.ClientSession() as session:
                    client = Client(SimpleNamespace(port=ports[0], admin_port=ports[1]), session)
                    assert (await client.state())["policy"]["bundle"] == load(tmp_path / "bundle").sha256
                    process.send_signal(signal.SIGHUP)
                    assert await line() == "policy index loaded\n"
                    (tmp_path / "bundle" / "manifest.json").write_text("{}")
                    process.send_signal(signal.SIGHUP)
                    assert "policy kept" in await line()
                    first = asyncio.create_task(client.complete())
                    await client.until(lambda: a.active == 1)
                    process.send_signal(signal.SIGTERM)
                    assert (await first)[0] == 200
                assert await asyncio.wait_for(process.wait(), 20) == 0
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    in_loop(main)()


def test_bad_configurations_stop_the_command_with_one_line(tmp_path):
    (tmp_path / "bad.yaml").write_text("servers: [{name: a, url: 'http://127.0.0.1:1', frob: 1}]")
    words = [sys.executable, "-m", "splitgym.cli", "route", "--config", str(tmp_path / "bad.yaml")]
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode == 2 and found.stdout == "" and found.stderr.count("\n") == 1
    assert "frob" in found.stderr


def test_tls(tmp_path):
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        + ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path,
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("no openssl here")

    async def main():
        listen = {
            "port": 0,
            "certificate": str(tmp_path / "cert.pem"),
            "private_key": str(tmp_path / "key.pem"),
        }
        async with FakeVllm("a") as a, routed([a], "M", listen=listen) as client:
            context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
            url = client.url.replace("http:", "https:") + "/v1/completions"
            async with client.session.post(url, json={"prompt": "x"}, ssl=context) as response:
                assert response.status == 200
            with pytest.raises(aiohttp.ClientError):
                await client.complete()

    in_loop(main)()
    assert Path(tmp_path / "key.pem").exists()
