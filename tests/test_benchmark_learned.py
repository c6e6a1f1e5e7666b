"""The benchmark of learned routing: statistics, rows that are kept, claims, the page."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.learned import page, validation_sizing, weights
from benchmarks.learned.cases import CASES, Case
from benchmarks.learned.entrants import MP_ORACLE, RESIDUAL, TUNED, Field, paper_at_its_best
from benchmarks.learned.measure import Bench, highest_rate, measure
from benchmarks.learned.page import Section, Table
from benchmarks.learned.sections import max_rate, routing, sections, sizing, sizing_windows, tail
from benchmarks.learned.statistics import best_of, estimate, improvement, iqm, mean, pick
from splitgym import schedulers
from splitgym.config import parse_machines
from splitgym.evaluation import Contender, evaluate, parse
from splitgym.evaluation.sweep import Kept
from splitgym.saturation import hardware
from splitgym.schedulers.residual import index_weights

TINY = Case(
    "tiny",
    "2 H100",
    "h100-80gb:2M",
    "h100-80gb:1P1T",
    ("h100-80gb:1P1T",),
    loads=(0.5, 0.9, 1.2),
    windows=2,
    workloads=("poisson:azure-code-synth", "stamps:azure-conv-synth"),
    warmup_s=1.0,
    duration_s=6.0,
)


def contender(name: str, routing_name: str, **options: object) -> Contender:
    return Contender(name, schedulers.routing(routing_name, **options), schedulers.sizing("static"))


def entrants(**index_options: object) -> Field:
    """The paper's scheduler, one index, and two policies that stand for two training seeds."""
    mp = paper_at_its_best(TINY)
    ours = [contender("seed1", "index", **index_options), contender("seed2", "index", preset="tuned")]
    groups = {
        MP_ORACLE: tuple(c.name for c in mp),
        TUNED: ("jsq",),
        RESIDUAL: tuple(c.name for c in ours),
    }
    return Field((*mp, contender("jsq", "jsq-tokens"), *ours), groups)


def counting(calls: list[int]) -> Callable[..., list[object]]:
    def counted(function, tasks):
        calls.append(len(tasks))
        return [function(task) for task in tasks]

    return counted


def test_statistics_have_the_known_values() -> None:
    values = np.array([0.0, 1, 2, 3, 4, 5, 6, 100]).reshape(2, 1, 2, 2)
    assert iqm(values) == pytest.approx(3.5)  # of 2, 3, 4, 5
    assert iqm(np.append(values.ravel(), np.nan).reshape(3, 1, 3, 1)) == pytest.approx(3.5)
    drawn = np.random.default_rng(0).normal(size=(3, 4, 2, 5))
    assert iqm(drawn) == pytest.approx(stats.trim_mean(drawn.ravel(), 0.25))
    assert mean(np.array([[1.0, np.nan, 3.0]])) == 2.0
    # One window, five seeds against one run: the Mann-Whitney statistic over the number of pairs.
    ours, theirs = np.array([0.1, 0.4, 0.4, 0.7, 0.9]), np.array([0.4])
    expected = stats.mannwhitneyu(ours, theirs).statistic / len(ours)
    assert improvement((ours - theirs).reshape(5, 1, 1, 1)) == pytest.approx(expected) == pytest.approx(0.6)


def test_intervals_are_those_of_the_normal_law() -> None:
    drawn = np.random.default_rng(1).normal(0.3, 0.2, size=(1, 1, 1, 900))
    found = estimate(drawn, resamples=3000)
    half = 1.96 * drawn.std() / 30
    assert found.value == pytest.approx(drawn.mean())
    assert found.high - found.value == pytest.approx(half, rel=0.08)
    assert found.value - found.low == pytest.approx(half, rel=0.08)


def test_the_bootstrap_keeps_strata_apart_and_loads_together() -> None:
    rng = np.random.default_rng(2)
    by_workload = np.broadcast_to(rng.normal(size=(1, 6, 1, 1)), (1, 6, 3, 8))
    found = estimate(by_workload, resamples=200)
    assert found.high - found.low == pytest.approx(0, abs=1e-12)  # workloads are not drawn
    by_seed = np.broadcast_to(rng.normal(size=(5, 1, 1, 1)), (5, 6, 3, 8))
    found = estimate(by_seed, resamples=500)
    assert found.high - found.low > 0.5  # training seeds are
    window = rng.normal(size=(1, 1, 1, 50))
    alone, at_four_loads = (
        estimate(np.broadcast_to(window, (1, 1, loads, 50)), resamples=500) for loads in (1, 4)
    )
    assert (at_four_loads.low, at_four_loads.high) == pytest.approx((alone.low, alone.high))


def test_a_baseline_at_its_best_is_chosen_by_workload_and_load() -> None:
    goodput = np.array([[[[0.3, 0.1], [0.9, 0.7]]], [[[0.1, 0.2], [0.85, np.nan]]]])  # (2, 1, 2, 2)
    best, chosen = best_of(goodput)
    assert chosen.tolist() == [[0, 1]]  # a window that does not exist is no bad one
    np.testing.assert_array_equal(best, [[[[0.3, 0.1], [0.85, np.nan]]]])
    other = np.arange(8.0).reshape(2, 1, 2, 2)
    assert pick(other, chosen).tolist() == [[[[0, 1], [6, 7]]]]


def test_claims_are_what_evaluate_measures_and_finished_runs_are_kept(tmp_path: Path) -> None:
    file, calls = tmp_path / "kept.jsonl", []
    field = entrants()
    bench = Bench(Kept(file), counting(calls), "make it")
    made = routing.routing(TINY, bench, field)
    cells = len(TINY.workloads) * len(TINY.loads) * TINY.windows
    assert calls == [len(field.entrants) * cells]
    above = [
        parse(f"{workload}@{load:g}sat", warmup_s=1.0, duration_s=6.0)
        for workload in TINY.workloads
        for load in (0.9, 1.2)
    ]
    results = evaluate({c.name: c for c in field.entrants}, TINY.config(), above, range(2))
    ours = np.mean([results.values("goodput", name) for name in ("seed1", "seed2")])
    assert made.claims["routing.goodput_over_tuned.tiny"] == pytest.approx(
        ours - results.values("goodput", "jsq").mean()
    )
    mp = [
        max(results.values("goodput", name, w).mean() for name in field.groups[MP_ORACLE])
        for w in results.workloads
    ]
    assert made.claims["routing.goodput_over_mp_oracle.tiny"] == pytest.approx(ours - np.mean(mp))
    late = [w for w in results.workloads if w.load == 1.2]
    p99 = {
        name: np.mean([results.values("ttft_slowdown_p99", name, w).mean() for w in late])
        for name in ("seed1", "seed2", "jsq")
    }
    assert made.claims["routing.ttft_p99_over_index.tiny"] == pytest.approx(
        (p99["seed1"] + p99["seed2"]) / 2 / p99["jsq"]
    )
    assert {t.rows[0][0] for t in made.tables[:2]} == {MP_ORACLE}
    assert made.command == "make it"

    again = routing.routing(TINY, replace(bench, kept=Kept(file)), field)
    assert again == made
    assert calls[1:] == [0]
    changed = routing.routing(TINY, replace(bench, kept=Kept(file)), entrants(w1=5.0))
    assert calls[2:] == [cells]  # of the policy that changed alone
    assert changed.claims != made.claims


def test_windows_that_a_part_is_too_short_for_are_left_out() -> None:
    short = replace(TINY, loads=(0.9, 400.0), windows=1)
    found = measure(short, [contender("jsq", "jsq-tokens")], Bench())
    goodput = found.of(["jsq"], "goodput")
    assert goodput.shape == (1, 2, 2, 1)
    assert np.isnan(goodput[0, :, :, 0]).tolist() == [[False, False], [False, True]]
    assert found.of(["jsq"], "goodput", (0.9,)).tolist() == goodput[:, :, :1].tolist()


def test_highest_rates_are_kept(tmp_path: Path) -> None:
    file, calls = tmp_path / "kept.jsonl", []
    bench = Bench(Kept(file), counting(calls))
    entrant = contender("jsq", "jsq-tokens")
    rate = highest_rate(TINY, entrant, TINY.workloads[0], bench, 1)
    assert rate > 0.1 and calls
    del calls[:]
    again = replace(bench, kept=Kept(file))
    assert highest_rate(TINY, entrant, TINY.workloads[0], again, 1) == rate
    assert not calls
    highest_rate(TINY, contender("jsq", "jsq-requests"), TINY.workloads[0], again, 1)
    assert calls


def test_highest_rates_are_over_the_best_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    field = entrants()
    monkeypatch.setattr(max_rate, "field_of", lambda case: field)
    made = max_rate.max_rate(TINY, Bench(), TINY.workloads[:1])
    rates = {
        c.name: highest_rate(TINY, c, TINY.workloads[0], Bench(), max_rate.WINDOWS) for c in field.entrants
    }
    best = max(rates[name] for name in field.groups[MP_ORACLE])
    ratios = [rates["seed1"] / best, rates["seed2"] / best]
    assert made.claims["routing.max_rate_over_mp.tiny"] == pytest.approx(np.mean(ratios))
    assert made.claims["routing.max_rate_over_mp.tiny.worst_seed"] == pytest.approx(min(ratios))
    assert (MP_ORACLE, f"{best:.1f}", "1.00") in made.tables[0].rows


def test_the_price_of_the_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("tail-0.1", "tail-0", "cem-tiny")):
        found = index_weights("tuned" if number else "default").tolist()
        (tmp_path / f"{name}.json").write_text(json.dumps({"weights": found}))
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    monkeypatch.setattr(tail, "CASES", {"tiny": TINY})
    made = tail.tail(("tiny",), Bench(out=tmp_path))
    assert [row[0] for row in made.tables[0].rows] == [
        "weight 0",
        "weight 0.1",
        "index tuned for this cluster",
    ]
    assert made.tables[0].rows[0][1:] == made.tables[0].rows[2][1:] != made.tables[0].rows[1][1:]
    assert (tmp_path / "images" / tail.FIGURE).stat().st_size > 5_000


def section(title: str, **claims: float) -> Section:
    return Section(title, f"run {title}", ("Text.",), (Table("T", ("a", "b"), (("1", "2"),)),), claims)


def test_a_section_replaces_itself_and_leaves_the_others(tmp_path: Path) -> None:
    order = ("first", "second")
    page.write({"second": section("Second", two=0.25)}, order, tmp_path)
    page.write({"first": section("First", one=0.123456)}, order, tmp_path)
    page.write({"second": section("Second", two=0.5)}, order, tmp_path)
    data = json.loads((tmp_path / "benchmark.json").read_text())
    assert data["claims"] == {"one": 0.1235, "two": 0.5}
    assert data["commands"] == {"one": "run First", "two": "run Second"}
    text = (tmp_path / "benchmark.md").read_text()
    assert text.index("## First") < text.index("## Second")
    assert "| a | b |\n|---|---|\n| 1 | 2 |" in text
    with pytest.raises(ValueError, match=r"claim one .* not measured"):
        page.write({"first": section("First", one=float("nan"))}, order, tmp_path)


def test_the_page_is_written_from_its_data() -> None:
    path = page.DOCS / "benchmark.json"
    if not path.is_file():
        pytest.skip("no benchmark was run yet")
    data = json.loads(path.read_text())
    assert (page.DOCS / "benchmark.md").read_text() == page.markdown(data["sections"], data["claims"])
    claims = {n: round(v, 4) for s in data["sections"].values() for n, v in s["claims"].items()}
    assert data["claims"] == claims
    assert data["sections"].keys() <= sections().keys()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases_name_clusters_of_the_same_machines(case: Case) -> None:
    machines = hardware(case.config())
    assert all(hardware(case.config(split)) == machines for split in (case.default_split, *case.splits))
    assert len(set(case.splits)) == len(case.splits)
    assert case.claimed_loads[0] == 0.9


def test_kept_weights_can_be_read() -> None:
    prefixes = ("es-", "cem-", "tail-")
    names = [name for prefix in prefixes for name in weights.names(prefix)]
    assert len(names) > 10
    assert all(weights.read(name) is not None for name in names)
    assert weights.read("no such") is None


def test_pool_sizing_is_compared_by_delay_with_rules_splits_and_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = "shifting:azure-conv-synth~azure-code-synth"
    monkeypatch.setattr(sizing, "SHIFTING", load)
    monkeypatch.setattr(sizing, "DELAYS_S", (0.0, 5.0))
    case = replace(TINY, name="8h", loads=(0.9,), workloads=(load, "poisson:azure-code-synth"))
    rows = sizing.rows_of(CASES["8h"], 5.0)
    delays = {e.cluster.switch_delay_s for found in rows.values() for e in found if e.cluster is not None}
    assert delays == {0.0, 5.0} and all(
        e.cluster is not None and e.cluster.confine
        for row, found in rows.items()
        for e in found
        if row != sizing.FREE
    )
    made = sizing.sizing(case, Bench(Kept(tmp_path / "kept.jsonl"), command="x", out=tmp_path))
    table = {row[0]: float(row[-1]) for row in made.tables[0].rows}
    assert {sizing.STATIC, sizing.REACTIVE, sizing.ES, sizing.PPO, sizing.CLAIRVOYANT} <= table.keys()
    late = {row[0]: float(row[-1]) for row in made.tables[1].rows}
    assert {sizing.STATIC_BESIDE, sizing.RULE_BESIDE, sizing.INDEX_CONFINED, sizing.JOINT} <= late.keys()
    assert made.claims["sizing.goodput_over_static.delay_5s"] == pytest.approx(
        late[sizing.ES] - late[sizing.STATIC], abs=1e-3
    )
    assert all("delay_5s" in name and "clairvoyant" not in name for name in made.claims)


def test_pool_sizing_claims_rest_on_windows_that_all_rows_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing_windows, "SHIFTING", "shifting:azure-conv-synth~azure-code-synth")
    case = replace(TINY, name="8h", loads=(0.9,))
    bench = Bench(Kept(tmp_path / "kept.jsonl"), command="x", out=tmp_path)
    made = sizing_windows.sizing_windows(case, bench, windows=3)
    table = {row[0]: float(row[-1]) for row in made.tables[0].rows}
    assert table.keys() >= {sizing.STATIC, sizing.REACTIVE, sizing.ES, sizing_windows.ES_ON, sizing.PPO}
    for name, row in (("sizing", sizing_windows.ES_ON), ("ppo_sizing", sizing.PPO)):
        for other, theirs in (("static", sizing.STATIC), ("reactive", sizing.REACTIVE)):
            claim = made.claims[f"{name}.goodput_over_{other}"]
            assert claim == pytest.approx(table[row] - table[theirs], abs=1e-3)


def test_validation_of_sizing_takes_networks_and_routers_beside_sizers() -> None:
    """Each window gets a copy of its own: a policy remembers within a run."""
    networks = validation_sizing.pairs_of("sizing-ppo-seed0", 2)
    assert (
        networks[0][1].resizes
        and networks[0][0].name == "index-tuned"
        and networks[0][1] is not networks[1][1]
    )
    (router, sizer), other = validation_sizing.pairs_of("pretrained:joint+sizing-reactive-8h-0s", 2)
    assert router == validation_sizing.pair_of("pretrained:joint")[0] and router is not other[0]
    assert sizer == validation_sizing.pair_of("sizing-reactive-8h-0s")[1]
    router, sizer = validation_sizing.pairs_of("+reactive", 1, router="splitwise")[0]
    assert (router.name, sizer.name) == ("splitwise", "reactive")


def test_validation_of_sizing_takes_the_best_split_of_each_load_in_hindsight() -> None:
    loads = (0.75, 1.2)
    windows = validation_sizing.windows_of(
        loads, 2, workloads=["poisson:azure-code-synth"], cluster=CASES["4h4a"], delay_s=5.0
    )
    assert [window.load for window in windows] == [0.75, 0.75, 1.2, 1.2]
    assert all(w.cluster.config.switch_delay_s == 5.0 for w in windows)
    split = CASES["4h4a"].splits[1]
    moved = validation_sizing.at_pools(windows, split)
    assert moved[0].cluster.config.machines == parse_machines(split)
    assert moved[0].trace is windows[0].trace and moved[0].cluster.config.switch_delay_s == 5.0

    goodput = np.array([[0.9, 0.7, 0.1, 0.3], [0.6, 0.8, 0.4, 0.2]])  # (splits, windows)
    tried = np.stack([goodput, 1 - goodput, goodput], axis=2)
    found = validation_sizing.best_in_hindsight(tried, windows)
    assert found[:, 0].tolist() == [0.9, 0.7, 0.4, 0.2]  # .8 of a load against .7, .3 against .2
