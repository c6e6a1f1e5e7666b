"""Evolution: the searches, scenarios, tail, run folders, resume, and its agents in evaluation."""

import csv
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

th = pytest.importorskip("torch")

from agents import evolution, scenarios  # noqa: E402
from agents.cli import contender as by_command_line  # noqa: E402
from agents.config import resolve  # noqa: E402
from agents.evaluation import load_agent  # noqa: E402
from agents.evolution_config import EvolutionConfig  # noqa: E402
from agents.routers import compiled_router  # noqa: E402
from agents.runs import RunFolder  # noqa: E402
from agents.search import CrossEntropy, EvolutionStrategies, linear_ranks  # noqa: E402
from agents.sizing_spaces import RuleSpace, SizingSpace  # noqa: E402
from agents.space import to_theta, to_weights  # noqa: E402
from agents.spaces import JointSpace, RoutingSpace, space_of  # noqa: E402
from agents.teachers import find_scheduler  # noqa: E402
from agents.training import resume, train  # noqa: E402
from benchmarks.learned import weights as kept_weights  # noqa: E402
from splitgym.config import ClusterConfig, parse_machines  # noqa: E402
from splitgym.errors import ConfigError  # noqa: E402
from splitgym.evaluation import evaluate  # noqa: E402
from splitgym.metrics import RequestTable  # noqa: E402
from splitgym.schedulers import Residual, SizingNet, routing, sizing  # noqa: E402
from splitgym.schedulers.residual import index_weights, size  # noqa: E402

TINY = {
    "steps": 4,
    "workload": {"warmup_s": 2.0, "episode_s": 8.0},
    "evolution": {
        "machines": [2, 3],
        "models": ["llama2-70b"],
        "workloads": ["poisson:azure-code-synth", "stamps:azure-conv-synth"],
        "scenarios": 2,
        "pairs": 2,
        "hidden": 3,
        "population": 4,
        "clusters_judged": ["h100-80gb:2M"],
        "loads_judged": [1.2],
        "threads": 2,
    },
    "evaluation": {"every": 2, "windows": 1},
    "checkpoint": {"every": 1, "keep": 10},
}


def config(algo="es", **over):
    fields = {**TINY, "algo": algo}
    for key, value in over.items():
        fields[key] = {**fields[key], **value} if isinstance(value, dict) else value
    return resolve(fields)


def arrays(path):
    return evolution.read_arrays(path / "model.zip", RoutingSpace(3))


def test_ranks_are_linear_and_fair():
    np.testing.assert_array_equal(linear_ranks(np.array([3.0, 1.0, 2.0])), [0.5, -0.5, 0.0])
    np.testing.assert_array_equal(linear_ranks(np.array([1.0, 1.0, 0.0])), [0.25, 0.25, -0.5])


SPACES = (
    RoutingSpace(4),
    SizingSpace(5),
    RuleSpace("reactive"),
    RuleSpace("ewma"),
    JointSpace(RoutingSpace(4), SizingSpace(5)),
)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_weights_and_theta(space):
    weights = space.first(np.random.default_rng(0), (None, None))
    np.testing.assert_allclose(to_weights(space, to_theta(space, weights)), weights, rtol=1e-12)
    for numbers in (space.sigma(), space.cem_std(), space.logs()):
        assert numbers.shape == weights.shape
    assert (space.sigma() > 0).all() and (space.cem_std() > 0).any()
    assert (weights[space.logs()] > 0).all()
    parts = space.unpack(weights)
    assert not any(part.any() for name, part in parts.items() if name.endswith("output_weights"))
    np.testing.assert_array_equal(space.pack(parts), weights)
    routing, sizing = space.schedulers(weights, "made")
    assert (routing is not None) == (not isinstance(space, (SizingSpace, RuleSpace)))
    assert (sizing is not None) == (not isinstance(space, RoutingSpace))


def test_a_search_begins_at_what_was_tuned_before():
    rng = np.random.default_rng(0)
    tuned = sizing("reactive", token_high=1.5, cool_down_s=3.0)
    first = SizingSpace(4).first(rng, (None, tuned))
    made = SizingSpace(4).unpack(first)
    assert made["rule"][2] == 1.5 and made["rule"][4] == 3.0 and made["input_weights"].any()
    grown = SizingNet(weights=tuple((first + 0.1).tolist()))
    np.testing.assert_array_equal(SizingSpace(9).first(rng, (None, grown)), grown.params)
    assert SizingSpace(9).fitted(grown.params) == SizingSpace(4)
    np.testing.assert_array_equal(RuleSpace("reactive").first(rng, (None, tuned))[[2, 4]], [1.5, 3.0])
    joint = JointSpace(RoutingSpace(2), SizingSpace(4))
    both = joint.first(rng, (Residual(weights=tuple(index_weights(hidden=2).tolist())), grown))
    assert joint.schedulers(both, "x")[1].weights == grown.weights
    with pytest.raises(ConfigError, match="other widths"):
        JointSpace(RoutingSpace(2), SizingSpace(5)).fitted(both)


SPACE = RoutingSpace(0)


def climb(search, target, steps=60):
    """Fitness is closeness to a target in units of the noise."""
    rng = np.random.default_rng(1)
    scale = np.ones(len(target))
    scale[:14] = SPACE.sigma()[:14]
    for step in range(steps):
        candidates = search.ask(rng)
        distance = [np.abs((to_theta(SPACE, c) - target) / scale).sum() for c in candidates]
        search.tell(-np.array(distance), step / steps)
    return np.abs((to_theta(SPACE, search.result()) - target) / scale).sum()


@pytest.mark.parametrize("algo", ["es", "cem"])
def test_searches_climb(algo):
    start = index_weights()
    target = to_theta(SPACE, start)
    target[:14] += 3 * SPACE.sigma()[:14] * np.resize([1, -1], 14)
    options = EvolutionConfig(average=0.2)
    search = (EvolutionStrategies if algo == "es" else CrossEntropy)(options, SPACE, start)
    assert climb(search, target) < 0.5 * 3 * 14


def test_es_candidates_are_mirrored():
    space = RoutingSpace(2)
    first = space.first(np.random.default_rng(0), (None, None))
    search = EvolutionStrategies(EvolutionConfig(pairs=3), space, first)
    thetas = np.array([to_theta(space, c) for c in search.ask(np.random.default_rng(0))])
    np.testing.assert_allclose(
        thetas[:3] + thetas[3:], 2 * np.tile(search.arrays["theta"], (3, 1)), atol=1e-9
    )


def table(slowdowns):
    fields = {name: np.zeros(len(slowdowns)) for name in RequestTable.__dataclass_fields__}
    return RequestTable(**{**fields, "ttft_slowdown": np.array(slowdowns, float)})


def test_the_tail_counts_what_a_few_wait():
    assert scenarios.tail(table([1.0] * 100)) == 0.0
    assert scenarios.tail(table([5.9] * 100)) == 0.0
    assert scenarios.tail(table([1.0] * 98 + [12.0, 24.0])) == pytest.approx(np.log(2) * 1.5)
    # The same wait shared by many costs less than by two of a hundred.
    assert scenarios.tail(table([7.0] * 100)) < scenarios.tail(table([1.0] * 98 + [300.0, 300.0]))


def test_the_tail_may_weigh_less_where_somebody_must_wait():
    goodput, tail = np.array([[0.8, 0.5, 0.7]]), np.array([[1.0, 4.0, 2.0]])
    scores = scenarios.Scores(goodput, tail, tail, tail, tail, np.array([1.2, 1.6, np.nan]))
    plain = EvolutionConfig(tail_weight=0.1)
    assert scores.fitness(plain) == pytest.approx((0.7 + 0.1 + 0.5) / 3)
    milder = replace(plain, tail_weight_overload=0.01, overload_from=1.5)
    assert scores.fitness(milder) == pytest.approx((0.7 + 0.46 + 0.5) / 3)


def test_ranks_count_small_differences_as_much_as_large_ones():
    goodput, none = (
        np.array([[0.99, 0.2, np.nan], [0.98, 0.9, np.nan], [0.97, 0.3, np.nan]]),
        np.zeros((3, 3)),
    )
    scores = scenarios.Scores(goodput, none, none, none, none, np.array([0.5, 1.5, 1.0]))
    assert scores.merit(EvolutionConfig()) == pytest.approx([0.595, 0.94, 0.635])
    # Ranks of the first scenario are .5, 0, -.5, of the second -.5, .5, 0; one without requests has none.
    assert scores.merit(EvolutionConfig(ranked="scenario")) == pytest.approx([0.0, 0.25, -0.25])


def table_of(**slowdowns):
    return replace(
        table(slowdowns["ttft"]), **{f"{kind}_slowdown": found for kind, found in slowdowns.items()}
    )


def test_missing_the_nine_slos_costs_up_to_a_load_and_no_more_than_it_may():
    limits = {"ttft": (2.0, 3.0, 6.0), "tbt": (1.25, 1.5, 5.0), "e2e": (1.25, 1.5, 5.0)}
    held = dict.fromkeys(("ttft", "tbt", "e2e"), np.ones(100))
    assert scenarios.excess(table_of(**held)) == 0.0
    # All requests alike: each percentile is that number. p50 and p90 of E2E lie beyond, p99 does not.
    over = np.log(1.5 / 1.25) + 0.05 + 0.05
    assert scenarios.excess(table_of(**held | {"e2e": np.full(100, 1.5)})) == pytest.approx(over)
    # Just below the limit costs a little; lost beyond measure costs as much as 1.65 times the limit.
    assert 0 < scenarios.excess(table_of(**held | {"ttft": np.full(100, 1.97)})) < 0.05
    lost = scenarios.excess(table_of(**{kind: np.full(100, np.inf) for kind in limits}))
    assert lost == pytest.approx(9 * 0.55)
    scores = scenarios.Scores(*(np.array([[x, x]]) for x in (0.8, 0.0, 1.0, 0.0, 2.0)), np.array([1.2, 1.4]))
    costly = EvolutionConfig(slo_weight=0.1, slo_until=1.3)
    assert scores.fitness(costly) == pytest.approx(0.8 - 0.1)


def test_scenarios_are_drawn_as_asked():
    made = config(evolution={"scenarios": 12, "machines": [2, 4], "loads": [0.5, 0.6]})
    drawn = scenarios.draw(made, np.random.default_rng(0))
    again = scenarios.draw(made, np.random.default_rng(0))
    assert len(drawn) == 12
    for a, b in zip(drawn, again, strict=True):
        assert a.workload == b.workload and a.cluster is b.cluster
        np.testing.assert_array_equal(a.trace.arrival_s, b.trace.arrival_s)
    assert {s.workload.part for s in drawn} == {"train"}
    assert {s.cluster.num_machines for s in drawn} == {2, 3, 4}
    assert all(0.5 <= s.load <= 0.6 for s in drawn)
    assert len({s.workload.base_name for s in drawn}) == 2
    assert {s.workload.part for s in scenarios.judged(made)} == {"validation"}


def test_disturbed_scenarios():
    """Other lengths and wrong profiles, on the windows that come without them; never in validation."""
    plain = config(evolution={"scenarios": 12})
    made = config(evolution={"scenarios": 12, "profile_error": 0.2, "length_shift": 0.3})
    drawn, again, true = (scenarios.draw(c, np.random.default_rng(0)) for c in (made, made, plain))
    ratios, factors = [], []
    for one, same, before in zip(drawn, again, true, strict=True):
        assert one.workload == before.workload and one.cluster.config == before.cluster.config
        assert one.cluster.believed == same.cluster.believed and before.cluster.believed is None
        np.testing.assert_array_equal(one.trace.arrival_s, before.trace.arrival_s)
        factors += one.cluster.believed
        ratios.append(one.trace.output_tokens.sum() / before.trace.output_tokens.sum())
    assert 0.8 <= min(factors) < 0.9 and 1.1 < max(factors) <= 1.2 and len(set(factors)) == 24
    assert 0.69 < min(ratios) < 0.85 and 1.05 < max(ratios) < 1.31
    assert {s.cluster.believed for s in scenarios.judged(made)} == {None}
    alone = scenarios.draw(
        config(evolution={"scenarios": 12, "profile_error": 0.2}), np.random.default_rng(0)
    )
    assert [s.cluster.believed for s in alone] == [s.cluster.believed for s in drawn]
    np.testing.assert_array_equal(alone[0].trace.output_tokens, true[0].trace.output_tokens)
    for wrong in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="profile_error"):
            config(evolution={"profile_error": wrong})
    with pytest.raises(ConfigError, match="true profiles"):
        config(algo="ppo", evolution={"profile_error": 0.2})


def test_scores_are_those_of_evaluation():
    made = config()
    drawn = scenarios.judged(made)[0]
    with ThreadPoolExecutor(2) as pool:
        both = [index_weights(), index_weights("default")]
        scores = scenarios.score(both, RoutingSpace(0), [drawn], pool)
    for row, name in enumerate(("index-tuned", "index")):
        results = evaluate([routing(name)], drawn.cluster, [drawn.workload], [0])
        assert scores.goodput[row, 0] == results.values("goodput", name)[0]
        assert scores.ttft_p99[row, 0] == pytest.approx(results.values("ttft_slowdown_p99", name)[0])


def test_energy_may_cost_fitness():
    made = config(env="pool_sizing", evolution=POOLS | {"energy_weight": 0.5})
    drawn = scenarios.judged(made)[:2]
    with ThreadPoolExecutor(1) as pool:
        space = SizingSpace(2)
        scores = scenarios.score([space.plain()], space, drawn, pool)
    results = evaluate(["index-tuned"], drawn[0].cluster, [drawn[0].workload], [0], sizing="reactive")
    used = results.select()[0]
    assert scores.energy_kj.shape == (1, 2) and 0.5 < scores.energy_kj[0, 0] < 50
    assert used.metrics.energy_per_request_j / 1e3 == pytest.approx(scores.energy_kj[0, 0])
    asked = EvolutionConfig(tail_weight=0.1)
    plain, dear = scores.fitness(asked), scores.fitness(replace(asked, energy_weight=0.5))
    np.testing.assert_allclose(plain - dear, 0.5 * scores.energy_kj.mean(axis=1))


@pytest.mark.parametrize("algo", ["es", "cem"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, algo, monkeypatch):
    whole = train(config(algo), tmp_path / "whole", show=False)
    assert (whole.state, whole.steps) == ("finished", 4)

    class Killed(Exception):
        pass

    step = evolution.EvolutionRun._step

    def dies(self, pool):
        if self.generation == 2:
            raise Killed
        return step(self, pool)

    monkeypatch.setattr(evolution.EvolutionRun, "_step", dies)
    with pytest.raises(Killed):
        train(config(algo, evolution={"threads": 1}), tmp_path / "killed", show=False)
    monkeypatch.setattr(evolution.EvolutionRun, "_step", step)
    assert RunFolder(tmp_path / "killed").latest_checkpoint().name == "step-000000000002"
    assert resume(tmp_path / "killed", show=False).state == "finished"
    for place in ("checkpoints/step-000000000004", "best"):
        a, b = (arrays(tmp_path / run / place) for run in ("whole", "killed"))
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1].keys() == b[1].keys()
        for name in a[1]:
            np.testing.assert_array_equal(a[1][name], b[1][name], err_msg=name)
    rows = [list(csv.reader((tmp_path / run / "evaluations.csv").open())) for run in ("whole", "killed")]
    assert rows[0] == rows[1] and [row[0] for row in rows[0]] == ["steps", "0", "2", "4"]
    assert resume(tmp_path / "whole", show=False).steps == 4
    moved = arrays(tmp_path / "whole" / "checkpoints/step-000000000004")[0]
    assert not np.array_equal(moved[:14], index_weights()[:14])


def test_a_run_is_a_policy(tmp_path):
    train(config(steps=1), tmp_path / "run", show=False)
    agent = load_agent(tmp_path / "run", "latest")
    assert isinstance(agent, Residual) and agent.name == "run"
    assert len(agent.weights) == size(3)
    big = ClusterConfig(model="llama2-70b", machines=parse_machines("h100-80gb:3P2T"))
    entrant = by_command_line(str(tmp_path / "run"), big)
    results = evaluate([entrant, "index"], big, ["poisson:azure-code-synth@4"], [0])
    assert results.policies == (str(tmp_path / "run"), "index")
    assert tmp_path.joinpath("run/tensorboard").iterdir()


def test_kept_weights_say_which_generation_they_are(tmp_path, monkeypatch):
    train(config(steps=2), tmp_path / "run", show=False)
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.rmtree(checkpoints / "step-000000000002")  # as if it had been killed before it was written
    monkeypatch.setattr(kept_weights, "FOLDER", tmp_path)
    best, latest = (
        json.loads(kept_weights.keep(tmp_path / "run", which, "", which).read_text())
        for which in ("best", "latest")
    )
    judged = [row for row in RunFolder(tmp_path / "run").evaluations() if row["best"] == "1"][-1]
    assert best["generation"] == int(judged["steps"])
    assert best["validation"]["fitness"] == pytest.approx(float(judged["fitness"]), abs=1e-4)
    assert latest["generation"] == 1 and "validation" not in latest, "nobody judged that one"
    with pytest.raises(ConfigError, match="no model yet"):
        shutil.rmtree(checkpoints)
        kept_weights.keep(tmp_path / "run", "none", "", "latest")


def test_a_run_becomes_a_bundle(tmp_path):
    from agents.export import export_run

    train(config("cem", steps=1), tmp_path / "run", show=False)
    bundle = export_run(tmp_path / "run", tmp_path / "bundle", name="grown")
    agent = load_agent(tmp_path / "run")
    np.testing.assert_array_equal(bundle.routing.params, agent.params)
    assert bundle.name == "grown" and bundle.manifest.metrics["goodput"] > 0
    assert bundle.manifest.training["config"]["algo"] == "cem"
    with pytest.raises(ConfigError, match="leave out --onnx"):
        export_run(tmp_path / "run", tmp_path / "other", onnx=True)


POOLS = {
    "clusters": "many",
    "machines": [3, 4],
    "hidden_sizing": 3,
    "workloads": ["poisson:azure-code-synth"],
    "clusters_judged": ["h100-80gb:2P1T"],
    "switch_delays_s": [0.0, 5.0],
}


def test_clusters_with_pools_are_drawn_confined_with_their_delays():
    made = config(env="pool_sizing", evolution=POOLS | {"scenarios": 20, "mixed": 0.5})
    drawn = [s.cluster.config for s in scenarios.draw(made, np.random.default_rng(0))]
    pools = [[g.pool for g in c.machines for _ in range(g.count)] for c in drawn]
    assert all({"prompt", "token"} == set(p) for p in pools)
    assert all(c.confine for c in drawn) and {c.switch_delay_s for c in drawn} == {0.0, 5.0}
    assert len({tuple(p) for p in pools}) > 2
    assert {s.cluster.config.switch_delay_s for s in scenarios.judged(made)} == {0.0, 5.0}


@pytest.mark.parametrize(("env", "algo"), [("pool_sizing", "es"), ("pool_sizing", "cem"), ("joint", "es")])
def test_what_resizes_is_trained_resumed_evaluated_and_exported(tmp_path, env, algo):
    """A run in one go and one that is cut off end alike; the bundle decides as the run's schedulers."""
    from agents.export import export_run
    from splitgym import policy

    made = config(algo, env=env, steps=2, evolution=POOLS)
    whole = train(made, tmp_path / "whole", show=False)
    assert (whole.state, whole.steps) == ("finished", 2)
    latest = tmp_path / "whole" / "checkpoints" / "step-000000000002"
    space = evolution.make_search(made)[0]
    weights, _ = evolution.read_arrays(latest / "model.zip", space)
    assert not np.array_equal(weights, space.first(np.random.default_rng([0, 0, 2]), (None, None)))
    folder = tmp_path / "cut"
    train(made, folder, show=False)
    newest = folder / "checkpoints" / "step-000000000002"
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    RunFolder(folder).set_progress(1, 2, "interrupted")
    resume(folder, show=False)
    again, _ = evolution.read_arrays(newest / "model.zip", space)
    np.testing.assert_array_equal(weights, again)

    cluster = ClusterConfig(model="llama2-70b", machines=parse_machines("h100-80gb:2P2T"))
    assert hasattr(find_scheduler(str(tmp_path / "whole"), {}, sizing=True), "resize")
    entrant = by_command_line(str(tmp_path / "whole"), cluster)
    assert entrant.cluster.confine
    bundle = export_run(tmp_path / "whole", tmp_path / "bundle", name="grown")
    assert bundle.manifest.action.kind == env and bundle.manifest.action.confine
    same = policy.contender(tmp_path / "bundle", cluster, name="bundle")
    results = evaluate([entrant, same], cluster, ["poisson:azure-code-synth@12"], [0])
    ours, theirs = (results.select(name)[0] for name in results.policies)
    assert ours.metrics == theirs.metrics
    np.testing.assert_array_equal(ours.timeline, theirs.timeline)


def test_a_search_starts_from_another(tmp_path):
    train(config(steps=1), tmp_path / "first", show=False)
    made = config(evolution={"start": str(tmp_path / "first")})
    _, search = evolution.make_search(made)
    best = arrays(tmp_path / "first" / "best")[0]
    np.testing.assert_allclose(search.result(), best, rtol=1e-12)


def test_an_index_tuned_by_cem_gets_a_network():
    tuned = Residual(weights=tuple((index_weights() * 1.1).tolist()))
    first = RoutingSpace(4).first(np.random.default_rng(0), (tuned, None))
    parts = RoutingSpace(4).unpack(first)
    np.testing.assert_array_equal(np.concatenate([parts["index"], parts["hinges"]]), tuned.params[:14])
    assert parts["input_weights"].any() and not parts["output_weights"].any()
    np.testing.assert_array_equal(
        RoutingSpace(0).first(np.random.default_rng(0), (tuned, None)), tuned.params
    )


def test_errors_come_before_the_run(tmp_path):
    with pytest.raises(ConfigError, match="no hyperparameters for env 'joint' with algo 'cem'"):
        resolve({**TINY, "algo": "cem", "env": "joint"})
    with pytest.raises(ConfigError, match="rule ewma is for cem"):
        space_of(config(env="pool_sizing", evolution={"rule": "ewma"}))
    with pytest.raises(ConfigError, match="start_sizing is for env joint"):
        config(evolution={"start_sizing": "runs/x"})
    with pytest.raises(ConfigError, match="router 'nobody' is no scheduler"):
        compiled_router("nobody")
    with pytest.raises(ConfigError, match=r"too short for all workloads"):
        long = {"workload": {"warmup_s": 2.0, "episode_s": 90_000.0}}
        only = {"workloads": ["stamps:azure-conv-synth"]}
        train(config(evolution=only, **long), tmp_path / "run", show=False)
    with pytest.raises(ConfigError, match="no run folder"):
        load_agent(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "model.zip").write_bytes(b"no zip")
    with pytest.raises(ConfigError, match="no weights of an evolved agent"):
        evolution.read_arrays(tmp_path / "model.zip", RoutingSpace(3))
