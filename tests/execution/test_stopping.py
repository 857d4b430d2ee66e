"A gateway that is told to stop in the middle of an order: a process of its own, and a broker that takes its time."

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.patience import wait_until
from tradenb.core.clock import SimulatedClock, sleep
from tradenb.core.db import connect, migrate
from tradenb.core.web import listen
from tradenb.execution.ledger import Ledger
from tradenb.execution.states import OrderStatus

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
PROJECT = Path(__file__).resolve().parents[2]
BODY = {"strategy": "test", "symbol": "S01", "side": "buy", "type": "market", "time_in_force": "cls", "qty": "100"}
BODY |= {"trade_date": "2017-06-01"}
SERVE = """
import json, sys
from datetime import date
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.settings import load
from tradenb.core.web import serve_forever
from tradenb.execution import service

service.FIRST_CATCH_UP_S = 0.05  # there is no stream
overrides, broker, port = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
app = service.create_app(load(overrides), SimulatedClock(new_york(date(2017, 6, 1), 9)), broker)
serve_forever(app, "127.0.0.1", port)
"""
SECRETS = {"EXECUTION__BROKER_KEY_ID": "K", "EXECUTION__BROKER_SECRET": "S", "SERVICES__API_KEY": "sesame"}
OFF: tuple[str, ...] = (
    "max_order_notional",
    "max_order_shares",
    "max_position_notional",
    "max_gross",
    "max_net",
    "max_volume_share",
)
OFF += ("price_collar", "max_price_age_sessions", "max_orders_per_minute", "max_window_notional", "max_daily_loss")
OFF += ("max_drawdown",)


class Process:
    "A gateway of its own."

    def __init__(self, overrides: dict[str, str], url: str, broker: str):
        with contextlib.closing(listen("127.0.0.1")) as socket:
            port = socket.getsockname()[1]
        env = {name: value for name, value in os.environ.items() if not name.startswith("TRADENB_")}
        env |= {f"TRADENB_{name}": value for name, value in SECRETS.items()} | {"TRADENB_CORE__DATABASE_URL": url}
        command = [sys.executable, "-c", SERVE, json.dumps(overrides), broker, str(port)]
        self.process = subprocess.Popen(command, cwd=PROJECT, env=env)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"X-API-Key": "sesame"}, timeout=60)
        self.until_up()

    def until_up(self) -> None:
        def up() -> bool:
            assert self.process.poll() is None
            with contextlib.suppress(httpx.HTTPError):
                return self.client.get("/").status_code == 200
            return False

        wait_until(up)

    def post(self, **changes: str) -> int:
        "The status of an order; 0 when the connection was cut."
        try:
            return self.client.post("/api/v1/orders", json=BODY | changes).status_code
        except httpx.HTTPError:
            return 0

    def stop(self, *signals: int) -> int:
        for number in signals:
            self.process.send_signal(number)
            sleep(0.2)
        return self.process.wait(60)


@pytest.fixture
def start(database_url: str, tmp_path: Path, wire: Any) -> Iterator[Callable[..., Process]]:
    migrate(connect(database_url)).dispose()
    started: list[Process] = []

    def make(**overrides: object) -> Process:
        values = {"core.root": str(tmp_path / "data"), "execution.reconcile_s": "0", "execution.backoff_s": "0.05"}
        values |= {"limits.check_shorts": "false", "limits.check_buying_power": "false"}
        values |= {f"limits.{name}": "0" for name in OFF} | {name: str(v) for name, v in overrides.items()}
        started.append(Process(values, database_url, wire.url))
        return started[-1]

    yield make
    for each in started:
        each.client.close()
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def only(database_url: str) -> Any:
    "The one order in the books."
    engine = migrate(connect(database_url))
    (order,) = Ledger(engine, SimulatedClock.__new__(SimulatedClock)).orders()
    engine.dispose()
    return order


def posted(gateway: Process, pool: ThreadPoolExecutor, wire: Any, eventually: Any) -> "Future[int]":
    "An order on its way: the broker has got the request and has not answered."
    answer = pool.submit(gateway.post)
    eventually(lambda: wire.posts > 0)
    return answer


def is_shut(gateway: Process) -> bool:
    try:
        return "stopping" in gateway.client.get("/health").json()["problems"]
    except httpx.HTTPError:
        return True


def test_an_order_in_flight_is_finished_and_nothing_more_taken_in_before_the_process_ends(
    start: Any, wire: Any, database_url: str, eventually: Any
) -> None:
    gateway = start()
    wire.script = ["wait 2"]
    with ThreadPoolExecutor(1) as pool:
        answer = posted(gateway, pool, wire, eventually)
        gateway.process.send_signal(signal.SIGTERM)
        eventually(lambda: is_shut(gateway))
        assert gateway.post(symbol="S02") in (503, 0)
        gateway.stop(signal.SIGTERM)  # once more, as an impatient supervisor does
        assert answer.result() == 201
    order = only(database_url)
    assert (order.symbol, order.status, wire.posts) == ("S01", OrderStatus.ACCEPTED, 1)


def test_an_order_that_the_broker_does_not_answer_in_time_is_written_down_and_asked_for_by_the_next(
    start: Any, wire: Any, database_url: str, eventually: Any
) -> None:
    gateway = start(**{"execution.timeout_s": 1, "execution.attempts": 5, "execution.backoff_s": 30})
    wire.script = ["taken, wait 3"]  # longer than the timeout, and it has the order
    with ThreadPoolExecutor(1) as pool:
        answer = posted(gateway, pool, wire, eventually)
        gateway.stop(signal.SIGTERM)
        assert answer.result() in (503, 0)
    assert only(database_url).status is OrderStatus.UNKNOWN
    assert start().post() == 200  # asked for, and adopted
    assert (only(database_url).status, wire.posts, wire.duplicates) == (OrderStatus.ACCEPTED, 1, 0)


def test_a_killed_gateway_leaves_its_name_to_the_next_which_asks_at_once(
    start: Any, wire: Any, database_url: str, eventually: Any
) -> None:
    gateway = start()
    wire.script = ["taken, wait 3"]
    with ThreadPoolExecutor(1) as pool:
        answer = posted(gateway, pool, wire, eventually)
        gateway.stop(signal.SIGKILL)
        assert answer.result() == 0
    assert only(database_url).status is OrderStatus.PENDING_NEW
    assert start().post() == 200  # the lease of a minute is its own
    assert (only(database_url).status, wire.posts, wire.duplicates) == (OrderStatus.ACCEPTED, 1, 0)
