"""One frozen dataclass that holds every knob of a training run. Read from YAML and the command line; unknown
keys are errors. A run folder keeps the resolved one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from agents.evolution_config import EvolutionConfig
from agents.learner_config import DqnConfig, LearnerConfig, OnPolicyConfig, WarmStartConfig
from splitgym import saturation
from splitgym.config import STRICT, ClusterConfig, from_mapping
from splitgym.errors import ConfigError

Algo = Literal["ppo", "maskable_ppo", "recurrent_ppo", "dqn", "a2c", "es", "cem"]
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
    """`many` gives each environment a cluster, and each episode a workload and a load, drawn as `evolution`
    says (`clusters`, `machines`, `mixed`, `models`, `switch_delays_s`, `workloads`, `loads`), and judges on
    its scenarios.
    """
    prior: str | None = None
    """Begin as an index or residual scheduler, and learn what to add to its costs: `index`, `index-tuned`,
    `pretrained:routing`, or the folder of a bundle or of an `es` or `cem` run. Kept in the run folder.
    """


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
    """Algorithm. All but MaskablePPO do not see the action masks in training; what they choose in vain is
    mapped and counted. RecurrentPPO is for pool sizing.
    """
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
    """PPO, MaskablePPO, RecurrentPPO and A2C."""
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
        if self.algo == "recurrent_ppo" and (
            self.env != "pool_sizing"
            or self.warm_start.teacher
            or self.learner.start
            or self.on_policy.start_kl
        ):
            raise ValueError(
                "recurrent_ppo learns env pool_sizing from nothing: its decisions come at equal times; leave "
                "out warm_start.teacher, learner.start and on_policy.start_kl, which know no memory"
            )
        if self.evolution.start_sizing is not None and self.env != "joint":
            raise ValueError("evolution.start_sizing is for env joint; elsewhere use evolution.start")
        if self.evolution.profile_error and self.algo not in EVOLVED:
            raise ValueError("evolution.profile_error is for es and cem: environments show true profiles")
        if self.environment.flat and self.env != "routing":
            raise ValueError(f"environment.flat is for routing; {self.env} has one action space only")
        if self.warm_start.teacher and self.algo in ("dqn", *EVOLVED):
            raise ValueError("warm_start clones into a ppo, maskable_ppo or a2c policy only")
        if self.warm_start.sizing and self.env != "joint":
            raise ValueError(
                "warm_start.sizing is for env joint; elsewhere warm_start.teacher is who teaches"
            )
        if self.environment.worlds == "many" and (
            self.algo in ("dqn", *EVOLVED) or self.learner.vec != "in-process"
        ):
            raise ValueError("environment.worlds: many is for ppo, maskable_ppo or a2c, in process")
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
