"""`manifest.json`: what a bundle is, what it expects to see, and what it must answer."""

import json
import re
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from splitgym.config import STRICT, SloConfig, from_mapping
from splitgym.errors import PolicyError
from splitgym.observation import schema_hash

FORMAT = 1
MANIFEST = "manifest.json"

MAX_MANIFEST_BYTES = 16 << 20
MAX_FILE_BYTES = 256 << 20
MAX_FILES = 8

Kind = Literal["routing", "pool_sizing", "joint"]

_FILE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True, config=STRICT)
class SchedulerSpec:
    """A built-in scheduler by name."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Scorer:
    """The permutation-equivariant network of `agents/policies.py`: any number of machines."""

    kind: Literal["scorer"]
    hidden: int = Field(ge=1, le=4096)
    prior: bool = False
    """It adds to the costs of an index or residual scheduler. `weights.npz` then holds that one's flat vector
    as `prior` (`splitgym.observation.prior`).
    """


@dataclass(frozen=True, config=STRICT)
class Mlp:
    """A multilayer perceptron with ReLUs over the flattened observation: one number of machines."""

    kind: Literal["mlp"]
    inputs: tuple[Literal["machines", "cluster", "request", "mask"], ...]
    """Parts of the observation in the order in which they are joined."""
    layers: int = Field(ge=1, le=16)


@dataclass(frozen=True, config=STRICT)
class Onnx:
    """`policy.onnx`: inputs machines (1, M, F), cluster (1, G), request (1, R), mask (1, M); outputs `pair`
    (1, M, M) and `size` (1, 2K + 1), as far as the action kind needs them. M is dynamic.
    """

    kind: Literal["onnx"]
    prior: bool = False
    """A further input, `prior` (1, M, 3): as of a `Scorer`, with the flat vector in a `weights.npz`."""


@dataclass(frozen=True, config=STRICT)
class Heuristic:
    """Schedulers that splitgym has. `weights.npz`, where there is one, holds array options."""

    kind: Literal["scheduler"]
    routing: SchedulerSpec | None = None
    sizing: SchedulerSpec | None = None


Architecture = Annotated[Scorer | Mlp | Onnx | Heuristic, Field(discriminator="kind")]


@dataclass(frozen=True, config=STRICT)
class Action:
    """What the policy decides."""

    kind: Kind
    max_machines: int | None = Field(default=None, ge=1, le=100_000)
    """Most machines; None where the architecture takes any number."""
    max_moves: int = Field(default=1, ge=1, le=1000)
    """K: most machines that one resizing moves."""
    min_pool_machines: int = Field(default=1, ge=0)
    confine: bool = False
    """Did it learn with phases confined to their pools?"""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest decision; above it, decisions are drawn."""


@dataclass(frozen=True, config=STRICT)
class Partner:
    """Who takes the decisions that the policy does not."""

    routing: SchedulerSpec | None = None
    sizing: SchedulerSpec | None = None


@dataclass(frozen=True, config=STRICT)
class Observed:
    """The observation that the policy was made for."""

    sha256: str
    layout: dict[str, Any] = field(default_factory=dict)
    """`splitgym.observation.schema()` at export, so that a mismatch can be read."""
    normalisation: Literal["none"] = "none"
    """Observations are bounded as they are; there is nothing to normalise by."""


@dataclass(frozen=True, config=STRICT)
class Golden:
    """Questions and the answers that the policy must give. See `splitgym.policy.golden`."""

    reads: Literal["observation", "view"]
    vectors: tuple[dict[str, Any], ...]
    cluster: dict[str, Any] = field(default_factory=dict)
    """Of `view` vectors: the `ClusterConfig` whose view they fill."""


@dataclass(frozen=True, config=STRICT)
class Manifest:
    """Everything about a bundle but its weights."""

    format: int
    name: str
    architecture: Architecture
    action: Action
    observation: Observed
    golden: Golden
    partner: Partner = Partner()
    slo: SloConfig = SloConfig()
    training: dict[str, Any] = field(default_factory=dict)
    """Profile, trace, cluster, algorithm and steps it learned with; free of form, for people."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """As of export, on the validation windows."""
    files: dict[str, str] = field(default_factory=dict)
    """sha256 of every other file of the bundle."""


def parse_manifest(text: bytes, where: str) -> Manifest:
    """Read and check everything that the manifest alone can tell.

    Args:
        text: of the file.
        where: what to call it in errors.

    Raises:
        PolicyError: not JSON, another format, an unknown or wrong field, an unsafe file name, or an
            observation schema that is not this splitgym's.
    """
    if len(text) > MAX_MANIFEST_BYTES:
        raise PolicyError(f"{where} has {len(text)} bytes, the limit is {MAX_MANIFEST_BYTES}")
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{where} is no JSON ({error})") from None
    if not isinstance(data, dict):
        raise PolicyError(f"{where} holds no JSON object")
    if data.get("format") != FORMAT:
        raise PolicyError(
            f"{where}: bundle format {data.get('format')!r}, this splitgym reads format {FORMAT}; "
            "export the policy again"
        )
    try:
        manifest = from_mapping(Manifest, data, where)
    except PolicyError:
        raise
    except ValueError as error:
        raise PolicyError(str(error)) from None
    _check_files(manifest, where)
    _check_parts(manifest, where)
    own = schema_hash(has_prior(manifest.architecture))
    if manifest.observation.sha256 != own:
        raise PolicyError(
            f"{where}: the policy expects observation schema {manifest.observation.sha256[:12]}, this "
            f"splitgym has {own[:12]}; export it again with this version"
        )
    return manifest


def has_prior(architecture: Any) -> bool:
    """Do its observations hold the costs of a prior?"""
    return isinstance(architecture, (Scorer, Onnx)) and architecture.prior


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not allowed")


def _check_files(manifest: Manifest, where: str) -> None:
    if len(manifest.files) > MAX_FILES:
        raise PolicyError(f"{where} names {len(manifest.files)} files, the limit is {MAX_FILES}")
    for name, digest in manifest.files.items():
        if not _FILE_NAME.match(name) or name.lower() == MANIFEST:
            raise PolicyError(
                f"{where}: file name {name!r} is not allowed; files lie in the bundle's own folder"
            )
        if not _SHA256.match(digest):
            raise PolicyError(f"{where}: the sha256 of {name} is no sha256")


def _check_parts(manifest: Manifest, where: str) -> None:
    """Fields that must go together."""
    kind, made = manifest.action.kind, manifest.architecture
    if isinstance(made, Heuristic):
        has = {"routing": made.routing is not None, "pool_sizing": made.sizing is not None}
        for part, there in has.items():
            if there != (kind in (part, "joint")):
                raise PolicyError(
                    f"{where}: action kind {kind} with{'' if there else 'out'} a {part} scheduler"
                )
    elif isinstance(made, Mlp) and manifest.action.max_machines is None:
        raise PolicyError(f"{where}: an mlp needs action.max_machines")
    reads = "view" if isinstance(made, Heuristic) else "observation"
    if manifest.golden.reads != reads:
        raise PolicyError(
            f"{where}: golden vectors read a {manifest.golden.reads}, a {made.kind} reads {reads}s"
        )
    if not manifest.golden.vectors:
        raise PolicyError(f"{where} has no golden vectors, so the policy cannot be checked")
