"What measures the gateway asks for what it says, tells the truth about answers, and leaves no process behind."

import json
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from decimal import Decimal
from pathlib import Path

import httpx
import psutil
import pytest

import tests.patience  # noqa: F401  (whoever asks a server waits)
from pipelines.benchmarks import orders as bench
from pipelines.benchmarks._servers import SECRET, place, server, write_market
from pipelines.benchmarks._wire import Ask, Connection, Job, Load, Outcome, over_sockets, read_job, together
from tradenb.core.clock import SystemClock
from tradenb.core.settings import load
from tradenb.exchange.feed import Feed
from tradenb.execution.answers import OrderRequest
from tradenb.execution.orders import OrderIntent, OrderType, Side, TimeInForce, client_order_id, validate
from tradenb.execution.webhooks import verify
from tradenb.trading.orchestrator import planning_time

DAY = date(2023, 8, 1)
INTENT = OrderIntent("bench", "B001", Side.BUY, OrderType.MARKET, TimeInForce.CLS, DAY, Decimal(5), sequence=4)


class Piecemeal(socketserver.BaseRequestHandler):
    "Answers in pieces; a path that ends in a number is answered with that status."

    def handle(self) -> None:
        while request := self.request.recv(1 << 16):
            path = request.split(b" ", 2)[1].decode()
            status = int(path.rpartition("/")[2])
            body = json.dumps({"path": path}).encode()
            head = f"HTTP/1.1 {status} Said\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            for piece in (head[:10], head[10:], body[:3], body[3:]):
                self.request.sendall(piece)


@pytest.fixture
def piecemeal() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Piecemeal) as one:
        one.daemon_threads = True
        threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{one.server_address[1]}"
        one.shutdown()


def test_every_request_is_timed_and_every_refusal_told(piecemeal: str) -> None:
    asks = [Ask("GET", f"/{number}/{503 if number == 7 else 200}") for number in range(20)]
    outcome = over_sockets(Job(piecemeal, asks, connections=3))
    assert len(outcome.ms) == 20
    assert all(0 < ms < outcome.seconds * 1e3 for ms in outcome.ms)
    assert [wrong[:16] for wrong in outcome.failed] == ['503: {"path": "/']


def test_an_answer_is_read_only_when_it_is_whole(piecemeal: str) -> None:
    connection = Connection(piecemeal)
    connection.send(0, Ask("GET", "/200").wire("here"))
    while (answer := connection.read()) is None:
        pass
    assert answer == (200, b'{"path": "/200"}')
    connection.socket.close()


def test_a_job_survives_the_pipe_and_the_process_answers_jobs_one_after_the_other(piecemeal: str) -> None:
    job = Job(piecemeal, [Ask("GET", "/200", headers={"X-API-Key": "k"})], 1)
    assert read_job(json.dumps(asdict(job))) == Job(piecemeal, job.asks, 1, None, [])
    with Load() as load_process:
        assert [len(load_process.run(job).ms) for _ in range(3)] == [1, 1, 1]
    assert load_process.process.poll() is not None


def test_outcomes_are_put_together() -> None:
    both = together([Outcome(1.0, [3.0, 1.0], ["a"]), Outcome(2.0, [2.0])])
    assert (both.seconds, both.p50, both.p99, both.per_second, both.failed) == (3.0, 2.0, 3.0, 1.0, ["a"])


def test_both_ways_ask_for_the_same_order() -> None:
    asked = OrderRequest.model_validate_json(bench.asked(INTENT).body)
    assert asked.intent == validate(INTENT)
    raw = bench.as_alpaca_has_it(INTENT, client_order_id(INTENT))
    assert raw == {"symbol": "B001", "side": "buy", "time_in_force": "cls", "qty": "5", "client_order_id": client_order_id(INTENT)}  # fmt: skip


def test_webhooks_are_signed_as_the_gateway_wants_it() -> None:
    now = SystemClock().now()
    ask = bench.signed({"event": "fill"}, now)
    assert verify(SECRET, ask.headers["X-Webhook-Timestamp"], ask.headers["X-Webhook-Signature"], ask.body.encode(), now, 300)  # fmt: skip


def test_no_limit_is_switched_off_where_orders_are_measured(tmp_path: Path) -> None:
    limits = load(env=place(tmp_path).environment).limits
    assert all(value for value in limits.model_dump().values() if value != limits.restricted)


def test_a_server_that_cannot_start_says_why_and_is_gone(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(ChildProcessError, match=r"SourceError|misses"), server("exchange", place(tmp_path)):
        pass
    assert {child.pid for child in psutil.Process().children()} <= before


def test_an_exchange_of_its_own_holds_the_market_and_ends_with_the_block(tmp_path: Path) -> None:
    names = write_market(tmp_path / "state" / "feed", 12, date(2023, 7, 3), date(2023, 8, 4))
    assert sorted(Feed(tmp_path / "state" / "feed").assets) == names
    with server("exchange", place(tmp_path), planning_time(DAY)) as running:
        assert httpx.get(running.url).is_success
        assert running.cpu_s() > 0
    assert running.process.poll() is not None
