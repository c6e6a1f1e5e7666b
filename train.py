"""Train an agent: `python train.py --algo maskable_ppo --env routing --cluster h100-80gb:5P3T`.

`--resume runs/NAME` continues a run, `--demo` runs the demonstration, `--help` lists all options.
"""

import sys

from splitgym.cli.shell import App, run


def main() -> int:
    """The exit status, see `splitgym.cli.shell.EXIT_CODES`."""
    if sys.argv[1:2] == ["--demo"]:
        from agents.demo import main as demo

        return demo(sys.argv[2:])
    from agents.cli import train

    app = App(no_args_is_help=False)
    app.command()(train)
    return run(app, "train.py")


if __name__ == "__main__":
    sys.exit(main())
