"The market data websocket through stock alpaca-py, and as strangers and slow readers meet it."

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgpack
import pytest
import websockets
from alpaca.data.live import StockDataStream
from alpaca.data.models import Bar, Quote, Trade, TradingStatus
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patience import PATIENCE_S, wait_until
from tradenb.core.clock import new_york, sleep
from tradenb.exchange.feed import Feed, write_rows
from tradenb.exchange.market_stream import LETTERS, Subscription, as_json, as_msgpack, changed, told_at, understood
from tradenb.exchange.venue import Moment

KEYS = ("PKTEST", "secret-of-the-test")
FRIDAY, MONDAY, TUESDAY = date(2024, 3, 1), date(2024, 3, 4), date(2024, 3, 5)


@contextlib.contextmanager
def listening(
    exchange: Any, *channels: str, symbols: tuple[str, ...] = ("*",)
) -> Iterator[tuple[StockDataStream, list]]:
    "The stock client, subscribed to channels, and what it heard."
    heard: list = []

    async def remember(message: object) -> None:
        heard.append(message)

    tape = exchange.app.state.tape
    subscribed = lambda: sum(c.subscription != Subscription() for c in list(tape.connections))
    before = subscribed()
    stream = StockDataStream(*KEYS, url_override=exchange.url.replace("http", "ws") + "/v2/iex")
    for channel in channels:
        getattr(stream, f"subscribe_{channel}")(remember, *symbols)
    thread = threading.Thread(target=stream.run, daemon=True)
    thread.start()
    wait_until(lambda: subscribed() > before)
    yield stream, heard
    stream.stop()
    asyncio.run_coroutine_threadsafe(stream.close(), stream._loop)  # it looks at `stop` every five seconds
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_a_day_of_the_market_through_the_stock_client(serve):
    exchange = serve(actions=[("BETA", TUESDAY, "delisting", 1.0, 21.0, MONDAY)])
    with listening(exchange, "trades", "quotes", "daily_bars", "trading_statuses", "bars", "updated_bars") as (
        _,
        heard,
    ):
        exchange.step(new_york(MONDAY, 12))
        wait_until(lambda: len(heard) == 4)
        assert {(type(m), m.symbol) for m in heard} == {(kind, s) for kind in (Trade, Quote) for s in ("ACME", "BETA")}
        assert [(m.price, m.timestamp) for m in heard if isinstance(m, Trade)] == [
            (100.0, new_york(MONDAY, 9, 30)), (20.0, new_york(MONDAY, 9, 30)),
        ]  # fmt: skip
        exchange.step(new_york(TUESDAY, 4))
        wait_until(lambda: len(heard) == 11)
    bar = next(m for m in heard if isinstance(m, Bar) and m.symbol == "ACME")
    assert (bar.open, bar.high, bar.low, bar.close, bar.volume) == (100.0, 102.0, 98.0, 101.0, 50_000)
    assert bar.timestamp == new_york(MONDAY, 0)
    quote = [m for m in heard if isinstance(m, Quote)][-1]
    assert quote.bid_price < 21.0 < quote.ask_price
    (halt,) = (m for m in heard if isinstance(m, TradingStatus))
    assert (halt.symbol, halt.timestamp, halt.status_message) == ("BETA", new_york(TUESDAY, 4), "Trading Halt")


def test_only_what_was_subscribed_to_is_heard(serve):
    exchange = serve()
    with listening(exchange, "trades", symbols=("BETA",)) as (stream, heard):
        exchange.step(new_york(MONDAY, 18))
        wait_until(lambda: len(heard) == 2)
        assert [(m.symbol, m.price) for m in heard] == [("BETA", 20.0), ("BETA", 21.0)]
        stream.unsubscribe_trades("BETA")
        wait_until(lambda: all(c.subscription == Subscription() for c in list(exchange.app.state.tape.connections)))
        exchange.step(new_york(TUESDAY, 18))
        sleep(0.2)
        assert len(heard) == 2


def test_subscribers_come_and_go_while_the_clock_moves(serve):
    exchange = serve()
    with listening(exchange, "trades"), listening(exchange, "daily_bars") as (_, bars):
        exchange.step(new_york(MONDAY, 18))
        wait_until(lambda: len(bars) == 2)
    wait_until(lambda: not exchange.app.state.tape.connections)
    exchange.step(new_york(TUESDAY, 18))
    assert len(bars) == 2


def talk(exchange: Any, *messages: dict | str | bytes, answered: int, path: str = "/v2/sip", header: str = "") -> list:
    "Send messages in JSON, or as they are; all entries of what came back until goodbye, or until nothing follows the `answered` that are sure to come."

    async def run() -> list:
        answers: list = []
        headers = {"Content-Type": header} if header else {}
        async with websockets.connect(exchange.url.replace("http", "ws") + path, additional_headers=headers) as socket:
            for message in messages:
                await socket.send(json.dumps(message) if isinstance(message, dict) else message)
            with contextlib.suppress(TimeoutError, websockets.ConnectionClosed):
                while True:
                    patience = PATIENCE_S if len(answers) < answered else 0.3
                    frame = await asyncio.wait_for(socket.recv(), patience)
                    answers += msgpack.unpackb(frame) if isinstance(frame, bytes) else json.loads(frame)
        return answers

    return asyncio.run(run())


LOGIN = {"action": "auth", "key": KEYS[0], "secret": KEYS[1]}


def test_refusals_have_alpaca_s_numbers(serve):
    exchange = serve()
    codes = lambda answers: [a.get("code", a.get("msg", a["T"])) for a in answers]
    assert codes(talk(exchange, {"action": "subscribe", "trades": ["ACME"]}, answered=2)) == ["connected", 401]
    assert codes(talk(exchange, LOGIN | {"secret": "no"}, LOGIN, answered=2)) == ["connected", 402]
    odd = [
        "nonsense",
        "[]",
        {"action": "dance"},
        {"action": "subscribe", "trades": "ACME"},
        {"action": "subscribe", "candles": ["ACME"]},
    ]
    assert codes(talk(exchange, LOGIN, LOGIN, *odd, answered=8)) == [
        "connected",
        "authenticated",
        403,
        400,
        400,
        400,
        410,
        410,
    ]
    assert codes(talk(exchange, {"action": "subscribe"}, LOGIN, answered=3)) == ["connected", 401, "authenticated"]


def test_json_and_msgpack_say_the_same(serve):
    exchange = serve()
    ask = {"action": "subscribe", "trades": ["BETA", "ACME"], "lulds": ["*"]}
    plain = talk(exchange, LOGIN, ask, answered=3)
    packed = talk(exchange, *map(msgpack.packb, (LOGIN, ask)), header="application/msgpack", answered=3)
    assert plain == packed
    assert plain[-1] == {
        "T": "subscription", "trades": ["ACME", "BETA"], "quotes": [], "bars": [], "updatedBars": [], "dailyBars": [],
        "statuses": [], "lulds": ["*"], "corrections": [], "cancelErrors": [],
    }  # fmt: skip


def test_an_account_of_one_s_own_opens_the_tape(serve):
    exchange = serve()
    opened = exchange.http.post("/admin/accounts", json={"name": "mine"}).json()
    answers = talk(exchange, {"action": "auth", "key": opened["key_id"], "secret": opened["secret_key"]}, answered=2)
    assert answers[-1] == {"T": "success", "msg": "authenticated"}


def test_a_listener_that_does_not_read_is_cut_off_and_holds_nobody_up(serve, monkeypatch):
    "Five hundred names print twice a session; the dead listener's queue is bounded."
    rows = [(f"N{i:03}", day, 9.0, 9.5, 8.5, 9.0, 900) for i in range(500) for day in (FRIDAY, MONDAY, TUESDAY)]
    monkeypatch.setattr("tradenb.exchange.stream.MOST", 2)
    exchange = serve(bars=rows)
    tape = exchange.app.state.tape

    async def deaf() -> None:
        url = exchange.url.replace("http", "ws") + "/v2/sip"
        async with websockets.connect(url, max_queue=1) as socket:
            await socket.send(json.dumps(LOGIN))
            await socket.send(json.dumps({"action": "subscribe", "trades": ["*"], "quotes": ["*"], "dailyBars": ["*"]}))
            await asyncio.to_thread(wait_until, lambda: any(c.subscription.symbols["quotes"] for c in tape.connections))
            await asyncio.to_thread(exchange.step, new_york(MONDAY, 18))
            await asyncio.to_thread(wait_until, lambda: not tape.connections)

    asyncio.run(deaf())
    assert exchange.http.get("/v2/clock").status_code == 200


names = st.lists(st.sampled_from(["ACME", "BETA", "CORE", "*"]), max_size=4)
messages = st.builds(
    lambda action, channels: {"action": action, **channels},
    st.sampled_from(["subscribe", "unsubscribe"]),
    st.dictionaries(st.sampled_from(sorted(LETTERS)), names, max_size=3),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(messages, max_size=8))
def test_a_subscription_is_what_was_asked_for_less_what_was_given_back(asked):
    found, expected = Subscription(), {channel: set() for channel in LETTERS}
    for message in asked:
        found = changed(found, message)
        for channel, symbols in message.items():
            if channel != "action":
                keep = set.union if message["action"] == "subscribe" else set.difference
                expected[channel] = keep(expected[channel], symbols)
    assert {channel: set(symbols) for channel, symbols in found.symbols.items()} == expected
    assert found.wants({"T": "t", "S": "ACME"}) == bool(expected["trades"] & {"ACME", "*"})


@given(st.binary(max_size=40) | st.text(max_size=40))
def test_no_message_is_misunderstood_into_a_crash(text):
    for codec in (as_json, as_msgpack):
        assert isinstance(understood(text, codec), dict | None)


def test_every_print_of_a_day_is_in_the_feed_and_none_before_its_time(tmp_path: Path):
    feed = Feed(write_rows(tmp_path, [("ACME", MONDAY, 100.0, 140.0, 60.0, 139.0, 9_000)]))
    morning = told_at(feed, Moment.OPEN, MONDAY, Decimal(2))
    assert not {140.0, 60.0, 139.0} & {m.get("p") for m in morning}
    assert [m["T"] for m in told_at(feed, Moment.CLOSE, MONDAY, Decimal(2))] == ["t", "q", "d"]
    assert told_at(feed, Moment.OPEN, TUESDAY, Decimal(2)) == []


@pytest.mark.parametrize("path", ["/v2/iex", "/v2/sip", "/v2/delayed_sip", "/v2/test"])
def test_every_feed_is_the_same_feed(serve, path):
    assert talk(serve(), LOGIN, answered=2, path=path)[-1]["msg"] == "authenticated"
