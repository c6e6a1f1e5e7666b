"""Reference times: the closed form against the sum it stands for, and what good means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitgym.profile.tables import TICK_BITS, ProfileTables, prompt_time_ns, token_time_ticks
from splitgym.slo import is_good, reference_e2e_ns, reference_tbt_ns, reference_times_s, reference_ttft_ns

MS = 1_000_000


def make_tables(base_ms: int = 40, slope_ns: int = 500) -> ProfileTables:
    """Two machine types, the second twice as fast as the reference."""
    batch = np.arange(9)
    base = (base_ms * MS + batch * MS) << TICK_BITS
    slope = np.full(9, slope_ns << TICK_BITS)
    return ProfileTables(
        prompt_tokens=np.array([[1, 512, 2048]] * 2),
        prompt_ns=np.array([[50 * MS, 120 * MS, 450 * MS], [25 * MS, 60 * MS, 225 * MS]]),
        prompt_knots=np.array([3, 3]),
        token_base=np.array([base, base // 2]),
        token_slope=np.array([slope, slope // 2]),
        mixed_factor=np.array([1.1, 1.1]),
    )


@given(prompt=st.integers(1, 8192), output=st.integers(2, 300))
def test_closed_form_is_the_mean_over_contexts(prompt: int, output: int) -> None:
    tables = make_tables()
    contexts = range(prompt + 1, prompt + output)
    times = [token_time_ticks(tables, 0, 1, c) / (1 << TICK_BITS) for c in contexts]
    assert len(times) == output - 1
    assert reference_tbt_ns(tables, prompt, output) == pytest.approx(np.mean(times), rel=1e-12)
    alone = prompt_time_ns(tables, 0, prompt) + sum(times)
    assert reference_e2e_ns(tables, prompt, output) == pytest.approx(alone, rel=1e-12)


def test_vectorised_times_are_the_scalar_ones_in_seconds() -> None:
    tables = make_tables()
    prompt, output = np.array([1, 700, 3000]), np.array([1, 2, 90])
    ttft, tbt, e2e = reference_times_s(tables, prompt, output)
    for i in range(3):
        assert ttft[i] == pytest.approx(1e-9 * reference_ttft_ns(tables, prompt[i]))
        assert e2e[i] == pytest.approx(1e-9 * reference_e2e_ns(tables, prompt[i], output[i]))
    assert np.isnan(tbt[0]), "one token has no time between tokens"
    assert ttft[0] == e2e[0] == pytest.approx(0.05)
    assert tbt[2] == pytest.approx(1e-9 * reference_tbt_ns(tables, 3000, 90))


@pytest.mark.parametrize(
    ("ttft_slowdown", "tbt_slowdown", "output", "good"),
    [
        (2.9, 1.4, 50, True),
        (3.1, 1.0, 50, False),
        (1.0, 1.6, 50, False),
        (2.9, 9.9, 1, True),
        (3.1, 1, 1, False),
    ],
)
def test_good_is_within_both_slowdowns(
    ttft_slowdown: float, tbt_slowdown: float, output: int, good: bool
) -> None:
    tables = make_tables()
    first = 7 + round(ttft_slowdown * reference_ttft_ns(tables, 600))
    finish = first + round(tbt_slowdown * reference_tbt_ns(tables, 600, output) * (output - 1))
    assert is_good(tables, 3.0, 1.5, 600, output, 7, first, finish) is good
