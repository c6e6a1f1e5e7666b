"""TTFT and TBT under the paper's batching and under vLLM's, with and without a split (docs/batching.md).

    python benchmarks/batching.py [--json FILE] [--plot docs/images/batching.png] [--windows 3]
    python benchmarks/batching.py --mixed-factor 1.25       # if mixed batches cost more than we assume

bloom-176b on 8 H100 machines, Poisson arrivals, sizes from the test part of each trace. Without a split
requests go by JSQ over tokens, with a split by the paper's scheduler at the static split that is best,
under the same batching, on the train part. Figures are simulated; every number is a mean over windows.
"""

import json
import sys
from argparse import ArgumentParser
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from splitgym import evaluation
from splitgym import profile as profiles
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, VllmBatchingConfig, parse_machines
from splitgym.evaluation import Contender, Workload
from splitgym.sim import make_engine

TRACES = ("azure-code", "azure-conv")
RATES_PER_S = (12.0, 17.0)
BUDGETS = (512, 2048, 8192)
SPLITS = tuple(f"{p}P{8 - p}T" for p in range(2, 8))
BASE = ClusterConfig()
SHORT = {"duration_s": 60.0, "warmup_s": 20.0}
PERCENTILES = (50, 90, 99)
KINDS = ("ttft", "tbt")
LIMITS = {"ttft": BASE.slo.ttft_slowdown, "tbt": BASE.slo.tbt_slowdown}
MARKS = (("o", "p50"), ("d", "p90"), ("s", "p99"))


@dataclass(frozen=True)
class Row:
    """One rule on one workload: means over windows."""

    rule: str
    workload: str
    split: str
    goodput: float
    slowdown: dict[str, list[float]]  # p50, p90, p99 by kind
    preempted: float  # share of the requests that lost their cache once or more

    def markdown(self) -> str:
        """A line of the table."""
        spread = (" / ".join(f"{x:.2f}" for x in self.slowdown[kind]) for kind in KINDS)
        cells = [
            self.rule,
            self.split or "-",
            *spread,
            f"{self.goodput:.3f}",
            f"{100 * self.preempted:.1f} %",
        ]
        return f"| {' | '.join(cells)} |"


def at(split: str, batching) -> Contender:
    """The paper's scheduler at a split, or JSQ without one."""
    if not split:
        unsplit = replace(evaluation.without_split(BASE), batching=batching)
        return replace(evaluation.contender("jsq-tokens"), cluster=unsplit)
    machines = parse_machines(f"{BASE.machines[0].machine}:{split}")
    return replace(
        evaluation.contender("splitwise"), cluster=replace(BASE, machines=machines, batching=batching)
    )


def best_split(batching, workload: Workload) -> str:
    """Chosen on the train part."""
    candidates = {split: at(split, batching) for split in SPLITS}
    return evaluation.choose(candidates, BASE, replace(workload, **SHORT), range(2))


def rules(workload: Workload) -> dict[str, tuple[str, Contender]]:
    """(split, contender) of each rule by its name."""
    ours, theirs = BASE.batching, VllmBatchingConfig()
    found = {}
    for name, batching in (("paper's", ours), (f"vLLM {theirs.max_num_batched_tokens:,}", theirs)):
        split = best_split(batching, workload)
        found[f"{name}, split"] = (split, at(split, batching))
    found["paper's, no split"] = ("", at("", ours))
    for budget in BUDGETS:
        found[f"vLLM {budget:,}, no split"] = ("", at("", VllmBatchingConfig(max_num_batched_tokens=budget)))
    order = sorted(found, key=lambda name: ("no split" in name, name.startswith("vLLM")))
    return {name: found[name] for name in order}


def preempted(entrant: Contender, workload: Workload, windows: range) -> float:
    """Share of requests that were preempted; the evaluation does not keep it."""
    cluster = Cluster.resolve(entrant.cluster)
    hit = total = 0
    for seed in windows:
        engine = make_engine(cluster, entrant.routing, entrant.sizing)
        engine.reset(workload.build(seed, cluster.num_machines), seed)
        engine.run_until_decision()
        found = engine.outcomes().preemptions
        hit, total = hit + int((found > 0).sum()), total + len(found)
    return hit / total


def measure(workload: Workload, windows: range) -> list[Row]:
    """Every rule on one workload."""
    entrants = rules(workload)
    results = evaluation.evaluate({n: c for n, (_, c) in entrants.items()}, BASE, [workload], windows)
    rows = []
    for name, (split, entrant) in entrants.items():
        slow = {
            k: [float(results.values(f"{k}_slowdown_p{p}", name).mean()) for p in PERCENTILES] for k in KINDS
        }
        goodput = float(results.values("goodput", name).mean())
        rows.append(Row(name, workload.name, split, goodput, slow, preempted(entrant, workload, windows)))
    return rows


def draw(rows: list[Row], path: Path) -> None:
    """Slowdown percentiles and goodput: a column a workload, a line a rule."""
    loads = list(dict.fromkeys(row.workload for row in rows))
    figure = Figure(figsize=(13, 7.6), dpi=100, layout="constrained")
    grid = figure.subplots(3, len(loads), sharey=True, sharex="row", squeeze=False)
    for column, load in enumerate(loads):
        here = [row for row in rows if row.workload == load]
        heights = range(len(here), 0, -1)
        for axes, kind in zip(grid[:2, column], KINDS):
            for y, row in zip(heights, here):
                low, _, high = row.slowdown[kind]
                axes.plot([low, high], [y, y], color="0.75", zorder=1)
                for (mark, _), value in zip(MARKS, row.slowdown[kind]):
                    axes.plot(value, y, mark, color="C1" if "vLLM" in row.rule else "C0", markersize=6)
            axes.axvline(LIMITS[kind], color="k", linestyle=":", linewidth=1)
            axes.set(xscale="log", xlabel=f"{kind.upper()} slowdown")
            axes.xaxis.set_major_formatter("{x:g}")
        colors = ["C1" if "vLLM" in row.rule else "C0" for row in here]
        grid[2, column].barh(list(heights), [row.goodput for row in here], color=colors, height=0.6)
        grid[2, column].set(xlabel="goodput", xlim=(0, 1.02))
        grid[0, column].set(title=load.removeprefix("poisson:").replace("@", ", ") + "/s")
    for axes in grid[:, 0]:
        axes.set_yticks(range(len(here), 0, -1), [row.rule for row in here])
    for axes in grid.ravel():
        axes.grid(alpha=0.3)
    handles = [grid[0, 0].plot([], [], mark, color="0.4", label=label)[0] for mark, label in MARKS]
    figure.legend(handles=handles, loc="outside upper right", ncols=3)
    figure.suptitle("bloom-176b on 8 H100; dotted: a request is good up to here (TTFT 3, TBT 1.5)", x=0.4)
    FigureCanvasAgg(figure).print_png(str(path))


def charge(mixed_factor: float) -> None:
    """Let mixed batches cost so many times the prompt time of their tokens, in this process."""
    load = profiles.load
    profiles.load = lambda *names: replace(load(*names), mixed_factor=mixed_factor)


def main() -> None:
    """Measure, print the tables, write what is asked for."""
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw them as PNG")
    parser.add_argument("--windows", type=int, default=3, help="windows a workload")
    parser.add_argument("--mixed-factor", type=float, help="replaces the profiles' own (1.1)")
    parser.add_argument("--traces", nargs="+", default=TRACES)
    given = parser.parse_args()
    if given.mixed_factor is not None:
        charge(given.mixed_factor)
    rows = []
    for trace in given.traces:
        for rate in RATES_PER_S:
            load = Workload("poisson", (trace,), rate)
            rows += measure(load, range(given.windows))
            print(f"\n{load.name}, {given.windows} windows of {load.duration_s:g} s\n")
            print("| batching | split | TTFT p50 / p90 / p99 | TBT p50 / p90 / p99 | goodput | preempted |")
            print("|---|---|---|---|---|---|")
            print("\n".join(row.markdown() for row in rows if row.workload == load.name), flush=True)
    used = evaluation.workloads.stand_ins([Workload("poisson", (trace,), 1.0) for trace in given.traces])
    for original, stand_in in used.items():
        print(f"note: {original} is not on this machine, {stand_in} was used", file=sys.stderr)
    if given.json is not None:
        given.json.write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n")
    if given.plot is not None:
        draw(rows, given.plot)


if __name__ == "__main__":
    main()
