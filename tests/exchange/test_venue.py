"Admission, sessions and corporate actions of the exchange, without the web."

import asyncio
import contextlib
from datetime import date
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.core.clock import new_york
from tradenb.core.errors import SourceError
from tradenb.exchange import venue as floor
from tradenb.exchange.accounts import Position, account_id, key_hash, reserved
from tradenb.exchange.corporate import Action, action_activities
from tradenb.exchange.matching import Side
from tradenb.exchange.rules import NewOrder, Reject, Terms
from tradenb.exchange.store import StoreBroken

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


# Several accounts


def test_accounts_live_through_the_same_minutes_and_do_not_see_each_other(open_book):
    one = open_book(slippage_bps=0)
    venue = one.venue
    two = floor.open_account(venue, "two", Decimal(5_000), Decimal(1))
    for book, side in ((one, "sell"), (two, "buy")):
        floor.submit(book, order(side, qty=10, force="opg", client_order_id="same"))
    assert one.by_client_id != two.by_client_id
    floor.step(venue, new_york(MONDAY, 18))
    assert [book.account.qty("ACME") for book in (one, two)] == [-10, 10]
    assert [list(book.closes) for book in (one, two)] == [[MONDAY], [MONDAY]]
    assert two.account.cash == 4_000


def test_each_account_hears_of_its_own_orders(open_book):
    one = open_book()
    two = floor.open_account(one.venue, "two", Decimal(5_000), Decimal(1))
    heard = []
    one.venue.listeners.append(lambda book, events: heard.extend((book.name, e.kind, e.order.symbol) for e in events))
    floor.submit(two, order(qty=1))
    floor.submit(one, order(qty=1, symbol="BETA"))
    assert heard == [("two", "accepted", "ACME"), ("test", "accepted", "BETA")]


def test_a_restart_finds_every_account_with_its_orders(open_book):
    one = open_book()
    two = floor.open_account(one.venue, "two", Decimal(5_000), Decimal(1), "PK2", key_hash("PK2", "secret"))
    floor.submit(two, order(qty=3, force="gtc", kind="limit", limit_price=20))
    again = open_book(bars=None).venue
    assert list(again.books) == ["test", "two"]
    assert again.books["two"].orders == two.orders
    assert again.books["two"].multiplier == 1
    assert floor.book_for(again, "PK2", "secret") is again.books["two"]
    assert [floor.book_for(again, *pair) for pair in (("PK2", "Secret"), ("PK", "secret"), ("", ""))] == [None] * 3


@pytest.mark.parametrize(
    ("name", "cash", "multiplier"), [("test", 1, 1), ("", 1, 1), ("a b", 1, 1), ("ok", -1, 1), ("ok", 1, 0)]
)
def test_an_account_that_cannot_be_is_refused(open_book, name, cash, multiplier):
    venue = open_book().venue
    with pytest.raises(Reject):
        floor.open_account(venue, name, Decimal(cash), Decimal(multiplier))
    assert list(venue.books) == ["test"]


def test_an_account_does_not_get_another_one_s_key(open_book):
    venue = open_book().venue
    floor.set_keys(venue, "test", "PK", key_hash("PK", "mine"))
    with pytest.raises(Reject, match="in use"):
        floor.open_account(venue, "two", Decimal(1), Decimal(1), "PK", key_hash("PK", "theirs"))
    assert (list(venue.books), list(venue.store.load().accounts)) == (["test"], ["test"])
    floor.set_keys(venue, "test", "PK9", key_hash("PK9", "mine"))
    assert floor.book_for(venue, "PK", "mine") is None
    assert floor.book_for(open_book(bars=None).venue, "PK9", "mine").name == "test"


def test_the_store_of_a_simulation_lives_in_memory(open_book, tmp_path):
    book = open_book(state=None)
    floor.submit(book, order(force="opg"))
    floor.step(book.venue, new_york(MONDAY, 18))
    assert book.account.qty("ACME") == 100
    assert not list(tmp_path.glob("*.db"))


def test_a_file_that_cannot_be_written_ends_the_exchange(open_book):
    book = open_book()
    book.venue.store.db.execute("drop table orders")
    with pytest.raises(StoreBroken, match="no such table"):
        floor.submit(book, order())
    for attempt in (
        lambda: floor.submit(book, order(symbol="BETA")),
        lambda: floor.step(book.venue, new_york(MONDAY, 12)),
    ):
        with pytest.raises(StoreBroken, match="start it again"):
            attempt()


def test_what_happened_is_told_after_the_commit_in_order_also_when_a_listener_answers(open_book):
    book, heard = open_book(), []

    def answer(mine, events):
        stored = book.venue.store.load().accounts["test"].orders
        heard.extend((e.order.client_order_id, e.order in stored) for e in events)
        if len(book.orders) < 3:
            floor.submit(book, order(qty=1, client_order_id=f"n{len(book.orders)}"))

    book.venue.listeners.append(answer)
    floor.submit(book, order(qty=1, client_order_id="n0"))
    assert heard == [("n0", True), ("n1", True), ("n2", True)]


def test_moments_are_told_when_they_are_on_disk(open_book):
    venue, told = open_book().venue, []
    venue.moment_listeners.append(lambda at, moment, day: told.append((moment.value, venue.store.load().now == at)))
    floor.step(venue, new_york(TUESDAY, 10))
    assert told == [(name, True) for name in ("open", "close", "book", "open")]


def test_the_requests_of_one_turn_of_the_loop_share_a_commit_and_hear_of_it_before_they_answer(open_book):
    book = open_book()
    store, commits, told = book.venue.store, [], []
    write = store._write
    store._write = lambda writes: (commits.append(len(writes)), write(writes))
    book.venue.listeners.append(lambda book, events: told.extend(e.order.id for e in events))

    async def client(n):
        sent = floor.admit(book, order(qty=1, client_order_id=f"n{n}"))
        await floor.settled(book.venue)
        assert sent.id in told
        return sent.id

    async def all_of_them():
        return await asyncio.gather(*(client(n) for n in range(8)))

    assert asyncio.run(all_of_them()) == told
    assert commits == [8]


# What trouble on order can do


def test_a_market_may_refuse_what_the_exchange_had_accepted(open_book):
    book = open_book()
    book.venue.veto = lambda book, order: "no" if order.symbol == "BETA" else None
    early = floor.submit(book, order(symbol="BETA", qty=1))
    assert early.status == "accepted"
    floor.step(book.venue, new_york(MONDAY, 12))
    late = floor.submit(book, order(symbol="BETA", qty=1))
    assert [book.orders[o.id].status for o in (early, late)] == ["rejected", "rejected"]
    assert book.orders[early.id].failed_at == new_york(MONDAY, 9, 30)


def test_a_fill_may_be_cut_to_a_part(open_book):
    book = open_book()
    book.venue.most = lambda book, order, wanted: wanted // 3 if order.executions < 2 else None
    sent = floor.submit(book, order(qty=90, kind="limit", limit_price=110, force="gtc"))
    floor.step(book.venue, new_york(MONDAY, 18))
    assert [a.qty for a in book.activities if a.kind == "FILL"] == [30, 20, 40]
    assert book.orders[sent.id].status == "filled"


# Orders over days


def test_a_gtc_order_fills_over_days_as_the_volume_allows(open_book):
    book = open_book(slippage_bps=0)
    sent = floor.submit(book, order(symbol="BETA", qty=250, force="gtc"))
    taken = []
    for day in (MONDAY, TUESDAY):
        floor.step(book.venue, new_york(day, 18))
        taken.append(book.orders[sent.id].filled_qty)
    assert taken == [100, 200]
    assert book.orders[sent.id].status == "partially_filled"
    assert book.orders[sent.id].filled_avg_price == Decimal("20.5")


def test_a_gtc_order_is_canceled_after_ninety_days(open_book):
    days = sessions(MONDAY, date(2024, 6, 7))
    book = open_book(bars=[("ACME", day, 100.0, 101.0, 99.0, 100.0, 50_000) for day in days])
    sent = floor.submit(book, order(kind="limit", limit_price=50, force="gtc"))
    floor.step(book.venue, new_york(date(2024, 5, 31), 18))
    assert book.orders[sent.id].is_open
    floor.step(book.venue, new_york(date(2024, 6, 3), 18))
    assert (book.orders[sent.id].status, book.orders[sent.id].canceled_at) == (
        "canceled",
        new_york(date(2024, 6, 3), 16),
    )


def test_a_trailing_stop_follows_the_high_and_sells_where_the_bar_proves_it(open_book):
    book = open_book(slippage_bps=0)
    floor.submit(book, order(force="opg"))
    floor.step(book.venue, new_york(MONDAY, 12))
    stop = floor.submit(book, order("sell", kind="trailing_stop", force="gtc", trail_price=5))
    assert (stop.hwm, stop.stop_price) == (100, 95)
    floor.step(book.venue, new_york(MONDAY, 18))
    assert (book.orders[stop.id].hwm, book.orders[stop.id].status) == (101, "new")
    floor.step(book.venue, new_york(TUESDAY, 18))
    assert (book.orders[stop.id].hwm, book.orders[stop.id].stop_price) == (105, 100)
    tight = floor.replace_order(open_at(book, new_york(WEDNESDAY, 10)), stop.id, trail=Decimal(1))
    assert (tight.hwm, tight.stop_price, tight.trail_price) == (105, 104, 1)
    floor.step(book.venue, new_york(WEDNESDAY, 18))
    assert book.orders[tight.id].status == "new"


def open_at(book, at):
    floor.step(book.venue, at)
    return book


def test_a_trailing_stop_to_buy_follows_the_low_by_percent(open_book):
    bars = [
        ("ACME", FRIDAY, 100.0, 100.0, 100.0, 100.0, 50_000),
        ("ACME", MONDAY, 100.0, 100.0, 80.0, 95.0, 50_000),
    ]
    book = open_book(bars=bars, slippage_bps=0)
    stop = floor.submit(book, order(kind="trailing_stop", trail_percent=10))
    assert stop.stop_price == 110
    floor.step(book.venue, new_york(MONDAY, 18))
    filled = book.orders[stop.id]
    assert (filled.hwm, filled.stop_price, filled.status, filled.filled_avg_price) == (80, 88, "filled", 95)


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({}, 40010001),
        ({"trail_price": 1, "trail_percent": 1}, 40010001),
        ({"trail_price": 0}, 40010001),
        ({"trail_percent": 100}, 40010001),
        ({"trail_price": 1, "force": "cls"}, 42210000),
        ({"trail_price": 1, "force": "ioc"}, 42210000),
        ({"trail_price": 1, "kind": "market"}, 40010001),
    ],
)
def test_a_trailing_stop_has_one_trail_and_works_by_the_day(open_book, terms, code):
    assert refused(open_book(), order(**{"kind": "trailing_stop"} | terms)).code == code


def test_a_dividend_lowers_the_orders_below_the_market(open_book):
    book = open_book(actions=[("ACME", TUESDAY, "dividend", 1.0, 0.255)])
    floor.submit(book, order(force="opg"))
    floor.step(book.venue, new_york(MONDAY, 18))
    low = floor.submit(book, order(kind="limit", limit_price=60, force="gtc"))
    floor.cancel(book, low.id)
    stop = floor.submit(book, order("sell", 40, "gtc", "stop", stop_price=70))
    high = floor.submit(book, order("sell", 40, "gtc", "limit", limit_price=150))
    heard = []
    book.venue.listeners.append(lambda book, events: heard.extend(events))
    floor.step(book.venue, new_york(TUESDAY, 9))
    assert book.orders[low.id].limit_price == 60
    assert (book.orders[stop.id].stop_price, book.orders[high.id].limit_price) == (Decimal("69.74"), 150)
    assert [(e.kind, e.order.id) for e in heard] == [("restated", stop.id)]


# What companies do


SPUN = [
    ("NEWCO", TUESDAY, 30.0, 31.0, 29.0, 30.0, 50_000),
    ("NEWCO", WEDNESDAY, 30.0, 31.0, 29.0, 30.0, 50_000),
]


def held(open_book, qty=100, **more):
    "A hundred shares (or so) of ACME, bought on Monday's open at 100."
    book = open_book(slippage_bps=0, **more)
    floor.submit(book, order("buy" if qty > 0 else "sell", qty=abs(qty), force="opg"))
    floor.step(book.venue, new_york(MONDAY, 18))
    return book


@pytest.mark.parametrize("qty", [101, -101])
def test_a_reverse_split_pays_the_fraction_at_the_last_close(open_book, qty):
    book = held(open_book, qty, actions=[("ACME", TUESDAY, "split", 0.125, 0.0)])
    equity = floor.value(book).equity
    floor.step(book.venue, new_york(TUESDAY, 9))
    sign = 1 if qty > 0 else -1
    assert book.account.qty("ACME") == sign * 12
    assert [(a.kind.value, a.qty, a.amount) for a in book.activities[-2:]] == [
        ("SPLIT", sign * Decimal("-88.375"), 0),
        ("CIL", sign * Decimal("-0.625"), sign * Decimal("505.00")),
    ]
    assert floor.value(book).equity == equity


def test_a_spin_off_divides_the_cost_by_the_value_stated(open_book):
    event = ("ACME", TUESDAY, "spin_off", 0.5, 20.2, None, "NEWCO")
    book = held(open_book, bars=BARS_OF_ALL + SPUN, actions=[event])
    floor.step(book.venue, new_york(TUESDAY, 9))
    cost = {s: p.cost_basis for s, p in book.account.positions.items()}
    assert cost == {"ACME": 8_000, "NEWCO": 2_000}
    assert book.account.qty("NEWCO") == 50


def test_a_spin_off_without_a_value_divides_the_cost_after_the_first_close(open_book):
    event = ("ACME", TUESDAY, "spin_off", 0.5, 0.0, None, "NEWCO")
    book = held(open_book, bars=BARS_OF_ALL + SPUN, actions=[event])
    floor.step(book.venue, new_york(TUESDAY, 12))
    assert (book.account.positions["ACME"].cost_basis, book.account.positions["NEWCO"].cost_basis) == (10_000, 0)
    again = open_book(bars=None, slippage_bps=0)
    floor.step(again.venue, new_york(TUESDAY, 18))
    share = Decimal(15) / (Decimal(15) + Decimal(104))
    assert abs(again.account.positions["NEWCO"].cost_basis - 10_000 * share) < Decimal("0.0001")
    assert sum(p.cost_basis for p in again.account.positions.values()) == 10_000
    assert floor.value(again).equity == again.account.cash + 100 * 104 + 50 * 30


def test_a_short_owes_the_shares_that_are_spun_off(open_book):
    event = ("ACME", TUESDAY, "spin_off", 0.5, 0.0, None, "NEWCO")
    book = held(open_book, -100, bars=BARS_OF_ALL + SPUN, actions=[event])
    floor.step(book.venue, new_york(TUESDAY, 18))
    assert book.account.qty("NEWCO") == -50
    floor.submit(book, order(qty=50, symbol="NEWCO", force="day"))
    floor.step(book.venue, new_york(WEDNESDAY, 12))
    assert book.account.qty("NEWCO") == 0


def test_a_spin_off_of_a_company_that_is_not_listed_is_its_value_in_cash(open_book):
    event = ("ACME", TUESDAY, "spin_off", 0.5, 2.5, None, "NOWHERE")
    book = held(open_book, actions=[event])
    floor.step(book.venue, new_york(TUESDAY, 9))
    assert (book.account.dividends, list(book.account.positions)) == (250, ["ACME"])


RENAMED = [
    ("ACMX", TUESDAY, 101.0, 105.0, 100.0, 104.0, 50_000),
    ("ACMX", WEDNESDAY, 104.0, 106.0, 103.0, 105.0, 50_000),
]


def test_a_new_symbol_takes_position_and_orders_along(open_book):
    event = ("ACME", TUESDAY, "symbol_change", 1.0, 0.0, None, "ACMX")
    book = held(open_book, bars=BARS_OF_ALL[:2] + RENAMED, actions=[event])
    stop = floor.submit(book, order("sell", 100, "gtc", "stop", stop_price=103))
    equity, heard = floor.value(book).equity, []
    book.venue.listeners.append(lambda book, events: heard.extend(events))
    floor.step(book.venue, new_york(TUESDAY, 9))
    assert [(a.kind.value, a.symbol, a.qty, a.price) for a in book.activities[-2:]] == [
        ("NC", "ACME", -100, 100),
        ("NC", "ACMX", 100, 100),
    ]
    assert (book.orders[stop.id].symbol, floor.value(book).equity) == ("ACMX", equity)
    assert [(e.kind, e.order.symbol) for e in heard] == [("restated", "ACMX")]
    assert refused(book, order(qty=1)).message == 'asset "ACME" is not active'
    assert (book.line("ACMX", Side.SELL).shares, book.line("ACME", Side.SELL).shares) == (100, 0)
    floor.step(book.venue, new_york(WEDNESDAY, 18))
    assert (book.orders[stop.id].status, book.account.positions) == ("filled", {})
    assert book.account.realised == 100


def test_companies_that_change_names_on_one_day_do_so_at_once(open_book):
    names = [
        ("ACME", TUESDAY, "symbol_change", 1.0, 0.0, None, "BETA"),
        ("BETA", TUESDAY, "symbol_change", 1.0, 0.0, None, "CORE"),
    ]
    bars = [
        *BARS_OF_ALL,
        ("BETA", FRIDAY, 20.0, 21.0, 19.0, 20.0, 90_000),
        ("BETA", MONDAY, 20.0, 22.0, 19.5, 21.0, 90_000),
    ]
    bars += [("BETA", TUESDAY, 101.0, 105.0, 100.0, 104.0, 9), ("CORE", TUESDAY, 21.0, 22.0, 20.0, 21.5, 90_000)]
    book = open_book(bars=bars, actions=names, slippage_bps=0)
    floor.submit(book, order(qty=100, force="opg"))
    floor.submit(book, order("sell", qty=7, symbol="BETA", force="opg"))
    floor.step(book.venue, new_york(TUESDAY, 9))
    assert {s: p.qty for s, p in book.account.positions.items()} == {"BETA": 100, "CORE": -7}
    assert (book.venue.prices["BETA"], book.venue.prices["CORE"]) == (101, 21)


@pytest.mark.parametrize(("cash", "realised"), [(0.0, 0), (26.0, 52)])
def test_a_merger_for_shares_gives_the_acquirer_s_and_its_cash(open_book, cash, realised):
    bars = [*BARS_OF_ALL, *(("BIG", day, 150.0, 151.0, 149.0, 150.0, 9_000) for day in (FRIDAY, MONDAY, TUESDAY))]
    event = ("ACME", TUESDAY, "delisting", 0.505, cash, None, "BIG")
    book = held(open_book, bars=bars, actions=[event], last_dates={"ACME": MONDAY})
    gtc = floor.submit(book, order("sell", 100, "gtc", "limit", limit_price=150))
    before = book.account.cash
    floor.step(book.venue, new_york(TUESDAY, 9))
    assert book.orders[gtc.id].status == "canceled"
    assert (list(book.account.positions), book.account.qty("BIG")) == (["BIG"], 50)
    assert book.account.cash == before + Decimal(str(cash)) * 100 + 75
    assert [a.kind.value for a in book.activities[-3:]] == ["MA", "MA", "CIL"]
    gained = book.account.cash - before + book.account.positions["BIG"].cost_basis - 10_000
    assert abs(book.account.realised - gained) < Decimal("0.01")


def test_corporate_actions_survive_a_restart_on_every_account(open_book):
    event = ("ACME", TUESDAY, "spin_off", 0.25, 0.0, None, "NEWCO")
    book = held(open_book, bars=BARS_OF_ALL + SPUN, actions=[event, ("ACME", TUESDAY, "split", 3.0, 0.0)])
    floor.step(book.venue, new_york(WEDNESDAY, 18))
    again = open_book(bars=None, slippage_bps=0)
    assert (again.account, again.closes, again.orders) == (book.account, book.closes, book.orders)


BARS_OF_ALL = [*ACME_ROWS, ("ACME", WEDNESDAY, 104.0, 106.0, 103.0, 105.0, 50_000)]


# Short sales, flips, margin


def test_what_cannot_be_borrowed_cannot_be_sold_short_but_sold_and_bought_back(open_book):
    book = open_book(hard_to_borrow=("BETA",))
    assert refused(book, order("sell", qty=1, symbol="BETA")).message == 'asset "BETA" cannot be sold short'
    assert floor.submit(book, order("sell", qty=1)).is_open
    floor.submit(book, order(qty=10, symbol="BETA", force="opg"))
    floor.step(book.venue, new_york(MONDAY, 12))
    assert floor.submit(book, order("sell", qty=10, symbol="BETA")).is_open
    assert refused(book, order("sell", qty=1, symbol="BETA")).code == 42210000


@pytest.mark.parametrize(("side", "back"), [("buy", "sell"), ("sell", "buy")])
def test_a_flip_is_two_orders_into_one_auction(open_book, side, back):
    book = open_book(slippage_bps=0)
    floor.submit(book, order(side, qty=100, force="opg"))
    floor.step(book.venue, new_york(MONDAY, 12))
    floor.submit(book, order(back, qty=100, force="cls"))
    floor.submit(book, order(back, qty=60, force="cls"))
    floor.step(book.venue, new_york(MONDAY, 18))
    assert book.account.qty("ACME") == (-60 if back == "sell" else 60)


@pytest.mark.parametrize(
    ("wish", "new", "message"),
    [
        ({"suspend_trade": True}, {}, "new orders are rejected by user request"),
        ({"no_shorting": True}, {"side": "sell"}, "account is not allowed to short"),
        ({"fractional_trading": False}, {"qty": "0.5"}, "fractional trading is not enabled for this account"),
        ({"max_margin_multiplier": Decimal(1)}, {"qty": 1001}, "insufficient buying power"),
    ],
)
def test_an_owner_may_forbid_his_account_much(open_book, wish, new, message):
    book = open_book()
    floor.configure(book, **wish)
    assert refused(book, order(**new)).message == message
    assert refused(open_book(bars=None), order(**new)).message == message


@given(st.lists(st.tuples(st.sampled_from("bsBSc"), st.integers(1, 40), st.booleans()), max_size=25))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_running_sums_are_those_of_all_open_orders(open_book, moves):
    book = open_book(state=None)
    floor.submit(book, order(qty=50, force="opg"))
    floor.step(book.venue, new_york(MONDAY, 12))
    for what, qty, far in moves:
        with contextlib.suppress(Reject):
            if what == "c" and book.working:
                floor.cancel(book, list(book.working)[qty % len(book.working)])
            elif what != "c":
                kind = {"kind": "limit", "limit_price": 90 if what in "bB" else 110} if far else {}
                floor.submit(
                    book,
                    order("buy" if what in "bB" else "sell", qty, symbol="ACME" if what in "bs" else "BETA", **kind),
                )
        assert book.reserved == reserved(book.working.values(), book.account.positions, book.venue.prices)
        for symbol in ("ACME", "BETA"):
            for side in Side:
                mine = [o for o in book.working.values() if (o.symbol, o.side) == (symbol, side)]
                assert book.line(symbol, side).shares == sum(o.qty for o in mine)


# Cancel and replace


def test_an_order_is_replaced_when_the_market_has_it(open_book):
    book = open_book()
    sent = floor.submit(book, order(kind="limit", limit_price=90))
    with pytest.raises(Reject, match="accepted"):
        floor.replace_order(book, sent.id, qty=Decimal(5))
    floor.step(book.venue, new_york(MONDAY, 10))
    assert floor.replace_order(book, sent.id, qty=Decimal(5)).qty == 5


def test_a_partly_filled_order_is_replaced_for_the_rest_and_a_chain_counts_all_fills(open_book):
    book = open_book(slippage_bps=0)
    first = floor.submit(book, order(symbol="BETA", qty=250, kind="limit", limit_price=22, force="gtc"))
    floor.step(book.venue, new_york(MONDAY, 18))
    assert book.orders[first.id].filled_qty == 100
    with pytest.raises(Reject, match="more than the 100 shares"):
        floor.replace_order(book, first.id, qty=Decimal(100))
    second = floor.replace_order(book, first.id, limit_price=Decimal("21.50"))
    assert (second.qty, second.filled_qty, second.replaces) == (150, 0, first.id)
    floor.step(book.venue, new_york(TUESDAY, 12))
    assert book.orders[second.id].filled_qty == 100
    third = floor.replace_order(book, second.id, qty=Decimal(220))
    assert third.qty == 20
    floor.step(book.venue, new_york(TUESDAY, 18))
    chain = [book.orders[o.id] for o in (first, second, third)]
    assert [(o.status, o.filled_qty) for o in chain] == [("replaced", 100), ("replaced", 100), ("new", 0)]
    assert [a.order_id for a in book.activities if a.kind == "FILL"] == [first.id, second.id]
    assert book.account.qty("BETA") == 200


def test_a_split_counts_what_the_orders_of_a_chain_have_got_in_its_own_shares(open_book):
    bars = [("ACME", MONDAY, 10.0, 10.0, 10.0, 10.0, 400), ("ACME", TUESDAY, 5.0, 5.0, 5.0, 5.0, 0)]
    terms = {"bars": [*ACME_ROWS[:1], *bars], "actions": [("ACME", TUESDAY, "split", 2.0, 0.0)]}
    book = open_book(**terms)
    first = floor.submit(book, order(kind="limit", limit_price=11, force="gtc"))
    floor.step(book.venue, new_york(MONDAY, 18))
    second = floor.replace_order(book, first.id, limit_price=Decimal(10))
    assert (book.orders[first.id].filled_qty, second.qty) == (40, 60)
    floor.step(book.venue, new_york(TUESDAY, 12))
    again = open_book(**terms)
    third = floor.replace_order(again, second.id, limit_price=Decimal(4))
    assert (again.orders[second.id].qty, third.qty) == (120, 120)
    assert floor.replace_order(again, third.id, qty=Decimal(200)).qty == 120


@pytest.mark.parametrize("end", ["filled", "canceled", "replaced"])
def test_what_is_over_is_neither_replaced_nor_canceled(open_book, end):
    book = open_book(start=new_york(MONDAY, 10))
    sent = floor.submit(book, order(kind="limit", limit_price=110 if end == "filled" else 50))
    if end == "filled":
        floor.step(book.venue, new_york(MONDAY, 18))
    elif end == "canceled":
        floor.cancel(book, sent.id)
    else:
        floor.replace_order(book, sent.id, qty=Decimal(7))
    for attempt in (lambda: floor.cancel(book, sent.id), lambda: floor.replace_order(book, sent.id, qty=Decimal(9))):
        with pytest.raises(Reject, match=f'already in "{end}" state') as no:
            attempt()
        assert (no.value.status, no.value.code) == (422, 42210000)


def test_a_replacement_needs_only_what_it_adds_and_takes_a_new_id(open_book):
    book = open_book(start=new_york(MONDAY, 10), multiplier=1)
    sent = floor.submit(book, order(qty=900, kind="limit", limit_price=100, client_order_id="a"))
    with pytest.raises(Reject, match="insufficient buying power"):
        floor.replace_order(book, sent.id, qty=Decimal(1100))
    with pytest.raises(Reject, match="must be unique"):
        floor.replace_order(book, sent.id, qty=Decimal(950), client_order_id="a")
    new = floor.replace_order(book, sent.id, qty=Decimal(950), client_order_id="b")
    assert refused(book, order(qty=1, kind="limit", limit_price=90, client_order_id="a")).code == 40010001
    assert (new.client_order_id, book.reserved) == ("b", 95_000)


# Orders for dollars


def test_an_order_for_dollars_never_sells_more_than_is_held_whatever_the_price_does(open_book):
    bars = [*ACME_ROWS[:2], ("ACME", TUESDAY, 50.0, 51.0, 49.0, 50.0, 50_000)]
    book = open_book(bars=bars, slippage_bps=0)
    floor.submit(book, order(qty=10, force="opg"))
    floor.step(book.venue, new_york(MONDAY, 18))
    no = refused(book, order("sell", qty=None, notional=1011))
    assert (no.code, no.extra["available"]) == (40310000, "10")
    sent = [floor.submit(book, order("sell", qty=None, notional=dollars)) for dollars in (600, 400)]
    floor.step(book.venue, new_york(TUESDAY, 18))
    assert book.account.positions == {}
    assert [book.orders[o.id].filled_qty for o in sent] == [10, 0]
    assert [book.orders[o.id].status for o in sent] == ["canceled", "expired"]


def test_an_order_may_be_replaced_a_thousand_times(open_book):
    "A client that follows the price by the minute does so in some days."
    book = open_book(start=new_york(MONDAY, 12), state=None)
    new = floor.admit(book, order(kind="limit", force="gtc", limit_price="90"))
    for n in range(1_100):
        new = floor.amend(book, new.id, Terms(limit_price=Decimal(90) - Decimal(n % 100) / 100))
    assert (new.filled_before, len(book.orders)) == (0, 1_101)
    assert len(book.working) == 1


def test_a_position_too_small_for_a_share_of_the_other_company_does_not_stop_the_clock(open_book):
    tiny = Position("ACME", Decimal("0.000000001"), Decimal(100))
    spin = Action("ACME", TUESDAY, "spin_off", target="BETA", rate=Decimal("0.1"))
    merger = Action("ACME", TUESDAY, "delisting", cash=Decimal(5), target="BETA", rate=Decimal("0.1"))
    account, at = account_id("demo"), new_york(TUESDAY, 4)
    assert action_activities(account, tiny, spin, at, {"BETA": Decimal(20)}) == []
    (out,) = action_activities(account, tiny, merger, at, {"BETA": Decimal(20)})
    assert (out.kind, out.qty) == ("MA", -tiny.qty)


def test_an_account_and_its_keys_are_one_write(open_book):
    venue, writes = open_book().venue, []
    venue.store.put = lambda changes, told=None: writes.append(list(changes))
    opened = floor.open_account(venue, "other", Decimal(5), Decimal(1), "PK", key_hash("PK", "secret"))
    ((write,),) = writes
    assert (write.profile.key_id, len(write.activities)) == ("PK", 1)
    assert floor.book_for(venue, "PK", "secret") is opened


@pytest.mark.parametrize("hour", [9, 12])
def test_an_order_to_sell_for_dollars_is_filled_at_once_whatever_it_slips(open_book, hour):
    book = open_book()
    floor.submit(book, order(force="opg"))
    floor.step(book.venue, new_york(TUESDAY, hour))
    sent = floor.submit(book, order("sell", qty=None, notional=1000))
    floor.step(book.venue, new_york(TUESDAY, 18))
    done = book.orders[sent.id]
    assert (done.status, done.executions, round(done.filled_value, 2)) == ("filled", 1, 1000)


@pytest.mark.parametrize("terms", [{"notional": "1E-9999"}, {"kind": "trailing_stop", "trail_price": "1E-9999"}])
def test_no_number_of_an_order_has_more_than_nine_decimal_places(open_book, terms):
    size = {"qty": None} if "notional" in terms else {}
    assert refused(open_book(), order(**size, **terms)).message.endswith("more than nine decimal places")


def test_an_order_without_a_client_s_id_takes_none_that_a_client_has_used(open_book):
    book, other = open_book(), open_book(state=None)
    drawn = [floor.submit(other, order(qty=1)).client_order_id for _ in range(2)]
    sent = [floor.submit(book, order(qty=1, client_order_id=name)) for name in (drawn[1], None, None)]
    assert len({o.id for o in sent}) == len(book.orders) == 3
    floor.step(book.venue, new_york(MONDAY, 12))
    assert {o.status for o in book.orders.values()} == {"filled"}


def test_a_stop_that_was_touched_is_replaced_by_one_that_was(open_book):
    spike = [("ACME", MONDAY, 100.0, 112.0, 98.0, 99.0, 1_000), ("ACME", TUESDAY, 99.0, 100.0, 98.0, 99.0, 50_000)]
    for terms, status in (({"qty": Decimal(250)}, "filled"), ({"stop_price": Decimal(111)}, "new")):
        book = open_book(bars=[ACME_ROWS[0], *spike], state=None)
        sent = floor.submit(book, order(qty=300, kind="stop", stop_price=110, force="gtc"))
        floor.step(book.venue, new_york(MONDAY, 18))
        assert book.orders[sent.id].filled_qty == 100
        new = floor.replace_order(book, sent.id, **terms)
        floor.step(book.venue, new_york(TUESDAY, 18))
        assert book.orders[new.id].status == status


def test_what_a_split_made_of_an_order_s_terms_does_not_hinder_its_replacement(open_book):
    thirds = [("ACME", TUESDAY, "split", 3.0, 0.0)]
    bars = [*ACME_ROWS[:2], ("ACME", TUESDAY, 33.0, 34.0, 32.0, 33.0, 50_000)]
    book = open_book(bars=bars, actions=thirds, cash=10**9)
    sent = floor.submit(book, order(kind="limit", limit_price="20.02", force="gtc"))
    large = floor.submit(book, order(qty=900_000_000, kind="limit", limit_price="0.01", force="gtc"))
    floor.step(book.venue, new_york(TUESDAY, 12))
    assert (book.orders[sent.id].limit_price, book.orders[large.id].qty) == (Decimal("6.6733"), 2_700_000_000)
    assert floor.replace_order(book, sent.id, qty=Decimal(250)).qty == 250
    assert floor.replace_order(book, large.id, limit_price=Decimal("0.02")).qty == 2_700_000_000
    with pytest.raises(Reject, match="sub-penny"):
        floor.replace_order(book, book.orders[sent.id].replaced_by, limit_price=Decimal("6.6733"))


@pytest.mark.parametrize(("price", "cash", "told"), [(469.3236, 50_000, 50_000), (10.0, "1000.006", "1000.01")])
def test_all_the_buying_power_that_is_told_may_be_spent(open_book, price, cash, told):
    book = open_book(bars=[("ACME", FRIDAY, price, price, price, price, 50_000)], cash=cash, multiplier=1)
    assert refused(book, order(qty=None, notional=Decimal(told) + Decimal("0.01"))).code == 40310000
    assert floor.submit(book, order(qty=None, notional=told)).is_open


# What a feed may say


@pytest.mark.parametrize("ex_date", [date(2024, 3, 2), date(2024, 3, 3), MONDAY])
def test_an_action_of_a_day_without_trading_takes_effect_on_the_next_session(open_book, ex_date):
    thursday = date(2024, 2, 29)
    days = ((thursday, 200.0), (FRIDAY, 200.0), (MONDAY, 100.0))
    bars = [("ACME", day, p, p + 1, p - 1, p, 50_000) for day, p in days]
    terms = {"bars": bars, "actions": [("ACME", ex_date, "split", 2.0, 0.0)], "start": new_york(FRIDAY, 9)}
    book = open_book(**terms, slippage_bps=0)
    floor.submit(book, order(force="opg"))
    floor.step(book.venue, new_york(date(2024, 3, 3), 12))
    assert (book.account.qty("ACME"), floor.value(open_book(**terms)).equity) == (100, 100_000)
    floor.step(book.venue, new_york(MONDAY, 9))
    assert (book.account.qty("ACME"), floor.value(book).equity) == (200, 100_000)
    assert floor.value(open_book(**terms)).equity == 100_000


NAN = float("nan")


@pytest.mark.parametrize(
    "row", [(0.0, 0.0, 0.0, 0.0, 0), (None, None, None, 101.0, 500), (NAN, NAN, NAN, 101.0, 500), (9.0, 9.0, 9.0, 9.0, None)]
)  # fmt: skip
def test_a_row_that_is_no_bar_trades_nothing_and_stops_nothing(open_book, row):
    book = open_book(bars=[ACME_ROWS[0], ("ACME", MONDAY, *row), *ACME_ROWS[2:]], slippage_bps=0)
    sent = [floor.submit(book, o) for o in (order(), order(qty=None, notional=100), order(qty=1, force="gtc"))]
    floor.step(book.venue, new_york(TUESDAY, 18))
    assert [book.orders[o.id].status for o in sent] == ["expired", "expired", "filled"]
    assert floor.value(book).equity == 100_000 + 3


def test_a_price_below_a_tick_is_traded_and_not_for_nothing(open_book):
    book = open_book(bars=[("ACME", day, *[0.00002] * 4, 10**9) for day in (FRIDAY, MONDAY)])
    sent = [floor.submit(book, o) for o in (order(qty=None, notional=100), order(qty=1000))]
    floor.step(book.venue, new_york(MONDAY, 18))
    assert [book.orders[o.id].status for o in sent] == ["filled", "filled"]
    assert Decimal("99.99") < 100_000 - book.account.cash - Decimal("0.02") < Decimal("100.01")


def test_a_restart_knows_the_prices_of_companies_that_took_each_other_s_names(open_book):
    names = [
        ("ACME", TUESDAY, "symbol_change", 1.0, 0.0, None, "BETA"),
        ("BETA", TUESDAY, "symbol_change", 1.0, 0.0, None, "CORE"),
    ]
    bars = [(s, day, p, p, p, p, 50_000) for s, p in (("ACME", 100.0), ("BETA", 20.0), ("CORE", 5.0)) for day in (FRIDAY, MONDAY)]  # fmt: skip
    terms = {"bars": [*bars, ("BETA", WEDNESDAY, 1.0, 1.0, 1.0, 1.0, 9)], "actions": names}
    book = open_book(**terms)
    floor.step(book.venue, new_york(TUESDAY, 9))
    assert (book.venue.prices["BETA"], book.venue.prices["CORE"]) == (100, 20)
    assert open_book(**terms).venue.prices == book.venue.prices


def test_a_spin_off_divides_the_cost_also_of_a_parent_that_takes_a_new_name(open_book):
    events = [
        ("ACME", TUESDAY, "spin_off", 0.5, 0.0, None, "NEWCO"),
        ("ACME", TUESDAY, "symbol_change", 1.0, 0.0, None, "ACMX"),
    ]
    book = held(open_book, bars=BARS_OF_ALL[:2] + RENAMED + SPUN, actions=events)
    floor.step(book.venue, new_york(TUESDAY, 18))
    share = Decimal(15) / (Decimal(15) + Decimal(104))
    assert abs(book.account.positions["NEWCO"].cost_basis - 10_000 * share) < Decimal("0.0001")
    assert sum(p.cost_basis for p in book.account.positions.values()) == 10_000


def test_what_an_action_leaves_out_may_be_nan(open_book):
    "As pandas writes it."
    books = []
    for nothing in (None, NAN):
        events = [("ACME", TUESDAY, "split", 2.0, nothing), ("ACME", TUESDAY, "dividend", nothing, 0.5)]
        books.append(held(open_book, actions=events, state=None))
        floor.step(books[-1].venue, new_york(TUESDAY, 9))
    assert books[0].activities == books[1].activities
    assert (books[1].account.qty("ACME"), books[1].account.dividends) == (200, 100)


@pytest.mark.parametrize(
    ("actions", "named"),
    [
        ([("ACME", None, "split", 2.0, 0.0)], "without symbol or ex_date"),
        ([("ACME", TUESDAY, "split", -2.0, 0.0)], "split of ACME on 2024-03-05 has the ratio -2.0"),
        ([("ACME", TUESDAY, "split", float("inf"), 0.0)], "has the ratio Infinity"),
    ],
)
def test_an_action_that_cannot_be_is_refused_with_the_feed(open_book, actions, named):
    with pytest.raises(SourceError, match=named):
        open_book(actions=actions)


@pytest.mark.parametrize(("name", "column"), [("bars", "date"), ("assets", "first_date")])
def test_a_row_without_its_key_is_refused_with_the_feed(open_book, tmp_path, name, column):
    open_book()
    file = tmp_path / "feed" / f"{name}.parquet"
    pl.read_parquet(file).with_columns(pl.lit(None, pl.Date).alias(column)).write_parquet(file)
    with pytest.raises(SourceError, match=f"{name}.parquet has .* without symbol or {column}"):
        open_book(bars=None)


# What an order is meant to do, and until when it may be taken back


def test_an_order_that_contradicts_its_intent_is_refused(open_book):
    book = open_book()
    assert floor.submit(book, order(force="opg", position_intent="buy_to_open")).position_intent == "buy_to_open"
    floor.step(book.venue, new_york(MONDAY, 12))
    for side, meant, inferred in (
        ("sell", "sell_to_open", "sell_to_close"),
        ("sell", "buy_to_close", "sell_to_close"),
        ("buy", "buy_to_close", "buy_to_open"),
    ):
        no = refused(book, order(side, qty=1, position_intent=meant))
        words = f"position intent mismatch, inferred: {inferred}, specified: {meant}"
        assert (no.status, no.code, no.message) == (422, 42210000, words)
    assert floor.submit(book, order("sell", position_intent="sell_to_close")).position_intent == "sell_to_close"
    assert "inferred: sell_to_open" in refused(book, order("sell", position_intent="sell_to_close")).message
    assert floor.submit(book, order("sell")).position_intent == "sell_to_open"


@pytest.mark.parametrize(("force", "deadline"), [("opg", (9, 28)), ("cls", (15, 50))])
def test_an_order_that_its_auction_holds_is_neither_canceled_nor_replaced(open_book, force, deadline):
    hour, minute = deadline
    book = open_book(start=new_york(MONDAY, hour, minute - 2))
    early, late = (floor.submit(book, order(kind="limit", limit_price=110, force=force)) for _ in range(2))
    other = floor.submit(book, order(kind="limit", limit_price=90))
    floor.step(book.venue, new_york(MONDAY, hour, minute - 1))
    assert floor.cancel(book, early.id).status == "canceled"
    floor.step(book.venue, new_york(MONDAY, hour, minute))
    for attempt in (floor.cancel, lambda b, o: floor.replace_order(b, o, time_in_force="day")):
        with pytest.raises(Reject, match=f'not cancelable: the {force} auction holds it|in "accepted" state') as no:
            attempt(book, late.id)
        assert (no.value.status, no.value.code) == (422, 42210000)
    assert [o.id for o in floor.revoke_all(book)] == [other.id]
    floor.step(book.venue, new_york(MONDAY, 16))
    assert book.orders[late.id].status == "filled"


def test_an_order_is_filled_when_all_of_it_is(open_book):
    book = open_book(volume_share=0.001)
    sent = floor.submit(book, order(qty=90, force="gtc"))
    floor.step(book.venue, new_york(MONDAY, 17))
    assert (book.orders[sent.id].status, book.orders[sent.id].filled_at) == ("partially_filled", None)
    floor.step(book.venue, new_york(TUESDAY, 17))
    assert (book.orders[sent.id].status, book.orders[sent.id].filled_at) == ("filled", new_york(TUESDAY, 9, 30))
