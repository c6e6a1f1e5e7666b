"""The SLO-aware index scheduler: the strongest known heuristic.

Over all pairs (p, t) of machines it minimises predicted TTFT and TBT, each relative to its SLO, hinges where
an SLO is about to be missed, and the harm done to others. Everything comes from the profile, the router's own
counters and the recent mean output. The weights are the options; docs/schedulers.md has the formula.
"""

from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from splitgym.compile_cache import numba
from splitgym.config import STRICT
from splitgym.schedulers.builtin import CompiledRouting
from splitgym.schedulers.choose import PROMPT_COST, SAME_COST, SPLIT_COST, best_pair
from splitgym.schedulers.predict import (
    HARM_PROMPT,
    HARM_TOKEN,
    NUM_PREDICTIONS,
    PROMPT_TIME,
    TBT_SAME,
    TBT_SPLIT,
    TTFT,
    WAIT_S,
    predict,
)

Weight = Annotated[float | None, Field(allow_inf_nan=False)]

NUM_WEIGHTS = 10
PRESETS = {
    "default": (1.0, 1.0, 1.0, 3.0, 3.0, 0.3, 1.0, 1.0, 0.0, 0.0),
    "tuned": (0.71, 0.45, 1.57, 0.96, 0.72, 1.35, 0.39, 0.73, 0.20, 0.67),
}
"""w0 to w9. `tuned` was found by the cross-entropy method on 8 H100 machines."""

HINGES = (4.0, 0.8, 6.0, 0.85)
"""Slope and start of the TTFT's, then of the TBT's: it rises from `start` of an SLO by `slope`, up to 1."""
MAX_HOPELESS_WAIT_S = 20.0


@numba.njit(cache=True)
def _hinge(value, slope, start):
    return min(1.0, max(0.0, slope * (value - start)))


@numba.njit(cache=True)
def _tbt_cost(weights, hinges, tbt):
    return weights[2] * tbt + weights[4] * _hinge(tbt, hinges[2], hinges[3])


@numba.njit(cache=True)
def predicted_costs(view, x, weights, hinges, costs):
    """`index_costs` from predictions at hand.

    Args:
        view: `ClusterView` of M machines.
        x: (M, NUM_PREDICTIONS) of `predict`, with interference at weight w0.
        weights: (NUM_WEIGHTS,) w0 to w9.
        hinges: slope and start of the TTFT's, slope and start of the TBT's.
        costs: (3, M) float64, filled.
    """
    best_ttft = np.inf
    for m in range(view.machine_row.shape[0]):
        costs[PROMPT_COST, m] = costs[SPLIT_COST, m] = costs[SAME_COST, m] = np.inf
        if view.prompt_allowed[m]:
            best_ttft = min(best_ttft, x[m, TTFT])
            costs[PROMPT_COST, m] = (
                weights[1] * x[m, TTFT]
                + weights[3] * _hinge(x[m, TTFT], hinges[0], hinges[1])
                + weights[5] * x[m, HARM_PROMPT]
                + weights[8] * x[m, PROMPT_TIME]
            )
        if view.token_allowed[m]:
            harm = weights[7] * x[m, HARM_TOKEN]
            costs[SPLIT_COST, m] = _tbt_cost(weights, hinges, x[m, TBT_SPLIT]) + harm
            costs[SAME_COST, m] = _tbt_cost(weights, hinges, x[m, TBT_SAME]) + harm
    if weights[9] != 0.0 and best_ttft > weights[6]:
        # Hopeless: it misses its SLO anywhere, so it queues where it does no further harm.
        for m in range(view.machine_row.shape[0]):
            if view.prompt_allowed[m]:
                costs[PROMPT_COST, m] -= weights[9] * min(x[m, WAIT_S], MAX_HOPELESS_WAIT_S)


@numba.njit(cache=True)
def index_costs(view, request, weights, costs):
    """Fill the costs c(p, t) = A(p) + B(t) of a request.

    Args:
        view: `ClusterView` of M machines.
        request: `RequestInfo`.
        weights: (NUM_WEIGHTS,) w0 to w9.
        costs: (3, M) float64, filled: A(p), B(t) for p != t, B(t) for p = t; infinite where not allowed.

    B for p = t holds the decode, its interference, the memory penalty and the harm, as for p != t, but
    neither a transfer nor a wait on t: the prompts ahead delay the first token there, which is in A's TTFT.
    """
    x = np.empty((view.machine_row.shape[0], NUM_PREDICTIONS))
    predict(view, request, weights[0], x)
    predicted_costs(view, x, weights, HINGES, costs)


@numba.njit(cache=True)
def index_kernel(view, request, params, state):
    """The pair of least cost in O(M); ties to the lowest (p, t)."""
    costs = np.empty((3, view.machine_row.shape[0]))
    index_costs(view, request, params, costs)
    return best_pair(costs)


@dataclass(frozen=True, config=STRICT)
class Index(CompiledRouting):
    """The index scheduler. A weight left at None takes the preset's value."""

    preset: Literal["default", "tuned"] = "default"
    """Weights to start from, see `PRESETS`."""
    w0: Weight = None
    """Interference on t from its prompts."""
    w1: Weight = None
    """Predicted TTFT relative to its SLO."""
    w2: Weight = None
    """Predicted TBT relative to its SLO."""
    w3: Weight = None
    """Hinge on the TTFT, from 0.8 of its SLO."""
    w4: Weight = None
    """Hinge on the TBT, from 0.85 of its SLO."""
    w5: Weight = None
    """Harm to the decodes on p by this prompt."""
    w6: Weight = None
    """A request is hopeless when even the best TTFT exceeds w6 SLOs. Without effect while w9 is 0."""
    w7: Weight = None
    """Harm to the decodes on t by this decode."""
    w8: Weight = None
    """Prompt time on p relative to the reference: keeps fast machines free."""
    w9: Weight = None
    """Hopeless requests only: reward a second of wait, up to 20 s, so that they queue out of the way."""

    registered = "index"
    kernel = staticmethod(index_kernel)

    @property
    def name(self) -> str:
        """`index`, or `index-` and the preset."""
        return "index" if self.preset == "default" else f"index-{self.preset}"

    @cached_property
    def params(self) -> NDArray[np.float64]:
        """(NUM_WEIGHTS,) w0 to w9 as used."""
        own = [getattr(self, f"w{i}") for i in range(NUM_WEIGHTS)]
        preset = PRESETS[self.preset]
        return np.array([p if w is None else w for w, p in zip(own, preset, strict=True)], np.float64)
