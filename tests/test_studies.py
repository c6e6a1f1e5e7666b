"""Studies of what is not so in life: predicted lengths, stretched outputs, a profile that is wrong."""

from dataclasses import replace

import numpy as np
import pytest

from splitgym import evaluation, schedulers
from splitgym.cluster import Cluster
from splitgym.config import BatchingConfig, ClusterConfig, VllmBatchingConfig, parse_machines
from splitgym.errors import ConfigError, TraceError
from splitgym.schedulers import Residual, residual
from splitgym.sim import make_engine
from splitgym.trace import predict_outputs, stretch_outputs

CLUSTER = Cluster.resolve(ClusterConfig(machines=parse_machines("h100-80gb:2M+a100-80gb:2M")))
TRACE = evaluation.parse("poisson:azure-conv-synth@9", duration_s=20.0, warmup_s=0.0).build(1, 4)
SHORT = evaluation.parse("poisson:azure-conv-synth@12", duration_s=5.0, warmup_s=0.0).build(1, 4)


def test_predictions_have_their_stated_error():
    assert TRACE.max_tokens is None, "nothing is predicted unless a study asks for it"
    exact = predict_outputs(TRACE, 0.0)
    np.testing.assert_array_equal(exact.max_tokens, TRACE.output_tokens)
    long = stretch_outputs(TRACE, 100.0)  # rounding plays no part
    errors = np.log(predict_outputs(long, 0.5, seed=3).max_tokens / long.output_tokens)
    assert abs(errors.mean()) < 0.12 and abs(errors.std() - 0.5) < 0.1
    np.testing.assert_array_equal(predict_outputs(long, 0.5, seed=3).output_tokens, long.output_tokens)
    for wrong in (-0.1, np.inf, np.nan):
        with pytest.raises(TraceError, match="sigma"):
            predict_outputs(TRACE, wrong)


def test_stretched_outputs():
    np.testing.assert_array_equal(stretch_outputs(TRACE, 1.0).output_tokens, TRACE.output_tokens)
    longer = stretch_outputs(TRACE, 1.3)
    np.testing.assert_allclose(longer.output_tokens, TRACE.output_tokens * 1.3, atol=0.5)
    assert stretch_outputs(TRACE, 1e-6).output_tokens.tolist() == [1] * len(TRACE)
    assert "stretch_outputs(1.3)" in longer.provenance["operations"]
    with pytest.raises(TraceError, match="factor"):
        stretch_outputs(TRACE, 0.0)


class Sees:
    """Keeps the waits that it is shown, and sends all to one machine."""

    name = "sees"

    def reset(self, view, seed):
        self.waits = []

    def route(self, view, request):
        self.waits.append(int(view.prompt_queue_ns[0]))
        return 0, 1


def test_a_wrong_profile_is_wrong_everywhere_but_at_the_reference():
    wrong = CLUSTER.misjudged(1.2, 0.8)
    true, shown = CLUSTER.tables, wrong.view()
    rows, believed = CLUSTER.machine_row, shown.tables
    for now, then, factor in (
        (believed.prompt_ns, true.prompt_ns, 1.2),
        (believed.token_base, true.token_base, 0.8),
        (believed.token_slope, true.token_slope, 0.8),
        (believed.mixed_factor, true.mixed_factor, 1.0),
    ):
        np.testing.assert_array_equal(now[0], then[0])
        np.testing.assert_allclose(now[shown.machine_row], then[rows] * factor, atol=0.5)
    np.testing.assert_array_equal(believed.token_base[rows], true.token_base[rows])
    for factor in (0.0, np.inf, np.nan):
        with pytest.raises(ConfigError, match="positive"):
            CLUSTER.misjudged(1.0, factor)


@pytest.mark.parametrize("rule", ["paper", "vllm"])
def test_the_simulator_goes_by_the_true_profile(rule):
    batching = VllmBatchingConfig() if rule == "vllm" else BatchingConfig()
    true = Cluster.resolve(replace(CLUSTER.config, batching=batching))
    found = {}
    for kind in ("simpy", "compiled"):
        for cluster in (true, true.misjudged(2.0, 0.5)):
            sees = Sees()
            engine = make_engine(cluster, sees, schedulers.sizing("static"), engine=kind)
            engine.reset(SHORT, 0)
            engine.run_until_decision()
            found[kind, cluster.believed] = sees.waits, engine.outcomes()
    waits, outcomes = found["simpy", None]
    assert max(waits) > 0
    for other, after in found.values():
        for name in ("first_token_ns", "finish_ns", "energy_j"):
            np.testing.assert_array_equal(getattr(after, name), getattr(outcomes, name), err_msg=name)
        factor = 2.0 if other != waits else 1.0
        np.testing.assert_allclose(other, np.multiply(waits, factor), atol=len(SHORT))
    assert found["simpy", (2.0, 0.5)][0] == found["compiled", (2.0, 0.5)][0] != waits


def test_right_beliefs_change_nothing_and_wrong_ones_do():
    """Built-in schedulers run inside the compiled engine: there they must see what the view would show."""
    weights = residual.index_weights(hidden=4) + np.random.default_rng(0).normal(0, 0.1, residual.size(4))
    for router in (schedulers.routing("index-tuned"), Residual(weights=tuple(weights))):
        rows = []
        for cluster in (CLUSTER, CLUSTER.misjudged(1.0, 1.0), CLUSTER.misjudged(3.0, 0.3)):
            ends = []
            for kind in ("simpy", "compiled"):
                engine = make_engine(cluster, replace(router), schedulers.sizing("static"), engine=kind)
                engine.reset(SHORT, 0)
                engine.run_until_decision()
                ends.append(engine.outcomes().finish_ns)
            np.testing.assert_array_equal(*ends)
            rows.append(ends[0])
        np.testing.assert_array_equal(rows[0], rows[1])
        assert not np.array_equal(rows[0], rows[2])
