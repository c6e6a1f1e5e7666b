"""The HTTP server of one simulated engine."""

import importlib.metadata
import json
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from hmac import compare_digest
from typing import Any

from aiohttp import web

from splitgym.router.access import gone
from splitgym.router.engine import answers
from splitgym.router.engine.bodies import ChatBody, CompletionBody, Refusal, internal_error
from splitgym.router.engine.call import Call, chat_call, completion_call
from splitgym.router.engine.faults import Fate
from splitgym.router.engine.objects import models
from splitgym.router.engine.protocol import chat_body, completion_body, parse_json, tokenize_body
from splitgym.router.engine.text import render_chat, tokenize
from splitgym.router.engine.work import Work

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 << 20
_SSE = {"Content-Type": "text/event-stream; charset=utf-8"}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class EngineServer(Work):
    """One engine; arguments as `Work`'s."""

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return len(self._calls)

    def app(self) -> web.Application:
        """The server's routes."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/models", self._models),
                web.post("/tokenize", self._tokenize),
                web.get("/health", self._health),
                web.get("/ping", self._health),
                web.post("/ping", self._health),
                web.get("/version", self._version),
                web.get("/load", self._load),
                web.get("/metrics", self._metrics),
            ]
        )
        return app

    # ---- every request ------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Faults and errors, in vLLM's words."""
        if self.faults.stalled_s:
            await self.faults.wait()
        try:
            if not self._key_is_right(request):
                return _json({"error": "Unauthorized"}, 401)
            return await handler(request)
        except Refusal as refusal:
            return _json(refusal.body, refusal.status)
        except web.HTTPException as error:
            detail = {404: "Not Found", 405: "Method Not Allowed"}.get(error.status, error.reason)
            return _json({"detail": detail}, error.status)
        except ConnectionError:
            return gone(request)
        except Exception:
            log.exception("%s %s", request.method, request.path)
            return _json(internal_error().body, 500)

    def _key_is_right(self, request: web.Request) -> bool:
        key = self.options.api_key
        if key is None or not request.path.startswith("/v1"):
            return True
        given = request.headers.get("Authorization", "")
        return compare_digest(given.encode("utf-8", "surrogateescape"), f"Bearer {key}".encode())

    # ---- small answers ------------------------------------------------------------------------------------

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, request: web.Request) -> web.Response:
        return _json({"version": f"splitgym-{importlib.metadata.version('splitgym')}"})

    async def _load(self, request: web.Request) -> web.Response:
        return _json({"server_load": self.in_flight})

    async def _models(self, request: web.Request) -> web.Response:
        model = self.model
        return _json(models(model.name, model.root, model.max_model_len, self.created))

    async def _metrics(self, request: web.Request) -> web.Response:
        self.metrics.expired_caches = self.caches.expired
        headers = {"Content-Type": "text/plain; version=1.0.0; charset=utf-8"}
        return web.Response(body=self.metrics.text(), headers=headers)

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = tokenize_body(await self._read(request))
        self._check_model(body.model)
        ids = tokenize(body.prompt if body.messages is None else render_chat(body.messages)).tolist()
        length = self.model.max_model_len
        return _json({"count": len(ids), "max_model_len": length, "tokens": ids, "token_strs": None})

    # ---- generation ---------------------------------------------------------------------------------------

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = completion_body(await self._read(request))
        return await self._answer(request, body)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = chat_body(await self._read(request))
        return await self._answer(request, body)

    async def _read(self, request: web.Request) -> Any:
        return parse_json(await request.read(), request.headers.get("Content-Type", ""))

    def _check_model(self, name: str | None) -> None:
        if name and name != self.model.name:
            text = f"The model `{name}` does not exist. Valid aliases: {self.model.name}."
            raise Refusal(text, 404, "NotFoundError", "model")

    async def _answer(self, request: web.Request, body: CompletionBody | ChatBody) -> web.StreamResponse:
        if self.faults.options.refuse:
            return _reset(request)
        fate = self.faults.draw()
        if fate.error:
            raise internal_error()
        self._check_model(body.model)
        header = request.headers.get("X-Request-Id")
        if isinstance(body, ChatBody):
            call = chat_call(body, self.model, header)
        else:
            call = completion_call(body, self.model, header)
        self._calls.add(call)
        try:
            if call.stream:
                return await self._stream(request, call, fate)
            return await self._whole(request, call, fate)
        finally:
            self._calls.discard(call)
            self.end(call)

    async def _whole(self, request: web.Request, call: Call, fate: Fate) -> web.StreamResponse:
        await self.begin(call)
        left = len(call.parts)
        while left:
            left -= sum(tokens == part.choice.answer.length for part, tokens in await call.get())
        if self.faults.active:
            await self.faults.wait()
        if fate.reset_after is not None:
            return _reset(request)
        choices = [part.choice for part in call.parts]
        body = call.form.whole(choices, call.prompt_tokens, self.hold(call))
        if fate.malformed:
            body = body[: len(body) // 2]
        return web.Response(body=body, content_type="application/json")

    async def _stream(self, request: web.Request, call: Call, fate: Fate) -> web.StreamResponse:
        response = web.StreamResponse(headers=_SSE)
        await response.prepare(request)
        try:
            await self.begin(call)
        except Refusal as refusal:
            await response.write(answers.error_event(refusal.body))
            return response
        form, prompt_tokens = call.form, call.prompt_tokens
        left, chunks, first = len(call.parts), 0, True
        while left:
            out = []
            for part, tokens in await call.get():
                if first:
                    out.append(form.first([p.choice for p in call.parts], prompt_tokens))
                    first = False
                out.append(form.chunk(part.choice, tokens, len(part.prompt)))
                left -= tokens == part.choice.answer.length
                chunks += 1
            if self.faults.active:
                await self.faults.wait()
            if fate.reset_after is not None and chunks > fate.reset_after:
                return _reset(request)
            if fate.malformed:
                await response.write(b'data: {"id": "' + call.form.request_id[:6].encode() + b"\n\n")
                return response
            await response.write(b"".join(out))
        self.hold(call)
        tokens = sum(part.choice.answer.length for part in call.parts)
        await response.write(form.last(prompt_tokens, tokens))
        return response


def _json(body: Any, status: int = 200) -> web.Response:
    # web.json_response would name a charset, which vLLM does not.
    return web.Response(body=json.dumps(body).encode(), status=status, content_type="application/json")


def _reset(request: web.Request) -> web.Response:
    """Close the connection with a TCP reset, whatever was to be sent."""
    transport = request.transport
    if transport is not None:
        there = transport.get_extra_info("socket")
        if there is not None:
            there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    raise ConnectionResetError("reset on purpose")
