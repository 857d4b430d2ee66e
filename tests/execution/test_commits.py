"Questions together, writes together: the same on both databases, and errors that say what happened."

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, bindparam, func, select, text, update

from tradenb.core import db
from tradenb.core.clock import SimulatedClock
from tradenb.core.errors import DependencyError
from tradenb.execution.commits import Both, Prepared, Writer, asked
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import OrderIntent

from .conftest import MORNING

K = db.kill_switch.c
ADD = Prepared(db.kill_switch.insert().inline(), "scope", "level", "who", "why", "at")
MOVE = Prepared(update(db.kill_switch).where(K.scope == bindparam("was")).values(level=bindparam("to")))
OF = Prepared(select(func.count().label("n"), func.max(K.at).label("last")).where(K.level == bindparam("of")))
ALL = Prepared(select(K.scope, K.at).order_by(K.id))


def line(scope: str, level: str = "block") -> dict[str, Any]:
    return {"scope": scope, "level": level, "who": "ann", "why": "a test", "at": MORNING}


def test_answers_come_in_the_order_of_the_questions_with_names_and_types(engine: Engine) -> None:
    writer = Writer(engine)
    writer.write(lambda connection: ADD(connection, [line("*"), line("symbol:A"), line("symbol:B", "cancel")]))
    with engine.connect() as connection:
        rows, (blocks,), (none,) = asked(connection, (ALL, {}), (OF, {"of": "block"}), (OF, {"of": "reduce"}))
    assert [(row.scope, row.at) for row in rows] == [(s, MORNING) for s in ("*", "symbol:A", "symbol:B")]
    assert (blocks.n, none.n, none.last) == (2, 0, None)
    writer.close()


def test_questions_see_what_their_own_transaction_has_written(engine: Engine) -> None:
    def work(connection: Connection) -> list[int]:
        found = []
        for scope in ("*", "symbol:A"):
            ADD(connection, line(scope))
            found.append(asked(connection, (OF, {"of": "block"}), (ALL, {}))[0][0].n)
        return found

    writer = Writer(engine)
    assert writer.write(work) == [1, 2]
    writer.close()


def test_a_row_read_by_a_kept_statement_is_what_sqlalchemy_reads(ledger: Ledger, intent: Any) -> None:
    ledger.record_intent(intent("S01", 7, limit_price=Decimal("12.25"), type="limit"))
    kept = Prepared(select(db.orders))
    with ledger.engine.connect() as connection:
        (mine,), theirs = asked(connection, (kept, {}))[0], connection.execute(select(db.orders)).one()
    assert mine._asdict() == dict(theirs._mapping)


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_what_follows_a_write_is_written_only_where_that_had_an_effect(engine: Engine, lines: int) -> None:
    writer, both = Writer(engine), Both(MOVE, ADD)
    writer.write(lambda connection: ADD(connection, line("*")))
    more = [line(f"symbol:N{n}") for n in range(lines)]
    done = [writer.write(lambda connection, was=was: both(connection, {"was": was, "to": "release"}, more)) for was in ("*", "symbol:NOBODY")]  # type: ignore[misc]  # fmt: skip
    assert done == [True, False]
    with engine.connect() as connection:
        rows = connection.execute(select(K.scope, K.level).order_by(K.id)).all()
    assert [tuple(row) for row in rows] == [("*", "release"), *((one["scope"], "block") for one in more)]
    writer.close()


def test_a_question_that_fails_fails_its_own_piece_of_work(engine: Engine) -> None:
    wrong = Prepared(text("SELECT id FROM nowhere"))
    writer = Writer(engine)
    with pytest.raises(DependencyError, match="nowhere"):
        writer.write(lambda connection: asked(connection, (ALL, {}), (wrong, {})))
    assert writer.write(lambda connection: asked(connection, (OF, {"of": "block"}))[0][0].n) == 0
    writer.close()


def test_a_connection_that_died_between_two_questions_is_replaced(postgres_url: str) -> None:
    engine = db.migrate(db.connect(postgres_url))
    writer, killed = Writer(engine), list[int]()

    def work(connection: Connection) -> int:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        if not killed:
            killed.append(pid)
            with engine.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        return int(asked(connection, (OF, {"of": "block"}), (ALL, {}))[0][0].n)

    assert writer.write(work) == 0
    assert len(killed) == 1
    writer.close()
    engine.dispose()


def test_only_one_transaction_at_a_time_holds_the_pen(postgres_url: str) -> None:
    engine = db.migrate(db.connect(postgres_url))
    one, other = Writer(engine), Writer(engine)
    free = text("SELECT pg_try_advisory_xact_lock(727303)")
    with one.transaction(), engine.connect() as outsider:
        assert outsider.execute(free).scalar() is False
    with other.transaction() as held, engine.connect() as outsider:
        assert held.exec_driver_sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").scalar() == 1
        assert outsider.execute(free).scalar() is False
    with engine.connect() as outsider:
        assert outsider.execute(free).scalar() is True
    for writer in (one, other):
        writer.close()
    engine.dispose()


def test_an_outcome_for_an_order_that_moved_meanwhile_writes_nothing_of_its_own(ledger: Ledger, intent: Any, clock: SimulatedClock) -> None:  # fmt: skip
    order, _ = ledger.record_intent(intent())
    first = ledger.record(order.client_order_id, "canceled", _canceled(), reason="somebody was quicker")
    clock.advance(timedelta(seconds=1))
    again = ledger.record(order.client_order_id, "canceled", _canceled(), reason="late", known=order)
    assert (again.status, again.reason) == (first.status, "somebody was quicker")
    assert [row.kind for row in ledger.events(order.client_order_id)].count("canceled") == 1


def _canceled() -> Any:
    from tradenb.execution.states import Event, Kind

    return Event(Kind.WITHDRAWN)


def test_the_same_order_admitted_twice_is_stored_once(ledger: Ledger, intent: Any) -> None:
    wanted: OrderIntent = intent("S02")
    assert [ledger.record_intent(wanted)[1] for _ in range(3)] == [True, False, False]
    assert [row.kind for row in ledger.events(wanted.client_order_id)] == ["intent"]
