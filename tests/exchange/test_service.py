"Stock alpaca-py and plain HTTP against a running exchange."

import gc
import json
import threading
import weakref
from datetime import UTC, date, datetime
from decimal import Decimal

import httpx
import pytest
import requests
from alpaca.common.exceptions import APIError
from alpaca.data.historical import StockHistoricalDataClient
from alpaca.data.requests import (
    StockBarsRequest,
    StockLatestBarRequest,
    StockLatestQuoteRequest,
    StockLatestTradeRequest,
)
from alpaca.data.timeframe import TimeFrame
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import OrderSide, OrderStatus, OrderType, QueryOrderStatus, TimeInForce
from alpaca.trading.requests import (
    ClosePositionRequest,
    GetAssetsRequest,
    GetCalendarRequest,
    GetOrdersRequest,
    GetPortfolioHistoryRequest,
    LimitOrderRequest,
    MarketOrderRequest,
    ReplaceOrderRequest,
    StopLimitOrderRequest,
    StopOrderRequest,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.patience import wait_until
from tradenb.core.calendar import sessions
from tradenb.core.clock import new_york, sleep
from tradenb.core.errors import ConfigError, SourceError
from tradenb.core.settings import load
from tradenb.core.web import serving
from tradenb.exchange.faults import Plan, Rule
from tradenb.exchange.feed import write_rows
from tradenb.exchange.service import create_app, from_settings, horizon

from .conftest import Running

KEYS = ("PKTEST", "secret-of-the-test")
HEADERS = dict(zip(("APCA-API-KEY-ID", "APCA-API-SECRET-KEY"), KEYS, strict=True))
ORDER = {"symbol": "ACME", "side": "buy", "type": "market", "time_in_force": "cls", "qty": 10}
FRIDAY, MONDAY, TUESDAY, WEDNESDAY = date(2024, 3, 1), date(2024, 3, 4), date(2024, 3, 5), date(2024, 3, 6)


def market(symbol="ACME", qty=10, side=OrderSide.BUY, force=TimeInForce.CLS, **more) -> MarketOrderRequest:
    return MarketOrderRequest(symbol=symbol, qty=qty, side=side, time_in_force=force, **more)


def limit(price, symbol="ACME", qty=10, force=TimeInForce.DAY, **more) -> LimitOrderRequest:
    return LimitOrderRequest(symbol=symbol, qty=qty, side=OrderSide.BUY, time_in_force=force, limit_price=price, **more)


def test_a_day_of_trading_through_the_stock_client(serve):
    exchange = serve(slippage_bps=0)
    sent = exchange.trading.submit_order(market(client_order_id="day-1"))
    assert (sent.status, sent.qty, sent.type) == (OrderStatus.ACCEPTED, "10", OrderType.MARKET)
    assert exchange.step(new_york(MONDAY, 18))["sessions_closed"] == ["2024-03-04"]
    done = exchange.trading.get_order_by_client_id("day-1")
    assert (done.id, done.status, done.filled_avg_price, done.filled_qty) == (sent.id, OrderStatus.FILLED, "101", "10")
    assert done.filled_at == new_york(MONDAY, 16)
    position = exchange.trading.get_open_position("ACME")
    assert (position.qty, position.avg_entry_price, position.current_price) == ("10", "101.000000000", "101")
    account = exchange.trading.get_account()
    assert (account.cash, account.equity, account.last_equity) == ("998990", "1000000", "1000000")


def test_orders_are_listed_by_status_symbol_and_time(serve):
    exchange = serve()
    sent = [exchange.trading.submit_order(limit(50 + i, symbol=s)) for i, s in enumerate(["ACME", "ACME", "BETA"])]
    exchange.trading.cancel_order_by_id(sent[0].id)
    ids = lambda **terms: [o.id for o in exchange.trading.get_orders(GetOrdersRequest(**terms))]
    assert ids() == [sent[2].id, sent[1].id]
    assert ids(status=QueryOrderStatus.CLOSED) == [sent[0].id]
    assert ids(status=QueryOrderStatus.ALL, symbols=["ACME"], direction="asc") == [sent[0].id, sent[1].id]
    assert ids(status=QueryOrderStatus.ALL, limit=1) == [sent[2].id]
    assert ids(after=new_york(MONDAY, 9)) == []
    assert len(ids(after=new_york(MONDAY, 8), until=new_york(MONDAY, 9, 1))) == 2
    assert ids(after=new_york(MONDAY, 8), until=new_york(MONDAY, 9)) == []


def test_orders_are_replaced_and_canceled(serve):
    exchange = serve(at=new_york(MONDAY, 12))
    first, second = (exchange.trading.submit_order(limit(price)) for price in (50, 51))
    newer = exchange.trading.replace_order_by_id(first.id, ReplaceOrderRequest(qty=5, limit_price=52))
    assert (newer.replaces, newer.qty, newer.limit_price) == (first.id, "5", "52")
    canceled = exchange.trading.cancel_orders()
    assert {c.id for c in canceled} == {second.id, newer.id}
    assert [exchange.trading.get_order_by_id(o.id).status for o in (first, second, newer)] == [
        OrderStatus.REPLACED,
        OrderStatus.CANCELED,
        OrderStatus.CANCELED,
    ]


def test_positions_are_closed_by_share_and_altogether(serve):
    exchange = serve()
    for symbol, side in (("ACME", OrderSide.BUY), ("BETA", OrderSide.SELL)):
        exchange.trading.submit_order(market(symbol, 40, side, TimeInForce.OPG))
    exchange.step(new_york(MONDAY, 12))
    part = exchange.trading.close_position("ACME", ClosePositionRequest(percentage="25"))
    assert (part.qty, part.side) == ("10", OrderSide.SELL)
    rest = exchange.trading.close_all_positions(cancel_orders=True)
    assert [(r.symbol, r.status, r.body.qty, r.body.side) for r in rest] == [
        ("ACME", 200, "40", "sell"),
        ("BETA", 200, "40", "buy"),
    ]
    exchange.step(new_york(MONDAY, 18))
    assert exchange.trading.get_all_positions() == []


def test_clock_calendar_and_assets(serve):
    exchange = serve()
    clock = exchange.trading.get_clock()
    assert (clock.is_open, clock.timestamp, clock.next_open) == (False, new_york(MONDAY, 9), new_york(MONDAY, 9, 30))
    exchange.step(new_york(MONDAY, 12))
    clock = exchange.trading.get_clock()
    assert (clock.is_open, clock.next_close, clock.next_open) == (True, new_york(MONDAY, 16), new_york(TUESDAY, 9, 30))
    days = exchange.trading.get_calendar(GetCalendarRequest(start=date(2024, 11, 27), end=date(2024, 11, 30)))
    assert [(d.date.day, f"{d.close:%H:%M}") for d in days] == [(27, "16:00"), (29, "13:00")]
    assert [a.symbol for a in exchange.trading.get_all_assets(GetAssetsRequest(status="active"))] == ["ACME", "BETA"]
    asset = exchange.trading.get_asset("ACME")
    assert exchange.trading.get_asset(asset.id) == asset


def test_an_asset_is_unknown_until_it_is_listed(serve):
    exchange = serve(
        bars=[
            ("ACME", FRIDAY, 9.0, 9.0, 9.0, 9.0, 9),
            ("ACME", MONDAY, 9.0, 9.0, 9.0, 9.0, 9),
            ("NEWCO", TUESDAY, 9.0, 9.0, 9.0, 9.0, 9),
        ]
    )
    with pytest.raises(APIError) as unknown:
        exchange.trading.get_asset("NEWCO")
    assert unknown.value.status_code == 404
    exchange.step(new_york(TUESDAY, 9))
    assert exchange.trading.get_asset("NEWCO").tradable


def test_activities_come_in_pages_newest_first(serve):
    exchange = serve(actions=[("ACME", TUESDAY, "split", 2.0, 0.25)], fee_bps=10, slippage_bps=0)
    exchange.trading.submit_order(market())
    exchange.step(new_york(TUESDAY, 9))
    kinds, token = [], None
    while page := exchange.http.get(
        "/v2/account/activities", params={"page_size": 2} | ({"page_token": token} if token else {})
    ).json():
        kinds += [line["activity_type"] for line in page]
        token = page[-1]["id"]
    assert kinds == ["DIV", "SPLIT", "FEE", "FILL", "CSD"]
    (fill,) = exchange.http.get("/v2/account/activities/FILL").json()
    assert (fill["side"], fill["qty"], fill["price"], fill["cum_qty"], fill["leaves_qty"]) == (
        "buy",
        "10",
        "101",
        "10",
        "0",
    )
    (dividend,) = exchange.http.get("/v2/account/activities/DIV", params={"date": "2024-03-05"}).json()
    assert (dividend["net_amount"], dividend["qty"], dividend["per_share_amount"]) == ("5", "20", "0.25")
    (split,) = exchange.http.get("/v2/account/activities", params={"activity_types": "SPLIT"}).json()
    assert (split["qty"], split["ratio"], split["net_amount"]) == ("10", "2", "0")
    assert exchange.http.get("/v2/account/activities", params={"after": "2024-03-05T12:00:00Z"}).json() == []
    assert exchange.http.get("/v2/account/activities", params={"page_token": "nonsense"}).status_code == 422


def test_the_portfolio_s_history_has_the_equity_of_every_close(serve):
    exchange = serve(slippage_bps=0)
    exchange.trading.submit_order(market(qty=100, force=TimeInForce.OPG))
    exchange.step(new_york(TUESDAY, 18))
    history = exchange.trading.get_portfolio_history(GetPortfolioHistoryRequest(timeframe="1D"))
    assert (history.equity, history.profit_loss, history.base_value) == ([1_000_100, 1_000_400], [100, 400], 1_000_000)


def data_client(exchange) -> StockHistoricalDataClient:
    return StockHistoricalDataClient("PKTEST", "secret-of-the-test", url_override=exchange.url)


def test_market_data_through_the_stock_client(serve):
    exchange = serve(at=new_york(TUESDAY, 12))
    client = data_client(exchange)
    bars = client.get_stock_bars(
        StockBarsRequest(
            symbol_or_symbols=["ACME", "BETA"], timeframe=TimeFrame.Day, start=datetime(2024, 3, 1, tzinfo=UTC)
        )
    )
    assert [(b.timestamp, b.close) for b in bars["ACME"]] == [(new_york(FRIDAY, 0), 100), (new_york(MONDAY, 0), 101)]
    assert client.get_stock_latest_bar(StockLatestBarRequest(symbol_or_symbols="ACME"))["ACME"].close == 101
    trade = client.get_stock_latest_trade(StockLatestTradeRequest(symbol_or_symbols="ACME"))["ACME"]
    assert (trade.price, trade.timestamp) == (101, new_york(TUESDAY, 9, 30))
    quote = client.get_stock_latest_quote(StockLatestQuoteRequest(symbol_or_symbols="ACME"))["ACME"]
    assert quote.bid_price < 101 < quote.ask_price


def test_bars_come_in_pages(serve):
    exchange, found, token = serve(at=new_york(WEDNESDAY, 17)), [], None
    while True:
        params = {"symbols": "ACME,BETA", "start": "2024-01-01", "limit": 3} | ({"page_token": token} if token else {})
        body = exchange.http.get("/v2/stocks/bars", params=params).json()
        found += [(s, b["c"]) for s, bars in body["bars"].items() for b in bars]
        if (token := body["next_page_token"]) is None:
            break
    assert found == [("ACME", c) for c in (100, 101, 104, 105)] + [("BETA", c) for c in (20, 21, 21.5)]


def test_no_answer_depends_on_what_has_not_happened_yet(serve, tmp_path):
    "Two feeds that differ from Monday's close on; until then every GET answers the same bytes."
    rows = [("ACME", FRIDAY, 99.0, 101.0, 98.0, 100.0, 50_000)]
    futures = (
        [("ACME", MONDAY, 100.0, 140.0, 98.0, 139.0, 9_000), ("ACME", TUESDAY, 150.0, 160.0, 140.0, 155.0, 7)],
        [("ACME", MONDAY, 100.0, 101.0, 55.0, 56.0, 50_000), ("ACME", TUESDAY, 40.0, 60.0, 30.0, 35.0, 80)],
    )
    paths = [
        "/v2/account",
        "/v2/positions",
        "/v2/orders?status=all",
        "/v2/assets",
        "/v2/account/activities",
        "/v2/account/portfolio/history",
        "/v2/clock",
        "/v2/stocks/bars?symbols=ACME&start=2024-01-01&end=2024-12-31",
        "/v2/stocks/bars/latest?symbols=ACME",
        "/v2/stocks/trades/latest?symbols=ACME",
        "/v2/stocks/quotes/latest?symbols=ACME",
        "/v1/corporate-actions?start=2024-01-01&end=2024-12-31",
    ]
    answers = []
    for i, future in enumerate(futures):
        (tmp_path / "exchange.db").unlink(missing_ok=True)
        exchange = serve(bars=rows + future, actions=[("ACME", TUESDAY, "split", 1.0 + i, 0.0)])
        exchange.trading.submit_order(market(client_order_id="a", force=TimeInForce.OPG))
        exchange.trading.submit_order(limit(60, client_order_id="b"))
        seen = []
        for minute in ((9, 0), (9, 29), (9, 30), (12, 0), (15, 59)):
            exchange.step(new_york(MONDAY, *minute))
            seen += [exchange.http.get(path).text for path in paths]
        answers.append(seen)
        exchange.http.close()
        exchange.app.state.venue.store.close()
    assert answers[0] == answers[1]


def test_keys_are_needed_everywhere(serve):
    exchange = serve()
    for path in (
        "/v2/account",
        "/v2/orders",
        "/v2/stocks/bars/latest?symbols=ACME",
        "/v1/corporate-actions",
        "/admin/clock",
    ):
        assert httpx.get(exchange.url + path).status_code == 401
        wrong = httpx.get(exchange.url + path, headers={"APCA-API-KEY-ID": "PKTEST", "APCA-API-SECRET-KEY": "no"})
        assert (wrong.status_code, wrong.json()["code"]) == (403, 40310000)
    assert httpx.post(exchange.url + "/admin/clock", json={"to": "2024-03-05T12:00:00Z"}).status_code == 401
    assert exchange.http.get("/admin/clock").json()["now"] == "2024-03-04T14:00:00Z"


def test_errors_have_a_code_and_a_message(serve):
    http = serve().http
    found = [
        http.post("/v2/orders", content="{", headers={"content-type": "application/json"}),
        http.post("/v2/orders", json=[]),
        http.post("/v2/orders", json={"symbol": "ACME"}),
        http.get("/v2/orders/none"),
        http.get("/v2/orders:by_client_order_id?client_order_id=none"),
        http.get("/v2/positions/ACME"),
        http.get("/v2/assets/NONE"),
        http.get("/v2/nowhere"),
        http.get("/v2/orders?limit=0"),
        http.get("/v2/calendar?start=2099-01-01"),
        http.post("/admin/clock", json={"to": "2024-03-01T12:00:00Z"}),
        http.post("/admin/clock", json={"to": "2024-03-05T12:00:00"}),
        http.get("/v2/stocks/bars?symbols=ACME&timeframe=1Min"),
    ]
    assert [r.status_code for r in found] == [400, 422, 422, 404, 404, 404, 404, 404, 422, 422, 422, 422, 422]
    assert all(isinstance(r.json()["code"], int) and r.json()["message"] for r in found)


def test_a_body_that_is_not_called_json_is_told_the_header(serve):
    said = serve().http.post("/admin/clock", content='{"speed": 1}', headers={"content-type": "text/plain"})
    assert said.status_code == 422 and said.json()["message"].endswith("with the header Content-Type: application/json")


anything = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        [
            "ACME",
            "buy",
            "sell",
            "market",
            "limit",
            "stop",
            "stop_limit",
            "day",
            "gtc",
            "cls",
            "opg",
            "ioc",
            "fok",
            "1",
            "0.1",
            "1e9",
            "-1",
            "NaN",
            "1e-9",
        ]
    )
)
FIELDS = ["symbol", "side", "type", "time_in_force", "qty", "notional", "limit_price", "stop_price", "client_order_id"]
GOOD = {"symbol": "ACME", "side": "buy", "type": "market", "time_in_force": "day", "qty": "1"}


def test_no_body_makes_the_server_fail(serve):
    http = serve().http

    @settings(max_examples=150, deadline=None)
    @given(st.dictionaries(st.sampled_from(FIELDS), anything, max_size=5), st.booleans(), anything)
    def attack(changes, trade, to):
        body = json.dumps(GOOD | changes if trade else {"to": to})
        answer = http.post(
            "/v2/orders" if trade else "/admin/clock", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code in (200, 400, 403, 422), answer.text
        assert answer.status_code == 200 or isinstance(answer.json()["code"], int)

    attack()


def test_a_server_without_a_feed_or_keys_does_not_start(tmp_path, serve):
    with pytest.raises(SourceError, match=r"bars\.parquet"):
        create_app(tmp_path / "none", tmp_path / "x.db", key_id="a", secret_key="b")
    with pytest.raises(ConfigError, match="BROKER_KEY_ID"):
        create_app(tmp_path / "none", tmp_path / "x.db")


@pytest.mark.parametrize(
    ("setting", "value", "range_"),
    [
        ("slippage_bps", 20_000, "0 to 1000"),
        ("slippage_bps", -1, "0 to 1000"),
        ("fee_bps", float("inf"), "0 to 1000"),
        ("volume_share", 1.5, "0.0001 to 1"),
        ("volume_share", 0, "0.0001 to 1"),
        ("volume_share", float("nan"), "0.0001 to 1"),
        ("multiplier", 5, "1 to 4"),
        ("cash", Decimal(10) ** 30, "0 to 1000000000000"),
        ("speed", 1e9, "0 to 100000"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_is_written(tmp_path, feed, setting, value, range_):
    with pytest.raises(ConfigError) as wrong:
        create_app(tmp_path / "feed", tmp_path / "x.db", key_id="a", secret_key="b", **{setting: value})
    assert str(wrong.value) == f"exchange.{setting}={value}: expected a number from {range_}"
    assert not (tmp_path / "x.db").exists()


def test_a_wrong_word_in_a_plan_is_named(serve):
    reply = serve().http.post("/admin/faults", json={"rules": [{"kind": "slwo"}]})
    assert reply.status_code == 422
    assert reply.json()["message"].startswith("rules.0.kind: found 'slwo': Input should be 'timeout_before'")


def test_the_settings_describe_the_exchange(tmp_path, serve):
    serve()
    (tmp_path / "root" / "state").mkdir(parents=True)
    (tmp_path / "feed").rename(tmp_path / "root" / "state" / "feed")
    given = load(
        {"core.root": str(tmp_path / "root"), "exchange.cash": "5000", "exchange.multiplier": "2"},
        env={"TRADENB_EXECUTION__BROKER_KEY_ID": "k", "TRADENB_EXECUTION__BROKER_SECRET": "s"},
    )
    book = from_settings(given).state.venue.books["paper"]
    assert (book.account.cash, book.multiplier, book.venue.now) == (5000, 2, new_york(WEDNESDAY, 9))
    assert (tmp_path / "root" / "state" / "exchange.db").exists()


def test_orders_of_every_kind_survive_the_stock_client(serve):
    exchange, terms = serve(), {"symbol": "ACME", "side": OrderSide.BUY}
    requests = [
        MarketOrderRequest(**terms, time_in_force=TimeInForce.DAY, notional=150.5),
        MarketOrderRequest(**terms, time_in_force=TimeInForce.DAY, qty=0.25),
        StopOrderRequest(**terms, time_in_force=TimeInForce.GTC, qty=3, stop_price=103.5),
        StopLimitOrderRequest(**terms, time_in_force=TimeInForce.DAY, qty=3, stop_price=101.5, limit_price=101.75),
        MarketOrderRequest(**terms, time_in_force=TimeInForce.IOC, qty=2),
        LimitOrderRequest(**terms, time_in_force=TimeInForce.FOK, qty=2, limit_price=90),
        LimitOrderRequest(**terms, time_in_force=TimeInForce.OPG, qty=2, limit_price=100.5),
    ]
    sent = [exchange.trading.submit_order(request) for request in requests]
    exchange.step(new_york(MONDAY, 18))
    after = [exchange.trading.get_order_by_id(order.id) for order in sent]
    assert [o.status.value for o in after] == ["filled", "filled", "new", "filled", "filled", "canceled", "filled"]
    assert Decimal(101) < Decimal(after[3].filled_avg_price) <= Decimal("101.75")


def test_a_stopped_exchange_lets_go_of_its_feed(tmp_path, feed):
    "FastAPI's caches keep a reference to every endpoint: a process that runs many days would keep all their feeds."
    app = create_app(feed, tmp_path / "exchange.db", key_id="PKTEST", secret_key="secret-of-the-test")
    seen = weakref.ref(app.state.venue.feed)
    with serving(app) as url:
        assert httpx.get(f"{url}/health").status_code == 200
    del app
    gc.collect()
    assert seen() is None


# Accounts.


def account(exchange, name: str, **terms) -> TradingClient:
    opened = exchange.http.post("/admin/accounts", json={"name": name, **terms})
    assert opened.status_code == 201, opened.text
    return TradingClient(opened.json()["key_id"], opened.json()["secret_key"], url_override=exchange.url)


def test_accounts_share_the_market_and_nothing_else(serve):
    exchange = serve(slippage_bps=0)
    one, two = account(exchange, "one", cash="50000", multiplier="2"), account(exchange, "two", cash="9000.50")
    sent = one.submit_order(market(qty=100, client_order_id="same-name"))
    assert two.submit_order(market(qty=5, client_order_id="same-name")).id != sent.id
    with pytest.raises(APIError) as unknown:
        two.get_order_by_id(sent.id)
    assert unknown.value.status_code == 404
    two.cancel_orders()
    exchange.step(new_york(MONDAY, 18))
    assert [p.qty for p in one.get_all_positions()] == ["100"]
    assert two.get_all_positions() == exchange.trading.get_all_positions() == []
    told = {a["name"]: a for a in exchange.http.get("/admin/accounts").json()}
    assert {name: (a["cash"], a["multiplier"], a["positions"]) for name, a in told.items()} == {
        "paper": ("1000000", "4", 0), "one": ("39900", "2", 1), "two": ("9000.5", "4", 0),
    }  # fmt: skip
    assert one.get_account().account_number != two.get_account().account_number


def test_a_secret_is_told_once_and_stored_as_a_digest(serve, tmp_path):
    exchange = serve()
    opened = exchange.http.post("/admin/accounts", json={"name": "mine"}).json()
    listed = exchange.http.get("/admin/accounts").text
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("exchange.db*"))
    for secret in (opened["secret_key"], "secret-of-the-test"):
        assert secret not in listed
        assert secret.encode() not in stored
    assert opened["key_id"] in listed


def test_only_the_settings_pair_administers(serve):
    exchange = serve()
    mine = account(exchange, "mine")
    for method, path in (
        ("GET", "/clock"),
        ("POST", "/clock"),
        ("GET", "/accounts"),
        ("POST", "/faults"),
        ("POST", "/feed/reload"),
    ):
        with pytest.raises(APIError) as refused:
            mine._request(method, path, {}, api_version="admin")
        assert (refused.value.status_code, refused.value.code) == (403, 40310000)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"name": ""}, {"name": "a b"}, {"name": "paper"}, {"name": "x", "cash": "-1"}, {"name": "x", "cash": "NaN"},
     {"name": "x", "multiplier": 0}, {"name": "x", "multiplier": 5}, {"name": "x", "owner": "me"}, {"name": "x" * 65}],
)  # fmt: skip
def test_an_account_that_cannot_be_is_refused(serve, wrong):
    refused = serve().http.post("/admin/accounts", json=wrong)
    assert (refused.status_code, refused.json()["code"]) == (422, 40010001)


def test_accounts_orders_and_clock_survive_a_restart_and_the_old_secret_does_not(feed, tmp_path):
    start = lambda secret, **terms: create_app(feed, tmp_path / "x.db", key_id="PKTEST", secret_key=secret, **terms)
    with serving(start(KEYS[1], start=new_york(MONDAY, 9))) as url, httpx.Client(base_url=url, headers=HEADERS) as http:
        mine = account(Running(url, None, http, None), "mine", cash="7000")
        order = mine.submit_order(market(qty=3))
        http.post("/admin/clock", json={"to": new_york(MONDAY, 12).isoformat()}).raise_for_status()
    with serving(start("another", multiplier=2)) as url:
        found = TradingClient(mine._api_key, mine._secret_key, url_override=url)
        assert (found.get_order_by_id(order.id).status, found.get_account().cash) == (OrderStatus.NEW, "7000")
        assert found.get_clock().timestamp == new_york(MONDAY, 12)
        assert found.get_account().multiplier == "4"
        assert TradingClient("PKTEST", "another", url_override=url).get_account().multiplier == "2"
        assert httpx.get(f"{url}/v2/account", headers=HEADERS).status_code == 403


# The clock that runs.


def test_time_runs_at_its_speed_trades_the_sessions_on_its_way_and_stops_at_the_feed_s_end(feed, tmp_path):
    app = create_app(
        feed, tmp_path / "x.db", key_id=KEYS[0], secret_key=KEYS[1], start=new_york(TUESDAY, 15, 59), speed=120
    )
    venue = app.state.venue
    with serving(app) as url, httpx.Client(base_url=url, headers=HEADERS) as http:
        http.post("/v2/orders", json=ORDER | {"time_in_force": "day"}).raise_for_status()
        wait_until(lambda: venue.now >= new_york(TUESDAY, 16))
        assert http.get("/v2/positions").json()[0]["qty"] == "10"
        assert http.get("/admin/clock").json()["speed"] == 120
        http.post("/admin/clock", json={"speed": 100_000}).raise_for_status()
        end = new_york(WEDNESDAY, 20)
        wait_until(lambda: venue.now > end)
        wait_until(lambda: venue.now == horizon(venue))
        http.post("/admin/clock", json={"speed": 0}).raise_for_status()
        stood = venue.now
        sleep(0.6)
        assert venue.now == stood < new_york(date(2024, 3, 7), 9, 30)
        assert len(venue.books["paper"].closes) == 2
    assert not vars(venue)


def test_a_clock_that_is_told_nothing_stands(feed, tmp_path):
    app = create_app(feed, tmp_path / "x.db", key_id=KEYS[0], secret_key=KEYS[1], start=new_york(MONDAY, 9))
    with serving(app) as url:
        sleep(0.6)
        assert httpx.get(f"{url}/health").json()["now"] == "2024-03-04T14:00:00Z"
        for wrong in ({}, {"speed": -1}, {"speed": 1e6}, {"to": None}, {"too": "2024-03-05T12:00:00Z"}):
            assert httpx.post(f"{url}/admin/clock", json=wrong, headers=HEADERS).status_code == 422


def test_orders_are_taken_while_a_long_step_is_on_its_way(serve):
    days = sessions(date(2023, 11, 1), WEDNESDAY)
    rows = [("ACME", day, 99.0, 101.0, 98.0, 100.0, 50_000) for day in days]
    exchange = serve(bars=rows, at=new_york(days[0], 9))
    stepping = threading.Thread(target=exchange.step, args=(new_york(WEDNESDAY, 18),))
    stepping.start()
    taken = 0
    while stepping.is_alive():
        exchange.http.post(
            "/v2/orders", json=ORDER | {"time_in_force": "gtc", "type": "limit", "limit_price": 5}
        ).raise_for_status()
        taken += 1
    stepping.join()
    assert taken > 1
    assert exchange.http.get("/admin/clock").json()["now"] == "2024-03-06T23:00:00Z"


# The rate.


def test_there_is_a_rate_limit_only_where_one_is_asked_for(serve):
    exchange = serve(rate_limit=5)
    answers = [exchange.http.get("/v2/clock") for _ in range(7)]
    assert [a.status_code for a in answers] == [200] * 5 + [429] * 2
    assert (answers[-1].json()["code"], 0 < int(answers[-1].headers["retry-after"]) <= 60) == (42910000, True)
    assert httpx.get(f"{exchange.url}/health").status_code == 200


# Faults through the whole exchange.


def plan(exchange, *rules, seed=7) -> None:
    exchange.http.post("/admin/faults", json={"seed": seed, "rules": list(rules)}).raise_for_status()


def test_an_order_whose_answer_was_lost_is_there_and_one_that_never_arrived_is_not(serve):
    exchange = serve()
    exchange.trading._retry = 0
    for kind in (
        "reset_after",
        "reset_before",
        "gateway_timeout_after",
        "gateway_timeout_before",
        "reject",
        "server_error",
    ):
        plan(exchange, {"on": "POST /v2/orders", "kind": kind})
        with pytest.raises((APIError, requests.ConnectionError)):
            exchange.trading.submit_order(limit(50, client_order_id=kind))
    told = exchange.http.delete("/admin/faults").json()
    assert (told["count"], told["rules"][0]["fired"], told["done"][0]["subject"]) == (1, 1, "POST /v2/orders")
    assert told["done"][0]["account"] == "paper"
    assert {o.client_order_id for o in exchange.trading.get_orders()} == {"reset_after", "gateway_timeout_after"}


def test_the_stock_client_s_own_repeat_on_504_is_refused_as_a_duplicate(serve):
    "It posts again by itself; the name of the order is what keeps it from being there twice."
    exchange = serve()
    exchange.trading._retry, exchange.trading._retry_wait = 1, 0
    plan(exchange, {"on": "POST /v2/orders", "kind": "gateway_timeout_after", "times": 1})
    with pytest.raises(APIError) as refused:
        exchange.trading.submit_order(limit(50, client_order_id="once"))
    assert refused.value.code == 40010001
    assert len(exchange.trading.get_orders()) == 1


def test_a_plan_is_refused_whole_or_taken_whole(serve):
    exchange = serve()
    plan(exchange, {"on": "GET /v2/clock", "kind": "slow", "seconds": 0})
    wrong = exchange.http.post(
        "/admin/faults", json={"rules": [{"kind": "slow"}, {"kind": "drop_event", "on": "POST /v2/orders"}]}
    )
    assert (wrong.status_code, wrong.json()["code"]) == (422, 40010001)
    assert "never happens on" in wrong.json()["message"]
    assert len(exchange.http.get("/admin/faults").json()["rules"]) == 1


def test_fills_are_made_partial_and_accepted_orders_rejected_on_request(serve):
    exchange = serve(slippage_bps=0)
    exchange.trading.submit_order(market(qty=40, force=TimeInForce.GTC, client_order_id="part"))
    exchange.trading.submit_order(market(qty=7, symbol="BETA", client_order_id="rejected"))
    rules = (
        {"on": "match/ACME", "kind": "partial_fill", "share": 0.25, "times": 1},
        {"on": "match/BETA", "kind": "reject_later"},
    )
    plan(exchange, *rules)
    exchange.step(new_york(MONDAY, 12))
    part, rejected = (exchange.trading.get_order_by_client_id(name) for name in ("part", "rejected"))
    assert (part.status, part.filled_qty) == (OrderStatus.PARTIALLY_FILLED, "10")
    assert rejected.status is OrderStatus.REJECTED
    exchange.step(new_york(MONDAY, 18))
    assert exchange.trading.get_order_by_client_id("part").status is OrderStatus.FILLED
    assert [p.qty for p in exchange.trading.get_all_positions()] == ["40"]


def test_a_plan_from_the_beginning_is_in_force_with_the_first_request(serve):
    exchange = serve(plan=Plan(seed=3, rules=(Rule(kind="rate_limited", on="GET /v2/*", seconds=4),)))
    refused = exchange.http.get("/v2/clock")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "4")


def test_the_same_plan_does_the_same_to_the_same_day(serve):
    exchange = serve()
    days = []
    for n in range(2):
        rules = (
            {"on": "POST /v2/orders", "kind": "reject", "probability": 0.4},
            {"on": "GET /v2/*", "kind": "server_error", "probability": 0.5},
        )
        plan(exchange, *rules, seed=11)
        days.append(
            [
                exchange.http.post("/v2/orders", json=ORDER | {"client_order_id": f"{n}-{i}"}).status_code
                for i in range(15)
            ]
        )
        days[-1] += [exchange.http.get("/v2/clock").status_code for _ in range(15)]
    assert days[0] == days[1]
    assert set(days[0]) == {200, 403, 500}


# Errors.


def test_what_is_not_offered_is_named(serve):
    http = serve().http
    for path, word in (
        ("/v1beta1/news", "news"),
        ("/v1beta3/crypto/us/latest/bars", "crypto"),
        ("/v1beta1/options/bars", "options"),
        ("/v1beta1/screener/stocks/most-actives", "screener"),
        ("/v2/watchlists", "watchlists"),
        ("/v2/options/contracts", "options"),
    ):
        refused = http.get(path)
        assert (refused.status_code, refused.json()["code"]) == (404, 40410000)
        assert word in refused.json()["message"]


def test_a_wrong_method_and_a_bug_answer_in_the_same_form(serve):
    exchange = serve()
    wrong = exchange.http.put("/v2/orders")
    assert (wrong.status_code, wrong.json()["code"], "allow" in wrong.headers) == (405, 40510000, True)
    exchange.app.state.venue.books["paper"].worth = "nonsense"
    with capture_logs() as logs:
        bug = exchange.http.get("/v2/account", timeout=60)
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["request_crashed"]
    assert (bug.status_code, bug.json()) == (500, {"code": 50010000, "message": "internal server error occurred"})


def test_orders_are_counted_under_their_path(serve):
    exchange = serve()
    exchange.http.post("/v2/orders", json=ORDER).raise_for_status()
    exchange.http.get("/v2/orders").raise_for_status()
    lines = httpx.get(f"{exchange.url}/metrics").text.splitlines()
    for method in ("POST", "GET"):
        (count,) = (
            line
            for line in lines
            if line.startswith("tradenb_http_request_duration_seconds_count") and f'"{method}"' in line
        )
        assert '"/v2/orders"' in count


def test_no_secret_stands_in_a_log_an_answer_or_an_error(serve, tmp_path):
    with capture_logs() as logs:
        exchange = serve()
        opened = exchange.http.post("/admin/accounts", json={"name": "mine"}).json()
        pairs = KEYS, (opened["key_id"], opened["secret_key"])
        answers = []
        for key, secret in pairs:
            for given in ((key, secret), (key, secret[:-1]), (secret, key), ("", secret)):
                headers = dict(zip(("APCA-API-KEY-ID", "APCA-API-SECRET-KEY"), given, strict=True))
                for path in ("/v2/account", "/v2/orders/none", "/admin/accounts", "/v2/stocks/bars", "/nowhere"):
                    answers.append(httpx.get(f"{exchange.url}{path}", headers=headers))
        told = "".join(f"{a.text} {a.headers}" for a in answers) + repr(logs) + exchange.http.get("/openapi.json").text
    for _, secret in pairs:
        assert secret not in told
        assert secret.encode() not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_clock_that_runs_outlives_a_feed_without_bars(tmp_path):
    "New bars are on their way: the clock stands until they are there."
    write_rows(tmp_path / "feed", [])
    folder, state = tmp_path / "feed", tmp_path / "exchange.db"
    app = create_app(folder, state, key_id=KEYS[0], secret_key=KEYS[1], start=new_york(MONDAY, 12), speed=60)
    with serving(app) as url:
        sleep(0.4)  # more than a tick
        write_rows(folder, [("ACME", MONDAY, 100.0, 101.0, 99.0, 100.0, 50_000)])
        httpx.post(f"{url}/admin/feed/reload", headers=HEADERS).raise_for_status()
        wait_until(lambda: app.state.venue.now > new_york(MONDAY, 12))
