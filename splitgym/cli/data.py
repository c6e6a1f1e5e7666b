"""Commands about data: `trace ...`, `profile ...`."""

import json
from typing import Annotated

import typer

from splitgym.cli.options import AsJson, complete_traces, progress


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
    as_json: AsJson = False,
) -> None:
    """Length, rate and token percentiles of a trace.

    Example: splitgym trace describe azure-conv-synth
    """
    from splitgym.trace import load
    from splitgym.trace.describe import describe

    found = describe(load(name))
    print(json.dumps(found, indent=1) if as_json else "\n".join(f"{k}: {v}" for k, v in found.items()))


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
