"""Rewards: from what happened to named terms."""

import math

import pytest

from splitgym.envs.reward import REWARDS, Completion, GoodMinusBad, Happened, SlowdownClipped, make_reward
from splitgym.errors import ConfigError


def completion(good: bool, e2e: float = 1.0) -> Completion:
    return Completion(0, 0, good, 1.0, math.nan, e2e)


HAPPENED = Happened(
    elapsed_s=2.0,
    counted_s=1.5,
    completions=[completion(True, 1.2), completion(False, 9.0), completion(True, 0.8)],
    request_seconds=12.5,
    energy_j=4000.0,
    cost=0.25,
)


def test_each_reward_by_name() -> None:
    terms = {name: make_reward(name).terms(HAPPENED) for name in REWARDS}
    assert terms["good-minus-bad"] == {"good": 2.0, "bad": -1.0}
    assert terms["slowdown-clipped"] == {"slowdown": pytest.approx(-(0.2 + 5.0))}
    assert terms["requests-in-system"] == {"requests_in_system": -12.5}
    assert terms["energy"] == {"energy": -4.0}
    assert terms["cost"] == {"cost": -0.25}
    assert SlowdownClipped(limit=2.0).terms(HAPPENED) == {"slowdown": pytest.approx(-2.2)}


def test_weighted_sum_weighs_terms() -> None:
    reward = make_reward({"good-minus-bad": 2, "energy": 0.5})
    assert reward.terms(HAPPENED) == {"good": 4.0, "bad": -2.0, "energy": -2.0}


def test_an_object_with_terms_is_a_reward() -> None:
    own = GoodMinusBad()
    assert make_reward(own) is own


@pytest.mark.parametrize("wrong", ["good", {}, {"energy": "much"}, {"nothing": 1.0}, 3, {"energy": True}])
def test_wrong_rewards_are_config_errors(wrong: object) -> None:
    with pytest.raises(ConfigError, match="reward"):
        make_reward(wrong)  # type: ignore[arg-type]
