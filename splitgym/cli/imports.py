"""Commands that turn recorded traffic into a trace: `trace from-...`."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitgym.cli.options import (
    TRACE_ENDINGS,
    AsJson,
    Force,
    make_folder,
    progress,
    reading,
    refuse_to_replace,
    words,
)

if TYPE_CHECKING:
    from splitgym.trace.importers import Imported

Source = Annotated[Path, typer.Argument(help="The file.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Trace to write: .csv or .parquet.")]
Name = Annotated[str | None, typer.Option(help="What tables call the trace; default the file's name.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave lines out that are no JSON object.")]
TrustClock = Annotated[
    bool, typer.Option("--trust-clock", help="Sort by time and take it as it is, even where it jumps.")
]
Scatter = Annotated[
    float, typer.Option(min=0, help="Move each arrival by a random time below this [s]: for rounded stamps.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]


def from_log(
    logs: Annotated[list[Path], typer.Argument(help="Decision logs of `splitgym route`, oldest first.")],
    out: Out = Path("trace.csv"),
    outcomes: Annotated[str, typer.Option(help="Which requests count; comma-separated.")] = "ok",
    name: Name = None,
    skip_bad: SkipBad = False,
    trust_clock: TrustClock = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """A router's decision log as a trace.

    Example: splitgym trace from-log decisions.jsonl --out mine.parquet
    """
    from splitgym.trace.importers import Clock
    from splitgym.trace.importers import from_log as read

    refuse_to_replace(out, force, endings=TRACE_ENDINGS)
    clock = Clock(trust=trust_clock)
    counted = words(outcomes)
    _write(
        lambda tell: read(logs, outcomes=counted, skip_bad=skip_bad, clock=clock, name=name, progress=tell),
        logs,
        out,
        as_json,
    )


def from_openai_jsonl(
    file: Source,
    out: Out = Path("trace.csv"),
    name: Name = None,
    skip_bad: SkipBad = False,
    trust_clock: TrustClock = False,
    scatter: Scatter = 0.0,
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Recorded answers of an OpenAI-compatible server (JSON lines with `usage` and a time) as a trace.

    Example: splitgym trace from-openai-jsonl answers.jsonl --out mine.csv --scatter 1
    """
    from splitgym.trace.importers import Clock
    from splitgym.trace.importers import from_openai_jsonl as read
    from splitgym.trace.importers.openai import BACK_S

    refuse_to_replace(out, force, endings=TRACE_ENDINGS)
    clock = Clock(back_s=BACK_S, trust=trust_clock, scatter_s=scatter, seed=seed)
    _write(
        lambda tell: read(file, skip_bad=skip_bad, clock=clock, name=name, progress=tell),
        [file],
        out,
        as_json,
    )


def from_burstgpt(
    file: Source,
    out: Out = Path("trace.csv"),
    model: Annotated[str | None, typer.Option(help="Only this one: ChatGPT or GPT-4.")] = None,
    log_type: Annotated[str | None, typer.Option(help="Only this one: API log or Conversation log.")] = None,
    name: Name = None,
    trust_clock: TrustClock = False,
    scatter: Scatter = 0.0,
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """A BurstGPT file (CSV) as a trace.

    Example: splitgym trace from-burstgpt BurstGPT_1.csv --model GPT-4 --out gpt4.parquet --scatter 1
    """
    from splitgym.trace.importers import Clock
    from splitgym.trace.importers import from_burstgpt as read

    refuse_to_replace(out, force, endings=TRACE_ENDINGS)
    clock = Clock(trust=trust_clock, scatter_s=scatter, seed=seed)
    _write(
        lambda tell: read(file, model=model, log_type=log_type, clock=clock, name=name, progress=tell),
        [file],
        out,
        as_json,
    )


def from_mooncake(
    file: Source,
    out: Out = Path("trace.csv"),
    name: Name = None,
    skip_bad: SkipBad = False,
    trust_clock: TrustClock = False,
    scatter: Scatter = 0.0,
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """A Mooncake trace (JSON lines) as a trace; shared prefixes count in full.

    Example: splitgym trace from-mooncake conversation_trace.jsonl --out mooncake.parquet
    """
    from splitgym.trace.importers import Clock
    from splitgym.trace.importers import from_mooncake as read

    refuse_to_replace(out, force, endings=TRACE_ENDINGS)
    clock = Clock(trust=trust_clock, scatter_s=scatter, seed=seed)
    _write(
        lambda tell: read(file, skip_bad=skip_bad, clock=clock, name=name, progress=tell),
        [file],
        out,
        as_json,
    )


def from_vllm_bench(
    file: Source,
    out: Out = Path("trace.csv"),
    rate: Annotated[
        float | None, typer.Option(help="Draw Poisson arrivals at so many a second, in place of those sent.")
    ] = None,
    seed: Seed = 0,
    name: Name = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """What `vllm bench serve --save-result --save-detailed` sent, as a trace.

    Example: splitgym trace from-vllm-bench result.json --out bench.csv
    """
    from splitgym.trace.importers import Clock
    from splitgym.trace.importers import from_vllm_bench as read

    refuse_to_replace(out, force, endings=TRACE_ENDINGS)
    _write(
        lambda tell: read(file, rate_per_s=rate, clock=Clock(seed=seed), name=name),  # one JSON object
        [file],
        out,
        as_json,
    )


def _write(
    read: Callable[[Callable[[int], None]], "Imported"], files: Sequence[Path], out: Path, as_json: bool
) -> None:
    from splitgym.trace import save
    from splitgym.trace.describe import describe

    with reading(files) as tell:
        found = read(tell)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    make_folder(out.parent)
    with progress("saving", len(found.trace)) as (bar, task):
        save(found.trace, out, lambda done: bar.update(task, completed=done))
    if as_json:
        print(json.dumps(describe(found.trace), indent=1))
        return
    trace = found.trace
    rate = f" ({trace.rate_per_s:.4g}/s)" if trace.duration_s else ""
    print(f"{out}: {len(trace)} requests in {trace.duration_s:.6g} s{rate}")
