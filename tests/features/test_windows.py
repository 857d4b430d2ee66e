"""Windows: any ladder agrees with pandas' own rolling, and with itself however the history is cut."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.features import windows as w

LENGTHS = st.integers(1, 130)
VALUES = st.floats(0.5, 2000, width=32) | st.sampled_from([np.nan, np.inf, 100.0, 100.0])


def series(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def state_of(x: np.ndarray, kind: str, d: int, keep: int) -> list[np.ndarray]:
    "The states of the d-session windows, with enough dead bars in front."
    padded = np.concatenate([np.full(d, np.nan, np.float32), x])
    lifted, merge = {
        "spread": (w.lift_spread, w.spread),
        "trend": (w.lift_trend, w.trend),
        "highest": (w.lift_highest, w.highest),
    }[kind]
    return w.ladder(lifted(padded), merge, [d], keep)[d]


@given(LENGTHS.filter(lambda d: d > 1))
def test_a_window_is_its_two_parts_and_needs_few_rungs(length: int) -> None:
    new, old = w.split(length)
    assert new + old == length and new >= old >= 1
    assert len(w.rungs([length])) <= 2 * math.log2(length) + 2


@settings(deadline=None, max_examples=60)
@given(st.lists(VALUES, min_size=1, max_size=90), LENGTHS)
def test_mean_and_std_are_those_of_pandas(values: list[float], d: int) -> None:
    x = series(values)
    state = state_of(x, "spread", d, x.size)
    rolling = [
        pd.Series(np.where(np.isfinite(x), x, np.nan)[max(0, e - d) : e], dtype=float) for e in range(1, x.size + 1)
    ]
    np.testing.assert_allclose(w.mean(state), [r.mean() for r in rolling], rtol=1e-12)
    np.testing.assert_allclose(w.std(state), [r.std() for r in rolling], rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.lists(VALUES, min_size=3, max_size=80), LENGTHS.filter(lambda d: d > 2))
def test_the_slope_is_that_of_a_least_squares_line(values: list[float], d: int) -> None:
    x = series(values)
    state = state_of(x, "trend", d, 1)
    window = x[-d:].astype(float)
    at = np.flatnonzero(np.isfinite(window))
    if at.size < 2:
        assert np.isnan(w.slope(state)).all()
    else:
        expected = np.cov(at, window[at])[0, 1] / np.var(at, ddof=1)
        np.testing.assert_allclose(w.slope(state)[0], expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.lists(VALUES.filter(lambda v: v != np.inf), min_size=1, max_size=80), LENGTHS)
def test_highest_quantile_and_rank_are_those_of_pandas(values: list[float], d: int) -> None:
    x = series(values)
    padded = np.concatenate([np.full(d, np.nan, np.float32), x])
    window = pd.Series(x, dtype=float).rolling(d, min_periods=1)
    n = state_of(x, "spread", d, x.size)[0]
    (q,) = w.quantiles(padded[1:], d, n, [0.8])
    ((_, rank),) = w.ranks(padded, [d], {d: n})
    np.testing.assert_array_equal(w.value_or_nan(state_of(x, "highest", d, x.size)), window.max())
    np.testing.assert_allclose(q, window.quantile(0.8), rtol=1e-12)
    np.testing.assert_allclose(rank, window.rank(pct=True), rtol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(VALUES, min_size=1, max_size=60),
    LENGTHS,
    st.integers(0, 50),
    st.sampled_from(["spread", "trend", "highest"]),
)
def test_a_state_depends_on_the_bars_of_its_window_alone(values: list[float], d: int, before: int, kind: str) -> None:
    x = series(values)
    longer = np.concatenate([np.linspace(1e6, 1, before, dtype=np.float32), np.full(d, np.nan, np.float32), x])
    for short, long in zip(state_of(x, kind, d, 1), state_of(longer, kind, d, 1), strict=True):
        assert short.tobytes() == long.tobytes()


@settings(deadline=None, max_examples=40)
@given(st.lists(LENGTHS, min_size=1, max_size=6), LENGTHS)
def test_a_window_does_not_depend_on_which_others_are_asked_for(others: list[int], d: int) -> None:
    x = np.random.default_rng(1).normal(100, 5, 160).astype(np.float32)
    alone = w.ladder(w.lift_spread(x), w.spread, [d], 20)[d]
    among = w.ladder(w.lift_spread(x), w.spread, [*others, d], 20)[d]
    assert [a.tobytes() for a in alone] == [b.tobytes() for b in among]


def test_a_flat_window_has_no_spread_and_no_correlation() -> None:
    x, y = np.full(60, 33.33, np.float32), np.arange(60, dtype=np.float32)
    state = w.ladder(w.lift_spread(x), w.spread, [30], 5)[30]
    pairs = w.ladder(w.lift_cospread(x, y), w.cospread, [30], 5)[30]
    moving = w.std(w.ladder(w.lift_spread(y), w.spread, [30], 5)[30])
    assert (w.std(state) == 0).all()
    assert np.isnan(w.correlation(pairs, w.std(state), moving)).all()


def test_of_equal_highs_the_oldest_is_named_and_a_gap_beats_them() -> None:
    x = np.float32([5, 7, 7, 6, 7])
    listed = np.ones(5, bool)
    _, age = w.ladder(w.lift_extreme(x, listed), w.extreme, [5], 1)[5]
    _, gap_age = w.ladder(w.lift_extreme(np.float32([5, 7, 7, np.nan, 7]), listed), w.extreme, [5], 1)[5]
    assert (age[0], gap_age[0]) == (3, 1)


def test_a_window_of_no_session_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        w.rungs([0])
