"""What the environments share: engine, workload windows, observations, rewards, `info` and rendering."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from splitgym import saturation
from splitgym.cluster import Cluster
from splitgym.config import make
from splitgym.envs import render
from splitgym.envs.action import ActionCodec, Bools
from splitgym.envs.config import EnvConfig, resolve_cluster
from splitgym.envs.ledger import Ledger
from splitgym.envs.reward import Completion, make_reward
from splitgym.envs.workload import make_workload
from splitgym.errors import ConfigError
from splitgym.observation import Observation, Observer, observation_space, prior_weights
from splitgym.sim import Engine
from splitgym.trace import Trace
from splitgym.types import NS_PER_S, Decision, DecisionKind, to_ns

NO_DECISION = -1
"""`info["decision_id"]` of `reset`, and `info["next_decision_id"]` of the last step."""

_TRIES = 20


class SchedulingEnv(gym.Env[Observation, Any]):
    """Base of the environments. Subclasses say what is asked of the agent.

    Attributes:
        config: the arguments.
        cluster: the resolved cluster.
        engine: the simulator; its `view` is the state.
        prior: weights of the costs that observations hold; empty for none.
        decision: what the next action answers; None before `reset` and after the last step.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["ansi", "rgb_array", "human"],
        "render_fps": 4,
    }
    config_type: ClassVar[type[EnvConfig]] = EnvConfig
    confined: ClassVar[bool] = False
    """Default of `confine`."""

    def __init__(
        self, config: EnvConfig | None = None, *, render_mode: str | None = None, **options: Any
    ) -> None:
        if config is not None and options:
            raise ConfigError(f"give config or keyword arguments, not both ({', '.join(options)})")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(
                f"render_mode is {render_mode!r}, expected 'ansi', 'rgb_array', 'human' or None"
            )
        self.config = make(self.config_type, **options) if config is None else config
        self.render_mode = render_mode
        self.cluster = Cluster.resolve(resolve_cluster(self.config, self.confined))
        self.max_machines = self.config.max_machines or self.cluster.num_machines
        self.reward = make_reward(self.config.reward)
        duration_s = self.config.warmup_s + self.config.episode_s
        self.workload = make_workload(
            self.config.trace,
            self.config.part,
            self._rate(),
            self.config.arrivals,
            duration_s,
            self.cluster.num_machines,
        )
        self.end_ns = to_ns(duration_s)
        self.ledger = Ledger(self.cluster, to_ns(self.config.warmup_s), self.config.episode_s)
        self.prior = prior_weights(self.config.prior)
        self._observer = Observer(self.max_machines, self.prior)
        self._codec = self._make_codec()
        self.engine: Engine = self.make_engine()
        space = observation_space(self.max_machines, prior=len(self.prior) > 0)
        self.observation_space = space  # type: ignore[assignment]
        self.action_space = self._codec.space
        self.decision: Decision | None = None
        self._invalid_actions = 0
        self._live: render.Live | None = None
        self._names = [self.cluster.profile_of(m).machine.name for m in range(self.cluster.num_machines)]
        if render_mode == "human":
            self._live = render.Live(self._names, self.metadata["render_fps"])

    def _rate(self) -> float | tuple[float, float] | None:
        load, trace = self.config.load, self.config.trace
        if load is None:
            return self.config.rate_per_s
        name = trace if isinstance(trace, str) else getattr(trace, "name", type(trace).__name__)
        return saturation.rates(load, self.cluster.config, f"{self.config.arrivals}:{name}")

    # ---- what a subclass says -----------------------------------------------------------------------------

    def _make_codec(self) -> ActionCodec:
        raise NotImplementedError

    def make_engine(self) -> Engine:
        raise NotImplementedError

    def _cause(self, completion: Completion) -> int:
        """The decision that a completion is credited to."""
        return completion.decision_id

    # ---- the Gymnasium interface --------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode and advance to its first decision.

        Args:
            seed: of the windows, arrivals and inner schedulers; None goes on with the generator.
            options: {"trace": Trace} runs that trace instead of a drawn window: its times count from 0, and
                those before `warmup_s` are the warm-up.
        """
        super().reset(seed=seed)
        given = (options or {}).get("trace")
        if given is not None and not isinstance(given, Trace):
            raise ConfigError(f"reset option trace is {given!r}, expected a Trace")
        for _ in range(1 if given is not None else _TRIES):
            trace = self.workload.draw(self.np_random) if given is None else given
            self.engine.reset(trace, int(self.np_random.integers(2**31)))
            self._observer.reset(self.engine.view)
            self._begin()
            self.decision = self._next_decision()
            if self.decision is not None:
                break
        else:
            raise ConfigError(
                f"trace {trace.name!r}: no decision comes up before all is done; raise the rate"
            )
        self._invalid_actions = 0
        self.ledger.reset(self.engine.outcomes(), self.decision.now_ns)
        info = {
            "elapsed_s": self.decision.now_ns / NS_PER_S,
            "decision_id": NO_DECISION,
            "next_decision_id": self.decision.decision_id,
            "invalid_actions": 0,
        }
        self._show(now=True)
        return self._observer.observe(self.engine.view, self.decision.request), info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Answer the pending decision and advance to the next one, or to the end of all requests.

        Raises:
            ActionError: the action is outside the space.
        """
        answered = self.decision
        if answered is None:
            raise ResetNeeded("call reset() before step(), and again after the last step of an episode")
        decoded = self._codec.decode(action, self.engine.view, answered)
        self._invalid_actions += not decoded.valid
        self._answering(answered)
        self.engine.apply(decoded.action)
        self.decision = self._next_decision()
        last = self.decision is None
        outcomes = self.engine.outcomes()
        now_ns = outcomes.end_ns if self.decision is None else self.decision.now_ns
        happened = self.ledger.advance(outcomes, now_ns, last)
        terms = self.reward.terms(happened)
        info: dict[str, Any] = {
            "elapsed_s": happened.elapsed_s,
            "decision_id": answered.decision_id,
            "next_decision_id": NO_DECISION if self.decision is None else self.decision.decision_id,
            "reward_terms": terms,
            "outcomes_by_decision": [
                (self._cause(c), c.good, c.ttft_slowdown, c.tbt_slowdown) for c in happened.completions
            ],
            "invalid_actions": self._invalid_actions,
            "metrics": self.ledger.running(self.engine.view),
        }
        if last:
            info["episode_metrics"], info["requests"] = self.ledger.final(outcomes)
        self._show(now=last)
        request = None if self.decision is None else self.decision.request
        observation = self._observer.observe(self.engine.view, request)
        return observation, float(sum(terms.values())), False, last, info

    def action_masks(self) -> Bools:
        """Which actions are allowed now, as sb3-contrib's maskable learners expect (1-D, boolean)."""
        return self._codec.masks(self.engine.view, self.decision)

    def render(self) -> str | NDArray[np.uint8] | None:  # type: ignore[override]
        """`ansi`: text, one line a machine. `rgb_array`: the last minute as (height, 800, 3) uint8. `human`:
        the same in a window, which `reset` and `step` keep up to date. None without a mode."""
        if self.render_mode is None:
            gym.logger.warn("render() without a render_mode: give 'ansi', 'rgb_array' or 'human'")
            return None
        view = self.engine.view
        if self.render_mode == "ansi":
            return render.ansi(view, self._names, self._goodput)
        if self.render_mode == "rgb_array":
            return render.rgb_array(self.engine.outcomes(), view, self._names, self._goodput)
        self._show(now=True)
        return None

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._live is not None:
            self._live.close()

    # ---- inside -------------------------------------------------------------------------------------------

    @property
    def _goodput(self) -> float | None:
        return self.ledger.good / self.ledger.completed if self.ledger.completed else None

    def _show(self, now: bool) -> None:
        if self._live is not None:
            self._live.show(self.engine.outcomes(), self.engine.view, self._goodput, now)

    def _begin(self) -> None:
        """An episode begins."""

    def _answering(self, decision: Decision) -> None:
        """A decision of the agent is about to be applied."""

    def _next_decision(self) -> Decision | None:
        """The next question for the agent. After the window's end pools stay as they are while it drains."""
        while True:
            decision = self.engine.run_until_decision()
            if decision is None or decision.kind == DecisionKind.ROUTE or decision.now_ns < self.end_ns:
                return decision
            self.engine.apply(0)
