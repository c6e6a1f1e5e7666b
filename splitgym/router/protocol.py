"""OpenAI's protocol, and vLLM's hand-over of a KV cache (NixlConnector, pull) on top of it.

To the prompt server goes the client's body with one token to generate and `kv_transfer_params` that ask it to
keep the cache; what it returns in `kv_transfer_params` goes to the token server unchanged, with the client's
body. Source: vLLM's `tests/v1/kv_connector/nixl_integration/toy_proxy_server.py` and its NixlConnector usage
guide.
"""

import json
from typing import Any

_DECODE = json.JSONDecoder().decode
KV = "kv_transfer_params"
ASK_FOR_CACHE: dict[str, Any] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
_NOT_FOR_PROMPT = ("stream_options", "min_tokens", "min_completion_tokens")


class Refused(Exception):
    """A request that is answered with an error object.

    Args:
        retry_after_s: says when to come back.
    """

    def __init__(self, status: int, message: str, kind: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind or ("BadRequestError" if status < 500 else "InternalServerError")
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> bytes:
        """The error object, in vLLM's form."""
        return error_body(self.status, self.message, self.kind)


def error_body(status: int, message: str, kind: str) -> bytes:
    """OpenAI's error object as JSON."""
    error = {"message": message, "type": kind, "param": None, "code": status}
    return json.dumps({"error": error}).encode()


def error_event(status: int, message: str, kind: str) -> bytes:
    """The same as an event of a stream."""
    return b"data: " + error_body(status, message, kind) + b"\n\n"


def load_json(raw: bytes) -> Any:
    """`json.loads`, without its guesses at the encoding where it is UTF-8.

    Raises:
        ValueError, RecursionError: it is no JSON.
    """
    try:
        return _DECODE(raw.decode())
    except ValueError:
        return json.loads(raw)


def parse_body(raw: bytes) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        Refused: 400, not JSON, not an object, or nested too deep.
    """
    try:
        body = load_json(raw)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no valid JSON") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object")
    if KV in body:
        raise Refused(400, f"{KV} is for the router to set")
    return body


def wanted_tokens(body: dict[str, Any]) -> int | None:
    """The client's limit on the output; None where it gave none, or nothing sensible."""
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if type(value) is int and value > 0:
            return value
    return None


def prompt_body(body: dict[str, Any]) -> bytes:
    """What the prompt server gets."""
    asked = {key: value for key, value in body.items() if key not in _NOT_FOR_PROMPT}
    asked["max_tokens"] = 1
    if "max_completion_tokens" in asked:
        asked["max_completion_tokens"] = 1
    asked["stream"] = False
    asked[KV] = ASK_FOR_CACHE
    return json.dumps(asked).encode()


def token_body(raw: bytes, transfer: dict[str, Any]) -> bytes:
    """What the token server gets: the client's own bytes, with the transfer's parameters added at the end."""
    text = raw.rstrip()
    inner = text[:-1].rstrip()
    comma = b"" if inner.endswith(b"{") else b","
    return inner + comma + b'"' + KV.encode() + b'":' + json.dumps(transfer).encode() + b"}"


def transfer_params(data: Any) -> tuple[dict[str, Any] | None, int | None]:
    """(`kv_transfer_params`, prompt tokens) of a prompt server's answer; None for what is not there.

    Raises:
        ValueError: the answer is no JSON object.
    """
    if not isinstance(data, dict):
        raise ValueError("no object")
    found = data.get(KV)
    return (found if isinstance(found, dict) and found else None), usage_of(data)[0]


def usage_of(data: Any) -> tuple[int | None, int | None]:
    """(prompt tokens, output tokens) of an answer's `usage`."""
    usage = data.get("usage") if isinstance(data, dict) else None
    if not isinstance(usage, dict):
        return None, None
    found = []
    for name in ("prompt_tokens", "completion_tokens"):
        value = usage.get(name)
        found.append(value if type(value) is int and value >= 0 else None)
    return found[0], found[1]


class StreamMeter:
    """Counts the events of a server-sent stream as its pieces pass, and keeps the end for its `usage`."""

    _KEPT = 4096

    def __init__(self) -> None:
        self.events = 0
        self._last = b""
        self._tail = b""

    def feed(self, piece: bytes) -> int:
        """Events that this piece completed."""
        # A blank line ends an event; inside JSON a line break is escaped, so none is miscounted.
        found = piece.count(b"\n\n") + (self._last == b"\n" and piece[:1] == b"\n")
        self._last = piece[-1:]
        self._tail = (self._tail + piece)[-self._KEPT :]
        self.events += found
        return found

    @property
    def done(self) -> bool:
        """The stream said that it is complete."""
        return b"[DONE]" in self._tail[-64:]

    def usage(self) -> tuple[int | None, int | None]:
        """(prompt tokens, output tokens) where the last events tell."""
        for event in reversed(self._tail.split(b"\n\n")):
            if b'"usage"' in event and event.startswith(b"data: "):
                try:
                    found = usage_of(json.loads(event[6:]))
                except ValueError:
                    continue
                if found != (None, None):
                    return found
        return None, None
