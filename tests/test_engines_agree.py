"""The compiled engine does exactly what the specification does: every event, view, outcome, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_properties import clusters, requests
from tiny import tiny_cluster, tiny_trace

from splitgym import schedulers
from splitgym.errors import ConfigError
from splitgym.sim import make_engine
from splitgym.sim.compiled_engine import CompiledEngine
from splitgym.sim.outcomes import RESULT_COUNTS, RESULT_TIMES, Outcomes
from splitgym.sim.simpy_engine import SimpyEngine, simpy_engine
from splitgym.types import DecisionKind

COMPILED = ("decodes",)
"""`ageing: all` is the specification's alone."""


def snapshot(view):
    """All that a scheduler sees, as plain numbers."""
    return {k: np.array(v).tolist() for k, v in view._asdict().items() if k not in ("tables", "rules")}


def drive(engine, seed):
    """Answer every decision at random among what is allowed; every decision and view that was seen."""
    rng = np.random.default_rng(seed)
    seen = []
    while (decision := engine.run_until_decision()) is not None:
        view = engine.view
        seen.append((decision, snapshot(view)))
        if decision.kind is DecisionKind.RESIZE:
            engine.apply(int(rng.integers(-1, 2)))
        else:
            p, t = (rng.choice(np.flatnonzero(a)) for a in (view.prompt_allowed, view.token_allowed))
            engine.apply((int(p), int(t)))
    seen.append(snapshot(engine.view))
    return seen


def assert_same(spec: Outcomes, fast: Outcomes) -> None:
    for name, value in vars(spec).items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(getattr(fast, name)), err_msg=name)


@settings(max_examples=150)
@given(cluster=clusters(COMPILED), rows=requests, seed=st.integers(0, 2**32 - 1))
def test_random_decisions(cluster, rows, seed):
    trace = tiny_trace(*rows)
    spec, fast = simpy_engine(cluster, record=True), CompiledEngine(cluster, record=True)
    spec.reset(trace, seed)
    fast.reset(trace, seed)
    for a, b in zip(drive(spec, seed), drive(fast, seed), strict=True):
        assert a == b
    assert sorted(spec.events) == fast.events
    assert_same(spec.outcomes(), fast.outcomes())


@settings(max_examples=60)
@given(
    cluster=clusters(COMPILED),
    rows=requests,
    routing=st.sampled_from(schedulers.routing_names()),
    sizing=st.sampled_from(schedulers.sizing_names()),
    seed=st.integers(0, 2**32 - 1),
)
def test_built_in_schedulers(cluster, rows, routing, sizing, seed):
    trace = tiny_trace(*rows)
    outcomes = []
    for engine in (simpy_engine, CompiledEngine):
        run = engine(cluster, schedulers.routing(routing), schedulers.sizing(sizing), record=True)
        run.reset(trace, seed)
        assert run.run_until_decision() is None
        outcomes.append((run.outcomes(), sorted(run.events)))
    assert outcomes[0][1] == outcomes[1][1]
    assert_same(outcomes[0][0], outcomes[1][0])


def test_a_scheduler_in_plain_python_works_with_both():
    class Alternate:
        name = "alternate"

        def reset(self, view, seed):
            self.turn = 0

        def route(self, view, request):
            self.turn += 1
            return self.turn % 2, 1

    from tiny import Moves

    trace = tiny_trace(*[(0.05 * i, 30 + i, 5) for i in range(40)])
    outcomes = []
    for engine in (simpy_engine, CompiledEngine):
        run = engine(tiny_cluster("PM"), Alternate(), Moves())
        run.reset(trace)
        run.run_until_decision()
        outcomes.append(run.outcomes())
    assert_same(*outcomes)


def test_outcomes_of_a_run_in_progress():
    trace = tiny_trace(*[(0.02 * i, 30 + i, 5 + i % 7) for i in range(30)])
    engines = [make(tiny_cluster("PTM")) for make in (simpy_engine, CompiledEngine)]
    for engine in engines:
        engine.reset(trace)
    while True:
        decisions = [engine.run_until_decision() for engine in engines]
        spec, fast = (engine.outcomes() for engine in engines)
        for name in (*RESULT_TIMES, *RESULT_COUNTS):
            np.testing.assert_array_equal(getattr(fast, name), getattr(spec, name), err_msg=name)
        assert fast.finish_order == spec.finish_order
        if decisions[0] is None:
            return
        for engine in engines:
            engine.apply((0, 1 + decisions[0].decision_id % 2) if decisions[0].request else 0)


def test_arrays_grow(monkeypatch):
    from tiny import Fixed, Moves

    monkeypatch.setattr("splitgym.sim.compiled.setup.FIRST_SLOTS", 2)
    trace = tiny_trace(*[(0.001 * i, 20, 900) for i in range(120)])
    outcomes = []
    for engine in (simpy_engine, CompiledEngine):
        run = engine(tiny_cluster("PT", control_interval_s=0.05), Fixed((0, 1)), Moves())
        run.reset(trace)
        run.run_until_decision()
        outcomes.append(run.outcomes())
    assert len(outcomes[1].timeline) > 256
    assert_same(*outcomes)


@pytest.mark.parametrize("name", ["splitwise", "index"])
@pytest.mark.parametrize("machines", ["h100-80gb:5P3T", "h100-80gb:2P+a100-80gb:2T"])
@pytest.mark.parametrize("rule", ["splitwise", "vllm"])
def test_shipped_profiles(name, machines, rule):
    from splitgym import trace as traces
    from splitgym.cluster import Cluster
    from splitgym.config import ClusterConfig, parse_machines

    cluster = Cluster.resolve(ClusterConfig(machines=parse_machines(machines), batching={"rule": rule}))
    workload = traces.poisson(traces.load("azure-code-synth"), 9.0, 40.0, seed=4)
    outcomes = []
    for engine in (simpy_engine, CompiledEngine):
        run = engine(cluster, schedulers.routing(name), schedulers.sizing("static"), record=True)
        run.reset(workload)
        run.run_until_decision()
        outcomes.append((run.outcomes(), sorted(run.events)))
    assert outcomes[0][1] == outcomes[1][1]
    assert_same(outcomes[0][0], outcomes[1][0])


def test_ageing_of_all_tasks_runs_on_the_specification():
    cluster = tiny_cluster("M", ageing="all")
    with pytest.raises(ConfigError, match="use engine simpy"):
        CompiledEngine(cluster)
    assert isinstance(make_engine(cluster), SimpyEngine)
