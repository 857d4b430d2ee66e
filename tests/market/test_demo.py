"The simulated market: a truth to judge by, and a past that never changes."

from dataclasses import fields
from datetime import date

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tradenb.core.calendar import is_session, sessions
from tradenb.core.errors import InputError
from tradenb.market.actions import KINDS, adjust
from tradenb.market.demo import CHECK_OF, DemoMarket, oracle_ic, simulate

START, END = date(2019, 3, 1), date(2021, 12, 31)
WORLD = {"symbols": 60, "start": START, "seed": 3, "bad_rows": 400.0}


@pytest.fixture(scope="module")
def market() -> DemoMarket:
    return simulate(**WORLD, end=END)


def until(frame: pl.DataFrame, day: date) -> pl.DataFrame:
    return frame.filter(pl.col("ex_date" if "ex_date" in frame.columns else "date") <= day)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sessions(date(2019, 6, 3), END)))
def test_a_later_end_adds_days_and_changes_none(day):
    short, long = simulate(**WORLD, end=day), simulate(**WORLD, end=END)
    for name in ("truth", "delivered", "planted", "actions", "oracle", "market"):
        assert_frame_equal(getattr(short, name), until(getattr(long, name), day), check_exact=True)


def test_the_same_arguments_give_the_same_bits_and_another_seed_another_market(market):
    simulate.cache_clear()
    again, other = simulate(**WORLD, end=END), simulate(**(WORLD | {"seed": 4}), end=END)
    for field in fields(DemoMarket):
        assert getattr(market, field.name).equals(getattr(again, field.name))
    assert not market.truth.equals(other.truth)


def test_bars_are_coherent_in_cents_and_on_sessions_without_a_gap(market):
    low, high = pl.min_horizontal("open", "close", "vwap"), pl.max_horizontal("open", "close", "vwap")
    assert market.truth.select(
        ((pl.col("low") > 0) & (pl.col("low") <= low) & (pl.col("high") >= high) & (pl.col("volume") > 0)).all()
    ).item()
    for price in ("open", "high", "low", "close"):
        assert (market.truth[price].round(2) == market.truth[price]).all()
    days = sessions(START, END)
    for row in market.assets.iter_rows(named=True):
        mine = market.truth.filter(symbol=row["symbol"])["date"].to_list()
        assert mine == [d for d in days if row["first_date"] <= d <= (row["last_date"] or END)]


def test_planted_rows_are_delivered_and_absent_from_the_truth(market):
    delivered = market.delivered.with_columns(n=pl.len().over("symbol", "date"))
    assert set(market.planted["check"]) == set(CHECK_OF.values())
    for check, of_kind in market.planted.group_by("check"):
        rows = of_kind.join(delivered, on=["symbol", "date"])
        good = rows.join(
            market.truth, on=["symbol", "date", "open", "high", "low", "close", "volume", "vwap"], nulls_equal=True
        )
        match check[0]:
            case "gap":
                assert rows.is_empty()
            case "duplicate":
                assert (rows["n"] == 2).all() and len(good) == len(of_kind)
            case "session":
                assert len(rows) == len(of_kind) and not any(map(is_session, rows["date"]))
            case _:
                assert len(rows) == len(of_kind) and good.is_empty()


def test_all_other_rows_are_the_truth(market):
    untouched = market.delivered.join(market.planted, on=["symbol", "date"], how="anti")
    assert_frame_equal(
        untouched, market.truth.join(market.planted, on=["symbol", "date"], how="anti"), check_exact=True
    )


def test_no_bad_row_stands_on_a_corporate_action(market):
    assert market.planted.join(market.actions, left_on=["symbol", "date"], right_on=["symbol", "ex_date"]).is_empty()


def test_no_bad_rows_means_what_is_delivered_is_true():
    clean = simulate(symbols=20, start=START, end=date(2019, 12, 31), bad_rows=0)
    assert clean.planted.is_empty() and clean.delivered.equals(clean.truth)


def test_the_oracle_ic_grows_with_strength_and_is_none_without():
    means = []
    for strength in (0.0, 0.1, 0.3):
        ic = oracle_ic(simulate(symbols=100, start=START, end=END, strength=strength, seed=5))["rank_ic"]
        means.append(ic.mean())
    assert abs(means[0]) < 0.02 and 0.06 < means[1] < 0.13 and 0.2 < means[2] < 0.4


def test_the_realised_label_is_the_one_that_adjusted_bars_give(market):
    bars = adjust(market.truth, market.actions, "total_return", "ex_close")
    label = (pl.col("adj_close").shift(-2) / pl.col("adj_close").shift(-1) - 1).over("symbol").alias("label")
    both = (
        bars.select("symbol", "date", label)
        .drop_nulls()
        .join(market.realised, on=["symbol", "date"], how="full", coalesce=True)
    )
    assert both.null_count().sum_horizontal().item() == 0
    assert np.allclose(both["label"], both["realised"], rtol=0, atol=1e-12)


def test_actions_are_known_kinds_declared_before_they_act_and_delistings_end_a_stock(market):
    assert set(market.actions["kind"]) <= set(KINDS) and {"split", "dividend", "delisting"} <= set(
        market.actions["kind"]
    )
    assert (market.actions["declared_at"] < market.actions["ex_date"]).all()
    ended = market.actions.filter(kind="delisting").join(market.assets, on="symbol")
    assert (ended["last_date"] < ended["ex_date"]).all() and (ended["cash"] > 0).all()
    assert (
        market.truth.join(ended.select("symbol", "ex_date"), on="symbol")
        .filter(pl.col("date") >= pl.col("ex_date"))
        .is_empty()
    )


def test_no_true_move_needs_an_explanation_beyond_its_corporate_actions(market):
    bars = adjust(market.truth, market.actions, "total_return", "ex_close")
    moves = (
        bars.select((pl.col("adj_close") / pl.col("adj_close").shift(1) - 1).over("symbol")).to_series().drop_nulls()
    )
    assert moves.abs().max() < 0.27


def test_a_market_without_a_session_is_refused():
    with pytest.raises(InputError, match="no session from 2019-03-02"):
        simulate(start=date(2019, 3, 2), end=date(2019, 3, 3))
