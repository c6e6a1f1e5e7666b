"""Small stand-ins for vLLM servers, and a router in front of them, for tests on loopback."""

import asyncio
import json
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from splitgym.config import from_mapping
from splitgym.router.app import Router
from splitgym.router.config import RouterConfig

METRICS = """# HELP vllm:num_requests_running n
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:cache_config_info{block_size="16",num_gpu_blocks="1000",engine="0"} 1.0
"""


class FakeVllm:
    """One server. Switches say how it misbehaves.

    Attributes:
        calls: (path, body as parsed, body as sent, headers) of every completion.
        status: answer completions with this.
        only: misbehave for "prompt" or "token" requests only; None for all.
        port: to listen at; one that comes back needs one of `tests.ports`, as the system gives others away.
        go: an event that answers wait for, streams after their first token.
    """

    def __init__(self, name="s", tokens=5, port=0):
        self.name, self.tokens, self.port = name, tokens, port
        self.calls, self.others = [], []
        self.status = 200
        self.only = None
        self.hang = self.malformed = self.no_transfer = self.reset = False
        self.break_after = None  # events after which a stream breaks off
        self.pause_s = 0.0  # between tokens
        self.go = None
        self.healthy = True
        self.active = self.cancelled = self.most = 0
        self.url = ""

    async def __aenter__(self):
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_route("*", "/{path:.*}", self._other)
        self.runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", self.port)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error):
        await self.runner.cleanup()

    async def _health(self, request):
        return web.Response(status=200 if self.healthy else 500)

    async def _metrics(self, request):
        return web.Response(text=METRICS)

    async def _other(self, request):
        self.others.append((request.method, request.rel_url.raw_path_qs, await request.read()))
        return web.json_response({"path": request.path, "server": self.name}, headers={"X-Own": self.name})

    async def _complete(self, request):
        raw = await request.read()
        body = json.loads(raw)
        self.calls.append((request.path, body, raw, request.headers.copy()))
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            return await self._answer(request, body)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.active -= 1

    async def _answer(self, request, body):
        transfer = body.get("kv_transfer_params") or {}
        role = "prompt" if transfer.get("do_remote_decode") else "token"
        if self.only in (None, role):
            if self.hang:
                await asyncio.sleep(600)
            if self.reset:
                request.transport.abort()
                await asyncio.sleep(1)
            if self.status != 200:
                return web.json_response(
                    {"error": {"message": "no", "code": self.status}}, status=self.status
                )
            if self.malformed and body.get("stream"):
                text = 'data: {"choices": [\n\n'
                return web.Response(text=text, content_type="text/event-stream")
            if self.malformed:
                return web.Response(text='{"choices": [', content_type="application/json")
        await asyncio.sleep(self.pause_s)
        usage = {"prompt_tokens": 7, "completion_tokens": self.tokens, "total_tokens": 7 + self.tokens}
        if role == "prompt":
            answer = {"id": "p", "choices": [{"text": "x"}], "usage": {**usage, "completion_tokens": 1}}
            if not self.no_transfer:
                answer["kv_transfer_params"] = {
                    "do_remote_prefill": True,
                    "do_remote_decode": False,
                    "remote_engine_id": self.name,
                    "remote_block_ids": [[1, 2, 3]],
                    "remote_host": "127.0.0.1",
                    "remote_port": 5600,
                    "tp_size": 1,
                }
            return web.json_response(answer)
        if not body.get("stream"):
            await asyncio.sleep(self.pause_s * self.tokens)
            await self._let_go()
            return web.json_response(
                {"choices": [{"text": "t" * self.tokens}], "usage": usage, "by": self.name}
            )
        return await self._stream(request, body, usage)

    async def _let_go(self):
        if self.go is not None:
            await self.go.wait()

    async def _stream(self, request, body, usage):
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await out.prepare(request)
        for i in range(self.tokens):
            if self.break_after == i and self.only in (None, "token"):
                request.transport.abort()
                return out
            event = {"choices": [{"index": 0, "text": f"{self.name}{i} ", "finish_reason": None}]}
            await out.write(f"data: {json.dumps(event)}\n\n".encode())
            await asyncio.sleep(self.pause_s)
            await self._let_go()
        if (body.get("stream_options") or {}).get("include_usage"):
            await out.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode())
        await out.write(b"data: [DONE]\n\n")
        await out.write_eof()
        return out


def router_config(servers, shape, /, **over):
    """A configuration for fake servers; `over` replaces whole sections."""
    names = {"P": "prompt", "T": "token", "M": "mixed"}
    data = {
        "servers": [
            {"name": server.name, "url": server.url, "pool": names[pool], "max_requests": 64}
            for server, pool in zip(servers, shape, strict=True)
        ],
        "listen": {"port": 0},
        "admin": {"port": 0},
        "policy": {"confine": True, "deadline_ms": 1000.0},
        "health": {"interval_s": 0.05, "open_s": 0.1, "timeout_s": 1.0},
        "limits": {"queue_s": 1.0, "shutdown_s": 5.0},
        "pools": {"interval_s": 60.0},
    }
    for key, value in over.items():
        data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
    return from_mapping(RouterConfig, data, "test")


class Client:
    """Talks to a router."""

    def __init__(self, router, session):
        self.router, self.session = router, session
        self.url = f"http://127.0.0.1:{router.port}"
        self.admin = f"http://127.0.0.1:{router.admin_port}"

    async def complete(self, body=None, path="/v1/completions", **kwargs):
        """(status, headers, bytes) of a completion."""
        body = {"model": "m", "prompt": "hello there", "max_tokens": 5} if body is None else body
        async with self.session.post(self.url + path, json=body, **kwargs) as response:
            return response.status, response.headers, await response.read()

    async def stream(self, **fields):
        """Texts of a streamed completion, and everything that came."""
        body = {"model": "m", "prompt": "hello there", "max_tokens": 5, "stream": True, **fields}
        status, _, raw = await self.complete(body)
        events = [line[6:] for line in raw.decode().split("\n") if line.startswith("data: ")]
        parsed = [json.loads(event) for event in events if event != "[DONE]"]
        texts = [e["choices"][0]["text"] for e in parsed if e.get("choices")]
        return status, texts, events

    async def state(self):
        """The admin interface's view."""
        async with self.session.get(f"{self.admin}/admin/state") as response:
            return await response.json()

    async def until(self, condition, seconds=30.0):
        """Wait until a condition holds."""
        for _ in range(int(seconds / 0.01)):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it never came to hold")


@asynccontextmanager
async def routed(servers, shape="PT", /, **over):
    """A client of a router in front of started servers."""
    router = Router(router_config(servers, shape, **over))
    await router.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Client(router, session)
    finally:
        await router.stop(2.0)


@asynccontextmanager
async def cluster(shape="PT", /, **over):
    """Fake servers named a, b, c, ... and a client of the router in front of them."""
    servers = [FakeVllm("abcdefgh"[i]) for i in range(len(shape))]
    for server in servers:
        await server.__aenter__()
    try:
        async with routed(servers, shape, **over) as client:
            yield client, *servers
    finally:
        for server in servers:
            await server.__aexit__()


def in_loop(main):
    """Run an async test."""

    def test():
        asyncio.run(asyncio.wait_for(main(), 300))  # a hang, not a slow compiler

    test.__name__, test.__doc__ = main.__name__, main.__doc__
    return test
