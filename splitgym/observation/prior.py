"""A scheduler's costs as part of an observation, so that a network can add to them what it has learned.

The index and its residual choose the pair of least cost c(p, t) = A(p) + B(t), with another B for p = t. The
option `prior` of an observation shows these three numbers for each machine, computed by the scheduler's own
kernel from the view, in the simulator as in the router.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.compile_cache import numba
from splitgym.errors import ConfigError
from splitgym.observation.features import PRIOR_LIMIT
from splitgym.schedulers.choose import PROMPT_COST, SAME_COST, SPLIT_COST
from splitgym.schedulers.index import PRESETS
from splitgym.schedulers.residual import hidden_of, index_weights, residual_costs

Floats = NDArray[np.float64]

NO_PRIOR: Floats = np.zeros(0)
"""In place of weights: the observation has no prior."""


def prior_weights(given: str | Sequence[float] | NDArray[Any] | None) -> Floats:
    """The flat weight vector of a prior (`splitgym.schedulers.residual.layout`), empty for none.

    Args:
        given: None, "index", "index-tuned", or a flat vector. Numbers are rounded to float32, which is what a
            policy bundle keeps, so that training and deployment see the same costs.

    Raises:
        ConfigError: no such prior, or a vector that fits no network.
    """
    if given is None:
        return NO_PRIOR
    if isinstance(given, str):
        names = {"index" if preset == "default" else f"index-{preset}": preset for preset in PRESETS}
        if given not in names:
            raise ConfigError(f"prior is {given!r}, expected {', '.join(names)}, or a flat vector of weights")
        found = index_weights(names[given])
    else:
        found = np.asarray(given, np.float64).ravel()
        try:
            hidden_of(len(found))
        except ValueError as error:
            raise ConfigError(f"prior: {error}") from None
        if not np.isfinite(found).all():
            raise ConfigError("prior: a weight is not finite")
    return found.astype(np.float32).astype(np.float64)


@numba.njit(cache=True)
def fill_prior(view, request, weights, out):
    """Fill the costs of a request.

    Args:
        view: `ClusterView` of m machines.
        request: `RequestInfo`.
        weights: the prior's flat vector.
        out: (at least m, 3) float32, the first m rows are filled: A(p), B(t) for p != t, B(t) for p = t, each
            above its least, both B above the same; `PRIOR_LIMIT` where a machine is not allowed.
    """
    costs = np.empty((3, view.machine_row.shape[0]))
    residual_costs(view, request, weights, costs)
    least_prompt, least_token = np.inf, np.inf
    for m in range(costs.shape[1]):
        least_prompt = min(least_prompt, costs[PROMPT_COST, m])
        least_token = min(least_token, min(costs[SPLIT_COST, m], costs[SAME_COST, m]))
    for m in range(costs.shape[1]):
        out[m, PROMPT_COST] = _above(costs[PROMPT_COST, m], least_prompt)
        out[m, SPLIT_COST] = _above(costs[SPLIT_COST, m], least_token)
        out[m, SAME_COST] = _above(costs[SAME_COST, m], least_token)


@numba.njit(cache=True)
def _above(cost, least):
    """`cost` - `least` up to the limit; what is not allowed is at the limit."""
    if cost == np.inf:
        return PRIOR_LIMIT
    return min(PRIOR_LIMIT, cost - least)
