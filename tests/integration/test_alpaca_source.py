"From an exchange's data end points into the lake, by settings alone."

from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from tradenb.core.calendar import next_session, sessions, shift
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.errors import FreshnessError
from tradenb.core.settings import Settings, load
from tradenb.core.web import serving
from tradenb.exchange.feed import write_rows
from tradenb.exchange.service import create_app
from tradenb.market.actions import adjust
from tradenb.market.catalog import open_source, write_feed
from tradenb.market.etl import EtlReport, run_etl
from tradenb.market.lake import open_lake
from tradenb.market.sources import DemoSource

PROJECT = Path(__file__).resolve().parents[2]
KEYS = {"TRADENB_EXECUTION__BROKER_KEY_ID": "PKTEST", "TRADENB_EXECUTION__BROKER_SECRET": "secret-of-the-test"}
HEADERS = {"APCA-API-KEY-ID": "PKTEST", "APCA-API-SECRET-KEY": "secret-of-the-test"}
MARKET = DemoSource(16, date(2018, 1, 2), 1, seed=3)
START, AS_OF = date(2018, 1, 2), date(2018, 11, 21)


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[str]:
    "A local exchange with the simulated market, at nine on the day after Thanksgiving, a half day."
    write_feed(MARKET, tmp_path / "feed", date(2018, 12, 31))
    start = new_york(next_session(AS_OF), 9)
    app = create_app(
        tmp_path / "feed", tmp_path / "x.db", key_id="PKTEST", secret_key="secret-of-the-test", start=start
    )
    with serving(app) as url:
        yield url


@pytest.fixture
def settings_for(exchange: str, tmp_path: Path) -> Callable[..., Settings]:
    "Settings that name the exchange as Alpaca."

    def make(**more: Any) -> Settings:
        chosen = {"core.root": tmp_path / "data", "market.source": "alpaca", "alpaca.start": START}
        where = {"alpaca.data_url": exchange, "alpaca.trading_url": exchange, "alpaca.symbols_per_request": 6}
        values = chosen | where | {"alpaca.page_limit": 500, "alpaca.requests_per_minute": 10_000} | more
        return load({name: str(value) for name, value in values.items()}, env=KEYS, file=PROJECT / "settings.ini")

    return make


def ingest(settings: Settings, as_of: date) -> EtlReport:
    clock = SimulatedClock(new_york(next_session(as_of), 9))
    return run_etl(settings, open_source(settings), open_lake(settings), as_of, clock)


def expected(as_of: date, symbols: list[str]) -> pl.DataFrame:
    "What the feed's own bars and actions come to."
    bars = (
        MARKET.truth(START, as_of).filter(pl.col("symbol").is_in(symbols)).with_columns(vwap=pl.lit(None, pl.Float64))
    )
    return adjust(bars, MARKET.actions(START, as_of, symbols), "total_return", "prev_close", as_of)


def test_the_lake_holds_what_the_exchange_s_feed_holds(settings_for: Callable[..., Settings], exchange: str) -> None:
    settings = settings_for()
    report = ingest(settings, AS_OF)
    members = MARKET.universe(AS_OF).filter(pl.col("end").is_null())["symbol"].sort().to_list()
    bars = open_lake(settings).read("bars")
    wanted = expected(AS_OF, members)
    assert bars.select(wanted.columns).equals(wanted)
    assert wanted.filter(pl.col("total_return_factor") != 1).height > 100
    assert len(report.quarantined) == 0
    assert any("survivor" in text.lower() for text in report.warnings)

    day = next_session(AS_OF)
    to = new_york(next_session(day), 9).isoformat()
    httpx.post(f"{exchange}/admin/clock", json={"to": to}, headers=HEADERS, timeout=60).raise_for_status()
    again = ingest(settings, day)
    assert again.sessions == (day,)
    members = [s for s in members if s in set(MARKET.truth(day, day)["symbol"])]
    assert open_lake(settings).read("bars", symbols=members).select(wanted.columns).equals(expected(day, members))
    assert not ingest(settings, day).changed


def test_a_few_symbols_by_settings(settings_for: Callable[..., Settings]) -> None:
    chosen = MARKET.universe(AS_OF).filter(pl.col("end").is_null())["symbol"].sort().to_list()[:3]
    settings = settings_for(**{"market.symbols": ", ".join(chosen)})
    ingest(settings, AS_OF)
    assert open_lake(settings).read("bars")["symbol"].unique().sort().to_list() == chosen


def test_a_feed_that_stands_still_while_the_market_is_open_stops_the_run(
    settings_for: Callable[..., Settings], exchange: str
) -> None:
    "The exchange prints at the open and at the close alone: by eleven its newest data is ninety minutes old."
    to = new_york(next_session(AS_OF), 11)
    httpx.post(f"{exchange}/admin/clock", json={"to": to.isoformat()}, headers=HEADERS, timeout=60).raise_for_status()
    settings = settings_for()
    source, lake = open_source(settings), open_lake(settings)
    with pytest.raises(FreshnessError, match="newest data is 90 minutes old"):
        run_etl(settings, source, lake, AS_OF, SimulatedClock(to))
    patient = settings_for(**{"market.max_age_minutes": 120})
    assert run_etl(patient, source, lake, AS_OF, SimulatedClock(to)).sessions[-1] == AS_OF


def test_the_calendar_of_a_half_day_is_the_broker_s(settings_for: Callable[..., Settings], exchange: str) -> None:
    half = next_session(AS_OF)
    source = open_source(settings_for())
    assert source.last_date == AS_OF == shift(half, -1)
    httpx.post(f"{exchange}/admin/clock", json={"to": new_york(half, 13).isoformat()}, headers=HEADERS, timeout=60)
    assert source.last_date == half


def walk(symbol: str, days: list[date], level: float) -> list[tuple]:
    "Bars of a ticker, a little up and down."
    closes = [round(level * (1 + 0.01 * ((7 * n) % 5 - 2)), 2) for n in range(len(days))]
    return [
        (symbol, day, c, c + 0.5, c - 0.5, c, 10_000 + n) for n, (day, c) in enumerate(zip(days, closes, strict=True))
    ]


def test_a_ticker_that_went_from_one_company_to_another_ends_as_two_companies(tmp_path: Path) -> None:
    "META is a fund until it becomes METV; three weeks later FB takes the name."
    days = sessions(date(2022, 1, 3), date(2022, 3, 31))
    freed, taken = days[20], days[35]
    rows = walk("FB", days[:35], 300.0) + walk("META", days[35:], 200.0) + walk("KOVA", days, 80.0)
    rows += walk("META", days[:20], 15.0) + walk("METV", days[20:], 12.0)
    events = [
        ("META", freed, "symbol_change", 1.0, 0.0, None, "METV"),
        ("FB", taken, "symbol_change", 1.0, 0.0, None, "META"),
        ("FB", days[10], "dividend", 1.0, 3.0),
        ("META", days[15], "split", 2.0, 0.0),
    ]
    write_rows(tmp_path / "feed", sorted(rows), events, {"FB": days[34]})
    app = create_app(
        tmp_path / "feed",
        tmp_path / "x.db",
        key_id="PKTEST",
        secret_key="secret-of-the-test",
        start=new_york(days[-1], 18),
    )
    with serving(app) as url:
        chosen = {"core.root": tmp_path / "data", "market.source": "alpaca", "alpaca.start": days[0]}
        chosen |= {"alpaca.data_url": url, "alpaca.trading_url": url}
        settings = load({name: str(value) for name, value in chosen.items()}, env=KEYS, file=PROJECT / "settings.ini")
        report = ingest(settings, days[-1])
    bars = open_lake(settings).read("bars")
    assert len(report.quarantined) == 0
    assert bars["symbol"].unique().sort().to_list() == ["KOVA", "META", "METV"]
    meta, fund = (bars.filter(symbol=name) for name in ("META", "METV"))
    assert meta["date"].to_list() == days == fund["date"].to_list()
    assert meta["close"].to_list() == [r[5] for r in walk("FB", days[:35], 300.0) + walk("META", days[35:], 200.0)]
    assert fund["close"].to_list() == [r[5] for r in walk("META", days[:20], 15.0) + walk("METV", days[20:], 12.0)]
    assert meta["total_return_factor"].n_unique() == 2 and set(meta["price_factor"]) == {1.0}
    assert set(fund["price_factor"]) == {0.5, 1.0}
