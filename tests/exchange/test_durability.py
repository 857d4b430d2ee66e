"What was acknowledged is there after kill -9."

import contextlib
import os
import signal
import subprocess
import sys
import threading
from datetime import date
from pathlib import Path

import httpx
import pytest

from tradenb.core.clock import new_york, sleep
from tradenb.exchange.service import create_app
from tradenb.exchange.store import Store

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
