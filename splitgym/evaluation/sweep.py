"""A sweep: policies on a grid of clusters, rules and loads. Each run is kept, so a sweep can go on later."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, from_mapping, parse_machines, to_mapping
from splitgym.errors import ConfigError
from splitgym.evaluation.contenders import Contender, cluster_for
from splitgym.evaluation.run import Task, perform
from splitgym.evaluation.workloads import Workload, find
from splitgym.scale import Map, fingerprint

KEPT = "sweep.jsonl"
"""Name of the file of kept rows in a sweep's folder."""

Row = dict[str, Any]
"""One run: `model`, `cluster`, the settings, `policy`, `workload`, `rate_per_s`, `trace`, `seed`, metrics."""


@dataclass(frozen=True)
class Variant:
    """One cluster of the grid."""

    labels: dict[str, Any]
    """`model`, `cluster` and each setting by its name: the columns that tell it from the others."""
    config: ClusterConfig


def variants(
    clusters: Sequence[str],
    models: Sequence[str],
    settings: Mapping[str, Sequence[Any]] | None = None,
    base: ClusterConfig | None = None,
) -> list[Variant]:
    """Every combination of machines, models and settings.

    Args:
        clusters: machines, as `parse_machines` reads them.
        models: by name.
        settings: values to try by the dotted name of a `ClusterConfig` field (`transfer.shared`).
        base: the fields that the grid leaves alone; None is the defaults.

    Raises:
        ConfigError: a text of another form, no such field, a value out of range.
    """
    plain = to_mapping(base or ClusterConfig())
    found = []
    given = settings or {}
    for cluster, model, *values in itertools.product(clusters, models, *given.values()):
        fields = json.loads(json.dumps(plain))
        fields |= {"model": model, "machines": [to_mapping(group) for group in parse_machines(cluster)]}
        labels = {"model": model, "cluster": cluster, **dict(zip(given, values, strict=True))}
        for name, value in zip(given, values, strict=True):
            _set(fields, name, value)
        found.append(Variant(labels, from_mapping(ClusterConfig, fields, f"sweep point {labels}")))
    return found


def parse_setting(text: str) -> tuple[str, list[Any]]:
    """A field and its values from `transfer.mode=layerwise,serial`; values are read as YAML.

    Raises:
        ConfigError: the text has another form, or a value is no YAML.
    """
    name, equals, values = text.partition("=")
    if not equals or not name.strip() or not values.strip():
        raise ConfigError(f"setting {text!r} is not FIELD=VALUE,VALUE such as transfer.shared=true,false")
    try:
        return name.strip(), [yaml.safe_load(value) for value in values.split(",")]
    except yaml.YAMLError:
        raise ConfigError(f"setting {text!r}: {values!r} are no YAML values") from None


def sweep(
    grid: Sequence[Variant],
    policies: Callable[[ClusterConfig], Sequence[Contender]],
    workloads: Sequence[Workload],
    seeds: Iterable[int],
    *,
    engine: str = "auto",
    map: Map = map,
    kept: "Kept | None" = None,
    progress: Callable[[int], None] | None = None,
) -> list[Row]:
    """Run every policy on every cluster, workload and seed.

    On one cluster, policies see the same requests at the same times, so their rows can be compared in pairs.

    Args:
        grid: of `variants`.
        policies: the contenders for a cluster.
        workloads: what arrives.
        seeds: one window a seed.
        engine: see `splitgym.sim.make_engine`.
        map: makes the runs; see `splitgym.scale`.
        kept: rows of earlier sweeps, which are not made again; new ones are added as they come.
        progress: called with the number of rows that are there.

    Returns:
        the rows, in the order of variants, policies, workloads and seeds.

    Raises:
        SplitgymError: as for `evaluate`, before the first run.
    """
    numbers, load = tuple(seeds), cache(find)
    labels, tasks = [], []
    for variant in grid:
        cluster = Cluster.resolve(variant.config)
        windows = [(w, s, w.build(s, cluster.num_machines, load)) for w in workloads for s in numbers]
        for entrant in policies(variant.config):
            own = cluster_for(entrant, cluster)
            for workload, seed, trace in windows:
                own.check(trace)
                tasks.append(Task(entrant, own, workload, seed, trace, engine))
                labels.append(variant.labels)
    if not tasks:
        raise ConfigError("nothing to sweep: give at least one cluster, policy, workload and seed")
    kept = kept or Kept()
    keys = [_key(task) for task in tasks]
    rows: list[Row | None] = [kept.find(key) for key in keys]
    left = [i for i, row in enumerate(rows) if row is None]
    if progress is not None:
        progress(len(tasks) - len(left))
    for done, (i, metrics) in enumerate(zip(left, map(_measure, [tasks[i] for i in left])), 1):
        rows[i] = kept.add(keys[i], metrics)
        if progress is not None:
            progress(len(tasks) - len(left) + done)
    return [{**label, **row} for label, row in zip(labels, rows, strict=True) if row is not None]


class Kept:
    """The rows of finished runs, by what they depend on: configuration, policy, window, and this code.

    Args:
        file: JSON lines, read if there, appended to as runs end; None keeps them in memory only. A last line
            that was cut off is made again.

    Raises:
        ConfigError: a file with anything else in it.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._rows: dict[str, Row] = {}
        if file is None or not file.exists():
            return
        text = file.read_text()
        whole = text[: text.rfind("\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
                self._rows[entry["key"]] = entry["row"]
            except (ValueError, TypeError, KeyError):
                raise ConfigError(f"{file}, line {number}: is no kept run; remove the line or file") from None
        if whole != text:
            file.write_text(whole)

    def find(self, key: str | None) -> Row | None:
        """The row of a run, if it was made before. A run without a key never was."""
        return None if key is None else self._rows.get(key)

    def add(self, key: str | None, row: Row) -> Row:
        """Keep a row. Returns it as it will be read."""
        if key is not None:
            self._rows[key] = row
            if self._file is not None:
                with self._file.open("a") as file:
                    file.write(json.dumps({"key": key, "row": row}) + "\n")
        return row


def _measure(task: Task) -> Row:
    run = perform(task)
    return {
        "policy": run.policy,
        "workload": run.workload.base_name,
        "rate_per_s": run.workload.rate_per_s,
        "trace": run.trace,
        "seed": run.seed,
        **run.metrics.as_dict(),
    }


def _key(task: Task) -> str | None:
    """The same for runs of the same result; None where the policy does not say what it is."""
    policies = [identity(task.contender.routing), identity(task.contender.sizing)]
    if None in policies:
        return None
    arrivals = sha256()
    for array in (task.trace.arrival_s, task.trace.prompt_tokens, task.trace.output_tokens):
        arrivals.update(array.tobytes())
    what = [
        fingerprint(),
        to_mapping(task.cluster.config),
        task.contender.name,
        policies,
        to_mapping(task.workload),
        task.seed,
        task.trace.name,
        arrivals.hexdigest(),
        task.engine,
    ]
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]


def identity(policy: Any) -> str | None:
    """What a policy decides by: its own `identity`, or the kind and options of a built-in; None: unknown."""
    own = getattr(policy, "identity", None)
    if own is not None:
        return str(own)
    if not dataclasses.is_dataclass(policy):
        return None
    kind = type(policy)
    return json.dumps([kind.__module__, kind.__qualname__, dataclasses.asdict(policy)], default=str)  # type: ignore[arg-type]


def _set(fields: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    at: Any = fields
    for step in path:
        at = at.get(step) if isinstance(at, dict) else None
    if not isinstance(at, dict) or last not in at:
        known = ", ".join(sorted(at)) if isinstance(at, dict) else ", ".join(sorted(fields))
        raise ConfigError(f"setting {name!r}: no such field of a cluster's configuration; there are {known}")
    at[last] = value
