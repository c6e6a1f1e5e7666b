"""The simulated vLLM server: no body breaks it."""

import json

import engine_probes
import pytest
from engine_help import PARAMS, REMOTE_DECODE, in_thread
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitgym.router.engine.bodies import Refusal
from splitgym.router.engine.protocol import chat_body, completion_body, parse_json

WORDS = "the quick brown fox jumps over the lazy dog"

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda s: st.lists(s, max_size=4) | st.dictionaries(st.text(max_size=6), s, max_size=3),
    max_leaves=8,
)
FIELDS = """prompt messages max_completion_tokens n stop stream stream_options logprobs top_logprobs seed
temperature top_p top_k min_p echo ignore_eos min_tokens tools tool_choice kv_transfer_params return_token_ids
request_id model presence_penalty include_stop_str_in_output"""
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "tool"])},
        optional={"content": st.text(max_size=5) | VALUES, "tool_calls": VALUES},
    ),
    max_size=3,
)
BODIES = st.fixed_dictionaries(
    {"max_tokens": st.sampled_from([1, 3, 5])},
    optional=dict.fromkeys(FIELDS.split(), VALUES)
    | {"prompt": st.text(min_size=1, max_size=9) | VALUES, "messages": MESSAGES | VALUES}
    | {"kv_transfer_params": st.just(PARAMS) | st.just(REMOTE_DECODE) | VALUES},
)


@pytest.fixture(scope="module")
def server():
    with in_thread(max_model_len=2048) as (there, urls):
        yield there, urls[0]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BODIES | VALUES, st.sampled_from(["/v1/completions", "/v1/chat/completions", "/tokenize"]))
def test_no_body_breaks_it(server, body, path):
    there, url = server
    probe = engine_probes.Probe("any", path, json.dumps(body).encode())
    answer = engine_probes.ask(url, probe)
    assert answer.status in (200, 400, 404), (answer, body)
    if answer.status != 200:
        assert set(json.loads(answer.text)["error"]) == {"message", "type", "param", "code"}
        assert len(answer.text) < 20_000
    assert engine_probes.ask(url, engine_probes.Probe("up", "/health", method="GET")).status == 200


@given(st.binary(max_size=40))
def test_no_bytes_break_the_parser(content):
    try:
        data = parse_json(content, "application/json; charset=utf-8")
    except Refusal as refusal:
        assert refusal.status == 400
        return
    for read in (completion_body, chat_body):
        try:
            read(data)
        except Refusal as refusal:
            assert refusal.status == 400


def test_deep_json_and_huge_numbers_are_refused():
    for content in (b"[" * 200_000, b'{"max_tokens":' + b"9" * 5000 + b"}", b"\xff"):
        with pytest.raises(Refusal) as found:
            parse_json(content, "application/json")
        assert found.value.status == 400
