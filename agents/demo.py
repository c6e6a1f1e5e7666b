"""The demonstration: train a small routing agent, then compare it with the heuristics on windows it has never
seen.

`python -m agents.demo --out runs/demo` (or `make demo`). bloom-176b on 8 H100 machines, Poisson arrivals with
the sizes of `azure-code`, 19 requests/s. Learning takes under 5 minutes on 2 cores; nothing is downloaded.
"""

import argparse
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agents.config import RunConfig, resolve
from agents.evaluation import load_agent
from agents.task import SimulatorTask, cluster_of
from agents.training import resume, train
from splitgym import evaluation, schedulers
from splitgym.errors import SplitgymError
from splitgym.evaluation.workloads import find

RATE_PER_S = 19.0
TRACE = "azure-code"

OPTIONS: dict[str, Any] = {
    "algo": "maskable_ppo",
    "env": "routing",
    "steps": 163_840,
    # Around saturation: below it every decision is good, and there is nothing to learn from.
    "workload": {"trace": TRACE, "rate_per_s": [17.0, 22.0], "warmup_s": 20.0, "episode_s": 90.0},
    "warm_start": {"decisions": 30_000, "rounds": 2, "epochs": 6},
    "evaluation": {"every": 40_960, "windows": 6, "rate_per_s": RATE_PER_S},
    "checkpoint": {"every": 16_384},
}
"""What differs from hyperparams/routing-maskable_ppo.yaml: short, and judged at the demo's rate."""


def demo_config(steps: int | None = None, seed: int = 0) -> RunConfig:
    """The demo's training run."""
    fields = {**OPTIONS, "seed": seed}
    if steps is not None:
        fields["steps"] = steps
    return resolve(fields, "the demo")


def compare(config: RunConfig, run: Path, windows: int, seconds: float) -> evaluation.Results:
    """The agent of a run and the heuristics, on the same windows of the test part."""
    task = SimulatorTask(config)
    split = config.cluster.machines[0].count, config.cluster.machines[1].count
    policies: dict[str, Any] = {
        f"splitwise {split[0]}P{split[1]}T": "splitwise",
        "round-robin": "round-robin",
        "jsq-tokens": "jsq-tokens",
        "index": "index",
        "index tuned": schedulers.routing("index", preset="tuned"),
        "agent": load_agent(run),
    }
    workload = replace(task.workload("test", RATE_PER_S), duration_s=seconds)
    columns = (TextColumn("[bold]evaluating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        row = bar.add_task("", total=len(policies) * windows)
        return evaluation.evaluate(
            policies, cluster_of(config), [workload], range(windows), progress=lambda _: bar.advance(row)
        )


def run_demo(out: Path, *, steps: int | None, seed: int, windows: int, seconds: float, fresh: bool) -> None:
    """Train (or continue), evaluate, print.

    Args:
        out: the run folder; plots and tables go beside the model.
        steps: decisions of PPO; None is the demo's own number.
        seed: of everything.
        windows, seconds: test windows, and the length of each.
        fresh: throw an earlier demo in `out` away.
    """
    console = Console()
    config = demo_config(steps, seed)
    used = find(TRACE)
    real = "the original trace" if not used.name.endswith("-synth") else "built in; the original is not here"
    console.print(f"[bold]splitgym demo[/bold]: {config.cluster.model} on 8 H100 machines, Poisson arrivals, "
                  f"{RATE_PER_S:g} requests/s, sizes of {used.name} ({real})")  # fmt: skip
    if fresh and (out / "config.yaml").is_file():
        shutil.rmtree(out)
    started = time.monotonic()
    if (out / "config.yaml").is_file():
        console.print(f"{out} holds a demo already: continuing it (--fresh starts anew)")
        outcome = resume(out)
    else:
        console.print("1. learn: clone the index scheduler, then improve on it with PPO")
        outcome = train(config, out)
    learned_s = time.monotonic() - started
    if outcome.state != "finished":
        console.print("interrupted; the same command continues")
        return
    console.print(f"   {outcome.steps} decisions in {learned_s:.0f} s, warm start and validation included")
    console.print("2. evaluate on the test part of the trace, which learning has not seen")
    results = compare(config, out, windows, seconds)
    console.print(
        "splitwise: the paper's scheduler; round-robin, jsq-tokens: no split; index: the teacher's rule"
    )
    evaluation.print_tables(results)
    files = evaluation.write_files(results, out / "evaluation")
    plots = evaluation.write_plots(results, out / "evaluation")
    console.print(f"model        {out / 'best' / 'model.zip'}")
    console.print(f"TensorBoard  tensorboard --logdir {out / 'tensorboard'}")
    console.print(f"plots        {len(plots)} in {plots[0].parent}, such as {plots[0].name}")
    console.print(f"tables       {', '.join(path.name for path in files)} beside them")
    console.print(f"in all       {time.monotonic() - started:.0f} s")


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m agents.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder")
    parser.add_argument("--steps", type=int, help="decisions of PPO")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--windows", type=int, default=12, help="test windows")
    parser.add_argument("--seconds", type=float, default=90.0, help="length of a test window")
    parser.add_argument("--fresh", action="store_true", help="throw an earlier demo in the folder away")
    given = parser.parse_args(arguments)
    try:
        run_demo(
            given.out,
            steps=given.steps,
            seed=given.seed,
            windows=given.windows,
            seconds=given.seconds,
            fresh=given.fresh,
        )
    except SplitgymError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
