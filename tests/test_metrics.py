"""Percentiles, goodput, the warm-up filter, the nine SLOs and the shares of energy and cost."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from splitgym.metrics import nine_slos, percentiles, request_table, summarise
from splitgym.slo import NINE_SLOS, reference_times_s
from tests.test_slo import make_tables

Ints = NDArray[np.int64]


@dataclass
class Rows:
    arrival_ns: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    first_token_ns: Ints
    finish_ns: Ints


@dataclass
class Totals:
    energy_j: NDArray[np.float64] = field(default_factory=lambda: np.array([600.0, 300.0]))
    busy_ns: Ints = field(default_factory=lambda: np.array([30, 10]) * 10**9)
    prompt_busy_ns: Ints = field(default_factory=lambda: np.array([10, 0]) * 10**9)
    up_ns: Ints = field(default_factory=lambda: np.array([50, 50]) * 10**9)
    end_ns: int = 50 * 10**9


def rows_at(slow_ttft: list[float], slow_tbt: list[float], arrival_s: list[float] | None = None) -> Rows:
    """Requests with given slowdowns; a negative one has not come."""
    n = len(slow_ttft)
    prompt, output = np.full(n, 600), np.full(n, 20)
    ttft, tbt, _ = reference_times_s(make_tables(), prompt, output)
    arrival = (np.array(arrival_s if arrival_s is not None else range(n)) * 1e9).astype(np.int64)
    first = arrival + np.round(np.array(slow_ttft) * ttft * 1e9).astype(np.int64)
    finish = first + np.round(np.array(slow_tbt) * tbt * 19 * 1e9).astype(np.int64)
    first = np.where(np.array(slow_ttft) < 0, -1, first)
    finish = np.where((np.array(slow_tbt) < 0) | (first < 0), -1, finish)
    return Rows(arrival, prompt, output, first, finish)


def test_slowdowns_and_good() -> None:
    table = request_table(rows_at([1.0, 2.5, 3.5, 1.0], [1.0, 1.4, 1.0, 1.6]), make_tables())
    assert table.ttft_slowdown == pytest.approx([1.0, 2.5, 3.5, 1.0], abs=1e-6)
    assert table.tbt_slowdown == pytest.approx([1.0, 1.4, 1.0, 1.6], abs=1e-6)
    assert table.good.tolist() == [True, True, False, False]
    assert table.e2e_s == pytest.approx(table.ttft_s + 19 * table.tbt_s)
    assert table.e2e_slowdown[0] == pytest.approx(1.0, abs=1e-6)


def test_an_output_of_one_token_has_no_tbt() -> None:
    rows = rows_at([1.0, 1.0], [1.0, 9.0])
    rows.output_tokens = np.array([1, 20])
    table = request_table(rows, make_tables())
    assert np.isnan(table.tbt_s[0]) and table.good.tolist() == [True, False]


def test_unfinished_requests_are_bad_and_infinitely_late() -> None:
    table = request_table(rows_at([1.0, 1.0, -1], [1.0, -1, -1]), make_tables())
    assert table.completed.tolist() == [True, False, False]
    assert table.good.tolist() == [True, False, False]
    assert np.isinf(table.tbt_s[1]) and np.isinf(table.ttft_s[2])
    rows = rows_at([1.0], [-1.0])
    rows.output_tokens = np.array([1])
    assert not request_table(rows, make_tables()).good[0], "even if its one token was seen"
    metrics = summarise(table, Totals(), window_s=10, completed_in_run=1, cost_per_hour=1)
    assert (metrics.requests, metrics.completed) == (3, 1)
    assert metrics.goodput == pytest.approx(1 / 3)
    assert metrics.e2e_slowdown[2] == np.inf and "e2e_p99" in metrics.failed_slos


def test_window_is_by_arrival_and_half_open() -> None:
    rows = rows_at([9.0] * 2 + [1.0] * 3 + [9.0], [1.0] * 6, [0, 4.999, 5, 6, 9.999, 10])
    table = request_table(rows, make_tables(), start_s=5, end_s=10)
    assert table.row.tolist() == [2, 3, 4]
    assert table.good.all(), "the slow ones arrived outside the window"


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_percentiles_are_ordered_and_ignore_nan(values: list[float]) -> None:
    found = percentiles(np.array([*values, np.nan]))
    assert found[0] <= found[1] <= found[2]
    assert found == pytest.approx(np.percentile(values, [50, 90, 99]))


def test_percentiles_of_infinity_and_nothing() -> None:
    assert percentiles(np.array([1.0, np.inf, np.inf]))[1:] == (np.inf, np.inf)
    assert np.isnan(percentiles(np.array([]))).all()


@pytest.mark.parametrize("kind", list(NINE_SLOS))
@pytest.mark.parametrize("place", [0, 1, 2])
def test_each_of_the_nine_slos_fails_alone(kind: str, place: int) -> None:
    table = request_table(rows_at([1.0] * 200, [1.0] * 200), make_tables())
    assert all(nine_slos(table).values())
    slow = table.slowdown(kind)
    share, limit = ((0.55, 0.15, 0.02)[place], NINE_SLOS[kind][place])
    slow[: int(200 * share)] = limit
    failed = [name for name, held in nine_slos(table).items() if not held]
    assert failed == [f"{kind}_p{(50, 90, 99)[place]}"]


def test_shares_of_energy_cost_and_time() -> None:
    table = request_table(rows_at([1.0] * 4, [1.0] * 4), make_tables(), start_s=2)
    metrics = summarise(table, Totals(), window_s=2, completed_in_run=4, cost_per_hour=72)
    assert metrics.requests == 2
    assert metrics.good_per_s == pytest.approx(1.0)
    assert metrics.energy_per_request_j == pytest.approx(225)
    assert metrics.cost_per_request == pytest.approx(72 * 50 / 3600 / 4)
    assert metrics.utilisation == pytest.approx(0.4) and metrics.prompt_share == pytest.approx(0.25)
    flat = metrics.as_dict()
    assert flat["ttft_slowdown_p90"] == pytest.approx(1.0, abs=1e-6) and flat["failed_slos"] == ""
