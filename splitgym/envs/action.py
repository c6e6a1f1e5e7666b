"""Action spaces: what a number means, which numbers are allowed now, and what a forbidden one becomes.

An action outside its space is an `ActionError`. One inside it that cannot be done now (masked) is mapped:

- a machine that may not be chosen becomes the next one upward that may, wrapping round to 0;
- a resize that would leave a pool too small moves fewer machines, down to none;
- in the joint space, the part that does not apply becomes "does not apply".
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from splitgym.errors import ActionError
from splitgym.types import Decision, DecisionKind, Pool
from splitgym.view import ClusterView

Bools = NDArray[np.bool_]
EngineAction = tuple[int, int] | int


class Decoded(NamedTuple):
    """An action as the engine takes it, and whether it was allowed as it came."""

    action: EngineAction
    valid: bool


class ActionCodec(Protocol):
    """One action space. `masks` and `decode` read nothing but the view, so the live router uses them too."""

    @property
    def space(self) -> spaces.Space[Any]:
        """The Gymnasium action space."""

    def masks(self, view: ClusterView, decision: Decision | None) -> Bools:
        """1-D mask as sb3-contrib expects: (n,) for `Discrete`, (sum(nvec),) for `MultiDiscrete`."""

    def decode(self, action: Any, view: ClusterView, decision: Decision) -> Decoded:
        """The engine's action.

        Raises:
            ActionError: the action is outside the space.
        """


def next_allowed(allowed: NDArray[Any], wanted: int) -> int:
    """The first allowed index at or above `wanted`, wrapping round; `wanted` if there is none."""
    size = len(allowed)
    for step in range(size):
        index = (wanted + step) % size
        if allowed[index]:
            return index
    return wanted % size


def movable(view: ClusterView, min_pool_machines: int) -> tuple[int, int]:
    """(machines that can leave the prompt pool, machines that can leave the token pool).

    Only available machines move, and only they count towards what has to stay.
    """
    up = view.available.tolist()
    home = [pool for pool, there in zip(view.home_pool.tolist(), up, strict=True) if there]
    prompt, token = home.count(Pool.PROMPT), home.count(Pool.TOKEN)
    return max(0, prompt - min_pool_machines), max(0, token - min_pool_machines)


class RoutingActions:
    """(prompt machine, token machine); equal means no split.

    Args:
        max_machines: M of the space; a cluster may have fewer machines, never more.
        flat: one number p * M + t instead of two.
    """

    def __init__(self, max_machines: int, flat: bool = False) -> None:
        self.max_machines = max_machines
        self.flat = flat
        self._nvec: tuple[int, ...] = (max_machines * max_machines,) if flat else (max_machines, max_machines)
        self.space: spaces.Space[Any] = (
            spaces.Discrete(self._nvec[0]) if flat else spaces.MultiDiscrete([*self._nvec])
        )

    def masks(self, view: ClusterView, decision: Decision | None) -> Bools:
        m, size = len(view.machine_row), self.max_machines
        if not self.flat:
            mask = np.zeros(2 * size, np.bool_)
            mask[:m] = view.prompt_allowed
            mask[size : size + m] = view.token_allowed
            return mask
        pairs = np.zeros((size, size), np.bool_)
        np.logical_and(view.prompt_allowed[:, None], view.token_allowed[None, :], out=pairs[:m, :m])
        return pairs.ravel()

    def decode(self, action: Any, view: ClusterView, decision: Decision) -> Decoded:
        numbers = parse(action, self._nvec, self.space)
        wanted = divmod(numbers[0], self.max_machines) if self.flat else (numbers[0], numbers[1])
        return Decoded(*_route(view, wanted))


class SizingActions:
    """2K + 1 numbers: K is no-op, K + n moves n machines from token to prompt, K - n the other way.

    Args:
        max_moves: K.
        min_pool_machines: a move never leaves fewer machines at home in a pool.
    """

    def __init__(self, max_moves: int = 1, min_pool_machines: int = 1) -> None:
        self.max_moves = max_moves
        self.min_pool_machines = min_pool_machines
        self._nvec = (2 * max_moves + 1,)
        self.space: spaces.Space[Any] = spaces.Discrete(self._nvec[0])

    def masks(self, view: ClusterView, decision: Decision | None) -> Bools:
        from_prompt, from_token = movable(view, self.min_pool_machines)
        mask = np.zeros(self._nvec[0], np.bool_)
        mask[max(0, self.max_moves - from_prompt) : self.max_moves + from_token + 1] = True
        return mask

    def decode(self, action: Any, view: ClusterView, decision: Decision) -> Decoded:
        (number,) = parse(action, self._nvec, self.space)
        return Decoded(*self.settle(view, number))

    def settle(self, view: ClusterView, number: int) -> tuple[int, bool]:
        """(machines to move, allowed as it came)."""
        wanted = number - self.max_moves
        from_prompt, from_token = movable(view, self.min_pool_machines)
        moves = max(-from_prompt, min(from_token, wanted))
        return moves, moves == wanted


class JointActions:
    """(prompt machine, token machine, resize); index M of the first two, K of the last: "does not apply".

    Args:
        max_machines: M.
        max_moves: K.
        min_pool_machines: as in `SizingActions`.
    """

    def __init__(self, max_machines: int, max_moves: int = 1, min_pool_machines: int = 1) -> None:
        self.max_machines = max_machines
        self.sizing = SizingActions(max_moves, min_pool_machines)
        self._nvec = (max_machines + 1, max_machines + 1, 2 * max_moves + 1)
        self.space: spaces.Space[Any] = spaces.MultiDiscrete([*self._nvec])

    def masks(self, view: ClusterView, decision: Decision | None) -> Bools:
        m, size, moves = len(view.machine_row), self.max_machines, self.sizing.max_moves
        mask = np.zeros(sum(self._nvec), np.bool_)
        if decision is None or decision.kind == DecisionKind.RESIZE:
            mask[size] = mask[2 * size + 1] = True
            mask[2 * size + 2 :] = self.sizing.masks(view, decision)
        else:
            mask[:m] = view.prompt_allowed
            mask[size + 1 : size + 1 + m] = view.token_allowed
            mask[2 * size + 2 + moves] = True
        return mask

    def decode(self, action: Any, view: ClusterView, decision: Decision) -> Decoded:
        prompt, token, number = parse(action, self._nvec, self.space)
        if decision.kind == DecisionKind.RESIZE:
            moves, valid = self.sizing.settle(view, number)
            return Decoded(moves, valid and prompt == token == self.max_machines)
        pair, valid = _route(view, (prompt, token))
        return Decoded(pair, valid and number == self.sizing.max_moves)


def parse(action: Any, nvec: tuple[int, ...], space: spaces.Space[Any]) -> tuple[int, ...]:
    """The integers of an action.

    Raises:
        ActionError: another shape, no integers, or a number outside the space.
    """
    array = np.asarray(action)
    wanted = () if len(nvec) == 1 else (len(nvec),)
    if array.dtype.kind not in "iu" or array.shape != wanted:
        raise ActionError(f"action {action!r} is not in {space}: expected integers of shape {wanted}")
    numbers = (array.item(),) if array.shape == () else tuple(array.tolist())
    for number, size in zip(numbers, nvec, strict=True):
        if not 0 <= number < size:
            raise ActionError(f"action {action!r} is not in {space}: {number} is not in 0..{size - 1}")
    return numbers


def _route(view: ClusterView, wanted: tuple[int, int]) -> tuple[tuple[int, int], bool]:
    m = len(view.machine_row)
    prompt, token = wanted
    if prompt < m and token < m and view.prompt_allowed[prompt] and view.token_allowed[token]:
        return wanted, True
    # An index past the cluster's machines wraps to 0, as "the next one upward" says.
    prompt = next_allowed(view.prompt_allowed, prompt if prompt < m else 0)
    token = next_allowed(view.token_allowed, token if token < m else 0)
    return (prompt, token), False
