"""Bodies of requests, and the refusals of bad ones, as vLLM 0.32 gives them.

Fields that change no answer here (penalties, guided decoding, ...) are checked where vLLM checks them and
then ignored; unknown ones are ignored, as vLLM does.
"""

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from splitgym.router.engine.bodies import INT64, ChatBody, CompletionBody, Refusal, TokenizeBody
from splitgym.router.engine.text import VOCABULARY

MAX_LOGPROBS = 20
_MOST_ERRORS = 10
_MOST_CHARACTERS = 200
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
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > INT64:
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
