"""From a router's log to a better bundle: traffic, fine-tuning, a fair comparison, a bundle only if it wins.

    improve.json    what this improvement is of: digests of logs and bundle, options, the cluster
    traffic.parquet the log as a trace
    search/         a training run that begins at the old bundle's weights (`agents.improve.plans`)
    candidate/      its best result as a bundle
    report.html     old against new on the newest part of the traffic
    verdict.json    what came of it

The first 70 % of the log by time are for learning (50 % train, 20 % validation), the newest 30 % are seen
once, in the comparison. Everything is written beside itself and renamed, and every step that is done is not
done again, so the same command goes on where it was interrupted.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agents import training
from agents.config import RunConfig
from agents.export import export_run
from agents.improve.folder import begin, check_out, clear, publish, read, sha256
from agents.improve.plans import Plan, plan_of, search_config
from agents.improve.verdict import Windows, judge, verdict_of
from agents.runs import RunFolder, write_atomic
from splitgym import policy as bundles
from splitgym import trace as traces
from splitgym.cli.options import progress, reading
from splitgym.config import ClusterConfig, from_mapping, to_mapping
from splitgym.errors import ConfigError
from splitgym.evaluation.logged import config_of
from splitgym.policy.find import locate
from splitgym.policy.manifest import MANIFEST
from splitgym.trace import Trace
from splitgym.trace.decision_log import LoggedTraffic, read_decision_log
from splitgym.trace.importers import from_log

__all__ = ["ImproveOptions", "Plan", "Verdict", "Windows", "improve", "plan_of", "verdict_of"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class ImproveOptions:
    """How."""

    generations: int = 40
    """Of the search; of a network, updates."""
    seed: int = 0
    tail: float = 1.1
    """The new bundle's p99 of the TTFT slowdown may be so many times the old one's, where it is above 6."""
    profile: tuple[str, ...] = ()
    """As of `splitgym compare-log`."""
    skip_bad: bool = False
    """Leave out lines of the log that are no JSON."""


@dataclass(frozen=True)
class Verdict:
    """What came of it."""

    won: bool
    interrupted: bool
    sentence: str
    content: Mapping[str, Any]
    """Of verdict.json."""


def improve(
    logs: Sequence[Path],
    bundle: str,
    out: Path,
    folder: Path,
    options: ImproveOptions = ImproveOptions(),
    *,
    force: bool = False,
    show: bool = True,
    say: Say = print,
) -> Verdict:
    """Improve a bundle by the traffic that a router logged.

    Args:
        logs: decision logs, oldest first.
        bundle: the old one: a folder, or `pretrained:NAME`.
        out: where the new one goes, if it wins. A folder that is not there yet.
        folder: of the improvement; the same command goes on in it.
        options: see there.
        force: begin anew in a folder of another improvement, and replace a bundle at `out`.
        show: progress bars.
        say: told what goes on.

    Raises:
        TraceError: a log that cannot be read, or too short to judge by.
        PolicyError, ConfigError: a bundle that cannot be improved, places that are taken.
    """
    place = locate(bundle)
    old = bundles.load(place)
    plan_of(old, bundle, False)  # a bundle that cannot be improved is said before the log is read
    with reading(logs, show=show) as tell:
        traffic = read_decision_log(logs, skip_bad=options.skip_bad, progress=tell)
    cluster = _cluster(traffic, options.profile)
    plan = plan_of(old, str(place), cluster.confine)
    about = {
        "logs": {path.name: sha256(path) for path in logs},
        "bundle": old.sha256,
        "options": asdict(options) | {"profile": list(options.profile)},
        "cluster": to_mapping(cluster),
    }
    begin(folder, about, force)
    check_out(out, folder / "candidate", force)
    for note in traffic.notes:
        say(f"note: {note}")
    trace = _traffic(folder, logs, options, say, show)
    windows = Windows.of(trace)
    found = read(folder / "verdict.json")
    if found is None:
        if not (folder / "candidate" / MANIFEST).is_file():
            config = search_config(
                plan,
                cluster,
                folder / "traffic.parquet",
                trace,
                windows,
                options.generations,
                options.seed,
            )
            if not _search(config, folder / "search", show):
                return Verdict(False, True, _interrupted(folder / "search", plan, options), {})
            clear(folder / "candidate")
            export_run(folder / "search", folder / "candidate", name=out.name)
        say(f"comparing on {windows.count} windows of the newest part of the log")
        kept = f"the candidate is in {folder}; the same command goes on"
        with progress("comparing", 2 * windows.count, kept, show) as (bar, task):
            found = judge(folder, bundle, cluster, windows, options.tail, lambda: bar.advance(task))
        write_atomic(folder / "verdict.json", json.dumps(found, indent=1, allow_nan=False))
    if found["won"]:
        publish(folder / "candidate", out)
    return Verdict(found["won"], False, found["verdict"], found)


def _search(config: RunConfig, folder: Path, show: bool) -> bool:
    """Run the search to its end; False where it was interrupted."""
    if RunFolder(folder).config_file.is_file():
        return training.resume(folder, show=show).state == "finished"
    clear(folder)  # made, but not begun
    return training.train(config, folder, show=show).state == "finished"


def _interrupted(folder: Path, plan: Plan, options: ImproveOptions) -> str:
    done = RunFolder(folder).progress()["steps"]
    what = "decisions" if plan.network else "generations"
    return f"interrupted after {done} of {plan.steps(options.generations)} {what}"


def _cluster(traffic: LoggedTraffic, profile: Sequence[str]) -> ClusterConfig:
    """Of the newest run that says what its servers are, confined as its policy was."""
    run = next((run for run in reversed(traffic.runs) if run.cluster is not None), traffic.runs[-1])
    fields = to_mapping(config_of(run, profile)) | {"confine": bool(run.header.get("confine", False))}
    return from_mapping(ClusterConfig, fields, "the log's start line: cluster")


def _traffic(folder: Path, logs: Sequence[Path], options: ImproveOptions, say: Say, show: bool) -> Trace:
    path = folder / "traffic.parquet"
    if "@" in str(path) or "," in str(path):
        raise ConfigError(f"--run-dir {folder}: workloads are named by it, so it cannot hold @ or a comma")
    if not path.is_file():
        with reading(logs, show=show) as tell:
            found = from_log(logs, skip_bad=options.skip_bad, progress=tell)
        for note in found.notes:
            say(f"note: {note}")
        traces.save(found.trace, path)
    return traces.load(path)
