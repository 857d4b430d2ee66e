"What logs, traces and metrics cost an order: their processor time at both services, beside that of the whole order, in one process."

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from datetime import date
from decimal import Decimal
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client import CollectorRegistry

from tradenb.core import logs, tracing, web
from tradenb.core.calendar import sessions
from tradenb.core.clock import SimulatedClock, new_york

from . import Result
from ._measure import cores

ORDERS, ROUNDS, CALLS = 400, 7, 2000
DAY = date(2017, 6, 1)


def each_us(call: Callable[[], Awaitable[None]]) -> float:
    "Microseconds of processor time of one call, the median of some rounds."

    async def rounds() -> list[float]:
        found = []
        for _ in range(ROUNDS):
            begun = cores()
            for _ in range(CALLS):
                await call()
            found.append((cores() - begun) / CALLS * 1e6)
        return found

    return median(asyncio.run(rounds()))


def of_telemetry(folder: Path) -> dict[str, float]:
    "Microseconds of the middleware with its request line, of an order's line, and of the headers that go out."
    logs.configure("execution", folder)
    route = type("Route", (), {"path": "/api/v1/orders"})
    trace, span = logs.new_trace_id(), tracing.new_span_id()
    more = [(f"x-{n}".encode(), b"value of a usual length") for n in range(8)]
    headers = [*more, (b"x-trace-id", trace.encode()), (b"traceparent", f"00-{trace}-{span}-01".encode())]

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = route
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def send(_: Any) -> None: ...

    traced = web.Traced(bare, "execution", CollectorRegistry())
    scope = lambda: {"type": "http", "method": "POST", "path": "/api/v1/orders", "headers": headers}
    log, said = logs.get_logger("execution"), {"symbol": "AAPL", "side": "buy", "qty": "100", "status": "accepted"}

    async def line() -> None:
        log.info("order_sent", client_order_id=trace, **said)

    async def leaving() -> None:
        tracing.leaving()

    with logs.bind(trace_id=trace, span=span):
        through, without = each_us(lambda: traced(scope(), None, send)), each_us(lambda: bare(scope(), None, send))
        return {"request": through - without, "line": each_us(line), "headers": each_us(leaving)}


def of_an_order(folder: Path) -> float:
    "Microseconds of processor time of an order through gateway and exchange, both served in this process, client included."
    import httpx

    from tradenb.core.settings import load
    from tradenb.exchange.feed import write_rows
    from tradenb.exchange.service import create_app as create_exchange
    from tradenb.execution.service import create_app

    days = sessions(date(2017, 5, 24), date(2017, 6, 7))
    write_rows(folder, [(f"B{n:03}", day, 50.0, 50.5, 49.5, 50.0, 20_000_000) for n in range(ORDERS) for day in days])
    morning = new_york(DAY, 9)
    environment = {"TRADENB_EXECUTION__BROKER_KEY_ID": "K", "TRADENB_EXECUTION__BROKER_SECRET": "S"}
    wide = {"core.root": str(folder), "limits.max_window_notional": "1e12", "limits.max_gross": "1e6"}
    settings = load(wide | {"limits.max_net": "1e6"}, env=environment | {"TRADENB_SERVICES__API_KEY": "sesame"})
    keys: dict[str, Any] = {"key_id": "K", "secret_key": "S"}
    exchange = create_exchange(folder, folder / "exchange.db", Decimal(10**9), start=morning, **keys)
    with ExitStack() as stack:
        broker = stack.enter_context(web.serving(exchange))
        url = stack.enter_context(web.serving(create_app(settings, SimulatedClock(morning), broker)))
        client = stack.enter_context(httpx.Client(base_url=url, headers={"X-API-Key": "sesame"}, timeout=60))
        terms = {"strategy": "bench", "side": "buy", "type": "market", "time_in_force": "cls", "qty": "10"}
        body = lambda n: {**terms, "symbol": f"B{n:03}", "trade_date": str(DAY)}
        client.post("/api/v1/orders", json=body(0)).raise_for_status()
        begun = cores()
        for n in range(1, ORDERS):
            client.post("/api/v1/orders", json=body(n)).raise_for_status()
        return (cores() - begun) / (ORDERS - 1) * 1e6


def main() -> list[Result]:
    "An order passes two services (a request each), is told of when it is sent and when it is filled, and the call to the broker carries the headers."
    with TemporaryDirectory() as folder:
        part, whole = of_telemetry(Path(folder) / "logs"), of_an_order(Path(folder))
    cost = 2 * (part["request"] + part["line"]) + part["headers"]
    found = [(f"telemetry.{name}_us", value, "µs") for name, value in part.items()]
    return [*found, ("telemetry.order_us", whole, "µs"), ("telemetry.share_of_an_order", cost / whole, "ratio")]
