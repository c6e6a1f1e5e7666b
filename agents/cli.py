"""The learning commands. `splitgym` adds them when it runs from a checkout; `train.py` is its `train`."""

import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agents.cli_fields import cluster_fields, first_fields, put, set_field, workload_fields
from agents.profile_cli import profile_torch
from splitgym.config import ClusterConfig, load_yaml
from splitgym.errors import ConfigError

if TYPE_CHECKING:
    from splitgym.evaluation import Contender
    from splitgym.policy import Policy

for _needed in ("torch", "stable_baselines3", "sb3_contrib"):
    # Found, not imported: torch takes seconds, and `splitgym evaluate` adds these commands too.
    if find_spec(_needed) is None:
        raise ModuleNotFoundError(f"learning needs {_needed}", name=_needed)

Algo = Annotated[
    str,
    typer.Option(
        help="maskable_ppo, ppo, a2c, recurrent_ppo (pool_sizing), dqn (flat routing, pool_sizing), es, cem."
    ),
]
EnvName = Annotated[str, typer.Option("--env", help="routing, pool_sizing or joint.")]
Machines = Annotated[
    str, typer.Option("--cluster", help="Machines: TYPE:COUNTS such as h100-80gb:5P3T; join groups with +.")
]
Model = Annotated[str, typer.Option(help="Model: see `splitgym profile list`.")]
ClusterFile = Annotated[
    Path | None,
    typer.Option("--cluster-file", help="YAML of a ClusterConfig; replaces --cluster and --model."),
]
Trace = Annotated[str | None, typer.Option(help="Trace by name or path; its train part is used.")]
Rate = Annotated[
    str | None, typer.Option(help="Requests/s, or LOW-HIGH to draw one an episode, or own (the trace's own).")
]
Arrivals = Annotated[str | None, typer.Option(help="poisson, or stamps (as recorded).")]
Steps = Annotated[int | None, typer.Option(help="Decisions in all; of es and cem, generations.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Same seed, same run; default 0.")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="New folder; default runs/ENV-ALGO-TIME.")]
Resume = Annotated[Path | None, typer.Option(help="Run folder to continue, with its own configuration.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML with fields of RunConfig; other options win over it.")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Any field: learner.num_envs=4. Repeatable; wins over all.")
]
Flat = Annotated[bool, typer.Option("--flat", help="Routing by one integer (for dqn).")]
Ray = Annotated[
    str | None,
    typer.Option(help="Collect rollouts on a Ray cluster: HOST:PORT, `auto`, or `local`; see learner.ray."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


def train(
    algo: Algo = "",
    env: EnvName = "",
    cluster: Machines = "",
    model: Model = "",
    cluster_file: ClusterFile = None,
    trace: Trace = None,
    rate: Rate = None,
    arrivals: Arrivals = None,
    steps: Steps = None,
    seed: Seed = None,
    run_dir: RunDir = None,
    resume: Resume = None,
    config: ConfigFile = None,
    set_: Sets = None,
    flat: Flat = False,
    ray: Ray = None,
    quiet: Quiet = False,
) -> None:
    """Train an agent, or continue a run with --resume RUN.

    Defaults: maskable_ppo on routing for 8 H100 machines with bloom-176b, warm-started from the index
    scheduler.

    Example: splitgym train --algo maskable_ppo --cluster h100-80gb:5P3T --rate 17-22 --run-dir runs/first
    """
    from agents import training
    from agents.config import EVOLVED, RunConfig, resolve
    from agents.runs import RunFolder

    if resume is not None:
        given = (algo, env, cluster, model, cluster_file, trace, rate, arrivals, run_dir, config, set_)
        if any(given) or flat or ray or seed is not None:
            raise ConfigError("a resumed run keeps its configuration: give --resume RUN alone")
        RunFolder(resume).require()
        training.check_total(load_yaml(RunConfig, resume / "config.yaml"), steps)
        _say(training.resume(resume, show=not quiet))
        return
    fields = first_fields(config, algo, env, steps, seed)
    put(fields, "cluster", cluster_fields(cluster, model, cluster_file))
    put(fields, "workload", workload_fields(trace, rate, arrivals))
    put(fields, "environment", {"flat": True} if flat else {})
    put(fields, "learner", {"vec": "ray", "ray": ray} if ray else {})
    for text in set_ or ():
        set_field(fields, text)
    made = resolve(fields, "the options" if config is None else f"{config} and the options")
    if made.learner.vec != "in-process" and made.algo in EVOLVED:
        named = "--ray" if ray else f"learner.vec: {made.learner.vec}"
        raise ConfigError(f"{named}: {made.algo} runs in threads of one machine; leave it out")
    where = run_dir or Path("runs") / f"{made.env}-{made.algo}-{time.strftime('%Y%m%d-%H%M%S')}"
    _say(training.train(made, where, show=not quiet))


def tune(
    out: Annotated[Path, typer.Option(help="Folder of the study; the same command goes on from it.")],
    algo: Algo = "",
    env: EnvName = "",
    cluster: Machines = "",
    model: Model = "",
    cluster_file: ClusterFile = None,
    trace: Trace = None,
    rate: Rate = None,
    arrivals: Arrivals = None,
    steps: Steps = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of earlier calls included.")] = 20,
    seed: Seed = None,
    config: ConfigFile = None,
    set_: Sets = None,
    quiet: Quiet = False,
) -> None:
    """Search hyperparameters with Optuna: each trial is a run of `train`, judged on validation windows.

    Example: splitgym tune --out runs/study --algo es --steps 40 --trials 10
    """
    from agents import tuning

    fields = first_fields(config, algo, env, steps, seed)
    put(fields, "cluster", cluster_fields(cluster, model, cluster_file))
    put(fields, "workload", workload_fields(trace, rate, arrivals))
    for text in set_ or ():
        set_field(fields, text)
    found = tuning.tune(fields, out, trials, show=not quiet)
    print(f"best of {found.trials} trials: {found.value:.3f} with {found.fields}")
    print(f"train with it: python train.py --config {found.folder / 'best.yaml'}")


def improve(
    logs: Annotated[list[Path], typer.Argument(help="Decision logs of `splitgym route`, oldest first.")],
    bundle: Annotated[str, typer.Option(help="The old bundle: a folder, or pretrained:NAME.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the new bundle, if it wins.")],
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Folder of the improvement; default OUT.run.")
    ] = None,
    generations: Annotated[int, typer.Option(min=1, help="Of the search; of a network, updates.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same result.")] = 0,
    tail: Annotated[
        float, typer.Option(min=1, help="The p99 of the TTFT slowdown may grow by this factor, if above 6.")
    ] = 1.1,
    profile: Annotated[
        list[str] | None,
        typer.Option(help="Measured profile: FILE for all servers, or TYPE=FILE for a type; repeatable."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave lines out that are no JSON object.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Begin anew, and replace a bundle at --out.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a sentence.")] = False,
    quiet: Quiet = False,
) -> None:
    """Retrain a bundle on the traffic that a router logged; a new bundle comes only if it wins.

    The first 70 % of the log are learned from, the newest 30 % judge old against new. The same command goes
    on where it was interrupted.

    Example: splitgym improve decisions.jsonl --bundle my-policy --out my-policy-2
    """
    import json
    import sys

    from agents.improve import ImproveOptions
    from agents.improve import improve as run
    from splitgym.cli.shell import INTERRUPTED

    folder = run_dir or out.with_name(f"{out.name}.run")
    options = ImproveOptions(generations, seed, tail, tuple(profile or ()), skip_bad)
    found = run(
        logs,
        bundle,
        out,
        folder,
        options,
        force=force,
        show=not quiet,
        say=lambda text: print(text, file=sys.stderr),
    )
    if found.interrupted:
        print(f"{found.sentence}: the same command goes on in {folder}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if as_json:
        print(json.dumps(found.content, indent=1))
        return
    print(found.sentence)
    print(f"report   {folder / 'report.html'}")
    if found.won:
        print(f"bundle   {out}")


def register(app: typer.Typer) -> None:
    """Add the learning commands to the `splitgym` command."""
    app.command()(train)
    app.command()(tune)
    app.command()(improve)
    for group in app.registered_groups:
        if group.name == "profile" and group.typer_instance is not None:
            group.typer_instance.command("torch")(profile_torch)


def contender(run: str, cluster: ClusterConfig) -> "Contender":
    """The agent of a run folder, to be compared on a cluster: with its own confinement, as it learned.

    Raises:
        ConfigError: no run folder, no model in it, or an agent that knows fewer machines.
    """
    from agents import evaluation
    from agents.config import EVOLVED, cluster_of

    config = evaluation.load_config(run)
    if config.algo in EVOLVED and config.env == "routing":  # any cluster, with the cluster's own confinement
        return evaluation.contender(evaluation.load_agent(run, name=run), config)
    confined = replace(cluster, confine=cluster_of(config).confine)
    if config.algo in EVOLVED:
        return replace(evaluation.contender(evaluation.load_agent(run, name=run), config), cluster=confined)
    known = evaluation.machines_of(config)
    if cluster.num_machines > known:
        raise ConfigError(f"policy {run} knows {known} machines, the cluster has {cluster.num_machines}")
    entrant = evaluation.contender(evaluation.load_agent(run, name=run), config)
    return replace(entrant, cluster=confined)


def export(run: str, out: Path, *, which: str, name: str, onnx: bool) -> "Policy":
    """`splitgym export RUN`: see `agents.export.export_run`."""
    from agents.export import export_run

    return export_run(run, out, which=which, name=name, onnx=onnx)


def _say(outcome: Any) -> None:
    run = outcome.run
    print(f"{outcome.state} after {outcome.steps} steps; best validation goodput {outcome.goodput:.3f}")
    print(f"model        {run.best / 'model.zip'}")
    print(f"evaluations  {run.evaluations_file}")
    print(f"TensorBoard  tensorboard --logdir {run.tensorboard}")
    if outcome.state == "interrupted":
        print(f"continue     python train.py --resume {run.path}")
