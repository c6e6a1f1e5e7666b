"""The parts of the report page, each as HTML text."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from splitgym.evaluation.compare import FEWEST, Interval, bootstrap_mean, brackets, compare
from splitgym.evaluation.page import charts
from splitgym.evaluation.page.charts import Axis, Line, axis_for, legend
from splitgym.evaluation.report import summary, windows_of
from splitgym.evaluation.run import Results, Run
from splitgym.evaluation.workloads import Workload
from splitgym.metrics import KINDS
from splitgym.sim.outcomes import TIMELINE_FIELDS
from splitgym.slo import NINE_SLOS, PERCENTILES

NAMES = {"ttft": "TTFT", "tbt": "TBT", "e2e": "E2E"}
BINS = 60
"""Columns of a heat map."""


def verdict(results: Results, baseline: str) -> str:
    """Which policy is best, by how much, and whether that is beyond chance: one sentence a workload."""
    return "".join(f'<p class="verdict">{_verdict(results, w, baseline)}</p>' for w in results.workloads)


def _verdict(results: Results, workload: Workload, baseline: str) -> str:
    found = {c.policy: c for c in compare(results, "goodput", baseline, workload)}
    best = max(found, key=lambda policy: found[policy].value.mean)
    where = f"On <code>{escape(workload.name)}</code>"
    value = found[best].value
    if len(found) == 1:
        return f"{where}, <b>{escape(best)}</b> serves {_spread(value)} of the requests within both SLOs."
    if best == baseline:
        second = max((p for p in found if p != best), key=lambda p: found[p].value.mean)
        gap = found[second].difference
        assert gap is not None
        sure = _sure(gap, "beyond chance", "not beyond chance with these windows")
        return (
            f"{where}, the baseline <b>{escape(best)}</b> is best: goodput {_spread(value)}; the next, "
            f"{escape(second)}, differs by {_spread(gap, '+')}, {sure}."
        )
    gap = found[best].difference
    assert gap is not None
    sure = _sure(gap, "the interval excludes zero", "which these windows cannot tell from zero")
    return (
        f"{where}, <b>{escape(best)}</b> has the best goodput, {_spread(value)}: {_spread(gap, '+')} against "
        f"{escape(baseline)} on the same windows; {sure}."
    )


def _sure(gap: Interval, yes: str, no: str) -> str:
    if np.isnan(gap.low):
        return "one window gives no interval"
    if gap.one_sign and not gap.excludes_zero:
        return f"in all {gap.windows} windows, but fewer than {FEWEST} give no interval"
    return yes if gap.excludes_zero else no


def _brackets(results: Results) -> str:
    windows = len(results.seeds)
    return f"; brackets: {brackets(windows)}" if windows > 1 else ""


def table(results: Results, workload: Workload, baseline: str) -> str:
    """Goodput, difference, SLOs held, energy and cost of each policy."""
    rows = []
    for row in summary(results, baseline):
        if row["workload"] == workload.name:
            cells = [
                _cell(row, "goodput", ""),
                _cell(row, "goodput_difference", "+")
                if row["goodput_difference"] is not None
                else "baseline",
                f"{row['slos_held']:.2g} of 9",
                f"{row['good_per_s']:.2f}",
                f"{row['energy_per_request_j']:,.0f}",
                f"{row['cost_per_request'] * 1000:.3g}",
                f"{100 * row['utilisation']:.0f} %",
            ]
            rows.append([row["policy"], *cells])
    head = ("policy", "goodput", "difference", "SLOs held", "good/s", "J/request", "cost/1000", "busy")
    says = f"means over {windows_of(results)} of {workload.duration_s:g} s{_brackets(results)}"
    return _table(f"{workload.name}: results", says, head, rows)


def energy_and_cost(results: Results, workload: Workload) -> str:
    """What a request and a good request cost, in joules and in the profiles' currency, with intervals."""
    rows = []
    for policy in results.policies:
        values = {
            name: results.values(name, policy, workload)
            for name in ("energy_per_request_j", "cost_per_request", "goodput")
        }
        cells = []
        for name, times, form in (("energy_per_request_j", 1.0, ",.0f"), ("cost_per_request", 1000.0, ".3g")):
            each = times * values[name]
            cells.append(_spread(bootstrap_mean(each), form=form))
            # Of all requests over the good ones: windows are pooled, so that one without any does not count.
            good = float(values["goodput"].mean())
            cells.append(format(float(each.mean()) / good, form) if good > 0 else "–")
        rows.append([policy, *cells])
    head = ("policy", "J/request", "J/good request", "cost/1000", "cost/1000 good")
    says = f"energy of all machines and cost of the cluster's time, over the requests{_brackets(results)}"
    return _table(f"{workload.name}: energy and cost", says, head, rows)


def slos(results: Results, workload: Workload) -> str:
    """The nine SLOs: each policy's percentile, and whether it passes."""
    limits = [(kind, p, limit) for kind in KINDS for p, limit in zip(PERCENTILES, NINE_SLOS[kind])]
    head = ["policy", *(f"{NAMES[kind]} p{p}\u00a0<\u00a0{limit:g}" for kind, p, limit in limits)]
    rows = []
    for policy in results.policies:
        cells = []
        for kind, p, limit in limits:
            value = float(results.values(f"{kind}_slowdown_p{p}", policy, workload).mean())
            word, mark = ("pass", "✓") if np.isnan(value) or value < limit else ("fail", "✗")
            shown = "–" if np.isnan(value) else "∞" if np.isinf(value) else f"{value:.2f}"
            sign = f'<span aria-label="{word}" role="img">{mark}</span>'
            cells.append(f'<span class="{word}">{shown} {sign}</span>')
        rows.append([policy, *cells])
    says = "slowdown against the same request alone on the reference machine, mean over windows"
    return _table(f"{workload.name}: SLOs", says, head, rows)


def by_rate(results: Results) -> str:
    """Goodput by rate with intervals, a chart a kind of workload; empty where rates do not differ."""
    drawn = []
    for base in dict.fromkeys(w.base_name for w in results.workloads):
        loads = sorted(
            (w for w in results.workloads if w.base_name == base and w.rate_per_s is not None),
            key=lambda w: w.rate_per_s or 0.0,
        )
        if len(loads) < 2:
            continue
        rates = [w.rate_per_s or 0.0 for w in loads]
        lines = []
        for policy in results.policies:
            found = [bootstrap_mean(results.values("goodput", policy, w)) for w in loads]
            known = not any(np.isnan(f.low) for f in found)
            low, high = ([f.low for f in found], [f.high for f in found]) if known else (None, None)
            lines.append(Line(policy, rates, [f.mean for f in found], low, high))
        chart = charts.line_chart(
            f"Goodput by rate on {base}", axis_for("requests/s", [rates]), Axis("goodput", 0.0, 1.0), lines
        )
        drawn.append(_figure(chart, f"{base}{_brackets(results).replace('brackets', 'bands')}"))
    if not drawn:
        return ""
    return f"<h2>Goodput by rate</h2>{legend(results.policies)}{_charts(drawn)}"


def latency(results: Results, workload: Workload) -> str:
    """Cumulative distributions of the three slowdowns."""
    drawn = []
    for kind in KINDS:
        lines, seen = [], []
        for policy in results.policies:
            values = np.concatenate([r.table.slowdown(kind) for r in results.select(policy, workload)])
            values = np.sort(values[~np.isnan(values)])
            share = np.arange(1, len(values) + 1) / max(1, len(values))
            finite = np.isfinite(values)
            lines.append(Line(policy, values[finite], share[finite]))
            seen.append(values[finite])
        marks = [(limit, p / 100) for p, limit in zip(PERCENTILES, NINE_SLOS[kind])]
        x = axis_for(f"{NAMES[kind]} slowdown", [*seen, NINE_SLOS[kind]], log=True)
        title = f"Distribution of {NAMES[kind]} slowdowns on {workload.name}"
        chart = charts.line_chart(title, x, Axis("share of requests", 0.0, 1.0), lines, marks)
        drawn.append(_figure(chart, f"{NAMES[kind]}; crosses: the SLOs at p50, p90, p99"))
    return f"{legend(results.policies)}{_charts(drawn)}"


def over_time(run: Run) -> str:
    """Pool sizes, and what waits and decodes on each machine, over one run."""
    drawn = []
    if len(run.timeline):
        columns = {name: run.timeline[:, i].astype(float) for i, name in enumerate(TIMELINE_FIELDS)}
        times = columns["time_ns"] * 1e-9
        layers = [columns[f"{pool}_machines"] for pool in ("prompt", "token", "mixed")]
        machines = float(np.max(np.sum(layers, axis=0)))
        chart = charts.stack_chart(
            f"Machines by present work, {run.policy}",
            Axis("time [s]", 0.0, float(times[-1]) or 1.0),
            Axis("machines", 0.0, machines),
            times,
            layers,
        )
        names = legend(("prompt", "token", "mixed"), "p")
        drawn.append(_figure(chart + names, "machines by the pool of their present work"))
    if run.activity is not None:
        end_ns = max(1, int(run.activity.finish_ns.max(initial=1)))
        edges = np.linspace(0, end_ns, BINS + 1).astype(np.int64)
        x = Axis("time [s]", 0.0, end_ns * 1e-9)
        rows = [f"{m} {name}" for m, name in enumerate(run.activity.machine_names)]
        short = [row if len(row) < 9 else str(m) for m, row in enumerate(rows)]
        for title, values, unit in (
            ("Prompts waiting", run.activity.waiting(edges), "waiting"),
            ("Requests decoding", run.activity.decoding(edges), "decoding"),
        ):
            chart = charts.heat_map(f"{title} on each machine, {run.policy}", x, short, values, unit)
            drawn.append(_figure(chart, f"{title.lower()}, a row a machine"))
    return _charts(drawn)


def gantt(runs: Sequence[Run]) -> str:
    """The controls and the empty drawing that `gantt.js` fills; nothing without recorded activity."""
    if not runs:
        return ""
    options = "".join(
        f'<option value="{i}">{escape(run.policy)} on {escape(run.workload.name)}</option>'
        for i, run in enumerate(runs)
    )
    start = int(min(runs[0].workload.warmup_s, 1e6))
    return (
        "<h2>A minute, machine by machine</h2>"
        '<div class="controls"><label>run<select id="gantt-run">'
        f"{options}</select></label><label>from second"
        f'<input id="gantt-from" type="range" min="0" max="{start + 60}" value="{start}"></label></div>'
        '<p class="note" id="gantt-said" aria-live="polite"></p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Gantt chart"><svg id="gantt" role="img" '
        'aria-label="Gantt chart" style="min-width:640px"></svg></div>'
        '<ul class="legend"><li><span class="key p0" aria-hidden="true"></span>prompt</li>'
        '<li><span class="key p2" aria-hidden="true"></span>KV transfer</li>'
        '<li><span class="key p1" aria-hidden="true"></span>requests decoding</li></ul>'
    )


def gantt_data(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What `gantt.js` reads: a row a request, in milliseconds."""
    found = []
    for run in runs:
        activity = run.activity
        assert activity is not None
        times = (
            activity.arrival_ns,
            activity.prompt_start_ns,
            activity.prompt_end_ns,
            activity.transfer_end_ns,
            activity.decode_start_ns,
            activity.finish_ns,
        )
        columns = [np.where(t >= 0, t // 1_000_000, -1).tolist() for t in times]
        columns += [activity.prompt_machine.tolist(), activity.token_machine.tolist()]
        found.append(
            {
                "name": f"{run.policy} on {run.workload.name}",
                "machines": list(activity.machine_names),
                "end": int(activity.finish_ns.max(initial=0) // 1_000_000),
                "rows": [list(row) for row in zip(*columns)],
            }
        )
    return found


def _table(name: str, says: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    body = ""
    for first, *cells in rows:
        body += f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>'
    # What it says stands before it, not in a caption: that would be as wide as the table, and cut on a phone.
    return (
        f'<p class="note">{escape(says)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name, quote=True)}"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _figure(chart: str, says: str) -> str:
    return f"<figure>{chart}<figcaption>{escape(says)}</figcaption></figure>"


def _charts(figures: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(figures)}</div>'


def _spread(found: Interval, sign: str = "", form: str = ".3f") -> str:
    text = f"{found.mean:{sign}{form}}"
    return text if np.isnan(found.low) else f"{text} [{found.low:{sign}{form}}, {found.high:{sign}{form}}]"


def _cell(row: dict[str, Any], name: str, sign: str) -> str:
    low = row[f"{name}_low"]
    low, high = (np.nan, np.nan) if low is None else (low, row[f"{name}_high"])
    return escape(_spread(Interval(row[name], low, high, 0), sign))
