"""`simulate`: one long run of one policy, streamed."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitgym.cli.learning import contender_of
from splitgym.cli.options import (
    AsJson,
    ClusterFile,
    Force,
    Machines,
    Model,
    TraceName,
    complete_policies,
    make_folder,
    progress,
    refuse_to_replace,
    resolve,
)

if TYPE_CHECKING:
    from splitgym.trace import Trace


def simulate(
    trace: TraceName,
    policy: Annotated[
        str, typer.Option(help="One policy, see `splitgym evaluate`.", autocompletion=complete_policies)
    ] = "splitwise",
    cluster: Machines = "h100-80gb:5P3T",
    model: Model = "bloom-176b",
    cluster_file: ClusterFile = None,
    out: Annotated[Path | None, typer.Option(help="Parquet file with a row a request.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the scheduler.")] = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Run one policy on a whole trace, however long: outcomes go to a file, memory stays the same.

    A trace file is read block by block.

    Example: splitgym simulate --trace azure-conv-synth --policy index --out outcomes.parquet
    """
    from splitgym.evaluation.stream import simulate as run

    resolved = resolve(cluster, model, cluster_file)
    entrant = contender_of(policy, resolved.config)
    if out is not None:
        refuse_to_replace(out, force, endings=(".parquet",))
        make_folder(out.parent)
    chunks, total = _chunks(trace)
    with progress("requests", total) as (bar, task):
        found = run(
            entrant,
            resolved,
            chunks,
            out=out,
            seed=seed,
            progress=lambda done: bar.update(task, completed=done),
        ).as_dict()
    if as_json:
        print(json.dumps({k: None if v != v else v for k, v in found.items()}, indent=1))
    else:
        for name, value in found.items():
            print(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")


def warmup() -> None:
    """Compile the simulator and the environments now, so that nothing waits for it later.

    Example: splitgym warmup
    """
    from splitgym.envs.fleet.warm import PIECES, warm

    started = time.perf_counter()
    kept = "what is compiled is kept, the same command goes on from there"
    with progress("compiling", PIECES, kept) as (bar, task):
        for done, name in enumerate(warm()):
            bar.update(task, completed=done, description=f"compiling {name}")
    print(f"ready after {time.perf_counter() - started:.1f} s; what is compiled is kept on disk")


def _chunks(name: str) -> "tuple[Iterator[Trace], float | None]":
    """The trace piece by piece, and about how many requests it has."""
    from splitgym.evaluation.workloads import find
    from splitgym.trace import blocks

    path = Path(name)
    if path.is_file():
        return blocks(path), _about_rows(path)
    trace = find(name)
    return iter([trace]), len(trace)


def _about_rows(path: Path) -> float | None:
    """Rows of a Parquet file; of a CSV by the length of its first lines. None where that cannot be read."""
    from pyarrow import ArrowException, parquet

    if path.suffix == ".parquet":
        try:
            return float(parquet.read_metadata(path).num_rows)
        except (OSError, ArrowException):
            return None  # the reader will say what is wrong with it
    with path.open("rb") as file:
        head = file.read(1 << 16)
    return path.stat().st_size * head.count(b"\n") / max(1, len(head))
