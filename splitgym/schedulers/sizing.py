"""Pool sizing: how many machines to move between the pools, asked once a control interval.

A machine counts for a pool while it is at home there and available; machines whose home is the mixed pool are
nobody's to move. The engine picks the machines and keeps the minimum of each pool.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from splitgym.compile_cache import numba
from splitgym.config import STRICT
from splitgym.profile.tables import prompt_time_ns, token_time_ns
from splitgym.schedulers.builtin import CompiledSizing
from splitgym.schedulers.predict import mean_output, promised_tokens, wait_ns
from splitgym.types import Pool
from splitgym.view import ARRIVED_PROMPT_TOKENS, ARRIVED_REQUESTS, ClusterView

_PROMPT, _TOKEN, _MIXED = int(Pool.PROMPT), int(Pool.TOKEN), int(Pool.MIXED)
_NS = 1e-9

# Places in `state`.
MOVED_AT, TICK_AT, REQUESTS, TOKENS, _REQUEST_RATE, _TOKEN_RATE = range(6)


@numba.njit(cache=True)
def static_kernel(view, params, state):
    """Never moves a machine."""
    return 0


@numba.njit(cache=True)
def pool_size(view, pool):
    """Machines at home in a pool and available."""
    machines = 0
    for m in range(view.home_pool.shape[0]):
        if view.available[m] and view.home_pool[m] == pool:
            machines += 1
    return machines


@numba.njit(cache=True)
def mean_prompt(view):
    """Mean prompt of the requests that have arrived [tokens], at least 1; 1,024 before the first."""
    arrived = view.counters[ARRIVED_REQUESTS]
    if arrived == 0:
        return 1024.0
    return max(1.0, view.counters[ARRIVED_PROMPT_TOKENS] / arrived)


def count_from_here(view: ClusterView, state: NDArray[np.float64]) -> None:
    """Let a fresh `state` count arrivals from the view's present ones on."""
    state[TICK_AT] = view.clock[0]
    state[REQUESTS] = view.counters[ARRIVED_REQUESTS]
    state[TOKENS] = view.counters[ARRIVED_PROMPT_TOKENS]


@numba.njit(cache=True)
def prompt_pressure(view):
    """Predicted TTFT of a mean prompt in the prompt pool, relative to the SLO; 1 is at the SLO.

    The work queued on all machines but the mixed ones, overflow in the token pool included, is spread over
    the prompt machines.
    """
    return prompt_pressure_after(view, 0)


@numba.njit(cache=True)
def prompt_pressure_after(view, more):
    """`prompt_pressure` if the pool had `more` machines of its mean kind, negative for fewer; at least 1."""
    machines = 0
    waiting = 0.0
    own = 0.0
    tokens = np.int64(mean_prompt(view))
    for m in range(view.home_pool.shape[0]):
        if view.home_pool[m] == _MIXED:
            continue
        if view.prompt_tokens[m] > 0:
            waiting += wait_ns(view, m)
        if view.available[m] and view.home_pool[m] == _PROMPT:
            machines += 1
            own += prompt_time_ns(view.tables, view.machine_row[m], tokens)
    limit = view.rules.ttft_slo * prompt_time_ns(view.tables, 0, tokens)
    if more == 0:
        return (waiting + own) / max(1, machines) / limit
    return (waiting / max(1, machines + more) + own / max(1, machines)) / limit


@numba.njit(cache=True)
def token_pressure(view):
    """How full the token pool is: token time relative to its SLO or memory promised, whichever is more.

    The decodes of all machines but the mixed ones, overflow in the prompt pool included, are spread over the
    token machines.
    """
    return token_pressure_after(view, 0)


@numba.njit(cache=True)
def token_pressure_after(view, more):
    """`token_pressure` if the pool had `more` machines of its mean kind, negative for fewer; at least 1."""
    machines = 0
    requests, context, capacity = 0, 0, 0
    promised = 0.0
    mean = mean_output(view)
    for m in range(view.home_pool.shape[0]):
        if view.home_pool[m] == _MIXED:
            continue
        requests += view.running[m] + view.inbound[m]
        context += view.running_context_tokens[m] + view.inbound_prompt_tokens[m]
        if view.running[m] + view.inbound[m] > 0:
            promised += promised_tokens(view, m, mean)
        if view.available[m] and view.home_pool[m] == _TOKEN:
            machines += 1
            capacity += view.kv_capacity_tokens[m]
    if requests == 0:
        return 0.0
    if machines == 0:
        return np.inf
    then = max(1, machines + more)
    batch = (requests + then - 1) // then
    spent = 0.0
    for m in range(view.home_pool.shape[0]):
        if view.available[m] and view.home_pool[m] == _TOKEN:
            spent += token_time_ns(view.tables, view.machine_row[m], batch, context // then)
    alone = np.int64(mean_prompt(view) + 0.5 * mean)
    limit = view.rules.tbt_slo * max(1, token_time_ns(view.tables, 0, 1, alone))
    if more != 0:
        promised = promised * machines / then
    return max(spent / machines / limit, promised / max(1, capacity))


@numba.njit(cache=True)
def reactive_kernel(view, params, state):
    """Move towards the pool that is over its high threshold, if the other is under its low one."""
    prompt_high, prompt_low, token_high, token_low = params[0], params[1], params[2], params[3]
    cool_down_ns, step = params[4] / _NS, int(params[5])
    now = np.float64(view.clock[0])
    if now - state[MOVED_AT] < cool_down_ns:
        return 0
    prompt, token = prompt_pressure(view), token_pressure(view)
    move = 0
    if prompt > prompt_high and token < token_low and pool_size(view, _TOKEN) > 1:
        move = step
    elif token > token_high and prompt < prompt_low and pool_size(view, _PROMPT) > 1:
        move = -step
    if move != 0:
        state[MOVED_AT] = now
    return move


@numba.njit(cache=True)
def _sustained_batch(view, row, capacity, context, limit_ns):
    """The largest decode batch within the time limit, the memory and the task limit, at least 1 (bisection).

    Args:
        row: machine type.
        capacity: KV tokens of the machine.
        context: mean context of a request [tokens].
        limit_ns: what a token iteration may take.
    """
    low = 1
    high = max(1, min(view.rules.max_tasks, capacity // max(1, context)))
    while low < high:
        middle = (low + high + 1) // 2
        if token_time_ns(view.tables, row, middle, middle * context) <= limit_ns:
            low = middle
        else:
            high = middle - 1
    return low


@numba.njit(cache=True)
def needed_machines(view, request_rate, token_rate, utilisation):
    """Prompt and token machines that a load needs, as real numbers, from the profiles' throughput.

    Args:
        request_rate: arriving requests per second.
        token_rate: arriving prompt tokens per second.
        utilisation: share of its throughput that a machine is planned for.

    Returns:
        (prompt machines, token machines) of the mean kind among those that can move; zeros without a load.
    """
    if request_rate <= 0.0 or token_rate <= 0.0:
        return 0.0, 0.0
    output = mean_output(view)
    prompt = max(np.int64(1), np.int64(token_rate / request_rate))
    batch_tokens = max(prompt, view.rules.max_prompt_tokens)
    context = np.int64(prompt + 0.5 * output)
    limit = np.int64(view.rules.tbt_slo * utilisation * token_time_ns(view.tables, 0, 1, context))
    machines = 0
    prompt_speed, token_speed = 0.0, 0.0
    for m in range(view.home_pool.shape[0]):
        if not view.available[m] or view.home_pool[m] == _MIXED:
            continue
        row = view.machine_row[m]
        machines += 1
        prompt_speed += batch_tokens / (prompt_time_ns(view.tables, row, batch_tokens) * _NS)
        batch = _sustained_batch(view, row, view.kv_capacity_tokens[m], context, limit)
        token_speed += batch / (max(1, token_time_ns(view.tables, row, batch, batch * context)) * _NS)
    if machines == 0:
        return 0.0, 0.0
    return (
        token_rate / (prompt_speed / machines * utilisation),
        request_rate * output / (token_speed / machines * utilisation),
    )


@numba.njit(cache=True)
def _track(view, time_constant_s, state):
    """Update the moving averages of arriving requests and prompt tokens per second."""
    now = np.float64(view.clock[0])
    elapsed_s = (now - state[TICK_AT]) * _NS
    if elapsed_s <= 0.0:
        return
    requests = np.float64(view.counters[ARRIVED_REQUESTS])
    tokens = np.float64(view.counters[ARRIVED_PROMPT_TOKENS])
    weight = elapsed_s / (elapsed_s + time_constant_s)
    state[_REQUEST_RATE] += weight * ((requests - state[REQUESTS]) / elapsed_s - state[_REQUEST_RATE])
    state[_TOKEN_RATE] += weight * ((tokens - state[TOKENS]) / elapsed_s - state[_TOKEN_RATE])
    state[TICK_AT], state[REQUESTS], state[TOKENS] = now, requests, tokens


@numba.njit(cache=True)
def ewma_kernel(view, params, state):
    """Move one machine towards the split that the tracked load needs."""
    time_constant_s, utilisation, band, cool_down_ns = params[0], params[1], params[2], params[3] / _NS
    _track(view, time_constant_s, state)
    now = np.float64(view.clock[0])
    if now - state[MOVED_AT] < cool_down_ns:
        return 0
    prompt_need, token_need = needed_machines(view, state[_REQUEST_RATE], state[_TOKEN_RATE], utilisation)
    need = prompt_need + token_need
    prompts, tokens = pool_size(view, _PROMPT), pool_size(view, _TOKEN)
    if need <= 0.0 or prompts + tokens < 2:
        return 0
    target = (prompts + tokens) * (prompt_need / need)
    target = min(max(target, 1.0), np.float64(prompts + tokens - 1))
    move = 0
    if target - prompts > band and tokens > 1:
        move = 1
    elif prompts - target > band and prompts > 1:
        move = -1
    if move != 0:
        state[MOVED_AT] = now
    return move


@dataclass(frozen=True, config=STRICT)
class Static(CompiledSizing):
    """Keeps the pools as they are."""

    registered = "static"
    kernel = staticmethod(static_kernel)


@dataclass(frozen=True, config=STRICT)
class Reactive(CompiledSizing):
    """Thresholds on the pressure of each pool, with hysteresis and a cool-down.

    Pressure 1 is where the pool's SLO (or, for tokens, the memory) is just met. A pool gets machines when it
    is over its high threshold while the other is under its low one; in between nothing moves.
    """

    prompt_high: float = Field(default=0.75, ge=0)
    """Prompt pool: gets a machine above this predicted TTFT / SLO."""
    prompt_low: float = Field(default=0.6, ge=0)
    """Prompt pool: may give one below this."""
    token_high: float = Field(default=0.95, ge=0)
    """Token pool: gets a machine above this token time / SLO (or memory promised / capacity)."""
    token_low: float = Field(default=0.85, ge=0)
    """Token pool: may give one below this."""
    cool_down_s: float = Field(default=6.0, ge=0)
    """Nothing moves for this long after a move."""
    step: int = Field(default=1, ge=1)
    """Machines a move."""

    registered = "reactive"
    kernel = staticmethod(reactive_kernel)


@dataclass(frozen=True, config=STRICT)
class Ewma(CompiledSizing):
    """Tracks the arriving load and moves one machine at a time towards the split that it needs.

    Arriving requests and prompt tokens per second are moving averages of the view's counters, weighted by
    dt / (dt + time constant). Output tokens per second are arriving requests x the recent mean output:
    completions would show a token pool's own limit, not the load on it, once it is saturated.
    """

    time_constant_s: float = Field(default=30.0, gt=0)
    utilisation: float = Field(default=0.8, gt=0, le=1)
    """Share of its throughput, and of the TBT SLO, that a machine is planned for."""
    band: float = Field(default=0.75, ge=0.5)
    """Nothing moves while the pool is within this many machines of its target."""
    cool_down_s: float = Field(default=4.0, ge=0)
    """Nothing moves for this long after a move."""

    registered = "ewma"
    kernel = staticmethod(ewma_kernel)

    def reset(self, view: ClusterView, seed: int) -> None:
        """Forget the last run; count arrivals from here on."""
        super().reset(view, seed)
        count_from_here(view, self.state)
