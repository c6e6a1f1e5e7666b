"""The `splitgym` command. One function a sub-command; the work is done elsewhere."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from splitgym.config import ClusterConfig, load_yaml, make, parse_machines
from splitgym.errors import ConfigError, SplitgymError

if TYPE_CHECKING:
    from splitgym.cluster import Cluster
    from splitgym.evaluation import Contender

LEARNING_COMMANDS = ("train", "tune", "export", "improve")

app = typer.Typer(
    help="Simulate, evaluate and learn the scheduler of a Splitwise-style LLM inference cluster.",
    no_args_is_help=True,
    add_completion=False,
)
trace_app = typer.Typer(help="Traces of requests.", no_args_is_help=True)
profile_app = typer.Typer(
    help="Profiles: times, memory and power of a model on a machine.", no_args_is_help=True
)
app.add_typer(trace_app, name="trace")
app.add_typer(profile_app, name="profile")

Model = Annotated[str, typer.Option(help="Model: see `splitgym profile list`.")]
Machines = Annotated[
    str, typer.Option("--cluster", help="Machines: TYPE:COUNTS such as h100-80gb:5P3T; join groups with +.")
]
ClusterFile = Annotated[
    Path | None,
    typer.Option("--cluster-file", help="YAML of a ClusterConfig; replaces --cluster and --model."),
]
Seeds = Annotated[int, typer.Option(min=1, help="Windows a workload.")]
Duration = Annotated[float, typer.Option(help="Measured seconds of arrivals.")]
Warmup = Annotated[float, typer.Option(help="Seconds of arrivals before.")]
Part = Annotated[str, typer.Option(help="Part of the trace: train, validation or test.")]
EngineName = Annotated[str, typer.Option("--engine", help="Simulator engine.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; default all cores.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        help="Run on a Ray cluster instead: HOST:PORT, `auto`, or `local` (needs the [scale] extra)."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command()
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
            help="Comma-separated: a scheduler, with pool sizing (index+reactive), on other pools "
            "(splitwise@h100-80gb:6P2T); vllm (no split, vLLM's batching); the run folder of an agent."
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
    engine: EngineName = "auto",
    as_json: AsJson = False,
) -> None:
    """Run schedulers on the same windows of a workload and compare them."""
    from splitgym import evaluation

    names = _words(policies)
    if baseline is not None and baseline not in names:
        raise SplitgymError(f"baseline {baseline!r} is not among the policies {', '.join(names)}")
    fields = {"duration_s": duration, "warmup_s": warmup, "part": part}
    texts = workload or ["poisson:azure-code" if rates else "poisson:azure-code@19"]
    loads = evaluation.parse_at_rates(texts, _numbers(rates), **fields)
    resolved = _cluster(cluster, model, cluster_file)
    entrants = [_contender(name, resolved.config) for name in names]
    if out is not None:
        _make_folder(out)
    screen = Console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("simulating", total=len(names) * len(loads) * seeds)
        results = evaluation.evaluate(
            entrants, resolved, loads, range(seeds), engine=engine, progress=lambda _: bar.advance(task)
        )
    if as_json:
        print(json.dumps(evaluation.as_json(results, baseline), indent=1, allow_nan=False))
    else:
        evaluation.print_tables(results, baseline)
    _say_stand_ins(results.stand_ins)
    if out is not None:
        files = evaluation.write_files(results, out, baseline) + evaluation.write_plots(results, out)
        Console(stderr=True).print(f"{len(files)} files in {out}")


@app.command("max-rate")
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
    engine: EngineName = "auto",
    as_json: AsJson = False,
) -> None:
    """Highest request rate that meets all nine SLOs, by bisection."""
    from splitgym import evaluation
    from splitgym.evaluation.workloads import stand_ins

    load = evaluation.parse(workload, duration_s=duration, warmup_s=warmup, part=part)
    resolved = _cluster(cluster, model, cluster_file)
    entrants = [_contender(name, resolved.config) for name in _words(policies)]
    found = {}
    for entrant in entrants:
        result = evaluation.max_request_rate(
            entrant, resolved, load, range(seeds), tolerance=tolerance, engine=engine
        )
        found[entrant.name] = result
        if not as_json:
            print(
                f"{entrant.name}: {result.rate_per_s:.4g} requests/s (fails at {result.failed_at_per_s:.4g})"
            )
    if as_json:
        print(json.dumps({name: result.as_json() for name, result in found.items()}, indent=1))
    _say_stand_ins(stand_ins((load,)))


@app.command("characterize")
def characterize_profile(
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
    """Throughput, memory and power of both phases, and how one machine compares with another."""
    from splitgym.evaluation import characterize as phases

    found = [phases.find(profile or f"{model}/{machine}/tp{tensor_parallel}")]
    if compare:
        first = found[0]
        plain = "/" not in compare and not compare.endswith((".json", ".yaml", ".yml"))
        same = f"{first.model.name}/{compare}/tp{first.tensor_parallel}"
        found.append(phases.find(same if plain else compare))
    drawn = [phases.characterize(p, context or phases.CONTEXT_TOKENS) for p in found]
    if out is not None:
        _make_folder(out)
    if as_json:
        print(json.dumps(phases.as_json(drawn), indent=1, allow_nan=False))
    else:
        phases.print_tables(drawn)
    if out is not None:
        files = phases.write_files(drawn, out) + phases.write_plots(drawn, out)
        Console(stderr=True).print(f"{len(files)} files in {out}")


@app.command()
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
    """Search machine types and pool sizes: most requests/s for a budget, or least machines for a rate."""
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
        _make_folder(out)
    screen = Console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("simulating", total=asked.expected_runs)
        with workers_for(ray, workers) as map:
            sources = provisioning.sources_of(loads) if ray is not None else None
            runs = provisioning.Runs(map, cache, lambda: bar.advance(task), sources)
            answer = asked.answer(runs, lambda left: bar.update(task, total=runs.count + 8 * left))
    if as_json:
        print(json.dumps(answer.as_json(), indent=1, allow_nan=False))
    else:
        answer.print_tables()
    _say_stand_ins(stand_ins(loads))
    if out is not None:
        screen.print(f"{len(answer.write(out))} files in {out}")


@app.command()
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
    """Compare with results of the paper's own simulator; fails where a case should agree and does not."""
    from splitgym.evaluation import reference as other

    cases = other.find_cases(reference, only)
    tables = other.find_tables(perf_model)
    other.check_setups(cases, tables)
    results = []
    for case in cases:
        results.append(other.compare(case, tables))
        if not as_json:
            print(other.line(results[-1]), flush=True)
    if markdown is not None:
        other.write_markdown(results, markdown)
    if as_json:
        print(json.dumps(other.as_json(results), indent=1, allow_nan=False))
    else:
        print("\n".join([*other.legend(results), other.summary(results)]))
    if any(found.verdict == other.UNNAMED for found in results):
        raise typer.Exit(1)


@trace_app.command("fetch")
def trace_fetch(name: Annotated[str, typer.Argument(help="azure-code or azure-conv.")]) -> None:
    """Download an original trace into the cache and check its sha256."""
    from splitgym.trace import fetch

    print(fetch(name))


@trace_app.command("describe")
def trace_describe(
    name: Annotated[str, typer.Argument(help="Name or path.")], as_json: AsJson = False
) -> None:
    """Length, rate and token percentiles of a trace."""
    from splitgym.trace import load
    from splitgym.trace.describe import describe

    found = describe(load(name))
    print(json.dumps(found, indent=1) if as_json else "\n".join(f"{k}: {v}" for k, v in found.items()))


@profile_app.command("list")
def profile_list(as_json: AsJson = False) -> None:
    """Profiles that are shipped."""
    from splitgym import profile as profiles

    if as_json:
        print(json.dumps({"models": profiles.model_names(), "machines": profiles.machine_names()}, indent=1))
        return
    print("models:  ", ", ".join(profiles.model_names()))
    print("machines:", ", ".join(profiles.machine_names()))


def main() -> None:
    """Entry point: errors of bad input print one line and exit with 2."""
    try:
        add_learning_commands(app)
        app()
    except SplitgymError as error:
        print(f"splitgym: {error}", file=sys.stderr)
        sys.exit(2)


def add_learning_commands(to: typer.Typer) -> None:
    """Add `train` and its like where the checkout's `agents/` is there; elsewhere, say how to get them."""
    found = _learning()
    if isinstance(found, ModuleType):
        found.register(to)
        return
    for name in LEARNING_COMMANDS:
        to.command(name, help=f"(not available here: {found})", hidden=True)(_unavailable(name, found))


def _learning() -> ModuleType | str:
    """The learning commands' module, or how to get it."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "agents" / "cli.py").is_file():
        return (
            "learns, and learning is used from a checkout of splitgym with its [train] extra: see the README"
        )
    if str(checkout) not in sys.path:
        sys.path.append(str(checkout))
    try:
        return importlib.import_module("agents.cli")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("agents", "splitgym"):
            raise
        return f"needs {error.name}: pip install -e '.[train]' in {checkout}"


def _contender(text: str, cluster: ClusterConfig) -> "Contender":
    """A policy by name, or the agent of a run folder."""
    from splitgym import evaluation, schedulers

    known = {*schedulers.routing_names(), evaluation.VLLM}
    if "/" not in text.partition("@")[0] and (text in known or not Path(text).is_dir()):
        return evaluation.contender(text, cluster=cluster)
    found = _learning()
    if isinstance(found, str):
        raise SplitgymError(f"policy {text} is an agent, which {found}")
    agent: Contender = found.contender(text, cluster)
    return agent


def _unavailable(name: str, how: str) -> Callable[[], None]:
    def command() -> None:
        raise SplitgymError(f"`splitgym {name}` {how}")

    return command


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError:
        raise ConfigError(f"rates {text!r}: expected numbers such as 17,19,21") from None


def _cluster(text: str, model: str, file: Path | None) -> "Cluster":
    from splitgym.cluster import Cluster

    if file is not None:
        return Cluster.resolve(load_yaml(ClusterConfig, file))
    return Cluster.resolve(make(ClusterConfig, model=model, machines=parse_machines(text)))


def _make_folder(path: Path) -> None:
    """Before the work, so that a bad place does not cost its results."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be made a folder ({error.strerror})") from None


def _say_stand_ins(stand_ins: dict[str, str]) -> None:
    for original, used in stand_ins.items():
        print(
            f"note: {original} is not on this machine, {used} was used "
            f"(`splitgym trace fetch {original}` downloads it)",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
