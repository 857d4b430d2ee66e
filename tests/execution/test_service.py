"The execution service as its clients see it: real HTTP, a real exchange behind it."

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tradenb.core import web
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.errors import ConfigError
from tradenb.core.settings import Settings
from tradenb.execution.service import create_app, make_desk
from tradenb.execution.states import WORKING

DAY = date(2017, 6, 1)
KEY = "sesame"
BODY = {
    "strategy": "test",
    "symbol": "S01",
    "side": "buy",
    "type": "market",
    "time_in_force": "cls",
    "qty": "100",
    "trade_date": "2017-06-01",
}


@pytest.fixture
def settings(make_settings: Callable[..., Settings], database_url: str) -> Settings:
    made = make_settings(
        **{"core.database_url": database_url, "execution.attempts": "2", "execution.backoff_s": "0.01"}
    )
    keys = {"broker_key_id": SecretStr("K"), "broker_secret": SecretStr("S")}
    return made.model_copy(
        update={
            "execution": made.execution.model_copy(update=keys),
            "services": made.services.model_copy(update={"api_key": SecretStr(KEY)}),
        }
    )


@pytest.fixture
def serve(settings: Settings, clock: SimulatedClock, market: Any) -> Iterator[Callable[[], httpx.Client]]:
    servers: list[web.Server] = []
    clients: list[httpx.Client] = []

    def start() -> httpx.Client:
        servers.append(web.Server(create_app(settings, clock, market.url)).start())
        clients.append(httpx.Client(base_url=servers[-1].url, headers={"X-API-Key": KEY}, timeout=30))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
    for server in servers:
        server.stop()
    assert [t.name for t in threading.enumerate() if t.name == "trade_updates"] == []


@pytest.fixture
def client(serve: Callable[[], httpx.Client]) -> httpx.Client:
    return serve()


def test_a_day_goes_through(client: httpx.Client, market: Any, eventually: Any) -> None:
    bodies = [BODY | {"symbol": f"S{n:02}", "side": "sell" if n % 2 else "buy", "run_id": "r1"} for n in range(8)]
    assert [client.post("/api/v1/orders", json=b).status_code for b in bodies] == [201] * 8
    assert [client.post("/api/v1/orders", json=b).status_code for b in bodies] == [200] * 8
    market.step(new_york(DAY, 18))
    done = lambda: {o["status"] for o in client.get("/api/v1/orders", params={"run_id": "r1"}).json()["orders"]}
    eventually(lambda: done() == {"filled"})
    answer = client.post("/api/v1/reconciliation", json={"run_id": "r1", "trade_date": str(DAY)}).json()
    assert (answer["matched"], answer["differences"], answer["checked"]["orders"]) == (True, [], 8)
    account = client.get("/api/v1/account").json()
    assert account["equity"] == str(market.broker().account().equity)
    sides = answer["account"]
    assert sides["ours"] == sides["broker"] == {name: account[name] for name in sides["broker"]}
    assert sides["broker"].keys() == {"cash", "long_value", "short_value", "equity"}
    assert float(sides["broker"]["short_value"]) < 0 < float(sides["broker"]["long_value"])
    held = client.get("/api/v1/positions").json()["positions"]
    assert [(p["symbol"], p["qty"]) for p in held][:2] == [("S00", "100"), ("S01", "-100")]
    assert all(p["unrealised_pnl"] is not None for p in held)


def test_the_same_id_with_another_order_is_a_conflict(client: httpx.Client) -> None:
    name = client.post("/api/v1/orders", json=BODY).json()["client_order_id"]
    answer = client.post("/api/v1/orders", json=BODY | {"qty": "50", "client_order_id": name})
    assert (answer.status_code, answer.json()["code"]) == (409, "OrderConflict")
    assert answer.headers["content-type"] == "application/problem+json"


def test_nothing_changes_without_the_key(client: httpx.Client) -> None:
    with httpx.Client(base_url=client.base_url, headers={"X-API-Key": "guess"}) as guest:
        answers = [guest.post("/api/v1/orders", json=BODY), guest.delete("/api/v1/orders/x")]
        answers += [guest.post("/api/v1/reconciliation", json={})]
        assert [answer.status_code for answer in answers] == [401] * 3
        assert guest.get("/api/v1/orders").json() == {"orders": [], "total": 0}


WRONG = [
    {"qty": "0.5"},
    {"qty": "-1"},
    {"qty": "NaN"},
    {"qty": "1e400"},
    {"qty": None},
    {"notional": "5"},
    {"side": "hold"},
    {"trade_date": "2017-06-03"},
    {"trade_date": "yesterday"},
    {"limit_prise": "5"},
    {"symbol": "x' OR 1=1"},
    {"client_order_id": "../../etc"},
    {"sequence": 10**30},
    {"strategy": ""},
]


def test_bad_input_is_a_422_with_one_line_and_leaves_nothing(client: httpx.Client) -> None:
    for change in WRONG:
        answer = client.post("/api/v1/orders", json=BODY | change)
        assert answer.status_code == 422, change
        assert "\n" not in answer.json()["detail"]
    assert client.post("/api/v1/orders", content=b"{not json").status_code == 422
    assert client.get("/api/v1/orders").json()["total"] == 0


def test_what_is_not_there_is_a_404(client: httpx.Client) -> None:
    assert client.get("/api/v1/orders/nothing").status_code == 404
    assert client.delete("/api/v1/orders/nothing").status_code == 404


def test_an_order_shows_its_events_and_can_be_canceled_once(client: httpx.Client) -> None:
    name = client.post("/api/v1/orders", json=BODY).json()["client_order_id"]
    assert client.delete(f"/api/v1/orders/{name}").json()["status"] == "canceled"
    assert client.delete(f"/api/v1/orders/{name}").status_code == 409
    events = client.get(f"/api/v1/orders/{name}").json()["events"]
    assert [e["status_to"] for e in events][:2] == ["pending_new", "submitted"]
    assert events[-1]["status_to"] == "canceled"


def test_a_broker_that_is_gone_is_a_503_and_a_restart_resumes(
    serve: Callable[[], httpx.Client], market: Any, eventually: Any
) -> None:
    first = serve()
    before = first.post("/api/v1/orders", json=BODY | {"sequence": 1})
    assert first.delete(f"/api/v1/orders/{before.json()['client_order_id']}").status_code == 200
    port = market.down()
    answer = first.post("/api/v1/orders", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (503, "BrokerUnavailable")
    assert "\n" not in answer.json()["detail"]
    assert first.get("/health").json()["status"] == "degraded"
    assert first.get("/api/v1/positions").json() == {"positions": []}
    assert first.get("/api/v1/orders", params={"status": "unknown"}).json()["total"] == 1
    market.up(port)
    second = serve()
    eventually(lambda: second.get("/health").json()["status"] == "ok")
    eventually(lambda: second.get("/api/v1/orders").json()["orders"][1]["status"] == "pending_new")
    repeated = second.post("/api/v1/orders", json=BODY)
    assert (repeated.status_code, repeated.json()["status"] in WORKING) == (200, True)


def test_the_trace_of_a_request_is_kept_with_its_order(client: httpx.Client) -> None:
    trace = "0123456789abcdef" * 2
    assert client.post("/api/v1/orders", json=BODY, headers={"X-Trace-ID": trace}).json()["trace_id"] == trace


def test_the_same_order_from_many_clients_is_one_order(client: httpx.Client, market: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda _: client.post("/api/v1/orders", json=BODY).status_code, range(16)))
    assert sorted(codes) == [200] * 15 + [201]
    assert len(market.broker().orders()) == 1


def test_metrics_count_orders_and_messages(client: httpx.Client) -> None:
    client.post("/api/v1/orders", json=BODY)
    assert 'orders_total{status="' in client.get("/metrics").text


def test_without_keys_the_service_does_not_start(
    make_settings: Callable[..., Settings], clock: SimulatedClock, engine: Any
) -> None:
    with pytest.raises(ConfigError, match="BROKER_KEY_ID"):
        make_desk(make_settings(), clock, engine)
