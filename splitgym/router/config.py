"""The router's YAML: frozen dataclasses; an unknown key, a wrong or an unsafe value stops the start."""

import ipaddress
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from splitgym.config import (
    STRICT,
    AnyBatching,
    ClusterConfig,
    MachineGroup,
    SloConfig,
    TransferConfig,
    VllmBatchingConfig,
    load_yaml,
    make,
)
from splitgym.errors import ConfigError
from splitgym.router.keys import KeysConfig
from splitgym.router.networks import LOCAL_NETWORKS, check_network, check_url, is_loopback


@dataclass(frozen=True, config=STRICT)
class ServerConfig:
    """One vLLM server, or several engines behind one URL."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    url: str
    """Such as http://10.0.0.5:8000; without /v1."""
    pool: Literal["prompt", "token", "mixed"] = "mixed"
    """Where it starts. `mixed` always works for both phases."""
    machine: str = "h100-80gb"
    """Machine type: the profile that predicts its times."""
    tensor_parallel: int = Field(default=8, ge=1)
    max_requests: int = Field(default=256, ge=1)
    """Requests in progress here, both phases."""
    kv_tokens: int | None = Field(default=None, ge=1)
    """KV tokens that it holds; None takes what it reports, or the profile's."""

    @model_validator(mode="after")
    def _check(self) -> "ServerConfig":
        check_url(self.url)
        return self


@dataclass(frozen=True, config=STRICT)
class ListenConfig:
    """Where requests come in."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    keys: KeysConfig = KeysConfig()
    certificate: str | None = None
    """PEM file: serve TLS."""
    private_key: str | None = None
    """PEM file of the certificate's key."""
    max_body_bytes: int = Field(default=16 << 20, ge=1024)
    max_header_bytes: int = Field(default=16 << 10, ge=1024)
    """Of one header line, and of the request line; all lines of a head may have four times that."""
    max_connections: int = Field(default=4096, ge=1)


@dataclass(frozen=True, config=STRICT)
class AdminConfig:
    """Status page, metrics and the admin interface, on a port of their own."""

    host: str = "127.0.0.1"
    port: int = Field(default=8081, ge=0, le=65535)
    keys: KeysConfig = KeysConfig()
    """Needed where `host` is not loopback."""
    allowed_networks: tuple[str, ...] = LOCAL_NETWORKS
    """Servers may lie in these networks only, those of the configuration too."""
    bundles: str | None = None
    """Folder in which the admin interface may name bundles; None allows the configured policy alone."""


@dataclass(frozen=True, config=STRICT)
class PolicyConfig:
    """Who decides."""

    routing: str = "splitwise"
    """A scheduler's name, a bundle's folder, or pretrained:NAME."""
    sizing: str | None = None
    """A sizing scheduler's name or a bundle; None: what the bundle brings, otherwise `static`."""
    heuristic: str = "splitwise"
    """The scheduler that stands in: deadlines, errors, shadow mode."""
    shadow: bool = False
    """Decide with the heuristic; log what the policy would have done."""
    deadline_ms: float = Field(default=5.0, gt=0)
    """A decision that takes longer is replaced by the heuristic's."""
    suspend_after: int = Field(default=5, ge=1)
    """Failures in a row after which the policy is left out ..."""
    suspend_s: float = Field(default=10.0, gt=0)
    """... for this long."""
    confine: bool | None = None
    """Keep phases to their pools; None: as the bundle learned."""


@dataclass(frozen=True, config=STRICT)
class PoolsConfig:
    """Resizing of the pools."""

    interval_s: float = Field(default=2.0, gt=0)
    min_machines: int = Field(default=1, ge=0)
    """Servers that stay at home in each pool."""
    cool_down_s: float = Field(default=30.0, ge=0)
    """No role changes for this long after one."""
    drain_timeout_s: float = Field(default=300.0, gt=0)
    """A server that has not drained by then goes back to its old role."""
    kv_lease_s: float = Field(default=480.0, ge=0)
    """Caches that nobody pulled are freed by vLLM after this: its `kv_lease_duration`, in older versions
    VLLM_NIXL_ABORT_REQUEST_TIMEOUT."""
    drain: bool | None = None
    """Wait until a server is empty before its role changes; None: as the driver needs it."""
    driver: Literal["router", "sglang", "vllm-router"] = "router"
    """`router`: roles exist here alone (vLLM's NIXL pull serves either role). `sglang`: POST /pd_role_switch
    to the server. `vllm-router`: the /workers interface of the Rust router at `driver_url`."""
    driver_url: str | None = None
    driver_keys: KeysConfig = KeysConfig()

    @model_validator(mode="after")
    def _check(self) -> "PoolsConfig":
        if self.driver == "vllm-router":
            if self.driver_url is None:
                raise ValueError("driver vllm-router needs driver_url")
            check_url(self.driver_url)
        return self


@dataclass(frozen=True, config=STRICT)
class LimitsConfig:
    """Time limits, retries, queues."""

    connect_s: float = Field(default=5.0, gt=0)
    prompt_s: float = Field(default=120.0, gt=0)
    """From sending a prompt to its answer, or to the first byte of an unsplit request."""
    idle_s: float = Field(default=60.0, gt=0)
    """Between two pieces of an answer."""
    total_s: float = Field(default=1200.0, gt=0)
    attempts: int = Field(default=3, ge=1)
    """Tries for one request, all before its first byte."""
    queue: int = Field(default=256, ge=0)
    """Requests that wait while every server is full; more are refused with 429."""
    queue_s: float = Field(default=30.0, ge=0)
    """Longest wait there."""
    shutdown_s: float = Field(default=60.0, ge=0)
    """Time for requests in progress after SIGTERM."""
    keepalive_s: float = Field(default=4.0, gt=0)
    """Idle connections are closed after this; below the 5 s of vLLM's own server, so that none goes stale."""
    max_answer_bytes: int = Field(default=64 << 20, ge=1024)
    """Of an answer that is not streamed."""


@dataclass(frozen=True, config=STRICT)
class HealthConfig:
    """How servers are watched."""

    interval_s: float = Field(default=1.0, gt=0)
    timeout_s: float = Field(default=2.0, gt=0)
    path: str = "/health"
    metrics_path: str = "/metrics"
    failures: int = Field(default=3, ge=1)
    """Failures in a row that open the circuit."""
    open_s: float = Field(default=5.0, gt=0)
    """Until the first probe; doubles with each failed one, up to `open_max_s`."""
    open_max_s: float = Field(default=60.0, gt=0)


@dataclass(frozen=True, config=STRICT)
class LogConfig:
    """The decision log, see docs/deploy.md."""

    path: str | None = None
    """JSON lines; None writes none."""
    max_bytes: int = Field(default=1 << 30, ge=4096)
    """Then the file is renamed to PATH.1 (which is dropped) and begun anew."""


@dataclass(frozen=True, config=STRICT)
class TokensConfig:
    """How prompts are measured before anybody has tokenized them."""

    tokenizer: str | None = None
    """A tokenizer.json (needs the `tokenizers` package); None estimates from characters."""
    characters_per_token: float = Field(default=4.0, gt=0)
    """To begin with; corrected from the usage that servers return."""
    chat_tokens_per_message: float = Field(default=4.0, ge=0)


@dataclass(frozen=True, config=STRICT)
class RouterConfig:
    """Everything."""

    servers: tuple[ServerConfig, ...]
    model: str = "llama2-70b"
    """The profile's model, which predicts times; not the name that clients send."""
    listen: ListenConfig = ListenConfig()
    admin: AdminConfig = AdminConfig()
    policy: PolicyConfig = PolicyConfig()
    pools: PoolsConfig = PoolsConfig()
    limits: LimitsConfig = LimitsConfig()
    health: HealthConfig = HealthConfig()
    log: LogConfig = LogConfig()
    tokens: TokensConfig = TokensConfig()
    slo: SloConfig = SloConfig()
    transfer: TransferConfig = TransferConfig(mode="serial")
    """vLLM's pull ships after the prompt."""
    batching: AnyBatching = field(default_factory=VllmBatchingConfig)

    @model_validator(mode="after")
    def _check(self) -> "RouterConfig":
        if not self.servers:
            raise ValueError("servers is empty: name at least one")
        for what in ("name", "url"):
            values = [getattr(server, what) for server in self.servers]
            twice = sorted({v for v in values if values.count(v) > 1})
            if twice:
                raise ValueError(f"two servers have the {what} {twice[0]}")
        keys = self.admin.keys
        if not is_loopback(self.admin.host) and keys.env is None and keys.file is None:
            raise ValueError(
                f"admin.host {self.admin.host} is open to others: set admin.keys, or use 127.0.0.1"
            )
        if (self.listen.certificate is None) != (self.listen.private_key is None):
            raise ValueError("listen needs certificate and private_key, or neither")
        for network in self.admin.allowed_networks:
            ipaddress.ip_network(network)
        for server in self.servers:
            check_network(server.url, self.admin.allowed_networks)
        return self

    def cluster(self, servers: tuple[ServerConfig, ...] | None = None) -> ClusterConfig:
        """The servers as a simulator's cluster: what predictions and observations are made from."""
        groups = tuple(
            MachineGroup(machine=s.machine, count=1, pool=s.pool, tensor_parallel=s.tensor_parallel)
            for s in servers or self.servers
        )
        pools = {group.pool for group in groups}
        if len(pools) == 1 and pools != {"mixed"}:
            only = pools.pop()
            raise ConfigError(f"all servers are in the {only} pool: put one into the other, or into mixed")
        return make(
            ClusterConfig,
            model=self.model,
            machines=groups,
            slo=self.slo,
            transfer=self.transfer,
            batching=self.batching,
            min_pool_machines=self.pools.min_machines,
            control_interval_s=self.pools.interval_s,
        )


def load_config(path: str | Path) -> RouterConfig:
    """Read the router's YAML.

    Raises:
        ConfigError: it cannot be read or used; names the field.
    """
    return load_yaml(RouterConfig, path)


def describe(config: RouterConfig) -> dict[str, Any]:
    """The configuration as plain data; keys are named, never shown."""
    from splitgym.config import to_mapping

    return to_mapping(config)
