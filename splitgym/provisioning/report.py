"""Found clusters for people and programs: terminal table, CSV, JSON."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from splitgym.config import to_mapping
from splitgym.provisioning.plan import Found, Frontier, Problem


def table(found: Sequence[Found], title: str) -> Table:
    """The terminal table, best rate (or lowest cost at the same rate) in the order of the designs."""
    drawn = Table(
        title=title,
        caption="requests/s with all nine SLOs held; cost per hour and power in the units of the specs",
        box=SIMPLE_HEAD,
    )
    for name in ("design", "cluster"):
        drawn.add_column(name, no_wrap=True)
    for name in ("requests/s", "machines", "cost", "power"):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("ended by")
    for f in found:
        rate = f"{f.rate_per_s:.4g}" + ("" if f.reached else " (not reached)")
        drawn.add_row(
            f.design.name,
            f.design.describe(f.counts),
            rate,
            str(f.machines),
            f"{f.cost_per_hour:.2f}",
            f"{f.power:.1f}",
            " ".join(f.failed),
        )
    return drawn


def as_json(
    problem: Problem, found: Sequence[Found], frontiers: Sequence[Frontier] = (), **more: Any
) -> dict[str, Any]:
    """What was asked and found, ready for `json.dumps`."""
    return {
        "model": problem.model,
        "workload": {**to_mapping(problem.workload), "rate_per_s": None},
        "seeds": list(problem.seeds),
        "tolerance": problem.tolerance,
        **more,
        "designs": [f.row() for f in found],
        "frontiers": [f.as_json() for f in frontiers],
    }


def write_files(folder: Path, data: dict[str, Any]) -> list[Path]:
    """`designs.csv`, `designs.json` and, of frontiers, `frontier.csv` into a folder, which is made.

    Args:
        data: of `as_json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "designs.csv", folder / "designs.json"]
    rows = data["designs"]
    _write(files[0], list(dict.fromkeys(key for row in rows for key in row)), rows)
    files[1].write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    edges = [
        {"design": f["design"], "rate_per_s": f["rate_per_s"], "first_pool": p, "second_pool": t}
        for f in data["frontiers"]
        for p, t in zip(f["first"], f["fewest"])
    ]
    if edges:
        files.append(folder / "frontier.csv")
        _write(files[-1], list(edges[0]), edges)
    return files


def _write(path: Path, names: list[str], rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
