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
    make_folder,
    progress,
    refuse_to_replace,
    resolve,
)

if TYPE_CHECKING:
    from splitgym.trace import Trace


def simulate(
    trace: Annotated[str, typer.Option(help="Trace by name or path; files are read block by block.")],
    policy: Annotated[str, typer.Option(help="One policy, see `splitgym evaluate`.")] = "splitwise",
    cluster: Machines = "h100-80gb:5P3T",
    model: Model = "bloom-176b",
    cluster_file: ClusterFile = None,
    out: Annotated[Path | None, typer.Option(help="Parquet file with a row a request.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the scheduler.")] = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Run one policy on a whole trace, however long: outcomes go to a file, memory stays the same.

    Example: splitgym simulate --trace week.parquet --policy index --out outcomes.parquet
    """
    from splitgym.evaluation.stream import simulate as run

    resolved = resolve(cluster, model, cluster_file)
    entrant = contender_of(policy, resolved.config)
    if out is not None:
        refuse_to_replace(out, force)
        make_folder(out.parent)
    with progress("requests", 0) as (bar, task):
        bar.update(task, total=None)
        found = run(
            entrant,
            resolved,
            _chunks(trace),
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
    from splitgym.envs.fleet.warm import warm

    started = time.perf_counter()
    with progress("compiling", 0) as (bar, task):
        bar.update(task, total=None)
        for name in warm():
            bar.update(task, description=f"compiling {name}")
    print(f"ready after {time.perf_counter() - started:.1f} s; what is compiled is kept on disk")


def _chunks(name: str) -> "Iterator[Trace]":
    from splitgym.evaluation.workloads import find
    from splitgym.trace import blocks

    if Path(name).is_file():
        return blocks(name)
    return iter([find(name)])
