"""Configuration: frozen dataclasses, validated; an unknown key is an error."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from splitgym.errors import ConfigError

STRICT = ConfigDict(extra="forbid")
T = TypeVar("T")


@dataclass(frozen=True, config=STRICT)
class MachineGroup:
    """Machines of one type that start in one pool."""

    machine: str = "h100-80gb"
    """Machine type: the name of a profile's machine (see `splitgym.profile.machine_names`)."""
    count: int = Field(default=1, ge=1)
    pool: Literal["prompt", "token", "mixed"] = "mixed"
    """Home pool. A `mixed` home is a machine that always works for both phases (no split)."""
    tensor_parallel: int = Field(default=8, ge=1)
    """GPUs of the machine; the model is split over all of them."""


@dataclass(frozen=True, config=STRICT)
class TransferConfig:
    """How the KV cache is shipped from the prompt to the token machine."""

    mode: Literal["layerwise", "serial"] = "layerwise"
    """`layerwise` overlaps the transfer with the prompt computation; `serial` ships after it."""
    overlap_min_tokens: int = Field(default=512, ge=0)
    """Shorter prompts ship serially even in `layerwise` mode (Splitwise, section 4.3)."""
    shared: bool = True
    """Transfers in flight share the NICs at both ends; False gives each the whole bandwidth."""
    bandwidth_bytes_per_s: int | None = Field(default=None, ge=64)
    """Replaces every machine's own NIC bandwidth."""


@dataclass(frozen=True, config=STRICT)
class BatchingConfig:
    """Phase-aware batching on a machine: the paper's rule (Splitwise, sections 4.1 and 4.2)."""

    rule: Literal["splitwise"] = "splitwise"
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Prompts are batched up to this many tokens; a single longer prompt runs alone."""
    max_tasks: int = Field(default=512, ge=1)
    max_passed_over: int = Field(default=4, ge=1)
    """A token task passed over this many times goes first."""
    ageing: Literal["decodes", "all"] = "decodes"
    """Who ages by being passed over. `decodes`: token tasks that prompts leave out. `all`: every task that
    waits, prompts too, in SplitwiseSim's line; memory is then taken by who is chosen, not FCFS."""


@dataclass(frozen=True, config=STRICT)
class VllmBatchingConfig:
    """vLLM's own batching: chunked prefill under a token budget, decodes first, paged KV memory.

    Names are vLLM's (V1 scheduler). KV memory is given out by blocks; when they run out, the latest request
    is preempted and computed again.
    """

    rule: Literal["vllm"] = "vllm"
    max_num_batched_tokens: int = Field(default=2048, ge=1)
    """Tokens of one iteration: one a decode, the rest for prompts, which are cut into chunks."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Requests in progress on a machine."""
    block_size: int = Field(default=16, ge=1)
    """Tokens of KV memory that are given out at once."""

    @property
    def max_prompt_tokens(self) -> int:
        return self.max_num_batched_tokens

    @property
    def max_tasks(self) -> int:
        return self.max_num_seqs


def _rule(batching: Any) -> str:
    return str(
        batching.get("rule", "splitwise") if isinstance(batching, Mapping) else getattr(batching, "rule", "")
    )


AnyBatching = Annotated[
    Annotated[BatchingConfig, Tag("splitwise")] | Annotated[VllmBatchingConfig, Tag("vllm")],
    Discriminator(_rule),
]
"""`rule` tells which one: `splitwise` (the default) or `vllm`."""


@dataclass(frozen=True, config=STRICT)
class Fault:
    """One failure of one machine."""

    machine: int = Field(ge=0)
    at_s: float = Field(ge=0)
    duration_s: float = Field(gt=0)


@dataclass(frozen=True, config=STRICT)
class SloConfig:
    """A request is good when its slowdowns (against itself alone on the reference) are within these."""

    ttft_slowdown: float = Field(default=3.0, gt=0)
    tbt_slowdown: float = Field(default=1.5, gt=0)
    reference_machine: str = "a100-80gb"
    reference_tensor_parallel: int = Field(default=8, ge=1)


@dataclass(frozen=True, config=STRICT)
class ClusterConfig:
    """A cluster: its machines and its rules."""

    model: str = "bloom-176b"
    machines: tuple[MachineGroup, ...] = (
        MachineGroup(count=5, pool="prompt"),
        MachineGroup(count=3, pool="token"),
    )
    transfer: TransferConfig = TransferConfig()
    batching: AnyBatching = BatchingConfig()
    slo: SloConfig = SloConfig()
    kv_reserve: Literal["at_decode", "at_transfer"] = "at_decode"
    """When the token machine reserves memory for the output: at the first decode, or with the prompt's."""
    confine: bool = False
    """Restrict prompt machines to the prompt and mixed pools, token machines to the token and mixed pools."""
    switch_delay_s: float = Field(default=0.0, ge=0)
    """A resized machine drains and then waits this long before it works for its new pool."""
    control_interval_s: float = Field(default=2.0, gt=0)
    min_pool_machines: int = Field(default=1, ge=0)
    """Resizing never leaves fewer machines at home in a pool."""
    faults: tuple[Fault, ...] = ()
    oracle: bool = False
    """Let schedulers see the true output length. For studies only."""

    @model_validator(mode="after")
    def _check(self) -> "ClusterConfig":
        if not self.machines:
            raise ValueError("machines is empty: name at least one group")
        pools = {g.pool for g in self.machines}
        for pool, phase in (("prompt", "token"), ("token", "prompt")):
            if pools == {pool}:
                raise ValueError(f"no machine for the {phase} phase: add a group with pool {phase} or mixed")
        for fault in self.faults:
            if fault.machine >= self.num_machines:
                raise ValueError(f"faults names machine {fault.machine} of {self.num_machines}")
        return self

    @property
    def num_machines(self) -> int:
        return sum(g.count for g in self.machines)


_GROUP = re.compile(r"^(?P<machine>[A-Za-z0-9._~/-]+?)(?:/tp(?P<tp>\d+))?:(?P<counts>(?:\d+[PTM])+)$")
_POOLS: dict[str, Literal["prompt", "token", "mixed"]] = {"P": "prompt", "T": "token", "M": "mixed"}


def parse_machines(text: str) -> tuple[MachineGroup, ...]:
    """Machine groups from a short text: `h100-80gb:5P3T`, `h100-80gb:4P+a100-80gb:4T`, `h100-80gb/tp4:8M`.

    A machine may be the path of a profile file: `mine.json/tp1:2P2T`.

    Raises:
        ConfigError: the text has another form.
    """
    groups = []
    for part in text.split("+"):
        match = _GROUP.match(part.strip())
        if match is None:
            raise ConfigError(
                f"cluster {text!r}: {part.strip()!r} is not MACHINE:COUNTS such as h100-80gb:5P3T "
                "(P prompt, T token, M mixed; join groups with +)"
            )
        for count, pool in re.findall(r"(\d+)([PTM])", match["counts"]):
            if int(count):
                groups.append(
                    MachineGroup(
                        machine=match["machine"],
                        count=int(count),
                        pool=_POOLS[pool],
                        tensor_parallel=int(match["tp"] or 8),
                    )
                )
    if not groups:
        raise ConfigError(f"cluster {text!r} has no machine: give at least one positive count")
    return tuple(groups)


def from_mapping(kind: type[T], data: Mapping[str, Any], where: str) -> T:
    """Build a configuration dataclass from plain data (YAML, JSON, command line).

    Args:
        kind: the dataclass.
        data: nested mappings and lists.
        where: what to call the source in an error (a file name).

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range; names the field.
    """
    try:
        return TypeAdapter(kind).validate_python(dict(data))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(error)}") from None


def make(kind: type[T], /, **fields: Any) -> T:
    """`kind(**fields)` with a one-sentence `ConfigError` for a wrong field."""
    return from_mapping(kind, fields, kind.__name__)


def load_yaml(kind: type[T], path: str | Path) -> T:
    """Read a YAML file into a configuration dataclass.

    Raises:
        ConfigError: the file is missing, no mapping, or does not validate.
    """
    return from_mapping(kind, read_yaml(path), str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The fields of a YAML file.

    Raises:
        ConfigError: the file is missing or no mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error})") from None
    if data is None:
        raise ConfigError(f"{path}: is empty; expected a mapping of fields")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of fields, found {type(data).__name__}")
    return data


def to_mapping(config: Any) -> dict[str, Any]:
    """Plain data of a configuration dataclass, ready for YAML or JSON."""
    mapping: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return mapping


def _sentence(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        names = [str(x) for x in item["loc"]]
        field = ".".join(name if name.isprintable() else repr(name) for name in names)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "unexpected_keyword_argument":
            message = "is no known key"
        parts.append(f"{field}: {message}" if field else message)
    return "; ".join(parts)
