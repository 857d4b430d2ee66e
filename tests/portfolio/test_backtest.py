"The books balance to the cent, nothing is known too early, and what is earned is what the rule's positions earned."

from dataclasses import FrozenInstanceError, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from uuid import UUID

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tradenb.core.errors import InputError
from tradenb.core.settings import load
from tradenb.exchange import accounts as exchange
from tradenb.exchange import corporate
from tradenb.features.labels import label
from tradenb.features.panel import Panel, random_panel
from tradenb.market.actions import place_events
from tradenb.market.demo import DemoMarket, simulate
from tradenb.market.lake import Lake
from tradenb.market.tables import TABLES
from tradenb.models.metrics import long_short_returns
from tradenb.portfolio.backtest import ZERO, Account, Backtest, Plan, Run, backtest
from tradenb.portfolio.constructors import (
    BetaNeutral,
    SectorNeutral,
    TopkDropout,
    TurnoverCapped,
    VolatilityScaled,
)
from tradenb.portfolio.costs import Costs
from tradenb.portfolio.limits import Limits
from tradenb.portfolio.market import Known, Market, reference_price
from tradenb.portfolio.optimiser import MeanVariance
from tradenb.portfolio.sizing import size_orders
from tradenb.portfolio.weights import LongOnly, LongShort, RankWeighted, normalise
from tradenb.trading.orchestrator import before_session
from tradenb.trading.planning import day_orders

few = settings(max_examples=25)
COSTLY = Costs(0.005, 1.0, 2.0, 1.0, 1.5, 0.5, 0.02, 0.03)


def random_market(seed: int, symbols: int = 8, sessions: int = 16) -> Market:
    "Suspensions, splits, dividends, delistings, thin volumes."
    rng, shape = np.random.default_rng(seed), (symbols, sessions)
    close = np.round(rng.uniform(5, 200, (symbols, 1)) * np.exp(np.cumsum(rng.normal(0, 0.03, shape), axis=1)), 2)
    ratio = np.where(rng.random(shape) < 0.03, rng.choice([2.0, 3.0, 0.1, 1.05], shape), 1.0)
    close = np.maximum(np.round(close / np.cumprod(ratio, axis=1), 2), 0.01)
    cash = np.where(rng.random(shape) < 0.04, np.round(close * 0.02, 2), 0.0)
    final = np.full(shape, np.nan)
    bar = rng.random(shape) > 0.05
    for i in np.flatnonzero(rng.random(symbols) < 0.25):
        at = int(rng.integers(4, sessions))
        bar[i, at:], final[i, at] = False, round(float(close[i, at - 1] * rng.uniform(0, 1.5)), 2)
    fields = {
        "open": np.maximum(np.round(close * np.exp(rng.normal(0, 0.01, shape)), 2), 0.01),
        "close": close,
        "volume": np.round(rng.uniform(0, 2e5, shape)),
    }
    fields = {k: np.where(bar, x, np.nan) for k, x in fields.items()}
    days = np.busday_offset("2024-01-02", np.arange(sessions)).astype("datetime64[D]")
    return Market(tuple(f"S{i}" for i in range(symbols)), days, **fields, ratio=ratio, cash=cash, final=final)


def random_predictions(market: Market, seed: int, share: float = 0.9) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    there = np.isfinite(market.close) & (rng.random(market.shape) < share) & (rng.random(market.shape[1]) < share)
    return predictions_of(market, np.where(there, rng.normal(size=market.shape), np.nan))


def predictions_of(market: Market, values: np.ndarray) -> pl.DataFrame:
    i, t = np.nonzero(np.isfinite(values))
    return pl.DataFrame(
        {
            "date": pl.Series(market.dates[t]).cast(pl.Date),
            "symbol": pl.Series(market.symbols).gather(pl.Series(i)),
            "prediction": values[i, t],
        }
    )


plans = st.builds(
    Plan,
    constructor=st.sampled_from([LongShort(2, 2), LongShort(3, 0), LongShort(1, 2)]),
    price=st.sampled_from(["close", "open"]),
    capital=st.sampled_from([Decimal(10_000), Decimal("1234567.89")]),
    compounding=st.booleans(),
    costs=st.sampled_from([Costs(), COSTLY]),
    limits=st.sampled_from([Limits(), Limits(0.4, 1.5, 0.3, 0.0), Limits(max_volume_share=0.2)]),
    fractional=st.booleans(),
    max_volume_share=st.sampled_from([0.0, 0.02, 0.5]),
)
seeds = st.integers(0, 10_000)


def run(market: Market, predictions: pl.DataFrame, plan: Plan) -> Backtest | None:
    "None where the rule refuses all sessions, as with too few names, or where no session is left to trade."
    try:
        return backtest(predictions, market, plan)
    except InputError as refused:
        if any(
            known in str(refused) for known in ("refuses all", "without predictions", "there is none to trade them in")
        ):
            return None
        raise


def flat_market(closes: dict[str, list[float]], **changes: np.ndarray) -> Market:
    close = np.array(list(closes.values()), float)
    days = np.busday_offset("2024-01-02", np.arange(close.shape[1])).astype("datetime64[D]")
    usual = {"open": close, "close": close, "volume": np.where(np.isfinite(close), 1e6, np.nan), "ratio": np.ones(close.shape), "cash": np.zeros(close.shape), "final": np.full(close.shape, np.nan)}  # fmt: skip
    return Market(tuple(closes), days, **(usual | changes))


def constant(market: Market, prediction: dict[str, float]) -> pl.DataFrame:
    values = np.array([prediction[s] for s in market.symbols])[:, None] + np.zeros(market.shape)
    return predictions_of(market, np.where(np.isfinite(market.close), values, np.nan))


# --- the books -------------------------------------------------------------------------------------------------


def after_split(shares: float, ratio: float) -> float:
    "Shares after a split; a fraction of what was whole is paid out."
    after = round(shares * ratio, 9)
    return float(int(after)) if shares == int(shares) else after


@few
@given(seeds, plans)
def test_equity_changes_by_what_positions_gained_and_paid_less_costs(seed, plan):
    market = random_market(seed)
    if (result := run(market, random_predictions(market, seed), plan)) is None:
        return
    before, equity, at = {}, float(plan.capital), {s: i for i, s in enumerate(market.symbols)}
    column = {d: t for t, d in enumerate(market.dates.tolist())}
    for day in result.daily.iter_rows(named=True):
        t, positions = column[day["date"]], result.positions.filter(pl.col("date") == day["date"])
        now = {r["symbol"]: (r["shares"], r["price"]) for r in positions.iter_rows(named=True)}
        gain, ended = 0.0, 0
        for symbol, (shares, mark) in before.items():  # what was held overnight, in today's shares
            shares, mark = after_split(shares, market.ratio[at[symbol], t]), mark / market.ratio[at[symbol], t]
            ended += market.ratio[at[symbol], t] != 1
            final = market.final[at[symbol], t]
            worth = final if np.isfinite(final) else market.close[at[symbol], t]
            gain, ended = gain + shares * ((mark if np.isnan(worth) else worth) - mark), ended + np.isfinite(final)
        for o in result.orders.filter(pl.col("date") == day["date"], pl.col("qty") > 0).iter_rows(named=True):
            sign = 1 if o["side"] == "buy" else -1
            gain += sign * o["qty"] * (market.close[at[o["symbol"]], t] - o["price"])
        costs = day["commission"] + day["spread"] + day["impact"] + day["borrow"]
        expected = equity + gain + day["dividends"] + day["interest"] - costs
        cents = 0.00501 * ended  # what a delisting pays is rounded to the cent, and a fraction after a split
        assert day["equity"] == pytest.approx(expected, abs=1e-9 * abs(equity) + cents)
        assert day["equity"] == pytest.approx(day["cash"] + day["long_value"] + day["short_value"], rel=1e-12)
        assert day["return"] == pytest.approx(day["equity"] / equity - 1, abs=1e-12)
        assert day["gross_return"] == pytest.approx(day["return"] + costs / equity, abs=1e-12)
        before, equity = now, day["equity"]


@few
@given(seeds, plans)
def test_shares_held_are_what_orders_and_events_made_of_them(seed, plan):
    market = random_market(seed)
    if (result := run(market, random_predictions(market, seed), plan)) is None:
        return
    at, column = {s: i for i, s in enumerate(market.symbols)}, {d: t for t, d in enumerate(market.dates.tolist())}
    held: dict[str, float] = {}
    for day in result.daily["date"]:
        t = column[day]
        held = {s: after_split(round(q, 9), market.ratio[at[s], t]) for s, q in held.items() if np.isnan(market.final[at[s], t])}  # fmt: skip
        for o in result.orders.filter(pl.col("date") == day).iter_rows(named=True):
            assert 0 <= o["qty"] <= o["asked"] and (o["price"] is not None or o["qty"] == 0)
            held[o["symbol"]] = held.get(o["symbol"], 0.0) + (o["qty"] if o["side"] == "buy" else -o["qty"])
        rows = result.positions.filter(pl.col("date") == day)
        theirs = dict(zip(rows["symbol"], rows["shares"], strict=True))
        assert {s: pytest.approx(q, abs=2e-9) for s, q in held.items() if abs(q) > 1e-8} == theirs
        if not plan.fractional:
            assert all(q == int(q) for q in theirs.values())


@few
@given(seeds, plans, st.integers(2, 15))
def test_without_the_future_every_past_order_is_the_same(seed, plan, sessions):
    market = random_market(seed)
    predictions, day = random_predictions(market, seed), market.dates[sessions]
    whole = run(market, predictions, plan)
    cut = run(market.until(day), predictions.filter(pl.col("date") <= day.item()), plan)
    if whole and cut:
        assert_frame_equal(cut.orders, whole.orders.filter(pl.col("date") <= cut.daily["date"][-1]), check_exact=True)
        assert_frame_equal(cut.daily, whole.daily.head(cut.daily.height), check_exact=True)


@few
@given(seeds, plans, st.integers(1, 14))
def test_orders_are_sent_before_the_bars_that_fill_them(seed, plan, t):
    market, rng = random_market(seed), np.random.default_rng(seed + 1)
    predictions = random_predictions(market, seed).filter(pl.col("date") <= market.dates[t].item())
    later = np.arange(market.shape[1]) > t
    noise = np.where(later, np.exp(rng.normal(0, 0.2, market.shape)), 1.0)
    noise = np.where(later & (rng.random(market.shape) < 0.2), np.nan, noise)
    other = replace(market, open=market.open * noise, close=market.close / noise, volume=market.volume * noise)
    ours, theirs = run(market, predictions, plan), run(other, predictions, plan)
    if ours and theirs:
        sent = [
            r.orders.filter(pl.col("date") <= market.dates[t + 1].item()).select("date", "symbol", "side", "asked")
            for r in (ours, theirs)
        ]
        assert_frame_equal(*sent, check_exact=True)


@few
@given(seeds, plans)
def test_the_same_run_has_the_same_fingerprint_however_its_tables_are_ordered(seed, plan):
    market = random_market(seed)
    predictions = random_predictions(market, seed)
    if (result := run(market, predictions, plan)) is None:
        return
    again = backtest(predictions.sample(fraction=1.0, shuffle=True, seed=seed), market, plan)
    assert again.fingerprint == result.fingerprint
    assert_frame_equal(again.daily, result.daily, check_exact=True)
    other = backtest(predictions.with_columns(-pl.col("prediction")), market, plan)
    assert other.orders.is_empty() or other.fingerprint != result.fingerprint


def test_bars_and_actions_in_any_order_give_the_same_fingerprint():
    demo = simulate(symbols=30, start=date(2020, 1, 2), end=date(2020, 6, 30))
    predictions = demo.oracle.rename({"expected": "prediction"})
    prints = {
        backtest(p, Market.from_frames(b, a), Plan(LongShort(5, 5), costs=COSTLY)).fingerprint
        for p, b, a in [
            (predictions, demo.truth, demo.actions),
            (predictions.reverse(), demo.truth.sample(fraction=1.0, shuffle=True, seed=2), demo.actions.reverse()),
        ]
    }
    assert len(prints) == 1


@few
@given(seeds, st.sampled_from(["close", "open"]), st.floats(0.1, 5))
def test_higher_costs_never_leave_more(seed, price, multiple):
    market = random_market(seed)
    predictions = random_predictions(market, seed)
    plan = Plan(LongShort(2, 2), price=price, costs=replace(COSTLY, cash_annual=0.0), max_volume_share=0.02)
    less, more = (run(market, predictions, replace(plan, costs=plan.costs.times(m))) for m in (1.0, 1.0 + multiple))
    if less and more and not more.ruined:
        assert more.fingerprint == less.fingerprint
        assert (more.daily["equity"] <= less.daily["equity"]).all()


# --- what is earned --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("price", ["close", "open"])
def test_without_friction_the_spread_of_the_labels_is_earned(price):
    panel = random_panel(40, 200, 5, suspended=0.0)
    panel = panel.select([s for s, on in zip(panel.symbols, panel.listed.all(axis=1), strict=True) if on])
    market, labels = Market.from_panel(panel), label(panel, 1, price)
    predictions = predictions_of(market, np.random.default_rng(3).normal(size=panel.shape))
    labelled = predictions.join(predictions_of(market, labels).rename({"prediction": "label"}), ["date", "symbol"])
    theirs = long_short_returns(labelled, 5, 5)
    plan = Plan(
        LongShort(5, 5), price=price, capital=Decimal(10**12), compounding=True, fractional=True, max_volume_share=0
    )
    ours = backtest(predictions, market, plan)
    day = {d: i for i, d in enumerate(market.dates.tolist())}
    earned = dict(zip(ours.daily["date"], ours.daily["return"], strict=True))
    if price == "close":  # the label of t is the return of session t + 2
        gap = np.array(
            [earned[market.dates[day[d] + 2].item()] - r for d, r in theirs.select("date", "return").iter_rows()]
        )
        # Shares were fixed at the close of t, bought at that of t + 1: a move of r between makes the weight (1 + r) times as large.
        moved = np.nanmax(np.abs(market.close[:, 1:] / market.close[:, :-1] - 1), axis=0).max()
        assert np.abs(gap).mean() < 5e-4 and np.abs(gap).max() < 2 * moved**2
        assert np.corrcoef(theirs["return"] + gap, theirs["return"])[0, 1] > 0.999
    else:  # from open to open: a close lies between, so only the sums can be compared
        assert ours.returns.sum() == pytest.approx(theirs["return"].sum(), abs=0.01 * len(theirs) ** 0.5)


def test_a_label_known_beforehand_earns_what_it_says():
    market = flat_market({"A": [100, 100, 110, 110], "B": [50, 50, 50, 50]})
    predictions = constant(market, {"A": 1.0, "B": 0.0}).filter(pl.col("date") == market.dates[0].item())
    result = backtest(predictions, market, Plan(LongShort(1, 0), max_volume_share=0))
    assert result.daily["return"].to_list() == pytest.approx([0.0, 0.10])
    assert result.daily["date"].to_list() == market.dates[1:3].tolist()


def test_the_open_earns_the_day_that_the_close_does_not():
    close = np.array([[100.0, 110, 110], [50, 50, 50]])
    market = flat_market({"A": [100, 110, 110], "B": [50, 50, 50]}, open=np.array([[100.0, 100, 110], [50, 50, 50]]))
    assert (market.close == close).all()
    predictions = constant(market, {"A": 1.0, "B": 0.0}).filter(pl.col("date") == market.dates[0].item())
    gains = {p: backtest(predictions, market, Plan(LongShort(1, 0), price=p, max_volume_share=0)).returns.to_list() for p in ("close", "open")}  # fmt: skip
    assert gains == {"close": pytest.approx([0.0, 0.0]), "open": pytest.approx([0.10, 0.0])}


def test_a_dividend_is_received_by_the_long_and_paid_by_the_short():
    cash = np.array([[0, 0, 2.0, 0], [0, 0, 1.0, 0]])
    market = flat_market({"A": [100, 100, 98, 98], "B": [50, 50, 49, 49]}, cash=cash)
    predictions = constant(market, {"A": 1.0, "B": 0.0}).head(2).with_columns(date=pl.lit(market.dates[0].item()))
    predictions = predictions.with_columns(symbol=pl.Series(["A", "B"]), prediction=pl.Series([1.0, 0.0]))
    result = backtest(predictions, market, Plan(LongShort(1, 1), capital=Decimal(10_000), max_volume_share=0))
    assert result.daily["dividends"].to_list() == [0.0, 100 * 2.0 - 200 * 1.0]
    assert result.daily["equity"].to_list() == [10_000.0, 10_000.0]


def test_a_split_changes_shares_and_no_money():
    market = flat_market(
        {"A": [100, 100, 50, 50], "B": [50, 50, 500, 500]}, ratio=np.array([[1, 1, 2.0, 1], [1, 1, 0.1, 1]])
    )
    predictions = constant(market, {"A": 1.0, "B": 0.0})
    result = backtest(predictions, market, Plan(LongShort(1, 1), capital=Decimal(10_000), max_volume_share=0))
    assert result.daily["equity"].to_list() == [10_000.0] * 3
    assert result.positions.filter(pl.col("symbol") == "A")["shares"].to_list() == [100.0, 200.0, 200.0]
    assert result.orders.height == 2


def test_a_fraction_that_a_split_leaves_is_paid_out_at_the_last_price():
    market = flat_market({"A": [100, 100, 80, 80], "B": [50, 50, 40, 40]}, ratio=np.array([[1, 1, 1.25, 1]] * 2))
    predictions = constant(market, {"A": 1.0, "B": 0.0})
    plan = Plan(LongShort(1, 1), capital=Decimal(1_000), max_volume_share=0)
    result = backtest(predictions, market, plan)
    held = result.positions.filter(pl.col("date") == result.daily["date"][1])
    assert dict(held.select("symbol", "shares").iter_rows()) == {"A": 12.0, "B": -25.0}
    assert result.daily["equity"].to_list() == [1_000.0] * 3
    assert result.daily["cash"].to_list() == [1_000.0, 1_000.0 + 0.5 * 80, 1_000.0 + 0.5 * 80]


def test_an_account_carried_from_session_to_session_is_one_run():
    market = random_market(11, sessions=20)
    predictions = random_predictions(market, 11)
    plan = Plan(LongShort(3, 3), capital=Decimal(50_000), costs=COSTLY)
    whole = run(market, predictions, plan)
    account, daily, known = None, [], Known(market)
    for t in range(market.dates.tolist().index(whole.daily["date"][0]), len(market.dates)):
        day = predictions.filter(pl.col("date") == market.dates[t - 1].item())
        book = Run(day, market, plan, known, account, t)
        book.session(t)
        daily.append((book.dates[t], book.equity, book.account.cash))
        account = book.account
    equity = pl.DataFrame(daily, schema=["date", "equity", "cash"], orient="row").cast({"equity": float, "cash": float})
    assert_frame_equal(equity.head(whole.daily.height), whole.daily.select("date", "equity", "cash"), rel_tol=1e-12)


def test_a_delisted_long_loses_to_its_final_value():
    final = np.full((2, 4), np.nan)
    final[0, 2] = 10.0
    market = flat_market({"A": [100, 100, np.nan, np.nan], "B": [50, 50, 50, 50]}, final=final)
    predictions = constant(market, {"A": 1.0, "B": 0.0})
    result = backtest(predictions, market, Plan(LongShort(1, 0), capital=Decimal(10_000), max_volume_share=0))
    assert result.daily["equity"].to_list()[:2] == [10_000.0, 1_000.0]
    assert "A" not in result.orders.filter(pl.col("date") == market.dates[2].item())["symbol"].to_list()


def test_a_suspended_name_is_neither_bought_nor_sold_and_keeps_its_last_value():
    market = flat_market({"A": [100, np.nan, 105, np.nan, 90, 90], "B": [50, 50, 50, 50, 50, 50]})
    first = {"A": 1.0, "B": 0.0}
    day = market.dates.tolist()
    ahead = constant(market, first).filter(pl.col("date").is_in([day[0], day[2]]))
    back = constant(market, {"A": 0.0, "B": 1.0}).filter(pl.col("date").is_in([day[3], day[4]]))
    result = backtest(pl.concat([ahead, back]), market, Plan(LongShort(1, 0), max_volume_share=0))
    lapsed = result.orders.filter(pl.col("symbol") == "A")
    assert lapsed.select("date", "qty").rows()[0] == (day[1], 0.0)
    assert "lapsed: no bar" in lapsed["reason"][0]
    assert dict(lapsed.select("date", "qty").rows())[day[3]] == 0.0


def test_a_held_name_without_a_bar_is_held():
    market = flat_market({"A": [100, 100, np.nan, 90, 90], "B": [50.0] * 5, "C": [20.0] * 5})
    day = market.dates.tolist()
    buy = constant(market, {"A": 1.0, "B": 0.0, "C": -1.0}).filter(pl.col("date") == day[0])
    leave = constant(market, {"A": -1.0, "B": 1.0, "C": 0.0}).filter(pl.col("date").is_in(day[2:4]))
    result = backtest(
        pl.concat([buy, leave]), market, Plan(LongShort(1, 0), capital=Decimal(10_000), max_volume_share=0)
    )
    held = result.positions.filter(pl.col("symbol") == "A").select("date", "shares", "price").rows()
    assert held == [(day[1], 100.0, 100.0), (day[2], 100.0, 100.0), (day[3], 100.0, 90.0)]
    assert result.orders.filter(pl.col("symbol") == "A").select("date", "side").rows() == [
        (day[1], "buy"),
        (day[4], "sell"),
    ]


def test_orders_fill_up_to_their_share_of_the_volume_and_the_rest_lapses():
    market = flat_market({"A": [100.0] * 4, "B": [50.0] * 4}, volume=np.full((2, 4), 505.0))
    result = backtest(constant(market, {"A": 1.0, "B": 0.0}), market, Plan(LongShort(1, 0), capital=Decimal(10_000), max_volume_share=0.1))  # fmt: skip
    assert result.orders.select("asked", "qty").rows() == [(100, 50), (50, 50)]
    assert "50 shares lapsed: volume" in result.orders["reason"][0]
    assert result.metrics["fill_rate"] == pytest.approx(100 / 150)


def test_a_flip_is_two_orders_that_share_the_volume():
    market = flat_market({"A": [100.0] * 4, "B": [50.0] * 4}, volume=np.full((2, 4), 1500.0))
    day = market.dates.tolist()
    ahead = constant(market, {"A": 1.0, "B": 0.0}).filter(pl.col("date") == day[0])
    back = constant(market, {"A": 0.0, "B": 1.0}).filter(pl.col("date") == day[1])
    result = backtest(pl.concat([ahead, back]), market, Plan(LongShort(1, 1), capital=Decimal(10_000), max_volume_share=0.1))  # fmt: skip
    second = result.orders.filter(pl.col("date") == day[2], pl.col("symbol") == "A")
    assert second.select("side", "asked", "qty").rows() == [("sell", 100, 100), ("sell", 100, 50)]


def test_borrow_is_paid_for_the_nights_and_cash_earns_or_owes():
    market = flat_market({"A": [100.0] * 6, "B": [50.0] * 6})  # 2 January 2024 is a Tuesday: a weekend lies in it
    predictions = constant(market, {"A": 1.0, "B": 0.0})
    costs = Costs(borrow_annual=0.0365, cash_annual=0.073)
    short = backtest(
        predictions, market, Plan(LongShort(0, 1), capital=Decimal(10_000), costs=costs, max_volume_share=0)
    )
    assert short.daily["borrow"].to_list() == pytest.approx([0, 1.0, 1.0, 3.0, 1.0])
    assert short.daily["interest"][1] == pytest.approx(20_000 * 0.073 / 365)
    long = backtest(predictions, market, Plan(LongShort(1, 0), capital=Decimal(10_000), costs=replace(costs, min_commission=365), max_volume_share=0))  # fmt: skip
    assert long.daily["cash"][0] == pytest.approx(-365)
    assert long.daily["interest"][1] == pytest.approx(-365 * 0.073 / 365, abs=1e-6)


def test_capital_is_fixed_or_follows_the_equity():
    market = flat_market({"A": [100, 100, 200, 200, 200], "B": [50.0] * 5})
    predictions = constant(market, {"A": 1.0, "B": 0.0})
    fixed, grown = (
        backtest(predictions, market, Plan(LongShort(1, 0), capital=Decimal(10_000), compounding=c, max_volume_share=0))
        for c in (False, True)
    )
    assert fixed.positions["shares"].to_list() == [100, 100, 50, 50]
    assert grown.positions["shares"].to_list() == [100, 100, 100, 100]


# --- the production path ---------------------------------------------------------------------------------------


def test_a_days_orders_are_what_production_sizes_from_the_same_weights():
    demo = simulate(symbols=30, start=date(2020, 1, 2), end=date(2020, 3, 31))
    market, rule = Market.from_frames(demo.truth, demo.actions), LongShort(5, 5)
    predictions = demo.oracle.rename({"expected": "prediction"})
    plan = Plan(rule, capital=Decimal(1_000_000), limits=Limits(0.15), max_volume_share=0)
    result = backtest(predictions, market, plan)
    day, before = result.daily["date"][10], result.daily["date"][9]
    as_of = predictions.filter(pl.col("date") == before).sort("symbol")
    table = pl.DataFrame({"symbol": as_of["symbol"], "predicted_return": normalise(as_of["prediction"].to_numpy())})
    from tradenb.portfolio.weights import context

    held = {s: Decimal(repr(q)) for s, q in result.positions.filter(pl.col("date") == before).select("symbol", "shares").iter_rows()}  # fmt: skip
    weights = rule(table, context(table["symbol"]))
    t = market.dates.tolist().index(day)
    prices = {s: reference_price(market.close[i, t - 1], market.ratio[i, t]) for i, s in enumerate(market.symbols)}
    planned = size_orders(weights, {s: p for s, p in prices.items() if p}, held, plan.capital, Decimal("0.15"))
    expected = [(o.symbol, o.side, float(o.qty)) for o in planned if o.side]
    assert result.orders.filter(pl.col("date") == day).select("symbol", "side", "asked").rows() == expected


def test_a_session_without_predictions_holds():
    market = flat_market({"A": [100, 101, 102, 103, 104, 105], "B": [50.0] * 6})
    day = market.dates.tolist()
    predictions = constant(market, {"A": 1.0, "B": 0.0}).filter(pl.col("date").is_in([day[0], day[3]]))
    result = backtest(predictions, market, Plan(LongShort(1, 0), capital=Decimal(10_000), max_volume_share=0))
    assert result.orders["date"].to_list() == [day[1], day[4]]
    assert result.positions["shares"].to_list() == [100, 100, 100, 97, 97]


def test_a_day_that_the_rule_refuses_is_held_and_told():
    market = flat_market({"A": [100.0] * 4, "B": [50.0] * 4})
    predictions = constant(market, {"A": 1.0, "B": 0.0}).filter((pl.col("date") != market.dates[1].item()) | (pl.col("symbol") == "A"))  # fmt: skip
    result = backtest(predictions, market, Plan(LongShort(1, 1), max_volume_share=0))
    assert result.skipped["date"].to_list() == [market.dates[2].item()]
    assert "without spread" in result.skipped["reason"][0]


def test_an_account_that_is_worth_nothing_ends_the_run():
    market = flat_market({"A": [100, 100, 20, 20, 20], "B": [50, 50, 200, 200, 200]})
    result = backtest(constant(market, {"A": 1.0, "B": 0.0}), market, Plan(LongShort(1, 1), max_volume_share=0))
    assert result.ruined == market.dates[2].item() and result.daily.height == 2
    assert result.metrics["max_drawdown"] == -1.0


def test_the_equal_weight_benchmark_is_the_mean_of_the_names_with_predictions():
    market = random_market(11)
    predictions = predictions_of(market, np.where(np.isfinite(market.close), 1.0, np.nan) + np.random.default_rng(2).normal(size=market.shape))  # fmt: skip
    result = backtest(predictions, market, Plan(LongShort(2, 2)))
    from tradenb.portfolio.market import Known

    returns = Known(market).returns
    assert result.benchmarks["equal_weight"][0] == 0.0  # bought at the close of the first session
    for t in range(2, result.daily.height):
        members = np.isfinite(market.close[:, t - 2])
        assert result.benchmarks["equal_weight"][t - 1] == pytest.approx(np.nan_to_num(returns[members, t]).mean())


@pytest.mark.parametrize("benchmark", ["equal_weight", "cash"])
def test_a_result_beside_a_benchmark_is_a_regression_of_the_same_sessions(benchmark):
    market = random_market(11)
    result = backtest(random_predictions(market, 2), market, Plan(LongShort(2, 2), costs=COSTLY))
    mine, other = result.returns.to_numpy(), result.benchmarks[benchmark].to_numpy()
    slope, intercept = np.polyfit(other, mine, 1)
    active, found = mine - other, result.active(benchmark)
    assert (found["beta"], found["alpha"]) == pytest.approx((slope, 252 * intercept), rel=1e-6)
    assert found["active_return"] == pytest.approx(252 * active.mean(), rel=1e-12)
    assert found["tracking_error"] == pytest.approx(252**0.5 * active.std(ddof=1), rel=1e-12)
    assert found["information_ratio"] == pytest.approx(found["active_return"] / found["tracking_error"], rel=1e-12)
    assert result.benchmarks["date"].equals(result.daily["date"])


def test_the_benchmark_of_the_open_turns_over_at_the_open():
    open_ = np.array([[100.0, 100, 100, 110], [50, 50, 60, 60]])
    market = flat_market({"A": [100, 110, 121, 121], "B": [50, 50, 60, 60]}, open=open_)
    only_a = predictions_of(market, np.array([[1.0, np.nan, np.nan, np.nan], [np.nan, 1.0, np.nan, np.nan]]))
    both = pl.concat([only_a, only_a.with_columns(symbol=pl.Series(["B", "A"]), prediction=pl.lit(0.5))])
    result = backtest(both, market, Plan(LongShort(1, 0), price="open", max_volume_share=0))
    first, second, third = result.benchmarks["equal_weight"].to_list()
    assert first == pytest.approx((110 / 100 + 50 / 50) / 2 - 1)  # the day of session t + 1, from its open
    assert second == pytest.approx((1 + (100 / 110 + 60 / 50 - 2) / 2) * (1 + (121 / 100 + 60 / 60 - 2) / 2) - 1)
    assert third == pytest.approx((1 + (110 / 121 + 1 - 2) / 2) * (1 + (121 / 110 + 1 - 2) / 2) - 1)


def test_the_plan_of_the_settings_is_that_of_production():
    chosen = load()
    plan = Plan.of(chosen, LongShort(20, 20))
    assert (plan.capital, plan.price, plan.fractional) == (chosen.portfolio.capital, chosen.execution.trade_at, False)
    assert plan.limits == Limits.of(chosen.portfolio) and plan.costs == Costs.of(chosen.costs)
    assert Plan.of(chosen).constructor == LongShort(chosen.portfolio.top_n, chosen.portfolio.bottom_n)


def test_a_price_that_is_not_the_labels_is_refused():
    with pytest.raises(InputError, match="trades at the open, but the label earns close"):
        Plan(LongShort(1, 1), price="open", label_price="close")
    for bad in ({"price": "vwap"}, {"capital": Decimal(0)}, {"max_volume_share": 2.0}):
        with pytest.raises(InputError):
            Plan(LongShort(1, 1), **bad)


def test_predictions_off_the_market_are_refused():
    market = random_market(1)
    predictions = random_predictions(market, 1)
    for odd, match in [
        (predictions.with_columns(symbol=pl.lit("ZZ")), "predictions for ZZ"),
        (predictions.with_columns(pl.col("date").dt.offset_by("1y")), "not among the market's sessions"),
        (pl.concat([predictions, predictions]), "two predictions"),
        (predictions.with_columns(prediction=pl.lit(None, pl.Float64)), "without predictions"),
        (predictions.filter(pl.col("date") == market.dates[-1].item()), "there is none to trade them in"),
    ]:
        with pytest.raises(InputError, match=match):
            backtest(odd, market, Plan(LongShort(2, 2)))


def test_progress_is_told_and_the_result_cannot_be_changed():
    market, seen = random_market(1), []
    result = backtest(
        random_predictions(market, 1), market, Plan(LongShort(2, 2)), lambda done, of: seen.append((done, of))
    )
    assert seen[-1] == (result.daily.height, result.daily.height)
    with pytest.raises(FrozenInstanceError):
        result.fingerprint = ""


def test_a_panel_will_do_as_a_market():
    panel = random_panel(12, 80, 2)
    assert isinstance(panel, Panel)
    market = Market.from_panel(panel)
    result = backtest(random_predictions(market, 3, 1.0), market, Plan(LongShort(3, 3), costs=COSTLY))
    assert result.daily.height == 79 and result.interval(draws=50).low < result.interval(draws=50).high
    assert 0 <= result.deflated([0.1, 0.5, 1.0]).probability <= 1


# --- every rule ------------------------------------------------------------------------------------------------

RULES = [
    TopkDropout(4, 1), TopkDropout(4, 1, hold_sessions=3), LongOnly(4), RankWeighted(4, 4), SectorNeutral(4, 4), BetaNeutral(4, 4),
    VolatilityScaled(4, 4, 0.10), TurnoverCapped(LongShort(4, 4), 0.3), MeanVariance(),
]  # fmt: skip


@pytest.fixture(scope="module")
def sectors() -> tuple[Market, pl.DataFrame]:
    demo = simulate(symbols=24, start=date(2020, 1, 2), end=date(2020, 9, 30))
    market = Market.from_frames(demo.truth, demo.actions, demo.universe)
    predictions = demo.oracle.rename({"expected": "prediction"}).filter(pl.col("date") >= date(2020, 8, 14))
    return market, predictions


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_every_rule_runs_and_sees_nothing_of_the_future(rule, sectors):
    market, predictions = sectors
    plan = Plan(rule, costs=COSTLY, limits=Limits(0.5, 3.0, 1.5, 0.2), max_volume_share=0.1)
    whole = backtest(predictions, market, plan)
    assert whole.skipped.height < 8 and whole.orders.height > 10  # four names are not always enough for a neutral book
    day = market.dates[-12].item()
    short = backtest(predictions.filter(pl.col("date") <= day), market.until(day), plan)
    assert_frame_equal(short.orders, whole.orders.filter(pl.col("date") <= day), check_exact=True)


# --- the account is the exchange's -----------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("trade"), st.integers(-300, 300).filter(bool), st.decimals("0.01", "900", places=2)),
        st.tuples(
            st.just("split"),
            st.sampled_from([2.0, 3.0, 1.05, 0.1, 0.333]),
            st.one_of(st.none(), st.decimals("0.01", "900", places=2)),
        ),
        st.tuples(st.just("dividend"), st.floats(0.001, 5).map(lambda x: round(x, 4)), st.none()),
        st.tuples(st.just("delisting"), st.floats(0, 90).map(lambda x: round(x, 2)), st.none()),
    ),
    max_size=12,
)


@given(steps)
def test_trades_and_events_are_booked_as_the_exchange_books_them(steps):
    ours, theirs = Account(Decimal(0)), exchange.Account()
    at, day, owner = datetime(2024, 1, 2, tzinfo=UTC), date(2024, 1, 2), UUID(int=1)
    for kind, amount, price in steps:
        if kind == "trade":
            shares = Decimal(amount)
            ours.trade(0, shares, price, 1)
            fill = exchange.Activity("x", exchange.Kind.FILL, at, day, -shares * price, "A", shares, price)
            theirs = exchange.book(theirs, fill)
        elif (held := theirs.positions.get("A")) is not None:
            value = Decimal(repr(amount))
            action = corporate.Action("A", day, kind, value if kind == "split" else Decimal(1), ZERO if kind == "split" else value)  # fmt: skip
            prices = {} if price is None else {"A": price}
            theirs = exchange.fold(corporate.action_activities(owner, held, action, at, prices), theirs)
            nothing = float("nan")
            split, cash, final = {"split": (amount, 0.0, nothing), "dividend": (1.0, amount, nothing), "delisting": (1.0, 0.0, amount)}[kind]  # fmt: skip
            ours.event(0, split, cash, final, nothing if price is None else float(price))
    assert ours.cash == theirs.cash
    assert ours.shares.get(0, ZERO) == theirs.qty("A")


# --- the daily run plans the same ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, DemoMarket]:
    demo = simulate(symbols=30, start=date(2020, 1, 2), end=date(2020, 4, 30))
    lake = Lake(tmp_path_factory.mktemp("lake"))
    with lake.writing(5) as draft:
        draft.merge("bars", demo.truth.select(TABLES["bars"].schema.keys()).cast(dict(TABLES["bars"].schema)))
        draft.merge("corporate_actions", demo.actions)
        draft.merge("adjustments", place_events(demo.actions, demo.truth))
        draft.merge("universe", demo.universe)
        draft.record(date(2020, 4, 30), "test", datetime(2020, 5, 1, 12, tzinfo=UTC))
    return lake, demo


@pytest.mark.parametrize("rule", [LongShort(6, 6), TopkDropout(6, 2)], ids=lambda r: type(r).__name__)
def test_the_daily_run_plans_the_orders_of_the_backtest(rule, lake):
    "Evening by evening: what the orchestrator makes of the lake and the positions is what the backtest has sent."
    store, demo = lake
    chosen = load({"portfolio.max_position_share": "0.2", "portfolio.capital": "5000000"})
    predictions = demo.oracle.rename({"expected": "prediction"}).filter(pl.col("date") >= date(2020, 3, 2))
    market = Market.from_lake(store, date(2020, 1, 2), date(2020, 4, 30))
    result = backtest(predictions, market, Plan.of(chosen, rule))
    days = result.daily["date"].to_list()
    for as_of, day in list(pairwise(days))[:-1:4]:
        t = market.dates.tolist().index(day)
        held = result.positions.filter(pl.col("date") == as_of).select("symbol", "shares").iter_rows()
        ratio = dict(zip(market.symbols, market.ratio[:, t], strict=True))
        positions = {s: Decimal(repr(float(q * ratio[s]))).quantize(Decimal("1e-9")).normalize() for s, q in held}
        before = before_session(store, day)
        weights_now = before.held(positions, chosen.portfolio.capital)
        rows = predictions.filter(pl.col("date") == as_of).sort("symbol")
        table = pl.DataFrame({"symbol": rows["symbol"], "predicted_return": normalise(rows["prediction"].to_numpy())})
        night = result.daily.filter(pl.col("date") == day).select(
            pl.col("interest") + pl.col("dividends") - pl.col("borrow")
        )
        cash = (result.daily.filter(pl.col("date") == as_of)["cash"][0] + night.item()) / float(
            chosen.portfolio.capital
        )
        around = replace(before.context(table["symbol"].to_list(), weights_now), cash=cash)
        answer = rule(table, around).to_dicts()
        told = {"signals": [r for r in answer if r["rank"]], "kept": [r for r in answer if not r["rank"]]}
        planned = day_orders(chosen, chosen.portfolio.capital, told, before, positions)
        ours = result.orders.filter(pl.col("date") == day).select("symbol", "side", "asked", "reason")
        assert ours.height
        sent = [(o.symbol, o.side, float(o.qty), o.reason) for o in planned if o.side]
        assert [r[:3] for r in sent] == [r[:3] for r in ours.rows()]
        assert all(theirs[3].startswith(mine[3]) for mine, theirs in zip(sent, ours.rows(), strict=True))
