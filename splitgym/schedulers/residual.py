"""The index with a tiny network added to its costs, and constants of its own: what evolution trains.

Per machine, 17 features and 13 of the whole cluster go through one hidden layer to three numbers, which are
added to A(p), B(t) for p != t and B(t) for p = t of the index (`splitgym.schedulers.index`). With zero output
weights the decisions are the index's exactly. The best pair is found in O(M), like the index's.

All numbers are one flat vector, so that a search can treat them alike: see `layout`. No width is fixed: 0
hidden units make an index whose hinges are tuned too.

Decisions are the same on every machine: only +, -, *, /, the square root (rounded correctly everywhere),
comparisons and exact scaling by powers of two. `tanh` and `log` of a system's library differ in their last
bit, so both are replaced here.

Everything is estimated from the view. True output lengths are not in it.
"""

import math
from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from splitgym.compile_cache import numba
from splitgym.config import STRICT
from splitgym.profile.tables import prompt_time_ns, token_time_ns
from splitgym.schedulers.builtin import CompiledRouting
from splitgym.schedulers.choose import best_pair
from splitgym.schedulers.index import HINGES, NUM_WEIGHTS, PRESETS, predicted_costs
from splitgym.schedulers.predict import (
    HARM_PROMPT,
    HARM_TOKEN,
    ITERATION,
    MEMORY_PROMISED,
    MEMORY_USED,
    NUM_PREDICTIONS,
    PROMPT_TIME,
    SHARE,
    TBT_SAME,
    TBT_SPLIT,
    TTFT,
    WAIT_S,
    predict,
)

MACHINE_FEATURES = 17
CLUSTER_FEATURES = 13
FEATURES = MACHINE_FEATURES + CLUSTER_FEATURES
OUTPUTS = 3
HIDDEN = 16

NETWORK_AT = NUM_WEIGHTS + len(HINGES)
"""Where the network's weights begin: the index's w0 to w9 and its hinges come first."""

LANES = 8
"""Machines that the processor computes at once."""

_LOAD_BATCH = 32
"""Decodes a batch when the prompts' share of the load is estimated."""


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
    return sum(math.prod(shape) for shape in layout(hidden).values())


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
    parts, at = {}, 0
    for name, shape in layout(hidden_of(len(weights))).items():
        count = math.prod(shape)
        parts[name] = weights[at : at + count].reshape(shape)
        at += count
    return parts


def pack(parts: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The flat vector of named parts: undoes `unpack`.

    Raises:
        ValueError: a part is missing, unknown or of another shape.
    """
    hidden = len(parts["input_bias"]) if "input_bias" in parts else 0
    wanted = layout(hidden)
    found = {name: np.shape(part) for name, part in parts.items()}
    if found != wanted:
        raise ValueError(f"parts of a residual are {wanted}, found {found}")
    return np.concatenate([np.ravel(np.asarray(parts[name], np.float64)) for name in wanted])


def index_weights(preset: str = "tuned", hidden: int = 0) -> NDArray[np.float64]:
    """The flat vector that is exactly the index with a preset's weights."""
    weights = np.zeros(size(hidden))
    weights[:NUM_WEIGHTS] = PRESETS[preset]
    weights[NUM_WEIGHTS:NETWORK_AT] = HINGES
    return weights


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def squash(x):
    """x (27 + x^2) / (27 + 9 x^2) up to |x| = 3, where it reaches +-1 with slope 0.

    The Pade approximant of tanh around 0, within 0.024 of it.
    """
    x = min(3.0, max(-3.0, x))
    square = x * x
    return x * (27.0 + square) / (27.0 + 9.0 * square)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def ln(x):
    """Natural logarithm within 1e-8, of a positive float64 that is not subnormal.

    ln(f 2^e) = e ln 2 + 2 artanh((f - 1) / (f + 1)). `f` and `e` are taken from the bits, so that several
    logarithms are computed at once; `f` in [2^-1/2, 2^1/2) leaves five terms of the series.
    """
    bits = np.float64(x).view(np.int64)
    exponent = (bits >> 52) - 1022
    fraction = np.int64((bits & ((1 << 52) - 1)) | (1022 << 52)).view(np.float64)  # in [1/2, 1)
    low = fraction < 0.7071067811865476
    fraction = 2.0 * fraction if low else fraction
    exponent = exponent - 1 if low else exponent
    s = (fraction - 1.0) / (fraction + 1.0)
    square = s * s
    series = 1.0 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9))))
    return exponent * 0.6931471805599453 + 2.0 * s * series


@numba.njit(cache=True)
def prompt_load(view, request, ref):
    """Prompts' share of the work that comes in, 0 to 1, as on the reference machine.

    The mean prompt is that of the requests in the system; a decode is estimated in a batch of `_LOAD_BATCH`.
    """
    tokens, requests = request.prompt_tokens, 1
    for m in range(view.machine_row.shape[0]):
        tokens += view.running_prompt_tokens[m] + view.inbound_prompt_tokens[m]
        requests += view.running[m] + view.inbound[m]
    mean = max(1, tokens // requests)
    context = _LOAD_BATCH * (mean + np.int64(ref.mean_output_tokens * 0.5))
    decode = ref.mean_output_tokens * token_time_ns(view.tables, 0, _LOAD_BATCH, context) / _LOAD_BATCH
    prompt = np.float64(prompt_time_ns(view.tables, 0, mean))
    return prompt / (prompt + decode)


@numba.njit(cache=True)
def cluster_features(view, request, ref, x, out):
    """Fill the features that all machines share.

    Args:
        view, request: of the decision; M machines.
        ref: the request's `Reference`.
        x: (M, NUM_PREDICTIONS) of `predict`.
        out: (CLUSTER_FEATURES,) float64, filled.

    Returns:
        Mean, least and longest wait for a prompt [s].

    Means are over the machines allowed for the phase.
    """
    prompts = tokens = 0
    wait = own = squares = late = iteration = slow = share = promised = longest = 0.0
    requests = 0
    least = best = np.inf
    for m in range(view.machine_row.shape[0]):
        if view.prompt_allowed[m]:
            prompts += 1
            wait += x[m, WAIT_S]
            least = min(least, x[m, WAIT_S])
            longest = max(longest, x[m, WAIT_S])
            best = min(best, x[m, TTFT])
            own += x[m, PROMPT_TIME]
            squares += x[m, PROMPT_TIME] * x[m, PROMPT_TIME]
            late += x[m, TTFT] > 1.0
        if view.token_allowed[m]:
            tokens += 1
            iteration += x[m, ITERATION]
            slow += x[m, TBT_SPLIT] > 1.0
            share += x[m, SHARE]
            promised += x[m, MEMORY_PROMISED]
            requests += view.running[m] + view.inbound[m]
    per_prompt, per_token = 1.0 / max(1, prompts), 1.0 / max(1, tokens)
    wait, own = wait * per_prompt, own * per_prompt
    out[0] = ln(1.0 + wait) - 0.3
    out[1] = 2.0 * (prompt_load(view, request, ref) - 0.6)
    out[2] = late * per_prompt - 0.3
    out[3] = 4.0 * math.sqrt(max(0.0, squares * per_prompt - own * own))
    out[4] = 0.5 * (ln(np.float64(max(1, request.prompt_tokens))) - 6.9)
    out[5] = 2.0 * (iteration * per_token - 0.7)
    out[6] = slow * per_token - 0.2
    out[7] = 2.0 * (share * per_token) - 1.0
    out[8] = ln(ref.mean_output_tokens) - 5.0
    out[9] = min(best, 4.0) - 1.0
    out[10] = ln(1.0 + longest) - 0.6
    out[11] = 2.0 * min(promised * per_token, 2.0) - 0.6
    out[12] = requests * per_token / 32.0 - 0.5
    return wait, min(least, 1e9), longest


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def machine_features(view, x, m, wait, least_log, longest_log, out, lane=0, step=1):
    """Fill machine m's own features.

    Args:
        view: `ClusterView`.
        x: (M, NUM_PREDICTIONS) of `predict`.
        m: machine.
        wait: mean over machines [s].
        least_log, longest_log: ln(1 + wait) of the least and of the longest wait.
        out: float64, filled; feature i goes to place `lane` + i x `step`.
    """
    own_wait = ln(1.0 + x[m, WAIT_S])
    requests = view.running[m] + view.inbound[m]
    out[lane] = min(x[m, TTFT], 4.0) - 1.0
    out[lane + step] = 2.0 * min(1.0, max(0.0, 5.0 * x[m, TTFT] - 4.0)) - 1.0
    out[lane + 2 * step] = 2.0 * min(x[m, TBT_SPLIT], 3.0) - 1.6
    out[lane + 3 * step] = 2.0 * min(x[m, TBT_SAME], 3.0) - 1.6
    out[lane + 4 * step] = own_wait - 0.3
    out[lane + 5 * step] = 0.5 * (x[m, WAIT_S] - wait) / (wait + 0.2)
    out[lane + 6 * step] = own_wait - least_log
    out[lane + 7 * step] = 2.0 * x[m, MEMORY_USED] - 0.6
    out[lane + 8 * step] = 2.0 * x[m, SHARE] - 1.0
    out[lane + 9 * step] = requests / 32.0 - 0.7
    out[lane + 10 * step] = 4.0 * (x[m, PROMPT_TIME] - 0.7)
    out[lane + 11 * step] = 0.5 * x[m, HARM_PROMPT] - 0.5
    out[lane + 12 * step] = 2.0 * view.rules.tbt_slo * x[m, HARM_TOKEN]
    out[lane + 13 * step] = own_wait - longest_log
    out[lane + 14 * step] = min(view.prompt_requests[m], 32) / 8.0 - 0.3
    out[lane + 15 * step] = view.inbound[m] / 8.0 - 0.3
    out[lane + 16 * step] = 2.0 * min(x[m, MEMORY_PROMISED], 2.0) - 0.6


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def inward(network, at):
    """The weights from a machine's features to the hidden unit whose weights begin at `at`."""
    w = network[at : at + MACHINE_FEATURES]
    first = (w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8])
    return (*first, w[9], w[10], w[11], w[12], w[13], w[14], w[15], w[16])


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def add_unit(first, w, outward, lanes):
    """Add what one hidden unit gives to the outputs of `LANES` machines.

    Args:
        first: its bias and what the cluster's features give it.
        w: MACHINE_FEATURES weights to it.
        outward: its OUTPUTS weights.
        lanes: (MACHINE_FEATURES + OUTPUTS, LANES) float64, flat: features, then outputs, which are changed.

    The sum is written out, and all weights are at hand: only so does the compiler take the machines together.
    """
    for j in range(LANES):
        total = first + w[0] * lanes[j] + w[1] * lanes[LANES + j]
        total = total + w[2] * lanes[2 * LANES + j] + w[3] * lanes[3 * LANES + j]
        total = total + w[4] * lanes[4 * LANES + j] + w[5] * lanes[5 * LANES + j]
        total = total + w[6] * lanes[6 * LANES + j] + w[7] * lanes[7 * LANES + j]
        total = total + w[8] * lanes[8 * LANES + j] + w[9] * lanes[9 * LANES + j]
        total = total + w[10] * lanes[10 * LANES + j] + w[11] * lanes[11 * LANES + j]
        total = total + w[12] * lanes[12 * LANES + j] + w[13] * lanes[13 * LANES + j]
        total = total + w[14] * lanes[14 * LANES + j] + w[15] * lanes[15 * LANES + j]
        total = total + w[16] * lanes[16 * LANES + j]
        unit = squash(total)
        lanes[17 * LANES + j] += outward[0] * unit
        lanes[18 * LANES + j] += outward[1] * unit
        lanes[19 * LANES + j] += outward[2] * unit


@numba.njit(cache=True)
def add_network(view, request, ref, x, network, costs):
    """Add the network's outputs to the costs of the machines allowed.

    Args:
        view, request, ref, x: as for `cluster_features`.
        network: the flat vector from NETWORK_AT on, of at least one hidden unit.
        costs: (OUTPUTS, M) float64, changed; infinite stays infinite.

    What the cluster's features give each hidden unit is the same for all machines, so it is summed once.
    `LANES` machines at a time go through the network side by side: each has the same sums in the same order
    as alone, so the same bits.
    """
    hidden = (network.shape[0] - OUTPUTS) // (FEATURES + 1 + OUTPUTS)
    bias_at = hidden * FEATURES
    output_at = bias_at + hidden
    output_bias_at = output_at + OUTPUTS * hidden
    shared = np.empty(CLUSTER_FEATURES)
    sums = np.empty(hidden)
    lanes = np.zeros((MACHINE_FEATURES + OUTPUTS) * LANES)
    wait, least, longest = cluster_features(view, request, ref, x, shared)
    least_log, longest_log = ln(1.0 + least), ln(1.0 + longest)
    for h in range(hidden):
        total = network[bias_at + h]
        for i in range(CLUSTER_FEATURES):
            total += network[h * FEATURES + MACHINE_FEATURES + i] * shared[i]
        sums[h] = total
    machines = view.machine_row.shape[0]
    for first in range(0, machines, LANES):
        count = min(LANES, machines - first)
        for j in range(count):
            machine_features(view, x, first + j, wait, least_log, longest_log, lanes, j, LANES)
        for output in range(OUTPUTS):
            bias = network[output_bias_at + output]
            for j in range(LANES):
                lanes[(MACHINE_FEATURES + output) * LANES + j] = bias
        for h in range(hidden):
            at = output_at + h
            outward = (network[at], network[at + hidden], network[at + 2 * hidden])
            add_unit(sums[h], inward(network, h * FEATURES), outward, lanes)
        for j in range(count):
            if view.prompt_allowed[first + j] or view.token_allowed[first + j]:
                for output in range(OUTPUTS):
                    costs[output, first + j] += lanes[(MACHINE_FEATURES + output) * LANES + j]


@numba.njit(cache=True)
def residual_costs(view, request, weights, costs):
    """Fill the costs c(p, t) = A(p) + B(t), as `index_costs` does.

    Args:
        view, request, costs: see there.
        weights: the flat vector, see `layout`.
    """
    x = np.empty((view.machine_row.shape[0], NUM_PREDICTIONS))
    ref = predict(view, request, weights[0], x)
    predicted_costs(view, x, weights[:NUM_WEIGHTS], weights[NUM_WEIGHTS:NETWORK_AT], costs)
    if weights.shape[0] > NETWORK_AT + OUTPUTS:
        add_network(view, request, ref, x, weights[NETWORK_AT:], costs)


@numba.njit(cache=True)
def residual_kernel(view, request, params, state):
    """The pair of least cost in O(M); ties to the lowest (p, t)."""
    costs = np.empty((3, view.machine_row.shape[0]))
    residual_costs(view, request, params, costs)
    return best_pair(costs)


Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, config=STRICT)
class Residual(CompiledRouting):
    """The index with a trained network beside it; without arguments, the index with tuned weights."""

    weights: tuple[Finite, ...] = tuple(index_weights().tolist())
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

    @property
    def name(self) -> str:
        """The label."""
        return self.label

    @cached_property
    def params(self) -> NDArray[np.float64]:
        """The flat vector as the kernel reads it."""
        return np.array(self.weights, np.float64)
