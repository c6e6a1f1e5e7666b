"""What a generation is judged on: clusters, workloads and loads, drawn or fixed, run in threads."""

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.config import RunConfig, cluster_of
from agents.evolution_config import EvolutionConfig
from agents.routers import compiled_router
from agents.search import linear_ranks
from agents.space import Pair, Space
from splitgym import schedulers
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, parse_machines
from splitgym.errors import ConfigError, TraceError
from splitgym.evaluation.saturate import known_or_measured
from splitgym.evaluation.workloads import Workload, find, parse
from splitgym.metrics import RequestTable, percentiles, request_table
from splitgym.sim import make_engine
from splitgym.slo import NINE_SLOS
from splitgym.trace import Trace, stretch_outputs

Floats = NDArray[np.float64]

WORST_SHARE = 0.02
TAIL_FROM = 6.0
"""The tail is what the worst 2 % of the requests wait beyond the p99 SLO of the TTFT slowdown, 6."""

EXCESS_FROM, EXCESS_MOST = -0.05, 0.5
"""Logarithms of percentile over limit: from 5 % below the limit an SLO costs, up to 1.65 times the limit."""

_TRIES = 100
_DISTURBANCE = 12


@dataclass(frozen=True)
class Scenario:
    """One window of requests for one cluster."""

    cluster: Cluster
    workload: Workload
    trace: Trace
    load: float
    """Fraction of saturation; NaN of recorded traffic, which has a rate of its own."""


@dataclass(frozen=True)
class Scores:
    """Of K candidates on S scenarios. Windows without a request are NaN."""

    goodput: Floats  # (K, S)
    tail: Floats  # (K, S) see `tail`
    ttft_p99: Floats  # (K, S) of the TTFT slowdown
    energy_kj: Floats  # (K, S) a request of the whole run
    excess: Floats  # (K, S) over the nine SLOs, see `excess`

    loads: Floats  # (S,) of the scenarios

    def fitness(self, evolution: EvolutionConfig) -> Floats:
        """(K,) what is sought, the mean over scenarios: goodput less what tail, SLOs and energy cost."""
        return np.asarray(np.nanmean(self._each(evolution), axis=1))

    def merit(self, evolution: EvolutionConfig) -> Floats:
        """(K,) what the candidates of a generation are compared by, see `EvolutionConfig.ranked`."""
        if evolution.ranked == "mean":
            return self.fitness(evolution)
        each = self._each(evolution)
        there = each[:, ~np.isnan(each).all(axis=0)]
        return np.asarray(np.mean([linear_ranks(one) for one in there.T], axis=0))

    def _each(self, evolution: EvolutionConfig) -> Floats:
        tail_weight = np.full(len(self.loads), evolution.tail_weight)
        if evolution.tail_weight_overload is not None:
            tail_weight[self.loads > evolution.overload_from] = evolution.tail_weight_overload
        slo_weight = np.where(self.loads > evolution.slo_until, 0.0, evolution.slo_weight)
        costs = tail_weight * self.tail + slo_weight * self.excess + evolution.energy_weight * self.energy_kj
        return np.asarray(self.goodput - costs)


def draw(config: RunConfig, rng: np.random.Generator) -> list[Scenario]:
    """The scenarios of one generation, from the train part.

    Raises:
        ConfigError: the workloads and loads leave no window that the traces are long enough for.
    """
    wanted = config.evolution.scenarios
    found: list[Scenario] = []
    for _ in range(_TRIES * wanted):
        try:
            found.append(_drawn(config, draw_cluster(config, rng), rng))
        except TraceError:  # too fast for the part, or an empty window
            continue
        if len(found) == wanted:
            return found
    raise ConfigError("evolution: the traces are too short for these workloads and loads; lower loads")


def draw_window(config: RunConfig, cluster: Cluster, rng: np.random.Generator) -> Scenario:
    """One scenario of a given cluster, from the train part.

    Raises:
        ConfigError: as of `draw`.
    """
    for _ in range(_TRIES):
        try:
            return _drawn(config, cluster, rng)
        except TraceError:
            continue
    raise ConfigError("evolution: the traces are too short for these workloads and loads; lower loads")


def _drawn(config: RunConfig, cluster: Cluster, rng: np.random.Generator) -> Scenario:
    low, high = config.evolution.loads
    text = str(rng.choice(config.evolution.workloads))
    load, seed = float(rng.uniform(low, high)), int(rng.integers(2**31))
    return disturbed(config, _scenario(config, cluster, text, load, seed, "train"), seed)


def disturbed(config: RunConfig, scenario: Scenario, seed: int) -> Scenario:
    """With other lengths and a wrong profile, as `evolution` says.

    Args:
        config: of the run.
        scenario: as recorded and measured.
        seed: of the disturbance alone: which scenarios are drawn does not depend on it.
    """
    shift, error = config.evolution.length_shift, config.evolution.profile_error
    length, prompt, token = np.random.default_rng([seed, _DISTURBANCE]).uniform(-1, 1, 3)
    if shift:
        scenario = replace(scenario, trace=stretch_outputs(scenario.trace, 1 + shift * length))
    if error:
        wrong = scenario.cluster.misjudged(1 + error * prompt, 1 + error * token)
        scenario = replace(scenario, cluster=wrong)
    return scenario


def judged(config: RunConfig, part: str = "validation") -> list[Scenario]:
    """The fixed scenarios that progress is judged on: every cluster, workload and load.

    Raises:
        ConfigError: none of them has a window.
    """
    evolution = config.evolution
    own = cluster_of(config)
    bare = [own]
    if evolution.clusters == "many":
        bare = [
            replace(own, model=evolution.models[0], machines=parse_machines(text))
            for text in evolution.clusters_judged
        ]
    delays = dict.fromkeys(evolution.switch_delays_s or (own.switch_delay_s,))
    clusters = [resolved(replace(cluster, switch_delay_s=delay)) for cluster in bare for delay in delays]
    found = []
    for cluster in clusters:
        for text in dict.fromkeys(evolution.workloads):
            for load in evolution.loads_judged:
                for seed in range(config.evaluation.windows):
                    try:
                        found.append(_scenario(config, cluster, text, load, seed, part))
                    except TraceError:
                        continue
    if not found:
        raise ConfigError(f"evolution: the {part} parts of the traces are too short for all workloads")
    return found


_RESOLVED: dict[str, Cluster] = {}


def resolved(config: ClusterConfig) -> Cluster:
    """A cluster, resolved once."""
    key = repr(config)
    if key not in _RESOLVED:
        _RESOLVED[key] = Cluster.resolve(config)
    return _RESOLVED[key]


def draw_cluster(config: RunConfig, rng: np.random.Generator) -> Cluster:
    """Machines as `evolution` says, or the run's own."""
    evolution, own = config.evolution, cluster_of(config)
    if evolution.clusters == "many":
        model = str(rng.choice(evolution.models))
        low, high = evolution.machines
        size = int(rng.integers(low, high + 1))
        h100 = int(rng.integers(1, size)) if size > 1 and rng.random() < evolution.mixed else size
        counts = {"h100-80gb": h100, "a100-80gb": size - h100}
        pools = {name: f"{count}M" for name, count in counts.items() if count}
        if config.env != "routing":
            pools = _split(counts, rng)
        machines = parse_machines("+".join(f"{name}:{text}" for name, text in pools.items()))
        own = replace(own, model=model, machines=machines)
    if evolution.switch_delays_s:
        own = replace(own, switch_delay_s=float(rng.choice(evolution.switch_delays_s)))
    return resolved(own)


def _split(counts: dict[str, int], rng: np.random.Generator) -> dict[str, str]:
    """Pools to begin with: a random third to three quarters of the machines for prompts, at least one."""
    kinds = [name for name, count in counts.items() for _ in range(count)]
    wanted = round(len(kinds) * float(rng.uniform(1 / 3, 3 / 4)))
    prompts = rng.permutation(len(kinds))[: min(len(kinds) - 1, max(1, wanted))]
    of_prompts = [kinds[i] for i in prompts]
    return {
        name: f"{of_prompts.count(name)}P{count - of_prompts.count(name)}T"
        for name, count in counts.items()
        if count
    }


_find = cache(find)


def _scenario(config: RunConfig, cluster: Cluster, text: str, load: float, seed: int, part: str) -> Scenario:
    own = config.workload
    fields: dict[str, Any] = {"part": part, "warmup_s": own.warmup_s, "duration_s": own.episode_s}
    if "@" in text:  # a rate of its own: recorded traffic of this very cluster
        load, workload = math.nan, parse(text, copies=1, **fields)
    else:
        workload = parse(f"{text}@{load * known_or_measured(cluster, text)}", **fields)
    return Scenario(cluster, workload, workload.build(seed, cluster.num_machines, _find), load)


def tail(table: RequestTable) -> float:
    """How long the unluckiest wait: the mean of ln(max(TTFT slowdown, 6) / 6) over the worst 2 %.

    About the logarithm of the p99 over its SLO, but smoother. A hundredfold wait of a few costs as much as it
    should: starving them is what a search for goodput alone learns in overload.
    """
    slow = np.sort(table.ttft_slowdown)[-max(1, round(WORST_SHARE * len(table))) :]
    return float(np.log(np.maximum(slow, TAIL_FROM) / TAIL_FROM).mean())


def excess(table: RequestTable) -> float:
    """By how much the nine SLOs are missed: the sum over them of ln(percentile / limit) + .05, each 0 to .55.

    What lies a little below a limit costs too, so that it stays there in the next window; what is far beyond
    costs no more, so that a lost window does not outweigh those that can be won.
    """
    found = np.array([percentiles(table.slowdown(kind)) for kind in NINE_SLOS])
    ratio = np.log(found / np.array(list(NINE_SLOS.values())))
    return float(np.nansum(np.clip(ratio, EXCESS_FROM, EXCESS_MOST) - EXCESS_FROM))


def run(candidate: Pair, scenario: Scenario) -> tuple[float, float, float, float, float]:
    """Goodput, tail, TTFT p99, kilojoules a request and excess of a router and a sizer on one scenario."""
    cluster, workload = scenario.cluster, scenario.workload
    engine = make_engine(cluster, *candidate, engine="compiled")
    engine.reset(scenario.trace, 0)
    engine.run_until_decision()
    slo = cluster.config.slo
    outcomes = engine.outcomes()
    table = request_table(
        outcomes,
        cluster.tables,
        ttft_slo=slo.ttft_slowdown,
        tbt_slo=slo.tbt_slowdown,
        start_s=workload.warmup_s,
        end_s=workload.end_s,
    )
    if not len(table):
        return np.nan, np.nan, np.nan, np.nan, np.nan
    energy_kj = float(outcomes.energy_j.sum()) / len(outcomes.finish_order) / 1e3
    return *measures(table), energy_kj, excess(table)


def measures(table: RequestTable) -> tuple[float, float, float]:
    """Goodput, tail and TTFT p99 of the requests that count, of which there is one at least."""
    return float(table.good.mean()), tail(table), float(np.percentile(table.ttft_slowdown, 99))


def by_workload(scenarios: Sequence[Scenario], goodput: Floats) -> dict[str, float]:
    """Mean goodput on the scenarios of each workload, as metrics.

    Args:
        scenarios: S of them.
        goodput: (S,).
    """
    names = np.array([one.workload.base_name for one in scenarios])
    return {
        f"goodput_{name.replace(':', '_')}": float(np.nanmean(goodput[names == name]))
        for name in dict.fromkeys(names.tolist())
    }


def score(
    candidates: Sequence[Floats],
    space: Space,
    scenarios: Sequence[Scenario],
    threads: Executor,
    router: str = "index-tuned",
) -> Scores:
    """Every candidate on every scenario.

    Args:
        candidates: flat weight vectors.
        space: what they mean.
        scenarios: S of them.
        threads: to run in; the compiled engine releases Python's lock.
        router: who routes where the candidates only resize, see `agents.routers`.
    """
    static = schedulers.sizing("static")

    def one(task: tuple[Floats, Scenario]) -> tuple[float, ...]:
        # Schedulers remember things within a run, so each run has its own.
        routing, sizing = space.schedulers(task[0], "candidate")
        return run((routing or compiled_router(router), sizing or static), task[1])

    tasks = [(weights, scenario) for weights in candidates for scenario in scenarios]
    rows = np.array(list(threads.map(one, tasks)))
    goodput, tails, p99, energy, over = rows.reshape(len(candidates), len(scenarios), -1).transpose(2, 0, 1)
    loads = np.array([scenario.load for scenario in scenarios])
    return Scores(goodput, tails, p99, energy, over, loads)
