"""Look-ahead: the best candidates of an index or residual are tried in futures before one is chosen.

`lookahead=K:POLICY` takes the K pairs of machines that POLICY finds cheapest, lets each of them run in the
same drawn futures (`splitgym.sim.futures`), with POLICY routing what follows, and keeps the one that serves
most requests in time. It costs milliseconds a decision. It needs the simulator, so it is for evaluation; a
router has no engine to copy.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.errors import ConfigError
from splitgym.evaluation.attached import Attached, worth
from splitgym.evaluation.contenders import Contender
from splitgym.observation import prior_weights
from splitgym.observation.prior import fill_prior
from splitgym.schedulers import Residual
from splitgym.schedulers.index import HINGES, NUM_WEIGHTS, Index
from splitgym.schedulers.residual import index_weights
from splitgym.types import RequestInfo
from splitgym.view import ClusterView

LOOKAHEAD = "lookahead="
"""How the name of such a policy begins."""

_TEXT = re.compile(r"^lookahead=(\d+)(?:x(\d+))?:(.+)$")


@dataclass
class LookAhead(Attached):
    """A routing scheduler that tries its candidates.

    Attributes:
        base: names the candidates, and routes in the futures.
        candidates: K; 1 is `base`.
        futures: drawn a decision; all candidates meet the same ones.
        horizon_s: requests come for so long in a future, which then runs until all are done. Longer horizons
            drown what a candidate does in what follows (docs/experiments.md).
        margin: another candidate than the base's must be better by so many good requests a future.
        gap: candidates cost at most this much more than the base's; the rest is not tried.
        name: what tables call it.
    """

    base: Any
    candidates: int = 6
    futures: int = 4
    horizon_s: float = 0.5
    margin: float = 0.5
    gap: float = 1.0
    name: str = ""
    decisions: int = field(default=0, init=False)
    changed: int = field(default=0, init=False)
    """Decisions so far, and those that are not the base's."""

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.futures < 1:
            raise ConfigError("lookahead needs at least one candidate and one future")
        if not isinstance(self.base, (Index, Residual)):
            raise ConfigError(
                f"lookahead needs the costs of an index or residual, {self.base.name!r} has none"
            )
        self.name = self.name or f"lookahead={self.candidates}x{self.futures}:{self.base.name}"
        weights = self.base.params
        if isinstance(self.base, Index):
            weights = index_weights()
            weights[:NUM_WEIGHTS], weights[NUM_WEIGHTS : NUM_WEIGHTS + len(HINGES)] = self.base.params, HINGES
        self._prior = prior_weights(weights)

    def reset(self, view: ClusterView, seed: int) -> None:
        """Forget the last run."""
        self.base.reset(view, seed)
        self._rng = np.random.default_rng([seed, 11])

    def route(self, view: ClusterView, request: RequestInfo) -> tuple[int, int]:
        """(prompt machine, token machine)."""
        from splitgym.sim.futures import Future

        first: tuple[int, int] = tuple(map(int, self.base.route(view, request)))  # type: ignore[assignment]
        self.decisions += 1
        found = self._near(view, request, first)
        if len(found) == 1:
            return first
        assert self._engine is not None, "attach an engine first"
        values = np.zeros(len(found))
        for _ in range(self.futures):
            future = Future(self._engine, self.base, self.horizon_s, self._rng)
            for place, pair in enumerate(found):
                values[place] += worth(future.judge(pair))
        best = int(values.argmax())
        if values[best] <= values[0] + self.margin * self.futures:
            return first
        self.changed += 1
        return found[best]

    def _near(self, view: ClusterView, request: RequestInfo, first: tuple[int, int]) -> list[tuple[int, int]]:
        """The base's pair, then other candidates by cost. Of machines in the same state one is enough."""
        size = len(view.machine_row)
        costs: NDArray[np.float32] = np.zeros((size, 3), np.float32)
        fill_prior(view, request, self._prior, costs)
        total = costs[:, 0, None] + costs[None, :, 1]
        total[np.diag_indices(size)] = costs[:, 0] + costs[:, 2]
        total[view.prompt_allowed == 0, :] = np.inf
        total[:, view.token_allowed == 0] = np.inf
        found, seen = [first], {float(total[first])}
        limit = float(total[first]) + self.gap
        for place in np.argsort(total, axis=None, kind="stable"):
            p, t = divmod(int(place), size)
            cost = float(total[p, t])
            if len(found) == self.candidates or not cost <= limit:
                break
            if cost not in seen:
                seen.add(cost)
                found.append((p, t))
        return found


def look_ahead(text: str, find: Callable[[str], Contender]) -> Contender:
    """`lookahead=K:POLICY` or `lookahead=KxFUTURES:POLICY` as a contender.

    Args:
        text: of a command line.
        find: the contender that POLICY names.

    Raises:
        ConfigError: another text, or POLICY has no costs.
    """
    match = _TEXT.match(text)
    if match is None:
        raise ConfigError(f"policy {text!r}: expected lookahead=K:POLICY or lookahead=KxFUTURES:POLICY")
    candidates, futures, name = match.groups()
    found = find(name)
    base = getattr(found.routing, "routing", found.routing)  # a bundle holds its scheduler
    made = LookAhead(base, int(candidates), int(futures or 4), name=text)
    return replace(found, name=text, routing=made)
