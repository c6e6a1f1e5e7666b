"""A characterisation for people and programs: terminal tables, CSV and JSON."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from splitgym.evaluation.characterize.machines import (
    Ratio,
    compare_phases,
    compare_requests,
    compare_specs,
)
from splitgym.evaluation.characterize.phases import Characterization, facts
from splitgym.evaluation.report import TERMINAL_WIDTH

Both = tuple[Characterization, Characterization]


def comparisons(both: Both) -> dict[str, list[Ratio]]:
    """The three comparisons of two machines, by title."""
    this, other = both
    found = {
        "published": compare_specs(this.profile, other.profile),
        "phases": compare_phases(this, other),
    }
    if this.profile.model.name == other.profile.model.name:
        found["requests, alone"] = compare_requests(this.profile, other.profile)
    return found


def print_tables(found: Sequence[Characterization], file: TextIO | None = None) -> None:
    """Print the figures of one or two profiles, and how two compare."""
    console = Console(file=file)
    if not console.is_terminal:
        console = Console(file=file, width=TERMINAL_WIDTH)
    for c in found:
        table = Table(title=c.label, box=SIMPLE_HEAD, caption=c.profile.provenance.get("kind"))
        table.add_column("figure")
        table.add_column("value", justify="right")
        table.add_column("unit")
        for row in facts(c):
            table.add_row(row["what"], number(row["value"]), row["unit"])
        console.print(table)
    if len(found) == 2:
        for title, rows in comparisons((found[0], found[1])).items():
            console.print(_table(title, rows, (found[0], found[1])))


def as_json(found: Sequence[Characterization]) -> dict[str, Any]:
    """Everything, ready for `json.dumps`."""
    content: dict[str, Any] = {"profiles": [_one(c) for c in found]}
    if len(found) == 2:
        both = (found[0], found[1])
        content["compare"] = {title: _rows(rows, both) for title, rows in comparisons(both).items()}
    return content


def write_files(found: Sequence[Characterization], folder: Path) -> list[Path]:
    """Write `prompt.csv`, `token.csv`, `power-over-time.csv`, `facts.csv`, of two `compare.csv`, and all as
    `characterization.json`.

    Returns:
        the files; the folder is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[dict[str, Any]]] = {"prompt": [], "token": [], "power-over-time": [], "facts": []}
    for c in found:
        one, name = _one(c), {"profile": c.label}
        for key in ("prompt", "token", "power-over-time"):
            columns = one[key]
            tables[key] += [name | dict(zip(columns, row)) for row in zip(*columns.values())]
        tables["facts"] += [name | row for row in one["facts"]]
    if len(found) == 2:
        both = (found[0], found[1])
        tables["compare"] = [
            {"table": title} | row for title, rows in comparisons(both).items() for row in _rows(rows, both)
        ]
    files = []
    for key, rows in tables.items():
        files.append(folder / f"{key}.csv")
        with files[-1].open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    files.append(folder / "characterization.json")
    files[-1].write_text(json.dumps(as_json(found), indent=1, allow_nan=False) + "\n")
    return files


def number(value: float) -> str:
    """Four digits, and no exponent where it is not needed."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _one(c: Characterization) -> dict[str, Any]:
    power = c.power_over_time
    return {
        "profile": c.label,
        "provenance": dict(c.profile.provenance),
        "context_tokens": c.context_tokens,
        "facts": facts(c),
        "prompt": {
            "batch_tokens": c.prompt_tokens.tolist(),
            "seconds": c.prompt_s.tolist(),
            "tokens_per_s": c.prompt_tokens_per_s.tolist(),
            "memory_bytes": c.prompt_memory_bytes.tolist(),
            "power_w": c.prompt_power_w.tolist(),
        },
        "token": {
            "batch": c.batch.tolist(),
            "seconds": c.token_s.tolist(),
            "tokens_per_s": c.tokens_per_s.tolist(),
            "memory_bytes": c.token_memory_bytes.tolist(),
            "power_w": c.token_power_w.tolist(),
        },
        "power-over-time": {
            "from_s": power.edges_s[:-1].tolist(),
            "to_s": power.edges_s[1:].tolist(),
            "phase": list(power.phase),
            "power_w": power.watts.tolist(),
        },
    }


def _rows(rows: list[Ratio], both: Both) -> list[dict[str, Any]]:
    names = [c.profile.machine.name for c in both]
    return [
        {
            "what": r.what,
            "this": r.this,
            "other": r.other,
            "unit": r.unit,
            "ratio": r.ratio if r.other else None,
            "better": r.better(names[0], names[1]),
        }
        for r in rows
    ]


def _table(title: str, rows: list[Ratio], both: Both) -> Table:
    this, other = both
    table = Table(title=f"{title}: {this.label} : {other.label}", box=SIMPLE_HEAD)
    table.add_column("")
    table.add_column(this.profile.machine.name, justify="right")
    table.add_column(other.profile.machine.name, justify="right")
    table.add_column("unit")
    table.add_column("ratio", justify="right")
    judged = any(r.higher_is_better is not None for r in rows)
    if judged:
        table.add_column("better")
    for r in rows:
        cells = [r.what, number(r.this), number(r.other), r.unit, f"{r.ratio:.2f}x" if r.other else "-"]
        if judged:
            cells.append(r.better(this.profile.machine.name, other.profile.machine.name))
        table.add_row(*cells)
    return table
