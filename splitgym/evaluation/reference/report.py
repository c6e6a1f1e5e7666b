"""What `splitgym validate` prints, and the page it writes."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from splitgym.errors import ConfigError
from splitgym.evaluation.reference.compare import AGREES, CLOSE, EXACT, NAMED, UNNAMED, Comparison
from splitgym.evaluation.reference.oddities import CAUSES
from splitgym.evaluation.reference.texts import INTRODUCTION, MICRO, ODDITIES, RUNS
from splitgym.metrics import KINDS

BEGIN = "<!-- splitgym validate: begin (generated, do not edit) -->"
END = "<!-- splitgym validate: end -->"


def line(found: Comparison) -> str:
    """One case in one line."""
    shifts = "  ".join(
        f"{kind.upper()} " + "/".join(_percent(x) for x in found.percentile_differences[kind])
        for kind in KINDS
    )
    same = sum(a == b for a, b in zip(found.slos_ours, found.slos_theirs, strict=True))
    slos = "nine SLOs same" if same == len(found.slos_ours) else f"{9 - same} of nine SLOs other"
    requests = f"TTFT {_number(found.ttft_difference)}, E2E {_number(found.e2e_difference)}"
    return (
        f"{found.case.name}: {judgement(found)}; largest difference of a request: {requests}; "
        f"p50/p90/p99: {shifts}; {slos}"
    )


def judgement(found: Comparison) -> str:
    """The verdict in words."""
    share = f"{found.requests_that_differ} of {len(found.case)} requests"
    if found.verdict == AGREES:
        return "agrees" if found.exact else f"agrees at the percentiles ({share} differ)"
    if found.verdict == NAMED:
        return f"differs for oddity {_numbers(found)} ({share})"
    return f"DIFFERS WITHOUT A NAMED ODDITY from {found.first_difference_s:.6g} s on ({share})"


def summary(results: Sequence[Comparison]) -> str:
    """The last line: the three counts."""
    n = Counter(found.verdict for found in results)
    return (
        f"{len(results)} cases: {n[AGREES]} agree, {n[NAMED]} differ for a named oddity, "
        f"{n[UNNAMED]} differ without one"
    )


def legend(results: Iterable[Comparison]) -> list[str]:
    """What the numbers of the oddities found stand for, one line each."""
    there = sorted({oddity for found in results if found.verdict == NAMED for oddity in found.oddities})
    return [f"oddity {oddity}: {CAUSES[oddity]}" for oddity in there]


def as_json(results: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Plain data, one entry a case; a difference to a request that one side never completed is null."""
    return [
        {
            "case": found.case.name,
            "kind": found.case.kind,
            "requests": len(found.case),
            "verdict": found.verdict,
            "oddities": list(found.oddities),
            "requests_that_differ": found.requests_that_differ,
            "ttft_difference": _finite(found.ttft_difference),
            "e2e_difference": _finite(found.e2e_difference),
            "first_difference_s": _finite(found.first_difference_s),
            "percentile_differences": {
                kind: [_finite(x) for x in three] for kind, three in found.percentile_differences.items()
            },
            "slos_ours": list(found.slos_ours),
            "slos_theirs": list(found.slos_theirs),
        }
        for found in results
    ]


def markdown(results: Sequence[Comparison]) -> str:
    """The section "Agreement with the paper's simulator" of docs/fidelity.md."""
    parts = [BEGIN, INTRODUCTION.format(exact=EXACT, close=CLOSE, summary=summary(results))]
    runs = [found for found in results if found.case.kind == "run"]
    micro = [found for found in results if found.case.kind == "micro"]
    if runs:
        parts.append(RUNS + "\n" + "\n".join(_run_rows(runs)))
    if micro:
        parts.append(MICRO + "\n" + "\n".join(_micro_rows(micro)))
    rows = [_row(["", "SplitwiseSim", "ours"]), _row(["---"] * 3), *map(_row, ODDITIES)]
    parts.append("### Where SplitwiseSim is odd, and what ours does\n\n" + "\n".join(rows))
    parts.append(END)
    return "\n\n".join(parts)


def write_markdown(results: Sequence[Comparison], path: Path) -> None:
    """Put the section into a page: in place of the last one, or at its end; a new page gets a title.

    Raises:
        ConfigError: the page cannot be written.
    """
    block = markdown(results)
    try:
        page = path.read_text() if path.exists() else "# Fidelity\n"
        if BEGIN in page and END in page:
            before, rest = page.split(BEGIN, 1)
            page = before + block + rest.split(END, 1)[1]
        else:
            page = page.rstrip("\n") + "\n\n" + block + "\n"
        path.write_text(page)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--markdown {path}: cannot be written ({error})") from None


def _run_rows(runs: Sequence[Comparison]) -> list[str]:
    head = [
        "run",
        "requests",
        "verdict",
        "TTFT",
        "E2E",
        *(f"{k.upper()} p50/p90/p99" for k in KINDS),
        "nine SLOs",
    ]
    rows = [_row(head), _row(["---"] * len(head))]
    for found in runs:
        shifts = ["/".join(_percent(x) for x in found.percentile_differences[kind]) for kind in KINDS]
        same = found.slos_ours == found.slos_theirs
        rows.append(
            _row(
                [
                    f"`{found.case.name}`",
                    f"{len(found.case):,}",
                    judgement(found),
                    _number(found.ttft_difference),
                    _number(found.e2e_difference),
                    *shifts,
                    ("same: " if same else "other: ours ") + f"{sum(found.slos_ours)} hold",
                ]
            )
        )
    return rows


def _micro_rows(micro: Sequence[Comparison]) -> list[str]:
    names = [found.case.name.split(" ") for found in micro]
    clusters = sorted({cluster for _, _, cluster in names})
    cells = {tuple(name): found for name, found in zip(names, micro, strict=True)}
    head = ["case", "model", *(f"`{cluster}`" for cluster in clusters)]
    rows = [_row(head), _row(["---"] * len(head))]
    for case, model in dict.fromkeys((case, model) for case, model, _ in names):
        row = [f"`{case}`", model]
        for cluster in clusters:
            found = cells.get((case, model, cluster))
            if found is None:
                row.append("")
            elif found.verdict == AGREES:
                row.append("=")
            else:
                row.append(_numbers(found) if found.verdict == NAMED else "**differs**")
        rows.append(_row(row))
    return rows


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _numbers(found: Comparison) -> str:
    return ", ".join(str(oddity) for oddity in found.oddities)


def _number(value: float) -> str:
    return "unbounded" if math.isinf(value) else f"{value:.1e}" if value else "0"


def _percent(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "0" if abs(value) < 5e-6 else f"{value:+.3%}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
