"""A server that costs next to nothing, and a client that costs as little: what is measured is between them.

    python benchmarks/http_load.py serve PORT
    python benchmarks/http_load.py load PORT --concurrency 16 --seconds 3 [--stream]

Both are plain asyncio protocols. The server answers `/v1/completions` as vLLM would (whole, as a stream of
`CHUNKS` events, or as a prompt server with `kv_transfer_params`), and what routers ask for on the side.
"""

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field

import numpy as np
import uvloop

CHUNKS = 16
MODEL = "stub"
USAGE = {"prompt_tokens": 200, "completion_tokens": CHUNKS, "total_tokens": 200 + CHUNKS}
TRANSFER = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_engine_id": "e",
    "remote_block_ids": [list(range(13))],
    "remote_host": "127.0.0.1",
    "remote_port": 5600,
}
METRICS = b"""vllm:num_requests_running{engine="0"} 1.0
vllm:num_requests_waiting{engine="0"} 0.0
vllm:kv_cache_usage_perc{engine="0"} 0.1
"""
BODY = {"model": MODEL, "prompt": "word " * 200, "max_tokens": CHUNKS, "temperature": 0.0}


def whole(body: bytes, kind: bytes = b"application/json") -> bytes:
    """An answer with its length."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (kind, len(body))
    return head + body


def answer(**more: object) -> bytes:
    """A completion that is not streamed."""
    choices = [{"index": 0, "text": "word " * CHUNKS, "logprobs": None, "finish_reason": "length"}]
    fields = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL}
    return whole(json.dumps({**fields, "choices": choices, "usage": USAGE, **more}).encode())


def event(text: str) -> bytes:
    """One event of a stream, as a chunk."""
    choices = [{"index": 0, "text": text, "logprobs": None, "finish_reason": None}]
    data = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL, "choices": choices}
    return chunk(b"data: " + json.dumps(data).encode() + b"\n\n")


def chunk(data: bytes) -> bytes:
    """In HTTP's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


WHOLE, PROMPTED = answer(), answer(kv_transfer_params=TRANSFER)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
EVENTS = [event("word ") for _ in range(CHUNKS)]
STREAM_END = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
MODELS = whole(
    json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1}]}).encode()
)


class Stub(asyncio.Protocol):
    """The server's side of one connection."""

    def __init__(self) -> None:
        self.held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.held += data
        while (found := split(self.held)) is not None:
            head, body, self.held = found
            self.answer(head, body)

    def answer(self, head: bytes, body: bytes) -> None:
        """Each event of a stream is written by itself, as an engine does."""
        path = head.split(b" ", 2)[1]
        if path.startswith((b"/v1/completions", b"/v1/chat")):
            if b'"do_remote_decode": true' in body or b'"do_remote_decode":true' in body:
                self.transport.write(PROMPTED)
            elif b'"stream": true' in body or b'"stream":true' in body:
                self.transport.write(STREAM_HEAD)
                asyncio.get_running_loop().call_soon(self.event, 0)
            else:
                self.transport.write(WHOLE)
        elif path == b"/metrics":
            self.transport.write(whole(METRICS, b"text/plain"))
        else:
            self.transport.write(MODELS)

    def event(self, number: int) -> None:
        if self.transport.is_closing():
            return
        if number == CHUNKS:
            self.transport.write(STREAM_END)
            return
        self.transport.write(EVENTS[number])
        asyncio.get_running_loop().call_soon(self.event, number + 1)


def split(data: bytes) -> tuple[bytes, bytes, bytes] | None:
    """(head, body, rest) of a request or an answer that has come whole."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head, start = data[:end].lower(), end + 4
    if b"transfer-encoding: chunked" in head:
        stop = data.find(b"0\r\n\r\n", start)
        while stop >= 0 and data[stop - 2 : stop] != b"\r\n":
            stop = data.find(b"0\r\n\r\n", stop + 1)
        return None if stop < 0 else (data[:end], data[start:stop], data[stop + 5 :])
    place = head.find(b"content-length:")
    size = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
    if len(data) < start + size:
        return None
    return data[:end], data[start : start + size], data[start + size :]


@dataclass
class Load:
    """Requests one after the other on each of some connections."""

    port: int
    body: bytes
    until_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    failed: int = 0

    def request(self) -> bytes:
        lines = (
            "POST /v1/completions HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            "Content-Type: application/json",
            "Authorization: Bearer none",
            "Accept: */*",
            f"Content-Length: {len(self.body)}",
        )
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + self.body


class Asker(asyncio.Protocol):
    """The client's side of one connection."""

    def __init__(self, load: Load, over: "asyncio.Future[None]") -> None:
        self.load, self.over, self.held, self.text = load, over, b"", load.request()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.start_s = time.perf_counter()
        self.transport.write(self.text)

    def data_received(self, data: bytes) -> None:
        self.held += data
        found = split(self.held)
        if found is None:
            return
        head, body, self.held = found
        now = time.perf_counter()
        if head.startswith(b"HTTP/1.1 200") and (b"[DONE]" in body or b'"choices"' in body):
            self.load.latencies_s.append(now - self.start_s)
        else:
            self.load.failed += 1
        if now < self.load.until_s:
            self.ask()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None or time.perf_counter() < self.load.until_s:
            self.load.failed += 1
        if not self.over.done():
            self.over.set_result(None)


async def load(port: int, concurrency: int, seconds: float, stream: bool) -> Load:
    """Ask for a while."""
    found = Load(port, json.dumps({**BODY, **({"stream": True} if stream else {})}).encode())
    found.until_s = time.perf_counter() + seconds
    loop = asyncio.get_running_loop()
    ends = [loop.create_future() for _ in range(concurrency)]
    for over in ends:
        await loop.create_connection(lambda over=over: Asker(found, over), "127.0.0.1", port)
    await asyncio.gather(*ends)
    return found


async def serve(port: int) -> None:
    """Be the server, for ever."""
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    """Either side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["serve", "load"])
    parser.add_argument("port", type=int)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--stream", action="store_true")
    args = parser.parse_args()
    if args.what == "serve":
        uvloop.run(serve(args.port))
        return
    found = uvloop.run(load(args.port, args.concurrency, args.seconds, args.stream))
    p50, p99 = np.percentile(found.latencies_s or [0.0], [50, 99])
    print(
        json.dumps({"requests": len(found.latencies_s), "failed": found.failed, "p50_s": p50, "p99_s": p99})
    )


if __name__ == "__main__":
    main()
