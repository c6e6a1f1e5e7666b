"""Policies that score machines with one shared network, so that the order and the number of machines do not
matter.

Observation (a Dict): `machines` (M, F), `cluster` (G,), `request` (R,), `mask` (M,) with 1 for real machines.
Each machine is encoded with the cluster's and the request's features beside its own; the mean and the maximum
over real machines are the context of all scores. The value has a network of its own, and the gradients of the
two are clipped
apart: clipped together, the value's large gradients froze the policy (see docs/training.md).
"""

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

Observation = dict[str, th.Tensor]


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
        self.own = _linear(own, hidden)
        self.shared = nn.Linear(shared, hidden, bias=False)
        self.second = _linear(hidden, hidden)
        self.context = _linear(2 * hidden + shared, hidden)

    def forward(self, obs: Observation) -> tuple[th.Tensor, th.Tensor]:
        """(B, M, hidden) machines and (B, hidden) context; padded machines have no part in the context."""
        shared = th.cat([obs["cluster"], obs["request"]], dim=1)
        real = obs["mask"].unsqueeze(2) > 0
        code = th.relu(self.own(obs["machines"]) + self.shared(shared).unsqueeze(1))
        code = th.relu(self.second(code)) * real
        # Codes are >= 0, so the zeros of padded machines leave the maximum alone.
        mean = code.sum(dim=1) / real.sum(dim=1).clamp(min=1)
        pooled = th.cat([mean, code.amax(dim=1), shared], dim=1)
        return code, th.relu(self.context(pooled))


class DecisionNet(nn.Module):
    """Logits of pairs and sizes. See `DecisionDistribution`."""

    def __init__(self, space: spaces.Dict, shape: DecisionShape, hidden: int) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = MachineEncoder(space, hidden)
        if shape.places:
            self.machine = _linear(hidden, hidden)
            self.around = nn.Linear(hidden, hidden, bias=False)
            self.scores = _linear(hidden, 3, gain=0.01)  # as prompt machine, as token machine, as both
        if shape.sizes:
            self.sizes = nn.Sequential(
                _linear(hidden, hidden), nn.ReLU(), _linear(hidden, shape.sizes, gain=0.01)
            )

    def forward(self, obs: Observation) -> tuple[th.Tensor | None, th.Tensor | None]:
        """(B, N, N) logits of pairs or None, (B, S) logits of sizes or None. Padded machines get `MASKED`."""
        code, context = self.encoder(obs)
        pair = self._pairs(code, context, obs["mask"] > 0) if self.shape.places else None
        return pair, self.sizes(context) if self.shape.sizes else None

    def _pairs(self, code: th.Tensor, context: th.Tensor, real: th.Tensor) -> th.Tensor:
        scores = self.scores(th.relu(self.machine(code) + self.around(context).unsqueeze(1)))
        prompt, token, both = scores.unbind(dim=2)  # (B, M) each
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

    def __init__(self, *args: Any, hidden: int = 64, max_group_norm: float = 0.5, **kwargs: Any) -> None:
        self.hidden = hidden
        self.max_group_norm = max_group_norm
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        space = self.observation_space
        shape = DecisionShape(self.action_space, space["mask"].shape[0])  # type: ignore[index]
        self.action_dist = DecisionDistribution(shape)
        self.decision_net = DecisionNet(space, shape, self.hidden)
        self.value_only = ValueNet(space, self.hidden)
        groups = [
            {"params": list(self.decision_net.parameters())},
            {"params": list(self.value_only.parameters())},
        ]
        self.optimizer = ClippedAdam(groups, max_group_norm=self.max_group_norm, lr=lr_schedule(1), eps=1e-5)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data: dict[str, Any] = super()._get_constructor_parameters()  # type: ignore[misc]
        return {**data, "hidden": self.hidden, "max_group_norm": self.max_group_norm}

    def get_distribution(self, obs: Any, action_masks: Masks = None) -> DecisionDistribution:
        """The distribution over decisions."""
        distribution = DecisionDistribution(self.action_dist.shape)
        distribution.proba_distribution(*self.decision_net(obs))
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
        """Values, log-probabilities and entropies of recorded actions."""
        distribution = self.get_distribution(obs, action_masks)
        return self.value_only(obs), distribution.log_prob(actions), distribution.entropy()

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
