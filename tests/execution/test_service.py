"The execution service as its clients see it: real HTTP, a real exchange behind it."

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
import typer
from pydantic import SecretStr
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from tradenb.cli import orders
from tradenb.core import db, web
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.db import connect
from tradenb.core.errors import ConfigError
from tradenb.core.settings import Settings
from tradenb.execution.desk import make_desk
from tradenb.execution.service import create_app
from tradenb.execution.states import WORKING
from tradenb.execution.webhooks import SIGNATURE, sign

DAY = date(2017, 6, 1)
KEY, SECRET = "sesame", "the relay's"
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
            "execution": made.execution.model_copy(update=keys | {"webhook_secret": SecretStr(SECRET)}),
            "services": made.services.model_copy(update={"api_key": SecretStr(KEY)}),
        }
    )


@pytest.fixture
def serve(settings: Settings, clock: SimulatedClock, market: Any) -> Iterator[Callable[[], httpx.Client]]:
    servers: list[web.Server] = []
    clients: list[httpx.Client] = []

    def start() -> httpx.Client:
        servers.append(web.Server(create_app(settings, clock, market.url)).start())
        clients.append(httpx.Client(base_url=servers[-1].url, headers={"X-API-Key": KEY}, timeout=60))
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


WRONG: list[dict[str, Any]] = [
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
    {"client_order_id": "kill-20170601-S01-1"},
    {"strategy": "kill"},
    {"sequence": 10**30},
    {"strategy": ""},
    {"parent_id": "p", "parent_qty": "10000000000"},
    {"parent_id": "p", "parent_qty": "0.0000000001"},
]


def test_bad_input_is_a_422_with_one_line_and_leaves_nothing(client: httpx.Client) -> None:
    for change in WRONG:
        answer = client.post("/api/v1/orders", json=BODY | change)
        assert answer.status_code == 422, change
        assert "\n" not in answer.json()["detail"]
    assert client.post("/api/v1/orders", content=b"{not json").status_code == 422
    assert client.post("/api/v1/reconciliation", json={"trade_date": "0001-01-01"}).status_code == 422
    assert client.get("/api/v1/orders").json()["total"] == 0


def test_what_is_not_there_is_a_404(client: httpx.Client) -> None:
    assert client.get("/api/v1/orders/nothing").status_code == 404
    assert client.delete("/api/v1/orders/nothing").status_code == 404


def test_an_order_shows_its_events_and_can_be_canceled_once(client: httpx.Client) -> None:
    name = client.post("/api/v1/orders", json=BODY).json()["client_order_id"]
    assert client.delete(f"/api/v1/orders/{name}").json()["status"] == "canceled"
    assert client.delete(f"/api/v1/orders/{name}").status_code == 409
    events = client.get(f"/api/v1/orders/{name}").json()["events"]
    assert [e["status_to"] for e in events][:2] == ["pending_new", "accepted"]
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
    eventually(lambda: second.get("/health").json()["reconciliation"])
    eventually(lambda: second.get("/api/v1/orders").json()["orders"][1]["status"] == "pending_new")
    repeated = second.post("/api/v1/orders", json=BODY)
    assert (repeated.status_code, repeated.json()["status"] in WORKING) == (200, True)
    eventually(lambda: second.get("/health").json()["status"] == "ok")


def test_books_that_could_not_be_compared_at_the_start_are_compared_again_soon(
    serve: Callable[[], httpx.Client], market: Any, eventually: Any
) -> None:
    port = market.down()
    client = serve()
    eventually(lambda: (client.get("/health").json()["reconciliation"] or {}).get("error"))
    market.up(port)
    eventually(lambda: client.get("/health").json()["status"] == "ok")


def test_a_dry_run_sends_no_cancellation_and_the_kill_switch_is_none(
    settings: Settings, serve: Callable[[], httpx.Client], clock: SimulatedClock, market: Any
) -> None:
    name = serve().post("/api/v1/orders", json=BODY).json()["client_order_id"]
    quiet = settings.model_copy(update={"execution": settings.execution.model_copy(update={"dry_run": True})})
    turn = {"level": "cancel", "scope": "*", "who": "ada", "why": "a drill"}
    with (
        web.serving(create_app(quiet, clock, market.url)) as url,
        httpx.Client(base_url=url, headers={"X-API-Key": KEY}) as client,
    ):
        refused = client.delete(f"/api/v1/orders/{name}")
        assert (refused.status_code, refused.json()["code"]) == (409, "OrderConflict")
        assert "a dry run sends nothing" in refused.json()["detail"]
        assert [o.client_order_id for o in market.broker().open_orders()] == [name]
        assert client.post("/api/v1/kill-switch", json=turn).json()["done"]["canceled"] == [name]
    assert market.broker().open_orders() == []


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
    assert 'tradenb_orders_total{status="' in client.get("/metrics").text


def test_without_keys_the_service_does_not_start(
    make_settings: Callable[..., Settings], clock: SimulatedClock, engine: Any
) -> None:
    with pytest.raises(ConfigError, match="BROKER_KEY_ID"):
        make_desk(make_settings(), clock, engine)


def test_pages_are_cut_and_filtered_by_the_database(client: httpx.Client, clock: SimulatedClock) -> None:
    for n in range(7):
        clock.advance(timedelta(seconds=1))
        body = BODY | {"symbol": f"S{n:02}", "run_id": f"r{n % 2}", "parent_id": f"p{n % 3}", "parent_qty": "700"}
        assert client.post("/api/v1/orders", json=body).status_code == 201
    page = lambda **query: client.get("/api/v1/orders", params=query).json()
    symbols = lambda **query: [order["symbol"] for order in page(**query)["orders"]]
    assert symbols(limit=3, offset=2) == ["S02", "S03", "S04"]
    assert page(limit=3, offset=2)["total"] == page()["total"] == 7
    assert symbols(newest=True, limit=2) == ["S06", "S05"]
    assert symbols(run_id="r1") == ["S01", "S03", "S05"]
    assert symbols(parent_id="p0", run_id="r0") == ["S00", "S06"]
    assert symbols(symbol="S03", strategy="test", status=["accepted", "filled"]) == ["S03"]
    assert (page(offset=7)["orders"], page(offset=7)["total"]) == ([], 7)
    for query in ({"limit": 0}, {"limit": 10_001}, {"offset": -1}, {"status": "sold"}, {"run_id": "a\0"}):
        assert client.get("/api/v1/orders", params=query).status_code == 422


def test_no_more_than_the_larger_order_goes_out(client: httpx.Client) -> None:
    whole = {"parent_id": "p1", "parent_qty": "150"}
    assert client.post("/api/v1/orders", json=BODY | whole).status_code == 201
    denied = client.post("/api/v1/orders", json=BODY | whole | {"sequence": 1})
    assert (denied.status_code, denied.json()["code"]) == (403, "OrderDenied")
    rest = client.post("/api/v1/orders", json=BODY | whole | {"qty": "50", "sequence": 2})
    assert rest.status_code == 201, rest.text
    assert client.post("/api/v1/orders", json=BODY | {"parent_id": "p1"}).status_code == 422


def test_what_is_denied_is_kept_with_its_numbers(client: httpx.Client) -> None:
    body = BODY | {"qty": "90000", "run_id": "r7"}
    denied = client.post("/api/v1/orders", json=body)
    assert denied.status_code == 403
    code = denied.json()["detail"].split(":")[0]
    (kept,) = client.get("/api/v1/denials", params={"run_id": "r7", "code": code}).json()["denials"]
    assert (kept["symbol"], kept["request"]["qty"]) == ("S01", "90000")
    assert denied.json()["detail"].endswith(kept["detail"])
    assert kept["numbers"]
    assert client.get("/api/v1/denials", params={"run_id": "r8"}).json() == {"denials": [], "total": 0}
    assert client.get("/api/v1/orders").json()["total"] == 0
    assert f'tradenb_denials_total{{code="{code}"}} 1.0' in client.get("/metrics").text


def test_the_kill_switch_blocks_cancels_flattens_and_is_released(
    client: httpx.Client, market: Any, eventually: Any
) -> None:
    turn: Callable[..., httpx.Response] = lambda level, scope="*": client.post(
        "/api/v1/kill-switch", json={"level": level, "scope": scope, "who": "ada", "why": "a drill"}
    )
    first = client.post("/api/v1/orders", json=BODY).json()["client_order_id"]
    assert turn("block", "symbol:S02").status_code == 200
    assert client.post("/api/v1/orders", json=BODY | {"symbol": "S02"}).status_code == 403
    assert client.post("/api/v1/orders", json=BODY | {"symbol": "S03"}).status_code == 201
    canceled = turn("cancel", "symbol:S01").json()["done"]
    assert (canceled["canceled"], canceled["open"], canceled["troubles"]) == ([first], [], [])
    assert client.get(f"/api/v1/orders/{first}").json()["status"] == "canceled"
    assert len(market.broker().open_orders()) == 1
    market.step(new_york(DAY, 18))
    eventually(lambda: len(client.get("/api/v1/positions").json()["positions"]) == 1)
    flat = turn("flatten").json()
    assert len(flat["done"]["sent"]) == 1
    assert {row["scope"]: row["level"] for row in flat["standing"]} == {"*": "flatten", "symbol:S01": "cancel", "symbol:S02": "block"}  # fmt: skip
    for scope in ("*", "symbol:S01", "symbol:S02"):
        turn("release", scope)
    told = client.get("/api/v1/kill-switch").json()
    assert (told["standing"], len(told["history"])) == ([], 6)
    assert turn("explode").status_code == turn("block", "planet:mars").status_code == 422


def test_a_webhook_is_booked_before_the_stream_tells_and_once(client: httpx.Client, market: Any, clock: Any) -> None:
    name = client.post("/api/v1/orders", json=BODY).json()["client_order_id"]
    market.step(new_york(DAY, 18))
    broker = market.broker()
    (line,) = [a for a in broker.activities() if a["activity_type"] == "FILL"]
    fill = {"event": "fill", "timestamp": line["transaction_time"], "order": broker.client.get_order_by_client_id(name)}
    body = json.dumps(fill | {name: line[name] for name in ("execution_id", "qty", "price")}).encode()
    call = lambda **headers: client.post("/api/v1/webhooks/orders", content=body, headers=headers)
    right = sign(SECRET, clock.now(), body)
    assert [call(**right).status_code, call(**right).status_code] == [200, 409]
    wrong = [{}, right | {SIGNATURE: "sha256=" + "0" * 64}, sign("guess", clock.now(), body)]
    wrong += [sign(SECRET, clock.now() - timedelta(minutes=6), body)]
    assert [call(**headers).status_code for headers in wrong] == [401] * 4
    assert [call(**headers).json()["code"] for headers in wrong] == ["WebhookUnsigned", "WebhookForged", "WebhookForged", "WebhookExpired"]  # fmt: skip
    large = client.post("/api/v1/webhooks/orders", content=b"0" * 300_000, headers=right)
    assert large.status_code == 413
    held = client.get("/api/v1/positions").json()["positions"]
    assert [(p["symbol"], p["qty"]) for p in held] == [("S01", "100")]


def test_without_a_secret_no_webhook_is_taken(
    settings: Settings, clock: SimulatedClock, market: Any, database_url: str
) -> None:
    bare = settings.model_copy(update={"execution": settings.execution.model_copy(update={"webhook_secret": None})})
    with web.serving(create_app(bare, clock, market.url)) as url:
        answer = httpx.post(f"{url}/api/v1/webhooks/orders", content=b"{}")
    assert (answer.status_code, answer.json()["code"]) == (403, "WebhookOff")


def test_the_books_are_compared_by_themselves(
    settings: Settings, clock: SimulatedClock, market: Any, eventually: Any
) -> None:
    quick = settings.model_copy(update={"execution": settings.execution.model_copy(update={"reconcile_s": 0.1})})
    with web.serving(create_app(quick, clock, market.url)) as url:
        health = lambda: httpx.get(f"{url}/health").json()
        eventually(lambda: (health()["reconciliation"] or {}).get("matched") is True)
        port = market.down()
        eventually(lambda: (health()["reconciliation"] or {}).get("error"))
        assert health()["status"] == "degraded"
        market.up(port)
        eventually(lambda: (health()["reconciliation"] or {}).get("matched") is True)
        assert "tradenb_reconciliation_differences 0.0" in httpx.get(f"{url}/metrics").text


def test_a_session_s_bars_are_the_broker_s_once_it_has_closed(serve, market):
    client = serve()
    asked = lambda day, symbols: client.get("/api/v1/bars", params={"date": day, "symbols": symbols})
    before = asked("2017-05-31", "S02,S01,NOPE,,ünknown").json()["bars"]
    assert [bar["symbol"] for bar in before] == ["S01", "S02"]
    assert asked(DAY, "S01").json() == {"bars": []}
    market.step(new_york(DAY, 17))
    (bar,) = asked(DAY, "S01").json()["bars"]
    price = Decimal(before[0]["close"]) + Decimal("0.01")  # a cent a day
    assert {name: Decimal(bar[name]) for name in ("open", "close", "volume")} == {"open": price, "close": price, "volume": 1_000_000}  # fmt: skip
    assert asked("2017-06-03", "S01").json() == {"bars": []}  # a Saturday
    assert [asked("June", "S01").status_code, client.get("/api/v1/bars", params={"date": "2017-06-01"}).status_code] == [422, 422]  # fmt: skip
    port = market.down()
    assert asked(DAY, "S01").status_code == 503
    market.up(port)


def test_history_shows_positions_as_runs_left_them(client: httpx.Client, database_url: str) -> None:
    engine = connect(database_url)
    numbers = {name: Decimal(n) for n, name in enumerate(("qty", "avg_entry_price", "price", "market_value"))}
    numbers |= {"unrealised_pnl": Decimal("-1.5"), "realised_pnl": Decimal(0)}
    rows = [
        {"run_id": f"r{day}", "symbol": symbol, "trade_date": date(2017, 6, day)} | numbers
        for day in (1, 2)
        for symbol in ("S01", "S02")
    ]
    with engine.begin() as connection:
        connection.execute(db.position_snapshots.insert(), rows)
    engine.dispose()
    asked = lambda **query: client.get("/api/v1/positions/history", params=query).json()
    assert [s["run_id"] for s in asked()["snapshots"]] == ["r2", "r2", "r1", "r1"]
    (one,) = asked(symbol="S02", until="2017-06-01")["snapshots"]
    assert (one["trade_date"], one["qty"], one["unrealised_pnl"]) == ("2017-06-01", "0", "-1.5")
    assert asked(since="2017-06-02", limit=1)["total"] == 2


def test_a_database_that_is_away_is_a_503(settings: Settings, clock: SimulatedClock, market: Any, engine: Any) -> None:
    with web.serving(create_app(settings, clock, market.url, engine)) as url:

        @event.listens_for(engine, "before_cursor_execute")
        def fail(*_: Any) -> None:
            raise OperationalError("SELECT", {}, Exception("server closed the connection"))

        try:
            answers = [httpx.get(f"{url}/api/v1/{path}") for path in ("orders", "denials", "kill-switch", "account")]
            answers.append(httpx.post(f"{url}/api/v1/orders", json=BODY, headers={"X-API-Key": KEY}))
            health = httpx.get(f"{url}/health")
        finally:
            event.remove(engine, "before_cursor_execute", fail)
    assert [answer.status_code for answer in answers] == [503] * 5
    assert {answer.json()["code"] for answer in answers} == {"DependencyError"}
    assert (health.status_code, health.json()["status"]) == (200, "degraded")


def test_real_money_needs_two_switches(settings: Settings, clock: SimulatedClock, market: Any, engine: Any) -> None:
    live = {"broker": "live", "live_account": "somebody else's"}
    made = settings.model_copy(update={"execution": settings.execution.model_copy(update=live)})
    with pytest.raises(ConfigError, match="nothing is traded"):
        make_desk(made, clock, engine, market.url)


def test_orders_are_listed_shown_and_canceled_from_the_command_line(
    client: httpx.Client, database_url: str, tmp_path: Any, monkeypatch: Any, capsys: Any
) -> None:
    for name, value in (("CORE__DATABASE_URL", database_url), ("SERVICES__API_KEY", KEY), ("CORE__ROOT", tmp_path)):
        monkeypatch.setenv(f"TRADENB_{name}", str(value))
    monkeypatch.setenv("TRADENB_SERVICES__EXECUTION_URL", str(client.base_url))
    tell = typer.main.get_command(orders.commands)
    said = lambda *words: tell(["orders", *words], standalone_mode=False) or capsys.readouterr().out
    first, second = (client.post("/api/v1/orders", json=BODY | {"symbol": s}).json() for s in ("S01", "S02"))
    client.post("/api/v1/orders", json=BODY | {"symbol": "S04", "qty": "90000"})
    assert said("list", "--status", "open").count("accepted") == 2
    assert "b-" not in said("list", "--symbols", "S09")
    assert first["broker_order_id"] in said("show", first["client_order_id"][:10])
    assert "S01: canceled" in said("cancel", first["client_order_id"][:10])
    assert said("list", "--status", "open").count("accepted") == 1
    assert tell(["orders", "cancel", first["client_order_id"]], standalone_mode=False) == 2
    assert "nothing left to cancel" in capsys.readouterr().err
    assert "ORDER_NOTIONAL" in said("denials", "--date", "2017-06-01")
    assert client.get(f"/api/v1/orders/{second['client_order_id']}").json()["status"] == "accepted"
