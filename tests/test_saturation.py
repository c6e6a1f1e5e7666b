"""Saturation: the shipped table, interpolation, its measurement, and loads in place of rates."""

import csv
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitgym import saturation
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, SloConfig, make, parse_machines
from splitgym.envs.routing import RoutingEnv
from splitgym.errors import ConfigError, TraceError
from splitgym.evaluation import evaluate, parse, saturate
from splitgym.resources import shipped


def cluster(machines, model="bloom-176b", **fields):
    return make(ClusterConfig, model=model, machines=parse_machines(machines), **fields)


def test_the_shipped_table_has_the_clusters_of_the_benchmark():
    for machines, model in (
        ("h100-80gb:8M", "bloom-176b"),
        ("h100-80gb:4M+a100-80gb:4M", "bloom-176b"),
        ("h100-80gb:40M", "bloom-176b"),
        ("h100-80gb:20M+a100-80gb:20M", "bloom-176b"),
        ("h100-80gb:64M", "bloom-176b"),
        ("h100-80gb:8M", "llama2-70b"),
    ):
        config = cluster(machines, model)
        rows = saturation.read(shipped("profiles") / saturation.FILE)
        there = [(r["model"], saturation.read_hardware(r["machines"])) for r in rows]
        assert (model, saturation.hardware(config)) in there
        for workload in saturation.WORKLOADS:
            assert saturation.known(config, workload) > 0


def test_pools_play_no_part():
    a, b = cluster("h100-80gb:5P3T"), cluster("h100-80gb:8M")
    assert saturation.known(a, "poisson:azure-code") == saturation.known(b, "poisson:azure-code")


def test_a_row_is_what_is_looked_up():
    with (shipped("profiles") / saturation.FILE).open() as file:
        for row in csv.DictReader(file):
            machines = saturation.read_hardware(row["machines"])
            text = "+".join(f"{kind.replace('/tp8', '')}:{n}M" for kind, n in machines.items())
            assert saturation.known(cluster(text, row["model"]), row["workload"]) == float(row["rate_per_s"])


def test_interpolation_between_sizes_and_proportions():
    table = [
        (Counter(a=4), 4.0),
        (Counter(a=8), 12.0),
        (Counter(b=4), 8.0),
        (Counter(b=8), 24.0),
    ]
    assert saturation.interpolate(table, Counter(a=4)) == 4.0
    # A machine: 1.0 at 1/4, 1.5 at 1/8; linear in 1/n, so 1 + 0.5 x (1/4 - 1/6) / (1/8).
    assert saturation.interpolate(table, Counter(a=6)) == pytest.approx(6 * (1 + 0.5 * 2 / 3))
    assert saturation.interpolate(table, Counter(a=16)) == 24.0
    assert saturation.interpolate(table, Counter(a=2)) == 2.0
    # Half of each at 8: between 12 and 24.
    assert saturation.interpolate(table, Counter(a=4, b=4)) == pytest.approx(18.0)
    assert saturation.interpolate(table, Counter(a=6, b=2)) == pytest.approx(15.0)
    assert saturation.interpolate(table, Counter(c=4)) is None
    assert saturation.interpolate(table[:2], Counter(a=4, b=4)) is None
    assert saturation.interpolate(table, Counter(a=1, b=1, c=1)) is None


@given(st.integers(1, 80), st.integers(0, 80))
def test_more_machines_hold_more(h100, a100):
    def rate(h, a):
        return saturation.known(
            cluster(f"h100-80gb:{h}M" + (f"+a100-80gb:{a}M" if a else "")), "poisson:azure-code"
        )

    assert rate(h100, a100) < rate(h100 + 1, a100)


def test_what_the_table_does_not_reach():
    strange = cluster("h100-80gb:8M", slo=SloConfig(ttft_slowdown=2.0))
    assert saturation.known(strange, "poisson:azure-code") is None
    assert saturation.known(cluster("h100-80gb:8M"), "poisson:mine") is None
    with pytest.raises(ConfigError, match=r"no saturation is known for poisson:mine on 8 h100-80gb/tp8"):
        saturation.require(cluster("h100-80gb:8M"), "poisson:mine")


def test_a_damaged_table_says_where(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("model,machines,workload,rate_per_s,goodput,windows\nbloom-176b,8 h100-80gb/tp8\n")
    with pytest.raises(ConfigError, match="line 2: needs the columns model, machines"):
        saturation.read(file)


def test_it_is_measured_by_bisection(monkeypatch):
    asked = []

    def goodput(where, workload, seeds, map):
        asked.append(workload.name)
        rate = workload.rate_per_s
        return 1.0 - rate / 100 if workload.kind == "poisson" else 0.5

    monkeypatch.setattr(saturate, "goodput", goodput)
    monkeypatch.setattr(saturate, "find", lambda name: None)
    where = Cluster.resolve(cluster("h100-80gb:2P2T"))
    found = saturate.measure(where, "poisson:azure-code", tolerance=0.001)
    assert found.rate_per_s == pytest.approx(10, rel=0.001) and found.goodput == pytest.approx(0.9, abs=1e-3)
    assert all(name.startswith("poisson:azure-code@") for name in asked)
    # Bursts are missed at any rate: .3 of what Poisson arrivals allow, by the table.
    found = saturate.measure(where, "stamps:azure-code")
    assert found.rate_per_s == 0.3 * saturation.known(where.config, "poisson:azure-code")


def test_a_rate_without_windows_is_too_high(monkeypatch):
    def too_short(*args, **kwargs):
        raise TraceError("too short")

    monkeypatch.setattr(saturate, "evaluate", too_short)
    where = Cluster.resolve(cluster("h100-80gb:2P2T"))
    assert saturate.goodput(where, parse("stamps:azure-code@900"), [0]) == 0.0


def test_loads_in_workloads():
    workload = parse("stamps:azure-conv-synth@0.5sat", duration_s=20.0, warmup_s=5.0)
    assert (workload.load, workload.rate_per_s) == (0.5, None)
    assert parse(workload.name, duration_s=20.0, warmup_s=5.0) == workload
    with pytest.raises(ConfigError, match="needs a cluster"):
        workload.build(0)
    with pytest.raises(ConfigError, match="not both"):
        parse("stamps:azure-code@x0.5sat")
    results = evaluate(["jsq-tokens"], cluster("h100-80gb:2P2T"), [workload], [0])
    rate = 0.5 * saturation.known(cluster("h100-80gb:4M"), "stamps:azure-conv")
    assert results.workloads[0].rate_per_s == pytest.approx(rate)
    assert results.rows()[0]["workload"] == "stamps:azure-conv-synth@0.5sat"


def test_loads_in_environments():
    full = saturation.known(cluster("h100-80gb:2P2T"), "poisson:azure-code")
    env = RoutingEnv(cluster="h100-80gb:2P2T", trace="azure-code-synth", load=(0.5, 0.9))
    assert env.workload.rate_per_s == (0.5 * full, 0.9 * full)
    traces = [env.workload.draw(np.random.default_rng(seed)) for seed in range(20)]
    assert 0.4 * full < np.mean([len(t) for t in traces]) / 105 < full
    with pytest.raises(ConfigError, match="no saturation is known"):
        RoutingEnv(cluster="h100-80gb:2P2T", trace="azure-code-synth", load=0.5, arrivals="own")
