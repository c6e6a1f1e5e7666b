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
"""A figure that differs from the paper's by less, relative, agrees."""
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
        if f"published power {CODE}" in more:
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
    head = ("claim (conversation trace)", "paper", "published sizes", "our best sizes", "their time tables")
    legend = (
        "*yes*: less than 10 % from the paper's figure; *in part*: in its direction, of another size; *no*."
    )
    return f"{legend}\n\n{_table(head, rows)}"


def _ratio_claim(
    main: Results, claimed: float, equal: str, design: str, base: str, what: str
) -> tuple[str, ...]:
    theirs = f"their tables {CONV} under {CONV}" if equal == "power" else f"their tables {equal} {CONV}"
    cells = []
    for kind in (f"published {equal} {CONV}", f"best {equal} {CONV}", theirs):
        x = _ratio(main.get(kind, []), f"Splitwise-{design}", f"Baseline-{base}")
        cells.append("-" if x is None else f"{x:.2f}x, {_judged(claimed, x)}")
    return (f"rate of Splitwise-{design} to Baseline-{base}, {what}", f"{claimed:g}x", *cells)


def _power_claim(main: Results) -> tuple[str, ...]:
    cells = ["-"]
    for kind in (f"least power {CONV}", f"their tables least power {CONV}"):
        there = _by_name(main.get(kind, []))
        hhcap, base = there.get("Splitwise-HHcap"), there.get("Baseline-H100")
        if hhcap and base and hhcap.reached:
            share = hhcap.power / base.power
            cells.append(f"{_percent(share - 1)}, {_judged(0.75, share)}")
        else:
            cells.append("-")
    return ("power of Splitwise-HHcap to Baseline-H100, equal rate", "-25 %", *cells)


def _loss_claim(main: Results, kind: str, names: Sequence[str], claimed: float) -> tuple[str, ...]:
    pairs = (
        (f"published power {CONV}", f"sized for {CODE} under {CONV}"),
        (f"best power {CONV}", f"best for {CODE} under {CONV}"),
        (f"their tables {CONV} under {CONV}", f"their tables {CODE} under {CONV}"),
    )
    cells = []
    for here, elsewhere in pairs:
        a, b = _by_name(main.get(here, [])), _by_name(main.get(elsewhere, []))
        kept = {n: b[n].rate_per_s / a[n].rate_per_s for n in names if n in b and a[n].rate_per_s}
        shown = [
            f"{n.removeprefix('Splitwise-')} {_percent(x - 1)} ({_judged(1 + claimed, x)})"
            for n, x in kept.items()
        ]
        cells.append(", ".join(shown) or "-")
    return (f"rate of a {kind} design sized for code", f"{100 * claimed:.0f} %", *cells)


def _arithmetic(main: Results) -> Iterable[tuple[str, ...]]:
    """Claims about prices, which follow from the machines' numbers alone."""
    power, cost = _by_name(main[f"published power {CONV}"]), _by_name(main[f"published cost {CONV}"])
    base = power["Baseline-H100"]
    share = power["Splitwise-HA"].cost_per_hour / base.cost_per_hour
    text = "cost of Splitwise-HA to Baseline-H100, equal power"
    yield (text, "-10 %", f"{_percent(share - 1)}, {_judged(0.9, share)}", "", "")
    aa = cost["Splitwise-AA"]
    share = aa.power / base.power
    text = "power of Splitwise-AA to Baseline-H100, equal cost"
    yield (text, "+25 %", f"{_percent(share - 1)}, {_judged(1.25, share)}", "", "")
    share = aa.machines / base.machines
    text = "machines of Splitwise-AA to Baseline-H100, equal cost"
    yield (text, "2x", f"{share:.2f}x, {_judged(2, share)}", "", "")


def _judged(claimed: float, found: float) -> str:
    """How near a share is to the claimed one; 1 is no difference."""
    if abs(found / claimed - 1) < CLOSE - 1e-9:
        return "yes"
    return "in part" if (found - 1) * (claimed - 1) > 0 else "no"


def _why(model: str, main: Results) -> str:
    rows = []
    most_held: dict[str, int] = {}
    one = profiles.load(model, "a100-80gb", 8).token_time(1, CONTEXT)
    for machine in ("a100-80gb", "h100-80gb", "h100-80gb-pcap"):
        found = profiles.load(model, machine, 8)
        times = [found.token_time(b, b * CONTEXT) / one for b in range(1, 513)]
        most = [max((b + 1 for b, t in enumerate(times) if t < limit), default=0) for limit in (1.25, 1.5)]
        most_held[machine] = most[0]
        rows.append((machine, *(f"{times[b - 1]:.2f}" for b in (1, 8, 16, 32, 64)), *map(str, most)))
    head = ("token machine", *(f"batch {b}" for b in (1, 8, 16, 32, 64)), "most under 1.25", "most under 1.5")
    h100_alone = profiles.load(model, "h100-80gb", 8).token_time(1, CONTEXT) / one
    return "\n\n".join([WHY.strip(), _table(head, rows), _consequences(main, most_held, h100_alone)])


WHY = """
What decides is how much slower decoding gets with a batch. In the open simulator's time table it does not
(the keys are prompt size x batch size, and it is read at the number of decoding tasks), so a token machine
takes any number of requests for nothing. The measurements themselves, which our profiles are fitted to, say
otherwise. TBT as a slowdown against one A100 alone (the SLOs: p50 below 1.25, p90 below 1.5), by batch size
at a context of 1,260 tokens each:
"""

CONSEQUENCES = """
The last column of the claims repeats the published sizes with that one thing exchanged; the rules, the
scheduler and the workload are the same. Most claims come out with it, so what differs is mostly the
price of decoding, not the rules. Splitwise-AA at equal cost and Splitwise-HA sized for code do not come out
with it either; for these two we have no explanation.

- **Sizes.** Under the SLOs an A100 decodes {a100} conversation requests at once, an H100 {h100}. The
  published splits, made where decoding in batches costs nothing, have too few token machines for that:
  nearly all end at TBT p50. The best split of the same power moves machines from the prompt to the token
  pool: Splitwise-AA from 45/25 to {aa_counts}, -HH from 25/15 to {hh_counts}, -HHcap from 25/21 to
  {hhcap_counts}.
- **What pays.** Splitting does, on machines that decode well: at equal power the best Splitwise-HH holds
  {hh:.2f}x and -HHcap {hhcap:.2f}x of Baseline-H100 (the latter for {hhcap_cost} the cost: a capped H100
  costs as much as a full one), and Splitwise-AA {aa:.2f}x of Baseline-A100. A100 machines as the token
  pool of H100 machines do not pay: Splitwise-HA holds {ha:.2f}x. TBT is measured against an A100 alone,
  so the median SLO lets an A100 slow down by 25 % with its batch, and an H100 by {h100_slack} %.
- **Code.** Half its outputs have 13 tokens or fewer, so little is decoded at once, and the two tables
  differ little (but for Splitwise-HA's few A100 token machines). A baseline loses TBT there because
  prompts interrupt its decoding; every best split with H100 prompt machines holds about twice
  Baseline-H100.
- **Robustness.** A cluster sized for code has few token machines. Where decoding in a batch is free that
  costs little (save for Splitwise-HA); for us it costs most of the rate: the mixed pool lends prompt
  machines, but only once memory is full, and TBT is lost long before. The other way round a cluster sized
  for conversation has few prompt machines, and under code loses TTFT.
- **Not as in the paper.** One window of 60 s is measured, the scheduler does not know output lengths, and
  only ratios that the paper prints are compared, not its absolute rates.
"""


def _consequences(main: Results, most_held: dict[str, int], h100_alone: float) -> str:
    sized = "best" if f"best power {CONV}" in main else "published"
    found = main[f"{sized} power {CONV}"]
    there = _by_name(found)
    counts = {
        f"{n.lower()}_counts": "/".join(map(str, there[f"Splitwise-{n}"].counts))
        for n in ("AA", "HH", "HHcap")
    }
    pairs = (("AA", "A100"), ("HH", "H100"), ("HA", "H100"), ("HHcap", "H100"))
    ratios = {n.lower(): _ratio(found, f"Splitwise-{n}", f"Baseline-{base}") for n, base in pairs}
    cost = there["Splitwise-HHcap"].cost_per_hour / there["Baseline-H100"].cost_per_hour
    return CONSEQUENCES.strip().format(
        **counts,
        **ratios,
        a100=most_held["a100-80gb"],
        h100=most_held["h100-80gb"],
        hhcap_cost=f"{cost:.2f}x",
        h100_slack=round(100 * (1.25 / h100_alone - 1)),
    )


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
