"Orders in and out: at most once, whatever happens in between."

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tradenb.core.clock import SimulatedClock, new_york, sleep
from tradenb.core.errors import BrokerUnavailable, DependencyError, InputError, OrderConflict, OrderDenied, OrderInvalid
from tradenb.execution.broker import Broker, alpaca_client
from tradenb.execution.broker import wire as original
from tradenb.execution.controls import Allowed, Denial, Parent
from tradenb.execution.gateway import Gateway
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import OrderIntent, OrderType, Side, TimeInForce
from tradenb.execution.reconcile import reconcile
from tradenb.execution.states import WORKING, OrderStatus
from tradenb.execution.switch import Level, Switch

from .conftest import Market

Make = Callable[..., OrderIntent]
DAY = date(2017, 6, 1)


def kinds(gateway: Gateway, intent: OrderIntent) -> list[str]:
    return [event.kind for event in gateway.ledger.events(intent.client_order_id)]


def test_an_order_is_sent_once_however_often_it_is_asked_for(gateway: Gateway, intent: Make) -> None:
    results = [gateway.submit(intent()) for _ in range(3)]
    assert [created for _, created in results] == [True, False, False]
    assert len(gateway.broker.orders()) == 1
    assert kinds(gateway, intent()) == ["intent", "confirmed"]


def test_asked_for_by_many_at_once_it_is_sent_once(
    ledger: Ledger, wire: Any, wire_broker: Broker, intent: Make
) -> None:
    gateway, created = Gateway(ledger, wire_broker), []
    threads = [threading.Thread(target=lambda: created.append(gateway.submit(intent())[1])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(created) == [False] * 7 + [True]
    assert (wire.posts, wire.duplicates) == (1, 0)


def test_the_intent_is_durable_before_the_broker_hears_of_it(ledger: Ledger, intent: Make) -> None:
    seen = []

    class Watching(Broker):
        def placed(self, order: Any, look: Any = None) -> Any:
            seen.append(ledger.order(order.client_order_id).status)  # type: ignore[union-attr]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Gateway(ledger, Watching(None, "nowhere")).submit(intent())
    assert seen == [OrderStatus.PENDING_NEW]
    assert ledger.order(intent().client_order_id).status is OrderStatus.PENDING_NEW  # type: ignore[union-attr]


def test_killed_before_sending_the_repeat_sends_and_killed_after_it_finds(gateway: Gateway, intent: Make) -> None:
    before, after = intent("S01"), intent("S02")
    for wanted in (before, after):
        gateway.ledger.record_intent(wanted)
    gateway.broker.submit(gateway.stored(after.client_order_id))
    assert sorted(o.status in WORKING for o in gateway.resolve_all()) == [False, True]
    for wanted in (before, after):
        order, created = gateway.submit(wanted)
        assert not created
        assert order.status in WORKING
    assert len(gateway.broker.orders()) == 2


def test_a_dead_broker_leaves_unknown_orders_and_its_return_settles_them(
    ledger: Ledger, market: Any, intent: Make
) -> None:
    port = market.down()
    gateway = Gateway(ledger, market.broker(attempts=2))
    with pytest.raises(BrokerUnavailable, match="outcome unknown") as caught:
        gateway.submit(intent())
    assert "\n" not in str(caught.value)
    with pytest.raises(BrokerUnavailable):
        gateway.submit(intent())
    assert [o.status for o in ledger.orders()] == [OrderStatus.UNKNOWN]
    assert gateway.resolve_all() == []
    market.up(port)
    assert [o.status for o in gateway.resolve_all()] == [OrderStatus.PENDING_NEW]
    assert gateway.submit(intent())[0].status in WORKING
    assert kinds(gateway, intent()).count("intent") == 1


def test_an_order_of_a_session_that_is_over_is_never_sent(gateway: Gateway, market: Any, intent: Make) -> None:
    gateway.ledger.record_intent(intent())
    market.step(new_york(date(2017, 6, 2), 9))
    order, _ = gateway.submit(intent())
    assert order.status is OrderStatus.EXPIRED
    assert "never received" in (order.reason or "")
    assert gateway.broker.orders() == {}


def test_what_the_broker_refuses_is_rejected_and_stays_so(gateway: Gateway, intent: Make) -> None:
    order, _ = gateway.submit(intent(qty=900_000_000))
    assert order.status is OrderStatus.REJECTED
    assert "40310000" in (order.reason or "")
    assert gateway.submit(intent(qty=900_000_000))[0] == order


def test_nothing_invalid_is_stored(gateway: Gateway, intent: Make) -> None:
    for wrong in (intent(qty="0.5"), intent(trade_date=date(2017, 6, 3)), intent("a b")):
        with pytest.raises(OrderInvalid):
            gateway.submit(wrong)
    assert gateway.ledger.orders() == []


def test_a_dry_run_goes_the_whole_way_but_for_the_wire(ledger: Ledger, market: Any, intent: Make) -> None:
    rehearsal = Gateway(ledger, market.broker(), dry_run=True)
    assert rehearsal.submit(intent())[0].status is OrderStatus.DRY_RUN
    assert rehearsal.submit(intent())[1] is False
    assert market.broker().orders() == {}
    assert Gateway(ledger, market.broker()).submit(intent())[0].status is OrderStatus.DRY_RUN


def test_a_dry_run_cancels_nothing_at_the_broker(
    ledger: Ledger, gateway: Gateway, market: Any, intent: Make, clock: SimulatedClock
) -> None:
    real, revived, rehearsed = intent("S01"), intent("S02"), intent("S03")
    gateway.submit(real)
    ledger.record_intent(revived)
    late = gateway.stored(revived.client_order_id)
    gateway.cancel(revived.client_order_id)
    gateway.broker.submit(late)  # a packet that was held up
    quiet = Gateway(ledger, market.broker(), dry_run=True)
    quiet.submit(rehearsed)
    with pytest.raises(OrderConflict, match="is dry_run: nothing left to cancel"):
        quiet.cancel(rehearsed.client_order_id)
    with pytest.raises(OrderConflict, match="a dry run sends nothing: cancel it with `tradenb kill cancel`"):
        quiet.cancel(real.client_order_id)
    reconcile(quiet)
    assert {o.status for o in market.broker().orders().values()} == {"accepted"}
    assert "cancel_requested" not in {e.kind for o in (real, revived) for e in ledger.events(o.client_order_id)}
    gateway.resolve_all()  # in earnest again: what nobody wants any more goes
    statuses = {o.symbol: o.status for o in market.broker().orders().values()}
    assert statuses == {"S01": "accepted", "S02": "canceled"}


def test_canceling(gateway: Gateway, market: Any, intent: Make) -> None:
    sent, never = intent("S01"), intent("S02")
    gateway.submit(sent)
    gateway.ledger.record_intent(never)
    assert {gateway.cancel(o.client_order_id).status for o in (sent, never)} == {OrderStatus.CANCELED}
    assert [o.status for o in gateway.broker.orders().values()] == ["canceled"]
    with pytest.raises(OrderConflict, match="nothing left"):
        gateway.cancel(sent.client_order_id)
    with pytest.raises(InputError, match="no order"):
        gateway.cancel("0" * 32)


def test_an_order_that_was_filled_meanwhile_cannot_be_canceled(gateway: Gateway, market: Any, intent: Make) -> None:
    gateway.submit(intent())
    market.step(new_york(DAY, 18))
    with pytest.raises(OrderConflict, match="cannot be canceled"):
        gateway.cancel(intent().client_order_id)
    assert gateway.stored(intent().client_order_id).status is OrderStatus.FILLED


RUN = """
import sys
from datetime import date
from decimal import Decimal
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.db import connect
from tradenb.execution.broker import Broker, alpaca_client
from tradenb.execution.gateway import Gateway
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import OrderIntent, OrderType, Side, TimeInForce
database, url = sys.argv[1:3]
gateway = Gateway(Ledger(connect(database), SimulatedClock(new_york(date(2017, 6, 1), 9))), Broker(alpaca_client(url, "K", "S", 5), url), owner="the same after a restart")
gateway.resolve_all()
for n in range(30):
    sys.stdin.readline()
    gateway.submit(OrderIntent("test", f"S{n:02}", Side.BUY, OrderType.MARKET, TimeInForce.CLS, date(2017, 6, 1), qty=Decimal(10)))
    print(n, flush=True)
"""


def test_killed_in_the_middle_and_repeated_no_order_is_lost_or_doubled(
    database_url: str, ledger: Ledger, market: Any
) -> None:
    command = [sys.executable, "-c", RUN, database_url, market.url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("go on\n" * 20)
    process.stdin.flush()
    for line in process.stdout:
        if int(line) >= 12:
            break
    sleep(0.003)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 12 < len(ledger.orders()) <= 20
    subprocess.run(command, check=True, capture_output=True, timeout=60, text=True, input="go on\n" * 30)
    at_broker = market.broker().orders()
    assert len(at_broker) == 30
    assert sorted(o.symbol for o in at_broker.values()) == [f"S{n:02}" for n in range(30)]
    assert {o.client_order_id for o in ledger.orders()} == set(at_broker)
    assert {o.status for o in ledger.orders()} <= WORKING
    assert len({o.broker_order_id for o in ledger.orders()} - {None}) == 30


def test_an_own_id_is_sent_as_it_is(gateway: Gateway, intent: Make) -> None:
    order, _ = gateway.submit(intent(), client_order_id="by-hand.1", run_id="run-1")
    assert (order.client_order_id, order.run_id) == ("by-hand.1", "run-1")
    assert list(gateway.broker.orders()) == ["by-hand.1"]


def test_every_type_of_order_reaches_the_exchange(gateway: Gateway, intent: Make) -> None:
    day = {"time_in_force": TimeInForce.DAY}
    wanted = [
        intent("S05", "0.5", **day),
        intent("S06", None, notional=Decimal("250.50"), **day),
        intent("S07", type=OrderType.LIMIT, limit_price=Decimal("30.25"), **day),
        intent("S08", type=OrderType.STOP, stop_price=Decimal("90.5"), **day),
        intent(
            "S09", type=OrderType.STOP_LIMIT, stop_price=Decimal("90.5"), limit_price=Decimal(91), side=Side.BUY, **day
        ),
        intent("S10", time_in_force=TimeInForce.OPG),
        intent("S11", time_in_force=TimeInForce.GTC),
    ]
    statuses = [(o.symbol, o.status, o.reason) for o, _ in (gateway.submit(w) for w in wanted)]
    assert [s for s in statuses if s[1] is OrderStatus.REJECTED] == []


@pytest.fixture
def pair(ledger: Ledger, wire_broker: Broker) -> tuple[Gateway, Gateway]:
    "Two gateways on one database and one broker."
    return Gateway(ledger, wire_broker, owner="first"), Gateway(ledger, wire_broker, owner="second")


def admitted(gateway: Gateway, wanted: OrderIntent) -> str:
    "An order that a gateway has let in and not sent yet: it was killed in between."
    gateway.ledger.admit(wanted, owner=gateway.owner, until=gateway.until())
    return wanted.client_order_id


def test_an_order_in_other_hands_is_left_alone_until_the_lease_runs_out(
    pair: tuple[Gateway, Gateway], wire: Any, intent: Make, clock: SimulatedClock
) -> None:
    first, second = pair
    name = admitted(first, intent())
    assert second.submit(intent())[0].status is OrderStatus.PENDING_NEW
    assert second.resolve(name).status is OrderStatus.PENDING_NEW
    with pytest.raises(BrokerUnavailable, match="by another gateway"):
        second.cancel(name)
    assert (wire.posts, wire.gets) == (0, 0)
    clock.advance(second.lease)
    assert second.submit(intent())[0].status is OrderStatus.ACCEPTED
    assert (wire.posts, wire.gets > 0) == (1, True)
    assert first.submit(intent())[0].status is OrderStatus.ACCEPTED
    assert wire.posts == 1


def test_a_successor_of_the_same_name_need_not_wait(
    pair: tuple[Gateway, Gateway], ledger: Ledger, wire_broker: Broker, wire: Any, intent: Make
) -> None:
    admitted(pair[0], intent())
    successor = Gateway(ledger, wire_broker, owner="first")
    assert [o.status for o in successor.resolve_all()] == [OrderStatus.PENDING_NEW]
    assert ledger.orders()[0].lease_owner is None
    assert successor.submit(intent())[0].status is OrderStatus.ACCEPTED


def test_who_loses_the_lease_while_waiting_sends_nothing_more(
    ledger: Ledger, wire: Any, intent: Make, clock: SimulatedClock
) -> None:
    def wait(seconds: float) -> None:
        clock.advance(timedelta(minutes=5))
        ledger.claim(intent().client_order_id, "second", clock.now() + timedelta(minutes=5))

    broker = Broker(alpaca_client(wire.url, "K", "S", 1), wire.url, sleep=wait)
    wire.script = ["503", "ok"]
    order, _ = Gateway(ledger, broker, owner="first").submit(intent())
    assert (order.status, order.lease_owner) == (OrderStatus.PENDING_NEW, "second")
    assert wire.posts == 1
    assert not wire.orders


def test_whoever_took_the_order_by_his_own_clock_is_the_one_who_sends_it(
    ledger: Ledger, wire: Any, wire_broker: Broker, intent: Make, clock: SimulatedClock
) -> None:
    def taken(connection: Any, intent: Any, name: str, parent: Any) -> None:
        "The admission's last question; by the time of the POST another machine, whose clock is ahead, has the lease."
        stolen.append(name)

    stolen: list[str] = []
    gateway = Gateway(ledger, wire_broker, guard=taken, owner="first")
    gateway.until = lambda: clock.now() + timedelta(minutes=5)  # type: ignore[method-assign]
    real = ledger.admit

    def admit(*arguments: Any, **options: Any) -> Any:
        order, created = real(*arguments, **options)
        ledger.release(stolen[0], "first")
        assert ledger.claim(stolen[0], "second", clock.now() + timedelta(minutes=5))
        return order, created

    ledger.admit = admit  # type: ignore[method-assign]
    order, _ = gateway.submit(intent())
    assert (order.status, order.lease_owner, wire.posts) == (OrderStatus.PENDING_NEW, "second", 0)


def overtaken(ledger: Ledger, clock: SimulatedClock, name: str, gives_back: bool = False) -> Callable[[float], None]:
    "A wait so long that another gateway takes the order's lease, and perhaps gives it back."

    def wait(seconds: float) -> None:
        clock.advance(timedelta(minutes=5))
        assert ledger.claim(name, "second", clock.now() + timedelta(minutes=5))
        if gives_back:
            ledger.release(name, "second")

    return wait


def test_a_lease_that_was_taken_and_given_back_meanwhile_is_lost(
    ledger: Ledger, wire: Any, intent: Make, clock: SimulatedClock
) -> None:
    wait = overtaken(ledger, clock, intent().client_order_id, gives_back=True)
    broker = Broker(alpaca_client(wire.url, "K", "S", 20), wire.url, attempts=2, sleep=wait)
    wire.script = ["503", "ok"]
    order, _ = Gateway(ledger, broker, owner="first").submit(intent())
    assert (order.status, order.lease_owner, wire.posts) == (OrderStatus.PENDING_NEW, None, 1)


def test_a_gateway_that_wakes_up_late_does_not_give_away_somebody_elses_lease(
    ledger: Ledger, wire: Any, intent: Make, clock: SimulatedClock
) -> None:
    name = intent().client_order_id
    wait = overtaken(ledger, clock, name)
    broker = Broker(alpaca_client(wire.url, "K", "S", 1), wire.url, attempts=2, sleep=wait)
    wire.script, wire.get_script = ["taken, 504"], ["503"]
    with pytest.raises(BrokerUnavailable, match="outcome unknown"):
        Gateway(ledger, broker, owner="first").submit(intent())
    order = ledger.order(name)
    assert order is not None
    assert (order.status, order.lease_owner) == (OrderStatus.UNKNOWN, "second")


def test_a_long_wait_prolongs_the_lease(ledger: Ledger, wire: Any, intent: Make, clock: SimulatedClock) -> None:
    leases = []

    def wait(seconds: float) -> None:
        clock.advance(timedelta(seconds=45))
        leases.append(ledger.order(intent().client_order_id).lease_until)  # type: ignore[union-attr]

    broker = Broker(alpaca_client(wire.url, "K", "S", 1), wire.url, sleep=wait)
    wire.script = ["503", "503", "ok"]
    assert Gateway(ledger, broker, owner="first").submit(intent())[0].status is OrderStatus.ACCEPTED
    assert [(later - leases[0]).total_seconds() for later in leases if later and leases[0]] == [0, 45]


def test_what_would_leave_otherwise_than_it_was_stored_stays(
    ledger: Ledger, wire: Any, wire_broker: Broker, intent: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = Gateway(ledger, wire_broker)
    for n, change in enumerate(
        ({"qty": "1000"}, {"side": "sell"}, {"limit_price": "1"}, {"client_order_id": "x"}, {"extended_hours": "true"})
    ):
        monkeypatch.setattr("tradenb.execution.broker.wire", lambda order, c=change: original(order) | c)
        with pytest.raises(OrderDenied, match="WIRE_DIFFERS"):
            gateway.submit(intent(sequence=n))
        order = gateway.stored(intent(sequence=n).client_order_id)
        assert (order.status, order.is_final) == (OrderStatus.CANCELED, True)
        assert "WIRE_DIFFERS" in (order.reason or "")
    assert wire.posts == 0
    assert [denial.code for denial in ledger.denials()] == ["WIRE_DIFFERS"] * 5


def test_a_switch_that_is_pulled_between_admission_and_sending_holds_the_order(
    ledger: Ledger, wire: Any, wire_broker: Broker, intent: Make, clock: SimulatedClock
) -> None:
    switch = Switch(ledger.engine, clock)

    class Late(Gateway):
        def _send(self, order: Any, until: Any) -> Any:
            switch.engage("symbol:S01", Level.BLOCK, "ann", "news pending")
            return super()._send(order, until)

    with pytest.raises(OrderDenied, match="KILL_SWITCH"):
        Late(ledger, wire_broker, switch=switch).submit(intent())
    assert wire.posts == 0
    assert gateway_kinds(ledger, intent()) == ["intent", "withheld"]
    with pytest.raises(OrderDenied, match="news pending"):
        Gateway(ledger, wire_broker, switch=switch).submit(intent(sequence=1))
    assert ledger.order(intent(sequence=1).client_order_id) is None
    assert [denial.code for denial in ledger.denials()] == ["KILL_SWITCH"] * 2
    switch.release("symbol:S01", "ann")
    assert Gateway(ledger, wire_broker, switch=switch).submit(intent(sequence=1))[1]


def gateway_kinds(ledger: Ledger, wanted: OrderIntent) -> list[str]:
    return [event.kind for event in ledger.events(wanted.client_order_id)]


def test_a_denied_order_is_judged_again_and_an_admitted_one_is_not(
    ledger: Ledger, wire_broker: Broker, intent: Make
) -> None:
    prepared: list[OrderIntent] = []

    class Guard:
        lets = False

        def prepare(self, intents: list[OrderIntent]) -> None:
            prepared.extend(intents)

        def __call__(self, connection: Any, order: OrderIntent, name: str, parent: Parent | None) -> Any:
            price = Decimal(20)
            return Allowed(price * 100, price) if self.lets else Denial("ORDER_NOTIONAL", "too much", {"limit": "1"})

    guard = Guard()
    gateway = Gateway(ledger, wire_broker, guard=guard)
    for _ in range(2):
        with pytest.raises(OrderDenied, match="ORDER_NOTIONAL: too much"):
            gateway.submit(intent())
    assert ledger.orders() == []
    guard.lets = True
    order, created = gateway.submit(intent(), parent=Parent("basket-1", Decimal(500)))
    assert created
    assert (order.value, order.reference_price, order.parent_id, order.parent_qty) == (2000, 20, "basket-1", 500)
    guard.lets = False
    assert gateway.submit(intent()) == (order, False)
    assert prepared == [intent()] * 4
    (newest, _) = ledger.denials()
    assert (newest.code, newest.numbers, newest.request["qty"]) == ("ORDER_NOTIONAL", {"limit": "1"}, "100")


def test_an_order_given_up_that_turns_up_after_all_is_canceled_there(ledger: Ledger, market: Any, intent: Make) -> None:
    gateway, broker = Gateway(ledger, market.broker()), market.broker()
    for n, symbol in enumerate(("S01", "S02")):
        order, _ = ledger.record_intent(intent(symbol))
        assert gateway.cancel(order.client_order_id).reason == "canceled before it was sent"
        late = broker.placed(order)  # the packet that had been held up
        if n:
            assert ledger.record(late.client_order_id, "stream:new", OrderStatus.ACCEPTED, broker_order_id=late.id)
            gateway.resolve_all()
        else:
            gateway.adopted(gateway.stored(late.client_order_id), late)
        assert broker.find(late.client_order_id).status == "canceled"
        assert gateway.stored(late.client_order_id).status is OrderStatus.CANCELED
        assert "revived" in kinds(gateway, intent(symbol))
    assert gateway.ledger.revived() == []


def test_an_outcome_that_could_not_be_written_down_is_found_out_later(
    ledger: Ledger, wire: Any, wire_broker: Broker, intent: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = Gateway(ledger, wire_broker, owner="first")

    def broken(*args: Any, **more: Any) -> Any:
        raise DependencyError("the database does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "record", broken)
        with pytest.raises(DependencyError):
            gateway.submit(intent())
    assert ledger.orders()[0].status is OrderStatus.PENDING_NEW
    assert gateway.submit(intent())[0].status is OrderStatus.ACCEPTED
    assert (wire.posts, len(wire.orders)) == (1, 1)


def test_an_order_that_overslept_its_session_is_not_sent_into_the_next(
    ledger: Ledger, market: Market, intent: Make, clock: SimulatedClock
) -> None:
    "The machine slept between admission and sending: the lease is still its own, the session is over."

    class Late(Gateway):
        def _send(self, order: Any, until: Any) -> Any:
            evening = new_york(DAY, 17)
            clock.advance_to(evening)
            market.step(evening)
            return super()._send(order, until)

    with pytest.raises(OrderDenied, match="OTHER_SESSION: the session of 2017-06-01 is over"):
        Late(ledger, market.broker()).submit(intent(time_in_force=TimeInForce.DAY))
    assert not market.broker().orders()
    assert [denial.code for denial in ledger.denials()] == ["OTHER_SESSION"]


def test_an_order_that_the_broker_did_not_take_before_the_close_is_not_sent_after_it(
    ledger: Ledger, wire: Any, wire_broker: Broker, intent: Make
) -> None:
    wire.script, wire.now = ["503"], new_york(DAY, 16)
    with pytest.raises(OrderDenied, match="OTHER_SESSION"):
        Gateway(ledger, wire_broker).submit(intent())
    order = ledger.order(intent().client_order_id)
    assert (wire.posts, order and order.status) == (1, OrderStatus.CANCELED)


@pytest.mark.parametrize(("fault", "posts", "status"), [("500", 2, OrderStatus.ACCEPTED), ("401", 1, OrderStatus.UNKNOWN)])  # fmt: skip
def test_a_broker_that_does_not_say_what_time_it_is_has_not_refused_the_order(
    ledger: Ledger, wire: Any, wire_broker: Broker, intent: Make, fault: str, posts: int, status: OrderStatus
) -> None:
    wire.script, wire.get_script = ["503"], ["ok", fault]
    with contextlib.suppress(BrokerUnavailable):
        Gateway(ledger, wire_broker).submit(intent())
    order = ledger.order(intent().client_order_id)
    assert (wire.posts, order and order.status) == (posts, status)
