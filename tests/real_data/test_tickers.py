"Lean's map and factor files: the same companies, the same factors."

from datetime import date
from pathlib import Path

import polars as pl
import pytest

from tradenb.core.calendar import next_session
from tradenb.market.actions import factors
from tradenb.market.tickers import from_lean_factors, from_lean_maps, identities, rename

OPEN = date(2050, 12, 31)
NEWEST = date(2021, 3, 31)


@pytest.fixture(scope="module")
def maps(real_data: Path) -> pl.DataFrame:
    return pl.read_parquet(real_data / "lean_map_files.parquet")


@pytest.fixture(scope="module")
def bars(real_data: Path) -> pl.DataFrame:
    return pl.read_parquet(real_data / "lean_daily_raw.parquet")


@pytest.fixture(scope="module")
def table(maps: pl.DataFrame, bars: pl.DataFrame) -> pl.DataFrame:
    return identities(from_lean_maps(maps), bars)


def by_identity(maps: pl.DataFrame, table: pl.DataFrame) -> dict[str, str]:
    "Map file → identity, from the ticker of the last day that the file knows."
    last = maps.sort("symbol", "valid_through").group_by("symbol").last()
    asked = last.select("ticker", "valid_through", file="symbol").rename({"ticker": "symbol", "valid_through": "date"})
    return dict(rename(asked, table).select("file", "symbol").iter_rows())


def test_every_map_file_is_one_identity_and_no_two_share_one(maps, table):
    days = pl.when(pl.col("valid_through") == OPEN).then(NEWEST).otherwise("valid_through")
    renamed = rename(maps.select(file="symbol", symbol="ticker", date=days), table)
    pairs = renamed.select("file", "symbol").unique()
    assert maps["symbol"].n_unique() == 26
    assert pairs["file"].is_unique().all() and pairs["symbol"].is_unique().all()


def test_tickers_in_use_again_kept_their_former_companies_apart(maps, bars, table):
    again = {"AAA.1": "AAA-200705", "FB.1": "FB-200303", "TWX.1": "TWX-200101", "VXX.1": "VXX-201901"}
    assert {file: name for file, name in by_identity(maps, table).items() if "-" in name} == again
    assert set(table.filter(pl.col("symbol").str.contains("-"))["symbol"]) == {*again.values(), "WM-200908"}
    renamed = rename(bars, table)
    assert len(renamed) == len(bars) and not renamed.select("symbol", "date").is_duplicated().any()
    assert renamed.filter(symbol="FB")["date"].min() == date(2012, 5, 18)
    spans = (
        renamed.sort("date").group_by("symbol").agg(pl.col("date").first().alias("a"), pl.col("date").last().alias("b"))
    )
    waste = spans.filter(symbol="WM").row(0)  # UW, WMI, WM: Waste Management
    assert waste[1:] == (date(1998, 1, 2), NEWEST)
    mutual = renamed.filter(symbol="WM-200908")  # WM before: Washington Mutual, for which there is no map file
    assert mutual["ticker"].unique().to_list() == ["WM"] and mutual["date"].max() < date(2009, 8, 5)


def test_lean_factors_are_reproduced_from_raw_closes(real_data: Path, maps, bars, table):
    file = pl.read_parquet(real_data / "lean_factor_files.parquet")
    events = from_lean_factors(file, maps)
    renamed = rename(bars, table)
    true = _own(renamed, table)
    from_bars = _apart(file, maps, table, events, true.select("symbol", "date", "close"))
    # QQQ has no bars as QQQQ, BAC none as NB, TFCFA four: their dividends need the file's own closes
    whole = from_bars.filter(~pl.col("symbol").is_in(["QQQ", "BAC", "TFCFA"]))
    acted = set(rename(events, table, "ex_date")["symbol"]) & set(whole["symbol"])
    assert acted == {"AAA-200705", "AAPL", "AIG", "BNO", "EEM", "GOOG", "GOOGL", "IBM", "IWM", "SPY", "USO", "WM"}
    assert whole["shares"].max() < 1e-6 and whole["cash"].max() < 1e-6


def test_where_there_are_no_bars_the_files_own_closes_reproduce_it(real_data: Path, maps, bars, table):
    file = pl.read_parquet(real_data / "lean_factor_files.parquet")
    events = from_lean_factors(file, maps)
    names = by_identity(maps, table)
    told = file.with_columns(pl.col("symbol").replace(names)).filter(pl.col("ref_price") > 0)
    ends = told.select("symbol").unique().with_columns(date=pl.lit(date(2049, 12, 31)), close=pl.lit(1.0))
    true = _own(rename(bars, table), table).select("symbol", "date", "close")
    closes = pl.concat([true, told.select("symbol", "date", close="ref_price").join(true, on=["symbol", "date"], how="anti"), ends])  # fmt: skip
    apart = _apart(file, maps, table, events, closes)
    assert set(apart["symbol"]) >= {"BAC", "GBSN", "NWSA", "QQQ", "TAP.A", "TFCFA", "TWX", "TWX-200101", "VXX-201901"}
    assert apart["shares"].max() < 1e-6 and apart["cash"].max() < 1e-6


def test_lean_and_another_vendor_tell_the_same_dividends(real_data: Path, maps):
    lean = from_lean_factors(pl.read_parquet(real_data / "lean_factor_files.parquet"), maps).filter(kind="dividend")
    other = pl.read_parquet(real_data / "dividends_140_2015_2020.parquet")
    both = lean.join(other, on=["symbol", "ex_date"])
    apart = both.with_columns(apart=(pl.col("cash") - pl.col("dividend")).abs())
    assert len(apart) == 100 and len(apart.filter(pl.col("apart") < 1e-4)) == 82
    assert set(apart.filter(pl.col("apart") >= 1e-4)["symbol"]) == {"BAC", "QQQ", "SPY"}  # Rounded, or estimated then
    assert apart["apart"].max() < 0.025


def _own(renamed: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
    "Without bars of days on which the identity is known to have carried another ticker."
    uses = table.select("symbol", "ticker", "start", "end")
    covered = renamed.join(uses, on=["symbol", "ticker"], how="left", nulls_equal=False)
    inside = (pl.col("start").is_null() | (pl.col("start") <= pl.col("date"))) & (
        pl.col("end").is_null() | (pl.col("date") <= pl.col("end"))
    )
    return renamed.join(covered.filter(inside), on=["symbol", "date", "ticker"], how="semi")


def _apart(file, maps, table, events, closes) -> pl.DataFrame:
    "Per identity the largest difference: split factors absolute (the file rounds to six digits), price factors relative."
    names = by_identity(maps, table)
    theirs = file.with_columns(pl.col("symbol").replace(names)).sort("symbol", "date")
    since = theirs.group_by("symbol").agg(pl.col("date").min().alias("since"))
    ours = factors(closes, rename(events, table, "ex_date"), "prev_close")
    told = theirs.select("symbol", "date", told_price="price_factor", told_split="split_factor")
    both = ours.join_asof(told, on="date", by="symbol", strategy="forward", check_sortedness=False)
    both = both.join(since, on="symbol").filter(pl.col("date") >= pl.col("since"))
    cash = pl.col("total_return_factor") / pl.col("price_factor") / pl.col("told_price") - 1
    return both.group_by("symbol").agg(
        (pl.col("price_factor") - pl.col("told_split")).abs().max().alias("shares"), cash.abs().max().alias("cash")
    )


def test_an_ex_date_is_the_session_after_the_last_cum_day(real_data: Path):
    file = pl.read_parquet(real_data / "lean_factor_files.parquet").filter(symbol="AAPL")
    assert set(from_lean_factors(file)["ex_date"]) == {next_session(d) for d in file["date"][1:-1]}
