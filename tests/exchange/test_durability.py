"What was acknowledged is there after kill -9."

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from tradenb.core.clock import new_york, sleep
from tradenb.exchange import venue as floor
from tradenb.exchange.accounts import fold
from tradenb.exchange.rules import NewOrder, Reject
from tradenb.exchange.service import create_app
from tradenb.exchange.store import Store, StoreBroken, Write

KEYS = ("PKTEST", "secret-of-the-test")
MONDAY, TUESDAY = date(2024, 3, 4), date(2024, 3, 5)
SERVER = """
import sys
from pathlib import Path
from tradenb.core.clock import new_york
from tradenb.core.web import Server
from tradenb.exchange.service import create_app
from datetime import date
folder = Path(sys.argv[1])
app = create_app(folder / "feed", folder / "exchange.db", key_id="PKTEST", secret_key="secret-of-the-test", start=new_york(date(2024, 3, 4), 9))
print(Server(app).start().url, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path: Path):
    "Run the exchange in a process of its own."
    running = []

    def make() -> tuple[subprocess.Popen, httpx.Client]:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        headers = {"APCA-API-KEY-ID": KEYS[0], "APCA-API-SECRET-KEY": KEYS[1]}
        return process, httpx.Client(base_url=process.stdout.readline().strip(), headers=headers)

    yield make
    for process in running:
        process.kill()
        process.communicate()


def test_acknowledged_orders_survive_kill_nine_and_none_appears_twice(start, feed):
    process, http = start()
    acknowledged = []

    def send():
        try:
            for i in range(10_000):
                body = {
                    "symbol": "ACME",
                    "side": "buy",
                    "type": "market",
                    "time_in_force": "cls",
                    "qty": 1,
                    "client_order_id": f"k{i}",
                }
                acknowledged.append(http.post("/v2/orders", json=body).raise_for_status().json()["id"])
        except httpx.HTTPError:
            return

    sender = threading.Thread(target=send)
    sender.start()
    while len(acknowledged) < 25 and sender.is_alive():
        sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    sender.join()
    _, http = start()
    found = [o["id"] for o in http.get("/v2/orders", params={"status": "all", "limit": 500, "direction": "asc"}).json()]
    assert found[: len(acknowledged)] == acknowledged
    assert len(found) - len(acknowledged) in (0, 1)
    assert len(set(found)) == len(found)
    again = http.post(
        "/v2/orders",
        json={
            "symbol": "ACME",
            "side": "buy",
            "type": "market",
            "time_in_force": "cls",
            "qty": 1,
            "client_order_id": "k0",
        },
    )
    assert (again.status_code, again.json()["code"]) == (422, 40010001)


def test_a_step_that_is_killed_halfway_is_finished_after_the_restart(start, feed, tmp_path):
    process, http = start()
    for i in range(40):
        http.post(
            "/v2/orders",
            json={
                "symbol": "ACME",
                "side": "buy",
                "type": "market",
                "time_in_force": "opg",
                "qty": 1,
                "client_order_id": f"k{i}",
            },
        )
    threading.Timer(0.004, os.kill, (process.pid, signal.SIGKILL)).start()
    with contextlib.suppress(httpx.HTTPError):
        while True:
            http.post("/admin/clock", json={"to": new_york(TUESDAY, 18).isoformat()})
    _, http = start()
    assert http.post("/admin/clock", json={"to": new_york(TUESDAY, 18).isoformat()}).status_code == 200
    fills = http.get("/v2/account/activities/FILL").json()
    assert len({f["execution_id"] for f in fills}) == len(fills) == 40
    assert http.get("/v2/positions/ACME").json()["qty"] == "40"
    assert len(http.get("/v2/account/portfolio/history").json()["equity"]) == 2
    assert Store(tmp_path / "exchange.db").load().now == new_york(TUESDAY, 18)


def test_an_app_opens_the_state_that_another_left(open_book, tmp_path):
    open_book(start=new_york(TUESDAY, 9))
    app = create_app(tmp_path / "feed", tmp_path / "exchange.db", key_id="a", secret_key="b", start=new_york(MONDAY, 9))
    assert app.state.venue.now == new_york(TUESDAY, 9)


# Kills at any point


LOOP = """
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path
from threading import Thread
from tradenb.core.clock import new_york
from tradenb.exchange import venue as floor
from tradenb.exchange.feed import Feed
from tradenb.exchange.matching import FillModel
from tradenb.exchange.rules import NewOrder, Reject
from tradenb.exchange.store import Store
folder = Path(sys.argv[1])
venue = floor.Venue(Feed(folder / "feed"), Store(folder / "exchange.db"), FillModel(), new_york(date(2024, 3, 4), 9))
for name in ("one", "two", "three"):
    if name not in venue.books:
        floor.open_account(venue, name, Decimal(1_000_000), Decimal(4))

def trade(name):
    book = venue.books[name]
    while True:
        new = NewOrder(symbol="ACME", side="buy", type="market", time_in_force="day", qty=1)
        try:
            order = floor.submit(book, new)
        except Reject:
            continue
        sys.stdout.write(f"{name} {order.id}\\n")
        sys.stdout.flush()
        if len(book.orders) % 7 == 0:
            floor.cancel(book, order.id) if venue.books[name].orders[order.id].is_open else None

for name in venue.books:
    Thread(target=trade, args=(name,), daemon=True).start()
for day in (4, 5, 6):
    for hour in (9, 11, 17):
        to = new_york(date(2024, 3, day), hour, 0)
        if to > venue.now:
            floor.step(venue, to)
sys.stdin.read()
"""
KILLS = int(os.environ.get("TRADENB_TEST_EXCHANGE_KILLS", "1"))


def test_whenever_it_is_killed_all_accounts_are_whole(tmp_path, feed):
    "Three accounts trade from their own threads while days pass; the process is killed again and again."
    acknowledged: set[tuple[str, str]] = set()
    for n in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        heard = [process.stdout.readline() for _ in range(5 + 17 * n)]
        os.kill(process.pid, signal.SIGKILL)
        lines = [*heard, *process.communicate()[0].splitlines(keepends=True)]
        acknowledged |= {tuple(line.split()) for line in lines if line.endswith("\n") and len(line.split()) == 2}
        stored = Store(tmp_path / "exchange.db").load()
        orders = [(name, o) for name, records in stored.accounts.items() for o in records.orders]
        assert acknowledged <= {(name, o.id) for name, o in orders}
        assert len({o.id for _, o in orders}) == len(orders)
        for records in stored.accounts.values():
            whole(records)
        assert len({tuple(records.closes) for records in stored.accounts.values()}) == 1
    assert stored.now is not None
    assert len(acknowledged) >= sum(5 + 17 * n for n in range(KILLS))


def whole(records) -> None:
    "What the fills say is what the orders say, and every order's sequence is its own."
    fills: dict[str, int] = {}
    for line in records.activities:
        if line.kind == "FILL":
            fills[line.order_id] = fills.get(line.order_id, 0) + line.qty
    assert {o.id: o.filled_qty for o in records.orders if o.filled_qty} == fills
    assert [o.sequence for o in records.orders] == list(range(1, len(records.orders) + 1))
    assert fold(records.activities).qty("ACME") == sum(fills.values())


# Files of former times


OLD = """
create table clock (one integer primary key check (one = 1), now text not null);
create table orders (id text primary key, client_order_id text not null unique, sequence integer not null, body text not null);
create table activities (number integer primary key autoincrement, id text not null unique, body text not null);
create table closes (date text primary key, equity text not null);
"""
OLD_ORDER = {
    "id": "0b0d6c1f-4f3e-5c1b-8a51-111111111111", "client_order_id": "a", "sequence": 1, "symbol": "ACME", "side": "buy",
    "type": "limit", "time_in_force": "gtc", "submitted_at": "2024-03-04T14:00:00Z", "updated_at": "2024-03-04T14:30:00Z",
    "qty": "10", "notional": None, "limit_price": "50", "stop_price": None, "status": "new", "filled_qty": "0",
    "filled_avg_price": None, "executions": 0, "triggered": False, "filled_at": None, "expired_at": None,
    "canceled_at": None, "replaced_at": None, "replaced_by": None, "replaces": None,
}  # fmt: skip
OLD_ACTIVITY = {
    "id": "20240304140000000::x", "kind": "CSD", "at": "2024-03-04T14:00:00Z", "date": "2024-03-04", "amount": "5000",
    "symbol": None, "qty": "0", "price": None, "ratio": None, "order_id": None, "execution_id": None, "cum_qty": None,
    "leaves_qty": None, "order_status": None, "entitled": None, "description": "initial deposit",
}  # fmt: skip


def old_file(path: Path) -> sqlite3.Connection:
    "The exchange's file as it was when it held one account."
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(OLD)
    db.execute("insert into clock values (1, '2024-03-04T22:00:00+00:00')")
    db.execute("insert into orders values (?, 'a', 1, ?)", (OLD_ORDER["id"], json.dumps(OLD_ORDER)))
    db.execute("insert into activities (id, body) values (?, ?)", (OLD_ACTIVITY["id"], json.dumps(OLD_ACTIVITY)))
    db.execute("insert into closes values ('2024-03-04', '5000')")
    return db


def test_a_file_of_one_account_is_opened_as_the_account_paper(tmp_path, feed):
    old_file(tmp_path / "exchange.db").close()
    for _ in range(2):
        app = create_app(tmp_path / "feed", tmp_path / "exchange.db", cash=7, key_id="a", secret_key="b", multiplier=2)
        venue = app.state.venue
        book = venue.books["paper"]
        assert (list(venue.books), venue.now, book.account.cash) == (["paper"], new_york(MONDAY, 17), 5000)
        assert (list(book.working), book.closes, book.multiplier) == ([OLD_ORDER["id"]], {MONDAY: 5000}, 2)
        with pytest.raises(Reject, match="must be unique"):
            floor.submit(
                book,
                NewOrder(symbol="ACME", side="buy", type="market", time_in_force="day", qty=1, client_order_id="a"),
            )
        venue.close()


def test_a_migration_that_is_cut_off_leaves_the_old_file(tmp_path, feed):
    db = old_file(tmp_path / "exchange.db")
    db.execute("update activities set body = body || 'x'")
    db.execute("create table old_closes (in_the_way text)")
    with pytest.raises(StoreBroken, match="old_closes"):
        Store(tmp_path / "exchange.db")
    assert db.execute("select client_order_id from orders").fetchall() == [("a",)]
    assert {row[1] for row in db.execute("pragma table_info(closes)")} == {"date", "equity"}
    db.execute("drop table old_closes")
    db.execute("update activities set body = substr(body, 1, length(body) - 1)")
    assert list(Store(tmp_path / "exchange.db").load().accounts) == ["paper"]


def test_a_replacement_of_former_times_counts_what_the_orders_before_it_have_got(tmp_path, feed):
    old_file(tmp_path / "exchange.db").close()
    Store(tmp_path / "exchange.db").close()
    chain = {"status": "replaced", "filled_qty": "4", "replaced_by": "2"}, {"replaces": "1", "filled_qty": "3"}
    with contextlib.closing(sqlite3.connect(tmp_path / "exchange.db", isolation_level=None)) as db:
        db.execute("delete from orders")
        for number, terms in enumerate([*chain, {"replaces": "2", "qty": "3"}], start=1):
            body = OLD_ORDER | {"id": str(number), "client_order_id": f"c{number}", "sequence": number} | terms
            db.execute("insert into orders values ('paper', ?, ?)", (number, json.dumps(body)))
    store = Store(tmp_path / "exchange.db")
    orders = store.load().accounts["paper"].orders
    assert [o.filled_before for o in orders] == [0, 4, 7]
    store.commit(Write("paper", (replace(orders[2], filled_before=Decimal(14)),)))  # after a split
    assert [o.filled_before for o in store.load().accounts["paper"].orders] == [0, 4, 14]
    store.close()


def test_a_file_that_is_none_of_ours_is_refused_in_a_line(tmp_path):
    (tmp_path / "exchange.db").write_bytes(b"a letter, not a database. " * 100)
    with pytest.raises(
        StoreBroken, match=r"exchange.db cannot be used as the exchange's file \(file is not a database\)"
    ):
        Store(tmp_path / "exchange.db")


def test_no_secret_is_in_the_file(tmp_path, feed):
    app = create_app(tmp_path / "feed", tmp_path / "exchange.db", key_id="PKTEST", secret_key=KEYS[1])
    app.state.venue.close()
    files = [path.read_bytes() for path in tmp_path.glob("exchange.db*")]
    assert any(b"PKTEST" in content for content in files)
    assert not any(KEYS[1].encode() in content for content in files)
