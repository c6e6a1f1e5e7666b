"""PPO with a memory for pool sizing: sb3-contrib's RecurrentPPO over the pooled context of our encoder.

What an LSTM may add is what one observation does not hold: how the load moved, and what was done before.
Ticks of pool sizing come at equal times, so its step always means the same. Routing and joint decisions do
not, and are refused. The masks are obeyed when it decides; in training what is chosen in vain is mapped, as
for `ppo`.
"""

from typing import Any

import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from agents.discounting import RealTimeRollout
from agents.distributions import DecisionDistribution, DecisionShape
from agents.policies import ClippedAdam, MachineEncoder

States = tuple[th.Tensor, th.Tensor]
"""Hidden and cell state of an LSTM, (layers, sequences, hidden) each."""


class Context(BaseFeaturesExtractor):
    """The pooled context of the machines, see `MachineEncoder`.

    Args:
        space: the observation space.
        hidden: width.
    """

    def __init__(self, space: spaces.Dict, hidden: int) -> None:
        super().__init__(space, hidden)
        self.encoder = MachineEncoder(space, hidden)

    def forward(self, obs: dict[str, th.Tensor]) -> th.Tensor:
        """(B, hidden)."""
        context: th.Tensor = self.encoder(obs)[1]
        return context


class RecurrentScorerPolicy(RecurrentActorCriticPolicy):
    """An encoder and an LSTM for the sizes, and others for the value; their gradients are clipped apart.

    `decide` remembers from call to call; `forget` begins an episode.

    Args:
        hidden: width of encoders and LSTMs.
        max_group_norm: of the gradients of either.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        hidden: int = 64,
        max_group_norm: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            features_extractor_class=Context,
            features_extractor_kwargs={"hidden": hidden},
            share_features_extractor=False,
            lstm_hidden_size=hidden,
            **kwargs,
        )
        self.memory: tuple[th.Tensor, ...] | None = None
        value: list[Any] = [self.vf_features_extractor, self.lstm_critic, self.value_net]
        actor = [self.pi_features_extractor, self.lstm_actor, self.action_net]
        groups = [{"params": [p for part in parts for p in part.parameters()]} for parts in (actor, value)]
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer = ClippedAdam(groups, max_group_norm=max_group_norm, lr=rate, eps=1e-5)

    @staticmethod
    def _process_sequence(  # type: ignore[override]  # sb3-contrib's says one tensor, and returns these
        features: th.Tensor, lstm_states: States, episode_starts: th.Tensor, lstm: nn.LSTM
    ) -> tuple[th.Tensor, States]:
        """As its base class does, which goes step by step wherever an episode begins. The buffer cuts
        sequences there, so it is enough to clear the state in front of one.
        """
        count = lstm_states[0].shape[1]
        starts = episode_starts.reshape(count, -1)
        if bool((starts[:, 1:] == 0).all()):
            going_on = (1.0 - starts[:, 0]).view(1, count, 1)
            lstm_states = (going_on * lstm_states[0], going_on * lstm_states[1])
            episode_starts = th.zeros_like(episode_starts)
        base: Any = RecurrentActorCriticPolicy
        found: tuple[th.Tensor, States] = base._process_sequence(features, lstm_states, episode_starts, lstm)
        return found

    def forget(self) -> None:
        """Episodes begin."""
        self.memory = None

    def decide(
        self, obs: dict[str, Any], masks: Any, temperature: float, random: th.Generator | None = None
    ) -> Any:
        """Actions for the next observation of each episode of a batch, as `agents.policies` decides.

        Args:
            obs: arrays with a leading batch axis, the same episodes as at the last call, or after `forget`.
            masks: (B, 2K + 1) or None.
            temperature: 1 samples as in training, 0 takes the likeliest.
            random: what samples are drawn with; None is torch's global generator.
        """
        seen: Any = obs_as_tensor(obs, th.device("cpu"))
        made: Any
        count = len(obs["mask"])
        with th.no_grad():
            if self.memory is None:
                empty = th.zeros(self.lstm_actor.num_layers, count, self.lstm_actor.hidden_size)
                self.memory = (empty, empty)
            made, self.memory = self.get_distribution(seen, (self.memory[0], self.memory[1]), th.zeros(count))
            distribution = DecisionDistribution(DecisionShape(self.action_space, obs["mask"].shape[1]))
            distribution.proba_distribution(None, made.distribution.logits)
            distribution.apply_masking(masks)
            distribution.random = random
            if temperature > 0:
                distribution.sharpen(temperature)
            return distribution.get_actions(deterministic=temperature <= 0).numpy()


class RealTimeRecurrentRolloutBuffer(RealTimeRollout, RecurrentDictRolloutBuffer):  # type: ignore[misc]
    """For RecurrentPPO."""


class RealTimeRecurrentPPO(RecurrentPPO):
    """RecurrentPPO, which has no choice of buffers, with the one that discounts by time.

    Args:
        rollout_buffer_kwargs: see `agents.discounting`.
    """

    def __init__(self, *args: Any, rollout_buffer_kwargs: dict[str, Any], **kwargs: Any) -> None:
        self.real_time = rollout_buffer_kwargs
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        plain: Any = self.rollout_buffer
        self.rollout_buffer = RealTimeRecurrentRolloutBuffer(
            plain.buffer_size,
            self.observation_space,
            self.action_space,
            plain.hidden_state_shape,
            self.device,
            n_envs=self.n_envs,
            **self.real_time,
        )


def forget(policy: Any) -> None:
    """Episodes begin: of a policy with a memory, drop it."""
    if isinstance(policy, RecurrentScorerPolicy):
        policy.forget()
