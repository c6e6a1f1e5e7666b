"""Futures of a simulation: copies that go on as the original and know nothing that is to come; look-ahead."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from splitgym import evaluation, schedulers
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, VllmBatchingConfig, parse_machines
from splitgym.errors import ConfigError
from splitgym.evaluation import LookAhead
from splitgym.schedulers import Residual
from splitgym.sim import make_engine
from splitgym.sim.compiled import decide, loop
from splitgym.sim.compiled import state as st
from splitgym.sim.compiled.futures import revise
from splitgym.sim.futures import _OWN, Future, copy_of
from splitgym.trace import Trace

CLUSTER = Cluster.resolve(ClusterConfig(machines=parse_machines("h100-80gb:2M+a100-80gb:1M")))
TRACE = evaluation.parse("poisson:azure-conv-synth@7", duration_s=20.0, warmup_s=0.0).build(1, 3)
BASE = Residual()


def at_decision(number: int, trace: Trace = TRACE, cluster: Cluster = CLUSTER) -> Any:
    """An engine that asks for the given decision; the ones before were the base's."""
    engine: Any = make_engine(cluster, None, schedulers.sizing("static"), engine="compiled")
    engine.reset(trace)
    for _ in range(number):
        decision = engine.run_until_decision()
        engine.apply(tuple(map(int, BASE.route(engine.view, decision.request))))
    engine.run_until_decision()
    return engine


def test_a_copy_goes_on_as_the_original():
    """To the nanosecond, though all its plans are made anew from the lengths it is given."""
    engine = at_decision(80)
    now = engine._simulation
    run = copy_of(now)
    for name in _OWN:
        if name in now._kept:
            run._keep(name, now._kept[name].copy())
    jobs = run._kept["jobs"]
    revise(run.sim, np.where(jobs["in_use"] == 1, jobs["output_tokens"], 0).astype(np.int64))
    run._keep("routing_params", BASE.params)
    run._set(routing=decide.ROUTING_KINDS.index(Residual), num_params=len(BASE.params))
    pair = tuple(map(int, BASE.route(engine.view, now.request())))
    loop.answer_route(run.sim, *pair)
    while (why := loop.advance(run.sim)) != st.DONE:
        run.grow(why)
    engine.apply(pair)
    while (decision := engine.run_until_decision()) is not None:
        engine.apply(tuple(map(int, BASE.route(engine.view, decision.request))))
    ours, theirs = run._kept["outcomes"], engine.outcomes()
    np.testing.assert_array_equal(ours["finish_ns"], theirs.finish_ns)
    np.testing.assert_array_equal(ours["first_token_ns"], theirs.first_token_ns)
    assert (ours["finish_ns"] > 0).all() and int(now.sim["in_system"]) == 0


def test_futures_know_nothing_that_is_to_come():
    """Other true lengths of what is not complete, and another rest of the trace: the same verdicts."""
    engine = at_decision(90)
    done = engine.outcomes().finish_ns >= 0
    assert 20 < done.sum() < 91
    rows = np.arange(len(TRACE))
    outputs = np.where(done, TRACE.output_tokens, TRACE.output_tokens + 7)
    prompts = np.where(rows > 90, 17, TRACE.prompt_tokens)
    other = at_decision(90, replace(TRACE, output_tokens=outputs, prompt_tokens=prompts))
    verdicts = []
    for one in (engine, other):
        futures = [Future(one, BASE, 3.0, np.random.default_rng(s)) for s in range(4)]
        assert futures[0]._known == 91
        verdicts.append([f.judge(pair) for f in futures for pair in ((0, 1), (2, 2))])
    assert verdicts[0] == verdicts[1]
    assert len(set(verdicts[0])) > 2, "futures and candidates differ"


def test_the_engine_is_left_as_it_was():
    engine, untouched = at_decision(60), at_decision(60)
    future = Future(engine, BASE, 3.0, np.random.default_rng(0))
    assert future.judge((0, 1)) == future.judge((0, 1))
    for one in (engine, untouched):
        one.apply((0, 1))
        while (decision := one.run_until_decision()) is not None:
            one.apply(tuple(map(int, BASE.route(one.view, decision.request))))
    np.testing.assert_array_equal(engine.outcomes().finish_ns, untouched.outcomes().finish_ns)


def test_early_futures_draw_from_the_routers_own_estimate():
    future = Future(at_decision(3), BASE, 5.0, np.random.default_rng(0))
    lengths = future._start._kept["outputs"]
    assert len(lengths) > 4 and 20 < lengths.mean() < 1000
    assert future.judge((0, 0)).good >= 0


def test_look_ahead_of_one_candidate_is_the_base_and_of_more_is_not():
    load = "poisson:azure-conv-synth@7"
    windows = [replace(evaluation.parse(load), duration_s=10.0, warmup_s=2.0)]
    one, three = (
        LookAhead(BASE, n, futures=2, margin=0.0, name=name) for n, name in ((1, "one"), (3, "three"))
    )
    policies = [BASE, one, three]
    results = evaluation.evaluate(policies, CLUSTER, windows, seeds=[0], engine="compiled")
    base, one, three = (results.select(name)[0].table for name in ("residual", "one", "three"))
    np.testing.assert_array_equal(base.ttft_slowdown, one.ttft_slowdown)
    assert policies[1].changed == 0 < policies[2].changed < policies[2].decisions
    assert not np.array_equal(base.ttft_slowdown, three.ttft_slowdown)


def test_by_name_and_what_it_cannot_be():
    from splitgym.cli.learning import contender_of

    made = contender_of("lookahead=4x3:pretrained:routing", CLUSTER.config)
    assert made.name == "lookahead=4x3:pretrained:routing"
    assert (made.routing.candidates, made.routing.futures) == (4, 3)
    assert contender_of("lookahead=2:index-tuned", CLUSTER.config).routing.futures == 4
    for text in ("lookahead=4x3:jsq-tokens", "lookahead=x:index", "lookahead=0:index"):
        with pytest.raises(ConfigError):
            contender_of(text, CLUSTER.config)
    with pytest.raises(ConfigError, match="compiled"):
        evaluation.evaluate([made], CLUSTER, ["poisson:azure-conv-synth@1"], seeds=[0], engine="simpy")
    vllm = Cluster.resolve(replace(CLUSTER.config, batching=VllmBatchingConfig()))
    with pytest.raises(ConfigError, match="vLLM"):
        Future(at_decision(2, cluster=vllm), BASE, 1.0, np.random.default_rng(0))
