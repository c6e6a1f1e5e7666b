"""How kernels choose: least cost, ties to the lowest index, random numbers that every machine agrees on."""

import numpy as np

from splitgym.compile_cache import numba
from splitgym.schedulers.lanes import LANES, num_blocks

PROMPT_COST, SPLIT_COST, SAME_COST = range(3)
"""Rows of a (3, M) cost matrix: A(p), B(t) for p != t, B(t) for p = t. Infinite where not allowed."""

COST_STEP = 2.0**-30
"""Costs are compared in whole steps of this: integer sums are exact, so no two pairs differ by rounding."""
_LIMIT = 2.0**60
NEVER = np.int64(1 << 62)
"""A cost in steps that stands for infinity."""


PAIR_ROWS = 4
"""Rows of `LANES` places that choosing a pair needs for a block of machines, see `pair_steps`."""


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def _steps(cost):
    """A cost in whole steps; what is beyond +-2**30 counts as that much, infinity as never."""
    scaled = min(_LIMIT, max(-_LIMIT, cost / COST_STEP))
    steps = np.int64(np.floor(scaled + 0.5))
    return NEVER if cost == np.inf else steps


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def pair_steps(prompt, split, same, steps, least):
    """The costs of a block of machines in whole steps.

    Args:
        prompt, split, same: (LANES,) float64 rows of costs: A, B for p != t, B for p = t.
        steps: (PAIR_ROWS x LANES,) int64, filled: these three, and the cost of the pair p = t.
        least: (PAIR_ROWS x LANES,) int64, lowered to the least of each so far.
    """
    for j in range(LANES):
        a, b, c = _steps(prompt[j]), _steps(split[j]), _steps(same[j])
        both = a + c if a < NEVER and c < NEVER else NEVER
        steps[j], steps[LANES + j], steps[2 * LANES + j], steps[3 * LANES + j] = a, b, c, both
        least[j] = min(least[j], a)
        least[LANES + j] = min(least[LANES + j], b)
        least[3 * LANES + j] = min(least[3 * LANES + j], both)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def _least(least, row):
    """The least of a row of `least`."""
    best = NEVER
    for j in range(LANES):
        best = min(best, least[row * LANES + j])
    return best


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def _first(steps, row, cost):
    """The lowest machine whose cost in a row is this; -1 where that is never."""
    if cost == NEVER:
        return -1
    m = 0
    while steps[(m // LANES * PAIR_ROWS + row) * LANES + m % LANES] != cost:
        m += 1
    return m


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def _second(steps, row, blocks, first):
    """The least cost of a row without machine `first`, and the lowest machine that has it."""
    best, cost = -1, NEVER
    for m in range(blocks * LANES):
        own = steps[(m // LANES * PAIR_ROWS + row) * LANES + m % LANES]
        if own < cost and m != first:
            best, cost = m, own
    return best, cost


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def best_of_steps(steps, least, blocks):
    """The best pair, see `best_pair`, from what `pair_steps` made of all blocks.

    Without the diagonal the best pair is the best A with the best B. Where both are one machine, one of the
    two takes its second best: any other pair costs at least as much as one of these two, and one that costs
    as much has no lower index.
    """
    a1, b1, best = _least(least, 0), _least(least, 1), _least(least, 3)
    p1, t1, p = _first(steps, 0, a1), _first(steps, 1, b1), _first(steps, 3, best)
    t = p
    if p1 >= 0 and t1 >= 0 and p1 != t1:
        p, t, best = _lower(p, t, best, p1, t1, a1 + b1)
    elif p1 >= 0 and t1 >= 0:
        t2, b2 = _second(steps, 1, blocks, t1)
        if t2 >= 0:
            p, t, best = _lower(p, t, best, p1, t2, a1 + b2)
        p2, a2 = _second(steps, 0, blocks, p1)
        if p2 >= 0:
            p, t, best = _lower(p, t, best, p2, t1, a2 + b1)
    return p, t


@numba.njit(cache=True, error_model="numpy")
def best_pair(costs):
    """The pair (p, t) of least cost: A(p) + B_split(t) for p != t, A(m) + B_same(m) on one machine.

    Args:
        costs: (3, M) float64, see the row constants; infinite where a machine is not allowed.

    Returns:
        (p, t); the lowest p, then the lowest t, among pairs of equal cost. (-1, -1) where no pair is allowed.

    O(M), with the decisions of a search over all pairs.
    """
    machines = costs.shape[1]
    blocks = num_blocks(machines)
    steps = np.empty(blocks * PAIR_ROWS * LANES, np.int64)
    least = np.full(PAIR_ROWS * LANES, NEVER)
    padded = np.empty((3, LANES))
    for block in range(blocks):
        padded[:] = np.inf
        first = block * LANES
        count = min(LANES, machines - first)
        padded[:, :count] = costs[:, first : first + count]
        at = block * PAIR_ROWS * LANES
        own = steps[at : at + PAIR_ROWS * LANES]
        pair_steps(padded[PROMPT_COST], padded[SPLIT_COST], padded[SAME_COST], own, least)
    return best_of_steps(steps, least, blocks)


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def _lower(p, t, cost, other_p, other_t, other_cost):
    """Of two pairs the one of lower (cost, p, t)."""
    if other_cost < cost or (other_cost == cost and (other_p < p or (other_p == p and other_t < t))):
        return other_p, other_t, other_cost
    return p, t, cost


@numba.njit(cache=True)
def next_random(state, place):
    """The next number of the splitmix64 generator kept in `state[place]`, as uint64.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    x = np.uint64(state[place]) + np.uint64(0x9E3779B97F4A7C15)
    state[place] = np.int64(x)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True)
def random_below(state, place, n):
    """A random integer in [0, n); its bias is below n / 2**32."""
    return np.int64(((next_random(state, place) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@numba.njit(cache=True)
def count(flags):
    """Number of set flags."""
    total = 0
    for m in range(flags.shape[0]):
        if flags[m]:
            total += 1
    return total


@numba.njit(cache=True)
def nth(flags, n):
    """Index of the n-th set flag, from 0; -1 where there are fewer."""
    for m in range(flags.shape[0]):
        if flags[m]:
            if n == 0:
                return m
            n -= 1
    return -1


@numba.njit(cache=True)
def next_from(flags, start):
    """The first set flag at or after `start`, going round; -1 where none is set."""
    size = flags.shape[0]
    for i in range(size):
        m = (start + i) % size
        if flags[m]:
            return m
    return -1


@numba.njit(cache=True)
def both_allowed(view):
    """(M,) bool: machines that may take a whole request."""
    return (view.prompt_allowed != 0) & (view.token_allowed != 0)


@numba.njit(cache=True)
def at_home(allowed, home_pool, opposite):
    """(M,) bool: allowed machines at home in the pool of the phase or in the mixed one.

    Args:
        allowed: (M,) mask of the phase.
        home_pool: (M,) `Pool`.
        opposite: the `Pool` of the other phase, as an int.

    Where none of them is allowed now (all failed, all draining), every allowed machine counts.
    """
    flags = (allowed != 0) & (home_pool != opposite)
    if count(flags) == 0:
        return allowed != 0
    return flags
