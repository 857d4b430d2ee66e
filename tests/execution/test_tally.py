"What is followed equals what is counted, whatever commits, rolls back, or comes from another gateway."

import random
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine

from tradenb.core.clock import SimulatedClock
from tradenb.execution.controls import Allowed
from tradenb.execution.entries import Fill
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import OrderIntent, OrderType, Side, TimeInForce
from tradenb.execution.states import OrderStatus
from tradenb.execution.tally import LOOKS, Exposure, Line, Sums, Tally, Window, acknowledged_gross, opened

from .conftest import DAY, MORNING

PRICE = Decimal(50)


def picture(tally: Sums) -> Any:
    "Everything that is remembered, in a form that can be compared."
    working = {symbol: sides[:2] for symbol, sides in tally.working.items() if any(sides[:2])}
    living = {purpose: names for purpose, names in tally.living.items() if names}
    traded = {key: shares for key, shares in tally.traded.items() if shares}
    windows = [(len(window), window.value) for window in (tally.minute, tally.window)]
    return tally.lines, working, living, traded, tally.net, windows


def counted(engine: Engine, clock: SimulatedClock) -> Any:
    with engine.begin() as connection:
        tally = Tally().load(connection, clock.now(), DAY)
        tally.minute.until(clock.now()), tally.window.until(clock.now())
        return picture(tally)


class Gateway:
    "Admits orders, and looks at the sums while it does."

    def __init__(self, engine: Engine, clock: SimulatedClock):
        self.ledger, self.clock, self.tally = Ledger(engine, clock), clock, Tally()

    def admit(self, intent: OrderIntent, fails: bool = False) -> None:
        def guard(connection: Any, wanted: OrderIntent, name: str, parent: Any) -> Allowed:
            self.tally.follow(connection, self.clock.now(), DAY)
            return Allowed(wanted.qty * PRICE, PRICE)  # type: ignore[operator]

        def work(connection: Any) -> None:
            from tradenb.execution.intents import Admission

            self.ledger._admitted(connection, intent, Admission(intent.client_order_id), guard)
            self.tally.follow(connection, self.clock.now(), DAY)
            if fails:
                raise RuntimeError("the disk is full")

        try:
            self.ledger.writer.write(work)
        except RuntimeError:
            assert fails

    def look(self) -> Any:
        with self.ledger.engine.begin() as connection:
            tally = self.tally.follow(connection, self.clock.now(), DAY)
            tally.minute.until(self.clock.now()), tally.window.until(self.clock.now())
            return picture(tally)


@pytest.mark.parametrize("seed", range(6))
def test_two_gateways_that_follow_know_what_a_fresh_count_finds(
    engine: Engine, clock: SimulatedClock, seed: int
) -> None:
    rng, gateways = random.Random(seed), [Gateway(engine, clock) for _ in range(2)]
    ledger, names = Ledger(engine, clock), list[tuple[str, OrderIntent]]()
    for n in range(60):
        gateway, side = rng.choice(gateways), rng.choice(list(Side))
        kind = rng.choice(["admit", "admit", "fail", "fill", "end", "wait", "look"])
        if kind in ("admit", "fail"):
            symbol, qty = rng.choice("ABC"), Decimal(rng.randint(1, 9))
            intent = OrderIntent("m", symbol, side, OrderType.MARKET, TimeInForce.CLS, DAY, qty=qty, sequence=n)
            gateway.admit(intent, fails=kind == "fail")
            names += [(intent.client_order_id, intent)] if kind == "admit" else []
        elif kind == "fill" and names:
            name, intent = rng.choice(names)
            fill = Fill(f"e{n}", intent.symbol, intent.side, Decimal(1), PRICE, clock.now(), name, f"b{name[:8]}")
            ledger.book_fill(fill)
        elif kind == "end" and names:
            ledger.record(rng.choice(names)[0], "report", OrderStatus.CANCELED, broker_order_id=f"b{n}")
        elif kind == "wait":
            clock.advance(timedelta(seconds=rng.choice([1, 40, 600])))
        elif kind == "look":
            assert gateway.look() == counted(engine, clock)
    for gateway in gateways:
        assert gateway.look() == counted(engine, clock)


def test_a_restart_forgets_nothing(engine: Engine, clock: SimulatedClock) -> None:
    first = Gateway(engine, clock)
    for n in range(5):
        first.admit(OrderIntent("m", "A", Side.BUY, OrderType.MARKET, TimeInForce.CLS, DAY, qty=Decimal(7), sequence=n))
    assert Gateway(engine, clock).look() == first.look()
    assert len(first.tally.minute) == 5 and first.tally.window.value == 5 * 7 * PRICE


def test_after_many_looks_everything_is_counted_afresh(engine: Engine, clock: SimulatedClock) -> None:
    gateway = Gateway(engine, clock)
    gateway.look()
    gateway.tally.net = Decimal(999)
    with engine.begin() as connection:
        for _ in range(LOOKS + 1):
            gateway.tally.follow(connection, clock.now(), DAY)
    assert gateway.tally.net == 0


def line(name: str, at: Any, value: int = 10) -> Line:
    purpose = ("m", "A", "buy", DAY, 0)
    return Line(name, "A", 1, purpose, at, Decimal(value), PRICE, Decimal(1), Decimal(1), True, True)


def test_a_window_holds_what_is_younger_than_its_span() -> None:
    window = Window(1)
    window.add(line("a", MORNING))
    assert window.until(MORNING + timedelta(seconds=59)).value == 10
    assert (len(window.until(MORNING + timedelta(seconds=60))), window.value) == (0, 0)


@pytest.mark.parametrize(
    ("held", "buying", "selling", "expected"),
    [(0, 5, 3, 8), (10, 5, 10, 5), (10, 0, 12, 2), (-10, 10, 0, 0), (-10, 12, 1, 3), (0, 0, 0, 0)],
)
def test_what_a_position_covers_opens_nothing(held: int, buying: int, selling: int, expected: int) -> None:
    assert opened(Decimal(held), Decimal(buying), Decimal(selling)) == expected


def test_exposure_is_positions_at_market_and_what_works_would_open(engine: Engine, clock: SimulatedClock) -> None:
    gateway = Gateway(engine, clock)
    ledger = gateway.ledger
    ledger.book_fill(Fill("e1", "A", Side.BUY, Decimal(100), PRICE, clock.now()))
    ledger.book_fill(Fill("e2", "B", Side.SELL, Decimal(40), PRICE, clock.now()))
    for n, (symbol, side, qty) in enumerate([("A", Side.SELL, 130), ("B", Side.BUY, 40), ("C", Side.BUY, 5)]):
        gateway.admit(
            OrderIntent("m", symbol, side, OrderType.MARKET, TimeInForce.CLS, DAY, qty=Decimal(qty), sequence=n)
        )
    prices = {"A": Decimal(60), "B": Decimal(20)}
    with engine.begin() as connection:
        gateway.tally.follow(connection, clock.now(), DAY)
        exposure = Exposure(gateway.tally).update(connection, prices)
        assert exposure.gross == 100 * 60 + 40 * 20 + 30 * 60 + 5 * PRICE
        assert exposure.net == 100 * 60 - 40 * 20 - 130 * PRICE + 40 * PRICE + 5 * PRICE
        assert acknowledged_gross(connection, prices, clock.now()) == 100 * 60 + 40 * 20
        before = exposure.gross
    with engine.connect() as connection:
        assert Exposure(gateway.tally).update(connection, dict(prices)).gross == before
