"""Policies made of others: half-way between two, and with the steps of several."""

import numpy as np
import pytest

th = pytest.importorskip("torch")

from agents.combine import midway, steps, write  # noqa: E402
from splitgym import policy  # noqa: E402
from splitgym.errors import ConfigError, PolicyError  # noqa: E402
from splitgym.schedulers import Residual, residual  # noqa: E402


def bundle(folder, scale, hidden=2):
    rng = np.random.default_rng(hidden)
    weights = residual.index_weights(hidden=hidden)
    weights[: residual.NUM_WEIGHTS] *= scale
    weights[residual.NETWORK_AT :] = scale * rng.normal(0, 0.1, len(weights) - residual.NETWORK_AT)
    made = Residual(weights=tuple(weights.tolist()))
    policy.export_schedulers(made, None, folder, name=folder.name)
    return str(folder)


def test_constants_are_averaged_by_their_logarithm_and_the_network_as_it_is(tmp_path):
    a, b = bundle(tmp_path / "a", 1.0), bundle(tmp_path / "b", 4.0)
    made = residual.unpack(midway(a, b).params)
    one = residual.unpack(policy.load(tmp_path / "a").routing.params)
    np.testing.assert_allclose(made["index"], 2.0 * one["index"], rtol=1e-9, atol=2.1e-3)
    np.testing.assert_allclose(made["input_weights"], 2.5 * one["input_weights"], rtol=1e-9)
    of_three = residual.unpack(midway(a, a, b).params)
    np.testing.assert_allclose(of_three["input_weights"], 2 * one["input_weights"], rtol=1e-9)
    np.testing.assert_allclose(midway(a, a).params, policy.load(tmp_path / "a").routing.params, rtol=1e-9)


def test_steps_are_added_to_where_they_began(tmp_path):
    start, a, b = (bundle(tmp_path / name, scale) for name, scale in (("s", 2.0), ("a", 3.0), ("b", 1.5)))
    made, one = (residual.unpack(found) for found in (steps(start, [a, b]).params, steps(start, [a]).params))
    first = residual.unpack(policy.load(tmp_path / "s").routing.params)
    # 2 x 3/2 x 3/4 of the constants, 2 + 1 - 1/2 of the network; one step alone ends where its run did.
    np.testing.assert_allclose(made["index"], 1.125 * first["index"], rtol=1e-9, atol=2.1e-3)
    np.testing.assert_allclose(made["input_weights"], 1.25 * first["input_weights"], rtol=1e-9)
    np.testing.assert_allclose(one["input_weights"], 1.5 * first["input_weights"], rtol=1e-9)
    write("steps", [start, a, b], tmp_path / "d")
    assert '"steps_of": [' in (tmp_path / "d" / "manifest.json").read_text()


def test_it_is_a_bundle_that_says_of_what(tmp_path):
    made = write("midway", [bundle(tmp_path / "a", 1.0), bundle(tmp_path / "b", 2.0)], tmp_path / "c")
    assert (made.name, policy.load(tmp_path / "c").name) == ("c", "c")
    assert '"midway_of": [' in (tmp_path / "c" / "manifest.json").read_text()
    with pytest.raises(PolicyError):
        write("midway", [str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "c")


def test_what_has_nothing_between(tmp_path):
    policy.export_heuristic("splitwise", tmp_path / "paper")
    one, wide = bundle(tmp_path / "a", 1.0), bundle(tmp_path / "wide", 1.0, hidden=3)
    with pytest.raises(ConfigError, match="paper routes by no residual"):
        midway(one, str(tmp_path / "paper"))
    with pytest.raises(ConfigError, match="different widths"):
        midway(one, wide)
