"Whatever happens in whatever order, the lake ends where one ETL of the final state would have begun."

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis.strategies as st
import polars as pl
from hypothesis import example, given, note, settings

from tradenb.core.calendar import next_session, sessions
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.settings import load
from tradenb.market.actions import ACTION_SCHEMA
from tradenb.market.etl import EtlReport, run_etl
from tradenb.market.lake import Lake
from tradenb.market.quality import sample_bars

DAYS = sessions(date(2023, 11, 1), date(2024, 1, 12))
FIRST = 30  # The ETL begins on this session
NAMES = [f"S{i:03d}" for i in range(6)]
ROWS = sample_bars(DAYS, symbols=len(NAMES), seed=9)


@dataclass
class Vendor:
    "A source that changes its mind."

    rows: pl.DataFrame = field(default_factory=lambda: ROWS)
    events: dict[tuple, dict] = field(default_factory=dict)
    name: str = "vendor"
    first_date: date = DAYS[0]
    last_date: date = DAYS[-1]

    def symbols(self) -> list[str]:
        return sorted({*self.told["symbol"]})

    @property
    def told(self) -> pl.DataFrame:
        "Rows under the ticker of their day."
        rows = self.rows
        for event in self.events.values():
            if event["kind"] == "symbol_change":
                after = (pl.col("symbol") == event["symbol"]) & (pl.col("date") >= event["ex_date"])
                rows = rows.with_columns(
                    pl.when(after).then(pl.lit(event["target"])).otherwise("symbol").alias("symbol")
                )
        return rows.sort("symbol", "date")

    def bars(self, start: date, end: date, symbols: Sequence[str] | None = None) -> pl.DataFrame:
        return self.told.filter(pl.col("date").is_between(start, end), pl.col("symbol").is_in(list(symbols or ())))

    def actions(self, start: date, end: date, symbols: Sequence[str] | None = None) -> pl.DataFrame:
        rows = pl.DataFrame(list(self.events.values()), schema=ACTION_SCHEMA)
        for event in [row for row in self.events.values() if row["kind"] == "symbol_change"]:
            after = pl.col("ex_date") >= event["ex_date"], pl.col("symbol") == event["symbol"]
            moved = (pl.col("kind") != "symbol_change") & after[0] & after[1]  # told under the ticker of its day
            rows = rows.with_columns(symbol=pl.when(moved).then(pl.lit(event["target"])).otherwise("symbol"))
        return rows.filter(pl.col("ex_date").is_between(start, end), pl.col("symbol").is_in(list(symbols or ())))

    def universe(self, as_of: date | None = None) -> pl.DataFrame:
        first = (
            self.told.filter(pl.col("date") <= (as_of or DAYS[-1])).group_by("symbol").agg(start=pl.col("date").min())
        )
        fixed = {"end": pl.lit(None, pl.Date), "sector": pl.lit(None, pl.String), "has_history": pl.lit(True)}
        return first.select(pl.lit("all").alias("universe"), "symbol", "start", **fixed)

    def newest(self, symbols: Sequence[str]) -> dict[str, datetime]:
        return {}

    def revise(self, symbol: str, day: date, by: float) -> None:
        hit = (pl.col("symbol") == symbol) & (pl.col("date") == day)
        self.rows = self.rows.with_columns(
            pl.when(hit).then(pl.col(p) * by).otherwise(p).alias(p) for p in ("open", "high", "low", "close")
        )

    def tell(self, symbol: str, day: date, kind: str, amount: float) -> None:
        split, change = kind == "split", kind == "symbol_change"
        if change and (known := [key for key in self.events if key[::2] == (symbol, kind)]):
            if day > DAYS[FIRST]:  # what has happened is not put off
                return
            del self.events[known[0]]  # a company leaves a ticker once: the vendor corrects the day
        self.events[symbol, day, kind] = {
            "symbol": symbol, "ex_date": day, "kind": kind, "ratio": 1 + amount / 10 if split else 1.0,
            "cash": amount if kind == "dividend" else 0.0, "target": f"{symbol}X" if change else None,
        }  # fmt: skip

    def withdraw(self, number: int) -> None:
        "Take an event back; not a change of symbol, since bars that were delivered under a name stay."
        if known := sorted(key for key in self.events if key[2] != "symbol_change"):
            del self.events[known[number % len(known)]]


names, days = st.sampled_from(NAMES), st.sampled_from(DAYS[1:])
steps = st.one_of(
    st.tuples(st.just("day")),
    st.tuples(st.just("again")),
    st.tuples(st.just("older"), st.integers(1, 20)),
    st.tuples(st.just("revise"), names, days, st.sampled_from([0.5, 0.97, 1.01, 1.03, 10.0])),
    st.tuples(st.just("tell"), names, days, st.sampled_from(["dividend", "split"]), st.sampled_from([0.5, 1.0])),
    st.tuples(st.just("tell"), st.just("S001"), st.sampled_from(DAYS[20:]), st.just("symbol_change"), st.just(0.0)),
    st.tuples(st.just("withdraw"), st.integers(0, 9)),
)
TABLES = ("bars", "adjustments", "corporate_actions", "universe")


def seen(lake: Lake) -> dict[str, pl.DataFrame]:
    waiting = lake.read("quarantine").filter(pl.col("released_at").is_null())
    return {table: lake.read(table) for table in TABLES} | {
        "waiting": waiting.select("symbol", "date", "check", "close").sort("symbol", "date", "check")
    }


@settings(max_examples=int(os.environ.get("TRADENB_TEST_SEQUENCES", "4")))
@example([("day",), ("day",), ("tell", "S001", date(2023, 11, 30), "symbol_change", 0.0)])  # heard of two weeks late
@example(
    [
        ("tell", "S001", date(2023, 12, 4), "symbol_change", 0.0),
        ("day",),
        ("tell", "S001", date(2023, 12, 7), "symbol_change", 0.0),
    ]
)  # three days later than it was told
@example(
    [
        ("day",),
        ("tell", "S001", date(2023, 12, 11), "dividend", 1.0),
        ("tell", "S001", date(2023, 12, 5), "symbol_change", 0.0),
    ]
)
@given(st.lists(steps, min_size=3, max_size=8))
def test_any_sequence_ends_with_the_tables_of_one_etl_from_scratch(taken: list[tuple]) -> None:
    with TemporaryDirectory() as tmp:
        config = load({"core.root": tmp, "quality.max_bad_share": 0.5, "market.history_years": 0}, env={})
        lake, vendor, at = Lake(Path(tmp) / "lake"), Vendor(), FIRST

        def etl(into: Lake, day: int, since: date | None = None) -> EtlReport:
            clock = SimulatedClock(new_york(next_session(DAYS[day]), 8))
            return run_etl(config, vendor, into, DAYS[day], clock, since)  # type: ignore[arg-type]

        etl(lake, at)
        for step, *what in taken:
            if step == "day":
                at = min(at + 1, len(DAYS) - 1)
                etl(lake, at)
            elif step == "again":
                etl(lake, at)
                assert not etl(lake, at).changed
            elif step == "older":
                assert not etl(lake, max(at - what[0], 1)).changed
            else:
                getattr(vendor, step)(*what)
        done = etl(lake, at, since=DAYS[0])
        note(f"counts {done.counts}")
        etl(scratch := Lake(Path(tmp) / "scratch"), at)
        mine, theirs = seen(lake), seen(scratch)
        for table in mine:
            assert mine[table].equals(theirs[table]), table
