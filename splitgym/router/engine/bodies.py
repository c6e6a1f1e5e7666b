"""Bodies of requests, field by field, and what vLLM's sampling refuses in them."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import TypedDict

INT64 = 1 << 63

Id = Annotated[int, Field(ge=0)]
Stop = str | Annotated[list[str], Field(max_length=64)] | None
Seed = Annotated[int, Field(ge=-INT64, le=INT64 - 1)]
TopLogprobs = Annotated[int, BeforeValidator(lambda value: 0 if value is None else value)]


class Refusal(Exception):
    """A request that is answered with an error object."""

    def __init__(
        self, message: str, status: int = 400, kind: str = "BadRequestError", param: str | None = None
    ):
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.param = param

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return {"error": error}


def internal_error() -> Refusal:
    """What vLLM says when something broke."""
    return Refusal("Internal server error", 500, "InternalServerError")


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class _Sampling(BaseModel):
    """What both kinds of requests have."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    max_tokens: int | None = None
    n: int | None = 1
    stop: Stop = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    seed: Seed | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    include_stop_str_in_output: bool = False
    return_token_ids: bool | None = None
    request_id: str | None = None
    kv_transfer_params: dict[str, Any] | None = None

    @property
    def choices(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def limit(self) -> int | None:
        """Output tokens that the client allows."""
        return self.max_tokens

    @property
    def limit_name(self) -> str:
        return "max_tokens"

    def check_sampling(self, max_tokens: int) -> None:
        """Refuse what vLLM's `SamplingParams` refuse; `max_tokens` is the resolved limit."""
        greedy = self.temperature is not None and self.temperature < 1e-5
        for value, wrong, text, param in (
            (self.choices, self.choices < 1, "n must be at least 1, got {}.", None),
            (self.presence_penalty, _outside(self.presence_penalty, -2, 2), _range("presence_penalty"), None),
            (
                self.frequency_penalty,
                _outside(self.frequency_penalty, -2, 2),
                _range("frequency_penalty"),
                None,
            ),
            (
                self.repetition_penalty,
                self.repetition_penalty is not None and not self.repetition_penalty > 0,
                "repetition_penalty must be greater than zero, got {}.",
                None,
            ),
            (
                self.temperature,
                self.temperature is not None and not self.temperature >= 0,
                "temperature must be non-negative, got {}.",
                "temperature",
            ),
            (
                self.top_p,
                self.top_p is not None and not 0 < self.top_p <= 1,
                "top_p must be in (0, 1], got {}.",
                "top_p",
            ),
            (
                self.top_k,
                self.top_k is not None and self.top_k < -1,
                "top_k must be 0 (disable), or at least 1, got {}.",
                None,
            ),
            (self.min_p, _outside(self.min_p, 0, 1), "min_p must be in [0, 1], got {}.", None),
            (max_tokens, max_tokens < 1, "max_tokens must be at least 1, got {}.", "max_tokens"),
            (
                self.min_tokens,
                self.min_tokens < 0,
                "min_tokens must be greater than or equal to 0, got {}.",
                None,
            ),
            (
                self.min_tokens,
                self.min_tokens > max_tokens,
                f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {{}}.",
                None,
            ),
            ("", any(not word for word in self.stops), "stop cannot contain an empty string.", None),
            (
                self.choices,
                greedy and self.choices > 1,
                "n must be 1 when using greedy sampling, got {}.",
                None,
            ),
        ):
            if wrong:
                tail = "" if param is None else f" (parameter={param}, value={value})"
                raise Refusal(text.format(value) + tail, param=param)


class CompletionBody(_Sampling):
    """Body of `/v1/completions`."""

    prompt: list[Id] | list[list[Id]] | str | list[str] | None = None
    echo: bool | None = False
    logprobs: int | None = None

    @property
    def limit(self) -> int | None:
        if self.max_tokens == 0 and self.echo:
            return 1
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """One entry a prompt."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if prompt and isinstance(prompt[0], int):
            return [prompt]  # type: ignore[list-item]  # ids of one prompt
        return prompt or []  # type: ignore[return-value]


class ChatCompletionDeveloperMessageParam(TypedDict):
    """A message. The name is the first of vLLM's kinds of messages, which its refusals give."""

    role: str
    content: NotRequired[str | list[str | dict[str, Any]] | None]
    tool_calls: NotRequired[list[Any] | None]


class CustomChatCompletionMessageParam(ChatCompletionDeveloperMessageParam):
    """The last of vLLM's kinds."""


class ChatBody(_Sampling):
    """Body of `/v1/chat/completions`."""

    messages: list[ChatCompletionDeveloperMessageParam | CustomChatCompletionMessageParam]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: TopLogprobs = 0
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def limit_name(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"


class TokenizeBody(BaseModel):
    """Body of `/tokenize`."""

    model: str | None = None
    prompt: str = ""
    messages: list[CustomChatCompletionMessageParam] | None = None


def _outside(value: float | None, low: float, high: float) -> bool:
    return value is not None and not low <= value <= high


def _range(name: str) -> str:
    return f"{name} must be in [-2, 2], got {{}}."
