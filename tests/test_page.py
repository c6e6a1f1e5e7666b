"""The report page: one file, true sentences, usable on a phone, in the dark, by a screen reader."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitgym.config import ClusterConfig, parse_machines
from splitgym.errors import ConfigError
from splitgym.evaluation import evaluate, write_page
from splitgym.evaluation.activity import Activity
from splitgym.evaluation.page import page, sections
from splitgym.evaluation.run import Results

CLUSTER = ClusterConfig(model="llama2-70b", machines=parse_machines("h100-80gb:2P1T"))
LOADS = [f"poisson:azure-conv-synth@{rate}" for rate in (2, 12)]
WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


@pytest.fixture(scope="module")
def results() -> Results:
    from splitgym.evaluation import parse

    loads = [parse(text, duration_s=12.0, warmup_s=2.0) for text in LOADS]
    policies = ["splitwise", "index", "round-robin"]
    return evaluate(policies, CLUSTER, loads, range(3), engine="simpy", record=True)


class Tags(HTMLParser):
    """Collects what a page refers to, and checks that tags nest."""

    void = frozenset({"meta", "input", "path", "rect", "circle", "polyline", "polygon"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_one_file_and_nothing_from_outside(results: Results) -> None:
    text = page(results, made_at=WHEN)
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not [a for a in tags.attributes if a[0] in ("src", "href", "srcset", "data")]
    outside = re.findall(r"https?://[^\s\"'<]+|url\(|@import", text)
    assert set(outside) <= {"http://www.w3.org/2000/svg"}, "a name space is no asset"
    assert "2026-01-02 03:04 UTC" in text
    assert text == page(results, made_at=WHEN), "the same results give the same page"


def test_names_cannot_break_the_page(results: Results) -> None:
    bad = "</script><b onclick='x'>\"&"
    names = {name: name if name != "index" else bad for name in results.policies}
    runs = tuple(replace(r, policy=names[r.policy]) for r in results.runs)
    text = page(replace(results, policies=tuple(names.values()), runs=runs))
    assert "<b onclick" not in text and text.count("</script>") == 2
    Tags().feed(text)


def test_the_verdict_says_what_the_windows_say(results: Results) -> None:
    def with_goodput(policy: str, values: list[float]) -> Results:
        runs = []
        for first in (run for run in results.runs if run.seed == 0):
            for seed, own in enumerate(values):
                value = own if first.policy == policy else 0.5 + 0.01 * seed
                runs.append(replace(first, seed=seed, metrics=replace(first.metrics, goodput=value)))
        return replace(results, seeds=tuple(range(len(values))), runs=tuple(runs))

    clear = sections.verdict(with_goodput("index", [0.8, 0.81, 0.82, 0.8, 0.81, 0.82]), "splitwise")
    assert "<b>index</b> has the best goodput" in clear and "the interval excludes zero" in clear
    noise = sections.verdict(with_goodput("index", [0.2, 0.95, 0.7, 0.2, 0.95, 0.7]), "splitwise")
    assert "<b>index</b> has the best goodput" in noise and "cannot tell from zero" in noise
    worse = sections.verdict(with_goodput("splitwise", [0.9, 0.91, 0.92, 0.9, 0.91, 0.92]), "splitwise")
    assert "the baseline <b>splitwise</b> is best" in worse and "beyond chance" in worse
    few = with_goodput("index", [0.8, 0.81])
    assert "in all 2 windows, but fewer than 6 give no interval" in sections.verdict(few, "splitwise")
    one = with_goodput("index", [0.8])
    assert "one window gives no interval" in sections.verdict(one, "splitwise")
    for found, says in ((few, "lowest and highest of 2 windows"), (one, "means over 1 window of 12 s<")):
        for section in (sections.table(found, found.workloads[0], "splitwise"), page(found)):
            assert says in section and "95 %" not in section.replace("no 95 %", "")


def test_slos_pass_and_fail_as_in_the_metrics(results: Results) -> None:
    for workload in results.workloads:
        text = sections.slos(results, workload)
        failed = 0
        for policy in results.policies:
            for kind, limits in (("ttft", (2, 3, 6)), ("tbt", (1.25, 1.5, 5)), ("e2e", (1.25, 1.5, 5))):
                for p, limit in zip((50, 90, 99), limits):
                    failed += results.values(f"{kind}_slowdown_p{p}", policy, workload).mean() >= limit
        assert text.count('class="fail"') == failed
    assert failed > 0, "at the higher rate something fails, so the test can"


def test_energy_and_cost_are_those_of_the_metrics(results: Results) -> None:
    workload = results.workloads[1]
    text = sections.energy_and_cost(results, workload)
    energy = results.values("energy_per_request_j", "index", workload).mean()
    good = results.values("goodput", "index", workload).mean()
    row = text[text.index(">index<") :]
    shown = re.findall(r"<td>([^<]*)</td>", row)[:4]
    assert shown[0].split(" [")[0] == f"{energy:,.0f}" and shown[1] == f"{energy / good:,.0f}"
    none = tuple(replace(r, metrics=replace(r.metrics, goodput=0.0)) for r in results.runs)
    assert "–" in sections.energy_and_cost(replace(results, runs=none), workload)


def test_activity_adds_up(results: Results) -> None:
    run = results.select("splitwise", results.workloads[1])[0]
    activity = run.activity
    assert activity is not None
    edges = np.linspace(0, int(activity.finish_ns.max()), 41).astype(np.int64)
    widths = np.diff(edges)
    waited = (activity.prompt_start_ns - activity.arrival_ns).sum()
    assert (activity.waiting(edges) * widths).sum() == pytest.approx(waited, rel=1e-9)
    decoded = (activity.finish_ns - activity.decode_start_ns)[activity.decode_start_ns >= 0].sum()
    assert (activity.decoding(edges) * widths).sum() == pytest.approx(decoded, rel=1e-9)
    never = Activity(("a",), *(np.array([-1]) for _ in range(9)))
    assert activity.decoding(edges).min() >= 0 and never.waiting(edges).sum() == 0
    assert all(r.activity is None for r in results.runs if r.seed != results.seeds[0])


def test_without_recorded_activity_there_is_a_page_too(results: Results, tmp_path: Path) -> None:
    bare = replace(results, runs=tuple(replace(r, activity=None) for r in results.runs))
    text = page(bare)
    assert 'id="gantt"' not in text and "<script" not in text
    with pytest.raises(ConfigError, match="cannot be written"):
        write_page(bare, tmp_path / "no" / "such" / "page.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed (Debian: apt install chromium)")
    sync = pytest.importorskip("playwright.sync_api")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=options)
        yield started
        started.close()


@pytest.mark.parametrize(
    ("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light"), (360, "dark")]
)
def test_in_a_browser(results: Results, browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    path = write_page(results, tmp_path / "report.html")
    view = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.goto(path.as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
    right = "Math.max(...[...document.querySelectorAll('p.note')].map(p => p.getBoundingClientRect().right))"
    assert view.evaluate(right) <= width, "what stands above a table is not cut"
    moved = "(b => { b.scrollLeft = 200; return b.querySelector('tbody th').getBoundingClientRect().left; })"
    assert view.evaluate(f"{moved}(document.querySelector('.scroll'))") >= 0, "the policy's name stays"
    assert view.locator("#gantt rect.bar-prompt").count() > 10
    before = view.locator("#gantt-said").inner_text()
    view.locator("#gantt-run").select_option("1")
    assert view.locator("#gantt-said").inner_text() != before, "another run is another picture"
    assert said == []
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(view)
    assert found.violations_count == 0, found.generate_report()
    view.close()
