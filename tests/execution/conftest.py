"A real exchange on a real port, and a broker that misbehaves on purpose: both are servers."

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import polars as pl
import pytest
from sqlalchemy import Engine

from tests.patience import wait_until
from tradenb.core import web
from tradenb.core.calendar import sessions
from tradenb.core.clock import SimulatedClock, new_york, sleep
from tradenb.exchange.service import create_app as create_exchange
from tradenb.execution.broker import Broker, alpaca_client
from tradenb.execution.gateway import Gateway
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import OrderIntent, OrderType, Side, TimeInForce

FIRST, LAST = date(2017, 5, 15), date(2017, 6, 30)
DAY = date(2017, 6, 1)
MORNING = new_york(DAY, 9)
PRICES = {f"S{i:02}": 20.0 + 3 * i for i in range(30)}


def write_feed(folder: Path, actions: list[tuple] = [], ends: dict[str, date] | None = None) -> Path:  # noqa: B006
    "Thirty symbols that drift by a cent a day; `ends` gives a symbol's last session."
    folder.mkdir(parents=True, exist_ok=True)
    days, ends = sessions(FIRST, LAST), ends or {}
    bars = [
        (s, d, p + n / 100, p + n / 100 + 1, p + n / 100 - 1, p + n / 100, 1_000_000)
        for s, p in PRICES.items()
        for n, d in enumerate(days)
        if d <= ends.get(s, LAST)
    ]
    names = ["symbol", "date", "open", "high", "low", "close", "volume"]
    pl.DataFrame(bars, schema=names, orient="row").write_parquet(folder / "bars.parquet")
    kinds = {"symbol": pl.String, "ex_date": pl.Date, "kind": pl.String, "ratio": pl.Float64, "cash": pl.Float64}
    pl.DataFrame(actions, schema=kinds, orient="row").write_parquet(folder / "actions.parquet")
    kinds = {"symbol": pl.String, "name": pl.String, "sector": pl.String, "first_date": pl.Date, "last_date": pl.Date}
    assets = [(s, s, "", FIRST, ends.get(s)) for s in PRICES]
    pl.DataFrame(assets, schema=kinds, orient="row").write_parquet(folder / "assets.parquet")
    return folder


@dataclass
class Market:
    "A running exchange."

    folder: Path
    start: datetime = MORNING
    fee_bps: float = 0
    server: Any = None

    def up(self, port: int = 0) -> "Market":
        state = self.folder / "exchange.db"
        app = create_exchange(
            self.folder, state, fee_bps=self.fee_bps, key_id="K", secret_key="S", start=self.start, volume_share=1
        )
        self.server = web.Server(app, port=port).start()
        return self

    def down(self) -> int:
        "Stop; the port it had."
        port = int(self.server.url.rsplit(":", 1)[1])
        self.server.app.state.venue.store.close()
        self.server.stop()
        return port

    @property
    def url(self) -> str:
        return str(self.server.url)

    def broker(self, **options: Any) -> Broker:
        return Broker(alpaca_client(self.url, "K", "S", 30), self.url, **({"backoff_s": 0.01} | options))

    def step(self, to: datetime) -> None:
        self.admin("/clock", {"to": to.isoformat()})

    def faults(self, *rules: dict[str, Any]) -> None:
        "From now on these; none without any."
        self.admin("/faults", {"rules": list(rules)})

    def admin(self, path: str, body: dict[str, Any]) -> None:
        self.broker().client._request("POST", path, body, api_version="admin")


@pytest.fixture
def make_market(tmp_path: Path) -> Iterator[Callable[..., Market]]:
    "Exchanges on free ports; stopped at the end."
    started = []

    def make(actions: list[tuple] = [], ends: dict[str, date] | None = None, fee_bps: float = 0) -> Market:  # noqa: B006
        folder = write_feed(tmp_path / f"exchange{len(started)}", actions, ends)
        started.append(Market(folder, fee_bps=fee_bps).up())
        return started[-1]

    yield make
    for market in started:
        market.down()


@pytest.fixture
def market(make_market: Callable[..., Market]) -> Market:
    return make_market()


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(MORNING)


@pytest.fixture
def ledger(engine: Engine, clock: SimulatedClock) -> Ledger:
    return Ledger(engine, clock)


@pytest.fixture
def gateway(ledger: Ledger, market: Market) -> Gateway:
    return Gateway(ledger, market.broker())


@pytest.fixture
def intent() -> Callable[..., OrderIntent]:
    "A market order into the close: `intent('S01', 100, side=Side.SELL)`."

    def make(symbol: str = "S01", qty: object = 100, **changes: Any) -> OrderIntent:
        values = {"strategy": "test", "side": Side.BUY, "type": OrderType.MARKET, "time_in_force": TimeInForce.CLS}
        size = None if qty is None else Decimal(str(qty))
        return OrderIntent(**(values | {"symbol": symbol, "qty": size, "trade_date": DAY} | changes))

    return make


@pytest.fixture
def eventually() -> Callable[..., None]:
    return wait_until


@dataclass
class Wire:
    "What a misbehaving broker holds and does: `script` names what happens to each POST, in order; then all is well."

    url: str = ""
    script: list[str] = field(default_factory=list)
    get_script: list[str] = field(default_factory=list)
    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    posts: int = 0
    gets: int = 0
    duplicates: int = 0
    retry_after: str | None = None
    now: datetime = MORNING


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536

    def log_message(self, *args: Any) -> None: ...

    def answer(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def misbehave(self, fault: str, wire: Wire) -> bool:
        "Whether the fault was all of the answer."
        plain = {"500": 500, "502": 502, "503": 503, "504": 504, "408": 408}
        if fault in plain:
            self.answer(plain[fault], b"<html>bad gateway</html>")
        elif fault == "429":
            extra = {"Retry-After": wire.retry_after} if wire.retry_after else {}
            self.answer(429, {"code": 42910000, "message": "rate limit exceeded"}, **extra)
        elif fault == "401":
            self.answer(401, {"code": 40110000, "message": "request is not authorized"})
        elif fault == "html":
            self.answer(200, b"<html>welcome</html>")
        elif fault == "404 page":
            self.answer(404, b"<html>nginx</html>")
        elif fault == "reset":
            self.hang_up()
        elif fault == "slow":
            self.connection.recv(1)  # until the client has given up
            self.hang_up()
        elif fault.startswith("wait "):  # and then all is well
            sleep(float(fault.removeprefix("wait ")))
            return False
        else:
            return False
        return True

    def do_GET(self) -> None:
        wire: Wire = self.server.wire  # type: ignore[attr-defined]
        wire.gets += 1
        if wire.get_script and self.misbehave(wire.get_script.pop(0), wire):
            return
        path = urlsplit(self.path)
        if path.path == "/v2/clock":
            return self.answer(200, {"timestamp": wire.now.isoformat()})
        name = parse_qs(path.query).get("client_order_id", [""])[0]
        found = wire.orders.get(name)
        if found:
            return self.answer(200, found)
        self.answer(404, {"code": 40410000, "message": f"order not found for {name}"})

    def do_POST(self) -> None:
        wire: Wire = self.server.wire  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        wire.posts += 1
        fault = wire.script.pop(0) if wire.script else "ok"
        if fault == "422":
            return self.answer(422, {"code": 42210000, "message": "asset is not tradable"})
        if fault == "403":
            return self.answer(403, {"code": 40310000, "message": "insufficient buying power"})
        if self.misbehave(fault, wire):
            return
        name = body["client_order_id"]
        if name in wire.orders:
            wire.duplicates += 1
            return self.answer(422, {"code": 40010001, "message": "client_order_id must be unique"})
        wire.orders[name] = body | {"id": f"b-{len(wire.orders)}", "status": "accepted", "filled_qty": "0"}
        if fault.startswith("taken, ") and self.misbehave(fault.removeprefix("taken, "), wire):
            return
        self.answer(200, wire.orders[name])


@pytest.fixture
def wire() -> Iterator[Wire]:
    "A broker at the network's edge that does what its script says."
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.wire = Wire(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server.wire  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


@pytest.fixture
def wire_broker(wire: Wire) -> Broker:
    "Patient: a server that was only slow to be scheduled is no fault."
    return Broker(alpaca_client(wire.url, "K", "S", 20), wire.url, attempts=3, backoff_s=0.005)


@pytest.fixture
def impatient(wire: Wire) -> Broker:
    "For faults that are a silence; longer than any server needs to hear a request."
    return Broker(alpaca_client(wire.url, "K", "S", 2), wire.url, attempts=3, backoff_s=0.005)
