"What other costs and more money would have done is the answer of a run, or exactly the same."

import math
from dataclasses import replace
from datetime import date
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.report import text_of
from tradenb.market.demo import simulate
from tradenb.portfolio.backtest import Plan, backtest
from tradenb.portfolio.capacity import capacity, capacity_chart, cost_sensitivity, fixed_orders, half_capacity, repriced
from tradenb.portfolio.constructors import TopkDropout
from tradenb.portfolio.costs import Costs
from tradenb.portfolio.limits import Limits
from tradenb.portfolio.market import Market
from tradenb.portfolio.weights import LongShort

TERMS = Costs(0.005, 1.0, 2.0, 1.0, 1.5, 0.5, 0.02, 0.03)


@pytest.fixture(scope="module")
def market() -> Market:
    demo = simulate(symbols=30, start=date(2020, 1, 2), end=date(2020, 5, 29))
    return Market.from_frames(demo.truth, demo.actions)


@pytest.fixture(scope="module")
def predictions(market: Market) -> pl.DataFrame:
    demo = simulate(symbols=30, start=date(2020, 1, 2), end=date(2020, 5, 29))
    return demo.oracle.rename({"expected": "prediction"})


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(LongShort(5, 5), costs=TERMS, limits=Limits(0.3), max_volume_share=0.05)


@pytest.fixture(scope="module")
def result(market, predictions, plan):
    return backtest(predictions, market, plan)


@settings(max_examples=6)
@given(st.floats(0, 6))
def test_a_repriced_run_is_the_run_at_those_costs(market, predictions, plan, result, multiple):
    other = backtest(predictions, market, replace(plan, costs=plan.costs.times(multiple)))
    priced = repriced(result, multiple)
    assert other.fingerprint == result.fingerprint and priced is not None
    # Charges are rounded to a millionth of a dollar, a few of them a day.
    np.testing.assert_allclose(priced["equity"], other.daily["equity"], atol=1e-5 * other.daily.height)
    np.testing.assert_allclose(priced["return"], other.daily["return"], atol=1e-9)


def test_only_orders_that_cannot_depend_on_costs_are_repriced(market, predictions, plan):
    assert fixed_orders(plan)
    for other in (replace(plan, compounding=True), replace(plan, constructor=TopkDropout(5, 1))):
        assert not fixed_orders(other)
        found = cost_sensitivity(predictions, market, backtest(predictions, market, other), [0.0, 2.0])
        assert found["how"].to_list() == ["run again"] * 2
        assert found["annual_return"][0] > found["annual_return"][1]


def test_costs_that_ruin_the_account_are_run(market, predictions, plan, result):
    assert repriced(result, 400.0) is None
    found = cost_sensitivity(predictions, market, result, [1.0, 400.0])
    assert found["how"].to_list() == ["repriced", "run again"]
    assert found["max_drawdown"][1] == -1.0


def test_sensitivity_is_monotone_and_starts_with_the_run_itself(market, predictions, result):
    seen: list[tuple[int, int]] = []
    found = cost_sensitivity(predictions, market, result, progress=lambda done, of: seen.append((done, of)))
    assert found["annual_return"].is_sorted(descending=True)
    assert found.filter(pl.col("multiple") == 1)["sharpe"][0] == pytest.approx(result.metrics["sharpe"])
    assert seen[-1] == (5, 5)


def test_more_money_costs_more_and_fills_less(market, predictions, plan):
    curve = capacity(predictions, market, plan, [1e6, 1e8, 1e10])
    assert curve["fill_rate"].is_sorted(descending=True) and curve["fill_rate"][2] < 0.1 < 0.9 < curve["fill_rate"][0]
    assert curve["annual_return"][0] > curve["annual_return"][1] > curve["annual_return"][2]
    one = backtest(predictions, market, replace(plan, capital=Decimal(10**8)))
    assert curve["sharpe"][1] == pytest.approx(one.metrics["sharpe"])
    assert f"at ${text_of(half_capacity(curve), 'compact')}" in capacity_chart(curve).html


def test_a_curve_that_never_halves_is_drawn_without_the_line():
    flat = pl.DataFrame({"capital": [1e6, 1e7], "annual_return": [0.2, 0.19], "sharpe": [2.0, 1.9], "gross_sharpe": [2.1, 2.1]})  # fmt: skip
    assert "half the return" not in capacity_chart(flat).html
    assert "the market begins to notice" in capacity_chart(flat).html


def test_half_of_the_return_is_found_between_two_points():
    curve = pl.DataFrame({"capital": [1e6, 1e7, 1e8], "annual_return": [0.2, 0.1, -0.1]})
    assert half_capacity(curve) == pytest.approx(1e7)
    assert half_capacity(curve.head(1)) == math.inf
    assert math.isnan(half_capacity(curve.with_columns(-pl.col("annual_return"))))
