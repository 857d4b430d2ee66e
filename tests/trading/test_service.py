"The orchestrator over HTTP: every mapping with its reason, pages and filters, and no end while an order's fate is unknown. The gateway beside it is a server that says what a test wants it to say."

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import httpx
import polars as pl
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import Engine

from tradenb.core import web
from tradenb.core.clock import SystemClock
from tradenb.core.errors import UnknownRun
from tradenb.core.settings import Settings
from tradenb.portfolio.sizing import size_orders
from tradenb.trading import records
from tradenb.trading.clients import OrchestratorClient
from tradenb.trading.orchestrator import keep_plan, make_plan
from tradenb.trading.service import NOT_SENT, RunRequest, create_app, run_spec

DAY = date(2024, 1, 8)
RUN = f"{DAY}-alpha158_ls"
NAMES = ["AAA", "BBB", "CCC", "DDD", "EEE", "FFF"]


@dataclass
class Gateway:
    "What the gateway answers: by symbol what it says to an order, and what it has stored."

    says: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/api/v1/orders")
        async def submit(request: Request) -> Response:
            order = await request.json()
            self.asked.append(order["symbol"])
            status, body = self.says.get(order["symbol"], (201, {"status": "accepted"}))
            if status < 300 or body["code"] == "BrokerUnavailable":
                self.orders[order["symbol"]] = order | {
                    "status": body.get("status", "unknown"),
                    "reason": body.get("detail"),
                }
            return JSONResponse(body, status_code=status)

        @app.get("/api/v1/orders")
        def listed() -> dict[str, Any]:
            return {"orders": [order | {"client_order_id": IDS[symbol]} for symbol, order in self.orders.items()]}

        @app.get("/api/v1/denials")
        def denials() -> dict[str, Any]:
            return {"denials": []}

        @app.post("/api/v1/reconciliation")
        def reconcile() -> dict[str, Any]:
            return {"matched": True}

        return app


def plan() -> Any:
    "Long the first three, short the next two, nothing of the last."
    weights = [0.1, 0.1, 0.1, -0.1, -0.1, 0.0]
    rows = [dict(symbol=s, predicted_return=w / 10, rank=i, target_weight=w) for i, (s, w) in enumerate(zip(NAMES, weights, strict=True), 1)]  # fmt: skip
    return make_plan(size_orders(pl.DataFrame(rows), dict.fromkeys(NAMES, Decimal(20)), {}, Decimal(100_000)), "alpha158_ls", DAY, "close")  # fmt: skip


IDS = {leg.order.symbol: leg.client_order_id for leg in plan()}


@dataclass
class Orchestrator:
    "The service on a run that has a plan, and the gateway beside it."

    gateway: Gateway
    client: httpx.Client
    engine: Engine

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.client.request(method, f"/api/v1/orchestration{path}", **options)

    def run(self) -> dict[str, Any]:
        answer = self.call("POST", "/run", json={"trade_date": str(DAY)})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@pytest.fixture
def service(engine: Engine, make_settings: Callable[..., Settings]) -> Iterator[Orchestrator]:
    gateway = Gateway()
    with web.serving(gateway.app()) as url:
        from pydantic import SecretStr

        settings = make_settings(**{"services.execution_url": url, "services.exchange_url": url, "execution.settle_timeout_s": 0.1, "execution.dry_run": "true"})  # fmt: skip
        settings = settings.model_copy(
            update={"services": settings.services.model_copy(update={"api_key": SecretStr("k3y")})}
        )
        spec = run_spec(settings, RunRequest(trade_date=DAY))
        records.make(engine, spec, SystemClock(), "")
        keep_plan(engine, RUN, plan())
        with (
            web.serving(create_app(settings, SystemClock(), engine)) as own,
            httpx.Client(base_url=own, headers={"X-API-Key": "k3y"}, timeout=60) as client,
        ):
            yield Orchestrator(gateway, client, engine)


def refusal(status: int, code: str, detail: str) -> tuple[int, dict[str, str]]:
    return status, {"code": code, "detail": detail}


def test_every_mapping_says_why_and_what_became_of_it(service: Orchestrator):
    service.gateway.says = {
        "AAA": refusal(403, "OrderDenied", "RESTRICTED_SYMBOL: AAA is on the restricted list"),
        "BBB": refusal(503, "BrokerUnavailable", "buy BBB 2024-01-08: outcome unknown (timed out)"),
        "CCC": refusal(500, "InternalError", "an unexpected error"),
        "DDD": (201, {"status": "rejected", "detail": "insufficient buying power"}),
        "EEE": refusal(422, "OrderInvalid", "qty 0.5: a cls order is for whole shares"),
    }
    answer = service.run()
    told = {row["symbol"]: (row["status"], row["reason"].partition("; ")[2]) for row in answer["mappings"]}
    assert told == {
        "AAA": ("denied", "denied: RESTRICTED_SYMBOL: AAA is on the restricted list"),
        "BBB": ("unknown", "unknown: buy BBB 2024-01-08: outcome unknown (timed out)"),
        "CCC": ("unknown", "unknown: the execution service answered 500: an unexpected error"),
        "DDD": ("rejected", "rejected: insufficient buying power"),
        "EEE": ("failed", "failed: qty 0.5: a cls order is for whole shares"),
        "FFF": (None, ""),
    }
    assert (answer["orders"], answer["failed"], answer["unknown"]) == (5, 3, 2)
    assert sorted(service.gateway.asked) == ["AAA", "BBB", "BBB", "CCC", "CCC", "DDD", "EEE"]
    later = service.call("GET", f"/runs/{RUN}").json()
    reasons = {row["symbol"]: row["reason"].partition("; ")[2] for row in later["mappings"]}
    assert reasons["CCC"] == NOT_SENT and later["held_by"] is None
    assert reasons["EEE"] == "failed: qty 0.5: a cls order is for whole shares"  # nobody but the plan keeps this one
    service.gateway.says = {}
    service.run()
    assert [row["reason"].partition("; ")[2] for row in service.call("GET", f"/runs/{RUN}").json()["mappings"]] == [
        ""
    ] * 6


def test_a_gateway_without_a_database_stops_the_sending_and_the_same_request_goes_on(service: Orchestrator):
    service.gateway.says = {"EEE": refusal(503, "DependencyError", "the database does not answer: ask again later")}
    answer = service.call("POST", "/run", json={"trade_date": str(DAY)})
    assert (answer.status_code, answer.json()["detail"]) == (503, "the database does not answer: ask again later")
    service.gateway.says = {}
    assert {row["status"] for row in service.run()["mappings"]} == {"accepted", None}


def test_a_run_does_not_end_while_the_fate_of_an_order_is_unknown(service: Orchestrator):
    service.gateway.says = {"BBB": refusal(503, "BrokerUnavailable", "outcome unknown")}
    service.run()
    for symbol, order in service.gateway.orders.items():
        order["status"] = "unknown" if symbol == "BBB" else "filled"
    answer = service.call("POST", f"/runs/{RUN}/settle")
    assert answer.status_code == 503 and "what became of 1 orders is not known (BBB)" in answer.json()["detail"]
    service.gateway.orders["BBB"] |= {"status": "expired", "filled_qty": "0"}
    settled = service.call("POST", f"/runs/{RUN}/settle").json()
    assert (settled["status"], settled["orders"]) == ("partially_completed", {"expired": 1, "filled": 4})


def test_mappings_come_in_pages_and_by_what_is_asked_for(service: Orchestrator):
    service.run()

    def page(**which: Any) -> tuple[list[str], int]:
        answer = service.call("GET", f"/runs/{RUN}", params=which).json()
        return [row["symbol"] for row in answer["mappings"]], answer["total"]

    everything, total = page()
    assert (sorted(everything), total) == (NAMES, 6)
    assert page(limit=2, offset=3) == (everything[3:5], 6)
    assert page(symbol="DDD") == (["DDD"], 1)
    assert page(ordered=False) == (["FFF"], 1)
    assert page(status="accepted")[1] == 5
    assert service.call("GET", f"/runs/{RUN}", params={"limit": 0}).status_code == 422


def test_runs_come_in_pages_and_by_what_is_asked_for(service: Orchestrator, make_settings: Callable[..., Settings]):
    for number in range(1, 5):
        spec = run_spec(make_settings(), RunRequest(trade_date=date(2024, 1, 8) + timedelta(days=number)))
        records.begin(service.engine, spec, SystemClock())
        records.end(
            service.engine, spec.run_id, records.COMPLETED if number % 2 else records.FAILED, SystemClock().now()
        )

    def runs(**which: Any) -> tuple[list[int], int]:
        answer = service.call("GET", "/runs", params=which).json()
        return [int(row["trade_date"][-2:]) for row in answer["runs"]], answer["total"]

    assert runs() == ([12, 11, 10, 9, 8], 5)
    assert runs(limit=2, offset=1) == ([11, 10], 5)
    assert runs(status="completed") == ([11, 9], 2)
    assert runs(since="2024-01-09", until="2024-01-10") == ([10, 9], 2)
    assert runs(symbol="DDD") == ([8], 1)
    assert runs(strategy="another") == ([], 0)
    assert service.call("GET", "/runs", params={"status": "fine"}).status_code == 422


def test_a_run_that_nobody_started_is_not_there_whatever_is_asked_of_it(service: Orchestrator):
    nobody = "2020-01-02-alpha158_ls"
    asked = [("GET", ""), ("POST", "/open"), ("POST", "/settle")]
    answers = [service.call(method, f"/runs/{nobody}{path}") for method, path in asked]
    assert [(a.status_code, a.json()["code"]) for a in answers] == [(404, "UnknownRun")] * 3
    with pytest.raises(UnknownRun, match=nobody):  # and the client's caller sees what the service saw
        OrchestratorClient(str(service.client.base_url), "k3y").open(nobody)


def test_health_says_what_does_not_answer(service: Orchestrator):
    health = service.client.get("/health").json()
    assert (health["status"], health["dependencies"]["database"]) == ("degraded", "ok")
    assert [problem.partition(":")[0] for problem in health["problems"]] == ["signals", "execution"]
