"""Commands that run policies: `evaluate`, `max-rate`, `sweep`."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from splitgym.cli.learning import contender_of
from splitgym.cli.options import (
    AsJson,
    ClusterFile,
    Duration,
    EngineName,
    FewWorkers,
    Machines,
    Model,
    Part,
    RayAddress,
    Seeds,
    Warmup,
    Workers,
    check_file,
    complete_policies,
    make_folder,
    numbers,
    progress,
    resolve,
    say_stand_ins,
    words,
)
from splitgym.config import ClusterConfig, load_yaml
from splitgym.errors import SplitgymError


def evaluate(
    workload: Annotated[
        list[str] | None,
        typer.Option(help="KIND:TRACE[@RATE]; repeatable. Default poisson:azure-code@19."),
    ] = None,
    rates: Annotated[
        str, typer.Option(help="Requests/s, comma-separated, for workloads without a rate.")
    ] = "",
    policies: Annotated[
        str,
        typer.Option(
            "--policies",
            "--policy",
            help="Comma-separated: a scheduler, with pool sizing (index+reactive), on other pools "
            "(splitwise@h100-80gb:6P2T); vllm (no split, vLLM's batching); the run folder of an agent; a "
            "policy bundle's folder or pretrained:NAME.",
            autocompletion=complete_policies,
        ),
    ] = "splitwise,index,jsq-tokens",
    cluster: Machines = "h100-80gb:5P3T",
    model: Model = "bloom-176b",
    cluster_file: ClusterFile = None,
    seeds: Seeds = 3,
    duration: Duration = 100.0,
    warmup: Warmup = 20.0,
    part: Part = "test",
    baseline: Annotated[str | None, typer.Option(help="Policy to compare with; default the first.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for CSV, JSON and plots.")] = None,
    report: Annotated[Path | None, typer.Option(help="HTML page with all of it, in one file.")] = None,
    workers: FewWorkers = None,
    ray: RayAddress = None,
    engine: EngineName = "auto",
    as_json: AsJson = False,
) -> None:
    """Run schedulers on the same windows of a workload and compare them.

    Example: splitgym evaluate --policies splitwise,index --workload poisson:azure-code@17 --report r.html
    """
    from splitgym import evaluation
    from splitgym.scale import workers_for

    names = words(policies)
    if baseline is not None and baseline not in names:
        raise SplitgymError(f"baseline {baseline!r} is not among the policies {', '.join(names)}")
    fields = {"duration_s": duration, "warmup_s": warmup, "part": part}
    texts = workload or ["poisson:azure-code" if rates else "poisson:azure-code@19"]
    loads = evaluation.parse_at_rates(texts, numbers(rates), **fields)
    resolved = resolve(cluster, model, cluster_file)
    entrants = [contender_of(name, resolved.config) for name in names]
    if out is not None:
        make_folder(out)
    if report is not None:
        check_file(report, "--report")
    total = len(names) * len(loads) * seeds
    with (
        progress("simulating", total) as (bar, task),
        workers_for(ray, workers if ray else workers or 1, total) as map,
    ):
        results = evaluation.evaluate(
            entrants,
            resolved,
            loads,
            range(seeds),
            engine=engine,
            progress=lambda _: bar.advance(task),
            map=map,
            record=report is not None,
        )
    if as_json:
        print(json.dumps(evaluation.as_json(results, baseline), indent=1, allow_nan=False))
    else:
        evaluation.print_tables(results, baseline)
    say_stand_ins(results.stand_ins)
    if out is not None:
        files = evaluation.write_files(results, out, baseline) + evaluation.write_plots(results, out)
        Console(stderr=True).print(f"{len(files)} files in {out}")
    if report is not None:
        Console(stderr=True).print(f"report: {evaluation.write_page(results, report, baseline)}")


def max_rate(
    workload: Annotated[
        str, typer.Option(help="KIND:TRACE@RATE; the rate is tried first.")
    ] = "poisson:azure-code@8",
    policies: Annotated[
        str, typer.Option(help="Comma-separated, see `splitgym evaluate`.")
    ] = "splitwise,index",
    cluster: Machines = "h100-80gb:5P3T",
    model: Model = "bloom-176b",
    cluster_file: ClusterFile = None,
    seeds: Seeds = 1,
    duration: Duration = 100.0,
    warmup: Warmup = 20.0,
    part: Part = "test",
    tolerance: Annotated[float, typer.Option(help="Relative width of the answer.")] = 0.02,
    workers: FewWorkers = None,
    ray: RayAddress = None,
    engine: EngineName = "auto",
    as_json: AsJson = False,
) -> None:
    """Highest request rate that meets all nine SLOs, by bisection.

    Example: splitgym max-rate --policies splitwise,index --workload poisson:azure-conv@8
    """
    from splitgym import evaluation
    from splitgym.evaluation.workloads import stand_ins
    from splitgym.scale import workers_for

    if not tolerance > 0:
        raise SplitgymError(f"--tolerance {tolerance:g}: expected a positive number")
    load = evaluation.parse(workload, duration_s=duration, warmup_s=warmup, part=part)
    resolved = resolve(cluster, model, cluster_file)
    entrants = [contender_of(name, resolved.config) for name in words(policies)]
    found = {}
    with (
        progress("rates", len(entrants) * _steps(2.0, tolerance)) as (bar, task),
        workers_for(ray, workers if ray else workers or 1, seeds) as map,
    ):
        for done, entrant in enumerate(entrants, 1):
            result = evaluation.max_request_rate(
                entrant,
                resolved,
                load,
                range(seeds),
                tolerance=tolerance,
                engine=engine,
                progress=_halving(bar, task, tolerance, len(entrants) - done),
                map=map,
            )
            found[entrant.name] = result
            if not as_json:
                rate, failed = result.rate_per_s, result.failed_at_per_s
                print(f"{entrant.name}: {rate:.4g} requests/s (fails at {failed:.4g})")
    if as_json:
        print(json.dumps({name: result.as_json() for name, result in found.items()}, indent=1))
    say_stand_ins(stand_ins((load,)))


def _steps(width: float, tolerance: float) -> int:
    """Halvings until a bracket of rates, high over low, is as narrow as asked for."""
    return max(0, math.ceil(math.log2(math.log(width) / math.log1p(tolerance)))) if width > 1 else 0


def _halving(
    bar: Progress, task: TaskID, tolerance: float, others: int
) -> Callable[[float, tuple[str, ...]], None]:
    """Keeps a bar: after each rate, how many more this bisection and those of the others will try."""
    held, failing = 0.0, math.inf

    def tried(rate: float, failed: tuple[str, ...]) -> None:
        nonlocal held, failing
        held, failing = (held, min(rate, failing)) if failed else (max(rate, held), failing)
        bracket = failing / held if held and failing < math.inf else 2.0
        bar.advance(task)
        left = _steps(bracket, tolerance) + others * _steps(2.0, tolerance)
        bar.update(task, total=bar.tasks[task].completed + left)

    return tried


def sweep(
    cluster: Annotated[
        list[str] | None, typer.Option(help="Machines, see `splitgym evaluate`; repeatable.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Model; repeatable.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field of the cluster and its values: transfer.shared=true,false."),
    ] = None,
    workload: Annotated[list[str] | None, typer.Option(help="KIND:TRACE[@RATE]; repeatable.")] = None,
    rates: Annotated[str, typer.Option(help="Requests/s, for workloads without a rate.")] = "",
    policies: Annotated[
        str, typer.Option(help="Comma-separated, see `splitgym evaluate`.")
    ] = "splitwise,index",
    rules: Annotated[
        Path | None, typer.Option(help="YAML of a ClusterConfig: the fields that the grid leaves alone.")
    ] = None,
    seeds: Seeds = 3,
    duration: Duration = 100.0,
    warmup: Warmup = 20.0,
    part: Part = "test",
    metric: Annotated[str, typer.Option(help="Shown in the table; the files have all.")] = "goodput",
    workers: Workers = None,
    ray: RayAddress = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for CSV and a plot; the same sweep goes on from it.")
    ] = None,
    engine: EngineName = "auto",
    as_json: AsJson = False,
) -> None:
    """Run schedulers on a grid of clusters, models, settings and rates.

    Example: splitgym sweep --cluster h100-80gb:5P3T --cluster h100-80gb:6P2T --rates 12,15 --out grid
    """
    from splitgym.evaluation import parse_at_rates
    from splitgym.evaluation import sweep as sweeping
    from splitgym.evaluation import sweep_report as report
    from splitgym.evaluation.workloads import stand_ins
    from splitgym.scale import workers_for

    fields = {"duration_s": duration, "warmup_s": warmup, "part": part}
    texts = workload or ["poisson:azure-code" if rates else "poisson:azure-code@17"]
    loads = parse_at_rates(texts, numbers(rates), **fields)
    grid = sweeping.variants(
        cluster or ["h100-80gb:5P3T"],
        model or ["bloom-176b"],
        dict(sweeping.parse_setting(text) for text in setting or []),
        load_yaml(ClusterConfig, rules) if rules is not None else None,
    )
    report.check_metric(metric)
    names = words(policies)
    if out is not None:
        make_folder(out)
    kept = sweeping.Kept(out / sweeping.KEPT if out is not None else None)
    total = len(grid) * len(names) * len(loads) * seeds
    state = f"the runs are in {out}, the same command goes on" if out else "--out FOLDER keeps the runs"
    with progress("simulating", total, state) as (bar, task), workers_for(ray, workers, total) as map:
        rows = sweeping.sweep(
            grid,
            lambda config: [contender_of(name, config) for name in names],
            loads,
            range(seeds),
            engine=engine,
            map=map,
            kept=kept,
            progress=lambda done: bar.update(task, completed=done),
        )
    if as_json:
        print(json.dumps(report.as_json(rows), indent=1, allow_nan=False))
    else:
        report.print_table(rows, metric)
    say_stand_ins(stand_ins(loads))
    if out is not None:
        Console(stderr=True).print(f"{len(report.write_files(rows, out, metric))} files in {out}")
