"""Action spaces: masks, decoding, and what becomes of an action that cannot be done now."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, parse_machines
from splitgym.envs.action import ActionCodec, JointActions, RoutingActions, SizingActions, next_allowed
from splitgym.errors import ActionError
from splitgym.types import Decision, DecisionKind, Pool, RequestInfo
from splitgym.view import ClusterView

CLUSTER = Cluster.resolve(ClusterConfig(machines=parse_machines("h100-80gb:3P3T")))
ROUTE = Decision(DecisionKind.ROUTE, 0, 0, RequestInfo(0, 0, 100, -1, -1, 0))
RESIZE = Decision(DecisionKind.RESIZE, 0, 0, None)
FLAGS = st.lists(st.booleans(), min_size=6, max_size=6).filter(any)


def view_of(prompt: list[bool], token: list[bool]) -> ClusterView:
    view = CLUSTER.view()
    view.prompt_allowed[:] = prompt
    view.token_allowed[:] = token
    return view


def upward(allowed: list[bool], wanted: int) -> int:
    """The rule in words: the next allowed index upward, wrapping."""
    order = [*range(wanted, 6), *range(wanted)] if wanted < 6 else [*range(6)]
    return next(i for i in order if allowed[i])


@given(FLAGS, FLAGS, st.integers(0, 7), st.integers(0, 7))
def test_routing_maps_masked_machines_upward(prompt: list[bool], token: list[bool], p: int, t: int) -> None:
    codec = RoutingActions(8)
    view = view_of(prompt, token)
    mask = codec.masks(view, ROUTE)
    assert mask.shape == (16,) and mask.dtype == np.bool_
    assert mask.tolist() == [*prompt, False, False, *token, False, False]
    decoded = codec.decode(np.array([p, t]), view, ROUTE)
    assert decoded.valid == bool(mask[p] and mask[8 + t])
    assert decoded.action == (upward(prompt, p), upward(token, t))


@given(FLAGS, FLAGS, st.integers(0, 63))
def test_flat_routing_is_routing_with_one_number(prompt: list[bool], token: list[bool], action: int) -> None:
    view = view_of(prompt, token)
    flat, pair = RoutingActions(8, flat=True), RoutingActions(8)
    both = [action // 8, action % 8]
    assert flat.decode(action, view, ROUTE) == pair.decode(both, view, ROUTE)
    assert flat.masks(view, ROUTE)[action] == pair.decode(both, view, ROUTE).valid
    assert flat.masks(view, ROUTE).sum() == sum(prompt) * sum(token)


@given(st.lists(st.sampled_from([0, 1, 2]), min_size=6, max_size=6), FLAGS, st.integers(0, 2))
def test_sizing_never_leaves_a_pool_too_small(home: list[int], up: list[bool], least: int) -> None:
    codec = SizingActions(max_moves=2, min_pool_machines=least)
    view = CLUSTER.view()
    view.home_pool[:] = home
    view.available[:] = up
    there = [h for h, u in zip(home, up, strict=True) if u]
    can = {1: max(0, there.count(Pool.TOKEN) - least), -1: max(0, there.count(Pool.PROMPT) - least)}
    mask = codec.masks(view, RESIZE)
    assert mask.shape == (5,) and mask[2]
    for action in range(5):
        wanted = action - 2
        allowed = min(abs(wanted), can[1 if wanted > 0 else -1])
        decoded = codec.decode(action, view, RESIZE)
        assert decoded.action == (allowed if wanted > 0 else -allowed)
        assert decoded.valid == bool(mask[action]) == (allowed == abs(wanted))


def test_joint_asks_for_one_thing_at_a_time() -> None:
    codec = JointActions(max_machines=6, max_moves=1)
    view = view_of([True] * 3 + [False] * 3, [False] * 3 + [True] * 3)
    route, resize = codec.masks(view, ROUTE), codec.masks(view, RESIZE)
    assert route.shape == resize.shape == (7 + 7 + 3,)
    assert np.flatnonzero(route).tolist() == [0, 1, 2, 7 + 3, 7 + 4, 7 + 5, 14 + 1]
    assert np.flatnonzero(resize).tolist() == [6, 7 + 6, 14, 15, 16]
    assert codec.decode([1, 4, 1], view, ROUTE) == ((1, 4), True)
    assert codec.decode([1, 4, 2], view, ROUTE) == ((1, 4), False)  # a move does not apply
    assert codec.decode([6, 4, 1], view, ROUTE) == ((0, 4), False)  # no machine: upward from M is 0
    assert codec.decode([6, 6, 2], view, RESIZE) == (1, True)
    assert codec.decode([0, 6, 2], view, RESIZE) == (1, False)


OUTSIDE: list[tuple[ActionCodec, Any]] = [
    (RoutingActions(6), [6, 0]),
    (RoutingActions(6), [0, -1]),
    (RoutingActions(6), [0]),
    (RoutingActions(6), 3),
    (RoutingActions(6), [0.0, 1.0]),
    (RoutingActions(6), [True, False]),
    (RoutingActions(6), None),
    (RoutingActions(6, flat=True), 36),
    (RoutingActions(6, flat=True), [1]),
    (SizingActions(1), 3),
    (SizingActions(1), -1),
    (SizingActions(1), 1.0),
    (JointActions(6), [0, 0, 3]),
    (JointActions(6), [7, 0, 0]),
    (JointActions(6), "no-op"),
]


@pytest.mark.parametrize(("codec", "action"), OUTSIDE)
def test_an_action_outside_the_space_is_one_clear_error(codec: ActionCodec, action: Any) -> None:
    decision = RESIZE if isinstance(codec, SizingActions) else ROUTE
    with pytest.raises(ActionError, match="is not in"):
        codec.decode(action, CLUSTER.view(), decision)


def test_next_allowed_without_any_keeps_the_wish() -> None:
    assert next_allowed(np.zeros(4), 2) == 2
