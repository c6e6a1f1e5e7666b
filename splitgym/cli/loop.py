"""Commands that close the loop: `load` and `compare-log`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from splitgym.cli.imports import SkipBad
from splitgym.cli.learning import contender_of
from splitgym.cli.options import (
    AsJson,
    Force,
    make_folder,
    progress,
    reading,
    refuse_to_replace,
    say_stand_ins,
)
from splitgym.cli.shell import FAILED
from splitgym.config import ClusterConfig, load_yaml, make, parse_machines
from splitgym.errors import SplitgymError


def load(
    url: Annotated[str, typer.Argument(help="OpenAI-compatible server, such as http://127.0.0.1:8080.")],
    workload: Annotated[
        str, typer.Option(help="KIND:TRACE[@RATE], see `splitgym evaluate`.")
    ] = "poisson:azure-conv@1",
    duration: Annotated[float, typer.Option(help="Seconds of arrivals.")] = 60.0,
    part: Annotated[str, typer.Option(help="Part of the trace: train, validation, test or all.")] = "test",
    seed: Annotated[int, typer.Option(min=0, help="Which window, which tokens.")] = 0,
    model: Annotated[
        str | None, typer.Option(help="What the server calls its model; default: ask it.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="SPLITGYM_LOAD_API_KEY", help="Bearer token of the server.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 300.0,
    max_open: Annotated[
        int, typer.Option(help="Requests open at once; more are not sent, but counted.")
    ] = 1000,
    token_ids: Annotated[
        str, typer.Option(help="LOW-HIGH: prompts are drawn from these ids; for small vocabularies.")
    ] = "1000-20000",
    as_json: AsJson = False,
) -> None:
    """Send a workload's requests to a live server at its times, and time the answers.

    Example: splitgym load http://127.0.0.1:8080 --workload poisson:azure-conv-synth@4 --duration 30
    """
    import asyncio

    try:
        from splitgym.router import load as loading
    except ModuleNotFoundError as error:
        raise SplitgymError(f"`splitgym load` needs {error.name}: pip install 'splitgym[router]'") from None
    from splitgym import evaluation
    from splitgym.evaluation.workloads import stand_ins

    wanted = evaluation.parse(workload, duration_s=duration, warmup_s=0.0, part=part)
    options = make(
        loading.LoadOptions,
        url=url.rstrip("/"),
        model=model,
        api_key=api_key,
        timeout_s=timeout,
        most_open=max_open,
        seed=seed,
        token_ids=token_ids.split("-"),
    )
    trace = wanted.build(seed)
    with progress("sending", len(trace)) as (bar, task):
        found = asyncio.run(loading.send(trace, options, lambda done: bar.update(task, completed=done + 1)))
    row = found.as_dict()
    if as_json:
        print(json.dumps(row, indent=1))
    else:
        _say_load(row)
    say_stand_ins(stand_ins((wanted,)))


def _say_load(row: dict[str, Any]) -> None:
    errors = ", ".join(f"{count} {what}" for what, count in row["errors"].items())
    early = ", stopped early" if row["stopped"] else ""
    print(
        f"{row['ok']} of {row['sent']} answered in {row['wall_s']:.1f} s{early}; errors: {errors or 'none'}"
    )
    if row["not_sent"]:
        print(f"{row['not_sent']} were due while --max-open requests were open, and were not sent")
    for name, label in (("ttft_s", "TTFT"), ("tbt_s", "TBT"), ("e2e_s", "E2E"), ("sent_late_s", "sent late")):
        times = ["-" if v is None else f"{v * 1e3:,.1f}" for v in row[name].values()]
        print(f"{label:9} p50 p90 p99 [ms]: {' '.join(times)}")


def compare_log(
    logs: Annotated[list[Path], typer.Argument(help="Decision logs of `splitgym route`, oldest first.")],
    profile: Annotated[
        list[str] | None,
        typer.Option(help="Measured profile: FILE for all servers, or TYPE=FILE for a type; repeatable."),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="Who decides in the simulator: logged (as they were), or a policy, see `splitgym evaluate`."
        ),
    ] = "logged",
    cluster: Annotated[
        str, typer.Option(help="Machines in the order of the servers, in place of what the log says.")
    ] = "",
    model: Annotated[str, typer.Option(help="Model of --cluster.")] = "llama2-70b",
    cluster_file: Annotated[
        Path | None, typer.Option(help="YAML of a ClusterConfig; replaces --cluster and --model.")
    ] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Measure the newest so many requests only.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG with the CDFs.")] = None,
    skip_bad: SkipBad = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 unless p50 and p90 of TTFT and TBT are within 10 %.")
    ] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Replay a router's log in the simulator and report the error of TTFT, TBT and E2E.

    Example: splitgym compare-log decisions.jsonl --profile my-h100.json
    """
    from splitgym.evaluation import compare_log as comparing
    from splitgym.evaluation import compare_log_report as reporting
    from splitgym.evaluation.report import TERMINAL_WIDTH, plain
    from splitgym.trace.decision_log import read_decision_log

    if plot is not None:
        refuse_to_replace(plot, force, "--plot")
        make_folder(plot.parent, "--plot")
    given = None
    if cluster_file is not None:
        given = load_yaml(ClusterConfig, cluster_file)
    elif cluster:
        # vLLM's batching and its pull, as the router assumes.
        given = make(
            ClusterConfig,
            model=model,
            machines=parse_machines(cluster),
            batching={"rule": "vllm"},
            transfer={"mode": "serial"},
        )
    with reading(logs) as tell:
        traffic = read_decision_log(logs, skip_bad=skip_bad, progress=tell)
    passes = 1 if policy == comparing.LOGGED else 2  # a policy decides before all is simulated
    with progress("simulating", passes * min(last or traffic.requests, traffic.requests)) as (bar, task):
        found = comparing.compare_log(
            traffic,
            profile=profile or (),
            cluster=given,
            policy=None if policy == comparing.LOGGED else lambda config: contender_of(policy, config),
            last=last,
            progress=lambda done: bar.update(task, completed=done),
        )
    if plot is not None:
        reporting.plot(found, plot)
    if as_json:
        print(json.dumps(plain(found.as_dict()), indent=1, allow_nan=False))
    else:
        console = Console()
        if not console.is_terminal:
            console = Console(width=TERMINAL_WIDTH)
        console.print(reporting.table_of(found))
        for note in found.notes:
            print(f"note: {note}", file=sys.stderr)
        print(found.verdict)
    if check and not found.within_bar:
        raise typer.Exit(FAILED)
