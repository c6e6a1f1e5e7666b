"""`splitgym saturation`: the rate at which a cluster is saturated."""

import json
from pathlib import Path
from typing import Annotated

import typer

from splitgym.cli.options import AsJson, Model, Workers, check_file, complete_machines, progress
from splitgym.config import ClusterConfig, make, parse_machines
from splitgym.errors import ConfigError


def saturation(
    cluster: Annotated[
        list[str] | None,
        typer.Option(
            help="Machines: TYPE:COUNTS such as h100-80gb:8M; pools play no part. Repeatable.",
            autocompletion=complete_machines,
        ),
    ] = None,
    model: Model = "bloom-176b",
    workload: Annotated[
        list[str] | None, typer.Option(help="KIND:TRACE without a rate; repeatable. Default: the usual six.")
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="Windows a rate.")] = 8,
    table: Annotated[
        Path | None, typer.Option(help="CSV to put the rows into; rows that it has are not measured again.")
    ] = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Measure the rate at which the tuned index's goodput is .90 on the train part.

    Example: splitgym saturation --cluster h100-80gb:4M --workload poisson:azure-conv --windows 2
    """
    from splitgym import saturation as kept
    from splitgym.evaluation import saturate
    from splitgym.scale import threads

    for name in workload or ():
        if "@" in name:
            raise ConfigError(f"--workload {name}: leave the rate out, it is what is measured")
    if table is not None:
        check_file(table, "--table")
    rows = kept.read(table) if table is not None and table.exists() else []
    there = {(row["model"], row["machines"], row["workload"]) for row in rows}
    clusters = [
        make(ClusterConfig, model=model, machines=parse_machines(text))
        for text in cluster or ["h100-80gb:8M"]
    ]
    tasks = [
        (config, name)
        for config in clusters
        for name in workload or kept.WORKLOADS
        if (model, kept.write_hardware(kept.hardware(config)), name) not in there
    ]
    new = []
    state = f"the rows are in {table}, the same command goes on" if table else "--table FILE keeps rows"
    with progress("measuring", len(tasks), state) as (bar, task), threads(workers) as map:
        for config, name in tasks:
            row = saturate.row(config, name, saturate.measure(config, name, windows, map=map))
            if not as_json:
                print(f"{row['machines']}  {name}  {row['rate_per_s']} requests/s (goodput {row['goodput']})")
            rows.append(row)
            new.append(row)
            if table is not None:
                kept.write(table, rows)
            bar.advance(task)
    if as_json:
        print(json.dumps(new, indent=1))
