"Fills from bars: what no bar could have filled is not filled."

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from tradenb.exchange.matching import (
    TICK,
    Bar,
    FillModel,
    Order,
    OrderStatus,
    OrderType,
    Phase,
    Side,
    TimeInForce,
    execute,
    lapsed,
    match,
    split_order,
)

DAY = date(2024, 3, 4)
OPEN = datetime(2024, 3, 4, 14, 30, tzinfo=UTC)
CLOSE = datetime(2024, 3, 4, 21, 0, tzinfo=UTC)
cents = st.integers(100, 50_000).map(lambda n: Decimal(n) / 100)


@st.composite
def bars(draw) -> Bar:
    low, high = sorted((draw(cents), draw(cents)))
    inside = st.integers(int(low * 100), int(high * 100)).map(lambda n: Decimal(n) / 100)
    return Bar("ACME", DAY, draw(inside), high, low, draw(inside), draw(st.integers(0, 100_000)))


@st.composite
def orders(draw) -> Order:
    kind = draw(st.sampled_from(OrderType))
    auctions = () if "stop" in kind else (TimeInForce.OPG, TimeInForce.CLS)
    force = draw(st.sampled_from((TimeInForce.DAY, TimeInForce.GTC, TimeInForce.IOC, TimeInForce.FOK, *auctions)))
    at = OPEN + timedelta(minutes=draw(st.integers(-60, 60)))
    sequence = draw(st.integers(1, 10_000))
    return Order(
        f"o{sequence}",
        f"c{sequence}",
        sequence,
        "ACME",
        draw(st.sampled_from(Side)),
        kind,
        force,
        at,
        at,
        qty=Decimal(draw(st.integers(1, 5_000))),
        limit_price=draw(cents) if "limit" in kind else None,
        stop_price=draw(cents) if "stop" in kind else None,
    )


models = st.builds(
    FillModel,
    st.integers(0, 50).map(Decimal),
    st.integers(0, 20).map(Decimal),
    st.sampled_from([Decimal("0.1"), Decimal(1)]),
)
books = st.lists(orders(), max_size=12, unique_by=lambda o: o.sequence)


def session(book, bar, model):
    "All phases of a session: the trades as (order before, order after, trade, phase)."
    book, used, trades = {o.id: o for o in book}, {}, []
    for phase in Phase:
        working = [o for o in book.values() if o.is_open]
        for found in match(working, {"ACME": bar}, phase, CLOSE, OPEN, used, model):
            if found.trade:
                trades.append((book[found.order.id], found.order, found.trade, phase))
                used["ACME"] = used.get("ACME", Decimal(0)) + found.trade.qty
            book[found.order.id] = found.order
    return trades


@given(books, bars(), models)
def test_a_limit_is_never_filled_worse_than_its_price(book, bar, model):
    for before, _, trade, _ in session(book, bar, model):
        if before.limit_price is not None:
            assert before.side.sign * (before.limit_price - trade.price) >= 0


@given(books, bars(), models)
def test_a_price_lies_in_the_bar_apart_from_slippage(book, bar, model):
    room = bar.high * model.slippage_bps / 10_000 + TICK
    for _, _, trade, _ in session(book, bar, model):
        assert bar.low - room <= trade.price <= bar.high + room


@given(books, bars(), models)
def test_a_session_trades_no_more_than_its_share_of_the_volume(book, bar, model):
    assert sum(t.qty for _, _, t, _ in session(book, bar, model)) <= model.capacity(bar.volume)


@given(books, bars(), models)
def test_nobody_trades_more_than_ordered_and_the_average_is_that_of_the_trades(book, bar, model):
    trades = session(book, bar, model)
    for order in {after.id: after for _, after, _, _ in trades}.values():
        own = [t for _, after, t, _ in trades if after.id == order.id]
        assert order.filled_qty == sum(t.qty for t in own) <= order.qty
        assert min(t.price for t in own) - TICK <= order.filled_avg_price <= max(t.price for t in own) + TICK
        assert (order.status is OrderStatus.FILLED) == (order.filled_qty == order.qty)


@given(books, bars(), models)
def test_an_order_that_comes_after_the_open_sees_the_close_alone(book, bar, model):
    late = [
        replace(o, submitted_at=OPEN + timedelta(minutes=1))
        for o in book
        if o.time_in_force in (TimeInForce.DAY, TimeInForce.GTC)
    ]
    found = match(late, {"ACME": bar}, Phase.DAY, CLOSE, OPEN, {}, model)
    assert not found


@given(books, bars(), models, st.randoms())
def test_the_same_orders_give_the_same_fills_in_whatever_order_they_are_held(book, bar, model, random):
    shuffled = random.sample(book, len(book))
    assert session(book, bar, model) == session(shuffled, bar, model)


@given(orders(), bars(), models)
def test_fill_or_kill_is_all_or_nothing(order, bar, model):
    trade = execute(replace(order, time_in_force=TimeInForce.FOK), bar.open, model.capacity(bar.volume), model)
    assert trade is None or trade.qty == order.qty


@given(orders())
def test_what_is_immediate_or_grew_too_old_is_canceled_and_the_rest_expires(order):
    immediate = order.time_in_force in (TimeInForce.IOC, TimeInForce.FOK, TimeInForce.GTC)
    assert lapsed(order, CLOSE).status is (OrderStatus.CANCELED if immediate else OrderStatus.EXPIRED)


@given(orders(), st.sampled_from([Decimal(2), Decimal(4), Decimal("0.1"), Decimal("1.5")]))
def test_a_split_keeps_an_orders_value_to_a_share_and_a_tick(order, ratio):
    after = split_order(order, ratio)
    assert 0 <= order.qty * ratio - after.qty < 1
    if order.limit_price is not None:
        assert abs(after.limit_price * ratio - order.limit_price) <= TICK * ratio


@given(orders(), st.decimals("0.01", "900", places=2), st.sampled_from(["1.1", "3", "0.3", "7"]))
def test_what_a_split_leaves_of_a_part_is_written_in_nine_decimals(order, price, ratio):
    "An average with all the digits of a division was refused by every client."
    after = split_order(replace(order, filled_qty=Decimal(7), filled_avg_price=price), Decimal(ratio))
    assert [round(value, 9) for value in (after.filled_qty, after.filled_avg_price)] == [after.filled_qty, after.filled_avg_price]  # fmt: skip


@given(orders(), st.integers(1, 10**6), st.integers(2, 60))
def test_a_reverse_split_of_thirds_and_sevenths_loses_no_share(order, shares, old):
    after = split_order(replace(order, qty=Decimal(shares * old)), Decimal(repr(1 / old)))
    assert after.qty == shares
