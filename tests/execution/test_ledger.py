"The books: written once, folded the same in any order, on SQLite and on PostgreSQL."

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from tradenb.core import db
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.db import connect, migrate
from tradenb.core.errors import DependencyError, InputError, OrderConflict
from tradenb.execution.controls import Denial
from tradenb.execution.entries import (
    CashEvent,
    Entry,
    Fill,
    Position,
    fold_account,
    fold_positions,
    in_order,
    kept,
    rounded,
)
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import OrderIntent, Side
from tradenb.execution.states import Event, Kind, OrderStatus

MORNING = new_york(date(2017, 6, 1), 9)
quantities = st.decimals(min_value="0.000000001", max_value=10_000, places=9)
whole = st.integers(1, 10_000).map(Decimal)
prices = st.decimals(min_value="0.0001", max_value=5_000, places=4)
minutes = st.integers(0, 5).map(lambda n: MORNING + timedelta(minutes=n))
symbols = st.sampled_from(["AAPL", "GE"])


@st.composite
def books(draw: st.DrawFn) -> list[Entry]:
    "Trades, dividends and splits of two symbols, many at the same instant."
    sides, kinds = (
        st.sampled_from(list(Side)),
        st.sampled_from(["fill", "fill", "fill", "dividend", "split", "deposit"]),
    )
    entries: list[Entry] = []
    for n in range(draw(st.integers(1, 12))):
        kind, symbol, at = draw(kinds), draw(symbols), draw(minutes)
        if kind == "fill":
            entries.append(Fill(f"x{n}", symbol, draw(sides), draw(quantities | whole), draw(prices), at))
        elif kind == "split":
            ratio = draw(st.sampled_from(["2", "0.5", "0.333333333", "0.3333333333333333", "7"]))
            entries.append(CashEvent(f"e{n}", "split", Decimal(0), at, symbol, ratio=Decimal(ratio)))
        else:
            entries.append(CashEvent(f"e{n}", kind, draw(prices), at, symbol if kind == "dividend" else None))
    return entries


@given(books(), st.randoms())
def test_the_fold_does_not_depend_on_the_order_of_arrival(entries: list[Entry], rng: object) -> None:
    shuffled = list(entries)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert fold_positions(shuffled) == fold_positions(entries)
    assert fold_account(shuffled) == fold_account(entries)


@given(st.lists(st.tuples(st.sampled_from(list(Side)), whole, prices), min_size=1, max_size=20))
def test_realised_profit_and_cost_add_up_to_the_cash_that_moved(trades: list[tuple[Side, Decimal, Decimal]]) -> None:
    fills = [Fill(f"x{n:02}", "AAPL", *trade, MORNING) for n, trade in enumerate(trades)]
    position, cash = fold_positions(fills)["AAPL"], fold_account(fills).cash
    assert position.qty == sum((side.sign * qty for side, qty, _ in trades), Decimal(0))
    assert abs(cash + position.qty * position.avg_entry_price - position.realised_pnl) < Decimal("0.001")


@given(st.lists(st.tuples(st.sampled_from(list(Side)), whole, prices), min_size=1, max_size=20))
def test_the_average_lies_within_the_prices_paid(trades: list[tuple[Side, Decimal, Decimal]]) -> None:
    position = fold_positions(Fill(f"x{n:02}", "AAPL", *t, MORNING) for n, t in enumerate(trades))["AAPL"]
    if position.qty:
        paid = [price for _, _, price in trades]
        assert min(paid) <= position.avg_entry_price <= max(paid)
    else:
        assert position.avg_entry_price == 0


def test_flips_in_both_directions_realise_all_and_open_at_the_new_price() -> None:
    fills = [("buy", 100, 10), ("sell", 150, 12), ("buy", 80, 11)]
    entries = [Fill(f"x{n}", "GE", Side(s), Decimal(q), Decimal(p), MORNING) for n, (s, q, p) in enumerate(fills)]
    assert fold_positions(entries)["GE"] == Position("GE", Decimal(30), Decimal(11), Decimal(250))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, postgres_server: str) -> list[Engine]:
    "One SQLite and one PostgreSQL database for many examples."
    from sqlalchemy import create_engine, text

    admin = create_engine(
        postgres_server.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS ledger_examples WITH (FORCE)"))
        connection.execute(text("CREATE DATABASE ledger_examples"))
    pg = admin.url.set(database="ledger_examples", drivername="postgresql").render_as_string(hide_password=False)
    admin.dispose()
    folder: Path = tmp_path_factory.mktemp("ledger")
    return [migrate(connect(url)) for url in (f"sqlite:///{folder}/t.db", pg)]


@given(entries=books(), rng=st.randoms())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_positions_booked_one_by_one_equal_the_fold(both: list[Engine], entries: list[Entry], rng: object) -> None:
    for engine in both:
        with engine.begin() as connection:
            for table in (db.fills, db.cash_events, db.positions):
                connection.execute(delete(table))
        ledger, arrived = Ledger(engine, SimulatedClock(MORNING)), [*entries, *entries[::2]]
        rng.shuffle(arrived)  # type: ignore[attr-defined]
        for entry in arrived:
            ledger.book_fill(entry) if isinstance(entry, Fill) else ledger.book_cash(entry)
        assert ledger.check() == []
        assert ledger.account() == fold_account(entries)
        assert [e.id for e in ledger.entries()] == [e.id for e in in_order(entries)]


def test_amounts_of_too_many_decimals_are_the_same_just_heard_and_read_again(ledger: Ledger) -> None:
    "A price that a division left, and a reverse split of one for three."
    third = Decimal("0.3333333333333333")
    fill = Fill("x1", "GE", Side.BUY, Decimal("99.9999999996"), Decimal("27.123456789012"), MORNING)
    split = CashEvent("e1", "split", Decimal("9.0412345678901"), MORNING + timedelta(hours=1), "GE", ratio=third)
    ledger.book([fill])
    ledger.book([split])
    assert (ledger.check(), ledger.entries()) == ([], [kept(fill), kept(split)])
    assert ledger.positions()["GE"].avg_entry_price == rounded(kept(fill).price / third)


def test_a_number_that_the_database_cannot_hold_is_one_line_and_books_nothing(ledger: Ledger) -> None:
    fill = Fill("x1", "GE", Side.BUY, Decimal(100), Decimal(20), MORNING)
    ledger.book([fill])
    with pytest.raises(DependencyError, match="the database"):
        ledger.book([CashEvent("e1", "split", Decimal(0), MORNING + timedelta(hours=1), "GE", ratio=Decimal(10**8))])
    assert (ledger.entries(), ledger.check()) == ([fill], [])


def test_a_cache_that_was_tampered_with_is_found(ledger: Ledger) -> None:
    ledger.book_fill(Fill("x1", "GE", Side.BUY, Decimal(10), Decimal(27), MORNING))
    with ledger.engine.begin() as connection:
        connection.execute(db.positions.update().values(qty=Decimal(11)))
    assert len(ledger.check()) == 1


def test_many_threads_book_each_fill_once(ledger: Ledger) -> None:
    fills = [
        Fill(f"x{n}", "GE", Side.BUY, Decimal(1), Decimal(20 + n), MORNING + timedelta(seconds=n)) for n in range(20)
    ]
    news: list[bool] = []
    threads = [threading.Thread(target=lambda: news.extend([ledger.book_fill(f) for f in fills])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(news) == 20
    assert ledger.positions()["GE"].qty == 20
    assert ledger.check() == []


def test_many_threads_store_an_intent_once(ledger: Ledger, intent: Callable[..., OrderIntent]) -> None:
    created: list[bool] = []
    threads = [threading.Thread(target=lambda: created.append(ledger.record_intent(intent())[1])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(created) == [False] * 7 + [True]
    assert [e.kind for e in ledger.events(intent().client_order_id)] == ["intent"]


def test_an_id_with_another_payload_is_a_conflict(ledger: Ledger, intent: Callable[..., OrderIntent]) -> None:
    ledger.record_intent(intent(), client_order_id="mine")
    assert ledger.record_intent(intent(), client_order_id="mine")[1] is False
    with pytest.raises(OrderConflict, match="already the name of"):
        ledger.record_intent(intent(qty=99), client_order_id="mine")


def test_an_illegal_report_is_refused_and_kept(ledger: Ledger, intent: Callable[..., OrderIntent]) -> None:
    order, _ = ledger.record_intent(intent())
    ledger.record(order.client_order_id, "stream", OrderStatus.FILLED)
    after = ledger.record(order.client_order_id, "stream", OrderStatus.CANCELED)
    assert after.status is OrderStatus.FILLED
    assert [(e.kind, e.status_to) for e in ledger.events(order.client_order_id)][-1] == ("illegal", "canceled")


def test_a_fill_moves_order_and_position_together(ledger: Ledger, intent: Callable[..., OrderIntent]) -> None:
    order, _ = ledger.record_intent(intent("GE", 100))
    part = Fill("x1", "GE", Side.BUY, Decimal(40), Decimal("27.10"), MORNING, order.client_order_id)
    ledger.book_fill(part)
    assert ledger.order(order.client_order_id).status is OrderStatus.PARTIALLY_FILLED  # type: ignore[union-attr]
    ledger.book_fill(replace(part, execution_id="x2", qty=Decimal(60), price=Decimal("27.20")))
    done = ledger.order(order.client_order_id)
    assert done is not None
    assert (done.status, done.filled_qty, done.filled_avg_price) == (OrderStatus.FILLED, 100, Decimal("27.16"))
    assert ledger.positions()["GE"].avg_entry_price == Decimal("27.16")


def test_a_fill_after_a_cancellation_is_booked_all_the_same(ledger: Ledger, intent: Callable[..., OrderIntent]) -> None:
    order, _ = ledger.record_intent(intent("GE", 100))
    ledger.record(order.client_order_id, "stream", OrderStatus.CANCELED, broker_order_id="b-1")
    ledger.book_fill(Fill("x1", "GE", Side.BUY, Decimal(40), Decimal(27), MORNING, order.client_order_id))
    after = ledger.order(order.client_order_id)
    assert after is not None
    assert (after.status, after.filled_qty) == (OrderStatus.CANCELED, 40)
    assert ledger.positions()["GE"].qty == 40


def test_a_report_about_no_order_says_so(ledger: Ledger) -> None:
    with pytest.raises(InputError, match="no order"):
        ledger.record("0" * 32, "stream", OrderStatus.NEW)


def test_amounts_come_back_to_the_last_digit(ledger: Ledger, intent: Callable[..., OrderIntent]) -> None:
    qty, price = Decimal("0.123456789"), Decimal("12345.678912345")
    ledger.book_fill(Fill("x1", "GE", Side.SELL, qty, price, MORNING, fee=Decimal("0.000000001")))
    (entry,) = ledger.entries()
    assert isinstance(entry, Fill)
    assert (entry.qty, entry.price, entry.fee) == (qty, price, Decimal("0.000000001"))
    assert ledger.account().cash == qty * price - Decimal("0.000000001")


def a_fill(name: str, qty: object, price: object = "27", **changes: Any) -> Fill:
    return replace(Fill(name, "GE", Side.BUY, Decimal(str(qty)), Decimal(str(price)), MORNING), **changes)


def test_a_void_takes_back_what_the_fill_did_and_its_row_stays(
    ledger: Ledger, intent: Callable[..., OrderIntent]
) -> None:
    order, _ = ledger.record_intent(intent("GE", 100))
    name = {"client_order_id": order.client_order_id}
    ledger.book([a_fill("x1", 60, **name), a_fill("x2", 40, 28, **name)])
    ledger.void("x2", "trade_bust")
    ledger.void("x2", "trade_bust")
    after = ledger.order(order.client_order_id)
    assert after is not None
    assert (after.filled_qty, after.filled_avg_price) == (60, 27)
    assert ledger.positions()["GE"] == Position("GE", Decimal(60), Decimal(27))
    assert ledger.account().cash == -60 * 27
    assert [entry.id for entry in ledger.entries()] == ["x1"]
    assert set(ledger.fills_since(MORNING)) == {"x1"}
    assert ledger.known(["x1", "x2", "x3"]) == {"x1", "x2"}
    assert ledger.voids()["x2"].reason == "trade_bust"
    assert [e.kind for e in ledger.events(order.client_order_id)][-1] == "fill_voided"
    assert ledger.check() == []


def test_a_void_may_come_before_its_fill(ledger: Ledger) -> None:
    ledger.void("x1", "trade_bust")
    assert ledger.book_fill(a_fill("x1", 60))
    assert ledger.positions() == {}
    assert ledger.account().cash == 0
    assert ledger.check() == []


def test_the_last_fill_taken_back_leaves_no_position(ledger: Ledger) -> None:
    ledger.book_fill(a_fill("x1", 60))
    ledger.void("x1", "trade_bust")
    assert ledger.positions() == {}
    assert ledger.check() == []


@dataclass(frozen=True)
class Seen:
    "The broker's order, as far as `infer` reads it."

    filled_qty: Decimal
    filled_avg_price: Decimal
    status: str = "partially_filled"
    id: str = "b-1"
    symbol: str = "GE"
    side: str = "buy"


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(100, 9_999)), min_size=1, max_size=5), st.randoms(), st.data()
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_what_was_inferred_gives_way_to_what_comes_in_whatever_order(
    both: list[Engine], parts: list[tuple[int, int]], rng: Any, data: st.DataObject
) -> None:
    real = [a_fill(f"x{n}", q, Decimal(p) / 100, broker_order_id="b-1") for n, (q, p) in enumerate(parts)]
    total = sum((f.qty for f in real), Decimal(0))
    value = sum((f.qty * f.price for f in real), Decimal(0))
    shuffled = rng.sample(real, len(real))
    when = data.draw(st.integers(0, len(real)))
    for engine in both:
        with engine.begin() as connection:
            for table in (db.fills, db.fill_voids, db.cash_events, db.positions):
                connection.execute(delete(table))
        ledger = Ledger(engine, SimulatedClock(MORNING))
        for n, fill in enumerate([*shuffled, *shuffled[:1]]):
            if n == when:
                ledger.infer(Seen(total, rounded(value / total)), MORNING, None)
                assert ledger.positions()["GE"].qty == total
            ledger.book_fill(fill)
            assert ledger.check() == []
        assert {entry.id for entry in ledger.entries()} == {fill.id for fill in real}
        assert ledger.positions()["GE"].qty == total
        assert ledger.account() == fold_account(real)


def test_a_cache_that_was_damaged_is_mended(ledger: Ledger) -> None:
    ledger.book([a_fill("x1", 10), a_fill("x2", 5, symbol="KO")])
    with ledger.engine.begin() as connection:
        connection.execute(db.positions.update().where(db.positions.c.symbol == "GE").values(qty=Decimal(11)))
        connection.execute(delete(db.positions).where(db.positions.c.symbol == "KO"))
        row = {"symbol": "IBM", "qty": Decimal(1), "avg_entry_price": Decimal(1), "realised_pnl": Decimal(0)}
        connection.execute(db.positions.insert(), row | {"updated_at": MORNING})
    assert len(ledger.check()) == 3
    assert ledger.rebuild() == ["GE", "IBM", "KO"]
    assert ledger.check() == []
    assert ledger.rebuild() == []
    assert set(ledger.positions()) == {"GE", "KO"}


def test_a_batch_counts_each_step_of_an_order_and_ends_where_the_broker_says(
    ledger: Ledger, intent: Callable[..., OrderIntent]
) -> None:
    order, _ = ledger.record_intent(intent("GE", 100))
    name = order.client_order_id
    parts = [a_fill(f"x{n}", 25, client_order_id=name, at=MORNING + timedelta(seconds=n)) for n in range(3)]
    news = ledger.book([*parts, parts[0]], {"x2": OrderStatus.CANCELED})
    assert [entry.id for entry in news] == ["x0", "x1", "x2"]
    after = ledger.order(name)
    assert after is not None
    assert (after.status, after.filled_qty) == (OrderStatus.CANCELED, 75)
    told = [(e.kind, e.status_to) for e in ledger.events(name)]
    assert told == [
        ("intent", "pending_new"),
        ("fill", "partially_filled"),
        ("fill", "partially_filled"),
        ("fill", "canceled"),
    ]


def test_a_fill_brings_back_an_order_that_we_had_given_up(ledger: Ledger, intent: Callable[..., OrderIntent]) -> None:
    order, _ = ledger.record_intent(intent("GE", 100))
    name = order.client_order_id
    ledger.record(name, "canceled", Event(Kind.WITHDRAWN), reason="canceled before it was sent")
    ledger.book_fill(a_fill("x1", 40, client_order_id=name, broker_order_id="b-1"))
    (revived,) = ledger.revived()
    assert (revived.status, revived.filled_qty, revived.broker_order_id) == (OrderStatus.PARTIALLY_FILLED, 40, "b-1")
    ledger.record(name, "stream:canceled", OrderStatus.CANCELED, broker_order_id="b-1")
    assert ledger.revived() == []


def test_denials_are_kept_with_their_numbers(ledger: Ledger, intent: Callable[..., OrderIntent]) -> None:
    denial = Denial("PRICE_COLLAR", "limit_price=90", {"limit_price": "90"})
    ledger.deny(intent("GE", "12.5"), denial, run_id="run-1")
    (kept,) = ledger.denials(run_id="run-1")
    assert (kept.code, kept.detail, kept.numbers) == ("PRICE_COLLAR", "limit_price=90", {"limit_price": "90"})
    assert (kept.symbol, kept.request["qty"], kept.request["trade_date"]) == ("GE", "12.5", "2017-06-01")
    assert ledger.denials(trade_date=date(2017, 6, 2)) == []


def test_two_symbols_that_hang_together_are_counted_together(ledger: Ledger) -> None:
    gone = CashEvent("e1", "symbol_change", Decimal(0), MORNING + timedelta(hours=1), "GE", detail={"into": "GEV"})
    entries = [gone, a_fill("x2", 5, 30, at=MORNING + timedelta(hours=2), symbol="GEV"), a_fill("x1", 10, 27)]
    for entry in entries:
        ledger.book([entry])
        assert ledger.check() == []
    assert ledger.positions()["GEV"] == Position("GEV", Decimal(15), Decimal(28))
    assert ledger.positions()["GE"].qty == 0
