"Bars and corporate actions through stock alpaca-py, page by page, known no earlier than announced."

from datetime import UTC, date, datetime
from itertools import pairwise
from math import prod
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest
from alpaca.common.exceptions import APIError
from alpaca.data.enums import Adjustment, CorporateActionsType, DataFeed
from alpaca.data.historical import StockHistoricalDataClient
from alpaca.data.historical.corporate_actions import CorporateActionsClient
from alpaca.data.models.corporate_actions import CashDividend, CashMerger, NameChange, SpinOff, WorthlessRemoval
from alpaca.data.requests import (
    CorporateActionsRequest,
    StockBarsRequest,
    StockQuotesRequest,
    StockSnapshotRequest,
    StockTradesRequest,
)
from alpaca.data.timeframe import TimeFrame, TimeFrameUnit
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.core.clock import NEW_YORK, new_york
from tradenb.core.errors import SourceError
from tradenb.exchange.data_api import adjusted
from tradenb.exchange.feed import OPTIONAL, SCHEMA, Feed, announced, read_table, spans, write_rows
from tradenb.exchange.wire import actions_json, rates
from tradenb.market.actions import adjust

FRIDAY, MONDAY, TUESDAY, WEDNESDAY = date(2024, 3, 1), date(2024, 3, 4), date(2024, 3, 5), date(2024, 3, 6)
EARLY = date(2024, 2, 12)
EVENTS = [
    ("ACME", TUESDAY, "split", 2.0, 0.25, EARLY),
    ("BETA", TUESDAY, "split", 0.1, 0.0, EARLY),
    ("BETA", WEDNESDAY, "stock_dividend", 1.05, 0.0, EARLY),
    ("ACME", WEDNESDAY, "dividend", 1.0, 0.37, EARLY),
    ("ACME", FRIDAY, "special_dividend", 1.0, 4.0, EARLY),
    ("BETA", FRIDAY, "spin_off", 0.25, 0.0, EARLY, "BETX"),
    ("DUNE", TUESDAY, "symbol_change", 1.0, 0.0, None, "DUNN"),
    ("ELMO", TUESDAY, "delisting", 1.0, 41.5, MONDAY),
    ("GONE", TUESDAY, "delisting", 0.5, 0.0, EARLY, "ACME"),
    ("HALF", TUESDAY, "delisting", 1.5, 4.25, EARLY, "ACME"),
    ("FARO", WEDNESDAY, "delisting", 1.0, 0.0, TUESDAY),
]
ALL = CorporateActionsRequest(start=date(2024, 1, 1), end=date(2024, 12, 31))
SPAN = {"start": datetime(2024, 1, 1, tzinfo=UTC), "end": datetime(2024, 12, 31, tzinfo=UTC)}


def actions_client(exchange) -> CorporateActionsClient:
    return CorporateActionsClient("PKTEST", "secret-of-the-test", url_override=exchange.url)


def bars_client(exchange) -> StockHistoricalDataClient:
    return StockHistoricalDataClient("PKTEST", "secret-of-the-test", url_override=exchange.url)


def test_the_stock_client_parses_every_sort_of_action(serve):
    told = actions_client(serve(actions=EVENTS, at=new_york(WEDNESDAY, 18))).get_corporate_actions(ALL).data
    assert {kind: len(entries) for kind, entries in told.items()} == {
        "cash_dividends": 3, "cash_mergers": 1, "forward_splits": 1, "name_changes": 1,
        "reverse_splits": 1, "spin_offs": 1, "stock_dividends": 1, "worthless_removals": 1,
        "stock_mergers": 1, "stock_and_cash_mergers": 1,
    }  # fmt: skip
    assert [(type(e), e.process_date) for kind in ("cash_mergers", "name_changes", "worthless_removals") for e in told[kind]] == [
        (CashMerger, TUESDAY), (NameChange, TUESDAY), (WorthlessRemoval, WEDNESDAY),
    ]  # fmt: skip
    (split,), (back,), (spin,) = (told[k] for k in ("forward_splits", "reverse_splits", "spin_offs"))
    assert (split.new_rate, split.old_rate, back.new_rate, back.old_rate) == (2, 1, 1, 10)
    assert isinstance(spin, SpinOff) and (spin.source_rate, spin.new_rate, spin.new_symbol) == (4, 1, "BETX")
    assert sorted((d.symbol, d.rate, d.special) for d in told["cash_dividends"]) == [
        ("ACME", 0.25, False), ("ACME", 0.37, False), ("ACME", 4.0, True),
    ]  # fmt: skip
    assert all(isinstance(d, CashDividend) and d.ex_date == d.process_date for d in told["cash_dividends"])
    assert told["stock_dividends"][0].rate == 0.05
    (cash,), (swap,), (both,) = (told[k] for k in ("cash_mergers", "stock_mergers", "stock_and_cash_mergers"))
    assert (cash.rate, cash.effective_date, swap.acquirer_symbol) == (41.5, TUESDAY, "ACME")
    assert (swap.acquirer_rate, swap.acquiree_rate) == (1, 2)
    assert (both.acquirer_rate, both.acquiree_rate, both.cash_rate) == (3, 2, 8.5)


def test_actions_are_chosen_by_symbol_type_id_and_day(serve):
    exchange = serve(actions=EVENTS, at=new_york(WEDNESDAY, 18))
    client = actions_client(exchange)
    ask = lambda **terms: {
        (kind, e.process_date)
        for kind, entries in client.get_corporate_actions(ALL.model_copy(update=terms)).data.items()
        for e in entries
    }
    assert ask(symbols=["DUNN"]) == {("name_changes", TUESDAY)}
    assert ask(types=[CorporateActionsType.REVERSE_SPLIT]) == {("reverse_splits", TUESDAY)}
    assert ask(start=WEDNESDAY, symbols=["ACME"]) == {("cash_dividends", WEDNESDAY)}
    assert {day for _, day in ask(start=None, end=None)} == {WEDNESDAY}
    (merger,) = client.get_corporate_actions(ALL).data["cash_mergers"]
    assert list(client.get_corporate_actions(CorporateActionsRequest(ids=[str(merger.id)])).data) == ["cash_mergers"]
    get = lambda **query: exchange.http.get("/v1beta1/corporate-actions", params=query)
    assert get(start="2024-01-01", end="2024-12-31", types="forward_split").json()["corporate_actions"].keys() == {
        "forward_splits"
    }
    for wrong in ({"types": "ipo"}, {"start": "soon"}, {"limit": 0}, {"page_token": "?"}, {"sort": "up"}):
        assert get(**wrong).status_code == 422


@pytest.mark.parametrize("sort", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 7])
def test_pages_of_actions_join_to_the_whole(serve, limit: int, sort: str):
    exchange, found, token = serve(actions=EVENTS, at=new_york(WEDNESDAY, 18)), [], ""
    while token is not None:
        query = {"start": "2024-01-01", "end": "2024-12-31", "limit": limit, "sort": sort, "page_token": token}
        body = exchange.http.get("/v1/corporate-actions", params=query).json()
        page = [e for entries in body["corporate_actions"].values() for e in entries]
        assert len(page) <= limit
        found += sorted(page, key=lambda e: e["process_date"], reverse=sort == "desc")
        token = body["next_page_token"]
    assert len({e["id"] for e in found}) == len(found) == 12
    days = [e["process_date"] for e in found]
    assert days == sorted(days, reverse=sort == "desc")


@pytest.mark.parametrize(
    ("kind", "pair"),
    [
        ("spin_offs", [("spin_off", 1.0, 0.0, None, "BETX"), ("spin_off", 1.0, 0.0, None, "BETY")]),
        ("cash_dividends", [("dividend", 1.0, 0.5), ("special_dividend", 1.0, 0.5)]),
    ],
)
def test_two_actions_of_a_kind_on_one_day_are_two(serve, kind, pair):
    bars = [("BETA", day, 20.0, 21.0, 19.0, 20.0, 1_000) for day in (FRIDAY, MONDAY, TUESDAY)]
    bars += [(name, TUESDAY, 20.0, 21.0, 19.0, 20.0, 1_000) for name in ("BETX", "BETY")]
    http = serve(bars, [("BETA", TUESDAY, *event) for event in pair], at=new_york(TUESDAY, 9)).http
    ask = lambda **p: http.get("/v1/corporate-actions", params={"start": "2024-03-01"} | p).json()
    first = ask(limit=1)
    rest = ask(limit=1, page_token=first["next_page_token"])
    (one,), (other,) = (page["corporate_actions"][kind] for page in (first, rest))
    assert one["id"] != other["id"]
    assert [ask(ids=action["id"])["corporate_actions"][kind] for action in (one, other)] == [[one], [other]]


def test_no_action_is_told_before_it_is_announced(serve):
    exchange = serve(actions=EVENTS, at=new_york(FRIDAY, 9))
    client = actions_client(exchange)
    seen = {}
    for at in (
        new_york(FRIDAY, 9),
        new_york(MONDAY, 15),
        new_york(MONDAY, 16),
        new_york(TUESDAY, 9),
        new_york(WEDNESDAY, 4),
    ):
        exchange.step(at)
        seen[at] = set(client.get_corporate_actions(ALL).data)
    first, *rest = seen.values()
    assert first == {
        "cash_dividends", "forward_splits", "reverse_splits", "spin_offs", "stock_and_cash_mergers", "stock_dividends",
        "stock_mergers",
    }  # fmt: skip
    assert [sorted(now - first) for now in rest] == [
        [], ["name_changes"], ["cash_mergers", "name_changes"], ["cash_mergers", "name_changes", "worthless_removals"],
    ]  # fmt: skip


def test_an_action_is_never_told_later_than_it_is_booked(tmp_path: Path):
    feed = Feed(write_rows(tmp_path, [], [("ACME", TUESDAY, "split", 2.0, 0.0, WEDNESDAY)]))
    assert len(announced(feed, new_york(TUESDAY, 3))) == 0
    assert len(announced(feed, new_york(TUESDAY, 4))) == 1


def test_a_feed_written_before_targets_existed_opens(tmp_path: Path):
    write_rows(tmp_path, [("ACME", FRIDAY, 9.0, 9.0, 9.0, 9.0, 9)], [("ACME", TUESDAY, "dividend", 1.0, 0.3)])
    old = pl.read_parquet(tmp_path / "actions.parquet").drop("declared_at", "target")
    old.write_parquet(tmp_path / "actions.parquet")
    assert read_table(tmp_path, "actions").columns == [*SCHEMA["actions"], *OPTIONAL["actions"]]
    assert Feed(tmp_path).actions[0].symbol == "ACME"


def test_a_spin_off_does_not_multiply_the_parent_s_shares(tmp_path: Path):
    feed = Feed(write_rows(tmp_path, [], [("ACME", TUESDAY, "spin_off", 0.25, 0.0, EARLY, "ACMX")]))
    assert feed.actions[0].ratio == 1


def renamed(serve):
    row = lambda symbol, day, close: (symbol, day, close, close, close, close, 900)
    bars = [row("DUNE", FRIDAY, 10.0), row("DUNE", MONDAY, 11.0), row("DUNN", TUESDAY, 12.0), row("ACME", TUESDAY, 5.0)]
    return serve(bars=bars, actions=EVENTS, at=new_york(TUESDAY, 18))


def test_bars_follow_a_company_through_its_names_as_of_a_day(serve):
    client = bars_client(renamed(serve))
    ask = lambda symbol, asof=None: [
        b.close
        for b in client.get_stock_bars(
            StockBarsRequest(symbol_or_symbols=symbol, timeframe=TimeFrame.Day, asof=asof, **SPAN)
        ).data.get(symbol, [])
    ]
    assert ask("DUNN") == [10, 11, 12]
    assert ask("DUNN", "-") == [12]
    assert ask("DUNE") == [10, 11]
    assert ask("DUNE", "2024-03-04") == [10, 11, 12]
    assert ask("DUNE", "-") == [10, 11]
    assert ask("ACME") == [5]


names = st.sampled_from("ABCD")
days = st.dates(date(2020, 1, 1), date(2020, 1, 20))


@given(st.lists(st.tuples(names, names, days), max_size=6), names, days)
def test_the_spans_of_a_company_do_not_overlap(changes, symbol, asof):
    found = spans([c for c in changes if c[0] != c[1]], symbol, asof)
    assert any(s.symbol == symbol and s.first <= asof <= s.last for s in found)
    ordered = [s for s in found if s.first <= s.last]
    assert all(a.last < b.first for a, b in pairwise(ordered))


def test_every_parameter_that_the_stock_client_sends_is_taken(serve):
    client = bars_client(serve(at=new_york(WEDNESDAY, 18)))
    request = StockBarsRequest(
        symbol_or_symbols=["BETA", "ACME"], timeframe=TimeFrame.Day, adjustment=Adjustment.RAW, feed=DataFeed.IEX,
        asof="2024-03-06", currency="USD", sort="desc", limit=5, **SPAN,
    )  # fmt: skip
    bars = client.get_stock_bars(request).data
    assert [(s, b.close) for s in bars for b in bars[s]] == [("ACME", c) for c in (105, 104, 101, 100)] + [
        ("BETA", 21.5)
    ]
    for wrong, status in ((TimeFrame.Minute, 422), (TimeFrame.Hour, 422)):
        with pytest.raises(APIError) as refused:
            client.get_stock_bars(request.model_copy(update={"timeframe": wrong}))
        assert refused.value.status_code == status
    get = exchange_http(client)
    for wrong in ("5Day", "2Week", "5Month", "1Decade", "Day", ""):
        assert get("bars", symbols="ACME", timeframe=wrong).status_code == 422


def exchange_http(client: StockHistoricalDataClient):
    "The same server without the stock client's own checks."
    headers = {"APCA-API-KEY-ID": "PKTEST", "APCA-API-SECRET-KEY": "secret-of-the-test"}
    return lambda path, **query: httpx.get(f"{client._base_url}/v2/stocks/{path}", params=query, headers=headers)


def walk(symbol: str, days: list[date], steps: list[float]) -> list[tuple]:
    "Bars whose close moves by the steps given."
    closes = [100.0 * prod(steps[: n + 1]) for n in range(len(days))]
    return [
        (symbol, d, c * 0.99, c * 1.02, c * 0.98, c, 10_000 + n)
        for n, (d, c) in enumerate(zip(days, closes, strict=True))
    ]


DAYS = sessions(date(2024, 2, 1), date(2024, 3, 1))
events_of = st.lists(
    st.tuples(
        st.sampled_from(DAYS[1:]),
        st.sampled_from(["split", "dividend", "special_dividend", "stock_dividend"]),
        st.sampled_from([0.1, 0.5, 1.05, 1.5, 2.0, 7.0]),
        st.sampled_from([0.01, 0.4, 3.0]),
    ),
    max_size=5,
    unique_by=lambda event: event[0],
)


@settings(deadline=None, max_examples=60)
@given(events_of, st.lists(st.floats(0.9, 1.1), min_size=len(DAYS), max_size=len(DAYS)))
def test_adjusted_bars_equal_the_platform_s_own_adjustment(events, steps):
    rows = [
        (
            "ACME",
            day,
            kind,
            ratio if kind in ("split", "stock_dividend") else 1.0,
            0.0 if kind in ("split", "stock_dividend") else cash,
        )
        for day, kind, ratio, cash in events
    ]
    bars = pl.DataFrame(walk("ACME", DAYS, steps), schema=SCHEMA["bars"], orient="row")
    actions = pl.DataFrame(rows, schema=SCHEMA["actions"], orient="row")
    for name, kind in (("split", "split"), ("all", "total_return")):
        ours = adjusted(bars.with_columns(traded_as="symbol"), actions, name)
        full = actions.with_columns(
            declared_at=pl.lit(None, pl.Date), target=pl.lit(None, pl.String), source=pl.lit("test")
        )
        theirs = adjust(bars, full, kind, "prev_close")
        for field in ("open", "close", "volume"):
            a, b = ours.sort("date")[field].to_numpy(), theirs.sort("date")[f"adj_{field}"].to_numpy()
            assert np.allclose(a, b, rtol=1e-4, atol=0.51 if field == "volume" else 2e-6)


def test_a_split_to_come_adjusts_nothing_yet(serve):
    exchange = serve(actions=[("ACME", TUESDAY, "split", 2.0, 0.0, EARLY)], at=new_york(MONDAY, 18))
    get = exchange_http(bars_client(exchange))
    closes = lambda: [
        b["c"] for b in get("bars", symbols="ACME", start="2024-03-01", adjustment="split").json()["bars"]["ACME"]
    ]
    assert closes() == [100.0, 101.0]
    exchange.step(new_york(TUESDAY, 4))
    assert closes() == [50.0, 50.5]


def test_weeks_and_months_are_made_of_days(serve):
    days = sessions(date(2024, 1, 2), date(2024, 3, 6))
    client = bars_client(serve(bars=walk("ACME", days, [1.01] * len(days)), at=new_york(WEDNESDAY, 18)))
    ask = lambda frame: client.get_stock_bars(StockBarsRequest(symbol_or_symbols="ACME", timeframe=frame, **SPAN)).data[
        "ACME"
    ]
    daily, weekly, monthly = ask(TimeFrame.Day), ask(TimeFrame.Week), ask(TimeFrame.Month)
    assert [b.timestamp.astimezone(NEW_YORK).date() for b in monthly] == [
        date(2024, 1, 1),
        date(2024, 2, 1),
        date(2024, 3, 1),
    ]
    assert {b.timestamp.astimezone(NEW_YORK).weekday() for b in weekly} == {0}
    for longer in (weekly, monthly):
        assert sum(b.volume for b in longer) == sum(b.volume for b in daily)
        assert (longer[0].open, longer[-1].close) == (daily[0].open, daily[-1].close)
        assert max(b.high for b in longer) == max(b.high for b in daily)
    (quarter,) = ask(TimeFrame(3, TimeFrameUnit.Month))
    assert (quarter.low, quarter.close) == (min(b.low for b in daily), daily[-1].close)


def test_trades_and_quotes_are_the_auctions_and_none_that_is_to_come(serve):
    exchange = serve(at=new_york(TUESDAY, 12))
    client = bars_client(exchange)
    span = {"symbol_or_symbols": ["ACME", "BETA"], "start": datetime(2024, 3, 4, tzinfo=UTC)}
    tape = client.get_stock_trades(StockTradesRequest(**span)).data
    assert [(t.timestamp, t.price) for t in tape["ACME"]] == [
        (new_york(MONDAY, 9, 30), 100), (new_york(MONDAY, 16), 101), (new_york(TUESDAY, 9, 30), 101),
    ]  # fmt: skip
    quotes = client.get_stock_quotes(StockQuotesRequest(**span)).data
    assert [q.bid_price < t.price < q.ask_price for t, q in zip(tape["BETA"], quotes["BETA"], strict=True)] == [
        True
    ] * 3
    late = client.get_stock_trades(StockTradesRequest(**span, sort="desc", limit=2)).data
    assert [t.timestamp for t in late["ACME"]] == [new_york(TUESDAY, 9, 30), new_york(MONDAY, 16)]


@pytest.mark.parametrize("sort", ["asc", "desc"])
def test_pages_of_trades_join_to_the_whole(serve, sort):
    get, token, found = exchange_http(bars_client(serve(at=new_york(WEDNESDAY, 18)))), "", []
    while token is not None:
        query = {"symbols": "ACME,BETA", "start": "2024-03-01", "limit": 2, "sort": sort, "page_token": token}
        body = get("trades", **query).json()
        found += [(s, t["t"]) for s, trades in body["trades"].items() for t in trades]
        token = body["next_page_token"]
    whole = get("trades", symbols="ACME,BETA", start="2024-03-01", sort=sort).json()["trades"]
    assert found == [(s, t["t"]) for s in whole for t in whole[s]]
    assert len(found) == len(set(found)) == 14


def test_a_snapshot_has_the_last_print_and_two_days(serve):
    client = bars_client(serve(at=new_york(TUESDAY, 12)))
    found = client.get_stock_snapshot(StockSnapshotRequest(symbol_or_symbols=["ACME", "BETA", "NONE"]))
    assert sorted(found) == ["ACME", "BETA"]
    acme = found["ACME"]
    assert (acme.latest_trade.price, acme.daily_bar.close, acme.previous_daily_bar.close, acme.minute_bar) == (
        101,
        101,
        100,
        None,
    )


@pytest.mark.parametrize("path", ["bars", "bars/latest", "trades/latest", "quotes/latest", "snapshots"])
def test_prices_are_told_in_dollars_or_not_at_all(serve, path):
    http = serve().http
    ask = lambda **p: http.get(f"/v2/stocks/{path}", params={"symbols": "ACME"} | p).status_code
    assert [ask(), ask(currency="USD", feed="iex"), ask(currency="EUR"), ask(feed="nowhere")] == [200, 200, 422, 422]


def test_an_unknown_symbol_has_no_bars_and_an_impossible_one_is_named(serve):
    get = lambda symbols: serve_http.get("/v2/stocks/bars", params={"symbols": symbols, "start": "2024-03-01"})
    serve_http = serve().http
    assert get("ZZZT").json() == {"bars": {}, "next_page_token": None}
    refused = get("ACME,no way")
    assert (refused.status_code, refused.json()["message"]) == (400, "invalid symbol: no way")


def test_no_bar_is_lost_when_a_session_closes_between_two_pages(serve):
    exchange, found, token = serve(at=new_york(MONDAY, 18)), [], ""
    while token is not None:
        query = {"symbols": "ACME,BETA", "start": "2024-03-01", "limit": 1, "page_token": token}
        body = exchange.http.get("/v2/stocks/bars", params=query).json()
        found += [(s, b["c"]) for s, bars in body["bars"].items() for b in bars]
        token = body["next_page_token"]
        if len(found) == 3:
            exchange.step(new_york(TUESDAY, 18))
    assert found == [("ACME", 100), ("ACME", 101), ("BETA", 20), ("BETA", 21), ("BETA", 21.5)]


@settings(deadline=None)
@given(st.floats(1e-4, 1e4, allow_nan=False), st.sampled_from(["split", "stock_dividend"]))
def test_a_ratio_survives_the_wire(ratio: float, kind: str):
    new, old = rates(ratio)
    assert new / old == ratio
    if kind == "stock_dividend" and 1 <= ratio <= 2:
        row = {"symbol": "A", "ex_date": TUESDAY, "kind": kind, "ratio": round(ratio, 6), "cash": 0.0, "target": None}
        ((_, body),) = actions_json(row)
        assert round(1 + body["rate"], 6) == row["ratio"]


def test_a_time_before_all_calendars_is_refused_and_no_crash(serve):
    http = serve().http
    for path, field in (("/v2/stocks/bars?symbols=ACME", "start"), ("/v2/account/portfolio/history?", "start")):
        reply = http.get(f"{path}&{field}=0001-01-01T00:00:00Z")
        assert (reply.status_code, reply.json()["code"]) == (422, 40010001)


def test_trades_up_to_the_last_of_all_days_are_those_up_to_now(serve):
    http = serve(at=new_york(MONDAY, 12)).http
    for kind in ("trades", "quotes", "bars"):
        ask = lambda end, kind=kind: http.get(f"/v2/stocks/{kind}?symbols=ACME&start=2024-03-01&end={end}")
        assert ask("9999-12-31").json() == ask("2024-03-04").json()
        assert list(ask("9999-12-31").json()[kind]) == ["ACME"]
        reply = ask("9999-12-31T23:00:00-05:00")
        assert (reply.status_code, "outside the calendar" in reply.json()["message"]) == (422, True)


def test_a_feed_that_cannot_be_read_says_which_file(tmp_path):
    folder = write_rows(tmp_path / "feed", [])
    (folder / "bars.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(SourceError, match=r"bars.parquet cannot be read .*: write the feed anew"):
        Feed(folder)
    pl.DataFrame({c: ["?"] for c in SCHEMA["bars"]}).write_parquet(folder / "bars.parquet")
    with pytest.raises(SourceError, match=r"bars.parquet cannot be read"):
        Feed(folder)


@pytest.mark.parametrize(
    ("start", "first"),
    [
        (datetime(2024, 3, 5, tzinfo=UTC), TUESDAY),  # what stock alpaca-py makes of a day without a zone
        (new_york(TUESDAY, 0), TUESDAY),
        (new_york(TUESDAY, 0, 1), WEDNESDAY),
        (new_york(FRIDAY, 9), MONDAY),
    ],
)
def test_no_bar_is_older_than_the_time_from_which_bars_are_asked_for(serve, start, first):
    client = bars_client(serve(at=new_york(WEDNESDAY, 18)))
    for more in ({}, {"adjustment": Adjustment.ALL}):
        request = StockBarsRequest(symbol_or_symbols="ACME", timeframe=TimeFrame.Day, start=start, **more)
        bars = client.get_stock_bars(request).data["ACME"]
        assert bars[0].timestamp == new_york(first, 0)
        assert bars[-1].timestamp == new_york(WEDNESDAY, 0)
