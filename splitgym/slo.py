"""Service-level objectives: how long a request would take alone, and when it is good.

A *slowdown* is a time divided by the time of the same request alone on the reference machine (row 0 of
`ProfileTables`; a DGX-A100 by default). Alone, a request computes its prompt in one iteration, then one token
an iteration at batch size 1. The context of the first of these is the prompt and the first token. Token time
is linear in the context, so the sum over the output has a closed form.

The scalar functions are compiled: engines, schedulers and observations call them, so all agree.
"""

import numpy as np
from numpy.typing import NDArray

from splitgym.compile_cache import numba
from splitgym.profile.tables import TICK_BITS, ProfileTables, prompt_time_ns

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

PERCENTILES = (50, 90, 99)
NINE_SLOS: dict[str, tuple[float, float, float]] = {
    "ttft": (2.0, 3.0, 6.0),
    "tbt": (1.25, 1.5, 5.0),
    "e2e": (1.25, 1.5, 5.0),
}
"""The nine SLOs: p50, p90 and p99 of each slowdown lie strictly below these (Splitwise, section 5)."""

_TICKS = float(1 << TICK_BITS)


@numba.njit(cache=True, error_model="numpy")
def reference_ttft_ns(tables, prompt_tokens):
    """Time to first token alone on the reference machine [ns]."""
    return prompt_time_ns(tables, 0, prompt_tokens)


@numba.njit(cache=True, error_model="numpy")
def reference_tbt_ns(tables, prompt_tokens, output_tokens):
    """Mean time between tokens alone on the reference machine [ns], a float.

    The contexts of the output - 1 iterations are prompt + 1 to prompt + output - 1; their mean is
    prompt + output / 2. `output_tokens` may be an estimate (a float); at 1 there is no second token, and the
    value is what the next token would take.
    """
    output = max(2.0, float(output_tokens))
    return (tables.token_base[0, 1] + tables.token_slope[0, 1] * (prompt_tokens + output / 2.0)) / _TICKS


@numba.njit(cache=True, error_model="numpy")
def reference_e2e_ns(tables, prompt_tokens, output_tokens):
    """End-to-end time alone on the reference machine [ns], a float."""
    first = float(prompt_time_ns(tables, 0, prompt_tokens))
    if output_tokens <= 1:
        return first
    return first + reference_tbt_ns(tables, prompt_tokens, output_tokens) * (output_tokens - 1)


@numba.njit(cache=True, error_model="numpy")
def is_good(tables, ttft_slo, tbt_slo, prompt_tokens, output_tokens, arrival_ns, first_token_ns, finish_ns):
    """Did a completed request meet both objectives?

    Args:
        tables: `ProfileTables`.
        ttft_slo, tbt_slo: greatest slowdowns that are good.
        prompt_tokens, output_tokens: of the request.
        arrival_ns, first_token_ns, finish_ns: what happened.
    """
    if first_token_ns - arrival_ns > ttft_slo * reference_ttft_ns(tables, prompt_tokens):
        return False
    if output_tokens <= 1:
        return True
    allowed = tbt_slo * reference_tbt_ns(tables, prompt_tokens, output_tokens)
    return finish_ns - first_token_ns <= allowed * (output_tokens - 1)


@numba.njit(cache=True, error_model="numpy")
def _reference_times(tables, prompt_tokens, output_tokens, ttft, tbt, e2e):
    for i in range(len(prompt_tokens)):
        ttft[i] = reference_ttft_ns(tables, prompt_tokens[i])
        tbt[i] = np.nan
        if output_tokens[i] > 1:
            tbt[i] = reference_tbt_ns(tables, prompt_tokens[i], output_tokens[i])
        e2e[i] = reference_e2e_ns(tables, prompt_tokens[i], output_tokens[i])


def reference_times_s(
    tables: ProfileTables, prompt_tokens: Ints, output_tokens: Ints
) -> tuple[Floats, Floats, Floats]:
    """TTFT, TBT and E2E of requests alone on the reference machine [s].

    Args:
        tables: times of the machine types; row 0 is the reference.
        prompt_tokens, output_tokens: (N,).

    Returns:
        three (N,) arrays; TBT is NaN where the output is 1 token.
    """
    n = len(prompt_tokens)
    ttft, tbt, e2e = np.empty(n), np.empty(n), np.empty(n)
    _reference_times(
        tables,
        np.ascontiguousarray(prompt_tokens, np.int64),
        np.ascontiguousarray(output_tokens, np.int64),
        ttft,
        tbt,
        e2e,
    )
    return ttft * 1e-9, tbt * 1e-9, e2e * 1e-9
