"A run that is killed at any point is finished by the same command: no order twice, none lost."

import contextlib
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import httpx
import pytest

from tradenb.core import db
from tradenb.core.clock import sleep

SECOND, THIRD, FOURTH = date(2020, 1, 6), date(2020, 1, 7), date(2020, 1, 8)
WIDE = {"portfolio.top_n": 15, "portfolio.bottom_n": 15}
KEYS = {
    "TRADENB_SERVICES__API_KEY": "the-key-of-the-services",
    "TRADENB_EXECUTION__BROKER_KEY_ID": "PKTEST",
    "TRADENB_EXECUTION__BROKER_SECRET": "the-secret-of-the-broker",
}


def ask(file: Path, query: str) -> int:
    "A count from a database that another process is writing; 0 while there is none."
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as c:
        return int(c.execute(query).fetchone()[0])
    return 0


def orders(root: Path, day: date, *statuses: str) -> int:
    where = f" and status in ({', '.join(map(repr, statuses))})" if statuses else ""
    return ask(root / "state" / "tradenb.db", f"select count(*) from orders where trade_date = '{day}'{where}")


def planned(root: Path, day: date) -> int:
    query = f"select count(client_order_id) from run_signals where run_id like '{day}%'"
    return ask(root / "state" / "tradenb.db", query)


def accepted(root: Path, day: date) -> int:
    query = f"select count(*) from orders where trade_date = '{day}' and status <> 'pending_new'"
    return ask(root / "state" / "tradenb.db", query)


def stage(root: Path, day: date, name: str) -> int:
    query = f"select count(*) from run_stages where run_id like '{day}%' and stage = '{name}'"
    return ask(root / "state" / "tradenb.db", query)


def fills_there(root: Path, day: date) -> int:
    query = f"""select count(*) from activities where body like '%"kind":"FILL"%"date":"{day}"%'"""
    return ask(root / "state" / "exchange.db", query)


def fills_here(root: Path, day: date) -> int:
    return ask(root / "state" / "tradenb.db", f"select count(*) from fills where trade_date = '{day}'")


MOMENTS: dict[str, Callable[[Path, date], bool]] = {
    "the first order is stored": lambda root, day: orders(root, day) >= 1,
    "the first order is accepted": lambda root, day: accepted(root, day) >= 1,
    "some orders are accepted": lambda root, day: accepted(root, day) >= 8,
    "all orders are accepted": lambda root, day: 0 < planned(root, day) <= accepted(root, day),
    "the session has closed": lambda root, day: fills_there(root, day) > 0,
    "a fill is booked": lambda root, day: fills_here(root, day) >= 1,
}
USUAL = "some orders are accepted"
moment = lambda name: pytest.param(name, marks=() if name == USUAL else pytest.mark.long)
INSIDE = [moment(name) for name in MOMENTS if name != "the first order is accepted"]
ELSEWHERE = ["the first order is accepted", "the session has closed"]


def strike(process: subprocess.Popen[str], reached: Callable[[], bool], number: int = signal.SIGKILL) -> None:
    "Send the signal at the moment; the process must still have been at it."
    while not reached():
        assert process.poll() is None, "it ended before the moment came"
        sleep(0.01)
    process.send_signal(number)


@pytest.mark.parametrize("moment", INSIDE)
def test_killed_while_trading_with_the_exchange_inside(desk, moment):
    process = desk.start("paper-run", "--date", str(SECOND), **WIDE)
    strike(process, lambda: MOMENTS[moment](desk.root, SECOND))
    assert desk.finish(process).code == -signal.SIGKILL
    plan = desk.plan(SECOND)
    desk.day(SECOND, **WIDE)
    assert not plan or plan == desk.plan(SECOND)
    assert desk.status(SECOND) == "completed"
    assert len(desk.plan(SECOND)) > 10
    desk.check_books()
    assert desk.day(SECOND, **WIDE).out.count("nothing was changed") == 1


@contextlib.contextmanager
def exchange_of(desk) -> Iterator[str]:
    "The exchange of a root, served by a process of its own."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    desk.env |= KEYS
    process = desk.start("serve", "exchange", "--port", str(port), "--date", str(FOURTH))
    url = f"http://127.0.0.1:{port}"
    answers = False
    while not answers:
        assert process.poll() is None, desk.finish(process).err
        with contextlib.suppress(httpx.TransportError):
            answers = httpx.get(url).is_success
        sleep(0.1)
    yield url
    process.send_signal(signal.SIGTERM)
    process.wait(60)


@pytest.fixture
def exchange(desk) -> Iterator[str]:
    with exchange_of(desk) as url:
        yield url


@pytest.mark.long
def test_a_new_exchange_that_was_served_first_can_be_traded_on(fresh):
    with exchange_of(fresh) as url:
        fresh.day(**{"services.exchange_url": url})
    fresh.check_books()
    fresh.day()
    fresh.check_books()


@pytest.mark.long
@pytest.mark.parametrize("moment", ELSEWHERE)
def test_killed_while_trading_with_an_exchange_that_lives_on(desk, exchange, moment):
    where = {"services.exchange_url": exchange}
    process = desk.start("paper-run", "--date", str(SECOND), **WIDE, **where)
    strike(process, lambda: MOMENTS[moment](desk.root, SECOND))
    assert desk.finish(process).code == -signal.SIGKILL
    desk.day(SECOND, **WIDE, **where)
    assert desk.status(SECOND) == "completed"
    desk.check_books()


@pytest.mark.long
@pytest.mark.parametrize("name", ["etl", "train"])
def test_killed_before_anything_is_traded(desk, name):
    often = {"training.retrain_sessions": 1}
    process = desk.start("paper-run", "--date", str(SECOND), **often)
    strike(process, lambda: stage(desk.root, SECOND, name) > 0)
    desk.finish(process)
    desk.day(SECOND, **often)
    assert desk.status(SECOND) == "completed"
    desk.check_books()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_in_order_and_goes_on_later(desk, number):
    process = desk.start("paper-run", "--date", str(SECOND), **WIDE)
    strike(process, lambda: MOMENTS["the first order is accepted"](desk.root, SECOND), number)
    answer = desk.finish(process)
    assert answer.code in ((130,) if number == signal.SIGINT else (130, 143, -signal.SIGTERM)), answer
    assert "Traceback" not in answer.err
    desk.day(SECOND, **WIDE)
    assert desk.status(SECOND) == "completed"
    desk.check_books()


@pytest.mark.long
def test_a_backfill_killed_in_the_middle_and_repeated_equals_single_days(desk, tmp_path):
    other = type(desk)(tmp_path / "singles" / "data")
    shutil.copytree(desk.root, other.root)
    process = desk.start("backfill", "--from", str(SECOND), "--to", str(THIRD))
    strike(process, lambda: accepted(desk.root, THIRD) >= 1)
    desk.finish(process)
    answer = desk.tradenb("backfill", "--from", str(SECOND), "--to", str(THIRD))
    assert answer.code == 0, answer.err
    for day in (SECOND, THIRD):
        other.day(day)
    desk.check_books()
    for table, names in {
        db.orders: ("client_order_id", "status", "filled_qty", "filled_avg_price"),
        db.fills: ("symbol", "side", "qty", "price", "trade_date"),
        db.account_snapshots: ("trade_date", "moment", "cash", "equity", "realised_pnl", "dividends"),
        db.run_signals: ("run_id", "symbol", "leg", "predicted_return", "target_qty"),
    }.items():
        mine, theirs = (sorted(tuple(map(str, (r[n] for n in names))) for r in d.rows(table)) for d in (desk, other))
        assert mine == theirs, table.name
