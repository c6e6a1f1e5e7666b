"""Draws the documentation's picture of a minute: `python docs/figures.py`."""

from pathlib import Path

import gymnasium
import numpy as np
from matplotlib import image

import splitgym  # noqa: F401  # registers the environments
from splitgym import schedulers
from splitgym.trace import load, part, poisson

PLACE = Path(__file__).resolve().parent / "images" / "gantt.png"


def main() -> None:
    """75 s of the code trace's test part at 12 requests/s, routed by the paper's scheduler."""
    env = gymnasium.make("splitgym/Routing-v0", render_mode="rgb_array", warmup_s=15, episode_s=90)
    inside = env.unwrapped
    trace = poisson(part(load("azure-code-synth", download=False), "test"), 12.0, 75.0, seed=3)
    inside.reset(seed=0, options={"trace": trace})
    paper = schedulers.routing("splitwise")
    paper.reset(inside.engine.view, 0)
    over = False
    while not over and inside.engine.view.clock[0] < 74e9:
        action = paper.route(inside.engine.view, inside.decision.request)
        over = inside.step(np.array(action))[3]
    image.imsave(PLACE, inside.render())


if __name__ == "__main__":
    main()
