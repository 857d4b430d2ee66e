"""Questions to the lake, and work on it by hand: what `tradenb sql`, `lake`, `quarantine` and `universe` do."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs

from tradenb.core.calendar import require_session
from tradenb.core.clock import SystemClock
from tradenb.core.db import database
from tradenb.core.errors import InputError, LakeError
from tradenb.core.settings import Settings
from tradenb.market.lake import Lake, last_recorded, open_lake
from tradenb.market.quality import Limits, release, suite
from tradenb.market.sources import require_symbols
from tradenb.market.tables import spec_of
from tradenb.market.universe import Liquidity, liquid, members, survivorship_warning
from tradenb.market.upkeep import Compacted, Exported, Vacuumed, compact, export_parquet, export_qlib, vacuum
from tradenb.market.versions import files_of, newest, only_writer
from tradenb.trading import records
from tradenb.trading.run import open_run


def open_filled(settings: Settings) -> Lake:
    "The lake at its newest vintage; `LakeError` when nothing was ever recorded in it."
    lake = open_lake(settings)
    if not lake.vintage():
        raise LakeError(f"there is no lake below {settings.root} yet: run `tradenb etl` first")
    return lake.latest()


def lake_as(settings: Settings, vintage: int | None, as_of: date | None, run_id: str | None) -> Lake:
    "The lake at the vintage of a number, as it was known on a day, as a run saw it, or as it is now."
    asked = {"--vintage": vintage, "--as-of": as_of, "--run": run_id}
    if len(given := [option for option, value in asked.items() if value is not None]) > 1:
        raise InputError(f"{' and '.join(given)}: each says which lake to read; give one of them")
    lake = open_filled(settings)
    if run_id is not None:
        return lake_of_run(settings, run_id)
    return lake.at(vintage) if vintage is not None else lake.known(as_of) if as_of is not None else lake


def lake_of_run(settings: Settings, run_id: str) -> Lake:
    "The lake as a run saw it, adjusted as its settings said; `InputError` for a run that never read it."
    with database(settings) as engine:
        row = records.require(engine, run_id)
    if not row.vintage:
        raise InputError(f"run {run_id} saw no market data: it ended before its ETL was done")
    run = open_run(str(settings.root), str(row.trade_date), run_id)
    run.engine.dispose()
    return open_lake(run.settings).at(row.vintage)


COLUMNS = """select table_name as "table", string_agg(column_name, ', ' order by column_index) as columns
from duckdb_columns() where not internal and table_name not in ('stored', 'traded', 'steps') group by table_name"""


def tables_of(lake: Lake) -> pl.DataFrame:  # table, rows, columns
    "What can be asked: every table with its number of rows (null for one that is derived) and its columns."
    counts = {table: int(files_of(lake.open(table))["num_records"].sum()) for table in lake.vintage()}
    rows = pl.col("table").replace_strict(
        counts | {"vintages": len(lake.vintages())}, default=None, return_dtype=pl.Int64
    )
    return lake.sql(COLUMNS).select("table", rows.alias("rows"), "columns").sort(pl.col("rows").is_null(), "table")


def newest_session(lake: Lake) -> date:
    "The last session in the lake; `LakeError` when it has none."
    newest = lake.sql("select max(date) as day from bars").item() if lake.exists("bars") else None
    if newest is None:
        raise LakeError(f"the lake below {lake.root} has no bars: run `tradenb etl` first")
    return newest


def newest_number(settings: Settings) -> int:
    "The number of the newest vintage; 0 when none was ever recorded."
    last = last_recorded(open_lake(settings).path("vintages"))
    return last.number if last else 0


def known_symbols(lake: Lake, text: str | None) -> list[str] | None:
    "Comma-separated symbols as a list, None for all; `InputError` for one that the lake has never seen."
    wanted = [name.strip() for name in (text or "").split(",") if name.strip()]
    if not wanted:
        return None
    seen = lake.read("raw_bars", columns=["symbol"])["symbol"].unique().sort().to_list()
    return require_symbols(wanted, seen, "of this lake")


def book(lake: Lake) -> pl.DataFrame:  # number, as_of, recorded_at, source, since, changed
    "The commit log of the lake, newest first: what each vintage changed."
    rows = lake.vintages()
    versions = [{}, *(json.loads(tables) for tables in rows["tables"])]
    changed = [", ".join(name for name in now if now[name] != before.get(name)) for before, now in pairwise(versions)]
    columns = ("number", "as_of", "recorded_at", "source", "since")
    return rows.select(*columns, pl.Series("changed", changed, pl.String)).sort("number", descending=True)


def set_aside(
    lake: Lake, symbols: list[str] | None, check: str | None, since: date | None, everything: bool
) -> pl.DataFrame:  # symbol, date, check, close, volume, reason, found_at, released_by, released_at
    "Quarantined rows, newest first; those that wait, or with `everything` the released ones too."
    rows = lake.read("quarantine", start=since, symbols=symbols)
    checks = suite(Limits())["check"].unique(maintain_order=True).to_list()
    if check is not None and check not in checks:
        raise InputError(f"the gate has no check {check!r}: its checks are {', '.join(checks)}")
    wanted = [pl.col("check") == check] if check else []
    wanted += [] if everything else [pl.col("released_at").is_null()]
    columns = ["symbol", "date", "check", "close", "volume", "reason", "found_at"]
    columns += ["released_by", "released_at"] if everything else []
    return rows.filter(pl.lit(True), *wanted).select(columns).sort("date", "symbol", descending=[True, False])


def let_go(settings: Settings, symbol: str, day: date, who: str, close: float | None) -> dict[str, Any]:
    "Release the quarantined row of a symbol and day; the row. Raises as `market.quality.release`."
    lake = writable(settings)
    known_symbols(lake, symbol)
    released = release(lake, symbol, day, who, SystemClock().now(), close, settings.lake.lock_timeout_s)
    return released.row(0, named=True)


def writable(settings: Settings) -> Lake:
    "The lake to write to; `LakeError` when there is none yet."
    open_filled(settings)
    return open_lake(settings)


def compact_now(settings: Settings) -> Compacted:
    "Fewer files."
    keep = settings.lake
    return compact(writable(settings), SystemClock().now(), keep.compact_after, keep.lock_timeout_s)


def vacuum_now(settings: Settings, dry_run: bool) -> Vacuumed:
    "No leftovers."
    return vacuum(writable(settings), dry_run, settings.lake.lock_timeout_s)


def copy_for_qlib(
    settings: Settings, folder: Path, as_of: date | None, since: date | None, symbols: str | None
) -> Exported:
    "Bars in Qlib's format."
    lake = lake_as(settings, None, as_of, None)
    return export_qlib(lake, folder, since, None, known_symbols(lake, symbols))


def copy_as_parquet(settings: Settings, folder: Path, tables: str, by_year: bool, as_of: date | None) -> Exported:
    "Tables as plain Parquet."
    lake, names = lake_as(settings, None, as_of, None), [name.strip() for name in tables.split(",") if name.strip()]
    if unknown := [name for name in names if name not in lake.vintage()]:
        raise InputError(f"the lake has no table {unknown[0]}: it has {', '.join(lake.vintage())}")
    return export_parquet(lake, folder, names, by_year)


@dataclass(frozen=True)
class Members:
    "The universe of a day."

    day: date
    frame: pl.DataFrame  # symbol, sector, close, dollar_volume, bars, left_out (null: tradable)
    notes: tuple[str, ...]  # What to know before trusting it


def members_on(settings: Settings, asked: date | None) -> Members:
    "Who belonged on a day, and whom the limits of [universe] leave out. `InputError` for a day without a session or before the lake's first."
    lake = open_filled(settings)
    day = require_session(asked) if asked else newest_session(lake)
    universe, limits = lake.read("universe"), Liquidity.of(settings.universe)
    inside = members(universe, day)
    if inside.is_empty():
        raise InputError(
            f"nobody belonged to the universe on {day}: its first member joined on {universe['start'].min()!s}"
        )
    judged = judge_liquidity(lake, day, limits)
    reason = pl.when(pl.col("close").is_null()).then(pl.lit(f"no bar on {day}")).otherwise("reason").alias("left_out")
    columns = ("symbol", "sector", "close", "dollar_volume", pl.col("history").alias("bars"), reason)
    frame = inside.join(judged, on="symbol", how="left", maintain_order="left").select(columns)
    return Members(day, frame, tuple(notes_on(universe, limits, frame, day)))


def judge_liquidity(lake: Lake, day: date, limits: Liquidity) -> pl.DataFrame:
    "`liquid` on a day, from the weeks that it looks at; the bars before them are only counted."
    start = day - timedelta(days=2 * limits.sessions + 14)
    recent = lake.read("bars", start, day, columns=["symbol", "date", "close", "volume"])
    counts = lake.sql(f"select symbol, count(*) as history from bars where date <= '{day}' group by symbol")  # noqa: S608
    return liquid(recent, day, limits, counts)


def notes_on(universe: pl.DataFrame, limits: Liquidity, frame: pl.DataFrame, day: date) -> Iterator[str]:
    out = frame["left_out"].is_not_null().sum()
    yield f"{frame.height} members on {day}, {frame.height - out} of them can be traded"
    if not limits.limits:
        yield "no limit on price, traded value or history is set: see [universe] in settings.ini"
    if warning := survivorship_warning(universe):
        yield warning


@dataclass(frozen=True)
class Status:
    "How the lake stands."

    facts: dict[str, str]
    tables: pl.DataFrame  # table, rows, first, last, version, files, kilobytes


def status_of(settings: Settings) -> Status:
    "Tables, the newest vintage, and who writes. `LakeError` when there is no lake."
    lake = open_filled(settings)
    last = last_recorded(lake.path("vintages"))
    rows = [table_status(lake, table) for table in (*lake.vintage(), "vintages")]
    facts = {"lake": str(lake.root), "written by": writer_of(lake) or "nobody just now"}
    if last is not None:
        seen = f"vintage {last.number}, recorded {last.recorded_at:%Y-%m-%d %H:%M} UTC from {last.source}"
        facts |= {"newest session": f"{last.as_of} ({seen})"}
    return Status(facts, pl.DataFrame(rows))


def table_status(lake: Lake, table: str) -> dict[str, Any]:
    "One table in figures, from its log alone: no file is opened."
    delta: Any = newest(lake.path(table)) if table == "vintages" else lake.open(table)
    files, day = files_of(delta), spec_of(table).day
    sizes = {"rows": files["num_records"].sum(), "files": files.height, "kilobytes": files["size_bytes"].sum() // 1000}
    return {
        "table": table,
        "first": files[f"min.{day}"].min(),
        "last": files[f"max.{day}"].max(),
        "version": delta.version(),
    } | sizes


def writer_of(lake: Lake) -> str | None:
    "Who is writing to the lake now; None: nobody."
    try:
        with only_writer(str(lake.root), 0):
            return None
    except LakeError as error:
        return str(error).partition(" being written by ")[2].partition(":")[0]


def write_frame(frame: pl.DataFrame, file: Path) -> None:
    "Write an answer as .csv, .parquet or .json, by the file's ending."
    writers = {
        ".csv": lambda: flat(frame).write_csv(file),
        ".parquet": lambda: frame.write_parquet(file),
        ".json": lambda: frame.write_json(file),
    }
    if file.suffix.lower() not in writers:
        raise InputError(f"{file}: an answer is written as .csv, .parquet or .json")
    writers[file.suffix.lower()]()


def flat(frame: pl.DataFrame) -> pl.DataFrame:
    "The frame as CSV can say it: instants in ISO 8601, nested values as JSON."
    instants = cs.datetime(time_zone="*").dt.to_string("%Y-%m-%dT%H:%M:%S%.fZ")
    nested = [name for name, kind in frame.schema.items() if kind.is_nested()]
    texts = [pl.Series(name, [as_json(value) for value in frame[name].to_list()], pl.String) for name in nested]
    return frame.with_columns(instants, *texts)


def as_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, default=str)
