"""A policy with a memory: it remembers within an episode and not beyond, and learns what needs memory."""

from typing import Any

import numpy as np
import pytest

th = pytest.importorskip("torch")

from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy  # noqa: E402

from agents.config import RunConfig, merge, resolve  # noqa: E402
from agents.evaluation import Agent, decide, make_codec  # noqa: E402
from agents.export import export_run  # noqa: E402
from agents.models import build_model  # noqa: E402
from agents.recurrent import RecurrentScorerPolicy, forget  # noqa: E402
from agents.training import make_vec_env, train  # noqa: E402
from splitgym.errors import ConfigError  # noqa: E402
from splitgym.observation import observation_space  # noqa: E402
from tests.make_view import make_view  # noqa: E402
from tests.stand_in_env import StandIn, StandInTask  # noqa: E402

SMALL = {
    "algo": "recurrent_ppo",
    "env": "pool_sizing",
    "steps": 512,
    "learner": {"num_envs": 2, "hidden": 16, "reward_scale": 0.1, "learning_rate": 1e-3},
    "on_policy": {"n_steps": 64, "batch_size": 64, "n_epochs": 2},
    "evaluation": {"every": 10_000},
    "checkpoint": {"every": 200},
}


def config(**over: Any) -> RunConfig:
    return resolve(merge(SMALL, over))


class Recall(StandIn):
    """A signal is shown at every second step; what pays at the next one is to name it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.signal = 0
        return self._signalled(), {}

    def step(self, action: Any) -> Any:
        asked = self.steps % 2 == 1
        reward = float(asked and int(action) == self.signal)
        self.steps += 1
        return self._signalled(), reward, False, self.steps >= self.length, {"elapsed_s": 1.0}

    def _signalled(self) -> dict[str, Any]:
        seen = {key: np.zeros_like(value) for key, value in self._observe().items() if key != "mask"}
        seen["mask"] = self._observe()["mask"]
        if self.steps % 2 == 0:
            self.signal = int(self.np_random.integers(3))
            seen["request"][0] = self.signal - 1.0
            seen["request"][1] = 1.0
        return seen


class RecallTask(StandInTask):
    """Share of the signals that are named."""

    def __init__(self) -> None:
        super().__init__("pool_sizing")

    def make_env(self) -> Recall:
        return Recall("pool_sizing", length=40)

    def judge(self, model: Any) -> dict[str, float]:
        env, total = self.make_env(), 0.0
        for seed in range(5):
            observation, _ = env.reset(seed=seed)
            forget(model.policy)
            over = False
            while not over:
                action = decide(model, observation, env.action_masks(), 0.0)
                observation, reward, _, over, _ = env.step(action)
                total += reward
        return {"goodput": total / (5 * 20)}


def observations(count: int, steps: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    space = StandIn("pool_sizing").observation_space
    made = []
    for _ in range(steps):
        one = {key: rng.normal(size=(count, *box.shape)).astype(np.float32) for key, box in space.items()}
        made.append({**one, "mask": np.ones((count, 4), np.float32)})
    return made


def fresh() -> Any:
    env = StandIn("pool_sizing")
    return build_model(config(), env.observation_space, env.action_space)


def test_it_learns_what_needs_memory(tmp_path):
    over = {
        "steps": 6_144,
        "learner": {"num_envs": 8, "learning_rate": 5e-3, "reward_scale": 1.0, "discount_s": 2.0},
        "on_policy": {"n_steps": 64, "batch_size": 128, "n_epochs": 6, "trace_s": 2.0, "target_kl": None},
    }
    outcome = train(config(**over), tmp_path / "run", task=RecallTask(), show=False)
    without = train(config(algo="ppo", **over), tmp_path / "plain", task=RecallTask(), show=False)
    assert outcome.goodput > 0.9 and without.goodput < 0.6, (outcome.goodput, without.goodput)


def test_it_remembers_within_an_episode_and_forgets_at_its_end():
    policy = fresh().policy
    first, *later = observations(3, 4)
    alone = policy.decide(first, None, 0.0), policy.memory
    for seen in later:
        policy.decide(seen, None, 0.0)
    policy.decide(first, None, 0.0)
    assert not th.allclose(policy.memory[0], alone[1][0])
    forget(policy)
    assert (policy.decide(first, None, 0.0) == alone[0]).all()
    assert all(th.equal(a, b) for a, b in zip(policy.memory, alone[1], strict=True))


def test_sequences_at_once_are_what_its_steps_are():
    """As in learning: two sequences of which the first begins an episode, and the base class's slow way."""
    policy = fresh().policy
    lstm, steps, count = policy.lstm_actor, 5, 2
    features = th.randn(count * steps, lstm.input_size)
    state = (th.randn(1, count, lstm.hidden_size), th.randn(1, count, lstm.hidden_size))
    for starts in ([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], [[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]]):
        flat = th.tensor(starts, dtype=th.float32).flatten()
        fast = RecurrentScorerPolicy._process_sequence(features, state, flat, lstm)
        slow = RecurrentActorCriticPolicy._process_sequence(features, state, flat, lstm)
        assert th.allclose(fast[0], slow[0], atol=1e-6)
        assert all(th.allclose(a, b, atol=1e-6) for a, b in zip(fast[1], slow[1], strict=True))


def test_it_decides_as_it_learned():
    """One tick after the other gives the probabilities that learning gives the whole sequence; masks hold."""
    policy, count, steps = fresh().policy, 2, 6
    seen = observations(count, steps)
    empty = th.zeros(1, count, 16)
    joined = {key: np.stack([one[key] for one in seen], 1) for key in seen[0]}  # (count, steps, ...)
    tensors = {key: th.as_tensor(all_of.reshape(-1, *all_of.shape[2:])) for key, all_of in joined.items()}
    starts = th.zeros(count, steps)
    starts[:, 0] = 1
    made, _ = policy.get_distribution(tensors, (empty, empty), starts.flatten())
    likeliest = made.distribution.logits.argmax(1).reshape(count, steps).numpy()
    assert (np.stack([policy.decide(one, None, 0.0) for one in seen], 1) == likeliest).all()
    mask = np.array([[False, True, False]] * count)
    assert (policy.decide(seen[0], mask, 1.0, th.Generator().manual_seed(1)) == 1).all()


def test_rewards_are_discounted_by_time_and_gradients_clipped_apart():
    made = config()
    venv = make_vec_env(made, StandInTask("pool_sizing"))
    model = build_model(made, venv.observation_space, venv.action_space, venv)
    assert model.rollout_buffer.discount_s == made.learner.discount_s
    actor, value = ({id(p) for p in group["params"]} for group in model.policy.optimizer.param_groups)
    assert id(model.policy.action_net.weight) in actor and id(model.policy.value_net.weight) in value
    assert not actor & value and len(actor | value) == len(list(model.policy.parameters()))
    venv.close()


def test_an_agent_forgets_when_a_run_begins():
    view, made = make_view("PPTT"), config()
    codec = make_codec(made, 4)
    agent = Agent(build_model(made, observation_space(4), codec.space), codec, 4)
    remembered = []
    for begins in (True, False, True):
        if begins:
            agent.reset(view, 0)
        agent.resize(view)
        remembered.append(agent.model.policy.memory[0])
    assert th.equal(remembered[0], remembered[2]) and not th.equal(remembered[0], remembered[1])


def test_a_run_can_be_loaded_but_not_exported(tmp_path):
    train(config(), tmp_path / "run", task=StandInTask("pool_sizing"), show=False)
    with pytest.raises(ConfigError, match="cannot be exported"):
        export_run(tmp_path / "run", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "over",
    [
        {"warm_start": {"teacher": "reactive"}},
        {"learner": {"start": "pretrained:sizing"}},
        {"on_policy": {"start_kl": 0.1}},
    ],
)
def test_what_knows_no_memory_is_refused(over):
    with pytest.raises(ConfigError, match="recurrent_ppo"):
        config(**over)
