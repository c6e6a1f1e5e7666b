"""What a loaded bundle is: it decides as a scheduler does, and replays its golden vectors."""

from typing import Any

import numpy as np

from splitgym.envs.action import SizingActions, next_allowed
from splitgym.errors import PolicyError
from splitgym.observation import Observation, Observer, prior_weights
from splitgym.policy.choose import choose, choose_pair
from splitgym.policy.golden import SCORE_TOLERANCE, after, fill_view, read_request
from splitgym.policy.manifest import Heuristic, Manifest
from splitgym.policy.named import make_routing, make_sizing
from splitgym.policy.runtimes import Runtime, Weights, as_observation
from splitgym.types import RequestInfo
from splitgym.view import ClusterView


class Policy:
    """A loaded bundle. It obeys both scheduler protocols; `routes` and `resizes` say what it is for.

    Attributes:
        manifest: see there.
        name: what tables call it.
        sha256: of the manifest, which holds the hashes of all else: the bundle's identity.
    """

    def __init__(self, manifest: Manifest, sha256: str) -> None:
        self.manifest = manifest
        self.name = manifest.name
        self.sha256 = sha256

    @property
    def identity(self) -> str:
        """Tells this policy from every other, for sweeps that keep their runs."""
        return self.sha256

    @property
    def routes(self) -> bool:
        """It chooses machines for requests."""
        return self.manifest.action.kind != "pool_sizing"

    @property
    def resizes(self) -> bool:
        """It moves machines between pools."""
        return self.manifest.action.kind != "routing"

    def reset(self, view: ClusterView, seed: int) -> None:
        """Forget the last run. Of a joint policy, the engine calls this once for each role.

        Raises:
            ConfigError: the cluster has more machines than the policy knows.
        """
        raise NotImplementedError

    def route(self, view: ClusterView, request: RequestInfo) -> tuple[int, int]:
        """(prompt machine, token machine).

        Raises:
            PolicyError: its scores are not finite.
        """
        raise NotImplementedError

    def resize(self, view: ClusterView) -> int:
        """Machines to move from the token to the prompt pool; negative for the other way."""
        raise NotImplementedError

    def check(self, vector: dict[str, Any], view: ClusterView | None) -> None:
        """Replay one golden vector.

        Raises:
            PolicyError: another decision; says what was expected and what came.
        """
        raise NotImplementedError


class NetworkPolicy(Policy):
    """A network over observations.

    Args:
        runtime: what scores decisions.
        prior: weights of the scheduler whose costs observations hold; None for observations without.
    """

    def __init__(self, manifest: Manifest, sha256: str, runtime: Runtime, prior: Any = None) -> None:
        super().__init__(manifest, sha256)
        self.runtime = runtime
        action = manifest.action
        self._temperature = action.temperature
        self._sizes = SizingActions(action.max_moves, action.min_pool_machines)
        self.prior = prior_weights(prior)
        self._observer = Observer(action.max_machines or 1, self.prior)
        self._random = np.random.default_rng(0)

    def reset(self, view: ClusterView, seed: int) -> None:
        wanted = self.manifest.action.max_machines or len(view.machine_row)
        if wanted != self._observer.max_machines:
            self._observer = Observer(wanted, self.prior)
        self._observer.reset(view)
        self._random = np.random.default_rng(seed)

    def observe(self, view: ClusterView, request: RequestInfo | None) -> Observation:
        """What it sees; call it once a decision, see `Observer.observe`."""
        return self._observer.observe(view, request)

    def route(self, view: ClusterView, request: RequestInfo) -> tuple[int, int]:
        return self.route_observed(self.observe(view, request), view)

    def route_observed(self, observation: Observation, view: ClusterView) -> tuple[int, int]:
        """(prompt machine, token machine) for an observation of `view`."""
        prompt_allowed, token_allowed = view.prompt_allowed, view.token_allowed
        scores = self.runtime.pair_scores(observation)
        p, t = choose_pair(scores, prompt_allowed, token_allowed, self._temperature, self._random)
        if not (prompt_allowed[p] and token_allowed[t]):  # only where a phase has no machine at all
            p, t = next_allowed(prompt_allowed, p), next_allowed(token_allowed, t)
        return p, t

    def resize(self, view: ClusterView) -> int:
        scores = self.runtime.size_scores(self.observe(view, None))
        allowed = self._sizes.masks(view, None)
        number = choose(scores, allowed, self._temperature, self._random)
        return self._sizes.settle(view, number)[0]

    def check(self, vector: dict[str, Any], view: ClusterView | None) -> None:
        observation = as_observation(vector["observation"], prior=len(self.prior) > 0)
        scores = self.scores(vector["kind"], observation)
        expected = np.asarray(vector["scores"], np.float32).reshape(scores.shape)
        off = float(np.abs(scores - expected).max())
        if not off <= SCORE_TOLERANCE:
            raise PolicyError(f"its scores differ by {off:.3g} from those at export")
        decision: Any
        if vector["kind"] == "route":
            prompt, token = (
                np.asarray(vector[f"{phase}_allowed"], np.uint8) for phase in ("prompt", "token")
            )
            decision = list(choose_pair(scores, prompt, token))
        else:
            decision = choose(scores, np.asarray(vector["sizes_allowed"], np.uint8), 0.0, None)
        if decision != vector["decision"]:
            raise PolicyError(f"it decides {decision}, at export it was {vector['decision']}")

    def scores(self, kind: str, observation: Observation) -> Any:
        """(M, M) scores of pairs for `route`, (2K + 1,) of sizes for `resize`."""
        return (self.runtime.pair_scores if kind == "route" else self.runtime.size_scores)(observation)


class SchedulerPolicy(Policy):
    """Built-in schedulers by name.

    Args:
        arrays: options that are arrays, from `weights.npz`.
    """

    def __init__(self, manifest: Manifest, sha256: str, arrays: Weights) -> None:
        super().__init__(manifest, sha256)
        made = manifest.architecture
        assert isinstance(made, Heuristic)
        self.routing = self.sizing = None
        if made.routing is not None:
            self.routing = make_routing(made.routing, arrays)
        if made.sizing is not None:
            self.sizing = make_sizing(made.sizing, arrays)

    def reset(self, view: ClusterView, seed: int) -> None:
        for scheduler in (self.routing, self.sizing):
            if scheduler is not None:
                scheduler.reset(view, seed)

    def route(self, view: ClusterView, request: RequestInfo) -> tuple[int, int]:
        if self.routing is None:
            raise PolicyError(f"policy {self.name} resizes pools; it does not route")
        p, t = self.routing.route(view, request)
        return int(p), int(t)

    def resize(self, view: ClusterView) -> int:
        if self.sizing is None:
            raise PolicyError(f"policy {self.name} routes; it does not resize pools")
        return int(self.sizing.resize(view))

    def check(self, vector: dict[str, Any], view: ClusterView | None) -> None:
        assert view is not None
        fill_view(view, vector["view"])
        self.reset(view, 0)
        decision: Any
        if vector["kind"] == "route":
            decision = list(self.route(view, read_request(vector["request"])))
        elif "before" in vector:
            decision = after(self, view, vector["before"])
        else:
            decision = self.resize(view)
        if decision != vector["decision"]:
            raise PolicyError(f"it decides {decision}, at export it was {vector['decision']}")
