"""The search, without a simulator: which questions to ask, in which order, and what their answers prove.

A question is "do `counts` machines (one number a pool) hold the SLOs at step `k` of the rates?". It is taken
to be monotone: more machines, or a lower rate, never turn yes into no. All below rests on that alone: what is
smaller than a cluster that failed fails too, and an interval of splits is dismissed by one question about the
cluster that has, in each pool, as many machines as any of them. Where simulations are not quite monotone
(percentiles of a finite window are noisy near the edge) the answer is *an* edge within that noise.

Searches are generators: they yield a batch of questions and are sent the answers. So they run the same with
one worker or with a hundred, and several searches share one pool of workers (`together`).
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeVar

Counts = tuple[int, ...]
Question = tuple[Counts, int]
Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")
Asking = Generator[list[Q], list[A], T]
Search = Asking[Question, bool, T]

NONE = -1
"""The step below the lowest: not even that holds."""


@dataclass(frozen=True)
class Best:
    """The best point that was found."""

    counts: Counts
    step: int
    """Highest step that holds there; `NONE` where not even the lowest does."""


def highest(counts: Counts, top: int, guess: int, known: int = NONE) -> Search[int]:
    """Highest step in [0, top] that holds: from `guess` in growing strides, then bisection.

    Args:
        counts: the cluster.
        top: the last step there is.
        guess: where to begin.
        known: a step that is known to hold.
    """
    low, high, stride = known, top + 1, 4
    step = min(max(guess, low + 1), top)
    upward = None
    while high - low > 1:
        (held,) = yield [(counts, step)]
        low, high = (step, high) if held else (low, step)
        if upward is None:
            upward = held
        if held is upward and (high == top + 1 if upward else low == known):  # no bracket yet
            step = min(low + stride, top) if upward else max(high - stride, known + 1)
            stride *= 2
        else:
            step = (low + high) // 2
    return low


def best_split(line: Sequence[Counts], top: int, guess: int) -> Search[Best]:
    """The cluster of a line that holds the highest step: branch and bound.

    The middle is measured; an interval can only hold something better if the cluster with the most machines
    of each pool that any of it has holds one step more. On ties the one found first stays.

    Args:
        line: (N,) clusters, ordered so that neighbours are alike (one pool grows as the other shrinks).
        top, guess: see `highest`.
    """
    middle = (len(line) - 1) // 2
    best = Best(line[middle], (yield from highest(line[middle], top, guess)))
    intervals = _halves(0, len(line) - 1, middle)
    while intervals and best.step < top:
        goal = best.step + 1
        bounds = yield [(_most(line[a : b + 1]), goal) for a, b in intervals]
        intervals = [i for i, held in zip(intervals, bounds) if held]
        middles = [(a + b) // 2 for a, b in intervals]
        better = yield [(line[m], goal) for m in middles]
        climbs = [highest(line[m], top, goal + 1, goal) for m, held in zip(middles, better) if held]
        steps = yield from together(climbs)
        for m, step in zip((m for m, held in zip(middles, better) if held), steps):
            if step > best.step:
                best = Best(line[m], step)
        intervals = [half for (a, b), m in zip(intervals, middles) for half in _halves(a, b, m)]
    return best


def cheapest(prices: Sequence[float], most_machines: int, step: int = 0) -> Search[Best | None]:
    """The cheapest cluster of one or two pools that holds one step.

    Args:
        prices: (1 or 2,) price of a machine of each pool.
        most_machines: no pool has more.
        step: of the rates.

    Returns:
        None where not even `most_machines` in each pool hold it. Of equal prices the one found first.
    """
    pools = len(prices)
    n, low = 1, 0
    while not (yield [((n,) * pools, step)])[0]:
        if n == most_machines:
            return None
        low, n = n, min(2 * n, most_machines)
    while n - low > 1:
        middle = (low + n) // 2
        low, n = (low, middle) if (yield [((middle,) * pools, step)])[0] else (middle, n)
    best: Counts = (n,) * pools
    if pools == 1:
        return Best(best, step)

    def affordable(first: int) -> int:
        """Most machines of the second pool with which this is still cheaper than the best."""
        left = price(best) - first * prices[0]
        return min(most_machines, ceil(left / prices[1] - 1e-9) - 1)

    def price(counts: Counts) -> float:
        return sum(p * c for p, c in zip(prices, counts))

    intervals = [(1, most_machines)]
    while intervals:
        intervals = [(a, min(b, _last(affordable, a, b))) for a, b in intervals if affordable(a) >= 1]
        bounds = yield [((b, affordable(a)), step) for a, b in intervals]
        intervals = [i for i, held in zip(intervals, bounds) if held]
        middles = [(a + b) // 2 for a, b in intervals]
        better = yield [((m, affordable(m)), step) for m in middles]
        columns = [(m, affordable(m)) for m, held in zip(middles, better) if held]
        for found in (yield from together([_fewest(m, 0, t, step) for m, t in columns])):
            best = min(best, found, key=price)
        intervals = [half for (a, b), m in zip(intervals, middles) for half in _halves(a, b, m)]
    return Best(best, step)


def frontier(columns: Sequence[int], most: int, step: int = 0) -> Search[list[int | None]]:
    """Fewest machines of the second pool that hold a step, for numbers of machines in the first.

    Args:
        columns: machines in the first pool, ascending.
        most: machines of the second pool; None stands where even these fail.
        step: of the rates.
    """
    found: dict[int, int | None] = {}
    intervals = [(0, len(columns) - 1)] if columns else []
    while intervals:
        middles = [(a + b) // 2 for a, b in intervals]
        lows, highs = [], []
        for m in middles:  # between the neighbours that are known
            right = [v for i, v in found.items() if i > m and v is not None]
            left = [v for i, v in found.items() if i < m and v is not None]
            lows.append(max(right, default=1) - 1)
            highs.append(min(left, default=most))
        held = yield [((columns[m], high), step) for m, high in zip(middles, highs)]
        rows = zip(middles, lows, highs, held)
        asks = [_fewest(columns[m], low, high, step) for m, low, high, ok in rows if ok]
        points = iter((yield from together(asks)))
        for m, ok in zip(middles, held):
            found[m] = next(points)[1] if ok else None
        intervals = [half for (a, b), m in zip(intervals, middles) for half in _halves(a, b, m)]
    return [found[i] for i in range(len(columns))]


def _fewest(first: int, low: int, high: int, step: int) -> Search[Counts]:
    """(first, t) with the smallest t in (low, high] that holds; `high` is known to."""
    while high - low > 1:
        middle = (low + high) // 2
        (held,) = yield [((first, middle), step)]
        low, high = (low, middle) if held else (middle, high)
    return (first, high)


def together(searches: Sequence[Asking[Q, A, T]]) -> Asking[Q, A, list[T]]:
    """Several searches at once: each round asks what all of them ask.

    Returns:
        their results, in their order.
    """
    results: dict[int, T] = {}
    asked: dict[int, list[Q]] = {}

    def advance(i: int, answers: list[A] | None) -> None:
        try:
            asked[i] = searches[i].send(answers)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as done:
            asked.pop(i, None)
            results[i] = done.value

    for i in range(len(searches)):
        advance(i, None)
    while asked:
        answers = yield [q for batch in asked.values() for q in batch]
        place = 0
        for i, batch in list(asked.items()):
            advance(i, answers[place : place + len(batch)])
            place += len(batch)
    return [results[i] for i in range(len(searches))]


def remember(search: Search[T]) -> Search[T]:
    """The same search, asking nothing twice and nothing that earlier answers imply."""
    known: dict[Question, bool] = {}

    def implied(question: Question) -> bool | None:
        counts, step = question
        if question in known:
            return known[question]
        for (other, at), held in known.items():
            if held and at >= step and all(o <= c for o, c in zip(other, counts)):
                return True
            if not held and at <= step and all(o >= c for o, c in zip(other, counts)):
                return False
        return None

    try:
        asked = next(search)
        while True:
            open_questions = list(dict.fromkeys(q for q in asked if implied(q) is None))
            if open_questions:
                known.update(zip(open_questions, (yield open_questions), strict=True))
            answers = [implied(q) for q in asked]
            asked = search.send([bool(a) for a in answers])
    except StopIteration as done:
        result: T = done.value
        return result


def translate(search: Search[T], task: Callable[[Question], Q], held: Callable[[A], bool]) -> Asking[Q, A, T]:
    """The same search, asking in other words: `task` of each question, `held` of each answer."""
    try:
        asked = next(search)
        while True:
            answers = yield [task(q) for q in asked]
            asked = search.send([held(a) for a in answers])
    except StopIteration as done:
        result: T = done.value
        return result


def drive(search: Asking[Q, A, T], ask: Callable[[list[Q]], Sequence[A]]) -> T:
    """Run a search to its end; `ask` answers a batch."""
    try:
        asked = next(search)
        while True:
            asked = search.send(list(ask(asked)) if asked else [])
    except StopIteration as done:
        result: T = done.value
        return result


def _halves(a: int, b: int, middle: int) -> list[tuple[int, int]]:
    return [(x, y) for x, y in ((a, middle - 1), (middle + 1, b)) if x <= y]


def _most(line: Sequence[Counts]) -> Counts:
    return tuple(max(pool) for pool in zip(*line))


def _last(affordable: Callable[[int], int], a: int, b: int) -> int:
    """Last number in [a, b] of which at least one machine of the other pool is affordable; `a` is such."""
    while b > a and affordable(b) < 1:
        b -= 1
    return b
