"""Pool sizing, phases confined to their pools: learned against static splits and tuned rules, by delay.

The clairvoyant rows cheat: they know the arrivals of the next seconds (`splitgym.evaluation.clairvoyant`).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.learned import weights
from benchmarks.learned.cases import CASES, Case
from benchmarks.learned.measure import Bench, Runs, measure
from benchmarks.learned.page import Section, Table
from benchmarks.learned.statistics import best_of, estimate, improvement, mean
from splitgym import policy, schedulers
from splitgym.config import ClusterConfig
from splitgym.evaluation import Clairvoyant, Contender
from splitgym.schedulers import RoutingScheduler, SizingScheduler

Floats = NDArray[np.float64]

SHIFTING = "shifting:azure-conv~azure-code"
DELAYS_S = (0.0, 5.0, 30.0)
TUNED_UP_TO_S = 5.0
"""Rules and agents are those of each delay up to this; beyond it those of this one are run."""
ROUTER = "index-tuned"
"""Routes for all that only resize, and for the static splits that they are compared with."""

STATIC, PAPER = "best static split in hindsight", "mp, best static split in hindsight"
REACTIVE, EWMA = "reactive, tuned", "EWMA, tuned"
FIRST, ES_FIRST = "reactive, as CEM left it", "ES sizing from that rule"
ES, PPO, JOINT = "ES sizing", "PPO sizing", "ES joint"
JOINT_ON, JOINT_PPO = "ES joint, trained under heavier loads", "PPO joint"
JOINTS = (JOINT, JOINT_ON, JOINT_PPO)
LEARNED = (ES, PPO, *JOINTS)
BESIDE = "pretrained:routing"
"""Routes in the rows that say so, beside what the tuned index has beside it elsewhere."""
STATIC_BESIDE = f"best static split in hindsight, beside {BESIDE}"
RULE_BESIDE, ES_BESIDE = f"reactive, tuned, beside {BESIDE}", f"ES sizing beside {BESIDE}"
INDEX_CONFINED = "index tuned for these pools, best static split"
HINDSIGHT = (STATIC, PAPER, STATIC_BESIDE, INDEX_CONFINED)
"""Rows of the split that was best on the very windows."""
FREE = "index-tuned, not confined"
CLAIRVOYANT = "clairvoyant (cheats)"
KNOWN_S, ALL_S = 20.0, 1000.0
"""What it knows of the future: so much with no delay, all of it with one."""
BASES = {0.0: "sizing-es-first-seed11"}
"""The rule that a clairvoyant follows where no split is better, by delay; elsewhere it holds the split."""
DEFAULTS = {"reactive, default options": "reactive", "EWMA, default options": "ewma"}


def confined(case: Case, delay_s: float) -> ClusterConfig:
    """The cluster as pools begin, with phases confined to them."""
    return replace(case.config(case.default_split), confine=True, switch_delay_s=delay_s)


def kept_rows(case: Case, delay_s: float, prefix: str) -> list[Contender]:
    """Kept weights that resize pools, beside the router that all have, or their own."""
    pairs = [(name, *weights.read_pair(name)) for name in weights.names(prefix)]
    return [
        _made(case, delay_s, name, routing, sizing) for name, routing, sizing in pairs if sizing is not None
    ]


def _made(
    case: Case, delay_s: float, name: str, router: RoutingScheduler | None, sizer: SizingScheduler
) -> Contender:
    routing = router or schedulers.routing(ROUTER)
    return Contender(f"{name} ({delay_s:g} s)", routing, sizer, confined(case, delay_s))


def static_splits(case: Case, name: str, router: RoutingScheduler) -> list[Contender]:
    """A router on pools that never change, once a split."""
    static = schedulers.sizing("static")
    return [
        Contender(f"{name} static {split}", router, static, replace(case.config(split), confine=True))
        for split in case.splits
    ]


def rows_of(case: Case, delay_s: float) -> dict[str, list[Contender]]:
    """All contenders of one delay, by row. Those that never resize do not depend on it."""
    start = confined(case, delay_s)
    made, kept = partial(_made, case, delay_s), partial(kept_rows, case, delay_s)

    static = schedulers.sizing("static")
    beside = policy.contender(BESIDE, start).routing
    rows = {
        STATIC: static_splits(case, ROUTER, schedulers.routing(ROUTER)),
        PAPER: static_splits(case, "splitwise", schedulers.routing("splitwise")),
        STATIC_BESIDE: static_splits(case, BESIDE, beside),
    }
    confined_index = f"cem-confined-{case.name}"
    tuned = weights.read(confined_index)
    if tuned is not None:
        rows[INDEX_CONFINED] = static_splits(case, confined_index, tuned)
    for row, rule in DEFAULTS.items():
        rows[row] = [made(row, None, schedulers.sizing(rule))]
    tuned_at = min(delay_s, TUNED_UP_TO_S)
    rows[REACTIVE] = kept(f"sizing-reactive-{case.name}-{tuned_at:g}s")
    rows[FIRST] = kept(f"sizing-first-reactive-{case.name}-{delay_s:g}s")
    rows[EWMA] = kept(f"sizing-ewma-{case.name}-{tuned_at:g}s")
    own = f"-{tuned_at:g}s" if delay_s else ""
    rows[ES] = kept(f"sizing-es{own}-seed")
    rows[ES_FIRST] = kept(f"sizing-es{own}-first-seed")
    networks = weights.bundles(f"sizing-ppo-{delay_s:g}s-seed") or weights.bundles(f"sizing-ppo{own}-seed")
    rows[PPO] = [made(folder.name, None, policy.load(folder)) for folder in networks]
    rows[JOINT] = kept(f"joint-es{own}-seed")
    rows[JOINT_ON] = kept(f"joint-es{own}-heavy-seed")
    rows[JOINT_PPO] = [
        policy.contender(folder, start, name=f"{folder.name} ({delay_s:g} s)")
        for folder in weights.bundles(f"joint-ppo{own}-seed")
    ]
    for row, sizers in ((RULE_BESIDE, REACTIVE), (ES_BESIDE, ES)):
        rows[row] = [replace(e, name=f"{e.name}, residual", routing=beside) for e in rows[sizers]]
    base = weights.read_pair(BASES[delay_s])[1] if delay_s in BASES else static
    known_s = ALL_S if delay_s else KNOWN_S
    knowing = f"clairvoyant, knows the next {known_s:g} s (cheats)"
    rows[CLAIRVOYANT] = [made(knowing, None, Clairvoyant(base, known_s))]
    rows[FREE] = [Contender(FREE, schedulers.routing(ROUTER), static, case.config())]
    return {row: entrants for row, entrants in rows.items() if entrants}


class Results:
    """Goodput (S, W, L, N) of the rows at one delay."""

    def __init__(self, runs: Runs, rows: dict[str, list[Contender]]) -> None:
        self.case = runs.case
        self.rows = tuple(rows)
        self.seeds = {row: 1 if row in HINDSIGHT else len(found) for row, found in rows.items()}
        self._values: dict[str, Floats] = {}
        self.choices: dict[str, list[list[str]]] = {}
        for row, entrants in rows.items():
            values = runs.of([e.name for e in entrants], "goodput")
            if row in HINDSIGHT:
                values, chosen = best_of(values)
                splits = [e.name.split()[-1] for e in entrants]
                self.choices[row] = [[splits[c] for c in by_load] for by_load in chosen]
            self._values[row] = values

    def of(self, row: str, workload: str | None = None) -> Floats:
        """A row's goodput, on one workload or on all."""
        if workload is None:
            return self._values[row]
        at = self.case.workloads.index(workload)
        return self._values[row][:, at : at + 1]


def sizing(case: Case, bench: Bench) -> Section:
    """The section of one cluster: the shifting load at all delays, the other workloads without one."""
    shifting = replace(case, workloads=(SHIFTING,), windows=8)
    others = replace(case, workloads=tuple(w for w in case.workloads if w != SHIFTING), windows=4)
    by_delay = {delay: rows_of(case, delay) for delay in DELAYS_S}
    entrants = {e.name: e for rows in by_delay.values() for found in rows.values() for e in found}
    runs = measure(shifting, list(entrants.values()), bench)
    found = {delay: Results(runs, rows) for delay, rows in by_delay.items()}
    rows = {row: made for row, made in by_delay[0.0].items() if row != CLAIRVOYANT}  # it takes long
    at_once = measure(others, [e for made in rows.values() for e in made], bench)
    tables = [
        *(goodput_table(results, delay) for delay, results in found.items()),
        differences_table(found),
        _by_workload(Results(at_once, rows)),
        _choices(found[0.0]),
    ]
    seeds = "; ".join(
        f"{_delay(delay)}: " + ", ".join(f"{row} {results.seeds.get(row, 0)}" for row in LEARNED)
        for delay, results in found.items()
    )
    text = (
        f"{case.title}, {case.model}. Prompts stay in the prompt and mixed pools, token phases in the token "
        f"and mixed ones; {ROUTER} routes, except that mp does in its row, joint agents themselves, "
        f'{BESIDE} where it says so, and in the row "{INDEX_CONFINED}" an index whose weights CEM tuned for '
        "these machines, confined, begun so, under this load. "
        f"A decision each 2 s; pools begin as {case.default_split}. Shifting: Poisson arrivals whose sizes "
        f"move from conversation to code and back in one window; {shifting.windows} windows a load, "
        f"{others.windows} of the other workloads.",
        f"Training seeds: {seeds}. Reactive and EWMA rules are tuned by CEM on the train part, for this "
        f"cluster, this router and no delay or one of {TUNED_UP_TO_S:g} s, and so are agents trained; at "
        "longer delays those of that one are run; PPO sizing, which alone moves much there, is trained anew. "
        "With no delay the tuned reactive rule has no cool-down: taken out, which was better on validation. "
        "ES starts there; the first ES, PPO and joint from the rule with the cool-down that CEM left. With a "
        "delay ES and joint agents start at the rule tuned for it, which holds still up to heavy overload. "
        f'"{JOINT_ON}": see the next section.',
        f"Static rows take the best of {len(case.splits)} splits for each workload and load on these "
        "very windows. The clairvoyant tries every split on copies of the simulation with the true requests "
        f"to come: of the next {KNOWN_S:g} s, and of the whole window where switching takes time, since a "
        "shorter sight moves too often there. It cheats and is there as a bound.",
    )
    later = {delay: results for delay, results in found.items() if delay > 0}  # without one: `sizing_windows`
    return Section(f"Pool sizing: {case.title}", bench.command, text, tuple(tables), claims(later))


def _delay(delay_s: float) -> str:
    return "switching takes no time" if delay_s == 0 else f"switching takes {delay_s:g} s"


def goodput_table(found: Results, delay_s: float) -> Table:
    """Goodput of all rows by load."""
    loads = found.case.loads
    rows = []
    for row in found.rows:
        values = found.of(row)
        cells = [f"{mean(values[:, :, i]):.3f}" for i in range(len(loads))]
        rows.append((row, *cells, f"{mean(values):.3f}"))
    columns = ("policy", *(f"{load:g}" for load in loads), "mean")
    return Table(f"Goodput under the shifting load, {_delay(delay_s)}", columns, tuple(rows))


def differences_table(found: dict[float, Results]) -> Table:
    """Of what learns, and of the clairvoyant, to what does not, by delay."""
    pairs = [(a, b) for a in (*LEARNED, CLAIRVOYANT) for b in (STATIC, PAPER, REACTIVE, EWMA)]
    pairs += [(ours, theirs) for ours in JOINTS for theirs in (STATIC_BESIDE, INDEX_CONFINED)]
    pairs += [(ours, RULE_BESIDE) for ours in (*JOINTS, ES_BESIDE)] + [(JOINT_ON, JOINT), (JOINT_PPO, JOINT)]
    pairs += [(STATIC_BESIDE, STATIC), (INDEX_CONFINED, STATIC)]
    rows = []
    for delay, results in found.items():
        for ours, theirs in pairs:
            if ours in results.rows and theirs in results.rows:
                difference = results.of(ours) - results.of(theirs)
                better = str(estimate(difference, improvement))
                rows.append((f"{delay:g} s", ours, theirs, estimate(difference).signed, better))
    columns = ("delay", "policy", "against", "goodput", "P(better) on a window")
    return Table("Differences under the shifting load, mean over loads", columns, tuple(rows))


def _by_workload(found: Results) -> Table:
    workloads = found.case.workloads
    rows = tuple((row, *(f"{mean(found.of(row, w)):.3f}" for w in workloads)) for row in found.rows)
    title = "Goodput under the other workloads, mean over loads, switching takes no time"
    return Table(title, ("policy", *workloads), rows)


def _choices(found: Results) -> Table:
    rows = tuple((row, *chosen[0]) for row, chosen in found.choices.items())
    columns = ("policy", *(f"{load:g}" for load in found.case.loads))
    return Table("Split that was best under the shifting load", columns, rows)


def claims(found: dict[float, Results]) -> dict[str, float]:
    """Differences on the shifting load; nothing where a policy is missing."""
    made: dict[str, float] = {}
    for delay, results in found.items():
        for ours, prefix in ((ES, "sizing"), (PPO, "ppo_sizing"), (JOINT, "joint")):
            against = [(STATIC, "static"), (REACTIVE, "reactive")]
            if ours == JOINT:  # which routes itself: what of it is another router alone?
                against += [(STATIC_BESIDE, "static_pretrained"), (INDEX_CONFINED, "static_tuned")]
            for theirs, name in against:
                if ours not in results.rows or theirs not in results.rows:
                    continue
                whole = estimate(results.of(ours) - results.of(theirs))
                key = f"{prefix}.goodput_over_{name}" + (f".delay_{delay:g}s" if delay else "")
                made |= {key: whole.value, f"{key}.ci_low": whole.low}
    return made


def _section(case: Case) -> Callable[[Bench], Section]:
    return partial(sizing, replace(case, loads=(0.75, 0.9, 1.05, 1.2)))


SECTIONS = {f"sizing-{name}": _section(CASES[name]) for name in ("8h",)}
