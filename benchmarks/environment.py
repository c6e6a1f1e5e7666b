"""Environment steps per second at 8 machines, one by one and vectorised, and what their parts cost.

    python benchmarks/environment.py [--json FILE] [--repeats N]

The default environments (bloom-176b on 5 prompt and 3 token H100 machines, Poisson conversation trace), with
random allowed actions. The time of a step includes the simulation up to the next decision, which is most of
it; `observe` and `masks` are the parts that the live router pays too. Single environments are measured by CPU
time of one core, vectorised ones by the clock, on all cores.
"""

import time
from typing import Any

import gymnasium as gym
import numpy as np
from harness import Report, arguments, seconds

import splitgym  # registers the environments
from splitgym.envs import IDS, SchedulingEnv
from splitgym.observation import Observer
from splitgym.types import RequestInfo

CALLS = 5000
KINDS = {
    "splitgym/Routing-v0": "routing",
    "splitgym/PoolSizing-v0": "pool_sizing",
    "splitgym/Joint-v0": "joint",
}


def play(env: SchedulingEnv, rng: np.random.Generator) -> int:
    """One episode of random allowed actions; returns its steps."""
    env.reset(seed=0)
    steps, over = 0, False
    space: Any = env.action_space
    while not over:
        mask = env.action_masks()
        if isinstance(space, gym.spaces.Discrete):
            action: Any = int(rng.choice(np.flatnonzero(mask)))
        else:
            # A score for each number, forbidden ones lowest: cheaper than `choice`.
            scores = rng.random(len(mask)) + mask
            first = 0
            action = []
            for size in space.nvec.tolist():
                action.append(int(scores[first : first + size].argmax()))
                first += size
        *_, over, _ = env.step(action)
        steps += 1
    return steps


def vectorised(report: Report, repeats: int, num_envs: int = 64, steps: int = 1500) -> None:
    """Decisions per second of 64 environments in one vector environment, by the clock."""
    for name, kind in KINDS.items():
        venv = gym.make_vec(name, num_envs=num_envs)
        venv.reset(seed=0)
        rng = np.random.default_rng(0)
        sizes = getattr(venv.single_action_space, "nvec", None)
        if sizes is None:
            actions = rng.integers(0, venv.single_action_space.n, (steps, num_envs))
        else:
            actions = rng.integers(0, sizes, (steps, num_envs, len(sizes)))
        rates = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            for row in actions:
                venv.step(row)
            rates.append(steps * num_envs / (time.perf_counter() - start))
        venv.close()
        report.add(f"environment.{kind}.vector{num_envs}.decisions_per_s", rates[1:], "decisions/s")


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=40.0, help="length of an episode's window, simulated"
    )
    parser.add_argument("--engine", default=None, help="engine (default: the environments' own)")
    options = parser.parse_args()
    report = Report(f"splitgym {splitgym.__version__} environments, 8 machines, random allowed actions")
    engine = {} if options.engine is None else {"engine": options.engine}
    for name in IDS:
        env = gym.make(name, episode_s=options.seconds, **engine).unwrapped
        assert isinstance(env, SchedulingEnv)
        steps: list[int] = []

        def episode(env: SchedulingEnv = env, steps: list[int] = steps) -> None:
            steps.append(play(env, np.random.default_rng(0)))

        times = seconds(episode, options.repeats)
        rates = [n / s for n, s in zip(steps[1:], times)]
        report.add(f"environment.{KINDS[name]}.single.decisions_per_s", rates, "decisions/s")
    vectorised(report, options.repeats)
    parts(report, options.repeats)
    report.finish(options.json)


def parts(report: Report, repeats: int) -> None:
    """Microseconds of an observation and of the masks in the middle of an episode."""
    env: Any = gym.make("splitgym/Routing-v0").unwrapped
    env.reset(seed=0)
    for _ in range(300):
        env.step([0, 5])
    view, observer = env.engine.view, Observer(8)
    observer.reset(view)
    request = RequestInfo(0, 0, 1000, -1, -1, 0)

    def observe() -> None:
        for _ in range(CALLS):
            observer.observe(view, request)

    def masks() -> None:
        for _ in range(CALLS):
            env.action_masks()

    for name, work in (("observe", observe), ("masks", masks)):
        report.add(f"environment.{name}.m8.us", [s / CALLS * 1e6 for s in seconds(work, repeats)], "us")


if __name__ == "__main__":
    main()
