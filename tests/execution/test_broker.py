"A broker that misbehaves, and what we may and may not conclude from it."

import contextlib
import gc
import json
import threading
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.core.clock import SimulatedClock, sleep
from tradenb.core.db import connect, migrate
from tradenb.core.errors import BrokerUnavailable, ConfigError
from tradenb.execution.broker import (
    Broker,
    Confirmed,
    Denied,
    Rejected,
    Unresolved,
    Withheld,
    alpaca_client,
    decimal,
    entry_of,
    judgement,
    patience,
    require_account,
)
from tradenb.execution.controls import Denial
from tradenb.execution.entries import CashEvent, Fill
from tradenb.execution.ledger import Ledger, StoredOrder
from tradenb.execution.orders import OrderIntent

LOST = ["500", "502", "503", "504", "408", "429", "reset", "html"]
TAKEN = ["taken, " + fault for fault in ("504", "502", "reset", "html", "slow")]


@pytest.fixture
def order(tmp_path: Path, clock: SimulatedClock, intent: Callable[..., OrderIntent]) -> StoredOrder:
    ledger = Ledger(migrate(connect(f"sqlite:///{tmp_path}/t.db")), clock)
    return ledger.record_intent(intent())[0]


@pytest.mark.parametrize("fault", [*LOST, *TAKEN, "slow"])
def test_one_fault_is_survived_with_one_order(
    fault: str, wire: Any, wire_broker: Broker, impatient: Broker, order: StoredOrder
) -> None:
    wire.script = [fault]
    outcome = (impatient if "slow" in fault else wire_broker).submit(order)
    assert isinstance(outcome, Confirmed)
    assert list(wire.orders) == [order.client_order_id]
    assert wire.duplicates == 0
    assert wire.posts == (1 if fault in TAKEN else 2)


@pytest.mark.parametrize("fault", ["503", "reset", "429"])
def test_a_broker_that_stays_away_leaves_the_order_unresolved(
    fault: str, wire: Any, wire_broker: Broker, order: StoredOrder
) -> None:
    wire.script = [fault] * 9
    assert isinstance(wire_broker.submit(order), Unresolved)
    assert wire.posts == 3


def test_while_the_broker_cannot_say_nothing_is_sent_again(wire: Any, wire_broker: Broker, order: StoredOrder) -> None:
    wire.script, wire.get_script = ["taken, 504"], ["503", "404 page", "reset"]
    assert isinstance(wire_broker.submit(order), Unresolved)
    assert wire.posts == 1


@pytest.mark.parametrize("fault", ["422", "403"])
def test_a_rejection_is_final_and_has_its_words(fault: str, wire: Any, wire_broker: Broker, order: StoredOrder) -> None:
    wire.script = [fault]
    outcome = wire_broker.submit(order)
    assert isinstance(outcome, Rejected)
    assert outcome.status == int(fault)
    assert wire.posts == 1


def test_a_wrong_key_is_not_the_orders_fault(wire: Any, wire_broker: Broker, order: StoredOrder) -> None:
    wire.script = ["401"]
    assert isinstance(wire_broker.submit(order), Unresolved)
    assert wire.posts == 1
    forbidden = judgement(403, '{"code": 40310000, "message": "forbidden."}')
    assert getattr(forbidden, "passing", None) is False


def test_an_order_that_is_there_already_is_found_not_rejected(
    wire: Any, wire_broker: Broker, order: StoredOrder
) -> None:
    assert isinstance(wire_broker.submit(order), Confirmed)
    assert isinstance(wire_broker.submit(order), Confirmed)
    assert (len(wire.orders), wire.duplicates) == (1, 1)


def test_a_broker_that_asks_for_patience_gets_it(wire: Any, order: StoredOrder) -> None:
    waits: list[float] = []
    wire.script, wire.retry_after = ["429", "503"], "3"
    broker = Broker(alpaca_client(wire.url, "K", "S", 20), wire.url, backoff_s=0.005, sleep=waits.append)
    assert isinstance(broker.submit(order), Confirmed)
    assert waits[0] == 3
    assert 0.01 <= waits[1] <= 0.0125


def test_waits_double_from_the_settings_and_spread(wire: Any, order: StoredOrder) -> None:
    waits: list[float] = []
    wire.script = ["503"] * 4
    Broker(alpaca_client(wire.url, "K", "S", 20), wire.url, attempts=4, backoff_s=2, sleep=waits.append).submit(order)
    assert [int(w // b) for w, b in zip(waits, (2, 4, 8), strict=True)] == [1, 1, 1]
    assert all(w <= b * 1.25 for w, b in zip(waits, (2, 4, 8), strict=True))


def test_who_forgets_a_broker_hangs_up(wire: Any) -> None:
    forgotten = Broker(alpaca_client(wire.url, "K", "S", 20), wire.url)
    assert forgotten.find("nothing") is None
    (free,) = forgotten.client._session._lines._free.values()
    (line,) = free
    del forgotten, free
    gc.collect()
    assert line.socket.fileno() == -1


def test_reads_are_repeated_and_then_given_up_in_one_line(wire: Any, wire_broker: Broker) -> None:
    wire.get_script = ["503", "reset"]
    assert wire_broker.find("nothing") is None
    wire.get_script = ["503"] * 3
    with pytest.raises(BrokerUnavailable, match="cannot say") as caught:
        wire_broker.find("nothing")
    assert "\n" not in str(caught.value)


@given(
    st.lists(st.sampled_from([*LOST[1:6], "reset", *TAKEN[:4], "ok"]), max_size=8),
    st.lists(st.sampled_from(["503", "reset", "ok"]), max_size=4),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_there_is_at_most_one_order_and_the_word_is_honest(
    wire: Any, wire_broker: Broker, order: StoredOrder, script: list[str], gets: list[str]
) -> None:
    wire.orders.clear()
    wire.script, wire.get_script = list(script), list(gets)
    outcome = wire_broker.submit(order)
    assert len(wire.orders) <= 1
    if isinstance(outcome, Confirmed):
        assert list(wire.orders) == [order.client_order_id]
    assert not isinstance(outcome, Rejected)
    wire.script, wire.get_script = [], []
    again = wire_broker.submit(order, ask_first=True)
    assert isinstance(again, Confirmed)
    assert len(wire.orders) == 1


def test_activities_become_entries() -> None:
    fill = {
        "activity_type": "FILL",
        "id": "2017::7",
        "transaction_time": "2017-06-01T20:00:00.5Z",
        "price": "27.1",
        "qty": "3",
        "side": "sell_short",
        "symbol": "GE",
        "order_id": "b",
    }
    entry = entry_of(fill)
    assert isinstance(entry, Fill)
    assert (entry.id, entry.side, entry.amount) == ("7", "sell", 3 * entry.price)
    for kind, word in {
        "DIVNRA": "dividend",
        "JNLC": "deposit",
        "MA": "delisting",
        "INT": "interest",
        "CFEE": "fee",
    }.items():
        event = entry_of({"activity_type": kind, "id": kind, "date": "2017-06-01", "net_amount": "-1.5", "qty": "3"})
        assert isinstance(event, CashEvent)
        assert (event.kind, event.at.date(), event.qty is None) == (word, date(2017, 6, 1), word != "delisting")


GOOD = {"id": "b-1", "symbol": "S01", "side": "buy", "qty": "100", "filled_qty": "0", "status": "accepted"}
WRONG: list[bytes] = [
    b"",
    b"null",
    b"[]",
    b'"accepted"',
    b"{",
    b"\xff\xfe\x00",
    b"<html>it works</html>",
    b"[" * 100_000,
    *(
        json.dumps(GOOD | change).encode()
        for change in (
            {"client_order_id": "somebody else's"},
            {"symbol": "S02"},
            {"side": "sell"},
            {"side": "sideways"},
            {"qty": "99"},
            {"qty": "-100"},
            {"qty": "NaN"},
            {"qty": "1e999999999"},
            {"filled_qty": "-5"},
            {"filled_qty": {}},
            {"filled_avg_price": "Infinity"},
            {"filled_avg_price": "a lot"},
            {"status": 7},
            {"status": ""},
            {"id": None},
            {"id": "x" * 10_000},
            {"created_at": "yesterday"},
            {"created_at": "2017-06-01T09:30:00"},
        )
    ),
]


class Answering(BaseHTTPRequestHandler):
    "Answers everything with `server.body`, and counts what it was asked."

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None: ...

    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.posts += 1
        self.answer(server.body.replace(b'"NAME"', json.dumps(body["client_order_id"]).encode()))

    def do_GET(self) -> None:
        server: Any = self.server
        server.gets.append(self.path)
        self.answer(server.body)

    def answer(self, body: bytes) -> None:
        server: Any = self.server
        self.send_response(server.status)
        for name, value in ({"Content-Length": str(server.length or len(body))} | server.headers).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            for part in server.parts or [body]:
                self.wfile.write(part)
                if server.parts:
                    sleep(0.05)


@pytest.fixture
def answering() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads, server.posts, server.gets = True, 0, []
    server.body, server.status, server.headers, server.parts, server.length = b"{}", 200, {}, None, 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def doubtful(answering: Any) -> Iterator[Broker]:
    broker = Broker(alpaca_client(answering.url, "K", "S", 20), answering.url, attempts=2, sleep=lambda seconds: None)
    yield broker
    broker.close()


@pytest.mark.parametrize("body", WRONG, ids=range(len(WRONG)))
def test_an_answer_that_is_no_answer_settles_nothing(
    body: bytes, answering: Any, doubtful: Broker, order: StoredOrder
) -> None:
    with_name = body.replace(b'{"id"', b'{"client_order_id": "NAME", "id"') if b"client_order_id" not in body else body
    answering.body = with_name
    assert isinstance(doubtful.submit(order), Unresolved)
    assert answering.posts == 1


READS: list[Callable[[Broker], Any]] = [
    lambda broker: broker.account(),
    lambda broker: broker.positions(),
    lambda broker: broker.orders(),
    lambda broker: broker.activities(),
    lambda broker: broker.clock(),
    lambda broker: broker.calendar(date(2017, 6, 1), date(2017, 6, 2)),
    lambda broker: broker.assets(),
    lambda broker: broker.latest_trades(["S01"]),
    lambda broker: broker.find("x"),
    lambda broker: broker.now(),
]
NOISE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "symbol", "qty", "trades", "S01", "p", "t", "cash", "status"]), inner)
    ),
    max_leaves=12,
)


@given(noise=NOISE)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_json_comes_a_read_gives_values_or_one_error(answering: Any, doubtful: Broker, noise: Any) -> None:
    answering.body = json.dumps(noise).encode()
    hasty = doubtful.glance
    for read in READS:
        with contextlib.suppress(BrokerUnavailable):
            read(hasty)


@pytest.mark.parametrize("status", [403, 422, 429, 503])
@pytest.mark.parametrize("code", ["1e999", "-Infinity", "NaN", "[]", '"\xb2"'])
def test_a_refusal_whose_code_is_no_number_is_no_refusal(
    status: int, code: str, answering: Any, doubtful: Broker, order: StoredOrder
) -> None:
    answering.status, answering.body = status, f'{{"code": {code}, "message": "no"}}'.encode()
    answering.headers = {"Retry-After": "\xb2"}
    assert isinstance(doubtful.submit(order), Unresolved)
    with pytest.raises(BrokerUnavailable):
        doubtful.glance.account()


FILL = {"id": "1::x", "activity_type": "FILL", "execution_id": "x", "symbol": "S01", "side": "buy", "qty": "1"}
FILL |= {"price": "20", "order_id": "o", "transaction_time": "2017-06-01T20:00:00Z"}
PAID = {"id": "2::y", "activity_type": "DIV", "symbol": "S01", "net_amount": "5", "date": "2017-06-01"}
IMPOSSIBLE = [
    {"id": None},
    {"id": []},
    {"qty": "99999999999"},
    {"price": "99999999999"},
    {"qty": "1000000000", "price": "1000000000"},
    {"qty": "0.0000000001"},
    {"transaction_time": "0001-01-01T00:00:00Z"},
]


SUMS = [{"net_amount": "-99999999999"}, {"symbol": 7}, {"symbol": ["S01"]}]


@pytest.mark.parametrize("line", [FILL | change for change in IMPOSSIBLE] + [PAID | change for change in SUMS])
def test_history_that_no_books_can_hold_is_not_read(line: Any, answering: Any, doubtful: Broker) -> None:
    answering.body = json.dumps([FILL, PAID]).encode()
    assert len(doubtful.activities()) == 2
    answering.body = json.dumps([PAID | {"id": "3::z"}, line]).encode()
    with pytest.raises(BrokerUnavailable):
        doubtful.activities()


def test_an_answer_that_trickles_in_or_does_not_end_is_given_up(
    answering: Any, doubtful: Broker, order: StoredOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering.parts, answering.length = [b" "] * 600, 600
    outcome = Broker(alpaca_client(answering.url, "K", "S", 1), answering.url, attempts=1).submit(order)
    assert isinstance(outcome, Unresolved)
    assert "had not ended" in outcome.reason
    answering.parts, answering.length, answering.body = None, 0, b" " * 5000
    monkeypatch.setattr("tradenb.execution.broker.MOST_BYTES", 1000)
    with pytest.raises(BrokerUnavailable, match="had not ended"):
        doubtful.account()


def test_every_call_ends_though_the_broker_is_silent(order: StoredOrder) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        broker = Broker(alpaca_client(url, "K", "S", 0.1), url, attempts=1)
        assert isinstance(broker.submit(order), Unresolved)
        for read in READS:
            with pytest.raises(BrokerUnavailable):
                read(broker)
        broker.close()


@pytest.mark.parametrize(
    ("header", "at", "seconds"),
    [
        ("7", "", 7),
        ("0.5", "", 0.5),
        ("Thu, 01 Jun 2017 13:00:09 GMT", "Thu, 01 Jun 2017 13:00:00 GMT", 9),
        ("Thu, 01 Jun 2017 13:00:09 GMT", "", 0),
        ("Thu, 01 Jun 2017 12:00:00 GMT", "Thu, 01 Jun 2017 13:00:00 GMT", 0),
        ("999999", "", 60),
        ("soon", "", 0),
        ("-3", "", 0),
        ("\xb2", "", 0),  # a digit to Python, and no number
        ("Thu, 01 Jun 2017 13:00:09 +99999999999999999999", "Thu, 01 Jun 2017 13:00:00 GMT", 0),
        (None, None, 0),
    ],
)
def test_the_wait_that_the_broker_asks_for(header: str | None, at: str | None, seconds: float) -> None:
    assert patience(header, at) == seconds


def test_what_leaves_is_looked_at_before_every_attempt(wire: Any, wire_broker: Broker, order: StoredOrder) -> None:
    seen: list[Any] = []

    def look(body: Any) -> None:
        seen.append(dict(body))
        if len(seen) == 3:
            raise Withheld(Denial("KILL_SWITCH", "engaged meanwhile"))

    wire.script = ["503", "503", "ok"]
    outcome = wire_broker.submit(order, look=look)
    assert isinstance(outcome, Denied)
    assert outcome.reason == "KILL_SWITCH: engaged meanwhile"
    assert wire.posts == 2
    assert seen == [{name: str(value) for name, value in seen[0].items()}] * 3
    assert not wire.orders


def test_real_money_needs_the_accounts_own_number(answering: Any, doubtful: Broker) -> None:
    account = {"status": "ACTIVE", "cash": "1", "equity": "1", "buying_power": "1", "account_number": "PA3"}
    answering.body = json.dumps(account | {"long_market_value": "0", "short_market_value": "0"}).encode()
    assert require_account(doubtful, "PA3").number == "PA3"
    for named in ("", "PA4", "pa3"):
        with pytest.raises(ConfigError, match=r"live_account"):
            require_account(doubtful, named)
    answering.body = b"{}"
    with pytest.raises(BrokerUnavailable):
        require_account(doubtful, "PA3")


def test_no_cancellation_goes_out_without_an_order(answering: Any, doubtful: Broker) -> None:
    with pytest.raises(BrokerUnavailable, match="not known yet"):
        doubtful.cancel("")


def test_market_data_comes_from_its_own_address(answering: Any) -> None:
    broker = Broker(
        alpaca_client("http://127.0.0.1:9", "K", "S", 1), "http://127.0.0.1:9", data_url=answering.url + "/"
    )
    at = "2017-06-01T20:00:00Z"
    answering.body = json.dumps({"trades": {"S01": {"p": 12.5, "t": at}, "S02": {"p": "3", "t": at}}}).encode()
    assert broker.latest_trades(["S02", "S01"])["S01"][0] == Decimal("12.5")
    answering.body = json.dumps({"bars": {"S01": [{"t": at, "c": 12.5, "v": 1000}]}, "next_page_token": None}).encode()
    assert broker.daily_bars(["S01"], date(2017, 6, 1), date(2017, 6, 1)) == {
        "S01": [(date(2017, 6, 1), Decimal("12.5"), Decimal(1000))]
    }
    answering.body = json.dumps(
        {
            "corporate_actions": {
                "forward_splits": [{"symbol": "S01", "ex_date": "2017-06-02", "new_rate": 2, "old_rate": 1}]
            }
        }
    ).encode()
    assert broker.splits(date(2017, 6, 1), date(2017, 6, 9)) == {"S01": [(date(2017, 6, 2), Decimal(2))]}
    assert [path.split("?")[0] for path in answering.gets] == [
        "/v2/stocks/trades/latest",
        "/v2/stocks/bars",
        "/v1/corporate-actions",
    ]
    broker.close()


def test_an_average_that_a_division_left_is_read_and_an_impossible_amount_is_not() -> None:
    "One such number once hid every order of an account."
    seventh = Decimal(100) / Decimal(7) / Decimal("1.1")
    assert abs(decimal(str(seventh)) - seventh) < Decimal("1e-15")
    for nonsense in ("1e40", "1e-40", "NaN", "Infinity"):
        with pytest.raises(ValueError, match="amount"):
            decimal(nonsense)
