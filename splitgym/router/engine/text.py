"""Made-up text: what a prompt counts in tokens, and the words that are answered to it.

The answer depends on the prompt, the seed and the number of the choice alone, so that every engine gives the
same one, however the request reached it. A token is four characters, on the way in and on the way out.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHARACTERS_PER_TOKEN = 4
VOCABULARY = 128_256
"""Token ids are below this; so many has Llama 3."""
_WORDS = tuple(f" {a}{b}{c}" for a in "bdfgklmnprstvz" for b in "aeiou" for c in "lnrs")[:256]
_ODD = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: steps that never repeat
_MASK = (1 << 64) - 1


def tokenize(text: str) -> NDArray[np.uint32]:
    """(T,) token ids of a text, below `VOCABULARY`; a piece of four characters is one token."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    tokens = -(-len(codes) // CHARACTERS_PER_TOKEN)
    padded = np.zeros(tokens * CHARACTERS_PER_TOKEN, np.uint64)
    padded[: len(codes)] = codes
    pieces = padded.reshape(tokens, CHARACTERS_PER_TOKEN)
    weights = np.array([1, 31, 961, 29_791], np.uint64)
    return ((pieces * weights).sum(axis=1) % VOCABULARY).astype(np.uint32)


def render_chat(messages: Sequence[Mapping[str, Any]], tools: Any = None) -> str:
    """The text of a conversation, as a plain chat template writes it."""
    parts = [json.dumps(tools)] if tools else []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            content = "\n".join(str(part.get("text", json.dumps(part))) for part in content)
        calls = message.get("tool_calls")
        parts.append(f"{message.get('role')}: {content or ''}{json.dumps(calls) if calls else ''}")
    return "\n".join([*parts, "assistant:"])


def text_of(token_ids: Sequence[int]) -> str:
    """A text for token ids that came without one."""
    return "".join(_WORDS[token % 256] for token in token_ids)


def key_of(token_ids: NDArray[np.uint32], seed: int | None, choice: int) -> int:
    """The number from which an answer is drawn."""
    tail = f"{seed}/{choice}".encode()
    return int.from_bytes(blake2b(token_ids.tobytes() + tail, digest_size=8).digest(), "little")


def natural_length(key: int, mean_tokens: float) -> int:
    """Tokens of an answer that is not cut short, at least 1: geometric with this mean."""
    uniform = ((key >> 11) + 0.5) / (1 << 53)
    if mean_tokens <= 1:
        return 1
    return 1 + int(math.log(uniform) / math.log1p(-1 / mean_tokens))


@dataclass(frozen=True, slots=True)
class Top:
    """Made-up log probability of a token."""

    token: str
    logprob: float


class Answer:
    """The text of one choice, token by token.

    Args:
        key: from `key_of`.
        max_tokens: it is no longer than this, at least 1.
        natural: its own length, the end-of-text token (without text) included; None where that is ignored.
        min_tokens: its own end, and `stop`, count from here on.
        stop: it ends when one of these appears.
        keep_stop: leave the stop string in the text.
    """

    def __init__(
        self,
        key: int,
        max_tokens: int,
        natural: int | None = None,
        min_tokens: int = 0,
        stop: Sequence[str] = (),
        keep_stop: bool = False,
    ):
        self._key = key
        natural = None if natural is None else max(natural, min_tokens + 1)
        self.ended = natural is not None and natural <= max_tokens
        self.length = natural if natural is not None and self.ended else max_tokens
        self.finish_reason = "stop" if self.ended else "length"
        self.stop_reason: str | None = None
        self._hold = 0 if keep_stop or not stop else max(map(len, stop)) - 1
        self._cut: int | None = None
        self._text = ""  # of all tokens so far, where stop strings need it
        self._shown = 0
        self._tokens = 0
        if stop:
            self._find(stop, min_tokens, keep_stop)

    def piece(self, token: int) -> str:
        """Text of a token, counted from 0."""
        if self.ended and token == self.length - 1:
            return ""
        return _WORDS[self._draw(token) & 255]

    def token_id(self, token: int) -> int:
        """Its id; 2 ends a text."""
        if self.ended and token == self.length - 1:
            return 2
        return int(tokenize(self.piece(token))[0])

    def logprobs(self, token: int, count: int) -> tuple[Top, list[Top]]:
        """Of a token, and of the `count` likeliest ones at its place (the token is the first)."""
        number = self._draw(token)
        first = Top(self.piece(token), -((number >> 8) & 1023) / 1024)
        others = [Top(_WORDS[(number + k) & 255], first.logprob - k / 4) for k in range(1, count)]
        return first, [first, *others][:count]

    def until(self, tokens: int) -> str:
        """Text that the client has not seen yet, when there are so many tokens.

        As long as a stop string may have begun, its characters are held back.
        """
        if self._cut is None and not self._hold:
            first, self._tokens = self._tokens, tokens
            return "".join([self.piece(i) for i in range(first, tokens)])
        self._text += "".join([self.piece(i) for i in range(self._tokens, tokens)])
        self._tokens = tokens
        if tokens < self.length:
            end = max(self._shown, len(self._text) - self._hold)
        else:
            end = len(self._text) if self._cut is None else self._cut
        text = self._text[self._shown : end]
        self._shown = end
        return text

    def _draw(self, token: int) -> int:
        number = (self._key + (token + 1) * _ODD) & _MASK
        number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        return number ^ (number >> 31)

    def _find(self, stop: Sequence[str], min_tokens: int, keep_stop: bool) -> None:
        """End where the first stop string does; vLLM looks at what each token has added."""
        text = ""
        for token in range(self.length):
            piece = self.piece(token)
            text += piece
            if token < min_tokens or not piece:
                continue
            for word in stop:
                at = text.find(word, max(0, len(text) - len(piece) - len(word) + 1))
                if at >= 0:
                    self.ended, self.length = False, token + 1
                    self.finish_reason, self.stop_reason = "stop", word
                    self._cut = at + len(word) if keep_stop else at
                    return
