"""What has happened since the last decision, and so far in the episode, read off an engine's outcomes."""

import math
from dataclasses import dataclass, field
from typing import Any

from splitgym.cluster import Cluster
from splitgym.envs.reward import Completion, Happened
from splitgym.metrics import RequestTable, request_table, summarise
from splitgym.sim import Outcomes
from splitgym.slo import reference_times_s
from splitgym.types import NS_PER_S, Pool
from splitgym.view import ClusterView


@dataclass
class Ledger:
    """Counts the requests that arrive from the end of the warm-up on, each once.

    A request's goodness is computed by the same arithmetic as `splitgym.metrics.request_table`, so that
    rewards and metrics agree exactly.

    Attributes:
        cluster: for its tables, SLOs and cost.
        warmup_ns, window_s: the warm-up, and the length of the window after it.
    """

    cluster: Cluster
    warmup_ns: int
    window_s: float
    completed: int = 0
    good: int = 0
    arrived: int = 0
    slowdowns: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Sums over completions of the TTFT, TBT and E2E slowdowns."""
    with_tbt: int = 0

    def reset(self, outcomes: Outcomes, now_ns: int) -> None:
        """Begin an episode with its first decision at `now_ns`; what was before belongs to its first step."""
        self.completed = self.good = self.arrived = self.with_tbt = 0
        self.slowdowns = [0.0, 0.0, 0.0]
        ttft, tbt, e2e = reference_times_s(
            self.cluster.tables, outcomes.prompt_tokens, outcomes.output_tokens
        )
        self._reference = list(zip(ttft.tolist(), tbt.tolist(), e2e.tolist(), strict=True))
        self._arrival_ns: list[int] = outcomes.arrival_ns.tolist()
        self._output: list[int] = outcomes.output_tokens.tolist()
        self._first = next(
            (i for i, t in enumerate(self._arrival_ns) if t >= self.warmup_ns), len(self._arrival_ns)
        )
        self._arrivals_seen = self._first
        self._finished_seen = 0
        self._before_ns = now_ns
        self._integral_ns = 0
        self._energy_j = 0.0

    def advance(self, outcomes: Outcomes, now_ns: int, last: bool) -> Happened:
        """What happened since the last call."""
        before_ns, self._before_ns = self._before_ns, now_ns
        energy_j = float(outcomes.energy_j.sum())
        spent_j, self._energy_j = energy_j - self._energy_j, energy_j
        counted_s = max(0, now_ns - max(before_ns, self.warmup_ns)) / NS_PER_S
        happened = Happened(
            elapsed_s=(now_ns - before_ns) / NS_PER_S,
            counted_s=counted_s,
            energy_j=spent_j if now_ns > self.warmup_ns else 0.0,
            cost=self.cluster.cost_per_hour * counted_s / 3600.0,
            last=last,
        )
        residence_ns = self._arrivals(now_ns)
        order = outcomes.finish_order
        for place in range(self._finished_seen, len(order)):
            request = order[place]
            if request < self._first:
                continue
            residence_ns -= now_ns - int(outcomes.finish_ns[request])
            happened.completions.append(self._complete(outcomes, request))
        self._finished_seen = len(order)
        happened.request_seconds = residence_ns / NS_PER_S
        return happened

    def _arrivals(self, now_ns: int) -> int:
        """Time in the system since the last call of those who were there or came, if none had left [ns]."""
        in_system = self.arrived - self.completed
        # From the last integral's end, which at the first call is the end of the warm-up.
        since_ns = max(self._integral_ns, self.warmup_ns)
        residence_ns = in_system * max(0, now_ns - since_ns)
        times = self._arrival_ns
        while self._arrivals_seen < len(times) and times[self._arrivals_seen] <= now_ns:
            residence_ns += now_ns - times[self._arrivals_seen]
            self._arrivals_seen += 1
            self.arrived += 1
        self._integral_ns = now_ns
        return residence_ns

    def _complete(self, outcomes: Outcomes, request: int) -> Completion:
        slo = self.cluster.config.slo
        ttft_reference, tbt_reference, e2e_reference = self._reference[request]
        arrival = self._arrival_ns[request]
        first, finish = int(outcomes.first_token_ns[request]), int(outcomes.finish_ns[request])
        ttft = (first - arrival) * 1e-9 / ttft_reference
        e2e = (finish - arrival) * 1e-9 / e2e_reference
        tbt = math.nan
        good = ttft <= slo.ttft_slowdown
        if self._output[request] > 1:
            tbt = (finish - first) * 1e-9 / max(1, self._output[request] - 1) / tbt_reference
            good = good and tbt <= slo.tbt_slowdown
            self.slowdowns[1] += tbt
            self.with_tbt += 1
        self.slowdowns[0] += ttft
        self.slowdowns[2] += e2e
        self.completed += 1
        self.good += good
        return Completion(request, int(outcomes.decision_id[request]), good, ttft, tbt, e2e)

    def running(self, view: ClusterView) -> dict[str, float | None]:
        """Metrics so far, cheap: counts and means (None before the first completion).

        Percentiles come with the last step.
        """
        pools = view.pool.tolist()
        done = self.completed
        ttft, tbt, e2e = self.slowdowns
        return {
            "arrived": float(self.arrived),
            "completed": float(done),
            "in_system": float(self.arrived - done),
            "goodput": self.good / done if done else None,
            "ttft_slowdown_mean": ttft / done if done else None,
            "tbt_slowdown_mean": tbt / self.with_tbt if self.with_tbt else None,
            "e2e_slowdown_mean": e2e / done if done else None,
            "prompt_machines": float(pools.count(Pool.PROMPT)),
            "token_machines": float(pools.count(Pool.TOKEN)),
            "mixed_machines": float(pools.count(Pool.MIXED)),
        }

    def final(self, outcomes: Outcomes) -> tuple[dict[str, Any], RequestTable]:
        """Metrics of the episode (`splitgym.metrics.Metrics`, flat), and its requests one by one."""
        slo = self.cluster.config.slo
        table = request_table(
            outcomes,
            self.cluster.tables,
            ttft_slo=slo.ttft_slowdown,
            tbt_slo=slo.tbt_slowdown,
            start_s=self.warmup_ns / NS_PER_S,
        )
        metrics = summarise(
            table,
            outcomes,
            window_s=self.window_s,
            completed_in_run=len(outcomes.finish_order),
            cost_per_hour=self.cluster.cost_per_hour,
        )
        return metrics.as_dict(), table
