"Our factors against vendors who adjusted the same raw prices."

from pathlib import Path

import polars as pl

from tradenb.market.actions import adjust


def actions(rows: pl.DataFrame, dividend: str) -> pl.DataFrame:
    "Event columns beside the bars → corporate_actions."
    common = {"ex_date": pl.col("date"), "declared_at": pl.lit(None, pl.Date), "source": pl.lit("vendor")}
    splits = rows.filter(pl.col("split_ratio") != 1).select(
        "symbol", kind=pl.lit("split"), ratio="split_ratio", cash=pl.lit(0.0), **common
    )
    paid = rows.filter(pl.col(dividend) > 0).select(
        "symbol", kind=pl.lit("dividend"), ratio=pl.lit(1.0), cash=dividend, **common
    )
    return pl.concat([splits, paid])


def worst(ours: str, theirs: str) -> pl.Expr:
    "Largest relative difference per symbol, both normalised on the last row."
    scale = (pl.col(theirs) / pl.col(ours)).last().over("symbol", order_by="date")
    return (pl.col(ours) * scale / pl.col(theirs) - 1).abs().max().over("symbol")


def test_quandl_wiki_is_ex_close_to_the_last_bits_over_fifty_years(real_data: Path):
    rows = pl.read_parquet(real_data / "wiki_raw_events_adj.parquet").with_columns(
        pl.concat_str("symbol", "src", separator="/").alias("symbol")
    )
    theirs = rows.select(
        "symbol",
        "date",
        "adj_volume",
        *(pl.col(f"adj_{p}").alias(f"wiki_{p}") for p in ("open", "high", "low", "close")),
    )
    ours = adjust(rows, actions(rows, "ex_dividend"), "total_return", "ex_close").join(
        theirs, on=["symbol", "date"], suffix="_wiki"
    )
    for price in ("open", "high", "low", "close"):
        assert (
            ours.filter(pl.col(f"wiki_{price}") > 0).select(worst(f"adj_{price}", f"wiki_{price}")).to_series().max()
            < 1e-12
        )
    assert (ours["adj_volume"] == ours["adj_volume_wiki"]).all()


def test_the_other_convention_is_visibly_another_series(real_data: Path):
    rows = pl.read_parquet(real_data / "wiki_raw_events_adj.parquet").filter(symbol="GE", src="WIKI")
    ours = adjust(rows, actions(rows, "ex_dividend"), "total_return", "prev_close")
    apart = (
        ours.join(rows.select("symbol", "date", wiki="adj_close"), on=["symbol", "date"])
        .select(worst("adj_close", "wiki"))
        .to_series()
        .max()
    )
    assert 2e-4 < apart < 0.1


def test_714_clean_symbols_of_2015_to_2017_agree_with_a_later_vintage(real_data: Path):
    clean = pl.read_parquet(real_data / "raw_events_2015_2017_a_quality.parquet").filter("clean").select("symbol")
    rows = pl.read_parquet(real_data / "raw_events_2015_2017_a.parquet").join(clean, on="symbol", how="semi")
    theirs = rows.select("symbol", "date", "ref_split_close", "ref_adj_close")
    total, split = (
        adjust(rows, actions(rows, "dividend"), how, "prev_close").join(theirs, on=["symbol", "date"])
        for how in ("total_return", "split")
    )
    assert rows["symbol"].n_unique() == 714
    assert split.select(worst("adj_close", "ref_split_close")).to_series().max() < 1e-6
    assert total.select(worst("adj_close", "ref_adj_close")).to_series().max() < 1e-4
