"""The `splitgym` command. One function a sub-command; the work is done elsewhere."""

import sys

import typer

from splitgym.cli import data, deploy, design, engine, evaluate, fidelity, imports, saturation, simulate
from splitgym.cli.learning import add_learning_commands
from splitgym.errors import SplitgymError

app = typer.Typer(
    help="Simulate, evaluate and learn the scheduler of a Splitwise-style LLM inference cluster.",
    no_args_is_help=True,
    add_completion=False,
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
app.command()(simulate.warmup)

trace_app = typer.Typer(help="Traces of requests.", no_args_is_help=True)
trace_app.command("fetch")(data.trace_fetch)
trace_app.command("describe")(data.trace_describe)
trace_app.command("from-log")(imports.from_log)
trace_app.command("from-openai-jsonl")(imports.from_openai_jsonl)
trace_app.command("from-burstgpt")(imports.from_burstgpt)
trace_app.command("from-mooncake")(imports.from_mooncake)
trace_app.command("from-vllm-bench")(imports.from_vllm_bench)
app.add_typer(trace_app, name="trace")

profile_app = typer.Typer(
    help="Profiles: times, memory and power of a model on a machine.", no_args_is_help=True
)
profile_app.command("list")(data.profile_list)
app.add_typer(profile_app, name="profile")


def main() -> None:
    """Entry point: errors of bad input print one line and exit with 2."""
    try:
        add_learning_commands(app)
        app()
    except SplitgymError as error:
        print(f"splitgym: {error}", file=sys.stderr)
        sys.exit(2)
