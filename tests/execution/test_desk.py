"The desk: prices that are kept while the market stands still, and what a stop leaves behind."

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import Engine

from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.errors import BrokerUnavailable
from tradenb.core.settings import load
from tradenb.execution.broker import Broker
from tradenb.execution.desk import Prices, Rounds, make_desk, named
from tradenb.execution.gateway import Gateway
from tradenb.execution.orders import OrderIntent
from tradenb.execution.states import OrderStatus

from .conftest import DAY, PRICES


@pytest.fixture
def counted(market: Any) -> tuple[Broker, Counter[str]]:
    "A broker, and how often each of its addresses was asked."
    broker, asked = market.broker(attempts=1), Counter[str]()
    request = broker.client._session.request

    def counting(method: str, url: str, **options: Any) -> Any:
        asked[urlsplit(url).path] += 1
        return request(method, url, **options)

    broker.client._session.request = counting
    return broker, asked


def test_prices_are_asked_for_once_while_the_market_stands_still(
    counted: tuple[Broker, Counter[str]], market: Any, gateway: Gateway, intent: Callable[..., OrderIntent]
) -> None:
    (broker, asked), names = counted, ("S01", "S02")
    for symbol in names:
        gateway.submit(intent(symbol, 5))
    market.step(new_york(DAY, 17))
    prices = Prices(broker)
    first = [prices.of(names) for _ in range(3)]
    assert first[0].keys() == {"S01", "S02"} and first[0] == first[1] == first[2]
    assert (asked["/v2/positions"], asked["/v2/clock"]) == (1, 3)
    market.step(new_york(DAY, 17) + timedelta(days=1))
    after = prices.of(names)
    assert {s: after[s] - first[0][s] for s in names} == dict.fromkeys(names, Decimal("0.01"))
    assert asked["/v2/positions"] == 2


def test_a_name_that_is_new_is_asked_for(
    counted: tuple[Broker, Counter[str]], market: Any, gateway: Gateway, intent: Callable[..., OrderIntent]
) -> None:
    broker, asked = counted
    prices = Prices(broker)
    assert (prices.of(()), prices.of(())) == ({}, {})
    gateway.submit(intent("S03", 5))
    market.step(new_york(DAY, 17))
    assert prices.of(["S03"])["S03"] > Decimal(str(PRICES["S03"] - 1))
    assert prices.of(["S03", "NOWHERE"]).keys() == {"S03"}
    before = asked["/v2/positions"]
    assert prices.of(["S03", "NOWHERE"]).keys() == {"S03"}, "what has no price is not asked for in vain"
    assert asked["/v2/positions"] == before


def test_a_broker_that_is_away_has_no_prices_whatever_was_kept(
    counted: tuple[Broker, Counter[str]], market: Any
) -> None:
    prices = Prices(counted[0])
    prices.of(())
    port = market.down()
    with pytest.raises(BrokerUnavailable):
        prices.of(())
    market.up(port)
    assert prices.of(()) == {}


def test_what_a_stop_writes_off_may_be_asked_for_by_anybody(
    engine: Engine, clock: SimulatedClock, tmp_path: Path, intent: Callable[..., OrderIntent]
) -> None:
    env = {"TRADENB_EXECUTION__BROKER_KEY_ID": "K", "TRADENB_EXECUTION__BROKER_SECRET": "S"}
    desk = make_desk(load({"core.root": str(tmp_path)}, env=env), clock, engine, "http://127.0.0.1:9")
    until = clock.now() + timedelta(minutes=1)
    order, _ = desk.ledger.admit(intent(), owner=desk.gateway.owner, until=until)
    other, _ = desk.ledger.admit(intent("S02"), owner="somebody else", until=until)
    assert desk.write_off() == [order.client_order_id]
    left = desk.ledger.order(order.client_order_id)
    assert left is not None and (left.status, left.lease_owner) == (OrderStatus.UNKNOWN, None)
    assert desk.ledger.claim(order.client_order_id, "the next one", until)
    assert desk.ledger.order(other.client_order_id).lease_owner == "somebody else"  # type: ignore[union-attr]
    desk.held.close()


def test_gateways_of_data_roots_that_are_called_alike_have_other_names(tmp_path: Path) -> None:
    "Two containers: the same hostname, the same path, each its own volume, and one database."
    root = tmp_path / "data"
    with named(root) as first:
        (root / "state").rename(tmp_path / "of_the_first")
        with named(root) as second:
            assert second != first
    with named(root) as again:
        assert again == second


class Books:
    "What a comparison comes to, one after the other: `matched` of each."

    def __init__(self, *matched: bool | Exception):
        self.left = list(matched)

    def __call__(self, day: Any, count: bool) -> Any:
        found = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        if isinstance(found, Exception):
            raise found
        return SimpleNamespace(matched=found, differences=[] if found else ["one"])


def test_books_that_differ_are_compared_again_soon_and_then_ever_more_seldom(
    clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, pauses = Rounds(Books(False, BrokerUnavailable("away"), False, False, True, False, True), clock, 5), []
    stopping = SimpleNamespace(wait=lambda seconds: pauses.append(seconds) or len(pauses) == 8, set=lambda: None)
    monkeypatch.setattr(rounds, "_stopping", stopping)
    rounds.start()
    rounds.stop(60)
    assert pauses == [1, 2, 4, 5, 5, 1, 5, 5]
