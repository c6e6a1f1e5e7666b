"""How long is a prompt? By a tokenizer if there is one, else from its characters, corrected by answers."""

from typing import Any

from splitgym.errors import ConfigError
from splitgym.router.config import TokensConfig

_DECAY = 0.995
_PRIOR_TOKENS = 2000.0
"""The configured characters per token count as much as a seen prompt of this many tokens."""
_LEAST, _MOST = 0.5, 20.0


class PromptLength:
    """Prompt lengths in tokens.

    Args:
        config: how.

    Raises:
        ConfigError: the tokenizer cannot be loaded.
    """

    def __init__(self, config: TokensConfig) -> None:
        self._config = config
        self._characters = config.characters_per_token * _PRIOR_TOKENS
        self._tokens = _PRIOR_TOKENS
        self._tokenizer: Any = None
        if config.tokenizer is not None:
            try:
                from tokenizers import Tokenizer
            except ImportError:
                raise ConfigError(
                    "tokens.tokenizer needs the tokenizers package: pip install tokenizers"
                ) from None
            try:
                self._tokenizer = Tokenizer.from_file(config.tokenizer)
            except Exception as error:  # the package raises plain Exceptions
                raise ConfigError(f"tokens.tokenizer {config.tokenizer} cannot be read ({error})") from None

    @property
    def characters_per_token(self) -> float:
        """The present estimate."""
        return min(_MOST, max(_LEAST, self._characters / self._tokens))

    def measure(self, body: dict[str, Any]) -> tuple[int, int]:
        """(tokens, characters) of a request's prompt; characters are 0 where the tokens are known.

        Args:
            body: of /v1/completions or /v1/chat/completions. Anything odd counts as little: the server will
                refuse it.
        """
        if "messages" in body:
            return self._chat(body)
        prompt = body.get("prompt")
        if isinstance(prompt, list):
            if prompt and all(type(x) is int for x in prompt):
                return len(prompt), 0
            if prompt and all(isinstance(x, list) for x in prompt):
                return max(1, sum(len(x) for x in prompt)), 0
            return self._text([x for x in prompt if isinstance(x, str)], 0.0)
        return self._text([prompt] if isinstance(prompt, str) else [], 0.0)

    def _chat(self, body: dict[str, Any]) -> tuple[int, int]:
        texts: list[str] = []
        messages = body["messages"] if isinstance(body["messages"], list) else []
        for message in messages:
            content = message.get("content") if isinstance(message, dict) else None
            if isinstance(content, str):
                texts.append(content)
            elif isinstance(content, list):
                texts += [
                    part["text"]
                    for part in content
                    if isinstance(part, dict) and isinstance(part.get("text"), str)
                ]
        if body.get("tools"):
            texts.append(str(body["tools"]))
        return self._text(texts, len(messages) * self._config.chat_tokens_per_message)

    def _text(self, texts: list[str], extra: float) -> tuple[int, int]:
        if self._tokenizer is not None:
            tokens = sum(len(self._tokenizer.encode(text).ids) for text in texts)
            return max(1, round(tokens + extra)), 0
        characters = sum(len(text) for text in texts)
        return max(1, round(characters / self.characters_per_token + extra)), characters

    def learn(self, characters: int, tokens: int) -> None:
        """A server returned the true length of a prompt that was estimated."""
        if characters > 0 and tokens > 0:
            self._characters = self._characters * _DECAY + characters
            self._tokens = self._tokens * _DECAY + tokens
