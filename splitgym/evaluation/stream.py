"""One long run: requests in chunks, outcomes to a Parquet file, metrics on the way; memory stays the same.

A week at 70 requests/s is 44 million requests. Neither they nor what becomes of them need to be in memory
together (docs/scale.md has the figures).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
from numpy.typing import NDArray

from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig
from splitgym.errors import ConfigError
from splitgym.evaluation.contenders import PolicyLike, cluster_for, contender
from splitgym.metrics import KINDS
from splitgym.sim import Outcomes, make_engine
from splitgym.slo import NINE_SLOS, PERCENTILES, reference_times_s
from splitgym.trace import Trace
from splitgym.types import NS_PER_S

Rows = NDArray[Any]

BINS_PER_OCTAVE = 350
"""Slowdowns are counted in bins 0.2 % wide, so percentiles are exact to that."""
LOWEST, OCTAVES = 2.0**-10, 30


@dataclass(frozen=True)
class Summary:
    """Metrics of a streamed run, over all its requests."""

    requests: int
    goodput: float
    slowdowns: dict[str, tuple[float, float, float]]
    """(p50, p90, p99) by kind, to 0.2 %; NaN where no request has one."""
    failed_slos: tuple[str, ...]
    simulated_s: float
    energy_per_request_j: float
    cost_per_request: float
    utilisation: float

    def as_dict(self) -> dict[str, Any]:
        """Flat fields, as `Metrics.as_dict`."""
        flat = {name: value for name, value in vars(self).items() if name not in ("slowdowns", "failed_slos")}
        flat["failed_slos"] = " ".join(self.failed_slos)
        for kind, values in self.slowdowns.items():
            flat |= {f"{kind}_slowdown_p{p}": value for p, value in zip(PERCENTILES, values)}
        return flat


class Tally:
    """Counts finished requests as they come."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.requests = self.good = 0
        self._bins = {kind: np.zeros(BINS_PER_OCTAVE * OCTAVES, np.int64) for kind in KINDS}

    def add(self, rows: Rows) -> None:
        """Rows of `CompiledEngine.stream`."""
        slo = self._cluster.config.slo
        output = rows["output_tokens"]
        references = reference_times_s(self._cluster.tables, rows["prompt_tokens"], output)
        first, finish, arrival = rows["first_token_ns"], rows["finish_ns"], rows["arrival_ns"]
        seconds = (
            (first - arrival) * 1e-9,
            np.where(output > 1, (finish - first) * 1e-9 / np.maximum(1, output - 1), np.nan),
            (finish - arrival) * 1e-9,
        )
        slowdowns = dict(zip(KINDS, (s / r for s, r in zip(seconds, references, strict=True)), strict=True))
        for kind, values in slowdowns.items():
            there = np.maximum(values[~np.isnan(values)], LOWEST)
            places = (np.log2(there / LOWEST) * BINS_PER_OCTAVE).astype(np.int64)
            self._bins[kind] += np.bincount(
                np.minimum(places, len(self._bins[kind]) - 1), minlength=len(self._bins[kind])
            )
        good = (slowdowns["ttft"] <= slo.ttft_slowdown) & ~(slowdowns["tbt"] > slo.tbt_slowdown)
        self.requests += len(rows)
        self.good += int(good.sum())

    def summary(self, totals: Outcomes) -> Summary:
        """Of what was added, and of the machines."""
        slowdowns = {kind: self._percentiles(bins) for kind, bins in self._bins.items()}
        failed = [
            f"{kind}_p{p}"
            for kind, limits in NINE_SLOS.items()
            for p, limit, value in zip(PERCENTILES, limits, slowdowns[kind])
            if not (np.isnan(value) or value < limit)
        ]
        count = max(1, self.requests)
        up = float(totals.up_ns.sum())
        return Summary(
            self.requests,
            self.good / self.requests if self.requests else float("nan"),
            slowdowns,
            tuple(failed),
            totals.end_ns / NS_PER_S,
            float(totals.energy_j.sum()) / count,
            self._cluster.cost_per_hour * totals.end_ns / NS_PER_S / 3600 / count,
            float(totals.busy_ns.sum()) / up if up else 0.0,
        )

    @staticmethod
    def _percentiles(bins: NDArray[np.int64]) -> tuple[float, float, float]:
        total = int(bins.sum())
        if not total:
            return (np.nan, np.nan, np.nan)
        counted = np.cumsum(bins)
        places = [int(np.searchsorted(counted, p / 100 * (total - 1), side="right")) for p in PERCENTILES]
        p50, p90, p99 = (float(LOWEST * 2 ** ((place + 0.5) / BINS_PER_OCTAVE)) for place in places)
        return (p50, p90, p99)


@contextmanager
def parquet_sink(path: Path) -> Iterator[Callable[[Rows], None]]:
    """Writes rows into a Parquet file, one column a field; the file appears whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    writer: pa_parquet.ParquetWriter | None = None

    def write(rows: Rows) -> None:
        nonlocal writer
        table = pa.table({name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()})
        if writer is None:
            writer = pa_parquet.ParquetWriter(part, table.schema, compression="zstd")
        writer.write_table(table)

    try:
        part.unlink(missing_ok=True)
        yield write
        if writer is not None:
            writer.close()
            part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: outcomes cannot be written there ({error.strerror})") from None
    finally:
        if writer is not None:
            writer.close()
        part.unlink(missing_ok=True)


def simulate(
    policy: PolicyLike,
    cluster: Cluster | ClusterConfig,
    chunks: Iterable[Trace],
    *,
    out: Path | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Summary:
    """Run a policy on requests that come in chunks.

    Args:
        policy: see `evaluate`.
        cluster: resolved, or its configuration.
        chunks: traces one after the other in time; see `splitgym.trace.blocks` for those of a file.
        out: a Parquet file for what became of each request; None keeps nothing.
        seed: of the schedulers.
        progress: called with the number of requests finished so far.

    Raises:
        SplitgymError: as for `evaluate`; a chunk out of order; a file that cannot be written.
    """
    resolved = cluster if isinstance(cluster, Cluster) else Cluster.resolve(cluster)
    entrant = contender(policy, cluster=resolved.config)
    where = cluster_for(entrant, resolved)
    engine: Any = make_engine(where, entrant.routing, entrant.sizing, engine="compiled")
    tally = Tally(where)

    def run(write: Callable[[Rows], None] | None) -> Outcomes:
        def sink(rows: Rows) -> None:
            tally.add(rows)
            if write is not None:
                write(rows)
            if progress is not None:
                progress(tally.requests)

        totals: Outcomes = engine.stream(chunks, sink, seed)
        return totals

    if out is None:
        return tally.summary(run(None))
    with parquet_sink(out) as write:
        totals = run(write)
    return tally.summary(totals)
