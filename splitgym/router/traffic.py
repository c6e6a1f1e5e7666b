"""The port for requests: who may come in, which way a request goes, errors as OpenAI's error objects.

It stands on the server of `splitgym.router.http`: a request costs one task and no routes or middlewares.
"""

import posixpath
import sys
import time

from splitgym.router.access import Keys
from splitgym.router.call import JSON_TYPE, refused_answer
from splitgym.router.handler import Handler
from splitgym.router.http.answer import Answer, Broken
from splitgym.router.http.messages import Request, Response
from splitgym.router.parts import Parts
from splitgym.router.protocol import Refused
from splitgym.router.servers import Server
from splitgym.router.upstream import Failed

BLOCKED = (
    "/metrics",
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/pd_role_switch",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/reset_encoder_cache",
    "/flush_cache",
    "/collective_rpc",
    "/start_profile",
    "/stop_profile",
    "/update_weights",
    "/init_weight",
    "/abort_request",
    "/scale_elastic_ep",
    "/pause",
    "/resume",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/server_info",
    "/get_server_info",
    "/workers",
    "/inject_faults",
)
"""Paths by which a client could change a server: not passed on. So is everything that begins with them."""
_KINDS = {405: "InvalidRequestError", 408: "RequestTimeout", 413: "RequestEntityTooLarge"}
COMPLETIONS = frozenset(("/v1/completions", "/v1/chat/completions"))


class Traffic:
    """Answers requests.

    Args:
        parts: of the router.
        handler: of completions.
        keys: who may come in.
    """

    def __init__(self, parts: Parts, handler: Handler, keys: Keys) -> None:
        self._parts = parts
        self._completions = handler.completions
        self._keys = keys
        self._next_other = 0

    def check(self, request: Request) -> Response | None:
        """Refuse by the head alone, before a body is read."""
        if request.path == "/health" and request.method in ("GET", "HEAD"):
            return None
        try:
            if self._keys:
                named = request.named
                found = named.get(b"authorization", b""), named.get(b"x-api-key", b"")
                self._keys.check(*(value.decode("utf-8", "surrogateescape") for value in found))
            return None
        except Refused as refused:
            self._parts.metrics.unauthorized += 1
            return refused_answer(refused)

    @staticmethod
    def refusal(status: int, why: str) -> Response:
        """The answer to what is no request."""
        return refused_answer(Refused(status, why, _KINDS.get(status, "BadRequestError")))

    async def answer(self, request: Request) -> Response | None:
        """Any request; never raises but for cancellation. None where the answer was written in pieces."""
        self._parts.active += 1
        try:
            path = request.path
            if path in COMPLETIONS and request.method == "POST":
                return await self._completions(request)
            if path == "/health" and request.method in ("GET", "HEAD"):
                return self._health()
            return await self._other(request)
        except Refused as refused:
            return refused_answer(refused)
        except Exception as error:
            print(f"router: {type(error).__name__} in {request.method} {request.path}", file=sys.stderr)
            return refused_answer(Refused(500, "internal error of the router", "InternalServerError"))
        finally:
            self._parts.active -= 1

    def _health(self) -> Response:
        healthy = [server.name for server in self._parts.servers if server.healthy]
        ready = bool(healthy) and not self._parts.gate.closed
        return Response(200 if ready else 503, b'{"healthy_servers": %d}' % len(healthy), [JSON_TYPE])

    # ---- everything else goes to one server or another as it is -------------------------------------------

    async def _other(self, request: Request) -> Response | None:
        asked = posixpath.normpath("/" + request.path.lstrip("/"))
        if any(asked == path or asked.startswith((path + "/", path + "_")) for path in BLOCKED):
            raise Refused(404, f"{request.path} is not passed on", "NotFoundError")
        limits, upstream = self._parts.config.limits, self._parts.upstream
        method = request.method.encode("latin-1")
        last: Failed | None = None
        for server in self._others()[: limits.attempts]:
            try:
                by_s = time.monotonic() + limits.prompt_s
                found = await upstream.open(
                    server, method, request.target, request.headers, request.body, by_s
                )
            except Failed as failed:
                server.broke(failed.why)
                last = failed
                continue
            found.by_s = time.monotonic() + limits.total_s
            await _relay(request, found)
            return None
        if last is None:
            raise Refused(503, "no server is healthy", "ServiceUnavailable", 5.0)
        raise Refused(last.status, f"no server answered: {last.why}", "BadGateway")

    def _others(self) -> list[Server]:
        """Healthy servers, each in its turn first."""
        healthy = [server for server in self._parts.servers if server.healthy]
        self._next_other += 1
        turn = self._next_other % max(1, len(healthy))
        return healthy[turn:] + healthy[:turn]


async def _relay(request: Request, found: Answer) -> None:
    """An answer as it is, piece by piece; one that breaks off ends with a connection that does."""
    connection = request.connection
    try:
        connection.begin(request, found.status, found.headers, found.named.get(b"content-length"))
        connection.on_pause = found.pause
        await found.pour(connection.write)
        connection.end()
    except (Broken, TimeoutError):
        connection.transport.abort()
    finally:
        connection.on_pause = None
        found.release()
