"How PostgreSQL finds the rows of an order's way in tables that it has no statistics of yet."

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, text

from tradenb.core.clock import SimulatedClock
from tradenb.core.db import connect, migrate, order_events, orders
from tradenb.execution.commits import Question, begun, opened
from tradenb.execution.intents import HOLDER, IS_THERE, SAVE
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import OrderIntent
from tradenb.execution.tally import Tally

from .conftest import DAY

ORDERS = 300


@pytest.fixture
def filled(postgres_url: str, clock: SimulatedClock, intent: Callable[..., OrderIntent]) -> Any:
    "A database that was filled a moment ago: no autovacuum has been there, however long the filling took."
    engine = migrate(connect(postgres_url))
    with engine.begin() as connection:
        for table in (orders, order_events):
            connection.execute(text(f"ALTER TABLE {table.name} SET (autovacuum_enabled = off)"))
    ledger = Ledger(engine, clock)
    for number in range(ORDERS):
        ledger.record_intent(intent("S01", 1, sequence=number))
    yield engine
    engine.dispose()


def plan(engine: Engine, question: Question) -> str:
    "What the planner means to do."
    connection = opened(engine, durable=False)
    with begun(connection):
        form = question[0].on(connection)
        rows = connection.exec_driver_sql(f"EXPLAIN {form.sql}", form.values(question[1])).scalars().all()
    connection.close()
    return "\n".join(rows)


def test_an_order_is_found_by_its_name_and_by_nothing_else(filled: Engine, clock: SimulatedClock) -> None:
    order = Ledger(filled, clock).orders()[0]
    changes = {bind: None for bind, _ in SAVE.on(filled.connect()).binds}
    values = changes | {"name": order.client_order_id, "was": order.status}
    for question in ((SAVE, values), (HOLDER, values), (IS_THERE, values)):
        assert "pk_orders" in (found := plan(filled, question)), found
        assert "ix_orders" not in found and "Seq Scan" not in found, found


def test_news_are_looked_up_order_by_order(filled: Engine, clock: SimulatedClock) -> None:
    tally = Tally()
    with filled.begin() as connection:
        tally.load(connection, clock.now(), DAY)
        asked = tally.question(connection, clock.now(), DAY)
    assert "pk_orders" in (found := plan(filled, asked)), found
    assert "Seq Scan on orders" not in found and "Hash Join" not in found, found
