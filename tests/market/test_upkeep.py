"Upkeep makes a lake smaller and never another one; what is exported is what others read back."

import json
import shutil
import signal
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.core.errors import LakeError
from tradenb.core.progress import heard_by
from tradenb.market.actions import ACTION_SCHEMA, place_events
from tradenb.market.lake import Lake
from tradenb.market.tables import TABLES
from tradenb.market.upkeep import compact, export_parquet, export_qlib, vacuum

WRITER = Path(__file__).with_name("lake_writer.py")
NOW = datetime(2024, 7, 1, 12, tzinfo=UTC)
DAYS = sessions(date(2023, 12, 1), date(2024, 3, 15))
PRICES = ("open", "high", "low", "close")


def bars(days: list[date], close: float, symbols: tuple[str, ...] = ("BRK.B", "CON", "GE")) -> pl.DataFrame:
    rows = [{"symbol": s, "date": d, **dict.fromkeys(PRICES, close + i + n), "volume": 100 * (n + 1)} for i, s in enumerate(symbols) for n, d in enumerate(days)]  # fmt: skip
    return pl.DataFrame(rows, schema=TABLES["bars"].schema)


def delivered(rows: pl.DataFrame, at: datetime) -> pl.DataFrame:
    return rows.with_columns(pl.lit("vendor").alias("source"), pl.lit(at).alias("ingested_at"))


def content(lake: Lake) -> dict[str, bytes]:
    return {table: lake.read(table).write_ipc(None).getvalue() for table in lake.vintage()}


def write(lake: Lake, day: int, span: int, close: float, record: bool) -> None:
    "Deliver and merge `span` days up to a day; a writer that records nothing is one that was killed."
    rows, at = bars(DAYS[max(0, day - span) : day + 1], close), NOW.replace(minute=day % 60, second=span)
    with lake.writing() as draft:
        draft.append("raw_bars", delivered(rows, at))
        draft.merge(
            "bars", rows, bars(DAYS[day - 1 : day], 0.0, ("GE",)).select("symbol", "date") if span > 2 else None
        )
        draft.merge("universe", pl.DataFrame([{"universe": "u", "symbol": "GE", "start": DAYS[0], "end": DAYS[day], "has_history": True}]))  # fmt: skip
        if record:
            draft.record(DAYS[day], "test", NOW)


actions = st.one_of(
    st.tuples(st.just("write"), st.integers(1, len(DAYS) - 1), st.integers(0, 4), st.sampled_from([10.0, 20.0]), st.booleans()),
    st.tuples(st.just("compact"), st.integers(2, 4)),
    st.tuples(st.just("vacuum")),
)  # fmt: skip


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(actions, min_size=3, max_size=12))
def test_every_recorded_vintage_reads_back_byte_for_byte_whatever_upkeep_does(
    tmp_path_factory: pytest.TempPathFactory, actions: list
) -> None:
    lake, kept = Lake(tmp_path_factory.mktemp("lake")), {}
    for name, *given_ in actions:
        if name == "write":
            write(lake, *given_)
        elif name == "compact":
            compact(lake, NOW, *given_)
        else:
            vacuum(lake)
        for number in lake.vintages()["number"]:
            kept.setdefault(number, content(lake.at(number)))
    for number, was in kept.items():
        assert content(lake.at(number)) == was


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    "Forty sessions, a day at a time, with two events and a membership."
    lake, rows = Lake(tmp_path / "lake"), bars(DAYS[:40], 10.0)
    events = [("GE", DAYS[20], "dividend", 1.0, 0.5), ("BRK.B", DAYS[30], "split", 2.0, 0.0)]
    told = [{"symbol": s, "ex_date": d, "kind": k, "ratio": r, "cash": c} for s, d, k, r, c in events]
    rows = rows.filter(~((pl.col("symbol") == "GE") & pl.col("date").is_in([DAYS[0], DAYS[5], DAYS[39]])))
    with lake.writing() as draft:
        for day in DAYS[:40]:
            draft.merge("bars", rows.filter(pl.col("date") == day))
        draft.merge("adjustments", place_events(pl.DataFrame(told, schema=ACTION_SCHEMA), rows))
        draft.merge("universe", pl.DataFrame([{"universe": "big", "symbol": "GE", "start": DAYS[3], "end": None, "has_history": True}]))  # fmt: skip
        draft.record(DAYS[39], "test", NOW)
    return lake


def test_compaction_makes_one_sorted_file_of_all_but_the_last_month_and_is_a_vintage(lake: Lake) -> None:
    before, was = lake.vintage(), content(lake)
    done = compact(lake, NOW, 10)
    assert done.years.filter(pl.col("table") == "bars").rows() == [("bars", 2023, 20, 1)]
    assert compact(lake, NOW, 10).years.is_empty()
    assert content(lake) == content(lake.at(before)) == was
    assert lake.vintages().select("as_of", "source").rows()[-1] == (DAYS[39], "upkeep")
    assert done.vintage == lake.vintage() != before


def test_what_is_not_crowded_is_left_alone_and_records_nothing(lake: Lake) -> None:
    before = lake.vintages()
    assert compact(lake, NOW).years.is_empty()
    assert lake.vintages().equals(before)
    assert compact(Lake(Path(lake.root).parent / "new"), NOW).years.is_empty()


def test_a_vacuum_changes_no_vintage_and_a_day_after_it_records_none(lake: Lake) -> None:
    write(lake, 5, 3, 99.0, record=False)
    with lake.writing() as draft:
        draft.record(DAYS[39], "test", NOW)
    write(lake, 5, 3, 99.0, record=False)
    with lake.writing() as draft:
        draft.record(DAYS[39], "test", NOW)
    before = lake.vintages()
    would, files = vacuum(lake, dry_run=True), set(Path(lake.root).rglob("*.parquet"))
    assert would.tables.filter(pl.col("table") == "bars")["files"].item() > 0
    assert files == set(Path(lake.root).rglob("*.parquet"))
    assert vacuum(lake).tables.equals(would.tables)
    assert vacuum(lake).tables["files"].sum() == 0
    with lake.writing() as draft:
        draft.merge("bars", bars(DAYS[:1], 10.0, ("CON",)).with_columns(pl.col(PRICES) + 1))
        draft.record(DAYS[39], "test", NOW)
    assert lake.vintages().equals(before)


def test_a_compaction_killed_after_any_of_its_writes_changes_no_vintage_and_the_next_one_finishes(
    tmp_path: Path,
) -> None:
    base = Lake(tmp_path / "base")
    for day in range(5):
        write(base, day, 0, 10.0, record=True)
    write(base, 40, 0, 10.0, record=True)
    was, code = {number: content(base.at(number)) for number in range(1, 7)}, -signal.SIGKILL
    for writes in range(1, 10):
        lake = Lake(tmp_path / f"killed{writes}")
        shutil.copytree(str(base.root), str(lake.root))
        code = subprocess.run(
            [sys.executable, str(WRITER), str(lake.root), "compact", str(writes)], timeout=60
        ).returncode
        compact(lake, NOW, 2)
        assert {number: content(lake.at(number)) for number in was} == was
        assert content(lake) == was[6]
        if code == 0:
            break
    assert (code, writes) == (0, 4)


def test_deliveries_of_a_killed_writer_survive_a_vacuum(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    write(lake, 3, 1, 10.0, record=True)
    write(lake, 4, 1, 10.0, record=False)
    vacuum(lake)
    with lake.writing() as draft:
        assert draft.read("raw_bars").height == 12
        draft.record(DAYS[4], "test", NOW)
    assert lake.read("raw_bars").height == 12
    assert lake.read("bars")["date"].max() == DAYS[3]


QLIB = """
import json, sys, warnings
warnings.simplefilter("ignore")
import qlib
from qlib.data import D
qlib.init(provider_uri=sys.argv[1], region="us", kernels=1, joblib_backend="threading", logging_level=50)
fields = ["$open", "$high", "$low", "$close", "$volume", "$vwap", "$factor", "$change", "Ref($close, 1)"]
rows = D.features(D.instruments("all"), fields).reset_index()
rows["datetime"] = rows["datetime"].dt.strftime("%Y-%m-%d")
rows.to_parquet(sys.argv[2])
print(json.dumps([D.list_instruments(D.instruments("big"), as_list=True), [str(d.date()) for d in D.calendar()]]))
"""


def test_qlib_itself_reads_the_bars_that_were_exported(lake: Lake, tmp_path: Path) -> None:
    heard: list[str] = []
    with heard_by(heard.append):
        done = export_qlib(lake, tmp_path / "qlib")
    assert "symbol 3 of 3" in heard
    asked = subprocess.run([sys.executable, "-c", QLIB, str(done.folder), str(tmp_path / "read.parquet")], capture_output=True, text=True, timeout=120)  # fmt: skip
    assert asked.returncode == 0, asked.stderr[-2000:]
    names, calendar = json.loads(asked.stdout.splitlines()[-1])
    assert (names, calendar) == (["GE"], [str(day) for day in DAYS[:40]])
    stored = lake.read("bars").with_columns(before=pl.col("adj_close").shift(1).over("symbol"))
    read = pl.read_parquet(tmp_path / "read.parquet").with_columns(pl.col("datetime").str.to_date())
    both = read.join(stored, left_on=["instrument", "datetime"], right_on=["symbol", "date"], how="left")
    assert both.height == 40 + 40 + 38
    for ours, theirs in [(f"adj_{n}", f"${n}") for n in ("open", "high", "low", "close", "volume", "vwap")]:
        np.testing.assert_array_equal(both[theirs].fill_null(float("nan")), both[ours].cast(pl.Float32).fill_null(float("nan")), ours)  # fmt: skip
    held = both.filter(pl.col("close").is_not_null())
    np.testing.assert_allclose(held["$factor"], held["adj_close"] / held["close"], rtol=1e-7)
    changes = held.filter(pl.col("before").is_not_null())
    np.testing.assert_allclose(changes["$change"], changes["adj_close"] / changes["before"] - 1, rtol=1e-5, atol=1e-7)
    assert json.loads((done.folder / "vintage.json").read_text())["vintage"] == lake.vintage()


def test_an_export_is_whole_or_not_there(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no bars to export"):
        export_qlib(lake, tmp_path / "qlib", symbols=["NOPE"])
    with pytest.raises(LakeError, match="run the ETL first"):
        export_parquet(lake, tmp_path / "plain", ("bars", "quarantine"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["lake"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(LakeError, match="is there already"):
        export_parquet(lake, tmp_path / "mine")
    other = Lake(tmp_path / "other")
    with other.writing() as draft:
        draft.merge("bars", bars(DAYS[:2], 1.0, ("BF.a", "BF.A")))
        draft.record(DAYS[1], "test", NOW)
    with pytest.raises(LakeError, match="upper and lower case"):
        export_qlib(other, tmp_path / "qlib")


def test_plain_files_hold_the_adjusted_bars_of_the_vintage(lake: Lake, tmp_path: Path) -> None:
    view = lake.adjusted("split")
    done = export_parquet(view, tmp_path / "years", ("bars", "adjustments"), by_year=True)
    parts = [pl.read_parquet(done.folder / "bars" / f"{year}.parquet") for year in (2023, 2024)]
    assert pl.concat(parts).sort("symbol", "date").equals(view.read("bars"))
    whole = export_parquet(view, tmp_path / "whole")
    assert pl.read_parquet(whole.folder / "bars.parquet").equals(view.read("bars"))
    assert whole.rows == view.read("bars").height
