"Vendors' files by settings alone."

from collections.abc import Callable
from datetime import date
from pathlib import Path

import polars as pl

from tradenb.core.settings import Settings
from tradenb.market.catalog import open_source, write_feed


def test_the_sp500_file_is_read_by_settings_alone(
    real_data: Path, make_settings: Callable[..., Settings], tmp_path: Path
):
    file = real_data / "sp500_daily_2013_2018.parquet"
    source = open_source(make_settings(**{"market.source": "files", "files.bars": str(file)}))
    delivered = source.bars(source.first_date, source.last_date)
    assert len(source.symbols()) == 505 and len(delivered) == 619_040
    assert (source.first_date, source.last_date) == (date(2013, 2, 8), date(2018, 2, 7))
    assert delivered.drop("source", "vwap").equals(
        pl.read_parquet(file).select(delivered.drop("source", "vwap").columns).sort("symbol", "date")
    )
    assert 0 < len(delivered) - len(source.truth(source.first_date, source.last_date)) < 40
    assert not source.universe()["has_history"].any()
    write_feed(source, tmp_path, date(2017, 1, 10))
    assert pl.read_parquet(tmp_path / "bars.parquet")["date"].max() == date(2017, 1, 10)


def test_a_csv_of_it_with_other_names_gives_the_same_bars(
    real_data: Path, make_settings: Callable[..., Settings], tmp_path: Path
):
    rows = pl.read_parquet(real_data / "sp500_daily_2013_2018.parquet").filter(pl.col("symbol") < "AD")
    rows.rename({"symbol": "Name", "close": "Last"}).write_csv(
        tmp_path / "a.csv", separator=";", date_format="%m/%d/%Y"
    )
    chosen = {"files.columns": "symbol=Name, close=Last", "files.delimiter": ";", "files.date_format": "%m/%d/%Y"}
    source = open_source(make_settings(**{"market.source": "files", "files.bars": str(tmp_path / "a.csv")}, **chosen))
    assert source.bars(source.first_date, source.last_date).select(rows.columns).equals(rows)
