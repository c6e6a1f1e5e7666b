"""Pool sizing, phases confined to their pools: learned against static splits and tuned rules, by delay."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.learned import weights
from benchmarks.learned.cases import CASES, Case
from benchmarks.learned.entrants import exists
from benchmarks.learned.measure import Bench, Runs, measure
from benchmarks.learned.page import Section, Table
from benchmarks.learned.statistics import best_of, estimate, improvement, mean
from splitgym import policy, schedulers
from splitgym.evaluation import Contender
from splitgym.schedulers import RoutingScheduler, SizingScheduler

Floats = NDArray[np.float64]

SHIFTING = "shifting:azure-conv~azure-code"
DELAYS_S = (0.0, 5.0, 30.0)
ROUTER = "index-tuned"
"""Routes for all that only resize, and for the static splits that they are compared with."""

STATIC, PAPER = "best static split in hindsight", "mp, best static split in hindsight"
REACTIVE, EWMA = "reactive, tuned", "EWMA, tuned"
ES, PPO, JOINT = "ES sizing", "PPO sizing", "ES joint"
FREE = "not confined: "
DEFAULTS = {"reactive, default options": "reactive", "EWMA, default options": "ewma"}
PPO_BUNDLE = "pretrained:sizing-ppo"


def _rows(case: Case, delay_s: float) -> dict[str, list[Contender]]:
    """All contenders of one delay, by row. Those that never resize do not depend on it."""
    tag = f"{delay_s:g} s"
    start = replace(case.config(case.default_split), confine=True, switch_delay_s=delay_s)

    def made(name: str, router: RoutingScheduler | None, sizer: SizingScheduler) -> Contender:
        return Contender(f"{name} ({tag})", router or schedulers.routing(ROUTER), sizer, start)

    def kept(prefix: str) -> list[Contender]:
        pairs = [(name, weights.read_pair(name)) for name in weights.names(prefix)]
        return [made(name, *pair) for name, pair in pairs if pair[1] is not None]  # type: ignore[arg-type]

    rows: dict[str, list[Contender]] = {}
    for router, row in ((ROUTER, STATIC), ("splitwise", PAPER)):
        rows[row] = [
            Contender(
                f"{router} static {split}",
                schedulers.routing(router),
                schedulers.sizing("static"),
                replace(case.config(split), confine=True),
            )
            for split in case.splits
        ]
    for row, rule in DEFAULTS.items():
        rows[row] = [made(row, None, schedulers.sizing(rule))]
    rows[REACTIVE] = kept(f"sizing-reactive-{case.name}-{delay_s:g}s")
    rows[EWMA] = kept(f"sizing-ewma-{case.name}-{delay_s:g}s")
    rows[ES] = kept("sizing-es-seed")
    if exists(PPO_BUNDLE):
        found = policy.contender(PPO_BUNDLE, start)
        rows[PPO] = [made(PPO, found.routing, found.sizing)]
    rows[JOINT] = kept("joint-es-seed")
    for name in ("index-tuned",):
        static = schedulers.sizing("static")
        rows[FREE + name] = [Contender(FREE + name, schedulers.routing(name), static, case.config())]
    return {row: entrants for row, entrants in rows.items() if entrants}


class Results:
    """Goodput (S, W, L, N) of the rows at one delay."""

    def __init__(self, runs: Runs, rows: dict[str, list[Contender]]) -> None:
        self.case = runs.case
        self.rows = tuple(rows)
        self.seeds = {row: 1 if row in (STATIC, PAPER) else len(found) for row, found in rows.items()}
        self._values: dict[str, Floats] = {}
        self.choices: dict[str, list[list[str]]] = {}
        for row, entrants in rows.items():
            values = runs.of([e.name for e in entrants], "goodput")
            if row in (STATIC, PAPER):
                values, chosen = best_of(values)
                splits = [e.name.split()[-1] for e in entrants]
                self.choices[row] = [[splits[c] for c in by_load] for by_load in chosen]
            self._values[row] = values
        self.tails = {
            row: runs.of([e.name for e in entrants], "ttft_slowdown_p99") for row, entrants in rows.items()
        }

    def of(self, row: str, workload: str | None = None) -> Floats:
        """A row's goodput, on one workload or on all."""
        if workload is None:
            return self._values[row]
        at = self.case.workloads.index(workload)
        return self._values[row][:, at : at + 1]


def sizing(case: Case, bench: Bench) -> Section:
    """The section of one cluster."""
    by_delay = {delay: _rows(case, delay) for delay in DELAYS_S}
    entrants = {e.name: e for rows in by_delay.values() for found in rows.values() for e in found}
    runs = measure(case, list(entrants.values()), bench)
    found = {delay: Results(runs, rows) for delay, rows in by_delay.items()}
    tables = [
        *(_goodput(results, delay) for delay, results in found.items()),
        *(_differences(results, delay) for delay, results in found.items() if ES in results.rows),
        _choices(found[0.0]),
    ]
    seeds = {row: found[0.0].seeds.get(row, 0) for row in (ES, JOINT)}
    text = (
        f"{case.title}, {case.model}. Prompts stay in the prompt and mixed pools, token phases in the token "
        f"and mixed ones; {ROUTER} routes, except that mp does in its row and the joint agent routes itself. "
        f"A decision each 2 s; pools begin as {case.default_split}. {case.windows} windows a workload and "
        "load.",
        f"ES sizing is {seeds[ES]} training seed(s), ES joint {seeds[JOINT]}; one vector of weights is used "
        "at all delays. Reactive and EWMA rules are tuned by CEM on the train part for this cluster, this "
        "router and that delay. The static row takes the best of "
        f"{len(case.splits)} splits for each workload and load on these very windows.",
    )
    return Section(f"Pool sizing: {case.title}", bench.command, text, tuple(tables), claims(found))


def _delay(delay_s: float) -> str:
    return "switching takes no time" if delay_s == 0 else f"switching takes {delay_s:g} s"


def _goodput(found: Results, delay_s: float) -> Table:
    case = found.case
    columns = ("policy", *(f"shifting {load:g}" for load in case.loads), *case.workloads)
    rows = []
    for row in found.rows:
        shifting = found.of(row, SHIFTING)
        cells = [f"{mean(shifting[:, :, i]):.3f}" for i in range(len(case.loads))]
        cells += [f"{mean(found.of(row, w)):.3f}" for w in case.workloads]
        rows.append((row, *cells))
    return Table(f"Goodput, {_delay(delay_s)}: shifting by load; workloads, all loads", columns, tuple(rows))


def _differences(found: Results, delay_s: float) -> Table:
    rows = []
    for ours in (ES, PPO, JOINT):
        for theirs in (STATIC, REACTIVE, EWMA):
            if ours not in found.rows or theirs not in found.rows:
                continue
            shifting = found.of(ours, SHIFTING) - found.of(theirs, SHIFTING)
            everything = found.of(ours) - found.of(theirs)
            cells = (
                estimate(shifting).signed,
                str(estimate(shifting, improvement)),
                estimate(everything).signed,
            )
            rows.append((ours, theirs, *cells))
    columns = ("policy", "against", "shifting, all loads", "P(better) there", "all workloads")
    return Table(f"Differences of goodput, {_delay(delay_s)}", columns, tuple(rows))


def _choices(found: Results) -> Table:
    rows = tuple((workload, *found.choices[STATIC][i]) for i, workload in enumerate(found.case.workloads))
    return Table("Split that was best", ("workload", *(f"{load:g}" for load in found.case.loads)), rows)


def claims(found: dict[float, Results]) -> dict[str, float]:
    """Differences on the shifting load; nothing where a policy is missing."""
    made: dict[str, float] = {}
    for delay, results in found.items():
        for ours, prefix in ((ES, "sizing"), (JOINT, "joint")):
            for theirs, name in ((STATIC, "static"), (REACTIVE, "reactive")):
                if ours not in results.rows or theirs not in results.rows:
                    continue
                whole = estimate(results.of(ours, SHIFTING) - results.of(theirs, SHIFTING))
                key = f"{prefix}.goodput_over_{name}" + (f".delay_{delay:g}s" if delay else "")
                made |= {key: whole.value, f"{key}.ci_low": whole.low}
    return made


def _section(case: Case) -> Callable[[Bench], Section]:
    loads, windows = (0.75, 0.9, 1.05, 1.2), 6
    return partial(sizing, replace(case, loads=loads, windows=windows))


SECTIONS = {f"sizing-{name}": _section(CASES[name]) for name in ("8h",)}
