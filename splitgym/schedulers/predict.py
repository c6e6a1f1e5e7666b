"""What the profile and the counters predict for one request on each machine.

One set of kernels for the index scheduler, the baselines, pool sizing and the observation, so that what a
policy sees is what the heuristics act on. Only +, -, *, / and comparisons: the same bits on every machine.

Nothing here reads a true output length. A request's output is estimated by the decayed mean over completed
requests, or its `max_tokens` where that is known and smaller.
"""

from typing import NamedTuple

import numpy as np

from splitgym.compile_cache import numba
from splitgym.profile.tables import prompt_time_ns, token_time_ns
from splitgym.view import SHARE_TIME_CONSTANT_NS

MAX_SHARE = 0.8
"""Cap of the prompt share, so that u / (1 - u) stays at 4 or less."""

# Columns of `predict_request`. A value relative to an SLO is 1 where the SLO is just met.
TTFT = 0  # predicted TTFT with the prompt here / (TTFT SLO x reference TTFT of the request)
TBT_SPLIT = 1  # predicted TBT with the token phase here and the prompt elsewhere / (TBT SLO x reference TBT)
TBT_SAME = 2  # the same with both phases here: no transfer, and the wait is in the TTFT already
WAIT_S = 3  # seconds until a prompt routed here now would start: queued prompts, rest of the iteration
PROMPT_TIME = 4  # this request's own prompt time here / reference TTFT (hardware; 1 on the reference machine)
SHARE = 5  # recent share of time given to prompts, decayed to now, at most MAX_SHARE
HARM_PROMPT = 6  # of this prompt to decodes: (running + inbound) x prompt time / (o x SLO x reference TBT)
HARM_TOKEN = 7  # of this decode to others: running x (token time with - without it) / (SLO x reference TBT)
ITERATION = 8  # token time here with this request in the batch / (SLO x reference TBT)
MEMORY_USED = 9  # KV tokens held now / capacity
MEMORY_PROMISED = 10  # estimated need of the requests placed here, at their end, without this one / capacity
PREDICTION_COLUMNS = (
    "ttft",
    "tbt_split",
    "tbt_same",
    "wait_s",
    "prompt_time",
    "share",
    "harm_prompt",
    "harm_token",
    "iteration",
    "memory_used",
    "memory_promised",
)
NUM_PREDICTIONS = len(PREDICTION_COLUMNS)


class Reference(NamedTuple):
    """A request alone on the reference machine, as far as it can be known at its arrival."""

    ttft_ns: float
    tbt_ns: float  # at half of the estimated output
    output_tokens: float  # estimate for this request
    mean_output_tokens: float  # recent mean over completed requests: the estimate for all others


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def mean_output(view):
    """Decayed mean output of completed requests [tokens], at least 1."""
    return max(1.0, view.mean_output[0] / view.mean_output[1])


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def estimated_output(view, request):
    """Estimated output of one request [tokens]: the recent mean, capped by its `max_tokens` where known."""
    mean = mean_output(view)
    if request.max_tokens > 0:
        return min(mean, np.float64(request.max_tokens))
    return mean


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def prompt_share(view, m):
    """Share of machine m's recent time given to prompts, decayed to now.

    The decay is tau / (tau + dt), not exp(-dt / tau): rational arithmetic gives the same bits everywhere.
    """
    elapsed = max(0, view.clock[0] - view.prompt_share_at_ns[m])
    share = view.prompt_share[m] * SHARE_TIME_CONSTANT_NS / (SHARE_TIME_CONSTANT_NS + elapsed)
    return min(MAX_SHARE, share)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def wait_ns(view, m):
    """Prompt time of the prompts queued on m and what is left of its iteration [ns], an integer."""
    return view.prompt_queue_ns[m] + max(0, view.iteration_end_ns[m] - view.clock[0])


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def pending_tokens(view, m):
    """Pending tokens as the paper's simulator counts them: those of prompts, and one a token task."""
    return view.prompt_tokens[m] + view.running[m] + view.inbound[m]


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def fewest_pending(view, flags):
    """The flagged machine with the fewest pending tokens; -1 where none is flagged."""
    best = -1
    for m in range(flags.shape[0]):
        if flags[m] and (best < 0 or pending_tokens(view, m) < pending_tokens(view, best)):
            best = m
    return best


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def promised_tokens(view, m, mean):
    """KV tokens that the requests placed on m are expected to need in the end.

    Args:
        mean: estimated output of each [tokens].

    The larger of what is held now (long outputs, caches on their way out) and prompt + mean output of every
    request that decodes here or will. A router cannot know more: reservations are the machine's own.
    """
    requests = view.running[m] + view.inbound[m]
    expected = view.running_prompt_tokens[m] + view.inbound_prompt_tokens[m] + requests * mean
    return max(np.float64(view.kv_used_tokens[m]), expected)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def transfer_ns(view, request, t):
    """Predicted KV transfer to token machine t [ns], as seen from the receiving side alone.

    Layer-wise prompts leave a constant (t's own stands for the sender's); shorter ones ship prompt x bytes
    serially over t's NIC. That keeps costs separable over (p, t).
    """
    if request.prompt_tokens >= view.rules.overlap_min_tokens:
        return np.float64(view.transfer_constant_ns[t])
    size = np.float64(view.rules.kv_bytes_per_token) * request.prompt_tokens
    return size * 1e9 / view.link_bytes_per_s[t]


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def reference(view, request):
    """The request alone on the reference machine (row 0 of the tables): a `Reference`."""
    output = estimated_output(view, request)
    context = request.prompt_tokens + np.int64(output * 0.5)
    return Reference(
        np.float64(prompt_time_ns(view.tables, 0, request.prompt_tokens)),
        np.float64(max(1, token_time_ns(view.tables, 0, 1, context))),
        output,
        mean_output(view),
    )


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def predict(view, request, interference, out):
    """Fill the predictions for a request on every machine, allowed or not.

    Args:
        view: `ClusterView` of M machines.
        request: `RequestInfo`.
        interference: weight of the time that prompts take from decodes, u / (1 - u), in the predicted TBTs.
        out: (at least M, NUM_PREDICTIONS) float64, filled by the column constants of this module; rows from
            M on are left alone.

    Returns:
        The request's `Reference`.

    A batch beyond `max_tasks` is extrapolated, not queued: a full machine looks slow. The loop is one big
    function on purpose: a helper that branches costs the reference counts of the whole view at every call.
    """
    ref = reference(view, request)
    tables = view.tables
    ttft_limit = ref.ttft_ns * view.rules.ttft_slo
    tbt_limit = ref.tbt_ns * view.rules.tbt_slo
    gaps = max(1.0, ref.output_tokens - 1.0)  # an output below 2 counts as 2
    own_ns = np.empty(tables.prompt_knots.shape[0])
    for row in range(own_ns.shape[0]):
        own_ns[row] = prompt_time_ns(tables, row, request.prompt_tokens)

    for m in range(view.machine_row.shape[0]):
        row = view.machine_row[m]
        capacity = np.float64(max(1, view.kv_capacity_tokens[m]))
        wait = np.float64(wait_ns(view, m))
        running = view.running[m]
        batch = running + view.inbound[m]
        context = view.running_context_tokens[m] + view.inbound_prompt_tokens[m]
        joined = np.float64(token_time_ns(tables, row, batch + 1, context + request.prompt_tokens))
        alone = np.float64(token_time_ns(tables, row, max(1, batch), context))
        promised = promised_tokens(view, m, ref.mean_output_tokens)
        shortfall = max(0.0, promised + request.prompt_tokens + ref.output_tokens - capacity)
        share = prompt_share(view, m)
        # n = batch + 1 requests with this one; memory frees as they end, one in o / (n + 1) iterations or so.
        same = ref.output_tokens * joined * (1.0 + interference * (share / (1.0 - share)))
        same += shortfall / (batch + 2) * joined
        split = same + transfer_ns(view, request, m)
        if view.prompt_tokens[m] > 0:
            split += wait
        ttft = wait + own_ns[row]
        if running > 0:  # its iteration takes no less than the decodes beside it
            decodes_ns = np.float64(token_time_ns(tables, row, running, view.running_context_tokens[m]))
            factor = tables.mixed_factor[row]
            ttft = factor * wait + max(factor * own_ns[row], decodes_ns)
        out[m, TTFT] = ttft / ttft_limit
        out[m, TBT_SPLIT] = split / gaps / tbt_limit
        out[m, TBT_SAME] = same / gaps / tbt_limit
        out[m, WAIT_S] = wait * 1e-9
        out[m, PROMPT_TIME] = own_ns[row] / ref.ttft_ns
        out[m, SHARE] = share
        out[m, HARM_PROMPT] = batch * own_ns[row] / (ref.mean_output_tokens * tbt_limit)
        out[m, HARM_TOKEN] = running * (joined - alone) / tbt_limit
        out[m, ITERATION] = joined / tbt_limit
        out[m, MEMORY_USED] = view.kv_used_tokens[m] / capacity
        out[m, MEMORY_PROMISED] = promised / capacity
    return ref


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def predict_request(view, request, out):
    """`predict` with interference at weight 1: what an observation shows. See there."""
    predict(view, request, 1.0, out)
