"""Our policy inside production-stack's router: against its interface, and, where it is installed, inside it.

`SPLITGYM_PRODUCTION_STACK_PYTHON` names the Python of an environment with it: see docs/adapters.md.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from splitgym.config import from_mapping
from splitgym.errors import ConfigError
from splitgym.router.adapters import production_stack
from splitgym.router.adapters.placement import AdapterConfig, Placement
from splitgym.router.engine import EngineOptions, running
from splitgym.types import Pool
from tests.ports import free_ports

ROOT = Path(__file__).resolve().parent.parent
REAL = os.environ.get("SPLITGYM_PRODUCTION_STACK_PYTHON", "")
A, B, C, D = (f"http://10.0.0.{i}:8000" for i in range(1, 5))


def config(**policy):
    return from_mapping(AdapterConfig, {"policy": {"deadline_ms": 1000.0, **policy}}, "test")


# ---- what the adapter keeps -------------------------------------------------------------------------------


def test_servers_come_and_go_and_what_they_have_counts():
    placement = Placement(config(routing="splitwise"))
    body = {"prompt": "x" * 4000, "max_tokens": 10}
    placement.known({A: Pool.MIXED, B: Pool.MIXED})
    first = placement.ask(body)
    assert placement.place(first, [A, B], together=True) == (A, A)
    placement.known({A: Pool.MIXED, B: Pool.MIXED, C: Pool.MIXED})
    second, third = placement.ask(body), placement.ask(body)
    taken = {placement.place(asked, [A, B, C], together=True)[0] for asked in (second, third)}
    assert taken == {B, C}, "the first one still has its prompt"
    placement.known({B: Pool.MIXED})
    fourth = placement.ask(body)
    assert placement.place(fourth, [B], together=True) == (B, B)
    for asked in (first, second, third, fourth):
        placement.done(asked, True, 1000, 10)
    assert not any(placement.state.busy(m) for m in range(3))
    assert placement.lengths.measure(body)[0] == 1000, "what servers counted is learned"


def test_a_failed_try_is_taken_back_and_goes_elsewhere():
    placement = Placement(config(routing="splitwise"))
    placement.known({A: Pool.MIXED, B: Pool.MIXED})
    asked = placement.ask({"prompt": "x" * 400})
    assert placement.place(asked, [A, B], together=True) == (A, A)
    assert placement.place(asked, [B], together=True) == (B, B)
    assert not placement.state.busy(0) and placement.state.busy(1)
    placement.done(asked, False, None, None)
    assert not placement.state.busy(1)
    nobody = placement.ask({"prompt": "x"})
    placement.known({})
    assert placement.place(nobody, [], together=True) is None


def test_roles_are_the_routers():
    placement = Placement(config(routing="splitwise", confine=True))
    placement.known({A: Pool.PROMPT, B: Pool.PROMPT, C: Pool.TOKEN, D: Pool.TOKEN})
    pairs = set()
    for _ in range(8):
        asked = placement.ask({"prompt": "x" * 4000})
        pairs.add(placement.place(asked, [A, B, C, D], together=False))
    assert {p for p, _ in pairs} == {A, B} and {t for _, t in pairs} == {C, D}


def test_a_configuration_that_cannot_be_used_says_so(monkeypatch):
    with pytest.raises(ConfigError, match="no scheduler"):
        Placement(config(routing="nobody"))
    with pytest.raises(ConfigError, match="frob"):
        from_mapping(AdapterConfig, {"frob": 1}, "test")
    monkeypatch.setitem(sys.modules, "vllm_router", None)
    with pytest.raises(ConfigError, match="production-stack's router is needed"):
        production_stack.install(config())


# ---- its interface ----------------------------------------------------------------------------------------


@dataclass
class Endpoint:
    url: str
    model_label: str = ""


@dataclass
class Stats:
    gpu_cache_usage_perc: float = 0.0


class Response:
    """As much of Starlette's as an answer needs."""

    def __init__(self, pieces=(), status_code=200):
        self.pieces, self.status_code, self.background = list(pieces), status_code, None

    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": self.status_code, "headers": []})
        for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@dataclass
class Request:
    raw: bytes
    state: types.SimpleNamespace = field(default_factory=types.SimpleNamespace)

    async def body(self):
        return self.raw


class RoutingInterface:
    """Of `vllm_router/routers/routing_logic.py`."""

    def _qps_routing(self, endpoints, request_stats):
        return endpoints[0].url


class Orchestrated:
    """`DisaggregatedPrefillOrchestratedRouter` of the same file."""

    def __init__(self, prefill_model_labels, decode_model_labels):
        self.prefill_model_labels, self.decode_model_labels = prefill_model_labels, decode_model_labels

    def _find_endpoints(self, endpoints):
        return tuple(
            [e for e in endpoints if e.model_label in labels]
            for labels in (self.prefill_model_labels, self.decode_model_labels)
        )

    def select_prefill_endpoint(self, prefiller_endpoints):
        return prefiller_endpoints[0]

    def select_decode_endpoint(self, decoder_endpoints):
        return decoder_endpoints[0]


@pytest.fixture
def stack(monkeypatch):
    """The modules that the adapter touches, with the flow of `request.py`: the module `vllm_router.app`."""
    names = ["vllm_router", "vllm_router.app", "vllm_router.dynamic_config", "vllm_router.routers"]
    names += ["vllm_router.routers.main_router", "vllm_router.routers.routing_logic"]
    names += ["starlette", "starlette.responses"]
    made = {name: types.ModuleType(name) for name in names}
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            setattr(made[name.rpartition(".")[0]], name.rpartition(".")[2], module)
    logic = made["vllm_router.routers.routing_logic"]
    logic.RoutingInterface, logic.DisaggregatedPrefillOrchestratedRouter = RoutingInterface, Orchestrated
    made["starlette.responses"].Response = Response
    app = made["vllm_router.app"]
    app.endpoints, app.went, app.answer, app.prefill = [], [], lambda: Response(), asyncio.Event()

    async def route_general_request(request, endpoint, background_tasks):
        router = app.get_routing_logic()
        if isinstance(router, Orchestrated):
            prefill, decode = router._find_endpoints(app.endpoints)
            pair = router.select_prefill_endpoint(prefill), router.select_decode_endpoint(decode)
            app.went.append(tuple(e.url for e in pair))
            await app.prefill.wait()
        else:
            stats = {e.url: Stats(0.25) for e in app.endpoints}
            app.went.append(router.route_request(app.endpoints, stats, {}, request))
        return app.answer()

    made["vllm_router.routers.main_router"].route_general_request = route_general_request
    return app


async def served(request, send=None):
    """What FastAPI does with a request."""
    main_router = sys.modules["vllm_router.routers.main_router"]
    response = await main_router.route_general_request(request, "/v1/completions", None)
    assert isinstance(response, Response)
    response.background = "tasks"
    sent = []

    async def keep(message):
        sent.append(message)

    await response({}, None, send or keep)
    return sent


EVENTS = [b'data: {"choices": [{"text": "a"}]}\n\n'] * 3 + [
    b'data: {"choices": [], "usage": {"prompt_tokens": 500, "completion_tokens": 3}}\n\n',
    b"data: [DONE]\n\n",
]


def test_one_server_for_both_phases(stack):
    placement = production_stack.install(config(routing="splitwise"))

    async def main():
        stack.endpoints = [Endpoint(A), Endpoint(B)]
        stack.initialize_routing_logic("roundrobin", max_instance_failover_reroute_attempts=2)
        assert stack.get_routing_logic().max_instance_failover_reroute_attempts == 2
        raw = json.dumps({"prompt": "x" * 2000, "max_tokens": 3}).encode()
        seen = []

        async def during(message):
            seen.append([placement.state.busy(m) for m in range(2)])

        stack.answer = lambda: Response(EVENTS)
        await served(Request(raw), during)
        assert stack.went == [A] and seen[0] == [True, False] and seen[-1] == [True, False]
        assert not placement.state.busy(0), "over"
        assert placement.state.view.counters[3] == 3, "three tokens, as the usage says"
        assert placement.state.view.kv_used_tokens[0] > 0, "what the engine reports"
        stack.answer = lambda: Response([json.dumps({"usage": {"completion_tokens": 4}}).encode()])
        await served(Request(raw))
        assert placement.state.view.counters[3] == 7

        async def gone(message):
            raise ConnectionResetError("the client")

        with pytest.raises(ConnectionResetError):
            await served(Request(raw), gone)

        def refuse():
            raise RuntimeError("no server answered")

        stack.answer = refuse
        with pytest.raises(RuntimeError):
            await served(Request(raw))
        assert not placement.state.busy(0) and not placement.state.busy(1), "failed ones are over too"
        assert placement.state.view.counters[3] == 7

    asyncio.run(main())


def test_a_server_for_each_phase(stack):
    placement = production_stack.install(config(routing="splitwise", confine=True))

    async def main():
        stack.endpoints = [Endpoint(A, "p"), Endpoint(B, "p"), Endpoint(C, "d"), Endpoint(D, "d")]
        labels = {"prefill_model_labels": ["p"], "decode_model_labels": ["d"]}
        stack.initialize_routing_logic(production_stack.ORCHESTRATED, **labels)
        raw = json.dumps({"prompt": "x" * 8000}).encode()
        stack.answer = lambda: Response(EVENTS)
        tasks = [asyncio.create_task(served(Request(raw))) for _ in range(4)]
        while len(stack.went) < 4:
            await asyncio.sleep(0)
        assert {p for p, _ in stack.went} == {A, B} and {t for _, t in stack.went} == {C, D}
        stack.prefill.set()
        await asyncio.gather(*tasks)
        assert not any(placement.state.busy(m) for m in range(4))
        # Reconfigured while it runs, it is ours again, with the labels that it had.
        sys.modules["vllm_router.dynamic_config"].reconfigure_routing_logic(production_stack.ORCHESTRATED)
        await served(Request(b"no json"))
        assert stack.went[-1][0] in (A, B) and stack.went[-1][1] in (C, D)

    asyncio.run(main())


# ---- the real one -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def real_router(engines, folder, *more):
    """production-stack's router with our policy, in front of simulated engines: its URL."""
    (folder / "adapter.yaml").write_text("policy: {routing: splitwise, deadline_ms: 1000}\n")
    port, model = free_ports(1), engines.hosts[0].server.model.name
    urls = [host.url for host in engines.hosts]
    words = ["-m", "splitgym.router.adapters.production_stack", "--splitgym-config", folder / "adapter.yaml"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--service-discovery", "static", *more]
    words += ["--static-backends", ",".join(urls), "--static-models", ",".join([model] * len(urls))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([REAL, *words], stdout=log, stderr=log, env=environment)
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(120):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"http://127.0.0.1:{port}/v1/models") as response:
                        if response.status == 200:
                            break
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                await asyncio.sleep(0.2)
            yield session, f"http://127.0.0.1:{port}", model
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.skipif(not REAL, reason="SPLITGYM_PRODUCTION_STACK_PYTHON is not set")
@pytest.mark.parametrize("split", [False, True])
def test_inside_the_real_router(tmp_path, split):
    options = EngineOptions(engines=4, port=0, time_scale=20.0, mean_output_tokens=0.0)
    more = ["--routing-logic", "roundrobin"]
    if split:
        more = ["--routing-logic", production_stack.ORCHESTRATED, "--static-model-labels", "p,p,d,d"]
        more += ["--prefill-model-labels", "p", "--decode-model-labels", "d"]

    async def ask(session, url, body):
        async with session.post(url + "/v1/completions", json=body) as response:
            return response.status, await response.text()

    async def main():
        async with running(options) as engines, real_router(engines, tmp_path, *more) as found:
            session, url, model = found
            body = {"model": model, "prompt": "word " * 400, "max_tokens": 12}
            bodies = [{**body, "stream": i % 2 == 0} for i in range(24)]
            answers = await asyncio.gather(*(ask(session, url, b) for b in bodies))
            assert [status for status, _ in answers] == [200] * 24, answers
            assert all("[DONE]" in text for _, text in answers[::2])
            assert all(json.loads(text)["usage"]["completion_tokens"] == 12 for _, text in answers[1::2])
            assert (await ask(session, url, {**body, "max_tokens": -1}))[0] == 400
            served = [host.server.metrics.generation_tokens for host in engines.hosts]
            assert all(served), served

    asyncio.run(main())
