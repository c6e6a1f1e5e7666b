"""One OpenAI-compatible vLLM server, asked with a clock in hand."""

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from splitgym.errors import ProfileError
from splitgym.router.health import parse_metrics

_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_BYTES_MOVED = re.compile(r"^vllm:nixl_bytes_transferred_sum(?:\{[^\n]*\})? ([0-9.eE+-]+)", re.MULTILINE)
_LINE_BYTES = 1 << 20
_NO_MODEL = "no-such-model"


class NotAnswered(ProfileError):
    """The server did not answer as it should: what was measured so far stays."""


@dataclass
class Stream:
    """What came of a streamed request, by the clock of `time.perf_counter`."""

    sent_s: float
    times_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Tokens in all when each of `times_s` came."""

    @property
    def first_s(self) -> float:
        """When the first token came."""
        return self.times_s[0]

    @property
    def last_s(self) -> float:
        """When the last token came."""
        return self.times_s[-1]


@dataclass(frozen=True)
class About:
    """What a server says of itself."""

    model: str
    root: str
    """The model's path or name as the server loaded it."""
    max_model_len: int
    capacity_tokens: int | None
    """Of its KV cache."""
    version: str


class Client:
    """Asks one server.

    Args:
        session: of all clients.
        url: of the server, without /v1.
        model: that it serves; empty until `about` was asked.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str = "") -> None:
        self.session = session
        self.url = url.rstrip("/")
        self.model = model
        self.sent = 0

    async def about(self) -> About:
        """Ask what it serves.

        Raises:
            NotAnswered: it does not answer, or serves no model.
        """
        models = json.loads(await self._get("/v1/models"))
        try:
            first = models["data"][0]
            self.model, longest = str(first["id"]), first.get("max_model_len")
        except (KeyError, IndexError, TypeError):
            raise NotAnswered(
                f"{self.url}: /v1/models names no model: is this an OpenAI-compatible server?"
            ) from None
        if not isinstance(longest, int):
            raise NotAnswered(f"{self.url}: /v1/models tells no max_model_len: is this vLLM?")
        found = parse_metrics((await self._get("/metrics")).encode())
        try:
            version = str(json.loads(await self._get("/version"))["version"])
        except (NotAnswered, ValueError, KeyError, TypeError):
            version = "unknown"
        capacity = found.get("kv_tokens")
        root = str(first.get("root") or "")
        return About(self.model, root, longest, int(capacity) if capacity else None, version)

    async def busy(self) -> int:
        """Requests that it works at."""
        found = parse_metrics((await self._get("/metrics")).encode())
        return int(found.get("running", 0) + found.get("waiting", 0))

    async def bytes_moved(self) -> float:
        """Bytes of KV cache that it pulled so far, as its NIXL connector counts."""
        return sum(float(value) for value in _BYTES_MOVED.findall(await self._get("/metrics")))

    async def round_trip(self) -> float:
        """Time of a request that asks for nothing [s]."""
        began = time.perf_counter()
        await self._get("/health")
        return time.perf_counter() - began

    async def stream(
        self, prompt: list[int], output: int, into: Stream | None = None, more: dict[str, Any] | None = None
    ) -> Stream:
        """Complete a prompt and note when each token comes.

        Args:
            prompt: token ids.
            output: tokens, exactly.
            into: filled as they come; returned.
            more: added to the body.

        Raises:
            NotAnswered: refused, broken off, or other than the tokens that were asked for.
        """
        # Written before the clock starts: a long prompt takes a millisecond.
        data = json.dumps(self._streamed(prompt, output) | (more or {})).encode()
        self.sent += 1
        found = Stream(0.0) if into is None else into
        found.sent_s = time.perf_counter()
        try:
            async with self._post(data) as response:
                if response.status != 200:
                    raise NotAnswered(await self._refusal(response))
                async for line in response.content:
                    match = _TOKENS.search(line)
                    if match is None:
                        if b'"error"' in line:
                            raise NotAnswered(f"{self.url}: {line.decode(errors='replace').strip()[:300]}")
                        continue
                    tokens = int(match[1])
                    if tokens > (found.tokens[-1] if found.tokens else 0):
                        found.times_s.append(time.perf_counter())
                        found.tokens.append(tokens)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NotAnswered(self._trouble(error)) from None
        if not found.tokens or found.tokens[-1] != output:
            got = found.tokens[-1] if found.tokens else 0
            raise NotAnswered(
                f"{self.url}: gave {got} tokens of {output}: does it know `ignore_eos` and streams?"
            )
        return found

    async def prompt_for_transfer(self, body: bytes) -> bytes:
        """The answer of a prompt server to the router's own request.

        Raises:
            NotAnswered: refused or broken off.
        """
        self.sent += 1
        try:
            async with self._post(body) as response:
                if response.status != 200:
                    raise NotAnswered(await self._refusal(response))
                return await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NotAnswered(self._trouble(error)) from None

    async def refused(self, prompt: list[int], output: int, more: dict[str, Any]) -> float | None:
        """How long the server takes to read the request of `stream`: asked for a model that it lacks [s].

        None where it does not mind. The arguments are those of `stream`.

        Raises:
            NotAnswered: broken off.
        """
        data = json.dumps(self._streamed(prompt, output) | more | {"model": _NO_MODEL}).encode()
        self.sent += 1
        began = time.perf_counter()
        try:
            async with self._post(data) as response:
                await response.read()
                return time.perf_counter() - began if response.status >= 400 else None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NotAnswered(self._trouble(error)) from None

    def _post(self, data: bytes) -> Any:
        kind = {"Content-Type": "application/json"}
        return self.session.post(self.url + "/v1/completions", data=data, headers=kind)

    def _body(self, prompt: list[int], output: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": output,
            "min_tokens": output,
            "ignore_eos": True,
            "temperature": 0.0,
        }

    def _streamed(self, prompt: list[int], output: int) -> dict[str, Any]:
        options = {"include_usage": True, "continuous_usage_stats": True}
        return self._body(prompt, output) | {"stream": True, "stream_options": options}

    def whole_body(self, prompt: list[int]) -> dict[str, Any]:
        """The request of one token that both servers of a transfer get."""
        return self._body(prompt, 1)

    async def _get(self, path: str) -> str:
        try:
            async with self.session.get(self.url + path) as response:
                if response.status != 200:
                    raise NotAnswered(f"{self.url}{path}: answered {response.status}")
                return await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise NotAnswered(self._trouble(error)) from None

    async def _refusal(self, response: aiohttp.ClientResponse) -> str:
        text = " ".join((await response.text()).split())[:300]
        return f"{self.url}: refused a request with {response.status}: {text}"

    def _trouble(self, error: BaseException) -> str:
        why = (
            "took too long" if isinstance(error, asyncio.TimeoutError) else str(error) or type(error).__name__
        )
        return f"{self.url}: cannot be asked ({why}): is the server up, and is this its address?"
