"""The report as one HTML page: no outside assets, readable on a phone and in the dark, printable."""

import json
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from splitgym.errors import ConfigError
from splitgym.evaluation.page import sections
from splitgym.evaluation.report import windows_of
from splitgym.evaluation.run import Results

MOST_RUNS = 12
"""Runs whose minutes can be looked at: each adds some 100 KB."""


def write_page(results: Results, path: str | Path, baseline: str | None = None) -> Path:
    """Write the report of an evaluation.

    Args:
        results: of `evaluate(..., record=True)`; without recorded activity, the machine by machine pictures
            are left out.
        path: of the page.
        baseline: a policy of the results; None is the first.

    Raises:
        ConfigError: the file cannot be written.
    """
    target = Path(path)
    try:
        target.write_text(page(results, baseline), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{target}: the report cannot be written there ({error.strerror})") from None
    return target


def page(results: Results, baseline: str | None = None, made_at: datetime | None = None) -> str:
    """The report as text. `made_at` is printed in its foot; None is now."""
    base = baseline or results.policies[0]
    shown = [run for run in results.runs if run.activity is not None][:MOST_RUNS]
    parts = []
    for workload in results.workloads:
        first = [results.select(policy, workload)[0] for policy in results.policies]
        parts.append(f"<h2>{escape(workload.name)}</h2>")
        parts.append(sections.table(results, workload, base))
        parts.append("<h3>The nine SLOs</h3>" + sections.slos(results, workload))
        parts.append("<h3>Latency</h3>" + sections.latency(results, workload))
        parts.append("<h3>Energy and cost</h3>" + sections.energy_and_cost(results, workload))
        parts += [f"<h3>Over time: {escape(run.policy)}</h3>{sections.over_time(run)}" for run in first]
    data = json.dumps(sections.gantt_data(shown), separators=(",", ":")).replace("<", "\\u003c")
    script = f'<script type="application/json" id="runs">{data}</script><script>{_asset("gantt.js")}</script>'
    when = (made_at or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>splitgym: {escape(', '.join(results.policies))}</title>"
        f"<style>{_asset('page.css')}</style></head><body>"
        f"<header><h1>{escape(_cluster(results))}</h1>{_notes(results)}</header><main>"
        f"<h2>In a sentence</h2>{sections.verdict(results, base)}{sections.by_rate(results)}"
        f"{''.join(parts)}{sections.gantt(shown)}</main>"
        f"<footer><p>splitgym {escape(version('splitgym'))}, {when}. A request is good when its TTFT "
        f"slowdown is at most {results.cluster.config.slo.ttft_slowdown:g} and its TBT slowdown at most "
        f"{results.cluster.config.slo.tbt_slowdown:g}; goodput is the share of good requests.</p></footer>"
        f"{script if shown else ''}</body></html>\n"
    )


def _cluster(results: Results) -> str:
    config = results.cluster.config
    groups = " + ".join(f"{g.count} {g.machine} {g.pool}" for g in config.machines)
    return f"{config.model} on {groups}"


def _notes(results: Results) -> str:
    notes = [
        f"{used} was used for {name}, which is not on this machine"
        for name, used in results.stand_ins.items()
    ]
    notes += [f"{name} ran on pools or rules of its own" for name in results.own_clusters]
    windows = f"{windows_of(results)} of each workload, seeds {', '.join(map(str, results.seeds))}"
    return "".join(f'<p class="note">{escape(note)}.</p>' for note in [windows, *notes])


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


__all__ = ["page", "write_page"]
