"""An order from a client to the broker through the gateway: stored durably, sent, acknowledged; beside stock alpaca-py alone.

The exchange and the gateway are processes of their own, as `tradenb serve` runs them; PostgreSQL and SQLite are measured side by side, each with a gateway and an exchange of its own, round after round. A client in a process of its own asks over plain sockets, so that it is not what is measured.
- raw: stock `alpaca-py` sends a market order to the exchange and reads the answer, one after the other.
- ours: the same order to the gateway over HTTP, which judges it, writes it down (on disk before anything leaves), sends it by alpaca-py, writes down what came of it and answers. In turns with raw, block by block; then with eight clients at once.
- a day: 500 orders, sells before buys, eight at a time; the exchange steps over the close; every fill is booked; the books are compared.

TRADENB_BENCH_ROUNDS sets how many rounds, 5 if it is not set; medians of rounds are told. TRADENB_TEST_POSTGRES names a PostgreSQL; otherwise one is started.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from tradenb.core.calendar import sessions
from tradenb.core.clock import Stopwatch, SystemClock, sleep
from tradenb.execution.orders import OrderIntent, OrderType, Side, TimeInForce, client_order_id
from tradenb.trading.orchestrator import planning_time, settled_time

from . import Result
from ._servers import KEY, PAIR, SECRET, Running, database_on, place, postgres, server, write_market
from ._wire import Ask, Job, Load, Outcome, together

ROUNDS = int(os.environ.get("TRADENB_BENCH_ROUNDS", 5))
BLOCK, BLOCKS, CLIENTS, SUSTAINED, QUERIES, WEBHOOKS, DAY = 25, 8, 8, 900, 200, 100, 500
FIRST, LAST = date(2023, 6, 1), date(2023, 12, 29)
DATES = sessions(date(2023, 8, 1), LAST)  # those traded; earlier ones are history for the controls
HEADERS = {"X-API-Key": KEY}
FINAL_S = 120.0  # for fills to be booked
Intents = Sequence[OrderIntent]


@dataclass
class House:
    "A gateway with its exchange, and what was measured of them."

    name: str  # of the database
    exchange: Running
    gateway: Running
    load: Load
    names: Sequence[str]
    http: httpx.Client
    raw_keys: tuple[str, str] = PAIR
    day: int = 0  # how many were traded
    found: dict[str, list[Outcome]] = field(default_factory=dict)
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)  # of a process per order, by process

    @property
    def trade_date(self) -> date:
        return DATES[self.day]

    def keep(self, what: str, outcome: Outcome) -> Outcome:
        assert not outcome.failed, (self.name, what, len(outcome.failed), outcome.failed[:3])
        self.found.setdefault(what, []).append(outcome)
        return outcome

    def p(self, what: str, share: str) -> float:  # ms
        "The median of the rounds' quantiles."
        return median(getattr(one, share) for one in self.found[what])

    def per_second(self, what: str) -> float:
        return median(one.per_second for one in self.found[what])

    def exchange_call(self, method: str, path: str, **options: Any) -> Any:
        pair = {"APCA-API-KEY-ID": PAIR[0], "APCA-API-SECRET-KEY": PAIR[1]}
        return self.http.request(method, self.exchange.url + path, headers=pair, **options).raise_for_status().json()

    def step(self, to: datetime) -> None:
        self.exchange_call("POST", "/admin/clock", json={"to": to.isoformat()})


def intents(house: House, count: int, kind: int, side: Side = Side.BUY) -> list[OrderIntent]:
    "Market orders into the close; a day's orders of another `kind` are repeats on purpose."
    place = lambda number: divmod(number, len(house.names))
    return [intent(house, house.names[place(n)[1]], side, 10 * kind + place(n)[0]) for n in range(count)]


def intent(house: House, symbol: str, side: Side, sequence: int) -> OrderIntent:
    day, qty = house.trade_date, Decimal(sequence + 1)
    return OrderIntent("bench", symbol, side, OrderType.MARKET, TimeInForce.CLS, day, qty, sequence=sequence)


def asked(intent: OrderIntent) -> Ask:
    "An order as the gateway takes it."
    body: dict[str, Any] = {
        "strategy": intent.strategy,
        "symbol": intent.symbol,
        "side": intent.side,
        "type": intent.type,
    }
    body |= {"time_in_force": intent.time_in_force, "trade_date": str(intent.trade_date), "qty": str(intent.qty)}
    body |= {"sequence": intent.sequence}
    return Ask("POST", "/api/v1/orders", json.dumps(body), HEADERS)


def as_alpaca_has_it(intent: OrderIntent, name: str) -> dict[str, str]:
    "The same order as alpaca-py takes it."
    words = {"symbol": intent.symbol, "side": intent.side, "time_in_force": intent.time_in_force, "qty": intent.qty}
    return {key: str(value) for key, value in words.items()} | {"client_order_id": name}


def ours(house: House, wanted: Intents, connections: int = 1) -> Outcome:
    return house.load.run(Job(house.gateway.url, [asked(intent) for intent in wanted], connections))


def raw(house: House, wanted: Intents) -> Outcome:
    orders = [as_alpaca_has_it(intent, f"raw-{client_order_id(intent)[:20]}") for intent in wanted]
    return house.load.run(Job(house.exchange.url, keys=house.raw_keys, orders=orders))


def submitted(house: House, blocks: int, sustained: int) -> None:
    "Ours and raw in turns, block by block, with one client; then eight clients."
    wanted = intents(house, BLOCK * blocks, 1)
    parts = [wanted[start : start + BLOCK] for start in range(0, len(wanted), BLOCK)]
    turns = [(raw(house, part), ours(house, part)) for part in parts]
    for what, one in zip(("raw", "ours"), zip(*turns, strict=True), strict=True):
        house.keep(what, together(one))
    many, before = intents(house, sustained, 2), (house.gateway.cpu_s(), house.exchange.cpu_s())
    house.keep("eight", ours(house, many, CLIENTS))
    for process, running, used in zip(("gateway", "exchange"), (house.gateway, house.exchange), before, strict=True):
        house.cpu_ms.setdefault(process, []).append((running.cpu_s() - used) / len(many) * 1e3)


def settled(house: House, count: int) -> None:
    "Step over the close, wait until every order of the day is filled."
    house.step(settled_time(house.trade_date))
    watch, url = Stopwatch(), f"{house.gateway.url}/api/v1/orders"
    of_day: dict[str, str | int] = {"trade_date": str(house.trade_date), "status": "filled", "limit": 1}
    while (filled := house.http.get(url, params=of_day).raise_for_status().json()["total"]) < count:
        assert watch.seconds < FINAL_S, f"{house.name}: {filled} of {count} orders filled after {FINAL_S:.0f} s"
        sleep(0.02)


def next_day(house: House) -> None:
    house.day += 1
    house.step(planning_time(house.trade_date))


def queried(house: House) -> None:
    "One order, a page of orders, all positions: the books hold some days of orders by now."
    names = [client_order_id(intent) for intent in intents(house, QUERIES, 2)]
    paths = {
        "order": [f"/api/v1/orders/{name}" for name in names],
        "page": [f"/api/v1/orders?trade_date={house.trade_date}&limit=50&offset={10 * n}" for n in range(QUERIES // 4)],
        "positions": ["/api/v1/positions"] * (QUERIES // 4),
    }
    for what, each in paths.items():
        house.keep(what, house.load.run(Job(house.gateway.url, [Ask("GET", path) for path in each])))


def fill_told(order: Mapping[str, Any], number: int, at: datetime) -> dict[str, Any]:
    "What a broker tells of an order that was filled."
    full = dict(order) | {"status": "filled", "filled_qty": order["qty"], "filled_avg_price": "50"}
    return {"event": "fill", "execution_id": f"webhook-{number:032}", "timestamp": at.isoformat(), "price": "50", "qty": order["qty"], "position_qty": order["qty"], "order": full}  # fmt: skip


def signed(data: Mapping[str, Any], at: datetime) -> Ask:
    body, stamp = json.dumps(data), str(int(at.timestamp()))
    digest = hmac.new(SECRET.encode(), f"{stamp}.{body}".encode(), hashlib.sha256).hexdigest()
    headers = {"X-Webhook-Timestamp": stamp, "X-Webhook-Signature": f"sha256={digest}"}
    return Ask("POST", "/api/v1/webhooks/orders", body, headers)


def told_by_webhook(house: House) -> None:
    "Fills of orders that the exchange still works: last of all, the books differ from the exchange's afterwards."
    count, watch = ROUNDS * WEBHOOKS, SystemClock()
    wanted = intents(house, count, 3)
    ours(house, wanted, CLIENTS)
    listed = [self_named(house, intent) for intent in wanted]
    asks = [signed(fill_told(order, n, planning_time(house.trade_date)), watch.now()) for n, order in enumerate(listed)]
    house.keep("webhook", house.load.run(Job(house.gateway.url, asks)))
    last = house.http.get(f"{house.gateway.url}/api/v1/orders/{client_order_id(wanted[-1])}").json()
    assert last["status"] == "filled", last


def self_named(house: House, intent: OrderIntent) -> dict[str, Any]:
    query = {"client_order_id": client_order_id(intent)}
    found: dict[str, Any] = house.exchange_call("GET", "/v2/orders:by_client_order_id", params=query)
    return found


def whole_day(house: House, count: int) -> None:
    "Orders from the first request to reconciled books."
    half = count // 2
    sides = (Side.SELL, Side.BUY) if house.day % 2 else (Side.BUY, Side.SELL)
    plan = [replace(intent, side=sides[number // half]) for number, intent in enumerate(intents(house, count, 1))]
    parts = {side: [intent for intent in plan if intent.side is side] for side in (Side.SELL, Side.BUY)}
    watch = Stopwatch()
    for part in parts.values():
        sent = ours(house, part, CLIENTS)
        assert not sent.failed, sent.failed[:3]
    submitted_s = watch.seconds
    settled(house, count)
    booked_s = watch.seconds
    body = {"trade_date": str(house.trade_date)}
    answer = house.http.post(f"{house.gateway.url}/api/v1/reconciliation", json=body, headers=HEADERS)
    result, took = answer.raise_for_status().json(), watch.seconds
    assert result["matched"], result["differences"][:3]
    house.keep("day", Outcome(took, [took * 1e3]))
    print(f"    {house.name:8} day of {count}: sent {submitted_s:.2f} s, booked {booked_s - submitted_s:.2f} s, reconciled {took - booked_s:.2f} s")  # fmt: skip


@contextmanager
def houses(folder: Path, load: Load) -> Iterator[list[House]]:
    "One per database."
    with ExitStack() as stack:
        urls = {"postgres": stack.enter_context(database_on(stack.enter_context(postgres()))), "sqlite": ""}
        yield [stack.enter_context(opened(folder / name, name, url, load)) for name, url in urls.items()]


@contextmanager
def opened(root: Path, name: str, database: str, load: Load) -> Iterator[House]:
    symbols = write_market(root / "state" / "feed", DAY, FIRST, LAST)
    at = place(root, database)
    with server("exchange", at, planning_time(DATES[0])) as exchange:
        at = place(root, database, services__exchange_url=exchange.url)
        with server("execution", at) as gateway, httpx.Client(timeout=60) as http:
            house = House(name, exchange, gateway, load, symbols, http)
            house.raw_keys = another_account(house)
            yield house


def another_account(house: House) -> tuple[str, str]:
    "Keys of an account whose orders the gateway does not hear of."
    made = house.exchange_call("POST", "/admin/accounts", json={"name": "raw", "cash": "1000000000"})
    return made["key_id"], made["secret_key"]


def main() -> list[Result]:
    "Everything in a folder that is thrown away."
    with TemporaryDirectory() as folder, Load() as load:
        with houses(Path(folder) / "days", load) as both:
            for number in range(ROUNDS + 1):
                for house in both:
                    whole_day(house, DAY if number else DAY // 5)
                    next_day(house)
                    if not number:
                        house.found.clear()  # the first warms up
            days = {house.name: median(one.seconds for one in house.found["day"]) for house in both}
        with houses(Path(folder) / "orders", load) as both:
            for number in range(ROUNDS + 1):
                for house in both:
                    blocks, sustained = (BLOCKS, SUSTAINED) if number else (2, QUERIES)
                    submitted(house, blocks, sustained)
                    settled(house, BLOCK * blocks + sustained)
                    queried(house)
                    next_day(house)
                    if not number:
                        house.found.clear()
            for house in both:
                told_by_webhook(house)
            return [*results(both), *day_results(days)]


KINDS = ("raw", "ours", "eight", "order", "page", "positions", "webhook")


def results(both: Sequence[House]) -> list[Result]:
    "What a reader wants of each database, and the worse of both under the plain names."
    for house in both:
        for kind in (kind for kind in KINDS if kind in house.found):
            print(f"  {house.name:8} {kind:9}: p50 {house.p(kind, 'p50'):7.2f} ms, p99 {house.p(kind, 'p99'):7.2f} ms, {house.per_second(kind):7.1f} a second")  # fmt: skip
        print(f"  {house.name:8} cores per order with {CLIENTS} clients: " + ", ".join(f"{name} {median(ms):.2f} ms" for name, ms in house.cpu_ms.items()))  # fmt: skip
    each = [row for house in both for row in details(house)]
    worst = lambda name: max(value for found, value, _ in each if found.startswith(f"orders.{name}_"))
    return [
        ("orders.vs_raw", worst("vs_raw"), "×"),
        ("orders.p99_ms", worst("p99_ms"), "ms"),
        ("orders.query_p99_ms", worst("query_p99_ms"), "ms"),
        ("orders.webhook_p99_ms", worst("webhook_p99_ms"), "ms"),
        ("orders.per_s", next(value for name, value, _ in each if name == "orders.per_s_eight_postgres"), "1/s"),
        *each,
    ]


def details(house: House) -> list[Result]:
    name = house.name
    pairs = zip(house.found["ours"], house.found["raw"], strict=True)
    return [
        (f"orders.vs_raw_{name}", median(ours.p50 / raw.p50 for ours, raw in pairs), "×"),
        *((f"orders.p50_ms_{kind}_{name}", house.p(kind, "p50"), "ms") for kind in ("raw", "ours", "eight")),
        *((f"orders.p99_ms_{kind}_{name}", house.p(kind, "p99"), "ms") for kind in ("ours", "eight")),
        *((f"orders.per_s_{kind}_{name}", house.per_second(kind), "1/s") for kind in ("ours", "eight")),
        *((f"orders.query_p99_ms_{kind}_{name}", house.p(kind, "p99"), "ms") for kind in ("order", "page", "positions")),
        (f"orders.webhook_p99_ms_{name}", house.p("webhook", "p99"), "ms"),
    ]  # fmt: skip


def day_results(days: Mapping[str, float]) -> list[Result]:
    return [("orders.day500_s", max(days.values()), "s"), *((f"orders.day500_s_{name}", took, "s") for name, took in days.items())]  # fmt: skip
