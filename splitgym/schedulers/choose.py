"""How kernels choose: least cost, ties to the lowest index, random numbers that every machine agrees on."""

import numpy as np

from splitgym.compile_cache import numba

PROMPT_COST, SPLIT_COST, SAME_COST = range(3)
"""Rows of a (3, M) cost matrix: A(p), B(t) for p != t, B(t) for p = t. Infinite where not allowed."""

COST_STEP = 2.0**-30
"""Costs are compared in whole steps of this: integer sums are exact, so no two pairs differ by rounding."""
_LIMIT = 1 << 60
_NEVER = 1 << 62


@numba.njit(cache=True)
def _steps(cost):
    """A cost in whole steps; what is beyond +-2**30 counts as that much, infinity as never."""
    if cost == np.inf:
        return np.int64(_NEVER)
    scaled = cost / COST_STEP
    if scaled >= _LIMIT:
        return np.int64(_LIMIT)
    if scaled <= -_LIMIT:
        return np.int64(-_LIMIT)
    return np.int64(np.floor(scaled + 0.5))


@numba.njit(cache=True)
def best_pair(costs):
    """The pair (p, t) of least cost: A(p) + B_split(t) for p != t, A(m) + B_same(m) on one machine.

    Args:
        costs: (3, M) float64, see the row constants; infinite where a machine is not allowed.

    Returns:
        (p, t); the lowest p, then the lowest t, among pairs of equal cost. (-1, -1) where no pair is allowed.

    O(M), with the decisions of a search over all pairs. Without the diagonal the best pair is the best A with
    the best B. Where both are one machine, one of the two takes its second best: any other pair costs at
    least as much as one of these two, and one that costs as much has no lower index.
    """
    p1 = p2 = t1 = t2 = same = -1
    a1 = a2 = b1 = b2 = best = _NEVER
    for m in range(costs.shape[1]):
        a = _steps(costs[PROMPT_COST, m])
        b = _steps(costs[SPLIT_COST, m])
        c = _steps(costs[SAME_COST, m])
        if a < a1:
            p2, a2, p1, a1 = p1, a1, m, a
        elif a < a2:
            p2, a2 = m, a
        if b < b1:
            t2, b2, t1, b1 = t1, b1, m, b
        elif b < b2:
            t2, b2 = m, b
        if a < _NEVER and c < _NEVER and a + c < best:
            best, same = a + c, m
    p = t = same
    if p1 >= 0 and t1 >= 0 and p1 != t1:
        p, t, best = _lower(p, t, best, p1, t1, a1 + b1)
    elif p1 >= 0 and t1 >= 0:
        if t2 >= 0:
            p, t, best = _lower(p, t, best, p1, t2, a1 + b2)
        if p2 >= 0:
            p, t, best = _lower(p, t, best, p2, t1, a2 + b1)
    return p, t


@numba.njit(cache=True)
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
