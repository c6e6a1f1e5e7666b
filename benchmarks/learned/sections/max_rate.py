"""The highest rate at which all nine SLOs hold: learned routing against the paper's scheduler at its best."""

from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.learned.cases import CASES, Case
from benchmarks.learned.entrants import INDEX, MP_ORACLE, RESIDUAL, TUNED, field_of
from benchmarks.learned.measure import Bench, highest_rate
from benchmarks.learned.page import Section, Table

WORKLOADS = (
    "poisson:azure-conv",
    "poisson:azure-code",
    "shifting:azure-conv~azure-code",
    "mixed:azure-conv+azure-code",
)
"""Those that are drawn: real stamps can be sped up only until the test part is too short for a window."""
ROWS = ("no split (JSQ, tokens)", MP_ORACLE, INDEX, TUNED, RESIDUAL)
WINDOWS = 3


def max_rate(case: Case, bench: Bench, workloads: tuple[str, ...] = WORKLOADS) -> Section:
    """The section of one cluster."""
    field = field_of(case)
    entrants = {entrant.name: entrant for entrant in field.entrants}
    rates: dict[str, np.ndarray] = {}  # (policies of the row, workloads)
    for row in ROWS:
        if row not in field.groups:
            continue
        rates[row] = np.array(
            [
                [highest_rate(case, entrants[name], w, bench, WINDOWS) for w in workloads]
                for name in field.groups[row]
            ]
        )
        bench.say(f"{case.name}: {row} done")
    best = rates[MP_ORACLE].max(axis=0)
    rows = []
    for row, found in rates.items():
        shown = best if row == MP_ORACLE else found.mean(axis=0)
        rows.append((row, *(f"{rate:.1f}" for rate in shown), f"{(shown / best).mean():.2f}"))
    claims = {}
    if RESIDUAL in rates:
        ratios = (rates[RESIDUAL] / best).mean(axis=1)
        key = f"routing.max_rate_over_mp.{case.name}"
        claims = {key: float(ratios.mean()), f"{key}.worst_seed": float(ratios.min())}
    text = (
        f"Requests/s, by bisection to 1 %, the requests of {WINDOWS} test windows pooled. mp has the best of "
        f"{len(case.splits)} splits x 3 thresholds for each workload, in hindsight. The residual's row is "
        "the mean over training seeds, the last column the mean over workloads of the ratio to mp. Of real "
        "stamps no rates are given: they can be sped up only until the test part is too short for a window.",
    )
    table = Table("Highest rate under nine SLOs", ("policy", *workloads, "over mp"), tuple(rows))
    return Section(f"Highest rate: {case.title}", bench.command, text, (table,), claims)


def _section(case: Case) -> Callable[[Bench], Section]:
    return partial(max_rate, case)


SECTIONS = {f"max-rate-{name}": _section(CASES[name]) for name in ("8h", "4h4a")}
