"""The `splitgym` command. One function a sub-command; the work is done elsewhere."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from splitgym.cli import (
    data,
    deploy,
    design,
    engine,
    evaluate,
    fidelity,
    imports,
    loop,
    measure,
    saturation,
    simulate,
)
from splitgym.cli.learning import add_learning_commands
from splitgym.cli.shell import App, Jobs, run

app = App(
    cls=Jobs,
    help="Learn, judge and deploy the scheduler of a Splitwise-style LLM inference cluster.",
    add_completion=True,
)
app.command()(evaluate.evaluate)
app.command("max-rate")(evaluate.max_rate)
app.command()(evaluate.sweep)
app.command()(simulate.simulate)
app.command()(saturation.saturation)
app.command()(design.characterize)
app.command()(design.provision)
app.command()(fidelity.validate)
app.command()(deploy.export)
app.command()(engine.engine)
app.command()(deploy.route)
app.command()(loop.load)
app.command("compare-log")(loop.compare_log)
app.command()(simulate.warmup)

trace_app = App(help="Traces of requests.")
trace_app.command("fetch")(data.trace_fetch)
trace_app.command("describe")(data.trace_describe)
trace_app.command("synth")(data.trace_synth)
trace_app.command("from-log")(imports.from_log)
trace_app.command("from-openai-jsonl")(imports.from_openai_jsonl)
trace_app.command("from-burstgpt")(imports.from_burstgpt)
trace_app.command("from-mooncake")(imports.from_mooncake)
trace_app.command("from-vllm-bench")(imports.from_vllm_bench)
app.add_typer(trace_app, name="trace")

profile_app = App(help="Profiles: times, memory and power of a model on a machine.")
profile_app.command("list")(data.profile_list)
profile_app.command("measure")(measure.profile_measure)
app.add_typer(profile_app, name="profile")


def _version(asked: bool) -> None:
    if asked:
        print(f"splitgym {version('splitgym')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


def main() -> None:
    """Entry point: runs a command and exits as `splitgym.cli.shell.EXIT_CODES` says."""
    add_learning_commands(app)
    sys.exit(run(app, "splitgym"))
