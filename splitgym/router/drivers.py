"""How a role change reaches the servers: not at all (vLLM), SGLang's switch, or another router's REST."""

from typing import Any, Protocol
from urllib.parse import quote

import aiohttp

from splitgym.router.config import PoolsConfig
from splitgym.router.health import describe_error
from splitgym.router.servers import Server
from splitgym.types import Pool

_TIMEOUT = aiohttp.ClientTimeout(total=180.0)
"""SGLang rebuilds its queues and CUDA graphs before it answers."""

ROLE = {Pool.PROMPT: "prefill", Pool.TOKEN: "decode", Pool.MIXED: "regular"}


class DriverError(Exception):
    """The other side did not change the role."""


class Driver(Protocol):
    """Tells somebody that a server's role changes."""

    @property
    def drains(self) -> bool:
        """Must the server be empty before?"""

    async def flip(self, server: Server, to: Pool) -> None:
        """Change the role; returns when it has changed.

        Raises:
            DriverError: it has not.
        """


class RouterOnly:
    """Roles exist in this router alone: vLLM's NIXL pull serves either with no restart."""

    drains = False

    async def flip(self, server: Server, to: Pool) -> None:
        """Nothing to do."""


class Sglang:
    """`POST /pd_role_switch {"new_role": "prefill" | "decode"}` to the server itself, which must be idle.

    Source: sgl-project/sglang, pull request 28403.
    """

    drains = True

    def __init__(self, session: aiohttp.ClientSession, keys: tuple[str, ...]) -> None:
        self._session = session
        self._headers = _bearer(keys)

    async def flip(self, server: Server, to: Pool) -> None:
        """See `Driver`."""
        answer = await _send(
            self._session, "POST", f"{server.url}/pd_role_switch", self._headers, {"new_role": ROLE[to]}
        )
        if answer.get("success") is not True:
            raise DriverError(f"{server.name} refused: {str(answer.get('message', ''))[:200]}")


class RustRouter:
    """The `/workers` interface of vllm-router (`--enable-igw`): take the worker out, put it back in its new
    type.

    Source: vllm-project/router, `src/server.rs` and `src/protocols/worker_spec.rs`.
    """

    drains = False  # it lets a worker's requests end by itself

    def __init__(self, session: aiohttp.ClientSession, url: str, keys: tuple[str, ...]) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._headers = _bearer(keys)

    async def flip(self, server: Server, to: Pool) -> None:
        """See `Driver`. If the worker cannot be added in its new type, it is put back as it was."""
        old = await self._worker(server)
        one = f"{self._url}/workers/{quote(server.url, safe='')}"
        await _send(self._session, "DELETE", one, self._headers, None)
        body = {key: old[key] for key in ("model_id", "priority", "cost") if old.get(key) is not None}
        try:
            await self._add({"url": server.url, "worker_type": ROLE[to], **body})
        except DriverError:
            if old:
                await self._add({"url": server.url, "worker_type": old.get("worker_type", "regular"), **body})
            raise

    async def _worker(self, server: Server) -> dict[str, Any]:
        listed = await _send(self._session, "GET", f"{self._url}/workers", self._headers, None)
        workers = listed.get("workers")
        for worker in workers if isinstance(workers, list) else []:
            if isinstance(worker, dict) and str(worker.get("url", "")).rstrip("/") == server.url:
                return worker
        raise DriverError(f"the router at {self._url} has no worker {server.url}")

    async def _add(self, body: dict[str, Any]) -> None:
        answer = await _send(self._session, "POST", f"{self._url}/workers", self._headers, body)
        if answer.get("success") is False:
            raise DriverError(f"the router refused: {str(answer.get('message', ''))[:200]}")


def make_driver(config: PoolsConfig, session: aiohttp.ClientSession) -> Driver:
    """The configured one.

    Raises:
        ConfigError: its keys cannot be read.
    """
    keys = config.driver_keys.read()
    if config.driver == "sglang":
        return Sglang(session, keys)
    if config.driver == "vllm-router":
        return RustRouter(session, config.driver_url or "", keys)
    return RouterOnly()


def _bearer(keys: tuple[str, ...]) -> dict[str, str]:
    return {"Authorization": f"Bearer {keys[0]}"} if keys else {}


async def _send(
    session: aiohttp.ClientSession, method: str, url: str, headers: dict[str, str], body: Any
) -> dict[str, Any]:
    from yarl import URL

    try:
        async with session.request(
            method,
            URL(url, encoded=True),
            json=body,
            headers=headers,
            timeout=_TIMEOUT,
            allow_redirects=False,
        ) as response:
            text = await response.text()
            if response.status not in (200, 201, 202, 204):
                raise DriverError(f"{method} {url}: status {response.status}")
            if not text:
                return {}
            answer = await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise DriverError(f"{method} {url}: {describe_error(error)}") from None
    return answer if isinstance(answer, dict) else {}
