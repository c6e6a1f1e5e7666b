"""The sizing scheduler that knows what comes: its copies of the simulation hold the truth."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from splitgym import evaluation, schedulers
from splitgym.cli.learning import contender_of
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, parse_machines
from splitgym.errors import ConfigError
from splitgym.evaluation import Clairvoyant
from splitgym.schedulers.sizing import MOVED_AT
from splitgym.schedulers.sizing_net import DIRECTION, MOVES
from splitgym.sim import make_engine
from splitgym.sim.truth import Sizer, Truth
from splitgym.slo import reference_times_s
from splitgym.trace import Trace

CLUSTER = Cluster.resolve(ClusterConfig(machines=parse_machines("h100-80gb:2P2T"), confine=True))
LOAD = evaluation.parse("shifting:azure-conv-synth~azure-code-synth@12", duration_s=30.0, warmup_s=0.0)
TRACE = LOAD.build(1, 4)
WHOLE_S = 1e6


def reactive() -> Any:
    return schedulers.sizing("reactive", prompt_high=0.3, cool_down_s=2.0, token_low=2.0)


def at_tick(number: int, sizer: Any = None, trace: Trace = TRACE) -> Any:
    """An engine that asks for the given control tick; a sizer answered those before."""
    engine: Any = make_engine(CLUSTER, schedulers.routing("index-tuned"), None, engine="compiled")
    engine.reset(trace)
    if sizer is not None:
        sizer.reset(engine.view, 0)
    for _ in range(number):
        engine.run_until_decision()
        engine.apply(0 if sizer is None else int(sizer.resize(engine.view)))
    engine.run_until_decision()
    return engine


def to_the_end(engine: Any, moves: int, sizer: Any = None) -> Any:
    engine.apply(moves)
    while engine.run_until_decision() is not None:
        engine.apply(0 if sizer is None else int(sizer.resize(engine.view)))
    return engine.outcomes()


def good_ones(out: Any) -> Any:
    """(N,) which requests were served within both SLOs."""
    ttft_s, tbt_s, _ = reference_times_s(CLUSTER.tables, TRACE.prompt_tokens, TRACE.output_tokens)
    ttft = (out.first_token_ns - out.arrival_ns) / 1e9 / ttft_s
    steps = np.maximum(1, TRACE.output_tokens - 1)
    tbt = (out.finish_ns - out.first_token_ns) / 1e9 / steps / np.maximum(tbt_s, 1e-9)
    return (ttft <= 3.0) & ((tbt <= 1.5) | (TRACE.output_tokens == 1))


@pytest.mark.parametrize("moves", [-1, 0, 1])
def test_what_it_foresees_is_what_comes(moves):
    """With all arrivals known, the good requests of the rest are those of the run itself."""
    engine = at_tick(6)
    seen = Truth(engine, WHOLE_S).judge(moves)
    left = engine.outcomes().finish_ns < 0
    assert 30 < left.sum() < len(TRACE)
    assert seen.good == good_ones(to_the_end(engine, moves))[left].sum()


def test_a_sizer_goes_on_with_what_it_remembers():
    engine, rule = at_tick(3), reactive()
    rule.reset(engine.view, 0)
    rule.state[MOVED_AT] = engine.view.clock[0]
    remembered = rule.state.copy()
    truth = Truth(engine, WHOLE_S)
    seen = truth.judge(0, Sizer(rule, rule.state))
    np.testing.assert_array_equal(rule.state, remembered)
    assert seen != truth.judge(0), "it moves machines later on"
    left = engine.outcomes().finish_ns < 0
    assert seen.good == good_ones(to_the_end(engine, 0, rule))[left].sum()


def test_a_horizon_leaves_out_what_comes_later():
    engine = at_tick(4)
    now_s = int(engine.view.clock[0]) / 1e9
    short, whole = Truth(engine, 3.0), Truth(engine, WHOLE_S)
    coming = (TRACE.arrival_s > now_s) & (TRACE.arrival_s <= now_s + 3.0)
    assert len(whole._rows) - len(short._rows) == (TRACE.arrival_s > now_s + 3.0).sum()
    assert coming.sum() > 0 and short.judge(0).good < whole.judge(0).good
    other = replace(TRACE, output_tokens=np.where(TRACE.arrival_s > now_s + 3.0, 900, TRACE.output_tokens))
    assert Truth(at_tick(4, trace=other), 3.0).judge(1) == short.judge(1)


def test_it_is_no_worse_than_its_rule_and_says_that_it_cheats():
    cluster = CLUSTER.config
    window = replace(LOAD, part="validation", warmup_s=5.0)
    rule = reactive()
    entrants = [
        evaluation.Contender("rule", schedulers.routing("index-tuned"), rule),
        evaluation.Contender("knows", schedulers.routing("index-tuned"), Clairvoyant(reactive(), 15.0)),
    ]
    results = evaluation.evaluate(entrants, cluster, [window], seeds=[0, 1])
    rule, knows = (results.values("goodput", name).mean() for name in ("rule", "knows"))
    assert knows > rule + 0.01
    made = contender_of("clairvoyant=20:index-tuned+reactive", cluster)
    assert made.name.startswith("clairvoyant=20") and made.sizing.horizon_s == 20.0
    assert made.sizing.identity != Clairvoyant(schedulers.sizing("reactive"), 10.0).identity


def test_what_was_done_is_what_the_rule_remembers():
    knows = Clairvoyant(reactive(), 10.0)
    view = CLUSTER.view()
    knows.reset(view, 0)
    view.clock[0] = 7_000_000_000
    before = knows.base.state.copy()
    knows.base.state[MOVED_AT] = 1.0  # as if the rule had moved
    knows._remember(view, before, 0)
    assert knows.base.state[MOVED_AT] == before[MOVED_AT]
    knows._remember(view, before, -2)
    state = knows.base.state
    assert (state[MOVED_AT], state[DIRECTION], state[MOVES]) == (7e9, -1.0, 2.0)


def test_what_it_cannot_be():
    for text in ("clairvoyant=x:index", "clairvoyant=20", "clairvoyant=0:index"):
        with pytest.raises(ConfigError, match="clairvoyant"):
            contender_of(text, CLUSTER.config)
    knows = contender_of("clairvoyant=5:index", CLUSTER.config)
    with pytest.raises(ConfigError, match="compiled"):
        evaluation.evaluate([knows], CLUSTER, ["poisson:azure-conv-synth@1"], seeds=[0], engine="simpy")
    with pytest.raises(ConfigError, match="built-in"):
        Clairvoyant(knows.sizing, 5.0)
    engine: Any = make_engine(CLUSTER, None, None, engine="compiled")
    engine.reset(TRACE)
    engine.run_until_decision()
    with pytest.raises(ConfigError, match="routes"):
        Truth(engine, 5.0)
