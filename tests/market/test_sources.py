"Sources hand out rows as delivered, and refuse in one line what is not what the settings say."

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tradenb.core.calendar import sessions
from tradenb.core.errors import ConfigError, InputError, SourceError, TradenbError
from tradenb.core.settings import Settings
from tradenb.exchange.feed import Feed
from tradenb.market.catalog import open_source, write_feed
from tradenb.market.demo import BAR_SCHEMA
from tradenb.market.files import FilesSource, TextFormat, usable
from tradenb.market.sources import UNIVERSE_SCHEMA, DemoSource, known_by

HEADER = "symbol,date,open,high,low,close,volume\n"
ROWS = "AAPL,2014-02-03,71.8,72.53,71.33,71.65,100366000\nAAPL,2014-02-04,72.26,72.78,71.82,72.68,94170000\nMSFT,2014-02-03,37.74,37.99,36.43,36.48,64063100\n"
SMALL = DemoSource(count=30, start=date(2020, 1, 2), years=1)


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
    bars.filter(symbol="MSFT").write_csv(folder / "b.csv")
    for other in (tmp_path / "bars.parquet", folder):
        source = FilesSource(str(other))
        assert_frame_equal(source.bars(date(2014, 1, 1), date(2014, 12, 31)).drop("source"), bars)
    assert bars.schema == pl.Schema(BAR_SCHEMA)


def test_a_file_name_is_the_symbol_when_no_column_is(tmp_path: Path):
    (tmp_path / "BRK.B.csv").write_text("date,open,high,low,close,volume\n2014-02-03,1,1,1,1,1\n")
    assert FilesSource(str(tmp_path), columns={"symbol": ""}).symbols() == ["BRK.B"]


def test_vendors_words_for_nothing_are_nulls_but_a_symbol_may_be_called_na(tmp_path: Path):
    source = source_of(tmp_path, HEADER + "NA,2014-02-03,N/A,nan,,-,\n")
    row = source.bars(source.first_date, source.last_date).row(0, named=True)
    assert row["symbol"] == "NA" and all(row[c] is None for c in ("open", "high", "low", "close", "volume"))


def test_dates_come_as_text_as_numbers_and_as_instants(tmp_path: Path):
    bars = pl.DataFrame({"symbol": ["A"], "open": 1.0, "high": 1.0, "low": 1.0, "close": 1.0, "volume": 10.4})
    ways = {
        "": pl.lit("2014-02-03 00:00:00-05:00"),
        "%Y%m%d": pl.lit(20140203),
        "%d/%m/%y": pl.lit("03/02/14"),
        " ": pl.lit(date(2014, 2, 3)).cast(pl.Datetime),
    }
    for n, (form, value) in enumerate(ways.items()):
        file = tmp_path / f"{n}.parquet"
        bars.with_columns(date=value).write_parquet(file)
        source = FilesSource(str(file), form=TextFormat(date_format=form.strip()))
        assert source.bars(date(2014, 2, 3), date(2014, 2, 3)).row(0, named=True)["volume"] == 10


@pytest.mark.parametrize(
    ("text", "kwargs", "error", "says"),
    [
        ("", {}, SourceError, "bars.csv: the file is empty"),
        (HEADER, {}, SourceError, "bars.csv: the file has no rows"),
        (
            HEADER + ROWS + "A,2014-02-03,1,1,1,1,1,1\n",
            {},
            SourceError,
            "bars.csv row 5 has more fields than the header's 7",
        ),
        (
            HEADER + ROWS.replace("36.48", "36;48"),
            {},
            SourceError,
            "bars.csv row 4: close is '36;48', expected a number",
        ),
        (
            HEADER + ROWS.replace("2014-02-04", "04.02.2014"),
            {},
            SourceError,
            "row 3: date is '04.02.2014', expected a date",
        ),
        (HEADER + ",2014-02-03,1,1,1,1,1\n", {}, SourceError, "row 2: symbol is"),
        (
            HEADER + ROWS,
            {"columns": {"close": "Adj Close"}},
            ConfigError,
            "no column 'Adj Close' for close; it has symbol, date",
        ),
        (HEADER + ROWS, {"columns": {"klose": "close"}}, ConfigError, "klose is no field of a bar"),
        (HEADER + ROWS, {"columns": {"close": ""}}, ConfigError, "close is empty"),
        (b"\xff\xfe\x00name\n\x81\x82", {}, SourceError, "bars.csv"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_one_line(tmp_path: Path, text, kwargs, error, says):
    with pytest.raises(error) as caught:
        source_of(tmp_path, text, **kwargs).symbols()
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_torn_parquet_file_a_missing_one_and_an_empty_folder_are_named(tmp_path: Path):
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(b"PAR1 not really")
    with pytest.raises(SourceError, match=r"torn\.parquet is not a readable Parquet file"):
        FilesSource(str(torn)).symbols()
    with pytest.raises(ConfigError, match="no such file or folder"):
        FilesSource(str(tmp_path / "nowhere")).symbols()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no file that ends in"):
        FilesSource(str(tmp_path / "empty")).symbols()


@pytest.mark.parametrize(
    ("form", "says"), [({"delimiter": ";;"}, "files.delimiter"), ({"encoding": "utf-99"}, "files.encoding")]
)
def test_a_format_that_cannot_be_is_a_setting_to_mend(form, says):
    with pytest.raises(ConfigError, match=says):
        TextFormat(**form)


def test_other_encodings_and_tabs_are_read(tmp_path: Path):
    text = (HEADER + ROWS).replace(",", "\t").replace("MSFT", "MÜNCH").encode("latin-1")
    source = source_of(tmp_path, text, form=TextFormat("tab", "latin-1"))
    assert source.symbols() == ["AAPL", "MÜNCH"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text("AB,;\"'\n\r-.01x\x00é", max_size=120).map(lambda s: (HEADER + ROWS + s).encode()),
    )
)
@example(b'symbol,date,open,high,low,close,volume\n"A,2014-02-03,1,1,1,1,1\n')
def test_whatever_the_bytes_a_file_is_read_or_refused_in_one_line(tmp_path: Path, content: bytes):
    try:
        source = source_of(tmp_path, content)
        bars = source.bars(source.first_date, source.last_date)
        source.truth(source.first_date, source.last_date)
    except TradenbError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert bars["symbol"].null_count() == bars["date"].null_count() == 0


def test_an_actions_file_may_hold_no_event_yet(tmp_path: Path):
    actions = tmp_path / "actions.csv"
    actions.write_text("symbol,ex_date,kind,ratio,cash\n")
    source = source_of(tmp_path, HEADER + ROWS, actions_path=str(actions))
    assert source.actions(date(2014, 1, 1), date(2014, 12, 31)).is_empty()


def test_an_actions_file_is_read_and_its_blanks_are_neutral(tmp_path: Path):
    actions = tmp_path / "actions.csv"
    actions.write_text("symbol,ex_date,kind,ratio,cash\nAAPL,2014-06-09,split,7,\nAAPL,2014-02-06,dividend,,3.05\n")
    source = source_of(tmp_path, HEADER + ROWS, actions_path=str(actions))
    found = source.actions(date(2014, 1, 1), date(2014, 12, 31))
    assert found.select("kind", "ratio", "cash", "source").rows() == [
        ("dividend", 1.0, 3.05, "files"),
        ("split", 7.0, 0.0, "files"),
    ]
    assert source.actions(date(2014, 6, 1), date(2014, 12, 31))["kind"].to_list() == ["split"]


def test_membership_of_files_is_from_first_to_last_bar_and_says_that_it_is_no_history(tmp_path: Path):
    universe = source_of(tmp_path, HEADER + ROWS).universe()
    assert universe.schema == pl.Schema(UNIVERSE_SCHEMA)
    assert universe.select("symbol", "start", "end", "has_history").rows() == [
        ("AAPL", date(2014, 2, 3), None, False),
        ("MSFT", date(2014, 2, 3), date(2014, 2, 3), False),
    ]


@pytest.mark.parametrize("as_of", [date(2020, 3, 2), date(2021, 6, 30), date(2024, 1, 2)])
def test_membership_as_of_a_day_does_not_know_the_future(as_of):
    universe = SMALL.universe(as_of)
    assert universe["start"].max() <= as_of and (universe["end"].drop_nulls() < as_of).all()
    alive = universe.filter(pl.col("end").is_null())["symbol"].to_list()
    assert alive == SMALL.truth(as_of, as_of)["symbol"].to_list()


@pytest.mark.parametrize("as_of", [date(2020, 3, 2), date(2021, 6, 30), SMALL.last_date])
def test_membership_asked_for_without_prices_is_that_of_the_market_with_them(as_of):
    market = SMALL.market(as_of)
    assert_frame_equal(SMALL.universe(as_of), known_by(market.universe, as_of))
    assert_frame_equal(SMALL.assets(as_of), known_by(market.assets, as_of, "first_date", "last_date"))


def test_a_day_asked_for_alone_is_the_day_asked_for_among_years():
    day = date(2021, 3, 15)
    years = SMALL.bars(SMALL.first_date, date(2024, 6, 28))
    assert_frame_equal(SMALL.bars(day, day), years.filter(date=day), check_exact=True)


def test_the_demo_source_trades_on_after_its_history():
    assert SMALL.first_date == date(2020, 1, 2) and SMALL.first_trade_date == date(2021, 1, 4)
    assert SMALL.bars(SMALL.last_date, SMALL.last_date)["date"].to_list()[:1] == [SMALL.last_date]


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


def test_the_exchange_opens_the_feed_that_is_written_and_rewriting_leaves_no_rest(tmp_path: Path):
    through = date(2020, 9, 30)
    for _ in range(2):
        write_feed(SMALL, tmp_path, through)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["actions.parquet", "assets.parquet", "bars.parquet"]
    feed = Feed(tmp_path)
    assert feed.bars["date"].max() == through and set(feed.bars["symbol"]) == set(feed.assets)
    assert feed.bars.filter(date=through)["symbol"].to_list() == SMALL.truth(through, through)["symbol"].to_list()


def test_settings_choose_the_source_and_an_unknown_symbol_is_refused(
    make_settings: Callable[..., Settings], tmp_path: Path
):
    assert open_source(make_settings(**{"demo.symbols": 30})).name == "demo"
    file = tmp_path / "bars.csv"
    file.write_text(HEADER + ROWS)
    chosen = {"market.source": "files", "files.bars": str(file)}
    assert open_source(make_settings(**chosen, **{"market.symbols": "MSFT"})).symbols() == ["AAPL", "MSFT"]
    with pytest.raises(InputError, match="unknown symbol MFST: the source files has 2 symbols; did you mean MSFT"):
        open_source(make_settings(**chosen, **{"market.symbols": "MFST"}))


@pytest.mark.parametrize(
    ("start", "first"),
    [
        (date(2018, 1, 2), date(2020, 1, 3)),
        (date(2018, 8, 31), date(2020, 9, 1)),
        (date(2020, 2, 28), date(2022, 3, 1)),
        (date(2020, 2, 29), date(2022, 3, 1)),
    ],
)
def test_a_first_run_on_the_demo_market_comes_after_its_years_of_history(start: date, first: date):
    assert DemoSource(start=start, years=2).first_trade_date == first
