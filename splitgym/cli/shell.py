"""How the command line shows itself: the four jobs in order, plain types, errors of one line, exit codes."""

import inspect
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from splitgym.errors import SplitgymError

JOBS: dict[str, dict[str, str]] = {
    "1 train": {
        "train": "Train an agent, or continue a run",
        "tune": "Search hyperparameters",
        "improve": "Retrain a policy on a router's log",
    },
    "2 evaluate": {
        "evaluate": "Compare policies on the same requests",
        "max-rate": "Highest rate that meets the nine SLOs",
        "sweep": "Compare them on a grid of clusters and rates",
        "simulate": "One policy on a whole trace, however long",
    },
    "3 provision": {
        "provision": "Find the best cluster for a load",
        "characterize": "What both phases cost on a machine",
        "saturation": "Measure the rate a cluster saturates at",
    },
    "4 deploy": {
        "export": "Write an agent as a policy bundle",
        "route": "Route requests to vLLM servers",
        "engine": "Simulated vLLM servers, to rehearse with",
        "load": "Send a trace's requests to a server",
        "compare-log": "Is the simulator right? By a router's log",
    },
    "data": {
        "trace": "Get, describe and convert traces",
        "profile": "List and measure profiles",
    },
    "tools": {
        "validate": "Compare with the paper's own simulator",
        "warmup": "Compile now, so that nothing waits later",
    },
}
"""What `splitgym --help` shows: job -> command -> what it does. A new command takes a line here; without
one it stands at the end, with the first line of its docstring."""

FINE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = {
    FINE: "done",
    FAILED: "a check or comparison failed, or an error inside splitgym (with a traceback)",
    BAD_INPUT: "the input cannot be used: one line on stderr says why and what to do",
    INTERRUPTED: "interrupted by Ctrl-C: what was finished is kept where the command keeps it",
}

EXAMPLE = "Example: "
"""Begins the paragraph of a command's docstring that shows how it is used."""


class Command(TyperCommand):
    """A command whose help gives each option a plain word for its type, and flags none."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.callback is None:
            return
        hints = typing.get_type_hints(inspect.unwrap(self.callback))
        for param in self.params:
            if param.param_type_name == "option" and param.metavar is None and param.name in hints:
                param.metavar = _word(hints[param.name])


class App(typer.Typer):
    """A Typer of the house: plain help, which brackets cannot upset, and Python's own tracebacks."""

    def __init__(self, *, no_args_is_help: bool = True, add_completion: bool = False, **options: Any) -> None:
        super().__init__(
            no_args_is_help=no_args_is_help,
            add_completion=add_completion,
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
            **options,
        )

    def command(self, name: str | None = None, *, cls: Any = Command, **options: Any) -> Any:
        return super().command(name, cls=cls, **options)


class Jobs(TyperGroup):
    """The `splitgym` command itself: its help lists the commands by job."""

    def list_commands(self, ctx: Any) -> list[str]:
        there = super().list_commands(ctx)
        named = [name for commands in JOBS.values() for name in commands if name in there]
        return named + [name for name in there if name not in named]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write_usage(ctx.command_path, "COMMAND [OPTIONS]")
        formatter.write(f"\n{self.help}\n\n")
        for job, name, says in listed(self, ctx):
            formatter.write(f"  {job:<12} {name:<13} {says}\n")
        formatter.write("\n")
        shown = [p for p in self.get_params(ctx) if p.name != "show_completion"]
        with formatter.indentation():
            formatter.write_dl([record for p in shown if (record := p.get_help_record(ctx)) is not None])
        formatter.write(f"\n`{ctx.command_path} COMMAND --help` shows its options and an example.\n")


def listed(group: TyperGroup, ctx: Any) -> Iterator[tuple[str, str, str]]:
    """(job, command, what it does) in the order of the help; the job only where it begins."""
    job_of = {name: (job, says) for job, commands in JOBS.items() for name, says in commands.items()}
    last = ""
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if command is None or command.hidden:
            continue
        job, says = job_of.get(name, ("more", command.get_short_help_str(52)))
        yield ("" if job == last else job), name, says
        last = job


def example(command: Any) -> str:
    """The command line that a command's docstring shows, on one line; "" without one."""
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith(EXAMPLE):
            return " ".join(paragraph.removeprefix(EXAMPLE).replace("\\\n", " ").split())
    return ""


def run(app: typer.Typer, name: str) -> int:
    """Run a command line and give its exit code. Bad input, of any kind, is one line on stderr."""
    try:
        code = app(standalone_mode=False, prog_name=name)
    except SplitgymError as error:
        return _say(name, str(error))
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())  # type: ignore[attr-defined]
            return FINE
        if not hasattr(error, "format_message"):
            raise
        # A usage error of the parser: no such option, a missing value, no number.
        context = getattr(error, "ctx", None)
        path = name if context is None else context.command_path
        return _say(name, f"{error.format_message().rstrip('.')}: see `{path} --help`")
    return code if isinstance(code, int) else FINE


def _say(name: str, text: str) -> int:
    print(f"{name}: {' '.join(text.split())}", file=sys.stderr)  # YAML errors have several lines
    return BAD_INPUT


def _word(hint: Any) -> str:
    inside = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if inside:
        return _word(inside[0])
    return {int: "N", float: "NUMBER", Path: "PATH", bool: ""}.get(hint, "TEXT")
