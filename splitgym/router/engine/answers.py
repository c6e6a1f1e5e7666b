"""The JSON that vLLM 0.32 answers with, field by field (`tests/vllm/recorded.json`)."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from splitgym.router.engine.text import Answer, Top

DONE = b"data: [DONE]\n\n"


@dataclass(eq=False)
class Choice:
    """One answer to one prompt.

    Args:
        index: its place in the response.
        answer: its text.
        prompt_ids: the prompt, where somebody wants to see it.
        echo: text of the prompt that goes before the answer.
    """

    index: int
    answer: Answer
    prompt_ids: list[int]
    echo: str = ""
    alone: bool = False
    """Echo and nothing else: the one token that was made is not shown."""
    told: int = 0  # tokens that a stream has told of
    texts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Form:
    """What all answers to one request have in common."""

    chat: bool
    request_id: str
    model: str
    fingerprint: str
    logprobs: int | None = None
    """Alternatives of every token that are wanted; None where no log probability is."""
    token_ids: bool = False
    usage: bool = False
    continuous_usage: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    # ---- at once ------------------------------------------------------------------------------------------

    def whole(
        self, choices: Sequence[Choice], prompt_tokens: int, kv_transfer_params: dict[str, Any] | None
    ) -> bytes:
        """A response that is not streamed."""
        tokens = sum(choice.answer.length for choice in choices)
        body: dict[str, Any] = {
            "id": self.request_id,
            "object": "chat.completion" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [self._choice(choice) for choice in choices],
            "service_tier": None,
            "system_fingerprint": self.fingerprint,
            "usage": {
                **_usage(prompt_tokens, tokens),
                "prompt_tokens_details": None,
                "completion_tokens_details": None,
            },
        }
        if self.chat:
            ids = choices[0].prompt_ids if self.token_ids else None
            body |= {"prompt_logprobs": None, "prompt_token_ids": ids, "prompt_text": None}
        body |= {
            "kv_transfer_params": kv_transfer_params,
            "ec_transfer_params": None,
            "metrics": None,
        }
        return json.dumps(body).encode()

    def _choice(self, choice: Choice) -> dict[str, Any]:
        answer = choice.answer
        text = answer.until(answer.length)
        ids = [answer.token_id(i) for i in range(answer.length)] if self.token_ids else None
        end = {
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
            "token_ids": ids,
        }
        if self.chat:
            message = {"role": "assistant", "content": text, "refusal": None, "annotations": None}
            message |= {"audio": None, "function_call": None, "reasoning": None}
            logprobs = self._chat_logprobs(choice, 0, answer.length)
            return {
                "index": choice.index,
                "message": message,
                "logprobs": logprobs,
                **end,
                "routed_experts": None,
            }
        if choice.alone:
            text = ""
        logprobs = self._logprobs(choice, 0, 0 if choice.alone else answer.length, bool(choice.echo))
        return {
            "index": choice.index,
            "text": choice.echo + text,
            "logprobs": logprobs,
            **end,
            "prompt_logprobs": self._prompt_logprobs(choice),
            "prompt_token_ids": choice.prompt_ids if self.token_ids else None,
            "routed_experts": None,
        }

    # ---- in a stream --------------------------------------------------------------------------------------

    def first(self, choices: Sequence[Choice], prompt_tokens: int) -> bytes:
        """What opens a stream, once the first token is there."""
        if not self.chat:
            return b""
        out = []
        for choice in choices:
            delta = {"role": "assistant", "content": ""}
            body = self._chunk_head() | {
                "choices": [{"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}],
                "prompt_token_ids": choice.prompt_ids if self.token_ids else None,
                "prompt_text": None,
            }
            if self.continuous_usage:
                body["usage"] = {**_usage(prompt_tokens, 0), "completion_tokens_details": None}
            out.append(_event(body))
        return b"".join(out)

    def chunk(self, choice: Choice, tokens: int, prompt_tokens: int) -> bytes:
        """The tokens of a choice from those that were told up to `tokens`."""
        answer = choice.answer
        before, choice.told = choice.told, tokens
        text = answer.until(tokens)
        ended = tokens == answer.length
        if self._plain and not ended and not choice.echo:
            opening, closing = self._around
            return f"{opening}{choice.index}{closing[0]}{json.dumps(text)}{closing[1]}".encode()
        ids = [answer.token_id(i) for i in range(before, tokens)] if self.token_ids else None
        one: dict[str, Any] = {"index": choice.index}
        if self.chat:
            one |= {"delta": {"content": text}, "logprobs": self._chat_logprobs(choice, before, tokens)}
            one["finish_reason"] = answer.finish_reason if ended else None
            if ended:
                one["stop_reason"] = answer.stop_reason
        else:
            echo = choice.echo if before == 0 else ""
            one |= {
                "text": echo if choice.alone else echo + text,
                "logprobs": self._logprobs(choice, before, before if choice.alone else tokens, bool(echo)),
                "finish_reason": answer.finish_reason if ended else None,
                "stop_reason": answer.stop_reason if ended else None,
                "prompt_token_ids": choice.prompt_ids if self.token_ids and before == 0 else None,
            }
        one["token_ids"] = ids
        body = self._chunk_head() | {"choices": [one]}
        if ended and not self.usage:
            body["system_fingerprint"] = self.fingerprint
        if self.continuous_usage:
            body["usage"] = _usage(prompt_tokens, tokens)
            if self.chat:
                body["usage"]["completion_tokens_details"] = None
        return _event(body)

    def last(self, prompt_tokens: int, tokens: int) -> bytes:
        """What ends a stream."""
        if not self.usage:
            return DONE
        body = self._chunk_head() | {"choices": [], "usage": _usage(prompt_tokens, tokens)}
        return _event(body | {"system_fingerprint": self.fingerprint}) + DONE

    @cached_property
    def _plain(self) -> bool:
        """Chunks differ in their texts alone."""
        return self.logprobs is None and not self.token_ids and not self.continuous_usage

    @cached_property
    def _around(self) -> tuple[str, tuple[str, str]]:
        """What stands before the index, between it and the text, and behind, in a chunk amid a stream.

        Writing it out once makes a chunk four times cheaper.
        """
        opening = "data: " + json.dumps(self._chunk_head())[:-1] + ', "choices": [{"index": '
        rest = ', "logprobs": null, "finish_reason": null'
        if self.chat:
            return opening, (', "delta": {"content": ', "}" + rest + ', "token_ids": null}]}\n\n')
        rest += ', "stop_reason": null, "prompt_token_ids": null, "token_ids": null}]}\n\n'
        return opening, (', "text": ', rest)

    def _chunk_head(self) -> dict[str, Any]:
        return {
            "id": self.request_id,
            "object": "chat.completion.chunk" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
        }

    # ---- log probabilities --------------------------------------------------------------------------------

    def _logprobs(self, choice: Choice, first: int, end: int, echo: bool) -> dict[str, Any] | None:
        if self.logprobs is None:
            return None
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offset = sum(len(choice.answer.piece(i)) for i in range(first))
        if echo:
            for place, token in enumerate(_pieces(choice)):
                top = _prompt_top(token, place)
                tokens.append(token)
                values.append(top.logprob if place else None)
                tops.append({top.token: top.logprob} if place else None)
        else:
            offset += len(choice.echo)
        for place in range(first, end):
            one, alternatives = choice.answer.logprobs(place, max(1, self.logprobs))
            tokens.append(one.token)
            values.append(one.logprob)
            tops.append({t.token: t.logprob for t in alternatives})
        offsets = [offset + sum(map(len, tokens[:i])) for i in range(len(tokens))]
        return {
            "text_offset": offsets,
            "token_logprobs": values,
            "tokens": tokens,
            "top_logprobs": tops,
        }

    def _prompt_logprobs(self, choice: Choice) -> list[Any] | None:
        if self.logprobs is None or not choice.echo:
            return None
        out: list[Any] = [None]
        for place, token in list(enumerate(_pieces(choice)))[1:]:
            top = _prompt_top(token, place)
            known = {"logprob": top.logprob, "rank": 1, "decoded_token": token}
            out.append({str(choice.prompt_ids[place]): known})
        return out

    def _chat_logprobs(self, choice: Choice, first: int, end: int) -> dict[str, Any] | None:
        if self.logprobs is None:
            return None
        content = []
        for place in range(first, end):
            one, alternatives = choice.answer.logprobs(place, self.logprobs)
            content.append({**_chat_top(one), "top_logprobs": [_chat_top(t) for t in alternatives]})
        return {"content": content}


def error_event(error: dict[str, Any]) -> bytes:
    """An error within a stream that has begun; the stream ends with it."""
    return _event(error) + DONE


def _usage(prompt_tokens: int, tokens: int) -> dict[str, Any]:
    total = prompt_tokens + tokens
    return {"prompt_tokens": prompt_tokens, "total_tokens": total, "completion_tokens": tokens}


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


def _pieces(choice: Choice) -> list[str]:
    return [choice.echo[i : i + 4] for i in range(0, len(choice.echo), 4)]


def _prompt_top(token: str, place: int) -> Top:
    return Top(token, -((place * 37 + len(token)) % 97 + 1) / 16)


def _chat_top(top: Top) -> dict[str, Any]:
    return {"token": top.token, "logprob": top.logprob, "bytes": list(top.token.encode())}
