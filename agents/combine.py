"""A policy made of trained residuals without training: the mean of several, or the steps of several.

python -m agents.combine midway RUN_A RUN_B ... -o BUNDLE
python -m agents.combine steps START RUN_A RUN_B ... -o BUNDLE

`midway`: two runs of which one began at the other's result, with another weight of the tail, end at two ends
of a line: one lets a few wait without end, the other gives goodput away. Half-way a policy has most of both.
So has the mean of several points of one line of training.

`steps`: runs that began at the same policy and sought different things each made a step from there. The
policy that makes all these steps has most of what each has gained (docs/experiments.md, sections 15 and 16).

Constants are added and averaged by their logarithm, as they are searched.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agents.routers import evolved_pair
from agents.space import to_theta, to_weights
from agents.spaces import RoutingSpace
from splitgym.errors import ConfigError, SplitgymError
from splitgym.policy import Policy, export_schedulers
from splitgym.schedulers import Residual, residual


def midway(*texts: str) -> Residual:
    """The mean of the residuals of run folders or bundles: of two, half-way between them.

    Raises:
        ConfigError: one of them is no residual, or their networks differ in width.
    """
    space, thetas = _thetas(texts)
    return _residual(space, np.mean(thetas, axis=0), "midway")


def steps(start: str, runs: Sequence[str]) -> Residual:
    """The residual at `start` with the steps that all runs made from there.

    Raises:
        ConfigError: as of `midway`.
    """
    space, (first, *others) = _thetas([start, *runs])
    return _residual(space, first + sum(other - first for other in others), "steps")


def _thetas(texts: Sequence[str]) -> tuple[RoutingSpace, list[NDArray[np.float64]]]:
    found = []
    for text in texts:
        router = evolved_pair(text)[0]
        if not isinstance(router, Residual):
            raise ConfigError(f"{text} routes by no residual: there is nothing to combine")
        found.append(router.params)
        if len(router.params) != len(found[0]):
            raise ConfigError(
                f"{texts[0]} and {text} have networks of different widths: there is nothing to combine"
            )
    space = RoutingSpace(residual.hidden_of(len(found[0])))
    return space, [to_theta(space, weights) for weights in found]


def _residual(space: RoutingSpace, theta: NDArray[np.float64], label: str) -> Residual:
    return Residual(weights=tuple(to_weights(space, theta).tolist()), label=label)


def write(how: str, texts: Sequence[str], folder: Path, name: str = "") -> Policy:
    """Write the bundle.

    Args:
        how: `midway` of two or more, or `steps` from the first.
        texts: run folders of es, or bundles.
        folder: of the new bundle.
        name: of the policy; the folder's where there is none.

    Raises:
        ConfigError: see `midway`.
        PolicyError: the folder is taken.
    """
    made = midway(*texts) if how == "midway" else steps(texts[0], texts[1:])
    about = {f"{how}_of": [Path(text).name for text in texts]}
    return export_schedulers(made, None, folder, name=name or folder.name, training=about)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="how", required=True)
    half = commands.add_parser("midway", help="half-way between two, the mean of more")
    half.add_argument("runs", nargs="+", metavar="RUN", help="run folders of es, or bundles")
    whole = commands.add_parser("steps", help="the steps of several from one start")
    whole.add_argument("start", metavar="START", help="where the runs began")
    whole.add_argument("runs", nargs="+", metavar="RUN", help="run folders of es, or bundles")
    for one in (half, whole):
        one.add_argument("-o", "--out", type=Path, required=True, help="folder of the new bundle")
    options = parser.parse_args()
    texts = options.runs if options.how == "midway" else [options.start, *options.runs]
    try:
        made = write(options.how, texts, options.out)
    except SplitgymError as error:
        parser.exit(2, f"agents.combine: {error}\n")
    print(f"{made.name}: written to {options.out}")


if __name__ == "__main__":
    main()
