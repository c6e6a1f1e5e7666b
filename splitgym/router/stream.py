"""A server's stream on its way to the client, and the end of a request's accounts."""

import asyncio
import time
from contextlib import suppress

import aiohttp
from aiohttp import web

from splitgym.router.call import Call, check_event, multi
from splitgym.router.health import describe_error
from splitgym.router.parts import Parts
from splitgym.router.protocol import StreamMeter, error_event, forwarded
from splitgym.router.records import Attempt
from splitgym.router.servers import Server
from splitgym.router.state import Flight
from splitgym.router.upstream import Failed


async def pass_on(
    parts: Parts,
    call: Call,
    server: Server,
    flight: Flight,
    attempt: Attempt,
    upstream: aiohttp.ClientResponse,
) -> web.StreamResponse:
    """A stream, piece by piece. Until its first piece is here it may still be tried elsewhere."""
    limits = parts.config.limits
    content, meter = upstream.content, StreamMeter()
    last_s = call.start_s + limits.total_s
    out: web.StreamResponse | None = None
    held = b""
    on_client = False
    try:
        async with asyncio.timeout_at(call.by_s(limits.prompt_s, limits.total_s)) as timer:
            while piece := await content.readany():
                if out is None:
                    held += piece
                    if b"\n\n" not in held:
                        continue  # not before the first event is whole, and known to be one
                    check_event(server, held)
                    piece = held
                on_client = True
                if out is None:
                    attempt.first_byte_s = call.record.first_byte_s = call.since_s
                    out = await _begin(call, upstream)
                new = meter.feed(piece)
                if new:
                    parts.state.tokens(flight, new)
                await out.write(piece)
                on_client = False
                timer.reschedule(min(last_s, time.monotonic() + limits.idle_s))
        why = "" if meter.done else "its stream ended early"
    except TimeoutError:
        why = "the client does not read" if on_client else "no more tokens in time"
    except (aiohttp.ClientError, OSError) as error:
        if on_client:
            raise ConnectionResetError("the client is gone") from None
        why = f"its stream broke off: {describe_error(error)}"
    if out is None:
        raise Failed(server, why, 504 if "time" in why else 502)
    await _close(parts, call, server, flight, meter, out, why, on_client)
    return out


async def _begin(call: Call, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
    """The headers, to the client."""
    out = web.StreamResponse(status=upstream.status, headers=multi(forwarded(upstream.headers)))
    call.answering = True
    await out.prepare(call.request)
    return out


async def _close(
    parts: Parts,
    call: Call,
    server: Server,
    flight: Flight,
    meter: StreamMeter,
    out: web.StreamResponse,
    why: str,
    clients_fault: bool,
) -> None:
    """The end of a stream, good or bad."""
    record = call.record
    record.status = 200
    prompt, output = meter.usage()
    learn(parts, call, prompt)
    counted = max(1, meter.events - meter.done)
    record.output_tokens = output or counted
    if not why:
        server.succeeded()
        server.served += 1
        complete(parts, call, flight, output or counted)
    else:
        record.outcome = "disconnected" if clients_fault else "server_error"
        record.attempts[-1].error = f"{server.name}: {why}"
        if clients_fault:
            if call.request.transport is not None:
                call.request.transport.abort()
            return
        server.broke(why)
        # Never an end that looks like a whole answer.
        with suppress(ConnectionError):
            await out.write(error_event(502, f"the answer broke off: {why}", "BadGateway"))
    with suppress(ConnectionError):
        await out.write_eof()


def complete(parts: Parts, call: Call, flight: Flight, output_tokens: int) -> None:
    """A request was answered in full."""
    call.record.outcome = "ok"
    call.record.output_tokens = output_tokens
    parts.state.finished(flight, output_tokens)


def learn(parts: Parts, call: Call, prompt_tokens: int | None) -> None:
    """A server said how long the prompt was."""
    if prompt_tokens and call.record.prompt_tokens is None:
        call.record.prompt_tokens = prompt_tokens
        parts.lengths.learn(call.characters, prompt_tokens)
