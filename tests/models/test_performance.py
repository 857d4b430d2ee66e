"Figures of a return series equal other libraries, or a hand-computed value where the libraries disagree."

import math
import statistics
import warnings
from datetime import date, timedelta
from itertools import combinations

import empyrical
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tradenb.core.errors import InputError
from tradenb.models import performance as m

few = st.lists(st.integers(-9_000, 20_000), min_size=3, max_size=60).map(lambda bps: np.array(bps) / 10_000)


def frame(returns, start=date(2020, 1, 1)):
    return pl.DataFrame({"date": [start + timedelta(days=i) for i in range(len(returns))], "return": returns})


def close(ours, theirs):
    return math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(ours) and math.isnan(theirs))


@given(few)
@settings(max_examples=100, deadline=None)
def test_every_figure_equals_empyrical_on_any_returns(returns):
    pairs = [
        (m.annual_return, empyrical.annual_return),
        (m.volatility, empyrical.annual_volatility),
        (m.max_drawdown, empyrical.max_drawdown),
        (m.calmar, empyrical.calmar_ratio),
        (m.value_at_risk, empyrical.value_at_risk),
    ]
    for ours, theirs in pairs:
        assert close(ours(returns), theirs(returns)), ours.__name__
    if np.std(returns) > 1e-9:
        assert close(m.sharpe(returns), empyrical.sharpe_ratio(returns))
        assert close(m.skew(returns), stats.skew(returns))
        assert close(m.kurtosis(returns), stats.kurtosis(returns, fisher=False))
    if returns.min() < -1e-9:
        assert close(m.sortino(returns), empyrical.sortino_ratio(returns))


@given(few, st.sampled_from([0.01, 0.05, 0.2]))
@settings(max_examples=50, deadline=None)
def test_expected_shortfall_is_the_mean_of_the_returns_at_or_below_the_value_at_risk(returns, share):
    ordered = sorted(returns)
    tail = [r for r in ordered if r <= m.value_at_risk(returns, share)]
    assert close(m.expected_shortfall(returns, share), statistics.mean(tail))
    if len(set(ordered)) == len(ordered):
        assert close(m.expected_shortfall(returns, share), empyrical.conditional_value_at_risk(returns, share))


def test_quantstats_agrees_but_for_the_tails_and_the_moments_conventions():
    returns = 0.0005 + 0.01 * np.random.default_rng(3).standard_t(4, 400)
    index = pd.Series(returns, pd.bdate_range("2020-01-02", periods=400))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from quantstats import stats as qs

        for name in ("sharpe", "sortino", "calmar", "max_drawdown", "volatility"):
            assert close(getattr(m, name)(returns), getattr(qs, name)(index)), name
        assert close(m.annual_return(returns), qs.cagr(index))
        assert close(qs.value_at_risk(index), stats.norm.ppf(0.05, returns.mean(), returns.std(ddof=1)))
        assert close(qs.skew(index), stats.skew(returns, bias=False))
        assert close(qs.kurtosis(index), stats.kurtosis(returns, bias=False))


def test_sharpe_and_drawdown_equal_their_definitions():
    returns = np.random.default_rng(5).normal(0.0005, 0.01, 300)
    by_hand = statistics.mean(returns) / statistics.stdev(returns) * math.sqrt(252)
    assert math.isclose(m.sharpe(returns), by_hand, rel_tol=1e-12)
    curve = [math.prod(1 + returns[:n]) for n in range(len(returns) + 1)]
    deepest = min(later / earlier - 1 for earlier, later in combinations(curve, 2))
    assert math.isclose(m.max_drawdown(returns), deepest, rel_tol=1e-9)


def test_drawdown_counts_a_loss_on_the_first_session():
    assert m.max_drawdown(np.array([-0.1, 0.05])) == pytest.approx(-0.1)
    assert m.max_drawdown(np.array([])) == 0.0


def test_ruin_is_final_where_empyrical_lets_capital_turn_negative():
    returns = np.array([0.1, -1.5, 0.5, 0.5])
    assert m.max_drawdown(returns) == -1.0
    assert m.annual_return(returns) == -1.0
    assert empyrical.max_drawdown(returns) < -1


def test_what_is_missing_is_left_out_and_too_little_is_nan():
    known = [0.01, -0.02, 0.03]
    gaps = pl.Series([0.01, None, -0.02, float("nan"), 0.03, float("inf")])
    assert dict(m.performance(gaps)) == dict(m.performance(known))
    empty, single = m.performance([]), m.performance([0.01])
    assert all(math.isnan(empty[k]) for k in ("annual_return", "sharpe", "sortino", "calmar", "skew", "value_at_risk"))
    assert (empty["sessions"], empty["max_drawdown"], empty["total_return"]) == (0.0, 0.0, 0.0)
    assert math.isnan(single["sharpe"])
    assert math.isnan(single["volatility"])


def test_a_constant_return_has_no_sharpe_ratio_whatever_rounding_says():
    assert np.full(30, 0.01).std(ddof=1) > 0
    assert all(math.isnan(m.performance(np.full(30, 0.01))[k]) for k in ("sharpe", "skew", "kurtosis", "sortino"))


@given(few)
@settings(max_examples=60, deadline=None)
def test_drawdown_episodes_cover_exactly_the_sessions_below_a_peak(returns):
    daily, depth = frame(returns), m.underwater(returns)
    table = m.drawdowns(daily, top=len(returns))
    assert table["sessions"].sum() == (depth < 0).sum()
    assert table["depth"].is_sorted()
    assert close(table["depth"].min() or 0.0, m.max_drawdown(returns))
    curve = dict(zip(daily["date"], m.equity(returns)[1:], strict=True))
    for row in table.iter_rows(named=True):
        peak = 1.0 if row["peak"] is None else curve[row["peak"]]
        assert close(curve[row["trough"]] / peak - 1, row["depth"])
        if row["recovered"]:
            assert curve[row["recovered"]] >= peak * (1 - 1e-12)
            assert row["recovering"] == (row["recovered"] - row["trough"]).days


def test_the_deepest_episode_runs_from_the_last_peak_to_the_lowest_point():
    returns = 0.0005 + 0.01 * np.random.default_rng(8).standard_t(4, 500)
    series = pd.Series(returns, pd.date_range("2020-01-01", periods=500))
    deepest = m.drawdowns(frame(returns)).row(0, named=True)
    under = pd.Series(m.underwater(returns), series.index)
    assert deepest["trough"] == under.idxmin().date()
    before = under[: under.idxmin()]
    assert deepest["peak"] == before[before == 0].index[-1].date()


def test_months_and_years_compound_to_the_whole_and_equal_empyrical():
    returns = np.random.default_rng(1).normal(0.0005, 0.01, 500)
    daily = frame(returns)
    months = m.monthly(daily)
    series = pd.Series(returns, pd.date_range("2020-01-01", periods=500))
    assert np.allclose(months["return"], empyrical.aggregate_returns(series, "monthly"), atol=1e-14)
    assert months["sessions"].sum() == 500
    table = m.monthly_table(daily)
    assert table.columns == ["year", *(pd.Timestamp(2020, k, 1).strftime("%b") for k in range(1, 13)), "Year"]
    assert np.allclose(table["Year"], empyrical.aggregate_returns(series, "yearly"), atol=1e-14)
    assert table["Dec"][-1] is None
    assert m.yearly(daily)["sharpe"][0] == pytest.approx(m.sharpe(returns[:366]))


def test_rolling_sharpe_equals_a_loop_and_is_empty_when_too_short():
    returns = np.random.default_rng(2).normal(0, 0.01, 80)
    ours = m.rolling_sharpe(frame(returns), 30)
    assert ours["sharpe"].to_list() == pytest.approx([m.sharpe(returns[i : i + 30]) for i in range(51)])
    assert m.rolling_sharpe(frame(returns), 81).is_empty()
    assert m.rolling_sharpe(frame(np.full(40, 0.01)), 30)["sharpe"].dtype == pl.Float64


def test_relative_equals_a_regression():
    rng = np.random.default_rng(4)
    market = rng.normal(0.0004, 0.01, 300)
    mine = 0.0002 + 0.7 * market + rng.normal(0, 0.005, 300)
    found, line = m.relative(frame(mine), frame(market)), stats.linregress(market, mine)
    assert found["beta"] == pytest.approx(line.slope)
    assert found["alpha"] == pytest.approx(line.intercept * 252)
    assert found["correlation"] == pytest.approx(line.rvalue)
    assert (1 + found["alpha"] / 252) ** 252 - 1 == pytest.approx(empyrical.alpha(mine, market), rel=1e-9)
    assert found["information_ratio"] == pytest.approx(empyrical.excess_sharpe(mine, market) * math.sqrt(252))
    assert found == pytest.approx(
        {
            "alpha": -0.05404870130343115,
            "beta": 0.7123196935317501,
            "correlation": 0.821308447792235,
            "active_return": -0.1569854271650069,
            "tracking_error": 0.09165734828716493,
            "information_ratio": -1.712742405258849,
        },
        rel=1e-12,
    )


def nothing_of(figures) -> set[str]:
    return {name for name, value in figures.items() if math.isnan(value)}


def test_relative_says_nothing_of_fewer_than_three_shared_sessions():
    mine = np.random.default_rng(4).normal(0, 0.01, 30)
    for other in (frame(mine, date(2030, 1, 1)), frame(mine[:2]), frame([*mine[:2], math.nan, math.inf])):
        assert nothing_of(m.relative(frame(mine), other)) == set(m.RELATIVE)
    assert not nothing_of(m.relative(frame(mine), frame(2 * mine[:3])))


def test_a_benchmark_without_spread_leaves_the_active_figures():
    mine = np.random.default_rng(4).normal(0, 0.01, 30)
    for rate in (0.0, 0.02 / 252, -0.1 / 3):
        found = m.relative(frame(mine), frame(np.full(30, rate)))
        assert nothing_of(found) == {"alpha", "beta", "correlation"}
        assert found["active_return"] == pytest.approx(252 * (mine.mean() - rate))
        assert found["information_ratio"] == pytest.approx(m.sharpe(mine - rate))


def test_returns_without_spread_have_a_beta_of_zero_and_no_correlation():
    market = np.random.default_rng(4).normal(0, 0.01, 30)
    found = m.relative(frame(np.full(30, 0.1 / 3)), frame(market))
    assert nothing_of(found) == {"correlation"}
    assert (found["beta"], found["alpha"]) == (pytest.approx(0, abs=1e-12), pytest.approx(252 * 0.1 / 3))


def test_returns_beside_themselves_have_no_information_ratio():
    mine = np.random.default_rng(4).normal(0, 0.01, 30)
    found = m.relative(frame(mine), frame(mine))
    assert nothing_of(found) == {"information_ratio"}
    assert (found["beta"], found["correlation"], found["tracking_error"]) == (pytest.approx(1), pytest.approx(1), 0)


def test_frames_need_their_columns_and_no_order():
    returns = np.random.default_rng(6).normal(0, 0.01, 50)
    shuffled = frame(returns).sample(fraction=1.0, shuffle=True, seed=1)
    assert m.drawdowns(shuffled).equals(m.drawdowns(frame(returns)))
    assert m.monthly(shuffled)["return"].to_list() == pytest.approx(m.monthly(frame(returns))["return"].to_list())
    with pytest.raises(InputError, match="return"):
        m.monthly(frame(returns).drop("return"))


def test_empty_frames_give_empty_tables():
    empty = frame(np.array([], dtype=float)).with_columns(pl.col("date").cast(pl.Date))
    for table in (
        m.drawdowns(empty),
        m.monthly(empty),
        m.monthly_table(empty),
        m.yearly(empty),
        m.rolling_sharpe(empty),
    ):
        assert table.is_empty()
