"""Commands about data: `trace ...`, `profile ...`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from splitgym.cli.options import (
    TRACE_ENDINGS,
    AsJson,
    Force,
    complete_traces,
    make_folder,
    progress,
    reading,
    refuse_to_replace,
    steps,
)
from splitgym.errors import ConfigError


def trace_fetch(name: Annotated[str, typer.Argument(help="azure-code or azure-conv.")]) -> None:
    """Download an original trace into the cache and check its sha256.

    Example: splitgym trace fetch azure-code
    """
    from splitgym.trace import fetch

    with progress("bytes", None, "nothing was kept") as (bar, task):
        place = fetch(name, progress=lambda done, total: bar.update(task, completed=done, total=total))
    print(place)


def trace_describe(
    name: Annotated[str, typer.Argument(help="Name or path.", autocompletion=complete_traces)],
    plot: Annotated[Path | None, typer.Option(help="Picture to write: .png, .svg or .pdf.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Rates, burstiness, autocorrelation and token quantiles of a trace.

    Example: splitgym trace describe azure-conv-synth --plot conv.png
    """
    from splitgym.trace import load
    from splitgym.trace.describe import describe
    from splitgym.trace.describe import plot as draw

    if plot is not None:
        refuse_to_replace(plot, force, "--plot", (".png", ".svg", ".pdf"))
    with reading([Path(name)]) as tell:
        trace = load(name, progress=tell)
    with steps("describing") as tell_steps:
        found = describe(trace, tell_steps)
    print(json.dumps(found, indent=1) if as_json else "\n".join(f"{k}: {v}" for k, v in found.items()))
    if plot is not None:
        make_folder(plot.parent, "--plot")
        with steps("drawing") as tell_steps:
            draw(trace, plot, tell_steps)


def trace_synth(
    source: Annotated[
        str, typer.Argument(help="Trace by name or path, or tables (.json) that --tables wrote.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Trace to write: .csv or .parquet.")] = Path(
        "synth.csv"
    ),
    tables: Annotated[Path | None, typer.Option(help="Also write the fitted tables: .json.")] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds; default the original's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    name: Annotated[str, typer.Option(help="What tables call the trace.")] = "synth",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """A synthetic trace like one that may not leave its owner, with the two-sample check of both.

    Example: splitgym trace synth azure-code-synth --out like-it.csv --tables like-it.json
    """
    from splitgym.trace import load, save
    from splitgym.trace.fitting import as_json as tables_text
    from splitgym.trace.fitting import fit
    from splitgym.trace.statistics import two_samples
    from splitgym.trace.synth import from_tables, read_tables

    refuse_to_replace(out, force, endings=TRACE_ENDINGS)
    if source.endswith(".json"):
        fitted, original = read_tables(Path(source)), None
        if tables is not None:
            raise ConfigError("--tables: they are there already, in the file that was named")
    else:
        if tables is not None:
            refuse_to_replace(tables, force, "--tables")
        with reading([Path(source)]) as tell:
            original = load(source, progress=tell)
        with steps("fitting") as tell_steps:
            fitted = fit(original, name, tell_steps)
    seconds = duration or float(fitted["fitted_to"]["duration_s"])
    with steps("generating and checking") as tell_steps:
        tell_steps(0, 2)
        made = from_tables(fitted, seconds, seed)
        tell_steps(1, 2)
        checks = two_samples(original, made) if original is not None else []
    make_folder(out.parent)
    save(made, out)
    if tables is not None:
        make_folder(tables.parent, "--tables")
        tables.write_text(tables_text(fitted))
    if as_json:
        found = {"trace": str(out), "requests": len(made), "check": [check._asdict() for check in checks]}
        print(json.dumps(found, indent=1).replace("NaN", "null"))
        return
    if checks:
        print(f"{'two-sample check':18} {'KS':>7} {'p':>9} {'Anderson':>9} {'p':>9}")
    for check in checks:
        numbers = f"{check.ks:7.4f} {check.ks_p:9.2g} {check.anderson:9.2f} {check.anderson_p:9.2g}"
        print(f"{check.what:18} {numbers}")
    print(f"{out}: {len(made)} requests in {made.duration_s:.6g} s")


def profile_list(as_json: AsJson = False) -> None:
    """Profiles that are shipped.

    Example: splitgym profile list
    """
    from splitgym import profile as profiles

    if as_json:
        print(json.dumps({"models": profiles.model_names(), "machines": profiles.machine_names()}, indent=1))
        return
    print("models:  ", ", ".join(profiles.model_names()))
    print("machines:", ", ".join(profiles.machine_names()))
