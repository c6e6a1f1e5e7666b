"""A trace and the operations on traces."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitgym.errors import TraceError
from splitgym.trace import (
    Trace,
    at_rate,
    mix,
    part,
    poisson,
    shift_between,
    speed_up,
    superpose,
    window,
)

SEEDS = st.integers(0, 2**32)


@st.composite
def traces(draw: Any, min_rows: int = 1, base: int = 1) -> Trace:
    """Any trace. Token counts are distinct and start at `base`, so that a row can be told by them."""
    gaps = draw(st.lists(st.floats(0, 100), min_size=min_rows, max_size=40))
    n = len(gaps)
    first = draw(st.sampled_from([0.0, 3.5]))
    limits = draw(st.one_of(st.none(), st.lists(st.sampled_from([-1, 1, 500]), min_size=n, max_size=n)))
    return Trace(
        first + np.cumsum(np.array(gaps)) - gaps[0],
        np.arange(n) + base,
        np.arange(n) * 2 + base,
        None if limits is None else np.array(limits),
        f"t{base}",
        {"source": "made up"},
    )


def rows(trace: Trace) -> list[tuple[int, int, int | None]]:
    limits = [None] * len(trace) if trace.max_tokens is None else trace.max_tokens.tolist()
    return list(zip(trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), limits))


def even(n: int = 1000, step: float = 1.0, prompt: int = 100, output: int = 10, name: str = "even") -> Trace:
    return Trace(np.arange(n) * step, np.full(n, prompt), np.full(n, output), name=name)


GOOD: dict[str, Any] = {
    "arrival_s": [0.0, 1.0, 1.0, 2.0],
    "prompt_tokens": [1, 2, 3, 4],
    "output_tokens": [1, 1, 1, 1],
    "max_tokens": [-1, 5, -1, 7],
}


def test_a_trace_keeps_its_columns_and_protects_them() -> None:
    trace = Trace(**GOOD, name="x", provenance={"source": "made up"})
    assert len(trace) == 4 and trace.duration_s == 2.0 and trace.rate_per_s == 2.0
    assert trace.arrival_s.dtype == np.float64 and trace.max_tokens is not None
    assert trace.prompt_tokens.dtype == trace.max_tokens.dtype == np.int64
    with pytest.raises(ValueError):
        trace.prompt_tokens[0] = 9


@pytest.mark.parametrize(
    ("column", "values", "row", "words"),
    [
        ("arrival_s", [0.0, 2.0, 1.0, 3.0], 2, "before the row above"),
        ("arrival_s", [0.0, 1.0, -1.0, 3.0], 2, "negative"),
        ("arrival_s", [0.0, 1.0, float("nan"), 3.0], 2, "finite"),
        ("arrival_s", [0.0, 1.0, 1.0, float("inf")], 3, "finite"),
        ("arrival_s", [0.0, 1.0, 1.0, 1e13], 3, "seconds"),
        ("prompt_tokens", [1, 0, 3, 4], 1, "prompt_tokens is 0"),
        ("prompt_tokens", [1, 2, 3, -4], 3, "prompt_tokens is -4"),
        ("prompt_tokens", [1, 2, 3, 2**31], 3, "prompt_tokens is 2147483648"),
        ("output_tokens", [1.0, 1.5, 1.0, 1.0], 1, "output_tokens is 1.5"),
        ("output_tokens", [1.0, 1.0, float("nan"), 1.0], 2, "output_tokens is nan"),
        ("max_tokens", [-1, 0, -1, 7], 1, "max_tokens is 0"),
        ("max_tokens", [-1, 5, -2, 7], 2, "max_tokens is -2"),
    ],
)
def test_a_bad_row_is_named(column: str, values: list[Any], row: int, words: str) -> None:
    with pytest.raises(TraceError, match=rf"trace x: row {row} \(counted from 0\): .*{words}"):
        Trace(**{**GOOD, column: values}, name="x")


def test_the_first_of_two_bad_rows_is_named() -> None:
    bad = {**GOOD, "arrival_s": [0.0, 1.0, 2.0, 0.5], "output_tokens": [1, 1, 0, 1]}
    with pytest.raises(TraceError, match=r"row 2 .*output_tokens is 0"):
        Trace(**bad)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt_tokens": [1, 2, 3]}, "differ in length .*prompt_tokens 3"),
        ({"prompt_tokens": [[1, 2, 3, 4]]}, r"prompt_tokens has shape \(1, 4\)"),
        ({"prompt_tokens": ["1", "2", "3", "4"]}, "prompt_tokens holds .*expected numbers"),
        ({"prompt_tokens": [True] * 4}, "prompt_tokens holds bool"),
        ({key: [] for key in GOOD}, "has no requests"),
    ],
)
def test_wrong_columns_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(TraceError, match=words):
        Trace(**{**GOOD, **change})


@given(traces(), st.floats(0, 2000), st.floats(0.001, 2000))
def test_a_window_is_the_rows_of_its_times(trace: Trace, start: float, length: float) -> None:
    inside = (trace.arrival_s >= start) & (trace.arrival_s < start + length)
    if not inside.any():
        with pytest.raises(TraceError, match="holds no request"):
            window(trace, start, start + length)
        return
    cut = window(trace, start, start + length)
    assert rows(cut) == [row for row, kept in zip(rows(trace), inside) if kept]
    assert np.array_equal(cut.arrival_s, trace.arrival_s[inside] - start)
    kept = window(trace, start, start + length, keep_time=True)
    assert np.array_equal(kept.arrival_s, trace.arrival_s[inside])
    assert cut.provenance["operations"].startswith("window(")


@given(traces())
def test_an_open_window_holds_the_last_request(trace: Trace) -> None:
    assert window(trace, trace.duration_s).arrival_s[-1] == 0.0
    assert rows(window(trace, 0.0)) == rows(trace)


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 2), (3, 2), (float("nan"), 2), (0, float("nan"))])
def test_a_window_that_is_none_is_refused(start: float, end: float) -> None:
    with pytest.raises(TraceError, match="needs 0 <= start < end"):
        window(even(), start, end)


@given(traces(), st.floats(0.01, 100))
def test_speeding_up_divides_times(trace: Trace, factor: float) -> None:
    faster = speed_up(trace, factor)
    assert rows(faster) == rows(trace)
    assert np.allclose(faster.arrival_s * factor, trace.arrival_s)


@given(traces(min_rows=2), st.floats(0.01, 100))
def test_a_mean_rate_is_met(trace: Trace, rate: float) -> None:
    if trace.duration_s < 1e-3:
        return
    assert at_rate(trace, rate).rate_per_s == pytest.approx(rate)


def test_a_trace_without_duration_has_no_rate() -> None:
    with pytest.raises(TraceError, match="no rate"):
        at_rate(Trace([0.0], [1], [1]), 1.0)


@given(traces(), SEEDS)
def test_poisson_draws_whole_rows(trace: Trace, seed: int) -> None:
    made = poisson(trace, 5.0, 100.0, seed)
    assert set(rows(made)) <= set(rows(trace))
    assert made.arrival_s[0] >= 0 and made.arrival_s[-1] < 100.0
    assert made.equals(poisson(trace, 5.0, 100.0, seed))
    longer = poisson(trace, 5.0, 120.0, seed)
    assert rows(longer)[: len(made)] == rows(made)
    assert np.array_equal(longer.arrival_s[: len(made)], made.arrival_s)


def test_poisson_has_its_rate_and_dispersion() -> None:
    made = poisson(even(), 20.0, 5000.0, seed=3)
    # Five standard deviations of a Poisson count.
    assert abs(len(made) - 100_000) < 5 * 100_000**0.5
    counts = np.bincount(made.arrival_s.astype(int), minlength=5000)
    assert 0.9 < counts.var() / counts.mean() < 1.1


def test_poisson_draws_rows_independently() -> None:
    trace = Trace(np.arange(10.0), np.arange(10) + 1, np.ones(10, int))
    drawn = poisson(trace, 10.0, 2000.0, seed=4).prompt_tokens
    share = np.bincount(drawn, minlength=11)[1:] / len(drawn)
    assert share == pytest.approx(np.full(10, 0.1), rel=0.12)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.03


def test_a_generator_as_seed_goes_on() -> None:
    draw = np.random.default_rng(0)
    first, second = poisson(even(), 5.0, 10.0, draw), poisson(even(), 5.0, 10.0, draw)
    assert not np.array_equal(first.arrival_s, second.arrival_s)
    assert first.provenance["operations"].endswith("seed=generator)")


@given(traces(base=1), traces(base=1000), SEEDS)
def test_a_shift_takes_rows_of_both(a: Trace, b: Trace, seed: int) -> None:
    made = shift_between(a, b, 50.0, 20.0, (3.0, 6.0), seed)
    is_b = made.prompt_tokens >= 1000
    pairs_a, pairs_b = {r[:2] for r in rows(a)}, {r[:2] for r in rows(b)}
    assert all(row[:2] in (pairs_b if b_row else pairs_a) for row, b_row in zip(rows(made), is_b))
    assert (made.max_tokens is None) == (a.max_tokens is None and b.max_tokens is None)
    if a.max_tokens is None and made.max_tokens is not None:
        assert (made.max_tokens[~is_b] == -1).all()
    assert made.provenance["a.source"] == made.provenance["b.source"] == "made up"


@pytest.mark.parametrize("rate", [30.0, (20.0, 60.0)])
def test_the_share_of_b_is_a_triangle(rate: float | tuple[float, float]) -> None:
    a, b = even(prompt=1), even(prompt=2)
    made = shift_between(a, b, 8000.0, 1000.0, rate, seed=1, low=0.2, high=0.8)
    rate_a, rate_b = rate if isinstance(rate, tuple) else (rate, rate)
    phase = (made.arrival_s % 1000.0) / 1000.0
    for low, high in ((0.0, 0.05), (0.2, 0.3), (0.475, 0.525), (0.7, 0.8)):
        here = (phase >= low) & (phase < high)
        middle = (low + high) / 2
        share = 0.2 + 0.6 * (1 - abs(2 * middle - 1))
        if middle == 0.5:  # the peak's mean over its neighbourhood
            share = 0.8 - 0.6 * 0.025
        seconds = 8000.0 * (high - low)
        num_b = int((made.prompt_tokens[here] == 2).sum())
        assert num_b == pytest.approx(share * rate_b * seconds, rel=0.06)
        assert int(here.sum()) - num_b == pytest.approx((1 - share) * rate_a * seconds, rel=0.06)


@given(traces(base=1), traces(base=1000), st.floats(0, 1), SEEDS)
def test_a_mix_keeps_stamps_and_fraction(a: Trace, b: Trace, fraction: float, seed: int) -> None:
    try:
        made = mix(a, b, fraction, seed)
    except TraceError as error:
        assert "no request arrives" in str(error)
        return
    stamped = {(t, *r[:2]) for trace in (a, b) for t, r in zip(trace.arrival_s.tolist(), rows(trace))}
    found = [(t, *r[:2]) for t, r in zip(made.arrival_s.tolist(), rows(made))]
    assert len(set(found)) == len(found) and set(found) <= stamped
    num_b = int((made.prompt_tokens >= 1000).sum())
    assert abs(num_b - fraction * len(made)) <= 1.0


def test_a_mix_keeps_as_many_as_it_can() -> None:
    made = mix(even(1000, prompt=1), even(1000, prompt=2), 0.2, seed=5)
    assert (made.prompt_tokens == 1).sum() == 1000 and (made.prompt_tokens == 2).sum() == 250
    assert (mix(even(prompt=1), even(prompt=2), 1.0).prompt_tokens == 2).all()


@given(traces(), st.integers(1, 4), SEEDS)
def test_superposed_copies_are_rotations(trace: Trace, copies: int, seed: int) -> None:
    made = superpose(trace, copies, seed)
    assert sorted(map(str, rows(made))) == sorted(map(str, rows(trace) * copies))
    assert made.duration_s <= max(trace.duration_s, 0.0) and (np.diff(made.arrival_s) >= 0).all()


def test_a_rotation_moves_every_request_by_the_same_offset() -> None:
    trace = Trace([0.0, 1.0, 5.0, 10.0], [1, 2, 3, 4], [1, 1, 1, 1])
    for seed in range(20):
        made = superpose(trace, 1, seed)
        at = {int(p): float(t) for p, t in zip(made.prompt_tokens, made.arrival_s)}
        offsets = [(at[p] - t) % 10.0 for p, t in ((1, 0.0), (2, 1.0), (3, 5.0), (4, 10.0))]
        assert offsets == pytest.approx([offsets[0]] * 4)
    assert len({float(superpose(trace, 1, seed).arrival_s[0]) for seed in range(20)}) == 20


@given(traces())
def test_parts_are_a_partition(trace: Trace) -> None:
    if trace.duration_s < 1e-6:
        with pytest.raises(TraceError, match="no duration"):
            part(trace, "test")
        return
    found, bounds = [], (0.0, 0.5, 0.7)
    for which, start in zip(("train", "validation", "test"), bounds):
        try:
            cut = part(trace, which)  # type: ignore[arg-type]
        except TraceError as error:
            assert "holds no request" in str(error)
            continue
        assert (cut.arrival_s >= 0).all() and cut.name == f"{trace.name}/{which}"
        times = cut.arrival_s + start * trace.duration_s
        assert np.allclose(times, trace.arrival_s[cut.prompt_tokens - 1])
        found += rows(cut)
    assert found == rows(trace)


def test_parts_are_halves_fifths_and_thirds_of_time() -> None:
    trace = even(1001)
    sizes = [len(part(trace, which)) for which in ("train", "validation", "test")]  # type: ignore[arg-type]
    assert sizes == [500, 200, 301]


@given(traces(min_rows=5), SEEDS)
def test_lengths_of_a_part_stay_in_it(trace: Trace, seed: int) -> None:
    cut = 0.5 * trace.duration_s
    try:
        made = poisson(part(trace, "train"), 10.0, 20.0, seed)
    except TraceError:
        assert trace.duration_s < 1e-6 or trace.arrival_s[0] >= cut
        return
    assert set(rows(made)) <= {row for row, t in zip(rows(trace), trace.arrival_s) if t < cut}


def test_provenance_tells_all_that_was_done() -> None:
    trace = Trace(**GOOD, name="x", provenance={"source": "made up"})
    made = superpose(speed_up(window(trace, 1.0), 2.0), 3, seed=7)
    assert made.provenance == {
        "source": "made up",
        "operations": "window(1.0, None) | speed_up(2.0) | superpose(copies=3, seed=7)",
    }
    assert trace.provenance == {"source": "made up"}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: speed_up(t, 0.0), "factor is 0.0"),
        (lambda t: speed_up(t, float("nan")), "factor is nan"),
        (lambda t: at_rate(t, -1.0), "rate_per_s is -1.0"),
        (lambda t: poisson(t, 0.0, 1.0), "rate_per_s is 0.0"),
        (lambda t: poisson(t, 1.0, float("inf")), "duration_s is inf"),
        (lambda t: poisson(t, 1e-9, 1.0), "no request arrives"),
        (lambda t: poisson(t, 1e9, 1e9), "too many"),
        (lambda t: poisson(t, 1.0, 10.0, -1), "seed -1 is negative"),
        (lambda t: shift_between(t, t, 10.0, 0.0, 1.0), "period_s is 0.0"),
        (lambda t: shift_between(t, t, 10.0, 1.0, (1.0, 0.0)), "rate_b is 0.0"),
        (lambda t: shift_between(t, t, 10.0, 1.0, 1.0, low=0.9, high=0.1), "low 0.9 and high 0.1"),
        (lambda t: mix(t, t, 1.1), "fraction_b is 1.1"),
        (lambda t: superpose(t, 0), "copies is 0"),
        (lambda t: superpose(t, 1.5), "copies is 1.5"),
        (lambda t: part(t, "dev"), "expected train, validation or test"),
    ],
)
def test_a_wrong_argument_is_named(call: Any, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        call(even())
