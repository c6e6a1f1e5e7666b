"""The built-in generators: what they are, and how near they come to the originals."""

import hashlib
import json
import os
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp, spearmanr

from splitgym.errors import TraceError
from splitgym.trace import Trace, generate, load
from splitgym.trace.synth import names, quantile, tables

PAIRS = [("azure-code", "azure-code-synth"), ("azure-conv", "azure-conv-synth")]


def dispersion(trace: Trace, width_s: float) -> float:
    """Variance over mean of the counts in bins of one width; 1 for a Poisson process."""
    bins = int(trace.duration_s // width_s)
    counts = np.bincount((trace.arrival_s / width_s).astype(int))[:bins]
    return float(counts.var() / counts.mean())


def correlation(trace: Trace) -> float:
    return float(spearmanr(trace.prompt_tokens, trace.output_tokens).statistic)


def gap_variation(trace: Trace) -> float:
    gaps = np.diff(trace.arrival_s)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize(("name", "rate"), [("azure-code-synth", 2.57), ("azure-conv-synth", 5.53)])
def test_the_built_in_hour(name: str, rate: float) -> None:
    trace = load(name)
    assert 3500 < trace.duration_s < 3600 and trace.name == name
    assert trace.rate_per_s == pytest.approx(rate, rel=0.05)
    assert trace.equals(load(name))
    assert "CC-BY 4.0" in trace.provenance["licence"] and "ISCA 2024" in trace.provenance["cite"]


@pytest.mark.parametrize(
    ("name", "digest"),
    [("azure-code-synth", "d0fc3623d22c8df6"), ("azure-conv-synth", "78298ef22855ae3b")],
)
def test_the_hour_is_the_same_everywhere(name: str, digest: str) -> None:
    """Microseconds and tokens, as integers. New tables (`traces/fit.py`) change these."""
    trace = load(name)
    ticks = np.rint(trace.arrival_s * 1e6).astype(np.int64)
    columns = np.stack([ticks, trace.prompt_tokens, trace.output_tokens]).astype("<i8")
    assert hashlib.sha256(columns.tobytes()).hexdigest()[:16] == digest


@settings(max_examples=25)
@given(st.sampled_from(names()), st.floats(60, 4000), st.integers(0, 2**40))
def test_any_duration_and_seed(name: str, duration: float, seed: int) -> None:
    try:
        trace = generate(name, duration, seed)
    except TraceError as error:  # minutes without a request do happen in azure-code
        assert "no request arrives" in str(error) and name == "azure-code-synth" and duration < 900
        return
    assert trace.duration_s < duration  # and all else that Trace validates
    assert trace.equals(generate(name, duration, seed))
    if len(trace) > 50:
        assert not np.array_equal(trace.prompt_tokens, generate(name, duration, seed + 1).prompt_tokens)


@pytest.mark.parametrize("name", names())
def test_long_runs_keep_the_mean_rate(name: str) -> None:
    rate = float(tables(name)["fitted_to"]["rate_per_s"])
    assert generate(name, 40 * 3600.0, 11).rate_per_s == pytest.approx(rate, rel=0.08)


@pytest.mark.parametrize("duration", [0.0, -1.0, float("nan"), float("inf"), 1e12])
def test_a_wrong_duration_is_refused(duration: float) -> None:
    with pytest.raises(TraceError, match="duration_s is"):
        generate("azure-conv-synth", duration)


def test_an_unknown_generator_is_refused() -> None:
    with pytest.raises(TraceError, match="'azure-conv' is no built-in generator"):
        generate("azure-conv", 60.0)


def test_quantiles_are_interpolated() -> None:
    found = quantile([0, 10, 30], np.array([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert found.tolist() == [0.0, 5.0, 10.0, 20.0, 30.0]


@pytest.mark.parametrize("name", names())
def test_tables_are_quantiles_only(name: str) -> None:
    """Sorted, and far fewer than the original's rows."""
    fitted = json.loads(json.dumps(tables(name)))
    arrivals, sizes = fitted["arrivals"], fitted["sizes"]
    found = [arrivals[key] for key in ("clump_gap_s", "level_per_s", "minute_factor")]
    found += [arrivals[key] for key in ("active_s", "silent_s") if arrivals[key] is not None]
    found += [sizes["prompt_tokens"], *sizes["output_tokens"]]
    assert all(table == sorted(table) for table in found)
    assert sum(map(len, found)) < fitted["fitted_to"]["requests"] / 4


needs_originals = pytest.mark.skipif(
    not os.environ.get("SPLITGYM_DATA"), reason="SPLITGYM_DATA names no folder with the originals"
)


@needs_originals
@pytest.mark.parametrize(("original", "synth"), PAIRS)
def test_the_hour_is_like_the_original(original: str, synth: str) -> None:
    """Two-sample statistics. The figures measured are in docs/traces.md; the limits leave them some room."""
    a, b = load(original), load(synth)
    assert ks_2samp(a.prompt_tokens, b.prompt_tokens).statistic < 0.02
    assert ks_2samp(a.output_tokens, b.output_tokens).statistic < 0.02
    assert abs(correlation(a) - correlation(b)) < 0.04
    assert b.rate_per_s / a.rate_per_s == pytest.approx(1, rel=0.05)
    for width_s in (1, 10, 60):
        assert dispersion(b, width_s) / dispersion(a, width_s) == pytest.approx(1, rel=0.15)
    limit = 0.2 if original == "azure-code" else 0.03
    assert ks_2samp(np.diff(a.arrival_s), np.diff(b.arrival_s)).statistic < limit
    assert gap_variation(b) / gap_variation(a) == pytest.approx(1, rel=0.35)


@needs_originals
@pytest.mark.parametrize(("original", "synth"), PAIRS)
def test_hours_with_other_seeds_are_like_the_original(original: str, synth: str) -> None:
    """Medians of 40 hours: no luck of one seed."""
    a, hours = load(original), [generate(synth, 3600.0, seed) for seed in range(1000, 1040)]

    def middle(statistic: Callable[[Trace], float]) -> float:
        return float(np.median([statistic(hour) for hour in hours]))

    assert middle(lambda b: float(ks_2samp(a.prompt_tokens, b.prompt_tokens).statistic)) < 0.015
    assert middle(lambda b: float(ks_2samp(a.output_tokens, b.output_tokens).statistic)) < 0.015
    assert abs(middle(correlation) - correlation(a)) < 0.02
    assert middle(lambda b: b.rate_per_s) / a.rate_per_s == pytest.approx(1, rel=0.12)
    for width_s in (1, 10, 60):
        ratio = middle(lambda b, w=width_s: dispersion(b, w)) / dispersion(a, width_s)  # type: ignore[misc]
        assert ratio == pytest.approx(1, rel=0.3)


@needs_originals
@pytest.mark.parametrize(
    ("original", "requests", "seconds"),
    [("azure-code", 8819, 3435.948056), ("azure-conv", 19366, 3501.721937)],
)
def test_the_originals_load(original: str, requests: int, seconds: float) -> None:
    trace = load(original)
    assert len(trace) == requests and trace.arrival_s[0] == 0.0
    assert trace.duration_s == pytest.approx(seconds, abs=1e-6)
