"Our books against the broker's: what differs is named, with its cause."

from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from tradenb.core.clock import new_york
from tradenb.execution.broker import BrokerOrder, BrokerPosition
from tradenb.execution.entries import CashEvent, Fill, Position
from tradenb.execution.gateway import Gateway
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import OrderIntent, Side
from tradenb.execution.reconcile import (
    UNEXPLAINED,
    compare_cash,
    compare_fills,
    compare_orders,
    compare_positions,
    reconcile,
)
from tradenb.execution.states import OrderStatus

Make = Callable[..., OrderIntent]
DAY = date(2017, 6, 1)


def at(hour: int) -> datetime:
    return new_york(DAY, hour)


def test_shares_must_agree_exactly_in_both_directions() -> None:
    ours = {"A": Position("A", Decimal(10)), "B": Position("B", Decimal(-5)), "flat": Position("flat")}
    theirs = {
        s: BrokerPosition(s, q, Decimal(1), None) for s, q in {"A": Decimal("10.000000001"), "C": Decimal(1)}.items()
    }
    found = {d.key: (d.ours, d.broker, d.cause) for d in compare_positions(ours, theirs, disputed={"C"})}
    assert found["A"] == ("10", "10.000000001", UNEXPLAINED)
    assert found["B"] == ("-5", "0", UNEXPLAINED)
    assert found["C"] == ("0", "1", "follows from the fills that differ")
    assert set(found) == {"A", "B", "C"}


def test_cash_must_agree_to_the_cent() -> None:
    assert compare_cash(Decimal("100.01"), Decimal(100)) == []
    assert compare_cash(Decimal("100.02"), Decimal(100))[0].cause == UNEXPLAINED
    assert "follows" in compare_cash(Decimal(50), Decimal(100), disputed=Decimal(-50))[0].cause


def test_orders_are_compared_both_ways(ledger: Ledger, intent: Make) -> None:
    sent = ledger.record_intent(intent("S01"))[0]
    lost = replace(sent, client_order_id="lost", status=OrderStatus.NEW, broker_order_id="b9")
    never = replace(sent, client_order_id="never", status=OrderStatus.REJECTED)
    rehearsed = replace(sent, client_order_id="rehearsed", status=OrderStatus.DRY_RUN, dry_run=True)
    short = replace(lost, client_order_id="short", status=OrderStatus.PARTIALLY_FILLED, filled_qty=Decimal(40))
    theirs = {
        "short": BrokerOrder("b1", "short", "S01", "buy", "filled", Decimal(100), Decimal(100), Decimal(20)),
        "foreign": BrokerOrder("b2", "foreign", "S02", "sell", "new", Decimal(1), Decimal(0), None),
        "wordless": BrokerOrder("b3", "wordless", "S01", "buy", "pending_cancel", Decimal(100), Decimal(0), None),
    }
    wordless = replace(lost, client_order_id="wordless")
    causes = {d.key: d.cause for d in compare_orders([sent, lost, never, rehearsed, short, wordless], theirs)}
    assert set(causes) == {sent.client_order_id, "lost", "short", "foreign"}
    assert "never received" in causes[sent.client_order_id]
    assert "does not know" in causes["lost"]
    assert "fills are missing" in causes["short"]
    assert "somebody else" in causes["foreign"]


def test_fills_are_compared_by_id_and_content() -> None:
    fill = Fill("x1", "A", Side.BUY, Decimal(10), Decimal(5), at(16))
    assert compare_fills({"x1": fill}, {"x1": replace(fill, origin="activities", broker_order_id="b")}) == []
    assert compare_fills({"x1": fill}, {})[0].cause == "booked on one side only"
    assert compare_fills({"x1": fill}, {"x1": replace(fill, price=Decimal(6))})[0].cause == "booked differently"


def test_many_days_of_trading_reconcile_to_zero(gateway: Gateway, market: Any, intent: Make) -> None:
    days = [date(2017, 6, d) for d in (1, 2, 5, 6)]
    for n, day in enumerate(days):
        market.step(new_york(day, 9, 0)) if n else None
        for s in range(12):
            side = Side.SELL if (s + n) % 3 == 0 else Side.BUY
            gateway.submit(intent(f"S{s:02}", 10 + s + 7 * n, side=side, trade_date=day))
        market.step(new_york(day, 18))
        result = reconcile(gateway, day)
        assert result.differences == ()
    filled = [order for order in gateway.ledger.orders() if order.status is OrderStatus.FILLED]
    assert result.checked["fills"] == len(filled) > 30


def test_a_cash_event_that_only_we_have_is_unexplained(gateway: Gateway, market: Any) -> None:
    assert reconcile(gateway).matched
    gateway.ledger.book_cash(CashEvent("phantom", "dividend", Decimal("12.34"), at(0), "S01"))
    (difference,) = reconcile(gateway).differences
    assert (difference.kind, difference.cause) == ("cash", UNEXPLAINED)


def test_a_trade_made_by_hand_is_booked_and_named(gateway: Gateway, market: Any, intent: Make) -> None:
    gateway.submit(intent("S01", 100))
    order = {
        "symbol": "S01",
        "qty": "30",
        "side": "buy",
        "type": "market",
        "time_in_force": "cls",
        "client_order_id": "hand",
    }
    gateway.broker.client.post("/orders", order)
    market.step(new_york(DAY, 18))
    result = reconcile(gateway, DAY)
    assert [(d.kind, d.key) for d in result.differences] == [("order", "hand")]
    assert gateway.ledger.positions()["S01"].qty == 130
