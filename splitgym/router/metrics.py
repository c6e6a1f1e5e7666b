"""Prometheus metrics. Counters are plain integers of the router; they are read when somebody asks."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from splitgym.router.records import Record
from splitgym.types import Pool

if TYPE_CHECKING:
    from splitgym.router.parts import Parts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_DECISION_US = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class Metrics:
    """Counts requests and renders everything that the router knows.

    Args:
        parts: of the router, read at each scrape.
    """

    def __init__(self, parts: "Parts") -> None:
        self._parts = parts
        self.requests: Counter[tuple[str, str]] = Counter()  # (endpoint, outcome)
        self.good: Counter[bool] = Counter()
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.retries = 0
        self.no_transfer = 0
        self.unauthorized = 0
        self.role_changes: Counter[tuple[str, str]] = Counter()  # (pool, outcome)
        self.swaps: Counter[str] = Counter()
        registry = CollectorRegistry()
        registry.register(_Live(self, parts))  # type: ignore[arg-type]
        self._registry = registry

        def seconds(name: str, text: str, buckets: Any = _SECONDS) -> Histogram:
            return Histogram(f"splitgym_router_{name}", text, registry=registry, buckets=buckets)

        self._total = seconds("request_seconds", "From arrival to the last byte, answered requests")
        self._first = seconds("first_byte_seconds", "From arrival to the first byte of a stream")
        self._prompt = seconds("prompt_seconds", "From arrival to the answer of the prompt server")
        self._between = seconds(
            "token_seconds",
            "Mean time between tokens of a stream",
            (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1),
        )
        self._decision = seconds("decision_microseconds", "Time that a decision took", _DECISION_US)

    def count(self, record: Record) -> None:
        """A request is over."""
        self.requests[record.endpoint, record.outcome] += 1
        for attempt in record.attempts:
            self._decision.observe(attempt.decide_us)
            if attempt.prompt_s is not None:
                self._prompt.observe(attempt.prompt_s)
        if record.outcome != "ok":
            return
        self.prompt_tokens += record.prompt_tokens or record.estimated_prompt_tokens
        self.output_tokens += record.output_tokens
        self._total.observe(record.end_s)
        if record.first_byte_s is not None:
            self._first.observe(record.first_byte_s)
            if record.output_tokens > 1:
                self._between.observe((record.end_s - record.first_byte_s) / (record.output_tokens - 1))
        if record.good is not None:
            self.good[record.good] += 1

    def render(self) -> bytes:
        """Prometheus text."""
        self._parts.settle()
        return generate_latest(self._registry)


class _Live:
    """A collector that reads the router as it is."""

    def __init__(self, metrics: Metrics, parts: "Parts") -> None:
        self._metrics = metrics
        self._parts = parts

    def describe(self) -> list[Any]:
        """Nothing ahead of time."""
        return []

    def collect(self) -> Iterator[Any]:
        """Everything."""
        yield from self._counters()
        yield from self._servers()

    def _counters(self) -> Iterator[Any]:
        own, parts = self._metrics, self._parts
        decisions = parts.decisions

        def counter(name: str, text: str, labels: tuple[str, ...], values: Any) -> CounterMetricFamily:
            family = CounterMetricFamily(f"splitgym_router_{name}", text, labels=labels)
            for key, value in values.items():
                key = key if isinstance(key, tuple) else (key,)
                family.add_metric([str(k).lower() for k in key] if labels else [], value)
            return family

        yield counter("requests", "Requests by endpoint and outcome", ("endpoint", "outcome"), own.requests)
        yield counter("decisions", "Decisions by who took them", ("by",), decisions.decided)
        yield counter(
            "fallbacks", "Decisions of the heuristic in place of the policy", ("reason",), decisions.fallbacks
        )
        yield counter(
            "sizing_fallbacks", "Sizing decisions that failed", ("reason",), decisions.sizing_fallbacks
        )
        yield counter(
            "shadow", "Shadow decisions, by agreement with the heuristic", ("agreed",), decisions.agreed
        )
        yield counter("role_changes", "Changes of a server's pool", ("pool", "outcome"), own.role_changes)
        yield counter("policy_swaps", "Policies loaded while running", ("outcome",), own.swaps)
        yield counter("slo", "Streams judged by the SLO", ("good",), own.good)
        for name, text, value in (
            ("retries", "Tries after a failed one", own.retries),
            ("refused", "Requests refused because all servers were busy or down", parts.gate.refused),
            ("no_transfer", "Prompts that came back without a cache to pull", own.no_transfer),
            ("unauthorized", "Requests without a valid key", own.unauthorized),
            ("prompt_tokens", "Prompt tokens of answered requests", own.prompt_tokens),
            ("output_tokens", "Output tokens of answered requests", own.output_tokens),
            ("log_lost", "Lines of the decision log that could not be written", parts.log.lost),
        ):
            yield counter(name, text, (), {"": value})
        for name, text, value in (
            ("active", "Requests in progress", parts.active),
            ("waiting", "Requests waiting for a server", parts.gate.waiting),
            ("connections", "Connections to servers in use", parts.upstream.connections),
        ):
            yield GaugeMetricFamily(f"splitgym_router_{name}", text, value=value)

    def _servers(self) -> Iterator[Any]:
        parts = self._parts
        view = parts.state.refresh()
        columns = {
            "up": ("May get new requests", lambda s: float(s.up)),
            "healthy": ("Its circuit is not open", lambda s: float(s.healthy)),
            "active": ("Requests in progress, both phases", lambda s: s.active),
            "pending_prompt_tokens": ("Prompt tokens pending", lambda s: view.prompt_tokens[s.index]),
            "running": ("Requests decoding", lambda s: view.running[s.index]),
            "inbound": ("Requests whose cache is to come", lambda s: view.inbound[s.index]),
            "kv_used_tokens": ("KV tokens in use", lambda s: view.kv_used_tokens[s.index]),
            "kv_capacity_tokens": ("KV tokens that fit", lambda s: view.kv_capacity_tokens[s.index]),
            "reported_running": ("Its own count", lambda s: s.reports.get("running", float("nan"))),
            "reported_waiting": ("Its own count", lambda s: s.reports.get("waiting", float("nan"))),
        }
        for name, (text, read) in columns.items():
            family = GaugeMetricFamily(f"splitgym_router_server_{name}", text, labels=("server",))
            for server in parts.servers:
                if not server.removed:
                    family.add_metric([server.name], float(read(server)))
            yield family
        pools = GaugeMetricFamily("splitgym_router_server_pool", "1 for its pool", labels=("server", "pool"))
        failed = CounterMetricFamily("splitgym_router_server_failures", "Failures", labels=("server",))
        for server in parts.servers:
            if not server.removed:
                for pool in Pool:
                    now = float(parts.state.home(server.index) is pool)
                    pools.add_metric([server.name, pool.name.lower()], now)
                failed.add_metric([server.name], server.failed)
        yield pools
        yield failed
