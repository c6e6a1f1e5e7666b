"""Commands about hardware: `characterize` a profile, `provision` a cluster."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from splitgym.cli.options import (
    AsJson,
    Duration,
    EngineName,
    Model,
    RayAddress,
    Seeds,
    Warmup,
    Workers,
    make_folder,
    progress,
    say_stand_ins,
)
from splitgym.config import ClusterConfig, load_yaml
from splitgym.errors import ConfigError


def characterize(
    profile: Annotated[
        str, typer.Argument(help="MODEL/MACHINE, MODEL/MACHINE/tp4, or a profile file; replaces the options.")
    ] = "",
    model: Model = "bloom-176b",
    machine: Annotated[str, typer.Option(help="Machine type: see `splitgym profile list`.")] = "h100-80gb",
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs that hold the model.")] = 8,
    compare: Annotated[
        str, typer.Option(help="A second profile, or a machine type for the same model.")
    ] = "",
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of each task of a token batch; default 1,149.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for CSV, JSON and plots.")] = None,
    as_json: AsJson = False,
) -> None:
    """Throughput, memory and power of both phases, and how one machine compares with another.

    Example: splitgym characterize bloom-176b/h100-80gb --compare a100-80gb
    """
    from splitgym.evaluation import characterize as phases

    found = [phases.find(profile or f"{model}/{machine}/tp{tensor_parallel}")]
    if compare:
        first = found[0]
        plain = "/" not in compare and not compare.endswith((".json", ".yaml", ".yml"))
        same = f"{first.model.name}/{compare}/tp{first.tensor_parallel}"
        found.append(phases.find(same if plain else compare))
    drawn = [phases.characterize(p, context or phases.CONTEXT_TOKENS) for p in found]
    if out is not None:
        make_folder(out)
    if as_json:
        print(json.dumps(phases.as_json(drawn), indent=1, allow_nan=False))
    else:
        phases.print_tables(drawn)
    if out is not None:
        files = phases.write_files(drawn, out) + phases.write_plots(drawn, out)
        Console(stderr=True).print(f"{len(files)} files in {out}")


def provision(
    workload: Annotated[str, typer.Option(help="KIND:TRACE without a rate.")] = "poisson:azure-conv",
    designs: Annotated[
        str,
        typer.Option(
            help="`paper`, its names, or [NAME=]TYPE:P+TYPE:T or TYPE:M; comma-separated. 5P is fixed."
        ),
    ] = "paper",
    budget: Annotated[
        str, typer.Option(help="Find the highest rate within power=N, cost=N, count=N or power=40*h100-80gb.")
    ] = "",
    rate: Annotated[
        float | None, typer.Option(help="Or find the least machines for so many requests/s.")
    ] = None,
    minimise: Annotated[str, typer.Option(help="With --rate: cost, power or count.")] = "cost",
    also: Annotated[
        str, typer.Option(help="Another KIND:TRACE: what the clusters hold there (robustness).")
    ] = "",
    model: Model = "bloom-176b",
    seeds: Seeds = 1,
    duration: Duration = 60.0,
    warmup: Warmup = 10.0,
    part: Annotated[str, typer.Option(help="Part of the trace: all, train, validation or test.")] = "all",
    tolerance: Annotated[float, typer.Option(help="Relative distance of the rates tried.")] = 0.03,
    most_machines: Annotated[int, typer.Option(min=1, help="With --rate: of a pool.")] = 128,
    rules: Annotated[
        Path | None,
        typer.Option(help="YAML of a ClusterConfig: its transfer, batching, SLO; not its machines."),
    ] = None,
    workers: Workers = None,
    ray: RayAddress = None,
    cache: Annotated[
        Path | None, typer.Option(help="JSON that keeps the runs; the same command goes on from it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for CSV, JSON and plots.")] = None,
    engine: EngineName = "auto",
    as_json: AsJson = False,
) -> None:
    """Search machine types and pool sizes: most requests/s for a budget, or least machines for a rate.

    Example: splitgym provision --designs Splitwise-HH --budget power=8*h100-80gb
    """
    from splitgym import provisioning
    from splitgym.evaluation import parse
    from splitgym.evaluation.workloads import stand_ins
    from splitgym.scale import workers_for

    fields = {"duration_s": duration, "warmup_s": warmup, "part": part}
    if "@" in workload + also:
        raise ConfigError(
            "provision searches the rate: name workloads without @, and a rate to reach with --rate"
        )
    loads = [parse(f"{text}@1", **fields) for text in (workload, also) if text]
    asked = provisioning.Request(
        problem=provisioning.Problem(
            model,
            loads[0],
            tuple(range(seeds)),
            tolerance,
            most_machines=most_machines,
            engine=engine,
            rules=load_yaml(ClusterConfig, rules) if rules is not None else None,
        ),
        designs=tuple(provisioning.parse_designs(designs)),
        budget=provisioning.parse_budget(budget, model) if budget else None,
        rate_per_s=rate,
        minimise=minimise,
        also=loads[1] if also else None,
        figures=out is not None,
    )
    if out is not None:
        make_folder(out)
    kept = f"the runs are in {cache}, the same command goes on" if cache else "--cache FILE keeps the runs"
    with (
        progress("simulating", asked.expected_runs, kept) as (bar, task),
        workers_for(ray, workers) as map,
    ):
        sources = provisioning.sources_of(loads) if ray is not None else None
        runs = provisioning.Runs(map, cache, lambda: bar.advance(task), sources)
        answer = asked.answer(runs, lambda left: bar.update(task, total=runs.count + 8 * left))
    if as_json:
        print(json.dumps(answer.as_json(), indent=1, allow_nan=False))
    else:
        answer.print_tables()
    say_stand_ins(stand_ins(loads))
    if out is not None:
        Console(stderr=True).print(f"{len(answer.write(out))} files in {out}")
