"The trade_updates stream over real websockets."

import asyncio
import base64
import contextlib
import json
import os
import socket
import sqlite3
import threading
from datetime import date

import httpx
import websockets
from alpaca.trading.stream import TradingStream

from tests.patience import PATIENCE_S, wait_until
from tradenb.core.clock import new_york
from tradenb.exchange.stream import Listener

KEYS = ("PKTEST", "secret-of-the-test")
MONDAY = date(2024, 3, 4)
ORDER = {"symbol": "ACME", "side": "buy", "type": "market", "time_in_force": "cls"}


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


def talk(exchange, *messages: str | bytes, answered: int) -> list[dict]:
    "Send raw messages; what came back until goodbye, or until nothing follows the `answered` that are sure to come."

    async def run() -> list[dict]:
        answers = []
        async with websockets.connect(address(exchange)) as socket:
            for message in messages:
                await socket.send(message)
            with contextlib.suppress(TimeoutError, websockets.ConnectionClosed):
                while True:
                    patience = PATIENCE_S if len(answers) < answered else 0.3
                    answers.append(json.loads(await asyncio.wait_for(socket.recv(), patience)))
        return answers

    return asyncio.run(run())


def login(key="PKTEST", secret="secret-of-the-test") -> str:
    return json.dumps({"action": "authenticate", "data": {"key_id": key, "secret_key": secret}})


def test_a_stranger_is_told_so_and_sent_away(serve):
    exchange = serve()
    for first in (login(secret="no"), "nonsense", "[]", '{"data": 5}', login("\ud800")):
        (answer,) = talk(exchange, first, answered=1)
        assert answer == {"stream": "authorization", "data": {"status": "unauthorized", "action": "authenticate"}}


def test_who_listens_before_he_has_said_who_he_is_may_still_say_it(serve):
    listen = json.dumps({"action": "listen", "data": {"streams": ["trade_updates"]}})
    early, known, heard = talk(serve(), listen, login(), listen, answered=3)
    assert early == {"stream": "authorization", "data": {"status": "unauthorized", "action": "listen"}}
    assert known == {"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}}
    assert heard == {"stream": "listening", "data": {"streams": ["trade_updates"]}}


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
        answered=3,
    )
    assert [a["data"] for a in answers] == [
        {"status": "authorized", "action": "authenticate"},
        {"streams": []},
        {"streams": ["trade_updates"]},
    ]
    wait_until(lambda: not exchange.app.state.hub.count)
    assert exchange.http.get("/v2/clock").status_code == 200


# Accounts, and listeners that do not keep up.


def pair_of(exchange, name: str) -> tuple[str, str]:
    opened = exchange.http.post("/admin/accounts", json={"name": name}).json()
    return opened["key_id"], opened["secret_key"]


@contextlib.asynccontextmanager
async def listener(exchange, key: str = KEYS[0], secret: str = KEYS[1], **terms):
    "A raw client that listens."
    async with websockets.connect(address(exchange), **terms) as socket:
        await socket.send(login(key, secret))
        await socket.send(json.dumps({"action": "listen", "data": {"streams": ["trade_updates"]}}))
        for _ in range(2):
            await asyncio.wait_for(socket.recv(), PATIENCE_S)
        yield socket


async def told(socket, n: int, timeout: float = PATIENCE_S) -> list[str]:
    "The client's names of the next n events, with their kinds."
    found = [json.loads(await asyncio.wait_for(socket.recv(), timeout))["data"] for _ in range(n)]
    return [f"{m['event']} {m['order']['client_order_id']}" for m in found]


async def send(exchange, name: str, key: str = KEYS[0], secret: str = KEYS[1], **terms) -> None:
    headers = {"APCA-API-KEY-ID": key, "APCA-API-SECRET-KEY": secret}
    body = ORDER | {"qty": 1, "client_order_id": name} | terms
    async with httpx.AsyncClient(base_url=exchange.url, headers=headers) as http:
        (await http.post("/v2/orders", json=body)).raise_for_status()


def test_an_account_s_events_are_heard_by_its_own_listeners_alone(serve):
    exchange = serve()
    mine, yours = pair_of(exchange, "mine"), pair_of(exchange, "yours")

    async def run() -> tuple[list[str], list[str]]:
        async with listener(exchange, *mine) as one, listener(exchange, *yours) as two:
            await send(exchange, "a", *mine)
            await send(exchange, "b", *yours)
            await send(exchange, "c", *mine)
            return await told(one, 2), await told(two, 1)

    assert asyncio.run(run()) == (["accepted a", "accepted c"], ["accepted b"])


def test_an_event_is_on_disk_before_it_is_heard(serve, tmp_path):
    exchange = serve()

    async def run() -> None:
        async with listener(exchange) as socket:
            for n in range(20):
                await send(exchange, f"n{n}")
                (heard,) = await told(socket, 1)
                with contextlib.closing(sqlite3.connect(tmp_path / "exchange.db")) as other:
                    stored = other.execute("select count(*) from orders where body like ?", (f'%"n{n}"%',)).fetchone()
                assert (heard, stored) == (f"accepted n{n}", (1,))

    asyncio.run(run())


def test_a_dead_listener_is_cut_off_and_holds_up_neither_orders_nor_the_others(serve, monkeypatch):
    "It stops reading: first the kernel's buffers fill, then its queue, then its connection is reset."
    monkeypatch.setattr("tradenb.exchange.stream.MOST", 500)
    exchange = serve()
    hub, pair, caught = exchange.app.state.hub, pair_of(exchange, "dead"), []
    exchange.app.state.venue.listeners.append(lambda _book, events: caught.extend(events))

    async def run() -> list[str]:
        async with listener(exchange) as alive:
            dead = socket.socket()
            dead.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            host, port = exchange.url.removeprefix("http://").split(":")
            dead.connect((host, int(port)))
            await asyncio.to_thread(raw_listen, dead, login(*pair))
            await asyncio.to_thread(wait_until, lambda: hub.count == 2)
            heard = []
            for n in range(200):
                await send(exchange, f"n{n}")
                heard += await told(alive, 1)
                hub.publish("dead", caught[-1:] * 200)
                if hub.count == 1:
                    break
            dead.close()
            return heard

    heard = asyncio.run(run())
    assert heard == [f"accepted n{n}" for n in range(len(heard))]
    assert len(heard) < 200
    wait_until(lambda: hub.count == 0)


def raw_listen(raw: socket.socket, keys: str) -> None:
    "The handshake of a websocket by hand, and then nothing more is read."
    key = base64.b64encode(os.urandom(16)).decode()
    head = f"GET /stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    raw.sendall(head.encode())
    assert b"101" in raw.recv(4096)
    for message in (keys, json.dumps({"action": "listen", "data": {"streams": ["trade_updates"]}})):
        mask, body = os.urandom(4), message.encode()
        size = bytes([0x80 | len(body)]) if len(body) < 126 else bytes([0x80 | 126]) + len(body).to_bytes(2)
        raw.sendall(b"\x81" + size + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(body)))


def test_a_queue_that_is_full_hangs_up_once_and_keeps_what_it_has():
    ended = []
    slow = Listener(lambda: ended.append(1), most=2)
    for n in range(3):
        slow.put(str(n))
    assert (slow.waiting.qsize(), ended) == (2, [1])


# Fault plans on the stream.


def under(exchange, rules: list[dict], names: list[str], expected: int) -> list[str]:
    "What a listener hears of orders under a plan."
    exchange.http.post("/admin/faults", json={"seed": 7, "rules": rules}).raise_for_status()

    async def run() -> list[str]:
        async with listener(exchange) as socket:
            for name in names:
                await send(exchange, name)
            return await told(socket, expected)

    return asyncio.run(run())


def test_events_are_dropped_doubled_and_late_as_planned(serve):
    exchange = serve()
    on = {"on": "trade_updates/accepted"}
    assert under(exchange, [on | {"kind": "drop_event", "times": 2}], ["a", "b", "c"], 1) == ["accepted c"]
    assert under(exchange, [on | {"kind": "duplicate_event", "after": 1, "times": 1}], ["d", "e"], 3) == [
        "accepted d", "accepted e", "accepted e",
    ]  # fmt: skip
    late = [on | {"kind": "late_event", "seconds": 0.3, "times": 1}]
    assert under(exchange, late, ["f", "g"], 2) == ["accepted g", "accepted f"]
    told = exchange.http.get("/admin/faults").json()
    assert [(d["kind"], d["subject"]) for d in told["done"]] == [("late_event", "trade_updates/accepted/ACME")]


def test_events_of_one_moment_change_places_as_planned(serve):
    exchange = serve()
    exchange.http.post("/v2/orders", json=ORDER | {"qty": 1, "client_order_id": "a"}).raise_for_status()
    exchange.http.post("/admin/faults", json={"rules": [{"kind": "reorder_events", "on": "trade_updates/new"}]})

    async def run() -> list[str]:
        async with listener(exchange) as socket:
            await asyncio.to_thread(exchange.step, new_york(MONDAY, 18))
            return await told(socket, 2)

    assert sorted(asyncio.run(run())) == ["fill a", "new a"]


def test_a_planned_disconnect_loses_the_event_and_the_stock_client_comes_back(serve):
    exchange = serve()
    stream, heard = listen(exchange)
    stream._reconnect_min_backoff = stream._reconnect_max_backoff = 0.05
    rule = {"kind": "disconnect", "on": "trade_updates/accepted", "times": 1}
    exchange.http.post("/admin/faults", json={"rules": [rule]}).raise_for_status()
    exchange.http.post("/v2/orders", json=ORDER | {"qty": 1, "client_order_id": "lost"}).raise_for_status()
    wait_until(lambda: exchange.app.state.hub.count == 0)
    wait_until(lambda: exchange.app.state.hub.count == 1)
    exchange.http.post("/v2/orders", json=ORDER | {"qty": 1, "client_order_id": "heard"}).raise_for_status()
    wait_until(lambda: heard)
    assert [u.order.client_order_id for u in heard] == ["heard"]
    stream.stop()


def test_whoever_never_says_who_it_is_is_sent_away(serve, monkeypatch):
    monkeypatch.setattr("tradenb.exchange.stream.PATIENCE_S", 0.2)
    exchange = serve()

    async def run() -> None:
        async with websockets.connect(address(exchange)) as socket:
            with contextlib.suppress(websockets.ConnectionClosed):
                await asyncio.wait_for(socket.recv(), PATIENCE_S)

    asyncio.run(run())
    assert exchange.app.state.hub.count == 0


def test_whoever_asks_to_listen_again_and_again_without_keys_is_sent_away(serve, monkeypatch):
    monkeypatch.setattr("tradenb.exchange.stream.PATIENCE_S", 0.2)

    async def run() -> None:
        async with websockets.connect(address(serve())) as socket, asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(websockets.ConnectionClosed):
                while True:
                    await socket.send('{"action": "listen"}')
                    assert json.loads(await socket.recv())["data"]["status"] == "unauthorized"

    asyncio.run(run())
