"The database behaves alike on SQLite and on PostgreSQL."

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from threading import Thread

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, insert, select
from sqlalchemy.exc import IntegrityError

from tradenb.core import db
from tradenb.core.errors import DependencyError

NOON = datetime(2024, 1, 8, 12, tzinfo=UTC)


def cash(event_id: str, amount: Decimal = Decimal("1.5"), at: datetime = NOON) -> dict:
    return dict(event_id=event_id, kind="deposit", amount=amount, at=at, trade_date=at.date(), detail={})


def test_migrations_give_exactly_the_schema_in_the_code(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, db.metadata) == []


def test_migrating_twice_changes_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(insert(db.cash_events), cash("one"))
    db.migrate(engine)
    with engine.connect() as connection:
        assert connection.execute(select(db.cash_events.c.event_id)).scalars().all() == ["one"]


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/t.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


def test_four_that_migrate_an_empty_database_at_once_all_find_it_migrated(empty_url: str) -> None:
    engines = [db.connect(empty_url) for _ in range(4)]
    failures: list[Exception] = []

    def migrate(engine: Engine) -> None:
        try:
            db.migrate(engine)
        except Exception as error:
            failures.append(error)

    threads = [Thread(target=migrate, args=[engine]) for engine in engines]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    [engine.dispose() for engine in engines]
    assert failures == []


def test_decimals_and_zones_survive_the_round_trip(engine: Engine) -> None:
    tokyo = timezone(timedelta(hours=9))
    amounts = [Decimal("0.000000001"), Decimal("-123456789.987654321"), Decimal(0), Decimal("1E+3")]
    with engine.begin() as connection:
        connection.execute(
            insert(db.cash_events), [cash(str(i), a, NOON.astimezone(tokyo)) for i, a in enumerate(amounts)]
        )
        rows = connection.execute(select(db.cash_events).order_by(db.cash_events.c.event_id)).all()
    assert [row.amount for row in rows] == amounts
    assert all(row.at == NOON and row.at.tzinfo is UTC for row in rows)


@given(st.decimals(min_value=-(10**9), max_value=10**9, places=9))
def test_fixed_is_exact_to_nine_places(value: Decimal) -> None:
    fixed = db.Fixed()
    assert fixed.process_result_value(fixed.process_bind_param(value, None), None) == value


def test_a_second_row_with_the_same_key_is_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(insert(db.cash_events), cash("one"))
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(insert(db.cash_events), cash("one"))


def test_writers_wait_for_each_other(engine: Engine) -> None:
    def write(start: int) -> None:
        for i in range(25):
            with engine.begin() as connection:
                connection.execute(select(db.cash_events)).all()
                connection.execute(insert(db.cash_events), cash(f"{start + i}"))

    threads = [Thread(target=write, args=[100 * i]) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    with engine.connect() as connection:
        assert len(connection.execute(select(db.cash_events)).all()) == 100


def test_a_dead_server_is_one_line_without_the_password() -> None:
    with pytest.raises(DependencyError, match="does not answer") as caught:
        db.migrate(db.connect("postgresql://me:hunter2@127.0.0.1:1/x"))
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_schema_of_a_later_version_is_one_line(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DependencyError, match=r"does not know.*9999"):
        db.migrate(engine)


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.db").write_bytes(b"no database" * 100)
    with pytest.raises(DependencyError, match=r"cannot be read: .*not a database"):
        db.migrate(db.connect(f"sqlite:///{tmp_path / 't.db'}"))


def test_a_step_to_the_present_schema_that_fails_is_told_as_one(empty_url: str) -> None:
    engine = db.connect(empty_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE fills (execution_id INTEGER)")
    with pytest.raises(DependencyError, match=r"could not be brought to the present schema: .*fills"):
        db.migrate(engine)
    engine.dispose()


def test_a_connection_that_the_server_has_ended_meanwhile_is_replaced(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "PING_AFTER_S", 0.0)
    engine, other = db.connect(postgres_url), db.connect(postgres_url)
    with engine.connect() as connection:
        mine = connection.exec_driver_sql("select pg_backend_pid()").scalar_one()
    with other.begin() as connection:
        connection.exec_driver_sql(f"select pg_terminate_backend({mine})")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("select pg_backend_pid()").scalar_one() != mine
    engine.dispose()
    other.dispose()
