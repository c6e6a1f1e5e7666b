"""docs/benchmark.json holds the sections; docs/benchmark.md is written from it.

Sections can be measured at different times: one replaces itself and leaves the others.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learned.cases import CASES

DOCS = Path(__file__).resolve().parents[2] / "docs"

INTRO = """\
# Benchmark

What learned scheduling gains over the heuristics. This page is written by

    make benchmark                            # everything; goes on where it was stopped
    python -m benchmarks.learned routing-8h   # one section

from [benchmark.json](benchmark.json), whose `claims` is a flat map of the numbers that other pages may quote
and whose `commands` names for each the command that made it. Each run is kept in `runs/benchmark/kept.jsonl`
by configuration, policy, window and code, so a second call makes only what is new.

Goodput is the share of requests within 3x TTFT and 1.5x TBT of the request alone on the reference machine; a
load is a fraction of the rate that saturates the cluster ([training.md](training.md)). All windows are of the
test part (the last 30 % of the hour by time), with 20 s of warm-up and 100 s measured; nothing was tuned or
chosen on them, except where "in hindsight" is said. Intervals are 95 %, by a stratified bootstrap over
training seeds and, within workloads, windows (`benchmarks/learned/statistics.py`; interquartile means (IQM)
and probabilities of improvement as in rliable). What was tried on the way: [experiments.md](experiments.md).
"""

GLANCE = {
    "goodput_over_mp_oracle": "five training seeds over the paper's scheduler at its best",
    "goodput_over_tuned": "over the index tuned for that cluster",
    "pretrained_over_mp_oracle": "the shipped bundle over the paper's",
    "pretrained_over_tuned": "over the tuned index",
}
RATIOS = {
    "ttft_p99_over_index": "TTFT p99 at load 1.2, relative to the tuned index",
    "max_rate_over_mp": "highest rate under nine SLOs, relative to the paper's",
}
"""Claims that the first table shows, `routing.NAME.CLUSTER`, and what it calls them."""


@dataclass(frozen=True)
class Table:
    """A table of text cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As the page shows it."""
        lines = [f"**{self.title}**", "", _line(self.columns), "|" + "---|" * len(self.columns)]
        return "\n".join(lines + [_line(row) for row in self.rows])


@dataclass(frozen=True)
class Section:
    """A part of the page, with the numbers that it claims."""

    title: str
    command: str
    text: tuple[str, ...]
    """Paragraphs before the tables."""
    tables: tuple[Table, ...]
    claims: dict[str, float]
    notes: tuple[str, ...] = ()
    """Paragraphs after the tables."""


def write(sections: dict[str, Section], order: Sequence[str], folder: Path = DOCS) -> None:
    """Replace sections in `benchmark.json` and write `benchmark.md` anew.

    Args:
        sections: by name.
        order: in which sections stand; others come last.
        folder: of both files.
    """
    path = folder / "benchmark.json"
    stored: dict[str, Any] = json.loads(path.read_text())["sections"] if path.is_file() else {}
    stored |= {name: json.loads(json.dumps(asdict(section))) for name, section in sections.items()}
    places = {name: place for place, name in enumerate(order)}
    stored = dict(sorted(stored.items(), key=lambda item: (places.get(item[0], len(places)), item[0])))
    claims, commands = {}, {}
    for section in stored.values():
        for name, value in section["claims"].items():
            if not np.isfinite(value):
                raise ValueError(f"claim {name} is {value}: it was not measured and must not be written")
            claims[name] = round(value, 4)
            commands[name] = section["command"]
    data = {"claims": claims, "commands": commands, "sections": stored}
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    (folder / "benchmark.md").write_text(markdown(stored, claims))


def markdown(stored: dict[str, Any], claims: dict[str, float]) -> str:
    """The page.

    Args:
        stored: sections as in the JSON.
        claims: of all of them.
    """
    parts = [INTRO, glance(claims)]
    for section in stored.values():
        parts.append(f"\n## {section['title']}\n\n    {section['command']}\n")
        parts += [f"{paragraph}\n" for paragraph in section["text"]]
        for table in section["tables"]:
            rows = tuple(tuple(row) for row in table["rows"])
            parts.append(Table(table["title"], tuple(table["columns"]), rows).markdown() + "\n")
        parts += [f"{paragraph}\n" for paragraph in section["notes"]]
    parts += ["\n## Claims\n", "Points of goodput are fractions: .137 is 13.7 points.\n"]
    parts.append(
        "| claim | value |\n|---|---|\n" + "\n".join(f"| `{n}` | {v:g} |" for n, v in claims.items())
    )
    return "\n".join(parts).rstrip() + "\n"


def glance(claims: dict[str, float]) -> str:
    """What was claimed of each cluster, in one table; empty where nothing of it was measured."""
    rows = []
    for case in CASES.values():
        differences = [_interval(claims, f"routing.{name}.{case.name}") for name in GLANCE]
        ratios = [claims.get(f"routing.{name}.{case.name}") for name in RATIOS]
        if any(differences):
            shown = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
            rows.append((case.title, *(text or "-" for text in differences), *shown))
    if not rows:
        return ""
    columns = ("cluster", *GLANCE.values(), *RATIOS.values())
    title = "Learned routing, difference in goodput at loads .9 to 1.35 (.9 to 1.2 from 40 machines on)"
    return "## At a glance\n\n" + Table(title, columns, tuple(rows)).markdown() + "\n"


def _interval(claims: dict[str, float], name: str) -> str:
    if name not in claims:
        return ""
    return f"{claims[name]:+.3f} [{claims[name + '.ci_low']:+.3f}, {claims[name + '.ci_high']:+.3f}]"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
