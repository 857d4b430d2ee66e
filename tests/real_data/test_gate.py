"The gate on five years of real prices: it finds the vendor's known defects, and lets real crashes pass."

from pathlib import Path

import polars as pl

from tradenb.market.files import FilesSource
from tradenb.market.lake import TABLES
from tradenb.market.quality import Limits, run_gate


def test_known_defects_of_a_real_file_are_found_and_little_else(real_data: Path) -> None:
    source = FilesSource(str(real_data / "sp500_daily_2013_2018.parquet"))
    rows = source.bars(source.first_date, source.last_date)
    result = run_gate(rows, source.last_date, pl.DataFrame(schema=TABLES["corporate_actions"].schema), Limits())
    counts = dict(result.table.select("check", "failing").iter_rows())
    assert counts["missing"] == 11
    assert counts["ohlc"] >= 10
    assert result.require(Limits(max_bad_share=0.001)).rows == len(rows)
    assert counts["lasting_move"] > 5 * counts["move"]  # real falls last; they are reported and stay
