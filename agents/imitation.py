"""Warm start: clone a heuristic into a policy, and learn the value of following it.

Each round plays episodes in the training environments. In the first the teacher decides; in later ones the
clone does, and the teacher says what it would have done (DAgger), so that the clone also sees the states that
its own mistakes lead to. After each round the policy is fitted to all decisions so far (cross-entropy over
what the mask allows), and the value to the discounted rewards that followed.

Rare decisions can weigh more (`warm_start.balance`): a sizing rule does nothing at most ticks, and a clone of
it that never does anything agrees with it almost always.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch as th
from numpy.typing import NDArray

from agents.distributions import DecisionShape
from agents.learner_config import WarmStartConfig

Floats = NDArray[np.float32]


class Teacher(Protocol):
    """Says, at any decision of an environment, what it would do."""

    def begin(self, env: Any, seed: int) -> None:
        """An episode of this environment begins."""

    def action(self, env: Any) -> Any:
        """An action of the environment's space for its pending decision."""


@dataclass
class Decisions:
    """Recorded decisions, stacked."""

    observations: dict[str, Floats]  # each (N, ...)
    masks: NDArray[np.bool_]  # (N, mask_dims)
    actions: NDArray[np.int64]  # (N,) or (N, parts)
    returns: Floats  # (N,) discounted rewards that followed, scaled as in learning

    def __len__(self) -> int:
        return len(self.actions)

    @classmethod
    def join(cls, parts: list["Decisions"]) -> "Decisions":
        """All of them."""
        keys = parts[0].observations
        return cls(
            {key: np.concatenate([p.observations[key] for p in parts]) for key in keys},
            np.concatenate([p.masks for p in parts]),
            np.concatenate([p.actions for p in parts]),
            np.concatenate([p.returns for p in parts]),
        )


def record(
    env: Any,
    teacher: Teacher,
    count: int,
    seed: int,
    *,
    discount_s: float,
    reward_scale: float,
    student: Callable[[dict[str, Any], Any], Any] | None = None,
) -> Decisions:
    """Play at least `count` decisions of whole episodes.

    Args:
        env: a Gymnasium environment with `action_masks`.
        teacher: whose actions are recorded.
        count: decisions.
        seed: of the episodes.
        discount_s, reward_scale: as in learning.
        student: (observation, mask) -> action; when given, it decides and the teacher only comments.
    """
    parts: list[Decisions] = []
    done = 0
    while done < count:
        parts.append(_episode(env, teacher, seed + len(parts), discount_s, reward_scale, student))
        done += len(parts[-1])
    return Decisions.join(parts)


def classes_of(shape: DecisionShape, actions: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) class of each decision: which size it is, and whether its machines differ.

    Machines themselves are no classes: their order means nothing.

    Args:
        shape: of a decision.
        actions: (N,) or (N, parts).
    """
    columns = actions.reshape(len(actions), -1)
    found = np.zeros(len(columns), np.int64)
    if shape.places:
        p, t = divmod(columns[:, 0], shape.places) if shape.flat else (columns[:, 0], columns[:, 1])
        none = (p == shape.places - 1) & (t == p) & (shape.sizes > 0)  # a joint decision that only resizes
        found = np.where(none, 2, (p != t).astype(np.int64))
    return 3 * columns[:, -1] + found if shape.sizes else found


def class_weights(classes: NDArray[np.int64], balance: float) -> Floats:
    """(N,) weight of each decision, 1 in the mean: (its class's share) ** -balance."""
    _, place, counts = np.unique(classes, return_inverse=True, return_counts=True)
    weights = (counts / len(classes)) ** -balance
    weights = weights[place.ravel()]
    return np.asarray(weights / weights.mean(), np.float32)


def _episode(
    env: Any, teacher: Teacher, seed: int, discount_s: float, reward_scale: float, student: Any
) -> Decisions:
    rows: list[dict[str, Any]] = []
    masks, actions, rewards, elapsed = [], [], [], []
    observation, _ = env.reset(seed=seed)
    teacher.begin(env.unwrapped, seed)
    over = False
    while not over:
        mask = env.unwrapped.action_masks()
        wise = teacher.action(env.unwrapped)
        rows.append(observation)
        masks.append(mask)
        actions.append(wise)
        chosen = wise if student is None else student(observation, mask)
        observation, reward, terminated, truncated, info = env.step(chosen)
        rewards.append(reward)
        elapsed.append(info["elapsed_s"])
        over = terminated or truncated
    returns = np.zeros(len(rows), np.float32)
    following = 0.0
    for i in reversed(range(len(rows))):
        following = rewards[i] * reward_scale + float(np.exp(-elapsed[i] / discount_s)) * following
        returns[i] = following
    stacked = {key: np.stack([row[key] for row in rows]).astype(np.float32) for key in rows[0]}
    return Decisions(stacked, np.stack(masks), np.array(actions, np.int64), returns)


def fit(
    policy: Any,
    decisions: Decisions,
    config: WarmStartConfig,
    seed: int,
    progress: Callable[[int, float, float], None] | None = None,
) -> dict[str, float]:
    """Fit policy and value to recorded decisions.

    Args:
        policy: a scorer policy.
        decisions: what to fit.
        config: epochs, batch size, learning rate.
        seed: of the shuffling.
        progress: called with (epoch, cross-entropy, agreement).

    Returns:
        cross_entropy [nats], agreement (share where the likeliest decision is the teacher's),
        balanced_agreement (its mean over the classes of `classes_of`) and value_error (mean square) of the
        last epoch.
    """
    classes = classes_of(policy.action_dist.shape, decisions.actions)
    weights = th.as_tensor(class_weights(classes, config.balance))
    _, places = np.unique(classes, return_inverse=True)
    both = config.fits == "both"
    optimizer = th.optim.Adam(policy.parameters(), lr=config.learning_rate)
    batches = -(-len(decisions) // config.batch_size) * config.epochs
    schedule = th.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=batches)
    rng = np.random.default_rng(seed)
    tensors = {key: th.as_tensor(value) for key, value in decisions.observations.items()}
    masks, actions = th.as_tensor(decisions.masks), th.as_tensor(decisions.actions)
    returns = th.as_tensor(decisions.returns)
    policy.set_training_mode(True)
    result: dict[str, float] = {}
    for epoch in range(config.epochs):
        sums = np.zeros(2)
        agreed = np.zeros(len(decisions))
        for rows in _batches(rng.permutation(len(decisions)), config.batch_size):
            obs = {key: value[rows] for key, value in tensors.items()}
            distribution = policy.get_distribution(obs, masks[rows])
            loss = -(weights[rows] * distribution.log_prob(actions[rows])).mean()
            value_loss = (policy.predict_values(obs).flatten() - returns[rows]).pow(2).mean()
            optimizer.zero_grad()
            (loss + value_loss if both else value_loss).backward()
            optimizer.step()
            schedule.step()
            same = distribution.mode() == actions[rows]
            agreed[rows.numpy()] = (same if same.ndim == 1 else same.all(dim=1)).numpy()
            sums += len(rows) * np.array([loss.item(), value_loss.item()])
        sums /= len(decisions)
        by_class = np.bincount(places.ravel(), agreed) / np.bincount(places.ravel())
        result = {
            "cross_entropy": float(sums[0]),
            "agreement": float(agreed.mean()),
            "balanced_agreement": float(by_class.mean()),
            "value_error": float(sums[1]),
        }
        if progress is not None:
            progress(epoch, result["cross_entropy"], result["agreement"])
    policy.set_training_mode(False)
    return result


def _batches(order: NDArray[np.int64], size: int) -> Iterator[th.Tensor]:
    for start in range(0, len(order), size):
        yield th.as_tensor(order[start : start + size])


def warm_start(
    policy: Any,
    env: Any,
    teacher: Teacher,
    config: WarmStartConfig,
    *,
    seed: int,
    discount_s: float,
    reward_scale: float,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, float]:
    """All rounds. Returns the measures of the last fit (see `fit`).

    Args:
        policy: a scorer policy, changed in place.
        env: one environment to play in.
        teacher: the heuristic.
        config: how much.
        seed: of episodes and shuffling.
        discount_s, reward_scale: as in learning.
        progress: called with (what is going on, share done).
    """
    parts: list[Decisions] = []
    result: dict[str, float] = {}
    random = th.Generator().manual_seed(seed)

    def clone(observation: dict[str, Any], mask: Any) -> Any:
        batch = {key: value[None] for key, value in observation.items()}
        action = policy.decide(batch, mask[None], 1.0, random)[0]
        return action if action.ndim else int(action)

    for number in range(config.rounds):
        share = number / config.rounds
        if progress is not None:
            who = "watching the teacher" if number == 0 else "the clone plays, the teacher comments"
            progress(f"round {number + 1} of {config.rounds}: {who}", share)
        parts.append(
            record(
                env,
                teacher,
                -(-config.decisions // config.rounds),
                seed + 100_003 * (number + 1),
                discount_s=discount_s,
                reward_scale=reward_scale,
                student=None if number == 0 else clone,
            )
        )

        def fitting(epoch: int, loss: float, agreement: float, share: float = share) -> None:
            if progress is not None:
                part = (0.5 + 0.5 * (epoch + 1) / config.epochs) / config.rounds
                progress(f"cloning: agreement {agreement:.3f}, cross-entropy {loss:.3f}", share + part)

        result = fit(policy, Decisions.join(parts), config, seed + number, fitting)
    return result
