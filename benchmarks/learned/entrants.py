"""The policies of the benchmark on one cluster."""

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.learned import weights
from benchmarks.learned.cases import THRESHOLDS, Case
from splitgym import policy, schedulers
from splitgym.cli.learning import contender_of
from splitgym.evaluation import Contender
from splitgym.evaluation import contender as by_name
from splitgym.policy.find import PRETRAINED, bundled_names

MP_DEFAULT = "mp, default split"
MP_ORACLE = "mp, best split and threshold in hindsight"
INDEX = "index"
TUNED = "index tuned for this cluster"
RESIDUAL = "ES residual"
NARROW = "ES residual, 16 hidden units, loads to 1.35"
WIDE = "ES residual, before the stage by ranks"
RANKED = "ES residual, by ranks, before code more often"
PRETRAINED_ROUTING = "pretrained:routing"

NO_SPLIT = {
    "round robin": "round-robin",
    "random": "random",
    "JSQ, requests": "jsq-requests",
    "no split (JSQ, tokens)": "jsq-tokens",
    "no split, vLLM's batching": "vllm",
}
SPLIT = {"split JSQ": "split-jsq", "power of two": "power-of-two", MP_DEFAULT: "splitwise"}
SIZING = {"mp, reactive sizing": "splitwise+reactive", "mp, EWMA sizing": "splitwise+ewma"}
AGENTS = {
    PRETRAINED_ROUTING: (PRETRAINED_ROUTING, False),
    "ES sizing": ("pretrained:sizing", True),
    "joint": ("pretrained:joint", True),
}
"""Bundles or run folders that take part where they are there, and whether they need the default split."""


PPO, PPO_ON = "PPO on the residual", "8h"
"""A network over observations decides fifty times slower than compiled rules: it is run on one cluster."""


@dataclass(frozen=True)
class Field:
    """Everybody on one cluster."""

    entrants: tuple[Contender, ...]
    groups: dict[str, tuple[str, ...]]
    """Rows of the tables, in order: {row: its contenders}. Several are training seeds of one method, or, of
    `MP_ORACLE`, the settings of which the best is chosen."""


def field_of(case: Case, agents: dict[str, tuple[str, bool]] | None = None) -> Field:
    """All policies on a case's cluster.

    Args:
        case: the cluster.
        agents: None is `AGENTS`.
    """
    mixed, split = case.config(), case.config(case.default_split)
    rows: dict[str, list[Contender]] = {}
    for row, text in NO_SPLIT.items():
        rows[row] = [by_name(text, name=row, cluster=mixed)]
    for row, text in (SPLIT | SIZING).items():
        made = by_name(text, name=row, cluster=split)
        rows[row] = [replace(made, cluster=split)]
    rows[MP_ORACLE] = paper_at_its_best(case)
    rows[INDEX] = [by_name("index", name=INDEX)]
    rows["index, shipped tuned weights"] = [by_name("index-tuned", name="index, shipped tuned weights")]
    rows[TUNED] = [_kept(f"cem-{case.name}")] if weights.read(f"cem-{case.name}") else []
    if case.name != "8h":
        rows["index tuned for 8 H100"] = [_kept("cem-8h")] if weights.read("cem-8h") else []
    rows[NARROW] = [_kept(name) for name in weights.names("es-seed")]
    rows[WIDE] = [_kept(name) for name in weights.names("es-wide-seed")]
    rows[RANKED] = [_kept(name) for name in weights.names("es-ranked-seed")]
    rows[RESIDUAL] = [_kept(name) for name in weights.names("es-code-seed")]
    for row, (text, pools) in (AGENTS if agents is None else agents).items():
        if exists(text):
            made = contender_of(text, split if pools else mixed)
            own = made.cluster or (split if pools else None)
            rows[row] = [replace(made, name=row, cluster=own)]
    if case.name == PPO_ON:
        rows[PPO] = [
            policy.contender(folder, mixed, name=folder.name)
            for folder in weights.bundles("routing-ppo-seed")
        ]
    groups = {row: tuple(entrant.name for entrant in found) for row, found in rows.items() if found}
    return Field(tuple(entrant for found in rows.values() for entrant in found), groups)


def paper_at_its_best(case: Case) -> list[Contender]:
    """The paper's scheduler on every split tried, at every threshold."""
    return [
        Contender(
            f"mp {split} {threshold}",
            schedulers.routing("splitwise", max_pending_tokens=threshold),
            schedulers.sizing("static"),
            case.config(split),
        )
        for split in case.splits
        for threshold in THRESHOLDS
    ]


def exists(text: str) -> bool:
    """Is there a bundle of this name, or a run folder?"""
    if text.startswith(PRETRAINED):
        return text.removeprefix(PRETRAINED) in bundled_names()
    return Path(text).is_dir()


def _kept(name: str) -> Contender:
    scheduler = weights.read(name)
    assert scheduler is not None
    return Contender(name, scheduler, schedulers.sizing("static"))
