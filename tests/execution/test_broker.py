"A broker that misbehaves, and what we may and may not conclude from it."

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.core.clock import SimulatedClock
from tradenb.core.db import connect, migrate
from tradenb.core.errors import BrokerUnavailable
from tradenb.execution.broker import Broker, Confirmed, Rejected, Unresolved, alpaca_client, entry_of, judgement
from tradenb.execution.entries import CashEvent, Fill
from tradenb.execution.ledger import Ledger, StoredOrder
from tradenb.execution.orders import OrderIntent

LOST = ["500", "502", "503", "504", "408", "429", "reset", "html"]
TAKEN = ["taken, " + fault for fault in ("504", "502", "reset", "html", "slow")]


@pytest.fixture
def order(tmp_path: Path, clock: SimulatedClock, intent: Callable[..., OrderIntent]) -> StoredOrder:
    ledger = Ledger(migrate(connect(f"sqlite:///{tmp_path}/t.db")), clock)
    return ledger.record_intent(intent())[0]


@pytest.mark.parametrize("fault", [*LOST, *TAKEN, "slow"])
def test_one_fault_is_survived_with_one_order(fault: str, wire: Any, wire_broker: Broker, order: StoredOrder) -> None:
    wire.script = [fault]
    outcome = wire_broker.submit(order)
    assert isinstance(outcome, Confirmed)
    assert list(wire.orders) == [order.client_order_id]
    assert wire.duplicates == 0
    assert wire.posts == (1 if fault in TAKEN else 2)


@pytest.mark.parametrize("fault", ["503", "reset", "429"])
def test_a_broker_that_stays_away_leaves_the_order_unresolved(
    fault: str, wire: Any, wire_broker: Broker, order: StoredOrder
) -> None:
    wire.script = [fault] * 9
    assert isinstance(wire_broker.submit(order), Unresolved)
    assert wire.posts == 3


def test_while_the_broker_cannot_say_nothing_is_sent_again(wire: Any, wire_broker: Broker, order: StoredOrder) -> None:
    wire.script, wire.get_script = ["taken, 504"], ["503", "404 page", "reset"]
    assert isinstance(wire_broker.submit(order), Unresolved)
    assert wire.posts == 1


@pytest.mark.parametrize("fault", ["422", "403"])
def test_a_rejection_is_final_and_has_its_words(fault: str, wire: Any, wire_broker: Broker, order: StoredOrder) -> None:
    wire.script = [fault]
    outcome = wire_broker.submit(order)
    assert isinstance(outcome, Rejected)
    assert outcome.status == int(fault)
    assert wire.posts == 1


def test_a_wrong_key_is_not_the_orders_fault(wire: Any, wire_broker: Broker, order: StoredOrder) -> None:
    wire.script = ["401"]
    assert isinstance(wire_broker.submit(order), Unresolved)
    assert wire.posts == 1
    forbidden = judgement(403, '{"code": 40310000, "message": "forbidden."}')
    assert getattr(forbidden, "passing", None) is False


def test_an_order_that_is_there_already_is_found_not_rejected(
    wire: Any, wire_broker: Broker, order: StoredOrder
) -> None:
    assert isinstance(wire_broker.submit(order), Confirmed)
    assert isinstance(wire_broker.submit(order), Confirmed)
    assert (len(wire.orders), wire.duplicates) == (1, 1)


def test_a_broker_that_asks_for_patience_gets_it(
    wire: Any, order: StoredOrder
) -> None:
    waits: list[float] = []
    wire.script, wire.retry_after = ["429", "503"], "3"
    broker = Broker(alpaca_client(wire.url, "K", "S", 0.3), wire.url, backoff_s=0.005, sleep=waits.append)
    assert isinstance(broker.submit(order), Confirmed)
    assert waits[0] == 3
    assert 0.01 <= waits[1] <= 0.0125


def test_waits_double_from_the_settings_and_spread(
    wire: Any, order: StoredOrder
) -> None:
    waits: list[float] = []
    wire.script = ["503"] * 4
    Broker(alpaca_client(wire.url, "K", "S", 1), wire.url, attempts=4, backoff_s=2, sleep=waits.append).submit(order)
    assert [int(w // b) for w, b in zip(waits, (2, 4, 8), strict=True)] == [1, 1, 1]
    assert all(w <= b * 1.25 for w, b in zip(waits, (2, 4, 8), strict=True))


def test_reads_are_repeated_and_then_given_up_in_one_line(wire: Any, wire_broker: Broker) -> None:
    wire.get_script = ["503", "reset"]
    assert wire_broker.find("nothing") is None
    wire.get_script = ["503"] * 3
    with pytest.raises(BrokerUnavailable, match="cannot say") as caught:
        wire_broker.find("nothing")
    assert "\n" not in str(caught.value)


@given(
    st.lists(st.sampled_from([*LOST[1:6], "reset", *TAKEN[:4], "ok"]), max_size=8),
    st.lists(st.sampled_from(["503", "reset", "ok"]), max_size=4),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_there_is_at_most_one_order_and_the_word_is_honest(
    wire: Any, wire_broker: Broker, order: StoredOrder, script: list[str], gets: list[str]
) -> None:
    wire.orders.clear()
    wire.script, wire.get_script = list(script), list(gets)
    outcome = wire_broker.submit(order)
    assert len(wire.orders) <= 1
    if isinstance(outcome, Confirmed):
        assert list(wire.orders) == [order.client_order_id]
    assert not isinstance(outcome, Rejected)
    wire.script, wire.get_script = [], []
    again = wire_broker.submit(order, ask_first=True)
    assert isinstance(again, Confirmed)
    assert len(wire.orders) == 1


def test_activities_become_entries() -> None:
    fill = {
        "activity_type": "FILL",
        "id": "2017::7",
        "transaction_time": "2017-06-01T20:00:00.5Z",
        "price": "27.1",
        "qty": "3",
        "side": "sell_short",
        "symbol": "GE",
        "order_id": "b",
    }
    entry = entry_of(fill)
    assert isinstance(entry, Fill)
    assert (entry.id, entry.side, entry.amount) == ("7", "sell", 3 * entry.price)
    for kind, word in {
        "DIVNRA": "dividend",
        "JNLC": "deposit",
        "MA": "delisting",
        "INT": "interest",
        "CFEE": "fee",
    }.items():
        event = entry_of({"activity_type": kind, "id": kind, "date": "2017-06-01", "net_amount": "-1.5", "qty": "3"})
        assert isinstance(event, CashEvent)
        assert (event.kind, event.at.date(), event.qty is None) == (word, date(2017, 6, 1), word != "delisting")
