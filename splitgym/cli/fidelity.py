"""`validate`: is the simulator the paper's?"""

import json
from pathlib import Path
from typing import Annotated

import typer

from splitgym.cli.options import AsJson, progress
from splitgym.cli.shell import FAILED


def validate(
    reference: Annotated[
        Path | None, typer.Option(help="Folder of SplitwiseSim's results; default SPLITGYM_REFERENCE.")
    ] = None,
    perf_model: Annotated[
        Path | None,
        typer.Option(help="Its time tables; default splitwise-sim/perf_model.csv in SPLITGYM_DATA."),
    ] = None,
    only: Annotated[str, typer.Option(help="Only cases whose name contains this.")] = "",
    markdown: Annotated[
        Path | None, typer.Option(help="Page to write the report into (docs/fidelity.md).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare with results of the paper's own simulator; fails where a case should agree and does not.

    Example: splitgym validate --only m01
    """
    from splitgym.evaluation import reference as other

    cases = other.find_cases(reference, only)
    tables = other.find_tables(perf_model)
    other.check_setups(cases, tables)
    results = []
    with progress("cases", len(cases)) as (bar, task):
        for case in cases:
            results.append(other.compare(case, tables))
            bar.advance(task)
            if not as_json:
                print(other.line(results[-1]), flush=True)
    if markdown is not None:
        other.write_markdown(results, markdown)
    if as_json:
        print(json.dumps(other.as_json(results), indent=1, allow_nan=False))
    else:
        print("\n".join([*other.legend(results), other.summary(results)]))
    if any(found.verdict == other.UNNAMED for found in results):
        raise typer.Exit(FAILED)
