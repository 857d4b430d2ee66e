"Whatever the books hold, the gap is explained to the last digit, and by the cause that made it."

from dataclasses import replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select

from tradenb.core import db
from tradenb.core.clock import NEW_YORK
from tradenb.core.errors import DataError
from tradenb.core.settings import load
from tradenb.execution.entries import Fill, rounded
from tradenb.execution.orders import Side
from tradenb.market.demo import simulate
from tradenb.portfolio.backtest import Account, Morning, Plan, day_weights
from tradenb.portfolio.backtest import Run as Book
from tradenb.portfolio.costs import Costs
from tradenb.portfolio.market import Known, Market
from tradenb.portfolio.weights import LongShort
from tradenb.trading.gap import (
    BACKTEST,
    GAP_CAUSES,
    PAPER,
    STEPS,
    Day,
    Standing,
    Wanted,
    changes,
    dated,
    exchange_plan,
    fees_by_session,
    gap_history,
    gap_of,
    keep_gap,
    read_books,
    said,
    telescoped,
    troubles_of,
    walked,
)

ZERO, CAPITAL, BPS = Decimal(0), Decimal(200_000), Decimal("0.0001")
few = settings(max_examples=8, deadline=None)
dollars = st.decimals(-(10**9), 10**9, places=9)
standings = st.builds(Standing, dollars, dollars, st.dictionaries(st.sampled_from("ABCDE"), dollars.filter(bool)))
books = st.fixed_dictionaries(dict.fromkeys(STEPS, standings))


@settings(max_examples=60)
@given(books, books, dollars)
def test_the_causes_add_up_to_the_last_digit_whatever_the_books_hold(before, after, deposits):
    gap = telescoped(before, after, deposits)
    assert list(gap) == [BACKTEST, *GAP_CAUSES, PAPER]
    assert gap[BACKTEST] + sum((gap[cause] for cause in GAP_CAUSES), ZERO) == gap[PAPER]
    assert gap[PAPER] == after["marks"].equity - before["marks"].equity - deposits


@pytest.fixture(scope="module")
def engine():
    made = db.migrate(db.connect("sqlite://"))
    yield made
    made.dispose()


@few
@given(before=books, after=books)
def test_what_is_kept_adds_up_as_it_stands_in_the_table_and_the_books_are_found_again(engine, before, after):
    gap = telescoped(before, after)
    for _ in range(2):  # a report that is made again leaves the same
        keep_gap(engine, "r", date(2024, 1, 8), gap, after, dict.fromkeys((*STEPS, PAPER), "so it was"))
    with engine.connect() as connection:
        kept = {row.cause: row.amount for row in connection.execute(select(db.run_gap))}
    assert sum((kept[cause] for cause in (BACKTEST, *GAP_CAUSES)), ZERO) == kept[PAPER] == gap[PAPER]
    found = read_books(engine, "r")
    assert found is not None
    assert {name: (b.cash, b.equity) for name, b in found.items()} == {n: (b.cash, b.equity) for n, b in after.items()}
    assert all(changes(found[name].shares, after[name].shares) == {} for name in STEPS)


# --- days of a market ------------------------------------------------------------------------------------------


@cache
def world() -> tuple[Market, pl.DataFrame]:
    "A simulated market with splits and dividends among its last sessions, and what its makers expect."
    demo = simulate(symbols=30, start=date(2020, 1, 2), end=date(2020, 6, 30))
    return Market.from_frames(demo.truth, demo.actions, demo.universe), demo.oracle.rename({"expected": "prediction"})


PLAN = Plan(LongShort(4, 4), costs=Costs(half_spread_bps=2, buy_bps=1, sell_bps=1), capital=CAPITAL)


class Desk:
    "An account that trades what the backtest would, but for what a test does to it."

    def __init__(self, plan: Plan = PLAN):
        self.plan, self.cash, self.held = plan, CAPITAL, dict[str, Decimal]()
        self.books = dict.fromkeys(STEPS, Standing(CAPITAL, CAPITAL))

    def day(self, t: int, capital=CAPITAL, research=None, fill=lambda f: f, fee=None, paid=ZERO) -> dict[str, Decimal]:
        "The gap of session t; `fill` may change an execution or leave it out."
        tape, oracle = world()
        market, known = tape.until(tape.dates[t]), oracle.filter(pl.col("date") == tape.dates[t - 1].item())
        used = known.select("symbol", "prediction")
        rows = {s: i for i, s in enumerate(market.symbols)}
        account = Account(self.cash, {rows[s]: q for s, q in self.held.items()}, {rows[s]: 0 for s in self.held})
        plan = replace(self.plan, capital=capital)
        book = Book(dated(used, market), market, plan, None, account, t)
        book.night(t)
        morning = Morning(book, t)
        names = [market.symbols[row] for row in morning.ranked]
        weights, _ = day_weights(book.signals[morning.ranked, t - 1], names, morning.context, plan, capital)
        prices = {s: p for s in weights["symbol"] if (p := morning.price(rows[s])) is not None}
        at = datetime.combine(tape.dates[t].item(), time(16), NEW_YORK)
        filled = [
            Fill(f"{f.order.symbol}{f.order.leg}", f.order.symbol, Side(f.order.side), f.qty, slipped(f.price, f.order.side), at)
            for f in book.fills(t) if f.qty and f.price
        ]  # fmt: skip
        executions = [f for f in map(fill, filled) if f]
        charge = fee or (lambda f: f.qty * f.price * BPS)
        fees = sum((charge(f) for f in executions), ZERO)
        for f in executions:
            book.account.trade(rows[f.symbol], f.side.sign * f.qty, f.price, t)
        self.cash = rounded(book.account.cash - fees + paid)
        self.held = {market.symbols[row]: q for row, q in book.account.shares.items()}
        marks = Known(market).marks[:, -1]
        equity = self.cash + sum((q * Decimal(repr(float(marks[rows[s]]))) for s, q in self.held.items()), ZERO)
        wanted = Wanted(weights.select("symbol", "predicted_return", "rank", "target_weight"), prices, capital)
        day = Day(
            market, tape.dates[t - 1].item(), self.plan, used if research is None else research, used, wanted,
            executions, {tape.dates[t].item(): fees}, Standing(self.cash, rounded(equity), dict(self.held)),
        )  # fmt: skip
        after = walked(day, self.books)
        gap, self.books, self.told = telescoped(self.books, after), after, said(day, after, {})
        return gap


def slipped(price: Decimal, side: str) -> Decimal:
    return price * (1 + 2 * BPS if side == "buy" else 1 - 2 * BPS)


def causes(gaps: list[dict[str, Decimal]]) -> dict[str, Decimal]:
    "The causes that explain more than a cent: costs are rounded to a millionth, per book and day."
    sums = {cause: sum((gap[cause] for gap in gaps), ZERO) for cause in GAP_CAUSES}
    return {cause: amount for cause, amount in sums.items() if abs(amount) > Decimal("0.01")}


def test_an_account_that_does_what_the_backtest_does_has_no_gap_through_splits_and_dividends():
    desk, (tape, _) = Desk(), world()
    last = int(np.flatnonzero((tape.ratio[:, :-4] != 1).any(axis=0))[-1]) + 4
    assert (tape.cash[:, last - 9 : last] > 0).any()
    gaps = [desk.day(t) for t in range(last - 9, last)]
    assert causes(gaps) == {}
    assert all(desk.books[name].shares == desk.books[BACKTEST].shares for name in STEPS)
    assert desk.told["signal"].startswith("all ") and desk.told["missed"] == "the same shares"


@few
@given(st.integers(30, 110), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_other_predictions_are_the_signals_cause(t, seed, days):
    desk, rng, gaps = Desk(), np.random.default_rng(seed), []
    for day in range(t, t + days):
        tape, oracle = world()
        known = oracle.filter(pl.col("date") == tape.dates[day - 1].item()).select("symbol", "prediction")
        gaps.append(desk.day(day, research=known.with_columns(prediction=pl.Series(rng.normal(size=known.height)))))
    assert causes(gaps).keys() <= {"signal"}
    assert "not what the model says" in desk.told["signal"]


@few
@given(st.integers(30, 110), st.integers(20_000, 400_000), st.integers(1, 4))
def test_other_capital_is_the_sizings_cause(t, capital, days):
    desk = Desk()
    gaps = [desk.day(day, capital=Decimal(capital)) for day in range(t, t + days)]
    assert causes(gaps).keys() <= {"sizing"}


@few
@given(st.integers(30, 110), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_what_did_not_fill_is_missed_for_as_long_as_it_lasts(t, seed, days):
    desk, rng = Desk(), np.random.default_rng(seed)
    lose = lambda f: [f, None, replace(f, qty=f.qty // 2) if f.qty > 1 else None][rng.integers(3)]
    gaps = [desk.day(day, fill=lose) for day in range(t, t + days)]
    assert causes(gaps).keys() <= {"missed"}


@few
@given(st.integers(30, 110), st.decimals("0.9", "1.1", places=4), st.integers(1, 3))
def test_worse_fills_and_higher_fees_are_causes_of_their_own(t, times, days):
    desk = Desk()
    gaps = [desk.day(day, fill=lambda f: replace(f, price=f.price * times), fee=lambda f: Decimal(1)) for day in range(t, t + days)]  # fmt: skip
    assert causes(gaps).keys() <= {"fill_price", "fees"}
    again = Desk()
    only = [again.day(day, fee=lambda f: f.qty * f.price * BPS + 1) for day in range(t, t + days)]
    assert causes(only).keys() == {"fees"}


def test_a_payment_that_the_backtest_does_not_know_is_corporate():
    desk = Desk()
    gaps = [desk.day(60), desk.day(61, paid=Decimal("12.34"))]
    assert {name: round(amount, 3) for name, amount in causes(gaps).items()} == {"corporate": Decimal("12.340")}


def test_a_missed_trade_is_still_its_own_cause_on_the_next_day():
    desk = Desk()
    first = desk.day(60, fill=lambda f: None if f.side == "buy" else f)
    desk.day(61, fill=lambda f: None)
    assert first["missed"] != 0 and "missed" in causes([first])
    assert desk.told["missed"].startswith("shares: ")


def test_a_position_that_nobody_can_value_is_said():
    desk = Desk()
    desk.books |= {"missed": Standing(CAPITAL, CAPITAL, {"NOPE": Decimal(7)})}
    with pytest.raises(DataError, match=r"NOPE: held since .* nobody knows what they are worth"):
        desk.day(60)


# --- around it -------------------------------------------------------------------------------------------------


def test_the_plan_compared_with_has_the_exchanges_terms_or_the_settings_costs_elsewhere():
    made = load({"exchange.slippage_bps": "3", "exchange.fee_bps": "1.5", "exchange.volume_share": "0.05"}, env={})
    plan = exchange_plan(made)
    assert plan.costs == Costs(half_spread_bps=3, buy_bps=1.5, sell_bps=1.5)
    assert plan.max_volume_share == 0.05
    elsewhere = exchange_plan(load({"execution.broker": "paper"}, env={}))
    assert elsewhere.costs == Costs.of(load(env={}).costs)


def test_fees_of_a_day_without_a_session_count_on_the_next_one():
    at = datetime(2024, 1, 6, 12, tzinfo=NEW_YORK)  # a Saturday
    fill = Fill("1", "A", Side("buy"), Decimal(1), Decimal(1), at, fee=Decimal("0.30"))
    assert fees_by_session([fill], [date(2024, 1, 5), date(2024, 1, 8)]) == {date(2024, 1, 5): ZERO, date(2024, 1, 8): Decimal("0.30")}  # fmt: skip


def test_a_run_that_was_not_measured_has_no_gap_to_show(engine):
    assert gap_of(engine, "none").columns == ["cause", "amount", "detail"] and gap_of(engine, "none").is_empty()
    assert read_books(engine, "none") is None
    assert gap_history(engine, "none").columns == ["trade_date", "run_id", BACKTEST, *GAP_CAUSES, PAPER]
    run = dict(run_id="day", trade_date=date(2024, 1, 8), strategy="s", status="completed", settings_hash="", code_version="", seed=7, trace_id="", capital=CAPITAL, started_at=datetime(2024, 1, 8, tzinfo=NEW_YORK))  # fmt: skip
    flat = dict.fromkeys(STEPS, Standing(CAPITAL, CAPITAL))
    with engine.begin() as connection:
        connection.execute(insert(db.runs), run)
    keep_gap(engine, "day", date(2024, 1, 8), telescoped(flat, flat), flat, dict.fromkeys((*STEPS, PAPER), ""))
    assert gap_history(engine, "s").row(0)[2:] == (0.0,) * 9
    assert gap_history(engine, "s", date(2024, 1, 7)).is_empty()


def test_why_an_order_did_not_fill_is_said_wherever_it_was_written_down(engine):
    planned = dict(run_id="r", leg=0, current_qty=0, target_qty=1, target_weight=0.1, reason="open")
    denied = dict(
        at=datetime(2024, 1, 8, tzinfo=UTC), trade_date=date(2024, 1, 8), run_id="r", strategy="s", side="buy"
    )
    denied |= dict(client_order_id="1" * 32, symbol="DENIED", code="PRICE_COLLAR", detail="", numbers={}, request={})
    with engine.begin() as connection:
        for symbol, why in (("INVALID", "qty 0.5: whole shares"), ("DENIED", "PRICE_COLLAR: price=9"), ("FINE", None)):
            connection.execute(insert(db.run_signals), planned | dict(symbol=symbol, refused=why))
        connection.execute(insert(db.denials), denied)
    assert troubles_of(engine, "r") == {"INVALID": "refused: qty 0.5: whole shares", "DENIED": "denied: PRICE_COLLAR"}
    assert troubles_of(engine, "another") == {}
