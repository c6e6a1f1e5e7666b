"""Who is compared: a policy under a name, in any of the forms in which it may be given."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from splitgym import schedulers
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, VllmBatchingConfig, parse_machines
from splitgym.errors import ConfigError
from splitgym.saturation import hardware, write_hardware
from splitgym.schedulers.protocol import RoutingScheduler, SizingScheduler
from splitgym.types import RequestInfo
from splitgym.view import ClusterView

RouteFunction = Callable[[ClusterView, RequestInfo], tuple[int, int]]

VLLM = "vllm"
"""The baseline without a split: every machine mixed, vLLM's batching with its defaults, JSQ by tokens."""


@dataclass(frozen=True)
class Contender:
    """A policy under a name: who routes, and who sizes the pools."""

    name: str
    routing: RoutingScheduler
    sizing: SizingScheduler
    cluster: ClusterConfig | None = None
    """Where it runs if not where the others do: other pools or rules, but the same machines."""


PolicyLike = str | RoutingScheduler | RouteFunction | Contender


class FunctionScheduler:
    """Makes a routing scheduler of a plain function (view, request) -> (prompt machine, token machine)."""

    def __init__(self, function: RouteFunction, name: str | None = None) -> None:
        self.function = function
        self.name: str = name or str(getattr(function, "__name__", type(function).__name__))

    def reset(self, view: ClusterView, seed: int) -> None:
        """A function has nothing to forget."""

    def route(self, view: ClusterView, request: RequestInfo) -> tuple[int, int]:
        prompt_machine, token_machine = self.function(view, request)
        return int(prompt_machine), int(token_machine)


def contender(
    policy: PolicyLike,
    sizing: str | SizingScheduler = "static",
    name: str | None = None,
    cluster: ClusterConfig | None = None,
) -> Contender:
    """A policy in any of its forms, made ready to run. See `evaluate`.

    Args:
        policy: a name (NAME, NAME+SIZING, either with @MACHINES, or `vllm`), an object, a function, or a
            contender.
        sizing: who sizes the pools if the policy does not say.
        name: what tables call it; None is its own name.
        cluster: what NAME@MACHINES and `vllm` change; only they need it.

    Raises:
        ConfigError: an unknown name, something that is no policy, or no cluster where one is needed.
    """
    if isinstance(policy, Contender):
        return replace(policy, name=name or policy.name)
    if isinstance(policy, str):
        return _by_name(policy, sizing, name or policy, cluster)
    if isinstance(policy, RoutingScheduler):
        return Contender(name or policy.name, policy, _sizing(sizing))
    if callable(policy):
        function = FunctionScheduler(policy, name)
        return Contender(function.name, function, _sizing(sizing))
    raise ConfigError(f"{policy!r} is no policy: give a name, an object with reset and route, or a function")


def contenders(
    policies: Mapping[str, PolicyLike] | Sequence[PolicyLike],
    sizing: str | SizingScheduler,
    cluster: ClusterConfig,
) -> list[Contender]:
    """All policies of an evaluation.

    Raises:
        ConfigError: see `contender`; or two of one name.
    """
    if isinstance(policies, Mapping):
        found = [contender(p, sizing, name, cluster) for name, p in policies.items()]
    elif isinstance(policies, str):
        found = [contender(policies, sizing, None, cluster)]
    else:
        found = [contender(p, sizing, None, cluster) for p in policies]
    names = [c.name for c in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(
            f"two policies are called {twice[0]!r}: name each once, or give a mapping from names to policies"
        )
    return found


def cluster_for(entrant: Contender, cluster: Cluster) -> Cluster:
    """Where a contender runs: its own cluster, or the one of all.

    Raises:
        ConfigError: its own has other machines, another model or other SLOs, so nothing could be compared.
    """
    own, base = entrant.cluster, cluster.config
    if own is None:
        return cluster
    if (own.model, own.slo) != (base.model, base.slo):
        raise ConfigError(f"policy {entrant.name} runs with another model or SLO than {base.model}'s here")
    mine, theirs = hardware(own), hardware(base)
    if mine != theirs:
        raise ConfigError(
            f"policy {entrant.name} runs on {write_hardware(mine)}, the others on {write_hardware(theirs)}: "
            "only clusters of the same machines can be compared"
        )
    return Cluster.resolve(own)


def without_split(cluster: ClusterConfig) -> ClusterConfig:
    """The same cluster with every machine mixed: working for both phases, at home in no pool."""
    return replace(cluster, machines=tuple(replace(group, pool="mixed") for group in cluster.machines))


def _by_name(text: str, sizing: str | SizingScheduler, name: str, cluster: ClusterConfig | None) -> Contender:
    who, at, machines = text.partition("@")
    routing_name, plus, sizing_name = who.partition("+")
    own = None
    if at or routing_name == VLLM:
        if cluster is None:
            raise ConfigError(f"policy {text} changes the cluster: say which")
        if routing_name == VLLM:
            if at or plus:
                raise ConfigError(f"policy {text}: {VLLM} has no pools, write it without + and @")
            own = replace(without_split(cluster), batching=VllmBatchingConfig())
            return Contender(name, schedulers.routing("jsq-tokens"), schedulers.sizing("static"), own)
        own = replace(cluster, machines=parse_machines(machines))
    resize = schedulers.sizing(sizing_name) if plus else _sizing(sizing)
    return Contender(name, schedulers.routing(routing_name), resize, own)


def _sizing(sizing: str | SizingScheduler) -> SizingScheduler:
    return schedulers.sizing(sizing) if isinstance(sizing, str) else sizing
