"""Who is imitated: schedulers by name, bundle or run folder."""

from pathlib import Path
from typing import Any

import numpy as np

from agents.evaluation import load_agent, load_config
from splitgym import schedulers
from splitgym.errors import ConfigError
from splitgym.evaluation import LOOKAHEAD, Contender, look_ahead
from splitgym.policy import complete, is_bundle, load, locate
from splitgym.schedulers import Residual
from splitgym.types import DecisionKind


def find_scheduler(text: str, options: dict[str, Any], sizing: bool = False) -> Any:
    """A routing or sizing scheduler.

    Args:
        text: a built-in scheduler's name, `pretrained:NAME`, the folder of a bundle or of a run, or
            `lookahead=K:` before one of these that routes.
        options: of a built-in scheduler.
        sizing: it resizes pools instead of routing.

    Raises:
        ConfigError: no such scheduler, or it decides something else.
    """
    if text.startswith(LOOKAHEAD):
        if sizing:
            raise ConfigError(f"{text} routes only: it cannot teach this")
        still = schedulers.sizing("static")
        return look_ahead(text, lambda name: Contender(name, find_scheduler(name, options), still)).routing
    bundle = is_bundle(text)
    if not bundle and not (Path(text) / "config.yaml").is_file():
        return (schedulers.sizing if sizing else schedulers.routing)(text, **options)
    if options:
        raise ConfigError(f"{text} has its own weights: it takes no options")
    if bundle:
        policy = load(locate(text))
        if not (policy.resizes if sizing else policy.routes):
            raise ConfigError(f"{text} {'routes' if sizing else 'resizes pools'} only: it cannot teach this")
        return complete(policy)[1 if sizing else 0]
    agent: Any = load_agent(text)
    kind = "routing" if isinstance(agent, Residual) else load_config(text).env
    if kind not in ("joint", "pool_sizing" if sizing else "routing"):
        raise ConfigError(f"{text} is a run of env {kind}: it cannot teach this")
    if isinstance(agent, Contender):  # of `es` or `cem`: a router beside a sizer
        return agent.sizing if sizing else agent.routing
    return agent


class SchedulerTeacher:
    """Schedulers as a teacher in an environment.

    Args:
        routing: says where requests go; None where the environment does not ask.
        sizing: says how many machines move; likewise.
    """

    def __init__(self, routing: Any = None, sizing: Any = None) -> None:
        self.routing, self.sizing = routing, sizing

    def begin(self, env: Any, seed: int) -> None:
        """See `Teacher`."""
        for scheduler in (self.routing, self.sizing):
            if scheduler is not None:
                if hasattr(scheduler, "attach"):  # a look-ahead copies the engine
                    scheduler.attach(env.engine)
                scheduler.reset(env.engine.view, seed)

    def action(self, env: Any) -> Any:
        """See `Teacher`. What the environment's mask forbids becomes what it would be mapped to."""
        view, decision, space = env.engine.view, env.decision, env.action_space
        sizes = int(getattr(space, "nvec", [0])[-1]) if self.routing is not None else int(space.n)
        top = sizes // 2
        if decision.kind == DecisionKind.RESIZE:
            wanted = int(self.sizing.resize(view))
            number = top + max(-top, min(top, wanted))
            allowed = np.flatnonzero(env.action_masks()[-sizes:])
            number = int(allowed[np.abs(allowed - number).argmin()])
            return number if self.routing is None else np.array([env.max_machines] * 2 + [number], np.int64)
        prompt, token = self.routing.route(view, decision.request)
        if self.sizing is not None:
            return np.array([prompt, token, top], np.int64)
        if len(space.shape) == 0:
            return int(prompt * env.max_machines + token)
        return np.array([prompt, token], np.int64)
