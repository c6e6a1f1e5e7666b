"""Warm start: the clone does what its teacher does, masks are kept, returns are discounted by time."""

import numpy as np
import pytest

th = pytest.importorskip("torch")

from agents.imitation import fit, record, warm_start  # noqa: E402
from agents.learner_config import WarmStartConfig  # noqa: E402
from agents.policies import MaskableScorerPolicy  # noqa: E402
from tests.stand_in_env import ShortestQueue, StandIn  # noqa: E402

PLAY = {"discount_s": 10.0, "reward_scale": 0.1}


def policy_for(env, seed=0):
    th.manual_seed(seed)
    return MaskableScorerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, hidden=32)


@pytest.mark.parametrize("kind", ["routing", "flat"])
def test_the_clone_agrees_with_its_teacher(kind):
    env = StandIn(kind)
    policy = policy_for(env)
    config = WarmStartConfig(teacher="-", decisions=2000, rounds=2, epochs=8, batch_size=128)
    measures = warm_start(policy, env, ShortestQueue(), config, seed=3, **PLAY)
    fresh = record(env, ShortestQueue(), 500, seed=77, **PLAY)
    batch = {key: th.as_tensor(value) for key, value in fresh.observations.items()}
    chosen = policy.get_distribution(batch, fresh.masks).mode().numpy()
    same = chosen == fresh.actions
    # Empty queues tie: there the teacher takes the lowest index, which an equivariant policy cannot know.
    queues = np.where(fresh.observations["machines"][:, :, 1] > 0, fresh.observations["machines"][:, :, 0], 9)
    clear = np.diff(np.sort(queues[:, :3], axis=1)[:, :2], axis=1)[:, 0] > 0.05
    assert clear.sum() > 100
    agree = same if same.ndim == 1 else same.all(axis=1)
    assert agree[clear].mean() > 0.9
    assert measures["agreement"] > 0.4


def test_recorded_decisions_are_allowed_and_whole():
    env = StandIn("routing", length=40)
    decisions = record(env, ShortestQueue(), 100, seed=1, **PLAY)
    assert len(decisions) == 120  # whole episodes
    chosen = np.take_along_axis(decisions.masks[:, :4], decisions.actions[:, :1], axis=1)
    assert chosen.all() and decisions.observations["mask"].shape == (120, 4)


def test_returns_discount_the_time_that_passed():
    env = StandIn("routing", length=3)
    decisions = record(env, ShortestQueue(), 3, seed=5, **PLAY)
    env.reset(seed=5)
    rewards, elapsed = [], []
    for action in decisions.actions:
        _, reward, _, _, info = env.step(action)
        rewards.append(reward)
        elapsed.append(info["elapsed_s"])
    weights = np.exp(-np.concatenate([[0.0], np.cumsum(elapsed)[:-1]]) / 10.0)
    assert decisions.returns[0] == pytest.approx(0.1 * float((weights * rewards).sum()), rel=1e-5)


def test_the_student_plays_and_the_teacher_comments():
    """DAgger: the states are the student's, the actions the teacher's."""
    env = StandIn("routing")

    def always_the_last(observation, mask):
        allowed = np.flatnonzero(mask[:4])
        return np.array([allowed[-1], allowed[-1]])

    follows = record(env, ShortestQueue(), 50, seed=9, **PLAY)
    leads = record(env, ShortestQueue(), 50, seed=9, student=always_the_last, **PLAY)
    assert leads.observations["machines"][:, :, 0].max() > follows.observations["machines"][:, :, 0].max()
    queue = leads.observations["machines"][:, :3, 0]
    up = leads.observations["machines"][:, :3, 1] > 0
    assert (leads.actions[:, 0] == np.where(up, queue, np.inf).argmin(axis=1)).all()


def test_fit_ignores_what_the_mask_forbids():
    """The loss is over allowed actions: a policy that only loves forbidden ones has a finite, small loss."""
    env = StandIn("routing")
    decisions = record(env, ShortestQueue(), 200, seed=2, **PLAY)
    config = WarmStartConfig(teacher="-", epochs=1)
    measures = fit(policy_for(env), decisions, config, seed=0)
    assert measures["cross_entropy"] < np.log(4.0) + 0.1  # 2 of 3 machines are up: at most 4 pairs
