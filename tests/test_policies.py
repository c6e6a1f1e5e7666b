"""The scorer policies: order and padding of machines do not matter, what is masked is never chosen."""

import numpy as np
import pytest

th = pytest.importorskip("torch")

from gymnasium import spaces  # noqa: E402

from agents.discounting import RealTimeRolloutBuffer  # noqa: E402
from agents.policies import ClippedAdam, MaskableScorerPolicy, ScorerPolicy  # noqa: E402
from tests.stand_in_env import StandIn  # noqa: E402

KINDS = ("routing", "flat", "pool_sizing", "joint")


def policy_for(kind: str, max_machines: int = 5, maskable: bool = True, seed: int = 0):
    th.manual_seed(seed)
    env = StandIn(kind, max_machines=max_machines)
    made = (MaskableScorerPolicy if maskable else ScorerPolicy)(
        env.observation_space, env.action_space, lambda _: 1e-3, hidden=16
    )
    for parameter in made.decision_net.parameters():  # scores that differ clearly
        th.nn.init.normal_(parameter, std=0.3)
    return made


def observations(batch: int, max_machines: int, real: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    machines = rng.normal(size=(batch, max_machines, 3))
    machines[:, real:] = 0
    mask = np.tile(np.arange(max_machines) < real, (batch, 1))
    draws = {
        "machines": machines,
        "cluster": rng.normal(size=(batch, 2)),
        "request": rng.normal(size=(batch, 2)),
        "mask": mask,
    }
    return {key: th.as_tensor(value, dtype=th.float32) for key, value in draws.items()}


def test_scores_move_with_the_machines():
    policy = policy_for("routing")
    obs = observations(6, 5, 5)
    order = th.tensor([3, 0, 4, 1, 2])
    moved = {**obs, "machines": obs["machines"][:, order], "mask": obs["mask"][:, order]}
    pair = policy.get_distribution(obs).pair.reshape(6, 5, 5)
    pair_moved = policy.get_distribution(moved).pair.reshape(6, 5, 5)
    assert pair.std() > 0.1
    np.testing.assert_allclose(
        pair_moved.detach(), pair[:, order][:, :, order].detach(), atol=1e-4, rtol=1e-4
    )
    np.testing.assert_allclose(
        policy.predict_values(moved).detach(), policy.predict_values(obs).detach(), atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind):
    small, large = policy_for(kind, 3), policy_for(kind, 7)
    weights = {k: v for k, v in small.state_dict().items() if not k.startswith("decision_net.sizes")}
    large.load_state_dict(weights, strict=False)
    if kind in ("pool_sizing", "joint"):
        large.decision_net.sizes.load_state_dict(small.decision_net.sizes.state_dict())
    narrow = observations(4, 7, 3)
    wide = {**narrow, "machines": narrow["machines"].clone()}
    wide["machines"][:, 3:] = 99.0  # rubbish where no machine is
    cut = {**narrow, "machines": narrow["machines"][:, :3], "mask": narrow["mask"][:, :3]}
    np.testing.assert_allclose(
        large.predict_values(wide).detach(), small.predict_values(cut).detach(), atol=1e-5
    )
    a, b = small.get_distribution(cut), large.get_distribution(wide)
    if a.pair is not None:
        n, wider = a.shape.places, b.shape.places
        keep = [*range(3), wider - 1] if kind == "joint" else [*range(3)]
        assert n == len(keep)
        probabilities = b.pair.exp().reshape(4, wider, wider)
        kept = probabilities[:, keep][:, :, keep]
        np.testing.assert_allclose(
            kept.detach(), a.pair.exp().reshape(4, n, n).detach(), atol=1e-4, rtol=1e-4
        )
        np.testing.assert_allclose(kept.sum((1, 2)).detach(), 1.0, atol=1e-4, rtol=1e-4)
    if a.size is not None:
        np.testing.assert_allclose(b.size.detach(), a.size.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_actions_have_probability_zero(kind):
    env = StandIn(kind, max_machines=5, machines=4)
    policy = policy_for(kind)
    obs, _ = env.reset(seed=1)
    mask = env.action_masks()
    if kind == "pool_sizing":
        mask = np.array([False, True, True])
    batch = {k: th.as_tensor(v)[None] for k, v in obs.items()}
    distribution = policy.get_distribution(batch, mask[None])
    n = distribution.shape.places
    if distribution.pair is not None:
        pairs = mask if kind == "flat" else np.outer(mask[:n], mask[n : 2 * n]).ravel()
        assert distribution.pair.exp()[0][~th.as_tensor(pairs)].sum() == 0
        assert abs(float(distribution.pair.exp().sum().detach()) - 1) < 1e-5
    if distribution.size is not None:
        sizes = mask if distribution.pair is None else mask[2 * n :]
        assert distribution.size.exp()[0][~th.as_tensor(sizes)].sum() == 0
    assert th.isfinite(distribution.entropy()).all()
    for _ in range(30):
        action, _ = policy.predict(obs, action_masks=mask)
        assert env.action_space.contains(np.asarray(action, np.int64))


def test_machines_in_the_mask_only():
    policy = policy_for("routing", maskable=False)
    pair = policy.get_distribution(observations(3, 5, 2)).pair.exp().reshape(3, 5, 5)
    assert pair[:, 2:].sum() == 0 and pair[:, :, 2:].sum() == 0


def test_a_pair_prefers_or_avoids_one_machine_for_both():
    """Two independent categoricals cannot say "not the same machine"; this policy can."""
    policy = policy_for("routing")
    with th.no_grad():
        policy.decision_net.scores.weight.zero_()
        policy.decision_net.scores.bias.copy_(th.tensor([0.0, 0.0, -50.0]))
    pair = policy.get_distribution(observations(2, 5, 5)).pair.exp().reshape(2, 5, 5)
    assert pair.diagonal(dim1=1, dim2=2).sum() < 1e-6


def test_log_probabilities_are_those_of_the_samples():
    policy = policy_for("joint")
    obs = observations(200, 5, 5)
    actions, _, log_prob = policy(obs)
    _, again, entropy = policy.evaluate_actions(obs, actions)
    np.testing.assert_allclose(log_prob.detach(), again.detach(), atol=1e-6)
    assert abs(float((-log_prob.mean() - entropy.mean()).detach())) < 0.3


def test_temperature_sharpens_and_zero_takes_the_likeliest():
    policy = policy_for("routing")
    obs = {k: v.numpy() for k, v in observations(1, 5, 5).items()}
    likeliest = policy.get_distribution({k: th.as_tensor(v) for k, v in obs.items()}).mode()[0].tolist()
    assert policy.decide(obs, None, 0.0)[0].tolist() == likeliest
    cold = {tuple(policy.decide(obs, None, 1e-3)[0].tolist()) for _ in range(20)}
    warm = {tuple(policy.decide(obs, None, 1.0)[0].tolist()) for _ in range(200)}
    assert cold == {tuple(likeliest)} and len(warm) > 3


def test_groups_are_clipped_apart():
    """A huge gradient of the value leaves the policy's gradient as it is."""
    small, large = th.nn.Parameter(th.zeros(1)), th.nn.Parameter(th.zeros(1))
    optimizer = ClippedAdam([{"params": [small]}, {"params": [large]}], max_group_norm=0.5, lr=1e-3)
    small.grad, large.grad = th.tensor([0.1]), th.tensor([1e6])
    optimizer.step()
    assert small.grad.item() == pytest.approx(0.1)
    assert large.grad.item() == pytest.approx(0.5)


def test_discount_follows_the_clock():
    """Two steps of 1 s discount as one of 2 s, and a done cuts."""
    space = spaces.Dict({"x": spaces.Box(0, 1, (1,), np.float32)})
    action = spaces.Discrete(2)

    def advantage(elapsed, rewards, dones_last=0.0, last_value=0.0):
        buffer = RealTimeRolloutBuffer(
            len(elapsed), space, action, device="cpu", n_envs=1, discount_s=10.0, trace_s=1e9
        )
        for seconds, reward in zip(elapsed, rewards, strict=True):
            buffer.set_elapsed(np.array([seconds], np.float32))
            zero = th.zeros(1)
            buffer.add({"x": np.zeros((1, 1))}, np.zeros((1, 1)), np.array([reward]), np.zeros(1), zero, zero)
        buffer.compute_returns_and_advantage(th.tensor([last_value]), np.array([dones_last]))
        return float(buffer.returns[0, 0])

    assert advantage([1, 1, 1], [0, 0, 1]) == pytest.approx(advantage([2, 5], [0, 1]))
    assert advantage([1, 1, 1], [0, 0, 1]) == pytest.approx(np.exp(-0.2))
    assert advantage([3.0], [0], last_value=2.0) == pytest.approx(2 * np.exp(-0.3))
    assert advantage([3.0], [0], dones_last=1.0, last_value=2.0) == 0


def test_a_step_without_elapsed_time_is_refused():
    space = spaces.Dict({"x": spaces.Box(0, 1, (1,), np.float32)})
    buffer = RealTimeRolloutBuffer(2, space, spaces.Discrete(2), device="cpu", n_envs=1)
    with pytest.raises(RuntimeError, match="elapsed"):
        buffer.add(
            {"x": np.zeros((1, 1))}, np.zeros((1, 1)), np.ones(1), np.zeros(1), th.zeros(1), th.zeros(1)
        )
