"""The SLO-aware index scheduler: the strongest known heuristic.

Over all pairs (p, t) of machines it minimises predicted TTFT and TBT, each relative to its SLO, hinges where
an SLO is about to be missed, and the harm done to others. Everything comes from the profile, the router's own
counters and the recent mean output. The weights are the options; docs/schedulers.md has the formula.
"""

from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from splitgym.compile_cache import numba
from splitgym.config import STRICT
from splitgym.schedulers.builtin import CompiledRouting
from splitgym.schedulers.choose import (
    NEVER,
    PAIR_ROWS,
    PROMPT_COST,
    SAME_COST,
    SPLIT_COST,
    best_of_steps,
    pair_steps,
)
from splitgym.schedulers.lanes import (
    BLOCK,
    CLOSED_PROMPT,
    CLOSED_TOKEN,
    COSTS,
    LANES,
    PREDICTED,
    block_of,
    lanes_of,
    lay_request,
)
from splitgym.schedulers.predict import (
    HARM_PROMPT,
    HARM_TOKEN,
    PROMPT_TIME,
    TBT_SAME,
    TBT_SPLIT,
    TTFT,
    WAIT_S,
    asked,
    predict_block,
    reference,
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


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def _hinge(value, slope, start):
    return min(1.0, max(0.0, slope * (value - start)))


class Weights(NamedTuple):
    """The weights and hinges as numbers, so that loops over machines find them in registers."""

    w0: float
    w1: float
    w2: float
    w3: float
    w4: float
    w5: float
    w6: float
    w7: float
    w8: float
    w9: float
    ttft_slope: float
    ttft_start: float
    tbt_slope: float
    tbt_start: float


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def weights_of(w, hinges):
    """`Weights` of (NUM_WEIGHTS,) w0 to w9 and of (4,) hinges, see `HINGES`."""
    first = (w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9])
    return Weights(*first, hinges[0], hinges[1], hinges[2], hinges[3])


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def block_costs(b, w, best_ttft):
    """Fill the costs of a block of machines (`splitgym.schedulers.lanes`) from its predictions.

    Args:
        b: (BLOCK,) float64; its rows from COSTS on are filled: A(p), B(t) for p != t, B(t) for p = t;
            infinite where not allowed.
        w: `Weights`.
        best_ttft: (LANES,) float64, lowered to the least TTFT of the machines allowed so far.
    """
    for j in range(LANES):
        ttft = b[(PREDICTED + TTFT) * LANES + j]
        split, same = b[(PREDICTED + TBT_SPLIT) * LANES + j], b[(PREDICTED + TBT_SAME) * LANES + j]
        prompt = (
            w.w1 * ttft
            + w.w3 * _hinge(ttft, w.ttft_slope, w.ttft_start)
            + w.w5 * b[(PREDICTED + HARM_PROMPT) * LANES + j]
            + w.w8 * b[(PREDICTED + PROMPT_TIME) * LANES + j]
        )
        harm = w.w7 * b[(PREDICTED + HARM_TOKEN) * LANES + j]
        split = w.w2 * split + w.w4 * _hinge(split, w.tbt_slope, w.tbt_start) + harm
        same = w.w2 * same + w.w4 * _hinge(same, w.tbt_slope, w.tbt_start) + harm
        no_prompt, no_token = b[CLOSED_PROMPT * LANES + j] != 0.0, b[CLOSED_TOKEN * LANES + j] != 0.0
        b[(COSTS + PROMPT_COST) * LANES + j] = np.inf if no_prompt else prompt
        b[(COSTS + SPLIT_COST) * LANES + j] = np.inf if no_token else split
        b[(COSTS + SAME_COST) * LANES + j] = np.inf if no_token else same
        best_ttft[j] = min(best_ttft[j], np.inf if no_prompt else ttft)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def all_costs(lanes, q, w, scratch):
    """Fill the costs of all machines.

    Args:
        lanes: blocks with the request laid, see `splitgym.schedulers.lanes`; predictions and costs are
            filled.
        q: `Asked`, with interference at weight w0.
        w: `Weights`.
        scratch: (at least LANES,) float64.
    """
    blocks = lanes.shape[0] // BLOCK
    for j in range(LANES):
        scratch[j] = np.inf
    for block in range(blocks):
        b = block_of(lanes, block)
        predict_block(b, q)
        block_costs(b, w, scratch)
    best_ttft = np.inf
    for j in range(LANES):
        best_ttft = min(best_ttft, scratch[j])
    if w.w9 != 0.0 and best_ttft > w.w6:
        # Hopeless: it misses its SLO anywhere, so it queues where it does no further harm.
        for block in range(blocks):
            b = block_of(lanes, block)
            for j in range(LANES):
                wait_s = min(b[(PREDICTED + WAIT_S) * LANES + j], MAX_HOPELESS_WAIT_S)
                b[(COSTS + PROMPT_COST) * LANES + j] -= w.w9 * wait_s


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def cheapest(lanes, steps, least):
    """The pair of least cost, ties to the lowest (p, t).

    Args:
        lanes: blocks with costs.
        steps: (at least blocks x PAIR_ROWS x LANES,) int64 scratch.
        least: (PAIR_ROWS x LANES,) int64 scratch.
    """
    blocks = lanes.shape[0] // BLOCK
    for i in range(PAIR_ROWS * LANES):
        least[i] = NEVER
    for block in range(blocks):
        b = block_of(lanes, block)
        own = steps[block * PAIR_ROWS * LANES : (block + 1) * PAIR_ROWS * LANES]
        prompt = b[(COSTS + PROMPT_COST) * LANES : (COSTS + PROMPT_COST + 1) * LANES]
        split = b[(COSTS + SPLIT_COST) * LANES : (COSTS + SPLIT_COST + 1) * LANES]
        same = b[(COSTS + SAME_COST) * LANES : (COSTS + SAME_COST + 1) * LANES]
        pair_steps(prompt, split, same, own, least)
    return best_of_steps(steps, least, blocks)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def costs_of(lanes, machines, costs):
    """Copy the costs of the machines out of their blocks into (3, M) `costs`."""
    for m in range(machines):
        b = block_of(lanes, m // LANES)
        for row in range(3):
            costs[row, m] = b[(COSTS + row) * LANES + m % LANES]


@numba.njit(cache=True, error_model="numpy")
def lanes_with_costs(view, request, weights):
    """The blocks of a view's machines with the costs of a request, see `index_costs`."""
    lanes = lanes_of(view)
    lay_request(lanes, view.machine_row.shape[0], view.tables, request.prompt_tokens)
    q = asked(reference(view, request), request.prompt_tokens, view.clock[0], view.rules, weights[0])
    all_costs(lanes, q, weights_of(weights, HINGES), np.empty(LANES))
    return lanes


@numba.njit(cache=True, error_model="numpy")
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
    costs_of(lanes_with_costs(view, request, weights), view.machine_row.shape[0], costs)


@numba.njit(cache=True, error_model="numpy")
def index_kernel(view, request, params, state):
    """The pair of least cost in O(M); ties to the lowest (p, t)."""
    lanes = lanes_with_costs(view, request, params)
    steps = np.empty(lanes.shape[0] // BLOCK * PAIR_ROWS * LANES, np.int64)
    return cheapest(lanes, steps, np.empty(PAIR_ROWS * LANES, np.int64))


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
