"""One request of a client, from its body to its tokens."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from splitgym.router.engine.answers import Choice, Form
from splitgym.router.engine.bodies import ChatBody, CompletionBody, Refusal
from splitgym.router.engine.text import (
    VOCABULARY,
    Answer,
    key_of,
    natural_length,
    render_chat,
    text_of,
    tokenize,
)
from splitgym.sim.live_request import LiveRequest
from splitgym.sim.outcomes import NEVER


@dataclass(frozen=True)
class Model:
    """What an engine serves."""

    name: str
    root: str
    max_model_len: int
    mean_output_tokens: float
    fingerprint: str


@dataclass(frozen=True)
class Prompt:
    """One prompt, in tokens."""

    ids: NDArray[np.uint32]
    text: str

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(eq=False)
class Part:
    """One choice and the simulated request that makes its tokens."""

    choice: Choice
    prompt: Prompt
    request: LiveRequest | None = None
    last_ns: int = NEVER


@dataclass(eq=False)
class Call:
    """A client's request: its parts, and a mailbox of the tokens that they have got."""

    form: Form
    stream: bool
    max_tokens: int
    prompts: list[Prompt]
    parts: list[Part]
    kv_transfer_params: dict[str, Any] | None
    over: list[Callable[[], None]] = field(default_factory=list)
    """Called when the request has ended, however."""
    _new: list[tuple[Part, int]] = field(default_factory=list)
    _waiter: asyncio.Future[None] | None = None

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts; choices of one prompt share it."""
        return sum(map(len, self.prompts))

    def put(self, part: Part, tokens: int) -> None:
        """A part has so many tokens now."""
        self._new.append((part, tokens))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> list[tuple[Part, int]]:
        """What is new since the last call; waits for something."""
        if not self._new:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        new, self._new = self._new, []
        return new


def completion_call(body: CompletionBody, model: Model, header_id: str | None) -> Call:
    """A call of `/v1/completions`.

    Raises:
        Refusal: as vLLM refuses it.
    """
    prompts = [_prompt(prompt) for prompt in body.prompts]
    return _call(body, model, prompts, body.logprobs, f"cmpl-{_request_id(body.request_id, header_id)}")


def chat_call(body: ChatBody, model: Model, header_id: str | None) -> Call:
    """A call of `/v1/chat/completions`.

    Raises:
        Refusal: as vLLM refuses it.
    """
    text = render_chat(body.messages, body.tools)
    count = body.top_logprobs if body.logprobs else None
    request_id = f"chatcmpl-{_request_id(body.request_id, header_id)}"
    return _call(body, model, [Prompt(tokenize(text), text)], count, request_id)


def _request_id(given: str | None, header: str | None) -> str:
    return header or given or uuid4().hex[:16]


def _prompt(prompt: str | list[int]) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(tokenize(prompt), prompt)
    unknown = [token for token in prompt if token >= VOCABULARY]
    if unknown:
        raise Refusal(f"Token id {unknown[0]} is out of vocabulary")
    return Prompt(np.array(prompt, np.uint32), text_of(prompt))


def _call(
    body: CompletionBody | ChatBody,
    model: Model,
    prompts: list[Prompt],
    logprobs: int | None,
    request_id: str,
) -> Call:
    max_tokens = min(_max_tokens(body, model, prompt) for prompt in prompts)
    body.check_sampling(max_tokens)
    options = body.stream_options
    form = Form(
        chat=isinstance(body, ChatBody),
        request_id=request_id,
        model=body.model or model.name,
        fingerprint=model.fingerprint,
        logprobs=logprobs,
        token_ids=bool(body.return_token_ids),
        usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.include_usage and options.continuous_usage_stats),
    )
    echo = isinstance(body, CompletionBody) and bool(body.echo)
    parts: list[Part] = []
    for prompt in prompts:
        for number in range(body.choices):
            answer = _answer(body, model, prompt, _max_tokens(body, model, prompt), number)
            wanted = form.token_ids or (echo and logprobs is not None)
            choice = Choice(
                index=len(parts),
                answer=answer,
                prompt_ids=prompt.ids.tolist() if wanted else [],
                echo=prompt.text if echo else "",
                alone=echo and body.max_tokens == 0,
            )
            parts.append(Part(choice, prompt))
    return Call(form, bool(body.stream), max_tokens, prompts, parts, body.kv_transfer_params)


def _max_tokens(body: CompletionBody | ChatBody, model: Model, prompt: Prompt) -> int:
    """Output tokens that a prompt may have: the client's limit, cut to what the model's length leaves."""
    limit, longest = body.limit, model.max_model_len
    if limit is not None and limit > longest:
        name = body.limit_name
        raise Refusal(
            f"{name}={limit} cannot be greater than max_model_len={longest}. "
            f"Please request fewer output tokens. (parameter={name}, value={limit})",
            param=name,
        )
    if not len(prompt):
        raise Refusal("The decoder prompt cannot be empty")
    if len(prompt) > longest:
        raise Refusal(
            f"This model's maximum context length is {longest} tokens. However, your prompt contains "
            f"{len(prompt)} input tokens, which exceeds this limit even without any output tokens. "
            f"Please reduce the length of the input prompt. (parameter=input_tokens, value={len(prompt)})",
            param="input_tokens",
        )
    left = longest - len(prompt)
    return left if limit is None else min(limit, left)


def _answer(
    body: CompletionBody | ChatBody, model: Model, prompt: Prompt, max_tokens: int, number: int
) -> Answer:
    greedy = body.temperature is not None and body.temperature < 1e-5
    key = key_of(prompt.ids, None if greedy else body.seed, number)
    natural = None
    if not body.ignore_eos and model.mean_output_tokens:
        natural = natural_length(key, model.mean_output_tokens)
    return Answer(
        key, max_tokens, natural, body.min_tokens, body.stops, keep_stop=body.include_stop_str_in_output
    )
