"""The paper's cluster designs: our highest rates under all nine SLOs, beside what the paper claims.

    python benchmarks/designs.py --cache runs/designs.json --markdown docs/fidelity.md --images docs/images

Thousands of simulated seconds of 40 to 86 machines: an hour on two cores. What was simulated is kept in the
cache, so it can be stopped and started again. With --markdown the block between `<!-- begin designs -->` and
`<!-- end designs -->` of the file is replaced (or added at its end).
"""

import argparse
import contextlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from splitgym.config import ClusterConfig, SloConfig
from splitgym.evaluation import parse
from splitgym.evaluation.plots import save
from splitgym.evaluation.reference.setup import read_tables
from splitgym.evaluation.workloads import stand_ins
from splitgym.provisioning import (
    PAPER_COUNTS,
    PAPER_DESIGNS,
    Budget,
    Design,
    Found,
    Problem,
    Runs,
    curves,
    least,
    most_rate,
    parse_budget,
    processes,
)
from splitgym.provisioning.plots import latency_by_rate, robustness, summary_bars

TRACES = ("azure-conv", "azure-code")
EQUAL = {"power": "power=40*h100-80gb", "cost": "cost=40*h100-80gb"}
"""The paper's budgets: what 40 H100 machines take."""


def main() -> None:
    options = arguments()
    started = time.monotonic()
    with processes(options.workers) as map:
        runs = Runs(map, options.cache, lambda: print(".", end="", flush=True))
        results: dict[str, dict[str, list[Found]]] = {}
        with contextlib.suppress(KeyboardInterrupt):
            for model in options.models.split(","):
                results[model] = {}
                measure(model, options, runs, results[model])
                if options.tables and len(results) == 1:
                    with_their_tables(model, options, runs, results[model])
                print(f"\n{model}: {runs.count} runs, {time.monotonic() - started:.0f} s", flush=True)
                if options.images and model == options.models.split(",")[0]:
                    draw(problem(model, TRACES[0], options), results[model], options.images, runs)
    if options.json:
        data = {m: {k: [f.row() for f in v] for k, v in r.items()} for m, r in results.items()}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if options.markdown:
        from designs_report import block, insert

        first = problem(options.models.split(",")[0], TRACES[0], options)
        text = block(results, first, options.images, options.markdown)
        insert(options.markdown, text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, help="JSON of simulated verdicts, read and extended")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every rate to FILE")
    parser.add_argument(
        "--tables", type=Path, metavar="FILE",
        help="perf_model.csv of the open simulator: the published designs with its time tables as well",
    )  # fmt: skip
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the report into FILE")
    parser.add_argument("--images", type=Path, metavar="DIR", help="draw the paper's figures into DIR")
    parser.add_argument("--models", default="bloom-176b,llama2-70b")
    parser.add_argument("--duration", type=float, default=60.0)
    parser.add_argument("--warmup", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    return parser.parse_args()


def problem(model: str, trace: str, options: argparse.Namespace) -> Problem:
    workload = parse(f"poisson:{trace}@1", duration_s=options.duration, warmup_s=options.warmup, part="all")
    missing = stand_ins((workload,))
    if missing:
        raise SystemExit(
            f"{trace} is not on this machine: `splitgym trace fetch {trace}`, or set SPLITGYM_DATA"
        )
    return Problem(model, workload, tuple(range(options.seeds)), options.tolerance)


def measure(model: str, options: argparse.Namespace, runs: Runs, found: dict[str, list[Found]]) -> None:
    """Every rate of a model into `found`: `published power azure-conv`, `best cost azure-code`, ..."""
    asked = {trace: problem(model, trace, options) for trace in TRACES}

    def note(name: str, clusters: list[Found]) -> None:
        found[name] = clusters
        print(f"\n{model} {name}")
        for f in clusters:
            print(f"  {f.design.name:16} {f.design.describe(f.counts):42} {f.rate_per_s:8.4g} {f.failed}")

    for (equal, trace), counts in PAPER_COUNTS.items():
        designs = [PAPER_DESIGNS[name].sized(numbers) for name, numbers in counts.items()]
        note(f"published {equal} {trace}", most_rate(asked[trace], designs, None, runs))
    for sized_for, under in (TRACES[::-1], TRACES):
        counts = PAPER_COUNTS["power", sized_for]
        designs = [PAPER_DESIGNS[name].sized(numbers) for name, numbers in counts.items()]
        note(f"sized for {sized_for} under {under}", most_rate(asked[under], designs, None, runs))
    for equal, text in EQUAL.items():
        for trace in TRACES:
            budget: Budget = parse_budget(text, model)
            note(f"best {equal} {trace}", most_rate(asked[trace], list(PAPER_DESIGNS.values()), budget, runs))
    for trace in TRACES:
        target = next(f for f in found[f"best power {trace}"] if f.design.name == "Baseline-H100")
        names = ("Baseline-H100", "Splitwise-HH", "Splitwise-HHcap", "Splitwise-HA")
        designs = [PAPER_DESIGNS[name] for name in names]
        note(f"least power {trace}", least(asked[trace], designs, target.rate_per_s, "power", runs))
    for trace in TRACES:
        other = TRACES[1 - TRACES.index(trace)]
        sized = [f.design for f in found[f"best power {other}"]]
        note(f"best for {other} under {trace}", most_rate(asked[trace], sized, None, runs))


def with_their_tables(
    model: str, options: argparse.Namespace, runs: Runs, found: dict[str, list[Found]]
) -> None:
    """The published designs once more, with nothing changed but the time tables: the open simulator's."""
    tables = read_tables(options.tables)
    folder = (options.cache or Path("runs/designs.json")).with_suffix(".tables")
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name in ("a100-80gb", "h100-80gb", "h100-80gb-pcap"):
        prompt, token = tables.prompt[model, name], tables.token[model, name]
        none = {"idle_w": 0.0, "prompt_tokens": [1], "prompt_w": [0.0], "token_batch": [1], "token_w": [0.0]}
        files[name] = folder / f"{model}_{name}.json"
        content = {
            "model": model,
            "machine": name,
            "tensor_parallel": 8,
            "prompt": {"tokens": prompt.tokens, "seconds": prompt.seconds},
            "token": {"batch": token.tokens, "seconds": token.seconds},
            "power": none,
            "raw_tables": True,
            "provenance": {"times": f"medians of {options.tables.name}, keyed as SplitwiseSim keys them"},
        }
        files[name].write_text(json.dumps(content, indent=1) + "\n")
    rules = ClusterConfig(slo=SloConfig(reference_machine=str(files["a100-80gb"])))

    def theirs(name: str, numbers: tuple[int, ...] | None) -> Design:
        design = PAPER_DESIGNS[name]
        pools = tuple(replace(p, machine=str(files[p.machine])) for p in design.pools)
        return replace(design, pools=pools, counts=numbers)

    for sized_for, under in [(t, t) for t in TRACES] + [TRACES[::-1]]:
        asked = replace(problem(model, under, options), rules=rules)
        designs = [theirs(name, numbers) for name, numbers in PAPER_COUNTS["power", sized_for].items()]
        found[f"their tables {sized_for} under {under}"] = most_rate(asked, designs, None, runs)
    asked = replace(problem(model, TRACES[0], options), rules=rules)
    designs = [theirs(name, numbers) for name, numbers in PAPER_COUNTS["cost", TRACES[0]].items()]
    found[f"their tables cost {TRACES[0]}"] = most_rate(asked, designs, None, runs)
    both = found[f"their tables {TRACES[0]} under {TRACES[0]}"]
    target = next(f for f in both if f.design.name == "Baseline-H100").rate_per_s
    designs = [theirs(name, None) for name in ("Baseline-H100", "Splitwise-HHcap")]
    found[f"their tables least power {TRACES[0]}"] = least(asked, designs, target, "power", runs)


def draw(asked: Problem, found: dict[str, list[Found]], folder: Path, runs: Runs) -> None:
    """The paper's three figures, for the conversation trace."""
    folder.mkdir(parents=True, exist_ok=True)
    here = found["published power azure-conv"]
    rates = spread(here)
    title = f"{asked.model}, conversation trace, equal power, published sizes"
    save(
        latency_by_rate(curves(asked, [f.design for f in here], rates, runs), title),
        folder / "designs-latency.png",
    )
    groups: dict[str, Sequence[Found]] = {
        "equal power, best splits": found["best power azure-conv"],
        "equal cost, best splits": found["best cost azure-conv"],
    }
    save(summary_bars(groups), folder / "designs-summary.png")
    elsewhere = found["sized for azure-code under azure-conv"]
    save(
        robustness(here, elsewhere, "conversation trace: designs sized for it and for code"),
        folder / "designs-robustness.png",
    )


def spread(found: Sequence[Found], points: int = 6) -> list[float]:
    """Round rates up to a fifth above the best."""
    top = 1.2 * max(f.rate_per_s for f in found)
    return [round(top * (i + 1) / points, 1) for i in range(points)]


if __name__ == "__main__":
    main()
