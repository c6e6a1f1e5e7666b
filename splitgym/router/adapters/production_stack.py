"""Our policy as a routing logic of vLLM production-stack's router.

    python -m splitgym.router.adapters.production_stack --splitgym-config adapter.yaml ROUTER'S OPTIONS

That router (package `vllm_router`, Python 3.12) has no hook for other logic. So its factory is replaced
before its `main` runs: with `--routing-logic disaggregated_prefill_orchestrated` the policy picks the prefill
and the decode server, with any other logic the one server that does both. The end of a request, which the
logic is not told of, is seen by wrapping `route_general_request`. See docs/adapters.md.

Written against vllm-project/production-stack a6c01db (August 2026): `routers/routing_logic.py`,
`routers/main_router.py`, `services/request_service/request.py`, `app.py`.
"""

import json
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from splitgym.config import load_yaml
from splitgym.errors import ConfigError, SplitgymError
from splitgym.router.adapters.placement import AdapterConfig, Asked, Placement
from splitgym.router.call import read_usage
from splitgym.router.protocol import StreamMeter
from splitgym.types import Pool

ORCHESTRATED = "disaggregated_prefill_orchestrated"
_OPTION = "--splitgym-config"
_MOST_KEPT_BYTES = 1 << 20

_asked: ContextVar[Asked | None] = ContextVar("asked", default=None)
"""The request that this task serves."""

Serve = Callable[..., Awaitable[Any]]


def install(config: AdapterConfig) -> Placement:
    """Replace the router's factory and follow its requests. Call before `vllm_router.app.main`.

    Returns:
        what decides, for whoever wants to look at it.

    Raises:
        SplitgymError: the configuration cannot be used, or the router is not installed.
    """
    try:
        from vllm_router import app, dynamic_config
        from vllm_router.routers import main_router
    except ImportError as error:
        raise ConfigError(f"production-stack's router is needed, and Python 3.12 ({error})") from None
    placement = Placement(config)
    made: list[Any] = []
    labels: dict[str, Any] = {"prefill_model_labels": None, "decode_model_labels": None}

    def initialize(routing_logic: Any, *args: Any, **kwargs: Any) -> Any:
        orchestrated = getattr(routing_logic, "value", routing_logic) == ORCHESTRATED
        one, both = _logics(placement)
        labels.update({name: kwargs[name] for name in labels.keys() & kwargs.keys()})
        logic = both(**labels) if orchestrated else one()  # reconfigured, it is not told the labels again
        logic.max_instance_failover_reroute_attempts = (
            kwargs.get("max_instance_failover_reroute_attempts") or 0
        )
        made[:] = [logic]
        return logic

    app.initialize_routing_logic = initialize
    app.get_routing_logic = lambda: made[0]
    dynamic_config.reconfigure_routing_logic = initialize
    main_router.route_general_request = _followed(placement, main_router.route_general_request)
    return placement


def _logics(placement: Placement) -> tuple[type, type]:
    """(one server for both phases, one for each), as the router's own classes."""
    from vllm_router.routers.routing_logic import (
        DisaggregatedPrefillOrchestratedRouter,
        RoutingInterface,
    )

    class OneServer(RoutingInterface):
        """A server for the whole request."""

        def route_request(self, endpoints: Any, engine_stats: Any, request_stats: Any, request: Any) -> str:
            urls = {endpoint.url: endpoint for endpoint in endpoints}
            placement.known(dict.fromkeys(urls, Pool.MIXED))
            for url, stats in engine_stats.items():
                placement.reported(url, stats.gpu_cache_usage_perc)
            asked = _asked.get() or placement.ask({})
            pair = placement.place(asked, urls, together=True)
            if pair is None:  # what the router itself does where it knows nothing better
                return str(self._qps_routing(endpoints, request_stats))
            return pair[0]

    class TwoServers(DisaggregatedPrefillOrchestratedRouter):
        """A prefill and a decode server; the router asks for one after the other."""

        def _find_endpoints(self, endpoints: Any) -> Any:
            prefill, decode = super()._find_endpoints(endpoints)
            pools = {e.url: Pool.PROMPT for e in prefill}
            for e in decode:
                pools[e.url] = Pool.MIXED if e.url in pools else Pool.TOKEN
            placement.known(pools)
            asked = _asked.get()
            if asked is not None:
                placement.place(asked, pools, together=False)
            return prefill, decode

        def select_prefill_endpoint(self, prefiller_endpoints: Any) -> Any:
            return _of(prefiller_endpoints, 0) or super().select_prefill_endpoint(prefiller_endpoints)

        def select_decode_endpoint(self, decoder_endpoints: Any) -> Any:
            return _of(decoder_endpoints, 1) or super().select_decode_endpoint(decoder_endpoints)

    return OneServer, TwoServers


def _of(endpoints: Any, phase: int) -> Any:
    """The endpoint that was decided on for this phase, if it is one of these."""
    asked = _asked.get()
    if asked is None or asked.pair is None:
        return None
    return next((e for e in endpoints if e.url == asked.pair[phase]), None)


def _followed(placement: Placement, serve: Serve) -> Serve:
    """`route_general_request`, with the request's size known before and its end seen after."""
    from starlette.responses import Response

    class Watched(Response):
        """An answer on its way; counts what passes."""

        def __init__(self, inner: Any, asked: Asked) -> None:
            self.inner, self.asked = inner, asked

        @property
        def background(self) -> Any:
            return self.inner.background

        @background.setter
        def background(self, value: Any) -> None:
            self.inner.background = value

        def __getattr__(self, name: str) -> Any:  # status, headers
            return getattr(self.inner, name)

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            meter, kept, whole = StreamMeter(), bytearray(), False

            async def passed(message: Any) -> None:
                nonlocal whole
                if message["type"] == "http.response.body":
                    piece = bytes(message.get("body", b""))
                    placement.tokens(self.asked, meter.feed(piece))
                    if len(kept) < _MOST_KEPT_BYTES:
                        kept.extend(piece)
                    whole = not message.get("more_body", False)
                await send(message)

            try:
                await self.inner(scope, receive, passed)
            finally:
                ok = whole and self.inner.status_code == 200
                usage = meter.usage() if meter.events else read_usage(bytes(kept))
                placement.done(self.asked, ok, *usage)

    async def route_general_request(request: Any, *args: Any, **kwargs: Any) -> Any:
        asked = placement.ask(_body(await request.body()))
        token = _asked.set(asked)
        try:
            answer = await serve(request, *args, **kwargs)
        except BaseException:
            placement.done(asked, False, None, None)
            raise
        finally:
            _asked.reset(token)
        placement.prompt_done(asked)
        return Watched(answer, asked)

    return route_general_request


def _body(raw: bytes) -> dict[str, Any]:
    """The JSON object of a request; what is none is for the router to refuse."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def main() -> None:
    """Take our option out of the command line, install, and go on as the router."""
    words, config = sys.argv[1:], AdapterConfig()
    try:
        if _OPTION in words:
            place = words.index(_OPTION)
            if place + 1 == len(words):
                raise ConfigError(f"{_OPTION} needs a file")
            config = load_yaml(AdapterConfig, Path(words[place + 1]))
            del words[place : place + 2]
        install(config)
    except SplitgymError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if not any(word.split("=")[0] == "--routing-logic" for word in words):
        words += ["--routing-logic", "roundrobin"]  # it insists on one; ours takes its place
    sys.argv[1:] = words
    from vllm_router.app import main as router

    router()


if __name__ == "__main__":
    main()
