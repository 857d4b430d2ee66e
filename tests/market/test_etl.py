"A day's ETL can be repeated, killed and corrected, reads nothing of the future, and touches no more than it must."

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from tradenb.core.calendar import next_session, previous_session, sessions, shift
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.errors import DataError, FreshnessError, InputError, QualityError, SourceError
from tradenb.core.settings import Settings, load
from tradenb.market.catalog import open_source
from tradenb.market.etl import EtlReport, run_etl
from tradenb.market.lake import TABLES, Lake
from tradenb.market.quality import release, sample_bars

DAYS = sessions(date(2023, 10, 2), date(2024, 3, 28))
BARS = sample_bars(DAYS, symbols=12, seed=11)
NO_ACTIONS = pl.DataFrame(schema=TABLES["corporate_actions"].schema)
LAST = DAYS[-1]


@dataclass
class Vendor:
    "A source of rows in memory that remembers what it was asked for."

    rows: pl.DataFrame = field(default_factory=lambda: BARS)
    events: pl.DataFrame = field(default_factory=lambda: NO_ACTIONS)
    asked: list[tuple[date, date, int]] = field(default_factory=list)
    name: str = "vendor"
    first_date: date = DAYS[0]
    last_date: date = LAST
    intraday: dict[str, datetime] = field(default_factory=dict)

    def symbols(self) -> list[str]:
        return sorted(self.rows["symbol"].unique())

    def bars(self, start: date, end: date, symbols: Sequence[str] | None = None) -> pl.DataFrame:
        self.asked.append((start, end, len(symbols or ())))
        return self.rows.filter(pl.col("date").is_between(start, end), pl.col("symbol").is_in(list(symbols or ())))

    def actions(self, start: date, end: date, symbols: Sequence[str] | None = None) -> pl.DataFrame:
        return self.events.filter(pl.col("ex_date").is_between(start, end))

    def universe(self, as_of: date | None = None) -> pl.DataFrame:
        first = (
            self.rows.filter(pl.col("date") <= (as_of or LAST))
            .group_by("symbol")
            .agg(pl.col("date").min().alias("start"))
        )
        return first.select(
            pl.lit("all").alias("universe"),
            "symbol",
            "start",
            pl.lit(None, pl.Date).alias("end"),
            pl.lit(None, pl.String).alias("sector"),
            pl.lit(True).alias("has_history"),
        )

    def newest(self, symbols: Sequence[str]) -> dict[str, datetime]:
        return self.intraday

    assets = truth = None


@pytest.fixture
def etl(make_settings: Callable[..., Settings]) -> Callable[..., EtlReport]:
    def run(vendor: Vendor, lake: Lake, as_of: date, since: date | None = None, **overrides: object) -> EtlReport:
        clock = SimulatedClock(new_york(next_session(as_of), 9))
        return run_etl(make_settings(**overrides), vendor, lake, as_of, clock, since)  # type: ignore[arg-type]

    return run


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def at(symbol: str, day: date) -> pl.Expr:
    return (pl.col("symbol") == symbol) & (pl.col("date") == day)


def scaled(rows: pl.DataFrame, where: pl.Expr, by: float) -> pl.DataFrame:
    return rows.with_columns(
        pl.when(where).then(pl.col(p) * by).otherwise(pl.col(p)).alias(p) for p in ("open", "high", "low", "close")
    )


def dividend(symbol: str, day: date, cash: float = 0.5) -> pl.DataFrame:
    return pl.DataFrame(
        [{"symbol": symbol, "ex_date": day, "kind": "dividend", "ratio": 1.0, "cash": cash}], schema=NO_ACTIONS.schema
    )


def test_a_repeated_day_changes_no_version_of_any_table(etl: Callable[..., EtlReport], lake: Lake) -> None:
    vendor = Vendor(scaled(BARS, at("S003", DAYS[50]), 10), dividend("S005", DAYS[60]))
    first = etl(vendor, lake, LAST)
    assert first.changed
    again = etl(vendor, lake, LAST)
    assert (again.changed, again.vintage, again.sessions) == (False, first.vintage, ())


def test_day_by_day_ends_with_the_same_tables_as_all_at_once(etl: Callable[..., EtlReport], tmp_path: Path) -> None:
    rows = scaled(BARS, at("S003", DAYS[-6]), 10)
    rows = scaled(rows, (pl.col("symbol") == "S007") & (pl.col("date") >= DAYS[-4]), 0.5)
    rows = rows.filter(~at("S002", DAYS[-5]))
    frozen = rows.filter(at("S009", DAYS[-14])).row(0, named=True)
    stuck = (pl.col("symbol") == "S009") & (pl.col("date") > DAYS[-14])
    rows = rows.with_columns(
        pl.when(stuck).then(frozen[p]).otherwise(pl.col(p)).alias(p) for p in ("open", "high", "low", "close")
    )
    vendor = Vendor(rows, pl.concat([dividend("S005", DAYS[-3]), dividend("S002", DAYS[-5]), dividend("S001", LAST)]))
    daily, whole = Lake(tmp_path / "daily"), Lake(tmp_path / "whole")
    for day in DAYS[-16:]:
        etl(vendor, daily, day, **{"quality.max_bad_share": 0.2})
    etl(vendor, whole, LAST)
    assert daily.read("bars").equals(whole.read("bars"))
    assert daily.read("corporate_actions").equals(whole.read("corporate_actions"))
    open_cases = [
        lake.read("quarantine").filter(pl.col("released_at").is_null()).select("symbol", "date", "check")
        for lake in (daily, whole)
    ]
    assert open_cases[0].equals(open_cases[1])
    waited = daily.read("quarantine").filter(pl.col("released_by") == "gate").select("symbol", "date", "check").rows()
    assert waited == [("S007", DAYS[-4], "move")]


def test_nothing_after_the_as_of_day_is_asked_for_read_or_kept(etl: Callable[..., EtlReport], lake: Lake) -> None:
    vendor = Vendor(events=pl.concat([dividend("S005", DAYS[-10]), dividend("S006", DAYS[-9])]))
    etl(vendor, lake, DAYS[-11])
    assert max(end for _, end, _ in vendor.asked) == DAYS[-11]
    for table in ("raw_bars", "bars", "quarantine"):
        assert lake.read(table, start=DAYS[-10]).is_empty()
    assert lake.read("corporate_actions")["ex_date"].to_list() == [
        DAYS[-10]
    ]  # the next session's is known, no later one
    assert lake.read("bars", symbols=["S005"])["total_return_factor"].unique().to_list() == [
        1.0
    ]  # … and not yet effective
    etl(vendor, lake, DAYS[-10])
    assert lake.read("bars", symbols=["S005"])["total_return_factor"][0] < 1.0


class Talkative(Vendor):
    "Delivers more than was asked for."

    def bars(self, start: date, end: date, symbols: Sequence[str] | None = None) -> pl.DataFrame:
        return super().bars(start, next_session(end), symbols)


def test_a_row_of_tomorrow_is_set_aside_and_never_among_the_bars(etl: Callable[..., EtlReport], lake: Lake) -> None:
    report = etl(Talkative(), lake, DAYS[-5])
    assert lake.read("bars")["date"].max() == DAYS[-5]
    assert lake.read("raw_bars")["date"].max() == DAYS[-5]
    assert report.quarantined.select("date", "check").unique().rows() == [(DAYS[-4], "future")]


def test_a_later_day_asks_for_a_few_sessions_and_not_for_the_history(etl: Callable[..., EtlReport], lake: Lake) -> None:
    vendor = Vendor()
    etl(vendor, lake, DAYS[-2])
    report = etl(vendor, lake, LAST)
    assert vendor.asked == [(DAYS[0], DAYS[-2], 12), (shift(DAYS[-2], -9), LAST, 12)]
    assert report.sessions == (LAST,)
    assert (report.counts["news"], report.counts["inserted"], report.counts["revised"]) == (12, 12, 0)


def test_a_late_correction_is_merged_and_both_versions_stay_readable(etl: Callable[..., EtlReport], lake: Lake) -> None:
    before = etl(Vendor(events=dividend("S005", LAST)), lake, LAST)
    report = etl(Vendor(scaled(BARS, at("S005", DAYS[-2]), 1.01), dividend("S005", LAST)), lake, LAST)
    assert (report.counts["news"], report.counts["revised"]) == (1, 1)
    was, now = lake.at(before.vintage).read("bars", symbols=["S005"]), lake.read("bars", symbols=["S005"])
    assert now["close"][-2] == pytest.approx(was["close"][-2] * 1.01)
    assert now["adj_close"][0] != was["adj_close"][0]  # the dividend is measured on the corrected close
    assert len(lake.read("raw_bars", symbols=["S005"])) == len(DAYS) + 1
    others = [f.filter(pl.col("symbol") != "S005") for f in (lake.at(before.vintage).read("bars"), lake.read("bars"))]
    assert others[0].equals(others[1])


def test_a_correction_that_is_taken_back_is_followed_twice(etl: Callable[..., EtlReport], lake: Lake) -> None:
    first = etl(Vendor(), lake, LAST)
    etl(Vendor(scaled(BARS, at("S005", DAYS[-2]), 1.01)), lake, LAST)
    etl(Vendor(), lake, LAST)
    assert lake.read("bars").equals(lake.at(first.vintage).read("bars"))
    assert len(lake.read("raw_bars", symbols=["S005"])) == len(DAYS) + 2


def test_a_corporate_action_heard_of_late_touches_no_bar_and_adjusts_that_symbol_alone(
    etl: Callable[..., EtlReport], lake: Lake
) -> None:
    first = etl(Vendor(), lake, LAST)
    report = etl(Vendor(events=dividend("S005", DAYS[40])), lake, LAST)
    assert {table for table in TABLES if report.vintage[table] != first.vintage[table]} == {
        "corporate_actions",
        "adjustments",
    }
    factors = lake.read("bars").filter(pl.col("total_return_factor") < 1)
    assert factors["symbol"].unique().to_list() == ["S005"]
    assert factors["date"].to_list() == DAYS[:40]


def test_a_symbol_that_is_new_brings_its_history(etl: Callable[..., EtlReport], lake: Lake) -> None:
    etl(Vendor(), lake, DAYS[-2], **{"market.symbols": "S001,S002"})
    assert lake.read("bars")["symbol"].unique().sort().to_list() == ["S001", "S002"]
    etl(Vendor(), lake, LAST, **{"market.symbols": "S001,S002,S003"})
    assert len(lake.read("bars", symbols=["S003"])) == len(DAYS)


def test_too_many_bad_rows_leave_the_last_good_bars_and_keep_what_was_delivered(
    etl: Callable[..., EtlReport], lake: Lake
) -> None:
    good = etl(Vendor(), lake, DAYS[-2])
    with pytest.raises(QualityError, match="max_bad_share"):
        etl(
            Vendor(BARS.with_columns(pl.when(pl.col("date") == LAST).then(-1).otherwise("volume").alias("volume"))),
            lake,
            LAST,
        )
    assert lake.vintage() == good.vintage
    assert etl(Vendor(), lake, LAST).sessions == (LAST,)


def test_a_feed_that_is_late_stops_with_the_symbols_that_lack(etl: Callable[..., EtlReport], lake: Lake) -> None:
    etl(Vendor(), lake, DAYS[-2])
    with pytest.raises(FreshnessError, match=f"newest bar is of {DAYS[-2]}"):
        etl(Vendor(BARS.filter(pl.col("date") < LAST)), lake, LAST)
    missing = (pl.col("date") == LAST) & (pl.col("symbol") < "S004")
    with pytest.raises(FreshnessError, match="4 of 12 symbols"):
        etl(Vendor(BARS.filter(~missing)), lake, LAST)
    assert lake.read("bars")["date"].max() == DAYS[-2]


def test_a_delisted_symbol_is_not_waited_for(etl: Callable[..., EtlReport], lake: Lake) -> None:
    gone = (pl.col("symbol") < "S004") & (pl.col("date") >= DAYS[-3])
    names = sorted(s for s in BARS["symbol"].unique() if s < "S004")
    events = pl.concat([dividend(s, DAYS[-3]).with_columns(pl.lit("delisting").alias("kind")) for s in names])
    report = etl(Vendor(BARS.filter(~gone), events), lake, LAST)
    assert len(report.freshness.stale) == 0


def test_a_released_row_comes_in_with_the_next_run_and_stays(etl: Callable[..., EtlReport], lake: Lake) -> None:
    vendor = Vendor(scaled(BARS, at("S003", DAYS[40]), 10))
    etl(vendor, lake, DAYS[-2])
    assert lake.read("bars").filter(at("S003", DAYS[40])).is_empty()
    release(lake, "S003", DAYS[40], "ada", new_york(LAST, 8))
    etl(vendor, lake, DAYS[-2])
    etl(vendor, lake, LAST)
    assert len(lake.read("bars").filter(at("S003", DAYS[40]))) == 1
    assert not etl(vendor, lake, LAST).changed


def test_an_earlier_day_than_the_lake_reaches_changes_nothing(etl: Callable[..., EtlReport], lake: Lake) -> None:
    vendor = Vendor()
    done = etl(vendor, lake, LAST)
    report = etl(vendor, lake, DAYS[-9])
    assert (report.changed, report.vintage, len(vendor.asked)) == (False, done.vintage, 1)
    assert report.freshness.newest == DAYS[-9]


@pytest.mark.parametrize(
    ("as_of", "overrides", "error", "says"),
    [
        (date(2024, 3, 29), {}, InputError, "holiday"),
        (date(2024, 3, 23), {}, InputError, "Saturday"),
        (LAST, {"market.symbols": "S001,APPL"}, InputError, "APPL"),
        (previous_session(DAYS[0]), {}, SourceError, "begins on"),
    ],
)
def test_what_cannot_be_taken_in_is_refused(
    etl: Callable[..., EtlReport], lake: Lake, as_of: date, overrides: dict, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        etl(Vendor(), lake, as_of, **overrides)
    assert lake.vintage() == {}


def test_a_session_that_is_not_over_cannot_be_taken_in(make_settings: Callable[..., Settings], lake: Lake) -> None:
    noon = SimulatedClock(new_york(LAST, 12))
    with pytest.raises(InputError, match="not complete"):
        run_etl(make_settings(), Vendor(), lake, LAST, noon)  # type: ignore[arg-type]


def test_a_universe_without_history_is_warned_of(etl: Callable[..., EtlReport], lake: Lake) -> None:
    class Survivors(Vendor):
        def universe(self, as_of: date | None = None) -> pl.DataFrame:
            return super().universe(as_of).with_columns(pl.lit(False).alias("has_history"))

    for day in (LAST, DAYS[-9]):  # the second one is there already
        assert any("Survivorship" in text for text in etl(Survivors(), lake, day).warnings)


def test_what_a_refused_delivery_brought_is_judged_by_the_next_run(etl: Callable[..., EtlReport], lake: Lake) -> None:
    few, more = {"market.symbols": "S001,S002"}, {"market.symbols": "S001,S002,S003"}
    etl(Vendor(), lake, DAYS[-3], **few)
    broken = BARS.with_columns(pl.when(pl.col("date") == DAYS[-2]).then(-1).otherwise("volume").alias("volume"))
    with pytest.raises(QualityError):
        etl(Vendor(broken), lake, DAYS[-2], **more, **{"quality.few_rows": 0, "quality.max_bad_share": 0.0})
    vendor = Vendor()
    etl(vendor, lake, LAST, **more)
    assert vendor.asked == [(shift(DAYS[-3], -9), LAST, 3)]
    assert lake.read("bars", symbols=["S003"])["date"].to_list() == DAYS


# Corrections older than the usual, and more history


def test_a_correction_older_than_the_usual_is_merged_when_somebody_asks_since_then(
    etl: Callable[..., EtlReport], lake: Lake
) -> None:
    first = etl(Vendor(), lake, LAST)
    corrected = Vendor(scaled(BARS, at("S005", DAYS[20]), 1.01))
    assert not etl(corrected, lake, LAST).changed
    report = etl(corrected, lake, LAST, since=DAYS[10])
    assert corrected.asked[-1] == (DAYS[10], LAST, 12)
    assert report.revised.select("symbol", "date", "field").rows() == [
        ("S005", DAYS[20], name) for name in ("open", "high", "low", "close")
    ]
    assert report.revised["after"].to_list() == pytest.approx([value * 1.01 for value in report.revised["before"]])
    assert lake.revisions().drop("seen_at").sort("field").equals(report.revised.sort("field"))
    assert lake.at(first.vintage).read("bars").filter(at("S005", DAYS[20]))["close"].item() == pytest.approx(
        lake.read("bars").filter(at("S005", DAYS[20]))["close"].item() / 1.01
    )


def test_more_years_of_history_are_asked_for_once(etl: Callable[..., EtlReport], lake: Lake) -> None:
    days = sessions(date(2021, 10, 1), LAST)
    rows = sample_bars(days, symbols=3, seed=2)
    vendor = Vendor(rows, first_date=days[0])
    etl(vendor, lake, days[-3], **{"market.history_years": 1})
    short = lake.read("bars")["date"].min()
    etl(vendor, lake, days[-2], **{"market.history_years": 2})
    assert short - lake.read("bars")["date"].min() > timedelta(days=360)
    etl(vendor, lake, days[-1], **{"market.history_years": 2})
    assert [start for start, _, _ in vendor.asked][1] < short
    assert [start for start, _, _ in vendor.asked][2] == shift(days[-2], -9)


# Corporate actions that change after they were told


def event(symbol: str, day: date, kind: str, target: str | None = None, ratio: float = 1.0, cash: float = 0.0):
    row = {"symbol": symbol, "ex_date": day, "kind": kind, "ratio": ratio, "cash": cash, "target": target}
    return pl.DataFrame([row], schema=NO_ACTIONS.schema)


def test_a_withdrawn_corporate_action_is_listed_and_gone_but_old_vintages_keep_it(
    etl: Callable[..., EtlReport], lake: Lake
) -> None:
    before = etl(Vendor(events=pl.concat([dividend("S005", DAYS[40]), dividend("S006", DAYS[40])])), lake, DAYS[-2])
    report = etl(Vendor(events=dividend("S006", DAYS[40])), lake, LAST)
    assert report.withdrawn.select("symbol", "ex_date").rows() == [("S005", DAYS[40])]
    assert report.counts["withdrawn"] == 1
    assert any("S005" in text and "no longer" in text for text in report.warnings)
    assert (lake.read("bars", symbols=["S005"])["total_return_factor"] == 1).all()
    assert lake.at(before.vintage).read("bars", symbols=["S005"])["total_return_factor"][0] < 1


def test_a_source_that_withdraws_many_events_is_refused(etl: Callable[..., EtlReport], lake: Lake) -> None:
    many = pl.concat([dividend(f"S{i:03d}", DAYS[40 + i]) for i in range(8)])
    first = etl(Vendor(events=many), lake, DAYS[-2])
    with pytest.raises(SourceError, match=r"withdraws 8 of 8 corporate actions.*S000"):
        etl(Vendor(), lake, LAST)
    assert lake.vintage() == first.vintage
    assert etl(Vendor(), lake, LAST, **{"market.max_withdrawn_share": 1.0}).counts["withdrawn"] == 8


def test_a_changed_amount_is_followed(etl: Callable[..., EtlReport], lake: Lake) -> None:
    etl(Vendor(events=dividend("S005", DAYS[40], 0.5)), lake, LAST)
    small = lake.read("bars", symbols=["S005"])["total_return_factor"][0]
    etl(Vendor(events=dividend("S005", DAYS[40], 1.0)), lake, LAST)
    factor = lake.read("bars", symbols=["S005"])["total_return_factor"][0]
    assert 1 - factor == pytest.approx(2 * (1 - small))


def test_a_dividend_larger_than_the_price_stops_the_run_and_not_the_readers(
    etl: Callable[..., EtlReport], lake: Lake
) -> None:
    good = etl(Vendor(), lake, DAYS[-2])
    with pytest.raises(DataError, match=r"S005 .* leaves no price"):
        etl(Vendor(events=dividend("S005", DAYS[40], 10_000)), lake, LAST)
    assert lake.vintage() == good.vintage
    assert len(lake.read("bars", symbols=["S005"])) == len(DAYS) - 1


def test_two_rows_of_one_dividend_day_are_added_up(etl: Callable[..., EtlReport], lake: Lake) -> None:
    etl(Vendor(events=pl.concat([dividend("S005", DAYS[40], 0.5), dividend("S005", DAYS[40], 0.25)])), lake, LAST)
    assert lake.read("corporate_actions")["cash"].to_list() == [0.75]


def test_an_event_in_a_halt_is_completed_when_trading_resumes(etl: Callable[..., EtlReport], lake: Lake) -> None:
    halted = BARS.filter(~((pl.col("symbol") == "S005") & pl.col("date").is_in(DAYS[-4:-1])))
    vendor = Vendor(halted, dividend("S005", DAYS[-3]))
    etl(vendor, lake, DAYS[-2])
    assert lake.read("adjustments").select("date", "close").row(0) == (None, None)
    etl(vendor, lake, LAST)
    close = BARS.filter(at("S005", LAST))["close"].item()
    assert lake.read("adjustments").select("date", "close").row(0) == (LAST, close)
    before = BARS.filter(at("S005", DAYS[-5]))["close"].item()
    other = lake.adjusted(convention="ex_close").read("bars", symbols=["S005"])["total_return_factor"][0]
    assert lake.read("bars", symbols=["S005"])["total_return_factor"][0] == pytest.approx(1 - 0.5 / before)
    assert other == pytest.approx(close / (close + 0.5))


def test_a_spin_off_without_a_value_takes_the_first_close_of_what_was_spun_off(
    etl: Callable[..., EtlReport], lake: Lake
) -> None:
    rows = BARS.filter((pl.col("symbol") != "S009") | (pl.col("date") >= DAYS[-2]))
    rows = scaled(rows, pl.col("symbol") == "S009", 0.05)
    vendor = Vendor(rows, event("S005", DAYS[-2], "spin_off", "S009", ratio=0.5))
    etl(vendor, lake, DAYS[-3])
    etl(vendor, lake, DAYS[-2])
    spun = rows.filter(at("S009", DAYS[-2]))["close"].item() * 0.5
    before = rows.filter(at("S005", DAYS[-3]))["close"].item()
    expected = pytest.approx(1 - spun / before)
    assert lake.read("bars", symbols=["S005"])["total_return_factor"][0] == expected
    etl(vendor, lake, LAST)
    assert lake.read("bars", symbols=["S005"])["total_return_factor"][0] == expected


# Companies that change their name, and tickers that change their company


def test_two_companies_spun_off_on_one_day_are_two_events(etl: Callable[..., EtlReport], lake: Lake) -> None:
    told = [event("S003", DAYS[60], "spin_off", target, 0.5, 2.0) for target in ("S004", "S005")]
    etl(Vendor(events=pl.concat(told)), lake, LAST)
    assert lake.read("corporate_actions")["target"].to_list() == ["S004", "S005"]
    assert lake.read("adjustments")["cash"].to_list() == [4.0]


def called(rows: pl.DataFrame, old: str, new: str, since: date) -> pl.DataFrame:
    "Rows of `old` under the ticker `new` from `since` on."
    return rows.with_columns(
        pl.when((pl.col("symbol") == old) & (pl.col("date") >= since))
        .then(pl.lit(new))
        .otherwise("symbol")
        .alias("symbol")
    )


class Redelivering(Vendor):
    "Tells the whole history under the ticker of the day that asks, and no longer knows the old one."

    def bars(self, start: date, end: date, symbols: Sequence[str] | None = None) -> pl.DataFrame:
        self.asked.append((start, end, len(symbols or ())))
        rows = self.rows if end < CHANGE else called(self.rows, "S005", "NEW", DAYS[0])
        return rows.filter(pl.col("date").is_between(start, end), pl.col("symbol").is_in(list(symbols or ())))

    def universe(self, as_of: date | None = None) -> pl.DataFrame:
        name = "S005" if (as_of or LAST) < CHANGE else "NEW"
        return super().universe(as_of).with_columns(pl.col("symbol").replace("S005", name))

    def symbols(self) -> list[str]:
        return [*super().symbols(), "NEW"]


CHANGE = DAYS[-2]
RENAMES = pl.concat([dividend("S005", DAYS[40]), event("S005", CHANGE, "symbol_change", "NEW")])
STYLES = {
    "the vendor goes on under the new ticker": Vendor(called(BARS, "S005", "NEW", CHANGE), RENAMES),
    "the vendor delivers all of it again under the new ticker": Redelivering(BARS, RENAMES),
}


@pytest.mark.parametrize("vendor", STYLES.values(), ids=STYLES.keys())
def test_a_renamed_company_is_one_line_under_its_new_name_and_old_vintages_keep_the_old(
    etl: Callable[..., EtlReport], lake: Lake, tmp_path: Path, vendor: Vendor
) -> None:
    before = etl(vendor, lake, DAYS[-3])
    assert len(before.renamed) == 0
    assert "NEW" not in lake.read("bars")["symbol"]
    report = etl(vendor, lake, CHANGE)
    assert report.renamed.rows() == [("NEW", "S005", CHANGE)]
    assert report.freshness.stale.is_empty()  # the old name is nobody that could be late
    new, old = lake.read("bars", symbols=["NEW"]), lake.at(before.vintage).read("bars", symbols=["S005"])
    assert new["close"].to_list() == BARS.filter(symbol="S005")["close"].to_list()[:-1]
    assert new["adj_close"].to_list()[:-1] == pytest.approx(old["adj_close"].to_list())
    for table in ("bars", "adjustments", "universe"):
        assert "S005" not in lake.read(table)["symbol"], table
    assert set(lake.read("raw_bars", symbols=["S005"])["date"]) >= set(DAYS[:-2])
    assert lake.read("universe", symbols=["NEW"])["end"].to_list() == [None]
    etl(vendor, lake, LAST)
    fresh = Lake(tmp_path / "fresh")
    etl(vendor, fresh, LAST)
    assert lake.read("bars").equals(fresh.read("bars"))
    assert lake.read("adjustments").equals(fresh.read("adjustments"))


def test_a_change_of_symbol_heard_of_late_moves_what_came_under_both_names(
    etl: Callable[..., EtlReport], lake: Lake
) -> None:
    rows = called(BARS, "S005", "NEW", CHANGE)
    etl(Vendor(rows), lake, CHANGE)
    assert len(lake.read("bars", symbols=["NEW"])) == 1
    report = etl(Vendor(rows, event("S005", CHANGE, "symbol_change", "NEW")), lake, LAST)
    assert report.renamed.rows() == [("NEW", "S005", CHANGE)]
    assert lake.read("bars", symbols=["NEW"])["date"].to_list() == DAYS
    etl(Vendor(rows), lake, LAST)  # … and taken back
    assert lake.read("bars", symbols=["S005"])["date"].to_list() == DAYS[:-2]


def test_a_ticker_that_another_company_takes_over_keeps_the_two_apart(
    etl: Callable[..., EtlReport], lake: Lake
) -> None:
    rows = BARS.filter((pl.col("symbol") != "S005") | (pl.col("date") < DAYS[-6]))
    rows = called(rows, "S006", "S005", CHANGE)
    events = pl.concat([event("S005", DAYS[-6], "delisting"), event("S006", CHANGE, "symbol_change", "S005")])
    vendor = Vendor(rows.sort("symbol", "date"), events)
    etl(vendor, lake, DAYS[-3])
    assert lake.read("bars", symbols=["S005"])["date"].max() == DAYS[-7]
    etl(vendor, lake, LAST)
    gone = f"S005-{DAYS[-6]:%Y%m}"
    assert lake.read("bars", symbols=[gone])["date"].to_list() == DAYS[:-6]
    assert lake.read("bars", symbols=["S005"])["close"].to_list() == BARS.filter(symbol="S006")["close"].to_list()
    assert lake.read("bars", symbols=["S006"]).is_empty()


def test_a_ticker_in_use_again_long_after_a_delisting_is_another_company(
    etl: Callable[..., EtlReport], lake: Lake, tmp_path: Path
) -> None:
    quiet = pl.col("date").is_between(DAYS[20], DAYS[-6])
    vendor = Vendor(BARS.filter((pl.col("symbol") != "S005") | ~quiet), event("S005", DAYS[20], "delisting"))
    etl(vendor, lake, DAYS[-7])
    assert lake.read("bars", symbols=["S005"])["date"].to_list() == DAYS[:20]
    for day in DAYS[-5:]:
        etl(vendor, lake, day)
    etl(vendor, fresh := Lake(tmp_path / "fresh"), LAST)
    assert lake.read("bars", symbols=["S005"])["date"].to_list() == DAYS[-5:]
    assert lake.read("bars", symbols=[f"S005-{DAYS[20]:%Y%m}"])["date"].to_list() == DAYS[:20]
    assert lake.read("bars").equals(fresh.read("bars"))


def test_a_released_row_stays_released_under_the_new_name(etl: Callable[..., EtlReport], lake: Lake) -> None:
    vendor = Vendor(called(scaled(BARS, at("S005", DAYS[40]), 10), "S005", "NEW", CHANGE), RENAMES)
    etl(vendor, lake, DAYS[-3])
    release(lake, "S005", DAYS[40], "ada", new_york(LAST, 8))
    etl(vendor, lake, CHANGE)
    assert len(lake.read("bars").filter(at("NEW", DAYS[40]))) == 1
    assert lake.read("quarantine").select("symbol", "released_by").rows() == [("NEW", "ada")]


def test_a_feed_that_stands_still_while_the_market_is_open_is_too_old(
    make_settings: Callable[..., Settings], lake: Lake
) -> None:
    noon = new_york(LAST, 12)
    vendor = Vendor(intraday={"S001": noon - timedelta(minutes=90), "S002": noon})
    with pytest.raises(FreshnessError, match="S001"):
        run_etl(make_settings(), vendor, lake, DAYS[-2], SimulatedClock(noon))  # type: ignore[arg-type]
    run_etl(make_settings(), vendor, lake, DAYS[-2], SimulatedClock(new_york(LAST, 8)))  # type: ignore[arg-type]


def demo_day(root: Path) -> Lake:
    "A day's ETL of the simulated market into a lake below `root`."
    settings = load({"core.root": str(root), "demo.symbols": 20, "demo.years": 1}, env={})
    lake, day = Lake(settings.root / "lake"), date(2018, 11, 29)
    run_etl(settings, open_source(settings), lake, day, SimulatedClock(new_york(next_session(day), 9)))
    return lake


def test_a_killed_run_is_finished_by_the_next_one(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    run = subprocess.Popen(
        [sys.executable, __file__, str(killed)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert run.stdout is not None
    expected = demo_day(whole)
    assert run.stdout.readline() == "ready\n"
    while not (killed / "lake" / "raw_bars" / "_delta_log").exists():
        time.sleep(0.005)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait() != 0
    assert not Lake(killed / "lake").exists("bars")
    found = demo_day(killed)
    for table in TABLES:
        stamps = [name for name in ("ingested_at", "found_at") if name in TABLES[table].schema]
        assert found.read(table).drop(stamps).equals(expected.read(table).drop(stamps)), table


if __name__ == "__main__":  # the process that is killed
    import great_expectations  # noqa: F401

    print("ready", flush=True)
    demo_day(Path(sys.argv[1]))
