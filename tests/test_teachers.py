"""Who can be imitated, and what a rare decision weighs."""

import numpy as np
import pytest

th = pytest.importorskip("torch")

from agents.config import resolve  # noqa: E402
from agents.distributions import DecisionShape  # noqa: E402
from agents.imitation import Decisions, class_weights, classes_of, fit, record  # noqa: E402
from agents.learner_config import WarmStartConfig  # noqa: E402
from agents.policies import MaskableScorerPolicy  # noqa: E402
from agents.task import SimulatorTask  # noqa: E402
from agents.teachers import SchedulerTeacher, find_scheduler  # noqa: E402
from splitgym.cluster import Cluster  # noqa: E402
from splitgym.config import ClusterConfig, parse_machines  # noqa: E402
from splitgym.envs import JointEnv, PoolSizingEnv, RoutingEnv  # noqa: E402
from splitgym.errors import ConfigError  # noqa: E402
from splitgym.evaluation import parse  # noqa: E402
from splitgym.policy import export_heuristic  # noqa: E402
from splitgym.schedulers import sizing  # noqa: E402
from splitgym.sim import make_engine  # noqa: E402
from tests.tiny import Fixed, Moves  # noqa: E402

th.set_num_threads(1)

PLAY = {"discount_s": 10.0, "reward_scale": 0.1}
CLUSTER = ClusterConfig(machines=parse_machines("h100-80gb:2P2T"))
SHORT = {
    "cluster": CLUSTER,
    "trace": "azure-conv-synth",
    "rate_per_s": 5.0,
    "episode_s": 8.0,
    "warmup_s": 1.0,
}


def test_a_teacher_by_bundle_is_the_bundle(tmp_path):
    bundle = find_scheduler("pretrained:routing", {})
    assert bundle.manifest.architecture.routing.name == "residual"
    export_heuristic("+reactive", tmp_path / "sizer")
    assert hasattr(find_scheduler(str(tmp_path / "sizer"), {}, sizing=True), "resize")
    with pytest.raises(ConfigError, match="cannot teach"):
        find_scheduler(str(tmp_path / "sizer"), {})
    with pytest.raises(ConfigError, match="no options"):
        find_scheduler("pretrained:routing", {"preset": "tuned"})
    with pytest.raises(ConfigError):
        find_scheduler("no-such-scheduler", {})


def test_recorded_routes_are_the_bundles():
    env = RoutingEnv(**SHORT)
    decisions = record(env, SchedulerTeacher(find_scheduler("pretrained:routing", {})), 20, seed=3, **PLAY)
    scheduler = find_scheduler("pretrained:routing", {})
    env.reset(seed=3)
    scheduler.reset(env.engine.view, 3)
    for action in decisions.actions:
        assert tuple(action) == tuple(scheduler.route(env.engine.view, env.decision.request))
        env.step(action)


def test_a_look_ahead_teaches():
    """It decides on the environment's own engine, as in evaluation, and leaves it as it is."""
    trace = parse("poisson:azure-conv-synth@16", duration_s=9.0, warmup_s=0.0).build(1, 4)

    class Always:
        name = "always"

        def draw(self, rng):
            return trace

    env = RoutingEnv(**SHORT | {"trace": Always(), "rate_per_s": None}, part=None, engine="compiled")
    looking = find_scheduler("lookahead=3x2:index", {"preset": "tuned"})
    looking.margin = 0.0
    actions = record(env, SchedulerTeacher(looking), 60, seed=3, **PLAY).actions
    assert looking.decisions == len(actions) and 0 < looking.changed < len(actions)
    engine = make_engine(Cluster.resolve(CLUSTER), looking, sizing("static"), engine="compiled")
    looking.attach(engine)
    engine.reset(trace, 3)
    assert engine.run_until_decision() is None
    out = engine.outcomes()
    routes = np.stack([out.prompt_machine, out.token_machine], axis=1)
    np.testing.assert_array_equal(actions, routes[: len(actions)])
    with pytest.raises(ConfigError, match="cannot teach"):
        find_scheduler("lookahead=3:index", {}, sizing=True)


def test_sizes_that_the_mask_forbids_are_mapped():
    """The teacher would move machines that the pool cannot spare: what is recorded is allowed."""
    env = PoolSizingEnv(max_moves=2, **SHORT)
    decisions = record(env, SchedulerTeacher(sizing=Moves(*[2] * 50)), 4, seed=0, **PLAY)
    assert np.take_along_axis(decisions.masks, decisions.actions[:, None], axis=1).all()
    assert decisions.actions[0] == 3, "one of two token machines may go"


def test_a_joint_teacher_answers_both_questions():
    env = JointEnv(**SHORT)
    teacher = SchedulerTeacher(Fixed((0, 2), (1, 3)), Moves(1, -1))
    decisions = record(env, teacher, 20, seed=0, **PLAY)
    resized = decisions.actions[:, 0] == 4
    assert resized.any() and (decisions.actions[resized, 1] == 4).all()
    assert decisions.actions[resized, 2].tolist()[:2] == [2, 0]
    assert (decisions.actions[~resized, 2] == 1).all()
    assert decisions.actions[~resized][0].tolist() == [0, 2, 1]
    places = decisions.actions + np.array([0, 5, 10])
    assert np.take_along_axis(decisions.masks, places, axis=1).all()


def test_the_configured_teachers():
    fields = {"cluster": {"machines": [{"machine": "h100-80gb", "count": 2, "pool": "mixed"}]}}
    joint = resolve(
        {
            **fields,
            "env": "joint",
            "warm_start": {"teacher": "index", "options": {"preset": "tuned"}, "sizing": "reactive"},
        }
    )
    teacher = SimulatorTask(joint).teacher()
    assert teacher.routing.name == "index-tuned" and teacher.sizing.name == "reactive"
    other = resolve({**fields, "warm_start": {"teacher": "pretrained:routing"}})
    assert other.warm_start.options == {}, "the file's options are the index's"
    with pytest.raises(ConfigError, match="env joint"):
        resolve({**fields, "warm_start": {"teacher": "index", "sizing": "reactive"}})


def test_classes_are_sizes_and_splits():
    routing = DecisionShape(RoutingEnv(**SHORT).action_space, 4)
    assert classes_of(routing, np.array([[0, 1], [2, 2], [3, 0]])).tolist() == [1, 0, 1]
    flat = DecisionShape(RoutingEnv(flat=True, **SHORT).action_space, 4)
    assert classes_of(flat, np.array([1, 10, 12])).tolist() == [1, 0, 1]
    joint = DecisionShape(JointEnv(**SHORT).action_space, 4)
    found = classes_of(joint, np.array([[4, 4, 0], [4, 4, 2], [1, 1, 1], [1, 2, 1], [4, 4, 1]]))
    assert len(set(found.tolist())) == 5
    weights = class_weights(np.array([0, 0, 0, 1]), 1.0)
    np.testing.assert_allclose(weights, [2 / 3, 2 / 3, 2 / 3, 2.0])
    np.testing.assert_array_equal(class_weights(np.array([0, 0, 5]), 0.0), [1.0, 1.0, 1.0])


def rare(balance):
    """A sizing rule that moves a machine at one tick of twelve, and how well a small clone agrees with it."""
    env = PoolSizingEnv(**SHORT)
    th.manual_seed(0)
    policy = MaskableScorerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, hidden=8)
    rng, count = np.random.default_rng(0), 240
    acts = rng.random(count) < 1 / 12
    seen = {key: np.repeat(value[None], count, axis=0) for key, value in env.reset(seed=0)[0].items()}
    # A hint that is right, but noisy: it comes twice as often as the rule acts.
    seen["cluster"][:, 0] = acts | (rng.random(count) < 1 / 12)
    masks, returns = np.ones((count, 3), bool), np.zeros(count, np.float32)
    decisions = Decisions(seen, masks, np.where(acts, 2, 1), returns)
    config = WarmStartConfig(teacher="-", epochs=40, batch_size=60, balance=balance, learning_rate=5e-3)
    return fit(policy, decisions, config, seed=0)


def test_balance_makes_a_clone_act():
    plain, balanced = rare(0.0), rare(1.0)
    assert balanced["balanced_agreement"] > plain["balanced_agreement"] + 0.1
    assert plain["agreement"] > 0.85


def test_only_the_value_is_fitted():
    env = RoutingEnv(**SHORT)
    th.manual_seed(0)
    policy = MaskableScorerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, hidden=8)
    decisions = record(env, SchedulerTeacher(find_scheduler("index", {})), 40, seed=0, **PLAY)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    fit(policy, decisions, WarmStartConfig(teacher="index", fits="value", epochs=2), seed=0)
    changed = {name.split(".")[0] for name, x in policy.state_dict().items() if not th.equal(x, before[name])}
    assert changed == {"value_only"}
