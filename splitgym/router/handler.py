"""From a client's request to its answer: decide, compute the prompt, hand over the cache, pass the tokens on.

A try that fails before the first byte has gone to the client is repeated elsewhere; afterwards nothing is.
"""

import asyncio
import secrets
import time
from typing import Any

from splitgym.router.call import JSON_TYPE, REQUEST_ID, Call, rename
from splitgym.router.decisions import Choice
from splitgym.router.http.messages import Request, Response
from splitgym.router.parts import Parts
from splitgym.router.protocol import (
    Refused,
    parse_body,
    prompt_body,
    token_body,
    transfer_params,
    usage_of,
    wanted_tokens,
)
from splitgym.router.records import Attempt, Record
from splitgym.router.servers import Server
from splitgym.router.state import Flight
from splitgym.router.stream import learn, pass_on
from splitgym.router.upstream import NOT_ITS_FAULT, Failed

_OF_THE_BODY = (b"content-type", b"content-encoding", b"accept-encoding")
"""Headers that do not hold for the prompt server's body, or for its answer, which the router reads."""


class Handler:
    """Serves /v1/completions and /v1/chat/completions.

    Args:
        parts: of the router.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._limits = parts.config.limits

    async def completions(self, request: Request) -> Response | None:
        """The endpoint; None where the answer was streamed."""
        parts = self.parts
        call = self._accept(request)
        record = call.record
        try:
            return await self._serve(call)
        except Refused as refused:
            record.status = refused.status
            record.outcome = "refused" if refused.status in (429, 503) else "server_error"
            raise
        except asyncio.CancelledError:
            record.outcome = "disconnected"
            record.status = record.status or 499
            raise
        finally:
            record.end_s = call.since_s
            parts.finish(record)

    def _accept(self, request: Request) -> Call:
        """Parse the request; count it."""
        parts = self.parts
        start_s = time.monotonic()
        body = parse_body(request.body)
        tokens, characters = parts.lengths.measure(body)
        headers, given = request.headers, request.named.get(b"x-request-id")
        request_id = given.decode("latin-1") if given else secrets.token_hex(16)
        if given is None:
            headers = [*headers, (REQUEST_ID, request_id.encode())]
        record = Record(
            request_id=request_id[:200],
            endpoint=request.path,
            stream=body.get("stream") is True,
            unix_s=time.time(),
            arrival_s=parts.now_s(),
            estimated_prompt_tokens=tokens,
            max_tokens=wanted_tokens(body),
        )
        parts.state.arrived(tokens)
        return Call(request, request.body, body, headers, request.target, record, tokens, characters, start_s)

    async def _serve(self, call: Call) -> Response | None:
        """Try until one answers."""
        parts = self.parts
        last: Failed | None = None
        for number in range(self._limits.attempts):
            try:
                choice = await parts.gate.choose(
                    call.prompt_tokens, call.record.max_tokens, number, call.avoid
                )
            except Refused:
                if last is None:
                    raise
                break  # the failure says more than that nobody is left
            if number:
                # The first one may still hold a cache under its name.
                rename(call, f"{call.record.request_id}-{number}")
            try:
                return await self._attempt(call, choice)
            except Failed as failed:
                last = failed
                call.avoid.add(failed.server.index)
                call.record.attempts[-1].error = f"{failed.server.name}: {failed.why}"
                parts.metrics.retries += number + 1 < self._limits.attempts
                if call.since_s >= self._limits.total_s:
                    break
        assert last is not None
        if last.answer is not None:
            call.record.status, call.record.outcome = last.answer.status, "server_error"
            return last.answer
        kind = "GatewayTimeout" if last.status == 504 else "BadGateway"
        raise Refused(last.status, f"no server answered: {last.why}", kind)

    async def _attempt(self, call: Call, choice: Choice) -> Response | None:
        parts = self.parts
        p, t = choice.pair
        source, target = parts.servers[p], parts.servers[t]
        flight = Flight(call.prompt_tokens, p, t)
        attempt = Attempt(
            choice.decision_id,
            source.name,
            target.name,
            choice.by,
            choice.reason,
            call.since_s,
            choice.took_us,
            None if choice.wanted is None else tuple(parts.name_of(m) for m in choice.wanted),  # type: ignore[arg-type]
        )
        call.record.attempts.append(attempt)
        parts.decisions.recent.append((call.record.request_id, attempt))
        parts.state.place(flight)
        target.enter()
        try:
            body, transfer = call.raw, None
            if flight.split:
                transfer, refusal = await self._prompt(call, source, flight, attempt)
                if refusal is not None:
                    self._over(call, flight, target)
                    return refusal
                if transfer is not None:
                    body = token_body(call.raw, transfer)
            try:
                response = await self._tokens(call, target, flight, attempt, body)
            except BaseException:
                if transfer is not None and flight.generated <= 1:
                    source.lease(parts.config.pools.kv_lease_s)  # nobody pulled its cache
                raise
        except BaseException as error:
            if isinstance(error, Failed) and error.status not in NOT_ITS_FAULT:
                error.server.broke(error.why)
            self._over(call, flight, target)
            raise
        # The answer goes first, then the accounts.
        asyncio.get_running_loop().call_soon(self._over, call, flight, target)
        return response

    def _over(self, call: Call, flight: Flight, target: Server) -> None:
        """An attempt is over: nothing of it stays in the counters."""
        if call.record.outcome == "ok":
            self.parts.state.finished(flight, call.record.output_tokens)
        else:
            self.parts.state.dropped(flight)
        target.leave()

    async def _prompt(
        self, call: Call, server: Server, flight: Flight, attempt: Attempt
    ) -> tuple[dict[str, Any] | None, Response | None]:
        """Compute the prompt: (parameters of the transfer or None, a refusal to pass on or None).

        Raises:
            Failed: the server did not.
        """
        upstream = self.parts.upstream
        headers = [pair for pair in call.headers if pair[0].lower() not in _OF_THE_BODY]
        headers.append(JSON_TYPE)
        server.enter()
        try:
            by_s = call.by_s(self._limits.prompt_s, self._limits.total_s)
            answer, said = await upstream.ask(server, call.path, headers, prompt_body(call.body), by_s)
        finally:
            server.leave()
        attempt.prompt_s = call.since_s
        if answer.status != 200:  # the request's own fault: any server would say so
            server.succeeded()
            call.record.status, call.record.outcome = answer.status, "client_error"
            return None, answer
        try:
            transfer, tokens = transfer_params(said)
        except ValueError:
            raise Failed(server, "its answer is no JSON object") from None
        server.succeeded()
        server.served += 1
        self.parts.state.prompt_ended(flight)
        learn(self.parts, call, tokens)
        if transfer is None:
            # Its connector is off or declined: the token server computes the prompt itself.
            self.parts.metrics.no_transfer += 1
        return transfer, None

    async def _tokens(
        self, call: Call, server: Server, flight: Flight, attempt: Attempt, body: bytes
    ) -> Response | None:
        """The token server's answer, to the client."""
        seconds = self._limits.prompt_s if call.stream else self._limits.total_s
        # Unless it is streamed, nobody sees when the tokens begin.
        began = None
        if not call.stream:
            wait_s = self.parts.state.decodes_in_s(flight)
            began = asyncio.get_running_loop().call_later(wait_s, self.parts.state.presume, flight)
        try:
            return await self._answer(
                call, server, flight, attempt, body, call.by_s(seconds, self._limits.total_s)
            )
        finally:
            if began is not None:
                began.cancel()

    async def _answer(
        self, call: Call, server: Server, flight: Flight, attempt: Attempt, body: bytes, by_s: float
    ) -> Response | None:
        upstream = self.parts.upstream
        answer = await upstream.open(server, b"POST", call.path, call.headers, body, by_s)
        try:
            if answer.status == 200 and b"event-stream" in answer.named.get(b"content-type", b""):
                await pass_on(self.parts, call, server, flight, attempt, answer)
                return None
            whole = await upstream.whole(server, answer, by_s)
        finally:
            answer.release()
        said = upstream.judge(server, answer, whole)
        server.succeeded()
        record = call.record
        record.status = answer.status
        if answer.status != 200:
            record.outcome = "client_error"
            return Response(answer.status, whole, answer.headers)
        server.served += 1
        prompt, output = usage_of(said)
        attempt.first_byte_s = call.since_s
        learn(self.parts, call, prompt)
        record.outcome, record.output_tokens = "ok", output or 1
        return Response(answer.status, whole, answer.headers)
