"""ETL: sixteen years of real raw bars into the lake, one more day, and what pandas and DuckDB need for parts of it.

What is compared runs in turns, round after round, and medians are reported. ETL and DuckDB each run in a process of its own, all
libraries imported and used once on a small file. The ETL goes from opening the file of raw bars to the recorded vintage. DuckDB
reads the same Parquet file and writes it again, by year and with Zstandard level 3 as the lake does; once, where the ETL writes
the bars twice, as delivered and as judged good.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from tradenb.core.calendar import next_session, sessions
from tradenb.core.clock import SimulatedClock, Stopwatch, new_york
from tradenb.core.settings import Settings, load
from tradenb.market.actions import adjust
from tradenb.market.catalog import open_source
from tradenb.market.etl import EtlReport, run_etl
from tradenb.market.lake import open_lake
from tradenb.market.quality import sample_bars

from . import Result, missing, real_data
from ._measure import in_a_process, peak_gib, seconds

ROUNDS = 5
RAW = ["symbol", "date", "open", "high", "low", "close", "volume"]
FIRST, LAST = date(1998, 1, 2), date(2014, 3, 28)


def events_of(rows: pl.DataFrame) -> pl.DataFrame:
    "The `split_ratio` column beside the bars → corporate_actions."
    splits = rows.filter(pl.col("split_ratio") != 1)
    none = {"declared_at": pl.lit(None, pl.Date), "source": pl.lit("files"), "target": pl.lit(None, pl.String)}
    return splits.select("symbol", ex_date="date", kind=pl.lit("split"), ratio="split_ratio", cash=pl.lit(0.0), **none)


def files_settings(root: Path, bars: Path, actions: Path) -> Settings:
    "A lake below `root` that takes in all of `bars`."
    files = {"market.source": "files", "files.bars": str(bars), "files.actions": str(actions)}
    return load({"core.root": str(root), "market.history_years": 0, **files}, env={})


def take_in(settings: Settings, as_of: date) -> EtlReport:
    "One ETL on the morning after `as_of`, the source opened anew."
    clock = SimulatedClock(new_york(next_session(as_of), 8))
    return run_etl(settings, open_source(settings), open_lake(settings), as_of, clock)


def few_bars(folder: Path, symbols: int, days: list[date]) -> tuple[Path, Path]:
    "Files of random bars, and of a few dividends on every day."
    bars, actions = folder / "bars.parquet", folder / "actions.parquet"
    sample_bars(days, symbols, seed=5).select(RAW).write_parquet(bars)
    paid = pl.DataFrame(
        [
            {"symbol": f"S{(7 * i + j) % symbols:03d}", "ex_date": day, "kind": "dividend", "ratio": 1.0, "cash": 0.25}
            for i, day in enumerate(days)
            for j in range(2)
        ]
    )
    paid.write_parquet(actions)
    return bars, actions


def warm(folder: Path) -> None:
    "Everything imported and called once, on a small market."
    days = sessions(date(2013, 11, 1), date(2014, 1, 31))
    files = few_bars(folder, 20, days)
    for day in days[-2:]:
        take_in(files_settings(folder / "warm", *files), day)


def whole(bars: Path, actions: Path) -> dict[str, Any]:
    "One ETL of `bars` in this process: seconds, peak memory, rows."
    with TemporaryDirectory() as tmp:
        warm(Path(tmp))
        settings, watch = files_settings(Path(tmp) / "whole", bars, actions), Stopwatch()
        report = take_in(settings, LAST)
        took = watch.seconds
    return {"s": took, "peak_gib": peak_gib(), **report.counts}


def days(symbols: int = 500, years: int = 5, more: int = 7) -> dict[str, Any]:
    "A lake with years of history, and one more day, several times."
    with TemporaryDirectory() as tmp:
        warm(Path(tmp))
        every = sessions(date(2019, 1, 2), date(2019 + years, 1, 31))
        settings = files_settings(Path(tmp) / "days", *few_bars(Path(tmp), symbols, every))
        take_in(settings, every[-more - 1])
        took = []
        for day in every[-more:]:
            watch = Stopwatch()
            report = take_in(settings, day)
            took.append(watch.seconds)
        return {"s": median(took[1:]), **report.counts}


def duckdb_alone(bars: Path) -> dict[str, Any]:
    "DuckDB on `bars` in this process: seconds."
    with TemporaryDirectory() as tmp:
        small, _ = few_bars(Path(tmp), 20, sessions(date(2013, 11, 1), date(2014, 1, 31)))
        by_duckdb(small, Path(tmp) / "warm")
        return {"s": seconds(lambda: by_duckdb(bars, Path(tmp) / "whole"))}


def by_pandas(bars: Any, events: Any) -> Any:
    "Backward adjustment as it is mostly written: group by symbol, multiply backwards within each."
    rows = bars.merge(
        events[["symbol", "ex_date", "ratio", "cash"]],
        left_on=["symbol", "date"],
        right_on=["symbol", "ex_date"],
        how="left",
    )

    def one(group: Any) -> Any:
        ratio, cash = group["ratio"].fillna(1.0), group["cash"].fillna(0.0)
        total = ((1 - cash * ratio / group["close"].shift()) / ratio).fillna(1.0)
        price_factor, total_return_factor = (
            step[::-1].cumprod()[::-1].shift(-1, fill_value=1.0) for step in (1 / ratio, total)
        )
        adjusted = {f"adj_{p}": group[p] * total_return_factor for p in ("open", "high", "low", "close")}
        factors = {"price_factor": price_factor, "volume_factor": 1 / price_factor}
        volume = {"adj_volume": group["volume"] / price_factor}
        return group.assign(**adjusted, **volume, **factors, total_return_factor=total_return_factor)

    return rows.groupby("symbol", group_keys=False)[rows.columns.tolist()].apply(one)


def by_duckdb(bars: Path, folder: Path) -> None:
    "Read `bars`, write them by year."
    import duckdb

    with duckdb.connect() as connection:
        rows = connection.read_parquet(str(bars)).project(f"{', '.join(RAW)}, year(date) as year")
        rows.write_parquet(str(folder), partition_by=["year"], compression="zstd")


@contextmanager
def prepared() -> Iterator[tuple[Path, Path]]:
    "The file of raw bars, and a file of its splits."
    with TemporaryDirectory() as tmp:
        bars, actions = real_data() / "sp_raw_adj_1998_2014.parquet", Path(tmp) / "splits.parquet"
        events_of(pl.read_parquet(bars)).write_parquet(actions)
        yield bars, actions


def main() -> list[Result]:
    "The whole ETL beside DuckDB, our adjustment beside pandas, and one more day."
    if missing("sp_raw_adj_1998_2014.parquet"):
        return []
    etl, duck, pandas, ours = [], [], [], []
    with prepared() as (file, actions):
        for _ in range(ROUNDS):
            etl.append(in_a_process("etl", "whole", file, actions))
            duck.append(in_a_process("etl", "duckdb_alone", file)["s"])
        bars, events = pl.read_parquet(file, columns=RAW), pl.read_parquet(actions)
        frames = bars.to_pandas(), events.to_pandas()
        for _ in range(ROUNDS):
            pandas.append(seconds(lambda: by_pandas(*frames)))
            ours.append(seconds(lambda: adjust(bars, events, "total_return", "prev_close")))
    took = median(run["s"] for run in etl)
    return [
        ("etl.rows", bars.height, "rows"),
        ("etl.s", took, "s"),
        ("etl.duckdb_s", median(duck), "s"),
        ("etl.vs_duckdb", took / median(duck), "x"),
        ("etl.adjust_s", median(ours), "s"),
        ("etl.pandas_s", median(pandas), "s"),
        ("etl.vs_pandas", median(pandas) / median(ours), "x"),
        ("etl.peak_gib", max(run["peak_gib"] for run in etl), "GiB"),
        ("etl.day_s", in_a_process("etl", "days")["s"], "s"),
    ]


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    parts: dict[str, Callable[..., dict[str, Any]]] = {"whole": whole, "days": days, "duckdb_alone": duckdb_alone}
    print(json.dumps(parts[name](*map(Path, rest)), default=str))
