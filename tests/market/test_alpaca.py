"Alpaca's data over real HTTP: whole in spite of everything that passes, an error for what does not."

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import polars as pl
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tests.patience  # noqa: F401  (whoever asks a server waits)
from tests.market.alpaca_proxy import Proxy
from tradenb.core.clock import new_york
from tradenb.core.errors import ConfigError, InputError, SourceError
from tradenb.core.progress import heard_by
from tradenb.core.settings import load
from tradenb.core.web import serving
from tradenb.exchange.feed import write_rows
from tradenb.exchange.service import create_app
from tradenb.market.actions import combine
from tradenb.market.alpaca import AlpacaSource, Event, Pace, action_frame, alpaca_source, while_worn
from tradenb.market.catalog import broken_promises, open_source, write_feed
from tradenb.market.sources import DemoSource
from tradenb.market.tickers import identities, rename
from tradenb.market.universe import survivorship_warning

KEYS = {"TRADENB_EXECUTION__BROKER_KEY_ID": "PKTEST", "TRADENB_EXECUTION__BROKER_SECRET": "secret-of-the-test"}
HEADERS = {"APCA-API-KEY-ID": "PKTEST", "APCA-API-SECRET-KEY": "secret-of-the-test"}
DEMO = DemoSource(12, date(2018, 1, 2), 1, seed=11)
LAST = date(2018, 11, 23)  # The day after Thanksgiving: closes at one
NAMES = DEMO.universe(LAST)["symbol"].sort().to_list()
FIRST = date(2018, 6, 1)


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    "The local exchange with the demo market's feed, on the evening of the last day."
    folder = tmp_path_factory.mktemp("exchange")
    write_feed(DEMO, folder / "feed", date(2018, 12, 31))
    app = create_app(folder / "feed", folder / "x.db", key_id="PKTEST", secret_key=KEYS["TRADENB_EXECUTION__BROKER_SECRET"], start=new_york(LAST, 18))  # fmt: skip
    with serving(app) as url:
        yield url


@pytest.fixture(scope="module")
def shared(exchange: str) -> Iterator[Proxy]:
    "One proxy for many examples."
    with closing(Proxy(exchange)) as proxy:
        yield proxy


@pytest.fixture
def proxy(exchange: str) -> Iterator[Proxy]:
    with closing(Proxy(exchange)) as proxy:
        yield proxy


def source_at(url: str, pause: Callable[[float], None] = lambda _: None, **terms: Any) -> AlpacaSource:
    "The source by settings, its pauses noted instead of slept."
    values = {"data_url": url, "trading_url": url, "start": "2018-01-02", "timeout_s": 2, "backoff_s": 1} | terms
    chosen = {"market.source": "alpaca"} | {f"alpaca.{name}": str(value) for name, value in values.items()}
    return alpaca_source(load(chosen, env=KEYS), Pace(100_000, lambda: 0.0, pause))


def expected_bars(start: date, end: date, symbols: list[str] | None = None) -> pl.DataFrame:
    truth = DEMO.truth(start, end).with_columns(vwap=pl.lit(None, pl.Float64), source=pl.lit("alpaca"))
    return truth if symbols is None else truth.filter(pl.col("symbol").is_in(symbols))


def test_bars_equal_the_feed_exactly(proxy: Proxy):
    source = source_at(proxy.url, symbols_per_request=5, page_limit=701)
    bars = source.bars(date(2018, 1, 2), LAST, NAMES)
    assert bars.equals(expected_bars(date(2018, 1, 2), LAST, NAMES).select(bars.columns))
    assert len(proxy.requests("/bars")) > len(bars) / 701
    assert {q["asof"] for q in proxy.requests("/bars")} == {"-"} and {
        q["adjustment"] for q in proxy.requests("/bars")
    } == {"raw"}


def test_actions_equal_the_feed_exactly(proxy: Proxy):
    source = source_at(proxy.url, symbols_per_request=5)
    told = source.actions(date(2018, 1, 2), LAST, DEMO.symbols())
    columns = ["symbol", "ex_date", "kind", "ratio", "cash"]
    mine = combine(DEMO.actions(date(2018, 1, 2), LAST)).sort("symbol", "ex_date", "kind")
    assert len(told) > 15 and told.select(columns).equals(mine.select(columns))


def test_the_source_keeps_every_promise(proxy: Proxy):
    assert broken_promises(source_at(proxy.url), FIRST, LAST) == []


def test_it_runs_by_settings_alone(exchange: str):
    chosen = {"market.source": "alpaca", "alpaca.data_url": exchange, "alpaca.trading_url": exchange}
    source = open_source(load(chosen | {"market.symbols": ", ".join(NAMES[:3])}, env=KEYS))
    assert (source.name, source.first_date, source.last_date) == ("alpaca", date(2016, 1, 4), LAST)
    assert source.first_trade_date == LAST
    assert set(source.bars(LAST, LAST, NAMES[:3])["symbol"]) == set(NAMES[:3])
    with pytest.raises(InputError, match="unknown symbol NOPE"):
        open_source(load(chosen | {"market.symbols": "NOPE"}, env=KEYS))
    with pytest.raises(ConfigError, match="TRADENB_EXECUTION__BROKER_KEY_ID and TRADENB_EXECUTION__BROKER_SECRET"):
        open_source(load(chosen, env={}))


def test_wrong_keys_are_a_matter_of_configuration(exchange: str):
    chosen = {"market.source": "alpaca", "alpaca.data_url": exchange, "alpaca.trading_url": exchange}
    source = alpaca_source(load(chosen, env=KEYS | {"TRADENB_EXECUTION__BROKER_SECRET": "old"}))
    with pytest.raises(ConfigError, match=r"HTTP 403.*BROKER_KEY_ID"):
        source.symbols()


PASSING = ["429:2", "429:", "500", "502", "503", "504", "reset", "cut", "garbled", "html", "list", "empty", "repeat"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PASSING), max_size=3), st.sampled_from(["/bars", "/corporate-actions", "/clock"]))
def test_what_passes_changes_nothing(exchange: str, faults: list[str], path: str):
    with closing(Proxy(exchange)) as proxy:
        proxy.break_next(path, *faults)
        source = source_at(proxy.url, page_limit=100, attempts=4)
        start = date(2018, 10, 1)
        assert source.bars(start, LAST, NAMES).equals(
            expected_bars(start, LAST, NAMES).select(source.bars(start, LAST, NAMES).columns)
        )
        columns = ["symbol", "ex_date", "kind", "ratio", "cash"]
        told, mine = source.actions(start, LAST, NAMES), combine(DEMO.actions(start, LAST, NAMES))
        assert told.select(columns).equals(mine.sort("symbol", "ex_date", "kind").select(columns))


def test_an_answer_that_does_not_come_is_asked_for_again(proxy: Proxy):
    proxy.break_next("/clock", "hang", "hang")
    assert source_at(proxy.url, timeout_s=0.2).last_date == LAST
    assert len(proxy.requests("/clock")) == 3


@pytest.mark.parametrize(
    ("fault", "cause"),
    [("503", "HTTP 503"), ("reset", "ConnectionError"), ("cut", "IncompleteRead"), ("garbled", "JSON"), ("429:1", "HTTP 429"), ("html", "JSON")],
)  # fmt: skip
def test_what_never_passes_fails_the_delivery_with_symbols_and_cause(proxy: Proxy, fault: str, cause: str):
    source = source_at(proxy.url, symbols_per_request=4, attempts=3)
    assert source.symbols()
    assert len(source.bars(LAST, LAST, NAMES)) == len(NAMES)
    proxy.faults["/bars"] = Late(1, fault)
    with pytest.raises(SourceError) as failed:
        source.bars(LAST, LAST, NAMES)
    said = str(failed.value)
    assert cause in said and f"bars of {', '.join(NAMES[4:8])} from {LAST}" in said and "after 3 attempts" in said


class Late(list):
    "Faults from the `after`-th request on, without end."

    def __init__(self, after: int, fault: str):
        super().__init__([fault])
        self.after, self.name = after, fault

    def popleft(self) -> str | None:
        self.after -= 1
        return self.name if self.after < 0 else None


def test_a_refusal_is_not_repeated(proxy: Proxy):
    source = source_at(proxy.url, feed="sip")
    assert source.symbols()
    for fault, word in (
        ("422:invalid symbol#: KO VA", "invalid symbol"),
        ("403:subscription does not permit querying recent SIP data", "choose another alpaca.feed"),
        ("404", "HTTP 404"),
    ):
        before = len(proxy.requests("/bars"))
        proxy.break_next("/bars", fault)
        with pytest.raises(SourceError, match=word):
            source.bars(LAST, LAST, NAMES)
        assert len(proxy.requests("/bars")) == before + 1


def test_an_impossible_symbol_is_named(exchange: str):
    with pytest.raises(SourceError, match=r"bars of .*KO VA.*invalid symbol: KO VA"):
        source_at(exchange).bars(LAST, LAST, [*NAMES[:2], "KO VA"])


def test_pauses_grow_and_the_server_s_word_counts(proxy: Proxy):
    pauses: list[float] = []
    proxy.break_next("/clock", "503", "429:30", "503", "503", "503")
    assert source_at(proxy.url, pauses.append, attempts=6, backoff_s=1).last_date == LAST
    assert pauses[1] == 30
    assert [round(p / 2**n, 1) for n, p in enumerate(pauses) if n != 1] == pytest.approx([1.1, 1.1, 1.1, 1.1], abs=0.16)


def test_no_minute_has_more_requests_than_allowed(exchange: str):
    now = SimpleNamespace(s=0.0)
    with closing(Proxy(exchange, lambda: now.s)) as proxy:
        source = source_at(proxy.url, symbols_per_request=1)
        pace = Pace(5, lambda: now.s, lambda seconds: setattr(now, "s", now.s + seconds))
        source.link.calls.pace = pace
        proxy.break_next("/bars", "503", "503", "429:7")
        bars = source.bars(LAST, LAST, NAMES)
        times = [at for at, *_ in proxy.seen]
    assert bars["symbol"].to_list() == NAMES
    assert len(times) > len(NAMES) + 4
    assert max(sum(at - 60 < other <= at for other in times) for at in times) <= 5
    assert times[-1] < 60 * len(times) / 5


@pytest.mark.parametrize(("feed", "history"), [("iex", "iex"), ("sip", "sip"), ("delayed_sip", "sip"), ("otc", "otc")])
def test_the_feed_is_the_settings_and_history_has_no_delay(proxy: Proxy, feed: str, history: str):
    source = source_at(proxy.url, feed=feed)
    assert source.newest(NAMES).keys() == set(NAMES) and len(source.bars(LAST, LAST, NAMES)) == len(NAMES)
    assert [q["feed"] for path in ("/bars", "/trades/latest") for q in proxy.requests(path)] == [history, feed]


def test_no_bars_are_no_error(proxy: Proxy):
    source = source_at(proxy.url)
    assert source.bars(LAST, LAST, ["ZZZT"]).is_empty()
    proxy.break_next("/bars", "null:bars", 'answer:{"bars": {"ZZZT": null}, "next_page_token": ""}')
    assert source.bars(LAST, LAST, ["ZZZT"]).is_empty()
    assert source.bars(LAST, LAST, ["ZZZT"]).schema == source.bars(LAST, LAST, NAMES).schema
    proxy.break_next("/corporate-actions", "null:corporate_actions")
    assert source.actions(LAST, LAST, ["ZZZT"]).is_empty()


def test_asking_for_nothing_asks_nobody(proxy: Proxy):
    source = source_at(proxy.url)
    assert source.bars(FIRST, LAST, []).is_empty() and source.actions(FIRST, LAST, []).is_empty()
    assert source.newest([]) == {} or not proxy.requests("/trades/latest")
    assert not proxy.requests("/bars") and not proxy.requests("/corporate-actions")


def test_a_page_that_never_ends_is_an_error(proxy: Proxy):
    source = source_at(proxy.url, page_limit=10, attempts=2)
    assert source.symbols()
    proxy.faults["/bars"] = Late(1, "repeat")
    with pytest.raises(SourceError, match="came twice"):
        source.bars(FIRST, LAST, NAMES)


def test_long_work_says_how_far_it_is(exchange: str):
    said: list[str] = []
    with heard_by(said.append):
        source_at(exchange, symbols_per_request=3).bars(LAST, LAST, NAMES[:8])
    assert said == [f"Alpaca: bars, request {n} of 3" for n in (1, 2, 3)]


def test_unreadable_actions_are_refused_by_their_id(proxy: Proxy):
    source = source_at(proxy.url)
    proxy.break_next(
        "/corporate-actions", 'answer:{"corporate_actions": {"cash_dividends": [{"id": "b7", "symbol": "X"}]}}'
    )
    with pytest.raises(SourceError, match="cash_dividends b7 cannot be read"):
        source.symbols()


WORDS = ["bars", "t", "o", "v", "symbol", "trades", "timestamp", "corporate_actions", "cash_dividends", "name_changes", "rate",
         "spin_offs", "ex_date", "process_date", "date", "close", "status", "tradable", "next_page_token", *NAMES[:2]]  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9**9) | st.floats(allow_nan=False) | st.text(max_size=6) | st.dates().map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=100)
@given(st.sampled_from(["/bars", "/corporate-actions", "/assets", "/clock", "/calendar", "/latest"]), json_values)
def test_no_answer_of_any_shape_ends_in_a_traceback(shared: Proxy, path: str, value: object):
    keys = {"/bars": "bars", "/corporate-actions": "corporate_actions", "/latest": "trades", "/clock": "timestamp"}
    body = {keys[path]: value} if path in keys else [value]
    shared.faults = {path: Late(0, f"answer:{json.dumps(body)}")}
    source = source_at(shared.url, attempts=2)
    for ask in (source.symbols, lambda: source.bars(LAST, LAST, NAMES[:2]), lambda: source.actions(FIRST, LAST, NAMES[:2]), lambda: source.newest(NAMES[:2])):  # fmt: skip
        with contextlib.suppress(SourceError):
            ask()


def test_bars_of_a_symbol_that_was_not_asked_for_are_refused(proxy: Proxy):
    source = source_at(proxy.url)
    assert source.symbols()
    proxy.break_next("/bars", 'answer:{"bars": {"OTHR": []}, "next_page_token": null}')
    with pytest.raises(SourceError, match="bars of OTHR, which was not asked for"):
        source.bars(LAST, LAST, NAMES)


EVENTS = [
    ("ACME", date(2024, 3, 5), "split", 2.0, 0.25, date(2024, 2, 1)),
    ("BETA", date(2024, 3, 5), "split", 0.1, 0.0, date(2024, 2, 1)),
    ("BETA", date(2024, 3, 6), "stock_dividend", 1.05, 0.0, date(2024, 2, 1)),
    ("ACME", date(2024, 3, 6), "special_dividend", 1.0, 4.0, date(2024, 2, 1)),
    ("ACME", date(2024, 3, 6), "spin_off", 0.25, 0.0, date(2024, 2, 1), "ACMX"),
    ("DUNE", date(2024, 3, 5), "symbol_change", 1.0, 0.0, date(2024, 2, 1), "DUNN"),
    ("ELMO", date(2024, 3, 5), "delisting", 1.0, 41.5, date(2024, 2, 1)),
    ("FARO", date(2024, 3, 5), "delisting", 1.5, 4.25, date(2024, 2, 1), "ACME"),
    ("GONE", date(2024, 3, 5), "delisting", 1.0, 0.0, date(2024, 2, 1)),
    ("HALF", date(2024, 3, 5), "delisting", 0.5, 0.0, date(2024, 2, 1), "ACME"),
]
MONDAY, TUESDAY, WEDNESDAY = date(2024, 3, 4), date(2024, 3, 5), date(2024, 3, 6)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[..., str]]:
    "An exchange of one's own rows."
    row = lambda symbol, day: (symbol, day, 10.0, 11.0, 9.0, 10.5, 900)
    bars = [row(s, MONDAY) for s in ("ACME", "BETA", "DUNE", "ELMO")]
    bars += [row(s, d) for d in (TUESDAY, WEDNESDAY) for s in ("ACME", "BETA", "DUNN")]
    servers = []

    def start(at: Any, ends: dict[str, date] | None = None) -> str:
        write_rows(tmp_path / "feed", bars, EVENTS, ends)
        app = create_app(tmp_path / "feed", tmp_path / "x.db", key_id="PKTEST", secret_key=KEYS["TRADENB_EXECUTION__BROKER_SECRET"], start=at)  # fmt: skip
        servers.append(serving(app))
        return servers[-1].__enter__()

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def test_every_sort_of_action_comes_through(small: Callable[..., str]):
    source = source_at(small(new_york(WEDNESDAY, 18)))
    told = source.actions(MONDAY, WEDNESDAY, sorted({e[0] for e in EVENTS}))
    expected = [(*e[:5], e[6] if len(e) > 6 else None) for e in EVENTS]
    expected[0] = ("ACME", TUESDAY, "split", 2.0, 0.0, None)
    expected.append(("ACME", TUESDAY, "dividend", 1.0, 0.25, None))
    columns = ["symbol", "ex_date", "kind", "ratio", "cash", "target"]
    assert sorted(told.select(columns).rows(), key=str) == sorted(expected, key=str)
    assert set(told["source"]) == {"alpaca"}


def test_a_company_that_changed_its_name_is_found_by_either(small: Callable[..., str]):
    source = source_at(small(new_york(WEDNESDAY, 18)))
    assert {"DUNE", "DUNN"} <= set(source.symbols())
    assert source.bars(MONDAY, WEDNESDAY, ["DUNN"])["date"].to_list() == [TUESDAY, WEDNESDAY]
    assert source.bars(MONDAY, WEDNESDAY, ["DUNE", "DUNN"])["symbol"].to_list() == ["DUNE", "DUNN", "DUNN"]
    for name in ("DUNE", "DUNN"):
        assert source.actions(MONDAY, WEDNESDAY, [name]).select("symbol", "kind", "target").rows() == [
            ("DUNE", "symbol_change", "DUNN")
        ]
    assert set(source.bars(MONDAY, WEDNESDAY)["symbol"]) == {"ACME", "BETA", "DUNE", "DUNN"}


def test_a_session_that_still_runs_has_no_bar(small: Callable[..., str]):
    url = small(new_york(TUESDAY, 9))
    source, steps = source_at(url), {}
    for hour, minute in ((9, 0), (12, 0), (15, 59), (16, 0)):
        to = new_york(TUESDAY, hour, minute).isoformat()
        httpx.post(f"{url}/admin/clock", json={"to": to}, headers=HEADERS).raise_for_status()
        steps[hour, minute] = (source.last_date, source.bars(MONDAY, WEDNESDAY, ["ACME"])["date"].max())
    assert list(steps.values()) == [(MONDAY, MONDAY)] * 3 + [(TUESDAY, TUESDAY)]


def test_a_half_day_is_complete_at_one(tmp_path: Path):
    write_feed(DEMO, tmp_path / "feed", LAST)
    app = create_app(tmp_path / "feed", tmp_path / "x.db", key_id="PKTEST", secret_key=KEYS["TRADENB_EXECUTION__BROKER_SECRET"], start=new_york(LAST, 12, 59))  # fmt: skip
    with serving(app) as url:
        source = source_at(url)
        assert source.last_date == date(2018, 11, 21)
        httpx.post(f"{url}/admin/clock", json={"to": new_york(LAST, 13).isoformat()}, headers=HEADERS)
        assert source.last_date == LAST
        assert set(source.newest(NAMES).values()) == {new_york(LAST, 13)}


def test_a_holiday_that_only_the_broker_knows_is_believed_and_told(proxy: Proxy):
    "Ours says that the exchange traded on the 20th; theirs does not, and closes the 19th at one."
    days = [{"date": f"2018-11-{n}", "open": "09:30", "close": "13:00" if n == 19 else "16:00"} for n in (16, 19)]
    proxy.break_next("/clock", 'answer:{"timestamp": "2018-11-20T18:00:00-05:00"}')
    proxy.break_next("/calendar", f"answer:{json.dumps(days)}")
    with structlog.testing.capture_logs() as told:
        assert source_at(proxy.url).last_date == date(2018, 11, 19)
    (line,) = [entry for entry in told if entry["event"] == "alpaca_calendar_differs"]
    assert line["days"][-2:] == ["2018-11-19", "2018-11-20"] and "2018-11-16" not in line["days"]


def test_the_universe_is_today_s_and_says_so(small: Callable[..., str]):
    source = source_at(small(new_york(WEDNESDAY, 18), {"ELMO": MONDAY, "DUNE": MONDAY}))
    universe = source.universe(WEDNESDAY)
    assert universe["symbol"].to_list() == ["ACME", "BETA", "DUNN"]
    assert survivorship_warning(universe)
    assert source.newest(["ACME", "ELMO", "DUNE"]) == {"ACME": new_york(WEDNESDAY, 16)}
    assert source.assets(WEDNESDAY)["symbol"].to_list() == ["ACME", "BETA", "DUNN"]


@st.composite
def renamings(draw: st.DrawFn) -> list[tuple[date, int, str, str]]:
    "Companies that change their names, always to one that nobody wears that day: day, company, old, new."
    wearing, told, days = dict(enumerate("ABC")), [], sorted(draw(st.sets(st.integers(1, 40), max_size=7)))
    for n in days:
        company, new = draw(st.sampled_from([0, 1, 2])), draw(st.sampled_from("ABCDE"))
        if new not in wearing.values():
            told.append((DAY_ONE + timedelta(days=n), company, wearing[company], new))
            wearing[company] = new
    return told


DAY_ONE = date(2022, 1, 3)


@settings(max_examples=200)
@given(renamings())
def test_with_all_name_changes_known_every_bar_is_kept_and_every_company_has_one_name(told: list):
    days = [DAY_ONE + timedelta(days=n) for n in range(45)]
    wore = lambda company, day: next(
        (new for at, who, _, new in told[::-1] if who == company and at <= day), "ABC"[company]
    )
    rows = pl.DataFrame([(wore(c, d), d, c) for d in days for c in range(3)], {"symbol": pl.String, "date": pl.Date, "company": pl.Int64}, orient="row")  # fmt: skip
    changes = action_frame([Event(old, at, "symbol_change", target=new) for at, _, old, new in told])
    kept = while_worn(rows, changes)
    assert kept.sort("date", "company").equals(rows.sort("date", "company"))
    names = rename(kept, identities(changes)).group_by("company").agg(pl.col("symbol").unique())["symbol"].to_list()
    assert [len(n) for n in names] == [1, 1, 1] and len({n[0] for n in names}) == 3
