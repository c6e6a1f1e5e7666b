"""A trained run as a scheduler: what `splitgym.evaluation` compares and the engines call.

The observation and the masks come from `splitgym.observation` and the action codecs of `splitgym.envs`, from
the view alone, as in training. A run is loaded without unpickling: the model is built from the folder's
configuration, and only tensors are read from its zip.
"""

import hashlib
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from agents.config import EVOLVED, RunConfig
from agents.evolution import load_evolved
from agents.models import build_model, load_parameters
from agents.priors import find_prior
from agents.recurrent import forget
from agents.routers import compiled_router
from agents.runs import PRIOR_FILE, RunFolder
from splitgym import schedulers
from splitgym.config import load_yaml, parse_machines
from splitgym.envs.action import JointActions, RoutingActions, SizingActions
from splitgym.errors import ConfigError
from splitgym.evaluation import Contender
from splitgym.observation import Observer, observation_space, prior_weights
from splitgym.schedulers import Residual
from splitgym.types import Decision, DecisionKind, RequestInfo
from splitgym.view import ClusterView

Codec = RoutingActions | SizingActions | JointActions


def make_codec(config: RunConfig, max_machines: int) -> Codec:
    """The action space of a run's environment."""
    env, cluster = config.environment, config.cluster
    if config.env == "routing":
        return RoutingActions(max_machines, flat=env.flat)
    if config.env == "pool_sizing":
        return SizingActions(env.max_moves, cluster.min_pool_machines)
    return JointActions(max_machines, env.max_moves, cluster.min_pool_machines)


class Agent:
    """A policy that routes, resizes or both. It obeys both scheduler protocols; use it for what it was
    trained for.

    Args:
        model: an SB3 model of ours.
        codec: its action space.
        max_machines: M of its spaces.
        name: what tables call it.
        temperature: 0 takes the likeliest decision; above that, decisions are drawn with the seed of `reset`.
    """

    def __init__(
        self, model: Any, codec: Codec, max_machines: int, name: str = "agent", temperature: float = 0.0
    ) -> None:
        self.model = model
        self.codec = codec
        self.name = name
        self.temperature = temperature
        net: Any = getattr(model.policy, "decision_net", None)
        self.prior = prior_weights(net.prior.numpy() if getattr(net, "with_prior", False) else None)
        self._observer = Observer(max_machines, self.prior)
        self._random = th.Generator()
        self._decision_id = 0

    @cached_property
    def identity(self) -> str:
        """Tells this policy from every other: a digest of its parameters and of how it draws decisions."""
        digest = hashlib.sha256(repr((type(self.codec).__name__, self.temperature)).encode())
        for name, tensor in self.model.policy.state_dict().items():
            digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    def reset(self, view: ClusterView, seed: int) -> None:
        """Forget the last run. Of a joint agent, the engine calls this once for each role."""
        self._observer.reset(view)
        self._random.manual_seed(seed)
        forget(self.model.policy)
        self._decision_id = 0

    def route(self, view: ClusterView, request: RequestInfo) -> tuple[int, int]:
        """(prompt machine, token machine)."""
        action = self._decide(view, DecisionKind.ROUTE, request)
        assert isinstance(action, tuple)
        return action

    def resize(self, view: ClusterView) -> int:
        """Machines to move from the token to the prompt pool; negative for the other way."""
        action = self._decide(view, DecisionKind.RESIZE, None)
        assert isinstance(action, int)
        return action

    def _decide(self, view: ClusterView, kind: DecisionKind, request: RequestInfo | None) -> Any:
        decision = Decision(kind, self._decision_id, int(view.clock[0]), request)
        self._decision_id += 1
        observation = self._observer.observe(view, request)
        mask = self.codec.masks(view, decision)
        chosen = decide(self.model, observation, mask, self.temperature, self._random)
        return self.codec.decode(chosen, view, decision).action


def decide(
    model: Any, observation: dict[str, Any], mask: Any, temperature: float, random: th.Generator | None = None
) -> Any:
    """One action for one observation, masked whatever the algorithm."""
    batch = {key: np.asarray(value)[None] for key, value in observation.items()}
    if hasattr(model, "q_net"):
        with th.no_grad():
            values = model.q_net({key: th.as_tensor(array) for key, array in batch.items()})[0].numpy()
        return int(np.where(mask, values, -np.inf).argmax())
    action = model.policy.decide(batch, mask[None], temperature, random)[0]
    return action if action.ndim else int(action)


def load_config(run: str | Path) -> RunConfig:
    """The resolved configuration of a run folder.

    Raises:
        ConfigError: no run folder of ours.
    """
    folder = RunFolder(run)
    folder.require()
    return with_own_prior(load_yaml(RunConfig, folder.config_file), folder)


def with_own_prior(config: RunConfig, run: RunFolder) -> RunConfig:
    """The configuration with the prior that the run folder keeps, whatever it was read from."""
    file = run.path / PRIOR_FILE
    if config.environment.prior is None or not file.is_file():
        return config
    return replace(config, environment=replace(config.environment, prior=str(file)))


def load_agent(
    run: str | Path, which: str = "best", temperature: float | None = None, name: str = ""
) -> "Agent | Residual | Contender":
    """The agent of a run folder, for `splitgym.evaluation` and the engines; of an evolved one that resizes, a
    contender with its router.

    Args:
        run: the folder. A path to a zip is refused: its configuration would be unknown.
        which: "best" (by validation goodput) or "latest"; without a best one the latest is taken.
        temperature: None takes the run's own; without effect on `es` and `cem`.
        name: what tables call it; the folder's name if empty.

    Raises:
        ConfigError: no run folder, or nothing was saved in it yet.
    """
    path = Path(run)
    if path.suffix == ".zip" or path.is_file():
        raise ConfigError(
            f"{path}: give the run folder that train.py wrote, not a model file; a model without its "
            "config.yaml cannot be checked"
        )
    config = load_config(path)
    if config.algo in EVOLVED:
        name = name or path.name
        routing, sizing = load_evolved(path, which, name)
        if routing is not None and sizing is not None:
            return Contender(name, routing, sizing)
        if isinstance(routing, Residual):
            return routing
        assert sizing is not None
        return Contender(name, compiled_router(config.environment.router), sizing)
    folder = RunFolder(path)
    latest = folder.latest_checkpoint()
    places = [folder.best] if which == "best" else []
    places += [latest] if latest is not None else []
    for place in places:
        if (place / "model.zip").is_file():
            break
    else:
        raise ConfigError(f"{path} holds no model yet: train for at least one checkpoint")
    max_machines = machines_of(config)
    codec = make_codec(config, max_machines)
    prior = find_prior(config.environment.prior)
    space = observation_space(max_machines, prior=len(prior) > 0)
    model = build_model(config, space, codec.space, prior=prior.tolist())
    load_parameters(model, place / "model.zip")
    if temperature is None:
        temperature = config.evaluation.temperature
    return Agent(model, codec, max_machines, name or path.name, temperature)


def machines_of(config: RunConfig) -> int:
    """M of the run's spaces."""
    many = config.environment.worlds == "many" and config.evolution.clusters == "many"
    if many and config.environment.max_machines is None:
        judged = [sum(g.count for g in parse_machines(text)) for text in config.evolution.clusters_judged]
        return max(config.evolution.machines[1], *judged)
    return config.environment.max_machines or config.cluster.num_machines


def contender(agent: "Agent | Residual | Contender", config: RunConfig) -> Contender:
    """The agent with what completes it: the run's router to a sizing agent, no resizing to a routing one."""
    if isinstance(agent, Contender):
        return agent
    if config.env == "routing":
        return Contender(agent.name, agent, schedulers.sizing("static"))
    if config.env == "pool_sizing":
        assert isinstance(agent, Agent)
        return Contender(agent.name, compiled_router(config.environment.router), agent)
    assert isinstance(agent, Agent)
    return Contender(agent.name, agent, agent)
