"""One frozen dataclass that holds every knob of a training run. Read from YAML and the command line; unknown
keys are errors. A run folder keeps the resolved one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from splitgym import saturation
from splitgym.config import STRICT, ClusterConfig, from_mapping
from splitgym.errors import ConfigError

Algo = Literal["ppo", "maskable_ppo", "dqn", "a2c", "es", "cem"]
EVOLVED = ("es", "cem")
"""Algorithms that search the weights of schedulers, on the compiled engine alone."""
EnvName = Literal["routing", "pool_sizing", "joint"]

HYPERPARAMS = Path(__file__).resolve().parent / "hyperparams"


@dataclass(frozen=True, config=STRICT)
class WorkloadConfig:
    """The requests of training, from the train part of a trace; evaluations use its validation part."""

    trace: str = "azure-code"
    """A trace's name or the path of a file (see `splitgym.trace.load`)."""
    arrivals: Literal["poisson", "stamps"] = "poisson"
    """`poisson` draws arrivals at the rate and sizes from the trace; `stamps` takes windows as they were."""
    rate_per_s: float | tuple[float, float] | None = (15.0, 21.0)
    """Requests per second; of a (low, high) range one rate is drawn an episode. None keeps the trace's own
    rate.
    """
    load: float | tuple[float, float] | None = None
    """Replaces `rate_per_s`: a fraction of what saturates the cluster, or a range (`splitgym.saturation`)."""
    warmup_s: float = Field(default=20.0, ge=0)
    """Start of an episode that counts in no reward. A window from an empty cluster would hide overload."""
    episode_s: float = Field(default=90.0, gt=0)
    """What counts, after the warm-up. The study found 40 s too short to see overload."""


@dataclass(frozen=True, config=STRICT)
class EnvConfig:
    """What the environment asks the agent."""

    flat: bool = False
    """Routing: one integer p * M + t instead of two (needed by DQN)."""
    max_machines: int | None = Field(default=None, ge=1)
    """M of the spaces; None is the cluster's own number."""
    max_moves: int = Field(default=1, ge=1)
    """Pool sizing and joint: K, the most machines that one action moves."""
    router: str = "splitwise"
    """Pool sizing: who routes. A scheduler's name, a policy bundle (`pretrained:NAME`) or the run folder of
    `es` or `cem`.
    """
    confine: bool | None = None
    """Confine phases to pools; None is the environment's default (on in pool sizing and joint, off in
    routing).
    """
    reward: str | dict[str, float] = "good-minus-bad"
    """A reward's name, or weights by name."""
    worlds: Literal["own", "many"] = "own"
    """Routing: `many` gives each environment a cluster, and each episode a workload and a load, drawn as
    `evolution` says (`machines`, `mixed`, `models`, `workloads`, `loads`), and judges on its scenarios.
    """
    prior: str | None = None
    """Begin as an index or residual scheduler, and learn what to add to its costs: `index`, `index-tuned`,
    `pretrained:routing`, or the folder of a bundle or of an `es` or `cem` run. Kept in the run folder.
    """


@dataclass(frozen=True, config=STRICT)
class LearnerConfig:
    """What all algorithms share."""

    num_envs: int = Field(default=8, ge=1)
    """Environments stepped together."""
    vec: Literal["in-process", "subproc", "ray"] = "in-process"
    """`subproc` runs each environment in a process of its own: it pays where a step costs about a
    millisecond. `ray` runs them in actors of a Ray cluster, see `ray`.
    """
    ray: str = "local"
    """With `vec: ray`: HOST:PORT of a running cluster, `auto`, or `local` for one on this machine."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Of Adam, at the start."""
    learning_rate_end: float = Field(default=0.0, ge=0)
    """It falls linearly to this."""
    hidden: int = Field(default=64, ge=1)
    """Width of the networks."""
    start: str | None = None
    """Begin with the network of this bundle (of the same width, and the same prior or none); its value, which
    a bundle does not hold, begins anew: `warm_start.fits: value` teaches it.
    """
    prior_scale: float = Field(default=20.0, gt=0)
    """With `environment.prior`: logits are its costs times this. Larger: closer to its likeliest decision."""
    discount_s: float = Field(default=10.0, gt=0)
    """Time constant of the discount [s of simulated time]: what lies t ahead counts exp(-t / discount_s)."""
    reward_scale: float | None = Field(default=None, gt=0)
    """Rewards are multiplied by this before learning, so that values are about 1. None: 1 / (rate x
    discount_s).
    """


@dataclass(frozen=True, config=STRICT)
class OnPolicyConfig:
    """PPO, MaskablePPO and A2C."""

    n_steps: int = Field(default=512, ge=2)
    """Steps of each environment an update."""
    trace_s: float = Field(default=10.0, gt=0)
    """Time constant of GAE's traces [s of simulated time], instead of lambda."""
    ent_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus."""
    vf_coef: float = Field(default=1.0, ge=0)
    """Weight of the value loss. The value has its own network, so this only scales its gradient."""
    max_group_norm: float = Field(default=0.5, gt=0)
    """The gradients of policy and value are clipped to this norm, each by itself."""
    batch_size: int = Field(default=512, ge=2)
    """PPO: decisions a gradient step."""
    n_epochs: int = Field(default=4, ge=1)
    """PPO: passes over the rollout."""
    clip_range: float = Field(default=0.2, gt=0)
    """PPO: how far a probability ratio may move."""
    target_kl: float | None = Field(default=0.03, gt=0)
    """PPO: stop an update that has moved the policy this far."""
    start_kl: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the policy that learning began with, KL(now || start); 0 for none."""
    start_kl_end: float = Field(default=0.0, ge=0)
    """It falls linearly to this."""


@dataclass(frozen=True, config=STRICT)
class DqnConfig:
    """DQN (flat routing and pool sizing only)."""

    buffer_size: int = Field(default=50_000, ge=1)
    """Transitions remembered; kept in the checkpoints."""
    learning_starts: int = Field(default=2_000, ge=0)
    """Steps before the first update."""
    batch_size: int = Field(default=128, ge=1)
    """Transitions a gradient step."""
    train_freq: int = Field(default=4, ge=1)
    """Steps of all environments between updates."""
    gradient_steps: int = Field(default=4, ge=1)
    """Gradient steps an update."""
    target_update_interval: int = Field(default=2_000, ge=1)
    """Steps between copies to the target network."""
    exploration_fraction: float = Field(default=0.3, gt=0, le=1)
    """Share of the run over which exploration falls."""
    exploration_final_eps: float = Field(default=0.02, ge=0, le=1)
    """Share of random actions in the end."""


@dataclass(frozen=True, config=STRICT)
class WarmStartConfig:
    """Behaviour cloning of a heuristic before learning. Learning to route from nothing fails
    (docs/training.md).
    """

    teacher: str | None = None
    """A routing or sizing scheduler's name, `pretrained:NAME`, or the folder of a bundle or a run; None for
    none.
    """
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that scheduler."""
    sizing: str | None = None
    """Joint: who teaches the sizes, as `teacher` does the machines; None takes a `teacher` that does both."""
    sizing_options: dict[str, Any] = Field(default_factory=dict)
    """Options of that scheduler."""
    fits: Literal["both", "value"] = "both"
    """`value` leaves the policy as it is and learns only what follows from it: with a prior, the policy is
    the teacher already.
    """
    balance: float = Field(default=0.0, ge=0, le=1)
    """Decisions of a class that makes up a share s weigh s ** -balance. Classes are the numbers of machines
    to move, and whether a request is split. 0 weighs all alike, 1 gives every class the same weight in all.
    """
    decisions: int = Field(default=20_000, ge=1)
    """Decisions of the teacher to learn from, over all rounds."""
    rounds: int = Field(default=2, ge=1)
    """The first round follows the teacher, the others the clone (DAgger): the teacher says what it would do.
    """
    epochs: int = Field(default=10, ge=1)
    """Passes over all decisions so far, a round."""
    batch_size: int = Field(default=256, ge=1)
    """Decisions a gradient step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """At the start of a round; falls to a tenth."""


@dataclass(frozen=True, config=STRICT)
class EvolutionConfig:
    """Evolution strategies (`es`) and the cross-entropy method (`cem`) over schedulers: the index and its
    residual, the reactive sizing rule and its network, or both.

    A step of the run is a generation. The numbers are those of the study that found the residual, where it
    said any.
    """

    clusters: Literal["many", "own"] = "many"
    """`many` draws a cluster a scenario; `own` is the run's cluster."""
    machines: tuple[int, int] = (4, 16)
    """`many`: least and most machines."""
    mixed: float = Field(default=0.5, ge=0, le=1)
    """`many`: share of clusters with A100 beside H100 machines."""
    models: tuple[str, ...] = ("bloom-176b", "llama2-70b")
    """`many`: models, drawn evenly."""
    workloads: tuple[str, ...] = (
        "poisson:azure-conv",
        "poisson:azure-code",
        "stamps:azure-conv",
        "stamps:azure-code",
        "shifting:azure-conv~azure-code",
        "mixed:azure-conv+azure-code",
    )
    """Drawn evenly, from the train part. One with a rate of its own (`stamps:FILE@x1`) has no load and
    is taken as recorded."""
    loads: tuple[float, float] = (0.8, 1.35)
    """Fractions of saturation, drawn uniformly."""
    length_shift: float = Field(default=0.0, ge=0, lt=1)
    """Outputs of a scenario are 1 - this to 1 + this times as long as recorded, drawn once a scenario."""
    switch_delays_s: tuple[float, ...] = ()
    """Switching delays of the clusters, drawn evenly; none: the run's cluster's."""
    scenarios: int = Field(default=10, ge=1)
    """A generation; all its candidates run on the same ones."""
    tail_weight: float = Field(default=0.05, ge=0)
    """What the tail costs: goodput - tail_weight x tail is sought, see `agents.scenarios.tail`."""
    hidden: int = Field(default=16, ge=0)
    """ES: width of the routing network."""
    hidden_sizing: int = Field(default=12, ge=1)
    """ES: width of the sizing network."""
    rule: Literal["reactive", "ewma"] = "reactive"
    """CEM, pool sizing: the rule whose options are tuned."""
    pairs: int = Field(default=16, ge=1)
    """ES: mirrored pairs of candidates."""
    learning_rate: float = Field(default=0.15, gt=0)
    """ES: Adam's; a step is 2 x learning_rate x sigma. Over the second half it falls to a tenth."""
    average: float = Field(default=0.02, gt=0, le=1)
    """ES: weight of the newest iterate in the moving average, which is the result."""
    start: str | None = None
    """Run folder of `es` or `cem`, or bundle, whose result is where the search begins; None begins at the
    heuristics (the index with tuned weights, the reactive rule).
    """
    start_sizing: str | None = None
    """Joint: the same for the sizing part, where `start` has only a routing part."""
    population: int = Field(default=32, ge=4)
    """CEM: candidates a generation."""
    elite: float = Field(default=0.25, gt=0, le=0.5)
    """CEM: share of them that the next distribution is fitted to."""
    smoothing: float = Field(default=0.7, gt=0, le=1)
    """CEM: weight of the new distribution."""
    loads_judged: tuple[float, ...] = (0.9, 1.05, 1.2, 1.35)
    """Loads of the validation windows; each workload is run at each, on `evaluation.windows` windows."""
    clusters_judged: tuple[str, ...] = ("h100-80gb:8M", "h100-80gb:4M+a100-80gb:4M")
    """`many`: clusters of the validation windows, of the first model."""
    threads: int | None = Field(default=None, ge=1)
    """None: as many as cores. The result does not depend on it."""


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    """The evaluation callback."""

    every: int = Field(default=50_000, ge=1)
    """Steps between evaluations."""
    windows: int = Field(default=3, ge=1)
    """Validation windows, the same ones each time."""
    rate_per_s: float | None = Field(default=None, gt=0)
    """Of the windows; None is the middle of the training range."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest decision, 1 samples as in training. A cloned policy may herd at 0."""


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    """What a kill can cost."""

    every: int = Field(default=20_000, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept."""


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """A training run."""

    algo: Algo = "maskable_ppo"
    """Algorithm. PPO and A2C do not see the action masks; what they choose in vain is mapped and counted."""
    env: EnvName = "routing"
    """Environment."""
    steps: int = Field(default=500_000, ge=1)
    """Decisions in all; of `es` and `cem`, generations."""
    seed: int = Field(default=0, ge=0)
    """Same seed, same run."""
    cluster: ClusterConfig = ClusterConfig()
    """Machines and rules."""
    workload: WorkloadConfig = WorkloadConfig()
    """Requests."""
    environment: EnvConfig = EnvConfig()
    """Actions and reward."""
    learner: LearnerConfig = LearnerConfig()
    """All algorithms."""
    on_policy: OnPolicyConfig = OnPolicyConfig()
    """PPO, MaskablePPO and A2C."""
    dqn: DqnConfig = DqnConfig()
    """DQN."""
    evolution: EvolutionConfig = EvolutionConfig()
    """ES and CEM."""
    warm_start: WarmStartConfig = WarmStartConfig()
    """Imitation first."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How progress is judged."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """How often it is saved."""

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if self.algo == "dqn" and (
            self.env == "joint" or (self.env == "routing" and not self.environment.flat)
        ):
            raise ValueError(
                "dqn needs a single integer as action: use env pool_sizing, or routing with "
                "environment.flat: true (--flat); "
                "for two numbers or the joint environment use ppo, maskable_ppo or a2c"
            )
        if self.evolution.start_sizing is not None and self.env != "joint":
            raise ValueError("evolution.start_sizing is for env joint; elsewhere use evolution.start")
        if self.environment.flat and self.env != "routing":
            raise ValueError(f"environment.flat is for routing; {self.env} has one action space only")
        if self.warm_start.teacher and self.algo in ("dqn", *EVOLVED):
            raise ValueError("warm_start clones into a ppo, maskable_ppo or a2c policy only")
        if self.warm_start.sizing and self.env != "joint":
            raise ValueError(
                "warm_start.sizing is for env joint; elsewhere warm_start.teacher is who teaches"
            )
        if self.environment.worlds == "many" and (
            self.env != "routing" or self.algo in ("dqn", *EVOLVED) or self.learner.vec != "in-process"
        ):
            raise ValueError(
                "environment.worlds: many is for routing with ppo, maskable_ppo or a2c, in process"
            )
        if self.environment.prior and (self.env == "pool_sizing" or self.algo in ("dqn", *EVOLVED)):
            raise ValueError(
                "environment.prior is for ppo, maskable_ppo or a2c that route; es begins from evolution.start"
            )
        if self.learner.start and self.algo in ("dqn", *EVOLVED):
            raise ValueError("learner.start is for ppo, maskable_ppo or a2c; es begins from evolution.start")
        if self.algo != "dqn" and self.learner.num_envs * self.on_policy.n_steps < 2:
            raise ValueError("learner.num_envs x on_policy.n_steps must be at least 2")
        return self


def cluster_of(config: RunConfig) -> ClusterConfig:
    """The run's cluster with its confinement: the environment's option, its default, or the cluster's own."""
    confine = config.environment.confine
    if confine is None:
        confine = config.cluster.confine or config.env != "routing"
    return replace(config.cluster, confine=confine)


def rates(config: RunConfig) -> float | tuple[float, float] | None:
    """Requests per second of training: one, a (low, high) range, or None for the trace's own.

    Raises:
        ConfigError: a load where no saturation is known.
    """
    load = config.workload
    if load.load is None:
        return load.rate_per_s
    return saturation.rates(load.load, config.cluster, f"{load.arrivals}:{load.trace}")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the fields of `over`, deep."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        deep = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merge(old, value) if deep else value  # type: ignore[arg-type]
    return result


def hyperparams(env: str, algo: str) -> dict[str, Any]:
    """The tuned fields of an environment and algorithm: `hyperparams/ENV-ALGO.yaml`.

    Raises:
        ConfigError: there is none; says which there are.
    """
    import yaml

    file = HYPERPARAMS / f"{env}-{algo}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in HYPERPARAMS.glob("*.yaml")))
        hint = " (DQN has flat routing and pool_sizing only)" if algo == "dqn" else ""
        raise ConfigError(f"no hyperparameters for env {env!r} with algo {algo!r}{hint}; there are {known}")
    return dict(yaml.safe_load(file.read_text()))


def resolve(overrides: Mapping[str, Any], where: str = "the options") -> RunConfig:
    """Defaults, then the hyperparameter file of the environment and algorithm, then `overrides`.

    Raises:
        ConfigError: an unknown key or a value that cannot be used.
    """
    env = str(overrides.get("env", "routing"))
    algo = str(overrides.get("algo", "maskable_ppo"))
    base = hyperparams(env, algo)
    start, own = overrides.get("warm_start"), base.get("warm_start", {})
    if isinstance(start, Mapping) and start.get("teacher", own.get("teacher")) != own.get("teacher"):
        base["warm_start"] = {k: v for k, v in own.items() if k != "options"}  # they are one teacher's
    return from_mapping(RunConfig, merge(base, overrides), where)
