"""Schedulers as bundles: heuristics, so that a router can run the paper's, and those with learned weights."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, to_mapping
from splitgym.errors import PolicyError
from splitgym.policy.golden import BEFORE_FIELDS, after, dump_request, dump_view, made_up_states
from splitgym.policy.manifest import Action, Golden, Heuristic, Kind, Partner, SchedulerSpec
from splitgym.policy.named import SIZING_PREFIX, make_routing, make_sizing
from splitgym.policy.policies import Policy
from splitgym.policy.runtimes import Weights
from splitgym.policy.save import check_free, write_bundle
from splitgym.schedulers import CompiledRouting, CompiledSizing

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
    return _write(folder, routing, sizing, dict(weights or {}), name=name or text, cluster=cluster, **about)


def export_schedulers(
    routing: CompiledRouting | None,
    sizing: CompiledSizing | None,
    folder: str | Path,
    *,
    name: str,
    **about: Any,
) -> Policy:
    """Write a bundle of schedulers with their options, learned weights among them.

    Args:
        routing, sizing: one of them may be None.
        folder: must not exist, or be empty.
        name: what tables call it.
        about: confine (do phases keep to their pools?), partner (a `SchedulerSpec` of who routes for one that
            only resizes), cluster, training, metrics.

    Raises:
        PolicyError: the folder is taken, or there is no scheduler.
    """
    check_free(Path(folder))
    if routing is None and sizing is None:
        raise PolicyError("a bundle of schedulers needs at least one")
    weights: Weights = {}
    specs = []
    for scheduler, prefix in ((routing, ""), (sizing, SIZING_PREFIX)):
        specs.append(None if scheduler is None else _spec(scheduler, prefix, weights))
    return _write(folder, specs[0], specs[1], weights, name=name, **about)


def _spec(scheduler: Any, prefix: str, weights: Weights) -> SchedulerSpec:
    """A scheduler as the manifest names it; its options that are arrays go into `weights`."""
    options = {field.name: getattr(scheduler, field.name) for field in fields(scheduler)}
    options.pop("label", None)  # the bundle has a name
    arrays = {key: value for key, value in options.items() if isinstance(value, tuple)}
    weights |= {prefix + key: np.array(value, np.float64) for key, value in arrays.items()}
    return SchedulerSpec(scheduler.registered, {k: v for k, v in options.items() if k not in arrays})


def _write(
    folder: str | Path,
    routing: SchedulerSpec | None,
    sizing: SchedulerSpec | None,
    weights: Weights,
    *,
    name: str,
    cluster: ClusterConfig | None = None,
    confine: bool = False,
    partner: SchedulerSpec | None = None,
    **about: Any,
) -> Policy:
    kind: Kind = "joint" if routing and sizing else "routing" if routing else "pool_sizing"
    resolved = Cluster.resolve(cluster or ClusterConfig())
    router = make_routing(routing, weights) if routing else None
    sizer = make_sizing(sizing, weights) if sizing else None
    vectors: list[dict[str, Any]] = []
    before = dump_view(resolved.view())
    for view, request in made_up_states(resolved, VECTORS):
        state = dump_view(view)
        if router is not None:
            router.reset(view, 0)
            pair = [int(m) for m in router.route(view, request)]
            asked = dump_request(request)
            vectors.append({"kind": "route", "view": state, "request": asked, "decision": pair})
        if sizer is not None:
            earlier = {field: before[field] for field in BEFORE_FIELDS}
            moved = after(sizer, view, earlier)
            vectors.append(
                {"kind": "resize", "view": state, "before": earlier, "request": None, "decision": moved}
            )
        before = state
    return write_bundle(
        folder,
        name=name,
        architecture=Heuristic("scheduler", routing, sizing),
        action=Action(kind, confine=confine),
        golden=Golden("view", tuple(vectors), to_mapping(resolved.config)),
        weights=weights or None,
        partner=Partner(
            routing=None if routing else partner or SchedulerSpec("splitwise"),
            sizing=None if sizing else SchedulerSpec("static"),
        ),
        slo=resolved.config.slo,
        **about,
    )
