"""What a profile is about: a transformer and a machine (profiles/models.yaml and machines.yaml)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from splitgym.config import STRICT, from_mapping
from splitgym.errors import ConfigError, ProfileError
from splitgym.resources import shipped

T = TypeVar("T")


@dataclass(frozen=True, config=STRICT)
class ModelSpec:
    """A dense transformer."""

    name: str
    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    """Heads that keys and values have: fewer than `heads` with grouped-query attention."""
    head_dim: int = Field(ge=1)
    weights_bytes: int = Field(ge=1)
    bytes_per_value: int = Field(default=2, ge=1)
    """Of a weight, an activation and a cached key or value (2 is fp16 or bf16)."""
    source: str = ""

    @model_validator(mode="after")
    def _check(self) -> "ModelSpec":
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads is {self.kv_heads}: it must divide heads ({self.heads})")
        return self

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token: layers x 2 x KV heads x head size x bytes per value."""
        return self.layers * 2 * self.kv_heads * self.head_dim * self.bytes_per_value

    @property
    def parameters(self) -> float:
        """Number of weights."""
        return self.weights_bytes / self.bytes_per_value


@dataclass(frozen=True, config=STRICT)
class MachineSpec:
    """A machine: GPUs of one kind with their share of the network. `part` gives a slice of one."""

    name: str
    gpus: int = Field(ge=1)
    memory_bytes_per_gpu: int = Field(ge=1)
    peak_flops_per_s: float = Field(gt=0)
    """Published dense fp16 tensor peak of one GPU [FLOP/s]."""
    bandwidth_bytes_per_s: float = Field(gt=0)
    """Published memory bandwidth of one GPU."""
    max_power_w: float = Field(gt=0)
    """Published maximum power of one GPU."""
    power_limit: float = Field(default=1.0, gt=0, le=1)
    """Power cap, as a share of `max_power_w`."""
    links_per_machine: int = Field(default=8, ge=1)
    """Network links; a GPU's share of them goes with it."""
    link_bytes_per_s: int = Field(default=25_000_000_000, ge=64)
    kv_overlap_constant_s: float = Field(default=0.005, ge=0)
    """What layer-wise KV shipping leaves after the prompt's end."""
    cost_per_hour: float = Field(default=1.0, ge=0)
    """Of the machine, in the relative units of the paper's simulator (H100 4.76, A100 2.21)."""
    provisioned_power: float = Field(default=0.0, ge=0)
    """Power to provision for the machine, relative units of the paper's simulator (H100 44, A100 24.8)."""
    simt_flops_per_s: float = Field(default=0.0, ge=0)
    """Published fp32 peak of one GPU without tensor cores: what the paper's table of ratios compares."""
    idle_power: float = Field(default=0.2, ge=0, le=1)
    """Power of an idle GPU as a share of `max_power_w`. Assumed."""
    source: str = ""
    assumed: str = ""
    """Which of the numbers above are assumptions, and why."""

    @property
    def memory_bytes(self) -> int:
        """Of all GPUs."""
        return self.gpus * self.memory_bytes_per_gpu

    @property
    def network_bytes_per_s(self) -> int:
        """All links in parallel."""
        return self.links_per_machine * self.link_bytes_per_s

    @property
    def power_cap_w(self) -> float:
        """Most that the machine's GPUs draw together."""
        return round(self.gpus * self.max_power_w * self.power_limit, 6)

    def part(self, gpus: int) -> "MachineSpec":
        """A slice of this machine with some of its GPUs: memory, links, cost and power in proportion.

        Raises:
            ProfileError: more GPUs than the machine has.
        """
        if gpus == self.gpus:
            return self
        if not 1 <= gpus < self.gpus:
            raise ProfileError(
                f"machine {self.name} has {self.gpus} GPUs: tensor_parallel {gpus} is not possible"
            )
        share = gpus / self.gpus
        return replace(
            self,
            gpus=gpus,
            links_per_machine=max(1, self.links_per_machine * gpus // self.gpus),
            cost_per_hour=round(self.cost_per_hour * share, 9),
            provisioned_power=round(self.provisioned_power * share, 9),
        )


def read_mapping(path: Path) -> dict[str, object]:
    """A JSON or YAML file as a mapping.

    Raises:
        ProfileError: the file is missing, unreadable or holds something else.
    """
    try:
        text = path.read_text()
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise ProfileError(f"{path}: no such file") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ProfileError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(data, dict):
        raise ProfileError(f"{path}: expected a mapping of fields, found {type(data).__name__}")
    return data


def models(path: Path | None = None) -> dict[str, ModelSpec]:
    """Known models by name.

    Raises:
        ProfileError: a spec is wrong; names file and field.
    """
    return _read(ModelSpec, path or shipped("profiles") / "models.yaml")


def machines(path: Path | None = None) -> dict[str, MachineSpec]:
    """Known machine types by name. See `models`."""
    return _read(MachineSpec, path or shipped("profiles") / "machines.yaml")


def find_machine(text: str | None) -> MachineSpec | None:
    """Published specs by a name of `machines.yaml`, or from a file with the fields of a `MachineSpec`.

    Raises:
        ProfileError: no such name or file.
    """
    if text is None:
        return None
    if text.endswith((".yaml", ".yml", ".json")):
        return build(MachineSpec, {"name": Path(text).stem, **read_mapping(Path(text))}, text)
    known = machines()
    if text not in known:
        raise ProfileError(f"machine {text!r}: choose one of {', '.join(known)}, or a file with its specs")
    return known[text]


def _read(kind: type[T], path: Path) -> dict[str, T]:
    specs = {}
    for name, fields in read_mapping(path).items():
        if not isinstance(fields, dict):
            raise ProfileError(f"{path}: {name}: expected a mapping of fields")
        specs[name] = build(kind, {"name": name, **fields}, f"{path}: {name}")
    return specs


def build(kind: type[T], fields: dict[str, object], where: str) -> T:
    """`from_mapping` with a `ProfileError`."""
    try:
        return from_mapping(kind, fields, where)
    except ConfigError as error:
        raise ProfileError(str(error)) from None
