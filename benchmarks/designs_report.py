"""The section "Cluster designs" of docs/fidelity.md, from what benchmarks/designs.py measured."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from splitgym import profile as profiles
from splitgym.provisioning import PAPER_COUNTS, Found, Problem

BEGIN, END = "<!-- begin designs -->", "<!-- end designs -->"
CONV, CODE = "azure-conv", "azure-code"
HOMOGENEOUS, HETEROGENEOUS = ("Splitwise-AA", "Splitwise-HH"), ("Splitwise-HA", "Splitwise-HHcap")
CLOSE = 0.1
"""A figure within this of the paper's agrees."""
CONTEXT = 1260
"""Tokens of a conversation request half way through its output, mean of the trace."""

Results = dict[str, list[Found]]


def insert(file: Path, text: str) -> None:
    """Replace the block between the markers, or add it at the end; the file is made where there is none."""
    before, after = (file.read_text() if file.exists() else ""), ""
    if BEGIN in before:
        before, _, rest = before.partition(BEGIN)
        after = rest.partition(END)[2]
    before = before.rstrip() + "\n\n" if before.strip() else ""
    file.write_text(f"{before}{BEGIN}\n{text.strip()}\n{END}{after or chr(10)}")


def block(results: dict[str, Results], first: Problem, images: Path | None, file: Path) -> str:
    """The section, as Markdown.

    Args:
        results: by model, of `measure` and `with_their_tables`; the first model's claims are compared.
        first: how it was measured.
        images: folder of the figures, if they were drawn.
        file: where the text goes (links are relative to it).
    """
    main_model, main = next(iter(results.items()))
    parts = [_method(main_model, first), "### The paper's claims", _claims(main), _why(main_model, main)]
    parts += ["### The published sizes", _sizes_note(), _rates(main, "published power", "their tables")]
    if f"best power {CODE}" in main:
        parts += ["### The best sizes at the same power", _best_note(), _rates(main, "best power")]
    for kind in ("published cost", "best cost"):
        if f"{kind} {CODE}" in main:
            title = "The published sizes" if kind.startswith("published") else "The best sizes"
            parts += [f"### {title} at equal cost", _rates(main, kind)]
    parts += ["### Robustness", _robustness(main)]
    if images is not None:
        folder = os.path.relpath(images, file.parent)
        parts += [
            f"![Slowdown percentiles by rate]({folder}/designs-latency.png)",
            f"![Rate, cost, power and machines]({folder}/designs-summary.png)",
            f"![Robustness]({folder}/designs-robustness.png)",
        ]
    for model, more in list(results.items())[1:]:
        parts += [f"### {model}, published sizes at equal power", _rates(more, "published power")]
    return "\n\n".join(["## Cluster designs", *parts])


METHOD = """
Made by `python benchmarks/designs.py --tables splitwise-sim/perf_model.csv --markdown docs/fidelity.md`,
which is many `splitgym provision`. {model}, Poisson arrivals with sizes from the whole Azure traces,
{work.duration_s:g} s measured after {work.warmup_s:g} s, {seeds} seed(s). A rate is the highest at which
all nine SLOs hold, on a grid of {percent:g} % steps that all designs share; the noise of one window is
about as large. Clusters have the default rules and the fitted profiles. Splitwise designs route with the
paper's scheduler without knowledge of output lengths, baselines by fewest pending tokens. Power and cost
are in the open simulator's units: 44 and 4.76 an H100 machine, 24.8 and 2.21 an A100 machine.
"""


def _method(model: str, asked: Problem) -> str:
    return METHOD.strip().format(
        model=model, work=asked.workload, seeds=len(asked.seeds), percent=100 * asked.tolerance
    )


# ---- claims -----------------------------------------------------------------------------------------------


def _claims(main: Results) -> str:
    rows = [
        _ratio_claim(main, 2.15, "power", "AA", "A100", "equal power and cost"),
        _ratio_claim(main, 1.18, "power", "HA", "H100", "equal power"),
        _ratio_claim(main, 1.4, "cost", "AA", "H100", "equal cost"),
        _power_claim(main),
        _loss_claim(main, "heterogeneous", HETEROGENEOUS, -0.07),
        _loss_claim(main, "homogeneous", HOMOGENEOUS, 0.0),
        *_arithmetic(main),
    ]
    head = (
        "claim (conversation trace)",
        "paper",
        "published sizes",
        "our best sizes",
        "their time tables",
        "",
    )
    return _table(head, rows)


def _ratio_claim(
    main: Results, claimed: float, equal: str, design: str, base: str, what: str
) -> tuple[str, ...]:
    found = []
    theirs = f"their tables {CONV} under {CONV}" if equal == "power" else f"their tables {equal} {CONV}"
    for kind in (f"published {equal} {CONV}", f"best {equal} {CONV}", theirs):
        found.append(_ratio(main.get(kind, []), f"Splitwise-{design}", f"Baseline-{base}"))
    cells = [f"{x:.2f}x" if x is not None else "-" for x in found]
    text = f"rate of Splitwise-{design} / Baseline-{base}, {what}"
    return (text, f"{claimed:g}x", *cells, _verdict(claimed, found[:2], found[2], neutral=1.0))


def _power_claim(main: Results) -> tuple[str, ...]:
    changes: list[float | None] = []
    for kind in (f"least power {CONV}", f"their tables least power {CONV}"):
        there = _by_name(main.get(kind, []))
        hhcap, base = there.get("Splitwise-HHcap"), there.get("Baseline-H100")
        changes.append(hhcap.power / base.power - 1 if hhcap and base and hhcap.reached else None)
    ours, theirs = (None if x is None else 1 + x for x in changes)
    cells = ["-" if x is None else _percent(x) for x in changes]
    text = "power of Splitwise-HHcap at Baseline-H100's rate"
    return (text, "-25 %", "-", *cells, _verdict(0.75, [ours], theirs, neutral=1.0))


def _loss_claim(main: Results, kind: str, names: Sequence[str], claimed: float) -> tuple[str, ...]:
    pairs = (
        (f"published power {CONV}", f"sized for {CODE} under {CONV}"),
        (f"best power {CONV}", f"best for {CODE} under {CONV}"),
        (f"their tables {CONV} under {CONV}", f"their tables {CODE} under {CONV}"),
    )
    cells, worst = [], []
    for here, elsewhere in pairs:
        a, b = _by_name(main.get(here, [])), _by_name(main.get(elsewhere, []))
        changes = {n: b[n].rate_per_s / a[n].rate_per_s - 1 for n in names if n in b and a[n].rate_per_s}
        cells.append(
            ", ".join(f"{n.removeprefix('Splitwise-')} {_percent(x)}" for n, x in changes.items()) or "-"
        )
        worst.append(1 + min(changes.values()) if changes else None)
    verdict = _verdict(1 + claimed, worst[:2], worst[2], neutral=1.0)
    return (f"rate when sized for code, {kind}", f"{100 * claimed:.0f} %", *cells, verdict)


def _arithmetic(main: Results) -> Iterable[tuple[str, ...]]:
    """Claims about prices, which follow from the machines' numbers alone."""
    power, cost = _by_name(main[f"published power {CONV}"]), _by_name(main[f"published cost {CONV}"])
    ha, base = power["Splitwise-HA"], power["Baseline-H100"]
    saved = ha.cost_per_hour / base.cost_per_hour - 1
    text = "cost of Splitwise-HA to Baseline-H100, equal power"
    yield (text, "-10 %", _percent(saved), "", "", "near")
    aa, base = cost["Splitwise-AA"], cost["Baseline-H100"]
    text = "power of Splitwise-AA to Baseline-H100, equal cost"
    yield (text, "+25 %", _percent(aa.power / base.power - 1), "", "", "near")
    text = "machines of Splitwise-AA to Baseline-H100, equal cost"
    yield (text, "2x", f"{aa.machines / base.machines:.2f}x", "", "", "agrees")


def _verdict(claimed: float, ours: Sequence[float | None], theirs: float | None, neutral: float) -> str:
    there = [x for x in ours if x is not None]
    if not there:
        return "not measured"
    if any(abs(x / claimed - 1) <= CLOSE for x in there):
        every = all(abs(x / claimed - 1) <= CLOSE for x in there)
        return "agrees" if every else "agrees for one of the sizes"
    way = any((x - neutral) * (claimed - neutral) > 0 for x in there)
    text = "same direction, other size" if way else "does not agree"
    if theirs is not None and abs(theirs / claimed - 1) <= CLOSE:
        text += "; agrees with their time tables"
    return text


def _why(model: str, main: Results) -> str:
    rows = []
    one = profiles.load(model, "a100-80gb", 8).token_time(1, CONTEXT)
    for machine in ("a100-80gb", "h100-80gb", "h100-80gb-pcap"):
        found = profiles.load(model, machine, 8)
        times = [found.token_time(b, b * CONTEXT) / one for b in range(1, 513)]
        most = [max((b + 1 for b, t in enumerate(times) if t < limit), default=0) for limit in (1.25, 1.5)]
        rows.append((machine, *(f"{times[b - 1]:.2f}" for b in (1, 8, 16, 32, 64)), *map(str, most)))
    head = ("token machine", *(f"batch {b}" for b in (1, 8, 16, 32, 64)), "most under 1.25", "most under 1.5")
    return WHY.strip() + "\n\n" + _table(head, rows) + "\n\n" + CONSEQUENCES.strip()


WHY = """
What decides is how much slower decoding gets with a batch. In the open simulator's time table it does not
(the keys are prompt size x batch size, and it is read at the number of decoding tasks), so a token machine
takes any number of requests for nothing. The measurements themselves, which our profiles are fitted to, say
otherwise. TBT as a slowdown against one A100 alone (the SLOs: p50 below 1.25, p90 below 1.5), by batch size
at a context of 1,260 tokens each:
"""

CONSEQUENCES = """
CONSEQ
"""


# ---- tables -----------------------------------------------------------------------------------------------


def _sizes_note() -> str:
    return (
        "Machines as published, prompt/token. In brackets: the SLOs that fail one step higher. "
        '"Theirs": the rate with the open simulator\'s time tables.'
    )


def _best_note() -> str:
    return "Every split that 40 H100 machines' power pays for was searched, for each trace by itself."


def _rates(main: Results, kind: str, theirs: str = "") -> str:
    rows = []
    by_trace = {t: _by_name(main[f"{kind} {t}"]) for t in (CONV, CODE)}
    other = {t: _by_name(main.get(f"{theirs} {t} under {t}", [])) for t in (CONV, CODE)}
    with_theirs = bool(theirs) and any(other.values())
    for name in PAPER_COUNTS["power", CONV]:
        row = [name]
        for trace in (CONV, CODE):
            f = by_trace[trace][name]
            ended = f" ({' '.join(x.replace('_', ' ') for x in f.failed)})" if f.failed else ""
            row += ["/".join(map(str, f.counts)), f"{f.rate_per_s:.3g}{ended}"]
            for base in ("A100", "H100"):
                ratio = _ratio(by_trace[trace].values(), name, f"Baseline-{base}")
                row.append("-" if ratio is None else f"{ratio:.2f}")
            if with_theirs:
                row.append(f"{other[trace][name].rate_per_s:.3g}" if name in other[trace] else "-")
        rows.append(tuple(row))
    head = ["design"]
    for trace in ("conversation", "code"):
        head += [
            f"{trace}: machines",
            "requests/s",
            "to A100",
            "to H100",
            *(["theirs"] if with_theirs else []),
        ]
    return _table(head, rows)


def _robustness(main: Results) -> str:
    pairs = [
        (CONV, "published sizes", f"published power {CONV}", f"sized for {CODE} under {CONV}"),
        (CODE, "published sizes", f"published power {CODE}", f"sized for {CONV} under {CODE}"),
        (CONV, "best sizes", f"best power {CONV}", f"best for {CODE} under {CONV}"),
        (CODE, "best sizes", f"best power {CODE}", f"best for {CONV} under {CODE}"),
    ]
    rows = []
    for trace, sizes, here, elsewhere in pairs:
        if here not in main or elsewhere not in main:
            continue
        a, b = _by_name(main[here]), _by_name(main[elsewhere])
        names = (*HOMOGENEOUS, *HETEROGENEOUS)
        cells = [f"{b[n].rate_per_s:.3g} of {a[n].rate_per_s:.3g}" for n in names]
        rows.append((f"{trace.removeprefix('azure-')}, {sizes}", *cells))
    head = ("under this trace", *(*HOMOGENEOUS, *HETEROGENEOUS))
    note = "Requests/s of a cluster sized for the other trace, of those of the one sized for this trace."
    return f"{note}\n\n{_table(head, rows)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _ratio(found: Iterable[Found], name: str, base: str) -> float | None:
    there = _by_name(found)
    if name not in there or base not in there or not there[base].rate_per_s:
        return None
    return there[name].rate_per_s / there[base].rate_per_s


def _by_name(found: Iterable[Found]) -> dict[str, Found]:
    return {f.design.name: f for f in found}


def _percent(change: float) -> str:
    return f"{100 * change:+.0f} %"
