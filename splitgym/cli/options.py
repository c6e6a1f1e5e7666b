"""Options that several commands share, and what turns them into arguments."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from splitgym.config import ClusterConfig, load_yaml, make, parse_machines
from splitgym.errors import ConfigError

if TYPE_CHECKING:
    from splitgym.cluster import Cluster


def complete_models(incomplete: str) -> list[str]:
    """Names of models, for shell completion."""
    from splitgym import profile

    return [name for name in profile.model_names() if name.startswith(incomplete)]


def complete_machines(incomplete: str) -> list[str]:
    """Machine types of the last group of machines."""
    from splitgym import profile

    before, plus, last = incomplete.rpartition("+")
    return [f"{before}{plus}{name}:" for name in profile.machine_names() if name.startswith(last)]


def complete_policies(incomplete: str) -> list[str]:
    """Schedulers, as the last word of a comma-separated list."""
    from splitgym import evaluation, schedulers

    before, comma, last = incomplete.rpartition(",")
    names = [*schedulers.routing_names(), evaluation.VLLM]
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]


def complete_traces(incomplete: str) -> list[str]:
    """Traces by name."""
    from splitgym import trace

    return [name for name in trace.names() if name.startswith(incomplete)]


Model = Annotated[
    str, typer.Option(help="Model: see `splitgym profile list`.", autocompletion=complete_models)
]
Machines = Annotated[
    str,
    typer.Option(
        "--cluster",
        help="Machines: TYPE:COUNTS such as h100-80gb:5P3T; join groups with +.",
        autocompletion=complete_machines,
    ),
]
TraceName = Annotated[
    str, typer.Option("--trace", help="Trace by name or path.", autocompletion=complete_traces)
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
FewWorkers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes; default 1, more pay where it takes long.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        help="Run on a Ray cluster instead: HOST:PORT, `auto`, or `local` (needs the [scale] extra)."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


@contextmanager
def progress(
    text: str, total: float | None, kept: str = "nothing was written", show: bool = True
) -> Iterator[tuple[Progress, TaskID]]:
    """A bar with the time left, on stderr where that is a terminal.

    Args:
        text: what goes on.
        total: steps in all, None where nobody knows.
        kept: what Ctrl-C leaves; it is said then.
        show: False leaves the bar out.
    """
    screen = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(
            *columns, console=screen, transient=True, disable=not (show and screen.is_terminal)
        ) as bar:
            yield bar, bar.add_task(text, total=total)
    except KeyboardInterrupt:
        print(f"interrupted: {kept}", file=sys.stderr)
        raise


@contextmanager
def reading(
    paths: Sequence[Path], kept: str = "nothing was written", show: bool = True
) -> Iterator[Callable[[int], None]]:
    """A bar while files are read: what it gives is told the bytes of all of them that were read so far."""
    total = sum(path.stat().st_size for path in paths if path.is_file())
    with progress("reading", total, kept, show) as (bar, task):
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def steps(
    text: str, kept: str = "nothing was written", show: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """A bar for what says itself how far it is: what it gives is told (steps done, steps in all)."""
    with progress(text, None, kept, show) as (bar, task):
        yield lambda done, total: bar.update(task, completed=done, total=total)


def words(text: str) -> list[str]:
    """The words of a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(text: str, what: str = "rates", example: str = "17,19,21") -> list[float]:
    """The numbers of a comma-separated list."""
    try:
        return [float(word) for word in words(text)]
    except ValueError:
        raise ConfigError(f"{what} {text!r}: expected numbers such as {example}") from None


def resolve(text: str, model: str, file: Path | None) -> "Cluster":
    """The cluster that the options ask for."""
    from splitgym.cluster import Cluster

    if file is not None:
        return Cluster.resolve(load_yaml(ClusterConfig, file))
    return Cluster.resolve(make(ClusterConfig, model=model, machines=parse_machines(text)))


def make_folder(path: Path, option: str = "--out") -> None:
    """Before the work, so that a bad place does not cost its results."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be made a folder ({error.strerror})") from None


TRACE_ENDINGS = (".csv", ".parquet")


def refuse_to_replace(
    path: Path, force: bool, option: str = "--out", endings: tuple[str, ...] | None = None
) -> None:
    """Nothing is overwritten unasked, and a file is what its ending says. Before the work, too."""
    if endings is not None and path.suffix not in endings:
        raise ConfigError(f"{option} {path}: it is written as {' or '.join(endings)}, not as {path.suffix!r}")
    if path.exists() and not force:
        raise ConfigError(f"{option} {path}: is there already; name another file, or --force replaces it")


def check_file(path: Path, option: str) -> None:
    """Make the folder of a file that is to be written. Before the work, too."""
    make_folder(path.parent, option)
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder, name a file in it")


def say_stand_ins(stand_ins: dict[str, str]) -> None:
    """Say which built-in traces were used for originals."""
    for original, used in stand_ins.items():
        print(
            f"note: {original} is not on this machine, {used} was used "
            f"(`splitgym trace fetch {original}` downloads it)",
            file=sys.stderr,
        )
