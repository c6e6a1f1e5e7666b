"""The policy half-way between two residuals, as a bundle.

python -m agents.midway RUN_A RUN_B -o BUNDLE

Two runs of evolution of which one began at the other's result, with another weight of the tail, end at two
ends of a line: one lets a few wait without end, the other gives goodput away. Half-way on that line a policy
has most of both (docs/experiments.md, section 15). Constants are averaged by their logarithm, as they are
searched.
"""

import argparse
from pathlib import Path

from agents.routers import evolved_pair
from agents.space import to_theta, to_weights
from agents.spaces import RoutingSpace
from splitgym.errors import ConfigError, SplitgymError
from splitgym.policy import Policy, export_schedulers
from splitgym.schedulers import Residual, residual


def midway(a: str, b: str) -> Residual:
    """Half-way between the residuals of two run folders or bundles.

    Raises:
        ConfigError: one of them is no residual, or their networks differ in width.
    """
    ends = []
    for text in (a, b):
        found = evolved_pair(text)[0]
        if not isinstance(found, Residual):
            raise ConfigError(f"{text} routes by no residual: there is nothing half-way")
        ends.append(found.params)
    if len(ends[0]) != len(ends[1]):
        raise ConfigError(f"{a} and {b} have networks of different widths: there is nothing half-way")
    space = RoutingSpace(residual.hidden_of(len(ends[0])))
    theta = (to_theta(space, ends[0]) + to_theta(space, ends[1])) / 2
    return Residual(weights=tuple(to_weights(space, theta).tolist()), label="midway")


def write(a: str, b: str, folder: Path, name: str = "") -> Policy:
    """Write the bundle.

    Raises:
        ConfigError: see `midway`.
        PolicyError: the folder is taken.
    """
    about = {"midway_of": [Path(a).name, Path(b).name]}
    return export_schedulers(midway(a, b), None, folder, name=name or folder.name, training=about)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ends", nargs=2, metavar="RUN", help="run folders of es, or bundles")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the new bundle")
    options = parser.parse_args()
    try:
        a, b = options.ends
        made = write(a, b, options.out)
    except SplitgymError as error:
        parser.exit(2, f"agents.midway: {error}\n")
    print(f"{made.name}: written to {options.out}")


if __name__ == "__main__":
    main()
