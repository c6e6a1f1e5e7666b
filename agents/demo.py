"""The demonstration: train a small routing agent, then compare it with the heuristics on windows it has never
seen.

`python -m agents.demo --out runs/demo` (or `make demo`). bloom-176b on 8 H100 machines, Poisson arrivals with
the sizes of `azure-code`, 17 requests/s: near saturation of the test part with our profiles (at 19 it is
overloaded under every policy). What a heuristic leaves open (the paper's split, vLLM's budget of tokens) is
chosen on the train part first, so that it is run at its best. Learning takes one to two minutes on 2 cores;
nothing is downloaded.
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

from agents.config import RunConfig, cluster_of, resolve
from agents.evaluation import load_agent
from agents.task import SimulatorTask
from agents.training import resume, train
from splitgym import evaluation
from splitgym.config import ClusterConfig, VllmBatchingConfig, parse_machines
from splitgym.errors import SplitgymError
from splitgym.evaluation import Contender, contender
from splitgym.evaluation.workloads import Workload, find

RATE_PER_S = 17.0
TRACE = "azure-code"

SPLITS = ("5P3T", "4P4T", "6P2T", "7P1T")
"""The paper's own first; its scheduler is run at this and at the best of them."""
BUDGETS = (256, 512, 1024, 2048, 8192)
"""vLLM's `max_num_batched_tokens`; its server's own default is 2,048, on an H100 8,192."""
CHOICE_SECONDS = 60.0
CHOICE_SEEDS = range(3)

OPTIONS: dict[str, Any] = {
    "algo": "maskable_ppo",
    "env": "routing",
    "steps": 163_840,
    # Around saturation: below it every decision is good, and there is nothing to learn from.
    "workload": {"trace": TRACE, "rate_per_s": [17.0, 22.0], "warmup_s": 20.0, "episode_s": 90.0},
    "warm_start": {"decisions": 30_000, "rounds": 2, "epochs": 6},
    # Overloaded: at the demo's rate good models all come near 1 on the validation part, and none is best.
    "evaluation": {"every": 40_960, "windows": 6, "rate_per_s": 19.0},
    "checkpoint": {"every": 16_384},
}
"""What differs from hyperparams/routing-maskable_ppo.yaml: short, and around saturation."""


def demo_config(steps: int | None = None, seed: int = 0) -> RunConfig:
    """The demo's training run."""
    fields = {**OPTIONS, "seed": seed}
    if steps is not None:
        fields["steps"] = steps
    return resolve(fields, "the demo")


def with_split(cluster: ClusterConfig, split: str) -> Contender:
    """The paper's scheduler at a static split of the machines."""
    group = cluster.machines[0]
    machines = parse_machines(f"{group.machine}/tp{group.tensor_parallel}:{split}")
    return replace(contender("splitwise"), cluster=replace(cluster, machines=machines))


def with_budget(cluster: ClusterConfig, budget: int) -> Contender:
    """No split and vLLM's batching, with a budget of tokens."""
    entrant = contender(evaluation.VLLM, cluster=cluster)
    assert entrant.cluster is not None
    batching = VllmBatchingConfig(max_num_batched_tokens=budget)
    return replace(entrant, cluster=replace(entrant.cluster, batching=batching))


def baselines(cluster: ClusterConfig, workload: Workload) -> dict[str, Contender]:
    """The heuristics by their names in the table; the last one is what all are compared to.

    A star marks what was left open and is chosen here, on the train part at the workload's rate.
    """
    splits = {split: with_split(cluster, split) for split in SPLITS}
    budgets = {str(budget): with_budget(cluster, budget) for budget in BUDGETS}
    short = replace(workload, duration_s=CHOICE_SECONDS)
    split = evaluation.choose(splits, cluster, short, CHOICE_SEEDS)
    budget = evaluation.choose(budgets, cluster, short, CHOICE_SEEDS)
    found = {
        "no split, round robin": contender("round-robin"),
        "no split, JSQ": contender("jsq-tokens"),
        f"no split, vLLM {budget}*": budgets[budget],
    }
    if split != SPLITS[0]:
        found[f"splitwise {SPLITS[0]}"] = splits[SPLITS[0]]
    return {**found, f"splitwise {split}*": splits[split]}


def compare(
    config: RunConfig, run: Path, windows: int, seconds: float, console: Console
) -> tuple[evaluation.Results, str]:
    """The agent of a run and the heuristics, on the same windows of the test part.

    Returns:
        the results, and who the others are compared to: the paper's scheduler at its best split.
    """
    cluster = cluster_of(config)
    workload = replace(SimulatorTask(config).workload("test", RATE_PER_S), duration_s=seconds)
    console.print("2. choose on the train part: the split of the paper's scheduler, vLLM's budget")
    heuristics = baselines(cluster, workload)
    baseline = list(heuristics)[-1]
    policies: dict[str, Any] = {
        **heuristics,
        "index": "index",
        "index tuned": "index-tuned",
        "agent": load_agent(run),
    }
    console.print("3. evaluate on the test part of the trace, which learning has not seen")
    columns = (TextColumn("[bold]evaluating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        row = bar.add_task("", total=len(policies) * windows)
        results = evaluation.evaluate(
            policies, cluster, [workload], range(windows), progress=lambda _: bar.advance(row)
        )
    return results, baseline


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
        console.print(
            "1. learn: clone the index scheduler, then improve on it with PPO (one to two minutes on two "
            "free cores; the first time a minute or two more, to compile the engine)"
        )
        outcome = train(config, out)
    learned_s = time.monotonic() - started
    if outcome.state != "finished":
        console.print("interrupted; the same command continues")
        return
    console.print(f"   {outcome.steps} decisions in {learned_s:.0f} s, warm start and validation included")
    results, baseline = compare(config, out, windows, seconds, console)
    evaluation.print_tables(results, baseline)
    console.print(
        "no split: every machine does both phases; JSQ by tokens, vLLM: the same JSQ with vLLM's batching; "
        "splitwise: the paper's scheduler; index: the teacher's rule, on the same machines as the agent\n"
        f"* at its best, chosen on the train part: of {', '.join(SPLITS)}; "
        f"of {', '.join(map(str, BUDGETS))} tokens an iteration"
    )
    files = evaluation.write_files(results, out / "evaluation", baseline)
    plots = evaluation.write_plots(results, out / "evaluation")
    console.print(f"model        {out / 'best' / 'model.zip'}")
    console.print(f"TensorBoard  tensorboard --logdir {out / 'tensorboard'}")
    console.print(f"plots        {len(plots)} in {plots[0].parent}, such as {plots[0].name}")
    console.print(f"tables       {', '.join(path.name for path in files)} beside them")
    console.print(f"in all       {time.monotonic() - started:.0f} s")


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m agents.demo", description=" ".join(__doc__.split("\n\n")[0].split())
    )
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
