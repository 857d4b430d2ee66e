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


def test_dividends_as_another_vendor_declared_them_reproduce_a_later_vintage(real_data: Path):
    """Raw closes, splits, and dividends of an independent vendor, from each symbol's first one on. 49 symbols are in both files.

    Beyond 1e-5 are those whose declared amount is not what was paid in dollars: foreign issuers (GSK, ERIC, ENB, CP, UL),
    and amounts that the two vendors tell differently (UNH, VZ, NEP).
    """
    rows = pl.read_parquet(real_data / "raw_events_2015_2017_a.parquet")
    told = pl.read_parquet(real_data / "dividends_140_2015_2020.parquet")
    since = told.group_by("symbol").agg(pl.col("ex_date").min().alias("since"))
    rows = rows.join(since, on="symbol").filter(pl.col("date") >= pl.col("since"))
    paid = told.filter(pl.col("symbol").is_in(rows["symbol"].unique().to_list())).select(
        "symbol",
        "ex_date",
        kind=pl.lit("dividend"),
        ratio=pl.lit(1.0),
        cash="dividend",
        declared_at="declared_date",
        source=pl.lit("declared"),
    )
    splits = actions(rows, "dividend").filter(kind="split")
    ours = adjust(rows, pl.concat([splits, paid.select(splits.columns)]), "total_return", "prev_close")
    both = ours.join(rows.select("symbol", "date", "ref_adj_close"), on=["symbol", "date"])
    apart = both.select("symbol", apart=worst("adj_close", "ref_adj_close")).unique()
    assert len(apart) == 49
    assert [apart.filter(pl.col("apart") < limit).height for limit in (1e-5, 1e-4, 1e-3)] == [41, 47, 48]
    assert set(apart.filter(pl.col("apart") >= 1e-5)["symbol"]) == {
        "CP",
        "ENB",
        "ERIC",
        "GSK",
        "NEP",
        "UL",
        "UNH",
        "VZ",
    }
