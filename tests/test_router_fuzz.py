"""Whatever comes in, a 4xx or a clear error goes out: never a 500, never a hang, never a traceback."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from pathlib import Path

import pytest
import requests
import schemathesis
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from splitgym import policy
from splitgym.config import from_mapping
from splitgym.errors import ConfigError, SplitgymError
from splitgym.router import config as router_config
from splitgym.router.config import RouterConfig, load_config
from splitgym.router.engine import EngineOptions, running
from splitgym.router.http.connection import State
from tests.fake_vllm import routed
from tests.test_router_engines import names

SPEC = yaml.safe_load((Path(router_config.__file__).parent / "openapi.yaml").read_text())
CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance]
LIMITS = {"max_body_bytes": 1 << 16, "max_header_bytes": 4096, "max_connections": 64}
FEW = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


def part(tag):
    """The operations of one port."""
    paths = {
        path: item
        for path, item in SPEC["paths"].items()
        if any(tag in operation["tags"] for operation in item.values())
    }
    return schemathesis.openapi.from_dict({**SPEC, "paths": paths})


@contextlib.contextmanager
def serving():
    """A router in front of two simulated engines, in a thread: the client."""
    ready, ports, loop = threading.Event(), [], asyncio.new_event_loop()

    async def main():
        options = EngineOptions(engines=2, port=0, time_scale=1000.0, max_model_len=2048)
        async with contextlib.AsyncExitStack() as stack:
            engines = await stack.enter_async_context(running(options))
            listen = {"port": 0, **LIMITS}
            over = asyncio.Event()
            ports.extend([await stack.enter_async_context(routed(names(engines), "PT", listen=listen)), over])
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    assert ready.wait(120)
    client, over = ports
    try:
        yield client
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(30)
        loop.close()


@pytest.fixture(scope="module")
def client():
    with serving() as found:
        yield found


@pytest.fixture(autouse=True)
def _unharmed(client, caplog):
    """After each test the router still answers as it should, and has told of no exception."""
    yield
    assert not [record for record in caplog.get_records("call") if record.exc_info]
    answer = requests.post(client.url + "/v1/completions", json={"prompt": "x", "max_tokens": 2}, timeout=20)
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 2
    assert client.router.parts.active == 0 and client.router.parts.gate.waiting == 0


def conform(case, base):
    response = case.call(base_url=base, timeout=20)
    assert response.status_code < 500, response.text
    case.validate_response(response, checks=CHECKS)


@part("traffic").parametrize()
@FEW
def test_requests_of_every_shape(case, client):
    conform(case, client.url)


@part("admin").parametrize()
@FEW
def test_the_admin_interface(case, client):
    if case.path == "/admin/servers":  # each would be asked for its health
        case.body = {**case.body, "url": "http://10.0.0.1:1"} if isinstance(case.body, dict) else case.body
    conform(case, client.admin)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("prompt", "messages", "max_tokens", "max_completion_tokens", "min_tokens", "stream", "n", "stop")
FIELDS += ("stream_options", "temperature", "logprobs", "tools", "kv_transfer_params", "seed", "model")


@settings(FEW, max_examples=150)
@given(
    st.sampled_from(["/v1/completions", "/v1/chat/completions"]),
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6),
)
def test_fields_of_every_type(client, path, body):
    raw = json.dumps(body).encode()  # NaN and Infinity too, as Python writes them
    headers = {"Content-Type": "application/json"}
    answer = requests.post(client.url + path, data=raw, headers=headers, timeout=20)
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


DEEP = [b"[" * 60_000, b'{"a":' * 10_000, b'{"prompt": ' + b"[" * 5_000 + b"]" * 5_000 + b"}"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"prompt": "\xff"}', *DEEP]
)
def test_bodies_that_are_no_request(client, body):
    for path in ("/v1/completions", "/v1/chat/completions"):
        headers = {"Content-Type": "application/json"}
        answer = requests.post(client.url + path, data=body, headers=headers, timeout=20)
        assert answer.status_code == 400 and answer.json()["error"]["code"] == 400
    answer = requests.post(client.admin + "/admin/role", data=body, headers=headers, timeout=20)
    assert 400 <= answer.status_code < 500


def test_bodies_that_are_too_large(client):
    def endless():
        for _ in range(100):
            yield b"x" * 4096

    for data in (b"x" * (LIMITS["max_body_bytes"] + 1), endless()):
        try:
            answer = requests.post(client.url + "/v1/completions", data=data, timeout=20)
        except requests.ConnectionError:
            continue  # it hung up while the rest was still coming
        assert answer.status_code == 413


def talk(port, data, seconds=0.3):
    """Send bytes, read until the other side hangs up or says no more."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as one:
        got = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            one.sendall(data)
            while piece := one.recv(1 << 16):
                got += piece
        return got


LINES = st.lists(
    st.sampled_from(
        [
            b"POST /v1/completions HTTP/1.1",
            b"GET / HTTP/1.1",
            b"GET http://[ HTTP/1.1",
            b"OPTIONS * HTTP/9.9",
            b"Host: x",
            b"Content-Length: -1",
            b"Content-Length: 5",
            b"Content-Length: 99999999999999999999",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip, chunked",
            b"Connection: keep-alive, x-request-id",
            b"Expect: 100-continue",
            b"Upgrade: websocket",
            b"X-Request-Id: \x01\xff",
            b"X: " + b"y" * 5000,
            b"",
            b"5",
            b"hello",
            b'{"prompt":"x"}',
            b"ffffffffffffffffff",
            b"0",
        ]
    )
    | st.binary(max_size=40),
    max_size=12,
)


@settings(FEW, max_examples=60)
@given(LINES, st.booleans())
def test_bytes_that_are_no_http(client, lines, admin):
    port = client.router.admin_port if admin else client.router.port
    got = talk(port, b"\r\n".join(lines) + b"\r\n\r\n")
    assert not got or got.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")), got[:200]
    assert b" 500 " not in got and b"Traceback" not in got, got[:2000]


def test_headers_that_are_too_long(client):
    long = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"y" * 8192 + b"\r\n\r\n"
    got = talk(client.router.port, long)  # nothing, where it hung up before all was sent
    assert not got or b" 400 " in got.split(b"\r\n")[0]
    answer = requests.get(client.url + "/health", headers={"X-Long": "y" * 3000}, timeout=20)
    assert answer.status_code == 200


def test_clients_that_say_nothing_are_hung_up_on(client, monkeypatch):
    """Neither a request that never ends nor a body that never comes keeps a connection."""
    door = client.router.door
    with socket.create_connection(("127.0.0.1", client.router.port), timeout=20) as silent:
        silent.sendall(b"POST /v1/comp")
        while not (waiting := [c for c in door.connections if c.state == State.HEAD]):
            time.sleep(0.01)
        for connection in waiting:
            connection.since_s -= 60.0  # a minute ago
        assert silent.recv(100) == b""


# ---- files ------------------------------------------------------------------------------------------------

GOOD = {
    "servers": [
        {"name": "a", "url": "http://10.0.0.1:8000", "pool": "prompt"},
        {"name": "b", "url": "http://10.0.0.2:8000", "pool": "token"},
    ],
    "listen": {"port": 0},
    "policy": {"routing": "index"},
    "limits": {"attempts": 2},
}


def sites(data, path=()):
    """All places in nested data."""
    yield path
    if isinstance(data, dict):
        for key, value in data.items():
            yield from sites(value, (*path, key))
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield from sites(value, (*path, i))


@settings(FEW, max_examples=200)
@given(st.sampled_from(list(sites(GOOD))[1:]), JSON)
def test_configurations_with_something_wrong_in_them(path, value):
    data = json.loads(json.dumps(GOOD))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    try:
        found = from_mapping(RouterConfig, data, "test")
        found.cluster()
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000


@settings(FEW, max_examples=60)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_files_that_are_no_configuration(tmp_path_factory, raw):
    file = tmp_path_factory.mktemp("yaml") / "router.yaml"
    file.write_bytes(raw)
    with pytest.raises(ConfigError, match=r"router\.yaml"):
        load_config(file)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The shipped agent: a manifest and weights."""
    folder = policy.locate("pretrained:routing")
    return {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()}


@settings(FEW, max_examples=60)
@given(st.data())
def test_bundles_that_were_damaged(tmp_path_factory, bundle, data):
    folder = tmp_path_factory.mktemp("bundle")
    for name, raw in bundle.items():
        (folder / name).write_bytes(raw)
    name = data.draw(st.sampled_from(sorted(n for n in bundle if n != "README.md")))
    raw = bytearray(bundle[name])
    place = data.draw(st.integers(0, len(raw) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "insert", "remove"]))
    if how == "flip":
        raw[place] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del raw[place:]
    elif how == "insert":
        raw[place:place] = data.draw(st.binary(min_size=1, max_size=20))
    (folder / name).write_bytes(raw)
    if how == "remove":
        (folder / name).unlink()
    try:
        policy.load(folder)
    except SplitgymError as error:
        assert "\n" not in str(error)
    else:
        # What still loads is a manifest that means the same, or says something else of what decides nothing.
        same = bytes(raw).strip() == bundle[name].strip()  # but for the line's end
        assert name == "manifest.json" and (how in ("flip", "insert") or (how == "cut" and same))
