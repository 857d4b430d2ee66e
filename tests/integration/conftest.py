"A small, fast market, one finished first day that tests copy, and the command line, in this process or in one of its own."

import fcntl
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import Table, select

import tests.patience  # noqa: F401  (whoever asks a server waits)
from tests.environment import become, put_back
from tradenb.cli.main import run
from tradenb.core import db

PROJECT = Path(__file__).resolve().parents[2]
SMALL = {
    "demo.symbols": 40,
    "demo.years": 2,
    "demo.bad_rows": 0,
    "training.train_sessions": 150,
    "training.valid_sessions": 30,
    "training.test_sessions": 60,
    "training.rounds": 30,
    "training.threads": 1,
    "portfolio.top_n": 5,
    "portfolio.bottom_n": 5,
    "execution.backoff_s": 0.01,
}
FIRST = date(2020, 1, 3)


@dataclass
class Answer:
    "What a command said, and how it ended."

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        "The lines of the error stream."
        return self.err.strip().splitlines()


@dataclass
class Desk:
    "A data root and the command line on it."

    root: Path
    settings: dict[str, object] = field(default_factory=lambda: dict(SMALL))
    env: dict[str, str] = field(default_factory=dict)

    def arguments(self, *arguments: str, **more: object) -> list[str]:
        values = {"core.root": self.root} | self.settings | more
        return [*arguments, *(part for name, value in values.items() for part in ("--set", f"{name}={value}"))]

    def tradenb(self, *arguments: str, **more: object) -> Answer:
        "Run a command in this process."
        out, err = io.StringIO(), io.StringIO()
        with environment(self.env), redirect_stdout(out), redirect_stderr(err):
            code = run(self.arguments(*arguments, **more))
        return Answer(code, out.getvalue(), err.getvalue())

    def day(self, day: date | None = None, **more: object) -> Answer:
        "Run a day, which must succeed."
        answer = self.tradenb("paper-run", *(["--date", str(day)] if day else []), **more)
        assert answer.code == 0, answer.err
        return answer

    def start(self, *arguments: str, **more: object) -> subprocess.Popen[str]:
        "A command in a process of its own; its output goes to files below the root."
        self.root.parent.mkdir(parents=True, exist_ok=True)
        with (self.root.parent / "out.txt").open("w") as out, (self.root.parent / "err.txt").open("w") as err:
            command = [Path(sys.executable).with_name("tradenb"), *self.arguments(*arguments, **more)]
            return subprocess.Popen(command, cwd=PROJECT, env=clean_environment() | self.env, stdout=out, stderr=err)

    def finish(self, process: "subprocess.Popen[str]") -> Answer:
        "Wait for a process."
        process.wait(300)
        texts = ((self.root.parent / name).read_text() for name in ("out.txt", "err.txt"))
        return Answer(process.returncode, *texts)

    def rows(self, table: Table, **where: object) -> list[dict[str, Any]]:
        "The rows of a table of the state database."
        engine = db.connect(self.env.get("TRADENB_CORE__DATABASE_URL") or db.default_url(self.root))
        with engine.connect() as connection:
            rows = [dict(row._mapping) for row in connection.execute(select(table).filter_by(**where))]
        engine.dispose()
        return rows

    def counts(self) -> dict[str, int]:
        "How many rows each table of the state database has."
        return {name: len(self.rows(table)) for name, table in db.metadata.tables.items()}

    def at_exchange(self, table: str) -> list[dict[str, Any]]:
        "The bodies of `orders` or `activities` in the exchange's own file, in order."
        connection = sqlite3.connect(self.root / "state" / "exchange.db")
        by = "sequence" if table == "orders" else "number"
        rows = [json.loads(body) for (body,) in connection.execute(f"select body from {table} order by {by}")]
        connection.close()
        return rows

    def status(self, day: date) -> str:
        "The status of a day's run."
        (run_row,) = self.rows(db.runs, trade_date=day)
        return str(run_row["status"])

    def plan(self, day: date) -> list[str]:
        "The ids of the orders planned for a day."
        rows = self.rows(db.run_signals, run_id=f"{day}-alpha158_ls")
        return sorted(row["client_order_id"] for row in rows if row["client_order_id"])

    def check_books(self) -> None:
        "Every planned order is at the exchange once, every fill is booked once, positions and cash are the exchange's."
        planned = [r["client_order_id"] for r in self.rows(db.run_signals) if r["client_order_id"]]
        assert sorted(planned) == sorted(order["client_order_id"] for order in self.at_exchange("orders"))
        assert sorted(planned) == sorted(order["client_order_id"] for order in self.rows(db.orders))
        events = self.at_exchange("activities")
        theirs = Counter((e["execution_id"], Decimal(e["qty"])) for e in events if e["kind"] == "FILL")
        signed = {"buy": 1, "sell": -1}
        assert Counter((f["execution_id"], signed[f["side"]] * f["qty"]) for f in self.rows(db.fills)) == theirs
        held = {row["symbol"]: row["qty"] for row in self.rows(db.positions) if row["qty"]}
        assert held == fold((e["symbol"], e["qty"]) for e in events if e["symbol"])
        ours = [(f["side"] == "sell" and f["qty"] * f["price"]) or -f["qty"] * f["price"] for f in self.rows(db.fills)]
        ours += [-f["fee"] for f in self.rows(db.fills)] + [e["amount"] for e in self.rows(db.cash_events)]
        assert abs(sum(ours) - sum(Decimal(e["amount"]) for e in events)) < Decimal("0.01")


def fold(changes: Iterator[tuple[str, str]]) -> dict[str, Decimal]:
    "Shares by symbol after all changes, without those that are gone."
    held: Counter[str] = Counter()
    for symbol, qty in changes:
        held[symbol] += Decimal(qty)  # type: ignore[assignment]
    return {symbol: qty for symbol, qty in held.items() if qty}  # type: ignore[misc]


def clean_environment() -> dict[str, str]:
    "The environment without what an earlier run in this process left behind."
    return {name: value for name, value in os.environ.items() if not name.startswith(("TRADENB_", "PREFECT_"))}


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    "Within the block the environment has `values`, and no switch of a test, which is no setting; afterwards it is what it was."
    with put_back() as before:
        switches = {name for name in before if name.startswith("TRADENB_") and "__" not in name}
        become({name: value for name, value in before.items() if name not in switches} | values)
        yield


@contextmanager
def folder_of_all_workers(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    "A folder that the workers of a session share; one of them at a time is within the block."
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="session")
def first_day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A root after one finished day, made once for all workers; never change it."
    with folder_of_all_workers(tmp_path_factory, "first_day") as folder:
        if not (folder / "done").exists():
            shutil.rmtree(folder / "data", ignore_errors=True)
            Desk(folder / "data").day(FIRST)
            (folder / "done").touch()
    return folder / "data"


@pytest.fixture(scope="session")
def make_desk() -> type[Desk]:
    "`make_desk(root, settings)`."
    return Desk


@pytest.fixture
def desk(first_day: Path, tmp_path: Path) -> Desk:
    "A copy of the root after the first day."
    shutil.copytree(first_day, tmp_path / "data")
    return Desk(tmp_path / "data")


@pytest.fixture
def fresh(tmp_path: Path) -> Desk:
    "An empty root."
    return Desk(tmp_path / "data")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    "No test leaves a process or a listening port of ours behind."
    before, others = listening(), ours()
    yield
    strays = ours() - others
    for child in strays:
        child.send_signal(signal.SIGKILL)
    assert not strays
    assert listening() <= before


def ours() -> set[psutil.Process]:
    "The processes of ours below this one; one that has ended is none."
    found = set()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found |= {child} if "tradenb" in " ".join(child.cmdline()) else set()
    return found


def listening() -> set[int]:
    "The TCP ports that this process listens on."
    return {c.laddr.port for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN}
