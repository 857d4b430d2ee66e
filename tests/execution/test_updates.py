"Fills by stream and by catch-up: late, doubled, out of order, or missed."

import asyncio
import json
import random
import threading
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve

from tradenb.core.clock import new_york
from tradenb.execution import updates as module
from tradenb.execution.entries import CashEvent
from tradenb.execution.gateway import Gateway
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import OrderIntent, OrderType, TimeInForce
from tradenb.execution.states import OrderStatus
from tradenb.execution.updates import (
    OVERLAP,
    Listener,
    Malformed,
    Update,
    Updates,
    apply_update,
    catch_up,
    read_from,
    read_update,
)

Make = Callable[..., OrderIntent]
DAY = date(2017, 6, 1)


@pytest.fixture
def make_updates(gateway: Gateway, market: Any) -> Any:
    started: list[Updates] = []

    def make() -> Updates:
        updates = Updates(gateway, market.url.replace("http", "ws") + "/stream", "K", "S").start()
        started.append(updates)
        assert updates.listening.wait(60)
        return updates

    yield make
    for updates in started:
        updates.stop()


def filled(gateway: Gateway) -> Callable[[], bool]:
    return lambda: all(order.status is OrderStatus.FILLED for order in gateway.ledger.orders())


def books_agree(gateway: Gateway) -> None:
    ledger, broker = gateway.ledger, gateway.broker
    held = {s: p.qty for s, p in ledger.positions().items() if p.qty}
    assert held == {s: p.qty for s, p in broker.positions().items()}
    assert ledger.account().cash == broker.account().cash
    assert ledger.check() == []


def test_fills_come_over_the_stream(
    gateway: Gateway, market: Any, make_updates: Any, intent: Make, eventually: Any
) -> None:
    make_updates()
    for n in range(10):
        gateway.submit(intent(f"S{n:02}", 10 + n))
    market.step(new_york(DAY, 18))
    eventually(filled(gateway))
    assert {entry.origin for entry in gateway.ledger.entries() if hasattr(entry, "origin")} == {"stream"}
    books_agree(gateway)


def test_what_the_stream_missed_comes_with_the_reconnect(
    gateway: Gateway, market: Any, make_updates: Any, intent: Make, eventually: Any
) -> None:
    updates = make_updates()
    gateway.submit(intent("S01", 10))
    gateway.submit(intent("S02", 20))
    port = market.down()
    market.up(port)
    market.step(new_york(DAY, 18))
    eventually(lambda: updates.listener.connections >= 2)
    eventually(filled(gateway))
    books_agree(gateway)


def test_messages_doubled_and_shuffled_end_in_the_same_books(gateway: Gateway, market: Any, intent: Make) -> None:
    messages: list[dict] = []
    from tradenb.exchange.wire import event_json

    market.server.app.state.venue.listeners.append(
        lambda book, events: messages.extend(event_json(e)["data"] for e in events)
    )
    catch_up(gateway)
    for n in range(6):
        gateway.submit(intent(f"S{n:02}", 10 + n))
    market.step(new_york(DAY, 18))
    assert len(messages) >= 12
    shuffled = messages * 2
    random.Random(7).shuffle(shuffled)
    for message in shuffled:
        apply_update(gateway.ledger, message)
    assert filled(gateway)()
    books_agree(gateway)
    assert catch_up(gateway).news == 0


def test_stream_and_catch_up_book_each_fill_once(
    gateway: Gateway, market: Any, make_updates: Any, intent: Make, eventually: Any
) -> None:
    make_updates()
    for n in range(15):
        gateway.submit(intent(f"S{n:02}", 10))
    market.step(new_york(DAY, 18))
    for _ in range(3):
        catch_up(gateway)
    eventually(filled(gateway))
    assert len([e for e in gateway.ledger.entries() if hasattr(e, "execution_id")]) == 15
    books_agree(gateway)


@pytest.mark.parametrize("year", [2017, 2117])
def test_a_fill_that_is_heard_before_anybody_has_caught_up_hides_no_week_of_silence(
    gateway: Gateway, market: Any, intent: Make, clock: Any, year: int
) -> None:
    "Three weeks nobody listens, somebody trades by hand; then the first fill comes over the stream, once with a wrong year."
    by_hand = {"qty": "7", "side": "buy", "type": "market", "time_in_force": "cls"}
    gateway.submit(intent("S01", 100))
    market.step(new_york(DAY, 20))
    catch_up(gateway)
    for symbol, day in (("S05", date(2017, 6, 6)), ("S06", date(2017, 6, 22))):
        market.step(new_york(day, 8))
        gateway.broker.client.post("/orders", by_hand | {"symbol": symbol, "client_order_id": symbol})
    market.step(new_york(date(2017, 6, 22), 20))
    clock.advance_to(new_york(date(2017, 6, 22), 20))
    told = gateway.broker.client.get("/orders:by_client_order_id", {"client_order_id": "S06"})
    (line,) = [a for a in gateway.broker.activities() if a.get("symbol") == "S06"]
    heard = {name: line[name] for name in ("execution_id", "qty", "price")}
    at = line["transaction_time"].replace("2017", str(year))
    assert apply_update(gateway.ledger, heard | {"event": "fill", "order": told, "timestamp": at})
    catch_up(gateway)
    books_agree(gateway)


def read_after(ledger: Ledger, *days: date) -> date | None:
    "From when history is read once there are deposits on these days."
    ledger.book([CashEvent(f"d{day}", "deposit", Decimal(1), new_york(day, 12)) for day in days])
    return read_from(ledger)


def test_what_was_late_when_a_silence_began_is_read_after_it(ledger: Ledger, clock: Any) -> None:
    "The last look at the history was on the first: what was then of the week before it, and not posted yet, is read now."
    clock.advance_to(new_york(date(2017, 6, 30), 20))
    assert read_after(ledger, DAY, date(2017, 6, 30)) == DAY - OVERLAP


def test_an_event_nobody_has_heard_of_does_no_harm(gateway: Gateway, intent: Make) -> None:
    order, _ = gateway.submit(intent())
    message = {
        "event": "quantum_entangled",
        "timestamp": "2017-06-01T14:00:00Z",
        "order": {
            "id": order.broker_order_id,
            "client_order_id": order.client_order_id,
            "symbol": "S01",
            "side": "buy",
            "qty": "100",
            "filled_qty": "0",
            "status": "quantum",
        },
    }
    apply_update(gateway.ledger, message)
    assert gateway.stored(order.client_order_id).status is order.status
    stranger = message | {"order": message["order"] | {"client_order_id": "somebody-else"}}  # type: ignore[operator]
    assert apply_update(gateway.ledger, stranger) is False


def test_corporate_actions_fees_and_delistings_keep_the_cash_equal_to_the_cent(
    make_market: Any, ledger: Any, intent: Make
) -> None:
    actions = [
        ("S01", date(2017, 6, 2), "split", 3.0, 0.0),
        ("S02", date(2017, 6, 2), "dividend", 1.0, 0.37),
        ("S03", date(2017, 6, 5), "split", 0.1, 0.0),
        ("S04", date(2017, 6, 6), "delisting", 1.0, 17.43),
        ("S05", date(2017, 6, 6), "delisting", 1.0, 33.0),
    ]
    market = make_market(actions, {"S04": date(2017, 6, 5), "S05": date(2017, 6, 5)}, fee_bps=1.5)
    gateway = Gateway(ledger, market.broker())
    for n in range(1, 6):
        gateway.submit(intent(f"S{n:02}", 105, side="buy" if n % 2 else "sell"))
    for day in (date(2017, 6, 1), date(2017, 6, 2), date(2017, 6, 5), date(2017, 6, 6), date(2017, 6, 7)):
        market.step(new_york(day, 18))
        catch_up(gateway)
        books_agree(gateway)
    kinds = {entry.kind for entry in ledger.entries() if hasattr(entry, "kind")}
    assert kinds == {"deposit", "split", "dividend", "delisting", "fee", "journal"}
    assert ledger.positions()["S01"].qty == Decimal(315)


def test_after_a_split_the_sum_of_executions_fills_no_order(make_market: Any, ledger: Any, intent: Make) -> None:
    "Shares of before and after a split add up to more than the 500 that were ordered, and the broker's order goes on."
    market = make_market([("S01", date(2017, 6, 2), "split", 1.5, 0.0)])
    part = {"on": "match/S01", "kind": "partial_fill", "share": 0.5}
    market.faults(part)
    gateway = Gateway(ledger, market.broker())
    terms = {"type": OrderType.LIMIT, "limit_price": Decimal(40), "time_in_force": TimeInForce.GTC}
    order, _ = gateway.submit(intent("S01", 500, **terms))
    for day in (date(2017, 6, 1), date(2017, 6, 2)):
        market.step(new_york(day, 18))
    catch_up(gateway)
    theirs, ours = gateway.broker.orders()[order.client_order_id], gateway.stored(order.client_order_id)
    assert (theirs.qty, theirs.status) == (Decimal(750), "partially_filled")
    assert (ours.filled_qty > 500, ours.status) == (True, OrderStatus.PARTIALLY_FILLED)
    market.faults()
    market.step(new_york(date(2017, 6, 5), 18))
    catch_up(gateway)
    assert filled(gateway)()
    books_agree(gateway)


def test_the_thread_ends_when_it_is_told_also_without_a_broker(gateway: Gateway, market: Any) -> None:
    updates = Updates(gateway, "ws://127.0.0.1:9/stream", "K", "S").start()
    assert not updates.listening.wait(0.3)
    updates.stop()
    assert not updates._thread.is_alive()


def told(order: Any, event: str = "new", /, **changes: Any) -> dict[str, Any]:
    "A message about a stored order."
    of_order = {"id": order.broker_order_id or "b", "client_order_id": order.client_order_id, "symbol": order.symbol}
    of_order |= {"side": str(order.side), "qty": str(order.qty), "filled_qty": "0", "status": "new"}
    return {"event": event, "timestamp": "2017-06-01T14:00:00Z", "order": of_order} | changes


DAMAGE = [
    lambda m: None,
    lambda m: [],
    lambda m: "new",
    lambda m: m | {"order": None},
    lambda m: {k: v for k, v in m.items() if k != "event"},
    lambda m: m | {"event": 7},
    lambda m: m | {"event": "fill"},
    lambda m: m | {"event": "fill", "execution_id": "x", "qty": "1", "price": "-0"},
    lambda m: m | {"event": "fill", "execution_id": "x", "qty": "NaN", "price": "5"},
    lambda m: m | {"event": "fill", "execution_id": "x", "qty": "1", "price": "1e30"},
    lambda m: m | {"event": "fill", "execution_id": "x" * 65, "qty": "1", "price": "5"},
    lambda m: m | {"event": "fill", "execution_id": "x\0", "qty": "1", "price": "5"},
    lambda m: m | {"event": "fill", "execution_id": "x", "qty": "1", "price": "5", "timestamp": "2017-06-01T14:00:00"},
    lambda m: m | {"event": "fill", "execution_id": "x", "qty": "1", "price": "5", "timestamp": "0001-01-01T00:00:00Z"},
    lambda m: m | {"event": "fill", "execution_id": "x", "qty": "1000000000", "price": "1000000000"},
    lambda m: m | {"event": "fill", "execution_id": "x", "qty": "0.0000000001", "price": "5"},
    lambda m: m | {"event": "trade_bust"},
    lambda m: m | {"order": m["order"] | {"qty": "Infinity"}},
    lambda m: m | {"order": m["order"] | {"side": ["buy"]}, "event": "fill", "execution_id": "x", "qty": 1, "price": 5},
]


@pytest.mark.parametrize("number", range(len(DAMAGE)))
def test_a_damaged_message_is_kept_and_asked_for_over_rest(gateway: Gateway, intent: Make, number: int) -> None:
    listener = Listener(gateway)
    listener.listening()
    order, _ = gateway.submit(intent())
    listener.work()
    before = [e for e in gateway.ledger.entries() if hasattr(e, "execution_id")]
    damaged = DAMAGE[number](told(order))
    with pytest.raises(Malformed):
        read_update(damaged)
    listener.heard(damaged)
    listener.work()
    assert (listener.malformed, listener.behind) == (1, False)
    named = isinstance(damaged, dict) and isinstance(damaged.get("order"), dict)
    assert ("malformed" in [e.kind for e in gateway.ledger.events(order.client_order_id)]) == named
    assert [e for e in gateway.ledger.entries() if hasattr(e, "execution_id")] == before
    assert gateway.stored(order.client_order_id).status is order.status


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KEYS = ["event", "execution_id", "timestamp", "qty", "price", "order", "previous_execution_id"]
OF_ORDER = ["id", "client_order_id", "symbol", "side", "qty", "filled_qty", "status"]


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(st.sampled_from(KEYS), ANYTHING),
    st.dictionaries(st.sampled_from(OF_ORDER), ANYTHING),
    st.sampled_from(["fill", "new", "trade_correct", "trade_bust"]),
)
def test_anything_at_all_is_an_update_or_malformed(outer: dict, inner: dict, event: str) -> None:
    order = {"id": "b", "client_order_id": "c", "symbol": "S01", "side": "buy", "qty": "5", "filled_qty": "5"}
    whole = {"event": event, "execution_id": "x", "timestamp": "2017-06-01T20:00:00Z", "qty": "5", "price": "20"}
    message = whole | {"order": order | {"status": "filled"} | inner} | outer
    try:
        update = read_update(message)
    except Malformed:
        return
    assert isinstance(update, Update)
    assert update.fill is None or (update.fill.qty > 0 and update.fill.price > 0 and update.fill.at.tzinfo)


def test_one_bad_message_takes_no_other_along(gateway: Gateway, market: Any, intent: Make, monkeypatch: Any) -> None:
    listener = Listener(gateway)
    listener.listening()
    orders = [gateway.submit(intent(f"S{n:02}", 10))[0] for n in range(3)]
    listener.work()
    record = gateway.ledger.record

    def sometimes(name: str, *arguments: Any, **more: Any) -> Any:
        if name == orders[1].client_order_id:
            raise RuntimeError("the database is away")
        return record(name, *arguments, **more)

    monkeypatch.setattr(gateway.ledger, "record", sometimes)
    for order in orders:
        listener.heard(told(order))
    listener.subscribed = False
    listener.work()
    assert listener.behind
    assert [str(gateway.stored(o.client_order_id).status) for o in orders] == ["new", "accepted", "new"]


def test_a_gap_stays_open_until_a_catch_up_came_to_its_end(
    gateway: Gateway, market: Any, intent: Make, monkeypatch: Any
) -> None:
    listener = Listener(gateway)
    gateway.submit(intent("S01", 10))
    market.step(new_york(DAY, 18))
    listener.work()
    assert listener.behind and not filled(gateway)()  # nobody listens yet: what came next could be missed
    listener.listening()
    port = market.down()
    monkeypatch.setattr(gateway.broker, "attempts", 1)
    listener.work()
    assert listener.behind
    market.up(port)
    listener.work()
    assert not listener.behind and filled(gateway)()


def test_what_arrives_while_a_catch_up_runs_is_booked_after_it_and_a_cut_opens_another_gap(
    gateway: Gateway, market: Any, intent: Make, monkeypatch: Any
) -> None:
    listener = Listener(gateway)
    order, _ = gateway.submit(intent("S01", 10))
    caught: list[int] = []

    def slow(desk: Gateway) -> Any:
        caught.append(1)
        found = catch_up(desk)
        if len(caught) == 1:
            fill = {"execution_id": "x-1", "qty": "10", "price": "23", "timestamp": "2017-06-01T20:00:00Z"}
            done = told(order)["order"] | {"status": "filled", "filled_qty": "10"}
            listener.heard(told(order, "fill", **fill, order=done))
            listener.lost()
            listener.listening()
        return found

    monkeypatch.setattr(module, "catch_up", slow)
    listener.listening()
    listener.work()
    assert filled(gateway)() and listener.behind
    listener.work()
    assert not listener.behind and len(caught) == 2


class Mute:
    "A stream that lets one in, acknowledges, and then says only what it is told to; it answers pings all the while."

    def __init__(self) -> None:
        self.connections, self.frames, self.ready = 0, list[str](), threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run()), daemon=True)
        self.thread.start()
        assert self.ready.wait(60)

    async def run(self) -> None:
        self.loop, self.end = asyncio.get_running_loop(), asyncio.Event()
        async with serve(self.talk, "127.0.0.1", 0) as server:
            self.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/stream"
            self.ready.set()
            await self.end.wait()

    async def talk(self, socket: ServerConnection) -> None:
        self.connections += 1
        await socket.recv()
        await socket.send(json.dumps({"stream": "authorization", "data": {"status": "authorized"}}))
        await socket.recv()
        await socket.send(json.dumps({"stream": "listening", "data": {"streams": ["trade_updates"]}}).encode())
        for frame in self.frames:
            await socket.send(frame)
        async for _ in socket:  # and no answer, ever again
            pass

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.end.set)
        self.thread.join(60)


@pytest.fixture
def mute() -> Iterator[Mute]:
    server = Mute()
    yield server
    server.stop()


def test_a_socket_that_is_open_and_dead_is_dropped_and_caught_up(
    gateway: Gateway, market: Any, intent: Make, mute: Mute, eventually: Any
) -> None:
    gateway.submit(intent("S01", 10))
    updates = Updates(gateway, mute.url, "K", "S", idle_s=0.3).start()
    try:
        assert updates.listening.wait(60)
        market.step(new_york(DAY, 18))
        assert not filled(gateway)()
        eventually(filled(gateway))
        assert mute.connections >= 2
    finally:
        updates.stop()


def test_frames_that_are_no_messages_are_counted_and_the_stream_goes_on(
    gateway: Gateway, mute: Mute, eventually: Any
) -> None:
    mute.frames = ["{", '"text"', "[1]", '{"stream": "trade_updates"}', '{"stream": "weather", "data": {"t": 20}}']
    updates = Updates(gateway, mute.url, "K", "S").start()
    try:
        eventually(lambda: updates.listener.malformed == 5)
        eventually(lambda: updates.state == "listening")
        assert mute.connections == 1
    finally:
        updates.stop()
