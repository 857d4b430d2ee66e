"""Bitemporal: two years of a vendor that revises, taken in evening by evening, and every evening read back afterwards.

Each symbol-day was seen twice, on its own day and on the next session, and about one in eight differs: a late volume, now and
then a price. Afterwards the vintage of every day must hold exactly what was delivered that day. On three evenings the vendor had no
bar of the day: those runs are refused, and what they brought is in the next day's vintage.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import polars as pl

from tradenb.core.calendar import is_session, next_session
from tradenb.core.clock import SimulatedClock, Stopwatch, new_york
from tradenb.core.errors import FreshnessError
from tradenb.core.settings import Settings, load
from tradenb.market.actions import ACTION_SCHEMA
from tradenb.market.etl import EtlReport, run_etl
from tradenb.market.lake import Lake, open_lake

from . import Result, missing, real_data

FILE = "bitemporal_sp500_2015_2017.parquet"
SETTINGS = {"market.history_years": 0, "market.max_stale_share": 1.0}  # Some evenings bring a third of the names
DELIVERED = ["symbol", "date", "open", "high", "low", "close", "volume"]


@dataclass(frozen=True)
class Evenings:
    "A source that says on each day what the vendor said on that day, and nothing else."

    rows: pl.DataFrame  # symbol, date, evening, open, high, low, close, volume
    name: str = "bitemporal"

    @cached_property
    def by_day(self) -> Mapping[date, pl.DataFrame]:
        parts = self.rows.partition_by("evening", as_dict=True, include_key=False)
        return {day: part.sort("symbol", "date") for (day,), part in parts.items()}

    @cached_property
    def listed(self) -> pl.DataFrame:  # symbol, start, seen
        return self.rows.group_by("symbol").agg(start=pl.col("date").min(), seen=pl.col("evening").min()).sort("symbol")

    @property
    def days(self) -> list[date]:
        return sorted(self.by_day)

    @property
    def first_date(self) -> date:
        return self.listed["start"].min()  # type: ignore[return-value]

    @property
    def last_date(self) -> date:
        return self.days[-1]

    @property
    def first_trade_date(self) -> date:
        return self.last_date

    def symbols(self) -> list[str]:
        return self.listed["symbol"].to_list()

    def bars(self, start: date, end: date, symbols: Sequence[str] | None = None) -> pl.DataFrame:
        rows = self.by_day[end]
        wanted = pl.col("symbol").is_in(list(symbols)) if symbols is not None else pl.lit(True)
        return rows.filter(pl.col("date").is_between(start, end), wanted).select(DELIVERED)

    def actions(self, start: date, end: date, symbols: Sequence[str] | None = None) -> pl.DataFrame:
        return pl.DataFrame(schema=ACTION_SCHEMA)

    def universe(self, as_of: date | None = None) -> pl.DataFrame:
        fixed = {"end": pl.lit(None, pl.Date), "sector": pl.lit(None, pl.String), "has_history": pl.lit(True)}
        known = self.listed.filter(pl.col("seen") <= (as_of or self.last_date))
        return known.select(pl.lit(self.name).alias("universe"), "symbol", "start", **fixed)

    def assets(self, as_of: date) -> pl.DataFrame:
        return self.listed.select("symbol", name="symbol")

    def truth(self, start: date, end: date) -> pl.DataFrame:
        return self.bars(start, end)

    def newest(self, symbols: Sequence[str]) -> dict[str, datetime]:
        return {}


def read_evenings(folder: Path) -> Evenings:
    "The vendor of the file. What it saw on a holiday is heard on the next session."
    rows = pl.read_parquet(folder / FILE, columns=[*DELIVERED, "asof"])
    heard = {day: day if is_session(day) else next_session(day) for day in rows["asof"].unique()}
    rows = rows.with_columns(evening=pl.col("asof").replace_strict(heard, return_dtype=pl.Date)).sort("asof")
    return Evenings(rows.unique(["symbol", "date", "evening"], keep="last", maintain_order=True).drop("asof"))


def ingest(settings: Settings, evenings: Evenings, lake: Lake, days: Sequence[date]) -> Iterator[EtlReport | None]:
    "One ETL for each of `days`, in order, on the morning after; None where the vendor had no bar of the day, and the run was refused."
    for day in days:
        try:
            yield run_etl(settings, evenings, lake, day, SimulatedClock(new_york(next_session(day), 8)))
        except FreshnessError:
            yield None


def known_by(evenings: Evenings, start: date, end: date) -> pl.DataFrame:
    "What the vendor had last said of every symbol-day by `end`, when it was first asked on `start`."
    told = evenings.rows.filter(pl.col("evening").is_between(start, end)).sort("symbol", "date", "evening")
    return told.unique(["symbol", "date"], keep="last", maintain_order=True).select(DELIVERED)


def read_back(lake: Lake, start: date | None = None) -> pl.DataFrame:
    "What a lake (at a vintage) says that the vendor said last, good or not."
    raw = lake.read("raw_bars", start).sort("symbol", "date", "ingested_at")
    return raw.unique(["symbol", "date"], keep="last", maintain_order=True).select(DELIVERED)


def good_of(lake: Lake, delivered: pl.DataFrame) -> pl.DataFrame:
    "Those of `delivered` that wait in no quarantine."
    bad = lake.read("quarantine").filter(pl.col("released_at").is_null())
    return delivered.join(bad, on=DELIVERED, how="anti", nulls_equal=True)


def exact(lake: Lake, evenings: Evenings, since: date, day: date) -> bool:
    "Does the vintage of `day` hold what was delivered from `since` until then, among the raw rows and, where it passed, among the bars?"
    then, delivered = lake.known(day), known_by(evenings, since, day)
    first, keys = delivered["date"].min(), delivered.select("symbol", "date")
    raw, bars = (
        rows.join(keys, on=["symbol", "date"], how="semi").sort("symbol", "date")
        for rows in (read_back(then, first), then.read("bars", first, columns=DELIVERED))  # type: ignore[arg-type]
    )
    return raw.equals(delivered) and bars.equals(good_of(then, delivered))


def spans(evenings: Evenings, reports: Sequence[EtlReport | None]) -> list[tuple[date, date]]:
    "Each recorded evening, with the first one after the one recorded before it."
    found, waiting = [], []
    for day, report in zip(evenings.days, reports, strict=False):
        waiting.append(day)
        if report is not None:
            found.append((waiting[0], day))
            waiting = []
    return found


def revised_days(evenings: Evenings, field: str) -> pl.DataFrame:  # symbol, date
    "Symbol-days of which the vendor told two values, straight from its file."
    told = evenings.rows.group_by("symbol", "date").agg(pl.col(field).n_unique())
    return told.filter(pl.col(field) > 1).select("symbol", "date").sort("symbol", "date")


def main() -> list[Result]:
    "All evenings; then each one's vintage, and the corrections that the lake lists."
    if missing(FILE):
        return []
    evenings, took = read_evenings(real_data()), []
    with TemporaryDirectory() as tmp:
        settings = load({"core.root": tmp} | SETTINGS, env={})
        lake, watch, reports = open_lake(settings), Stopwatch(), []
        for report in ingest(settings, evenings, lake, evenings.days):
            took.append(watch.seconds)
            reports.append(report)
        listed, each = lake.revisions(), [after - before for before, after in pairwise(took)]
        recorded = spans(evenings, reports)
        results: list[Result] = [
            ("bitemporal.days", len(reports), "days"),
            ("bitemporal.days_refused", reports.count(None), "days"),
            ("bitemporal.days_exact", sum(exact(lake, evenings, *span) for span in recorded), "days"),
            ("bitemporal.s", took[-1], "s"),
            ("bitemporal.day_s", median(each), "s"),
            ("bitemporal.last_days_s", median(each[-20:]), "s"),
            ("bitemporal.revised_rows", sum(report.counts["revised"] for report in reports if report), "rows"),
            ("bitemporal.listed_rows", listed.select("symbol", "date").n_unique(), "rows"),
        ]
        for field in ("volume", "close"):
            mine = listed.filter(field=field).select("symbol", "date").unique().sort("symbol", "date")
            same = mine.equals(revised_days(evenings, field))
            results += [
                (f"bitemporal.revised_{field}", len(mine), "rows"),
                (f"bitemporal.revised_{field}_as_in_file", same, "bool"),
            ]
        return results
