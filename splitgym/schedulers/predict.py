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
from splitgym.schedulers.lanes import (
    ALONE_NS,
    BATCH,
    CAPACITY,
    CONSTANT_NS,
    DECODES_NS,
    END_NS,
    EXPECTED,
    FACTOR,
    JOINED_SLOPE,
    JOINED_TICKS,
    LANES,
    LINK,
    OWN_NS,
    PREDICTED,
    PROMPTING,
    QUEUE_NS,
    RUNNING,
    SHARE_AT_NS,
    TICK,
    USED,
    block_of,
    lanes_of,
    lay_request,
    num_blocks,
)
from splitgym.schedulers.lanes import SHARE as SHARE_ROW
from splitgym.view import SHARE_TIME_CONSTANT_NS

TIME_CONSTANT = float(SHARE_TIME_CONSTANT_NS)
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
def reference_of(tables, mean, prompt_tokens, max_tokens):
    """The `Reference` of a request.

    Args:
        tables: `ProfileTables`.
        mean: recent mean output [tokens].
        prompt_tokens, max_tokens: the request's.
    """
    output = min(mean, np.float64(max_tokens)) if max_tokens > 0 else mean
    context = prompt_tokens + np.int64(output * 0.5)
    return Reference(
        np.float64(prompt_time_ns(tables, 0, prompt_tokens)),
        np.float64(max(1, token_time_ns(tables, 0, 1, context))),
        output,
        mean,
    )


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def reference(view, request):
    """The request alone on the reference machine (row 0 of the tables): a `Reference`."""
    return reference_of(view.tables, mean_output(view), request.prompt_tokens, request.max_tokens)


class Asked(NamedTuple):
    """What all machines share in the predictions for a request: numbers of `predict_block`."""

    now_ns: float
    prompt_tokens: float
    output_tokens: float  # estimate for this request
    mean_output_tokens: float  # and for all others
    gaps: float  # between its output tokens; an output below 2 counts as 2
    ref_ttft_ns: float
    ttft_limit_ns: float
    tbt_limit_ns: float
    layerwise: bool  # its KV cache ships while the prompt is computed
    kv_size: float  # of its prompt [bytes x 1e9]: over bandwidth gives ns
    interference: float  # weight of the time that prompts take from decodes, u / (1 - u)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def asked(ref, prompt_tokens, now_ns, rules, interference):
    """The `Asked` of a request with the given `Reference` and prompt, under the view's `rules`."""
    return Asked(
        np.float64(now_ns),
        np.float64(prompt_tokens),
        ref.output_tokens,
        ref.mean_output_tokens,
        max(1.0, ref.output_tokens - 1.0),
        ref.ttft_ns,
        ref.ttft_ns * rules.ttft_slo,
        ref.tbt_ns * rules.tbt_slo,
        prompt_tokens >= rules.overlap_min_tokens,
        np.float64(rules.kv_bytes_per_token) * prompt_tokens * 1e9,
        np.float64(interference),
    )


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def predict_block(b, q):
    """Fill the predictions for a request on the machines of a block of `splitgym.schedulers.lanes`.

    Args:
        b: (BLOCK,) float64: its laid rows and OWN_NS are read, the predictions written.
        q: `Asked`.

    A batch beyond `max_tasks` is extrapolated, not queued: a full machine looks slow.
    """
    for j in range(LANES):
        wait = b[QUEUE_NS * LANES + j] + max(0.0, b[END_NS * LANES + j] - q.now_ns)
        own = b[OWN_NS * LANES + j]
        batch, running = b[BATCH * LANES + j], b[RUNNING * LANES + j]
        capacity = b[CAPACITY * LANES + j]
        joined = np.floor(
            (b[JOINED_TICKS * LANES + j] + b[JOINED_SLOPE * LANES + j] * q.prompt_tokens) * TICK
        )
        expected = b[EXPECTED * LANES + j] + batch * q.mean_output_tokens
        promised = max(b[USED * LANES + j], expected)
        shortfall = max(0.0, promised + q.prompt_tokens + q.output_tokens - capacity)
        # The decay is tau / (tau + dt), not exp(-dt / tau): the same bits everywhere.
        elapsed = max(0.0, q.now_ns - b[SHARE_AT_NS * LANES + j])
        share = min(MAX_SHARE, b[SHARE_ROW * LANES + j] * TIME_CONSTANT / (TIME_CONSTANT + elapsed))
        # n = batch + 1 requests with this one; memory frees as they end, one in o / (n + 1) iterations or so.
        same = q.output_tokens * joined * (1.0 + q.interference * (share / (1.0 - share)))
        same += shortfall / (batch + 2.0) * joined
        shipped = q.kv_size / b[LINK * LANES + j]
        transfer = b[CONSTANT_NS * LANES + j] if q.layerwise else shipped
        split = same + transfer + b[PROMPTING * LANES + j] * wait
        factor = b[FACTOR * LANES + j]
        ttft = factor * wait + max(factor * own, b[DECODES_NS * LANES + j])
        harmed = running * (joined - b[ALONE_NS * LANES + j])
        b[(PREDICTED + TTFT) * LANES + j] = ttft / q.ttft_limit_ns
        b[(PREDICTED + TBT_SPLIT) * LANES + j] = split / q.gaps / q.tbt_limit_ns
        b[(PREDICTED + TBT_SAME) * LANES + j] = same / q.gaps / q.tbt_limit_ns
        b[(PREDICTED + WAIT_S) * LANES + j] = wait * 1e-9
        b[(PREDICTED + PROMPT_TIME) * LANES + j] = own / q.ref_ttft_ns
        b[(PREDICTED + SHARE) * LANES + j] = share
        b[(PREDICTED + HARM_PROMPT) * LANES + j] = batch * own / (q.mean_output_tokens * q.tbt_limit_ns)
        b[(PREDICTED + HARM_TOKEN) * LANES + j] = harmed / q.tbt_limit_ns
        b[(PREDICTED + ITERATION) * LANES + j] = joined / q.tbt_limit_ns
        b[(PREDICTED + MEMORY_USED) * LANES + j] = b[USED * LANES + j] / capacity
        b[(PREDICTED + MEMORY_PROMISED) * LANES + j] = promised / capacity


@numba.njit(cache=True, error_model="numpy")
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
    """
    machines = view.machine_row.shape[0]
    ref = reference(view, request)
    q = asked(ref, request.prompt_tokens, view.clock[0], view.rules, interference)
    lanes = lanes_of(view)
    lay_request(lanes, machines, view.tables, request.prompt_tokens)
    for block in range(num_blocks(machines)):
        b, first = block_of(lanes, block), block * LANES
        predict_block(b, q)
        for j in range(min(LANES, machines - first)):
            for column in range(NUM_PREDICTIONS):
                out[first + j, column] = b[(PREDICTED + column) * LANES + j]
    return ref


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def predict_request(view, request, out):
    """`predict` with interference at weight 1: what an observation shows. See there."""
    predict(view, request, 1.0, out)
