"""Goodput and percentiles of all routing policies on one cluster, below, at and above saturation."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.learned.cases import CASES, Case
from benchmarks.learned.entrants import MP_ORACLE, PRETRAINED_ROUTING, RESIDUAL, TUNED, Field, field_of
from benchmarks.learned.measure import NINE, Bench, Runs, measure
from benchmarks.learned.page import Section, Table
from benchmarks.learned.statistics import best_of, estimate, improvement, iqm, mean, pick

Floats = NDArray[np.float64]

OVERLOAD = 1.2
"""The load at which tails are compared."""


class Results:
    """Rows of the tables: (S, W, L, N) of each measure by row."""

    def __init__(self, runs: Runs, field: Field) -> None:
        self.case, self.rows = runs.case, tuple(field.groups)
        self.seeds = {row: 1 if row == MP_ORACLE else len(names) for row, names in field.groups.items()}
        self._runs, self._groups = runs, field.groups
        _, self.choices = best_of(runs.of(field.groups[MP_ORACLE], "goodput"))

    def of(self, row: str, measure: str = "goodput", loads: tuple[float, ...] | None = None) -> Floats:
        """A measure of a row, at some of the loads."""
        found = self._runs.of(self._groups[row], measure)
        if row == MP_ORACLE:
            found = pick(found, self.choices)
        if loads is None:
            return found
        return found[:, :, [self.case.loads.index(load) for load in loads]]


def routing(case: Case, bench: Bench, field: Field | None = None) -> Section:
    """The section of one cluster.

    Args:
        case: the cluster.
        bench: how runs are made.
        field: the policies; None is all of them.
    """
    field = field or field_of(case)
    found = Results(measure(case, field.entrants, bench), field)
    loads = " to ".join(f"{load:g}" for load in (case.claimed_loads[0], case.claimed_loads[-1]))
    where = case.title if case.model in case.title else f"{case.title}, {case.model}"
    text = (
        f"{where}; {len(case.workloads)} workloads x {case.windows} windows a load. "
        f"{_names(found)} {len(case.splits)} splits x 3 thresholds were run for the paper's scheduler (mp); "
        f"its row takes the best of them for each workload and load, on these very windows.",
    )
    tables = (
        _goodput(found, loads),
        _by_workload(found, loads),
        *(_percentiles(found, load) for load in (0.9, OVERLOAD) if load in case.loads),
        _choices(found, field),
    )
    return Section(f"Routing: {case.title}", bench.command, text, tables, claims(found))


def _names(found: Results) -> str:
    seeds = found.seeds.get(RESIDUAL, 0)
    return f"The ES residual is {seeds} training run{'s' if seeds != 1 else ''} with seeds of their own."


def _goodput(found: Results, loads: str) -> Table:
    case = found.case
    columns = ("policy", *(f"{load:g}" for load in case.loads), f"mean {loads}", f"IQM {loads}")
    rows = []
    for row in found.rows:
        values = found.of(row, loads=case.claimed_loads)
        by_load = [f"{mean(found.of(row, loads=(load,))):.3f}" for load in case.loads]
        better = "-"
        if TUNED in found.rows and row != TUNED:
            difference = values - found.of(TUNED, loads=case.claimed_loads)
            better = str(estimate(difference, improvement))
        middle = str(estimate(values, iqm))
        rows.append((row, *by_load, f"{mean(values):.3f}", middle, better))
    title = "Goodput by load, and the probability to do better than the tuned index on a window"
    return Table(title, (*columns, "P(better)"), tuple(rows))


def _by_workload(found: Results, loads: str) -> Table:
    rows = []
    for row in found.rows:
        values = found.of(row, loads=found.case.claimed_loads)
        cells = [_number(values[:, i], ".3f") for i in range(values.shape[1])]
        rows.append((row, *cells))
    return Table(f"Goodput by workload, loads {loads}", ("policy", *found.case.workloads), tuple(rows))


def _percentiles(found: Results, load: float) -> Table:
    columns = tuple(name.replace("_slowdown_", " ") for name in NINE)
    rows = []
    for row in found.rows:
        cells = [_number(found.of(row, name, (load,)), ".3g") for name in NINE]
        rows.append((row, *cells))
    title = f"Slowdowns at load {load:g}, means of the percentiles of windows"
    return Table(title, ("policy", *columns), tuple(rows))


def _choices(found: Results, field: Field) -> Table:
    names = field.groups[MP_ORACLE]
    rows = tuple(
        (workload, *(names[found.choices[i, j]].removeprefix("mp ") for j in range(len(found.case.loads))))
        for i, workload in enumerate(found.case.workloads)
    )
    title = "Split and threshold that were best for mp"
    return Table(title, ("workload", *(f"{load:g}" for load in found.case.loads)), rows)


def _number(values: Floats, form: str) -> str:
    there = values[~np.isnan(values)]
    return format(there.mean(), form) if len(there) else "-"


def claims(found: Results) -> dict[str, float]:
    """What the section claims; nothing where a policy is missing."""
    case = found.case
    if RESIDUAL not in found.rows:
        return {}
    made: dict[str, float] = {}
    for prefix, ours in (("goodput", RESIDUAL), ("pretrained", PRETRAINED_ROUTING)):
        if ours not in found.rows:
            continue
        for name, theirs in (("mp_oracle", MP_ORACLE), ("tuned", TUNED)):
            if theirs in found.rows:
                key = f"routing.{prefix}_over_{name}.{case.name}"
                made |= _margin(key, *(found.of(row, loads=case.claimed_loads) for row in (ours, theirs)))
    if TUNED in found.rows and OVERLOAD in case.loads:
        late, tuned = (found.of(row, "ttft_slowdown_p99", (OVERLOAD,)) for row in (RESIDUAL, TUNED))
        made[f"routing.ttft_p99_over_index.{case.name}"] = mean(late) / mean(tuned)
    for load in case.loads:
        if load < min(case.claimed_loads):
            best = max(mean(found.of(row, loads=(load,))) for row in found.rows)
            made[f"routing.goodput_below_best.{case.name}.load_{load:g}"] = best - mean(
                found.of(RESIDUAL, loads=(load,))
            )
    return made


def _margin(key: str, ours: Floats, theirs: Floats) -> dict[str, float]:
    """The mean difference and what else is said of it: its interval, interquartile mean, worst cases."""
    difference = ours - theirs
    whole, middle = estimate(difference), estimate(difference, iqm)
    return {
        key: whole.value,
        f"{key}.ci_low": whole.low,
        f"{key}.ci_high": whole.high,
        f"{key}.iqm": middle.value,
        f"{key}.iqm.ci_low": middle.low,
        f"{key}.probability": improvement(difference),
        f"{key}.worst_workload": float(np.nanmin(np.nanmean(difference, axis=(0, 2, 3)))),
        f"{key}.worst_seed": float(np.nanmin(np.nanmean(difference, axis=(1, 2, 3)))),
    }


def _section(case: Case) -> Callable[[Bench], Section]:
    return partial(routing, case)


SECTIONS = {f"routing-{name}": _section(case) for name, case in CASES.items()}
