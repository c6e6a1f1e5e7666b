"""Policies that score machines with one shared network, so that the order and the number of machines do not
matter.

Observation (a Dict): `machines` (M, F), `cluster` (G,), `request` (R,), `mask` (M,) with 1 for real machines.
Each machine is encoded with the cluster's and the request's features beside its own; the mean and the maximum
over real machines are the context of all scores. The value has a network of its own, and the gradients of the
two are clipped apart: clipped together, the value's large gradients froze the policy (see docs/training.md).

With a prior the observation also holds `prior` (M, 3), the costs of an index or residual scheduler
(`splitgym.observation.prior`). Their negatives, times `prior_scale`, are added to the logits, and the
network's last layer begins at 0: the likeliest decision is the scheduler's until the network knows better.

`pull` keeps learning near where it began: see `_Scorer.keep_start`.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from agents.distributions import MASKED, DecisionDistribution, DecisionShape, Masks
from splitgym.errors import ConfigError

Observation = dict[str, th.Tensor]

PRIOR_COLUMNS = 3
PRIOR_SQUASH = 0.25
"""As features, costs of a prior are squashed: x / (x + 0.25)."""


class ClippedAdam(th.optim.Adam):
    """Adam that first clips the gradient norm of each parameter group by itself."""

    def __init__(self, params: Any, max_group_norm: float = 0.5, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self.max_group_norm = max_group_norm

    def step(self, closure: Any = None) -> Any:
        """One update."""
        for group in self.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.max_group_norm)
        return super().step(closure)


def _linear(inputs: int, outputs: int, gain: float = np.sqrt(2)) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain=gain)
    nn.init.zeros_(layer.bias)
    return layer


class MachineEncoder(nn.Module):
    """Machines, each with the shared features beside its own, and their pooled context.

    Args:
        space: the observation space.
        hidden: width.
    """

    def __init__(self, space: spaces.Dict, hidden: int) -> None:
        super().__init__()
        own = space["machines"].shape[1]  # type: ignore[index]
        shared = space["cluster"].shape[0] + space["request"].shape[0]  # type: ignore[index]
        self.with_prior = "prior" in space.spaces
        own += PRIOR_COLUMNS * self.with_prior
        self.own = _linear(own, hidden)
        self.shared = nn.Linear(shared, hidden, bias=False)
        self.second = _linear(hidden, hidden)
        self.context = _linear(2 * hidden + shared, hidden)

    def forward(self, obs: Observation) -> tuple[th.Tensor, th.Tensor]:
        """(B, M, hidden) machines and (B, hidden) context; padded machines have no part in the context."""
        shared = th.cat([obs["cluster"], obs["request"]], dim=1)
        real = obs["mask"].unsqueeze(2) > 0
        own = obs["machines"]
        if self.with_prior:
            own = th.cat([own, obs["prior"] / (obs["prior"] + PRIOR_SQUASH)], dim=2)
        code = th.relu(self.own(own) + self.shared(shared).unsqueeze(1))
        code = th.relu(self.second(code)) * real
        # Codes are >= 0, so the zeros of padded machines leave the maximum alone.
        mean = code.sum(dim=1) / real.sum(dim=1).clamp(min=1)
        pooled = th.cat([mean, code.amax(dim=1), shared], dim=1)
        return code, th.relu(self.context(pooled))


class DecisionNet(nn.Module):
    """Logits of pairs and sizes. See `DecisionDistribution`.

    Args:
        space: the observation space.
        shape: of a decision.
        hidden: width.
        prior: weights of the prior, empty for none; kept with the network's, which is nothing without them.
        prior_scale: what the prior's costs are multiplied by.
    """

    prior: th.Tensor
    prior_scale: th.Tensor

    def __init__(
        self,
        space: spaces.Dict,
        shape: DecisionShape,
        hidden: int,
        prior: Sequence[float] = (),
        prior_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = MachineEncoder(space, hidden)
        self.with_prior = bool(len(prior)) and shape.places > 0
        if self.encoder.with_prior != bool(len(prior)):
            raise ConfigError("a policy has a prior where its observations hold one, and only there")
        if len(prior):
            self.register_buffer("prior", th.tensor(prior, dtype=th.float32))
            self.register_buffer("prior_scale", th.tensor([prior_scale], dtype=th.float32))
        if shape.places:
            self.machine = _linear(hidden, hidden)
            self.around = nn.Linear(hidden, hidden, bias=False)
            self.scores = _linear(hidden, 3, gain=0.01)  # as prompt machine, as token machine, as both
            if self.with_prior:
                nn.init.zeros_(self.scores.weight)
        if shape.sizes:
            self.sizes = nn.Sequential(
                _linear(hidden, hidden), nn.ReLU(), _linear(hidden, shape.sizes, gain=0.01)
            )

    def forward(self, obs: Observation) -> tuple[th.Tensor | None, th.Tensor | None]:
        """(B, N, N) logits of pairs or None, (B, S) logits of sizes or None. Padded machines get `MASKED`."""
        code, context = self.encoder(obs)
        pair = self._pairs(obs, code, context) if self.shape.places else None
        return pair, self.sizes(context) if self.shape.sizes else None

    def machine_scores(self, obs: Observation, code: th.Tensor, context: th.Tensor) -> th.Tensor:
        """(B, M, 3) scores as prompt machine, as token machine, and what is added where it is both."""
        scores: th.Tensor = self.scores(th.relu(self.machine(code) + self.around(context).unsqueeze(1)))
        if self.with_prior:
            prompt, split, same = obs["prior"].unbind(dim=2)
            scores = scores - self.prior_scale * th.stack([prompt, split, same - split], dim=2)
        return scores

    def _pairs(self, obs: Observation, code: th.Tensor, context: th.Tensor) -> th.Tensor:
        real = obs["mask"] > 0
        prompt, token, both = self.machine_scores(obs, code, context).unbind(dim=2)  # (B, M) each
        logits = prompt.unsqueeze(2) + token.unsqueeze(1) + th.diag_embed(both)
        logits = logits.masked_fill(~(real.unsqueeze(2) & real.unsqueeze(1)), MASKED)
        if self.shape.places > code.shape[1]:  # "does not apply": alone, not with a machine
            logits = nn.functional.pad(logits, (0, 1, 0, 1), value=MASKED)
            logits[:, -1, -1] = 0.0
        return logits


class ValueNet(nn.Module):
    """State value from the pooled context."""

    def __init__(self, space: spaces.Dict, hidden: int) -> None:
        super().__init__()
        self.encoder = MachineEncoder(space, hidden)
        self.head = nn.Sequential(_linear(hidden, hidden), nn.ReLU(), _linear(hidden, 1, gain=0.1))

    def forward(self, obs: Observation) -> th.Tensor:
        """(B, 1)."""
        value: th.Tensor = self.head(self.encoder(obs)[1])
        return value


class _Scorer:
    """What both policies share. Mixed into stable-baselines3's classes, whose networks it replaces."""

    observation_space: spaces.Dict
    action_space: spaces.Space[Any]
    decision_net: DecisionNet
    value_only: ValueNet
    start_net: DecisionNet

    def __init__(
        self,
        *args: Any,
        hidden: int = 64,
        max_group_norm: float = 0.5,
        prior: Sequence[float] = (),
        prior_scale: float = 1.0,
        pulled: bool = False,
        **kwargs: Any,
    ) -> None:
        self.hidden = hidden
        self.max_group_norm = max_group_norm
        self.prior = tuple(prior)
        self.prior_scale = prior_scale
        self.pulled = pulled
        self.pull = self.entropy_weight = 0.0
        self.divergences: list[float] = []
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        space = self.observation_space
        shape = DecisionShape(self.action_space, space["mask"].shape[0])  # type: ignore[index]
        self.action_dist = DecisionDistribution(shape)
        self.decision_net = DecisionNet(space, shape, self.hidden, self.prior, self.prior_scale)
        self.value_only = ValueNet(space, self.hidden)
        if self.pulled:
            self.keep_start()
        groups = [
            {"params": list(self.decision_net.parameters())},
            {"params": list(self.value_only.parameters())},
        ]
        self.optimizer = ClippedAdam(groups, max_group_norm=self.max_group_norm, lr=lr_schedule(1), eps=1e-5)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data: dict[str, Any] = super()._get_constructor_parameters()  # type: ignore[misc]
        own = ("hidden", "max_group_norm", "prior", "prior_scale", "pulled")
        return {**data, **{name: getattr(self, name) for name in own}}

    def keep_start(self) -> None:
        """From now on, `pull` is towards the decisions of the network as it is now.

        stable-baselines3's losses have one place for a bonus, the entropy's. A policy made with `pulled`
        fills it, at weight 1, with `entropy_weight` x entropy - `pull` x KL(now || start).
        """
        self.start_net = copy.deepcopy(self.decision_net).requires_grad_(False)

    def get_distribution(self, obs: Any, action_masks: Masks = None) -> DecisionDistribution:
        """The distribution over decisions."""
        return self._distribution(self.decision_net, obs, action_masks)

    def _distribution(self, net: DecisionNet, obs: Any, action_masks: Masks) -> DecisionDistribution:
        distribution = DecisionDistribution(self.action_dist.shape)
        distribution.proba_distribution(*net(obs))
        distribution.apply_masking(action_masks)
        return distribution

    def forward(
        self, obs: Any, deterministic: bool = False, action_masks: Masks = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Actions, values (B, 1), log-probabilities (B,)."""
        distribution = self.get_distribution(obs, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.value_only(obs), distribution.log_prob(actions)

    def evaluate_actions(
        self, obs: Any, actions: th.Tensor, action_masks: Masks = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Values, log-probabilities and entropies (of a pulled policy: bonuses) of recorded actions."""
        distribution = self.get_distribution(obs, action_masks)
        bonus = distribution.entropy()
        if self.pulled:
            with th.no_grad():
                start = self._distribution(self.start_net, obs, action_masks)
            divergence = distribution.divergence(start)
            self.divergences.append(float(divergence.detach().mean()))
            bonus = self.entropy_weight * bonus - self.pull * divergence
        return self.value_only(obs), distribution.log_prob(actions), bonus

    def predict_values(self, obs: Any) -> th.Tensor:
        """(B, 1)."""
        return self.value_only(obs)

    def decide(
        self, obs: dict[str, Any], masks: Any, temperature: float, random: th.Generator | None = None
    ) -> Any:
        """Actions for a batch of observations: sampled at a temperature, the likeliest at 0.

        Args:
            obs: arrays with a leading batch axis.
            masks: (B, mask_dims) or None.
            temperature: 1 samples as in training.
            random: what samples are drawn with; None is torch's global generator.
        """
        with th.no_grad():
            distribution = self.get_distribution(obs_as_tensor(obs, th.device("cpu")), masks)
            distribution.random = random
            if temperature > 0:
                distribution.sharpen(temperature)
            return distribution.get_actions(deterministic=temperature <= 0).numpy()


class ScorerPolicy(_Scorer, ActorCriticPolicy):  # type: ignore[misc]
    """For PPO and A2C."""


class MaskableScorerPolicy(_Scorer, MaskableActorCriticPolicy):  # type: ignore[misc]
    """For MaskablePPO."""
