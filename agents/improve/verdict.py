"""Old against new: on which windows, and who wins."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from splitgym import policy as bundles
from splitgym import trace as traces
from splitgym.config import ClusterConfig
from splitgym.errors import TraceError
from splitgym.evaluation import Results, Workload, evaluate, paired_difference, write_page
from splitgym.evaluation.compare import FEWEST
from splitgym.evaluation.report import plain
from splitgym.trace import Trace

TAIL_SLO = 6.0
"""p99 of the TTFT slowdown below which a tail is no matter: the p99 of the nine SLOs."""
SPEEDS = (0.9, 1.0, 1.15)
"""Learning sees the recorded stamps at these speeds."""
MOST_WINDOW_S = 120.0
LEAST_WINDOWS, MOST_WINDOWS = FEWEST, 20
LEAST_REQUESTS = 20
"""A window of the comparison, on average."""
WARM_UP = 1 / 6
"""Of each window."""


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
            duration_s=self.judge_s * (1 - WARM_UP),
            warmup_s=self.judge_s * WARM_UP,
            part="test",
            pieces=self.count,
            copies=1,
        )


def judge(
    folder: Path,
    bundle: str,
    cluster: ClusterConfig,
    windows: Windows,
    tail: float,
    progress: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """The old bundle against the candidate; writes the report.

    Args:
        folder: of the improvement.
        bundle: the old one.
        cluster: of the log.
        windows: of the traffic.
        tail: see `verdict_of`.
        progress: called after each of the 2 x `windows.count` runs.
    """
    entrants = [
        bundles.contender(bundle, cluster, name="old"),
        bundles.contender(folder / "candidate", cluster, name="new"),
    ]
    workload = windows.judged(folder / "traffic.parquet")
    results = evaluate(
        entrants,
        cluster,
        [workload],
        range(windows.count),
        progress=None if progress is None else lambda run: progress(),
        record=True,
    )
    write_page(results, folder / ".report.html", "old")
    (folder / ".report.html").replace(folder / "report.html")
    content = verdict_of(results, tail)
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
    higher, tail_holds = difference.excludes_zero and difference.mean > 0, bool(p99["new"] <= most)
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
