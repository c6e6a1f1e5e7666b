"""The rate at which a cluster is saturated by a workload: loads are given as fractions of it.

Saturation is the rate at which the tuned index's goodput is .90 on the train part of the workload's
trace, and for real stamps of `azure-code`, whose bursts are missed at any rate, at least .3 of what
Poisson arrivals of the same sizes allow. `splitgym.evaluation.saturate` measures it;
`profiles/saturation.csv` keeps what it measured.

The table holds for the default rules and SLOs. Which machine is in which pool plays no part: the index
is free to choose. Clusters of the same machine types between those of the table are interpolated.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

from splitgym.config import ClusterConfig, SloConfig
from splitgym.errors import ConfigError
from splitgym.resources import shipped

WORKLOADS = (
    "poisson:azure-conv",
    "poisson:azure-code",
    "stamps:azure-conv",
    "stamps:azure-code",
    "shifting:azure-conv~azure-code",
    "mixed:azure-conv+azure-code",
)
"""The six that are measured, trained on and compared on."""

FILE = "saturation.csv"
COLUMNS = ("model", "machines", "workload", "rate_per_s", "goodput", "windows")

Rates = Mapping[Counter[str], float]


def hardware(cluster: ClusterConfig) -> Counter[str]:
    """How many machines of each type, whatever their pools: {"h100-80gb/tp8": 8}."""
    found: Counter[str] = Counter()
    for group in cluster.machines:
        found[f"{group.machine}/tp{group.tensor_parallel}"] += group.count
    return found


def write_hardware(machines: Counter[str]) -> str:
    """As the table writes it: "4 a100-80gb/tp8 + 4 h100-80gb/tp8"."""
    return " + ".join(f"{count} {machine}" for machine, count in sorted(machines.items()))


def read_hardware(text: str) -> Counter[str]:
    """Undoes `write_hardware`."""
    pairs = [part.split() for part in text.split("+")]
    return Counter({machine: int(count) for count, machine in pairs})


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a table, in order.

    Raises:
        ConfigError: the file lacks a column.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, 2):
        if None in row.values() or not set(COLUMNS) <= row.keys():
            raise ConfigError(f"{path}, line {number}: needs the columns {', '.join(COLUMNS)}")
    return rows


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Write a table; rows in the order of model, workload, size, machines."""

    def place(row: Mapping[str, str]) -> tuple[str, str, int, str]:
        return row["model"], row["workload"], read_hardware(row["machines"]).total(), row["machines"]

    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=place))


@cache
def _shipped() -> dict[tuple[str, str], list[tuple[Counter[str], float]]]:
    found: dict[tuple[str, str], list[tuple[Counter[str], float]]] = defaultdict(list)
    for row in read(shipped("profiles") / FILE):
        key = row["model"], row["workload"]
        found[key].append((read_hardware(row["machines"]), float(row["rate_per_s"])))
    return found


def known(cluster: ClusterConfig, workload: str) -> float | None:
    """Saturation [requests/s] from the shipped table, between its clusters interpolated; None beyond it.

    Args:
        cluster: machines, model and SLO count; the rest is taken as default.
        workload: a workload's name without its rate, such as `poisson:azure-code`. A built-in likeness of a
            trace (`azure-code-synth`) counts as the original.
    """
    if cluster.slo != SloConfig():
        return None
    name = workload.replace("-synth", "")
    return interpolate(_shipped().get((cluster.model, name), []), hardware(cluster))


def require(cluster: ClusterConfig, workload: str) -> float:
    """`known`, or an error.

    Raises:
        ConfigError: the table does not reach the cluster; says how to measure it.
    """
    rate = known(cluster, workload)
    if rate is None:
        raise ConfigError(
            f"no saturation is known for {workload} on {write_hardware(hardware(cluster))} with "
            f"{cluster.model}: measure it with `splitgym saturation` and give a rate instead of a load"
        )
    return rate


def rates(
    load: float | tuple[float, float], cluster: ClusterConfig, workload: str
) -> float | tuple[float, float]:
    """Requests per second of a load, or of both ends of a range of loads.

    Raises:
        ConfigError: see `require`.
    """
    rate = require(cluster, workload)
    return load * rate if isinstance(load, (int, float)) else (load[0] * rate, load[1] * rate)


def interpolate(table: list[tuple[Counter[str], float]], machines: Counter[str]) -> float | None:
    """The rate of a cluster between those of a table.

    Args:
        table: (machines, requests/s).
        machines: of one or two types.

    Clusters of the same proportions are lines of the table: between two sizes n the rate a machine is linear
    in 1 / n (what is lost to small numbers shrinks with them), beyond the ends it is constant. Between two
    lines the rate is linear in the proportion.
    """
    kinds = sorted(machines)
    if not table or len(kinds) > 2:
        return None
    of_kinds = [(m, rate) for m, rate in table if set(m) <= set(kinds)]
    lines: dict[float, list[tuple[int, float]]] = defaultdict(list)
    for m, rate in of_kinds:
        lines[m[kinds[0]] / m.total()].append((m.total(), rate))
    share, n = machines[kinds[0]] / machines.total(), machines.total()
    low = max((s for s in lines if s <= share), default=None)
    high = min((s for s in lines if s >= share), default=None)
    if low is None or high is None:
        return None
    below, above = _of_size(lines[low], n), _of_size(lines[high], n)
    return below if low == high else below + (above - below) * (share - low) / (high - low)


def _of_size(line: list[tuple[int, float]], n: int) -> float:
    line = sorted(line)
    if n in dict(line):
        return dict(line)[n]
    if n < line[0][0]:
        return line[0][1] * n / line[0][0]
    for (n1, rate1), (n2, rate2) in pairwise(line):
        if n <= n2:
            weight = (1 / n - 1 / n1) / (1 / n2 - 1 / n1)
            return n * (rate1 / n1 + weight * (rate2 / n2 - rate1 / n1))
    return line[-1][1] * n / line[-1][0]
