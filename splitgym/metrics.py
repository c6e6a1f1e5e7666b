"""From what happened to what is reported: slowdowns, percentiles, goodput, the nine SLOs, energy, cost.

Nothing here knows the simulator: a table of arrays goes in, so the live router's log can be measured too.
"""

from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from splitgym.profile.tables import ProfileTables
from splitgym.slo import NINE_SLOS, PERCENTILES, reference_times_s

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

KINDS = ("ttft", "tbt", "e2e")


class RequestRows(Protocol):
    """One row a request; times are integer nanoseconds, negative where they have not come."""

    @property
    def arrival_ns(self) -> Ints: ...  # (N,)
    @property
    def prompt_tokens(self) -> Ints: ...  # (N,)
    @property
    def output_tokens(self) -> Ints: ...  # (N,)
    @property
    def first_token_ns(self) -> Ints: ...  # (N,)
    @property
    def finish_ns(self) -> Ints: ...  # (N,)


class MachineTotals(Protocol):
    """Totals of a whole run, warm-up and drained tail included."""

    @property
    def energy_j(self) -> Floats: ...  # (M,)
    @property
    def busy_ns(self) -> Ints: ...  # (M,)
    @property
    def prompt_busy_ns(self) -> Ints: ...  # (M,)
    @property
    def up_ns(self) -> Ints: ...  # (M,)
    @property
    def end_ns(self) -> int: ...


@dataclass(frozen=True)
class RequestTable:
    """The measured requests, one row each. A time that has not come is infinite; TBT of 1 token is NaN."""

    row: Ints  # (K,) place in the trace
    arrival_s: Floats  # (K,)
    prompt_tokens: Ints  # (K,)
    output_tokens: Ints  # (K,)
    ttft_s: Floats  # (K,)
    tbt_s: Floats  # (K,)
    e2e_s: Floats  # (K,)
    ttft_slowdown: Floats  # (K,)
    tbt_slowdown: Floats  # (K,)
    e2e_slowdown: Floats  # (K,)
    completed: Flags  # (K,)
    good: Flags  # (K,)

    def __len__(self) -> int:
        return len(self.row)

    def slowdown(self, kind: str) -> Floats:
        """(K,) slowdowns: `kind` is "ttft", "tbt" or "e2e"."""
        return {"ttft": self.ttft_slowdown, "tbt": self.tbt_slowdown, "e2e": self.e2e_slowdown}[kind]

    def seconds(self, kind: str) -> Floats:
        """(K,) times [s]: `kind` is "ttft", "tbt" or "e2e"."""
        return {"ttft": self.ttft_s, "tbt": self.tbt_s, "e2e": self.e2e_s}[kind]


def request_table(
    rows: RequestRows,
    tables: ProfileTables,
    *,
    ttft_slo: float = 3.0,
    tbt_slo: float = 1.5,
    start_s: float = 0.0,
    end_s: float = np.inf,
) -> RequestTable:
    """Times and slowdowns of the requests that arrive in [start_s, end_s).

    Args:
        rows: what happened.
        tables: profile times; row 0 is the reference machine.
        ttft_slo, tbt_slo: a request within both slowdowns is good; one that has not completed is not.
        start_s, end_s: the measured window, by arrival (before it: warm-up).
    """
    arrival = np.asarray(rows.arrival_ns)
    row = np.flatnonzero((arrival >= start_s * 1e9) & (arrival < end_s * 1e9))
    arrival, prompt, output = arrival[row], rows.prompt_tokens[row], rows.output_tokens[row]
    first, finish = rows.first_token_ns[row], rows.finish_ns[row]
    completed = finish >= 0
    ttft = np.where(first >= 0, (first - arrival) * 1e-9, np.inf)
    e2e = np.where(completed, (finish - arrival) * 1e-9, np.inf)
    between = (finish - first) * 1e-9 / np.maximum(1, output - 1)
    tbt = np.where(output <= 1, np.nan, np.where(completed, between, np.inf))
    ttft_ref, tbt_ref, e2e_ref = reference_times_s(tables, prompt, output)
    ttft_slow, tbt_slow = ttft / ttft_ref, tbt / tbt_ref
    within = (output <= 1) | (tbt_slow <= tbt_slo)
    return RequestTable(
        row=row,
        arrival_s=np.asarray(arrival * 1e-9, np.float64),
        prompt_tokens=prompt,
        output_tokens=output,
        ttft_s=ttft,
        tbt_s=tbt,
        e2e_s=e2e,
        ttft_slowdown=ttft_slow,
        tbt_slowdown=tbt_slow,
        e2e_slowdown=e2e / e2e_ref,
        completed=completed,
        good=completed & (ttft_slow <= ttft_slo) & within,
    )


def percentiles(values: Floats) -> tuple[float, float, float]:
    """p50, p90 and p99 (linear interpolation) of the values that are not NaN; NaN where there are none.

    An infinite neighbour makes an infinite percentile: a request that never finished is not forgotten.
    Otherwise as `np.percentile`, to the last bit.
    """
    there = np.sort(values[~np.isnan(values)])
    if not len(there):
        return (np.nan, np.nan, np.nan)
    found = []
    for p in PERCENTILES:
        place = (len(there) - 1) * (p / 100)
        below = min(int(place), len(there) - 1)
        low, high = float(there[below]), float(there[min(below + 1, len(there) - 1)])
        share, gap = place - below, high - low
        value = high - gap * (1 - share) if share >= 0.5 else low + gap * share
        found.append(np.inf if np.isnan(value) else value)
    return (found[0], found[1], found[2])


def nine_slos(
    table: RequestTable, found: dict[str, tuple[float, float, float]] | None = None
) -> dict[str, bool]:
    """Which of the nine SLOs hold, by name such as "ttft_p90". One without any request holds.

    Args:
        table: the requests.
        found: percentiles of their slowdowns by kind, where they are known already.
    """
    held = {}
    for kind, limits in NINE_SLOS.items():
        values = percentiles(table.slowdown(kind)) if found is None else found[kind]
        for p, limit, value in zip(PERCENTILES, limits, values):
            held[f"{kind}_p{p}"] = bool(np.isnan(value) or value < limit)
    return held


@dataclass(frozen=True)
class Metrics:
    """What is reported of one run. Percentile fields hold (p50, p90, p99)."""

    requests: int
    """Arrivals in the measured window."""
    completed: int
    goodput: float
    """Share of the measured requests that are good; NaN without any request."""
    good_per_s: float
    """Good requests per second of the measured window."""
    ttft_s: tuple[float, float, float]
    tbt_s: tuple[float, float, float]
    e2e_s: tuple[float, float, float]
    ttft_slowdown: tuple[float, float, float]
    tbt_slowdown: tuple[float, float, float]
    e2e_slowdown: tuple[float, float, float]
    slos_held: int
    """Of the nine."""
    failed_slos: tuple[str, ...]
    energy_per_request_j: float
    """Energy of the whole run over the requests that completed in it."""
    cost_per_request: float
    """Cost of the cluster for the whole run over the same requests, in the profiles' currency."""
    utilisation: float
    """Share of the machines' up time spent in iterations, whole run."""
    prompt_share: float
    """Share of the busy time in iterations with prompts, whole run."""

    def as_dict(self) -> dict[str, Any]:
        """Flat fields for a table: `ttft_s_p50`, ..., plain numbers only."""
        flat: dict[str, Any] = {}
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name == "failed_slos":
                flat[name] = " ".join(value)
            elif isinstance(value, tuple):
                flat.update({f"{name}_p{p}": x for p, x in zip(PERCENTILES, value)})
            else:
                flat[name] = value
        return flat


def metric_names() -> list[str]:
    """Names of the numbers in `Metrics.as_dict()`."""
    found: list[str] = []
    for field in fields(Metrics):
        if field.type == tuple[float, float, float]:
            found += [f"{field.name}_p{p}" for p in PERCENTILES]
        elif field.type in (int, float):
            found.append(field.name)
    return found


def summarise(
    table: RequestTable,
    totals: MachineTotals,
    *,
    window_s: float,
    completed_in_run: int,
    cost_per_hour: float,
) -> Metrics:
    """Metrics of one run.

    Args:
        table: the measured requests.
        totals: of the machines, over the whole run.
        window_s: length of the measured window.
        completed_in_run: requests completed in the whole run, which the machines' totals are shared among.
        cost_per_hour: of the cluster.
    """
    n = len(table)
    good = int(table.good.sum())
    slowdowns = {kind: percentiles(table.slowdown(kind)) for kind in KINDS}
    failed = tuple(name for name, held in nine_slos(table, slowdowns).items() if not held)
    busy, up = float(totals.busy_ns.sum()), float(totals.up_ns.sum())
    hours = totals.end_ns * 1e-9 / 3600
    share = 1 / completed_in_run if completed_in_run else np.nan
    return Metrics(
        requests=n,
        completed=int(table.completed.sum()),
        goodput=good / n if n else np.nan,
        good_per_s=good / window_s if window_s > 0 else np.nan,
        ttft_s=percentiles(table.ttft_s),
        tbt_s=percentiles(table.tbt_s),
        e2e_s=percentiles(table.e2e_s),
        ttft_slowdown=slowdowns["ttft"],
        tbt_slowdown=slowdowns["tbt"],
        e2e_slowdown=slowdowns["e2e"],
        slos_held=9 - len(failed),
        failed_slos=failed,
        energy_per_request_j=float(totals.energy_j.sum()) * share,
        cost_per_request=cost_per_hour * hours * share,
        utilisation=busy / up if up else 0.0,
        prompt_share=float(totals.prompt_busy_ns.sum()) / busy if busy else 0.0,
    )
