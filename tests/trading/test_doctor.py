"The doctor finds what is wrong, changes nothing, and never hangs or raises."

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import insert, text, update

from tradenb.cli.main import run
from tradenb.core import db
from tradenb.core.clock import SystemClock
from tradenb.core.db import connect, default_url, migrate
from tradenb.core.notify import Kind, Message, Notifier
from tradenb.core.settings import Settings, load
from tradenb.execution.switch import Level, Switch
from tradenb.trading import doctor
from tradenb.trading.doctor import CHECKS, Finding, State, examine
from tradenb.trading.leases import Owner, this_process

Make = Callable[..., Settings]


def seen(settings: Settings, *parts: str, **more: float) -> list[Finding]:
    return list(examine(settings, parts, **{"timeout_s": 120} | more))


def states(found: Iterable[Finding]) -> list[str]:
    return [finding.state.value for finding in found]


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in folder.rglob("*")}


def test_a_fresh_machine_is_not_ill_and_stays_untouched(make_settings: Make, tmp_path: Path) -> None:
    settings = make_settings()
    found = seen(settings, *(set(CHECKS) - {"environment", "lake"}))
    assert [f for f in found if f.state is State.ILL and f.part != "disk"] == []
    assert {f.part for f in found if f.state is State.NEW} >= {"database", "model", "services", "broker", "scheduler"}
    assert files(tmp_path) == {}


def test_a_lake_that_is_not_there_is_new(make_settings: Make, tmp_path: Path) -> None:
    assert states(seen(make_settings(), "lake")) == ["new"]
    assert not (tmp_path / "data" / "lake").exists()


def test_the_environment_of_this_project_is_as_locked(make_settings: Make) -> None:
    found = seen(make_settings(), "environment")
    assert [f for f in found if f.state is State.ILL] == []


def test_a_package_that_departs_from_the_lock_is_named(make_settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    true = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "0.0.1" if name == "polars" else true(name))
    ill = seen(make_settings(), "environment")[0]
    assert (ill.state, ill.mend) == (State.ILL, "make install")
    assert "polars 0.0.1 instead of" in ill.what


def test_a_database_of_this_schema_is_well_on_both(make_settings: Make, database_url: str) -> None:
    migrate(connect(database_url)).dispose()
    settings = load({"core.root": make_settings().root}, env={"TRADENB_CORE__DATABASE_URL": database_url})
    assert states(seen(settings, "database", "desk")) == ["well", "well"]
    assert all(f.state is State.WELL for f in seen(settings, "clock"))


def test_an_older_and_a_newer_schema_are_told_apart(make_settings: Make) -> None:
    settings = make_settings()
    engine = migrate(connect(default_url(settings.root)))
    for revision, state in (("0001", State.WARNING), ("9999", State.ILL)):
        known = doctor.schema(engine)[1] or ""
        with engine.begin() as connection:
            first = revision if state is State.ILL else oldest()
            connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": first})
        found = seen(settings, "database")[0]
        assert (found.state, known in found.what or state is State.ILL) == (state, True)
    engine.dispose()


def oldest() -> str:
    "The first migration's name."
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(db._migrations()))
    return ScriptDirectory.from_config(config).get_bases()[0]


def test_a_damaged_file_is_found(make_settings: Make) -> None:
    settings = make_settings()
    engine = migrate(connect(default_url(settings.root)))
    engine.dispose()
    file = settings.root / "state" / "tradenb.db"
    sqlite3.connect(file).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with file.open("r+b") as raw:
        size = raw.seek(0, os.SEEK_END)
        raw.seek(size // 2)
        raw.write(os.urandom(min(16_384, size // 4)))
    found = seen(settings, "database")
    assert any(f.state is State.ILL for f in found)


def test_a_password_is_never_said(make_settings: Make) -> None:
    for url in ("postgresql://me:hunter2@127.0.0.1:1/x", "postgresql://me:hunter2@nowhere.invalid/x"):
        settings = load({"core.root": make_settings().root}, env={"TRADENB_CORE__DATABASE_URL": url})
        found = seen(settings, "database", "desk", "clock", "notifications", timeout_s=15)
        assert State.ILL in {f.state for f in found}
        assert "hunter2" not in repr(found)


def test_keys_that_others_can_read_are_found(
    make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ini, env = tmp_path / "settings.ini", tmp_path / ".env"
    ini.write_text("")
    env.write_text("TRADENB_SERVICES__API_KEY=s3cret\n")
    monkeypatch.setattr(doctor, "find_file", lambda: ini)
    for mode, expected in ((0o600, ["well"]), (0o644, ["well", "warning"])):
        env.chmod(mode)
        assert states(seen(make_settings(), "settings")) == expected


class Service(BaseHTTPRequestHandler):
    answer, version = 200, "0.0.0"

    def do_GET(self) -> None:
        self.send_response(self.answer)
        self.end_headers()
        self.wfile.write(f'{{"service": "x", "status": "ok", "version": "{self.version}"}}'.encode())

    def log_message(self, *_: object) -> None:
        pass


def test_services_that_are_named_must_answer_and_be_of_this_version(make_settings: Make) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    settings = make_settings(**{"services.signals_url": url, "services.execution_url": "http://127.0.0.1:1"})
    assert states(seen(settings, "services")) == ["warning", "ill"]
    scheduled = make_settings(**{"prefect.api_url": f"{url}/api"})
    assert states(seen(scheduled, "scheduler")) == ["well"]
    server.shutdown()
    server.server_close()
    assert states(seen(scheduled, "scheduler")) == ["ill"]


def test_a_broker_without_keys_is_ill(make_settings: Make) -> None:
    found = seen(make_settings(**{"execution.broker": "paper"}), "broker")[0]
    assert (found.state, "BROKER_KEY_ID" in found.mend) == (State.ILL, True)


def test_clocks_that_disagree_are_found() -> None:
    now = SystemClock().now()
    assert states(doctor.skew("the broker", now - timedelta(seconds=60), now)) == ["ill"]
    assert states(doctor.skew("the broker", now + timedelta(seconds=1), now)) == []


def me() -> Owner:
    owner = Owner.parse(this_process())
    assert owner is not None
    return owner


def test_what_goes_on_is_said(make_settings: Make) -> None:
    settings, clock = make_settings(), SystemClock()
    engine = migrate(connect(default_url(settings.root)))
    Switch(engine, clock).engage("symbol:KO", Level.BLOCK, "ann", "news pending")
    row = dict(run_id="2024-01-08-alpha158_ls", trade_date=clock.now().date(), strategy="alpha158_ls", status="running")
    row |= dict(settings_hash="x", code_version="x", seed=7, trace_id="a" * 32, capital=1, started_at=clock.now())
    order = dict(
        client_order_id="a" * 32, strategy="alpha158_ls", trade_date=clock.now().date(), symbol="KO", side="buy"
    )
    order |= dict(type="market", time_in_force="day", sequence=0, status="unknown", filled_qty=0, dry_run=False)
    order |= dict(created_at=clock.now(), updated_at=clock.now())
    with engine.begin() as connection:
        connection.execute(insert(db.runs), row)
        connection.execute(insert(db.orders), order)
    found = seen(settings, "desk")
    assert states(found) == ["warning"] * 3
    assert "news pending" in found[0].what
    assert found[2].mend == f"tradenb paper-run --date {row['trade_date']}"
    with engine.begin() as connection:
        held = dict(lease_owner="desk:17", lease_until=clock.now() + timedelta(minutes=1))
        connection.execute(update(db.runs).values(held))
    assert states(seen(settings, "desk")) == ["warning", "warning", "well"]
    with engine.begin() as connection:  # a process of this machine that is no more: its lease does not count
        connection.execute(update(db.runs).values(lease_owner=str(replace(me(), birth=me().birth - 1))))
    assert "nobody works on it" in seen(settings, "desk")[2].what
    with engine.begin() as connection:
        connection.execute(update(db.runs).values(status="failed", error="the data is stale"))
    assert "failed: the data is stale" in seen(settings, "desk")[2].what
    engine.dispose()


def test_messages_that_reached_nobody_are_said(make_settings: Make) -> None:
    settings = load({"core.root": make_settings().root}, env={"TRADENB_NOTIFY__URLS": "json://127.0.0.1:1/"})
    migrate(connect(default_url(settings.root))).dispose()
    assert states(seen(settings, "notifications")) == ["well"]
    sender = Notifier(default_url(settings.root), ("json://127.0.0.1:1/",), timeout_s=5)
    assert sender.send(Message(Kind.FAILURE, "x", "y", "k")) == "failed"
    found = seen(settings, "notifications")
    assert states(found) == ["well", "warning"]
    assert "1 message of" in found[1].what


def test_a_part_that_hangs_or_breaks_is_a_finding(make_settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def hanging(_: Settings) -> list[Finding]:
        gate.wait(30)
        return []

    def breaking(_: Settings) -> list[Finding]:
        raise MemoryError("no more of it")

    monkeypatch.setitem(CHECKS, "lake", hanging)
    monkeypatch.setitem(CHECKS, "model", breaking)
    found = seen(make_settings(), "lake", "model", "calendar", timeout_s=0.5)
    assert states(found) == ["ill", "ill", "well"]
    assert ("no answer within 0.5 s" in found[0].what, "no more of it" in found[1].what) == (True, True)
    gate.set()


def test_the_exit_code_tells_whether_something_is_ill(
    make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("TRADENB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRADENB_CORE__ROOT", str(make_settings().root))
    assert run(["doctor", "--parts", "calendar,database", "--output", str(tmp_path / "found.json")]) == 0
    assert "all well" in capsys.readouterr().out
    assert '"state": "new"' in (tmp_path / "found.json").read_text()
    assert run(["doctor", "--parts", "services", "--set", "services.signals_url=http://127.0.0.1:1"]) == 1
    assert "1 ill" in capsys.readouterr().out
    assert run(["doctor", "--parts", "heart"]) == 3


def test_notify_sends_a_test_and_shows_what_was_told(
    make_settings: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("TRADENB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRADENB_CORE__ROOT", str(make_settings().root))
    monkeypatch.setenv("COLUMNS", "240")
    assert run(["notify"]) == 1
    assert "nobody is told" in capsys.readouterr().err
    monkeypatch.setenv("TRADENB_NOTIFY__URLS", "json://127.0.0.1:1/")
    assert run(["notify"]) == 1
    assert run(["notify", "--last", "5"]) == 0
    assert "Connection error" in capsys.readouterr().out
