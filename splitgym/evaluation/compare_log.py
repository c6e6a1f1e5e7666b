"""Sim to real: how far the simulator is from what a router logged, so that one knows whether to trust it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig
from splitgym.errors import TraceError
from splitgym.evaluation.contenders import Contender
from splitgym.evaluation.logged import Pair, cluster_of, decisions_of, is_load
from splitgym.evaluation.replay import Times, decide, resizes, simulate
from splitgym.slo import PERCENTILES, is_good
from splitgym.trace.decision_log import LoggedRequest, LoggedRun, LoggedTraffic
from splitgym.types import to_ns

Floats = NDArray[np.float64]

BAR = 0.10
"""p50 and p90 of TTFT and TBT within this: the simulator may be trusted for this traffic."""
LOGGED = "logged"
"""Decisions as the log has them."""
MEASURES = {"ttft": "TTFT", "tbt": "TBT", "e2e": "E2E", "prompt": "prompt"}
_JUDGED = [(kind, p) for kind in ("ttft", "tbt") for p in (50, 90)]


@dataclass(frozen=True)
class Measure:
    """One latency, real and simulated, over the same N requests [s]."""

    real_s: Floats  # (N,)
    simulated_s: Floats  # (N,)

    def error(self, percentile: float) -> float:
        """Of the simulated percentile, relative to the real one; NaN without requests."""
        if not len(self.real_s):
            return float("nan")
        real, simulated = (float(np.percentile(x, percentile)) for x in (self.real_s, self.simulated_s))
        return simulated / real - 1.0 if real > 0 else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """Percentiles, their errors, and errors request by request."""
        if not len(self.real_s):
            return {"requests": 0}
        off = self.simulated_s / np.maximum(self.real_s, 1e-9) - 1.0
        return {
            "requests": len(self.real_s),
            "real_s": {f"p{p}": float(np.percentile(self.real_s, p)) for p in PERCENTILES},
            "simulated_s": {f"p{p}": float(np.percentile(self.simulated_s, p)) for p in PERCENTILES},
            "error": {f"p{p}": self.error(p) for p in PERCENTILES},
            "per_request_error": {
                "median_absolute": float(np.median(np.abs(off))),
                "p90_absolute": float(np.percentile(np.abs(off), 90)),
                "median": float(np.median(off)),
            },
        }


@dataclass(frozen=True)
class LogComparison:
    """A log against its simulation."""

    log: str
    decisions: str
    """`logged`, or the policy that decided in the simulator."""
    measures: dict[str, Measure]
    counts: dict[str, int]
    goodput: tuple[float, float]
    """Share of good requests, real and simulated; NaN without streamed requests."""
    notes: tuple[str, ...]

    @property
    def worst(self) -> tuple[str, float]:
        """The largest of the judged errors, and what it is of."""
        found = {f"p{p} {MEASURES[kind]}": self.measures[kind].error(p) for kind, p in _JUDGED}
        known = {name: error for name, error in found.items() if np.isfinite(error)}
        if not known:
            return "nothing", float("nan")
        name = max(known, key=lambda key: abs(known[key]))
        return name, known[name]

    @property
    def within_bar(self) -> bool:
        """May it be trusted, by `BAR`?"""
        return bool(abs(self.worst[1]) <= BAR)

    @property
    def verdict(self) -> str:
        """A sentence."""
        name, error = self.worst
        if not np.isfinite(error):
            return "No streamed request was measured, so TTFT and TBT cannot be compared."
        if self.within_bar:
            return (
                f"p50 and p90 of TTFT and TBT are within {BAR:.0%} (worst: {name}, {error:+.1%}): the "
                "simulator can be trusted for this traffic."
            )
        return (
            f"{name} is off by {error:+.1%}, more than {BAR:.0%}: measure a profile of these servers "
            "(`splitgym profile measure`) before trusting the simulator."
        )

    def as_dict(self) -> dict[str, Any]:
        """For `json.dumps`; unknown numbers are None by `splitgym.evaluation.report.plain`."""
        name, error = self.worst
        return {
            "log": self.log,
            "decisions": self.decisions,
            "within_bar": self.within_bar,
            "bar": BAR,
            "worst": {"of": name, "error": error},
            "verdict": self.verdict,
            "requests": self.counts,
            "goodput": {"real": self.goodput[0], "simulated": self.goodput[1]},
            "measures": {kind: measure.as_dict() for kind, measure in self.measures.items()},
            "notes": list(self.notes),
        }


def compare_log(
    traffic: LoggedTraffic,
    *,
    profile: Sequence[str] = (),
    cluster: ClusterConfig | None = None,
    policy: Callable[[ClusterConfig], Contender] | None = None,
    last: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> LogComparison:
    """Simulate a log and compare.

    Args:
        traffic: of `read_decision_log`.
        profile: see `splitgym.evaluation.logged.cluster_of`.
        cluster: in place of what the log says.
        policy: makes who decides in the simulator, for a cluster; None takes the logged decisions. With a
            policy, single requests go other ways than they went, and only percentiles can be compared.
        last: measure the newest so many requests only; what was under way beside them is simulated too.
        progress: called with the number of requests simulated; with a policy, decided ones are added.

    Raises:
        ConfigError, ProfileError: servers that are not known; see `cluster_of`.
        TraceError: a request that no server could hold, or nothing to measure; names the line.
    """
    parts: list[_Part] = []
    moved: list[str] = []
    name, done = LOGGED, 0
    for run, first_s in _newest(traffic, last):
        where, servers = cluster_of(run, profile, cluster)
        if policy is None:
            pairs = decisions_of(run, servers)
            starts = [request.arrival_s + request.decided_s for request in run.requests]
        else:
            entrant = policy(where.config)
            name = entrant.name
            told = None if progress is None else partial(_add, progress, done)
            pairs = decide(run, where, entrant, bool(run.header.get("confine", False)), servers, told)
            done += len(run.requests)
            went = "went their own way" if resizes(entrant) else "were replayed"
            moved += [f"{len(run.roles)} role changes in the log {went}"] if run.roles else []
            starts = [request.arrival_s for request in run.requests]
        told = None if progress is None else partial(_add, progress, done)
        times = simulate(where, run.requests, pairs, starts, told)
        done += len(run.requests)
        parts.append(_Part(where, run.requests, pairs, times, first_s))
    return _summary(traffic, name, parts, moved)


def _add(progress: Callable[[int], None], before: int, count: int) -> None:
    progress(before + count)


@dataclass(frozen=True)
class _Part:
    """One run of the router, simulated."""

    cluster: Cluster
    requests: list[LoggedRequest]
    pairs: list[Pair]
    times: Times
    first_s: float
    """Arrivals before this are load, but not measured."""

    def rows(self) -> list[int]:
        """Requests that are measured."""
        return [
            i
            for i, r in enumerate(self.requests)
            if r.outcome == "ok" and is_load(r) and r.arrival_s >= self.first_s
        ]

    @cached_property
    def real(self) -> Times:
        """What the log says."""
        nan = float("nan")
        first = [nan if r.first_byte_s is None else r.first_byte_s for r in self.requests]
        prompt = [nan if r.prompt_s is None else r.prompt_s for r in self.requests]
        return Times(np.array(prompt), np.array(first), np.array([r.end_s for r in self.requests]))

    def good(self, times: Times, i: int) -> bool:
        """Did request i meet the SLO?"""
        request, slo = self.requests[i], self.cluster.config.slo
        return bool(
            is_good(
                self.cluster.tables,
                slo.ttft_slowdown,
                slo.tbt_slowdown,
                request.prompt_tokens,
                request.output_tokens,
                0,
                to_ns(float(times.first_s[i])),
                to_ns(float(times.end_s[i])),
            )
        )


def _newest(traffic: LoggedTraffic, last: int | None) -> list[tuple[LoggedRun, float]]:
    """Runs and where in them measuring begins: all, or as many as hold the newest `last` requests."""
    if last is None:
        return [(run, 0.0) for run in traffic.runs]
    found: list[tuple[LoggedRun, float]] = []
    left = last
    for run in reversed(traffic.runs):
        if left <= 0:
            break
        first_s = run.requests[-left].arrival_s if left < len(run.requests) else 0.0
        kept = [r for r in run.requests if r.arrival_s + r.end_s >= first_s]
        found.insert(0, (replace(run, requests=kept), first_s))
        left -= len(run.requests)
    return found


def _summary(
    traffic: LoggedTraffic, name: str, parts: list[_Part], moved: Sequence[str] = ()
) -> LogComparison:
    rows = [(part, i) for part in parts for i in part.rows()]
    if not rows:
        raise TraceError(f"{traffic.path}: no request was answered in full, so there is nothing to compare")
    outputs = np.array([part.requests[i].output_tokens for part, i in rows], np.int64)
    real = _pick([part.real for part in parts], parts)
    simulated = _pick([part.times for part in parts], parts)
    streamed = ~np.isnan(real.first_s)
    split = ~np.isnan(real.prompt_s) & ~np.isnan(simulated.prompt_s)
    tbt, tbt_simulated = real.tbt_s(outputs), simulated.tbt_s(outputs)
    timed = streamed & ~np.isnan(tbt)
    measures = {
        "ttft": Measure(real.first_s[streamed], simulated.first_s[streamed]),
        "tbt": Measure(tbt[timed], tbt_simulated[timed]),
        "e2e": Measure(real.end_s, simulated.end_s),
        "prompt": Measure(real.prompt_s[split], simulated.prompt_s[split]),
    }
    judged = [(part, i) for (part, i), seen in zip(rows, streamed.tolist()) if seen]
    good = [part.good(part.real, i) for part, i in judged], [part.good(part.times, i) for part, i in judged]
    requests = [request for part in parts for request in part.requests]
    outcomes = Counter(request.outcome for request in requests)
    counts = {
        "logged": len(requests),
        "measured": len(rows),
        "streamed": int(streamed.sum()),
        "split": sum(part.requests[i].split for part, i in rows),
        "load_only": sum(map(is_load, requests)) - len(rows),
        "tried_again": sum(part.requests[i].attempts > 1 for part, i in rows),
        **dict(sorted(outcomes.items())),
    }
    real_good, simulated_good = (float(np.mean(values)) if values else float("nan") for values in good)
    notes = (*traffic.notes, *moved, *_notes(counts))
    return LogComparison(traffic.path.name, name, measures, counts, (real_good, simulated_good), notes)


def _pick(times: list[Times], parts: list[_Part]) -> Times:
    """The measured rows of all parts, joined."""
    rows = [part.rows() for part in parts]
    return Times(
        *(
            np.concatenate([getattr(t, field)[r] for t, r in zip(times, rows)])
            for field in ("prompt_s", "first_s", "end_s")
        )
    )


def _notes(counts: dict[str, int]) -> list[str]:
    notes = []
    if counts["tried_again"]:
        notes.append(f"{counts['tried_again']} requests were tried again: only the last attempt is simulated")
    if counts["measured"] > counts["streamed"]:
        missing = counts["measured"] - counts["streamed"]
        notes.append(f"{missing} requests were not streamed: only their E2E can be compared")
    return notes
