"""Arguments of the environments: every knob in one dataclass. An unknown or wrong one is a `ConfigError`."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from splitgym.config import STRICT, ClusterConfig, from_mapping, load_yaml, parse_machines
from splitgym.errors import ConfigError

Load = Annotated[float, Field(gt=0)]
DEFAULT_RATE_PER_S = 18.0
"""Near saturation of the default cluster: the tuned index has goodput .97 at 18, .66 at 19."""


@dataclass(frozen=True, config=STRICT)
class EnvConfig:
    """What the three environments share. All keyword arguments of `gymnasium.make("splitgym/...")`."""

    cluster: Any = "h100-80gb:5P3T"
    """A `ClusterConfig`, its fields as a mapping, a YAML file, or machines in short: `h100-80gb:5P3T`."""
    model: str | None = None
    """Replaces the cluster's model (default bloom-176b)."""
    trace: Any = "azure-conv-synth"
    """A `Trace`, a name or path that `splitgym.trace.load` takes (nothing is downloaded), or an object with
    `draw(rng) -> Trace`, which then makes the episodes in place of `part`, `rate_per_s` and `arrivals`."""
    part: str | None = "train"
    """Part of the trace that episodes are drawn from: train, validation, test, or None for all."""
    rate_per_s: float | tuple[float, float] | None = DEFAULT_RATE_PER_S
    """Mean arrivals per second; of a (low, high) range each episode draws one; None is the trace's own."""
    load: Load | tuple[Load, Load] | None = None
    """Replaces `rate_per_s`: a fraction of what saturates the cluster, or a range (`splitgym.saturation`)."""
    arrivals: str = "poisson"
    """`poisson` (resampled) or `stamps` (a window of the trace at the rate; superposed above 8 machines)."""
    episode_s: float = Field(default=90.0, gt=0)
    """Length of the window whose requests count."""
    warmup_s: float = Field(default=15.0, ge=0)
    """Before it: decisions are asked for, but requests that arrive here count in no reward and no metric."""
    max_machines: int | None = Field(default=None, ge=1)
    """M of the spaces; None is the cluster's number of machines."""
    reward: Any = "good-minus-bad"
    """A name, a mapping of names to weights, or an object: see `splitgym.envs.reward`."""
    engine: str = "auto"
    """See `splitgym.sim.make_engine`."""
    confine: bool | None = None
    """Restrict prompts to the prompt and mixed pools, token phases to the token and mixed pools. None is the
    default: on in PoolSizing and Joint; in Routing, what the cluster's configuration says (off)."""
    prior: Any = None
    """A scheduler whose costs observations hold under "prior": `index`, `index-tuned`, or the weights of a
    residual (`splitgym.observation.prior_weights`)."""
    oracle: bool | None = None
    """Let observations hold the true output length (for studies); None is what the cluster says (off)."""


@dataclass(frozen=True, config=STRICT)
class RoutingConfig(EnvConfig):
    """`splitgym/Routing-v0`."""

    sizing: Any = "static"
    """Pool sizing at control ticks: a name, or a `SizingScheduler`."""
    flat: bool = False
    """`Discrete(M * M)` instead of `MultiDiscrete([M, M])`, for learners that want one number."""


@dataclass(frozen=True, config=STRICT)
class PoolSizingConfig(EnvConfig):
    """`splitgym/PoolSizing-v0`."""

    routing: Any = "splitwise"
    """Routing inside: a name, or a `RoutingScheduler`."""
    max_moves: int = Field(default=1, ge=1)
    """K: machines that one action may move."""


@dataclass(frozen=True, config=STRICT)
class JointConfig(EnvConfig):
    """`splitgym/Joint-v0`."""

    max_moves: int = Field(default=1, ge=1)
    """K: machines that one action may move."""


def resolve_cluster(config: EnvConfig, confine_by_default: bool) -> ClusterConfig:
    """The cluster that an environment's arguments describe.

    Raises:
        ConfigError: it cannot be used.
    """
    given = config.cluster
    if isinstance(given, ClusterConfig):
        cluster = given
    elif isinstance(given, str) and given.endswith((".yaml", ".yml")):
        cluster = load_yaml(ClusterConfig, given)
    elif isinstance(given, str):
        cluster = from_mapping(ClusterConfig, {"machines": parse_machines(given)}, f"cluster {given!r}")
    elif isinstance(given, Mapping):
        fields = dict(given)
        if isinstance(fields.get("machines"), str):
            fields["machines"] = parse_machines(fields["machines"])
        cluster = from_mapping(ClusterConfig, fields, "cluster")
    else:
        raise ConfigError(
            f"cluster is {given!r}, expected a ClusterConfig, a mapping, a YAML file or h100-80gb:5P3T"
        )
    changes: dict[str, Any] = {}
    if config.model is not None:
        changes["model"] = config.model
    if config.oracle is not None:
        changes["oracle"] = config.oracle
    if config.confine is not None or confine_by_default:
        changes["confine"] = True if config.confine is None else config.confine
    cluster = dataclasses.replace(cluster, **changes)
    if config.max_machines is not None and config.max_machines < cluster.num_machines:
        raise ConfigError(
            f"max_machines is {config.max_machines}, but the cluster has {cluster.num_machines} machines"
        )
    return cluster
