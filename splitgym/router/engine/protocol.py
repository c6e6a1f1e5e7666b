"""Bodies of requests, and the refusals of bad ones, as vLLM 0.32 gives them.

Fields that change no answer here (penalties, guided decoding, ...) are checked where vLLM checks them and
then ignored; unknown ones are ignored, as vLLM does.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from splitgym.router.engine.text import VOCABULARY

MAX_LOGPROBS = 20
_INT64 = 1 << 63
_MOST_ERRORS = 10
_MOST_CHARACTERS = 200

Id = Annotated[int, Field(ge=0)]
Stop = str | Annotated[list[str], Field(max_length=64)] | None
Seed = Annotated[int, Field(ge=-_INT64, le=_INT64 - 1)]
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


_TOKENIZE = TypeAdapter(TokenizeBody)
_COMPLETION = TypeAdapter(CompletionBody)
_CHAT = TypeAdapter(ChatBody)


def parse_json(content: bytes, content_type: str) -> Any:
    """The value in a body.

    Raises:
        Refusal: another content type, or no JSON.
    """
    if content_type.lower().split(";")[0] != "application/json":
        text = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise Refusal(text, kind="Bad Request")
    if not content:
        return None
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        place, why = error.pos, error.msg
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of thousands of digits, too deep
        place, why = 0, str(error)[:_MOST_CHARACTERS]
    found = {"type": "json_invalid", "loc": f"body.{place}", "msg": "JSON decode error", "input": {}}
    raise _invalid([{**found, "ctx": {"error": why}}], f"body.{place}")


def completion_body(data: Any) -> CompletionBody:
    """The body of a completion request.

    Raises:
        Refusal: says what is wrong, in vLLM's words.
    """
    if isinstance(data, dict):
        if data.get("prompt") in (None, "") and not data.get("prompt_embeds"):
            _refuse("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
        _check_stream_options(data)
        logprobs = data.get("logprobs")
        if logprobs is not None and not isinstance(logprobs, int | float):
            text = f"`logprobs` must be an integer. (parameter=logprobs, value={_short(logprobs)})"
            raise Refusal(text, param="logprobs")
        if logprobs is not None and logprobs < 0 and logprobs != -1:
            text = f"`logprobs` must be a positive value or -1. (parameter=logprobs, value={logprobs})"
            raise Refusal(text, param="logprobs")
    body: CompletionBody = _validate(_COMPLETION, data)
    if not body.prompts:
        raise Refusal("You must pass at least one prompt")
    _check_logprobs(body.logprobs)
    return body


def chat_body(data: Any) -> ChatBody:
    """The body of a chat request.

    Raises:
        Refusal: says what is wrong, in vLLM's words.
    """
    if isinstance(data, dict):
        _check_stream_options(data)
        if data.get("top_logprobs") and not data.get("logprobs"):
            _refuse("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
        choice, tools = data.get("tool_choice"), data.get("tools")
        if choice is not None and choice != "none" and not tools:
            _refuse("When using `tool_choice`, `tools` must be set.", "tool_choice")
    body: ChatBody = _validate(_CHAT, data)
    if not body.messages:
        raise Refusal("Cannot apply chat template to an empty conversation. Provide at least one message.")
    if body.tools and body.tool_choice in (None, "auto"):
        raise Refusal(
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        )
    if body.logprobs:
        _check_logprobs(body.top_logprobs)
    return body


def tokenize_body(data: Any) -> TokenizeBody:
    """The body of a `/tokenize` request.

    Raises:
        Refusal: says what is wrong, in vLLM's words.
    """
    body: TokenizeBody = _validate(_TOKENIZE, data)
    return body


def _validate(adapter: TypeAdapter[Any], data: Any) -> Any:
    if data is None:
        found = [{"type": "missing", "loc": "body", "msg": "Field required", "input": None}]
        raise _invalid(found, "body")
    if not isinstance(data, dict):
        text = "Input should be a valid dictionary or object to extract fields from"
        found = [{"type": "model_attributes_type", "loc": "body", "msg": text, "input": data}]
        raise _invalid(found, "body")
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        found = [
            {"type": e["type"], "loc": _place(e["loc"]), "msg": e["msg"], "input": e["input"]}
            for e in error.errors(include_url=False, include_context=False)
        ]
        raise _invalid(found, str(found[0]["loc"])) from None


def _place(loc: tuple[int | str, ...]) -> str:
    """The path to a field, without pydantic's names for the branches of a union."""
    parts = [str(p) for p in loc]
    kinds = {"str", "int", "float", "bool", "list", "dict", "none", "nullable"}
    return ".".join(["body", *(p for p in parts if p not in kinds and "[" not in p)])


def _invalid(found: list[dict[str, Any]], param: str) -> Refusal:
    label = "error" if len(found) == 1 else "errors"
    lines = [f"  { {**e, 'input': _short(e['input'])} }" for e in found[:_MOST_ERRORS]]
    if len(found) > _MOST_ERRORS:
        lines.append(f"  ...and {len(found) - _MOST_ERRORS} more {label}")
    text = "\n".join([f"{len(found)} validation {label}:", *lines])
    return Refusal(text, kind="Bad Request", param=param)


def _short(value: Any) -> str:
    """A value in a few words: a refusal must not repeat a huge body."""
    if isinstance(value, list | dict):
        return f"<{type(value).__name__} of {len(value)} items>"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _INT64:
        return "<int>"
    text = str(value)
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "...[truncated]"


def _refuse(message: str, param: str) -> None:
    raise Refusal(f"{message} (parameter={param})", param=param)


def _check_stream_options(data: dict[str, Any]) -> None:
    if data.get("stream_options") and not data.get("stream"):
        _refuse("Stream options can only be defined when `stream=True`.", "stream_options")


def _check_logprobs(count: int | None) -> None:
    if count == -1:  # all
        count = VOCABULARY
    if count is not None and not 0 <= count <= MAX_LOGPROBS:
        text = f"Requested sample logprobs of {count}, which is greater than max allowed: {MAX_LOGPROBS}"
        raise Refusal(f"{text} (parameter=logprobs, value={count})", param="logprobs")


def _outside(value: float | None, low: float, high: float) -> bool:
    return value is not None and not low <= value <= high


def _range(name: str) -> str:
    return f"{name} must be in [-2, 2], got {{}}."
