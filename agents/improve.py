"""From a router's log to a better bundle: traffic, fine-tuning, a fair comparison, a bundle only if it wins.

    improve.json    what this improvement is of: digests of logs and bundle, options, the cluster
    traffic.parquet the log as a trace
    search/         a run folder of `es` or `cem` that begins at the old bundle's weights
    candidate/      its best result as a bundle
    report.html     old against new on the newest part of the traffic
    verdict.json    what came of it

The first 70 % of the log by time are for learning (50 % train, 20 % validation), the newest 30 % are seen
once, in the comparison. Everything is written beside itself and renamed, and every step that is done is not
done again, so the same command goes on where it was interrupted.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents import training
from agents.config import RunConfig, resolve
from agents.export import export_run
from agents.runs import RunFolder, write_atomic
from splitgym import policy as bundles
from splitgym import trace as traces
from splitgym.cli.options import progress, reading
from splitgym.config import ClusterConfig, from_mapping, to_mapping
from splitgym.errors import ConfigError, PolicyError, TraceError
from splitgym.evaluation import Results, Workload, evaluate, paired_difference, write_page
from splitgym.evaluation.replay import config_of
from splitgym.evaluation.report import plain
from splitgym.policy import Policy
from splitgym.policy.bundle import SchedulerPolicy
from splitgym.policy.find import locate
from splitgym.policy.manifest import MANIFEST
from splitgym.schedulers import Residual
from splitgym.schedulers.index import Index
from splitgym.schedulers.residual import unpack
from splitgym.trace import Trace
from splitgym.trace.decision_log import LoggedTraffic, read_decision_log
from splitgym.trace.importers import from_log

Say = Callable[[str], None]

TAIL_SLO = 6.0
"""p99 of the TTFT slowdown below which a tail is no matter: the p99 of the nine SLOs."""
SPEEDS = (0.9, 1.0, 1.15)
"""Learning sees the recorded stamps at these speeds, and Poisson arrivals at the last two."""
MOST_WINDOW_S = 120.0
LEAST_WINDOWS, MOST_WINDOWS = 6, 20
LEAST_REQUESTS = 20
"""A window of the comparison, on average."""
_WARM_UP = 1 / 6
"""Of each window."""


@dataclass(frozen=True)
class ImproveOptions:
    """How."""

    generations: int = 40
    """Of the search."""
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
    old = bundles.load(locate(bundle))
    algo = algorithm_of(old, bundle)
    with reading(logs, show=show) as tell:
        traffic = read_decision_log(logs, skip_bad=options.skip_bad, progress=tell)
    cluster = _cluster(traffic, options.profile)
    about = {
        "logs": {path.name: _sha256(path) for path in logs},
        "bundle": old.sha256,
        "options": asdict(options) | {"profile": list(options.profile)},
        "cluster": to_mapping(cluster),
    }
    _open(folder, about, force)
    _check_out(out, folder, force)
    for note in traffic.notes:
        say(f"note: {note}")
    trace = _traffic(folder, logs, options, say)
    windows = Windows.of(trace)
    found = _read(folder / "verdict.json")
    if found is None:
        if not (folder / "candidate" / MANIFEST).is_file():
            config = search_config(algo, cluster, folder, bundle, trace, windows, options)
            if not _search(config, folder / "search", show):
                done = RunFolder(folder / "search").progress()
                sentence = f"interrupted after {done['steps']} of {options.generations} generations"
                return Verdict(False, True, sentence, {})
            _clear(folder / "candidate")
            export_run(folder / "search", folder / "candidate", name=out.name)
        say(f"comparing on {windows.count} windows of the newest part of the log")
        found = _judge(folder, bundle, cluster, windows, options, show)
        write_atomic(folder / "verdict.json", json.dumps(found, indent=1, allow_nan=False))
    if found["won"]:
        _publish(folder / "candidate", out)
    return Verdict(found["won"], False, found["verdict"], found)


def algorithm_of(policy: Policy, name: str) -> str:
    """How a bundle can be improved: `es` where there is a network beside the index, `cem` for an index alone.

    Raises:
        PolicyError: it cannot; says which can.
    """
    routing = policy.routing if isinstance(policy, SchedulerPolicy) else None
    if policy.manifest.action.kind == "routing":
        if isinstance(routing, Residual):
            return "es" if len(unpack(routing.params)["input_bias"]) else "cem"
        if isinstance(routing, Index):
            return "cem"
    made = policy.manifest.architecture
    what = getattr(getattr(made, "routing", None), "name", made.kind)
    raise PolicyError(
        f"{name} ({policy.manifest.action.kind}, {what}) cannot be improved from a log: what can are routing "
        "bundles of the index (`splitgym export --heuristic index`) and of its residual (`splitgym train "
        "--algo es`, pretrained:routing); train others anew on the log's trace (`splitgym trace from-log`)"
    )


@dataclass(frozen=True)
class Windows:
    """How a trace is cut: windows to learn and validate on, and the newest part in `count` equal pieces."""

    learn_s: float
    judge_s: float
    count: int

    @classmethod
    def of(cls, trace: Trace) -> "Windows":
        """As its length allows.

        Raises:
            TraceError: too few requests in the newest part.
        """
        newest, middle = traces.part(trace, "test"), traces.part(trace, "validation")
        count = int(np.clip(newest.duration_s // MOST_WINDOW_S, LEAST_WINDOWS, MOST_WINDOWS))
        if len(newest) < count * LEAST_REQUESTS:
            raise TraceError(
                f"{trace.name}: the newest 30 % of the log hold {len(newest)} requests, at least "
                f"{count * LEAST_REQUESTS} are needed to tell two policies apart: let the router log more"
            )
        # Windows of learning must fit the validation part when it is sped up.
        learn_s = min(MOST_WINDOW_S, 0.95 * middle.duration_s / max(SPEEDS))
        return cls(learn_s, newest.duration_s / count * (1 - 1e-9), count)

    def judged(self, path: Path) -> Workload:
        """The newest part, as recorded; seed k is its k-th piece."""
        return Workload(
            "stamps",
            (str(path),),
            duration_s=self.judge_s * (1 - _WARM_UP),
            warmup_s=self.judge_s * _WARM_UP,
            part="test",
            pieces=self.count,
            copies=1,
        )


def search_config(
    algo: str,
    cluster: ClusterConfig,
    folder: Path,
    bundle: str,
    trace: Trace,
    windows: Windows,
    options: ImproveOptions,
) -> RunConfig:
    """The search: from the old bundle's weights, on the log's cluster and traffic."""
    path, rate = folder / "traffic.parquet", trace.rate_per_s
    loads = [f"stamps:{path}@x{speed:g}" for speed in SPEEDS]
    loads += [f"poisson:{path}@{speed * rate:g}" for speed in SPEEDS[1:]]
    fields = {
        "algo": algo,
        "env": "routing",
        "steps": options.generations,
        "seed": options.seed,
        "cluster": to_mapping(cluster),
        "workload": {
            "trace": str(path),
            "warmup_s": windows.learn_s * _WARM_UP,
            "episode_s": windows.learn_s * (1 - _WARM_UP),
        },
        "evolution": {
            "clusters": "own",
            "workloads": loads,
            "loads_judged": [1.0],
            "scenarios": 6,
            "start": str(locate(bundle)),
        },
        "evaluation": {"every": max(1, options.generations // 8), "windows": 4},
        "checkpoint": {"every": max(1, options.generations // 20)},
    }
    return resolve(fields, "improve")


def _search(config: RunConfig, folder: Path, show: bool) -> bool:
    """Run the search to its end; False where it was interrupted."""
    if RunFolder(folder).config_file.is_file():
        return training.resume(folder, show=show).state == "finished"
    _clear(folder)  # made, but not begun
    return training.train(config, folder, show=show).state == "finished"


def _judge(
    folder: Path, bundle: str, cluster: ClusterConfig, windows: Windows, options: ImproveOptions, show: bool
) -> dict[str, Any]:
    """Old against new; writes the report."""
    entrants = [
        bundles.contender(bundle, cluster, name="old"),
        bundles.contender(folder / "candidate", cluster, name="new"),
    ]
    workload = windows.judged(folder / "traffic.parquet")
    kept = f"the candidate is in {folder}; the same command goes on"
    with progress("comparing", len(entrants) * windows.count, kept, show) as (bar, task):
        results = evaluate(
            entrants,
            cluster,
            [workload],
            range(windows.count),
            progress=lambda run: bar.advance(task),
            record=True,
        )
    write_page(results, folder / ".report.html", "old")
    (folder / ".report.html").replace(folder / "report.html")
    content = verdict_of(results, options.tail)
    content |= {
        "bundle": bundle,
        "windows_s": windows.judge_s,
        "requests": sum(run.metrics.requests for run in results.select("new")),
        "report": "report.html",
    }
    found: dict[str, Any] = plain(content)
    return found


def verdict_of(results: Results, tail: float) -> dict[str, Any]:
    """Does `new` win over `old`? Its goodput must be higher beyond doubt, and its tail no worse."""
    goodput = {name: results.values("goodput", name) for name in ("old", "new")}
    there = np.isfinite(goodput["old"]) & np.isfinite(goodput["new"])
    difference = paired_difference(goodput["new"][there], goodput["old"][there])
    p99 = {name: float(np.nanmean(results.values("ttft_slowdown_p99", name))) for name in goodput}
    most = max(TAIL_SLO, tail * p99["old"])
    higher, tail_holds = bool(difference.low > 0), bool(p99["new"] <= most)
    means = {name: float(values[there].mean()) for name, values in goodput.items()}
    spread = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    compared = f"goodput {means['old']:.3f} -> {means['new']:.3f} ({spread}, {difference.windows} windows)"
    tails = f"p99 of the TTFT slowdown {p99['old']:.2f} -> {p99['new']:.2f}"
    if higher and tail_holds:
        sentence = f"The new bundle wins: {compared}; {tails}."
    elif higher:
        sentence = f"The old bundle stays: {compared}, but {tails} is more than the {most:.2f} allowed."
    else:
        sentence = f"The old bundle stays: {compared}: no gain beyond doubt; {tails}."
    return {
        "won": higher and tail_holds,
        "verdict": sentence,
        "criterion": "the 95 % interval of the goodput difference on paired windows lies above 0, and "
        f"the mean p99 of the TTFT slowdown is at most {TAIL_SLO:g} or {tail:g} times the old one's",
        "goodput": means,
        "difference": asdict(difference),
        "ttft_slowdown_p99": p99,
        "tail_allowed": most,
        "by_window": {name: values.tolist() for name, values in goodput.items()},
    }


def _cluster(traffic: LoggedTraffic, profile: Sequence[str]) -> ClusterConfig:
    """Of the newest run that says what its servers are, confined as its policy was."""
    run = next((run for run in reversed(traffic.runs) if run.cluster is not None), traffic.runs[-1])
    fields = to_mapping(config_of(run, profile)) | {"confine": bool(run.header.get("confine", False))}
    return from_mapping(ClusterConfig, fields, "the log's start line: cluster")


def _traffic(folder: Path, logs: Sequence[Path], options: ImproveOptions, say: Say) -> Trace:
    path = folder / "traffic.parquet"
    if "@" in str(path) or "," in str(path):
        raise ConfigError(f"--run-dir {folder}: workloads are named by it, so it cannot hold @ or a comma")
    if not path.is_file():
        found = from_log(logs, skip_bad=options.skip_bad)
        for note in found.notes:
            say(f"note: {note}")
        traces.save(found.trace, path)
    return traces.load(path)


def _open(folder: Path, about: Mapping[str, Any], force: bool) -> None:
    """Begin, or go on with the same improvement."""
    file = folder / "improve.json"
    if folder.exists() and any(folder.iterdir()):
        known = _read(file)
        if known is None:
            raise ConfigError(f"--run-dir {folder}: is there already, and holds no improvement: name another")
        if known == about:
            return
        if not force:
            differs = next(key for key in about if known.get(key) != about[key])
            raise ConfigError(
                f"--run-dir {folder}: holds an improvement with other {differs}: name another, or --force "
                "begins anew"
            )
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--run-dir {folder}: cannot be made a folder ({error.strerror})") from None
    write_atomic(file, json.dumps(about, indent=1))


def _check_out(out: Path, folder: Path, force: bool) -> None:
    """Nothing is overwritten unasked, and nothing but a bundle at all."""
    if not out.exists() or _same(out, folder / "candidate"):
        return
    if not (out / MANIFEST).is_file():
        raise PolicyError(f"--out {out}: is there already, and is no bundle: name a new folder")
    if not force:
        raise PolicyError(f"--out {out}: is there already: name a new folder, or --force replaces the bundle")


def _publish(candidate: Path, out: Path) -> None:
    """The candidate becomes the new bundle, in one step."""
    if _same(out, candidate):
        return
    part, before = (out.with_name(f".{out.name}.{word}") for word in ("part", "before"))
    _clear(part)
    shutil.copytree(candidate, part)
    _clear(before)
    if out.exists():
        out.replace(before)
    part.replace(out)
    _clear(before)


def _same(one: Path, other: Path) -> bool:
    texts = [path / MANIFEST for path in (one, other)]
    return all(text.is_file() for text in texts) and texts[0].read_bytes() == texts[1].read_bytes()


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _read(file: Path) -> dict[str, Any] | None:
    """JSON that was written before; None where there is none."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from None
