"Fills by stream and by catch-up: late, doubled, out of order, or missed."

import random
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from tradenb.core.clock import new_york
from tradenb.execution.gateway import Gateway
from tradenb.execution.orders import OrderIntent
from tradenb.execution.states import OrderStatus
from tradenb.execution.updates import Updates, apply_update, catch_up

Make = Callable[..., OrderIntent]
DAY = date(2017, 6, 1)


@pytest.fixture
def make_updates(gateway: Gateway, market: Any) -> Any:
    started: list[Updates] = []

    def make() -> Updates:
        updates = Updates(gateway, market.url.replace("http", "ws") + "/stream", "K", "S").start()
        started.append(updates)
        assert updates.listening.wait(10)
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
    eventually(lambda: updates.connections >= 2)
    eventually(filled(gateway))
    books_agree(gateway)


def test_messages_doubled_and_shuffled_end_in_the_same_books(gateway: Gateway, market: Any, intent: Make) -> None:
    messages: list[dict] = []
    from tradenb.exchange.wire import event_json

    market.server.app.state.venue.listeners.append(
        lambda events: messages.extend(event_json(e)["data"] for e in events)
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
    assert kinds == {"deposit", "split", "dividend", "delisting", "fee"}
    assert ledger.positions()["S01"].qty == Decimal(315)


def test_the_thread_ends_when_it_is_told_also_without_a_broker(gateway: Gateway, market: Any) -> None:
    updates = Updates(gateway, "ws://127.0.0.1:9/stream", "K", "S").start()
    assert not updates.listening.wait(0.3)
    updates.stop()
    assert not updates._thread.is_alive()
