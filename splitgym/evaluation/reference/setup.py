"""The open simulator's setup, as data and options of ours: time tables, cluster, scheduler.

Nothing here is a rule. SplitwiseSim's choices that differ from the paper's (or from real hardware) are values
of options that any user can set: `raw_tables` and `kv_bytes_per_token` of a profile, `transfer`, `batching`,
`kv_reserve` and `oracle` of a cluster, `oracle` of the scheduler.
"""

import csv
import gzip
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from splitgym import schedulers
from splitgym.cluster import Cluster
from splitgym.config import BatchingConfig, ClusterConfig, MachineGroup, SloConfig, TransferConfig, make
from splitgym.errors import ConfigError, ProfileError
from splitgym.profile import Profile
from splitgym.profile.load import from_content
from splitgym.profile.specs import models
from splitgym.resources import data_folder
from splitgym.schedulers.protocol import RoutingScheduler

GPUS = 8
GIB = 2**30
LINK_BYTES_PER_S = 200 * GIB
OVERLAP_FACTOR = 10
"""Its schedulers that overlap transfer and prompt are simulated by a link this much faster."""
REFERENCE_MACHINE = "a100-80gb"
_MACHINES = {"A": "a100-80gb", "H": "h100-80gb", "Hcap": "h100-80gb-pcap"}
_COLUMNS = ("model", "hardware", "tensor_parallel", "prompt_size", "batch_size", "prompt_time", "token_time")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Medians of measured times over prompt size x batch size; linear in between and beyond."""

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, tokens: Floats) -> Floats:
        """Time at (N,) sizes [s]."""
        x, y = np.array(self.tokens, np.float64), np.array(self.seconds)
        high = np.clip(np.searchsorted(x, tokens), 1, len(x) - 1)
        slope = (y[high] - y[high - 1]) / (x[high] - x[high - 1])
        return y[high - 1] + slope * (tokens - x[high - 1])


@dataclass(frozen=True)
class Tables:
    """The time tables of SplitwiseSim, by (model, machine type) on 8 GPUs."""

    prompt: dict[tuple[str, str], Curve]
    token: dict[tuple[str, str], Curve]
    source: str

    def profile(self, model: str, machine: str) -> Profile:
        """The tables as a profile of ours.

        The token table is keyed by prompt size x batch size as well and read at the number of decoding tasks
        (oddity 1), so nearly all of it lies beyond what a batch reaches. Power is not compared and is zero.

        Raises:
            ProfileError: the tables have no such pair.
        """
        if (model, machine) not in self.prompt:
            known = ", ".join(f"{a} on {b}" for a, b in self.prompt) or "nothing"
            raise ProfileError(
                f"{self.source}: no times of {model} on {GPUS} GPUs of {machine} (it has {known})"
            )
        prompt, token = self.prompt[model, machine], self.token[model, machine]
        spec = models().get(model)
        if spec is None:
            raise ProfileError(f"{self.source}: nothing is known of the model {model!r}")
        content = {
            "model": model,
            "machine": machine,
            "tensor_parallel": GPUS,
            "prompt": {"tokens": prompt.tokens, "seconds": prompt.seconds},
            "token": {"batch": token.tokens, "seconds": token.seconds},
            "power": {
                "idle_w": 0.0,
                "prompt_tokens": (1,),
                "prompt_w": (0.0,),
                "token_batch": (1,),
                "token_w": (0.0,),
            },
            "raw_tables": True,
            "kv_bytes_per_token": 2 * spec.hidden * spec.layers * 2,  # no grouped-query attention
            "provenance": {"times": f"medians of {self.source}, keyed as SplitwiseSim keys them"},
        }
        return from_content(content, self.source, f"{model}_{machine}_splitwise-sim")


def find_tables(path: Path | None) -> Tables:
    """The time tables, by default `splitwise-sim/perf_model.csv` in the folder that `SPLITGYM_DATA` names.

    Raises:
        ConfigError: see `read_tables`; no file was named.
    """
    if path is None:
        folder = data_folder()
        if folder is None:
            raise ConfigError("no time tables: give --perf-model or set SPLITGYM_DATA")
        path = folder / "splitwise-sim" / "perf_model.csv"
    return read_tables(path)


def read_tables(path: Path) -> Tables:
    """The time tables from `perf_model.csv`.

    Raises:
        ConfigError: the file is missing, lacks a column or has no usable row.
    """
    times: dict[tuple[str, str], dict[int, tuple[list[float], list[float]]]] = {}
    for line, row in read_rows(path, _COLUMNS):
        numbers = [number(row, name, path, line) for name in _COLUMNS[2:]]
        gpus, prompt_size, batch_size, prompt_ms, token_ms = numbers
        if gpus == GPUS:
            of_pair = times.setdefault((row["model"], row["hardware"]), defaultdict(lambda: ([], [])))
            prompts, tokens = of_pair[int(prompt_size * batch_size)]
            prompts.append(prompt_ms / 1e3)
            tokens.append(token_ms / 1e3)
    if not times:
        raise ConfigError(f"{path}: no measurement on {GPUS} GPUs")
    curves: list[dict[tuple[str, str], Curve]] = []
    for which in (0, 1):
        curves.append(
            {
                pair: Curve(tuple(sorted(by_size)), tuple(median(by_size[x][which]) for x in sorted(by_size)))
                for pair, by_size in times.items()
            }
        )
    return Tables(curves[0], curves[1], str(path))


def read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV file (gzipped where its name says so) with their line numbers.

    Raises:
        ConfigError: it cannot be read, or a column is missing.
    """
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(f"{path}: the column {missing[0]} is missing (needs {', '.join(columns)})")
            yield from enumerate(reader, start=2)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{path}: cannot be read ({what})") from None


def number(row: dict[str, str], name: str, path: Path, line: int) -> float:
    """A finite number of a row.

    Raises:
        ConfigError: it is none.
    """
    try:
        value = float(row[name] or "")
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{path}, line {line}: {name} is {row[name]!r}, not a number")
    return value


@dataclass(frozen=True)
class Setup:
    """Which cluster and which scheduler a case ran on."""

    model: str
    design: str
    """One letter a pool: A (A100), H (H100), Hcap (capped H100). A baseline has one pool for both phases."""
    prompt_machines: int
    token_machines: int
    """0 for a baseline."""
    scheduler: str = ""

    @property
    def baseline(self) -> bool:
        return self.token_machines == 0

    @property
    def routing(self) -> RoutingScheduler:
        """Ours for its scheduler.

        Raises:
            ConfigError: we have none.
        """
        if self.scheduler not in _ROUTING:
            raise ConfigError(f"scheduler {self.scheduler!r}: choose one of {', '.join(_ROUTING)}")
        name, options = _ROUTING[self.scheduler]
        return schedulers.routing(name, **options)

    def cluster(self, tables: Tables) -> Cluster:
        """The cluster with SplitwiseSim's hardware constants."""
        pools = self._pools()
        machines = tuple(
            make(MachineGroup, machine=name, count=count, pool=pool, tensor_parallel=GPUS)
            for name, count, pool in pools
        )
        faster = OVERLAP_FACTOR if self.scheduler in _OVERLAP else 1
        config = ClusterConfig(
            model=self.model,
            machines=machines,
            transfer=TransferConfig(
                mode="serial", shared=False, bandwidth_bytes_per_s=LINK_BYTES_PER_S * faster
            ),
            slo=SloConfig(reference_machine=REFERENCE_MACHINE, reference_tensor_parallel=GPUS),
            batching=BatchingConfig(ageing="all"),
            kv_reserve="at_decode",
            oracle=True,
        )
        rows = [tables.profile(self.model, REFERENCE_MACHINE)]
        machine_row: list[int] = []
        for name, count, _ in pools:
            if name not in [row.machine.name for row in rows[1:]]:
                rows.append(tables.profile(self.model, name))
            row = next(i for i, r in enumerate(rows) if i and r.machine.name == name)
            machine_row += [row] * count
        return Cluster(config, tuple(rows), np.array(machine_row, np.int64))

    def _pools(self) -> list[tuple[str, int, str]]:
        letters = re.findall(r"A|Hcap|H", self.design)
        if "".join(letters) != self.design or len(letters) != (1 if self.baseline else 2):
            wanted = "one of A, H, Hcap" if self.baseline else "two of A, H, Hcap such as HA"
            raise ConfigError(f"design {self.design!r}: expected {wanted}")
        if self.baseline:
            return [(_MACHINES[letters[0]], self.prompt_machines, "mixed")]
        return [
            (_MACHINES[letters[0]], self.prompt_machines, "prompt"),
            (_MACHINES[letters[1]], self.token_machines, "token"),
        ]


_ROUTING: dict[str, tuple[str, dict[str, bool]]] = {
    "mixed_pool": ("splitwise", {"oracle": True}),
    "token_jsq": ("jsq-tokens", {}),
    "kv_token_jsq": ("split-jsq", {}),
    "round_robin": ("round-robin", {}),
    "kv_round_robin": ("split-round-robin", {}),
}
_OVERLAP = ("kv_token_jsq",)
"""Its kv_token_jsq is the overlapping one."""

_CLUSTER_NAME = re.compile(
    r"(?:(?P<p>\d+)P(?P<t>\d+)T|(?P<b>\d+)base)_(?P<design>[A-Za-z]+?)(?:_(?P<scheduler>[a-z_]+))?"
)


def parse_setup(model: str, name: str) -> Setup:
    """Setup from a cluster's name such as `1P1T_HA`, `1base_A` or `2P2T_HH_kv_token_jsq`.

    Raises:
        ConfigError: the name has another form.
    """
    match = _CLUSTER_NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"cluster {name!r}: expected a name such as 1P1T_HA or 1base_A")
    if match["b"]:
        return Setup(model, match["design"], int(match["b"]), 0, match["scheduler"] or "token_jsq")
    return Setup(model, match["design"], int(match["p"]), int(match["t"]), match["scheduler"] or "mixed_pool")
