"""Results for people and programs: a terminal table, CSV and JSON files, plots."""

import csv
import json
import math
from pathlib import Path
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from splitgym.evaluation.compare import Interval, brackets, compare
from splitgym.evaluation.run import Results
from splitgym.evaluation.workloads import Workload
from splitgym.metrics import KINDS
from splitgym.slo import PERCENTILES

TERMINAL_WIDTH = 120
"""Columns of text where the output is no terminal (a file, a CI log)."""
_NAME_WIDTH = 14


def summary(results: Results, baseline: str | None = None) -> list[dict[str, Any]]:
    """One row a workload and policy: means over windows, intervals of goodput and of its paired difference.

    `_low` and `_high` of fewer than six `windows` are the lowest and the highest (see `Interval`).

    Args:
        results: of `evaluate`.
        baseline: a policy of the results; None is the first.
    """
    base = baseline or results.policies[0]
    rows = []
    for workload in results.workloads:
        for found in compare(results, "goodput", base, workload):
            runs = results.select(found.policy, workload)
            row: dict[str, Any] = {
                "workload": workload.name,
                "rate_per_s": workload.rate_per_s,
                "policy": found.policy,
                "baseline": base,
                "windows": len(runs),
                "requests": sum(r.metrics.requests for r in runs),
                **_interval("goodput", found.value),
                **_interval("goodput_difference", found.difference),
            }
            for name, value in runs[0].metrics.as_dict().items():
                if name not in ("goodput", "requests", "failed_slos") and not isinstance(value, str):
                    row[name] = float(results.values(name, found.policy, workload).mean())
            row["failed_slos"] = " ".join(sorted({s for r in runs for s in r.metrics.failed_slos}))
            rows.append(row)
    return rows


def windows_of(results: Results) -> str:
    """How many a workload has: "1 window", "3 windows"."""
    return f"{len(results.seeds)} window{'s' if len(results.seeds) != 1 else ''}"


def _broken(name: str) -> str:
    """A long name on more lines, between its parts; a row has a second line anyway."""
    return name.replace(":", ":\n") if len(name) > _NAME_WIDTH else name


def table(results: Results, workload: Workload, baseline: str | None = None) -> Table:
    """The terminal table of one workload: percentiles are means over windows of each window's percentile."""
    base = baseline or results.policies[0]
    drawn = Table(
        title=f"{workload.name}, {windows_of(results)} of {workload.duration_s:g} s ({workload.part} part)",
        caption="TTFT, TBT, E2E: slowdown against the same request alone on the reference machine, "
        f"p50 p90 p99; difference: of goodput to {base} on the same windows"
        + (f"; brackets: {brackets(len(results.seeds))}" if len(results.seeds) > 1 else ""),
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    drawn.add_column("policy", overflow="fold", min_width=_NAME_WIDTH)
    for text in ("goodput", "difference", "SLOs", "TTFT", "TBT", "E2E", "J/req"):
        drawn.add_column(text, justify="right", no_wrap=True)
    for row in summary(results, base):
        if row["workload"] != workload.name:
            continue
        drawn.add_row(
            _broken(row["policy"]),
            _spread(row, "goodput", ""),
            _spread(row, "goodput_difference", "+"),
            f"{row['slos_held']:.2g}/9",
            *(" ".join(_short(row[f"{kind}_slowdown_p{p}"]) for p in PERCENTILES) for kind in KINDS),
            _number(row["energy_per_request_j"], ",.0f"),
        )
    return drawn


def print_tables(results: Results, baseline: str | None = None, file: TextIO | None = None) -> None:
    """Print the table of every workload."""
    console = Console(file=file)
    if not console.is_terminal:
        console = Console(file=file, width=TERMINAL_WIDTH)
    for workload in results.workloads:
        console.print(table(results, workload, baseline))


def write_files(results: Results, folder: Path, baseline: str | None = None) -> list[Path]:
    """Write `runs.csv`, `summary.csv` and `results.json` into a folder, which is made.

    Infinite and undefined numbers are empty cells in CSV and null in JSON.

    Returns:
        the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "runs.csv", folder / "summary.csv", folder / "results.json"]
    _write_csv(files[0], results.rows())
    _write_csv(files[1], summary(results, baseline))
    files[2].write_text(json.dumps(as_json(results, baseline), indent=1, allow_nan=False) + "\n")
    return files


def as_json(results: Results, baseline: str | None = None) -> dict[str, Any]:
    """What was run and what came out, ready for `json.dumps`."""
    found: dict[str, Any] = plain(
        {**results.describe(), "summary": summary(results, baseline), "runs": results.rows()}
    )
    return found


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: plain(v) for k, v in row.items()} for row in rows)


def plain(value: Any) -> Any:
    """JSON knows neither infinity nor NaN."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _interval(name: str, found: Interval | None) -> dict[str, float | None]:
    if found is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def _number(value: float | None, form: str) -> str:
    if value is None or math.isnan(value):
        return "-"
    return "inf" if math.isinf(value) else format(value, form)


def _spread(row: dict[str, Any], name: str, sign: str) -> str:
    mean, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if low is None or math.isnan(low):
        return _number(mean, f"{sign}.3f")
    return f"{mean:{sign}.3f}\n[{low:{sign}.2f}, {high:{sign}.2f}]"


def _short(value: float | None) -> str:
    return _number(value, ".2f" if value is None or value < 10 else ".0f")
