"""Writes the pages that are made from the code: `python docs/generate.py` .

docs/cli.md is made from the command line's own help, docs/environments.md from the environments' docstrings.
A test holds that what is in the repository is what this writes.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from splitgym import cli
from splitgym.cli import shell
from splitgym.cli.learning import add_learning_commands
from splitgym.envs import JointEnv, PoolSizingEnv, RoutingEnv
from splitgym.observation import feature_table

HERE = Path(__file__).resolve().parent
NOTE = "<!-- Made by docs/generate.py: edit the code, not this page. -->\n\n"

CLI_INTRO = """# Command line

`splitgym --help` lists the commands, `splitgym COMMAND --help` the options of one. Bad input is one line on
stderr that says what to do. Results go to stdout, everything else to stderr, so that `--json` can be piped.
What takes more than two seconds shows a bar with the time left, where stderr is a terminal.
`splitgym --install-completion` teaches your shell the commands, options, schedulers, models and traces.
"""
ENVIRONMENTS_INTRO = """# Environments

Three Gymnasium environments over one simulated cluster. `gymnasium.make(ID, **arguments)` takes the arguments
below, `gymnasium.make_vec(ID, num_envs=64)` steps many in one compiled call ([scale](scale.md)). What a
policy sees is [at the end](#observation).
"""


def command_line() -> str:
    """docs/cli.md."""
    add_learning_commands(cli.app)
    root: Any = typer.main.get_command(cli.app)
    context = typer.Context(root)
    parts = [
        NOTE + CLI_INTRO,
        "| exit code | |\n|---|---|\n"
        + "".join(f"| {code} | {says} |\n" for code, says in shell.EXIT_CODES.items()),
    ]
    for job, name, _ in shell.listed(root, context):
        if job:
            parts.append(f"## {job.lstrip('1234 ').capitalize()}\n")
        command = root.get_command(context, name)
        if hasattr(command, "list_commands"):
            for inner in command.list_commands(context):
                parts.append(_command(f"splitgym {name} {inner}", command.get_command(context, inner)))
        else:
            parts.append(_command(f"splitgym {name}", command))
    return "\n".join(parts)


def _command(path: str, command: Any) -> str:
    text = inspect.cleandoc(command.help or "").split("\n\n")
    says = [part for part in text if not part.startswith(shell.EXAMPLE)]
    rows = [_option(param) for param in command.params if not getattr(param, "hidden", False)]
    example = shell.example(command)
    return (
        f"### {path}\n\n"
        + "".join(f"{part}\n\n" for part in says)
        + (f"```sh\n{example}\n```\n\n" if example else "")
        + ("| | | default |\n|---|---|---|\n" + "".join(rows) if rows else "")
    )


def _option(param: Any) -> str:
    if param.param_type_name == "argument":
        name = f"`{param.name.upper()}`"
    else:
        name = f"`{' '.join(filter(None, [', '.join(reversed(param.opts)), param.metavar]))}`"
    default = param.default
    if default in (None, "", False, True) or callable(default):
        shown = "required" if param.required else ""
    else:
        shown = f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
    says = _cell(param.help or "")
    if getattr(param, "envvar", None):
        says += f" Or `{param.envvar}` in the environment."
    return f"| {name} | {says} | {shown} |\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def environments() -> str:
    """docs/environments.md."""
    parts = [NOTE + ENVIRONMENTS_INTRO]
    for env in (RoutingEnv, PoolSizingEnv, JointEnv):
        name = f"splitgym/{env.__name__.removesuffix('Env')}-v0"
        # Headings one level down, below the environment's own; a doctest becomes a block.
        text = re.sub(r"^## ", "### ", inspect.cleandoc(env.__doc__ or ""), flags=re.MULTILINE)
        text = re.sub(
            r"^>>> (?:.*\n?)+?(?=\n|\Z)", lambda m: f"```pycon\n{m[0].rstrip()}\n```\n", text, flags=re.M
        )
        parts.append(f"## {name}\n\n{text}\n\n### The arguments one by one\n\n{_arguments(env.config_type)}")
    parts.append(f"## Observation\n\n{feature_table()}\n")
    return "\n".join(parts)


def _arguments(config: Any) -> str:
    rows = []
    for name, default, says in _documented(config):
        rows.append(f"| `{name}` | {_cell(says)} | {default} |\n")
    return "| | | default |\n|---|---|---|\n" + "".join(rows)


def _documented(config: Any) -> Iterator[tuple[str, str, str]]:
    """(field, default, the docstring below it), those of base classes included."""
    said: dict[str, str] = {}
    for base in reversed(config.__mro__[:-1]):
        source = inspect.getsource(base)
        for match in re.finditer(
            r'^    (\w+):[^\n]*\n(?:    [^\n]*\n)*?    """(.*?)"""', source, re.M | re.S
        ):
            said[match[1]] = match[2]
    made = config()
    for field in fields(made):
        default = getattr(made, field.name)
        yield field.name, "" if default is None else f"`{default!r}`", said.get(field.name, "")


PAGES = {"cli.md": command_line, "environments.md": environments}


def main() -> int:
    for name, make in PAGES.items():
        (HERE / name).write_text(make(), encoding="utf-8")
        print(f"docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
