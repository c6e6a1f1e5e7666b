"""Evolution: the searches, scenarios, tail, run folders, resume, and its agents in evaluation."""

import csv
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

th = pytest.importorskip("torch")

from agents import evolution, scenarios  # noqa: E402
from agents.cli import contender as by_command_line  # noqa: E402
from agents.config import EvolutionConfig, resolve  # noqa: E402
from agents.evaluation import load_agent  # noqa: E402
from agents.runs import RunFolder  # noqa: E402
from agents.search import (  # noqa: E402
    CrossEntropy,
    EvolutionStrategies,
    first_weights,
    linear_ranks,
    sigma,
    to_theta,
    to_weights,
)
from agents.training import resume, train  # noqa: E402
from splitgym.config import ClusterConfig, parse_machines  # noqa: E402
from splitgym.errors import ConfigError  # noqa: E402
from splitgym.evaluation import evaluate  # noqa: E402
from splitgym.metrics import RequestTable  # noqa: E402
from splitgym.schedulers import Residual, routing  # noqa: E402
from splitgym.schedulers.residual import index_weights, size, unpack  # noqa: E402

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
    return evolution.read_arrays(path / "model.zip")


def test_ranks_are_linear_and_fair():
    np.testing.assert_array_equal(linear_ranks(np.array([3.0, 1.0, 2.0])), [0.5, -0.5, 0.0])
    np.testing.assert_array_equal(linear_ranks(np.array([1.0, 1.0, 0.0])), [0.25, 0.25, -0.5])


def test_weights_and_theta():
    weights = first_weights(4, np.random.default_rng(0))
    np.testing.assert_allclose(to_weights(to_theta(weights)), weights, rtol=1e-12)
    assert sigma(4).shape == weights.shape and (sigma(4) > 0).all()
    assert not unpack(weights)["output_weights"].any()


def climb(search, target, steps=60):
    """Fitness is closeness to a target in units of the noise."""
    rng = np.random.default_rng(1)
    scale = np.ones(len(target))
    scale[:14] = sigma(0)[:14]
    for step in range(steps):
        candidates = search.ask(rng)
        distance = [np.abs((to_theta(c)[:14] - target[:14]) / scale[:14]).sum() for c in candidates]
        search.tell(-np.array(distance), step / steps)
    return np.abs((to_theta(search.result())[:14] - target[:14]) / scale[:14]).sum()


@pytest.mark.parametrize("algo", ["es", "cem"])
def test_searches_climb(algo):
    start = index_weights()
    target = to_theta(start) + 3 * sigma(0) * np.resize([1, -1], size(0))
    options = EvolutionConfig(average=0.2)
    search = EvolutionStrategies(options, start, 0) if algo == "es" else CrossEntropy(options, start)
    assert climb(search, target) < 0.5 * 3 * 14


def test_es_candidates_are_mirrored():
    search = EvolutionStrategies(EvolutionConfig(pairs=3), first_weights(2, np.random.default_rng(0)), 2)
    thetas = np.array([to_theta(c) for c in search.ask(np.random.default_rng(0))])
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
    assert len({s.workload.base_name for s in drawn}) == 2
    assert {s.workload.part for s in scenarios.judged(made)} == {"validation"}


def test_scores_are_those_of_evaluation():
    made = config()
    drawn = scenarios.judged(made)[0]
    with ThreadPoolExecutor(2) as pool:
        scores = scenarios.score([index_weights(), index_weights("default")], [drawn], pool)
    for row, name in enumerate(("index-tuned", "index")):
        results = evaluate([routing(name)], drawn.cluster, [drawn.workload], [0])
        assert scores.goodput[row, 0] == results.values("goodput", name)[0]
        assert scores.ttft_p99[row, 0] == pytest.approx(results.values("ttft_slowdown_p99", name)[0])


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


def test_a_search_starts_from_another(tmp_path):
    train(config(steps=1), tmp_path / "first", show=False)
    made = config(evolution={"start": str(tmp_path / "first")})
    search = evolution.make_search(made)
    best = arrays(tmp_path / "first" / "best")[0]
    np.testing.assert_allclose(search.result(), best, rtol=1e-12)


def test_errors_come_before_the_run(tmp_path):
    with pytest.raises(ConfigError, match="no hyperparameters for env 'pool_sizing'"):
        resolve({**TINY, "algo": "es", "env": "pool_sizing"})
    with pytest.raises(ConfigError, match=r"too short for all workloads"):
        long = {"workload": {"warmup_s": 2.0, "episode_s": 90_000.0}}
        only = {"workloads": ["stamps:azure-conv-synth"]}
        train(config(evolution=only, **long), tmp_path / "run", show=False)
    with pytest.raises(ConfigError, match="no run folder"):
        load_agent(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "model.zip").write_bytes(b"no zip")
    with pytest.raises(ConfigError, match="no weights of an evolved agent"):
        evolution.read_arrays(tmp_path / "model.zip")
