"""Requests whose answers must look alike from vLLM and from the simulated engine, and what "alike" means.

`tests/vllm/recorded.json` holds what a real vLLM server answered, reduced to shapes;
`python tests/engine_probes.py URL > tests/vllm/recorded.json` writes it anew.
"""

import http.client
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MODEL = "tiny"
_WORDS = "the quick brown fox jumps over the lazy dog"
_CHAT = [{"role": "user", "content": _WORDS}]
_REMOTE_DECODE = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
# Values that mean the same from every server; all others count by their type.
_LITERAL = {"object", "finish_reason", "code", "role", "owned_by", "do_remote_prefill", "do_remote_decode"}
_LITERAL |= {"type", "param", "index", "completion_tokens", "transfer_mode", "tp_size"}


@dataclass(frozen=True)
class Probe:
    """One request."""

    name: str
    path: str
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"


def _completion(name: str, **fields: Any) -> Probe:
    body = {"model": MODEL, "prompt": _WORDS, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    return Probe(name, "/v1/completions", {**body, **fields})


def _chat(name: str, **fields: Any) -> Probe:
    body = {"model": MODEL, "messages": _CHAT, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    return Probe(name, "/v1/chat/completions", {**body, **fields})


_USAGE = {"include_usage": True}
_ANSWERS = [
    Probe("models", "/v1/models", method="GET"),
    Probe("version", "/version", method="GET"),
    _completion("completion"),
    _completion("completion without max_tokens", max_tokens=None),
    _completion("completion of one token", max_tokens=1),
    _completion("completion n", n=2, temperature=1, seed=1),
    _completion("completion two prompts", prompt=["a", "b c d"]),
    _completion("completion token ids", prompt=[5, 6, 7]),
    _completion("completion lists of token ids", prompt=[[5, 6, 7], [8]]),
    _completion("completion logprobs", logprobs=2),
    _completion("completion logprobs 0", logprobs=0),
    _completion("completion echo", echo=True),
    _completion("completion echo logprobs", echo=True, logprobs=1),
    _completion("completion echo alone", echo=True, max_tokens=0),
    _completion("completion token ids wanted", return_token_ids=True),
    _completion("completion stream", stream=True),
    _completion("completion stream usage", stream=True, stream_options=_USAGE),
    _completion(
        "completion stream continuous usage",
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    ),
    _completion("completion stream logprobs", stream=True, logprobs=1),
    _completion("completion stream one token", stream=True, max_tokens=1),
    _completion("completion remote decode", max_tokens=1, kv_transfer_params=_REMOTE_DECODE),
    _chat("chat"),
    _chat("chat max_completion_tokens", max_tokens=None, max_completion_tokens=3),
    _chat("chat n", n=2, temperature=1, seed=1),
    _chat("chat logprobs", logprobs=True, top_logprobs=2),
    _chat("chat logprobs alone", logprobs=True),
    _chat("chat parts", messages=[{"role": "user", "content": [{"type": "text", "text": "a b c"}]}]),
    _chat("chat stream", stream=True),
    _chat("chat stream usage", stream=True, stream_options=_USAGE),
    _chat(
        "chat stream continuous usage",
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    ),
    _chat("chat stream logprobs", stream=True, logprobs=True, top_logprobs=1),
    _chat("chat remote decode", max_tokens=1, kv_transfer_params=_REMOTE_DECODE),
    Probe("tokenize", "/tokenize", {"model": MODEL, "prompt": _WORDS}),
]
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
_REFUSALS = [
    Probe("no such path", "/v1/nothing", method="GET"),
    Probe("wrong method", "/v1/completions", method="GET"),
    Probe("no JSON", "/v1/completions", b"{"),
    Probe("no object", "/v1/completions", [1]),
    Probe("null", "/v1/completions", b"null"),
    Probe("no content", "/v1/completions", b""),
    Probe("another content type", "/v1/completions", b"{}", {"Content-Type": "text/plain"}),
    _completion("unknown model", model="other"),
    _chat("chat unknown model", model="other"),
    _completion("no model", model=None),
    _completion("prompt null", prompt=None),
    _completion("prompt empty", prompt=""),
    _completion("prompt empty list", prompt=[]),
    _completion("prompt number", prompt=3),
    _completion("prompt mixed", prompt=["a", 1]),
    _completion("prompt negative ids", prompt=[-1]),
    _completion("prompt ids out of vocabulary", prompt=[10_000_000]),
    _completion("prompt too long", prompt=[5] * 3000),
    _completion("prompt and output too long", max_tokens=100_000),
    _completion("max_tokens 0", max_tokens=0),
    _completion("max_tokens negative", max_tokens=-1),
    _completion("max_tokens text", max_tokens="many"),
    _completion("n 0", n=0),
    _completion("n negative", n=-1),
    _completion("n greedy", n=2),
    _completion("temperature negative", temperature=-1),
    _completion("temperature text", temperature="hot"),
    _completion("top_p 2", top_p=2),
    _completion("top_p 0", top_p=0),
    _completion("top_k", top_k=-5),
    _completion("min_p 2", min_p=2),
    _completion("presence_penalty 3", presence_penalty=3),
    _completion("frequency_penalty 3", frequency_penalty=3),
    _completion("repetition_penalty 0", repetition_penalty=0),
    _completion("logprobs negative", logprobs=-5),
    _completion("logprobs many", logprobs=21),
    _completion("logprobs text", logprobs="a"),
    _completion("stop number", stop=3),
    _completion("stop empty", stop=[""]),
    _completion("min_tokens above max_tokens", min_tokens=9),
    _completion("stream_options without stream", stream_options=_USAGE),
    _completion("stream text", stream="maybe"),
    _completion("seed text", seed="a"),
    _completion("kv_transfer_params text", kv_transfer_params="a"),
    Probe("chat no messages", "/v1/chat/completions", {"model": MODEL}),
    _chat("chat empty messages", messages=[]),
    _chat("chat messages text", messages="hello"),
    _chat("chat message without role", messages=[{"content": "a"}]),
    _chat("chat message of unknown role", messages=[{"role": "nobody", "content": "a"}]),
    _chat("chat message without content", messages=[{"role": "user"}]),
    _chat("chat message number", messages=[{"role": "user", "content": 3}]),
    _chat("chat top_logprobs without logprobs", top_logprobs=2),
    _chat("chat top_logprobs negative", logprobs=True, top_logprobs=-1),
    _chat("chat top_logprobs many", logprobs=True, top_logprobs=50),
    _chat("chat max_tokens 0", max_tokens=0),
    _chat("chat tool choice without tools", tool_choice="auto"),
    _chat("chat tools none", tools=[_TOOL], tool_choice="none"),
]
PROBES = [*_ANSWERS, *_REFUSALS]


@dataclass(frozen=True)
class Answer:
    """Status, content type, body."""

    status: int
    type: str
    text: str


def shape(value: Any, key: str = "") -> Any:
    """What must agree: keys, types, and the values of a few fields; equal neighbours of a list count once."""
    if key == "bytes":
        return key
    if isinstance(value, dict) and key in ("top_logprobs", "prompt_logprobs") and "token" not in value:
        found = {json.dumps(shape(v)) for v in value.values()}  # by token, which differs
        return {"by token": sorted(found)}
    if isinstance(value, dict):
        return {k: shape(v, k) for k, v in sorted(value.items())}
    if isinstance(value, list):
        return _once([shape(item, key) for item in value])
    if key in _LITERAL and value is not None:
        return value
    return type(value).__name__


def _once(items: list[Any]) -> list[Any]:
    return [item for i, item in enumerate(items) if i == 0 or item != items[i - 1]]


def ask(url: str, probe: Probe) -> Answer:
    """Send a probe to `http://HOST:PORT`."""
    content = probe.body if isinstance(probe.body, bytes) else json.dumps(probe.body).encode()
    headers = {"Content-Type": "application/json", **probe.headers}
    there = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)
    try:
        if probe.method == "GET":
            there.request("GET", probe.path)
        else:
            there.request(probe.method, probe.path, content, headers)
        response = there.getresponse()
        kind = response.getheader("content-type", "")
        return Answer(response.status, kind, response.read().decode())
    finally:
        there.close()


def shape_of(answer: Answer) -> dict[str, Any]:
    """Status, content type and shape of an answer."""
    content: Any = "text"
    if answer.type.startswith("text/event-stream"):
        content = _once([shape(_event(e)) for e in answer.text.split("\n\n") if e])
    elif answer.type.startswith("application/json"):
        content = shape(json.loads(answer.text))
    return {"status": answer.status, "type": answer.type, "content": content}


def _event(text: str) -> Any:
    data = text.removeprefix("data: ")
    return data if data == "[DONE]" else json.loads(data)


def message_of(answer: Answer) -> str | None:
    """The sentence of a refusal; None where there is none, or where it lists pydantic's findings."""
    if answer.status < 400 or not answer.type.startswith("application/json"):
        return None
    content = json.loads(answer.text)
    message = content["error"]["message"] if "error" in content else content["detail"]
    return None if "validation error" in message else str(message)


def metrics_of(url: str) -> dict[str, list[str]]:
    """Label names of every sample of vLLM's in `/metrics`."""
    text = ask(url, Probe("metrics", "/metrics", method="GET")).text
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("vllm:"):
            name, _, labels = line.partition("{")
            keys = [part.split("=")[0] for part in labels.split("}")[0].split('",') if part]
            found[name] = sorted(keys)
    return dict(sorted(found.items()))


def recorded() -> dict[str, Any]:
    """What a real vLLM server answered."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("vllm").joinpath("recorded.json").read_text())
    return found


def record(url: str) -> dict[str, Any]:
    """All that is compared, of the server at `url`."""
    answers = {probe.name: ask(url, probe) for probe in PROBES}
    shapes = {name: shape_of(answer) for name, answer in answers.items()}
    messages = {name: message_of(answer) for name, answer in answers.items()}
    return {
        "version": json.loads(answers["version"].text)["version"],
        "shapes": shapes,
        "messages": {name: text for name, text in messages.items() if text is not None},
        "metrics": metrics_of(url),
    }


if __name__ == "__main__":
    print(json.dumps(record(sys.argv[1]), indent=1))
