"""The environments: the Gymnasium contract, determinism, and that every request counts once."""

import doctest
import hashlib
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import splitgym
from splitgym.config import ClusterConfig, Fault, parse_machines
from splitgym.envs import IDS, SchedulingEnv
from splitgym.errors import ActionError, ConfigError, SplitgymError
from splitgym.trace import Trace
from splitgym.types import DecisionKind

SMALL: dict[str, Any] = {
    "cluster": "h100-80gb:2P2T",
    "model": "llama2-70b",
    "rate_per_s": 12.0,
    "episode_s": 6.0,
    "warmup_s": 2.0,
}
FAULTY = ClusterConfig(
    model="llama2-70b",
    machines=parse_machines("h100-80gb:3P3T"),
    faults=(Fault(machine=1, at_s=1.5, duration_s=3), Fault(machine=4, at_s=3, duration_s=60)),
    switch_delay_s=1.0,
)


def make(name: str, **options: Any) -> SchedulingEnv:
    env = gym.make(name, **(SMALL | options)).unwrapped
    assert isinstance(env, SchedulingEnv)
    return env


def choose(env: SchedulingEnv, rng: np.random.Generator) -> Any:
    """A random allowed action."""
    mask = env.action_masks()
    if isinstance(env.action_space, gym.spaces.Discrete):
        return int(rng.choice(np.flatnonzero(mask)))
    assert isinstance(env.action_space, gym.spaces.MultiDiscrete)
    parts = np.split(mask, np.cumsum(env.action_space.nvec)[:-1])
    return np.array([rng.choice(np.flatnonzero(part)) for part in parts])


def highest(env: SchedulingEnv) -> Any:
    """The action of the largest numbers."""
    space: Any = env.action_space
    return space.n - 1 if isinstance(space, gym.spaces.Discrete) else space.nvec - 1


def play(env: SchedulingEnv, seed: int = 0, steps: int | None = None) -> list[tuple[Any, ...]]:
    """(observation, reward, info) of an episode of random allowed actions, from reset's on."""
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    rows: list[tuple[Any, ...]] = [(observation, 0.0, info)]
    over = False
    while not over and (steps is None or len(rows) <= steps):
        observation, reward, terminated, over, info = env.step(choose(env, rng))
        assert not terminated
        rows.append((observation, reward, info))
    return rows


def digest(rows: list[tuple[Any, ...]]) -> str:
    """Hash of all observations and rewards."""
    total = hashlib.sha256()
    for observation, reward, info in rows:
        for key in sorted(observation):
            total.update(observation[key].tobytes())
        total.update(np.array([reward, info["elapsed_s"]]).tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("name", IDS)
def test_gymnasium_and_sb3_accept_it(name: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    for render_mode in ("ansi", "rgb_array"):
        check_env(make(name, render_mode=render_mode), skip_render_check=render_mode == "rgb_array")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*unconventional shape.*")
        sb3.check_env(make(name))


@pytest.mark.parametrize("name", IDS)
def test_defaults_work_offline(name: str) -> None:
    env = gym.make(name)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    env.step(env.action_space.sample())


@pytest.mark.parametrize("name", IDS)
def test_every_request_of_the_window_counts_once(name: str) -> None:
    env = make(name, rate_per_s=40.0)
    rows = play(env, seed=1)
    last = rows[-1][2]
    requests = last["requests"]
    assert requests.completed.all() and (requests.arrival_s >= 2).all() and len(requests) > 20
    good = int(requests.good.sum())
    assert 0 < good < len(requests)  # or the next line says little
    assert sum(reward for _, reward, _ in rows) == good - (len(requests) - good)
    named = [row for _, _, info in rows[1:] for row in info["outcomes_by_decision"]]
    assert sum(row[1] for row in named) == good and len(named) == len(requests)
    assert last["metrics"]["goodput"] == last["episode_metrics"]["goodput"] == good / len(requests)
    assert last["metrics"]["in_system"] == 0


@pytest.mark.parametrize("name", IDS)
def test_elapsed_time_adds_up(name: str) -> None:
    env = make(name)
    rows = play(env, seed=2)
    assert sum(info["elapsed_s"] for *_, info in rows) == pytest.approx(env.engine.outcomes().end_ns * 1e-9)
    assert all(info["elapsed_s"] >= 0 for *_, info in rows)


def test_integral_rewards_add_up_to_their_totals() -> None:
    weights = {"requests-in-system": 1.0, "energy": 1.0, "cost": 1.0}
    env = make("splitgym/Routing-v0", reward=weights, warmup_s=0.0)
    rows = play(env, seed=3)
    terms = [info["reward_terms"] for *_, info in rows[1:]]
    last = rows[-1][2]
    total = {key: sum(t[key] for t in terms) for key in terms[0]}
    assert total["requests_in_system"] == pytest.approx(-last["requests"].e2e_s.sum())
    assert total["energy"] == pytest.approx(-env.engine.outcomes().energy_j.sum() / 1000)
    # The time before the first decision is no step's.
    hours = (env.engine.outcomes().end_ns * 1e-9 - rows[0][2]["elapsed_s"]) / 3600
    assert total["cost"] == pytest.approx(-env.cluster.cost_per_hour * hours)


def test_requests_of_the_warmup_are_left_out_of_the_integral() -> None:
    env = make("splitgym/Joint-v0", reward="requests-in-system")
    rows = play(env, seed=4)
    total = sum(reward for _, reward, _ in rows)
    assert total == pytest.approx(-rows[-1][2]["requests"].e2e_s.sum())


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("confine", [False, True])
def test_the_engine_takes_every_unmasked_action(name: str, confine: bool) -> None:
    """With failures and switching delays; the engine raises for what it cannot do."""
    env = make(name, cluster=FAULTY, confine=confine, max_machines=8)
    rows = play(env, seed=5)
    assert rows[-1][2]["invalid_actions"] == 0
    assert any(not row[0]["machines"][:6, 10].all() for row in rows)  # a failure was seen


@pytest.mark.parametrize("name", IDS)
def test_masked_actions_are_counted_and_mapped(name: str) -> None:
    env = make(name, cluster=FAULTY, max_machines=8, episode_s=20.0)
    rng = np.random.default_rng(0)
    env.action_space.seed(0)
    env.reset(seed=6)
    wrong, over = 0, False
    while not over:
        mask = env.action_masks()
        anything = highest(env) if rng.random() < 0.5 else env.action_space.sample()
        action = anything if rng.random() < 0.5 else choose(env, rng)
        offsets = [0, *np.cumsum(getattr(env.action_space, "nvec", [0]))[:-1]]
        wrong += not all(mask[o + a] for o, a in zip(offsets, np.atleast_1d(action), strict=True))
        *_, over, info = env.step(action)
        assert info["invalid_actions"] == wrong
    assert wrong > 0


def test_an_action_outside_the_space_changes_nothing() -> None:
    env = make("splitgym/Routing-v0")
    env.reset(seed=0)
    before = env.decision
    with pytest.raises(ActionError, match="not in"):
        env.step([4, 0])
    assert env.decision is before
    env.step([0, 3])


def test_same_seed_same_episode_in_two_processes() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_envs import *\n"
        "print([digest(play(make(name), seed=7, steps=200)) for name in IDS])"
    )
    root = Path(__file__).resolve().parent.parent
    other = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    here = str([digest(play(make(name), seed=7, steps=200)) for name in IDS])
    assert other.stdout.strip().splitlines()[-1] == here
    env = make("splitgym/Joint-v0")
    assert digest(play(env, seed=7)) == digest(play(env, seed=7))  # nothing is left of an earlier episode
    assert digest(play(make("splitgym/Routing-v0"), seed=8, steps=200)) not in here


def test_flat_is_the_same_environment() -> None:
    pair, flat = make("splitgym/Routing-v0"), make("splitgym/Routing-v0", flat=True)
    pair.reset(seed=9)
    flat.reset(seed=9)
    rng = np.random.default_rng(0)
    for _ in range(50):
        action = choose(flat, rng)
        one = flat.step(action)
        two = pair.step(np.array(divmod(action, 4)))
        assert one[1] == two[1]
        np.testing.assert_array_equal(one[0]["machines"], two[0]["machines"])


def test_padding_changes_nothing_but_the_shape() -> None:
    plain, padded = make("splitgym/Routing-v0"), make("splitgym/Routing-v0", max_machines=7)
    a, b = plain.reset(seed=1)[0], padded.reset(seed=1)[0]
    assert b["machines"].shape[0] == 7 and padded.action_masks().shape == (14,)
    np.testing.assert_array_equal(a["machines"], b["machines"][:4])
    np.testing.assert_array_equal(b["mask"], [1, 1, 1, 1, 0, 0, 0])
    assert not b["machines"][4:].any() and not padded.action_masks()[[4, 5, 6, 11, 12, 13]].any()


def test_true_output_lengths_are_not_seen() -> None:
    """Traces that differ in output lengths look the same until the first completion; not with the oracle."""
    rng = np.random.default_rng(0)
    arrival, prompt = np.sort(rng.random(60)) * 3, rng.integers(100, 3000, 60)
    seen: dict[bool, list[list[bytes]]] = {False: [], True: []}
    for oracle, rows in seen.items():
        for outputs in (rng.integers(400, 800, 60), rng.integers(400, 800, 60)):
            env = make("splitgym/Routing-v0", oracle=oracle)
            trace = Trace(arrival, prompt, outputs, None, "made", {})
            observation, _ = env.reset(seed=0, options={"trace": trace})
            row = [b"".join(a.tobytes() for a in observation.values())]
            over = False
            while not over:
                observation, *_, over, _ = env.step([len(row) % 2, 2 + len(row) % 2])
                if env.engine.outcomes().finish_order:
                    break
                row.append(b"".join(a.tobytes() for a in observation.values()))
            rows.append(row)
    assert len(seen[False][0]) > 20
    assert seen[False][0] == seen[False][1]
    assert seen[True][0] != seen[True][1]


def test_joint_asks_for_both_and_sizing_for_resizes_alone() -> None:
    env = make("splitgym/Joint-v0")
    env.reset(seed=0)
    kinds, over, rng = set(), False, np.random.default_rng(0)
    while not over:
        assert env.decision is not None
        kinds.add(env.decision.kind)
        *_, over, _ = env.step(choose(env, rng))
    assert kinds == {DecisionKind.ROUTE, DecisionKind.RESIZE}
    rows = play(make("splitgym/PoolSizing-v0"), seed=0)
    times = np.cumsum([info["elapsed_s"] for *_, info in rows])
    assert times[:-1].tolist() == pytest.approx([2.0, 4.0, 6.0])  # ticks in the window, then the tail


def test_sizing_outcomes_name_the_tick_before_the_arrival() -> None:
    env = make("splitgym/PoolSizing-v0", warmup_s=0.0)
    rows = play(env, seed=0)
    causes = [row[0] for _, _, info in rows[1:] for row in info["outcomes_by_decision"]]
    decisions = [info["decision_id"] for _, _, info in rows[1:]]
    ticks = np.cumsum([info["elapsed_s"] for *_, info in rows])[:-1]
    arrivals = rows[-1][2]["requests"].arrival_s
    expected = [-1, *decisions]
    counts = {cause: causes.count(cause) for cause in set(causes)}
    by_tick = [expected[i] for i in np.searchsorted(ticks, arrivals, "left")]
    assert counts == {cause: by_tick.count(cause) for cause in set(by_tick)} and len(counts) > 2


def test_resizing_moves_machines() -> None:
    env = make("splitgym/PoolSizing-v0", cluster="h100-80gb:1P3T")
    env.reset(seed=0)
    assert env.action_masks().tolist() == [False, True, True]
    env.step(2)
    assert np.bincount(env.engine.view.home_pool).tolist() == [2, 2]


def test_decision_ids_follow_each_other() -> None:
    rows = play(make("splitgym/Joint-v0"), seed=0)
    for (*_, before), (*_, after) in pairwise(rows):
        assert after["decision_id"] == before["next_decision_id"]
    assert rows[0][2]["decision_id"] == rows[-1][2]["next_decision_id"] == -1


def test_step_needs_reset() -> None:
    env = make("splitgym/PoolSizing-v0")
    with pytest.raises(ResetNeeded):
        env.step(1)
    play(env)
    with pytest.raises(ResetNeeded):
        env.step(1)


@pytest.mark.parametrize("arrivals", ["poisson", "stamps"])
def test_rates_and_windows(arrivals: str) -> None:
    env = make("splitgym/Routing-v0", arrivals=arrivals, rate_per_s=(5.0, 40.0), episode_s=8.0)
    counts = []
    for seed in range(12):
        env.reset(seed=seed)
        times = env.engine.outcomes().arrival_ns * 1e-9
        assert times.min() >= 0 and times.max() < 10.0
        counts.append(len(times) / 10)
    assert min(counts) < 15 < 25 < max(counts)
    assert 4 < np.mean(counts) < 45


def test_an_own_source_of_traces() -> None:
    class Bursts:
        def draw(self, rng: np.random.Generator) -> Trace:
            times = np.repeat([0.5, 3.0], 5)
            return Trace(times, np.full(10, 500), np.full(10, 20), None, "bursts", {})

    env = make("splitgym/Routing-v0", trace=Bursts())
    assert len(play(env)) == 11
    assert len(play(env)[-1][2]["requests"]) == 5  # the first burst is warm-up


def test_rendering() -> None:
    env = make("splitgym/Routing-v0", render_mode="rgb_array", cluster=FAULTY)
    play(env, steps=40)
    image = env.render()
    assert isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == (272, 800, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10
    assert np.array_equal(image, env.render()), "the same state is the same picture"
    text = make("splitgym/Joint-v0", render_mode="ansi")
    play(text, steps=10)
    shown = text.render()
    assert isinstance(shown, str) and len(shown.splitlines()) == 5 and "home prompt" in shown


def test_human_rendering_is_the_same_picture_kept_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    matplotlib.use("Agg")
    with pytest.warns(UserWarning, match="opens no window"):
        human = make("splitgym/Routing-v0", render_mode="human", cluster=FAULTY)
        play(human, steps=40)
    live = human.unwrapped._live
    drawn = live.pictures
    assert 1 <= drawn <= 41
    assert human.render() is None and live.pictures == drawn + 1
    image = make("splitgym/Routing-v0", render_mode="rgb_array", cluster=FAULTY)
    play(image, steps=40)
    shown = np.asarray(live.window.figure.canvas.buffer_rgba())[:, :, :3]
    assert np.array_equal(shown, image.render())
    live.window.close()
    human.step(human.action_space.sample())
    human.render()
    assert live.pictures == drawn + 1, "a window that was closed stays closed"
    human.close()


def test_the_gantt_chart_shows_what_happened() -> None:
    from splitgym.envs import gantt

    env = make("splitgym/Routing-v0")
    play(env, steps=60)
    outcomes, now_s = env.unwrapped.engine.outcomes(), env.unwrapped.engine.view.clock[0] / 1e9
    prompts, transfers = gantt.bars(outcomes, now_s)
    begun = outcomes.prompt_start_ns >= 0
    assert len(prompts) == ((outcomes.prompt_start_ns < now_s * 1e9) & begun).sum() > 10
    longest = max(b[0] - a[0] for a, b, *_ in prompts)
    assert 0 < longest < gantt.SPAN_S and len(transfers) > 0
    decoding = gantt.decodes(outcomes, now_s, len(env.unwrapped.engine.view.pool))
    assert (decoding[:, -1] <= env.unwrapped.engine.view.running).all() and decoding.sum() > 0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"cluster": "h100:5P"}, "machine|profile|phase"),
    ({"cluster": "h100-80gb 5P3T"}, "MACHINE:COUNTS"),
    ({"cluster": "h100-80gb:8P"}, "no machine for the token phase"),
    ({"cluster": {"machine": "h100"}}, "is no known key"),
    ({"cluster": 8}, "cluster is 8"),
    ({"model": "gpt-9"}, "gpt-9"),
    ({"trace": "azure-nothing"}, "azure-nothing"),
    ({"trace": 5}, "trace is 5"),
    ({"part": "exam"}, "part is 'exam'"),
    ({"rate_per_s": -1.0}, "rate_per_s"),
    ({"rate_per_s": (9.0, 3.0)}, "rate_per_s"),
    ({"arrivals": "bursty"}, "arrivals is 'bursty'"),
    ({"arrivals": "stamps", "rate_per_s": 4000.0}, "shorter than a window"),
    ({"episode_s": 0}, "episode_s"),
    ({"warmup_s": -1}, "warmup_s"),
    ({"max_machines": 3}, "max_machines is 3"),
    ({"reward": "best"}, "reward 'best'"),
    ({"engine": "quantum"}, "quantum"),
    ({"episode": 5}, "episode: is no known key"),
    ({"render_mode": "film"}, "render_mode"),
    ({"sizing": "huge"}, "huge"),
    ({"sizing": 4}, "sizing is 4"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_arguments_are_one_clear_error(options: dict[str, Any], message: str) -> None:
    from splitgym.envs import RoutingEnv

    with pytest.raises(SplitgymError, match=message):
        RoutingEnv(**(SMALL | options))


def test_wrong_routing_scheduler() -> None:
    with pytest.raises(ConfigError, match="no routing scheduler"):
        make("splitgym/PoolSizing-v0", routing="magic")
    with pytest.raises(ConfigError, match="routing is 3"):
        make("splitgym/PoolSizing-v0", routing=3)


def test_docstrings_are_true() -> None:
    from splitgym.envs import routing

    assert doctest.testmod(routing).failed == 0
    shapes = {k: v.shape for k, v in make("splitgym/Routing-v0").reset()[0].items()}
    for key, shape in (("cluster", "({},)"), ("request", "({},)"), ("machines", "(M, {})")):
        assert f"| {key} | {shape.format(shapes[key][-1])} |" in str(routing.RoutingEnv.__doc__)


def test_importing_the_package_registers_the_ids() -> None:
    assert splitgym.__version__
    assert all(name in gym.registry for name in IDS)
