"""Futures of a simulation: from a pending decision on, with requests and lengths that a router could expect.

A future is a copy of the compiled engine's memory. It holds nothing that is still to come: later requests are
drawn from those that have come lately, and outputs that are not complete get lengths drawn from the
completed ones that are longer. In it a candidate is tried, a built-in scheduler routes what follows, and all
runs to the end.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitgym.cluster import Cluster
from splitgym.config import VllmBatchingConfig
from splitgym.errors import ConfigError
from splitgym.schedulers.builtin import STATE_SIZE, CompiledRouting
from splitgym.sim.compiled import decide, loop
from splitgym.sim.compiled import records as rec
from splitgym.sim.compiled import state as st
from splitgym.sim.compiled.futures import generated_so_far, revise
from splitgym.sim.compiled.simulation import Simulation
from splitgym.sim.compiled_engine import CompiledEngine
from splitgym.slo import reference_times_s
from splitgym.types import NS_PER_S

Ints = NDArray[np.int64]

RECENT_S = 20.0
"""Arrivals to come are as frequent as in the last so many seconds."""
RECENT_REQUESTS = 512
"""Sizes are drawn from this many of the newest completed requests."""
FEWEST_REQUESTS = 20
"""With fewer completed, lengths are drawn from an exponential with the router's own estimate as its mean."""

_SHARED = ("knot_tokens", "knot_ns", "knot_counts", "token_base", "token_slope", "mixed_factor", "watts")
_OWN = ("arrivals", "prompts", "outputs", "limits", "outcomes", "order", "routing_params", "routing_state")
_IN_HEAD = {"clock_at": "now", "mean_output_at": "mean_output", "counters_at": "counters"}


class Verdict(NamedTuple):
    """How a candidate did in one future."""

    good: float
    """Requests within both SLOs, of those in the system and those to come."""
    late: float
    """Sum of ln(max(TTFT slowdown, 6) / 6) over the same ones."""


def copy_of(simulation: Simulation) -> Simulation:
    """The same simulation in memory of its own, but for what never changes and what is named in `_OWN`."""
    made: Simulation = object.__new__(Simulation)
    made.cluster, made._streaming, made._blanked = simulation.cluster, False, True
    made._head = simulation._head.copy()
    made.sim, made._kept = made._head[0], {}
    for name, array in simulation._kept.items():
        if name in _SHARED:
            made._kept[name] = array
        elif name not in _OWN:
            made._keep(name, array.copy())
    for address, field in _IN_HEAD.items():
        made.sim[address] = made._head[field].ctypes.data
    return made


class Future:
    """One future of a pending routing decision, ready for candidates.

    Args:
        engine: the compiled engine, at a routing decision.
        routing: who routes in the future.
        horizon_s: requests come for so long.
        rng: draws it.

    Raises:
        ConfigError: vLLM's batching, whose memory follows another rule.
    """

    def __init__(
        self, engine: CompiledEngine, routing: CompiledRouting, horizon_s: float, rng: np.random.Generator
    ) -> None:
        if isinstance(engine.cluster.config.batching, VllmBatchingConfig):
            raise ConfigError("futures are for the paper's batching, not for vLLM's")
        now = engine._simulation
        self._rng, self._cluster = rng, engine.cluster
        done = now.order[: int(now.sim["finished"])][-RECENT_REQUESTS:]
        self._prompts = now._kept["prompts"][done]
        self._outputs = np.sort(now._kept["outputs"][done])
        self._mean = float(engine.view.mean_output[0] / engine.view.mean_output[1])
        self._start = copy_of(now)
        self._come(now, done, horizon_s)
        self._revise(now)
        kind = decide.ROUTING_KINDS.index(type(routing))
        self._start._keep("routing_params", routing.params)
        fast = decide.fast_form(routing)
        self._start._set(routing=kind, fast=fast, num_params=len(routing.params), logging=0)
        self._start.prepare(fast, len(routing.params))
        if self._start.sim["sizing"] < 0:
            self._start._set(sizing=0)

    def _come(self, now: Simulation, done: Ints, horizon_s: float) -> None:
        """Draw the requests to come."""
        at, known = int(now.sim["now"]), int(now.sim["next_row"])
        arrivals = now._kept["arrivals"][:known]
        recent = known - int(np.searchsorted(arrivals, at - RECENT_S * NS_PER_S))
        span_s = min(RECENT_S, max(1.0, at / NS_PER_S))
        count = int(self._rng.poisson(recent / span_s * horizon_s))
        stamps = at + np.sort(self._rng.random(count) * horizon_s * NS_PER_S).astype(np.int64)
        if len(done) >= FEWEST_REQUESTS:
            rows = done[self._rng.integers(len(done), size=count)]
            prompts, outputs = now._kept["prompts"][rows], now._kept["outputs"][rows]
        else:
            rows = self._rng.integers(known, size=count)
            prompts, outputs = now._kept["prompts"][:known][rows], self._lengths(np.zeros(count, np.int64))
        columns = {"arrivals": (arrivals, stamps), "prompts": (now._kept["prompts"][:known], prompts)}
        # What is known of outputs is written below, request by request.
        columns["outputs"] = (np.ones(known, np.int64), outputs)
        for name, parts in columns.items():
            self._start._keep(name, np.concatenate(parts).astype(np.int64))
        self._start._set(
            limits=0, num_requests=known + count, unfinished=int(now.sim["in_system"]) + count, more=0
        )
        self._known = known

    def _revise(self, now: Simulation) -> None:
        """Draw the lengths of the outputs that are not complete."""
        slots = int(now.sim["used_slots"])
        jobs = self._start._kept["jobs"]
        generated = np.zeros(max(1, slots), np.int64)
        generated_so_far(self._start.sim, generated)
        here = np.flatnonzero(generated[:slots] >= 0)
        # The token in the making counts as made: it may be the second.
        lengths = np.zeros(len(generated), np.int64)
        lengths[here] = self._lengths(generated[here] + (generated[here] > 0))
        limits = jobs["max_tokens"][here]
        capped = np.minimum(lengths[here], limits)
        lengths[here] = np.where(limits > 0, np.maximum(capped, generated[here] + 2), lengths[here])
        revise(self._start.sim, lengths)
        self._here = jobs["request"][here].copy()
        self._rows_here = now._kept["outcomes"][self._here]
        self._start._kept["outputs"][self._here] = lengths[here]
        self._taken = int(self._start.sim["finished"])

    def _lengths(self, above: Ints) -> Ints:
        """(K,) lengths longer than `above`."""
        count = len(above)
        if len(self._outputs) < FEWEST_REQUESTS:
            return above + 1 + self._rng.exponential(self._mean, count).astype(np.int64)
        first = np.searchsorted(self._outputs, above, side="right")
        longer = len(self._outputs) - first
        drawn = first + (self._rng.random(count) * longer).astype(np.int64)
        beyond = above + 1 + self._rng.exponential(self._mean, count).astype(np.int64)
        found = self._outputs[np.minimum(drawn, len(self._outputs) - 1)]
        return np.where(longer > 0, found, beyond)

    def judge(self, pair: tuple[int, int]) -> Verdict:
        """How the candidate (prompt machine, token machine) does."""
        run = copy_of(self._start)
        count = int(run.sim["num_requests"])
        for name in ("arrivals", "prompts", "outputs", "routing_params"):
            run._kept[name] = self._start._kept[name]
        outcomes = run._keep("outcomes", np.empty(count, rec.OUTCOME))
        outcomes[self._here] = self._rows_here
        run._keep("order", np.zeros(count, np.int64))
        run._keep("routing_state", np.zeros(STATE_SIZE, np.int64))
        loop.answer_route(run.sim, *pair)
        while (why := int(loop.advance(run.sim))) != st.DONE:
            run.grow(why)
        rows = np.concatenate([self._here, np.arange(self._known, count)])
        return verdict_of(self._cluster, outcomes[rows], self._start._kept["outputs"][rows])


def verdict_of(cluster: Cluster, outcomes: NDArray[Any], outputs: Ints) -> Verdict:
    """How requests did.

    Args:
        cluster: where.
        outcomes: (K,) `OUTCOME` records.
        outputs: (K,) their lengths [tokens].
    """
    slo = cluster.config.slo
    ttft_s, tbt_s, _ = reference_times_s(cluster.tables, outcomes["prompt_tokens"], outputs)
    ttft = (outcomes["first_token_ns"] - outcomes["arrival_ns"]) / NS_PER_S / ttft_s
    spent = (outcomes["finish_ns"] - outcomes["first_token_ns"]) / NS_PER_S
    tbt = np.where(outputs > 1, spent / np.maximum(1, outputs - 1) / np.where(outputs > 1, tbt_s, 1.0), 0.0)
    good = (ttft <= slo.ttft_slowdown) & (tbt <= slo.tbt_slowdown)
    return Verdict(float(good.sum()), float(np.log(np.maximum(ttft, 6.0) / 6.0).sum()))
