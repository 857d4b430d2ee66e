"Vendors' files by settings alone."

import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from tradenb.core.settings import Settings
from tradenb.market.actions import adjust
from tradenb.market.catalog import broken_promises, open_source, write_feed
from tradenb.market.sources import Source
from tradenb.market.tickers import identities, rename

Opener = Callable[..., Source]


@pytest.fixture
def open_files(make_settings: Callable[..., Settings]) -> Opener:
    "Open a file or a folder by settings: `open_files(path, prices='raw')`."

    def opened(path: Path, **files: str) -> Source:
        chosen = {f"files.{key}": value for key, value in files.items()}
        return open_source(make_settings(**{"market.source": "files", "files.bars": str(path)}, **chosen))

    return opened


def whole(source: Source) -> tuple[pl.DataFrame, pl.DataFrame]:
    "All bars, and all corporate actions."
    return source.bars(source.first_date, source.last_date), source.actions(source.first_date, source.last_date)


def test_the_sp500_file_is_read_by_settings_alone(real_data: Path, open_files: Opener, tmp_path: Path):
    file = real_data / "sp500_daily_2013_2018.parquet"
    source = open_files(file, prices="split_adjusted")
    delivered, actions = whole(source)
    assert len(source.symbols()) == 505 and len(delivered) == 619_040 and actions.is_empty()
    assert {"BRK.B", "BF.B"} <= set(source.symbols())
    assert (source.first_date, source.last_date) == (date(2013, 2, 8), date(2018, 2, 7))
    assert delivered.drop("source", "vwap").equals(
        pl.read_parquet(file).select(delivered.drop("source", "vwap").columns).sort("symbol", "date")
    )
    assert 0 < len(delivered) - len(source.truth(source.first_date, source.last_date)) < 40
    assert not source.universe()["has_history"].any()
    assert broken_promises(source, date(2016, 1, 4), date(2016, 6, 30)) == []
    write_feed(source, tmp_path, date(2017, 1, 10))
    assert pl.read_parquet(tmp_path / "bars.parquet")["date"].max() == date(2017, 1, 10)


def test_a_csv_of_it_with_other_names_gives_the_same_bars(real_data: Path, open_files: Opener, tmp_path: Path):
    rows = pl.read_parquet(real_data / "sp500_daily_2013_2018.parquet").filter(pl.col("symbol") < "AD")
    rows.rename({"symbol": "Name", "close": "Last"}).write_csv(
        tmp_path / "a.csv", separator=";", date_format="%m/%d/%Y"
    )
    source = open_files(tmp_path / "a.csv", columns="symbol=Name, close=Last", delimiter=";", date_format="%m/%d/%Y")
    assert whole(source)[0].select(rows.columns).equals(rows)


def test_a_folder_of_yahoo_files_gives_the_same_bars(real_data: Path, open_files: Opener, tmp_path: Path):
    rows = pl.read_parquet(real_data / "stocknet88_daily_2012_2017.parquet")
    names = {"date": "Date", "open": "Open", "high": "High", "low": "Low", "close": "Close", "adj_close": "Adj Close"}
    for (symbol,), part in rows.group_by("symbol"):
        part.drop("symbol").rename(names | {"volume": "Volume"}).write_csv(tmp_path / f"{symbol}.csv")
    source = open_files(tmp_path, layout="yahoo", prices="split_adjusted")
    plain = open_files(real_data / "stocknet88_daily_2012_2017.parquet", prices="split_adjusted")
    assert whole(source)[0].equals(whole(plain)[0])


def test_stocknet_spells_share_classes_with_a_hyphen_and_has_days_without_prices(real_data: Path, open_files: Opener):
    source = open_files(real_data / "stocknet88_daily_2012_2017.parquet", prices="split_adjusted")
    bars, _ = whole(source)
    assert len(source.symbols()) == 88 and {"BRK.A", "RDS.B"} <= set(source.symbols())
    empty = bars.filter(pl.col("close").is_null())
    assert empty.select("symbol", "date").rows() == [(s, date(2016, 6, 29)) for s in ("PTR", "REX", "SNP")]
    assert len(bars) - len(source.truth(source.first_date, source.last_date)) < 40


def test_wiki_with_its_event_columns_gives_quandls_own_adjusted_close(real_data: Path, open_files: Opener):
    file = real_data / "wiki_raw_events_adj.parquet"
    source = open_files(file, columns="dividend=ex_dividend, split_ratio=split_ratio")
    bars, actions = whole(source)
    assert len(bars) == 32_492 and "BRK.A" in source.symbols()
    told = pl.read_parquet(file).select("symbol", "date", "ex_dividend", "split_ratio")
    for kind, event in (("dividend", pl.col("ex_dividend") > 0), ("split", pl.col("split_ratio") != 1)):
        assert actions.filter(kind=kind).height == told.filter(event).unique().height > 10
    vendor = pl.read_parquet(file).filter(src="WIKI")
    once = bars.unique(["symbol", "date"], keep="first", maintain_order=True)
    ours = adjust(once, actions, "total_return", "ex_close").join(
        vendor.select("symbol", "date", pl.col("adj_close").alias("theirs")), on=["symbol", "date"]
    )
    last = ours.group_by("symbol").agg((pl.col("theirs") / pl.col("adj_close")).last().alias("unit"))
    error = ours.join(last, on="symbol").select((pl.col("adj_close") * pl.col("unit") / pl.col("theirs") - 1).abs())
    assert len(ours) == len(vendor) and error.to_series().max() < 1e-9  # type: ignore[operator]


def test_raw_events_give_the_splits_and_dividends_beside_their_prices(real_data: Path, open_files: Opener):
    file = real_data / "raw_events_2015_2017_a.parquet"
    source = open_files(file, columns="dividend=dividend, split_ratio=split_ratio")
    bars, actions = whole(source)
    told = pl.read_parquet(file)
    assert len(bars) == len(told) == 447_317
    for kind, column, neutral in (("dividend", "dividend", 0.0), ("split", "split_ratio", 1.0)):
        assert len(actions.filter(kind=kind)) == len(told.filter(pl.col(column) != neutral)) > 50
    clean = pl.read_parquet(real_data / "raw_events_2015_2017_a_quality.parquet").filter("clean")["symbol"]
    some = bars.filter(pl.col("symbol").is_in(clean.to_list()))
    ours = adjust(some, actions.filter(pl.col("symbol").is_in(clean.to_list())), "split", "prev_close")
    ours = ours.join(told.select("symbol", "date", "ref_split_close"), on=["symbol", "date"])
    unit = pl.col("ref_split_close").last() / pl.col("adj_close").last()
    error = (pl.col("adj_close") * unit.over("symbol") / pl.col("ref_split_close") - 1).abs()
    assert ours.select(error.max()).item() < 1e-6


def test_the_long_raw_file_is_in_order_and_read_as_it_is(real_data: Path, open_files: Opener):
    file = real_data / "sp_raw_adj_1998_2014.parquet"
    source = open_files(file, columns="split_ratio=split_ratio")
    bars, actions = whole(source)
    told = pl.read_parquet(file)
    assert bars.drop("source", "vwap").equals(told.select("symbol", "date", "open", "high", "low", "close", "volume"))
    assert set(actions["kind"]) == {"split"} and len(actions) == len(told.filter(pl.col("split_ratio") != 1))
    assert (source.first_date, source.last_date) == (date(1998, 1, 2), date(2014, 3, 28))


@pytest.fixture(scope="session")
def lean_data(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The Lean files as the data folder that they were taken from."
    root = tmp_path_factory.mktemp("lean")
    market = root / "equity" / "usa"
    for name in ("daily", "factor_files", "map_files"):
        (market / name).mkdir(parents=True)
    cents = [(pl.col(c) * 10_000).round().cast(pl.Int64) for c in ("open", "high", "low", "close")]
    for (symbol,), rows in pl.read_parquet(real_data / "lean_daily_raw.parquet").group_by("symbol"):
        text = rows.select(pl.col("date").dt.strftime("%Y%m%d 00:00"), *cents, "volume").write_csv(include_header=False)
        with zipfile.ZipFile(market / "daily" / f"{str(symbol).lower()}.zip", "w") as archive:
            archive.writestr(f"{str(symbol).lower()}.csv", text)
    for name, day in (("factor_files", "date"), ("map_files", "valid_through")):
        table = pl.read_parquet(real_data / f"lean_{name}.parquet").with_columns(pl.col(day).dt.strftime("%Y%m%d"))
        for (symbol,), rows in table.group_by("symbol"):
            columns = [rows[c] for c in rows.columns if c != "symbol" and rows[c].null_count() < len(rows)]
            pl.DataFrame(columns).write_csv(market / name / f"{str(symbol).lower()}.csv", include_header=False)
    return root


def test_a_lean_folder_is_read_with_its_events_and_its_changes_of_ticker(
    real_data: Path, open_files: Opener, lean_data: Path
):
    source = open_files(lean_data, layout="lean")
    bars, actions = whole(source)
    told = pl.read_parquet(real_data / "lean_daily_raw.parquet").sort("symbol", "date")
    prices = ["open", "high", "low", "close"]
    assert bars.select("symbol", "date", "volume").equals(told.select("symbol", "date", "volume"))
    assert bars.select(prices).equals(told.select(pl.col(prices).round(4)))
    assert broken_promises(source, date(2014, 1, 2), date(2014, 6, 30)) == []
    named = rename(bars, identities(actions, bars))
    google = named.filter(pl.col("symbol").is_in(["GOOG", "GOOGL"])).group_by("symbol", "ticker").len().sort("symbol")
    assert {row[:2] for row in google.rows()} == {
        ("GOOG", "GOOCV"),
        ("GOOG", "GOOG"),
        ("GOOGL", "GOOG"),
        ("GOOGL", "GOOGL"),
    }
    some = source.actions(source.first_date, source.last_date, ["QQQ"])  # QQQQ for six years, without a bar of its own
    nasdaq = source.bars(source.first_date, source.last_date, ["QQQ"])
    assert set(rename(nasdaq, identities(some, nasdaq))["symbol"]) == {"QQQ"}


def test_leans_factor_file_of_apple_comes_back_from_its_events(real_data: Path, open_files: Opener, lean_data: Path):
    source = open_files(lean_data, layout="lean")
    apple = source.bars(source.first_date, source.last_date, ["AAPL"])
    found = adjust(apple, source.actions(source.first_date, source.last_date, ["AAPL"]), "total_return", "prev_close")
    factors = pl.read_parquet(real_data / "lean_factor_files.parquet").filter(symbol="AAPL").sort("date")
    both = found.join_asof(factors.drop("symbol"), on="date", strategy="forward")
    cash = pl.col("total_return_factor") / pl.col("price_factor") / pl.col("price_factor_right") - 1
    shares = pl.col("price_factor") - pl.col("split_factor")  # written with six decimals and more
    assert both.select(cash.abs().max()).item() < 1e-6 and both.select(shares.abs().max()).item() <= 5e-7
