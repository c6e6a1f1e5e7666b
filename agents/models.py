"""From a configuration and two spaces to a stable-baselines3 model, and its parameters from a zip."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.save_util import load_from_zip_file
from torch import nn

from agents.config import RunConfig, rates
from agents.discounting import RealTimeMaskableRolloutBuffer, RealTimeReplayBuffer, RealTimeRolloutBuffer
from agents.policies import DecisionNet, MaskableScorerPolicy, ScorerPolicy
from agents.recurrent import RealTimeRecurrentPPO, RecurrentScorerPolicy
from splitgym import policy as bundles
from splitgym.errors import ConfigError
from splitgym.policy.runtimes import ScorerRuntime

COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_n_calls")
"""Attributes of a model that a checkpoint keeps beside its tensors."""

NO_CLIPPING = float("inf")
"""For stable-baselines3's joint clipping: `ClippedAdam` clips each group instead."""


@dataclass(frozen=True)
class Falling:
    """A learning rate that falls linearly from `start` to `end` over the run."""

    start: float
    end: float

    def __call__(self, progress_remaining: float) -> float:
        return self.end + max(0.0, progress_remaining) * (self.start - self.end)


def reward_scale(config: RunConfig) -> float:
    """What rewards are multiplied by: as configured, or such that a discounted sum is about 1."""
    if config.learner.reward_scale is not None:
        return config.learner.reward_scale
    if config.environment.worlds == "many":
        return 1.0  # `agents.worlds` divides by each cluster's own rate
    rate = rates(config)
    if rate is None:
        rate = 5.0  # the Azure traces' own rates are 2.5 and 5.4 requests/s
    if isinstance(rate, tuple):
        rate = (rate[0] + rate[1]) / 2
    return 1.0 / (rate * config.learner.discount_s)


def build_model(
    config: RunConfig,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    env: Any = None,
    prior: Sequence[float] = (),
) -> Any:
    """A fresh model.

    Args:
        config: the run.
        observation_space, action_space: of the environment.
        env: a VecEnv to learn in, or None to decide only.
        prior: weights of `environment.prior` (`agents.priors.find_prior`).
    """
    # One thread is 2.6 to 3.2 times faster than two on networks of this size.
    th.set_num_threads(1)
    learner = config.learner
    rate = Falling(learner.learning_rate, learner.learning_rate_end)
    common: dict[str, Any] = {"learning_rate": rate, "seed": config.seed, "device": "cpu", "verbose": 0}
    algorithm, options = _dqn(config) if config.algo == "dqn" else _on_policy(config, prior)
    made: Any = algorithm(env=env, **common, **options, _init_setup_model=env is not None)
    if env is None:
        made.observation_space, made.action_space, made.n_envs = observation_space, action_space, 1
        _shrink(made)
        made._setup_model()
    return made


def _shrink(model: Any) -> None:
    """A model that only decides needs no room for what it would learn from."""
    if isinstance(model, DQN):
        model.buffer_size = 1
    else:
        model.n_steps = 2


def _on_policy(config: RunConfig, prior: Sequence[float]) -> tuple[Any, dict[str, Any]]:
    own, learner = config.on_policy, config.learner
    maskable = config.algo == "maskable_ppo"
    options: dict[str, Any] = {
        "policy": MaskableScorerPolicy if maskable else ScorerPolicy,
        "policy_kwargs": {
            "hidden": learner.hidden,
            "max_group_norm": own.max_group_norm,
            "prior": tuple(prior),
            "prior_scale": learner.prior_scale,
            "pulled": own.start_kl > 0,
        },
        "n_steps": own.n_steps,
        "ent_coef": 1.0 if own.start_kl > 0 else own.ent_coef,  # see `_Scorer.keep_start`
        "vf_coef": own.vf_coef,
        "max_grad_norm": NO_CLIPPING,
        "rollout_buffer_class": RealTimeMaskableRolloutBuffer if maskable else RealTimeRolloutBuffer,
        "rollout_buffer_kwargs": {
            "discount_s": learner.discount_s,
            "trace_s": own.trace_s,
            "reward_scale": reward_scale(config),
        },
    }
    if config.algo == "a2c":
        # Its own RMSprop would replace the optimizer that clips each group.
        return A2C, {**options, "use_rms_prop": False, "normalize_advantage": True}
    options |= {
        "batch_size": min(own.batch_size, own.n_steps * learner.num_envs),
        "n_epochs": own.n_epochs,
        "clip_range": own.clip_range,
        "target_kl": own.target_kl,
    }
    if config.algo == "recurrent_ppo":
        kept = {name: options["policy_kwargs"][name] for name in ("hidden", "max_group_norm")}
        del options["rollout_buffer_class"]  # it brings its own
        return RealTimeRecurrentPPO, {**options, "policy": RecurrentScorerPolicy, "policy_kwargs": kept}
    return (MaskablePPO if maskable else PPO), options


def _dqn(config: RunConfig) -> tuple[Any, dict[str, Any]]:
    own, hidden = config.dqn, config.learner.hidden
    return DQN, {
        "policy": "MultiInputPolicy",
        "policy_kwargs": {"net_arch": [hidden, hidden]},
        "buffer_size": own.buffer_size,
        "learning_starts": own.learning_starts,
        "batch_size": own.batch_size,
        "train_freq": own.train_freq,
        "gradient_steps": own.gradient_steps,
        "target_update_interval": own.target_update_interval,
        "exploration_fraction": own.exploration_fraction,
        "exploration_final_eps": own.exploration_final_eps,
        "replay_buffer_class": RealTimeReplayBuffer,
        "replay_buffer_kwargs": {
            "discount_s": config.learner.discount_s,
            "reward_scale": reward_scale(config),
            "seed": config.seed,
        },
    }


def load_parameters(model: Any, path: Path) -> None:
    """Set a model's networks and optimizer to what a zip holds. Only tensors are read, nothing is unpickled.

    Raises:
        ConfigError: the zip cannot be read, or belongs to another configuration.
    """
    try:
        _, parameters, _ = load_from_zip_file(path, device="cpu", load_data=False)
        model.set_parameters(parameters, exact_match=True, device="cpu")
    except Exception as error:  # zip, torch and SB3 each raise their own kinds
        raise ConfigError(f"{path} does not fit its run's config.yaml ({error})") from None


def load_network(model: Any, bundle: str) -> None:
    """Set a model's decisions to the network of a bundle. Its value stays as it is.

    A joint model can begin with a network that resizes pools: it gives its encoder and its sizes, and who is
    routed where stays as it is, which with a prior is the prior's decision.

    Raises:
        ConfigError: the bundle holds no network of ours, or one of another shape.
    """
    policy = bundles.load(bundles.locate(bundle))
    runtime = getattr(policy, "runtime", None)
    if not isinstance(runtime, ScorerRuntime):
        raise ConfigError(f"{bundle} holds no network that `splitgym export` wrote with weights.npz")
    tensors = {name: th.as_tensor(np.array(array)) for name, array in runtime.weights.items()}
    if len(policy.prior):  # type: ignore[attr-defined]
        tensors["prior"] = th.as_tensor(policy.prior, dtype=th.float32)  # type: ignore[attr-defined]
    net: DecisionNet = model.policy.decision_net
    if policy.manifest.action.kind == "pool_sizing" and net.shape.places:
        tensors = _beside_pairs(tensors, net.state_dict())
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ConfigError(f"{bundle} does not fit learner.start of this run ({error})") from None


def _beside_pairs(sizes: dict[str, th.Tensor], fresh: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
    """A network that only resizes as a part of one that also routes. Its encoder knows no costs of a prior,
    the last columns of what a machine shows: it begins without looking at them.
    """
    own = sizes["encoder.own.weight"]
    unseen = fresh["encoder.own.weight"].shape[1] - own.shape[1]
    return {**fresh, **sizes, "encoder.own.weight": nn.functional.pad(own, (0, max(0, unseen)))}


def counters(model: Any) -> dict[str, int]:
    """The counters that a checkpoint keeps."""
    return {name: int(getattr(model, name)) for name in COUNTERS if hasattr(model, name)}
