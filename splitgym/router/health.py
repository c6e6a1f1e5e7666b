"""Active checks and `/metrics`, every second, of every server."""

import asyncio
import re

import aiohttp

from splitgym.router.config import HealthConfig
from splitgym.router.servers import Server
from splitgym.router.state import RouterState

_MOST_BYTES = 4 << 20
_SAMPLE = re.compile(rb"^(vllm:[a-z_:]+)(\{[^\n]*\})?\s+([0-9.eE+-]+|NaN)", re.MULTILINE)
_LABEL = re.compile(rb'([a-z_]+)="([^"]*)"')

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_USAGE = "vllm:kv_cache_usage_perc"
KV_USAGE_OLD = "vllm:gpu_cache_usage_perc"
CACHE_INFO = "vllm:cache_config_info"


def parse_metrics(text: bytes) -> dict[str, float]:
    """Load of a server from Prometheus text: requests summed over its engines, the share of memory averaged.

    Returns:
        "running", "waiting", "kv_usage" and "kv_tokens", as far as they are there.
    """
    sums: dict[str, list[float]] = {}
    tokens = 0
    for name, labels, value in _SAMPLE.findall(text):
        key = name.decode()
        if key in (RUNNING, WAITING, KV_USAGE, KV_USAGE_OLD):
            number = float(value)
            if number == number:
                sums.setdefault(key, []).append(number)
        elif key == CACHE_INFO:
            given = dict(_LABEL.findall(labels))
            block, blocks = given.get(b"block_size", b""), given.get(b"num_gpu_blocks", b"")
            if block.isdigit() and blocks.isdigit():
                tokens += int(block) * int(blocks)
    found = {}
    for key, short in ((RUNNING, "running"), (WAITING, "waiting")):
        if key in sums:
            found[short] = sum(sums[key])
    usage = sums.get(KV_USAGE) or sums.get(KV_USAGE_OLD)
    if usage:
        found["kv_usage"] = sum(usage) / len(usage)
    if tokens:
        found["kv_tokens"] = float(tokens)
    return found


class Watch:
    """Checks all servers until it is cancelled.

    Args:
        session: for short requests.
        config: how often, where.
        servers: grows where servers are added.
        state: learns what they report.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        config: HealthConfig,
        servers: list[Server],
        state: RouterState,
    ) -> None:
        self._session = session
        self._config = config
        self._servers = servers
        self._state = state

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.gather(*(self.check(server) for server in self._servers if not server.removed))
            await asyncio.sleep(self._config.interval_s)

    async def check(self, server: Server) -> None:
        """One check of one server; never raises."""
        try:
            await self._get(server, self._config.path, 4096)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            server.checked(False, f"health check: {describe_error(error)}")
            return
        server.checked(True)
        try:
            found = parse_metrics(await self._get(server, self._config.metrics_path, _MOST_BYTES))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return  # a server without metrics is still a server
        self._report(server, found)

    def _report(self, server: Server, found: dict[str, float]) -> None:
        server.reports = found
        server.reported_ns = self._state.now_ns()
        if server.config.kv_tokens is None and "kv_tokens" in found:
            self._state.set_capacity(server.index, int(found["kv_tokens"]))
        if "kv_usage" in found:
            self._state.reported(server.index, found["kv_usage"])

    async def _get(self, server: Server, path: str, limit: int) -> bytes:
        timeout = aiohttp.ClientTimeout(total=self._config.timeout_s)
        async with self._session.get(server.url + path, timeout=timeout, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            text = b""
            async for piece in response.content.iter_chunked(1 << 16):
                text += piece
                if len(text) > limit:
                    break
            return text


def describe_error(error: BaseException) -> str:
    """A short text without addresses of memory or bodies."""
    if isinstance(error, TimeoutError):
        return "timed out"
    return (str(error) or type(error).__name__)[:200]
