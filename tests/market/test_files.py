"Files are a source by settings alone: rows as delivered, nothing applied twice, and one wrong date moves nothing."

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tradenb.core.calendar import next_session, sessions, shift
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.errors import ConfigError, DataError, SourceError, TradenbError
from tradenb.core.settings import Settings
from tradenb.market.actions import ACTION_SCHEMA, adjust
from tradenb.market.catalog import open_source
from tradenb.market.demo import BAR_SCHEMA
from tradenb.market.etl import run_etl
from tradenb.market.files import FilesSource, column_events, counted_days, not_in_prices, usable
from tradenb.market.lake import open_lake
from tradenb.market.sources import UNIVERSE_SCHEMA, DemoSource

HEADER = "symbol,date,open,high,low,close,volume\n"
ROWS = "AAPL,2014-02-03,71.8,72.53,71.33,71.65,100366000\nAAPL,2014-02-04,72.26,72.78,71.82,72.68,94170000\nMSFT,2014-02-03,37.74,37.99,36.43,36.48,64063100\n"
DEMO = DemoSource(count=30, start=date(2020, 1, 2), years=1)
FIRST, LAST = date(2020, 1, 2), date(2020, 12, 31)
TRUTH = DEMO.truth(FIRST, LAST).drop("source")
EVENTS = DEMO.actions(FIRST, LAST)


def source_of(folder: Path, text: str | bytes, **kwargs: object) -> FilesSource:
    file = folder / "bars.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return FilesSource(str(file), **kwargs)  # type: ignore[arg-type]


def test_a_csv_a_parquet_file_and_a_folder_of_both_are_the_same_source(tmp_path: Path):
    whole = source_of(tmp_path, HEADER + ROWS)
    bars = whole.bars(whole.first_date, whole.last_date).drop("source")
    bars.write_parquet(tmp_path / "bars.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    bars.filter(symbol="AAPL").write_parquet(folder / "a.parquet")
    bars.filter(symbol="MSFT").write_csv(folder / "b.csv.gz", compression="gzip")
    for other in (tmp_path / "bars.parquet", folder):
        source = FilesSource(str(other))
        assert_frame_equal(source.bars(date(2014, 1, 1), date(2014, 12, 31)).drop("source"), bars)
    assert bars.schema == pl.Schema(BAR_SCHEMA)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text("AB,;\"'\n\r-.01x\x00é", max_size=120).map(lambda s: (HEADER + ROWS + s).encode()))
def test_whatever_a_file_holds_the_source_answers_or_refuses_in_one_line(tmp_path: Path, content: bytes):
    try:
        source = source_of(tmp_path, content)
        bars = source.bars(source.first_date, source.last_date)
        source.truth(source.first_date, source.last_date), source.universe(), source.actions(FIRST, LAST)
    except TradenbError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert bars["symbol"].null_count() == bars["date"].null_count() == 0


def actions_file(folder: Path, text: str) -> str:
    file = folder / "actions.csv"
    file.write_text("symbol,ex_date,kind,ratio,cash\n" + text)
    return str(file)


def test_an_actions_file_may_hold_no_event_yet(tmp_path: Path):
    source = source_of(tmp_path, HEADER + ROWS, actions_path=actions_file(tmp_path, ""))
    assert source.actions(date(2014, 1, 1), date(2014, 12, 31)).is_empty()


def test_an_actions_file_is_read_and_its_blanks_are_neutral(tmp_path: Path):
    text = "AAPL,2014-06-09,split,7,\nAAPL,2014-02-06,dividend,,3.05\nBRK-B,2010-01-21,split,50,\n"
    source = source_of(tmp_path, HEADER + ROWS, actions_path=actions_file(tmp_path, text))
    assert source.actions(date(2014, 1, 1), date(2014, 12, 31)).select("kind", "ratio", "cash", "source").rows() == [
        ("dividend", 1.0, 3.05, "files"),
        ("split", 7.0, 0.0, "files"),
    ]
    assert source.actions(date(2014, 6, 1), date(2014, 12, 31))["kind"].to_list() == ["split"]
    assert source.actions(date(2010, 1, 1), date(2010, 12, 31))["symbol"].to_list() == ["BRK.B"]


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("AAPL,2014-02-06,dividend,,x\n", SourceError, r"actions\.csv row 2: cash is 'x'"),
        ("AAPL,2014-02-06,dividend,,-1\n", DataError, "AAPL 2014-02-06: .*cash=-1.0 is no corporate action"),
        ("AAPL,2014-02-06,rumour,,1\n", DataError, "kind=rumour"),
        (",2014-02-06,dividend,,1\n", SourceError, "row 2: symbol is None"),
    ],
)
def test_an_event_that_cannot_be_is_one_line(tmp_path: Path, text: str, error: type[Exception], says: str):
    source = source_of(tmp_path, HEADER + ROWS, actions_path=actions_file(tmp_path, text))
    with pytest.raises(error, match=says):
        source.actions(FIRST, LAST)
    (tmp_path / "actions.csv").write_text("symbol,date,kind\n")
    with pytest.raises(ConfigError, match=r"actions\.csv has no column 'ex_date'"):
        FilesSource(source.bars_path, source.actions_path).actions(FIRST, LAST)


COLUMNS = {"dividend": "ex_dividend", "split_ratio": "split_ratio"}


def with_events(rows: list[tuple[str, float | None, float | None]]) -> str:
    head = HEADER.replace("\n", ",ex_dividend,split_ratio\n")
    text = "".join(f"{day},9,9,9,9,5,{'' if d is None else d},{'' if s is None else s}\n" for day, d, s in rows)
    return head + text


def test_dividends_and_splits_beside_the_prices_are_events_and_nothing_is_none(tmp_path: Path):
    text = with_events(
        [("A,2014-02-03", 0, 1), ("A,2014-02-04", 0.5, 2), ("A,2014-02-05", None, 0), ("B,2014-02-04", 1, None)]
    )
    source = source_of(tmp_path, text, columns=COLUMNS)
    assert source.actions(FIRST.replace(year=2014), LAST).rows() == [
        ("A", date(2014, 2, 4), "dividend", 1.0, 0.5, None, "files", None),
        ("A", date(2014, 2, 4), "split", 2.0, 0.0, None, "files", None),
        ("B", date(2014, 2, 4), "dividend", 1.0, 1.0, None, "files", None),
    ]
    assert source_of(tmp_path, text).actions(FIRST.replace(year=2014), LAST).is_empty()  # not mapped, not told


def test_a_row_twice_tells_its_event_once_and_two_rows_that_disagree_are_refused(tmp_path: Path):
    twice = [("A,2014-02-03", 0.5, 1), ("A,2014-02-03", 0.5, 1), ("A,2014-02-03", 0, 1)]
    assert source_of(tmp_path, with_events(twice), columns=COLUMNS).actions(date.min, LAST)["cash"].to_list() == [0.5]
    source = source_of(tmp_path, with_events([*twice, ("A,2014-02-03", 0.7, 1)]), columns=COLUMNS)
    with pytest.raises(SourceError, match=r"bars\.csv: A 2014-02-03: dividend is 0\.5 and 0\.7, expected one value"):
        source.actions(date.min, LAST)


@pytest.mark.parametrize(("dividend", "ratio"), [(-0.5, 1), (0, -2), ("inf", 1), (0, "inf")])
def test_an_event_beside_the_prices_that_cannot_be_is_refused(tmp_path: Path, dividend, ratio):
    source = source_of(tmp_path, with_events([("A,2014-02-03", dividend, ratio)]), columns=COLUMNS)
    with pytest.raises(SourceError, match=r"A 2014-02-03: (dividend|split_ratio) is -?\S+, expected 0 or more"):
        source.actions(date.min, LAST)


def test_what_the_actions_file_tells_of_a_day_replaces_what_stands_beside_the_prices(tmp_path: Path):
    text = with_events([("A,2014-02-03", 3.08, 1), ("A,2014-02-04", 0.5, 2), ("A,2014-02-05", 0.2, 1)])
    told = actions_file(
        tmp_path,
        "A,2014-02-03,dividend,,0.08\nA,2014-02-03,special_dividend,,3\nA,2014-02-04,dividend,,0.6\nA,2014-02-05,delisting,,9\n",
    )
    found = source_of(tmp_path, text, columns=COLUMNS, actions_path=told).actions(date.min, LAST)
    assert found.select(pl.col("ex_date").dt.day(), "kind", "ratio", "cash").rows() == [
        (3, "dividend", 1, 0.08), (3, "special_dividend", 1, 3), (4, "dividend", 1, 0.6), (4, "split", 2, 0),
        (5, "delisting", 1, 9), (5, "dividend", 1, 0.2),
    ]  # fmt: skip


def test_two_dividends_of_a_day_are_paid_together_and_a_line_twice_is_one(tmp_path: Path):
    lines = "A,2014-02-03,dividend,,0.1\nA,2014-02-03,dividend,,0.1\nA,2014-02-03,dividend,,0.2\n"
    source = source_of(tmp_path, HEADER + ROWS, actions_path=actions_file(tmp_path, lines))
    assert source.actions(date.min, LAST)["cash"].to_list() == pytest.approx([0.3])


def test_who_asks_for_a_ticker_is_told_of_the_changes_that_its_bars_hang_on(tmp_path: Path):
    lines = "A,2014-02-03,B\nB,2014-02-04,C\nC,2014-02-05,A\nX,2014-02-04,Y\n"
    file = tmp_path / "actions.csv"
    file.write_text(
        "symbol,ex_date,target,kind,ratio,cash\n"
        + lines.replace("\n", ",symbol_change,,\n")
        + "B,2014-02-03,,dividend,,1\nC,2014-02-07,,delisting,,5\n"
    )
    source = source_of(tmp_path, HEADER + ROWS, actions_path=str(file))
    found = source.actions(date(2014, 1, 1), date(2014, 12, 31), ["A"])
    assert found.select("symbol", "kind").rows() == [
        ("A", "symbol_change"), ("B", "symbol_change"), ("C", "symbol_change"), ("C", "delisting"),
    ]  # fmt: skip
    assert source.actions(date(2014, 2, 4), date(2014, 2, 4), ["A"])["symbol"].to_list() == ["B"]
    assert source.actions(date(2014, 2, 3), date(2014, 2, 3), ["B"]).select("symbol", "kind").rows() == [
        ("A", "symbol_change"), ("B", "dividend"),
    ]  # fmt: skip


def in_todays_shares(actions: pl.DataFrame) -> pl.DataFrame:
    "The same events with cash per share of today, as vendors of adjusted prices tell them."
    splits = actions.filter(kind="split").select(
        "symbol", pl.col("ex_date").alias("split_on"), pl.col("ratio").alias("later")
    )
    after = actions.join(splits, on="symbol", how="left").filter(pl.col("split_on") > pl.col("ex_date"))
    later = after.group_by("symbol", "ex_date", "kind").agg(pl.col("later").product())
    joined = actions.join(later, on=["symbol", "ex_date", "kind"], how="left")
    return joined.with_columns(pl.col("cash") / pl.col("later").fill_null(1.0)).drop("later")


@pytest.mark.parametrize("beside", [False, True], ids=["actions file", "beside the prices"])
@pytest.mark.parametrize("stated", ["raw", "split_adjusted", "total_return_adjusted"])
def test_each_stated_input_leads_to_the_same_total_return(tmp_path: Path, stated: str, beside: bool):
    decimals = 6
    truth = adjust(TRUTH, EVENTS, "total_return", "prev_close")
    assert EVENTS["kind"].value_counts().filter(kind="split").height and (EVENTS["cash"] > 0).any()
    kind = {"raw": None, "split_adjusted": "split", "total_return_adjusted": "total_return"}[stated]
    told = EVENTS if stated == "raw" else in_todays_shares(EVENTS)
    rows = TRUTH
    if kind:
        rows = adjust(TRUTH, EVENTS, kind, "prev_close").select(
            "symbol",
            "date",
            *(pl.col(f"adj_{c}").round(decimals).alias(c) for c in ("open", "high", "low", "close", "vwap")),
            pl.col("adj_volume").round().cast(pl.Int64).alias("volume"),
        )
    kwargs: dict[str, object] = {"prices": stated}
    if beside:
        for name, column, of in (("dividend", "cash", "dividend"), ("split_ratio", "ratio", "split")):
            events = told.filter(kind=of).select("symbol", pl.col("ex_date").alias("date"), pl.col(column).alias(name))
            rows = rows.join(events, on=["symbol", "date"], how="left", maintain_order="left")
        kwargs["columns"] = {"dividend": "dividend", "split_ratio": "split_ratio"}
        told = told.filter(~pl.col("kind").is_in(["dividend", "split"]))
    told.write_parquet(tmp_path / "actions.parquet")
    rows.write_parquet(tmp_path / "bars.parquet")
    source = FilesSource(str(tmp_path / "bars.parquet"), str(tmp_path / "actions.parquet"), **kwargs)  # type: ignore[arg-type]
    bars, actions = source.bars(FIRST, LAST), source.actions(FIRST, LAST)
    found = adjust(bars, actions, "total_return", "prev_close")
    assert found.select("symbol", "date").equals(truth.select("symbol", "date"))
    error = (found["adj_close"] / truth["adj_close"] - 1).abs().max()
    assert error < 10.0**-decimals / TRUTH["close"].min() * 50  # type: ignore[operator]
    left = set(actions["kind"]) - {"symbol_change", "delisting"}
    assert (
        left
        <= {
            "raw": set(ACTION_SCHEMA) | {"dividend", "split"},
            "split_adjusted": {"dividend"},
            "total_return_adjusted": set(),
        }[stated]
    )


@pytest.mark.parametrize("prices", ["raw", "split_adjusted", "total_return_adjusted"])
def test_a_change_of_name_and_an_end_are_told_whatever_the_prices_are(prices):
    kinds = ["split", "stock_dividend", "dividend", "special_dividend", "spin_off", "symbol_change", "delisting"]
    actions = pl.DataFrame({"kind": kinds})
    left = not_in_prices(actions, prices)["kind"].to_list()
    assert left[-2:] == ["symbol_change", "delisting"]
    assert left == kinds[{"raw": 0, "split_adjusted": 2, "total_return_adjusted": 5}[prices] :]


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"layout": "yahoo"}, r"files\.prices=raw: Yahoo's prices never are; set files\.prices=split_adjusted"),
        ({"layout": "lean", "prices": "split_adjusted"}, "Lean data folder holds raw prices"),
        ({"layout": "lean", "price_scale": 100.0}, "its scale is known"),
    ],
)
def test_what_cannot_be_said_of_a_layout_is_refused(kwargs, says):
    with pytest.raises(ConfigError, match=says):
        FilesSource("anywhere", **kwargs)


def test_a_yahoo_file_with_an_adj_close_is_not_adjusted_for_dividends(tmp_path: Path):
    text = "Date,Open,High,Low,Close,Adj Close,Volume\n2014-05-08,1,1,1,1,0.9,1\n"
    (tmp_path / "AAPL.csv").write_text(text)
    assert FilesSource(str(tmp_path), layout="yahoo", prices="split_adjusted").symbols() == ["AAPL"]
    with pytest.raises(ConfigError, match=r"AAPL\.csv has an Adj Close: its Close is adjusted for splits alone"):
        FilesSource(str(tmp_path), layout="yahoo", prices="total_return_adjusted").symbols()


def test_membership_of_files_is_from_first_to_last_bar_and_says_that_it_is_no_history(tmp_path: Path):
    universe = source_of(tmp_path, HEADER + ROWS).universe()
    assert universe.schema == pl.Schema(UNIVERSE_SCHEMA)
    assert universe.select("symbol", "start", "end", "has_history").rows() == [
        ("AAPL", date(2014, 2, 3), None, False),
        ("MSFT", date(2014, 2, 3), date(2014, 2, 3), False),
    ]


DAYS = sessions(date(2024, 3, 1), date(2024, 6, 28))


def dates(days: list[date], rows: int) -> pl.Series:
    return pl.Series("date", [day for day in days for _ in range(rows)], dtype=pl.Date)


@given(
    st.integers(12, 60),
    st.lists(st.dates(date(1, 1, 1), date(9999, 12, 31)).filter(lambda d: d not in DAYS), max_size=4, unique=True),
    st.sampled_from([DAYS[-1], DAYS[-1] + timedelta(1), date(2030, 1, 2), None]),
)
def test_a_few_mistyped_dates_move_neither_end(rows: int, wrong: list[date], latest: date | None):
    found = counted_days(pl.concat([dates(DAYS, rows), dates(wrong, 1)]), latest)
    assert (found.min(), found.max()) == (DAYS[0], DAYS[-1])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_a_market_that_grows_and_shrinks_slowly_counts_whole(steps: list[int]):
    counts = [max(1, 20 + sum((-1) ** n * (s % 7) for n, s in enumerate(steps[: k + 1]))) for k in range(len(steps))]
    series = pl.concat([dates([day], n) for day, n in zip(DAYS, counts, strict=False)])
    found = counted_days(series, None).to_list()
    assert found and set(found) <= set(DAYS)
    if min(counts) * 10 >= max(counts):
        assert found == DAYS[: len(counts)]


def test_a_day_of_which_a_part_is_there_counts_and_a_scrap_does_not():
    for rows, last in ((9, DAYS[-2]), (10, DAYS[-1]), (60, DAYS[-1])):
        assert counted_days(pl.concat([dates(DAYS[:-1], 100), dates([DAYS[-1]], rows)])).max() == last


def test_days_that_are_all_no_sessions_still_have_ends():
    saturdays = [date(2024, 6, 1), date(2024, 6, 8)]
    assert counted_days(dates(saturdays, 3)).to_list() == saturdays
    assert counted_days(dates([date(1900, 1, 1)], 1), DAYS[-1]).to_list() == [date(1900, 1, 1)]


def test_one_row_of_the_future_and_one_of_long_ago_move_nothing_and_are_delivered(tmp_path: Path):
    month = TRUTH.filter(pl.col("date") < date(2020, 3, 1))
    first, last = month["date"].min(), month["date"].max()
    wrong = [month.tail(1).with_columns(date=pl.lit(day)) for day in (date(1900, 1, 1), date(2042, 5, 14))]
    pl.concat([month, *wrong]).write_parquet(tmp_path / "bars.parquet")
    plain = tmp_path / "plain.parquet"
    month.write_parquet(plain)
    with_typos, without = (FilesSource(str(tmp_path / f), latest=last) for f in ("bars.parquet", "plain.parquet"))
    assert (with_typos.first_date, with_typos.last_date) == (first, last)
    assert with_typos.universe().equals(without.universe()) and with_typos.assets(last).equals(without.assets(last))
    assert with_typos.truth(first, last).equals(without.truth(first, last))
    assert len(with_typos.bars(first, last)) == len(month) + 2
    inside = shift(first, 3), shift(last, -3)
    assert with_typos.bars(*inside).equals(without.bars(*inside))


def test_todays_unfinished_bars_are_neither_counted_nor_delivered(tmp_path: Path):
    month = TRUTH.filter(pl.col("date") < date(2020, 3, 1))
    month.write_parquet(tmp_path / "bars.parquet")
    today = month["date"].max()
    source = FilesSource(str(tmp_path / "bars.parquet"), latest=shift(today, -1))
    assert source.last_date == shift(today, -1)
    assert source.bars(FIRST, source.last_date)["date"].max() == source.last_date


@given(
    st.lists(
        st.tuples(
            *[st.sampled_from([1.0, 2.0, 0.0, -1.0, float("nan"), float("inf"), None])] * 4,
            st.sampled_from([0, 5, -1, None]),
            st.integers(0, 9),
        ),
        max_size=8,
    )
)
def test_what_an_exchange_trades_on_can_have_happened(rows):
    bars = pl.DataFrame(
        [("A", date(2024, 1, 1) + timedelta(days=n), *prices, volume, None) for *prices, volume, n in rows],
        schema=BAR_SCHEMA,
        orient="row",
        strict=False,
    )
    true = usable(bars)
    assert true.select("symbol", "date").is_unique().all() and set(true["date"]) <= set(
        sessions(date(2024, 1, 1), date(2024, 1, 10))
    )
    assert all(
        r["low"] > 0
        and r["low"] <= min(r["open"], r["close"]) <= max(r["open"], r["close"]) <= r["high"] < 9
        and r["volume"] >= 0
        for r in true.iter_rows(named=True)
    )
    assert usable(true).equals(true)


def test_events_without_bars_columns_are_an_empty_table():
    assert column_events(TRUTH, "here").schema == pl.Schema(ACTION_SCHEMA)


MONTH = TRUTH.filter(pl.col("date").is_between(date(2020, 3, 2), date(2020, 5, 29)))
DAY, NAME = date(2020, 4, 15), str(MONTH["symbol"][0])


def put(**values: object) -> Callable[[pl.DataFrame], pl.DataFrame]:
    "Change one bar."
    here = (pl.col("symbol") == NAME) & (pl.col("date") == DAY)
    return lambda rows: rows.with_columns(
        pl.when(here).then(pl.lit(v)).otherwise(c).alias(c) for c, v in values.items()
    )


def also(n: int = 1, **values: object) -> Callable[[pl.DataFrame], pl.DataFrame]:
    "Deliver a bar again, changed."
    return lambda rows: pl.concat(
        [rows, *[rows.filter(symbol=NAME, date=DAY).with_columns(**{c: pl.lit(v) for c, v in values.items()})] * n],
        how="vertical_relaxed",
    )


@pytest.mark.parametrize(
    ("spoil", "check", "bad"),
    [
        (put(close=float("nan")), "missing", 1),
        (put(volume=None), "missing", 1),
        (put(high=float("inf")), "price", 1),
        (put(low=-1.0), "price", 1),
        (put(open=0.0), "price", 1),
        (put(volume=-5), "volume", 1),
        (put(close=1e9), "ohlc", 1),
        (also(), "duplicate", 1),
        (also(close=50.0, low=40.0, high=60.0, open=50.0), "duplicate", 2),
        (also(date=date(2020, 4, 18)), "session", 1),
        (also(date=date(1900, 1, 1)), "session", 1),
        (also(date=date(2042, 5, 14)), "future", 1),
        (also(date=date(9999, 12, 31)), "future", 1),
        (lambda rows: rows.reverse(), None, 0),
        (lambda rows: rows.sample(fraction=1.0, shuffle=True, seed=3), None, 0),
    ],
)
def test_a_row_that_cannot_be_is_quarantined_and_all_others_arrive(
    make_settings: Callable[..., Settings], tmp_path: Path, spoil, check: str | None, bad: int
):
    rows, file = spoil(MONTH.drop("vwap")), tmp_path / "bars.csv"
    rows.write_csv(file)
    chosen = make_settings(**{"market.source": "files", "files.bars": str(file)})
    as_of = MONTH["date"].max()
    clock = SimulatedClock(new_york(next_session(as_of), 9))
    source, lake = open_source(chosen, clock), open_lake(chosen)
    assert (source.first_date, source.last_date) == (MONTH["date"].min(), as_of)
    report = run_etl(chosen, source, lake, as_of, clock)
    assert len(report.quarantined) == bad
    assert set(report.quarantined["check"]) == ({check} if check else set())
    hit = report.quarantined.select("symbol", "date").unique()
    left = lake.read("bars").select("symbol", "date", "open", "close")
    kept = MONTH.select("symbol", "date", "open", "close")
    lost = kept.join(left, on=["symbol", "date"], how="anti")
    assert lost.join(hit, on=["symbol", "date"], how="anti").is_empty() and len(lost) <= 1
    both = kept.join(left, on=["symbol", "date"], how="inner", suffix="_read")
    assert len(both) == len(left) and (both["close"] == both["close_read"]).all()


def test_a_file_of_adjusted_prices_that_a_split_restated_is_taken_in_whole_again(
    make_settings: Callable[..., Settings], tmp_path: Path
):
    rows, file = MONTH.drop("vwap"), tmp_path / "bars.parquet"
    as_of, before = MONTH["date"].max(), shift(MONTH["date"].max(), -1)
    chosen = make_settings(**{"market.source": "files", "files.bars": str(file), "files.prices": "split_adjusted"})
    rows.filter(pl.col("date") <= before).write_parquet(file)
    clock = SimulatedClock(new_york(as_of, 9))
    run_etl(chosen, open_source(chosen, clock), open_lake(chosen), before, clock)
    split = pl.when(pl.col("symbol") == NAME).then(0.5).otherwise(1.0)  # a 2-for-1 split restates all of the past
    rows.with_columns(pl.col("open", "high", "low", "close") * split).write_parquet(file)
    clock = SimulatedClock(new_york(next_session(as_of), 9))
    source, lake = open_source(chosen, clock), open_lake(chosen)
    run_etl(chosen, source, lake, as_of, clock)
    bars = lake.read("bars", symbols=[NAME])
    assert bars["close"].to_list() == [close / 2 for close in MONTH.filter(symbol=NAME)["close"]]
    assert bars["adj_close"].equals(bars["close"].alias("adj_close"))
