"""Heuristics as bundles, so that a router can run the paper's scheduler."""

from pathlib import Path
from typing import Any

from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, to_mapping
from splitgym.errors import PolicyError
from splitgym.policy.bundle import Policy
from splitgym.policy.golden import dump_request, dump_view, made_up_states
from splitgym.policy.manifest import Action, Golden, Heuristic, Kind, Partner, SchedulerSpec
from splitgym.policy.named import make_routing, make_sizing
from splitgym.policy.runtimes import Weights
from splitgym.policy.save import check_free, write_bundle

VECTORS = 12


def export_heuristic(
    text: str,
    folder: str | Path,
    *,
    options: dict[str, Any] | None = None,
    name: str = "",
    cluster: ClusterConfig | None = None,
    weights: Weights | None = None,
    **about: Any,
) -> Policy:
    """Write a bundle of a built-in scheduler.

    Args:
        text: ROUTING, ROUTING+SIZING, or +SIZING alone.
        folder: must not exist, or be empty.
        options: of the routing scheduler.
        name: what tables call it; `text` if empty.
        cluster: whose states the golden vectors are; default `ClusterConfig()`.
        weights: options of the routing scheduler that are arrays.
        about: training, metrics, as for `write_bundle`.

    Raises:
        ConfigError: an unknown scheduler or option.
        PolicyError: the folder is taken.
    """
    check_free(Path(folder))
    routing_name, plus, sizing_name = text.partition("+")
    if not routing_name and not sizing_name:
        raise PolicyError(f"heuristic {text!r}: expected ROUTING, ROUTING+SIZING or +SIZING")
    if plus and not sizing_name:
        raise PolicyError(f"heuristic {text!r}: name a sizing scheduler after the +")
    routing = SchedulerSpec(routing_name, dict(options or {})) if routing_name else None
    sizing = SchedulerSpec(sizing_name) if sizing_name else None
    kind: Kind = "joint" if routing and sizing else "routing" if routing else "pool_sizing"
    resolved = Cluster.resolve(cluster or ClusterConfig())
    router = make_routing(routing, weights) if routing else None
    sizer = make_sizing(sizing) if sizing else None
    vectors: list[dict[str, Any]] = []
    for view, request in made_up_states(resolved, VECTORS):
        state = dump_view(view)
        if router is not None:
            router.reset(view, 0)
            pair = [int(m) for m in router.route(view, request)]
            asked = dump_request(request)
            vectors.append({"kind": "route", "view": state, "request": asked, "decision": pair})
        if sizer is not None:
            sizer.reset(view, 0)
            moved = int(sizer.resize(view))
            vectors.append({"kind": "resize", "view": state, "request": None, "decision": moved})
    return write_bundle(
        folder,
        name=name or text,
        architecture=Heuristic("scheduler", routing, sizing),
        action=Action(kind),
        golden=Golden("view", tuple(vectors), to_mapping(resolved.config)),
        weights=weights,
        partner=Partner(
            routing=None if routing else SchedulerSpec("splitwise"),
            sizing=None if sizing else SchedulerSpec("static"),
        ),
        slo=resolved.config.slo,
        **about,
    )
