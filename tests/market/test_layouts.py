"Vendors' layouts are read by what is known of them: columns by mapping, Yahoo's files, a Lean data folder."

import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.core.errors import ConfigError, SourceError
from tradenb.core.progress import heard_by
from tradenb.market.actions import ACTION_SCHEMA, adjust
from tradenb.market.demo import BAR_SCHEMA
from tradenb.market.layouts import EVERY, in_order, lean_folder, read_bars, read_lean_actions, read_lean_bars, scaled
from tradenb.market.sources import DemoSource

HEADER = "symbol,date,open,high,low,close,volume\n"
ROWS = "AAPL,2014-02-03,71.8,72.53,71.33,71.65,100366000\nAAPL,2014-02-04,72.26,72.78,71.82,72.68,94170000\nMSFT,2014-02-03,37.74,37.99,36.43,36.48,64063100\n"


def written(folder: Path, text: str, name: str = "bars.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(text)
    return file


def test_rows_come_sorted_by_symbol_and_date_and_rows_of_a_day_in_the_order_of_the_file(tmp_path: Path):
    lines = [
        f"{symbol},2014-02-0{day},{n},9,1,2,3\n"
        for n, (symbol, day) in enumerate([("B", 4), ("A", 5), ("B", 3), ("A", 5), ("A", 3)])
    ]
    bars = read_bars([written(tmp_path, HEADER + "".join(lines))])
    assert bars.select("symbol", pl.col("date").dt.day(), "open").rows() == [
        ("A", 3, 4), ("A", 5, 1), ("A", 5, 3), ("B", 3, 2), ("B", 4, 0),
    ]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(1, 4)), max_size=12))
def test_bars_in_order_are_left_alone_and_others_sorted_as_a_stable_sort_does(keys: list[tuple[str, int]]):
    bars = pl.DataFrame(
        {"symbol": [s for s, _ in keys], "date": [date(2014, 2, d) for _, d in keys], "n": range(len(keys))},
        schema={"symbol": pl.String, "date": pl.Date, "n": pl.Int64},
    )
    assert in_order(bars).equals(bars.sort("symbol", "date", maintain_order=True))
    again = in_order(bars)
    assert in_order(again) is again


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=9), st.sampled_from([100.0, 10_000.0, 3.0]))
def test_a_price_divided_by_the_scale_is_the_nearest_number_wherever_it_stands(ticks: list[int], scale: float):
    bars = pl.DataFrame(
        {"open": ticks, "close": ticks, "volume": ticks}, schema_overrides={"open": pl.Float64, "close": pl.Float64}
    )
    assert scaled(bars, scale)["close"].to_list() == [tick / scale for tick in ticks]
    assert scaled(bars, scale)["volume"].to_list() == ticks


def test_the_scale_divides_prices_and_the_dividends_beside_them(tmp_path: Path):
    text = HEADER.replace("\n", ",vwap,cash\n") + "A,2014-02-03,7180,7253,7133,7165,100,7170,305\n"
    bars = read_bars([written(tmp_path, text)], {"vwap": "vwap", "dividend": "cash"}, price_scale=100)
    assert bars.row(0)[2:] == (71.8, 72.53, 71.33, 71.65, 100, 71.7, 3.05)


def test_a_file_name_is_the_symbol_when_no_column_is(tmp_path: Path):
    text = "date,open,high,low,close,volume\n2014-02-03,1,1,1,1,1\n\n"
    files = [written(tmp_path, text, name) for name in ("BF-B.csv", "BRK.B.txt", "GM-200906.csv")]
    assert read_bars(files, {"symbol": ""})["symbol"].to_list() == ["BF.B", "BRK.B", "GM-200906"]


def test_one_bad_file_in_a_folder_is_named(tmp_path: Path):
    files = [written(tmp_path, HEADER + ROWS, f"{n}.csv") for n in range(4)]
    written(tmp_path, HEADER + ROWS.replace("36.48", "x"), "2.csv")
    with pytest.raises(SourceError, match=r"2\.csv row 4: close is 'x'"):
        read_bars(files)
    written(tmp_path, HEADER, "2.csv")
    with pytest.raises(SourceError, match=r"2\.csv: the file has no rows; expected one per bar"):
        read_bars(files)
    written(tmp_path, "", "2.csv")
    with pytest.raises(SourceError, match=r"2\.csv: the file is empty"):
        read_bars(files)
    written(tmp_path, HEADER.replace("close", "last") + ROWS, "2.csv")
    with pytest.raises(ConfigError, match=r"2\.csv has no column 'close' for close; it has symbol, date, open"):
        read_bars(files)


def test_many_files_say_how_far_they_are(tmp_path: Path):
    files = [written(tmp_path, HEADER + f"S{n:03d},2014-02-03,1,1,1,1,1\n", f"S{n:03d}.csv") for n in range(EVERY + 10)]
    said: list[str] = []
    with heard_by(said.append):
        assert len(read_bars(files)) == EVERY + 10
    assert said == [f"reading S{EVERY:03d}.csv: {EVERY} of {EVERY + 10} files"]


def test_a_wrong_delimiter_is_asked_about(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no column 'symbol' .*: is files\.delimiter right\?"):
        read_bars([written(tmp_path, (HEADER + ROWS).replace(",", ";"))])


@pytest.mark.parametrize(
    ("columns", "error", "says"),
    [
        ({"close": "Adj Close"}, ConfigError, "no column 'Adj Close' for close; it has symbol, date"),
        ({"klose": "close"}, ConfigError, "klose is no field of a bar"),
        ({"close": ""}, ConfigError, "close is empty"),
        ({"dividend": "cash"}, ConfigError, "no column 'cash' for dividend"),
    ],
)
def test_a_mapping_that_does_not_fit_is_a_setting_to_mend(tmp_path: Path, columns, error, says):
    with pytest.raises(error, match=says):
        read_bars([written(tmp_path, HEADER + ROWS)], columns)


YAHOO = """Date,Open,High,Low,Close,Adj Close,Volume,Dividends,Stock Splits
2014-05-08 00:00:00-04:00,21.009,21.229,20.942,20.999,18.391,230297200,0.1175,0.0
2014-06-09 00:00:00-04:00,23.175,23.470,22.938,23.425,20.516,301660000,0.0,7.0
"""


def test_yahoos_file_is_found_by_its_names_however_they_are_written(tmp_path: Path):
    plain = read_bars([written(tmp_path / "a", YAHOO, "AAPL.csv")], layout="yahoo")
    assert plain.select("symbol", "date", "close", "volume", "dividend", "split_ratio").rows() == [
        ("AAPL", date(2014, 5, 8), 20.999, 230297200, 0.1175, 0.0),
        ("AAPL", date(2014, 6, 9), 23.425, 301660000, 0.0, 7.0),
    ]
    lower = YAHOO.replace("Date,Open,High,Low,Close,Adj Close", "date,open,high,low,close,adj_close").replace(
        "Stock Splits", "stock_splits"
    )
    assert read_bars([written(tmp_path / "b", lower, "AAPL.csv")], layout="yahoo").equals(plain)
    shipped = {field: field for field in BAR_SCHEMA if field != "vwap"} | {"vwap": ""}  # as settings.ini has it
    assert read_bars([tmp_path / "a" / "AAPL.csv"], shipped, layout="yahoo").equals(plain)
    pl.read_csv(tmp_path / "a" / "AAPL.csv", try_parse_dates=True).write_parquet(tmp_path / "AAPL.parquet")
    assert read_bars([tmp_path / "AAPL.parquet"], layout="yahoo").equals(plain)


def test_a_bare_yahoo_file_has_no_events_and_a_name_of_ones_own_wins(tmp_path: Path):
    bare = "Date,Open,High,Low,Close,Volume\n2014-05-08,1,1,1,1,1\n"
    assert read_bars([written(tmp_path, bare, "BRK-B.csv")], layout="yahoo").row(0, named=True)["symbol"] == "BRK.B"
    named = "Ticker,Date,Open,High,Low,Last,Volume,Dividends\nAAPL,2014-05-08,1,1,1,1,1,0.5\n"
    bars = read_bars([written(tmp_path, named)], {"close": "Last", "dividend": ""}, layout="yahoo")
    assert bars["symbol"].to_list() == ["AAPL"] and "dividend" not in bars.columns
    with pytest.raises(ConfigError, match="no column 'Close' for close"):
        read_bars([tmp_path / "bars.csv"], layout="yahoo")


def wide(first: str, groups: list[tuple[str, str]], rows: list[str]) -> str:
    top, under = zip(*groups, strict=True)
    second = "Ticker" if first == "Price" else "Price"
    return (
        "\n".join([f"{first},{','.join(top)}", f"{second},{','.join(under)}", "Date" + "," * len(groups), *rows]) + "\n"
    )


FIVE = ("Open", "High", "Low", "Close", "Volume")


@pytest.mark.parametrize("first", ["Price", "Ticker"])
def test_a_wide_table_of_several_tickers_is_taken_apart(tmp_path: Path, first: str):
    pairs = [(ticker, field) for ticker in ("AAPL", "ABNB", "BRK-B") for field in FIVE]
    groups = pairs if first == "Ticker" else [(f, t) for t, f in pairs]
    rows = ["2020-12-09,1,2,1,2,10,,,,,,5,6,5,6,50", "2020-12-10,2,3,2,3,20,3,4,3,4,30,,,,,"]
    bars = read_bars([written(tmp_path, wide(first, groups, rows))], layout="yahoo")
    assert bars.select("symbol", pl.col("date").dt.day(), "close", "volume").rows() == [
        ("AAPL", 9, 2.0, 10), ("AAPL", 10, 3.0, 20), ("ABNB", 10, 4.0, 30), ("BRK.B", 9, 6.0, 50),
    ]  # fmt: skip
    broken = wide(first, groups, [rows[0].replace("50", "x"), rows[1]])
    with pytest.raises(SourceError, match=r"row 4: volume is 'x'"):
        read_bars([written(tmp_path, broken)], layout="yahoo")


def test_a_wide_table_of_one_ticker_is_that_ticker(tmp_path: Path):
    text = wide("Price", [(field, "AAPL") for field in FIVE], ["2020-12-09,1,2,1,2,10"])
    assert read_bars([written(tmp_path, text, "download.csv")], layout="yahoo")["symbol"].to_list() == ["AAPL"]


def write_lean(folder: Path, bars: pl.DataFrame, factors: dict[str, str], maps: dict[str, str]) -> Path:
    "A Lean data folder of raw bars."
    market = folder / "equity" / "usa"
    for name, texts in (("daily", {}), ("factor_files", factors), ("map_files", maps)):
        (market / name).mkdir(parents=True)
        for symbol, text in texts.items():
            (market / name / f"{symbol.lower()}.csv").write_text(text)
    prices = [(pl.col(c) * 10_000).round().cast(pl.Int64) for c in ("open", "high", "low", "close")]
    for (symbol,), rows in bars.group_by("symbol"):
        text = rows.select(pl.col("date").dt.strftime("%Y%m%d 00:00"), *prices, "volume").write_csv(
            include_header=False
        )
        with zipfile.ZipFile(market / "daily" / f"{str(symbol).lower()}.zip", "w") as archive:
            archive.writestr(f"{str(symbol).lower()}.csv", text)
    return market


DEMO = DemoSource(count=8, start=date(2020, 1, 2), years=1)
RAW = (
    DEMO.truth(date(2020, 1, 2), date(2020, 12, 31)).drop("source", "vwap").with_columns(vwap=pl.lit(None, pl.Float64))
)
END = "20501231,1,1,0\n"


def test_a_lean_folder_is_read_back_to_the_cent_from_anywhere_in_it(tmp_path: Path):
    market = write_lean(tmp_path, RAW, {}, {})
    for path in (tmp_path, tmp_path / "equity", market, market / "daily"):
        assert lean_folder(str(path)) == market
    assert read_lean_bars(market).equals(RAW.select(list(BAR_SCHEMA)))
    assert read_lean_actions(market).is_empty() and read_lean_actions(market).schema == pl.Schema(ACTION_SCHEMA)


def test_factor_and_map_files_are_told_as_events_under_the_ticker_of_the_day(tmp_path: Path):
    days = sessions(date(2020, 1, 2), date(2020, 3, 31))
    close = [80.0] * 20 + [40.0] * (len(days) - 20)
    rows = pl.DataFrame({"date": days, "open": close, "high": close, "low": close, "close": close, "volume": 5})
    before = pl.col("date") < days[30]
    bars = rows.with_columns(symbol=pl.when(before).then(pl.lit("KOVA")).otherwise(pl.lit("LARK")))
    factors = f"{days[0]:%Y%m%d},0.9875,0.5,1\n{days[19]:%Y%m%d},0.9875,0.5,80\n{days[39]:%Y%m%d},0.9875,1,40\n{END}"
    maps = f"{days[0]:%Y%m%d},kova\n{days[29]:%Y%m%d},kova,N\n20501231,lark,N\n"
    market = write_lean(tmp_path, bars, {"LARK": factors}, {"LARK": maps})
    actions = read_lean_actions(market).sort("ex_date")
    assert actions.select("symbol", "ex_date", "kind", "ratio", "target").rows() == [
        ("KOVA", days[20], "split", 2.0, None),
        ("KOVA", days[30], "symbol_change", 1.0, "LARK"),
        ("LARK", days[40], "dividend", 1.0, None),
    ]
    assert actions["cash"].to_list() == pytest.approx([0, 0, 0.5])
    one = actions.with_columns(symbol=pl.lit("LARK"))
    adjusted = adjust(bars.with_columns(symbol=pl.lit("LARK")), one, "total_return", "prev_close")
    assert adjusted["total_return_factor"].unique().sort().to_list() == pytest.approx([0.5 * 0.9875, 0.9875, 1.0])


def zipped(market: Path, name: str, files: dict[str, str]) -> None:
    with zipfile.ZipFile(market / "daily" / name, "w") as archive:
        for inside, text in files.items():
            archive.writestr(inside, text)


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda m: (m / "daily" / "aapl.zip").write_bytes(b"PK no zip"), SourceError, "aapl.zip cannot be read: BadZipFile"),
        (lambda m: zipped(m, "aapl.zip", {}), SourceError, "aapl.zip cannot be read: .*expected one CSV inside, found 0"),
        (lambda m: zipped(m, "aapl.zip", {"a.csv": "1", "b.csv": "2"}), SourceError, "found 2"),
        (lambda m: zipped(m, "aapl.zip", {"a.csv": ""}), SourceError, "aapl.zip: the file is empty"),
        (lambda m: zipped(m, "aapl.zip", {"a.csv": "20140605 00:00,1,2,3,4,5,6\n"}), SourceError, "aapl.zip row 1 has more fields than the expected 6"),
        (lambda m: zipped(m, "aapl.zip", {"a.csv": "2014-06-05,1,1,1,1,1\n"}), SourceError, r"aapl.zip row 1: date is '2014-06-05'"),
        (lambda m: zipped(m, "aapl.zip", {"a.csv": "20140605 00:00,1,1,1,x,1\n"}), SourceError, "aapl.zip row 1: close is 'x'"),
        (lambda m: (m / "map_files" / "aapl.csv").write_text("20140605\n"), SourceError, "aapl.csv row 1: ticker is None, expected a text"),
        (lambda m: (m / "map_files" / "aapl.csv").touch(), SourceError, "aapl.csv: the file is empty"),
        (lambda m: (m / "factor_files" / "aapl.csv").write_text("20140605,x,1,1\n"), SourceError, "aapl.csv row 1: price_factor is 'x'"),
    ],
)  # fmt: skip
def test_a_damaged_lean_folder_is_one_line(tmp_path: Path, spoil: Callable[[Path], None], error, says: str):
    market = write_lean(tmp_path, RAW.head(5), {}, {})
    spoil(market)
    with pytest.raises(error, match=says) as caught:
        read_lean_bars(market), read_lean_actions(market)
    assert "\n" not in str(caught.value)


def test_a_folder_without_leans_shape_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="no Lean data folder; expected equity/usa/daily"):
        lean_folder(str(tmp_path))
    (tmp_path / "daily").mkdir()
    with pytest.raises(ConfigError, match=r"daily holds no file that ends in \.zip"):
        read_lean_bars(lean_folder(str(tmp_path)))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=120), st.booleans())
def test_whatever_lies_in_a_lean_zip_it_is_read_or_refused_in_one_line(tmp_path: Path, content: bytes, pack: bool):
    (tmp_path / "daily").mkdir(exist_ok=True)
    file = tmp_path / "daily" / "x.zip"
    if pack:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.csv", content)
    else:
        file.write_bytes(content)
    try:
        read_lean_bars(tmp_path)
    except SourceError as error:
        assert "\n" not in str(error)  # noqa: PT017
