"""States of windows: what rational arithmetic, pandas or the definition gives, at any length, from any history, for any numbers."""

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradenb.features import windows as w
from tradenb.features.windows import KINDS, rungs, split

Series = np.ndarray
GONE = {
    "all missing": [np.nan] * 7,
    "all infinite": [np.inf, -np.inf, np.inf] * 2,
    "nothing known": [np.nan, np.inf, -np.inf],
}
lengths = st.integers(1, 130)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
price = st.floats(0.0625, 1e5, width=32)
missing = st.sampled_from([math.nan, math.inf, -math.inf])
seeds = st.integers(0, 2**32 - 1)


def climb(name: str, d: int, *series: Series) -> tuple[Any, ...]:
    "States of all windows of `d` bars, by the ladder: arrays one shorter per bar before the first window's end."
    kind = KINDS[name]
    if d == 1:
        return kind.lift(*series)
    new, old = split(d)
    newer, older = climb(name, new, *series), climb(name, old, *series)
    n = len(series[0]) - d + 1
    return kind.merge(float(new), *(x[old:] for x in newer), *(x[:n] for x in older))


def last(name: str, *series: Any) -> tuple[float, ...]:
    "The state of one window that is all of the series."
    arrays = [np.asarray(x, float) for x in series]
    return tuple(np.float64(x[-1]) for x in climb(name, len(arrays[0]), *arrays))


def known(x: Any) -> list[Fraction]:
    return [Fraction(float(v)) for v in x if np.isfinite(v)]


def squares(x: list[Fraction], y: list[Fraction] | None = None) -> Fraction:
    "Centred sum of products."
    y = x if y is None else y
    a, b = sum(x) / len(x), sum(y) / len(y)
    return sum(((u - a) * (v - b) for u, v in zip(x, y, strict=True)), Fraction(0))


def close_to(value: float, exact: Fraction | float, relative: float) -> bool:
    return abs(Fraction(float(value)) - Fraction(exact)) <= Fraction(relative) * abs(Fraction(exact))


def walk(seed: int, n: int, gaps: float = 0.1) -> Series:
    "Prices as fields have them, some missing, some infinite."
    rng = np.random.default_rng(seed)
    x = (rng.uniform(1, 400) * np.exp(np.cumsum(rng.normal(0, 0.02, n)))).astype(np.float32).astype(float)
    x[rng.random(n) < gaps] = np.nan
    x[rng.random(n) < gaps / 5] = np.inf
    return x


# The ladder


@given(d=st.integers(2, 100_000))
def test_a_window_is_split_into_a_newer_part_and_an_older_one_that_is_not_longer(d: int) -> None:
    new, old = split(d)
    assert new + old == d and new >= old >= 1


@given(ds=st.lists(st.integers(1, 5_000), min_size=1, max_size=6))
def test_a_ladder_has_all_the_rungs_it_stands_on_and_no_other(ds: list[int]) -> None:
    found = rungs(*ds)
    assert found == sorted(set(found)) and found[0] == 1 and set(ds) <= set(found)
    for d in found[1:]:
        assert set(split(d)) <= set(found)
    assert set(found) == {1}.union(*(rungs(d) for d in ds))


@given(d=st.integers(2, 1_000_000))
def test_merges_grow_with_the_logarithm_of_the_length(d: int) -> None:
    assert len(rungs(d)) <= 2 * math.log2(d) + 2


@pytest.mark.parametrize("d", [1, 0, -3])
def test_what_is_no_window_of_two_bars_cannot_be_split(d: int) -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        split(d)


@pytest.mark.parametrize("name", KINDS)
@given(seed=seeds, d=lengths, more=st.integers(0, 60))
def test_a_state_depends_on_its_own_bars_alone(name: str, seed: int, d: int, more: int) -> None:
    series = [walk(seed, d + more), walk(seed + 1, d + more)][: w.KINDS[name].lift.__code__.co_argcount]
    long, short = climb(name, d, *series), climb(name, d, *(x[more:] for x in series))
    assert [x[-1].tobytes() for x in map(np.asarray, long)] == [x[-1].tobytes() for x in map(np.asarray, short)]


@pytest.mark.parametrize("name", KINDS)
@given(seed=seeds, d=lengths)
def test_numbers_and_arrays_give_the_same_bits(name: str, seed: int, d: int) -> None:
    series = [walk(seed, d), walk(seed + 1, d)][: w.KINDS[name].lift.__code__.co_argcount]

    def one(start: int, stop: int) -> tuple[Any, ...]:
        if stop - start == 1:
            return KINDS[name].lift(*(np.float64(x[start]) for x in series))
        new, _ = split(stop - start)
        return KINDS[name].merge(float(new), *one(stop - new, stop), *one(start, stop - new))

    with np.errstate(all="ignore"):
        assert [np.float64(x).tobytes() for x in one(0, d)] == [np.float64(x).tobytes() for x in last(name, *series)]


# Merging


@pytest.mark.parametrize("name", KINDS)
@given(seed=seeds, cuts=st.sets(st.integers(1, 39), min_size=2, max_size=2))
def test_a_merge_is_associative(name: str, seed: int, cuts: set[int]) -> None:
    series = [walk(seed, 40), walk(seed + 1, 40)][: w.KINDS[name].lift.__code__.co_argcount]
    kind, ends = KINDS[name], [0, *sorted(cuts), 40]
    old, mid, new = (last(name, *(x[a:b] for x in series)) for a, b in pairwise(ends))
    k, j = float(ends[2] - ends[1]), float(ends[3] - ends[2])
    left = kind.merge(j, *new, *kind.merge(k, *mid, *old))
    right = kind.merge(j + k, *kind.merge(j, *new, *mid), *old)
    scale = max([1.0, *(abs(v) for v in left if np.isfinite(v))])
    np.testing.assert_allclose(np.array(left, float), np.array(right, float), rtol=1e-10, atol=1e-13 * scale)


@pytest.mark.parametrize("name", KINDS)
@given(seed=seeds, d=lengths)
def test_no_bars_in_front_change_nothing(name: str, seed: int, d: int) -> None:
    series = [walk(seed, d), walk(seed + 1, d)][: w.KINDS[name].lift.__code__.co_argcount]
    state = last(name, *series)
    joined = KINDS[name].merge(float(d), *state, *KINDS[name].empty)
    read = slice(0, 1) if name == "extreme" and state[0] == -np.inf else slice(None)  # the age of nothing is no age
    np.testing.assert_array_equal(joined[read], state[read])


@given(seed=seeds, d=lengths, k=st.integers(1, 50))
def test_sessions_without_a_bar_make_the_others_older(seed: int, d: int, k: int) -> None:
    x = walk(seed, d, gaps=0.0)
    n, a, aa, y, ay = last("trend", x)
    found = KINDS["trend"].merge(float(k), *KINDS["trend"].empty, n, a, aa, y, ay)
    ages = np.arange(d)[::-1] + k
    assert found[:3] == (d, ages.sum(), (ages**2).sum())
    value, age = last("extreme", x, np.ones(d))
    assert KINDS["extreme"].merge(float(k), *KINDS["extreme"].empty, value, age) == (value, age + k)


# Against exact arithmetic and pandas


@given(x=st.lists(st.one_of(price, missing), min_size=1, max_size=130))
def test_counts_sums_and_means_of_fields_are_exact(x: list[float]) -> None:
    n, s = last("total", x)
    there = known(x)
    assert (n, Fraction(s)) == (len(there), sum(there, Fraction(0)))
    if there:
        assert w.mean(n, s) == float(sum(there) / len(there))
        assert last("spread", x)[:2] == (n, s)
    assert last("count", x)[0] == sum(v == v for v in x)


@given(seed=seeds, d=st.integers(2, 130))
def test_spreads_are_exact_to_the_last_digits(seed: int, d: int) -> None:
    x, y = walk(seed, d), walk(seed + 1, d)
    n, _, q = last("spread", x)
    if n > 1:
        exact = squares(known(x))
        assert close_to(q, exact, 1e-13) and close_to(w.var(n, q), exact / (int(n) - 1), 1e-13)
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() > 1:
        m, _, _, xx, yy, xy = last("cospread", x, y)
        assert (
            m == both.sum()
            and close_to(xx, squares(known(x[both])), 1e-13)
            and close_to(yy, squares(known(y[both])), 1e-13)
        )
        assert abs(Fraction(xy) - squares(known(x[both]), known(y[both]))) <= Fraction(1e-13) * Fraction(
            math.sqrt(xx * yy)
        )


@given(seed=seeds, d=st.integers(2, 130))
def test_the_line_through_a_window_is_exact(seed: int, d: int) -> None:
    x = walk(seed, d)
    x[np.isinf(x)] = np.nan
    at = [Fraction(i) for i in np.flatnonzero(~np.isnan(x)).tolist()]
    state = last("trend", x)
    if len(at) < 2:
        assert np.isnan(w.slope(*state)) and np.isnan(w.resi(*state, x[-1]))
        return
    y = known(x)
    slope = squares(at, y) / squares(at)
    scale = max(y) / Fraction(d)
    assert abs(Fraction(float(w.slope(*state))) - slope) <= Fraction(1e-12) * scale
    if not np.isnan(x[-1]):
        away = y[-1] - (sum(y) / len(y) + slope * (at[-1] - sum(at) / len(at)))
        assert abs(Fraction(float(w.resi(*state, x[-1]))) - away) <= Fraction(1e-12) * max(y)
    fit = squares(at, y) ** 2 / squares(at) / squares(y) if squares(y) else None
    found = float(w.rsquare_all(*state, last("spread", x)[2]))
    assert np.isnan(found) if fit is None else abs(Fraction(found) - fit) < 1e-9


@given(seed=seeds, d=st.integers(4, 130))
def test_skewness_and_kurtosis_are_those_of_pandas(seed: int, d: int) -> None:
    x = walk(seed, d)
    n, _, q, c, f = last("moments", x)
    if n >= 4 and q / n > 1e-3:
        there = pd.Series(x[np.isfinite(x)] - np.mean(x[np.isfinite(x)]))
        np.testing.assert_allclose(
            [w.skew(n, q, c), w.kurt(n, q, f)], [there.skew(), there.kurt()], rtol=1e-8, atol=1e-8
        )


@given(seed=seeds, d=lengths, more=st.integers(0, 40))
def test_rolling_windows_are_those_of_pandas(seed: int, d: int, more: int) -> None:
    x = walk(seed, d + more)
    rolling = pd.Series(np.where(np.isfinite(x), x, np.nan)).rolling(d, min_periods=1)
    total, spread = climb("total", d, x), climb("spread", d, x)
    for ours, theirs in ((w.mean(*total), rolling.mean()), (w.sum_of(*total), rolling.sum()), (w.top(*climb("highest", d, x)), rolling.max()),
                         (w.bottom(*climb("highest", d, -x)), rolling.min()), (w.std(spread[0], spread[2]), rolling.std())):  # fmt: skip
        np.testing.assert_allclose(ours, theirs[d - 1 :], rtol=1e-7, atol=1e-6)


@given(seed=seeds, d=lengths)
def test_a_weighted_mean_is_qlib_s_nanmean_of_weighted_bars(seed: int, d: int) -> None:
    x = walk(seed, d)
    x[np.isinf(x)] = np.nan
    n, _, _, y, ay = last("trend", x)
    weights = np.arange(1, d + 1) / (d * (d + 1) / 2)
    expected = np.nansum(weights * x) / n if n else np.nan
    np.testing.assert_allclose(w.wma(n, y, ay, float(d)), expected, rtol=1e-13)


@given(
    x=st.lists(st.one_of(st.sampled_from([-2.0, 0.0, -0.0, 1.0, 3.0]), missing), min_size=1, max_size=70),
    unlisted=st.integers(0, 5),
)
def test_the_oldest_of_equal_highs_is_named_and_a_missing_bar_beats_them(x: list[float], unlisted: int) -> None:
    series, alive = np.r_[[np.nan] * unlisted, x], np.r_[[np.nan] * unlisted, [1.0] * len(x)]
    found = w.position(*last("highest", series), last("extreme", series, alive)[1], float(len(x)))
    there = np.isfinite(x)
    expected = np.nan if not there.any() else 1 + (np.argmax(x) if there.all() else np.argmin(there))
    np.testing.assert_equal(float(found), float(expected))


@given(
    x=st.lists(st.one_of(price, st.just(math.nan)), min_size=1, max_size=60),
    alpha=st.sampled_from([0.05, 0.3, 2 / 6, 2 / 13, 1.0]),
)
def test_the_exponential_mean_has_the_bits_of_pandas(x: list[float], alpha: float) -> None:
    average, weight, found = np.nan, 1.0, []
    com = (1.0 - alpha) / alpha
    for value in x:
        average, weight = w.ema(average, weight, np.float64(value), 1.0 - 1.0 / (1.0 + com))
        found.append(float(average))
    np.testing.assert_array_equal(found, pd.Series(x).ewm(alpha=alpha, min_periods=1).mean())


# Hard numbers


@given(seed=seeds, d=st.integers(2, 130), narrow=st.booleans())
def test_prices_of_a_hundred_thousand_that_move_by_millionths_keep_their_spread(
    seed: int, d: int, narrow: bool
) -> None:
    x = 1e5 * (1 + 1e-6 * np.random.default_rng(seed).normal(size=d))
    x = x.astype(np.float32).astype(float) if narrow else x
    exact = squares(known(x))
    for name in ("spread", "moments"):
        q = last(name, x)[2]
        assert q == 0 if exact == 0 else close_to(q, exact, 1e-12 if narrow else 1e-7)
    y = x[::-1] * 1.0
    product = last("cospread", x, y)[-1]
    assert abs(Fraction(product) - squares(known(x), known(y))) <= Fraction(1e-7) * exact


@given(
    d=lengths,
    value=st.one_of(st.just(0.1), st.floats(1e-300, 1e150), st.just(0.0), st.floats(-1e9, -1e-9)),
    gap=st.integers(0, 129),
)
def test_a_constant_window_of_64_bits_is_flat_to_the_bit(d: int, value: float, gap: int) -> None:
    x = np.full(d, value)
    if gap < d - 1:
        x[gap] = np.nan
    (n, s), (u,), (_, _, q) = last("total", x), last("level", x), last("spread", x)
    assert w.level_mean(n, s, u) == value and w.level_sum(n, s, u) == n * value and w.unless_level(q, u) == 0.0
    assert n < 2 or w.std(n, w.unless_level(q, u)) == 0.0
    assert n < 3 or w.skew(n, w.unless_level(q, u), last("moments", x)[3]) == 0.0
    assert n < 4 or w.kurt(n, w.unless_level(q, u), last("moments", x)[4]) == -3.0


def test_without_watching_for_it_a_window_of_tenths_would_not_be_flat() -> None:
    assert any(w.mean(*last("total", np.full(d, 0.1))) != 0.1 for d in range(1, 60))


@given(d=lengths, value=st.floats(-(2.0**99), 2.0**99, width=32))
def test_a_constant_window_of_a_field_is_flat_by_itself(d: int, value: float) -> None:
    n, s, q = last("spread", np.full(d, value))
    assert w.mean(n, s) == value and q == 0.0
    line = last("trend", np.full(d, value))
    assert d < 2 or (w.slope(*line), w.resi(*line, value)) == (0.0, 0.0)


@given(seed=seeds, d=st.integers(2, 130))
def test_a_level_is_the_common_value_or_none(seed: int, d: int) -> None:
    x = np.random.default_rng(seed).choice(
        [0.1, 0.1, 0.1, np.nan, 0.1 + 1e-17, 0.2], d, p=[0.4, 0.3, 0.2, 0.07, 0.02, 0.01]
    )
    (u,), there = last("level", x), x[np.isfinite(x)]
    expected = np.inf if not there.size else there[0] if (there == there[0]).all() else np.nan
    np.testing.assert_equal(u, expected)


@given(seed=seeds, d=st.integers(3, 130))
def test_volumes_of_1e12_lose_nothing(seed: int, d: int) -> None:
    x = np.round(1e12 + np.random.default_rng(seed).normal(0, 1e5, d)).astype(float)
    assert last("total", x)[1] == float(sum(known(x)))
    exact = squares(known(x))
    assert close_to(last("spread", x)[2], exact, 1e-6)
    wide = np.round(10 ** np.random.default_rng(seed).uniform(0, 12, d))
    assert close_to(last("spread", wide)[2], squares(known(wide)), 1e-12)


@given(d=lengths)
def test_a_straight_line_leaves_nothing(d: int) -> None:
    x = 100.0 + 0.25 * np.arange(d)
    line = last("trend", x)
    if d > 1:
        assert w.slope(*line) == 0.25 and w.resi(*line, x[-1]) == 0.0
    if d > 2:
        assert abs(w.rsquare(*line, last("spread", x)[2]) - 1) < 1e-12


@pytest.mark.parametrize("zeros", [[0.0] * 5, [-0.0] * 5, [0.0, -0.0, 0.0, -0.0, 0.0]])
def test_zeros_of_either_sign_are_zero(zeros: list[float]) -> None:
    n, s, q = last("spread", zeros)
    assert (n, s, q, w.mean(n, s), w.std(n, q), w.top(*last("highest", zeros))) == (5, 0, 0, 0, 0, 0)
    assert last("level", zeros)[0] == 0.0


@pytest.mark.parametrize("kind", GONE)
def test_where_nothing_is_known_nothing_is_said(kind: str) -> None:
    x = GONE[kind]
    n, s = last("total", x)
    line = last("trend", [np.nan] * len(x))
    q, c, f = last("moments", x)[2:]
    pairs = last("cospread", x, x)
    said = [w.mean(n, s), w.sum_of(n, s), w.level_mean(n, s, *last("level", x)), w.var(n, q), w.std(n, q), w.skew(n, q, c), w.kurt(n, q, f),
            w.cov(pairs[0], pairs[-1]), w.corr(pairs[0], *pairs[3:], 1.0, 1.0), w.slope(*line), w.resi(*line, x[-1]), w.rsquare_all(*line, q),
            w.top(*last("highest", x)), w.bottom(*last("highest", [-v for v in x]))]  # fmt: skip
    assert np.isnan(said).all()
    assert last("count", x)[0] == sum(v == v for v in x)


def test_of_one_bar_there_is_a_mean_and_no_spread() -> None:
    n, s, q = last("spread", [12.5])
    assert (w.mean(n, s), w.sum_of(n, s), w.top(*last("highest", [12.5]))) == (12.5, 12.5, 12.5)
    _, _, _, c, f = last("moments", [12.5])
    line = last("trend", [12.5])
    assert np.isnan(
        [w.var(n, q), w.std(n, q), w.skew(n, q, c), w.kurt(n, q, f), w.slope(*line), w.resi(*line, 12.5)]
    ).all()


@given(seed=seeds, d=st.integers(2, 60))
def test_an_infinity_is_missing_everywhere_but_in_counts_and_lines(seed: int, d: int) -> None:
    x = walk(seed, d, gaps=0.0)
    x[seed % d] = np.inf
    gone = np.where(np.isfinite(x), x, np.nan)
    for name in ("total", "level", "spread", "moments", "highest"):
        np.testing.assert_array_equal(last(name, x), last(name, gone))
    assert last("count", x)[0] == last("count", gone)[0] + 1
    with np.errstate(invalid="ignore"):
        assert np.isnan([w.slope(*last("trend", x)), w.resi(*last("trend", x), 1.0)]).all()


# Bar by bar


@given(x=st.floats(width=32), y=st.floats(width=32))
def test_larger_and_smaller_are_numpy_s_to_the_bit(x: float, y: float) -> None:
    for ours, theirs in ((w.greater, np.maximum), (w.less, np.minimum)):
        found, expected = np.float32(ours(x, y)), theirs(np.float32(x), np.float32(y))
        assert found.tobytes() == expected.tobytes() or (np.isnan(found) and np.isnan(expected))


@given(x=st.floats(width=32), y=st.floats(width=32))
def test_arithmetic_in_64_bits_rounded_to_32_is_that_of_32_bits(x: float, y: float) -> None:
    "Also where the outcome is subnormal, infinite or nothing."
    with np.errstate(all="ignore"):
        a, b = np.float32(x), np.float32(y)
        for formula, expected in ((w.add, a + b), (w.sub, a - b), (w.mul, a * b), (w.div, a / b)):
            np.testing.assert_array_equal(np.float32(formula(np.float64(x), np.float64(y))), expected)


@given(x=st.floats(width=32), y=st.floats(width=32))
def test_comparisons_with_nothing_are_false_but_for_unequal(x: float, y: float) -> None:
    found = [f(x, y, 1.0) for f in (w.gt, w.ge, w.lt, w.le, w.eq, w.ne)]
    assert found == [x > y, x >= y, x < y, x <= y, x == y, x != y]
    assert np.isnan([f(x, y, np.nan) for f in (w.gt, w.ge, w.lt, w.le, w.eq, w.ne)]).all()
    np.testing.assert_equal(float(w.choose(x, 1.0, 2.0, 1.0)), 1.0 if x != 0 else 2.0)
