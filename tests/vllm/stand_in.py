"""NOT the router: the least that makes two vLLM servers one, so that the tests beside it run without it.

Two steps a request (prompt there, its `kv_transfer_params` here), and before the first byte another try on
one server alone. No policy, no health checks, no limits.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import aiohttp
from aiohttp import web

REMOTE_DECODE = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
_FAILED = (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError)


@dataclass
class StandIn:
    """Where prompts and tokens are made; both may change at any time."""

    prompt_url: str
    token_url: str
    url: str = ""
    retries: int = 0

    def flip(self) -> None:
        """Every server takes the other role; both caches may be pulled from either."""
        self.prompt_url, self.token_url = self.token_url, self.prompt_url

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt_url, token_url = self.prompt_url, self.token_url
        try:
            params = await self._prompt(prompt_url + request.path, body)
            return await self._forward(request, token_url, {**body, "kv_transfer_params": params})
        except _FAILED:
            self.retries += 1
        for url in (prompt_url, token_url):
            with contextlib.suppress(*_FAILED):
                return await self._forward(request, url, body)
        return web.json_response({"error": {"message": "no server", "code": 503}}, status=503)

    async def _prompt(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        first = {k: v for k, v in body.items() if k not in ("stream_options", "min_tokens")}
        first |= {"max_tokens": 1, "stream": False, "kv_transfer_params": REMOTE_DECODE}
        if "max_completion_tokens" in first:
            first["max_completion_tokens"] = 1
        headers = {"X-Request-Id": uuid4().hex}
        async with self.session.post(url, json=first, headers=headers) as answer:
            if answer.status != 200:
                raise ValueError(answer.status)
            params = (await answer.json())["kv_transfer_params"]
            if params is None:
                raise ValueError("no cache")
            return dict(params)

    async def _forward(self, request: web.Request, url: str, body: dict[str, Any]) -> web.StreamResponse:
        async with self.session.post(url + request.path, json=body) as answer:
            if answer.status >= 500:
                raise ValueError(answer.status)
            first = await answer.content.readany()
            if first.startswith(b'data: {"error"'):
                raise ValueError(first)
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            await response.prepare(request)
            try:
                while first:
                    await response.write(first)
                    first = await answer.content.readany()
            except _FAILED:  # too late for another try: the client must see that it broke off
                if request.transport is not None:
                    request.transport.abort()
            return response

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["StandIn"]:
        """Listen on a free port."""
        app = web.Application()
        app.add_routes([web.post("/v1/{tail:.*}", self.handle)])
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as self.session:
            try:
                yield self
            finally:
                await runner.cleanup()
