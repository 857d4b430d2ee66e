"Whatever is sent, in whatever order: every evening the rules of the house hold."

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tradenb.core.clock import new_york
from tradenb.exchange import venue as floor
from tradenb.exchange.accounts import fold, reserved
from tradenb.exchange.feed import Feed, write_rows
from tradenb.exchange.matching import FillModel, Order
from tradenb.exchange.rules import NewOrder, Reject
from tradenb.exchange.store import Store

EXAMPLES = int(os.environ.get("TRADENB_TEST_EXCHANGE_EXAMPLES", "20"))
DAYS = [date(2024, 3, d) for d in (4, 5, 6, 7, 8)]
HOURS = (9, 11, 17)
PRICES = {"ACME": (100.0, 101.0, 96.0, 110.0, 50.0), "BETA": (20.0, 25.0, 15.0, 20.0, 21.0)}
EVENTS = [
    ("BETA", DAYS[2], "split", 3.0, 0.1),
    ("ACME", DAYS[3], "dividend", 1.0, 1.0),
    ("BETA", DAYS[4], "split", 0.2, 0.0),
]
KINDS = ["market", "market", "limit", "stop", "stop_limit", "trailing_stop"]

FORCES = ["day", "day", "day", "gtc", "gtc", "opg", "cls", "ioc", "fok"]
SIZES = [("qty", "1"), ("qty", "40"), ("qty", "40"), ("qty", "700"), ("qty", "0.5"), ("notional", "333.33")]


def week(seed: int) -> list[tuple[int, str, dict[str, Any]]]:
    "What is sent when: forty acts of a week, at fifteen times."
    chance = Random(seed)
    terms = lambda: {
        "symbol": chance.choice(["ACME", "BETA"]),
        "side": chance.choice(["buy", "sell"]),
        "type": chance.choice(KINDS),
        "time_in_force": chance.choice(FORCES),
        "size": chance.choice(SIZES),
        "away": chance.choice([-10, -2, 0, 2, 10]),
    }
    return [(chance.randrange(15), chance.choice(["send"] * 6 + ["cancel", "replace"]), terms()) for _ in range(40)]


@lru_cache(1)
def feed() -> Feed:
    bars = [
        (s, day, p, p * 1.05, p * 0.95, p * 1.01, 5_000)
        for s, prices in PRICES.items()
        for day, p in zip([date(2024, 3, 1), *DAYS], [prices[0], *prices], strict=True)
    ]
    return Feed(write_rows(Path(mkdtemp()), bars, EVENTS))


def wanted(book: floor.Book, terms: dict[str, Any]) -> NewOrder:
    "An order at some distance from the market."
    kind, price = terms["type"], book.price(terms["symbol"]).quantize(Decimal(1)) + terms["away"]
    prices: dict[str, Any] = {"limit_price": price} if "limit" in kind else {}
    prices |= {"stop_price": price + 1} if kind in ("stop", "stop_limit") else {}
    prices |= {"trail_percent": 4} if kind == "trailing_stop" else {}
    force = {name: terms[name] for name in ("symbol", "side", "type", "time_in_force")}
    return NewOrder(**force, **dict([terms["size"]]), **prices)


def act(book: floor.Book, what: str, terms: dict[str, Any]) -> None:
    with suppress(Reject):
        if what == "send":
            floor.submit(book, wanted(book, terms))
        elif book.working:
            order = list(book.working.values())[len(book.orders) % len(book.working)]
            if what == "cancel":
                floor.cancel(book, order.id)
            else:
                floor.replace_order(book, order.id, qty=order.qty and order.qty + 3)


def fills(book: floor.Book) -> Iterator[tuple[Any, Order]]:
    return ((a, book.orders[a.order_id]) for a in book.activities if a.kind == "FILL")


def check(book: floor.Book, day: date, listed: list[Any]) -> None:
    "What must be true at any time."
    model, volume = book.venue.model, Decimal(5_000)
    done: dict[str, Decimal] = {}
    for line, order in fills(book):
        done[order.id] = done.get(order.id, Decimal(0)) + abs(line.qty)
        assert (line.qty > 0) == (order.side == "buy")
        if line.date == day and order.limit_price is not None:
            worse = line.price > order.limit_price if order.side == "buy" else line.price < order.limit_price
            assert not worse, (line, order)
    for symbol in PRICES:
        today = [abs(a.qty) for a, _ in fills(book) if (a.symbol, a.date) == (symbol, day)]
        assert sum(today) <= volume * model.volume_share
        split = any(e[0] == symbol and e[2] == "split" for e in EVENTS)
        for order in (o for o in book.orders.values() if o.symbol == symbol and not split):
            assert order.filled_qty == done.get(order.id, 0)
            assert order.qty is None or order.filled_qty <= order.qty
    assert fold(book.activities) == book.account
    assert book.reserved == reserved(book.working.values(), book.account.positions, book.venue.prices) >= 0
    assert {o.id for o in book.orders.values() if o.is_open} == set(book.working)
    assert len({e.event_id for e in listed}) == len(listed)


def no_order_flips(book: floor.Book) -> None:
    "An order closes or opens, and never does both; a fraction is never short."
    held: dict[str, Decimal] = {}
    for line in book.activities:
        if line.symbol is None:
            continue
        before = held.get(line.symbol, Decimal(0))
        held[line.symbol] = before + line.qty
        if line.kind == "FILL" and before * held[line.symbol] < 0:
            assert book.orders[line.order_id].qty is not None


@given(st.integers(0, 2**32))
@example(260)  # an order for dollars sold what another order of the same auction had sold already
@settings(max_examples=EXAMPLES, deadline=None)
def test_every_evening_the_rules_hold(seed):
    sent = week(seed)
    venue = floor.Venue(feed(), Store(None), FillModel(), new_york(DAYS[0], 9))
    book, listed = floor.open_account(venue, "test", Decimal(50_000), Decimal(4)), []
    venue.listeners.append(lambda book, events: listed.extend(events))
    for n, (day, hour) in enumerate((day, hour) for day in DAYS for hour in HOURS):
        floor.step(venue, new_york(day, hour))
        for at, what, terms in sent:
            if at == n:
                act(book, what, terms)
                check(book, day, listed)
        check(book, day, listed)
    no_order_flips(book)
    last = {e.order.id: e.order.status for e in listed}
    assert last == {i: o.status for i, o in book.orders.items()}
