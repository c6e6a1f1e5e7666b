"""Provisioning: the search finds what trying everything finds; bad input is one line; tiny real runs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitgym import cli
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, TransferConfig, parse_machines
from splitgym.errors import ConfigError, ProfileError
from splitgym.evaluation import parse
from splitgym.metrics import KINDS
from splitgym.provisioning import (
    PAPER_COUNTS,
    PAPER_DESIGNS,
    Budget,
    Problem,
    Request,
    Runs,
    failures,
    frontiers,
    least,
    most_rate,
    parse_budget,
    parse_design,
    parse_designs,
    processes,
    slowdowns,
)
from splitgym.provisioning.search import (
    NONE,
    Best,
    Counts,
    Question,
    Search,
    best_split,
    cheapest,
    drive,
    frontier,
    highest,
    remember,
    together,
    translate,
)
from splitgym.slo import NINE_SLOS

TOP = 60
SMALL = parse("poisson:azure-conv-synth@1", duration_s=6, warmup_s=1, part="all")


class Surface:
    """A made-up highest step for every cluster: each phase is a bottleneck, machines help across a little.

    `bumps` lift every cluster that is at least as large as theirs: rough, of no formula, and still monotone.
    """

    def __init__(self, prompt: float, token: float, across: float, bumps: dict[Counts, int]):
        self.prompt, self.token, self.across, self.bumps = prompt, token, across, bumps
        self.asked: list[Question] = []

    def step(self, counts: Counts) -> int:
        p, t = counts[0], counts[-1]
        smooth = min(self.prompt * p + self.across * t, self.token * t + self.across * p) - 1
        rough = [s for at, s in self.bumps.items() if all(a <= c for a, c in zip(at, counts))]
        return min(TOP, max(NONE, int(smooth), *rough))

    def __call__(self, questions: Sequence[Question]) -> list[bool]:
        self.asked += questions
        return [self.step(counts) >= step for counts, step in questions]


numbers = st.floats(0.05, 3)
surfaces = st.builds(
    Surface,
    numbers,
    numbers,
    st.floats(0, 0.5),
    st.dictionaries(st.tuples(st.integers(1, 25), st.integers(1, 25)), st.integers(0, TOP), max_size=4),
)


@given(surface=surfaces, machines=st.integers(2, 40), guess=st.integers(-5, 2 * TOP))
def test_best_split_is_the_best_of_all(surface: Surface, machines: int, guess: int) -> None:
    line = [(p, machines - p) for p in range(1, machines)]
    best = drive(remember(best_split(line, TOP, guess)), surface)
    assert best.step == max(surface.step(counts) for counts in line)
    assert best.counts in line and surface.step(best.counts) == best.step


@given(surface=surfaces, budget=st.floats(12, 80), prices=st.tuples(st.floats(1, 6), st.floats(1, 6)))
def test_best_split_of_a_budget(surface: Surface, budget: float, prices: tuple[float, float]) -> None:
    line = Budget("cost", budget).buys(prices)
    best = drive(remember(best_split(line, TOP, TOP // 2)), surface)
    everything = [
        (p, t)
        for p in range(1, 90)
        for t in range(1, 90)
        if p * prices[0] + t * prices[1] <= budget * (1 + 1e-9)
    ]
    assert best.step == max(surface.step(counts) for counts in everything)


@given(surface=surfaces, step=st.integers(0, TOP), prices=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_cheapest_is_the_cheapest_of_all(surface: Surface, step: int, prices: tuple[int, int]) -> None:
    most = 20
    found = drive(remember(cheapest(prices, most, step)), surface)
    prices_held = [
        p * prices[0] + t * prices[1]
        for p in range(1, most + 1)
        for t in range(1, most + 1)
        if surface.step((p, t)) >= step
    ]
    if not prices_held:
        assert found is None
    else:
        assert found is not None and surface.step(found.counts) >= step
        assert found.counts[0] * prices[0] + found.counts[1] * prices[1] == min(prices_held)


@given(surface=surfaces, step=st.integers(0, TOP), columns=st.sets(st.integers(1, 30), max_size=12))
def test_frontier_is_the_fewest_of_each_column(surface: Surface, step: int, columns: set[int]) -> None:
    first, most = sorted(columns), 25
    found = drive(remember(frontier(first, most, step)), surface)
    assert found == [
        next((t for t in range(1, most + 1) if surface.step((p, t)) >= step), None) for p in first
    ]


@given(edge=st.integers(NONE, TOP), guess=st.integers(-5, 2 * TOP))
def test_highest_finds_the_edge(edge: int, guess: int) -> None:
    asked: list[Question] = []

    def ask(questions: Sequence[Question]) -> list[bool]:
        asked.extend(questions)
        return [step <= edge for _, step in questions]

    assert drive(highest((1,), TOP, guess), ask) == edge
    assert len(asked) == len(set(asked)) and all(0 <= step <= TOP for _, step in asked)


def test_search_asks_far_less_than_everything() -> None:
    surface = Surface(1.0, 1.5, 0.0, {})
    line = [(p, 40 - p) for p in range(1, 40)]
    best = drive(remember(best_split(line, TOP, 20)), surface)
    assert best == Best((24, 16), 23)
    assert len(surface.asked) < 25, "bisection in each of 39 splits would take more than 200"


def test_nothing_is_asked_twice_or_when_it_is_implied() -> None:
    surface = Surface(1.0, 1.0, 0.0, {})

    def questions() -> Search[list[bool]]:
        first = yield [((5, 5), 3), ((5, 5), 3), ((2, 2), 3)]
        second = yield [((6, 5), 2), ((2, 1), 4), ((5, 5), 3)]
        return first + second

    assert drive(remember(questions()), surface) == [True, True, False, True, False, True]
    assert surface.asked == [((5, 5), 3), ((2, 2), 3)]


def test_searches_together_share_rounds() -> None:
    rounds: list[int] = []

    def ask(questions: list[Question]) -> list[bool]:
        rounds.append(len(questions))
        return [step <= 7 for _, step in questions]

    alone = drive(highest((1,), TOP, 30), ask)
    lone_rounds, rounds[:] = len(rounds), []
    assert drive(together([highest((1,), TOP, 30), highest((2,), TOP, 30)]), ask) == [alone, alone] == [7, 7]
    assert rounds == [2] * lone_rounds


def test_translated_questions_get_their_answers() -> None:
    def ask(tasks: list[str]) -> list[int]:
        return [int(task.partition("@")[2]) for task in tasks]

    search = translate(highest((1,), TOP, 3), lambda question: f"x@{question[1]}", lambda answer: answer < 12)
    assert drive(search, ask) == 11


# ---- designs and budgets ----------------------------------------------------------------------------------


def test_published_designs_are_near_their_budgets() -> None:
    """(HHcap at equal cost for code is 5 % above: 42 H100 machines against 40.)"""
    for (equal, trace), counts in PAPER_COUNTS.items():
        budget = parse_budget(f"{equal}=40*h100-80gb", "bloom-176b")
        for name, numbers_of in counts.items():
            taken = PAPER_DESIGNS[name].amount(budget.quantity, "bloom-176b", numbers_of)
            assert taken <= 1.051 * budget.amount, (equal, trace, name)


def test_budget_in_floating_point_buys_what_it_should() -> None:
    assert Budget("cost", 0.3).buys([0.1]) == [(3,)], "0.3 / 0.1 is below 3"
    assert Budget("count", 4).buys([1.0, 1.0]) == [(1, 3), (2, 2), (3, 1)]
    assert Budget("cost", 10).buys([4.76, 2.21]) == [(1, 2)]


def test_design_texts() -> None:
    assert parse_design("splitwise-ha") is PAPER_DESIGNS["Splitwise-HA"]
    mix = parse_design("mine=h100-80gb:P+a100-80gb/tp4:T")
    assert (mix.name, mix.scheduler, mix.counts) == ("mine", "splitwise", None)
    assert [p.tensor_parallel for p in mix.pools] == [8, 4]
    fixed = parse_design("h100-80gb:5P+h100-80gb:3T")
    assert fixed.counts == (5, 3)
    machines = fixed.config("bloom-176b", (5, 3)).machines
    assert machines == parse_machines("h100-80gb:5P3T")
    assert [d.name for d in parse_designs("paper,mine=h100-80gb:M")][-1] == "mine"


# ---- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no design"),
        ("h100-80gb", "TYPE:POOL"),
        ("h100-80gb:P", "prompt and a token pool"),
        ("h100-80gb:5P+h100-80gb:T", "every pool a number"),
        ("Splitwise-HH,splitwise-hh", "two designs"),
    ],
)
def test_bad_designs(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_designs(text)


@pytest.mark.parametrize("text", ["40", "power=", "power=1.2.3", "watts=3", "cost=0"])
def test_bad_budgets(text: str) -> None:
    with pytest.raises(ConfigError, match="budget"):
        parse_budget(text, "bloom-176b")


def test_budget_that_buys_nothing_names_the_smallest_cluster() -> None:
    problem = Problem("bloom-176b", SMALL)
    with pytest.raises(
        ConfigError, match=r"power=60 buys no .* 1P h100-80gb \+ 1T h100-80gb, takes power=88"
    ):
        most_rate(problem, parse_designs("Splitwise-HH"), parse_budget("power=60", "bloom-176b"), Runs())


def test_model_that_does_not_fit() -> None:
    design = parse_design("l40s-48gb/tp4:M")
    with pytest.raises(ProfileError, match="bloom-176b does not fit 4 GPUs of l40s-48gb"):
        most_rate(Problem("bloom-176b", SMALL), [design], parse_budget("count=4", "bloom-176b"), Runs())


def test_unreachable_rate_names_the_nearest_feasible_point(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem("bloom-176b", SMALL, most_machines=8)
    runs = fake_runs(monkeypatch, {"Splitwise-HH": (1.0, 1.0), "Baseline-A100": (0.5,)})
    both = parse_designs("Splitwise-HH,Baseline-A100")
    with pytest.raises(
        ConfigError, match=r"100 requests/s are not reached .* 7\.\d+ requests/s with Splitwise-HH"
    ):
        least(problem, both, 100.0, "cost", runs)
    near = least(problem, both, 6.0, "cost", runs)
    assert [(f.counts, f.reached) for f in near] == [((6, 6), True), ((8,), False)]
    assert near[1].rate_per_s <= 4.0 < near[1].rate_per_s * (1 + problem.tolerance)


def test_one_question_at_a_time() -> None:
    problem, designs = Problem("bloom-176b", SMALL), tuple(parse_designs("paper"))
    budget = parse_budget("count=4", "bloom-176b")
    with pytest.raises(ConfigError, match="exclude each other"):
        Request(problem, designs, budget, rate_per_s=3.0)
    with pytest.raises(ConfigError, match="give a budget"):
        Request(problem, designs)
    with pytest.raises(ConfigError, match="minimise 'joy'"):
        Request(problem, designs, rate_per_s=3.0, minimise="joy")


# ---- with clusters and rates ------------------------------------------------------------------------------


def fake_runs(monkeypatch: pytest.MonkeyPatch, per_machine: dict[str, tuple[float, ...]]) -> Runs:
    """Runs of clusters whose rate is that of their slowest pool, by the scheduler and machine types."""
    by_pools = {
        tuple((p.machine, p.pool) for p in PAPER_DESIGNS[name].pools): rates
        for name, rates in per_machine.items()
    }
    letters = {"prompt": "P", "token": "T", "mixed": "M"}

    def verdict(task):  # type: ignore[no-untyped-def]
        groups = task.config.machines
        rates = by_pools[tuple((g.machine, letters[g.pool]) for g in groups)]
        holds = min(r * g.count for r, g in zip(rates, groups))
        return () if task.workload.rate_per_s <= holds else ("tbt_p50",)

    monkeypatch.setattr("splitgym.provisioning.runs.failures", verdict)
    return Runs()


def test_most_rate_within_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = fake_runs(monkeypatch, {"Splitwise-HA": (3.0, 1.0), "Baseline-H100": (1.0,)})
    problem = Problem("bloom-176b", SMALL, tolerance=0.01)
    designs = parse_designs("Splitwise-HA,Baseline-H100")
    found = most_rate(problem, designs, parse_budget("power=40*h100-80gb", "bloom-176b"), runs)
    # p H100 at 44 and t A100 at 24.8 within 1,760: t = 3 p is (14, 46); 15 leave 44 A100.
    assert found[0].rate_per_s == pytest.approx(44.0, rel=0.011) and found[0].counts == (15, 44)
    assert found[1].counts == (40,) and found[1].rate_per_s == pytest.approx(40.0, rel=0.011)
    assert found[0].power == pytest.approx(15 * 44 + 44 * 24.8) and found[0].failed == ("tbt_p50",)


def test_frontier_around_the_cheapest(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = fake_runs(monkeypatch, {"Splitwise-HA": (2.0, 1.0), "Baseline-H100": (1.0,)})
    problem = Problem("bloom-176b", SMALL)
    found = least(problem, parse_designs("Splitwise-HA,Baseline-H100"), 9.5, "cost", runs)
    assert [f.counts for f in found] == [(5, 10), (10,)]
    (edge,) = frontiers(problem, found, 9.5, "cost", runs)
    assert dict(zip(edge.first, edge.fewest)) == {p: None if p < 5 else 10 for p in range(1, 11)}


def test_kept_runs_are_not_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_runs(monkeypatch, {"Splitwise-HH": (1.0, 1.0)})
    problem, designs = Problem("bloom-176b", SMALL), parse_designs("Splitwise-HH")
    budget = parse_budget("count=9", "bloom-176b")
    first = Runs(file=tmp_path / "kept.json")
    found = most_rate(problem, designs, budget, first)
    again = Runs(file=tmp_path / "kept.json")
    assert most_rate(problem, designs, budget, again) == found
    assert first.count > 5 and again.count == 0
    (tmp_path / "kept.json").write_text("[]")
    with pytest.raises(ConfigError, match="no file of kept runs"):
        Runs(file=tmp_path / "kept.json")


# ---- real runs --------------------------------------------------------------------------------------------


def test_leaving_early_changes_no_verdict() -> None:
    problem = Problem("llama2-70b", replace(SMALL, duration_s=10.0), seeds=(0, 1))
    design = parse_design("Splitwise-HH")
    seen = set()
    for rate in (2.0, 6.0, 9.0, 12.0, 40.0):
        task = problem.task(design, (1, 1), rate)
        found = slowdowns(task)
        truly = {
            f"{kind}_p{p}"
            for kind in KINDS
            for p, limit, value in zip((50, 90, 99), NINE_SLOS[kind], getattr(found, kind))
            if not (np.isnan(value) or value < limit)
        }
        failed = set(failures(task))
        assert failed <= truly and bool(failed) == bool(truly)
        seen.add(bool(truly))
    assert seen == {True, False}


def test_same_answer_for_any_number_of_workers_and_as_brute_force() -> None:
    problem = Problem("llama2-70b", SMALL, tolerance=0.25)
    designs = parse_designs("Splitwise-HH,Baseline-H100")
    budget = parse_budget("count=3", "llama2-70b")
    alone = most_rate(problem, designs, budget, Runs())
    with processes(2) as pool:
        assert most_rate(problem, designs, budget, Runs(pool)) == alone

    def rate(counts: Counts) -> float:
        held = [r for r in problem.rates[:30] if not failures(problem.task(designs[0], counts, r))]
        return held[-1]

    assert alone[0].rate_per_s == max(rate((1, 2)), rate((2, 1)))
    cluster = Cluster.resolve(ClusterConfig(model="llama2-70b", machines=parse_machines("h100-80gb:3M")))
    assert alone[1].cost_per_hour == pytest.approx(cluster.cost_per_hour)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of `splitgym provision words`."""
    monkeypatch.setattr(sys, "argv", ["splitgym", "provision", *words])
    monkeypatch.setattr(cli, "add_learning_commands", lambda to: None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code if isinstance(stopped.value.code, int) else 0


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fake_runs(monkeypatch, {"Splitwise-HH": (3.0, 3.0), "Baseline-H100": (2.0,)})
    words = ["--workload", "poisson:azure-conv-synth", "--designs", "Splitwise-HH,Baseline-H100"]
    words += ["--duration", "4", "--warmup", "1", "--workers", "1", "--model", "llama2-70b"]
    more = ["--rate", "5", "--also", "poisson:azure-code-synth", "--out", str(tmp_path), "--json"]
    assert run(monkeypatch, *words, *more) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["machines"] for row in found["designs"]] == [4, 3]
    assert {path.name for path in tmp_path.iterdir()} == {
        "designs.csv", "designs.json", "frontier.csv", "summary.png", "latency-by-rate.png",
        "map-Splitwise-HH.png", "robustness.png",
    }  # fmt: skip
    assert run(monkeypatch, *words, "--budget", "count=6") == 0
    assert "6M h100-80gb" in capsys.readouterr().out
    assert run(monkeypatch, *words, "--budget", "cost=1") == 2
    assert "buys no working cluster" in capsys.readouterr().err
    assert run(monkeypatch, "--workload", "poisson:azure-conv@3", "--budget", "count=6") == 2
    assert "searches the rate" in capsys.readouterr().err


def test_rules_of_the_clusters_reach_every_run() -> None:
    rules = ClusterConfig(transfer=TransferConfig(mode="serial"), oracle=True)
    task = Problem("llama2-70b", SMALL, rules=rules).task(parse_design("Splitwise-HA"), (2, 3), 4.0)
    assert task.config == replace(rules, model="llama2-70b", machines=task.config.machines)
    assert task.config.machines == parse_machines("h100-80gb:2P+a100-80gb:3T")
    assert task.workload.rate_per_s == 4.0
