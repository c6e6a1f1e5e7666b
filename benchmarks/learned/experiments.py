"""The tables of docs/experiments.md, written from kept results; the words around them stay as they are.

    python -m benchmarks.learned.experiments                   write the page's tables anew
    python -m benchmarks.learned.experiments --check           only say whether they are what would be written
    python -m benchmarks.learned.experiments keep RUN NAME     keep a training run's curve in curves/NAME.json

A table stands between two comments, and the first says what it is made of:

    <!-- made: curve goodput es-seed1="seed 1" es-seed4="seed 4" every=50 -->
    <!-- /made -->

`curve METRIC NAME=LABEL ... [every=N]`: the kept curves, a column a generation (a run's steps).
`best NAME=LABEL ...`: of each curve its best evaluation by fitness (goodput where there is none).
`benchmark SECTION NUMBER`: a table of docs/benchmark.json. `claims NAME=LABEL ...`: its claims with their
intervals. What is not between such comments was measured at its time and stands as it was written.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.learned.page import DOCS, Table
from splitgym.errors import ConfigError

CURVES = Path(__file__).parent / "curves"
PAGE = DOCS / "experiments.md"
METRICS = {"goodput": 3, "fitness": 3, "tail": 3, "ttft_slowdown_p99": 1}
"""What a curve keeps, and the places behind the point that tables show."""
_KEPT_PLACES = 6
_ABSOLUTE = re.compile(r"(?<![\w.])/(?:[\w.-]+/)+([\w.-]+)")
"""Where a run folder lay on that machine is of no interest: `runs/NAME` is what the page calls it."""
_BLOCK = re.compile(r"^<!-- made: (?P<what>[^\n]*?) -->\n(?P<table>.*?)^<!-- /made -->$", re.M | re.S)


def keep(run: str | Path, name: str, folder: Path = CURVES) -> Path:
    """Keep the curve of a run folder, with the command, configuration digest and revision it came of.

    Raises:
        ConfigError: no run folder, or nothing was evaluated in it.
    """
    from agents.evaluation import load_config
    from agents.runs import RunFolder

    config, found = load_config(run), RunFolder(run)
    rows = found.evaluations()
    if not rows:
        raise ConfigError(f"{run}: nothing was evaluated in this run yet")
    meta = json.loads((found.path / "meta.json").read_text())
    command = _ABSOLUTE.sub(r"runs/\1", shlex.join(meta["command"]))
    kept = {
        "algo": config.algo,
        "env": config.env,
        "seed": config.seed,
        "command": command,
        "git_revision": meta.get("git_revision"),
        "evaluations": [
            {"steps": int(row["steps"])}
            | {key: round(float(row[key]), _KEPT_PLACES) for key in METRICS if key in row}
            for row in rows
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    lines = json.dumps(kept, indent=1)
    path.write_text(
        re.sub(r"\{\s+(\"steps[^}]*?)\s+\}", lambda m: "{" + " ".join(m[1].split()) + "}", lines) + "\n"
    )
    return path


def rendered(text: str, docs: Path = DOCS, curves: Path = CURVES) -> str:
    """A page with its tables made anew.

    Args:
        text: of the page.
        docs: where benchmark.json lies.
        curves: folder of the kept curves.

    Raises:
        ConfigError: a comment that names no table; says which.
    """
    _check_pairs(text)

    def table(match: re.Match[str]) -> str:
        what = match["what"]
        try:
            kind, *words = shlex.split(what)
            made = _KINDS[kind](words, docs, curves)
        except (KeyError, IndexError, ValueError, OSError) as error:
            raise ConfigError(f"<!-- made: {what} -->: no such table ({error!r})") from None
        return f"<!-- made: {what} -->\n\n{made}\n\n<!-- /made -->"

    return _BLOCK.sub(table, text)


def _check_pairs(text: str) -> None:
    begun = re.findall(r"^<!-- (/?made)\b", text, re.M)
    if begun != ["made", "/made"] * (len(begun) // 2):
        raise ConfigError("a `<!-- made: ... -->` without its `<!-- /made -->`, or the other way round")


def _rows(name: str, folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text())["evaluations"]
    return rows


def _curve(words: Sequence[str], docs: Path, folder: Path) -> str:
    metric, *rest = words
    every, named = 1, []
    for word in rest:
        name, _, label = word.partition("=")
        if name == "every":
            every = int(label)
        else:
            named.append((label or name, {row["steps"]: row for row in _rows(name, folder)}))
    steps = sorted({step for _, rows in named for step in rows if step % every == 0})
    shown = [
        (label, *(_number(rows[step][metric], metric) if step in rows else "" for step in steps))
        for label, rows in named
    ]
    return _plain((f"{_title(metric)}, generation", *map(str, steps)), shown)


def _best(words: Sequence[str], docs: Path, folder: Path) -> str:
    found = []
    for word in words:
        name, _, label = word.partition("=")
        rows = _rows(name, folder)
        by = "fitness" if "fitness" in rows[0] else "goodput"
        found.append((label or name, max(rows, key=lambda row, by=by: row[by])))  # type: ignore[misc]
    rows_shown: list[tuple[str, ...]] = [("generation", *(str(row["steps"]) for _, row in found))]
    for metric in METRICS:
        rows_shown.append(
            (_title(metric), *(_number(row[metric], metric) if metric in row else "" for _, row in found))
        )
    return _plain(("", *(label for label, _ in found)), rows_shown)


def _benchmark(words: Sequence[str], docs: Path, folder: Path) -> str:
    section, number = words
    stored = json.loads((docs / "benchmark.json").read_text())["sections"][section]["tables"][int(number)]
    rows = tuple(tuple(row) for row in stored["rows"])
    return Table(stored["title"], tuple(stored["columns"]), rows).markdown()


def _claims(words: Sequence[str], docs: Path, folder: Path) -> str:
    claims = json.loads((docs / "benchmark.json").read_text())["claims"]
    rows = []
    for word in words:
        name, _, label = word.partition("=")
        low, high = (claims.get(f"{name}.ci_{end}") for end in ("low", "high"))
        ends = "" if low is None else f"[{low:+.3f}, {f'{high:+.3f}' if high is not None else '...'}]"
        rows.append((label or f"`{name}`", f"{claims[name]:+.3f} {ends}".strip()))
    return _plain(("claim", "measured"), rows)


_KINDS = {"curve": _curve, "best": _best, "benchmark": _benchmark, "claims": _claims}


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
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a table would change")
    parser.add_argument("--page", type=Path, default=PAGE, help="default docs/experiments.md")
    jobs = parser.add_subparsers(dest="job")
    keeping = jobs.add_parser("keep", help="keep the curve of a training run")
    keeping.add_argument("run", type=Path)
    keeping.add_argument("name")
    options = parser.parse_args()
    if options.job == "keep":
        print(keep(options.run, options.name))
        return 0
    before = options.page.read_text()
    try:
        now = rendered(before)
    except ConfigError as error:
        print(f"{options.page}: {error}", file=sys.stderr)
        return 2
    if now == before:
        return 0
    if options.check:
        print(f"{options.page}: tables are not what `make experiments` writes", file=sys.stderr)
        return 1
    options.page.write_text(now)
    print(options.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
