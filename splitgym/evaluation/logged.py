"""What a router's decision log says: its servers as a cluster, its decisions, its changes of roles."""

from collections.abc import Sequence
from dataclasses import replace

from splitgym import profile as profiles
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, from_mapping
from splitgym.errors import ConfigError
from splitgym.trace.decision_log import LoggedRequest, LoggedRun
from splitgym.types import Pool, to_ns

Pair = tuple[int, int]


def cluster_of(
    run: LoggedRun, profile: Sequence[str] = (), given: ClusterConfig | None = None
) -> tuple[Cluster, tuple[str, ...]]:
    """The servers of a logged run as a simulator's cluster, and their names in its order.

    Args:
        run: of a log.
        profile: FILE (or MODEL/MACHINE) for all servers, or MACHINE=FILE for those of one type.
        given: in place of what the log says; machines in the order of the servers.

    Raises:
        ConfigError: see `config_of`; or a cluster of another size.
        ProfileError: a profile that cannot be used.
    """
    names = run.servers or tuple(sorted(_named(run.requests)))
    config = config_of(run, profile, given)
    if config.num_machines != len(names):
        raise ConfigError(
            f"the cluster has {config.num_machines} machines, the log has {len(names)} servers "
            f"({', '.join(names[:8])}): give one machine a server, in the same order"
        )
    return Cluster.resolve(replace(config, faults=(), confine=False)), names


def config_of(
    run: LoggedRun, profile: Sequence[str] = (), given: ClusterConfig | None = None
) -> ClusterConfig:
    """The same as a configuration, with the pools and rules that the router assumed.

    Raises:
        ConfigError: the log has no cluster and none is given.
        ProfileError: a profile that cannot be used.
    """
    config = given
    if config is None:
        if run.cluster is None:
            raise ConfigError(
                "the log does not say what its servers are (its start line is missing, or of an older "
                "router): give the cluster, with its machines in the order of the router's servers"
            )
        config = from_mapping(ClusterConfig, run.cluster, "the log's start line: cluster")
    for text in profile:
        config = with_profile(config, text)
    return config


def with_profile(config: ClusterConfig, text: str) -> ClusterConfig:
    """The cluster with other profiles: FILE for all machines, or TYPE=FILE for those of one type.

    Raises:
        ConfigError: no machine is of that type.
        ProfileError: the profile cannot be used.
    """
    kind, equals, name = text.rpartition("=")
    found = profiles.find(name)
    machine = name if name.endswith((".json", ".yaml", ".yml")) else found.machine.name
    kinds = {group.machine for group in config.machines}
    if equals and kind not in kinds:
        raise ConfigError(f"profile {text}: the cluster has no {kind}, only {', '.join(sorted(kinds))}")
    groups = tuple(
        replace(group, machine=machine, tensor_parallel=found.tensor_parallel)
        if not equals or group.machine == kind
        else group
        for group in config.machines
    )
    slo = config.slo
    if found.model.name not in profiles.model_names():  # nobody knows such a model on another machine
        slo = replace(slo, reference_machine=machine, reference_tensor_parallel=found.tensor_parallel)
    return replace(config, model=found.model.name, machines=groups, slo=slo)


def decisions_of(run: LoggedRun, names: Sequence[str]) -> list[Pair]:
    """(prompt machine, token machine) of every request as logged; (-1, -1) where none was chosen.

    Raises:
        TraceError: a server that is not among `names`; names the line.
    """
    place = {name: index for index, name in enumerate(names)}
    found = []
    for request in run.requests:
        if request.prompt_server is None or request.token_server is None:
            found.append((-1, -1))
            continue
        for server in (request.prompt_server, request.token_server):
            if server not in place:
                raise request.place.error(f"server {server!r} is none of {', '.join(names)}")
        found.append((place[request.prompt_server], place[request.token_server]))
    return found


def is_load(request: LoggedRequest) -> bool:
    """Did servers work for it? What was turned away, or what no server could serve, cost nothing."""
    if request.prompt_server is None:
        return False
    return request.outcome in ("ok", "disconnected") or request.output_tokens > 0


def roles_of(run: LoggedRun, names: Sequence[str], origin_s: float) -> list[tuple[int, int, Pool]]:
    """Role changes of a run as (time [ns from `origin_s`], machine, pool); earlier ones are at 0.

    Raises:
        TraceError: a server that is not among `names`; names the line.
    """
    place = {name: index for index, name in enumerate(names)}
    found = []
    for change in run.roles:
        if change.server not in place:
            raise change.place.error(f"server {change.server!r} is none of {', '.join(names)}")
        found.append((to_ns(max(0.0, change.at_s - origin_s)), place[change.server], change.pool))
    return found


def _named(requests: Sequence[LoggedRequest]) -> set[str]:
    return {
        server
        for request in requests
        for server in (request.prompt_server, request.token_server)
        if server is not None
    }
