"""The least that a proxy in Python can cost: what it adds is asyncio, uvloop, llhttp and the system's calls.

    python benchmarks/http_floor.py PORT TARGET_PORT

It parses requests and answers with `httptools`, writes heads anew, keeps its connections, and passes bodies
on as they come. It decides nothing, checks nothing, counts nothing and bears no failure: a bound to compare a
router with, not a router.
"""

import asyncio
import sys
from collections import deque

import httptools
import uvloop

DROPPED = (b"host", b"content-length", b"connection", b"transfer-encoding")


class Side(asyncio.Protocol):
    """Either side: collects a head and what came of a body."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() not in DROPPED:
            self.headers.append((name, value))

    def on_body(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def head(self, start: bytes) -> bytes:
        found = start + b"".join([b"%b: %b\r\n" % pair for pair in self.headers])
        self.headers = []
        return found

    def body(self) -> bytes:
        found = b"".join(self.pieces)
        self.pieces = []
        return found


class Client(Side):
    """A client's connection."""

    def __init__(self, idle: "deque[Server]", port: int) -> None:
        super().__init__()
        self.parser = httptools.HttpRequestParser(self)
        self.idle, self.port = idle, port

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_message_complete(self) -> None:
        body = self.body()
        start = b"%b %b HTTP/1.1\r\nHost: 127.0.0.1\r\n" % (self.parser.get_method(), self.url)
        data = self.head(start) + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        if self.idle:
            self.idle.pop().ask(self, data)
        else:
            self.task = asyncio.get_running_loop().create_task(self.connect(data))

    async def connect(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, server = await loop.create_connection(lambda: Server(self.idle), "127.0.0.1", self.port)
        server.ask(self, data)


class Server(Side):
    """A connection to the server."""

    def __init__(self, idle: "deque[Server]") -> None:
        super().__init__()
        self.parser = httptools.HttpResponseParser(self)
        self.idle = idle

    def ask(self, client: Client, data: bytes) -> None:
        self.client, self.begun, self.done = client, False, False
        self.transport.write(data)

    def on_message_complete(self) -> None:
        self.done = True

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)
        body, write = self.body(), self.client.transport.write
        if not self.begun:
            self.begun = True
            start = self.head(b"HTTP/1.1 %d OK\r\n" % self.parser.get_status_code())
            if self.done:
                self.chunked = False
                write(start + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            else:
                self.chunked = True
                write(start + b"Transfer-Encoding: chunked\r\n\r\n")
        if self.chunked:
            write(
                (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"0\r\n\r\n" if self.done else b"")
            )
        if self.done:
            self.idle.append(self)


async def serve(port: int, target: int) -> None:
    """Pass on, for ever."""
    idle: deque[Server] = deque()
    server = await asyncio.get_running_loop().create_server(
        lambda: Client(idle, target), "127.0.0.1", port, backlog=1024
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
