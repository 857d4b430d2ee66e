"The gate on real prices: every known defect of three vendors' files is found, little else is set aside, and real crashes pass."

from collections.abc import Callable
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from pipelines.benchmarks.gate import Delivery, delivery
from tradenb.market.quality import PRICES, GateResult, Limits

Case = tuple[Delivery, GateResult]


@pytest.fixture(scope="module")
def judged(real_data: Path) -> Callable[[str], Case]:
    "A file and the gate's result for it, each made once."
    made: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in made:
            found = delivery(name)
            made[name] = found, found.gate()
        return made[name]

    return get


def failing(result: GateResult) -> dict[str, int]:
    return dict(result.table.filter(pl.col("failing") > 0).select("check", "failing").iter_rows())


def outside(rows: pl.DataFrame) -> pl.DataFrame:
    "Bars whose open or close lies outside low to high, with how many such prices they have; low above high counts too."
    wrong = [~pl.col(c).is_between("low", "high") for c in ("open", "close")] + [pl.col("low") > pl.col("high")]
    return rows.with_columns(wrong=pl.sum_horizontal(wrong)).filter(pl.col("wrong") > 0)


def missing_days(result: GateResult) -> int:
    "As the reasons of the reported gaps state them."
    gaps = result.reported.filter(pl.col("reason").str.contains("sessions without a row"))
    return gaps["reason"].str.extract(r"(\d+) sessions without a row").cast(pl.Int64).sum()


def explained(one: Delivery, result: GateResult, moved: pl.DataFrame) -> pl.DataFrame:
    "Those of the moves that an action on the day, the quarantine or the report accounts for: of the row, or of the row that it came from."
    acted = one.actions.select("symbol", date="ex_date")
    named = pl.concat([part.select("symbol", "date") for part in (acted, result.quarantined, result.reported)])
    before = moved.join(named, left_on=["symbol", "prev"], right_on=["symbol", "date"], how="semi")
    return pl.concat([moved.join(named, on=["symbol", "date"], how="semi"), before]).unique()


def big_moves(rows: pl.DataFrame, share: float) -> pl.DataFrame:  # symbol, date, prev
    "Closes that differ from the delivered close before by more than `share`."
    before = {"prev": pl.col("date").shift(1).over("symbol"), "last": pl.col("close").shift(1).over("symbol")}
    moved = rows.with_columns(**before).filter((pl.col("close") / pl.col("last") - 1).abs() > share)
    return moved.select("symbol", "date", "prev")


def test_five_years_of_the_index_lose_only_their_known_defects(judged: Callable[[str], Case]) -> None:
    one, result = judged("sp500_daily_2013_2018")
    assert failing(result) == {"missing": 11, "ohlc": 12, "move": 2, "lasting_move": 19, "gap": 17, "untraded": 4}
    assert outside(one.rows)["wrong"].sum() == 14  # prices, in 12 bars: 4 opens, 9 closes, a low above its high
    assert missing_days(result) == 51
    assert result.bad_share < 1e-4
    prints = result.quarantined.filter(check="move").select("symbol", "date").rows()
    assert prints == [("MRO", date(2017, 9, 14)), ("NWL", date(2017, 9, 14))]


def test_sixteen_years_of_raw_bars_show_every_known_defect(judged: Callable[[str], Case]) -> None:
    one, result = judged("sp_raw_adj_1998_2014")
    wrong = outside(one.rows)
    assert (len(wrong), wrong["wrong"].sum()) == (139, 282)
    assert wrong.join(result.quarantined, on=["symbol", "date"], how="anti").is_empty()
    idle = one.rows.filter(pl.col("volume") == 0)
    assert len(idle) == failing(result)["untraded"] == 7313
    assert missing_days(result) == 3427
    assert result.bad_share < 0.0015


def test_each_move_beyond_half_is_a_split_or_set_aside_or_reported(judged: Callable[[str], Case]) -> None:
    one, result = judged("sp_raw_adj_1998_2014")
    moved = big_moves(one.rows, 0.5)
    assert len(moved) == 914
    assert len(explained(one, result, moved)) == 914


@pytest.mark.parametrize(
    ("symbol", "day"),
    [
        ("PNC", date(2009, 1, 20)),  # down 41 %, back 37 % the day after
        ("GNW", date(2008, 9, 29)),  # down 39 %, back 72 %
        ("RF", date(2008, 9, 19)),  # up 36 %, back 21 %
        ("CNP", date(2002, 7, 24)),  # down 32 %, back 63 %
        ("AIG", date(2008, 9, 17)),  # down 45 %, back after two days
    ],
)
def test_violent_days_that_really_happened_are_reported_and_stay(
    judged: Callable[[str], Case], symbol: str, day: date
) -> None:
    _, result = judged("sp_raw_adj_1998_2014")
    there = (pl.col("symbol") == symbol) & (pl.col("date") == day)
    assert result.quarantined.filter(there).is_empty()
    assert result.reported.filter(there)["check"].to_list() == ["lasting_move"]


def test_gaps_of_reused_tickers_are_reported_to_the_day(judged: Callable[[str], Case]) -> None:
    one, result = judged("lean_daily_raw")
    days = missing_days(result)
    assert days == 12206
    assert days / (days + len(one.rows)) == pytest.approx(0.148, abs=5e-4)
    gone = {"AAA": 3350, "BNO": 2022, "FB": 2302, "QQQ": 1588, "USO": 1828, "WM": 214}
    for symbol, most in gone.items():
        reasons = result.reported.filter(pl.col("symbol") == symbol)["reason"]
        assert reasons.str.extract(r"(\d+) sessions without a row").cast(pl.Int64).max() == most
    assert len(result.quarantined) <= 1


def test_two_days_of_another_companys_prices_are_found(real_data: Path) -> None:
    bars = pl.read_parquet(real_data / "raw_events_2015_2017_a.parquet")
    source = {"vwap": pl.lit(None, pl.Float64), "source": pl.lit("files")}
    morgan = bars.filter(symbol="MS").select("symbol", "date", *PRICES, "volume", **source)
    result = Delivery(morgan, delivery("sp500_daily_2013_2018").actions).gate(Limits())
    assert result.quarantined["date"].to_list() == [date(2017, 2, 14), date(2017, 2, 15)]
