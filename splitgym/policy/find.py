"""Bundles by folder or as `pretrained:NAME`, and as what `splitgym.evaluation` compares."""

from dataclasses import replace
from pathlib import Path

from splitgym import schedulers
from splitgym.config import ClusterConfig
from splitgym.errors import PolicyError
from splitgym.evaluation import Contender
from splitgym.policy.bundle import load
from splitgym.policy.manifest import MANIFEST, SchedulerSpec
from splitgym.policy.named import make_routing, make_sizing
from splitgym.policy.policies import NetworkPolicy, Policy, SchedulerPolicy
from splitgym.resources import shipped

PRETRAINED = "pretrained:"


def bundled_names() -> tuple[str, ...]:
    """Names that `pretrained:NAME` knows."""
    try:
        root = shipped("pretrained")
    except FileNotFoundError:
        return ()
    return tuple(sorted(path.parent.name for path in root.glob(f"*/{MANIFEST}")))


def is_bundle(text: str | Path) -> bool:
    """Does this name a bundle: `pretrained:...`, or a folder with a manifest?"""
    return str(text).startswith(PRETRAINED) or (Path(text) / MANIFEST).is_file()


def locate(text: str | Path) -> Path:
    """The folder of a bundle.

    Args:
        text: a folder, or `pretrained:NAME`.

    Raises:
        PolicyError: no such shipped policy (names those that exist), or no bundle there.
    """
    name = str(text)
    if name.startswith(PRETRAINED):
        wanted = name.removeprefix(PRETRAINED)
        known = bundled_names()
        if wanted not in known:
            listed = ", ".join(known) or "none in this installation"
            raise PolicyError(f"no pretrained policy is called {wanted!r}: there are {listed}")
        return shipped("pretrained") / wanted
    path = Path(text)
    if not (path / MANIFEST).is_file():
        raise PolicyError(f"{path} is no policy bundle: it has no {MANIFEST} (`splitgym export` makes one)")
    return path


def contender(text: str | Path, cluster: ClusterConfig, name: str = "") -> Contender:
    """The policy of a bundle, with the partner that completes it, to be compared on a cluster.

    A network runs with its own confinement, as it learned, and so does what learned confined. Built-in
    schedulers are taken out of the bundle, so that they run inside the compiled engine.

    Raises:
        PolicyError: no bundle there, it is refused, or it knows fewer machines.
    """
    policy = load(locate(text))
    known = policy.manifest.action.max_machines
    if known is not None and cluster.num_machines > known:
        raise PolicyError(f"policy {text} knows {known} machines, the cluster has {cluster.num_machines}")
    routing, sizing = complete(policy)
    own = None
    if isinstance(policy, NetworkPolicy) or policy.manifest.action.confine:
        own = replace(cluster, confine=policy.manifest.action.confine)
    if isinstance(policy, SchedulerPolicy):
        routing, sizing = policy.routing or routing, policy.sizing or sizing
    policy.name = name or str(text)
    return Contender(policy.name, routing, sizing, own)


def complete(policy: Policy) -> tuple[schedulers.RoutingScheduler, schedulers.SizingScheduler]:
    """(who routes, who resizes): the policy itself, or the partner that its manifest names."""
    routing: schedulers.RoutingScheduler = policy
    sizing: schedulers.SizingScheduler = policy
    partner = policy.manifest.partner
    if not policy.routes:
        spec = partner.routing or SchedulerSpec("splitwise")
        routing = make_routing(spec)
    if not policy.resizes:
        spec = partner.sizing or SchedulerSpec("static")
        sizing = make_sizing(spec)
    return routing, sizing
