"The trade_updates stream over real websockets."

import asyncio
import contextlib
import json
import threading
from datetime import date

import websockets
from alpaca.trading.stream import TradingStream

from tradenb.core.clock import new_york, sleep

KEYS = ("PKTEST", "secret-of-the-test")
MONDAY = date(2024, 3, 4)
ORDER = {"symbol": "ACME", "side": "buy", "type": "market", "time_in_force": "cls"}


def wait_until(true, seconds=5):
    for _ in range(int(seconds * 100)):
        if true():
            return
        sleep(0.01)
    raise AssertionError("it did not happen")


def address(exchange) -> str:
    return exchange.url.replace("http", "ws") + "/stream"


def listen(exchange) -> tuple[TradingStream, list]:
    heard = []

    async def remember(update):
        heard.append(update)

    before = exchange.app.state.hub.count
    stream = TradingStream(*KEYS, url_override=address(exchange))
    stream.subscribe_trade_updates(remember)
    threading.Thread(target=stream.run, daemon=True).start()
    wait_until(lambda: exchange.app.state.hub.count > before)
    return stream, heard


def test_every_listener_hears_every_event_in_order(serve):
    exchange = serve()
    streams = [listen(exchange) for _ in range(2)]
    for qty in range(1, 31):
        exchange.http.post("/v2/orders", json=ORDER | {"qty": qty}).raise_for_status()
    exchange.http.delete("/v2/orders/" + exchange.http.get("/v2/orders?limit=1").json()[0]["id"])
    exchange.step(new_york(MONDAY, 18))
    told = 30 + 1 + 29 + 29
    wait_until(lambda: all(len(heard) == told for _, heard in streams))
    one, two = ([(u.event, u.execution_id, u.order.status) for u in heard] for _, heard in streams)
    assert one == two
    assert [e for e, _, _ in one] == ["accepted"] * 30 + ["canceled"] + ["new"] * 29 + ["fill"] * 29
    assert streams[0][1][-1].position_qty == sum(range(1, 30))
    ids = {line["execution_id"] for line in exchange.http.get("/v2/account/activities/FILL").json()}
    assert {str(u.execution_id) for _, heard in streams for u in heard if u.event == "fill"} == ids
    for stream, _ in streams:
        stream.stop()


def test_partial_fills_and_expiries_are_told(serve):
    exchange = serve()
    stream, heard = listen(exchange)
    exchange.http.post("/v2/orders", json=ORDER | {"symbol": "BETA", "qty": 500})
    exchange.step(new_york(MONDAY, 18))
    wait_until(lambda: len(heard) == 4)
    assert [(u.event, u.qty) for u in heard] == [
        ("accepted", None),
        ("new", None),
        ("partial_fill", 100),
        ("expired", None),
    ]
    stream.stop()


def talk(exchange, *messages: str | bytes) -> list[dict]:
    "Send raw messages; what came back until silence or goodbye."

    async def run() -> list[dict]:
        answers = []
        async with websockets.connect(address(exchange)) as socket:
            for message in messages:
                await socket.send(message)
            with contextlib.suppress(TimeoutError, websockets.ConnectionClosed):
                while True:
                    answers.append(json.loads(await asyncio.wait_for(socket.recv(), 0.3)))
        return answers

    return asyncio.run(run())


def login(key="PKTEST", secret="secret-of-the-test") -> str:
    return json.dumps({"action": "authenticate", "data": {"key_id": key, "secret_key": secret}})


def test_a_stranger_is_told_so_and_sent_away(serve):
    exchange = serve()
    for first in (login(secret="no"), "nonsense", "[]", '{"action": "listen"}', '{"data": 5}', login("\ud800")):
        (answer,) = talk(exchange, first)
        assert answer == {"stream": "authorization", "data": {"status": "unauthorized", "action": "authenticate"}}


def test_odd_messages_after_the_handshake_do_no_harm(serve):
    exchange = serve()
    listening = json.dumps({"action": "listen", "data": {"streams": ["trade_updates", "account_updates"]}})
    answers = talk(
        exchange,
        login(),
        "{",
        "5",
        '{"action": "listen", "data": {"streams": 5}}',
        '{"action": "listen", "data": []}',
        listening.encode(),
    )
    assert [a["data"] for a in answers] == [
        {"status": "authorized", "action": "authenticate"},
        {"streams": []},
        {"streams": ["trade_updates"]},
    ]
    wait_until(lambda: not exchange.app.state.hub.count)
    assert exchange.http.get("/v2/clock").status_code == 200
