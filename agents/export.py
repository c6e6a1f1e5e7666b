"""From a run folder to a policy bundle: the network's arrays or ONNX, and golden vectors from torch."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from torch import nn

from agents.config import RunConfig, cluster_of
from agents.distributions import MASKED
from agents.evaluation import Agent, load_agent, load_config, machines_of
from agents.evolution import load_evolved
from agents.policies import PRIOR_COLUMNS, DecisionNet
from agents.routers import compiled_router, spec_of
from agents.runs import RunFolder
from splitgym.cluster import Cluster
from splitgym.config import to_mapping
from splitgym.envs.action import SizingActions
from splitgym.errors import ConfigError
from splitgym.observation import CLUSTER_FEATURES, MACHINE_FEATURES, Observation, Observer
from splitgym.policy import Policy, export_schedulers, write_bundle
from splitgym.policy.choose import choose, choose_pair
from splitgym.policy.golden import MARGIN, made_up_states, short
from splitgym.policy.manifest import Action, Golden, Mlp, Onnx, Partner, SchedulerSpec, Scorer
from splitgym.policy.save import check_free

VECTORS = 16
STATES = 200
"""States tried for golden vectors; those whose best two scores lie too close are passed over."""
PARTS = ("cluster", "machines", "mask", "request")
"""Order in which stable-baselines3 joins the parts of a Dict observation: by name."""


def export_run(
    run: str | Path, folder: str | Path, *, which: str = "best", name: str = "", onnx: bool = False
) -> Policy:
    """Write the agent of a run folder as a bundle, and load it again.

    Args:
        run: the run folder.
        folder: must not exist, or be empty.
        which: "best" or "latest".
        name: what tables call it; the run folder's name if empty.
        onnx: write `policy.onnx` instead of `weights.npz`.

    Raises:
        ConfigError: no run folder, or no model in it.
        PolicyError: the folder is taken, or the bundle does not decide as torch does.
    """
    check_free(Path(folder))
    config = load_config(run)
    if config.algo == "recurrent_ppo":
        raise ConfigError(f"{run}: bundles have no memory, so what recurrent_ppo made cannot be exported")
    agent = load_agent(run, which)
    if not isinstance(agent, Agent):
        return _export_evolved(run, folder, which, name, onnx, config)
    net = agent.model.q_net if hasattr(agent.model, "q_net") else agent.model.policy.decision_net
    any_number = isinstance(net, DecisionNet)
    made: Any
    weights, model = None, None
    if not any_number:
        weights = _layers(net.q_net)
        made = Mlp("mlp", PARTS, len(weights) // 2)  # type: ignore[arg-type]
    elif onnx:
        model, made = to_onnx(net, machines_of(config)), Onnx("onnx", net.with_prior)
        weights = {"prior": net.prior.numpy()} if net.with_prior else None
    else:
        weights = {key: array.numpy() for key, array in net.state_dict().items()}
        made = Scorer("scorer", config.learner.hidden, net.with_prior)
    cluster = cluster_of(config)
    return write_bundle(
        folder,
        name=name or Path(run).resolve().name,
        architecture=made,
        action=Action(
            kind=config.env,
            max_machines=None if any_number else machines_of(config),
            max_moves=config.environment.max_moves,
            min_pool_machines=cluster.min_pool_machines,
            confine=cluster.confine,
            temperature=agent.temperature if any_number else 0.0,
        ),
        golden=Golden("observation", tuple(_vectors(config, agent, net))),
        weights=weights,
        onnx=model,
        partner=_partner(config),
        slo=cluster.slo,
        training=_training(config, RunFolder(run), which),
        metrics=_metrics(RunFolder(run), which),
    )


def _export_evolved(
    run: str | Path, folder: str | Path, which: str, name: str, onnx: bool, config: RunConfig
) -> Policy:
    """A run of `es` or `cem` is a scheduler with weights, or two."""
    if onnx:
        raise ConfigError(
            f"{run}: {config.algo} trains no network of its own to write as ONNX; leave out --onnx"
        )
    routing, sizing = load_evolved(run, which)
    about: dict[str, Any] = {}
    if routing is None:
        about["partner"] = spec_of(compiled_router(config.environment.router))
    return export_schedulers(
        routing,
        sizing,
        folder,
        name=name or Path(run).resolve().name,
        confine=cluster_of(config).confine and config.env != "routing",
        training=_training(config, RunFolder(run), which),
        metrics=_metrics(RunFolder(run), which),
        **about,
    )


def _partner(config: RunConfig) -> Partner:
    """As `agents.evaluation.contender` completes an agent."""
    if config.env == "routing":
        return Partner(sizing=SchedulerSpec("static"))
    if config.env == "pool_sizing":
        return Partner(routing=spec_of(compiled_router(config.environment.router)))
    return Partner()


def _training(config: RunConfig, run: RunFolder, which: str) -> dict[str, Any]:
    """What it learned with."""
    meta = json.loads((run.path / "meta.json").read_text()) if (run.path / "meta.json").is_file() else {}
    groups = [(g.machine, g.tensor_parallel) for g in config.cluster.machines]
    return {
        "profiles": sorted({f"{config.cluster.model}/{machine}/tp{tp}" for machine, tp in groups}),
        "trace": config.workload.trace,
        "which": which,
        "steps": run.progress().get("steps"),
        "git_revision": meta.get("git_revision"),
        "versions": meta.get("versions", {}),
        "config": to_mapping(config),
    }


def _metrics(run: RunFolder, which: str) -> dict[str, Any]:
    """Of the best model on its validation windows; JSON knows no NaN."""
    file = run.best / "metrics.json"
    if which != "best" or not file.is_file():
        return {}
    found = json.loads(file.read_text())
    return {key: value if np.isfinite(value) else None for key, value in found.items()}


def _layers(net: nn.Sequential) -> dict[str, Any]:
    """Weights of the linear layers, numbered from 0."""
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    found = {}
    for number, layer in enumerate(linear):
        found[f"{number}.weight"] = layer.weight.detach().numpy()
        found[f"{number}.bias"] = layer.bias.detach().numpy()
    return found


def torch_scores(net: Any, observation: Observation, kind: str) -> Any:
    """Scores as torch computes them: (M, M) for `route`, (2K + 1,) for `resize`.

    Args:
        net: a `DecisionNet` or a DQN network.
        observation: of M machines, padding included.
    """
    batch = {key: th.as_tensor(np.asarray(value)[None]) for key, value in observation.items()}
    machines = len(observation["mask"])
    with th.no_grad():
        if not isinstance(net, DecisionNet):
            values = net(batch)[0].numpy()
            return values.reshape(machines, machines) if kind == "route" else values
        pair, size = net(batch)
    chosen = pair[0, :machines, :machines] if kind == "route" else size[0]
    return chosen.numpy()


def _vectors(config: RunConfig, agent: Agent, net: Any) -> list[dict[str, Any]]:
    """Golden vectors: torch's answers to made-up states that rounding cannot turn."""
    cluster = Cluster.resolve(cluster_of(config))
    m, size = cluster.num_machines, machines_of(config)
    rows = m if isinstance(net, DecisionNet) else size
    sizes = SizingActions(config.environment.max_moves, config.cluster.min_pool_machines)
    kinds = {"routing": ["route"], "pool_sizing": ["resize"], "joint": ["route", "resize"]}[config.env]
    observer = Observer(size, agent.prior)
    kept: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    margin: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number, (view, request) in enumerate(made_up_states(cluster, STATES)):
        if number == 0:
            observer.reset(view)
        kind = kinds[number % len(kinds)]
        seen = observer.observe(view, request if kind == "route" else None)
        scores = torch_scores(net, seen, kind)
        vector: dict[str, Any] = {"kind": kind}
        if kind == "route":
            scores = scores[:rows, :rows]
            allowed = (view.prompt_allowed != 0)[:, None] & (view.token_allowed != 0)[None, :]
            best = np.sort(scores[:m, :m][allowed])
            vector |= {f"{p}_allowed": getattr(view, f"{p}_allowed").tolist() for p in ("prompt", "token")}
            vector["decision"] = list(choose_pair(scores, view.prompt_allowed, view.token_allowed))
        else:
            mask = sizes.masks(view, None)
            best = np.sort(scores[mask])
            vector["sizes_allowed"] = mask.astype(int).tolist()
            vector["decision"] = choose(scores, mask, 0.0, None)
        by_machine = ("machines", "mask", "prior")
        parts = {key: short(v[:rows] if key in by_machine else v) for key, v in seen.items()}
        kept[kind].append({**vector, "observation": parts, "scores": short(np.ravel(scores))})
        margin[kind].append(float(best[-1] - best[-2]) if len(best) > 1 else np.inf)
    vectors = []
    for kind in kinds:
        clear = [v for v, gap in zip(kept[kind], margin[kind]) if gap >= MARGIN]
        # An untrained network is sure of nothing: then the clearest ones.
        order = np.argsort(margin[kind])[::-1]
        vectors += (clear or [kept[kind][i] for i in order])[: VECTORS // len(kinds)]
    return vectors


class _Exported(nn.Module):
    """A `DecisionNet` in operations that ONNX has, the machine axis left open.

    Args:
        net: the network.
    """

    def __init__(self, net: DecisionNet) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, machines: th.Tensor, cluster: th.Tensor, request: th.Tensor, mask: th.Tensor, *prior: th.Tensor
    ) -> tuple[th.Tensor, ...]:
        net = self.net
        seen = {"machines": machines, "cluster": cluster, "request": request, "mask": mask}
        if prior:
            seen["prior"] = prior[0]
        code, context = net.encoder(seen)
        found = []
        if net.shape.places:
            prompt, token, both = net.machine_scores(seen, code, context).unbind(dim=2)
            index = th.cumsum(th.ones_like(mask), dim=1)
            same = (index.unsqueeze(2) == index.unsqueeze(1)).to(both.dtype)
            pair = prompt.unsqueeze(2) + token.unsqueeze(1) + both.unsqueeze(2) * same
            real = mask > 0
            found.append(pair.masked_fill(~(real.unsqueeze(2) & real.unsqueeze(1)), MASKED))
        if net.shape.sizes:
            found.append(net.sizes(context))
        return tuple(found)


def to_onnx(net: DecisionNet, machines: int) -> bytes:
    """The network as ONNX: inputs and outputs as `splitgym.policy.manifest.Onnx` says.

    Args:
        net: the network.
        machines: of the example that it is traced with.

    Raises:
        ModuleNotFoundError: the `onnx` package is missing.
    """
    encoder = net.encoder
    cluster = len(CLUSTER_FEATURES)
    example: tuple[th.Tensor, ...] = (
        th.zeros(1, machines, len(MACHINE_FEATURES)),
        th.zeros(1, cluster),
        th.zeros(1, encoder.shared.in_features - cluster),
        th.ones(1, machines),
    )
    outputs = ["pair"] * bool(net.shape.places) + ["size"] * bool(net.shape.sizes)
    inputs = ["machines", "cluster", "request", "mask"]
    axes = {"machines": {1: "M"}, "mask": {1: "M"}}
    if encoder.with_prior:
        inputs.append("prior")
        example = (*example, th.zeros(1, machines, PRIOR_COLUMNS))
        axes["prior"] = {1: "M"}
    if net.shape.places:
        axes["pair"] = {1: "M", 2: "M"}
    made = io.BytesIO()
    with warnings.catch_warnings():
        # The older exporter needs no further package; torch says that a newer one exists.
        warnings.simplefilter("ignore")
        th.onnx.export(
            _Exported(net).eval(),
            example,
            made,  # type: ignore[arg-type]
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    return made.getvalue()
