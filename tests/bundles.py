"""Policy bundles and short training runs to test with, and what changes a bundle."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from splitgym import policy
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, MachineGroup
from splitgym.observation import CLUSTER_FEATURES, MACHINE_FEATURES, REQUEST_FEATURES, Observer
from splitgym.policy.choose import choose_pair
from splitgym.policy.golden import made_up_states
from splitgym.policy.runtimes import ScorerRuntime

SMALL = ClusterConfig(
    machines=(MachineGroup(count=2, pool="prompt"), MachineGroup(count=2, pool="token")),
)
LARGE = ClusterConfig(
    machines=(MachineGroup(count=7, pool="prompt"), MachineGroup(count=5, pool="token")),
)


def centre(agent, env: str) -> None:
    """Shift the last biases so that a random network does not always take the same decision."""
    import torch

    from agents.export import torch_scores

    dqn = hasattr(agent.model, "q_net")
    net = agent.model.q_net if dqn else agent.model.policy.decision_net
    if env == "routing" and not dqn:
        return
    last = net.q_net[-1] if dqn else net.sizes[-1]
    kind = "route" if env == "routing" else "resize"
    cluster = Cluster.resolve(SMALL)
    with torch.no_grad():
        last.weight.normal_(std=1.0)
        observer = Observer(agent._observer.max_machines)
        seen = [observer.observe(v, r if kind == "route" else None) for v, r in made_up_states(cluster, 40)]
        scores = np.stack([np.ravel(torch_scores(net, s, kind)) for s in seen])
        last.bias -= torch.as_tensor(scores.mean(axis=0))


def make_run(folder: Path, env: str, algo: str, **over):
    """A run folder with a random network, as if trained; the agent that is in it."""
    pytest.importorskip("torch")
    from agents.evaluation import load_agent
    from agents.runs import RunFolder
    from splitgym.config import to_mapping
    from tests.test_agents_evaluation import config, fresh_agent

    over.setdefault("evaluation", {"every": 256, "windows": 1, "temperature": 0.0})
    made = config(env, algo, **over)
    agent = fresh_agent(made)
    centre(agent, env)
    run = RunFolder(folder)
    run.create(to_mapping(made), 0)
    run.save_best(agent.model, {"goodput": 0.5, "odd": float("nan")})
    return made, load_agent(folder)


def scorer_bundle(folder: Path, hidden: int = 8) -> Path:
    """A small random network as a bundle, without torch."""
    from splitgym.policy.golden import short
    from splitgym.policy.manifest import Action, Golden, Scorer

    random, shared = np.random.default_rng(0), len(CLUSTER_FEATURES) + len(REQUEST_FEATURES)
    shapes = {
        "encoder.own.weight": (hidden, len(MACHINE_FEATURES)),
        "encoder.own.bias": (hidden,),
        "encoder.shared.weight": (hidden, shared),
        "encoder.second.weight": (hidden, hidden),
        "encoder.second.bias": (hidden,),
        "encoder.context.weight": (hidden, 2 * hidden + shared),
        "encoder.context.bias": (hidden,),
        "machine.weight": (hidden, hidden),
        "machine.bias": (hidden,),
        "around.weight": (hidden, hidden),
        "scores.weight": (3, hidden),
        "scores.bias": (3,),
    }
    weights = {name: random.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    runtime = ScorerRuntime(weights, hidden, True, 0)
    cluster = Cluster.resolve(SMALL)
    observer, vectors = Observer(4), []
    for view, request in made_up_states(cluster, 3):
        seen = observer.observe(view, request)
        scores = runtime.pair_scores(seen)
        vectors.append(
            {
                "kind": "route",
                "observation": {name: short(array) for name, array in seen.items()},
                "prompt_allowed": [1] * 4,
                "token_allowed": [1] * 4,
                "scores": short(scores.ravel()),
                "decision": list(choose_pair(scores, view.prompt_allowed, view.token_allowed)),
            }
        )
    policy.write_bundle(
        folder,
        name="small",
        architecture=Scorer("scorer", hidden),
        action=Action("routing"),
        golden=Golden("observation", tuple(vectors)),
        weights=weights,
    )
    return folder


def edit(folder: Path, change) -> None:
    """Change the manifest as plain data."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Change a file and its hash in the manifest: what somebody does who means harm."""
    (folder / name).write_bytes(content)
    edit(folder, lambda data: data["files"].update({name: hashlib.sha256(content).hexdigest()}))


def packed(arrays: dict) -> bytes:
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def weights_of(folder: Path) -> dict:
    with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
        return dict(arrays)
