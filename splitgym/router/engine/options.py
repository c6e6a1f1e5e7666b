"""What a simulated engine is told."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from splitgym.config import STRICT, AnyBatching, VllmBatchingConfig

Role = Literal["both", "prompt", "token", "none"]


@dataclass(frozen=True, config=STRICT)
class EngineOptions:
    """One process: its engines are alike but for their roles."""

    profile: str = "llama2-70b/h100-80gb"
    """MODEL/MACHINE, MODEL/MACHINE/tp4, or a profile file."""
    engines: int = Field(default=1, ge=1, le=512)
    """Machines in this process, on consecutive ports."""
    roles: tuple[Role, ...] = ("both",)
    """One for all engines, or one each: what an engine's KV connector does. `none` has no connector."""
    host: str = "127.0.0.1"
    port: int = Field(default=8100, ge=0, le=65535)
    """Of the first engine; 0 lets the system choose every port."""
    side_channel_port: int = Field(default=0, ge=0, le=65535)
    """Where engines of other processes ask for caches (on `host`); 0 lets the system choose."""
    admin_port: int | None = Field(default=None, ge=0, le=65535)
    """Fault switches, on 127.0.0.1; None has none."""
    time_scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Simulated seconds a second."""
    batching: AnyBatching = VllmBatchingConfig()
    bandwidth_bytes_per_s: int | None = Field(default=None, ge=64)
    """Replaces the profile's NIC bandwidth."""
    served_model_name: str | None = None
    """What clients call the model; the profile's model by default."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Prompt and output tokens of a request; what fits the machine, at most 32,768, by default."""
    mean_output_tokens: float = Field(default=150.0, ge=0, allow_inf_nan=False)
    """Mean length of an answer that may end by itself; 0: answers always are as long as they may be."""
    kv_lease_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    """A cache that nobody pulls is dropped after so many simulated seconds (vLLM's `kv_lease_duration`)."""
    kv_load_failure_policy: Literal["recompute", "fail"] = "recompute"
    """When a cache cannot be pulled; vLLM's default is `fail`, a 500."""
    kv_peers: tuple[str, ...] = ()
    """Hosts, beside loopback addresses, that caches may be pulled from."""
    api_key: str | None = None
    """Wanted as a bearer token on /v1."""
    seed: int = Field(default=0, ge=0)
    """Of random faults."""
    record: bool = False
    """Keep the simulated time of every token of every request (`EngineServer.recorded`)."""

    @model_validator(mode="after")
    def _check(self) -> "EngineOptions":
        if len(self.roles) not in (1, self.engines):
            raise ValueError(
                f"roles names {len(self.roles)} for {self.engines} engines: give one, or one each"
            )
        if self.port and self.port + self.engines > 65536:
            raise ValueError(f"port {self.port} and {self.engines} engines reach above 65535")
        return self

    def role(self, index: int) -> Role:
        """Role of one engine."""
        return self.roles[index if len(self.roles) > 1 else 0]
