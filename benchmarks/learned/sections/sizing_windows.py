"""Pool sizing under the shifting load without a switching delay, on many windows: what its claims rest on.

Learned sizing and a well tuned rule are so near each other that the eight windows of `sizing` do not tell
them apart. All that the claims compare is run on the same windows, eight times as many; the first eight are
those.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from benchmarks.learned.cases import CASES, Case
from benchmarks.learned.measure import Bench, measure
from benchmarks.learned.page import Section, Table
from benchmarks.learned.sections.sizing import (
    BESIDE,
    ES,
    INDEX_CONFINED,
    JOINT,
    JOINT_ON,
    JOINTS,
    PPO,
    REACTIVE,
    ROUTER,
    RULE_BESIDE,
    SHIFTING,
    STATIC,
    STATIC_BESIDE,
    Results,
    goodput_table,
    kept_rows,
    rows_of,
)
from benchmarks.learned.statistics import estimate, improvement

WINDOWS = 64
ES_ON = "ES sizing, trained on under heavier loads"
REACTIVE_HEAVY = "reactive, tuned under heavier loads"
ES_ON_BESIDE = f"{ES_ON}, beside {BESIDE}"
REACTIVE_HEAVY_BESIDE = f"{REACTIVE_HEAVY}, beside {BESIDE}"
RULES_BESIDE = (RULE_BESIDE, REACTIVE_HEAVY_BESIDE)
ROUTED = (STATIC_BESIDE, INDEX_CONFINED, *RULES_BESIDE, ES_ON_BESIDE, *JOINTS)
"""Rows with another router than the others."""
ROWS = (STATIC, REACTIVE, REACTIVE_HEAVY, ES, ES_ON, PPO, *ROUTED)
LEARNED, OTHERS = (ES_ON, ES, PPO, *JOINTS), (STATIC, REACTIVE, REACTIVE_HEAVY)
CLAIMED = {"sizing": ES_ON, "ppo_sizing": PPO, "joint": JOINT_ON}
AGAINST = {"static": STATIC, "reactive": REACTIVE, "reactive_heavy": REACTIVE_HEAVY}
ROUTED_TOO = {
    "static_pretrained": STATIC_BESIDE,
    "static_tuned": INDEX_CONFINED,
    "reactive_pretrained": RULE_BESIDE,
    "reactive_heavy_pretrained": REACTIVE_HEAVY_BESIDE,
}
"""Joint agents are compared with these as well: what of them is another router alone?"""


def sizing_windows(case: Case, bench: Bench, windows: int = WINDOWS) -> Section:
    """The section of one cluster."""
    shifting = replace(case, workloads=(SHIFTING,), windows=windows)
    there = rows_of(case, 0.0)
    own = {
        ES_ON: "sizing-es-heavy-seed",
        REACTIVE_HEAVY: f"sizing-reactive-heavy-{case.name}",
    }
    for row, prefix in own.items():
        there[row] = kept_rows(case, 0.0, prefix)
    router = there[RULE_BESIDE][0].routing
    for row, beside in ((ES_ON, ES_ON_BESIDE), (REACTIVE_HEAVY, REACTIVE_HEAVY_BESIDE)):
        there[beside] = [replace(e, name=f"{e.name}, residual", routing=router) for e in there[row]]
    rows = {row: there[row] for row in ROWS if there.get(row)}
    runs = measure(shifting, [entrant for found in rows.values() for entrant in found], bench)
    found = Results(runs, rows)
    seeds = ", ".join(f"{row} {found.seeds[row]}" for row in LEARNED if row in rows)
    text = (
        f"{case.title}, {case.model}, as in the section before with no switching delay, but on {windows} "
        f"windows a load for all policies that claims are about. {ROUTER} routes, except that joint agents "
        f"do so themselves, {BESIDE} where it says so, and the index tuned for these pools in its row. "
        f"Training seeds: {seeds}.",
        f"{ES_ON}: each seed goes on where the same seed of the row above it stopped, in three runs at loads "
        "of .85 to 1.5, .65 to 1.4 and .8 to 1.35, two thirds of the scenarios under the shifting load, with "
        f"goodput alone as fitness. {REACTIVE_HEAVY}: by CEM on the shifting load at .65 to 1.4. The test "
        "part is heavier than the train part at the same load, so what was tuned at lighter loads is too "
        "light here. Under the five other workloads both lose on validation (lab book, section 14). "
        f"{JOINT_ON}: from {BESIDE} and each seed of {ES_ON}, all six workloads at .45 to 1.4.",
    )
    tables = (goodput_table(found, 0.0), _differences(found))
    return Section(f"Pool sizing on many windows: {case.title}", bench.command, text, tables, claims(found))


def _differences(found: Results) -> Table:
    pairs = [(ours, theirs) for ours in LEARNED for theirs in OTHERS]
    pairs += [
        (ours, theirs)
        for ours in (ES_ON_BESIDE, *JOINTS)
        for theirs in (STATIC_BESIDE, INDEX_CONFINED, *RULES_BESIDE)
    ]
    pairs += [(ours, ES_ON_BESIDE) for ours in JOINTS] + [(ours, JOINT) for ours in JOINTS if ours != JOINT]
    rows = []
    for ours, theirs in pairs:
        if ours in found.rows and theirs in found.rows:
            difference = found.of(ours) - found.of(theirs)
            rows.append((ours, theirs, estimate(difference).signed, str(estimate(difference, improvement))))
    columns = ("policy", "against", "goodput", "P(better) on a window")
    return Table("Differences under the shifting load, mean over loads", columns, tuple(rows))


def claims(found: Results) -> dict[str, float]:
    """Differences without a delay; nothing where a policy is missing."""
    claimed: dict[str, float] = {}
    for prefix, ours in CLAIMED.items():
        against = AGAINST | (ROUTED_TOO if ours in JOINTS else {})
        for name, theirs in against.items():
            if ours in found.rows and theirs in found.rows:
                whole = estimate(found.of(ours) - found.of(theirs))
                key = f"{prefix}.goodput_over_{name}"
                claimed |= {key: whole.value, f"{key}.ci_low": whole.low}
    return claimed


def _section(case: Case) -> Callable[[Bench], Section]:
    return partial(sizing_windows, replace(case, loads=(0.75, 0.9, 1.05, 1.2)))


SECTIONS = {f"sizing-windows-{name}": _section(CASES[name]) for name in ("8h",)}
"""The clusters of the benchmark, with the loads and the splits that are tried on each."""
