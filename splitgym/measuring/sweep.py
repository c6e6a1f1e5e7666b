"""The experiments. Each tells an iteration's time from the moments at which tokens come.

A token that comes to the client is late by the way back; the time between two tokens is not. So prompts are
timed from the end of another prompt (the *blocker*), behind which they gathered and which they follow in the
next iteration, and decodes from token to token.
"""

import asyncio
import json
import random
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from splitgym.measuring.client import Client, NotAnswered, Stream
from splitgym.measuring.plan import CONTEXTS, INJECTIONS, TRANSFER_OUTPUT, Plan, Step
from splitgym.router.protocol import KV, prompt_body, transfer_params

_IDS = range(10, 250)
"""Token ids that any vocabulary has; a prompt of them is new to every prefix cache."""
_START = 0.3
"""Others follow the blocker after this share of its time, so that it has begun."""
_SLACK = 1.3
"""They must be there before it ends: sent earlier by this much more than a request takes to get there."""
_TOGETHER_S = 0.0005
"""Tokens that come so soon after the blocker's were made in its own iteration."""
_BLOCKER_S, _BLOCKER_TOKENS = 0.1, 2048
"""A blocker takes so long, so that client and server have come to rest when it ends; or has so many tokens.
Powers of two up to there fill a server's iterations whole, so that nobody joins its last one."""
_WINDOW = 64
"""Tokens of a long output that are timed together, so that their context is nearly the same."""
_GAP = 1.6
"""A gap this many times the usual one is no decode alone."""


@dataclass
class Sweep:
    """Runs the steps of a plan, one run at a time.

    Args:
        client: the server that computes both phases.
        plan: what is measured.
        pair: a prompt server and a token server, for transfers.
        seed: of the prompts.
    """

    client: Client
    plan: Plan
    pair: tuple[Client, Client] | None = None
    seed: int | None = None
    blocker_s: float = 0.0
    overhead_s: float = 0.0
    """What a request takes beside its iterations: there, back, and in the server."""
    _draw: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self.blocker = self.plan.blocker

    @property
    def sent(self) -> int:
        """Requests so far."""
        return self.client.sent + sum(client.sent for client in self.pair or ())

    def prompt(self, tokens: int) -> list[int]:
        """A prompt that nobody has seen."""
        return self._draw.choices(_IDS, k=tokens)

    async def warm_up(self) -> None:
        """First requests compile and connect; the time of the blocker is learnt."""
        await self.client.stream(self.prompt(16), 4)
        for _ in range(2):
            alone = await self.client.stream(self.prompt(self.blocker), 1)
            self.blocker_s = alone.first_s - alone.sent_s
        longest = max(step.tokens for step in self.plan.steps if step.kind == "prompt")
        while self.blocker_s < _BLOCKER_S and 2 * self.blocker <= min(longest, _BLOCKER_TOKENS):
            await self._longer_blocker()
        if self.pair is not None:
            await self._transfer(Step("transfer", 64))

    async def run(self, step: Step) -> tuple[list[list[Any]], dict[str, Any]]:
        """One run of a step: its samples, and facts beside them.

        Raises:
            NotAnswered: the server did not do its part.
        """
        if step.kind == "prompt":
            return await self._prompts(step)
        if step.kind == "token":
            return await self._tokens(step), {}
        if step.kind == "mixed":
            return await self._mixed(step), {}
        return [[step.tokens, *await self._transfer(step)]], {}

    # ---- prompts ------------------------------------------------------------------------------------------

    async def _prompts(self, step: Step) -> tuple[list[list[float]], dict[str, Any]]:
        """[[tokens, batch, seconds]]"""
        for _ in range(4):
            seconds, slack_s = await self._behind_blocker(step)
            if seconds < _TOGETHER_S:
                continue
            if step.batch == 1:
                alone = await self.client.stream(self.prompt(step.tokens), 1)
                overhead_s = alone.first_s - alone.sent_s - seconds
                # Had they come too late, the slack would be what the overhead seems to be.
                if slack_s > _SLACK * overhead_s:
                    self.overhead_s = max(overhead_s, 0.0)
                    return [[step.tokens, 1, seconds]], {"overhead_s": overhead_s}
            elif slack_s > _SLACK * self.overhead_s:
                return [[step.tokens, step.batch, seconds]], {}
            await self._longer_blocker()
        raise NotAnswered(
            f"{self.client.url}: a prompt of {step.tokens} tokens came too late behind one of "
            f"{self.blocker}: the server or this machine is too busy, or too fast to be timed"
        )

    async def _behind_blocker(self, step: Step) -> tuple[float, float]:
        """(time from the blocker's token to the last of theirs, how long before it the last was sent) [s]."""
        prompts = [self.prompt(step.tokens) for _ in range(step.batch)]
        blocker = asyncio.create_task(self.client.stream(self.prompt(self.blocker), 1))
        await asyncio.sleep(_START * self.blocker_s)
        found = await asyncio.gather(blocker, *(self.client.stream(prompt, 1) for prompt in prompts))
        first, others = found[0], found[1:]
        ends_s = max(other.first_s for other in others)
        return ends_s - first.first_s, first.first_s - max(other.sent_s for other in others)

    async def _longer_blocker(self) -> None:
        longest = max(step.tokens for step in self.plan.steps if step.kind == "prompt")
        self.blocker = min(2 * self.blocker, longest)
        alone = await self.client.stream(self.prompt(self.blocker), 1)
        self.blocker_s = alone.first_s - alone.sent_s

    # ---- tokens -------------------------------------------------------------------------------------------

    async def _tokens(self, step: Step) -> list[list[float]]:
        """[[batch, context, seconds]]: the mean iteration while all of them decode, one a window."""
        wanted = step.output or self.plan.limits.output_tokens
        # The last to begin must see `wanted` iterations before the first ends.
        late = -(-step.batch * step.tokens // 1024) if step.batch > 1 else 0
        streams = await asyncio.gather(
            *(self.client.stream(self.prompt(step.tokens), wanted + late + 2) for _ in range(step.batch))
        )
        begins_s = max(stream.first_s for stream in streams)
        ends_s = min(stream.last_s for stream in streams)
        spans = [[k for k, t in enumerate(s.times_s) if begins_s <= t <= ends_s] for s in streams]
        shared = [(s, span[0], span[-1]) for s, span in zip(streams, spans, strict=True) if len(span) > 1]
        if not shared:
            raise NotAnswered(
                f"{self.client.url}: {step.batch} requests never decoded together: does the server take so "
                "many at once (--max-num-seqs)? --max-batch asks for fewer"
            )
        windows = min(max(1, wanted // _WINDOW), *(last - first for _, first, last in shared))
        found = []
        for window in range(windows):
            times, contexts = [], []
            for stream, begin, end in shared:
                first, last = (begin + (end - begin) * edge // windows for edge in (window, window + 1))
                times.append(_slope(stream.times_s[first : last + 1], stream.tokens[first : last + 1]))
                contexts.append(step.tokens + (stream.tokens[first] + stream.tokens[last] - 1) / 2)
            found.append([step.batch, step.batch * statistics.fmean(contexts), statistics.median(times)])
        return found

    # ---- mixed --------------------------------------------------------------------------------------------

    async def _mixed(self, step: Step) -> list[list[float]]:
        """[[prompt tokens and decodes, decodes, their context, seconds]] of each prompt amid decodes."""
        found = []
        async with self._decodes(step.batch) as streams:
            for _ in range(INJECTIONS):
                await _until(streams, more=4)
                one = await self.client.stream(self.prompt(step.tokens), 1)
                await _until(streams, more=1)
                sample = _gap_at(one.first_s, streams)
                if sample is not None:
                    context, seconds = sample
                    found.append([step.tokens + step.batch, step.batch, context, seconds])
        return found

    @asynccontextmanager
    async def _decodes(self, batch: int) -> AsyncIterator[list[Stream]]:
        """Requests that decode until they are not wanted any more."""
        streams = [Stream(0.0) for _ in range(batch)]
        output = 8 * self.plan.limits.output_tokens
        tasks = [
            asyncio.create_task(self.client.stream(self.prompt(CONTEXTS[0]), output, into=stream))
            for stream in streams
        ]
        try:
            await asyncio.sleep(0)
            await _first(streams, tasks)
            yield streams
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # ---- transfers ----------------------------------------------------------------------------------------

    async def _transfer(self, step: Step) -> tuple[float, float, float | None]:
        """What `splitgym.profile.link.Run` holds beside the size [s]."""
        assert self.pair is not None
        prompt_server, token_server = self.pair
        prompt = self.prompt(step.tokens)
        answer = await prompt_server.prompt_for_transfer(prompt_body(prompt_server.whole_body(prompt)))
        try:
            params, _ = transfer_params(json.loads(answer))
        except ValueError:
            raise NotAnswered(f"{prompt_server.url}: its answer is no JSON object") from None
        if params is None:
            raise NotAnswered(
                f"{prompt_server.url}: returned no kv_transfer_params: start both servers with a "
                "NixlConnector (docs/deploy.md), or leave --prompt-url and --token-url out"
            )
        stream = await token_server.stream(prompt, TRANSFER_OUTPUT, more={KV: params})
        read_s = await token_server.refused(prompt, TRANSFER_OUTPUT, {KV: params})
        iteration_s = _slope(stream.times_s, stream.tokens) if len(stream.tokens) > 1 else 0.0
        return stream.first_s - stream.sent_s, iteration_s, read_s


def _slope(times_s: list[float], tokens: list[int]) -> float:
    """Seconds a token: the median over pairs at least half of the series apart; late ones do not count."""
    apart = (tokens[-1] - tokens[0]) / 2
    pairs = [(a, b) for a in range(len(tokens)) for b in range(a + 1, len(tokens))]
    far = [(a, b) for a, b in pairs if tokens[b] - tokens[a] >= apart]
    return statistics.median((times_s[b] - times_s[a]) / (tokens[b] - tokens[a]) for a, b in far)


async def _first(streams: list[Stream], tasks: list["asyncio.Task[Stream]"]) -> None:
    """Wait until all have a token.

    Raises:
        NotAnswered: one of them was refused.
    """
    while not all(stream.tokens for stream in streams):
        for task in tasks:
            if task.done():
                task.result()
        await asyncio.sleep(0.002)


async def _until(streams: list[Stream], more: int, most_s: float = 30.0) -> None:
    """Wait until each has so many more tokens, or ends."""
    goals = [len(stream.tokens) + more for stream in streams]
    loop = asyncio.get_running_loop()
    until = loop.time() + most_s
    while any(len(s.tokens) < goal for s, goal in zip(streams, goals)) and loop.time() < until:
        await asyncio.sleep(0.001)


def _gap_at(moment_s: float, streams: list[Stream]) -> tuple[float, float] | None:
    """(context, length) of the iteration that ended at a moment, as those who decode saw it.

    None where the prompt took several iterations, or not all were decoding.
    """
    gaps, context = [], 0.0
    for stream in streams:
        times = stream.times_s
        at = min(range(len(times)), key=lambda k: abs(times[k] - moment_s))
        if at < 3 or stream.tokens[at] - stream.tokens[at - 1] != 1:
            return None
        usual = statistics.median(b - a for a, b in pairwise(times))
        if times[at - 1] - times[at - 2] > _GAP * usual:
            return None
        gaps.append(times[at] - times[at - 1])
        context += CONTEXTS[0] + stream.tokens[at - 1]
    return context, statistics.median(gaps)
