"""Vector environments equal single ones to the last bit, and reset as Gymnasium says."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import splitgym  # noqa: F401  (registers the environments)
from splitgym import schedulers
from splitgym.config import ClusterConfig, Fault, VllmBatchingConfig, parse_machines
from splitgym.envs import JointEnv, PoolSizingEnv, RoutingEnv
from splitgym.envs.base import SchedulingEnv
from splitgym.envs.fleet import Fleet, compilable
from splitgym.envs.reward import GoodMinusBad
from splitgym.envs.vector import FleetVectorEnv
from splitgym.errors import ActionError, ConfigError
from splitgym.trace import Trace

SHORT: dict[str, Any] = {"trace": "azure-conv-synth", "episode_s": 6.0, "warmup_s": 2.0}
KINDS: dict[str, type[SchedulingEnv]] = {"routing": RoutingEnv, "sizing": PoolSizingEnv, "joint": JointEnv}


def random_actions(space: gym.Space, rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, ...) actions of the whole space, forbidden ones too."""
    sizes = getattr(space, "nvec", None)
    if sizes is None:
        return rng.integers(0, space.n, size)  # type: ignore[attr-defined]
    return np.stack([rng.integers(0, n, size) for n in sizes], axis=1)


def same_as_singles(make: Any, seed: int, threads: int, episodes: int = 1, num_envs: int = 3) -> int:
    """Steps a fleet and single environments by the same random actions; returns the steps compared."""
    fleet, singles = Fleet(make(), num_envs, threads), [make() for _ in range(num_envs)]
    rng, steps = np.random.default_rng(seed), 0
    for episode in range(episodes):
        seeds = {i: seed + i for i in range(num_envs)} if episode == 0 else {}
        fleet.begin(np.arange(num_envs), seeds)
        seen = [env.reset(seed=seeds.get(i))[0] for i, env in enumerate(singles)]
        running = np.ones(num_envs, bool)
        while running.any():
            actions = random_actions(singles[0].action_space, rng, num_envs)
            for i in np.flatnonzero(running):
                for key, expected in seen[i].items():
                    np.testing.assert_array_equal(fleet.observations[key][i], expected, err_msg=key)
                np.testing.assert_array_equal(fleet.action_masks()[i], singles[i].action_masks())
            fleet.step(actions)
            for i in np.flatnonzero(running):
                seen[i], reward, _, ended, info = singles[i].step(actions[i])
                assert fleet.rewards[i] == reward
                assert fleet.elapsed_s[i] == info["elapsed_s"]
                assert fleet.answered[i] == info["decision_id"]
                assert fleet.asked[i] == info["next_decision_id"]
                assert fleet.invalid_actions[i] == info["invalid_actions"]
                assert {k: v[i] for k, v in fleet.terms().items()} == info["reward_terms"]
                if not isinstance(singles[i], PoolSizingEnv):
                    assert repr(fleet.outcomes(i)) == repr(info["outcomes_by_decision"])
                if ended:
                    running[i] = False
                    metrics, table = fleet.episode(i)
                    assert repr(metrics) == repr(info["episode_metrics"])
                    np.testing.assert_array_equal(table.good, info["requests"].good)
                    for key, expected in seen[i].items():
                        np.testing.assert_array_equal(fleet.observations[key][i], expected, err_msg=key)
            steps += 1
            np.testing.assert_array_equal(fleet.over, ~running)
    fleet.close()
    return steps


@pytest.mark.parametrize("name", ["random", "round-robin"])
def test_each_environment_has_a_router_of_its_own(name: str) -> None:
    options: dict[str, Any] = {"cluster": "h100-80gb:2P2T", "model": "llama2-70b", "rate_per_s": 6.0, **SHORT}
    routers = iter([schedulers.routing(name), *[name] * 3])  # one for the fleet, then the single ones'
    assert same_as_singles(lambda: PoolSizingEnv(routing=next(routers), **options), seed=3, threads=1) >= 3


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(KINDS)),
    machines=st.sampled_from(["h100-80gb:1P1T", "h100-80gb:2P+a100-80gb:2T", "h100-80gb:1P1T1M"]),
    rate=st.sampled_from([1.0, 6.0, (3.0, 12.0)]),
    reward=st.sampled_from(
        ["good-minus-bad", "slowdown-clipped", "requests-in-system", {"good-minus-bad": 1.0, "cost": -2.5}]
    ),
    vllm=st.booleans(),
    fault=st.booleans(),
    padding=st.integers(0, 3),
    options=st.sampled_from(
        [{}, {"confine": True}, {"oracle": True}, {"arrivals": "stamps"}, {"prior": "index-tuned"}]
    ),
    inside=st.sampled_from(["index", "splitwise", "random"]),
    seed=st.integers(0, 1000),
    threads=st.integers(1, 3),
)
def test_a_fleet_is_its_environments(
    kind, machines, rate, reward, vllm, fault, padding, options, inside, seed, threads
):
    groups = parse_machines(machines)
    cluster = ClusterConfig(
        model="llama2-70b",
        machines=groups,
        batching=VllmBatchingConfig() if vllm else ClusterConfig().batching,
        faults=(Fault(machine=0, at_s=3.0, duration_s=2.0),) if fault else (),
        switch_delay_s=0.5,
    )
    extra: dict[str, Any] = {"max_machines": cluster.num_machines + padding, **options}
    if kind == "routing":
        extra |= {"flat": seed % 2 == 0, "sizing": "reactive" if seed % 3 == 0 else "static"}
    if kind == "sizing":
        extra["routing"] = inside
    if kind != "routing":
        extra["max_moves"] = 1 + seed % 2

    def make() -> SchedulingEnv:
        return KINDS[kind](cluster=cluster, rate_per_s=rate, reward=reward, **SHORT, **extra)

    assert same_as_singles(make, seed, threads, episodes=2 if seed % 5 == 0 else 1) > 0


@pytest.fixture(autouse=True)
def every_thread_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few environments there are."""
    monkeypatch.setattr("splitgym.envs.fleet.threads.LEAST_SHARE", 1)


def test_arrays_that_grow_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    from splitgym.sim.compiled import setup

    monkeypatch.setattr(setup, "FIRST_SLOTS", 2)

    def make() -> SchedulingEnv:
        return RoutingEnv(cluster="h100-80gb:1P1T", rate_per_s=20.0, **SHORT)

    assert same_as_singles(make, 1, 2) > 50


def pair(mode: AutoresetMode, **options: Any) -> tuple[FleetVectorEnv, SyncVectorEnv]:
    """A fleet, and Gymnasium's own vector environment of the same single ones."""
    own = {"cluster": "h100-80gb:2P1T", "model": "llama2-70b", "rate_per_s": 4.0, **SHORT, **options}
    made = gym.make_vec("splitgym/Routing-v0", num_envs=3, autoreset_mode=mode, details=True, **own)
    assert isinstance(made, FleetVectorEnv)
    return made, SyncVectorEnv([lambda: RoutingEnv(**own)] * 3, autoreset_mode=mode)


def same_infos(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """What the fleet says, Gymnasium's says too (it says more: `metrics`)."""
    for name, value in ours.items():
        if name.lstrip("_") == "requests":
            continue
        other = theirs[name]
        if isinstance(value, dict):
            same_infos(value, other)
        elif value.dtype == object:
            assert repr([_plain(x) for x in value]) == repr([_plain(x) for x in other]), name
        else:
            np.testing.assert_array_equal(value, other, err_msg=name)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in sorted(value.items()) if k not in ("requests", "metrics")}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_resets_are_gymnasiums(mode: AutoresetMode) -> None:
    ours, theirs = pair(mode)
    rng = np.random.default_rng(0)
    a, b = ours.reset(seed=7), theirs.reset(seed=7)
    ends = 0
    for _ in range(150):
        same_infos(a[-1], b[-1])
        for key, array in b[0].items():
            np.testing.assert_array_equal(a[0][key], array)
        actions = random_actions(ours.single_action_space, rng, 3)
        a, b = ours.step(actions), theirs.step(actions)
        for x, y in zip(a[1:4], b[1:4]):
            np.testing.assert_array_equal(x, y)
        ends += int(a[3].sum())
    assert ends >= 6, "several episodes of each have ended"
    ours.close()


def test_disabled_resets_are_the_callers() -> None:
    ours, _ = pair(AutoresetMode.DISABLED)
    ours.reset(seed=[1, None, 3])
    over = np.zeros(3, bool)
    while not over.any():
        _, _, _, over, _ = ours.step(np.zeros((3, 2), np.int64))
    before = ours.fleet.observations["cluster"].copy()
    with pytest.raises(gym.error.ResetNeeded):
        ours.step(np.zeros((3, 2), np.int64))
    observations, infos = ours.reset(options={"reset_mask": over})
    np.testing.assert_array_equal(infos["_elapsed_s"], over)
    np.testing.assert_array_equal(observations["cluster"][~over], before[~over])
    ours.step(np.zeros((3, 2), np.int64))
    with pytest.raises(ConfigError, match="reset_mask"):
        ours.reset(options={"reset_mask": np.zeros(3, bool)})
    with pytest.raises(ConfigError, match="2 entries, expected 3"):
        ours.reset(seed=[1, 2])


def test_an_observation_stays_until_the_step_after_the_next() -> None:
    ours, _ = pair(AutoresetMode.NEXT_STEP)
    first, _ = ours.reset(seed=1)
    kept = {key: array.copy() for key, array in first.items()}
    second, *_ = ours.step(np.zeros((3, 2), np.int64))
    for key in first:
        np.testing.assert_array_equal(first[key], kept[key])
    assert not np.shares_memory(first["machines"], second["machines"])


def test_a_bad_action_steps_nothing() -> None:
    ours, _ = pair(AutoresetMode.NEXT_STEP)
    ours.reset(seed=1)
    asked = ours.fleet.asked
    for bad in (np.array([[0, 0], [0, 3], [0, 0]]), np.array([[0, 0], [-1, 0], [0, 0]])):
        with pytest.raises(ActionError, match="environment 1 is not in MultiDiscrete"):
            ours.step(bad)
    for shape in (np.zeros((3, 3), np.int64), np.zeros(3, np.int64), np.zeros((3, 2))):
        with pytest.raises(ActionError, match="expected integers of shape"):
            ours.step(shape)
    np.testing.assert_array_equal(ours.fleet.asked, asked)
    with pytest.raises(gym.error.ResetNeeded):
        pair(AutoresetMode.NEXT_STEP)[0].step(np.zeros((3, 2), np.int64))


def test_a_trace_of_ones_own() -> None:
    ours, theirs = pair(AutoresetMode.NEXT_STEP)
    trace = Trace(np.arange(20) * 0.4, np.full(20, 700), np.full(20, 30), name="mine")
    a, _ = ours.reset(seed=3, options={"trace": trace})
    b, _ = theirs.reset(seed=3, options={"trace": trace})
    for key, array in b.items():
        np.testing.assert_array_equal(a[key], array)
    with pytest.raises(ConfigError, match="expected a Trace"):
        ours.reset(options={"trace": "azure-conv"})


class Own(GoodMinusBad):
    """A reward that compiled code does not know."""


def test_what_cannot_be_compiled_is_stepped_one_by_one() -> None:
    options = {"cluster": "h100-80gb:1P1T", "rate_per_s": 3.0, **SHORT}
    for extra, why in (
        ({"engine": "simpy"}, "engine is not the compiled one"),
        ({"reward": Own()}, "not counted by compiled code"),
        ({"reward": "energy"}, "not counted by compiled code"),
    ):
        assert why in compilable(RoutingEnv(**options, **extra))
        made = gym.make_vec("splitgym/Routing-v0", num_envs=2, **options, **extra)
        assert isinstance(made, SyncVectorEnv)
        made.reset(seed=0)
        made.close()
    with pytest.raises(ConfigError, match="fleet cannot be made"):
        Fleet(RoutingEnv(**options, engine="simpy"), 2)
    with pytest.raises(ConfigError, match="num_envs is 0"):
        Fleet(RoutingEnv(**options), 0)


@pytest.mark.parametrize("name", ["Routing", "PoolSizing", "Joint"])
def test_registered_vector_entry_points(name: str) -> None:
    options = {"cluster": "h100-80gb:2P2T", "model": "llama2-70b", "rate_per_s": 5.0, **SHORT}
    made = gym.make_vec(f"splitgym/{name}-v0", num_envs=2, threads=1, **options)
    assert isinstance(made, FleetVectorEnv) and made.num_envs == 2
    observations, _ = made.reset(seed=0)
    assert made.observation_space.contains(observations)
    assert made.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    made.action_space.seed(0)
    for _ in range(20):
        observations, *_ = made.step(made.action_space.sample())
        assert made.observation_space.contains(observations)
    assert made.action_masks().dtype == np.bool_
    made.close()


def test_completions_are_drained_once() -> None:
    ours, _ = pair(AutoresetMode.SAME_STEP)
    ours.reset(seed=2)
    rows, drained = [], []
    for step in range(120):
        *_, infos = ours.step(np.full((3, 2), step % 3))
        for found in infos["outcomes_by_decision"]:
            rows += [(good, ttft, tbt) for _, good, ttft, tbt in found or ()]
        for final in infos.get("final_info", {}).get("outcomes_by_decision", ()):
            rows += [(good, ttft, tbt) for _, good, ttft, tbt in final or ()]
        if step % 50 == 49:
            drained.append(ours.fleet.drain())
    drained.append(ours.fleet.drain())
    found = np.concatenate(drained)
    assert len(found) == len(rows) > 50
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(np.array(rows, float), axis=0))
    assert len(ours.fleet.drain()) == 0
