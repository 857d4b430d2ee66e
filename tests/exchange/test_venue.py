"Admission, sessions and corporate actions of the exchange, without the web."

from datetime import date
from decimal import Decimal

import pytest

from tradenb.core.clock import new_york
from tradenb.exchange import venue as floor
from tradenb.exchange.rules import NewOrder, Reject

FRIDAY, MONDAY, TUESDAY, WEDNESDAY = date(2024, 3, 1), date(2024, 3, 4), date(2024, 3, 5), date(2024, 3, 6)


def order(side="buy", qty=100, force="day", kind="market", symbol="ACME", **more):
    return NewOrder(symbol=symbol, side=side, type=kind, time_in_force=force, qty=qty, **more)


def refused(book, new) -> Reject:
    with pytest.raises(Reject) as found:
        floor.submit(book, new)
    return found.value


def test_market_on_open_and_on_close_trade_at_the_two_auctions(open_book):
    book = open_book(slippage_bps=0)
    opening = floor.submit(book, order(force="opg"))
    closing = floor.submit(book, order(force="cls"))
    floor.step(book.venue, new_york(MONDAY, 12))
    assert book.orders[opening.id].filled_avg_price == 100
    assert book.orders[closing.id].status == "new"
    floor.step(book.venue, new_york(MONDAY, 16))
    assert book.orders[closing.id].filled_avg_price == 101


def test_a_market_order_sent_in_the_session_fills_at_the_close(open_book):
    book = open_book(start=new_york(MONDAY, 12), slippage_bps=0)
    sent = floor.submit(book, order())
    assert sent.status == "new"
    floor.step(book.venue, new_york(MONDAY, 18))
    assert book.orders[sent.id].filled_avg_price == 101


def test_an_order_of_the_evening_waits_for_the_next_session(open_book):
    book = open_book(start=new_york(MONDAY, 17), slippage_bps=0)
    sent = floor.submit(book, order())
    floor.step(book.venue, new_york(TUESDAY, 10))
    assert book.orders[sent.id].filled_avg_price == 101
    assert book.orders[sent.id].filled_at == new_york(TUESDAY, 9, 30)


def test_a_day_order_expires_and_a_gtc_order_stays(open_book):
    book = open_book()
    day = floor.submit(book, order(kind="limit", limit_price=50))
    gtc = floor.submit(book, order(kind="limit", limit_price=51, force="gtc"))
    floor.step(book.venue, new_york(TUESDAY, 18))
    assert book.orders[day.id].status == "expired"
    assert book.orders[gtc.id].status == "new"


def test_volume_limits_a_fill_and_what_is_left_of_an_auction_order_expires(open_book):
    book = open_book()
    sent = floor.submit(book, order(symbol="BETA", qty=150, force="cls"))
    floor.step(book.venue, new_york(MONDAY, 18))
    assert (book.orders[sent.id].status, book.orders[sent.id].filled_qty) == ("expired", 100)
    assert book.account.qty("BETA") == 100


def test_the_session_s_volume_is_shared_by_phases_also_over_a_restart(open_book):
    book = open_book()
    floor.submit(book, order(symbol="BETA", qty=80, force="opg"))
    last = floor.submit(book, order(symbol="BETA", qty=80, force="cls"))
    floor.step(book.venue, new_york(MONDAY, 12))
    again = open_book(bars=None)
    floor.step(again.venue, new_york(MONDAY, 18))
    assert again.orders[last.id].filled_qty == 20


def test_a_symbol_without_a_bar_does_not_trade(open_book):
    book = open_book(bars=[*ACME_ROWS, ("BETA", FRIDAY, 20.0, 21.0, 19.0, 20.0, 1_000)])
    halted = floor.submit(book, order(symbol="BETA", qty=1))
    traded = floor.submit(book, order(symbol="ACME", qty=1))
    floor.step(book.venue, new_york(MONDAY, 18))
    assert [book.orders[o.id].status for o in (halted, traded)] == ["expired", "filled"]


ACME_ROWS = [
    ("ACME", FRIDAY, 99.0, 101.0, 98.0, 100.0, 50_000),
    ("ACME", MONDAY, 100.0, 102.0, 98.0, 101.0, 50_000),
    ("ACME", TUESDAY, 101.0, 105.0, 100.0, 104.0, 50_000),
]


@pytest.mark.parametrize(
    ("minute", "force", "accepted"),
    [
        ((9, 27), "opg", True),
        ((9, 28), "opg", False),
        ((15, 49), "cls", True),
        ((15, 50), "cls", False),
        ((18, 59), "cls", False),
        ((19, 0), "cls", True),
        ((19, 0), "opg", True),
    ],
)
def test_auction_orders_have_a_deadline_and_queue_from_seven_in_the_evening(open_book, minute, force, accepted):
    book = open_book(start=new_york(MONDAY, *minute))
    if accepted:
        assert floor.submit(book, order(force=force)).is_open
    else:
        assert refused(book, order(force=force)).status == 422


def test_the_deadline_follows_an_early_close(open_book):
    day = date(2024, 11, 29)
    bars = [("ACME", d, 100.0, 101.0, 99.0, 100.0, 50_000) for d in (date(2024, 11, 27), day)]
    assert refused(open_book(bars=bars, start=new_york(day, 12, 50)), order(force="cls")).code == 42210000


def test_selling_more_than_one_has_takes_two_orders(open_book):
    book = open_book()
    floor.submit(book, order(qty=100, force="opg"))
    floor.step(book.venue, new_york(MONDAY, 12))
    no = refused(book, order("sell", qty=150))
    assert (no.status, no.code) == (403, 40310000)
    assert no.extra["available"] == "100"
    floor.submit(book, order("sell", qty=100))
    floor.submit(book, order("sell", qty=50))
    floor.step(book.venue, new_york(MONDAY, 18))
    assert book.account.qty("ACME") == -50


def test_shares_are_held_for_open_orders(open_book):
    book = open_book()
    floor.submit(book, order(qty=100, force="opg"))
    floor.step(book.venue, new_york(MONDAY, 12))
    floor.submit(book, order("sell", qty=60))
    assert refused(book, order("sell", qty=60)).extra == {
        "symbol": "ACME",
        "existing_qty": "100",
        "held_for_orders": "60",
        "available": "40",
        "related_orders": list(book.working),
    }


def test_opposite_orders_that_could_meet_are_a_wash_trade(open_book):
    book = open_book()
    floor.submit(book, order("buy", kind="limit", limit_price=95))
    assert "wash" in refused(book, order("sell")).message
    assert floor.submit(book, order("sell", kind="limit", limit_price=96)).is_open


def test_buying_power_is_reserved_by_open_orders_and_freed_by_cancelling(open_book):
    book = open_book(multiplier=1)
    first = floor.submit(book, order(qty=900))
    no = refused(book, order(qty=200))
    assert (no.status, no.code, no.extra["buying_power"]) == (403, 40310000, "10000.00")
    floor.cancel(book, first.id)
    assert floor.submit(book, order(qty=200)).is_open


def test_a_cash_account_does_not_sell_short(open_book):
    assert "short" in refused(open_book(multiplier=1), order("sell")).message


@pytest.mark.parametrize(
    ("new", "code"),
    [
        ({"qty": None}, 40010001),
        ({"notional": 100}, 40010001),
        ({"qty": 0}, 40010001),
        ({"qty": -5}, 40010001),
        ({"type": "limit"}, 40010001),
        ({"type": "stop"}, 40010001),
        ({"limit_price": 10}, 40010001),
        ({"type": "limit", "limit_price": "100.001"}, 42210000),
        ({"symbol": "NONE"}, 42210000),
        ({"order_class": "bracket"}, 42210000),
        ({"extended_hours": True}, 42210000),
        ({"qty": "0.5", "time_in_force": "cls"}, 42210000),
        ({"qty": "0.5", "side": "sell"}, 42210000),
        ({"qty": None, "notional": 100, "time_in_force": "gtc"}, 42210000),
        ({"type": "stop", "stop_price": 90, "time_in_force": "cls"}, 42210000),
        ({"qty": "1.0000000001"}, 40010001),
    ],
)
def test_a_malformed_order_is_refused_and_leaves_nothing_behind(open_book, new, code):
    book = open_book()
    assert (
        refused(
            book,
            NewOrder(**{"symbol": "ACME", "side": "buy", "type": "market", "time_in_force": "day", "qty": 1} | new),
        ).code
        == code
    )
    assert book.orders == {}
    assert book.venue.store.load().accounts["test"].orders == []


def test_a_notional_order_buys_fractions_for_its_amount(open_book):
    book = open_book(slippage_bps=0)
    sent = floor.submit(book, order(qty=None, notional=1234))
    floor.step(book.venue, new_york(MONDAY, 12))
    assert book.orders[sent.id].status == "filled"
    assert book.account.qty("ACME") == Decimal("12.34")


def test_a_client_order_id_is_used_once_for_ever(open_book):
    book = open_book()
    sent = floor.submit(book, order(client_order_id="a"))
    floor.cancel(book, sent.id)
    assert (refused(book, order(client_order_id="a")).status, refused(book, order(client_order_id="a")).code) == (
        422,
        40010001,
    )
    assert refused(open_book(bars=None), order(client_order_id="a")).code == 40010001


def test_a_split_restates_positions_and_waiting_orders_before_the_open(open_book):
    book = open_book(actions=[("ACME", TUESDAY, "split", 4.0, 0.0)])
    floor.submit(book, order(force="opg"))
    floor.step(book.venue, new_york(MONDAY, 18))
    gtc = floor.submit(book, order("sell", kind="limit", limit_price=120, force="gtc"))
    equity = floor.value(book).equity
    floor.step(book.venue, new_york(TUESDAY, 9))
    assert book.account.qty("ACME") == 400
    assert (book.orders[gtc.id].qty, book.orders[gtc.id].limit_price) == (400, 30)
    assert floor.value(book).equity == equity


@pytest.mark.parametrize("order_of_rows", [1, -1])
def test_a_dividend_of_the_day_of_a_split_is_paid_on_the_shares_after_it(open_book, order_of_rows):
    day = [("ACME", TUESDAY, "split", 2.0, 0.0), ("ACME", TUESDAY, "dividend", 1.0, 0.25)]
    book = open_book(actions=day[::order_of_rows])
    floor.submit(book, order(qty=100, force="opg"))
    floor.step(book.venue, new_york(TUESDAY, 9))
    assert book.account.dividends == 50


def test_dividends_come_to_the_long_and_are_owed_by_the_short_of_the_evening_before(open_book):
    book = open_book(actions=[("ACME", TUESDAY, "dividend", 1.0, 0.5), ("BETA", TUESDAY, "dividend", 1.0, 0.1)])
    floor.submit(book, order(force="opg"))
    floor.submit(book, order("sell", qty=50, symbol="BETA", force="opg"))
    floor.step(book.venue, new_york(TUESDAY, 9))
    assert {a.symbol: a.amount for a in book.activities if a.kind == "DIV"} == {
        "ACME": Decimal("50.00"),
        "BETA": Decimal("-5.00"),
    }
    assert book.account.dividends == 45


def test_a_delisting_ends_position_and_orders(open_book):
    bars = [
        *ACME_ROWS,
        ("BETA", FRIDAY, 20.0, 21.0, 19.0, 20.0, 9_000),
        ("BETA", MONDAY, 20.0, 22.0, 19.5, 21.0, 9_000),
    ]
    book = open_book(bars=bars, actions=[("BETA", TUESDAY, "delisting", 1.0, 21.5)], last_dates={"BETA": MONDAY})
    floor.submit(book, order(symbol="BETA", force="opg"))
    floor.step(book.venue, new_york(MONDAY, 18))
    gtc = floor.submit(book, order("sell", kind="limit", limit_price=40, force="gtc", symbol="BETA"))
    cash = book.account.cash
    floor.step(book.venue, new_york(TUESDAY, 9))
    assert book.account.cash == cash + 2150
    assert book.account.qty("BETA") == 0
    assert book.orders[gtc.id].status == "canceled"
    assert refused(book, order(symbol="BETA")).message == 'asset "BETA" is not active'


def test_fees_are_booked_beside_their_fill(open_book):
    book = open_book(slippage_bps=0, fee_bps=5)
    floor.submit(book, order(force="opg"))
    floor.step(book.venue, new_york(MONDAY, 12))
    assert [(a.kind, a.amount) for a in book.activities[1:]] == [("FILL", -10_000), ("FEE", Decimal("-5.00"))]
    assert book.account.cash == 100_000 - 10_005


def test_time_stops_at_the_end_of_the_feed_and_goes_on_after_a_reload(open_book):
    book = open_book(bars=ACME_ROWS[:2])
    floor.step(book.venue, new_york(MONDAY, 18))
    sent = floor.submit(book, order())
    with pytest.raises(Reject, match=f"no bars for {TUESDAY}"):
        floor.step(book.venue, new_york(TUESDAY, 10))
    open_book(bars=ACME_ROWS, state="other.db")
    floor.reload_feed(book.venue)
    floor.step(book.venue, new_york(TUESDAY, 10))
    assert book.orders[sent.id].status == "filled"


def story(book, pause=lambda book: book):
    "Two days of orders; `pause` may swap the account for a reopened one between any two steps."
    for stop, sends in STORY:
        book = pause(book)
        floor.step(book.venue, stop)
        for new in sends:
            floor.submit(pause(book), new)
    return pause(book)


STORY = [
    (
        new_york(MONDAY, 9),
        [
            order(qty=60, force="opg"),
            order(qty=200, kind="limit", limit_price="98.50"),
            order("sell", 150, "cls", symbol="BETA"),
        ],
    ),
    (new_york(MONDAY, 11), [order(qty=10), order(qty=40, kind="stop", stop_price=103, force="gtc")]),
    (new_york(MONDAY, 17), [order(qty=None, notional=500)]),
    (new_york(TUESDAY, 9), [order("buy", 90, "cls", symbol="BETA")]),
    (new_york(TUESDAY, 18), []),
]
ACTIONS = [("ACME", TUESDAY, "split", 2.0, 0.1), ("BETA", TUESDAY, "dividend", 1.0, 0.2)]


def test_the_same_orders_on_the_same_feed_give_the_same_history_and_ids(open_book):
    one, two = (story(open_book(actions=ACTIONS, state=f"{n}.db", fee_bps=1)) for n in "ab")
    assert (one.activities, one.orders) == (two.activities, two.orders)
    assert len([a for a in one.activities if a.kind == "FILL"]) >= 6


def test_a_restart_between_any_two_steps_changes_nothing(open_book):
    whole = story(open_book(actions=ACTIONS, state="whole.db", fee_bps=1))
    cut = story(
        open_book(actions=ACTIONS, state="cut.db", fee_bps=1),
        lambda v: open_book(bars=None, state="cut.db", fee_bps=1),
    )
    assert (cut.activities, cut.orders, cut.closes, cut.venue.now) == (
        whole.activities,
        whole.orders,
        whole.closes,
        whole.venue.now,
    )
    assert (cut.venue.prices, cut.venue.previous) == (whole.venue.prices, whole.venue.previous)


def test_many_small_steps_are_one_large_step(open_book):
    small, large = (open_book(actions=ACTIONS, state=f"{n}.db") for n in "sl")
    for book in (small, large):
        floor.submit(book, order(qty=60, kind="limit", limit_price="98.50", force="gtc"))
    for day in (MONDAY, TUESDAY):
        for hour in range(10, 20):
            floor.step(small.venue, new_york(day, hour))
    floor.step(large.venue, new_york(TUESDAY, 19))
    assert (small.activities, small.orders) == (large.activities, large.orders)


def test_events_tell_the_whole_story_once(open_book):
    book, heard = open_book(actions=ACTIONS), []
    book.venue.listeners.append(lambda book, events: heard.extend(events))
    story(book)
    trades = [e for e in heard if e.execution_id]
    fills = [a for a in book.activities if a.kind == "FILL"]
    assert [e.execution_id for e in trades] == [a.execution_id for a in fills]
    assert len({e.event_id for e in heard}) == len(heard)
    last = {e.order.id: e.order for e in heard}
    assert {i: o.status for i, o in last.items()} == {i: o.status for i, o in book.orders.items()}


def test_a_replaced_order_names_its_successor(open_book):
    book = open_book(start=new_york(MONDAY, 10))
    old = floor.submit(book, order(kind="limit", limit_price=90))
    new = floor.replace_order(book, old.id, qty=Decimal(50), limit_price=Decimal("91.00"))
    assert (book.orders[old.id].status, book.orders[old.id].replaced_by) == ("replaced", new.id)
    assert (new.replaces, new.qty, new.limit_price, new.is_open) == (old.id, 50, 91, True)


def test_a_finished_order_is_not_canceled(open_book):
    book = open_book()
    sent = floor.submit(book, order(force="opg"))
    floor.step(book.venue, new_york(MONDAY, 12))
    with pytest.raises(Reject, match='already in "filled" state'):
        floor.cancel(book, sent.id)
