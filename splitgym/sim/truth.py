"""What really comes: a copy of a simulation that knows the arrivals and the lengths of the next seconds.

For upper bounds only. Whoever decides with it cheats: no router can know this (`splitgym.sim.futures` draws
what a router could expect).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitgym.errors import ConfigError
from splitgym.schedulers.builtin import CompiledSizing
from splitgym.schedulers.sizing import Static
from splitgym.sim.compiled import decide, loop
from splitgym.sim.compiled import records as rec
from splitgym.sim.compiled import state as st
from splitgym.sim.compiled_engine import CompiledEngine
from splitgym.sim.futures import Verdict, copy_of, verdict_of
from splitgym.types import NS_PER_S

_GIVEN = ("arrivals", "prompts", "outputs", "limits", "routing_params")
"""Read and never written, so copies share them."""


@dataclass(frozen=True)
class Sizer:
    """Who sizes the pools in a copy."""

    scheduler: CompiledSizing
    state: NDArray[np.float64]
    """(SIZING_STATE_SIZE,) what it remembers as of now; not changed."""


class Truth:
    """What a pending control tick's answer leads to, as it will be.

    Requests that arrive later than the horizon do not come; those that have come run to their end.

    Args:
        engine: the compiled engine, at a control tick; a built-in scheduler routes in it.
        horizon_s: seconds of arrivals that are known.

    Raises:
        ConfigError: who routes is no built-in scheduler.
    """

    def __init__(self, engine: CompiledEngine, horizon_s: float) -> None:
        now = engine._simulation
        if int(now.sim["routing"]) < 0:
            raise ConfigError("knowing the future needs a built-in scheduler that routes")
        self._now, self._cluster = now, engine.cluster
        arrivals = now._kept["arrivals"]
        known = int(now.sim["next_row"])
        last = int(np.searchsorted(arrivals, int(now.sim["now"]) + horizon_s * NS_PER_S, side="right"))
        self._count = max(known, last)
        jobs = now._kept["jobs"]
        here = jobs["request"][np.flatnonzero(jobs["in_use"] == 1)]
        self._here = here
        self._rows = np.concatenate([here, np.arange(known, self._count)])

    def judge(self, moves: int, then: Sizer | None = None) -> Verdict:
        """How it goes if so many machines move now, and afterwards a sizer decides.

        Args:
            moves: as of `SizingScheduler.resize`.
            then: who sizes the pools from the next control tick on; None leaves them as they are.
        """
        now, run = self._now, copy_of(self._now)
        for name in _GIVEN:
            if name in now._kept:
                run._keep(name, now._kept[name])
        run._keep("routing_state", now._kept["routing_state"].copy())
        outcomes = run._keep("outcomes", np.zeros(self._count, rec.OUTCOME))
        outcomes[self._here] = now._kept["outcomes"][self._here]
        run._keep("order", np.zeros(self._count, np.int64))
        arriving = self._count - int(now.sim["next_row"])
        run._set(num_requests=self._count, unfinished=int(now.sim["in_system"]) + arriving, logging=0)
        sizer = Static() if then is None else then.scheduler
        run._keep("sizing_params", np.zeros(1) if then is None else sizer.params)
        if then is not None:
            run._keep("sizing_state", then.state.copy())
        run._set(
            sizing=decide.SIZING_KINDS.index(type(sizer)), num_sizing_params=len(run._kept["sizing_params"])
        )
        loop.answer_resize(run.sim, moves)
        while (why := int(loop.advance(run.sim))) != st.DONE:
            run.grow(why)
        return verdict_of(self._cluster, outcomes[self._rows], self._now._kept["outputs"][self._rows])
