"A full disk and a dead database are told as what they are, whoever met them, and what a run must write down waits for a database that is back soon."

import errno
import threading
from datetime import date
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from tests.integration.test_restarts import administration, connected, cut
from tradenb.core.clock import SystemClock
from tradenb.core.db import connect
from tradenb.core.errors import BrokerUnavailable, DependencyError, LakeError, QualityError
from tradenb.trading import records
from tradenb.trading.troubles import in_our_words, patient, told_as

SPEC = records.RunSpec("2024-01-08-s", date(2024, 1, 8), "s", "5e77", 7, Decimal(1), (), "a" * 32)


def test_a_full_disk_behind_any_library_is_a_dependency():
    try:
        try:
            pl.DataFrame({"a": [1]}).write_parquet("/dev/full")
        except Exception as error:
            raise LakeError("the table bars was not written") from error
    except LakeError as error:
        ours = in_our_words(error)
    assert isinstance(ours, DependencyError) and "the disk is full" in str(ours)
    told = told_as("OSError", "[Errno 28] No space left on device")
    assert told is not None and told.exit_code == 1
    quota = in_our_words(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert quota is not None and quota.exit_code == 1


def test_a_database_that_cannot_be_opened_is_a_dependency(tmp_path: Path):
    with pytest.raises(OperationalError) as caught, connect(f"sqlite:///{tmp_path}").connect():
        pass
    assert "the database does not answer" in str(in_our_words(caught.value))


@pytest.mark.parametrize(
    "error", [QualityError("3 of 8 rows"), KeyError("x"), BrokerUnavailable("no space left on device")]
)
def test_what_is_no_trouble_of_the_machine_or_says_so_already_stays_what_it_is(error: Exception):
    assert in_our_words(error) is None


def test_a_run_notes_how_a_stage_ended_although_the_database_was_away_when_it_did(postgres_url: str):
    with connected(postgres_url) as engine:
        records.begin(engine, SPEC, SystemClock())
        records.begin_stage(engine, SPEC.run_id, "etl", SystemClock().now())
        let_in(engine, False)
        opened = threading.Event()
        back = threading.Timer(1.0, lambda: (opened.set(), let_in(engine, True)))
        back.start()
        records.end_stage(engine, SPEC.run_id, "etl", SystemClock().now(), 3.0, error="no bars")
        assert opened.is_set()
        back.join()
        records.end(engine, SPEC.run_id, records.FAILED, SystemClock().now(), "stage etl: no bars")
        (row,) = records.stages(engine, SPEC.run_id).values()
        assert (row.status, row.error) == (records.FAILED, "no bars")
        assert records.require(engine, SPEC.run_id).error == "stage etl: no bars"


def let_in(engine: Engine, anybody: bool) -> None:
    "Open the database to all, or shut it and cut whoever is connected."
    with administration(engine).connect() as connection:
        connection.execute(text(f"ALTER DATABASE {engine.url.database} ALLOW_CONNECTIONS {anybody}"))
    if not anybody:
        cut(engine)


def test_nobody_waits_for_a_database_whose_disk_is_full():
    tried = []

    @patient
    def write() -> None:
        tried.append(1)
        raise OperationalError("insert", None, Exception("database or disk is full"))

    with pytest.raises(DependencyError, match="the disk is full"):
        write()
    assert tried == [1]
