"""Send a trace's requests to an OpenAI-compatible server at the trace's times, and time the answers.

Open loop: a request is sent when it is due, however many are still open. Each one is a streamed completion
with a prompt of random tokens (so that no prefix cache helps) and an answer of exactly the trace's length
(`ignore_eos`, as vLLM and `splitgym engine` understand it).
"""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as checked

from splitgym.config import STRICT
from splitgym.errors import ConfigError
from splitgym.router.health import describe_error
from splitgym.router.networks import check_url
from splitgym.router.protocol import StreamMeter
from splitgym.slo import PERCENTILES
from splitgym.trace import Trace

TOKEN_IDS = (1000, 20_000)
"""Prompts are drawn from these token ids, which the vocabularies of today's models all have."""


@checked(frozen=True, config=STRICT)
class LoadOptions:
    """Where to, and how much at most."""

    url: str
    """Such as http://127.0.0.1:8080; without /v1."""
    model: str | None = None
    """What the server calls its model; None asks it."""
    api_key: str | None = None
    timeout_s: float = Field(default=300.0, gt=0)
    """Of one request."""
    most_open: int = Field(default=1000, ge=1)
    """Requests open at once; what is due beyond is not sent, and counted."""
    seed: int = Field(default=0, ge=0)
    """Of the prompts' tokens."""
    token_ids: tuple[int, int] = TOKEN_IDS
    """They are drawn from here: the first, and the one after the last."""

    @model_validator(mode="after")
    def _check(self) -> "LoadOptions":
        check_url(self.url)
        if not 0 <= self.token_ids[0] < self.token_ids[1]:
            raise ValueError(f"token_ids {self.token_ids}: expected two numbers, the first the smaller one")
        return self


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer that came in full. Times are seconds since it was sent."""

    first_s: float
    end_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass
class Sent:
    """What became of a load."""

    answers: list[Answer] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    """By kind: `HTTP 429`, `timeout`, `broke off`, ..."""
    sent: int = 0
    not_sent: int = 0
    """Due while `most_open` were open."""
    late_s: list[float] = field(default_factory=list)
    """How late each request was sent."""
    wall_s: float = 0.0
    stopped: bool = False
    """By Ctrl-C, before its end."""

    def as_dict(self) -> dict[str, Any]:
        """For tables and JSON."""
        tbt = [(a.end_s - a.first_s) / (a.output_tokens - 1) for a in self.answers if a.output_tokens > 1]
        return {
            "sent": self.sent,
            "ok": len(self.answers),
            "not_sent": self.not_sent,
            "errors": dict(self.errors.most_common()),
            "wall_s": self.wall_s,
            "requests_per_s": self.sent / self.wall_s if self.wall_s else 0.0,
            "output_tokens_per_s": sum(a.output_tokens for a in self.answers) / self.wall_s
            if self.wall_s
            else 0.0,
            "ttft_s": _percentiles([a.first_s for a in self.answers]),
            "tbt_s": _percentiles(tbt),
            "e2e_s": _percentiles([a.end_s for a in self.answers]),
            "sent_late_s": _percentiles(self.late_s),
            "stopped": self.stopped,
        }


async def send(trace: Trace, options: LoadOptions, progress: Callable[[int], None] | None = None) -> Sent:
    """Send every request of a trace; SIGINT and SIGTERM end it early, with what has been measured.

    Raises:
        ConfigError: the server cannot be reached, refuses the key, or has no model.
    """
    timeout = aiohttp.ClientTimeout(total=options.timeout_s, sock_connect=10.0)
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, headers=headers, connector=connector) as session:
        model = options.model or await _model(session, options.url)
        return await _Load(trace, options, session, model).run(progress)


async def _model(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(f"{url}/v1/models") as response:
            if response.status != 200:
                raise ConfigError(f"{url}/v1/models answers HTTP {response.status}: is it an OpenAI server?")
            return str((await response.json())["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ConfigError(f"{url} cannot be reached ({describe_error(error)}): is the server up?") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise ConfigError(f"{url}/v1/models names no model: give --model") from None


class _Load:
    """One load on its way."""

    def __init__(self, trace: Trace, options: LoadOptions, session: aiohttp.ClientSession, model: str):
        self.trace, self.options, self.session, self.model = trace, options, session, model
        self.out = Sent()
        self._open: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._random = np.random.default_rng(options.seed)

    async def run(self, progress: Callable[[int], None] | None) -> Sent:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self._stop.set)
        start = time.monotonic()
        try:
            await self._send_all(start, progress)
            await self._finish()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                with suppress(NotImplementedError, RuntimeError, ValueError):
                    loop.remove_signal_handler(number)
        self.out.wall_s = time.monotonic() - start
        self.out.stopped = self._stop.is_set()
        return self.out

    async def _send_all(self, start: float, progress: Callable[[int], None] | None) -> None:
        rows = zip(
            self.trace.arrival_s.tolist(),
            self.trace.prompt_tokens.tolist(),
            self.trace.output_tokens.tolist(),
        )
        for count, (arrival_s, prompt_tokens, output_tokens) in enumerate(rows):
            body = self._body(prompt_tokens, output_tokens)  # before it is due: drawing takes its time
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), start + arrival_s - time.monotonic())
            if self._stop.is_set():
                return
            if progress is not None:
                progress(count)
            if len(self._open) >= self.options.most_open:
                self.out.not_sent += 1
                continue
            self.out.late_s.append(time.monotonic() - start - arrival_s)
            self.out.sent += 1
            task = asyncio.create_task(self._one(body, output_tokens))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _finish(self) -> None:
        """Wait for what is open; after a signal, cut it off."""
        stopping = asyncio.create_task(self._stop.wait())
        while self._open and not self._stop.is_set():
            await asyncio.wait({*self._open, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for task in self._open:
            task.cancel()
        await asyncio.gather(stopping, *self._open, return_exceptions=True)

    def _body(self, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": self._random.integers(*self.options.token_ids, prompt_tokens).tolist(),
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    async def _one(self, body: dict[str, Any], output_tokens: int) -> None:
        try:
            answer = await self._ask(body)
        except asyncio.CancelledError:
            self.out.errors["cut off by the end"] += 1
            raise
        except TimeoutError:
            self.out.errors["timeout"] += 1
        except (aiohttp.ClientError, OSError) as error:
            self.out.errors[describe_error(error)] += 1
        else:
            if isinstance(answer, str):
                self.out.errors[answer] += 1
            else:
                self.out.answers.append(answer)

    async def _ask(self, body: dict[str, Any]) -> Answer | str:
        """The answer, or what was wrong with it."""
        start, meter, first = time.monotonic(), StreamMeter(), 0.0
        async with self.session.post(f"{self.options.url}/v1/completions", json=body) as response:
            if response.status != 200:
                return f"HTTP {response.status}"
            async for piece in response.content.iter_any():
                if meter.feed(piece) and not first:
                    first = time.monotonic()
        if not meter.done or not first:
            return "broke off"
        prompt, output = meter.usage()
        counted = output or max(1, meter.events - 1)
        return Answer(first - start, time.monotonic() - start, prompt or len(body["prompt"]), counted)


def _percentiles(values: list[float]) -> dict[str, float | None]:
    return {f"p{p}": float(np.percentile(values, p)) if values else None for p in PERCENTILES}


__all__ = ["Answer", "LoadOptions", "Sent", "send"]
