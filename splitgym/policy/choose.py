"""From scores and masks to a decision."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.errors import PolicyError

Scores = NDArray[np.float32]


def choose(
    scores: Scores, allowed: NDArray[Any], temperature: float, random: np.random.Generator | None
) -> int:
    """The place of the chosen entry of `scores`, flattened.

    Args:
        scores: any shape.
        allowed: the same shape; where it is 0 nothing is chosen. Without a single place all count.
        temperature: 0 takes the highest, the lowest place on ties; above it, one is drawn from the softmax.
        random: what it is drawn with.

    Raises:
        PolicyError: an allowed score is no finite number.
    """
    flat, open_ = scores.ravel(), allowed.ravel() != 0
    if not open_.any():
        open_ = np.ones(len(flat), np.bool_)
    masked = np.where(open_, flat, -np.inf)
    best = int(masked.argmax())  # argmax finds a NaN first
    # One sum tells of a NaN or an infinity anywhere; the slow look is for then only.
    if not np.isfinite(masked[best]) or (temperature > 0 and not np.isfinite(flat[open_]).all()):
        raise PolicyError("the policy's scores are not finite")
    if temperature <= 0 or random is None:
        return best
    weights = np.exp((masked - masked[best]).astype(np.float64) / temperature)
    return int(np.searchsorted(np.cumsum(weights), random.random() * weights.sum(), side="right"))


def choose_pair(
    scores: Scores,
    prompt_allowed: NDArray[Any],
    token_allowed: NDArray[Any],
    temperature: float = 0.0,
    random: np.random.Generator | None = None,
) -> tuple[int, int]:
    """(prompt machine, token machine) from (M', M') scores of which the first M machines are real.

    Args:
        scores: (M', M'), M' at least M.
        prompt_allowed, token_allowed: (M,) flags.
        temperature, random: see `choose`.
    """
    m = len(prompt_allowed)
    allowed = (prompt_allowed != 0)[:, None] & (token_allowed != 0)[None, :]
    place = choose(scores[:m, :m], allowed, temperature, random)
    return place // m, place % m
