"""Evaluation: workloads by name, pairing, anyone's policy, intervals, bisection, reports."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitgym import trace as traces
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, SloConfig, VllmBatchingConfig, parse_machines, to_mapping
from splitgym.errors import ConfigError, TraceError
from splitgym.evaluation import (
    Contender,
    Results,
    Workload,
    bisect_rate,
    bootstrap_mean,
    brackets,
    choose,
    compare,
    contender,
    evaluate,
    interquartile_mean,
    max_request_rate,
    paired_difference,
    parse,
    parse_at_rates,
    print_tables,
    summary,
    write_files,
    write_plots,
)
from splitgym.evaluation.max_rate import pool
from splitgym.evaluation.workloads import find, stand_ins
from splitgym.schedulers.protocol import RoutingScheduler, SizingScheduler
from splitgym.trace import Trace
from splitgym.types import RequestInfo
from splitgym.view import ClusterView

SHORT = {"duration_s": 8.0, "warmup_s": 2.0}


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    machines = parse_machines("h100-80gb:2P1T")
    return Cluster.resolve(ClusterConfig(model="llama2-70b", machines=machines))


@pytest.fixture(scope="module")
def results(cluster: Cluster) -> Results:
    loads = [parse(f"poisson:azure-conv-synth@{rate}", **SHORT) for rate in (3, 6)]
    return evaluate(["splitwise", "index", "round-robin"], cluster, loads, seeds=(0, 1, 2))


# ---- workloads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "poisson:azure-code-synth@19",
        "stamps:azure-conv-synth@8",
        "stamps:azure-conv-synth@x2",
        "shifting:azure-conv-synth~azure-code-synth@12",
        "mixed:azure-conv-synth+azure-code-synth@12.5",
    ],
)
def test_text_and_workload_agree_and_seeds_choose_the_window(text: str) -> None:
    workload = parse(text, **SHORT)
    assert workload.name == text
    first, again, other = workload.build(0), workload.build(0), workload.build(1)
    assert first.equals(again) and not first.equals(other)
    assert first.arrival_s[0] >= 0 and first.arrival_s[-1] < workload.end_s == 10


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("poison:azure-code@19", "KIND:TRACE@RATE"),
        ("poisson:azure-code", "needs a rate"),
        ("poisson:azure-code@0", "rate_per_s"),
        ("poisson:azure-code@x2", "only stamps"),
        ("mixed:azure-code@5", "2 trace"),
    ],
)
def test_bad_texts_are_one_clear_error(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(text)


def test_unknown_fields_and_traces_are_errors() -> None:
    with pytest.raises(ConfigError, match="no known key"):
        parse("poisson:azure-code@1", durations=3)
    with pytest.raises(TraceError, match="azure-nothing"):
        parse("poisson:azure-nothing@1").build()


def test_rates_are_for_workloads_without_one() -> None:
    names = [w.name for w in parse_at_rates(["poisson:a", "stamps:b@x2"], [1, 2])]
    assert names == ["poisson:a@1", "poisson:a@2", "stamps:b@x2"]
    with pytest.raises(ConfigError, match="its own"):
        parse_at_rates(["poisson:a@3"], [1, 2])


def test_parts_do_not_overlap() -> None:
    one = traces.load("azure-conv-synth")
    seen = {}
    for part in ("train", "validation", "test"):
        built = parse("poisson:azure-conv-synth@50", part=part, duration_s=60).build()
        own = traces.part(one, part)
        pairs = set(zip(own.prompt_tokens.tolist(), own.output_tokens.tolist()))
        seen[part] = set(zip(built.prompt_tokens.tolist(), built.output_tokens.tolist()))
        assert seen[part] <= pairs
    assert seen["train"] != seen["test"]


def test_real_stamps_reach_the_rate_and_superpose_for_large_clusters() -> None:
    one = traces.part(traces.load("azure-conv-synth"), "test")
    workload = parse("stamps:azure-conv-synth@40", duration_s=80, warmup_s=0)
    assert len(workload.build(0, machines=8)) == pytest.approx(40 * 80, rel=0.3)
    assert len(workload.build(0, machines=40)) == pytest.approx(40 * 80, rel=0.3)
    recorded = parse("stamps:azure-conv-synth", duration_s=200, warmup_s=0)
    assert len(recorded.build(0, machines=17)) == pytest.approx(3 * one.rate_per_s * 200, rel=0.3)


def test_a_window_longer_than_the_part_is_refused() -> None:
    with pytest.raises(TraceError, match="shorten the duration"):
        parse("stamps:azure-conv-synth@x10", duration_s=3600).build()


def test_missing_originals_are_replaced_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITGYM_DATA", str(tmp_path))
    monkeypatch.setenv("SPLITGYM_CACHE", str(tmp_path))
    assert find("azure-code").name == "azure-code-synth"
    assert stand_ins([parse("poisson:azure-code@1")]) == {"azure-code": "azure-code-synth"}
    assert stand_ins([parse("poisson:azure-code-synth@1")]) == {}
    assert not list(tmp_path.iterdir()), "nothing is downloaded"


def test_damaged_originals_are_not_replaced_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITGYM_DATA", str(tmp_path))
    (tmp_path / "AzureLLMInferenceTrace_code.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    with pytest.raises(TraceError, match="sha256"):
        find("azure-code")


# ---- runs -------------------------------------------------------------------------------------------------


def test_policies_are_paired(results: Results) -> None:
    assert len(results.runs) == 3 * 2 * 3
    for workload in results.workloads:
        tables = [[run.table for run in results.select(p, workload)] for p in results.policies]
        for mine, theirs in zip(tables[0], tables[1]):
            assert np.array_equal(mine.arrival_s, theirs.arrival_s)
            assert np.array_equal(mine.prompt_tokens, theirs.prompt_tokens)
        assert not np.array_equal(tables[0][0].arrival_s, tables[0][1].arrival_s), "seeds are other windows"


def test_warm_up_is_not_measured_and_everything_completes(results: Results) -> None:
    for run in results.runs:
        assert (run.table.arrival_s >= run.workload.warmup_s).all()
        assert (run.table.arrival_s < run.workload.end_s).all()
        assert run.table.row[0] > 0, "the first requests came in the warm-up"
        assert run.metrics.completed == run.metrics.requests == len(run.table)
        assert 0 <= run.metrics.goodput <= 1


def test_the_same_call_gives_the_same_results(results: Results, cluster: Cluster) -> None:
    again = evaluate(["index"], cluster, results.workloads[:1], seeds=(0,))
    before = results.select("index", results.workloads[0])[0]
    assert again.runs[0].metrics == before.metrics


def test_anyone_can_bring_a_policy(cluster: Cluster) -> None:
    seen: list[int] = []

    def first_and_last(view: ClusterView, request: RequestInfo) -> tuple[int, int]:
        seen.append(request.oracle_output_tokens)
        return 0, len(view.machine_row) - 1

    class Mine:
        name = "mine"
        resets = 0

        def reset(self, view: ClusterView, seed: int) -> None:
            self.resets += 1

        def route(self, view: ClusterView, request: RequestInfo) -> tuple[int, int]:
            return 1, 1

    mine = Mine()
    load = parse("poisson:azure-conv-synth@2", **SHORT)
    found = evaluate({"function": first_and_last, "object": mine}, cluster, [load], seeds=[0, 1])
    assert found.policies == ("function", "object")
    assert mine.resets == 2
    assert seen and set(seen) == {-1}, "no policy learns the true output length"
    listed = evaluate([first_and_last, mine, "index+reactive"], cluster, [load], seeds=[0])
    assert listed.policies == ("first_and_last", "mine", "index+reactive")
    ours = found.select("function", load)[0].metrics
    assert listed.select("first_and_last", load)[0].metrics == ours


def test_bad_policies_are_refused_before_any_run(cluster: Cluster) -> None:
    load = parse("poisson:azure-conv-synth@2", **SHORT)
    for policies, says in (
        (["index", "no-such"], "no-such"),
        (["index", "index"], "mapping"),
        ([], "at least one"),
        (["index", 3], "no policy"),
    ):
        with pytest.raises(ConfigError, match=says):
            evaluate(policies, cluster, [load], seeds=[0], progress=lambda run: pytest.fail("ran"))


def test_a_request_that_fits_nowhere_is_refused_before_any_run(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "huge.csv"
    big = Trace(np.arange(40.0), np.full(40, 9_000_000), np.full(40, 2), None, "huge", {})
    traces.save(big, path)
    with pytest.raises(TraceError, match="never fit"):
        evaluate(
            ["index"],
            cluster,
            [Workload("poisson", (str(path),), 5.0, **SHORT)],
            progress=lambda run: pytest.fail("ran"),
        )


# ---- clusters of their own --------------------------------------------------------------------------------


def test_a_name_may_change_the_pools_and_runs_there(cluster: Cluster) -> None:
    load = parse("poisson:azure-conv-synth@6", **SHORT)
    other = Cluster.resolve(replace(cluster.config, machines=parse_machines("h100-80gb:1P2T")))
    names = ["splitwise", "splitwise@h100-80gb:1P2T", "splitwise+reactive@h100-80gb:1P2T"]
    found = evaluate(names, cluster, [load], seeds=[0])
    alone = evaluate(["splitwise", "splitwise+reactive"], other, [load], seeds=[0])
    assert found.policies == tuple(names)
    assert [r.metrics for r in found.runs[1:]] == [r.metrics for r in alone.runs]
    assert found.runs[0].metrics != found.runs[1].metrics
    assert np.array_equal(found.runs[0].table.arrival_s, found.runs[1].table.arrival_s), "still paired"
    assert found.describe()["own_clusters"] == {name: to_mapping(other.config) for name in names[1:]}


def test_vllm_is_jsq_without_a_split_under_vllms_rule(cluster: Cluster) -> None:
    load = parse("poisson:azure-conv-synth@6", **SHORT)
    groups = parse_machines("h100-80gb:3M")
    config = replace(cluster.config, machines=groups, batching=VllmBatchingConfig())
    confined = Cluster.resolve(replace(cluster.config, confine=True))
    mine = evaluate(["splitwise", "vllm"], confined, [load], seeds=[0])
    theirs = evaluate(["jsq-tokens"], config, [load], seeds=[0])
    assert mine.select("vllm")[0].metrics == theirs.runs[0].metrics
    assert {g.pool for g in mine.own_clusters["vllm"].machines} == {"mixed"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"machines": parse_machines("h100-80gb:2P2T")}, "4 h100-80gb/tp8, the others on 3 h100-80gb/tp8"),
        ({"machines": parse_machines("h100-80gb:2P+a100-80gb:1T")}, "same machines"),
        ({"machines": parse_machines("h100-80gb/tp4:2P1T")}, "3 h100-80gb/tp4"),
        ({"model": "bloom-176b"}, "another model or SLO"),
        ({"slo": SloConfig(tbt_slowdown=2.0)}, "another model or SLO"),
    ],
)
def test_only_equal_machines_are_compared(cluster: Cluster, changes: dict[str, object], says: str) -> None:
    load = parse("poisson:azure-conv-synth@2", **SHORT)
    own = replace(contender("splitwise"), name="other", cluster=replace(cluster.config, **changes))
    with pytest.raises(ConfigError, match=says):
        evaluate(["index", own], cluster, [load], seeds=[0], progress=lambda run: pytest.fail("ran"))


def test_the_order_of_the_machines_is_free() -> None:
    base = ClusterConfig(model="llama2-70b", machines=parse_machines("h100-80gb:1P+a100-80gb:1T"))
    turned = "splitwise@a100-80gb:1P+h100-80gb:1T"
    load = parse("poisson:azure-conv-synth@2", **SHORT)
    assert evaluate(["splitwise", turned], base, [load], seeds=[0]).policies == ("splitwise", turned)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("vllm+reactive", "no pools"),
        ("vllm@h100-80gb:3M", "no pools"),
        ("splitwise@3P", "is not MACHINE:COUNTS"),
        ("no-such@h100-80gb:2P1T", "no-such"),
    ],
)
def test_bad_texts_of_policies(cluster: Cluster, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        contender(text, cluster=cluster.config)
    for needy in ("vllm", "index@h100-80gb:2P1T"):
        with pytest.raises(ConfigError, match="say which"):
            contender(needy)


def test_the_best_is_chosen_on_the_train_part(cluster: Cluster) -> None:
    load = parse("poisson:azure-conv-synth@8", **SHORT)
    splits = {f"{p}P": f"splitwise@h100-80gb:{p}P{3 - p}T" for p in (2, 1)}
    train = evaluate(splits, cluster, [replace(load, part="train")], seeds=[0, 1])
    means = {name: train.values("goodput", name).mean() for name in splits}
    assert means["1P"] != means["2P"]
    assert choose(splits, cluster, load) == max(means, key=means.__getitem__)
    alike = {"first": "splitwise", "second": Contender("", *_pair("splitwise"))}
    assert choose(alike, cluster, load) == "first", "of equals, the first"


def _pair(name: str) -> tuple[RoutingScheduler, SizingScheduler]:
    found = contender(name)
    return found.routing, found.sizing


# ---- comparison -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [6, 10])
def test_intervals_cover_the_truth_about_as_often_as_they_say(n: int) -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        found = bootstrap_mean(rng.normal(5.0, 2.0, n), trial, resamples=1000)
        hits += found.low <= 5.0 <= found.high
    # The plain percentile interval covers about 85 % at n = 6 and 90 % at n = 10.
    assert 0.91 <= hits / 300 <= 0.99


def test_interval_ends() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    found = bootstrap_mean(values)
    assert found.mean == 3.5 and 1 < found.low < 3.5 < found.high < 6 and found.excludes_zero
    assert found == bootstrap_mean(values), "same seed, same interval"
    one = bootstrap_mean([0.4])
    assert one.mean == 0.4 and np.isnan(one.low) and not one.excludes_zero


@pytest.mark.parametrize("n", [2, 5])
def test_few_windows_have_a_range_and_no_interval(n: int) -> None:
    values = np.random.default_rng(n).uniform(0.1, 0.3, n)
    found = bootstrap_mean(values)
    assert (found.low, found.high, found.windows) == (values.min(), values.max(), n)
    assert found.one_sign and not found.excludes_zero
    assert f"lowest and highest of {n} windows" in brackets(n)
    assert brackets(6) == "95 % intervals over 6 windows"


def test_pairing_removes_what_windows_have_in_common() -> None:
    rng = np.random.default_rng(0)
    window = rng.normal(0, 10, 12)
    better, worse = window + 1 + rng.normal(0, 0.1, 12), window
    difference = paired_difference(better, worse)
    assert difference.excludes_zero and difference.low > 0.8 and difference.high < 1.2
    assert bootstrap_mean(better).low < bootstrap_mean(worse).high, "alone, they overlap"
    with pytest.raises(ValueError, match="shapes"):
        paired_difference([1.0], [1.0, 2.0])


def test_interquartile_mean_ignores_one_odd_window() -> None:
    assert interquartile_mean([1, 2, 3, 4, 5, 6, 7, 1000]) == pytest.approx(4.5)


def test_compare_names_the_baseline(results: Results) -> None:
    found = compare(results, "goodput", "splitwise", results.workloads[0])
    assert [c.policy for c in found] == list(results.policies)
    assert found[0].difference is None and found[1].difference is not None
    ours = results.values("goodput", "index", results.workloads[0])
    theirs = results.values("goodput", "splitwise", results.workloads[0])
    assert found[1].difference.mean == pytest.approx((ours - theirs).mean())
    with pytest.raises(KeyError, match="nobody"):
        compare(results, "goodput", "nobody")


# ---- maximum rate -----------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(edge=st.floats(0.1, 5000), start=st.floats(0.1, 1000), tolerance=st.floats(0.005, 0.2))
def test_bisection_finds_a_monotone_edge(edge: float, start: float, tolerance: float) -> None:
    found = bisect_rate(lambda rate: () if rate <= edge else ("ttft_p90",), start, tolerance=tolerance)
    assert found.rate_per_s <= edge < found.failed_at_per_s
    assert found.failed_at_per_s / found.rate_per_s - 1 <= tolerance
    assert len({rate for rate, _ in found.tried}) == len(found.tried), "no rate is tried twice"


def test_bisection_gives_up_at_the_ends() -> None:
    never = bisect_rate(lambda rate: ("tbt_p50",), 1.0)
    assert never.rate_per_s == 0 and never.tried[0] == (1.0, ("tbt_p50",))
    always = bisect_rate(lambda rate: (), 1.0, highest_per_s=100)
    assert always.rate_per_s == 64 and always.as_json()["failed_at_per_s"] is None
    with pytest.raises(ConfigError, match="tolerance"):
        bisect_rate(lambda rate: (), 1.0, tolerance=0)


def test_max_rate_of_a_policy_is_deterministic_and_true(cluster: Cluster) -> None:
    load = parse("poisson:azure-conv-synth@4", **SHORT)
    found = max_request_rate("index", cluster, load, tolerance=0.2)
    assert found == max_request_rate("index", cluster, load, tolerance=0.2)
    assert 0 < found.rate_per_s < found.failed_at_per_s <= 1.2 * found.rate_per_s
    for rate, holds in ((found.rate_per_s, True), (found.failed_at_per_s, False)):
        run = evaluate(["index"], cluster, [load.at_rate(rate)], seeds=[0]).runs[0]
        assert (run.metrics.slos_held == 9) is holds


def test_pooling_keeps_every_request(results: Results) -> None:
    tables = [run.table for run in results.select("index")]
    assert len(pool(tables)) == sum(len(t) for t in tables)


# ---- reports ----------------------------------------------------------------------------------------------


def test_files_hold_every_run_and_valid_json(results: Results, tmp_path: Path) -> None:
    runs, summaries, whole = write_files(results, tmp_path / "new" / "folder")
    with runs.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results.runs)
    assert float(rows[0]["goodput"]) == pytest.approx(results.runs[0].metrics.goodput)
    with summaries.open() as file:
        assert len(list(csv.DictReader(file))) == 3 * 2
    data = json.loads(whole.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["seeds"] == [0, 1, 2] and data["cluster"]["model"] == "llama2-70b"


def test_undefined_numbers_are_null(results: Results, cluster: Cluster, tmp_path: Path) -> None:
    one = evaluate(["index"], cluster, results.workloads[:1], seeds=[0])
    assert np.isnan(summary(one)[0]["goodput_low"]), "one window has no interval"
    whole = write_files(one, tmp_path)[2].read_text()
    data = json.loads(whole, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["summary"][0]["goodput_low"] is None


def test_table_shows_every_policy(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    print_tables(results)
    text = capsys.readouterr().out
    for row in summary(results):
        assert row["policy"] in text and f"{row['goodput']:.3f}" in text
    assert "…" not in text, "nothing is cut off where the output is no terminal"


def test_plots_are_written(results: Results, tmp_path: Path) -> None:
    files = write_plots(results, tmp_path)
    kinds = {f.name.split("-")[0] for f in files}
    assert kinds == {"latency", "pools", "attainment"}
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files)
