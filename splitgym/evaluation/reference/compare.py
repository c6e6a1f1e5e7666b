"""Runs a case of the open simulator with ours: how far the two agree, and why not where they do not."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitgym import schedulers
from splitgym.cluster import Cluster
from splitgym.evaluation.reference.cases import Case
from splitgym.evaluation.reference.oddities import Onsets, onsets_of_inputs, watch
from splitgym.evaluation.reference.setup import REFERENCE_MACHINE, Tables
from splitgym.metrics import KINDS, percentiles
from splitgym.slo import NINE_SLOS, PERCENTILES
from splitgym.trace import Trace

EXACT = 1e-6
"""Relative difference of TTFT and E2E per request up to which two results are the same."""
CLOSE = 0.005
"""Relative difference of percentiles up to which a run of many requests agrees."""
AGREES, NAMED, UNNAMED = "agrees", "differs (named)", "differs"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """One case, theirs and ours."""

    case: Case
    verdict: str
    """`AGREES`, `NAMED` or `UNNAMED`."""
    oddities: tuple[int, ...]
    """Oddities that may have made the difference, in the order of their onset."""
    ttft_difference: float
    """Largest relative difference of a request's TTFT; infinite where theirs did not complete it."""
    e2e_difference: float
    requests_that_differ: int
    percentile_differences: dict[str, tuple[float, float, float]]
    """(p50, p90, p99), ours over theirs less 1, by ttft, tbt, e2e; over the requests that both completed."""
    slos_ours: tuple[bool, ...]
    """The nine SLOs with their slowdowns: TTFT, TBT, E2E at p50, p90, p99."""
    slos_theirs: tuple[bool, ...]
    first_difference_s: float
    """Time at which the first difference shows; NaN where there is none."""

    @property
    def exact(self) -> bool:
        return self.requests_that_differ == 0

    @property
    def largest_percentile_difference(self) -> float:
        return max(abs(x) for three in self.percentile_differences.values() for x in (*three, 0.0) if x == x)


@dataclass(frozen=True)
class Ours:
    """What our engine says of a case: (N,) seconds, NaN where the request was refused."""

    ttft_s: Floats
    e2e_s: Floats
    onsets: Onsets


def run(case: Case, tables: Tables, cluster: Cluster | None = None) -> Ours:
    """Run a case with our specification engine under the open simulator's setup.

    Args:
        case: what to run.
        tables: the time tables.
        cluster: replaces the setup's own, to see what another option does.

    Raises:
        SplitgymError: an unknown scheduler, design or model.
    """
    cluster = cluster or case.setup.cluster(tables)
    need = case.prompt_tokens + case.output_tokens
    fits = need <= int(cluster.kv_capacity_tokens.min())
    onsets = onsets_of_inputs(case, ~fits)
    ttft, e2e = np.full(len(case), np.nan), np.full(len(case), np.nan)
    if fits.any():
        trace = Trace(
            arrival_s=case.arrival_s[fits],
            prompt_tokens=case.prompt_tokens[fits],
            output_tokens=case.output_tokens[fits],
            max_tokens=None,
            name=case.name,
            provenance={"source": "results of the open simulator"},
        )
        engine = watch(cluster, case.setup.routing, schedulers.sizing("static"), onsets)
        engine.reset(trace)
        engine.run_until_decision()
        out = engine.outcomes()
        ttft[fits] = (out.first_token_ns - out.arrival_ns) * 1e-9
        e2e[fits] = (out.finish_ns - out.arrival_ns) * 1e-9
    return Ours(ttft, e2e, onsets)


def compare(case: Case, tables: Tables) -> Comparison:
    """Run a case and judge it.

    A case agrees when every request does (to `EXACT`), and a run of many requests also when its percentiles
    do (to `CLOSE`) with the same verdict on all nine SLOs. Where it does not, the difference is that of a
    named oddity only if the oddity's onset comes before the first difference.
    """
    ours = run(case, tables)
    ttft = _relative(ours.ttft_s, case.ttft_s)
    e2e = _relative(ours.e2e_s, case.e2e_s)
    differ = (ttft > EXACT) | (e2e > EXACT)
    moment = np.where(ttft > EXACT, np.fmin(ours.ttft_s, case.ttft_s), np.fmin(ours.e2e_s, case.e2e_s))
    # A request that they never completed differs when ours does; one that we refused, from its arrival on.
    moment = np.where(np.isnan(case.e2e_s), ours.e2e_s, moment)
    moment = case.arrival_s + np.nan_to_num(moment, nan=0.0)
    first = float(moment[differ].min()) if differ.any() else np.nan
    shifts, slos_ours, slos_theirs = _percentiles(case, ours, tables)
    oddities = ours.onsets.before(first) if differ.any() else ()
    largest = max(abs(x) for three in shifts.values() for x in (*three, 0.0) if x == x)
    both = bool(np.isfinite(ttft).all() and np.isfinite(e2e).all())
    close = case.kind == "run" and both and largest <= CLOSE and slos_ours == slos_theirs
    verdict = AGREES if not differ.any() or close else NAMED if oddities else UNNAMED
    return Comparison(
        case=case,
        verdict=verdict,
        oddities=oddities,
        ttft_difference=float(ttft.max()),
        e2e_difference=float(e2e.max()),
        requests_that_differ=int(differ.sum()),
        percentile_differences=shifts,
        slos_ours=slos_ours,
        slos_theirs=slos_theirs,
        first_difference_s=first,
    )


def _relative(ours: Floats, theirs: Floats) -> Floats:
    """(N,) relative differences; infinite where only one has a value, 0 where neither has."""
    difference = np.abs(ours - theirs) / np.where(theirs > 0, theirs, 1.0)
    difference[np.isnan(ours) != np.isnan(theirs)] = np.inf
    return np.where(np.isnan(ours) & np.isnan(theirs), 0.0, difference)


def _percentiles(
    case: Case, ours: Ours, tables: Tables
) -> tuple[dict[str, tuple[float, float, float]], tuple[bool, ...], tuple[bool, ...]]:
    """Percentile differences, and the nine SLOs of ours and theirs.

    Slowdowns are theirs: TTFT over P(prompt), TBT over T(prompt), E2E over P + T x (output - 1), with P and T
    the tables of the reference machine (T read at the prompt's size). TBT is (E2E - TTFT) / (output - 1) for
    both; what they print divides by the output (oddities 2 and 12).
    """
    both = ~np.isnan(ours.e2e_s) & ~np.isnan(case.e2e_s)
    prompt, output = case.prompt_tokens[both].astype(np.float64), case.output_tokens[both]
    pair = (case.setup.model, REFERENCE_MACHINE)
    alone_ttft, alone_tbt = tables.prompt[pair](prompt), tables.token[pair](prompt)
    alone = {"ttft": alone_ttft, "tbt": alone_tbt, "e2e": alone_ttft + alone_tbt * (output - 1)}
    mine = _seconds(ours.ttft_s[both], ours.e2e_s[both], output)
    yours = _seconds(case.ttft_s[both], case.e2e_s[both], output)
    shifts = {}
    held: tuple[list[bool], list[bool]] = ([], [])
    for kind in KINDS:
        a, b = percentiles(mine[kind]), percentiles(yours[kind])
        shifts[kind] = (_shift(a[0], b[0]), _shift(a[1], b[1]), _shift(a[2], b[2]))
        for side, seconds in zip(held, (mine, yours), strict=True):
            found = percentiles(seconds[kind] / alone[kind])
            side += [not value >= limit for value, limit in zip(found, NINE_SLOS[kind], strict=True)]
    assert len(held[0]) == len(KINDS) * len(PERCENTILES)
    return shifts, tuple(held[0]), tuple(held[1])


def _shift(ours: float, theirs: float) -> float:
    return 0.0 if ours == theirs else ours / theirs - 1 if theirs else np.nan


def _seconds(ttft: Floats, e2e: Floats, output: NDArray[np.int64]) -> dict[str, Floats]:
    with np.errstate(divide="ignore", invalid="ignore"):
        tbt = np.where(output > 1, (e2e - ttft) / (output - 1), np.nan)
    return {"ttft": ttft, "tbt": tbt, "e2e": e2e}
