"""A sizing scheduler that cheats: it knows the next seconds. An upper bound for studies, and nothing else.

`clairvoyant=20:POLICY` takes the router and the pool sizing of POLICY and, at each control tick, tries on a
copy of the simulation with the true arrivals and lengths of the next 20 s: what the sizing rule would do with
the rule going on, and every other split of the machines held as it is. It does what serves most requests in
time. No router can know this, so it is never exported, and it is no policy to compare agents with fairly.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from splitgym.errors import ConfigError
from splitgym.evaluation.attached import Attached, worth
from splitgym.evaluation.contenders import Contender
from splitgym.schedulers.builtin import CompiledSizing
from splitgym.schedulers.sizing import MOVED_AT, pool_size
from splitgym.schedulers.sizing_net import DIRECTION, MOVES
from splitgym.types import Pool
from splitgym.view import ClusterView

CLAIRVOYANT = "clairvoyant="
"""How the name of such a policy begins."""

_TEXT = re.compile(r"^clairvoyant=(\d+(?:\.\d+)?):(.+)$")


@dataclass
class Clairvoyant(Attached):
    """A sizing scheduler that knows what comes.

    Attributes:
        base: a built-in sizing rule; one of the candidates, and the best where others are no better.
        horizon_s: seconds of arrivals that it knows.
        name: what tables call it.
    """

    base: Any
    horizon_s: float = 20.0
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.base, CompiledSizing):
            raise ConfigError(f"clairvoyant needs a built-in sizing rule, {self.base.name!r} is none")
        if not self.horizon_s > 0:
            raise ConfigError(f"clairvoyant: a horizon of {self.horizon_s} s, expected more than 0")
        self.name = self.name or f"{CLAIRVOYANT}{self.horizon_s:g}:{self.base.name}"

    @property
    def identity(self) -> str:
        """What it decides by."""
        return f"clairvoyant {self.horizon_s:g} {self.base!r}"

    def reset(self, view: ClusterView, seed: int) -> None:
        """Forget the last run."""
        self.base.reset(view, seed)

    def resize(self, view: ClusterView) -> int:
        """Machines to move, see `SizingScheduler`."""
        from splitgym.sim.truth import Sizer, Truth

        assert self._engine is not None, "attach an engine first"
        before = self.base.state.copy()
        usual = self.base.resize(view)
        truth = Truth(self._engine, self.horizon_s)
        best, moves = truth.judge(usual, Sizer(self.base, self.base.state)), usual
        value, follows = worth(best), True
        prompts, tokens = pool_size(view, int(Pool.PROMPT)), pool_size(view, int(Pool.TOKEN))
        for other in sorted(range(1 - prompts, tokens), key=abs):
            found = worth(truth.judge(other))
            if found > value:
                value, moves, follows = found, other, False
        if not follows:
            self._remember(view, before, moves)
        return moves

    def _remember(self, view: ClusterView, before: Any, moves: int) -> None:
        """Let the rule know what was done in place of what it would have done."""
        for place in (MOVED_AT, DIRECTION, MOVES):
            self.base.state[place] = before[place]
        if moves:
            self.base.state[MOVED_AT] = view.clock[0]
            self.base.state[DIRECTION] = 1.0 if moves > 0 else -1.0
            self.base.state[MOVES] += abs(moves)


def clairvoyant(text: str, find: Callable[[str], Contender]) -> Contender:
    """`clairvoyant=SECONDS:POLICY` as a contender.

    Args:
        text: of a command line.
        find: the contender that POLICY names.

    Raises:
        ConfigError: another text, or POLICY has no built-in sizing rule.
    """
    match = _TEXT.match(text)
    if match is None:
        raise ConfigError(f"policy {text!r}: expected clairvoyant=SECONDS:POLICY")
    found = find(match[2])
    base = getattr(found.sizing, "sizing", None) or found.sizing  # a bundle holds its scheduler
    router = getattr(found.routing, "routing", None) or found.routing
    return replace(found, name=text, routing=router, sizing=Clairvoyant(base, float(match[1]), name=text))
