"""A profile's times as integer arrays: the one place where an iteration's length is computed.

Both engines, every scheduler and the observation call these functions, so they agree to the nanosecond.
Only integer arithmetic and one float product are used: the result is the same on every machine.

A token iteration's length is kept in *ticks* of 2**-16 ns. A machine carries the fraction of a nanosecond
from iteration to iteration, so k iterations in one jump end exactly where k single ones do although each is a
little longer than the one before (the context grows).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitgym.compile_cache import numba

TICK_BITS = 16
"""A nanosecond is 2**TICK_BITS ticks."""


class ProfileTables(NamedTuple):
    """Times of K machine types for one model. Row 0 is the reference machine of the slowdowns."""

    prompt_tokens: NDArray[np.int64]  # (K, P) knots, ascending; unused places repeat the last knot
    prompt_ns: NDArray[np.int64]  # (K, P) time of a prompt iteration at each knot
    prompt_knots: NDArray[np.int64]  # (K,) knots in use, at least 2
    token_base: NDArray[np.int64]  # (K, B + 1) ticks of a token iteration by batch size, at context 0
    token_slope: NDArray[np.int64]  # (K, B + 1) ticks per context token of the whole batch
    mixed_factor: NDArray[np.float64]  # (K,) a batch of both kinds: times its prompt time


@numba.njit(cache=True, error_model="numpy")
def prompt_time_ns(tables, row, tokens):
    """Time of an iteration over prompts of `tokens` tokens in all [ns]: piecewise linear, and so beyond.

    Args:
        tables: `ProfileTables`.
        row: machine type.
        tokens: prompt tokens of the batch, at least 1.
    """
    last = tables.prompt_knots[row] - 1
    high = 1
    while high < last and tables.prompt_tokens[row, high] < tokens:
        high += 1
    x0 = tables.prompt_tokens[row, high - 1]
    x1 = tables.prompt_tokens[row, high]
    y0 = tables.prompt_ns[row, high - 1]
    y1 = tables.prompt_ns[row, high]
    # To the nearest nanosecond: rounding down would add up over the iterations of a busy machine.
    return max(1, y0 + (2 * (y1 - y0) * (tokens - x0) + (x1 - x0)) // (2 * (x1 - x0)))


@numba.njit(cache=True, error_model="numpy")
def token_time_ticks(tables, row, batch_size, context_tokens):
    """Time of one token iteration [ticks of 2**-16 ns].

    Args:
        tables: `ProfileTables`.
        row: machine type.
        batch_size: token tasks in the batch, at least 1; beyond the table the last difference continues.
        context_tokens: context of the whole batch (prompt and generated tokens of every task).
    """
    top = tables.token_base.shape[1] - 1
    if batch_size <= top:
        base = tables.token_base[row, batch_size]
        slope = tables.token_slope[row, batch_size]
    else:
        step = tables.token_base[row, top] - tables.token_base[row, top - 1]
        base = tables.token_base[row, top] + (batch_size - top) * step
        slope = tables.token_slope[row, top]
    return base + slope * context_tokens


@numba.njit(cache=True, error_model="numpy")
def token_time_ns(tables, row, batch_size, context_tokens):
    """Time of one token iteration, rounded down [ns]. See `token_time_ticks`."""
    return token_time_ticks(tables, row, batch_size, context_tokens) >> TICK_BITS


@numba.njit(cache=True, error_model="numpy")
def mixed_time_ns(tables, row, tokens, batch_size, context_tokens):
    """Time of an iteration with prompts and token tasks [ns].

    The prompt time of all its tokens times the mixed factor, but never less than its token tasks alone take:
    the prompt time knows nothing of their context.

    Args:
        tables: `ProfileTables`.
        row: machine type.
        tokens: prompt tokens of the batch and one for each token task.
        batch_size: token tasks in the batch, at least 1.
        context_tokens: context of these tasks (prompt and generated tokens).
    """
    together = np.int64(prompt_time_ns(tables, row, tokens) * tables.mixed_factor[row] + 0.5)
    return max(together, token_time_ns(tables, row, batch_size, context_tokens))
