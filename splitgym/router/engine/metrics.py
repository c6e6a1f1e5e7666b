"""`/metrics` of a simulated engine, under vLLM's names.

Times are wall seconds, as any server's are: at a time scale of 10 they are a tenth of the simulated ones.
"""

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from splitgym.config import VllmBatchingConfig
from splitgym.router.engine.clock import RealTime
from splitgym.sim.live_request import Kind, LiveRequest
from splitgym.sim.machine import Machine
from splitgym.sim.outcomes import NEVER
from splitgym.sim.vllm import VllmMachine

_LONG = (1, 2.5, 5, 7.5, 10, 20, 40, 80)
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, *_LONG, 160, 640, 2560)
_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, *_LONG)
_LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TRANSFER = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 5)
_REASONS = ("stop", "length", "abort", "error", "repetition")
_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
_BYTES = tuple(2048 * 4**k for k in range(12))
_SEQUENCES = (1, 2, 5, 10, 20)
_HISTOGRAMS: dict[str, tuple[float, ...] | None] = {
    "time_to_first_token_seconds": _TTFT,
    "inter_token_latency_seconds": _TOKEN,
    "request_time_per_output_token_seconds": _TOKEN,
    "e2e_request_latency_seconds": _LATENCY,
    "request_queue_time_seconds": _LATENCY,
    "request_inference_time_seconds": _LATENCY,
    "request_prefill_time_seconds": _LATENCY,
    "request_decode_time_seconds": _LATENCY,
    "request_prompt_tokens": None,
    "request_generation_tokens": None,
    "request_params_n": _SEQUENCES,
    "request_params_max_tokens": None,
    "nixl_xfer_time_seconds": _TRANSFER,
    "nixl_bytes_transferred": _BYTES,
}
"""Bounds by name (vLLM 0.32's); None has 1, 2, 5, 10, ... up to the longest request."""


class Histogram:
    """Counts of values by upper bound."""

    def __init__(self, bounds: tuple[float, ...]):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts, as Prometheus has them."""
        total = 0
        out = []
        for bound, count in zip([*map(float, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            out.append((str(bound), float(total)))
        return out


class EngineMetrics(Collector):
    """Counts of one engine.

    Args:
        machine: its machine.
        time: where its time comes from.
        model_name: label of every sample.
        longest: tokens of the longest request.
    """

    def __init__(self, machine: Machine, time: RealTime, model_name: str, longest: int):
        self._machine = machine
        self._time = time
        self._labels = ("model_name", "engine")
        self._values = (model_name, "0")
        self.prompt_tokens = dict.fromkeys(_SOURCES, 0)
        self.generation_tokens = 0
        self.preemptions = 0
        self.finished = dict.fromkeys(_REASONS, 0)
        self.expired_caches = 0
        self.failed_transfers = 0
        self.failed_notifications = 0
        sizes = tuple(b for k in range(8) for b in (10**k, 2 * 10**k, 5 * 10**k) if b <= longest)
        self._histograms = {name: Histogram(bounds or sizes) for name, bounds in _HISTOGRAMS.items()}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)

    # ---- what happens -------------------------------------------------------------------------------------

    def token(self, request: LiveRequest, since_ns: int) -> None:
        """A request has a token more; `since_ns` is when it got the one before, `NEVER` for its first."""
        self.generation_tokens += 1
        if since_ns != NEVER:
            self._add("inter_token_latency_seconds", request.last_token_ns - since_ns)
            return
        self._add("time_to_first_token_seconds", request.first_token_ns - request.arrival_ns)
        source = "external_kv_transfer" if request.kind is Kind.TOKEN else "local_compute"
        self.prompt_tokens[source] += request.prompt_tokens

    def started(self, choices: int, max_tokens: int) -> None:
        """A request was accepted."""
        self._histograms["request_params_n"].add(choices)
        self._histograms["request_params_max_tokens"].add(max_tokens)

    def transferred(self, request: LiveRequest, size_bytes: int) -> None:
        """A cache has arrived."""
        self._add("nixl_xfer_time_seconds", request.cache_ns - request.start_ns)
        self._histograms["nixl_bytes_transferred"].add(size_bytes)

    def done(self, request: LiveRequest, reason: str) -> None:
        """A request has ended."""
        self.finished[reason] += 1
        self.preemptions += request.preemptions
        if request.last_token_ns == NEVER:
            return
        decode_ns = request.last_token_ns - request.first_token_ns
        self._add("e2e_request_latency_seconds", request.last_token_ns - request.arrival_ns)
        self._add("request_queue_time_seconds", request.start_ns - request.arrival_ns)
        self._add("request_prefill_time_seconds", request.first_token_ns - request.start_ns)
        self._add("request_inference_time_seconds", request.last_token_ns - request.start_ns)
        self._add("request_decode_time_seconds", decode_ns)
        self._add("request_time_per_output_token_seconds", decode_ns // max(1, request.tokens - 1))
        self._histograms["request_prompt_tokens"].add(request.prompt_tokens)
        self._histograms["request_generation_tokens"].add(request.tokens)

    def _add(self, name: str, span_ns: int) -> None:
        self._histograms[name].add(self._time.wall_s(span_ns))

    # ---- what is asked ------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Requests in the machine's batch: decodes, and prompts in progress."""
        machine = self._machine
        if isinstance(machine, VllmMachine):
            return len(machine.sequences)
        prompts = len(machine.iteration.prompts) if machine.iteration else 0
        return len(machine.batch) + prompts

    @property
    def waiting(self) -> int:
        """Requests that have not begun, or wait for a cache to arrive or for memory."""
        return len(self._machine.prompt_queue) + self.arriving + len(self._machine.output_waiters)

    @property
    def arriving(self) -> int:
        """Requests whose cache is not here yet."""
        return sum(job.split for job in self._machine.inbound)

    @property
    def kv_usage(self) -> float:
        """Share of the KV memory that is taken."""
        machine = self._machine
        taken = machine.reserved if isinstance(machine, VllmMachine) else machine.used
        return taken / machine.capacity

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        yield self._gauge("num_requests_running", "Requests in the batch.", self.running)
        yield self._gauge("num_requests_waiting", "Requests that wait.", self.waiting)
        waiting = {"capacity": self.waiting - self.arriving, "deferred": self.arriving}
        yield self._gauge("num_requests_waiting_by_reason", "Requests that wait.", waiting, "reason")
        yield self._gauge("kv_cache_usage_perc", "KV cache in use, 1 is all.", self.kv_usage)
        tokens = self.prompt_tokens
        yield self._counter("prompt_tokens", "Prompt tokens.", sum(tokens.values()))
        yield self._counter("prompt_tokens_by_source", "Prompt tokens, by origin.", tokens, "source")
        yield self._counter("prompt_tokens_cached", "Prompt tokens not computed here.", tokens[_SOURCES[2]])
        yield self._counter("generation_tokens", "Output tokens.", self.generation_tokens)
        yield self._counter("num_preemptions", "Caches dropped for memory.", self.preemptions)
        yield self._counter("request_success", "Requests, by end.", self.finished, "finished_reason")
        yield self._counter("prefix_cache_queries", "None: there is no prefix cache.", 0)
        yield self._counter("prefix_cache_hits", "None: there is no prefix cache.", 0)
        yield self._counter("nixl_num_kv_expired_reqs", "Caches that nobody pulled.", self.expired_caches)
        yield self._counter("nixl_num_failed_transfers", "Caches not got.", self.failed_transfers)
        failed = self.failed_notifications
        yield self._counter("nixl_num_failed_notifications", "Prompt engines not told.", failed)
        for name, histogram in self._histograms.items():
            family = HistogramMetricFamily(f"vllm:{name}", "As vLLM's.", labels=self._labels)
            family.add_metric(self._values, histogram.buckets, histogram.sum)
            yield family
        yield self._cache_config()
        for name, value in (("late", self._time.late_s), ("most_late", self._time.most_late_s)):
            text = "How late an event of the simulation was [s]."
            yield GaugeMetricFamily(f"splitgym:engine_{name}_seconds", text, value)

    def _cache_config(self) -> Metric:
        batching = self._machine.batching
        block = batching.block_size if isinstance(batching, VllmBatchingConfig) else 1
        facts = {
            "block_size": block,
            "num_gpu_blocks": self._machine.capacity // block,
            "kv_cache_size_tokens": self._machine.capacity,
            "enable_prefix_caching": False,
        }
        text = "The KV cache."
        family = GaugeMetricFamily("vllm:cache_config_info", text, labels=(*facts, "engine"))
        family.add_metric([*map(str, facts.values()), "0"], 1)
        return family

    def _gauge(self, name: str, text: str, value: float | dict[str, int], label: str = "") -> Metric:
        return self._fill(GaugeMetricFamily(f"vllm:{name}", text, labels=self._with(label)), value)

    def _counter(self, name: str, text: str, value: float | dict[str, int], label: str = "") -> Metric:
        return self._fill(CounterMetricFamily(f"vllm:{name}", text, labels=self._with(label)), value)

    def _with(self, label: str) -> tuple[str, ...]:
        return (*self._labels, label) if label else self._labels

    def _fill(self, family: GaugeMetricFamily | CounterMetricFamily, value: float | dict[str, int]) -> Metric:
        if isinstance(value, dict):
            for key, count in value.items():
                family.add_metric((*self._values, key), count)
        else:
            family.add_metric(self._values, value)
        return family
