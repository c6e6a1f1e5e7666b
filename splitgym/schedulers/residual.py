"""The index with a tiny network added to its costs, and constants of its own: what evolution trains.

Per machine, 17 features and 13 of the whole cluster go through one hidden layer to three numbers, which are
added to A(p), B(t) for p != t and B(t) for p = t of the index (`splitgym.schedulers.index`). With zero output
weights the decisions are the index's exactly. The best pair is found in O(M), like the index's.

All numbers are one flat vector, so that a search can treat them alike: see `layout`. No width is fixed: 0
hidden units make an index whose hinges are tuned too.

Everything is estimated from the view. True output lengths are not in it.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator
from pydantic.dataclasses import dataclass

from splitgym.compile_cache import numba
from splitgym.config import STRICT
from splitgym.schedulers.builtin import CompiledRouting
from splitgym.schedulers.choose import PAIR_ROWS
from splitgym.schedulers.flat import Trained, Weights, length_of, pack_parts, unpack_parts
from splitgym.schedulers.index import (
    HINGES,
    NUM_WEIGHTS,
    PRESETS,
    all_costs,
    cheapest,
    costs_of,
    weights_of,
)
from splitgym.schedulers.lanes import BLOCK, LANES, lanes_of, lay_request
from splitgym.schedulers.network import FEATURES, NETWORK_SCRATCH, OUTPUTS, add_network
from splitgym.schedulers.predict import asked, reference

HIDDEN = 16

NETWORK_AT = NUM_WEIGHTS + len(HINGES)
"""Where the network's weights begin: the index's w0 to w9 and its hinges come first."""


def layout(hidden: int = HIDDEN) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parts of the flat vector, in their order (row-major)."""
    return {
        "index": (NUM_WEIGHTS,),  # w0 to w9
        "hinges": (len(HINGES),),  # slope and start, of TTFT and TBT
        "input_weights": (hidden, FEATURES),  # the machine's features first
        "input_bias": (hidden,),
        "output_weights": (OUTPUTS, hidden),  # rows: A, B for p != t, B for p = t
        "output_bias": (OUTPUTS,),
    }


def size(hidden: int = HIDDEN) -> int:
    """Length of the flat vector."""
    return length_of(layout(hidden))


def hidden_of(length: int) -> int:
    """Width of the hidden layer of a flat vector.

    Raises:
        ValueError: no width has this length.
    """
    hidden, rest = divmod(length - NETWORK_AT - OUTPUTS, FEATURES + 1 + OUTPUTS)
    if rest or hidden < 0:
        raise ValueError(
            f"{length} weights fit no network: there are {size(0)} + {size(1) - size(0)} a hidden unit"
        )
    return hidden


def unpack(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The named parts of a flat vector, as views into it."""
    return unpack_parts(weights, layout(hidden_of(len(weights))))


def pack(parts: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The flat vector of named parts: undoes `unpack`.

    Raises:
        ValueError: a part is missing, unknown or of another shape.
    """
    hidden = len(parts["input_bias"]) if "input_bias" in parts else 0
    return pack_parts(parts, layout(hidden), "a residual")


def index_weights(preset: str = "tuned", hidden: int = 0) -> NDArray[np.float64]:
    """The flat vector that is exactly the index with a preset's weights."""
    weights = np.zeros(size(hidden))
    weights[:NUM_WEIGHTS] = PRESETS[preset]
    weights[NUM_WEIGHTS:NETWORK_AT] = HINGES
    return weights


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def all_residual_costs(lanes, machines, tables, q, tbt_slo, weights, scratch):
    """`all_costs` of the index with its own hinges, and the network's outputs.

    Args:
        lanes, q: see there.
        machines, tables, tbt_slo: see `add_network`.
        weights: the flat vector, see `layout`.
        scratch: (at least LANES, and what `add_network` needs,) float64.
    """
    all_costs(lanes, q, weights_of(weights, weights[NUM_WEIGHTS:NETWORK_AT]), scratch)
    if weights.shape[0] > NETWORK_AT + OUTPUTS:
        add_network(lanes, machines, tables, q, tbt_slo, weights[NETWORK_AT:], scratch)


@numba.njit(cache=True, error_model="numpy")
def lanes_with_costs(view, request, weights):
    """The blocks of a view's machines with the costs of a request, see `residual_costs`."""
    machines = view.machine_row.shape[0]
    lanes = lanes_of(view)
    lay_request(lanes, machines, view.tables, request.prompt_tokens)
    q = asked(reference(view, request), request.prompt_tokens, view.clock[0], view.rules, weights[0])
    scratch = np.empty(NETWORK_SCRATCH + weights.shape[0])
    all_residual_costs(lanes, machines, view.tables, q, view.rules.tbt_slo, weights, scratch)
    return lanes


@numba.njit(cache=True, error_model="numpy")
def residual_costs(view, request, weights, costs):
    """Fill the costs c(p, t) = A(p) + B(t), as `index_costs` does.

    Args:
        view, request, costs: see there.
        weights: the flat vector, see `layout`.
    """
    costs_of(lanes_with_costs(view, request, weights), view.machine_row.shape[0], costs)


@numba.njit(cache=True, error_model="numpy")
def residual_kernel(view, request, params, state):
    """The pair of least cost in O(M); ties to the lowest (p, t)."""
    lanes = lanes_with_costs(view, request, params)
    steps = np.empty(lanes.shape[0] // BLOCK * PAIR_ROWS * LANES, np.int64)
    return cheapest(lanes, steps, np.empty(PAIR_ROWS * LANES, np.int64))


@dataclass(frozen=True, config=STRICT)
class Residual(Trained, CompiledRouting):
    """The index with a trained network beside it; without arguments, the index with tuned weights."""

    weights: Weights = tuple(index_weights().tolist())
    """The flat vector, see `layout`."""
    label: str = "residual"
    """What tables call it."""

    registered = "residual"
    kernel = staticmethod(residual_kernel)

    @field_validator("weights")
    @classmethod
    def _fits(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        hidden_of(len(weights))
        return weights
