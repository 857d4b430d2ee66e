"Our books against the broker's: what differs is named, mended where it can be, and halts where nobody can say why."

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event

from tradenb.core import web
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.db import connect, migrate
from tradenb.core.errors import BrokerUnavailable, DependencyError
from tradenb.exchange.service import create_app as create_exchange
from tradenb.execution.broker import Broker, BrokerAccount, BrokerOrder, BrokerPosition, alpaca_client
from tradenb.execution.entries import CashEvent, Fill, Position, fold_account, fold_positions
from tradenb.execution.gateway import Gateway
from tradenb.execution.intents import StoredOrder
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import OrderIntent, OrderType, Side, TimeInForce
from tradenb.execution.reconcile import (
    UNEXPLAINED,
    Cause,
    Difference,
    Look,
    Tolerance,
    compare,
    compare_cash,
    compare_positions,
    late_fills,
    reconcile,
    seen_twice,
)
from tradenb.execution.states import OrderStatus
from tradenb.execution.switch import Level, Switch

Make = Callable[..., OrderIntent]
DAY, NEXT = date(2017, 6, 1), date(2017, 6, 2)
MORNING = new_york(DAY, 9)
D = Decimal


def at(hour: int) -> datetime:
    return new_york(DAY, hour)


# --- what differs: pure


def look(theirs: object = 0, **sides: Any) -> Look:
    "Both books, empty but for what is given; `theirs` is the broker's cash, and ours unless said otherwise."
    amount = D(str(theirs))
    values: dict[str, Any] = {"account": BrokerAccount("ACTIVE", amount, amount, amount, D(0), D(0))}
    return Look(**values | {"cash": amount, "at": at(18)} | sides)


def causes(found: list[Difference]) -> dict[str, Cause]:
    return {d.key: d.named for d in found}


def test_shares_must_agree_exactly_in_both_directions() -> None:
    ours = {"A": Position("A", D(10)), "B": Position("B", D(-5)), "flat": Position("flat")}
    theirs = {s: BrokerPosition(s, q, D(1), None) for s, q in {"A": D("10.000000001"), "C": D(1)}.items()}
    found = {d.key: d for d in compare_positions(ours, theirs, {"C": D(-1), "B": D(-4)})}
    assert (found["A"].ours, found["A"].broker, found["A"].cause) == ("10", "10.000000001", UNEXPLAINED)
    assert found["A"].gap == D("-0.000000001")
    assert found["B"].cause == UNEXPLAINED, "an explanation must fit exactly"
    assert found["C"].named is Cause.FOLLOWS
    assert set(found) == {"A", "B", "C"}
    assert "A" not in causes(compare_positions(ours, theirs, tolerance=Tolerance(shares=D("0.001"))))


@pytest.mark.parametrize(("qty", "price", "named"), [
    (120, "25", Cause.CORPORATE_ACTION),
    (20, "150", Cause.CORPORATE_ACTION),
    (63, "47.619047619", Cause.CORPORATE_ACTION),
    (120, "50", Cause.UNEXPLAINED),
    (-120, "-25", Cause.UNEXPLAINED),
    ("61.234567", "48.9919182", Cause.UNEXPLAINED),
])  # fmt: skip
def test_the_same_cost_in_another_number_of_shares_is_a_split(qty: object, price: str, named: Cause) -> None:
    theirs = {"V": BrokerPosition("V", D(str(qty)), D(price), None)}
    (found,) = compare_positions({"V": Position("V", D(60), D(50))}, theirs)
    assert found.named is named


def test_cash_must_agree_to_the_cent() -> None:
    assert compare_cash(D("100.01"), D(100)) == []
    assert compare_cash(D("100.02"), D(100))[0].cause == UNEXPLAINED
    assert compare_cash(D(50), D(100), expected=D(-50))[0].named is Cause.FOLLOWS
    assert compare_cash(D(50), D(100), expected=D(-49))[0].named is Cause.UNEXPLAINED
    assert compare_cash(D("100.02"), D(100), rounding=D("0.02")) == []


def test_a_little_less_cash_than_ours_may_be_a_fee_and_a_little_more_may_not() -> None:
    assert compare_cash(D("100.50"), D(100), fees=D("0.60"))[0].named is Cause.FEE
    assert compare_cash(D("100.70"), D(100), fees=D("0.60"))[0].named is Cause.UNEXPLAINED
    assert compare_cash(D("99.50"), D(100), fees=D("0.60"))[0].named is Cause.UNEXPLAINED


TEMPLATE = StoredOrder(
    "c1", "test", DAY, None, "S01", Side.BUY, D(100), None, OrderType.MARKET, TimeInForce.CLS, None, None, 0,
    OrderStatus.NEW, "b1", D(0), None, None, False, None, MORNING, MORNING, MORNING,
)  # fmt: skip


@pytest.fixture
def sent() -> StoredOrder:
    "An order of 100 shares that the broker has."
    return TEMPLATE


def theirs_of(order: StoredOrder, status: str = "new", filled: object = 0, **changes: Any) -> BrokerOrder:
    amount = D(str(filled))
    average = D(20) if amount else None
    told = BrokerOrder(
        "b1", order.client_order_id, order.symbol, order.side, status, order.qty, amount, average, filled_at=at(16)
    )
    return replace(told, **changes)


def judged(ours: StoredOrder, theirs: BrokerOrder | None) -> Cause | None:
    other = {theirs.client_order_id: theirs} if theirs else {}
    found = compare(look(orders={ours.client_order_id: ours}, their_orders=other))
    return next((d.named for d in found if d.kind == "order"), None)


@pytest.mark.parametrize(("splits", "qty", "named"), [
    ([(1, 2)], 200, Cause.CORPORATE_ACTION),
    ([(1, 2)], 199, Cause.UNEXPLAINED),
    ([(0, 2)], 200, Cause.UNEXPLAINED),  # in force when the order was stored: it was asked for in new shares
    ([(1, 2), (4, 3)], 600, Cause.CORPORATE_ACTION),
    ([(1, 2), (4, 3)], 200, Cause.CORPORATE_ACTION),  # ended between the two: restated once
    ([(1, 2), (4, 3)], 100, None),  # ended before both: restated by none
    ([(1, 2), (4, 3)], 300, Cause.UNEXPLAINED),
    ([(1, "1.015")], 101, Cause.CORPORATE_ACTION),  # a part of a share is dropped
    ([(1, "1.015"), (4, "1.015")], 102, Cause.CORPORATE_ACTION),
    ([(1, "1.015")], 100, None),
])  # fmt: skip
def test_an_order_restated_by_splits_is_the_same_order(
    sent: StoredOrder, splits: list[tuple[int, Any]], qty: int, named: Cause | None
) -> None:
    known = {"S01": [(DAY + timedelta(days=after), D(str(by))) for after, by in splits]}
    theirs = {sent.client_order_id: theirs_of(sent, qty=D(qty))}
    found = compare(look(orders={sent.client_order_id: sent}, their_orders=theirs, splits=known))
    assert next((d.named for d in found if d.kind == "order"), None) is named


def test_sums_in_other_shares_are_not_compared_and_prove_no_execution(sent: StoredOrder) -> None:
    ours, name = replace(sent, filled_qty=D(40), filled_avg_price=D(20), status=OrderStatus.PARTIALLY_FILLED), "c1"
    theirs = theirs_of(ours, "partially_filled", 80, qty=D(200))
    books = look(orders={name: ours}, their_orders={name: theirs}, splits={"S01": [(DAY + timedelta(days=1), D(2))]})
    assert late_fills(books) == {}
    assert [d.named for d in compare(books) if d.kind in ("order", "fill")] == [Cause.CORPORATE_ACTION]


@pytest.mark.parametrize(
    ("filled", "named"), [(100, Cause.LATE_FILL), (99, Cause.UNEXPLAINED), (80, Cause.UNEXPLAINED)]
)
def test_an_execution_after_a_reverse_split_is_proven_by_what_was_executed_before_it_in_new_shares(
    sent: StoredOrder, filled: int, named: Cause
) -> None:
    "200 shares, 40 of them bought; then one for two, and the other 80 bought, which the history does not show yet."
    ours = replace(sent, qty=D(200), filled_qty=D(120), filled_avg_price=D(30), status=OrderStatus.FILLED)
    before = Fill("x", "S01", Side.BUY, D(40), D(20), at(18), "c1", "b1")
    after = replace(before, execution_id="y", qty=D(80), price=D(40), at=at(18) + timedelta(days=1))
    books = look(
        orders={"c1": ours}, their_orders={"c1": theirs_of(ours, "filled", filled, qty=D(100))},
        fills={"x": before, "y": after}, their_fills={"x": before}, splits={"S01": [(NEXT, D("0.5"))]},
    )  # fmt: skip
    assert [d.named for d in compare(books) if d.kind == "fill"] == [named]


@pytest.mark.parametrize(
    ("shares", "cash", "named"),
    [(40, -800, Cause.IN_FLIGHT), (40, 800, Cause.UNEXPLAINED), (-40, 800, Cause.UNEXPLAINED), (90, -900, Cause.UNEXPLAINED)],
)  # fmt: skip
def test_shares_that_a_restated_order_may_have_traded_halt_nobody_until_the_history_shows_them(
    sent: StoredOrder, shares: int, cash: int, named: Cause
) -> None:
    theirs = theirs_of(sent, "partially_filled", 80, qty=D(200))
    books = look(
        orders={"c1": sent}, their_orders={"c1": theirs}, splits={"S01": [(DAY + timedelta(days=1), D(2))]},
        positions={}, their_positions={"S01": BrokerPosition("S01", D(shares), D(20), None)},
    )  # fmt: skip
    books = replace(books, account=replace(books.account, cash=books.cash + cash))
    found = {d.kind: d for d in compare(books) if d.kind in ("position", "cash")}
    assert {d.named for d in found.values()} == {named}
    assert any(d.halts for d in found.values()) is (named is Cause.UNEXPLAINED)


def test_an_order_that_is_the_same_is_no_difference(sent: StoredOrder) -> None:
    assert judged(sent, theirs_of(sent)) is None
    assert judged(sent, theirs_of(sent, "pending_cancel")) is None


def test_an_order_that_the_broker_has_lost_is_unexplained(sent: StoredOrder) -> None:
    assert judged(sent, None) is Cause.UNEXPLAINED


def test_an_order_that_never_left_is_not_sent_unless_somebody_is_sending_it(sent: StoredOrder) -> None:
    pending = replace(sent, status=OrderStatus.PENDING_NEW, broker_order_id=None)
    assert judged(pending, None) is Cause.NOT_SENT
    assert judged(replace(pending, lease_until=at(19)), None) is None
    assert judged(replace(pending, lease_until=at(17)), None) is Cause.NOT_SENT
    assert judged(replace(pending, status=OrderStatus.UNKNOWN), None) is Cause.IN_FLIGHT


@pytest.mark.parametrize("status", [OrderStatus.CANCELED, OrderStatus.EXPIRED, OrderStatus.REJECTED])
def test_an_order_that_we_gave_up_should_not_be_at_the_broker(sent: StoredOrder, status: OrderStatus) -> None:
    given_up = replace(sent, status=status, broker_order_id=None)
    assert judged(given_up, None) is None
    assert judged(given_up, theirs_of(sent)) is Cause.GIVEN_UP


def test_a_rehearsed_order_should_not_be_at_the_broker(sent: StoredOrder) -> None:
    rehearsed = replace(sent, status=OrderStatus.DRY_RUN, dry_run=True, broker_order_id=None)
    assert judged(rehearsed, None) is None
    assert judged(rehearsed, theirs_of(sent)) is Cause.FOREIGN_ORDER


def test_a_closing_order_may_be_for_what_was_held_when_it_left(sent: StoredOrder) -> None:
    closing, smaller = replace(sent, client_order_id="kill-20170601-S01-1"), {"qty": D(60)}
    assert judged(closing, replace(theirs_of(closing), **smaller)) is Cause.KILL_SWITCH
    assert judged(closing, replace(theirs_of(closing, "canceled"), **smaller)) is Cause.MISSED_EVENT
    other_side = {"side": "sell" if closing.side == "buy" else "buy"}
    assert judged(closing, replace(theirs_of(closing), **smaller | other_side)) is Cause.UNEXPLAINED
    assert judged(sent, replace(theirs_of(sent), **smaller)) is Cause.UNEXPLAINED


def test_the_broker_may_be_further_and_never_elsewhere(sent: StoredOrder) -> None:
    filled = replace(sent, status=OrderStatus.FILLED, filled_qty=D(100), filled_avg_price=D(20))
    assert judged(sent, theirs_of(sent, "canceled")) is Cause.MISSED_EVENT
    assert judged(filled, theirs_of(sent, "canceled", 100)) is Cause.UNEXPLAINED
    assert judged(filled, theirs_of(sent, "partially_filled", 100)) is Cause.MOVING
    assert judged(filled, theirs_of(sent, "partially_filled", 60)) is Cause.UNEXPLAINED, "more booked than filled"


def test_a_broker_that_calls_it_a_day_does_not_contradict_a_part_that_is_filled(sent: StoredOrder) -> None:
    part = replace(sent, status=OrderStatus.PARTIALLY_FILLED, filled_qty=D(40), filled_avg_price=D(20))
    assert judged(part, theirs_of(sent, "done_for_day", 40)) is None


def test_an_order_that_works_over_a_split_is_restated(sent: StoredOrder) -> None:
    theirs = theirs_of(sent, qty=D(200))
    sides: dict[str, Any] = {"orders": {"c1": sent}, "their_orders": {"c1": theirs}}
    (found,) = compare(look(**sides, splits={"S01": [(NEXT, D(2))]}))
    assert (found.named, found.settled) == (Cause.CORPORATE_ACTION, True)
    for splits in ({"S02": [(NEXT, D(2))]}, {"S01": [(NEXT, D(3))]}, {"S01": [(DAY, D(2))]}):
        (found,) = compare(look(**sides, splits=splits))
        assert found.halts
    behind = {"c1": replace(theirs, status="canceled")}
    (found,) = compare(look(orders={"c1": sent}, their_orders=behind, splits={"S01": [(NEXT, D(2))]}))
    assert (found.named, found.settled) == (Cause.MISSED_EVENT, False), (
        "what is due comes before what is only to be known"
    )


def test_an_order_of_a_company_with_a_new_name_goes_on(sent: StoredOrder) -> None:
    assert judged(sent, theirs_of(sent, symbol="S99")) is Cause.CORPORATE_ACTION


def test_what_the_kill_switch_placed_is_named_after_it() -> None:
    order = BrokerOrder("b2", "kill-20170601-S02-1", "S02", "sell", "filled", D(10), D(10), D(5), filled_at=at(16))
    fill = Fill("x", "S02", Side.SELL, D(10), D(5), at(16), None, "b2")
    found = compare(look(their_orders={order.client_order_id: order}, their_fills={"x": fill}))
    assert {d.named for d in found if d.kind in ("order", "fill")} == {Cause.KILL_SWITCH}


def test_another_order_under_the_same_name_is_unexplained(sent: StoredOrder) -> None:
    for change in ({"qty": D(99)}, {"side": "sell"}, {"symbol": "S02", "qty": D(99)}):
        assert judged(sent, theirs_of(sent, **change)) is Cause.UNEXPLAINED


def test_an_order_of_somebody_else_is_named_and_settled_when_it_is_over_and_booked() -> None:
    order = BrokerOrder("b2", "hand", "S02", "sell", "new", D(10), D(0), None)
    (working,) = compare(look(their_orders={"hand": order}))
    assert (working.named, working.settled) == (Cause.FOREIGN_ORDER, False)
    over = replace(order, status="filled", filled_qty=D(10), filled_avg_price=D(5), filled_at=at(16))
    fill = Fill("x", "S02", Side.SELL, D(10), D(5), at(16), None, "b2")
    unbooked = [d for d in compare(look(their_orders={"hand": over}, their_fills={"x": fill})) if d.kind == "order"]
    assert [(d.named, d.settled) for d in unbooked] == [(Cause.MANUAL_TRADE, False)]
    (booked,) = compare(look(their_orders={"hand": over}, their_fills={"x": fill}, fills={"x": fill}))
    assert (booked.named, booked.settled) == (Cause.MANUAL_TRADE, True)


def test_fills_are_compared_by_id_and_content() -> None:
    fill = Fill("x1", "A", Side.BUY, D(10), D(5), at(16), None, "b")
    heard = {"x1": replace(fill, origin="activities")}
    assert compare(look(fills={"x1": fill}, their_fills=heard)) == []
    other = {"x1": replace(fill, price=D(6))}
    assert causes(compare(look(fills={"x1": fill}, their_fills=other))) == {"x1": Cause.UNEXPLAINED}


def test_a_fill_that_only_we_have_is_late_there_if_the_order_proves_it(sent: StoredOrder) -> None:
    fill = Fill("x1", "S01", Side.BUY, D(100), D(20), at(16), sent.client_order_id, "b1")
    ours = replace(sent, status=OrderStatus.FILLED, filled_qty=D(100), filled_avg_price=D(20))
    sides: dict[str, Any] = {"orders": {ours.client_order_id: ours}, "fills": {"x1": fill}}
    proof = {ours.client_order_id: theirs_of(ours, "filled", 100)}
    (heard,) = compare(look(**sides, their_orders=proof))
    assert (heard.named, heard.settled) == (Cause.LATE_FILL, True)
    doubt = {ours.client_order_id: theirs_of(ours, "new", 0)}
    assert causes(compare(look(**sides, their_orders=doubt)))["x1"] is Cause.UNEXPLAINED
    assert causes(compare(look(fills={"x1": fill}))) == {"x1": Cause.UNEXPLAINED}


KINDS = {
    "dividend": Cause.CORPORATE_ACTION,
    "split": Cause.CORPORATE_ACTION,
    "spin_off": Cause.CORPORATE_ACTION,
    "fee": Cause.FEE,
    "borrow": Cause.FEE,
    "interest": Cause.FEE,
    "deposit": Cause.TRANSFER,
    "other": Cause.MISSED_EVENT,
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_activity_that_was_not_booked_is_named_by_its_kind_and_explains_the_cash(kind: str) -> None:
    event = CashEvent("e1", kind, D("12.50"), at(0), "S01")
    found = causes(compare(look("112.50", cash=D(100), unbooked=[event])))
    assert found == {"e1": KINDS[kind], "cash": Cause.FOLLOWS}


def test_what_halts_has_to_be_seen_twice() -> None:
    once = Difference("cash", "cash", "1", "2", UNEXPLAINED, D(-1))
    other, named = replace(once, gap=D(-2)), replace(once, kind="order", key="o", cause="not sent: …")
    assert seen_twice([once], [once, named]) == [once, named]
    assert [d.named for d in seen_twice([once], [other])] == [Cause.MOVING]
    assert [d.named for d in seen_twice([], [once])] == [Cause.MOVING]


# --- two honest books: whatever is late is explained, whatever is invented is not

sizes = st.integers(1, 500).map(D)
prices = st.decimals(min_value=1, max_value=300, places=2)


@st.composite
def truths(draw: st.DrawFn) -> list[Fill]:
    "What the broker really executed: up to four orders of two symbols, in parts."
    fills = []
    for n in range(draw(st.integers(1, 4))):
        symbol, side = draw(st.sampled_from(["A", "B"])), draw(st.sampled_from(list(Side)))
        for part in range(draw(st.integers(1, 3))):
            name = f"x{n}{part}"
            fills.append(Fill(name, symbol, side, draw(sizes), draw(prices), at(16), f"c{n}", f"b{n}"))
    return fills


def order_of(name: str, parts: list[Fill], template: StoredOrder, whole: list[Fill]) -> StoredOrder:
    qty = sum((f.qty for f in parts), D(0))
    value = sum((f.qty * f.price for f in parts), D(0))
    size = sum((f.qty for f in whole), D(0))
    status = OrderStatus.FILLED if qty == size else OrderStatus.PARTIALLY_FILLED if qty else OrderStatus.NEW
    return replace(
        template, client_order_id=name, broker_order_id=whole[0].broker_order_id, symbol=whole[0].symbol,
        side=whole[0].side, qty=size, filled_qty=qty, filled_avg_price=value / qty if qty else None, status=status,
    )  # fmt: skip


def books(truth: list[Fill], booked: list[Fill], shown: list[Fill]) -> Look:
    "The broker knows the truth and shows some of it; we have booked some of it."
    by_order: dict[str, list[Fill]] = {}
    for fill in truth:
        by_order.setdefault(fill.client_order_id or "", []).append(fill)
    ours, theirs = {}, {}
    for name, whole in by_order.items():
        ours[name] = order_of(name, [f for f in booked if f.client_order_id == name], TEMPLATE, whole)
        real = order_of(name, whole, TEMPLATE, whole)
        theirs[name] = BrokerOrder(
            real.broker_order_id or "", name, real.symbol, real.side, "filled", real.qty, real.filled_qty,
            real.filled_avg_price, filled_at=at(16),
        )  # fmt: skip
    there = {s: BrokerPosition(s, p.qty, p.avg_entry_price, None) for s, p in fold_positions(truth).items() if p.qty}
    sides: dict[str, Any] = {"orders": ours, "their_orders": theirs, "their_positions": there}
    sides |= {"fills": {f.id: f for f in booked}, "their_fills": {f.id: f for f in shown}}
    sides |= {"positions": fold_positions(booked), "cash": fold_account(booked).cash}
    return look(fold_account(truth).cash, **sides)


@given(truths(), st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_is_only_late_is_explained_to_the_last_share_and_cent(truth: list[Fill], data: st.DataObject) -> None:
    booked = data.draw(st.lists(st.sampled_from(truth), unique=True))
    shown = data.draw(st.lists(st.sampled_from(truth), unique=True))
    found = compare(books(truth, booked, shown))
    assert [d for d in found if d.halts] == []
    missing = {f.id for f in shown} - {f.id for f in booked}
    assert missing == {d.key for d in found if d.kind == "fill" and not d.settled}
    proven = sum((f.qty for f in late_fills(books(truth, booked, shown)).values()), D(0))
    assert proven == sum((f.qty for f in truth if f not in booked and f not in shown), D(0))


@given(truths())
def test_equal_books_do_not_differ(truth: list[Fill]) -> None:
    assert compare(books(truth, truth, truth)) == []


@given(truths(), sizes, prices)
@settings(max_examples=100)
def test_an_execution_that_nobody_made_is_always_found(truth: list[Fill], qty: Decimal, price: Decimal) -> None:
    invented = Fill("invented", "A", Side.BUY, qty, price, at(15), None, "nobody's")
    found = compare(books(truth, [*truth, invented], truth))
    assert Cause.UNEXPLAINED in {d.named for d in found if d.kind == "fill"}


@given(truths(), st.data())
@settings(max_examples=100)
def test_an_execution_booked_twice_is_always_found(truth: list[Fill], data: st.DataObject) -> None:
    twice = replace(data.draw(st.sampled_from(truth)), execution_id="again")
    found = compare(books(truth, [*truth, twice], truth))
    assert any(d.halts for d in found)


# --- a real exchange


class LateHistory:
    "An exchange that does not list some activities yet: pairs of type and symbol."

    def __init__(self, app: Any, late: set[tuple[str, str]]):
        self.app, self.late = app, late

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not scope.get("path", "").endswith("/account/activities"):
            return await self.app(scope, receive, send)
        start: dict[str, Any] = {}
        parts: list[bytes] = []

        async def keep(message: Any) -> None:
            start.update(message if message["type"] == "http.response.start" else {})
            parts.append(message.get("body", b""))

        await self.app(scope, receive, keep)
        lines = [x for x in json.loads(b"".join(parts)) if (x["activity_type"], x.get("symbol")) not in self.late]
        body = json.dumps(lines).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send(start | {"headers": headers})
        await send({"type": "http.response.body", "body": body})


class Late:
    "A running exchange with a history that can be held back."

    def __init__(self, market: Any):
        self.late: set[tuple[str, str]] = set()
        app = create_exchange(
            market.folder,
            market.folder / "late.db",
            slippage_bps=0,
            volume_share=1,
            key_id="K",
            secret_key="S",
            start=MORNING,
        )
        self.server = web.Server(LateHistory(app, self.late)).start()
        self.url = self.server.url

    def broker(self, **options: Any) -> Broker:
        return Broker(alpaca_client(self.url, "K", "S", 30), self.url, **({"backoff_s": 0.01} | options))

    def step(self, to: datetime) -> None:
        self.broker().client._request("POST", "/clock", {"to": to.isoformat()}, api_version="admin")


@pytest.fixture
def slow_market(make_market: Callable[..., Any]) -> Iterator[Late]:
    actions = [("S02", NEXT, "split", 2.0, 0.0), ("S03", NEXT, "dividend", 1.0, 0.5)]
    market = Late(make_market(actions))
    yield market
    market.server.stop()


def same_as_the_broker(gateway: Gateway) -> None:
    ledger, broker = gateway.ledger, gateway.broker
    held = {s: p.qty for s, p in ledger.positions().items() if p.qty}
    assert held == {s: p.qty for s, p in broker.positions().items()}
    assert abs(ledger.account().cash - broker.account().cash) <= D("0.01")
    assert ledger.check() == []


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
        assert reconcile(gateway, day).mended == ()
    filled = [order for order in gateway.ledger.orders() if order.status is OrderStatus.FILLED]
    assert result.checked["fills"] == len(filled) > 30


def test_what_nobody_can_explain_halts_trading_once(gateway: Gateway, market: Any) -> None:
    switch = Switch(gateway.ledger.engine, gateway.ledger.clock)
    assert reconcile(gateway, switch=switch).matched
    assert switch.state() == []
    gateway.ledger.book_cash(CashEvent("phantom", "dividend", D("12.34"), at(0), "S01"))
    for _ in range(3):
        result = reconcile(gateway, switch=switch)
        assert [(d.kind, d.cause, d.gap) for d in result.differences] == [("cash", UNEXPLAINED, D("12.34"))]
        assert result.halted and "cash" in result.halted
    (standing,) = switch.history()
    assert (standing.scope, standing.level, standing.who) == ("*", Level.BLOCK, "reconciliation")
    assert "12.34" in standing.why or "1000012.34" in standing.why


def test_without_a_switch_it_is_only_told(gateway: Gateway, market: Any) -> None:
    gateway.ledger.book_cash(CashEvent("phantom", "dividend", D("12.34"), at(0), "S01"))
    assert reconcile(gateway).halted


def test_what_is_within_the_tolerance_does_not_halt(gateway: Gateway, market: Any) -> None:
    switch = Switch(gateway.ledger.engine, gateway.ledger.clock)
    gateway.ledger.book_cash(CashEvent("phantom", "dividend", D("12.34"), at(0), "S01"))
    assert reconcile(gateway, switch=switch, tolerance=Tolerance(cash=D(20))).matched
    assert switch.state() == []


def by_hand(gateway: Gateway, symbol: str = "S01", qty: str = "30", **more: str) -> None:
    words = {"side": "buy", "type": "market", "time_in_force": "cls", "client_order_id": "hand"}
    gateway.broker.client.post("/orders", words | {"symbol": symbol, "qty": qty} | more)


def test_a_trade_made_by_hand_is_a_difference_while_it_works_and_a_note_when_it_is_booked(
    gateway: Gateway, market: Any, intent: Make
) -> None:
    gateway.submit(intent("S01", 100))
    by_hand(gateway)
    working = reconcile(gateway, DAY)
    assert [(d.kind, d.key, d.named) for d in working.differences] == [("order", "hand", Cause.FOREIGN_ORDER)]
    assert working.halted is None
    market.step(new_york(DAY, 18))
    booked = reconcile(gateway, DAY)
    assert booked.matched
    assert {d.named for d in booked.mended} == {Cause.MISSED_EVENT, Cause.MANUAL_TRADE, Cause.FOLLOWS}
    assert [(d.key, d.named) for d in booked.noted] == [("hand", Cause.MANUAL_TRADE)]
    assert gateway.ledger.positions()["S01"].qty == 130
    same_as_the_broker(gateway)


def test_fees_splits_and_dividends_are_named_and_booked(
    make_market: Callable[..., Any], ledger: Ledger, intent: Make
) -> None:
    market = make_market([("S02", NEXT, "split", 2.0, 0.0), ("S03", NEXT, "dividend", 1.0, 0.5)], fee_bps=3)
    gateway = Gateway(ledger, market.broker())
    for symbol, side in (("S02", Side.BUY), ("S03", Side.SELL)):
        gateway.submit(intent(symbol, 100, side=side))
    market.step(new_york(NEXT, 9))
    result = reconcile(gateway, DAY)
    assert result.matched
    assert {Cause.FEE, Cause.CORPORATE_ACTION, Cause.MISSED_EVENT} <= {d.named for d in result.mended}
    assert ledger.positions()["S02"].qty == 200
    assert ledger.account().dividends == -50, "a short pays the dividend"
    same_as_the_broker(gateway)


def test_a_fill_that_the_history_does_not_show_is_inferred_and_then_replaced(
    slow_market: Late, ledger: Ledger, intent: Make
) -> None:
    gateway = Gateway(ledger, slow_market.broker())
    order, _ = gateway.submit(intent("S01", 100))
    slow_market.late.add(("FILL", "S01"))
    slow_market.step(new_york(NEXT, 9))
    found = reconcile(gateway, DAY)
    assert found.matched
    (inferred,) = ledger.fills_since(at(0)).values()
    assert (inferred.origin, inferred.qty, inferred.at) == ("inferred", 100, new_york(DAY, 16))
    stored = ledger.order(order.client_order_id)
    assert stored and (stored.status, stored.filled_qty) == (OrderStatus.FILLED, 100)
    assert reconcile(gateway, DAY).mended == ()
    same_as_the_broker(gateway)

    slow_market.late.clear()
    assert [d.named for d in reconcile(gateway, DAY).mended] == [Cause.LATE_FILL]
    (real,) = ledger.fills_since(at(0)).values()
    assert real.origin == "activities"
    assert {v.replaced_by for v in ledger.voids().values()} == {real.id}
    again = reconcile(gateway, DAY)
    assert (again.matched, again.mended, again.noted) == (True, (), ())
    same_as_the_broker(gateway)


def test_a_fill_inferred_after_a_split_is_booked_before_it(slow_market: Late, ledger: Ledger, intent: Make) -> None:
    gateway = Gateway(ledger, slow_market.broker())
    gateway.submit(intent("S02", 100))
    slow_market.late.add(("FILL", "S02"))
    slow_market.step(new_york(NEXT, 9))
    assert reconcile(gateway, DAY).matched
    assert ledger.positions()["S02"].qty == 200
    slow_market.late.clear()
    assert reconcile(gateway, DAY).matched
    assert ledger.positions()["S02"].qty == 200


def test_a_fill_of_somebody_elses_order_is_inferred_too(slow_market: Late, ledger: Ledger) -> None:
    gateway = Gateway(ledger, slow_market.broker())
    by_hand(gateway, "S05")
    slow_market.late.add(("FILL", "S05"))
    slow_market.step(new_york(DAY, 18))
    assert reconcile(gateway, DAY).matched
    assert ledger.positions()["S05"].qty == 30
    slow_market.late.clear()
    assert reconcile(gateway, DAY).matched
    assert len(ledger.fills_since(at(0))) == 1
    same_as_the_broker(gateway)


def given_up(gateway: Gateway, order: OrderIntent) -> None:
    "An order that is sent into a broken connection, withdrawn, and then delivered after all."
    gone = Broker(alpaca_client("http://127.0.0.1:9", "K", "S", 1), "http://127.0.0.1:9", attempts=1)
    with pytest.raises(BrokerUnavailable):
        Gateway(gateway.ledger, gone, owner=gateway.owner).submit(order)
    assert gateway.cancel(order.client_order_id).status is OrderStatus.CANCELED
    stored = gateway.ledger.order(order.client_order_id)
    assert stored
    gateway.broker.submit(stored)


def test_an_order_that_was_given_up_and_arrives_is_canceled_at_the_broker(
    gateway: Gateway, market: Any, intent: Make
) -> None:
    order = intent("S04", 50)
    given_up(gateway, order)
    result = reconcile(gateway, DAY)
    assert result.matched
    assert [d.named for d in result.mended if d.kind == "order"] == [Cause.GIVEN_UP]
    found = gateway.broker.find(order.client_order_id)
    assert found and found.status == "canceled"
    assert reconcile(gateway, DAY).mended == ()


def test_an_order_that_was_given_up_and_filled_is_booked(gateway: Gateway, market: Any, intent: Make) -> None:
    order = intent("S04", 50)
    given_up(gateway, order)
    market.step(new_york(DAY, 18))
    assert reconcile(gateway, DAY).matched
    stored = gateway.ledger.order(order.client_order_id)
    assert stored and (stored.status, stored.filled_qty) == (OrderStatus.FILLED, 50)
    same_as_the_broker(gateway)


def test_an_order_that_works_over_a_split_stays_the_same_order(
    make_market: Callable[..., Any], ledger: Ledger, intent: Make
) -> None:
    market = make_market([("S02", NEXT, "split", 2.0, 0.0)])
    switch, gateway = Switch(ledger.engine, ledger.clock), Gateway(ledger, market.broker())
    order = intent("S02", 100, type=OrderType.LIMIT, limit_price=D(8), time_in_force=TimeInForce.GTC)
    gateway.submit(order)
    market.step(new_york(NEXT, 9))
    found = gateway.broker.find(order.client_order_id)
    assert found and found.qty == 200
    result = reconcile(gateway, DAY, switch)
    assert result.matched, result.differences
    assert [d.named for d in result.noted] == [Cause.CORPORATE_ACTION]
    assert switch.state() == []


def test_a_cache_that_was_tampered_with_is_counted_again(gateway: Gateway, market: Any, intent: Make) -> None:
    from tradenb.core import db

    gateway.submit(intent("S01", 100))
    market.step(new_york(DAY, 18))
    reconcile(gateway, DAY)
    with gateway.ledger.engine.begin() as connection:
        connection.execute(db.positions.update().values(qty=D(11)))
    result = reconcile(gateway, DAY)
    assert result.matched
    assert Cause.CACHE in {d.named for d in result.mended}
    same_as_the_broker(gateway)


def test_a_broker_that_cannot_be_read_is_no_difference(ledger: Ledger) -> None:
    gone = Broker(alpaca_client("http://127.0.0.1:9", "K", "S", 1), "http://127.0.0.1:9", attempts=1)
    with pytest.raises(BrokerUnavailable):
        reconcile(Gateway(ledger, gone))


class Killed(Exception):
    "As if the process had ended here"


def dying(engine: Engine, after: int) -> Callable[[], bool]:
    "Let the database fail at the nth statement that writes; the answer tells whether it came to that."
    seen = [0]

    def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE"):
            seen[0] += 1
            if seen[0] == after:
                raise Killed

    event.listen(engine, "before_cursor_execute", count)
    return lambda: seen[0] >= after


def test_a_reconciliation_may_be_killed_at_any_write_and_run_again(
    slow_market: Late, tmp_path: Path, intent: Make
) -> None:
    before, clock = tmp_path / "before.db", SimulatedClock(MORNING)
    engine = migrate(connect(f"sqlite:///{before}"))
    gateway = Gateway(Ledger(engine, clock), slow_market.broker())
    for symbol in ("S01", "S02", "S03"):
        gateway.submit(intent(symbol, 100))
    given_up(gateway, intent("S04", 50))
    by_hand(gateway, "S05")
    slow_market.late.add(("FILL", "S01"))
    slow_market.step(new_york(NEXT, 9))
    engine.dispose()

    for n in range(1, 100):
        copy = tmp_path / f"copy{n}.db"
        shutil.copy(before, copy)
        engine = migrate(connect(f"sqlite:///{copy}"))
        died = dying(engine, n)
        with contextlib.suppress(Killed, DependencyError):
            reconcile(Gateway(Ledger(engine, clock), slow_market.broker()), DAY)
        engine.dispose()
        engine = connect(f"sqlite:///{copy}")
        second = Gateway(Ledger(engine, clock), slow_market.broker())
        result = reconcile(second, DAY)
        assert result.matched, (n, result.differences)
        assert reconcile(second, DAY).mended == (), n
        same_as_the_broker(second)
        assert len(second.ledger.fills_since(at(0))) == 5
        engine.dispose()
        if not died():
            break
    assert 10 < n < 99, n
    print("writes", n)


def test_two_reconciliations_at_once_book_everything_once(slow_market: Late, ledger: Ledger, intent: Make) -> None:
    gateways = [Gateway(ledger, slow_market.broker()) for _ in range(3)]
    for symbol in ("S01", "S02", "S03"):
        gateways[0].submit(intent(symbol, 100))
    slow_market.late.add(("FILL", "S01"))
    slow_market.step(new_york(NEXT, 9))
    results: list[Any] = []

    def work(gateway: Gateway) -> None:
        results.append(reconcile(gateway, DAY))

    threads = [threading.Thread(target=work, args=(gateway,)) for gateway in gateways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert reconcile(gateways[0], DAY).matched
    assert len(ledger.fills_since(at(0))) == 3
    same_as_the_broker(gateways[0])


def test_the_table_for_people_has_every_line(gateway: Gateway, market: Any, intent: Make) -> None:
    assert "agree" in reconcile(gateway, DAY).block().html
    gateway.submit(intent("S01", 100))
    by_hand(gateway)
    market.step(new_york(DAY, 18))
    html = reconcile(gateway, DAY)._repr_html_()
    assert "missed event" in html
    assert "manual trade" in html


class Restated(Broker):
    "A broker that has every order in twice the shares, and does not say which splits there were."

    def orders(self, *args: Any, **wanted: Any) -> dict[str, BrokerOrder]:
        found = super().orders(*args, **wanted)
        return {name: replace(order, qty=2 * order.qty) for name, order in found.items() if order.qty}


def test_without_the_splits_a_restated_order_is_no_difference_but_no_comparison(
    ledger: Ledger, market: Any, intent: Make
) -> None:
    client, switch = alpaca_client(market.url, "K", "S", 5), Switch(ledger.engine, ledger.clock)
    gateway = Gateway(ledger, Restated(client, market.url, 1, 0.01, data_url="http://127.0.0.1:9"), switch=switch)
    gateway.submit(intent("S01", 10))
    for _ in range(3):
        with pytest.raises(BrokerUnavailable, match="corporate-actions"):
            reconcile(gateway, switch=switch)
    assert switch.standing("test", "S01") is None
