"The kill switch at work: real processes, a real exchange, faults on the wire; it reduces, never flips, and may be run twice at once."

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine

from pipelines.benchmarks._servers import KEY, Running, place, server
from tradenb.core.clock import SimulatedClock, new_york, sleep
from tradenb.core.errors import BrokerUnavailable, TradenbError
from tradenb.execution.broker import Broker, BrokerOrder, Confirmed, Outcome, Rejected, alpaca_client
from tradenb.execution.gateway import Gateway
from tradenb.execution.intents import Admission, new_order
from tradenb.execution.kill import Books, Done, Kill, closing_name, open_books, share_of, smaller
from tradenb.execution.ledger import Ledger, StoredOrder
from tradenb.execution.orders import OrderIntent, OrderType, Side, TimeInForce
from tradenb.execution.reconcile import Cause, reconcile
from tradenb.execution.states import OrderStatus
from tradenb.execution.switch import Level, Switch
from tradenb.execution.updates import catch_up

from .conftest import DAY, Market

EVERYWHERE = "TRADENB_TEST_KILL_EVERYWHERE" in os.environ  # real processes on both databases, not on one each
SEEDS = int(os.environ.get("TRADENB_TEST_KILL_SEEDS", "2"))
TODAY = new_york(DAY, 9) + timedelta(days=1)
NEXT = TODAY.date()
OPEN = new_york(NEXT, 10)
BOOK = {"S01": 300, "S02": -200, "S03": 50, "S04": -7}


def killer(market: Market, engine: Engine, clock: SimulatedClock, scope: str = "*", **options: Any) -> Kill:
    values = {"pause_s": 0.01, "looks": 30} | options
    return Kill(market.broker(attempts=4), Books(engine, clock), scope, **values)


@pytest.fixture
def built(market: Market, ledger: Ledger, intent: Callable[..., OrderIntent], clock: SimulatedClock) -> Market:
    "A market on the morning of the next session, with four positions."
    gateway = Gateway(ledger, market.broker())
    for symbol, qty in BOOK.items():
        gateway.submit(intent(symbol, abs(qty), side=Side.BUY if qty > 0 else Side.SELL))
    market.step(TODAY)
    clock.advance_to(TODAY)
    assert held(market) == BOOK
    return market


def held(market: Market) -> dict[str, Decimal]:
    return {symbol: position.qty for symbol, position in market.broker().positions().items()}


def walk(market: Market) -> dict[str, list[Decimal]]:
    "Every position the account has had, symbol by symbol, in the order of its fills."
    paths: dict[str, list[Decimal]] = {}
    for line in market.broker().activities():
        if line["activity_type"] == "FILL":
            signed = Decimal(line["qty"]) * (1 if line["side"] == "buy" else -1)
            path = paths.setdefault(line["symbol"], [Decimal(0)])
            path.append(path[-1] + signed)
    return paths


def never_flipped(market: Market) -> bool:
    return all(min(path) >= 0 or max(path) <= 0 for path in walk(market).values())


def test_block_needs_no_broker_and_cancel_needs_no_gateway(
    built: Market, engine: Engine, clock: SimulatedClock, intent: Callable[..., OrderIntent], gateway: Gateway
) -> None:
    for n in range(12):
        gateway.submit(intent("S05", 10 + n, sequence=n, trade_date=NEXT))
    by_hand = {"symbol": "S06", "qty": "5", "side": "buy", "type": "market", "time_in_force": "cls"}
    built.broker().client.post("/orders", by_hand | {"client_order_id": "by-hand"})
    done = killer(built, engine, clock).turn(Level.CANCEL, "ann", "drill")
    assert (len(done.canceled), done.open, done.exit_code) == (13, [], 0)
    assert built.broker().open_orders() == []
    assert Switch(engine, clock).level("any", "S05") is Level.CANCEL
    assert held(built) == BOOK
    again = killer(built, engine, clock).turn(Level.CANCEL, "bob", "drill")
    assert (again.canceled, again.exit_code, len(Switch(engine, clock).history())) == ([], 0, 1)


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("size", ["qty", "notional"])
def test_an_order_in_flight_cannot_arrive_any_more(
    built: Market, ledger: Ledger, clock: SimulatedClock, intent: Callable[..., OrderIntent], side: Side, size: str
) -> None:
    amount = {"qty": 40} if size == "qty" else {"qty": None, "notional": Decimal(400)}
    wanted = intent("S07", side=side, trade_date=NEXT, time_in_force=TimeInForce.DAY, **amount)
    order, _ = ledger.admit(wanted, owner="hung", until=clock.now() + timedelta(hours=1))
    done = killer(built, ledger.engine, clock).turn(Level.CANCEL, "ann")
    assert (done.burned, done.exit_code) == ([order.client_order_id], 0)
    built.broker().submit(order)
    assert built.broker().find(order.client_order_id).status == "canceled"  # type: ignore[union-attr]
    assert ledger.order(order.client_order_id).status is OrderStatus.CANCELED  # type: ignore[union-attr]
    built.step(OPEN)
    assert held(built) == BOOK


class Overtaken(Broker):
    "A broker at which the real order arrives between the question for it and the next call."

    late: Any = None

    def find(self, client_order_id: str) -> BrokerOrder | None:
        found = super().find(client_order_id)
        if found is None and self.late is not None and self.late.client_order_id == client_order_id:
            late, self.late = self.late, None
            super().submit(late)
        return found


def test_the_real_order_that_is_quicker_is_canceled(
    built: Market, ledger: Ledger, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    order, _ = ledger.admit(intent("S07", 40, trade_date=NEXT))
    broker = Overtaken(alpaca_client(built.url, "K", "S", 5), built.url, backoff_s=0.01)
    broker.late = order
    done = Kill(broker, Books(ledger.engine, clock), pause_s=0.01).turn(Level.CANCEL, "ann")
    assert (done.exit_code, built.broker().open_orders()) == (0, [])
    assert built.broker().find(order.client_order_id).status == "canceled"  # type: ignore[union-attr]
    assert ledger.order(order.client_order_id).status is OrderStatus.CANCELED  # type: ignore[union-attr]


def test_flatten_waits_for_the_open_and_says_so(built: Market, engine: Engine, clock: SimulatedClock) -> None:
    done = killer(built, engine, clock).turn(Level.FLATTEN, "ann")
    assert (len(done.sent), done.held, done.exit_code) == (4, BOOK, 0)
    assert done.opens_at == new_york(NEXT, 9, 30)
    assert any(f"wait for its open at {NEXT} 13:30 UTC" in line for line in done.lines)  # summer in New York
    again = killer(built, engine, clock).turn(Level.FLATTEN, "ann")
    assert (again.sent, len(built.broker().open_orders())) == ([], 4)
    built.step(OPEN)
    last = killer(built, engine, clock).turn(Level.FLATTEN, "ann")
    assert (held(built), last.held, last.exit_code, never_flipped(built)) == ({}, {}, 0, True)
    assert Ledger(engine, clock).check() == [] and not any(p.qty for p in Ledger(engine, clock).positions().values())


def test_while_the_market_is_open_it_does_not_stop_before_everything_is_closed(
    built: Market, engine: Engine, clock: SimulatedClock
) -> None:
    built.step(OPEN)
    done = killer(built, engine, clock).turn(Level.FLATTEN, "ann")
    while done.exit_code == 2:  # an exchange that stands still fills nothing
        built.step(new_york(NEXT, 16, 30))
        done = killer(built, engine, clock).turn(Level.FLATTEN, "ann")
    assert (held(built), done.exit_code, never_flipped(built)) == ({}, 0, True)


def test_a_closing_order_named_for_the_session_before_is_the_one_that_works(
    built: Market, engine: Engine, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    "It left in the moment of the close: the broker keeps it for the next session, under its old name."
    late = intent("S02", 200, side=Side.BUY, time_in_force=TimeInForce.DAY)
    before = new_order(late, Admission(closing_name(DAY, "S02", 1)), None, clock.now())
    assert isinstance(built.broker().submit(before), Confirmed)
    done = killer(built, engine, clock).turn(Level.FLATTEN, "ann")
    assert sorted(name.split("-")[2] for name in done.sent) == ["S01", "S03", "S04"]
    built.step(OPEN)
    last = killer(built, engine, clock).turn(Level.FLATTEN, "ann")
    assert (held(built), last.exit_code, never_flipped(built)) == ({}, 0, True)


def test_a_closing_order_that_would_close_too_much_is_taken_back(
    built: Market, engine: Engine, clock: SimulatedClock
) -> None:
    "Somebody sells by hand while the closing orders wait for the open."
    killer(built, engine, clock).turn(Level.FLATTEN, "ann")
    broker = built.broker()
    name = f"kill-{NEXT:%Y%m%d}-S01-1"
    broker.cancel(broker.find(name).id)  # type: ignore[union-attr]
    by_hand = {"symbol": "S01", "qty": "250", "side": "sell", "type": "market", "time_in_force": "opg"}
    broker.client.post("/orders", by_hand | {"client_order_id": "by-hand"})
    built.step(OPEN)
    assert held(built) == {"S01": 50}
    sold = {"symbol": "S01", "qty": "50", "side": "sell", "type": "market", "time_in_force": "cls"}
    killer(built, engine, clock, looks=2).turn(Level.FLATTEN, "ann")
    second = broker.find(f"kill-{NEXT:%Y%m%d}-S01-2")
    assert second and second.qty == 50
    if second.status != "filled":
        broker.cancel(second.id)
        broker.client.post("/orders", sold | {"client_order_id": "by-hand-2"})
    built.step(new_york(NEXT, 17))
    done = killer(built, engine, clock).turn(Level.FLATTEN, "ann")
    assert (held(built), done.held, never_flipped(built)) == ({}, {}, True)


def test_a_strategys_order_that_a_person_replaced_at_the_broker_is_still_its_own(
    built: Market, ledger: Ledger, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    built.step(OPEN)
    broker, resting = built.broker(), {"type": OrderType.LIMIT, "time_in_force": TimeInForce.DAY, "trade_date": NEXT}
    order, _ = Gateway(ledger, broker).submit(intent("S05", 10, limit_price=Decimal(5), **resting))
    other, _ = Gateway(ledger, broker).submit(intent("S06", 10, limit_price=Decimal(5), strategy="other", **resting))
    ids = [str(order.broker_order_id), str(other.broker_order_id)]
    for price in ("5.10", "5.20"):
        ids = [broker.client._request("PATCH", f"/orders/{id_}", {"limit_price": price})["id"] for id_ in ids]
    mine, others = broker.order(ids[0]), broker.order(ids[1])
    done = killer(built, ledger.engine, clock, "strategy:test").turn(Level.CANCEL, "ann")
    assert (done.canceled, done.open, done.exit_code) == ([mine.client_order_id], [], 0)
    assert [o.id for o in broker.open_orders()] == [others.id]


class Held(Broker):
    "A broker that takes a request to cancel, and does not act on it."

    def cancel(self, broker_order_id: str) -> None: ...


def test_a_replaced_order_that_stays_open_is_told_as_open(
    built: Market, ledger: Ledger, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    built.step(OPEN)
    resting = {"type": OrderType.LIMIT, "time_in_force": TimeInForce.DAY, "trade_date": NEXT}
    order, _ = Gateway(ledger, built.broker()).submit(intent("S05", 10, limit_price=Decimal(5), **resting))
    told = built.broker().client._request("PATCH", f"/orders/{order.broker_order_id}", {"limit_price": "5.10"})
    broker = Held(alpaca_client(built.url, "K", "S", 5), built.url, backoff_s=0.01)
    kill = Kill(broker, Books(ledger.engine, clock), "strategy:test", pause_s=0.01, looks=2)
    done = kill.turn(Level.CANCEL, "ann")
    assert (done.open, done.exit_code) == ([told["client_order_id"]], 2)


def test_a_symbol_and_a_strategy_close_what_is_theirs(
    built: Market, ledger: Ledger, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    gateway = Gateway(ledger, built.broker())
    gateway.submit(intent("S01", 80, strategy="other", trade_date=NEXT, time_in_force=TimeInForce.OPG))
    built.step(OPEN)
    assert held(built)["S01"] == 380
    after = new_york(NEXT, 17)
    built.step(after)
    killer(built, ledger.engine, clock, "symbol:S02").turn(Level.FLATTEN, "ann")
    killer(built, ledger.engine, clock, "strategy:other").turn(Level.FLATTEN, "ann")
    assert {o.symbol: (o.side, o.qty) for o in built.broker().open_orders()} == {
        "S02": ("buy", Decimal(200)),
        "S01": ("sell", Decimal(80)),
    }
    built.step(OPEN + timedelta(days=3))
    done = killer(built, ledger.engine, clock, "strategy:other").turn(Level.FLATTEN, "ann")
    assert (done.sent, done.held, done.exit_code) == ([], {}, 0)
    assert held(built) == {"S01": 300, "S03": 50, "S04": -7} and never_flipped(built)


def test_what_another_strategys_order_is_closing_already_is_not_closed_again(
    built: Market, ledger: Ledger, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    gateway, auction = Gateway(ledger, built.broker()), {"trade_date": NEXT, "time_in_force": TimeInForce.OPG}
    gateway.submit(intent("S01", 80, strategy="other", **auction))
    built.step(OPEN)
    assert held(built)["S01"] == 380
    clock.advance_to(OPEN)
    leaving = {"trade_date": NEXT, "time_in_force": TimeInForce.CLS, "side": Side.SELL}
    gateway.submit(intent("S01", 350, **leaving))
    done = killer(built, ledger.engine, clock, "strategy:other", looks=2).turn(Level.FLATTEN, "ann")
    closing = [o for o in built.broker().open_orders() if o.client_order_id.startswith("kill")]
    assert [o.qty for o in closing] in ([Decimal(30)], []), done
    built.step(new_york(NEXT, 17))
    assert held(built).get("S01", Decimal(0)) == 0 and never_flipped(built)


class Crowded(Broker):
    "A broker at which somebody sells by hand, in the moment before the first closing order leaves."

    by_hand: dict[str, str] | None = None

    def submit(self, order: Any, **options: Any) -> Any:
        if self.by_hand:
            body, self.by_hand = self.by_hand, None
            self.client.post("/orders", body)
        return super().submit(order, **options)


@pytest.fixture
def crowded(built: Market) -> Broker:
    "300 shares are held, and of these 100 are about to be sold by hand when the first closing order leaves: it is refused."
    broker = Crowded(alpaca_client(built.url, "K", "S", 5), built.url, backoff_s=0.01)
    broker.by_hand = {"symbol": "S01", "qty": "100", "side": "sell", "type": "market", "time_in_force": "opg"}
    return broker


def closed_in_the_end(market: Market, ledger: Ledger, clock: SimulatedClock) -> None:
    "The order for what is held works under the name that was refused before, and the books agree."
    name = closing_name(NEXT, "S01", 1)
    found = market.broker().find(name)
    assert found is not None and (found.qty, held(market)["S01"]) == (200, 200)
    market.step(new_york(NEXT, 16, 30))
    last = killer(market, ledger.engine, clock, "symbol:S01").turn(Level.FLATTEN, "ann")
    assert (last.held, last.exit_code, never_flipped(market)) == ({}, 0, True)
    result = reconcile(Gateway(ledger, market.broker()))
    noted = [(d.kind, d.named) for d in result.noted if d.key == name]
    assert (result.differences, noted) == ((), [("order", Cause.KILL_SWITCH)])


def test_a_position_that_changes_after_a_refusal_is_closed_by_the_same_run(
    built: Market, ledger: Ledger, clock: SimulatedClock, crowded: Broker
) -> None:
    books, to_the_open = Books(ledger.engine, clock), lambda _: built.step(OPEN)
    done = Kill(crowded, books, "symbol:S01", pause=to_the_open, looks=3).turn(Level.FLATTEN, "ann")
    assert (done.sent, done.troubles, done.exit_code) == ([closing_name(NEXT, "S01", 1)], [], 2)
    closed_in_the_end(built, ledger, clock)


def test_a_position_that_changes_after_a_refusal_is_closed_by_the_next_run(
    built: Market, ledger: Ledger, clock: SimulatedClock, crowded: Broker
) -> None:
    first = Kill(crowded, Books(ledger.engine, clock), "symbol:S01", looks=1).turn(Level.FLATTEN, "ann")
    assert (first.sent, first.opens_at, len(first.open), first.exit_code) == ([], None, 1, 2)
    built.step(OPEN)
    second = killer(built, ledger.engine, clock, "symbol:S01", looks=3).turn(Level.FLATTEN, "ann")
    assert (second.sent, second.troubles) == ([closing_name(NEXT, "S01", 1)], [])
    closed_in_the_end(built, ledger, clock)


def test_what_somebody_is_selling_by_hand_is_left_to_that_order(
    built: Market, ledger: Ledger, clock: SimulatedClock, crowded: Broker
) -> None:
    done = Kill(crowded, Books(ledger.engine, clock), "symbol:S01", pause_s=0.01).turn(Level.FLATTEN, "ann")
    assert (done.sent, done.opens_at, len(done.open)) == ([closing_name(NEXT, "S01", 1)], new_york(NEXT, 9, 30), 1)
    built.step(new_york(NEXT, 17))
    assert "S01" not in held(built) and never_flipped(built)


def test_a_closing_order_is_taken_back_when_somebody_came_to_close_the_same(
    built: Market, ledger: Ledger, clock: SimulatedClock, crowded: Broker
) -> None:
    symbol, short = next((symbol, -qty) for symbol, qty in BOOK.items() if qty < 0)
    built.step(OPEN)
    crowded.by_hand = {"symbol": symbol, "qty": str(short), "side": "buy", "type": "market", "time_in_force": "cls"}  # type: ignore[attr-defined]
    done = Kill(crowded, Books(ledger.engine, clock), pause_s=0.01, looks=5).turn(Level.FLATTEN, "ann")
    name = closing_name(NEXT, symbol, 1)
    assert name in done.sent and name in done.canceled and done.held[symbol] == -short and done.exit_code == 2
    built.step(new_york(NEXT, 17))
    assert (held(built), never_flipped(built)) == ({}, True)


def test_an_order_that_is_refused_while_the_market_is_shut_is_tried_again(
    built: Market, ledger: Ledger, clock: SimulatedClock, crowded: Broker
) -> None:
    def pause(_: float) -> None:
        "Who wanted to sell by hand thinks again."
        for order in built.broker().open_orders():
            if not order.client_order_id.startswith("kill-"):
                built.broker().cancel(order.id)

    done = Kill(crowded, Books(ledger.engine, clock), pause=pause).turn(Level.FLATTEN, "ann")
    assert (len(done.sent), done.opens_at, done.exit_code) == (4, new_york(NEXT, 9, 30), 0)


def test_two_at_once_close_once(built: Market, engine: Engine, clock: SimulatedClock) -> None:
    built.step(OPEN)
    start, ends = threading.Barrier(3), []

    def run() -> None:
        start.wait(60)
        ends.append(killer(built, engine, clock, looks=4).turn(Level.FLATTEN, "ann"))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    built.step(new_york(NEXT, 17))
    assert (held(built), never_flipped(built), [e.troubles for e in ends]) == ({}, True, [[], [], []])


def test_a_command_that_died_before_its_closing_order_left_stands_in_nobodys_way(
    built: Market, ledger: Ledger, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    name = f"kill-{NEXT:%Y%m%d}-S01-1"
    ledger.admit(
        intent("S01", 299, side=Side.SELL, strategy="kill", trade_date=NEXT, time_in_force=TimeInForce.DAY), name
    )
    done = killer(built, ledger.engine, clock).turn(Level.FLATTEN, "ann")
    assert (done.burned, done.exit_code) == ([name], 0)
    assert {o.client_order_id[-5:]: o.qty for o in built.broker().open_orders()}["S01-2"] == 300
    built.step(OPEN)
    assert (held(built), never_flipped(built)) == ({}, True)


def test_an_order_that_an_auction_holds_stands_in_no_other_position_s_way(
    built: Market, ledger: Ledger, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    "Eight minutes before the close; a hundred of 300 shares are in the auction and cannot be called back."
    gateway, late = Gateway(ledger, built.broker()), new_york(NEXT, 15, 52)
    built.step(new_york(NEXT, 12))
    held_fast, _ = gateway.submit(intent("S01", 100, side=Side.SELL, trade_date=NEXT))
    built.step(late)
    done = killer(built, ledger.engine, clock, looks=9).turn(Level.FLATTEN, "ann")
    assert (done.canceled, done.open, done.exit_code) == ([], [held_fast.client_order_id], 2)
    assert len(done.sent) == len(held(built)) and built.broker().find(closing_name(NEXT, "S01", 1)).qty == 200  # type: ignore[union-attr]
    built.step(new_york(NEXT, 17))
    assert (held(built), never_flipped(built)) == ({}, True)


def test_a_name_that_another_scope_closes_under_is_burned_and_its_number_left(
    built: Market, ledger: Ledger, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    "A closing order for everybody was refused; a strategy's own is no part of it."
    built.step(OPEN)
    name = closing_name(NEXT, "S01", 1)
    refused = intent("S01", 300, side=Side.SELL, strategy="kill", trade_date=NEXT, time_in_force=TimeInForce.DAY)
    ledger.admit(refused, name)
    done = killer(built, ledger.engine, clock, "strategy:test").turn(Level.FLATTEN, "ann")
    assert name in done.burned and name not in done.sent and closing_name(NEXT, "S01", 2) in done.sent
    built.step(new_york(NEXT, 17))
    catch_up(Gateway(ledger, built.broker()))
    assert (held(built), share_of(ledger, "test"), never_flipped(built)) == ({}, {}, True)


class Leaving(Broker):
    "A broker that takes no more orders, and then is gone."

    def submit(self, order: StoredOrder, ask_first: bool = False, look: Any = None) -> Outcome:
        self.open_orders = self.gone
        return Rejected(403, None, "no more orders today")

    def gone(self, *args: object) -> Any:
        raise BrokerUnavailable("the broker is down")


def test_what_may_still_arrive_is_told_also_when_the_broker_is_gone_after_it(
    market: Market, ledger: Ledger, clock: SimulatedClock, intent: Callable[..., OrderIntent]
) -> None:
    order = ledger.admit(intent("S01", 10))[0]
    broker = Leaving(alpaca_client(market.url, "K", "S", 5), market.url, backoff_s=0.01, attempts=1)
    done = Kill(broker, Books(ledger.engine, clock), pause_s=0.01, looks=2).turn(Level.CANCEL, "ann")
    told = "\n".join(done.lines)
    assert "may still arrive" in done.troubles[0]
    assert f"{order.client_order_id}) may still arrive" in told and "the broker is down" in told and done.exit_code == 1


class Stale(Broker):
    "A broker whose answer about positions is overtaken by somebody else's flatten."

    calls, rival = 0, staticmethod(lambda: None)
    at = 0

    def positions(self) -> dict[str, Any]:
        answer, self.calls = super().positions(), self.calls + 1
        if self.calls == self.at:
            self.rival()
        return answer


@pytest.mark.parametrize("at", [1, 2, 3])
def test_positions_that_are_gone_when_the_order_leaves_are_not_closed_twice(
    built: Market, engine: Engine, clock: SimulatedClock, at: int
) -> None:
    def rival() -> None:
        killer(built, engine, clock).turn(Level.FLATTEN, "bob")
        built.step(OPEN)

    broker = Stale(alpaca_client(built.url, "K", "S", 5), built.url, backoff_s=0.01)
    broker.at, broker.rival = at, rival  # type: ignore[assignment,method-assign]
    Kill(broker, Books(engine, clock), pause_s=0.01, looks=2).turn(Level.FLATTEN, "ann")
    built.step(new_york(NEXT, 17))
    assert broker.calls >= at
    assert (held(built), never_flipped(built)) == ({}, True)


FAULTS = (
    "timeout_after",
    "gateway_timeout_after",
    "gateway_timeout_before",
    "reset_before",
    "reset_after",
    "server_error",
)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_the_wire_does_it_ends_flat_and_never_flips(
    built: Market, ledger: Ledger, clock: SimulatedClock, intent: Callable[..., OrderIntent], seed: int
) -> None:
    gateway = Gateway(ledger, built.broker())
    for n in range(3):
        gateway.submit(intent(f"S0{n + 1}", 10 + n, side=Side.BUY if n != 1 else Side.SELL, trade_date=NEXT))
    ledger.admit(intent("S01", 33, side=Side.SELL, trade_date=NEXT, sequence=7))
    rules = [{"kind": kind, "probability": 0.05, "seconds": 0.05} for kind in FAULTS]
    admin = httpx.Client(base_url=built.url, headers={"APCA-API-KEY-ID": "K", "APCA-API-SECRET-KEY": "S"})
    assert admin.post("/admin/faults", json={"seed": seed, "rules": rules}).status_code == 200

    def run() -> Done:
        kill = killer(built, ledger.engine, clock, looks=5)
        return kill.turn(Level.FLATTEN, "ann")

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at in (OPEN, new_york(NEXT, 17), OPEN + timedelta(days=3)):
        run()
        admin.post("/admin/clock", json={"to": at.isoformat()}, timeout=60)
        run()
    admin.delete("/admin/faults")
    admin.close()
    done = run()
    built.step(OPEN + timedelta(days=4))
    assert (held(built), never_flipped(built)) == ({}, True), f"seed {seed}"
    done = run()
    assert (done.exit_code, done.troubles, ledger.check()) == (0, [], []), f"seed {seed}"


def test_without_a_database_the_account_is_emptied_and_the_answer_says_what_is_missing(
    built: Market, clock: SimulatedClock
) -> None:
    nowhere = open_books("postgresql://nobody@127.0.0.1:9/none")
    done = killer(built, nowhere, clock).turn(Level.FLATTEN, "ann")
    assert (done.standing, len(done.sent), done.exit_code) == (None, 4, 1)
    assert any("NOT written" in line for line in done.lines) and any("the switch" in text for text in done.troubles)
    built.step(OPEN)
    assert (held(built), never_flipped(built)) == ({}, True)
    only = killer(built, nowhere, clock, "strategy:test").turn(Level.FLATTEN, "ann")
    assert only.exit_code == 1 and only.sent == []


def test_without_a_broker_the_switch_is_thrown(engine: Engine, clock: SimulatedClock) -> None:
    gone = Broker(alpaca_client("http://127.0.0.1:9", "K", "S", 1), "http://127.0.0.1:9", attempts=1)
    done = Kill(gone, Books(engine, clock), pause_s=0.01).turn(Level.FLATTEN, "ann")
    assert done.standing and done.standing.level is Level.FLATTEN
    assert done.exit_code == 1 and "the broker's part" in done.troubles[0]


def test_a_database_that_somebody_holds_is_not_waited_for(
    built: Market, database_url: str, engine: Engine, clock: SimulatedClock
) -> None:
    "A gateway that was stopped in a transaction: the broker's part is done, the switch is tried again at the end."
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(727303)")
        books = open_books(database_url)
        done = killer(built, books, clock).turn(Level.FLATTEN, "ann")
        assert (done.standing, len(done.sent), done.exit_code) == (None, 4, 1)
    done = killer(built, books, clock).turn(Level.FLATTEN, "ann")
    assert done.standing and done.exit_code == 0
    books.dispose()


def test_an_account_that_may_not_be_touched_is_not(built: Market, engine: Engine, clock: SimulatedClock) -> None:
    def forbidden(broker: Broker) -> None:
        raise TradenbError("the keys open another account")

    done = killer(built, engine, clock, allowed=forbidden).turn(Level.FLATTEN, "ann")
    assert (done.exit_code, done.sent, held(built)) == (1, [], BOOK)


@pytest.mark.parametrize(("part", "whole", "expected"), [(5, 3, 3), (-5, 3, 0), (2, 3, 2), (-2, -3, -2), (0, 3, 0)])
def test_a_part_is_never_more_than_the_whole(part: int, whole: int, expected: int) -> None:
    assert smaller(Decimal(part), Decimal(whole)) == expected


# ---- real processes


@pytest.fixture
def hung(request: pytest.FixtureRequest, tmp_path: Path, make_market: Callable[..., Market]) -> Iterator[Any]:
    "A real gateway in a process of its own, before a real exchange."
    market = make_market()
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""
    keys = {"execution__broker_key_id": "K", "execution__broker_secret": "S", "services__exchange_url": market.url}
    where = place(tmp_path / "root", url, **keys, exchange__cash=1_000_000)
    with server("execution", where) as gateway:
        yield market, where, gateway


def order_body(symbol: str, qty: int, sequence: int, side: str = "buy") -> dict[str, Any]:
    body = {"strategy": "test", "symbol": symbol, "side": side, "type": "market", "time_in_force": "cls"}
    return body | {"qty": str(qty), "trade_date": DAY.isoformat(), "sequence": sequence}


def command(where: Any, *words: str) -> subprocess.CompletedProcess[str]:
    "`tradenb kill …` in a process of its own."
    script = (
        "import sys; from tradenb.cli import main, kill; main.app.add_typer(kill.commands); main.main(sys.argv[1:])"
    )
    call = [sys.executable, "-c", script, "kill", *words]
    return subprocess.run(call, env=where.environment, capture_output=True, text=True, timeout=120, check=False)


def pour(gateway: Running, stop: threading.Event, number: int) -> None:
    "A client that sends one order after the other."
    with httpx.Client(base_url=gateway.url, headers={"X-API-Key": KEY}, timeout=60) as client:
        for n in range(1000):
            if stop.is_set():
                return
            try:
                client.post("/api/v1/orders", json=order_body(f"S{(n % 20) + 1:02}", 1 + number, 100 * n + number))
            except httpx.HTTPError:
                return


@pytest.mark.parametrize("hung", ["sqlite", "postgres"] if EVERYWHERE else ["sqlite"], indirect=True)
def test_a_gateway_that_hangs_is_not_needed(hung: Any, eventually: Callable[..., None]) -> None:
    market, where, gateway = hung
    stop = threading.Event()
    clients = [threading.Thread(target=pour, args=(gateway, stop, n)) for n in range(4)]
    for client in clients:
        client.start()
    eventually(lambda: len(market.broker().open_orders()) > 10)
    os.kill(gateway.process.pid, signal.SIGSTOP)
    try:
        first = command(where, "cancel", "--yes", "--why", "the gateway hangs")
        assert first.returncode in (0, 1), first.stdout + first.stderr
        assert market.broker().open_orders() == []
    finally:
        os.kill(gateway.process.pid, signal.SIGCONT)
    if first.returncode == 1:  # it was stopped in a transaction: nothing could be written until it went on
        assert "not done" in first.stdout
        assert command(where, "cancel", "--yes").returncode == 0
    sleep(0.5)
    stop.set()
    for client in clients:
        client.join()
    assert market.broker().open_orders() == []
    refused = httpx.post(gateway.url + "/api/v1/orders", json=order_body("S01", 9, 9999), headers={"X-API-Key": KEY})
    assert refused.status_code == 403 and "KILL_SWITCH" in refused.text
    assert "cancel" in command(where, "status").stdout


@pytest.mark.parametrize("hung", ["sqlite", "postgres"] if EVERYWHERE else ["postgres"], indirect=True)
def test_a_gateway_that_is_dead_is_not_needed_either(hung: Any, eventually: Callable[..., None]) -> None:
    market, where, gateway = hung
    with httpx.Client(base_url=gateway.url, headers={"X-API-Key": KEY}, timeout=60) as client:
        for n in range(6):
            assert client.post("/api/v1/orders", json=order_body(f"S0{n + 1}", 10, n)).status_code == 201
    market.step(new_york(DAY, 17))
    gateway.process.kill()
    gateway.process.wait()
    assert len(held(market)) == 6
    asked = command(where, "flatten")
    assert asked.returncode == 3 and "--yes" in asked.stderr
    flat = command(where, "flatten", "--yes", "--why", "the gateway is dead")
    assert flat.returncode == 0 and "6 closing orders sent" in flat.stdout and "wait for its open" in flat.stdout
    market.step(OPEN)
    assert (held(market), never_flipped(market)) == ({}, True)
    last = command(where, "flatten", "--yes")
    assert last.returncode == 0 and "held: nothing" in last.stdout
    released = command(where, "release", "--why", "drill over", "--who", "ann")
    assert released.returncode == 0 and "release of * by ann" in released.stdout
