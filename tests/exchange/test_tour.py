"Every call that stock alpaca-py offers for stocks, in one walk through a few days: real models parse, refusals have Alpaca's numbers."

import asyncio
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from alpaca.common.exceptions import APIError
from alpaca.common.rest import RESTClient
from alpaca.data.enums import Adjustment
from alpaca.data.historical import NewsClient, ScreenerClient, StockHistoricalDataClient
from alpaca.data.historical.corporate_actions import CorporateActionsClient
from alpaca.data.live import StockDataStream
from alpaca.data.live.websocket import DataStream
from alpaca.data.models import Bar, Quote, Snapshot, Trade
from alpaca.data.requests import (
    CorporateActionsRequest,
    MarketMoversRequest,
    MostActivesRequest,
    NewsRequest,
    StockBarsRequest,
    StockLatestBarRequest,
    StockLatestQuoteRequest,
    StockLatestTradeRequest,
    StockQuotesRequest,
    StockSnapshotRequest,
    StockTradesRequest,
)
from alpaca.data.timeframe import TimeFrame
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import CorporateActionType, OrderClass, OrderSide, OrderStatus, QueryOrderStatus, TimeInForce
from alpaca.trading.models import (
    AccountConfiguration,
    Asset,
    Calendar,
    Clock,
    CorporateActionAnnouncement,
    Order,
    PortfolioHistory,
    Position,
    TradeAccount,
    TradeUpdate,
)
from alpaca.trading.requests import (
    ClosePositionRequest,
    CreateWatchlistRequest,
    GetAssetsRequest,
    GetCalendarRequest,
    GetCorporateAnnouncementsRequest,
    GetOptionContractsRequest,
    GetOrdersRequest,
    GetPortfolioHistoryRequest,
    LimitOrderRequest,
    MarketOrderRequest,
    ReplaceOrderRequest,
    StopLimitOrderRequest,
    StopLossRequest,
    StopOrderRequest,
    TakeProfitRequest,
    TrailingStopOrderRequest,
    UpdateWatchlistRequest,
)
from alpaca.trading.stream import TradingStream

from tests.patience import PATIENCE_S, wait_until
from tradenb.core.clock import new_york

KEYS = ("PKTEST", "secret-of-the-test")
FRIDAY, MONDAY, TUESDAY, WEDNESDAY = date(2024, 3, 1), date(2024, 3, 4), date(2024, 3, 5), date(2024, 3, 6)
EVENTS = [
    ("ACME", TUESDAY, "split", 2.0, 0.0, FRIDAY),
    ("BETA", TUESDAY, "dividend", 1.0, 0.25, FRIDAY),
]
BUY, SELL = OrderSide.BUY, OrderSide.SELL
# Methods that every client inherits and that reach no end point of their own.
PLUMBING = {name for kind in (RESTClient, DataStream) for name in vars(kind) if not name.startswith("_")}
# What this exchange does not offer: the page docs/guide/exchange.md says so, and the tour sees the 404.
NOT_OFFERED = {
    "get_watchlists", "get_watchlist_by_id", "create_watchlist", "update_watchlist_by_id", "add_asset_to_watchlist_by_id",
    "delete_watchlist_by_id", "remove_asset_from_watchlist_by_id", "get_option_contracts", "get_option_contract",
    "exercise_options_position", "get_news", "get_most_actives", "get_market_movers",
}  # fmt: skip


def offered(kind: type) -> set[str]:
    "The public methods of a client, by introspection."
    methods = {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
    return methods - PLUMBING


@dataclass
class Guide:
    "A client that notes which of its methods were called."

    client: Any
    called: set[str] = field(default_factory=set)

    def __getattr__(self, name: str) -> Any:
        self.called.add(name)
        return getattr(self.client, name)

    def missed(self) -> set[str]:
        return offered(type(self.client)) - self.called


def refused(call: Callable[[], object]) -> tuple[int, int]:
    "Status and code of a refusal, whose body must have a message too."
    with pytest.raises(APIError) as error:
        call()
    assert error.value.message
    return error.value.status_code, error.value.code


def market(
    qty: float | None = 10, symbol: str = "ACME", side: OrderSide = BUY, force: Any = TimeInForce.DAY, **more: Any
) -> Any:
    return MarketOrderRequest(symbol=symbol, qty=qty, side=side, time_in_force=force, **more)


def limit(
    price: float,
    qty: float = 10,
    symbol: str = "ACME",
    side: OrderSide = BUY,
    force: Any = TimeInForce.DAY,
    **more: Any,
) -> Any:
    return LimitOrderRequest(symbol=symbol, qty=qty, side=side, time_in_force=force, limit_price=price, **more)


@pytest.mark.filterwarnings("ignore:get_corporate_announcements is deprecated")
def test_the_tour_of_trading(serve: Any) -> None:
    exchange = serve(actions=EVENTS)
    client = Guide(exchange.trading)
    look_around(client)
    send_every_type(client)
    be_refused(client)
    find_replace_and_cancel(client)
    exchange.step(new_york(MONDAY, 12))
    race_at_noon(client)
    positions_at_noon(client)
    exchange.step(new_york(WEDNESDAY, 18))
    look_back(client)
    not_offered(client)
    assert client.missed() == set()


def look_around(client: Any) -> None:
    account = client.get_account()
    assert isinstance(account, TradeAccount)
    assert (account.cash, account.buying_power, account.status.value) == ("1000000", "4000000.00", "ACTIVE")
    wishes = client.get_account_configurations()
    assert isinstance(wishes, AccountConfiguration)
    assert not wishes.no_shorting
    after = client.set_account_configurations(wishes.model_copy(update={"no_shorting": True}))
    assert after.no_shorting
    assert refused(lambda: client.submit_order(market(side=SELL)))[0] in (403, 422)
    client.set_account_configurations(wishes)
    clock = client.get_clock()
    assert isinstance(clock, Clock)
    assert (clock.is_open, clock.next_open, clock.next_close) == (False, new_york(MONDAY, 9, 30), new_york(MONDAY, 16))
    days = client.get_calendar(GetCalendarRequest(start=date(2024, 11, 27), end=date(2024, 11, 30)))
    assert all(isinstance(day, Calendar) for day in days)
    assert [(d.date.day, f"{d.open:%H:%M}", f"{d.close:%H:%M}") for d in days] == [
        (27, "09:30", "16:00"),
        (29, "09:30", "13:00"),
    ]
    assets = client.get_all_assets(GetAssetsRequest(status="active", asset_class="us_equity"))
    assert all(isinstance(asset, Asset) for asset in assets)
    assert [asset.symbol for asset in assets] == ["ACME", "BETA"]
    asset = client.get_asset("ACME")
    assert (asset.tradable, asset.fractionable, client.get_asset(asset.id)) == (True, True, asset)
    assert refused(lambda: client.get_asset("NONE")) == (404, 40410000)


def send_every_type(client: Any) -> None:
    "One of each type and time in force, from the evening before to the auctions."
    terms = {"symbol": "ACME", "side": BUY}
    requests = [
        market(),
        market(qty=None, notional=150.5),
        market(qty=0.25),
        market(force=TimeInForce.OPG),
        market(force=TimeInForce.CLS),
        market(force=TimeInForce.GTC),
        market(force=TimeInForce.IOC),
        market(force=TimeInForce.FOK),
        limit(50.0),
        limit(51.0, force=TimeInForce.GTC),
        limit(52.0, force=TimeInForce.OPG),
        limit(53.0, force=TimeInForce.CLS),
        StopOrderRequest(**terms, time_in_force=TimeInForce.DAY, qty=3, stop_price=150.0),
        StopLimitOrderRequest(**terms, time_in_force=TimeInForce.GTC, qty=3, stop_price=150.0, limit_price=151.0),
        market(side=SELL, symbol="BETA", qty=40),
        TrailingStopOrderRequest(**terms, time_in_force=TimeInForce.DAY, qty=1, trail_percent=50),
    ]
    for n, request in enumerate(requests):
        order = client.submit_order(request.model_copy(update={"client_order_id": f"tour-{n}"}))
        assert isinstance(order, Order)
        assert isinstance(order.id, UUID)
        assert (order.client_order_id, order.status) == (f"tour-{n}", OrderStatus.ACCEPTED)
        assert (order.type, order.side, order.time_in_force) == (request.type, request.side, request.time_in_force)
        sent = request.to_request_fields()
        for name in ("qty", "notional", "limit_price", "trail_percent"):
            assert float(getattr(order, name) or 0) == float(sent.get(name) or 0)


def be_refused(client: Any) -> None:
    "Alpaca's status and code for what is wrong."
    send = lambda request: refused(lambda: client.submit_order(request))
    assert send(market(client_order_id="tour-0")) == (422, 40010001)
    assert send(market(symbol="NONE")) == (422, 42210000)
    assert send(market(qty=1_000_000)) == (403, 40310000)
    assert send(market(qty=0.5, side=SELL)) == (422, 42210000)
    assert send(market(qty=0.5, force=TimeInForce.CLS)) == (422, 42210000)
    assert send(limit(50.005)) == (422, 42210000)
    assert send(market(side=SELL))[0] == 403  # it would trade with the buys that wait: a wash trade
    assert send(market(qty=-1)) == (422, 40010001)
    assert send(StopOrderRequest(symbol="ACME", side=BUY, time_in_force=TimeInForce.OPG, qty=1, stop_price=5)) == (
        422,
        42210000,
    )
    assert send(market(extended_hours=True))[0] == 422
    bracket = {
        "order_class": OrderClass.BRACKET,
        "take_profit": TakeProfitRequest(limit_price=200),
        "stop_loss": StopLossRequest(stop_price=50),
    }
    assert send(market(**bracket)) == (422, 42210000)


def find_replace_and_cancel(client: Any) -> None:
    found = client.get_order_by_client_id("tour-8")
    assert client.get_order_by_id(found.id) == found
    assert refused(lambda: client.get_order_by_client_id("nobody")) == (404, 40410000)
    assert refused(lambda: client.get_order_by_id(uuid4())) == (404, 40410000)
    assert len(client.get_orders()) == 16
    both = client.get_orders(GetOrdersRequest(status=QueryOrderStatus.OPEN, symbols=["BETA"], limit=5, nested=False))
    assert [o.client_order_id for o in both] == ["tour-14"]
    client.cancel_order_by_id(found.id)
    assert client.get_order_by_id(found.id).status is OrderStatus.CANCELED
    assert refused(lambda: client.cancel_order_by_id(found.id)) == (422, 42210000)
    assert refused(lambda: client.cancel_order_by_id(uuid4())) == (404, 40410000)


def race_at_noon(client: Any) -> None:
    "What was filled can be neither replaced nor canceled; what waits can."
    filled = client.get_order_by_client_id("tour-0")
    assert (filled.status, filled.filled_avg_price) == (OrderStatus.FILLED, "100.02")
    assert refused(lambda: client.replace_order_by_id(filled.id, ReplaceOrderRequest(qty=5)))[0] == 422
    assert refused(lambda: client.cancel_order_by_id(filled.id))[0] == 422
    waiting = client.get_order_by_client_id("tour-9")
    newer = client.replace_order_by_id(
        waiting.id, ReplaceOrderRequest(qty=7, limit_price=49.5, client_order_id="newer")
    )
    assert (newer.replaces, newer.qty, newer.limit_price, newer.client_order_id) == (waiting.id, "7", "49.5", "newer")
    replaced = client.get_order_by_id(waiting.id)
    assert (replaced.status, replaced.replaced_by) == (OrderStatus.REPLACED, newer.id)
    gone = client.cancel_orders()
    assert newer.id in {entry.id for entry in gone}
    assert {entry.status for entry in gone} == {200}
    assert client.get_orders() == []


def positions_at_noon(client: Any) -> None:
    positions = client.get_all_positions()
    assert all(isinstance(position, Position) for position in positions)
    acme = client.get_open_position("ACME")
    assert client.get_open_position(acme.asset_id) == acme
    assert (acme.side.value, acme.avg_entry_price[:6], acme.current_price) == ("long", "100.02", "100")
    assert refused(lambda: client.get_open_position("NONE")) == (404, 40410000)
    assert refused(lambda: client.close_position("NONE")) == (404, 40410000)
    part = client.close_position("ACME", ClosePositionRequest(qty="5"))
    assert (part.side, part.qty, part.type.value) == (SELL, "5", "market")
    share = client.close_position("BETA", ClosePositionRequest(percentage="25"))
    assert (share.side, share.qty) == (BUY, "10")
    rest = client.close_all_positions(cancel_orders=True)
    assert [(entry.symbol, entry.status, entry.body.side) for entry in rest] == [
        ("ACME", 200, SELL),
        ("BETA", 200, BUY),
    ]


def look_back(client: Any) -> None:
    assert client.get_all_positions() == []
    history = client.get_portfolio_history(GetPortfolioHistoryRequest(period="1M", timeframe="1D"))
    assert isinstance(history, PortfolioHistory)
    assert len(history.equity) == len(history.profit_loss) == len(history.timestamp) == 3
    assert history.equity[-1] == float(client.get_account().equity)
    lines = client.client.get("/account/activities")  # stock alpaca-py has no call of its own for them
    assert {line["activity_type"] for line in lines} == {"FILL", "CSD"}
    told = client.get_corporate_announcements(
        GetCorporateAnnouncementsRequest(ca_types=list(CorporateActionType), since=FRIDAY, until=WEDNESDAY)
    )
    assert all(isinstance(entry, CorporateActionAnnouncement) for entry in told)
    assert {entry.initiating_symbol for entry in told} == {"ACME", "BETA"}
    assert client.get_corporate_announcement_by_id(told[0].id) == told[0]
    assert refused(lambda: client.get_corporate_announcement_by_id(uuid4())) == (404, 40410000)


def not_offered(client: Any) -> None:
    "Watchlists and options answer a 404 that says so."
    some = uuid4()
    calls = [
        lambda: client.get_watchlists(),
        lambda: client.get_watchlist_by_id(some),
        lambda: client.create_watchlist(CreateWatchlistRequest(name="mine", symbols=["ACME"])),
        lambda: client.update_watchlist_by_id(some, UpdateWatchlistRequest(name="mine")),
        lambda: client.add_asset_to_watchlist_by_id(some, "ACME"),
        lambda: client.delete_watchlist_by_id(some),
        lambda: client.remove_asset_from_watchlist_by_id(some, "ACME"),
        lambda: client.get_option_contracts(GetOptionContractsRequest(underlying_symbols=["ACME"])),
        lambda: client.get_option_contract("ACME240315C00100000"),
        lambda: client.exercise_options_position("ACME240315C00100000"),
    ]
    assert {refused(call) for call in calls} == {(404, 40410000)}


def data_client(kind: type, exchange: Any) -> Guide:
    return Guide(kind(*KEYS, url_override=exchange.url))


def test_the_tour_of_market_data(serve: Any) -> None:
    exchange = serve(actions=EVENTS, at=new_york(TUESDAY, 12))
    client = data_client(StockHistoricalDataClient, exchange)
    both, span = ["ACME", "BETA"], {"start": datetime(2024, 3, 1, tzinfo=UTC)}
    bars = client.get_stock_bars(StockBarsRequest(symbol_or_symbols=both, timeframe=TimeFrame.Day, **span))
    assert {s: [b.close for b in bars[s]] for s in both} == {"ACME": [100, 101], "BETA": [20, 21]}
    assert all(isinstance(b, Bar) for b in bars["ACME"])
    assert len(bars.df) == 4
    split = client.get_stock_bars(
        StockBarsRequest(symbol_or_symbols="ACME", timeframe=TimeFrame.Day, adjustment=Adjustment.ALL, **span)
    )
    assert [b.close for b in split["ACME"]] == [50, 50.5]
    minutes = StockBarsRequest(symbol_or_symbols="ACME", timeframe=TimeFrame.Minute, **span)
    assert refused(lambda: client.get_stock_bars(minutes)) == (422, 42210000)
    trades = client.get_stock_trades(StockTradesRequest(symbol_or_symbols=both, **span))
    quotes = client.get_stock_quotes(StockQuotesRequest(symbol_or_symbols=both, **span))
    assert [len(found["ACME"]) for found in (trades, quotes)] == [5, 5]
    assert [type(found["ACME"][0]) for found in (trades, quotes)] == [Trade, Quote]
    assert client.get_stock_latest_trade(StockLatestTradeRequest(symbol_or_symbols="ACME"))["ACME"].price == 101
    quote = client.get_stock_latest_quote(StockLatestQuoteRequest(symbol_or_symbols="ACME"))["ACME"]
    assert quote.bid_price < 101 < quote.ask_price
    assert client.get_stock_latest_bar(StockLatestBarRequest(symbol_or_symbols=both))["BETA"].close == 21
    snapshots = client.get_stock_snapshot(StockSnapshotRequest(symbol_or_symbols=both))
    assert all(isinstance(found, Snapshot) for found in snapshots.values())
    assert (snapshots["ACME"].latest_trade.price, snapshots["ACME"].previous_daily_bar.close) == (101, 100)
    assert client.missed() == set()

    actions = data_client(CorporateActionsClient, exchange)
    told = actions.get_corporate_actions(CorporateActionsRequest(start=FRIDAY, end=WEDNESDAY)).data
    assert {kind: len(entries) for kind, entries in told.items()} == {"forward_splits": 1, "cash_dividends": 1}
    assert actions.missed() == set()


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_news_and_screener_are_not_offered_and_say_so(serve: Any) -> None:
    exchange = serve()
    news, screener = data_client(NewsClient, exchange), data_client(ScreenerClient, exchange)
    calls = [
        lambda: news.get_news(NewsRequest(symbols="ACME")),
        lambda: screener.get_most_actives(MostActivesRequest()),
        lambda: screener.get_market_movers(MarketMoversRequest()),
    ]
    assert {refused(call) for call in calls} == {(404, 40410000)}
    assert news.missed() | screener.missed() == set()


def running(stream: Any, ready: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=stream.run, daemon=True)
    thread.start()
    wait_until(ready)
    return thread


def test_the_tour_of_the_streams(serve: Any) -> None:
    exchange = serve()
    address = exchange.url.replace("http", "ws")
    heard: dict[str, list] = {"orders": [], "trades": [], "quotes": [], "days": [], "rest": []}

    def remember(name: str) -> Callable[[object], Any]:
        async def keep(message: object) -> None:
            heard[name].append(message)

        return keep

    orders = Guide(TradingStream(*KEYS, url_override=address + "/stream"))
    orders.subscribe_trade_updates(remember("orders"))
    prints = Guide(StockDataStream(*KEYS, url_override=address + "/v2/iex"))
    prints.subscribe_trades(remember("trades"), "ACME", "BETA")
    prints.subscribe_quotes(remember("quotes"), "*")
    prints.subscribe_daily_bars(remember("days"), "*")
    for more in (prints.subscribe_bars, prints.subscribe_updated_bars, prints.subscribe_trading_statuses):
        more(remember("rest"), "ACME")
    prints.register_trade_corrections(remember("rest"))
    prints.register_trade_cancels(remember("rest"))
    threads = [
        running(orders, lambda: exchange.app.state.hub.count),
        running(prints, lambda: any(c.subscription.symbols["statuses"] for c in exchange.app.state.tape.connections)),
    ]
    exchange.trading.submit_order(market(force=TimeInForce.CLS))
    exchange.step(new_york(MONDAY, 18))
    wait_until(lambda: len(heard["orders"]) == 3 and len(heard["days"]) == 2)
    assert [(type(u), u.event) for u in heard["orders"]] == [(TradeUpdate, e) for e in ("accepted", "new", "fill")]
    fill = heard["orders"][-1]
    assert (fill.qty, fill.price, fill.position_qty, fill.order.status) == (10, 101.0202, 10, OrderStatus.FILLED)
    assert [(t.symbol, t.price) for t in heard["trades"]] == [("ACME", 100), ("BETA", 20), ("ACME", 101), ("BETA", 21)]
    assert [type(heard[name][0]) for name in ("trades", "quotes", "days")] == [Trade, Quote, Bar]
    assert heard["rest"] == []
    prints.unsubscribe_trades("BETA")
    prints.unsubscribe_quotes("*")
    prints.unsubscribe_daily_bars("*")
    for less in (prints.unsubscribe_bars, prints.unsubscribe_updated_bars, prints.unsubscribe_trading_statuses):
        less("ACME")
    exchange.step(new_york(TUESDAY, 18))
    wait_until(lambda: len(heard["trades"]) == 6)
    assert (len(heard["quotes"]), len(heard["days"])) == (4, 2)
    assert prints.missed() == set()
    for stream in (orders, prints):
        stream.stop()
        asyncio.run_coroutine_threadsafe(stream.close(), stream.client._loop)
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert orders.missed() == set()


def test_nothing_is_named_as_not_offered_that_no_client_has() -> None:
    clients = (
        TradingClient,
        StockHistoricalDataClient,
        CorporateActionsClient,
        NewsClient,
        ScreenerClient,
        StockDataStream,
    )
    assert set().union(*map(offered, clients)) >= NOT_OFFERED
