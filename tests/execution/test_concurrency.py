"Several gateways, many threads, one database: each order once, each entry once, sums that nobody gets past."

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.exc import OperationalError

from tradenb.core import db
from tradenb.core.calendar import is_session
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.db import connect
from tradenb.core.errors import BrokerUnavailable, DependencyError, OrderConflict, OrderDenied
from tradenb.execution.broker import Broker
from tradenb.execution.commits import Writer
from tradenb.execution.controls import Allowed, Denial
from tradenb.execution.entries import CashEvent, Entry, Fill, Void, fold_account, fold_positions, in_order
from tradenb.execution.gateway import Gateway
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import OrderIntent, Side
from tradenb.execution.states import FINAL, WORKING, OrderStatus
from tradenb.execution.switch import Level, Switch
from tradenb.execution.updates import catch_up

Make = Callable[..., OrderIntent]
NOON = new_york(date(2017, 6, 1), 12)


@pytest.fixture(scope="module", autouse=True)
def calendar() -> None:
    "Built once, before many threads want it."
    is_session(date(2017, 6, 1))


@pytest.fixture
def engines(engine: Engine, database_url: str) -> Iterator[list[Engine]]:
    "Three processes' worth of connections to one database."
    others = [connect(database_url) for _ in range(2)]
    yield [engine, *others]
    for other in others:
        other.dispose()


@pytest.fixture
def ledgers(engines: list[Engine], clock: SimulatedClock) -> list[Ledger]:
    return [Ledger(engine, clock) for engine in engines]


def everywhere(jobs: list[Callable[[], Any]]) -> list[Any]:
    "All jobs at once; what they returned or raised."

    def run(job: Callable[[], Any]) -> Any:
        try:
            return job()
        except (BrokerUnavailable, OrderConflict, OrderDenied) as error:
            return error

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def test_many_gateways_asked_for_the_same_orders_send_each_once(
    ledgers: list[Ledger], wire: Any, wire_broker: Broker, intent: Make
) -> None:
    gateways = [Gateway(ledger, wire_broker, owner=f"gateway-{n}") for n, ledger in enumerate(ledgers)]
    wanted = [intent(f"S{n:02}") for n in range(6)]

    def ask(gateway: Gateway, seed: int) -> int:
        shuffled = random.Random(seed).sample(wanted, len(wanted))
        return sum(gateway.submit(order)[1] for order in shuffled)

    created = everywhere([lambda g=g, n=n: ask(g, n) for n in range(3) for g in gateways])  # type: ignore[misc]
    assert sum(created) == len(wanted)
    assert (wire.posts, wire.duplicates, len(wire.orders)) == (len(wanted), 0, len(wanted))
    assert {order.status for order in ledgers[0].orders()} == {OrderStatus.ACCEPTED}
    kinds = [e.kind for order in wanted for e in ledgers[0].events(order.client_order_id)]
    assert kinds.count("intent") == len(wanted)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_the_broker_does_each_order_is_there_once(
    seed: int, ledgers: list[Ledger], wire: Any, wire_broker: Broker, intent: Make
) -> None:
    rng = random.Random(seed)
    faults = ["ok", "ok", "503", "504", "reset", "taken, 504", "taken, reset", "429", "html"]
    wire.script = [rng.choice(faults) for _ in range(40)]
    wire.get_script = [rng.choice(["ok", "ok", "503", "reset"]) for _ in range(20)]
    gateways = [Gateway(ledger, wire_broker, owner=f"gateway-{n}") for n, ledger in enumerate(ledgers)]
    wanted = [intent(f"S{n:02}") for n in range(8)]
    jobs = [lambda g=g, w=w: g.submit(w) for w in wanted for g in gateways]  # type: ignore[misc]
    everywhere(rng.sample(jobs, len(jobs)) + [gateway.resolve_all for gateway in gateways])
    wire.script, wire.get_script = [], []
    for order in wanted:
        gateways[0].ledger.clock.advance(timedelta(minutes=2))  # type: ignore[attr-defined]
        assert gateways[0].submit(order)[0].status in WORKING
    assert len(wire.orders) == len(wanted)
    assert {o.broker_order_id for o in ledgers[0].orders()} == {o["id"] for o in wire.orders.values()}


def test_submitting_canceling_and_resolving_at_once_leaves_one_truth(
    ledgers: list[Ledger], market: Any, intent: Make
) -> None:
    gateways = [Gateway(ledger, market.broker(), owner=f"gateway-{n}") for n, ledger in enumerate(ledgers)]
    wanted = [intent(f"S{n:02}", 10 + n) for n in range(10)]
    jobs = [lambda g=g, w=w: g.submit(w) for n, w in enumerate(wanted) for g in gateways[n % 2 :]]  # type: ignore[misc]
    jobs += [gateway.resolve_all for gateway in gateways]
    everywhere(random.Random(1).sample(jobs, len(jobs)))
    cancels = [lambda g=g, w=w: g.cancel(w.client_order_id) for w in wanted[::2] for g in gateways[:2]]  # type: ignore[misc]
    everywhere([*cancels, lambda: catch_up(gateways[2])])
    market.step(new_york(wanted[0].trade_date, 18))
    everywhere([lambda g=g: catch_up(g) for g in gateways])  # type: ignore[misc]
    orders, theirs = ledgers[0].orders(), gateways[0].broker.orders()
    assert len(orders) == len(theirs) == len(wanted)
    assert {o.status for o in orders} <= FINAL
    assert {o.client_order_id: o.status for o in orders} == {name: o.status for name, o in theirs.items()}
    assert sorted(o.symbol for o in orders if o.status == "canceled") == [w.symbol for w in wanted[::2]]
    assert {s: p.qty for s, p in ledgers[1].positions().items() if p.qty} == {
        s: p.qty for s, p in gateways[0].broker.positions().items()
    }
    assert ledgers[2].check() == []
    assert ledgers[0].account().cash == gateways[0].broker.account().cash


def book_of(seed: int) -> tuple[list[Entry], list[Void]]:
    "A hundred entries of three symbols, and some that are taken back."
    rng, entries = random.Random(seed), list[Entry]()
    for n in range(100):
        at = NOON + timedelta(seconds=rng.randrange(30))
        symbol, qty = rng.choice(["AAPL", "GE", "KO"]), Decimal(rng.randint(1, 900)) / 10
        if n % 25 == 24:
            entries.append(CashEvent(f"e{n}", "split", Decimal(0), at, symbol, ratio=Decimal(2)))
        else:
            side, price = rng.choice(list(Side)), Decimal(rng.randint(100, 90_000)) / 100
            entries.append(Fill(f"x{n:03}", symbol, side, qty, price, at, fee=Decimal("0.01")))
    fills = [entry for entry in entries if isinstance(entry, Fill)]
    return entries, [Void(fill.execution_id, "taken back") for fill in rng.sample(fills, 10)]


@pytest.mark.parametrize("seed", range(2))
def test_batches_that_overlap_are_booked_once_and_the_cache_is_the_fold(seed: int, ledgers: list[Ledger]) -> None:
    entries, voids = book_of(seed)
    rng = random.Random(seed)

    def book(ledger: Ledger, n: int) -> int:
        mine = random.Random(n).sample(entries, 60)
        return sum(len(ledger.book(mine[i : i + 7], voids=voids[n::3])) for i in range(0, 60, 7))

    jobs = [lambda ledger=ledger, n=n: book(ledger, n) for n, ledger in enumerate(ledgers * 2)]  # type: ignore[misc]
    news = everywhere(rng.sample(jobs, len(jobs)))
    rest = len(ledgers[0].book(entries, voids=voids))
    assert sum(news) + rest == len(entries)
    taken_back = {void.execution_id for void in voids}
    assert [e.id for e in ledgers[1].entries()] == [e.id for e in in_order(entries) if e.id not in taken_back]
    assert ledgers[1].check() == []
    counted = fold_positions(entries, taken_back)
    assert ledgers[2].positions() == dict(sorted(counted.items()))
    assert ledgers[2].account() == fold_account(entries, taken_back)


def test_nobody_gets_past_a_limit_that_adds_up_what_all_have_done(ledgers: list[Ledger], intent: Make) -> None:
    limit = Decimal(1000)

    def guard(connection: Connection, order: OrderIntent, name: str, parent: Any) -> Allowed | Denial:
        so_far = connection.execute(select(func.sum(db.orders.c.value))).scalar() or Decimal(0)
        if so_far + 100 > limit:
            return Denial("WINDOW_NOTIONAL", f"so_far={so_far}", {"so_far": str(so_far)})
        return Allowed(Decimal(100), Decimal(1))

    wanted = [intent("S01", n + 1) for n in range(16)]
    jobs = [
        lambda ledger=ledger, w=w: ledger.admit(w, guard=guard)  # type: ignore[misc]
        for n, w in enumerate(wanted)
        for ledger in (ledgers[n % 3], ledgers[(n + 1) % 3])
    ]
    answers = everywhere(jobs)
    assert len(ledgers[0].orders()) == 10
    assert sum(order.value or Decimal(0) for order in ledgers[0].orders()) == limit
    refused = [answer for answer in answers if isinstance(answer, OrderDenied)]
    assert len(refused) == len(ledgers[0].denials()) == 12
    assert all("WINDOW_NOTIONAL" in str(error) for error in refused)


def test_when_the_kill_switch_is_on_nothing_more_is_let_in(
    ledgers: list[Ledger], engines: list[Engine], wire: Any, wire_broker: Broker, intent: Make, clock: SimulatedClock
) -> None:
    gateways = [
        Gateway(ledger, wire_broker, switch=Switch(engine, clock), owner=f"g{n}")
        for n, (ledger, engine) in enumerate(zip(ledgers, engines, strict=True))
    ]
    seen: list[int] = []

    def kill() -> None:
        Switch(engines[2], clock).engage("*", Level.BLOCK, "test", "now")
        seen.append(len(ledgers[0].orders()))

    wanted = [intent("S01", n + 1) for n in range(24)]
    jobs: list[Callable[[], Any]] = [lambda g=gateways[n % 3], w=w: g.submit(w) for n, w in enumerate(wanted)]  # type: ignore[misc]
    jobs.insert(12, kill)
    answers = everywhere(jobs)
    assert len(ledgers[0].orders()) == seen[0]
    denied = [answer for answer in answers if isinstance(answer, OrderDenied)]
    assert all("KILL_SWITCH" in str(error) for error in denied)
    statuses = [order.status for order in ledgers[0].orders()]
    assert len(wire.orders) == sum(status is OrderStatus.ACCEPTED for status in statuses)
    assert set(statuses) <= {OrderStatus.ACCEPTED, OrderStatus.CANCELED}
    with pytest.raises(OrderDenied, match="KILL_SWITCH"):
        gateways[0].submit(intent("S02", 1))


def test_a_lease_has_one_owner_at_a_time(ledgers: list[Ledger], intent: Make, clock: SimulatedClock) -> None:
    order, _ = ledgers[0].record_intent(intent())
    until = clock.now() + timedelta(minutes=1)
    jobs = [
        lambda ledger=ledger, n=n: ledger.claim(order.client_order_id, f"owner-{n}", until)  # type: ignore[misc]
        for n, ledger in enumerate(ledgers * 3)
    ]
    assert sorted(everywhere(jobs)) == [False] * 8 + [True]
    clock.advance(timedelta(minutes=1))
    assert ledgers[0].claim(order.client_order_id, "the next one", clock.now() + timedelta(minutes=1))
    ledgers[0].record(order.client_order_id, "confirmed", OrderStatus.NEW, broker_order_id="b-1")
    assert not ledgers[0].claim(order.client_order_id, "the next one", until)


def test_work_that_fails_fails_alone(engine: Engine) -> None:
    writer = Writer(engine)
    gate = threading.Event()

    def add(connection: Connection, n: int) -> int:
        gate.wait(60)
        row = {"scope": f"s{n}", "level": "release", "who": "t", "why": "t", "at": NOON}
        connection.execute(db.kill_switch.insert(), row)
        if n % 4 == 3:
            raise OrderConflict(f"number {n}")
        return n

    jobs = [lambda n=n: writer.write(lambda connection: add(connection, n)) for n in range(16)]  # type: ignore[misc]
    threading.Timer(0.05, gate.set).start()
    answers = everywhere(jobs)
    assert [a for a in answers if isinstance(a, int)] == [n for n in range(16) if n % 4 != 3]
    assert [str(a) for a in answers if isinstance(a, OrderConflict)] == [f"number {n}" for n in (3, 7, 11, 15)]
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(db.kill_switch)).scalar() == 12
    writer.close()


def test_a_leader_that_is_interrupted_leaves_nobody_waiting(engine: Engine) -> None:
    writer, gate, started = Writer(engine), threading.Event(), threading.Event()
    interrupted: list[BaseException] = []

    def stop(connection: Connection) -> None:
        started.set()
        gate.wait(60)
        raise KeyboardInterrupt

    def lead() -> None:
        try:
            writer.write(stop)
        except KeyboardInterrupt as error:
            interrupted.append(error)

    leader = threading.Thread(target=lead)
    leader.start()
    assert started.wait(60)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(writer.write, lambda connection, n=n: n) for n in range(4)]  # type: ignore[misc]
        gate.set()
        assert [w.result(60) for w in waiting] == [0, 1, 2, 3]
    leader.join(60)
    assert len(interrupted) == 1
    writer.close()


@pytest.mark.parametrize("moment", ["before_cursor_execute", "commit"])
def test_a_transaction_that_fails_leaves_nothing_behind(
    moment: str, engines: list[Engine], intent: Make, clock: SimulatedClock
) -> None:
    broken, other = (Ledger(engine, clock, Writer(engine)) for engine in engines[:2])
    failing = [True]

    def fail(*args: Any) -> None:
        if failing and (moment == "commit" or "INSERT" in args[2]):
            raise OperationalError("statement", {}, Exception("disk I/O error"))

    event.listen(engines[0], moment, fail)
    with pytest.raises(DependencyError, match="disk I/O error"):
        broken.record_intent(intent("S01"))
    assert other.record_intent(intent("S02"))[1]
    failing.clear()
    assert broken.record_intent(intent("S01"))[1]
    assert len(other.orders()) == 2
    for ledger in (broken, other):
        ledger.writer.close()


def test_a_database_that_was_restarted_is_found_again(postgres_url: str, intent: Make, clock: SimulatedClock) -> None:
    engine = db.migrate(connect(postgres_url))
    ledger = Ledger(engine, clock)
    ledger.record_intent(intent("S01"))
    admin = create_engine(engine.url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        connection.execute(text(end))
    admin.dispose()
    assert ledger.record_intent(intent("S02"))[1]
    assert len(ledger.orders()) == 2
    engine.dispose()


def test_a_database_that_is_away_is_said_in_one_line(postgres_url: str, intent: Make, clock: SimulatedClock) -> None:
    engine = db.migrate(connect(postgres_url))
    gone = connect(postgres_url.replace("host=", "host=/nowhere").replace("@/", "@127.0.0.1:1/"))
    ledger = Ledger(gone, clock)
    calls = (lambda: ledger.record_intent(intent()), ledger.orders, ledger.positions, ledger.account, ledger.check)
    for call in calls:
        with pytest.raises(DependencyError, match="does not answer") as caught:
            call()
        assert "\n" not in str(caught.value)
    engine.dispose()
    gone.dispose()


def test_outcomes_are_not_waited_for_and_intents_are(postgres_url: str) -> None:
    engine = db.migrate(connect(postgres_url))
    writer = Writer(engine)
    told = [
        writer.write(lambda connection: connection.execute(text("SHOW synchronous_commit")).scalar(), durable)
        for durable in (True, False)
    ]
    assert told == ["on", "off"]
    with engine.connect() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar() == "on"
    engine.dispose()


def test_an_order_changed_by_another_since_it_was_read_is_read_again(ledger: Ledger, intent: Make) -> None:
    order, _ = ledger.record_intent(intent())
    ledger.record(order.client_order_id, "stream:new", OrderStatus.NEW, broker_order_id="b-1")
    after = ledger.record(order.client_order_id, "confirmed", OrderStatus.SUBMITTED, broker_order_id="b-1", known=order)
    assert after.status is OrderStatus.NEW
    assert [e.kind for e in ledger.events(order.client_order_id)] == ["intent", "stream:new"]
    assert replace(after, updated_at=order.updated_at).lease_owner is None
