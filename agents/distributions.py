"""The distribution over decisions: a pair of machines, a number of machines to move, or both.

A pair (p, t) is drawn from one softmax over all pairs with logits `a[p] + b[t] + s[p] * (p == t)`. That is
the shape of the index scheduler's cost (`A(p) + B(t)`, with another B when p = t), which two independent
categoricals, as stable-baselines3 would use for MultiDiscrete, cannot express.
"""

from typing import Any

import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib.common.maskable.distributions import MaskableDistribution
from torch import nn

from splitgym.errors import ConfigError

MASKED = -1e8
"""Logit of what cannot be chosen: its probability is exactly 0 in float32."""

Masks = th.Tensor | NDArray[Any] | None


class DecisionShape:
    """What a decision consists of, read from an action space.

    Attributes:
        places: choices for each machine of the pair (M, or M + 1 where the last means "does not apply"); 0
            for none.
        sizes: choices for the machines to move; 0 for none.
        flat: the pair is one integer `p * places + t`.
    """

    def __init__(self, action_space: spaces.Space[Any], max_machines: int) -> None:
        self.places, self.sizes, self.flat = 0, 0, False
        if isinstance(action_space, spaces.MultiDiscrete) and len(action_space.nvec) in (2, 3):
            self.places = int(action_space.nvec[0])
            self.sizes = int(action_space.nvec[2]) if len(action_space.nvec) == 3 else 0
        elif isinstance(action_space, spaces.Discrete) and int(action_space.n) == max_machines**2:
            self.places, self.flat = max_machines, True
        elif isinstance(action_space, spaces.Discrete):
            self.sizes = int(action_space.n)
        else:
            raise ConfigError(f"no policy for the action space {action_space}")

    @property
    def mask_dims(self) -> int:
        """Length of an action mask."""
        return self.places**2 if self.flat else 2 * self.places + self.sizes


class DecisionDistribution(MaskableDistribution):
    """One softmax over pairs and one over sizes; either may be absent. Masks as sb3-contrib lays them out."""

    def __init__(self, shape: DecisionShape) -> None:
        super().__init__()
        self.shape = shape
        self.pair: th.Tensor | None = None  # (B, N * N) log-probabilities
        self.size: th.Tensor | None = None  # (B, S) log-probabilities
        self.random: th.Generator | None = None  # samples are drawn from it; None is torch's global one

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The policy's own network makes the logits."""
        return nn.Identity()

    def proba_distribution(  # type: ignore[override]
        self, pair: th.Tensor | None, size: th.Tensor | None
    ) -> "DecisionDistribution":
        """Set the logits.

        Args:
            pair: (B, N, N) or None.
            size: (B, S) or None.
        """
        self.pair = None if pair is None else th.log_softmax(pair.flatten(1), dim=1)
        self.size = None if size is None else th.log_softmax(size, dim=1)
        return self

    def apply_masking(self, masks: Masks) -> None:
        """Give what is masked (0 or False) probability 0.

        Args:
            masks: (B, mask_dims): prompt machines, token machines, sizes; of a flat pair (B, N * N).
        """
        if masks is None:
            return
        allowed = th.as_tensor(masks).bool().reshape(-1, self.shape.mask_dims)
        n = self.shape.places
        if self.pair is not None:
            if self.shape.flat:
                pairs = allowed
            else:
                pairs = (allowed[:, :n, None] & allowed[:, None, n : 2 * n]).flatten(1)
            self.pair = th.log_softmax(self.pair.masked_fill(~pairs, MASKED), dim=1)
        if self.size is not None:
            sizes = allowed[:, 0 if self.pair is None else 2 * n :]
            self.size = th.log_softmax(self.size.masked_fill(~sizes, MASKED), dim=1)

    def sharpen(self, temperature: float) -> None:
        """Divide the logits by `temperature` (> 0)."""
        if self.pair is not None:
            self.pair = th.log_softmax(self.pair / temperature, dim=1)
        if self.size is not None:
            self.size = th.log_softmax(self.size / temperature, dim=1)

    def _actions(self, pair: th.Tensor | None, size: th.Tensor | None) -> th.Tensor:
        columns: list[th.Tensor] = []
        if pair is not None:
            columns = [pair] if self.shape.flat else [pair // self.shape.places, pair % self.shape.places]
        if size is not None:
            columns.append(size)
        return columns[0] if len(columns) == 1 else th.stack(columns, dim=1)

    def sample(self) -> th.Tensor:
        """Actions (B,) or (B, 2) or (B, 3)."""

        def draw(log_probs: th.Tensor | None) -> th.Tensor | None:
            if log_probs is None:
                return None
            return th.multinomial(log_probs.exp(), 1, generator=self.random).squeeze(1)

        return self._actions(draw(self.pair), draw(self.size))

    def mode(self) -> th.Tensor:
        """The likeliest actions; the lowest index on ties."""

        def best(log_probs: th.Tensor | None) -> th.Tensor | None:
            return None if log_probs is None else log_probs.argmax(dim=1)

        return self._actions(best(self.pair), best(self.size))

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """(B,) log-probability of `actions`."""
        columns = actions.long().reshape(actions.shape[0], -1)
        total = th.zeros(len(columns))
        if self.pair is not None:
            index = columns[:, 0] if self.shape.flat else columns[:, 0] * self.shape.places + columns[:, 1]
            total = total + self.pair.gather(1, index[:, None]).squeeze(1)
        if self.size is not None:
            total = total + self.size.gather(1, columns[:, -1:]).squeeze(1)
        return total

    def entropy(self) -> th.Tensor:
        """(B,) entropy; what is masked adds nothing."""
        parts = [x for x in (self.pair, self.size) if x is not None]
        return th.stack([-(x.exp() * x).sum(dim=1) for x in parts]).sum(dim=0)

    def divergence(self, other: "DecisionDistribution") -> th.Tensor:
        """(B,) KL(self || other) [nats]; both under the same mask, and what is masked adds nothing."""
        pairs = [(a, b) for a, b in ((self.pair, other.pair), (self.size, other.size)) if a is not None]
        parts = [(a.exp() * (a - b)).sum(dim=1) for a, b in pairs if b is not None]
        return th.stack(parts).sum(dim=0)

    def actions_from_params(self, *args: Any, deterministic: bool = False, **kwargs: Any) -> th.Tensor:
        """See `Distribution`."""
        return self.proba_distribution(*args, **kwargs).get_actions(deterministic=deterministic)

    def log_prob_from_params(self, *args: Any, **kwargs: Any) -> tuple[th.Tensor, th.Tensor]:
        """See `Distribution`."""
        actions = self.actions_from_params(*args, **kwargs)
        return actions, self.log_prob(actions)
