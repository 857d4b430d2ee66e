"Every call that the stock client offers for trading stocks, asked of a running exchange."

from datetime import date, datetime
from decimal import Decimal

import pytest
from alpaca.common.exceptions import APIError
from alpaca.trading.enums import CorporateActionType, OrderSide, TimeInForce, TradeConfirmationEmail
from alpaca.trading.models import AccountConfiguration
from alpaca.trading.requests import (
    ClosePositionRequest,
    CreateWatchlistRequest,
    GetCorporateAnnouncementsRequest,
    GetOptionContractsRequest,
    GetOrderByIdRequest,
    GetOrdersRequest,
    GetPortfolioHistoryRequest,
    LimitOrderRequest,
    MarketOrderRequest,
    ReplaceOrderRequest,
    TrailingStopOrderRequest,
)

from tradenb.core.calendar import sessions
from tradenb.core.clock import NEW_YORK, new_york
from tradenb.exchange import venue as floor
from tradenb.exchange.rules import NewOrder

FRIDAY, MONDAY, TUESDAY, WEDNESDAY = date(2024, 3, 1), date(2024, 3, 4), date(2024, 3, 5), date(2024, 3, 6)
DAY, GTC, OPG = TimeInForce.DAY, TimeInForce.GTC, TimeInForce.OPG


def market(symbol="ACME", qty=10, side=OrderSide.BUY, force=OPG, **more):
    return MarketOrderRequest(symbol=symbol, qty=qty, side=side, time_in_force=force, **more)


def limit(price, symbol="ACME", qty=10, force=DAY, **more):
    return LimitOrderRequest(symbol=symbol, qty=qty, side=OrderSide.BUY, time_in_force=force, limit_price=price, **more)


def refusal(call, *args) -> tuple[int, int, str]:
    with pytest.raises(APIError) as refused:
        call(*args)
    return refused.value.status_code, refused.value.code, refused.value.message


def held(serve, qty=40, **terms):
    "An exchange at Monday's noon whose account bought on the open."
    exchange = serve(slippage_bps=0, **terms)
    exchange.trading.submit_order(market(qty=qty))
    exchange.step(new_york(MONDAY, 12))
    return exchange


# Orders


def test_a_trailing_stop_is_told_with_its_trail_and_its_trigger(serve):
    client = held(serve).trading
    sent = client.submit_order(
        TrailingStopOrderRequest(symbol="ACME", qty=40, side=OrderSide.SELL, time_in_force=GTC, trail_percent=5)
    )
    assert (sent.type.value, sent.trail_percent, sent.trail_price, sent.hwm, sent.stop_price) == (
        "trailing_stop",
        "5",
        None,
        "100",
        "95",
    )
    new = client.replace_order_by_id(sent.id, ReplaceOrderRequest(trail=10))
    assert (new.trail_percent, new.stop_price, new.replaces) == ("10", "90", sent.id)


def test_a_gtc_order_says_when_it_grows_too_old(serve):
    client = serve().trading
    assert client.submit_order(limit(50, force=GTC)).expires_at == datetime(2024, 6, 3, 16, tzinfo=NEW_YORK)
    assert client.submit_order(limit(51)).expires_at is None


def test_orders_are_found_by_their_ids_and_listed_nested(serve):
    client = serve().trading
    sent = [client.submit_order(limit(50 + n, client_order_id=f"c{n}")) for n in range(3)]
    assert client.get_order_by_id(sent[0].id, GetOrderByIdRequest(nested=True)) == sent[0]
    assert client.get_order_by_client_id("c1") == sent[1]
    assert client.get_orders(GetOrdersRequest(nested=True, side=OrderSide.BUY)) == sent[::-1]
    assert client.get_orders(GetOrdersRequest(side=OrderSide.SELL)) == []


def test_orders_are_paged_by_the_id_of_the_last_one(serve):
    exchange = serve()
    sent = [str(exchange.trading.submit_order(limit(50 + n)).id) for n in range(5)]
    ids = lambda **p: [
        o["id"] for o in exchange.http.get("/v2/orders", params={"status": "all", "limit": 2} | p).json()
    ]
    assert [ids(), ids(before_order_id=sent[3]), ids(before_order_id=sent[1])] == [sent[:2:-1], sent[2:0:-1], sent[:1]]
    assert ids(after_order_id=sent[1], direction="asc") == sent[2:4]


def test_a_race_between_a_fill_and_a_replacement_is_lost_by_the_replacement(serve):
    exchange = held(serve)
    sent = exchange.trading.submit_order(limit(110))
    exchange.step(new_york(MONDAY, 16))
    assert refusal(exchange.trading.replace_order_by_id, sent.id, ReplaceOrderRequest(qty=5))[:2] == (422, 42210000)
    assert refusal(exchange.trading.cancel_order_by_id, sent.id) == (
        422,
        42210000,
        'order is already in "filled" state',
    )


def test_canceling_everything_names_what_an_auction_holds(serve):
    exchange = serve()
    opens, works = exchange.trading.submit_order(market()), exchange.trading.submit_order(limit(90))
    exchange.step(new_york(MONDAY, 9, 29))
    reply = exchange.http.delete("/v2/orders")
    assert reply.status_code == 207
    told = {row["id"]: (row["status"], row["body"].get("code")) for row in reply.json()}
    assert told == {str(works.id): (200, None), str(opens.id): (422, 42210000)}
    exchange.step(new_york(MONDAY, 10))
    assert exchange.trading.get_order_by_id(opens.id).position_intent == "buy_to_open"


def test_refusals_have_alpaca_s_bodies(serve):
    exchange = held(serve)
    post = lambda **terms: exchange.http.post(
        "/v2/orders", json={"symbol": "ACME", "side": "sell", "type": "market", "time_in_force": "day"} | terms
    )
    first = post(qty=30).json()
    short = post(qty=20)
    assert (short.status_code, short.json()) == (
        403,
        {
            "code": 40310000,
            "message": "insufficient qty available for order (requested: 20, available: 10)",
            "symbol": "ACME",
            "existing_qty": "40",
            "held_for_orders": "30",
            "available": "10",
            "related_orders": [first["id"]],
        },
    )
    wash = post(side="buy", qty=1)
    assert (wash.status_code, wash.json()) == (
        403,
        {
            "code": 40310000,
            "message": "potential wash trade detected. use complex orders",
            "existing_order_id": first["id"],
            "reject_reason": "opposite side market/stop order exists",
        },
    )
    twice = post(qty=1, client_order_id=first["client_order_id"])
    assert (twice.status_code, twice.json()) == (
        422,
        {"code": 40010001, "message": "client_order_id must be unique"},
    )
    for terms, status, code in (
        ({"order_class": "bracket", "qty": 1}, 422, 42210000),
        ({"order_class": "oco", "qty": 1}, 422, 42210000),
        ({"order_class": "oto", "qty": 1}, 422, 42210000),
        ({"extended_hours": True, "qty": 1, "type": "limit", "limit_price": 200}, 422, 42210000),
        ({"symbol": "BETA", "qty": "0.5"}, 422, 42210000),
        ({"symbol": "BETA", "qty": 10**8}, 403, 40310000),
        ({"client_order_id": "x" * 129, "qty": 1}, 422, 40010001),
    ):
        answer = post(**terms)
        assert (answer.status_code, answer.json()["code"]) == (status, code), terms


# Positions


def test_positions_are_closed_by_number_and_by_part_and_not_beyond(serve):
    exchange = held(serve)
    client = exchange.trading
    assert client.close_position("ACME", ClosePositionRequest(qty="7")).qty == "7"
    assert (
        client.close_position(client.get_open_position("ACME").asset_id, ClosePositionRequest(percentage="50")).qty
        == "20"
    )
    status, code, message = refusal(client.close_position, "ACME", ClosePositionRequest(qty="20"))
    assert (status, code, message) == (
        403,
        40310000,
        "insufficient qty available for order (requested: 20, available: 13)",
    )
    assert refusal(client.close_position, "ACME", ClosePositionRequest(qty="41"))[:2] == (422, 42210000)
    assert refusal(client.close_position, "NONE")[:2] == (404, 40410000)
    both = exchange.http.delete("/v2/positions/ACME", params={"qty": 1, "percentage": 1})
    assert (both.status_code, both.json()["code"]) == (422, 40010001)


@pytest.mark.parametrize("side", [OrderSide.BUY, OrderSide.SELL])
def test_the_day_s_profit_of_shares_that_came_today_counts_from_what_they_cost(serve, side):
    bars = [("ACME", day, p, p + 5, p - 5, p, 10**6) for day, p in ((FRIDAY, 50.0), (MONDAY, 100.0), (TUESDAY, 110.0))]
    exchange = serve(bars=bars, slippage_bps=0)
    sign = 1 if side is OrderSide.BUY else -1

    def gained() -> float:
        account = exchange.trading.get_account()
        return float(account.equity) - float(account.last_equity)

    exchange.trading.submit_order(market(qty=10, side=side))
    exchange.step(new_york(MONDAY, 20))
    (held,) = exchange.trading.get_all_positions()
    assert (float(held.unrealized_intraday_pl), held.lastday_price, gained()) == (0, "50", 0)
    exchange.trading.submit_order(market(qty=5, side=side))
    exchange.step(new_york(TUESDAY, 18))
    held = exchange.trading.get_open_position("ACME")
    assert float(held.unrealized_intraday_pl) == gained() == sign * 100
    assert float(held.unrealized_intraday_plpc) == pytest.approx(sign * 100 / (10 * 100 + 5 * 110))


@pytest.mark.parametrize("qty", [100, -100])
def test_a_position_that_is_being_closed_is_not_closed_again_into_its_opposite(serve, qty):
    exchange = serve(slippage_bps=0)
    exchange.trading.submit_order(market(qty=abs(qty), side=OrderSide.BUY if qty > 0 else OrderSide.SELL))
    exchange.step(new_york(MONDAY, 18))
    first = exchange.trading.close_position("ACME")
    for again in (None, ClosePositionRequest(percentage="50")):
        assert refusal(exchange.trading.close_position, "ACME", again)[:2] == (403, 40310000)
    (kept,) = exchange.trading.close_all_positions()
    asked = exchange.http.delete("/v2/positions/ACME").json()
    assert asked == {
        "code": 40310000,
        "message": "insufficient qty available for order (requested: 100, available: 0)",
        "symbol": "ACME",
        "existing_qty": "100",
        "held_for_orders": "100",
        "available": "0",
        "related_orders": [str(first.id)],
    }
    assert (kept.status, kept.body.code) == (403, 40310000)
    exchange.step(new_york(TUESDAY, 18))
    assert exchange.trading.get_all_positions() == []


def test_closing_everything_names_what_could_not_be_closed(serve):
    exchange = held(serve)
    exchange.trading.submit_order(MarketOrderRequest(symbol="ACME", qty=30, side=OrderSide.SELL, time_in_force=DAY))
    (kept,) = exchange.trading.close_all_positions()
    assert (kept.symbol, kept.status, kept.body.code) == ("ACME", 403, 40310000)
    (sold,) = exchange.trading.close_all_positions(cancel_orders=True)
    assert (sold.status, sold.body.qty) == (200, "40")


# Account


def test_the_account_tells_its_margin(serve):
    exchange = serve(slippage_bps=0)
    exchange.trading.submit_order(market(qty=1000))
    exchange.trading.submit_order(market("BETA", 50, OrderSide.SELL))
    exchange.step(new_york(MONDAY, 12))
    account = exchange.trading.get_account()
    assert (account.long_market_value, account.short_market_value, account.equity) == ("100000", "-1000", "1000000")
    assert (account.initial_margin, account.maintenance_margin) == ("50500.00", "30300.00")
    assert (account.buying_power, account.regt_buying_power) == ("3899000.00", "1899000.00")
    assert account.non_marginable_buying_power == "900000.00"
    assert (account.multiplier, account.shorting_enabled) == ("4", True)


def test_an_owner_reads_and_changes_the_configuration(serve):
    exchange = serve()
    client = exchange.trading
    found = client.get_account_configurations()
    assert (found.suspend_trade, found.no_shorting, found.max_margin_multiplier) == (False, False, "4")
    wanted = AccountConfiguration(
        fractional_trading=True,
        max_margin_multiplier="2",
        no_shorting=True,
        suspend_trade=True,
        trade_confirm_email=TradeConfirmationEmail.NONE,
        ptp_no_exception_entry=False,
    )
    assert client.set_account_configurations(wanted) == wanted == client.get_account_configurations()
    assert refusal(client.submit_order, market())[:2] == (403, 40310000)
    account = client.get_account()
    assert (account.multiplier, account.trade_suspended_by_user, account.shorting_enabled) == ("2", True, False)
    for wrong in ({"max_margin_multiplier": "9"}, {"suspend_trade": "perhaps"}, {"trade_confirm_email": "some"}):
        assert exchange.http.patch("/v2/account/configurations", json=wrong).status_code == 422


def test_activities_are_chosen_by_kind_day_and_category(serve):
    events = [("ACME", TUESDAY, "split", 0.125, 0.25), ("BETA", TUESDAY, "dividend", 1.0, 0.1)]
    exchange = held(serve, actions=events, fee_bps=1)
    exchange.step(new_york(TUESDAY, 9))
    kinds = lambda path="", **p: [
        a["activity_type"] for a in exchange.http.get(f"/v2/account/activities{path}", params=p).json()
    ]
    assert kinds() == ["DIV", "SPLIT", "FEE", "FILL", "CSD"]
    assert kinds(category="trade_activity") == ["FILL"]
    assert kinds(category="non_trade_activity", direction="asc") == ["CSD", "FEE", "SPLIT", "DIV"]
    assert kinds(activity_types="FEE,DIV") == kinds(activity_types=["FEE", "DIV"]) == ["DIV", "FEE"]
    assert kinds("/SPLIT") == ["SPLIT"]
    assert kinds(date="2024-03-04") == ["FEE", "FILL", "CSD"]
    assert kinds(after="2024-03-04T15:00:00Z", until="2024-03-05T00:00:00Z") == []
    assert exchange.http.get("/v2/account/activities", params={"page_size": 101}).status_code == 422


def test_a_question_for_one_day_is_answered_whole(serve):
    exchange = serve(volume_share=1)
    with exchange.app.state.venue.lock:
        book = exchange.app.state.venue.books["paper"]
        for number in range(120):
            floor.admit(book, NewOrder(symbol="ACME", side="buy", type="market", time_in_force="opg", qty=number + 1))
    exchange.step(new_york(MONDAY, 17))
    ask = lambda **p: exchange.http.get("/v2/account/activities", params={"direction": "asc"} | p).json()
    assert (len(ask()), len(ask(date=MONDAY)), len(ask(date=MONDAY, page_size=110))) == (100, 121, 110)
    assert ask(date="2024-03-04T00:00:00Z") == ask(date=MONDAY)
    last = ask()[-1]
    assert ask() + ask(page_token=last["id"]) == ask(date=MONDAY)
    trade = ask(activity_types="FILL")[0]["transaction_time"]
    assert [a["activity_type"] for a in ask(until=trade)] == ["CSD"]


def test_shares_that_a_company_moves_are_told_with_what_they_cost(serve):
    bars = [("ACME", d, 100.0, 101.0, 99.0, 100.0, 50_000) for d in (FRIDAY, MONDAY)]
    bars += [("ACMX", TUESDAY, 75.0, 76.0, 74.0, 75.0, 50_000), ("NEWCO", FRIDAY, 50.0, 50.0, 50.0, 50.0, 9)]
    bars += [("NEWCO", MONDAY, 50.0, 50.0, 50.0, 50.0, 9), ("NEWCO", TUESDAY, 50.0, 50.0, 50.0, 50.0, 9)]
    events = [
        ("ACME", TUESDAY, "spin_off", 0.5, 0.0, None, "NEWCO"),
        ("ACME", TUESDAY, "symbol_change", 1.0, 0.0, None, "ACMX"),
    ]
    exchange = held(serve, qty=41, bars=bars, actions=events)
    exchange.step(new_york(TUESDAY, 9))
    lines = exchange.http.get(
        "/v2/account/activities", params={"after": "2024-03-05T00:00:00Z", "direction": "asc"}
    ).json()
    fields = ("activity_type", "symbol", "qty", "price", "net_amount", "cost_basis_change")
    assert [tuple(line.get(f) for f in fields) for line in lines] == [
        ("SPIN", "NEWCO", "20.5", "50", "0", None),
        ("SPIN", "ACME", None, None, "0", "-1025.000000000"),
        ("CIL", "NEWCO", "-0.5", "50", "25", None),
        ("NC", "ACME", "-41", "75", "0", None),
        ("NC", "ACMX", "41", "75", "0", None),
    ]
    assert {p.symbol: p.cost_basis for p in exchange.trading.get_all_positions()} == {
        "ACMX": "3075.000000000",
        "NEWCO": "1000.000000000",
    }


# History


@pytest.fixture
def year(serve):
    "An exchange that has seen every close of four months; ACME gains a dollar a session, the account holds a hundred."
    days = sessions(date(2024, 1, 2), date(2024, 4, 30))
    bars = [("ACME", d, 100.0 + n, 101.0 + n, 99.0 + n, 100.0 + n, 50_000) for n, d in enumerate(days)]
    exchange = serve(bars=bars, at=new_york(days[0], 9), slippage_bps=0)
    exchange.trading.submit_order(limit(110, qty=100, force=OPG))
    exchange.step(new_york(days[-1], 18))
    return exchange, days


def shown(exchange, **terms):
    history = exchange.trading.get_portfolio_history(GetPortfolioHistoryRequest(**terms))
    days = [datetime.fromtimestamp(t, NEW_YORK).date() for t in history.timestamp]
    return days, history


def test_the_history_is_asked_for_by_period(year):
    exchange, days = year
    assert shown(exchange)[0] == [d for d in days if d >= date(2024, 3, 30)]
    assert shown(exchange, period="5D")[0] == days[-5:]
    assert shown(exchange, period="2W")[0] == [d for d in days if d > date(2024, 4, 16)]
    assert shown(exchange, period="1A")[0] == days
    assert shown(exchange, period="1M", date_end=date(2024, 2, 29))[0] == [d for d in days if d.month == 2 or d == date(2024, 1, 29) or date(2024, 1, 29) <= d <= date(2024, 1, 31)]  # fmt: skip
    assert shown(exchange, start=new_york(date(2024, 2, 1), 0), end=new_york(date(2024, 2, 5), 0))[0] == [date(2024, 2, d) for d in (1, 2, 5)]  # fmt: skip


def test_profit_is_counted_from_the_close_before_the_period(year):
    exchange, days = year
    _, history = shown(exchange, period="3D", timeframe="1D")
    assert history.base_value == 1_000_000 + 100 * (len(days) - 4)
    assert history.profit_loss == [100, 200, 300]
    assert history.profit_loss_pct == [p / history.base_value for p in history.profit_loss]
    assert shown(exchange, period="1A")[1].base_value == 1_000_000


def test_cash_flows_are_told_by_kind_and_day(serve):
    exchange = held(serve, actions=[("ACME", TUESDAY, "dividend", 1.0, 0.5)], fee_bps=1)
    exchange.step(new_york(TUESDAY, 18))
    flows = shown(exchange, cashflow_types="ALL")[1].cashflow
    assert {kind.value: values for kind, values in flows.items()} == {
        "CSD": [1_000_000, 0],
        "FEE": [-0.4, 0],
        "DIV": [0, 20],
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeframe": "15Min"},
        {"period": "1Y"},
        {"period": "0D"},
        {"date_end": "soon"},
        {"period": "1W", "start": "2024-03-01", "end": "2024-03-05"},
        {"period": "1W", "start": "2024-03-01", "date_end": "2024-03-05"},
    ],
)
def test_a_history_that_cannot_be_told_is_refused(serve, wrong):
    answer = serve().http.get("/v2/account/portfolio/history", params=wrong)
    assert answer.status_code == 422
    assert isinstance(answer.json()["code"], int)


# The market


def test_the_calendar_tells_how_long_is_traded_after_an_early_close(serve):
    days = serve().http.get("/v2/calendar", params={"start": "2024-11-27", "end": "2024-11-29"}).json()
    told = [(day["date"], day["close"], day["session_close"]) for day in days]
    assert told == [("2024-11-27", "16:00", "2000"), ("2024-11-29", "13:00", "1700")]


def test_announcements_are_told_when_they_are_known_and_found_by_id(serve):
    early = date(2024, 2, 12)
    events = [
        ("ACME", TUESDAY, "split", 0.1, 0.0, early),
        ("BETA", WEDNESDAY, "dividend", 1.0, 0.25, MONDAY),
    ]
    exchange = serve(actions=events)
    kinds = list(CorporateActionType)

    def ask(**more):
        wanted = GetCorporateAnnouncementsRequest(ca_types=kinds, since=FRIDAY, until=date(2024, 3, 31), **more)
        with pytest.warns(DeprecationWarning, match="corporate_announcements"):
            return exchange.trading.get_corporate_announcements(wanted)

    (split,) = ask()
    assert (split.ca_sub_type.value, split.old_rate, split.new_rate, split.ex_date) == ("reverse_split", 10, 1, TUESDAY)
    assert exchange.trading.get_corporate_announcement_by_id(split.id) == split
    exchange.step(new_york(TUESDAY, 9))
    assert [a.initiating_symbol for a in ask()] == ["ACME", "BETA"]
    assert [a.cash for a in ask(symbol="BETA", date_type="declaration_date")] == [0.25]
    assert exchange.http.get("/v2/corporate_actions/announcements/none").status_code == 404
    long = {"ca_types": "split", "since": "2024-01-01", "until": "2024-12-31"}
    assert exchange.http.get("/v2/corporate_actions/announcements", params=long).status_code == 422
    last = {"ca_types": "split", "since": "9999-12-31", "until": "9999-12-31"}
    assert exchange.http.get("/v2/corporate_actions/announcements", params=last).json() == []


def test_what_is_not_offered_says_so(serve):
    client = serve().trading
    anything = "00000000-0000-0000-0000-000000000000"
    for call in (
        client.get_watchlists,
        lambda: client.get_watchlist_by_id(anything),
        lambda: client.create_watchlist(CreateWatchlistRequest(name="mine", symbols=["ACME"])),
        lambda: client.add_asset_to_watchlist_by_id(anything, "ACME"),
        lambda: client.delete_watchlist_by_id(anything),
        lambda: client.remove_asset_from_watchlist_by_id(anything, "ACME"),
        lambda: client.get_option_contracts(GetOptionContractsRequest(underlying_symbols=["ACME"])),
        lambda: client.get_option_contract("ACME240419C00100000"),
        lambda: client.exercise_options_position("ACME240419C00100000"),
    ):
        status, code, message = refusal(call)
        assert (status, code) == (404, 40410000)
        assert "not offered by this exchange" in message


def test_hard_to_borrow_is_told_by_the_asset(serve, tmp_path):
    import polars as pl

    serve()
    path = tmp_path / "feed" / "assets.parquet"
    pl.read_parquet(path).with_columns(shortable=pl.col("symbol") != "BETA").write_parquet(path)
    from tradenb.exchange.feed import Feed

    assert {s: a.shortable for s, a in Feed(tmp_path / "feed").assets.items()} == {"ACME": True, "BETA": False}


def test_a_step_and_orders_of_many_clients_end_in_one_history(serve):
    "Clients send while the clock moves; every acknowledged order is stored once, and every fill booked once."
    from concurrent.futures import ThreadPoolExecutor

    exchange = serve()

    def client(name: int) -> list[str]:
        body = {"symbol": "ACME", "side": "buy", "type": "market", "time_in_force": "day", "qty": 1}
        return [
            exchange.http.post("/v2/orders", json=body | {"client_order_id": f"{name}-{n}"})
            .raise_for_status()
            .json()["id"]
            for n in range(10)
        ]

    with ThreadPoolExecutor(5) as pool:
        sent = [pool.submit(client, name) for name in range(4)]
        stepped = pool.submit(exchange.step, new_york(MONDAY, 12))
        ids = {order for one in sent for order in one.result()}
        stepped.result()
    exchange.step(new_york(TUESDAY, 18))
    book = exchange.app.state.venue.books["paper"]
    assert set(book.orders) == ids
    assert len(ids) == 40
    fills = [a for a in book.activities if a.kind == "FILL"]
    assert sorted(a.order_id for a in fills) == sorted(ids)
    assert book.account.qty("ACME") == Decimal(40)
    stored = book.venue.store.load().accounts["paper"]
    assert ({o.id for o in stored.orders}, stored.activities) == (ids, book.activities)
    assert floor.value(book).reserved == 0
