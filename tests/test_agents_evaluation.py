"""A trained run as a scheduler: it decides as in training, obeys masks, loads from its own folder only."""

import dataclasses
import shutil

import numpy as np
import pytest

th = pytest.importorskip("torch")

from agents import demo  # noqa: E402
from agents.cli import contender as by_command_line  # noqa: E402
from agents.config import (  # noqa: E402
    RunConfig,
    cluster_of,
    resolve,
)
from agents.evaluation import Agent, contender, load_agent, machines_of, make_codec  # noqa: E402
from agents.models import build_model  # noqa: E402
from agents.task import SimulatorTask  # noqa: E402
from agents.training import train  # noqa: E402
from splitgym.cluster import Cluster  # noqa: E402
from splitgym.config import ClusterConfig, Fault, MachineGroup  # noqa: E402
from splitgym.errors import ConfigError  # noqa: E402
from splitgym.evaluation import evaluate  # noqa: E402
from splitgym.observation import observation_space  # noqa: E402
from splitgym.schedulers import sizing  # noqa: E402
from splitgym.sim import make_engine  # noqa: E402

MACHINES = [
    {"machine": "h100-80gb", "count": 2, "pool": "prompt"},
    {"machine": "h100-80gb", "count": 2, "pool": "token"},
]


def config(env="routing", algo="maskable_ppo", **over) -> RunConfig:
    fields = {
        "env": env,
        "algo": algo,
        "steps": 256,
        "cluster": {"machines": MACHINES},
        "workload": {
            "trace": "azure-code-synth",
            "rate_per_s": 6.0,
            "episode_s": 10.0,
            "warmup_s": 2.0,
        },
        "learner": {"num_envs": 2, "hidden": 16},
        "on_policy": {"n_steps": 64, "batch_size": 64, "n_epochs": 1},
        "dqn": {"learning_starts": 20, "buffer_size": 500},
        "warm_start": {"teacher": None},
        "evaluation": {"every": 256, "windows": 1},
        "checkpoint": {"every": 128},
    }
    return resolve({**fields, **over})


def fresh_agent(made: RunConfig, temperature=0.0) -> Agent:
    size = machines_of(made)
    codec = make_codec(made, size)
    th.manual_seed(0)
    model = build_model(made, observation_space(size), codec.space)
    if hasattr(model.policy, "decision_net"):
        for parameter in model.policy.decision_net.parameters():
            th.nn.init.normal_(parameter, std=0.3)
    return Agent(model, codec, size, temperature=temperature)


def decisions_by_engine(made: RunConfig, agent: Agent, trace, seed=0):
    engine = make_engine(Cluster.resolve(cluster_of(made)), agent, sizing("static"))
    engine.reset(trace, seed)
    assert engine.run_until_decision() is None
    out = engine.outcomes()
    return np.stack([out.prompt_machine, out.token_machine, out.finish_ns])


@pytest.mark.parametrize("over", [{}, {"algo": "dqn", "environment": {"flat": True}}], ids=["pair", "dqn"])
def test_it_decides_as_in_the_environment(over):
    """Observation, mask and action mean the same in both: all requests end at the same nanosecond."""
    from agents.evaluation import decide

    made = config(**over)
    agent = fresh_agent(made)
    task = SimulatorTask(made)
    trace = task.workload("test").build(0, 4)
    env = task.make_env()
    observation, _ = env.reset(seed=0, options={"trace": trace})
    over_ = False
    while not over_:
        action = decide(agent.model, observation, env.unwrapped.action_masks(), 0.0)
        observation, _, _, over_, _ = env.step(action)
    out = env.unwrapped.engine.outcomes()
    by_env = np.stack([out.prompt_machine, out.token_machine, out.finish_ns])
    assert (by_env[2] > 0).all()
    assert np.array_equal(by_env, decisions_by_engine(made, agent, trace))


def test_a_seed_gives_one_run_at_any_temperature():
    made = config()
    trace = SimulatorTask(made).workload("test").build(0, 4)
    runs = [decisions_by_engine(made, fresh_agent(made, 1.0), trace, seed) for seed in (5, 5, 6)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_it_never_chooses_a_failed_machine():
    cluster = ClusterConfig(
        machines=(MachineGroup(count=2, pool="prompt"), MachineGroup(count=2, pool="token")),
        faults=(Fault(machine=0, at_s=3.0, duration_s=5.0), Fault(machine=3, at_s=4.0, duration_s=3.0)),
    )
    made = dataclasses.replace(config(), cluster=cluster)
    agent = fresh_agent(made, temperature=5.0)
    trace = SimulatorTask(made).workload("test").build(0, 4)
    finish = decisions_by_engine(made, agent, trace)  # the engine refuses a masked action with ActionError
    assert (finish[2] > 0).all()


@pytest.mark.parametrize(
    ("env", "algo"), [("routing", "maskable_ppo"), ("pool_sizing", "dqn"), ("joint", "maskable_ppo")]
)
def test_a_run_trains_in_the_simulator_and_loads_as_a_contender(tmp_path, env, algo):
    made = config(env, algo, steps=128)
    outcome = train(made, tmp_path / "run", show=False)
    row = outcome.run.evaluations()[-1]
    assert 0 <= float(row["goodput"]) <= 1
    assert float(row["pools/prompt_home"]) + float(row["pools/token_home"]) == pytest.approx(4)
    assert {"ttft_slowdown_p99", "tbt_slowdown_p50", "e2e_slowdown_p90"} <= set(row)
    agent = load_agent(tmp_path / "run", name="mine")
    seen = evaluate(
        {"mine": contender(agent, made), "index": "index"},
        cluster_of(made),
        [SimulatorTask(made).workload("test")],
        [0],
    )
    assert seen.policies == ("mine", "index")
    assert seen.values("goodput", "mine")[0] >= 0


@pytest.mark.parametrize("env", ["routing", "joint"])
def test_the_command_line_compares_a_run_folder(tmp_path, env):
    made = config(env, steps=128)
    train(made, tmp_path / "run", show=False)
    here = ClusterConfig(machines=made.cluster.machines)
    name = str(tmp_path / "run")
    entrant = by_command_line(name, here)
    assert entrant.name == name and entrant.cluster.confine == (env == "joint"), "confined as it learned"
    load = SimulatorTask(made).workload("test")
    found = evaluate(["index", entrant], here, [load], [0])
    ours = evaluate([contender(load_agent(name), made)], cluster_of(made), [load], [0])
    assert found.select(name)[0].metrics == ours.runs[0].metrics
    larger = ClusterConfig(machines=(MachineGroup(count=9),))
    with pytest.raises(ConfigError, match="knows 4 machines, the cluster has 9"):
        by_command_line(name, larger)


@pytest.mark.parametrize(
    ("split", "rows"), [("7P1T", ["splitwise 5P3T", "splitwise 7P1T*"]), ("5P3T", ["splitwise 5P3T*"])]
)
def test_the_demo_runs_heuristics_at_their_best(monkeypatch, split, rows):
    seen = []

    def chosen(policies, cluster, workload, seeds):
        seen.append((tuple(policies), workload.rate_per_s))
        return split if split in policies else "512"

    monkeypatch.setattr(demo.evaluation, "choose", chosen)
    here = demo.demo_config().cluster
    found = demo.baselines(here, SimulatorTask(demo.demo_config()).workload("test", 17.0))
    assert list(found) == ["no split, round robin", "no split, JSQ", "no split, vLLM 512*", *rows]
    assert found["no split, vLLM 512*"].cluster.batching.max_num_batched_tokens == 512
    best = found[f"splitwise {split}*"].cluster
    assert [group.count for group in best.machines] == [int(split[0]), int(split[2])]
    assert seen == [(demo.SPLITS, 17.0), (tuple(map(str, demo.BUDGETS)), 17.0)]
    assert {
        demo.evaluation.contenders.hardware(c.cluster or here)["h100-80gb/tp8"] for c in found.values()
    } == {8}


def test_only_a_run_folder_is_loaded(tmp_path):
    made = config(steps=128)
    run = train(made, tmp_path / "run", show=False).run
    stray = tmp_path / "model.zip"
    shutil.copy(run.best / "model.zip", stray)
    with pytest.raises(ConfigError, match="run folder"):
        load_agent(stray)
    with pytest.raises(ConfigError, match="no run folder"):
        load_agent(run.best)
    shutil.rmtree(run.best)
    assert load_agent(run.path).name == "run"  # the latest instead
    shutil.rmtree(run.checkpoints)
    run.checkpoints.mkdir()
    with pytest.raises(ConfigError, match="no model yet"):
        load_agent(run.path)


def test_loading_runs_no_pickle(tmp_path, monkeypatch):
    """A run folder from elsewhere cannot run code here."""
    made = config(steps=128)
    train(made, tmp_path / "run", show=False)

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    import pickle

    import cloudpickle

    monkeypatch.setattr(cloudpickle, "loads", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    assert load_agent(tmp_path / "run").name == "run"


def test_warm_start_from_the_index_in_the_simulator(tmp_path):
    """After cloning alone the agent is far above an untrained one."""
    start = {"teacher": "index", "decisions": 1500, "rounds": 2, "epochs": 10, "learning_rate": 3e-3}
    load = {"trace": "azure-code-synth", "rate_per_s": 9.0, "episode_s": 20.0, "warmup_s": 4.0}
    made = config(steps=1, warm_start=start, workload=load)
    cloned = train(made, tmp_path / "cloned", show=False)
    plain = train(dataclasses.replace(made, warm_start=type(made.warm_start)()), tmp_path / "no", show=False)
    first = [float(outcome.run.evaluations()[0]["goodput"]) for outcome in (cloned, plain)]
    assert first[0] > first[1] + 0.1
