"""A server's stream on its way to the client, and the end of a request's accounts."""

import time

from splitgym.router.call import Call, check_event
from splitgym.router.health import describe_error
from splitgym.router.http.answer import Answer, Broken
from splitgym.router.parts import Parts
from splitgym.router.protocol import StreamMeter, error_event
from splitgym.router.records import Attempt
from splitgym.router.servers import Server
from splitgym.router.state import Flight
from splitgym.router.upstream import Failed


class Passage:
    """Takes the pieces of a stream as they come, counts them, and passes them on; called by the connection
    to the server itself, with no task between.

    Until the first event is whole nothing goes to the client, and the request may still be tried elsewhere.
    """

    def __init__(
        self, parts: Parts, call: Call, server: Server, flight: Flight, attempt: Attempt, answer: Answer
    ) -> None:
        self.meter = StreamMeter()
        self.begun = False
        self._parts, self._call, self._server = parts, call, server
        self._flight, self._attempt, self._answer = flight, attempt, answer
        self._connection = call.request.connection
        self._held = b""
        self._idle_s = parts.config.limits.idle_s
        self._last_s = call.start_s + parts.config.limits.total_s

    def __call__(self, piece: bytes) -> None:
        """A piece came.

        Raises:
            Failed: the stream begins with something that is no part of an answer.
        """
        if not self.begun:
            self._held += piece
            if b"\n\n" not in self._held:
                return  # not before the first event is whole, and known to be one
            piece, self._held = self._held, b""
            check_event(self._server, piece)
            self._begin()
        new = self.meter.feed(piece)
        if new:
            self._parts.state.tokens(self._flight, new)
        self._connection.write(piece)
        self._answer.by_s = min(self._last_s, time.monotonic() + self._idle_s)

    def _begin(self) -> None:
        call, answer = self._call, self._answer
        self.begun = call.answering = True
        self._attempt.first_byte_s = call.record.first_byte_s = call.since_s
        self._connection.begin(call.request, answer.status, answer.headers)
        self._connection.on_pause = self.pause

    def pause(self, on: bool) -> None:
        """The client does not keep up: then the server must not run ahead. Or it does again."""
        self._answer.by_s = min(self._last_s, time.monotonic() + self._idle_s)
        self._answer.pause(on)


async def pass_on(
    parts: Parts, call: Call, server: Server, flight: Flight, attempt: Attempt, answer: Answer
) -> None:
    """A stream, to its end. Before its first event has gone to the client it may still be tried elsewhere.

    Raises:
        Failed: it may.
    """
    limits, passage = parts.config.limits, Passage(parts, call, server, flight, attempt, answer)
    connection, clients_fault = call.request.connection, False
    answer.by_s = call.by_s(limits.prompt_s, limits.total_s)
    try:
        await answer.pour(passage)
        why = "" if passage.meter.done else "its stream ended early"
    except TimeoutError:
        clients_fault = connection.paused
        why = "the client does not read" if clients_fault else "no more tokens in time"
    except Broken as error:
        why = f"its stream broke off: {describe_error(error)}"
    finally:
        connection.on_pause = None
    if not passage.begun:
        raise Failed(server, why, 504 if "time" in why else 502)
    _close(parts, call, server, passage.meter, why, clients_fault)


def _close(
    parts: Parts, call: Call, server: Server, meter: StreamMeter, why: str, clients_fault: bool
) -> None:
    """The end of a stream, good or bad."""
    record, connection = call.record, call.request.connection
    record.status = 200
    prompt, output = meter.usage()
    learn(parts, call, prompt)
    counted = max(1, meter.events - meter.done)
    record.output_tokens = output or counted
    if not why:
        server.succeeded()
        server.served += 1
        record.outcome = "ok"
        connection.end()
        return
    record.outcome = "disconnected" if clients_fault else "server_error"
    record.attempts[-1].error = f"{server.name}: {why}"
    if clients_fault:
        connection.transport.abort()
        return
    server.broke(why)
    # Never an end that looks like a whole answer.
    connection.write(error_event(502, f"the answer broke off: {why}", "BadGateway"))
    connection.end()


def learn(parts: Parts, call: Call, prompt_tokens: int | None) -> None:
    """A server said how long the prompt was."""
    if prompt_tokens and call.record.prompt_tokens is None:
        call.record.prompt_tokens = prompt_tokens
        parts.lengths.learn(call.characters, prompt_tokens)
