"""The router's own HTTP: what it refuses, what it drops, whom it waits for, which connections it keeps."""

import asyncio
import contextlib
import time

import pytest

from splitgym.router.http.answer import Broken
from splitgym.router.http.client import Addresses, Origin, Pool
from splitgym.router.http.connection import PIPELINE, State
from splitgym.router.http.messages import Request, Response
from splitgym.router.http.server import HttpServer
from tests.fake_vllm import FakeVllm, in_loop, routed

HEAD = b"POST /x?a=%20b HTTP/1.1\r\nHost: a\r\n"


class Serving:
    """A server that says what it was asked.

    Attributes:
        seen: requests that reached the handler.
    """

    def __init__(self, handler=None, limits=(4, 1000, 5000)):
        self.seen = []
        self.held = None  # what answers wait for
        self.http = HttpServer(handler or self.echo, self.check, self.refusal, limits)

    async def echo(self, request: Request) -> Response:
        self.seen.append(request)
        if self.held is not None:
            await self.held.wait()
        return Response(200, request.method.encode() + b" " + request.target + b" " + request.body)

    @staticmethod
    def check(request):
        return Response(401) if b"bad" in request.named.get(b"authorization", b"") else None

    @staticmethod
    def refusal(status, why):
        return Response(status, why.encode())

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self.listener = await loop.create_server(self.http, "127.0.0.1", 0)
        self.port = self.listener.sockets[0].getsockname()[1]
        self.sweep = asyncio.create_task(self.http.sweep())
        return self

    async def __aexit__(self, *error):
        self.sweep.cancel()
        self.listener.close()
        await self.http.abort()

    async def say(self, *pieces):
        """All that comes back until the server hangs up, or says nothing for a while."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        got = b""
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.02)
            with contextlib.suppress(TimeoutError, ConnectionError):
                while piece := await asyncio.wait_for(reader.read(1 << 16), 5.0 if not got else 0.2):
                    got += piece
        finally:
            writer.close()
        return got


TWO_READINGS = {
    "two lengths": b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "one length twice": b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "a list of lengths": b"Content-Length: 1, 1\r\n\r\na",
    "a signed length": b"Content-Length: +1\r\n\r\na",
    "length and coding": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "chunked and another": b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "another and chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "another protocol, in chunks": b"Connection: upgrade\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    "no coding": b"Transfer-Encoding: identity\r\n\r\n",
    "nearly chunked": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "two codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded header": b"X: a\r\n b\r\n\r\n",
    "a folded coding": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a bare line feed": b"X: a\nContent-Length: 0\r\n\r\n",
    "a bare carriage return": b"X: a\rContent-Length: 0\r\n\r\n",
    "a zero": b"X: a\x00b\r\n\r\n",
    "a space before the colon": b"Content-Length : 1\r\n\r\na",
    "no name": b": a\r\n\r\n",
    "two hosts": b"Host: b\r\n\r\n",
    "a chunk's size in another form": b"Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
    "chunks with bare line feeds": b"Transfer-Encoding: chunked\r\n\r\n1\na\n0\n\n",
    "a chunk longer than said": b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("what", TWO_READINGS)
def test_what_two_readers_could_read_differently_is_refused(what):
    async def main():
        async with Serving() as server:
            got = await server.say(HEAD + TWO_READINGS[what] + b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
            assert got.split(b" ")[1] in (b"400", b"501") and b"Connection: close" in got, got
            assert not server.seen and got.count(b"HTTP/1.1") == 1

    in_loop(main)()


@in_loop
async def test_what_else_is_no_request():
    async with Serving() as server:
        for raw, status in {
            b"GET / HTTP/1.1\n\n": b"400",
            b"GET / HTTP/1.1\r\n\r\n": b"400",  # no host
            b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n": b"400",
            b"GET * HTTP/1.1\r\nHost: a\r\n\r\n": b"400",
            b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n": b"405",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": b"400",
            b"GET / HTTP/2.0\r\nHost: a\r\n\r\n": b"505",
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n": b"400",
            HEAD + b"Expect: more\r\nContent-Length: 1\r\n\r\na": b"417",
            HEAD + b"X: " + b"y" * 1001 + b"\r\n\r\n": b"400",
            b"GET /" + b"y" * 1001 + b" HTTP/1.1\r\nHost: a\r\n\r\n": b"400",
            HEAD + b"".join(b"X%d: %b\r\n" % (i, b"y" * 900) for i in range(5)) + b"\r\n": b"400",
            HEAD + b"Content-Length: 5001\r\n\r\n": b"413",
            HEAD + b"Authorization: bad\r\nContent-Length: 10\r\n\r\n": b"401",
            HEAD + b"Authorization: bad\r\n\r\n": b"401",
        }.items():
            got = await server.say(raw)
            assert got.split(b" ")[1] == status, (raw[:60], got)
        assert not server.seen


@in_loop
async def test_lines_that_never_end_do_not_fill_the_memory():
    async with Serving() as server:
        slow = [b"X: "] + [b"y" * 500] * 12
        trailers = [HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nT: "] + [b"y" * 500] * 12
        for pieces in ([HEAD, *slow], trailers):
            assert (await server.say(*pieces)).startswith(b"HTTP/1.1 400")
        assert not server.seen


@in_loop
async def test_requests_behind_each_other_are_answered_in_their_order():
    async with Serving() as server:
        one = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        two = b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"
        three = b"POST /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        got = await server.say(one + two + three + b"2;x=y\r\nde\r\n", b"1\r\nf\r\n0\r\nX-Trailer: t\r\n\r\n")
        answers = [got.index(text) for text in (b"POST /1 abc", b"GET /2 ", b"POST /3 def")]
        assert answers == sorted(answers) and got.count(b"200 OK") == 3
        assert b"x-trailer" not in server.seen[-1].named, "trailers are dropped"
        server.held = asyncio.Event()
        asyncio.get_running_loop().call_later(0.1, server.held.set)
        got = await server.say(two * 30)
        assert got.count(b"200 OK") == 1 + PIPELINE, "then it may ask again elsewhere"


@in_loop
async def test_small_print():
    """HEAD, HTTP/1.0, an expectation, another protocol, an absolute target."""
    async with Serving() as server:
        got = await server.say(b"HEAD /h HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"Content-Length: 8\r\n" in got and got.endswith(b"\r\n\r\n")
        got = await server.say(b"GET /o HTTP/1.0\r\n\r\n")
        assert b"Connection: close" in got and got.endswith(b"GET /o ")
        got = await server.say(b"GET /o HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert b"Connection: keep-alive" in got
        got = await server.say(HEAD + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n", b"z")
        assert got.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK") and got.endswith(b" z")
        upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"
        asked = HEAD + upgrade + b"Content-Length: 2\r\n\r\n"
        got = await server.say(asked + b"q", b"r" + HEAD + b"\r\n")
        assert got.count(b"HTTP/1.1 200 OK") == 2 and b"%20b qrHTTP" in got, "the body is no request"
        assert [name for name, _ in server.seen[-2].headers] == [], "what Connection names goes no further"
        got = await server.say(b"GET http://b/p%2F?q HTTP/1.1\r\nHost: b\r\n\r\n")
        assert server.seen[-1].target == b"/p%2F?q" and server.seen[-1].path == "/p/"


@in_loop
async def test_clients_that_let_wait_are_hung_up_on():
    async with Serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(HEAD + b"Content-Length: 3\r\n\r\na")
        while not [c for c in server.http.connections if c.state is State.BODY]:
            await asyncio.sleep(0.01)
        for connection in server.http.connections:
            connection.since_s -= 40.0
        assert (await reader.read()).startswith(b"HTTP/1.1 408")
        writer.close()
        assert not server.seen


@in_loop
async def test_a_client_that_goes_cancels_its_handler():
    begun, over = asyncio.Event(), asyncio.Event()

    async def handler(request):
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            over.set()

    async with Serving(handler) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(20):
            await begun.wait()
            assert not over.is_set()
            writer.close()
            await over.wait()


# ---- the client's side ------------------------------------------------------------------------------------


class Scripted:
    """A server that answers each request with given bytes.

    Attributes:
        connections: that were made.
        heads: of requests.
    """

    def __init__(self, *answers, hang_up=False):
        self.answers, self.hang_up = list(answers), hang_up
        self.connections, self.heads = 0, []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.pool = Pool(Addresses(lambda address: True), 1.0, 1.0)
        self.origin = Origin.of(f"http://127.0.0.1:{port}")
        return self

    async def __aexit__(self, *error):
        await self.pool.close()
        self.server.close()

    async def _serve(self, reader, writer):
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                for piece in self.answers.pop(0):
                    writer.write(piece)
                    await asyncio.sleep(0.02)
                if self.hang_up:
                    break
        writer.close()

    async def ask(self, method=b"GET", headers=(), body=b"", seconds=5.0):
        """(status, headers, body)."""
        by_s = time.monotonic() + seconds
        answer = await self.pool.request(self.origin, method, b"/a?b", list(headers), body, by_s)
        try:
            return answer.status, answer.headers, await answer.read(1000)
        finally:
            answer.release()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Own: 1\r\nConnection: x-hop\r\nX-Hop: 2\r\n\r\nok"


@in_loop
async def test_connections_are_kept_for_the_next_request():
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
    empty = b"HTTP/1.1 204 No Content\r\n\r\n"
    async with Scripted([OK], [early + OK[:9], OK[9:]], [chunks, b"1\r\nb\r\n0\r\n\r\n"], [empty]) as server:
        assert await server.ask() == (200, [(b"X-Own", b"1")], b"ok"), "hop-by-hop ones are dropped"
        assert (await server.ask())[::2] == (200, b"ok")
        assert (await server.ask(b"POST", [(b"A", b"b")], b"body"))[::2] == (200, b"ab")
        assert (await server.ask())[::2] == (204, b"")
        assert server.connections == 1 and server.pool.busy == 0
        assert server.heads[2].endswith(b"A: b\r\nContent-Length: 4\r\n\r\n")


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        OK + b"x",
        OK.replace(b"Connection: x-hop", b"Connection: close"),
    ],
)
def test_a_connection_that_says_too_much_is_not_used_again(answer):
    async def main():
        async with Scripted([answer], [OK]) as server:
            assert (await server.ask())[2] == (await server.ask())[2] == b"ok"
            assert server.connections == 2

    in_loop(main)()


@in_loop
async def test_an_answer_to_head_has_no_body():
    async with Scripted([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"], [OK]) as server:
        assert (await server.ask(b"HEAD"))[::2] == (200, b"")
        assert (await server.ask())[2] == b"ok"


@in_loop
async def test_an_old_server_ends_its_answer_by_hanging_up():
    async with Scripted([b"HTTP/1.0 200 OK\r\n\r\na", b"b"], hang_up=True) as server:
        assert (await server.ask())[2] == b"ab"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000,
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        b"garbage\r\n\r\n",
        b"",
    ],
)
def test_what_is_no_answer_is_the_servers_failure(answer):
    async def main():
        async with Scripted([answer], hang_up=True) as server:
            with pytest.raises(Broken):
                await server.ask()
            assert server.pool.busy == 0

    in_loop(main)()


@in_loop
async def test_deadlines_are_kept_to_within_a_tick():
    async with Scripted([OK[:20]], [OK[:-1]]) as server:
        for _ in range(2):  # before the headers, after them
            start = time.monotonic()
            with pytest.raises(TimeoutError):
                await server.ask(seconds=0.3)
            assert time.monotonic() - start >= 0.3
        assert server.pool.busy == 0


@in_loop
async def test_a_name_stands_for_allowed_addresses_alone():
    pool = Pool(Addresses(lambda address: address.startswith("10.")), 1.0, 1.0)
    with pytest.raises(OSError, match="allowed_networks"):
        await pool.request(Origin.of("http://localhost:1"), b"GET", b"/", [], b"", time.monotonic() + 5)
    await pool.close()


# ---- through the router -----------------------------------------------------------------------------------


@in_loop
async def test_a_client_that_does_not_read_holds_its_server_back():
    """Neither the router nor the server runs ahead; when the client reads again, all of it comes."""
    async with FakeVllm("a" * 60, tokens=60_000) as a, routed([a], "M") as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.router.port, limit=1 << 16)
        body = b'{"prompt": "x", "stream": true}'
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        flights = client.router.parts.state
        await client.until(lambda: flights.refresh().running[0] == 1)
        await client.until(lambda: any(door.paused for door in client.router.door.connections))
        before = -1
        while (now := int(flights.refresh().running_context_tokens[0])) != before:
            before = now
            await asyncio.sleep(0.5)
        assert now < 30_000, "it stopped long before the end"
        (connection,) = client.router.door.connections
        assert connection.paused and connection.transport.get_write_buffer_size() < 2 << 20
        got = 0
        tail = b""
        while piece := await reader.read(1 << 20):
            got, tail = got + len(piece), (tail + piece)[-100:]
        assert got > 60_000 * 100 and tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        writer.close()


@in_loop
async def test_a_client_that_never_reads_is_given_up():
    async with FakeVllm("a" * 60, tokens=200_000) as a, routed([a], "M", limits={"idle_s": 0.5}) as client:
        _, writer = await asyncio.open_connection("127.0.0.1", client.router.port, limit=1 << 16)
        body = b'{"prompt": "x", "stream": true}'
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        parts = client.router.parts
        await client.until(lambda: parts.metrics.requests["/v1/completions", "disconnected"] == 1, 20.0)
        assert parts.servers[0].failed == 0, "not the server's fault"
        await client.until(lambda: a.active == 0 and not client.router.door.connections)
        writer.close()


@in_loop
async def test_an_answer_that_is_relayed_and_breaks_off_does_not_look_whole():
    broken = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"
    fine = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    async with Scripted([fine], [fine], [broken], hang_up=True) as server:
        server.name, server.url = "s", f"http://127.0.0.1:{server.origin.port}"
        async with routed([server], "M", health={"interval_s": 3600.0}) as client:
            reader, writer = await asyncio.open_connection("127.0.0.1", client.router.port)
            await client.until(lambda: len(server.heads) == 2)  # its health and its metrics
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
            got = b""
            with contextlib.suppress(ConnectionError):
                while piece := await asyncio.wait_for(reader.read(1000), 5):
                    got += piece
            assert got.startswith(b"HTTP/1.1 200") and not got.endswith(b"0\r\n\r\n")
            writer.close()
