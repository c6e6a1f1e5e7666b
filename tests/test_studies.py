"""Studies of what is not so in life: predicted lengths, stretched outputs, a profile that is wrong."""

import numpy as np
import pytest
from make_view import make_request, make_view

from splitgym import evaluation, schedulers
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, parse_machines
from splitgym.errors import TraceError
from splitgym.schedulers import Residual
from splitgym.schedulers.misjudging import Misjudging
from splitgym.trace import predict_outputs, stretch_outputs
from splitgym.types import UNKNOWN

CLUSTER = Cluster.resolve(ClusterConfig(machines=parse_machines("h100-80gb:2M+a100-80gb:2M")))
TRACE = evaluation.parse("poisson:azure-conv-synth@9", duration_s=20.0, warmup_s=0.0).build(1, 4)


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
    """Keeps what it is shown."""

    name = "sees"

    def reset(self, view, seed):
        self.view = view

    def route(self, view, request):
        self.view = view
        return 0, 1


def test_a_wrong_profile_is_wrong_everywhere_but_at_the_reference():
    view, inner = make_view("PTM", rows=[1, 2, 1]), Sees()
    view.prompt_queue_ns[:] = [1000, 0, 500]
    wrong = Misjudging(inner, 1.2, 0.8)
    wrong.reset(view, 0)
    assert wrong.route(view, make_request(100, UNKNOWN)) == (0, 1)
    believed = inner.view
    assert believed.prompt_queue_ns.tolist() == [1200, 0, 600]
    np.testing.assert_array_equal(believed.tables.prompt_ns[0], view.tables.prompt_ns[0])
    np.testing.assert_allclose(believed.tables.prompt_ns[1:], view.tables.prompt_ns[1:] * 1.2, atol=0.5)
    np.testing.assert_allclose(believed.tables.token_base[1:], view.tables.token_base[1:] * 0.8, atol=0.5)
    np.testing.assert_array_equal(believed.tables.token_slope[0], view.tables.token_slope[0])
    assert view.prompt_queue_ns.tolist() == [1000, 0, 500], "the view itself is true"


def test_right_beliefs_change_nothing_and_wrong_ones_do():
    policies = {
        "true": Residual(),
        "right": Misjudging(Residual()),
        "wrong": Misjudging(schedulers.routing("index", preset="tuned"), 3.0, 0.3),
    }
    results = evaluation.evaluate(
        policies, CLUSTER, [evaluation.parse("poisson:azure-conv-synth@9", duration_s=12.0)], seeds=[0]
    )
    rows = {name: results.select(name)[0].table.ttft_slowdown for name in policies}
    np.testing.assert_array_equal(rows["true"], rows["right"])
    assert not np.array_equal(rows["true"], rows["wrong"])
