"""docs/experiments.md, written from entries and kept results.

    python -m benchmarks.learned.experiments                  write the page
    python -m benchmarks.learned.experiments --check          only say whether it is what would be written
    python -m benchmarks.learned.experiments keep RUN NAME    keep a run's curve in curves/NAME.json
    python -m benchmarks.learned.experiments keep-table CSV NAME --title TEXT --command TEXT
    python -m benchmarks.learned.validation POLICY ... --keep NAME

The last two keep, in kept/NAME.json, a table that a command wrote, and policies on validation windows.

The page is `entries/*.md` in the order of their names, and after them where each table comes from. An entry
has no table in it: a line of its own says what table stands there,

    <!-- made: curve goodput es-seed1="seed 1" es-seed4="seed 4" every=50 -->

`curve METRIC NAME=LABEL ... [every=N] [by=decisions]`: kept curves, a column a generation (a run's steps).
`best NAME=LABEL ...`: of each curve its best evaluation by fitness (goodput where there is none).
`table NAME`: a kept table as it is.
`validation [show=goodput|p99|both] NAME[/POLICY=LABEL] ...`: kept figures by load; without a policy, of all.
`benchmark SECTION NUMBER`: a table of docs/benchmark.json. `claims NAME=LABEL ...`: its claims with their
intervals.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.learned.kept import (
    CURVES,
    HERE,
    KEPT,
    METRICS,
    PolicyRow,
    keep_curve,
    keep_table,
    read_curve,
    read_table,
    read_validation,
)
from benchmarks.learned.page import DOCS, Table
from splitgym.errors import ConfigError, SplitgymError

ENTRIES = HERE / "entries"
PAGE = DOCS / "experiments.md"
NOTICE = (
    "<!-- Written by `make experiments` from benchmarks/learned/entries, kept and curves: edit there. -->\n\n"
)
_LINE = re.compile(r"^<!-- made: (?P<what>[^\n]*?) -->$", re.M)
_TABLE = re.compile(r"^\s*\|.*\|\s*$", re.M)
_HEADING = re.compile(r"^## (.*)$", re.M)


@dataclass(frozen=True)
class Sources:
    """Where results are kept."""

    docs: Path = DOCS
    """Of benchmark.json."""
    curves: Path = CURVES
    kept: Path = KEPT


HERE_KEPT = Sources()


def page(entries: Path = ENTRIES, sources: Sources = HERE_KEPT) -> str:
    """The whole page.

    Args:
        entries: folder of the entries.
        sources: where results are kept.

    Raises:
        ConfigError: no entry, one with a table of its own, or a line that names no table; says which.
    """
    paths = sorted(entries.glob("*.md"))
    if not paths:
        raise ConfigError(f"{entries}: no entry (NN-NAME.md) in it")
    texts = []
    for path in paths:
        try:
            texts.append((path.read_text(), rendered(path.read_text(), sources)))
        except ConfigError as error:
            raise ConfigError(f"{path.name}: {error}") from None
    origins = origin([text for text, _ in texts], sources)
    return NOTICE + "\n".join([*(made.rstrip("\n") + "\n" for _, made in texts), origins])


def rendered(text: str, sources: Sources = HERE_KEPT) -> str:
    """An entry with its tables.

    Raises:
        ConfigError: a table written by hand, or a line that names none; says which.
    """
    by_hand = _TABLE.search(text)
    if by_hand:
        raise ConfigError(f"a table by hand ({by_hand[0].strip()[:60]}): keep its figures in a file")
    made = _LINE.sub(lambda match: _made(match["what"], sources), text)
    if "<!-- made" in made or "<!-- /made" in made:
        raise ConfigError("a `<!-- made: ... -->` that is no line of its own")
    return made


def _made(what: str, sources: Sources) -> str:
    try:
        kind, *words = shlex.split(what)
        return _KINDS[kind](words, sources)
    except (KeyError, IndexError, ValueError, OSError, SplitgymError) as error:
        raise ConfigError(f"<!-- made: {what} -->: no such table ({error!r})") from None


def origin(texts: Sequence[str], sources: Sources = HERE_KEPT) -> str:
    """The last part of the page: of each kept file the command, date and revision.

    Args:
        texts: entries, as they are kept.
        sources: where results are kept.
    """
    lines = [
        "## Where the tables come from",
        "",
        "Files of `benchmarks/learned`; what stands in none of them is a figure of the text, of its time.",
        "",
    ]
    for text in texts:
        heading = _HEADING.search(text)
        found = list(dict.fromkeys(name for match in _LINE.finditer(text) for name in _names(match["what"])))
        if found:
            lines += [f"**{heading[1] if heading else 'Before the entries'}**", ""]
            lines += [f"- {_origin(kind, name, sources)}" for kind, name in found] + [""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _names(what: str) -> list[tuple[str, str]]:
    """(kind, name) of the kept files that a line names."""
    kind, *words = shlex.split(what)
    if kind in ("benchmark", "claims"):
        return [("benchmark", "")]
    words = words[1:] if kind == "curve" else words
    folder = "curves" if kind in ("curve", "best") else "kept"
    plain = [word for word in words if word.partition("=")[0] not in ("every", "by", "show")]
    return [(folder, word.partition("=")[0].partition("/")[0]) for word in plain]


def _origin(kind: str, name: str, sources: Sources) -> str:
    if kind == "benchmark":
        return "`docs/benchmark.json`, which names the command of each section"
    data = json.loads((getattr(sources, kind) / f"{name}.json").read_text())
    known = data.get("git_revision")
    parts = [
        data.get("date", ""),
        f"revision {known[:12]}{'+changes' if known.endswith('+changes') else ''}" if known else "",
        data.get("machine", ""),
        data.get("remark", ""),
    ]
    said = "; ".join(part for part in parts if part)
    return f"`{kind}/{name}.json`: `{data['command']}`" + (f" ({said})" if said else "")


def _curve(words: Sequence[str], sources: Sources) -> str:
    metric, *rest = words
    every, by, named = 1, "generation", []
    for word in rest:
        name, _, label = word.partition("=")
        if name == "every":
            every = int(label)
        elif name == "by":
            by = label
        else:
            named.append((label or name, {row["steps"]: row for row in _rows(name, sources)}))
    steps = sorted({step for _, rows in named for step in rows if step % every == 0})
    shown = [
        (label, *(_number(rows[step][metric], metric) if step in rows else "" for step in steps))
        for label, rows in named
    ]
    return _plain((f"{_title(metric)}, {by}", *(f"{step:,}" for step in steps)), shown)


def _best(words: Sequence[str], sources: Sources) -> str:
    found = []
    for word in words:
        name, _, label = word.partition("=")
        rows = _rows(name, sources)
        by = "fitness" if "fitness" in rows[0] else "goodput"
        found.append((label or name, max(rows, key=lambda row, by=by: row[by])))  # type: ignore[misc]
    rows_shown: list[tuple[str, ...]] = [("generation", *(str(row["steps"]) for _, row in found))]
    for metric in METRICS:
        rows_shown.append(
            (_title(metric), *(_number(row[metric], metric) if metric in row else "" for _, row in found))
        )
    return _plain(("", *(label for label, _ in found)), rows_shown)


def _table(words: Sequence[str], sources: Sources) -> str:
    (name,) = words
    kept = read_table(name, sources.kept)
    return _plain(kept.columns, kept.rows)


def _validation(words: Sequence[str], sources: Sources) -> str:
    show, found = "both", []
    for word in words:
        which, _, label = word.partition("=")
        if which == "show":
            show = label
            continue
        name, _, policy = which.partition("/")
        policies = read_validation(name, sources.kept).policies
        chosen = {policy: policies[policy]} if policy else policies
        found += [(label or f"`{known}`", row) for known, row in chosen.items()]
    loads = [at.load for at in found[0][1].by_load]
    if any([at.load for at in row.by_load] != loads for _, row in found):
        raise ConfigError("the policies were measured at different loads")
    cell = _SHOWN[show]
    rows = [
        (label, *(cell(at.goodput, at.ttft_slowdown_p99) for at in row.by_load), *_ends(row))
        for label, row in found
    ]
    return _plain(("validation, load", *(_load(load) for load in loads), "mean", "TTFT p99"), rows)


def _ends(row: PolicyRow) -> tuple[str, str]:
    return _number(row.goodput, "goodput"), f"{row.ttft_slowdown_p99:.0f}"


def _load(load: float) -> str:
    return f"{load:g}".removeprefix("0") or "0"


_SHOWN: dict[str, Callable[[float, float], str]] = {
    "goodput": lambda goodput, p99: _number(goodput, "goodput"),
    "p99": lambda goodput, p99: f"{p99:.0f}",
    "both": lambda goodput, p99: f"{_number(goodput, 'goodput')} ({p99:.0f})",
}


def _benchmark(words: Sequence[str], sources: Sources) -> str:
    section, number = words
    stored = json.loads((sources.docs / "benchmark.json").read_text())["sections"][section]["tables"]
    table = stored[int(number)]
    rows = tuple(tuple(row) for row in table["rows"])
    return Table(table["title"], tuple(table["columns"]), rows).markdown()


def _claims(words: Sequence[str], sources: Sources) -> str:
    claims = json.loads((sources.docs / "benchmark.json").read_text())["claims"]
    rows = []
    for word in words:
        name, _, label = word.partition("=")
        low, high = (claims.get(f"{name}.ci_{end}") for end in ("low", "high"))
        ends = "" if low is None else f"[{low:+.3f}, {f'{high:+.3f}' if high is not None else '...'}]"
        rows.append((label or f"`{name}`", f"{claims[name]:+.3f} {ends}".strip()))
    return _plain(("claim", "measured"), rows)


_KINDS: dict[str, Callable[[Sequence[str], Sources], str]] = {
    "curve": _curve,
    "best": _best,
    "table": _table,
    "validation": _validation,
    "benchmark": _benchmark,
    "claims": _claims,
}


def _rows(name: str, sources: Sources) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_curve(name, sources.curves)["evaluations"]
    return rows


def _title(metric: str) -> str:
    return "TTFT p99" if metric.startswith("ttft") else metric


def _number(value: float, metric: str) -> str:
    text = f"{value:.{METRICS[metric]}f}"
    return text.removeprefix("0") if text.startswith("0.") else text


def _plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without a title."""
    return "\n".join(Table("", tuple(columns), tuple(map(tuple, rows))).markdown().splitlines()[2:])


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the page would change")
    parser.add_argument("--page", type=Path, default=PAGE, help="default docs/experiments.md")
    jobs = parser.add_subparsers(dest="job")
    keeping = jobs.add_parser("keep", help="keep the curve of a training run")
    keeping.add_argument("run", type=Path)
    keeping.add_argument("name")
    table = jobs.add_parser("keep-table", help="keep a CSV file that a command wrote")
    table.add_argument("csv", type=Path)
    table.add_argument("name")
    table.add_argument("--title", required=True, help="what it shows, in a line")
    table.add_argument("--command", required=True, help="that wrote it")
    options = parser.parse_args()
    try:
        if options.job == "keep":
            print(keep_curve(options.run, options.name))
            return 0
        if options.job == "keep-table":
            print(keep_table(options.csv, options.name, options.title, options.command, KEPT))
            return 0
        now = page()
    except SplitgymError as error:
        print(error, file=sys.stderr)
        return 2
    before = options.page.read_text() if options.page.is_file() else ""
    if now == before:
        return 0
    if options.check:
        print(f"{options.page}: is not what `make experiments` writes", file=sys.stderr)
        return 1
    options.page.write_text(now)
    print(options.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
