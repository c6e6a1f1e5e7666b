"""Train an agent: `python train.py --algo maskable_ppo --env routing --cluster h100-80gb:5P3T`.

`--resume runs/NAME` continues a run, `--demo` runs the demonstration, `--help` lists all options.
"""

import sys

import typer

from splitgym.errors import SplitgymError


def main() -> int:
    """The exit status: 2 for input that cannot be used."""
    try:
        if sys.argv[1:2] == ["--demo"]:
            from agents.demo import main as demo

            return demo(sys.argv[2:])
        from agents.cli import train

        app = typer.Typer(add_completion=False)
        app.command()(train)
        app(standalone_mode=False)
    except SplitgymError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        return 130
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the command line
            print(f"error: {error.format_message()}", file=sys.stderr)
            return 2
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
