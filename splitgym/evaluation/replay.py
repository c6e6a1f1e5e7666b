"""A router's decision log through the simulator: the same requests, at the same times, on the same servers.

The engine is `splitgym.sim.live`: the simulator's rules as a router meets them. A split request computes its
prompt on one machine, its cache is pulled by the other, which makes all of its tokens, the first one again,
as vLLM does. (`splitgym evaluate` counts the first token where the prompt ends; a client of a real router
sees it after the transfer and one iteration more.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from splitgym.cluster import Cluster
from splitgym.evaluation.contenders import Contender, cluster_for
from splitgym.evaluation.logged import Pair, is_load, roles_of
from splitgym.schedulers import RoutingScheduler
from splitgym.schedulers.sizing import Static
from splitgym.sim import make_engine
from splitgym.sim.engine import Engine
from splitgym.sim.live import Live, live_engine
from splitgym.sim.live_request import Kind, LiveRequest
from splitgym.sim.outcomes import NEVER
from splitgym.sim.simpy_engine import simpy_engine
from splitgym.trace import Trace
from splitgym.trace.decision_log import LoggedRequest, LoggedRun
from splitgym.types import NS_PER_S, UNKNOWN, RequestInfo, to_ns
from splitgym.view import ClusterView

Floats = NDArray[np.float64]

_PROGRESS_EVERY = 200


@dataclass(frozen=True)
class Times:
    """When things happened to N requests [s after the arrival]; NaN where they did not, or nobody saw it."""

    prompt_s: Floats  # (N,) end of a split request's prompt
    first_s: Floats  # (N,) first token
    end_s: Floats  # (N,) last token

    def tbt_s(self, output_tokens: NDArray[np.int64]) -> Floats:
        """(N,) mean time between tokens; NaN of one token."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (self.end_s - self.first_s) / (output_tokens - 1)
        return np.where(output_tokens > 1, found, np.nan)


def resizes(entrant: Contender) -> bool:
    """Does a policy choose the sizes of pools itself?"""
    return not isinstance(entrant.sizing, Static)


class _Counted:
    """A router that says now and then how many requests it has routed."""

    def __init__(self, routing: RoutingScheduler, progress: Callable[[int], None]) -> None:
        self._routing, self._progress, self._routed = routing, progress, 0
        self.name = routing.name

    def reset(self, view: ClusterView, seed: int) -> None:
        """As of the router."""
        self._routing.reset(view, seed)

    def route(self, view: ClusterView, request: RequestInfo) -> tuple[int, int]:
        """As of the router."""
        self._routed += 1
        if self._routed % _PROGRESS_EVERY == 0:
            self._progress(self._routed)
        return self._routing.route(view, request)


def decide(
    run: LoggedRun,
    cluster: Cluster,
    entrant: Contender,
    confine: bool,
    names: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> list[Pair]:
    """What a policy decides for the requests of a run, in the simulator as it is trained in.

    A policy that only routes finds servers in the roles that the log says, at its times. One that resizes
    begins with the same pools and goes its own way.

    Args:
        run: of a log.
        cluster: its servers.
        entrant: who decides.
        confine: phases to their pools?
        names: of the servers, in the cluster's order; needed where the run has role changes.
        progress: called with the number of requests decided, where that takes long.
    """
    loads = [request for request in run.requests if is_load(request)]
    first_s = loads[0].arrival_s
    limits = [UNKNOWN if r.max_tokens is None else r.max_tokens for r in loads]
    trace = Trace(
        np.array([request.arrival_s - first_s for request in loads]),
        np.array([request.prompt_tokens for request in loads]),
        np.array([max(1, request.output_tokens) for request in loads]),
        np.array(limits),
    )
    base = replace(cluster, config=replace(cluster.config, confine=confine))
    where = cluster_for(entrant, base)
    engine: Engine
    if run.roles and not resizes(entrant):
        # The specification takes moves of single machines at any time.
        routing = entrant.routing if progress is None else _Counted(entrant.routing, progress)
        engine = simpy_engine(where, routing, entrant.sizing, roles=roles_of(run, names, loads[0].arrival_s))
    else:
        engine = make_engine(where, entrant.routing, entrant.sizing)
    engine.reset(trace, 0)
    engine.run_until_decision()
    outcomes = engine.outcomes()
    pairs = iter(zip(outcomes.prompt_machine.tolist(), outcomes.token_machine.tolist()))
    return [next(pairs) if is_load(request) else (-1, -1) for request in run.requests]


def simulate(
    cluster: Cluster,
    requests: Sequence[LoggedRequest],
    pairs: Sequence[Pair],
    starts_s: Sequence[float],
    progress: Callable[[int], None] | None = None,
) -> Times:
    """Play requests on a cluster.

    Args:
        cluster: M machines.
        requests: N of them; those that are no load are left out.
        pairs: where each goes.
        starts_s: when each is sent to its first server, by the log's clock.
        progress: called with the number of requests played.

    Raises:
        TraceError: a request that does not fit its machine; names the line.
    """
    _check_fits(cluster, requests, pairs)
    live = live_engine(cluster)
    played: dict[int, _Played] = {}
    order = sorted((i for i, r in enumerate(requests) if is_load(r)), key=lambda i: starts_s[i])
    origin_s = starts_s[order[0]] if order else 0.0
    for count, i in enumerate(order):
        at_ns = to_ns(starts_s[i] - origin_s)
        live.step_to(at_ns)
        played[i] = _Played(live, requests[i], *pairs[i])
        played[i].start(at_ns)
        if progress is not None and count % _PROGRESS_EVERY == 0:
            progress(count)
    while live.next_ns != float("inf"):
        live.step_to(int(live.next_ns))
    n = len(requests)
    times = Times(np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan))
    for i, done in played.items():
        before_s = starts_s[i] - requests[i].arrival_s
        for array, at_ns in zip((times.prompt_s, times.first_s, times.end_s), done.times_ns()):
            if at_ns != NEVER:
                array[i] = before_s + (at_ns - done.start_ns) / NS_PER_S
    return times


class _Played:
    """One request on its way through the engine."""

    def __init__(self, live: Live, request: LoggedRequest, p: int, t: int) -> None:
        self._live = live
        self._target = t
        self._output = max(1, request.output_tokens)
        self.start_ns = 0
        self.prompt: LiveRequest | None = None
        if p == t:
            self.last = LiveRequest(t, request.prompt_tokens, self._output, Kind.WHOLE)
        else:
            self.prompt = LiveRequest(p, request.prompt_tokens, 1, Kind.PROMPT, on_token=self._pull)
            self.last = LiveRequest(t, request.prompt_tokens, self._output, Kind.TOKEN, source=self.prompt)

    def start(self, at_ns: int) -> None:
        self.start_ns = at_ns
        self._live.submit(self.prompt or self.last, at_ns)

    def _pull(self, prompt: LiveRequest, tokens: int) -> None:
        self._live.submit(self.last, prompt.last_token_ns)

    def times_ns(self) -> tuple[int, int, int]:
        """End of the prompt (of a split one), first and last token."""
        prompt_ns = NEVER if self.prompt is None else self.prompt.last_token_ns
        return prompt_ns, self.last.first_token_ns, self.last.last_token_ns


def _check_fits(cluster: Cluster, requests: Sequence[LoggedRequest], pairs: Sequence[Pair]) -> None:
    capacity = cluster.kv_capacity_tokens.tolist()
    for request, pair in zip(requests, pairs):
        need = request.prompt_tokens + request.output_tokens + 1
        for m in set(pair) - {-1}:
            if is_load(request) and need > capacity[m]:
                raise request.place.error(
                    f"{need} tokens of KV cache never fit server {m} ({capacity[m]} tokens by its profile); "
                    "give the profile that was measured there"
                )
