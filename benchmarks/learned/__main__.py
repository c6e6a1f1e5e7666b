"""Run sections of the benchmark and write docs/benchmark.json and docs/benchmark.md.

python -m benchmarks.learned                 all sections
python -m benchmarks.learned routing-8h      one of them
"""

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks.learned import page
from benchmarks.learned.measure import Bench
from benchmarks.learned.sections import sections
from splitgym.evaluation.sweep import Kept
from splitgym.scale import workers_for

KEPT = Path("runs/benchmark/kept.jsonl")


def main() -> None:
    """Measure, then write."""
    known = sections()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", help=f"default all: {', '.join(known)}")
    parser.add_argument("--kept", type=Path, default=KEPT, help=f"file of finished runs, default {KEPT}")
    parser.add_argument("--out", type=Path, default=page.DOCS, help="folder of the two files, default docs")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    options = parser.parse_args()
    unknown = sorted(set(options.sections) - known.keys())
    if unknown:
        parser.error(f"no section {unknown[0]!r}: there are {', '.join(known)}")
    options.kept.parent.mkdir(parents=True, exist_ok=True)
    with workers_for(None, options.workers) as map:
        bench = Bench(Kept(options.kept), map, out=options.out)
        for name in options.sections or known:
            made = known[name](replace(bench, command=f"{bench.command} {name}"))
            page.write({name: made}, list(known), options.out)
            bench.say(f"{name}: written to {options.out / 'benchmark.md'}")


if __name__ == "__main__":
    main()
