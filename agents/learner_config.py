"""Fields of a run that say how a network learns: `learner`, `on_policy`, `dqn`, `warm_start`."""

from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from splitgym.config import STRICT


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
    """Begin with the network of this bundle (of the same width, and the same prior or none; a joint run also
    with one that only resizes); its value, which a bundle does not hold, begins anew: `warm_start.fits:
    value` teaches it.
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
    """PPO, MaskablePPO, RecurrentPPO and A2C."""

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
