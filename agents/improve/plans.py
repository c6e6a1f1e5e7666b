"""How each kind of bundle is improved: by whatever made it, from where it stands.

index; a sizing rule                     cem over its constants
residual; sizing network; both           es from its weights
a network that `splitgym export` wrote   PPO (or the A2C that made it) from its weights; the value, which
                                         no bundle holds, is learned first
another network (ONNX, MLP)              a network of ours learns to decide as it does, then PPO
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.config import EnvName, RunConfig, resolve
from agents.improve.verdict import SPEEDS, WARM_UP, Windows
from splitgym import trace as traces
from splitgym.config import ClusterConfig, to_mapping
from splitgym.errors import PolicyError
from splitgym.policy import NetworkPolicy, Policy, SchedulerPolicy
from splitgym.policy.manifest import Scorer
from splitgym.schedulers import Residual, SizingNet, residual, sizing_net
from splitgym.schedulers.index import Index
from splitgym.schedulers.sizing import Ewma, Reactive
from splitgym.trace import Trace

ON_POLICY = ("maskable_ppo", "ppo", "a2c")
UPDATE = {"routing": 512, "pool_sizing": 128, "joint": 512}
"""Decisions of each environment that a network learns from at a time."""
ENVS = 8
CLONED = {"routing": 30_000, "pool_sizing": 12_000, "joint": 30_000}
"""Decisions of another network that are imitated, in three rounds; a third of them teach the value alone."""


@dataclass(frozen=True)
class Plan:
    """How to improve a bundle."""

    algo: str
    env: EnvName
    network: bool
    """Gradients on observations; else a search over the weights of schedulers."""
    confine: bool
    """Phases confined to pools, as it learned."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of a `RunConfig`: what follows from the bundle alone."""

    def steps(self, generations: int) -> int:
        """Of the run: a generation of a network is one update."""
        return generations * ENVS * UPDATE[self.env] if self.network else generations


def plan_of(policy: Policy, bundle: str, confined: bool) -> Plan:
    """How a bundle can be improved.

    Args:
        policy: the loaded bundle.
        bundle: its folder.
        confined: did the router confine phases to pools?

    Raises:
        PolicyError: it cannot be; says why, and which can.
    """
    kind = policy.manifest.action.kind
    if isinstance(policy, NetworkPolicy):
        return Plan(
            _maker(policy), kind, True, policy.manifest.action.confine, _network_fields(policy, bundle)
        )
    assert isinstance(policy, SchedulerPolicy)
    confined = confined or policy.manifest.action.confine or kind != "routing"
    routing, sizing = policy.routing, policy.sizing
    learned = isinstance(routing, Residual) and bool(len(residual.unpack(routing.params)["input_bias"]))
    routes = isinstance(routing, Residual | Index)
    start: dict[str, Any] = {"start": bundle}
    if kind == "routing" and routes:
        return Plan("es" if learned else "cem", kind, False, confined, {"evolution": start})
    if kind == "pool_sizing" and isinstance(sizing, SizingNet | Reactive | Ewma):
        algo = "es" if isinstance(sizing, SizingNet) else "cem"
        start["rule"] = "ewma" if isinstance(sizing, Ewma) else "reactive"
        # Who routes is the partner that the bundle names.
        return Plan(algo, kind, False, confined, {"evolution": start, "environment": {"router": bundle}})
    if kind == "joint" and routes and isinstance(sizing, SizingNet | Reactive):
        if isinstance(routing, Residual):
            start["hidden"] = residual.hidden_of(len(routing.params))
        if isinstance(sizing, SizingNet) and len(sizing.weights) > sizing_net.size(0):
            start["hidden_sizing"] = sizing_net.hidden_of(len(sizing.weights))
        return Plan("es", kind, False, confined, {"evolution": start})
    raise PolicyError(_refusal(policy, bundle))


def _refusal(policy: SchedulerPolicy, bundle: str) -> str:
    made = policy.manifest.architecture
    parts = [getattr(made, part) for part in ("routing", "sizing")]
    names = "+".join(part.name for part in parts if part is not None)
    return (
        f"{bundle} ({policy.manifest.action.kind}, {names}) cannot be improved from a log: it has no weights "
        "to search; what can be are the index, its residual, reactive and ewma rules, the sizing network, "
        "index or residual with reactive or sizing network, and every network over observations"
    )


def _maker(policy: NetworkPolicy) -> str:
    """The algorithm that made a network, or the one that is ours."""
    made = policy.manifest.training.get("config")
    algo = made.get("algo") if isinstance(made, Mapping) else None
    return algo if algo in ON_POLICY else "maskable_ppo"


def _kept(policy: Policy, group: str, *names: str) -> dict[str, Any]:
    """What a bundle keeps of how it was trained; other people's say nothing that we know."""
    made = policy.manifest.training.get("config")
    found = made.get(group) if isinstance(made, Mapping) else None
    return {name: found[name] for name in names if name in found} if isinstance(found, Mapping) else {}


def _network_fields(policy: NetworkPolicy, bundle: str) -> dict[str, Any]:
    """Of a run that goes on where a network stands."""
    action, made = policy.manifest.action, policy.manifest.architecture
    own = isinstance(made, Scorer)
    cloned = CLONED[action.kind]
    environment = {"flat": False, **_kept(policy, "environment", "reward")}
    if action.kind != "routing":
        environment["max_moves"] = action.max_moves
    if action.kind == "pool_sizing":
        environment["router"] = bundle
    if len(policy.prior):
        environment["prior"] = bundle
    return {
        "environment": environment,
        "learner": {
            **_kept(policy, "learner", "discount_s"),
            "num_envs": ENVS,
            "learning_rate": 3e-4,
            "learning_rate_end": 3e-5,
            **({"hidden": made.hidden, "start": bundle} if isinstance(made, Scorer) else {}),
        },
        "on_policy": {
            **_kept(policy, "on_policy", "trace_s"),
            "n_steps": UPDATE[action.kind],
            "start_kl": 0.1,
            "start_kl_end": 0.02,
        },
        "warm_start": {
            "teacher": bundle,
            "options": {},
            "fits": "value" if own else "both",
            "decisions": cloned // 3 if own else cloned,
            "rounds": 1 if own else 3,
        },
        "evaluation": {"temperature": action.temperature},
    }


def search_config(
    plan: Plan,
    cluster: ClusterConfig,
    traffic: Path,
    trace: Trace,
    windows: Windows,
    generations: int,
    seed: int,
) -> RunConfig:
    """The run: from the old bundle's weights, on the log's cluster and traffic.

    Args:
        plan: for the bundle.
        cluster: of the log.
        traffic: file of the trace.
        trace: the log as one.
        windows: how it is cut.
        generations: of the search, or updates of a network.
        seed: of the run.
    """
    steps = plan.steps(generations)
    own: dict[str, Any] = {
        "algo": plan.algo,
        "env": plan.env,
        "steps": steps,
        "seed": seed,
        "cluster": to_mapping(cluster),
        "environment": {"confine": plan.confine},
        "workload": {
            "trace": str(traffic),
            "warmup_s": windows.learn_s * WARM_UP,
            "episode_s": windows.learn_s * (1 - WARM_UP),
        },
        "evaluation": {"every": max(1, steps // 8), "windows": 4},
        "checkpoint": {"every": max(1, steps // 20)},
    }
    if plan.network:
        rate = traces.part(trace, "train").rate_per_s
        own["workload"] |= {
            "arrivals": "stamps",
            "rate_per_s": [min(SPEEDS) * rate, max(SPEEDS) * rate],
        }
        own["evaluation"]["rate_per_s"] = traces.part(trace, "validation").rate_per_s
    else:
        # Recorded stamps at each speed, and Poisson arrivals at the last two.
        loads = [f"stamps:{traffic}@x{speed:g}" for speed in SPEEDS]
        loads += [f"poisson:{traffic}@{speed * trace.rate_per_s:g}" for speed in SPEEDS[1:]]
        own["evolution"] = {
            "clusters": "own",
            "workloads": loads,
            "loads_judged": [1.0],
            "scenarios": 6,
        }
    for group, values in plan.fields.items():
        own[group] = {**own.get(group, {}), **values}
    return resolve(own, "improve")
