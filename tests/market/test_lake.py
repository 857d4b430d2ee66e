"The lake stores facts and derives the rest, shows readers whole vintages only, and lets none of them become unreadable."

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.core.errors import DataError, InputError, LakeError
from tradenb.market.actions import ACTION_SCHEMA, BAR_COLUMNS, adjust, place_events
from tradenb.market.lake import Draft, Lake
from tradenb.market.tables import TABLES
from tradenb.market.versions import files_of

DAYS = [date(2023, 12, 28), date(2023, 12, 29), date(2024, 1, 2), date(2024, 1, 3)]
NOW = datetime(2024, 1, 4, 12, tzinfo=UTC)
PRICES = ("open", "high", "low", "close")
quick = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def bars(closes: dict[tuple[str, date], float]) -> pl.DataFrame:
    rows = [{"symbol": s, "date": d, **dict.fromkeys(PRICES, c), "volume": 10} for (s, d), c in closes.items()]
    return pl.DataFrame(rows, schema=TABLES["bars"].schema)


def raw(rows: pl.DataFrame, at: datetime) -> pl.DataFrame:
    return rows.with_columns(pl.lit("vendor").alias("source"), pl.lit(at).alias("ingested_at"))


@contextmanager
def writing(lake: Lake, as_of: date = DAYS[-1]) -> Iterator[Draft]:
    "Write, and record."
    with lake.writing(5) as draft:
        yield draft
        draft.record(as_of, "test", NOW)


keys = st.tuples(st.sampled_from(["A", "B", "C"]), st.sampled_from(DAYS))
steps = st.lists(
    st.tuples(st.dictionaries(keys, st.sampled_from([1.0, 2.0]), max_size=5), st.sets(keys, max_size=3)), max_size=5
)


@quick
@given(steps)
def test_merging_is_an_upsert_and_writes_only_when_something_changed(
    tmp_path_factory: pytest.TempPathFactory, steps: list
) -> None:
    lake, model = Lake(tmp_path_factory.mktemp("lake")), {}
    with writing(lake) as draft:
        draft.merge("bars", bars({}))
    for rows, gone in steps:
        before, kept = dict(model), lake.vintage()
        model = {k: v for k, v in model.items() if k not in gone} | rows
        remove = pl.DataFrame(sorted(gone), schema={"symbol": pl.String, "date": pl.Date}, orient="row")
        with writing(lake) as draft:
            written = draft.merge("bars", bars(rows), remove)
        assert written.changed == (model != before)
        assert (lake.vintage() == kept) == (model == before)
        assert lake.read("bars").select("symbol", "date", "close").rows() == [(*k, v) for k, v in sorted(model.items())]


WEEKS = sessions(date(2023, 11, 1), date(2024, 2, 29))
events = st.lists(
    st.tuples(
        st.sampled_from(["A", "B", "C"]),
        st.sampled_from(WEEKS),
        st.sampled_from([("dividend", 1.0, 0.7), ("split", 3.0, 0.0), ("split", 0.1, 0.0), ("stock_dividend", 1.05, 0.0)]),
    ),
    max_size=8,
)  # fmt: skip


def market(silent: set[date]) -> pl.DataFrame:
    close = {"A": 31.07, "B": 47.11, "C": 12.9}
    made = bars({(s, d): c + 0.01 * i for s, c in close.items() for i, d in enumerate(WEEKS) if s != "B" or d not in silent})  # fmt: skip
    return made.with_columns(vwap=pl.when(pl.col("symbol") != "C").then(pl.col("close") * 0.999))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    events=events,
    silent=st.sets(st.sampled_from(WEEKS), max_size=20),
    adjustment=st.sampled_from(["total_return", "split"]),
    convention=st.sampled_from(["prev_close", "ex_close"]),
    as_of=st.sampled_from([None, *WEEKS[5::9]]),
    days=st.tuples(st.sampled_from(WEEKS), st.sampled_from(WEEKS)),
    columns=st.lists(st.sampled_from(BAR_COLUMNS), min_size=1, unique=True),
)
def test_adjusted_bars_are_those_of_the_pure_functions_bit_for_bit_in_frames_and_in_sql(
    tmp_path_factory: pytest.TempPathFactory, events, silent, adjustment, convention, as_of, days, columns
) -> None:
    told = [{"symbol": s, "ex_date": d, "kind": k, "ratio": r, "cash": c} for s, d, (k, r, c) in events]
    actions = pl.DataFrame(told, schema=ACTION_SCHEMA).unique(["symbol", "ex_date", "kind"])
    rows, plain = market(silent), Lake(tmp_path_factory.mktemp("lake"))
    with writing(plain) as draft:
        draft.merge("bars", rows)
        draft.merge("adjustments", place_events(actions, rows))
    lake = plain.adjusted(adjustment, convention, as_of)
    expected = adjust(rows, actions, adjustment, convention, as_of or date.max)
    assert lake.read("bars").equals(expected)
    assert lake.sql("select * exclude (year) from bars order by symbol, date").equals(expected)
    start, end = sorted(days)
    part = expected.filter(pl.col("date").is_between(start, end), pl.col("symbol") != "A").select(columns)
    assert lake.read("bars", start, end, ["B", "C"], columns).equals(part)


def test_an_ex_date_adds_a_row_and_rewrites_no_bar(tmp_path: Path) -> None:
    lake, rows = Lake(tmp_path), market(set())
    with writing(lake) as draft:
        draft.merge("bars", rows)
    before, files = lake.latest(), set(lake.open("bars").file_uris())
    paid = {"symbol": "A", "ex_date": WEEKS[-1], "kind": "dividend", "ratio": 1.0, "cash": 0.5}
    with writing(lake) as draft:
        placed = place_events(pl.DataFrame([paid], schema=ACTION_SCHEMA), rows)
        assert draft.merge("adjustments", placed).inserted == 1
    assert set(lake.open("bars").file_uris()) == files
    assert lake.vintage()["bars"] == before.vintage()["bars"]
    assert lake.read("bars", symbols=["A"])["adj_close"][0] < before.read("bars", symbols=["A"])["adj_close"][0]


def test_what_could_not_be_read_is_not_recorded(tmp_path: Path) -> None:
    lake, rows = Lake(tmp_path), market(set())
    with writing(lake) as draft:
        draft.merge("bars", rows)
    before = lake.vintages()
    paid = {"symbol": "A", "ex_date": WEEKS[-1], "kind": "dividend", "ratio": 1.0, "cash": 99.0}
    with lake.writing() as draft:
        draft.merge("adjustments", place_events(pl.DataFrame([paid], schema=ACTION_SCHEMA), rows))
        with pytest.raises(DataError, match="A 2024-02-29: cash 99"):
            draft.record(WEEKS[-1], "test", NOW)
    assert lake.vintages().equals(before)
    assert lake.read("bars").height == rows.height


def test_a_correction_rewrites_only_files_that_hold_its_days(tmp_path: Path) -> None:
    lake, rows = Lake(tmp_path), market(set())
    with writing(lake) as draft:
        for day in WEEKS:
            draft.merge("bars", rows.filter(pl.col("date") == day))
    before = set(files_of(lake.open("bars"))["path"])
    again = rows.filter(pl.col("date").is_in([WEEKS[-2], WEEKS[-30]])).with_columns(pl.col("volume") + 1)
    with writing(lake) as draft:
        assert draft.merge("bars", pl.concat([again, rows.filter(pl.col("date") == WEEKS[-9])])).updated == 6
    assert len(before - set(files_of(lake.open("bars"))["path"])) == 2


def test_every_vintage_reads_as_it_was_when_it_was_current(tmp_path: Path) -> None:
    lake, kept = Lake(tmp_path), []
    for number, value in enumerate((1.0, 2.0, 3.0)):
        with writing(lake, DAYS[number]) as draft:
            draft.merge("bars", bars({("A", DAYS[0]): value, ("B", DAYS[2]): 7.0}))
        kept.append((lake.vintage(), value))
    for number, (vintage, value) in enumerate(kept):
        for view in (lake.at(vintage), lake.at(number + 1), lake.known(DAYS[number])):
            assert view.read("bars", symbols=["A"])["close"].to_list() == [value]
        assert lake.sql("select close from bars where symbol = 'A'", vintage=vintage)["close"].to_list() == [value]
    assert lake.known(date(2030, 1, 1)).vintage() == lake.latest().vintage() == kept[-1][0]
    assert lake.vintages()["as_of"].to_list() == DAYS[:3]


def test_versions_stay_readable_through_many_commits_and_checkpoints(tmp_path: Path) -> None:
    lake, days = Lake(tmp_path), sessions(date(2023, 1, 3), date(2023, 12, 29))[:55]
    with lake.writing() as draft:
        for number, day in enumerate(days):
            draft.merge("bars", bars({("A", day): float(number + 1), ("A", days[0]): float(number + 1)}))
            draft.record(day, "test", NOW)
    assert list((tmp_path / "bars" / "_delta_log").glob("*.checkpoint.parquet"))
    config = lake.open("bars").metadata().configuration
    assert (config["delta.enableExpiredLogCleanup"], config["delta.logRetentionDuration"]) == ("false", "interval 36500 days")  # fmt: skip
    for number in (1, 2, 12, 13, 14, 25, 26, 27, 55):
        view = lake.at(number).read("bars")
        assert (len(view), view["close"][0]) == (number, float(number))


def test_what_is_not_recorded_is_not_seen_and_is_undone(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    with lake.writing() as draft:
        draft.append("raw_bars", raw(bars({("A", DAYS[0]): 1.0}), NOW))
        draft.merge("bars", bars({("A", DAYS[0]): 1.0}))
        assert draft.read("bars").height == 1
        assert lake.vintage() == {}
    with pytest.raises(LakeError, match="run the ETL first"):
        lake.read("bars")
    with writing(lake) as draft:
        assert (draft.read("bars").height, draft.read("raw_bars").height) == (0, 1)
        draft.merge("universe", pl.DataFrame(schema=TABLES["universe"].schema))
    assert lake.vintage() == {"raw_bars": 0, "universe": 0}


def test_a_writer_that_changes_nothing_after_an_undone_one_records_nothing(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    with writing(lake) as draft:
        draft.merge("bars", bars({("A", DAYS[0]): 1.0}))
    before = lake.vintages()
    with lake.writing() as draft:
        draft.merge("bars", bars({("A", DAYS[0]): 2.0}))
    for _ in range(2):
        with writing(lake) as draft:
            assert not draft.merge("bars", bars({("A", DAYS[0]): 1.0})).changed
    assert lake.vintages().equals(before)
    with writing(lake) as draft:
        draft.merge("bars", bars({("A", DAYS[0]): 2.0}))
        assert draft.record(None, "test", NOW) == draft.record(None, "test", NOW)
    assert lake.vintages()["as_of"].to_list() == [DAYS[-1]] * 2


def test_tables_of_a_former_shape_start_over(tmp_path: Path) -> None:
    import deltalake

    deltalake.write_deltalake(tmp_path / "bars", pl.DataFrame({"symbol": ["A"], "adj_close": [1.0], "year": [2024]}))
    assert Lake(tmp_path).vintage() == {}
    with writing(Lake(tmp_path)) as draft:
        assert draft.read("bars").is_empty()
        draft.merge("bars", bars({("A", DAYS[0]): 1.0}))
    assert Lake(tmp_path).read("bars")["adj_close"].to_list() == [1.0]


def test_late_corrections_are_listed_with_what_was_and_when_it_changed(tmp_path: Path) -> None:
    lake, later = Lake(tmp_path), NOW + timedelta(days=1)
    first = bars({("A", DAYS[0]): 1.0, ("A", DAYS[1]): 1.5, ("B", DAYS[0]): 5.0})
    again = bars({("A", DAYS[0]): 1.25}).with_columns(
        pl.lit(11, pl.Int64).alias("volume"), open=1.0, high=1.25, low=1.0
    )
    with writing(lake) as draft:
        draft.append("raw_bars", raw(first, NOW))
        draft.append("raw_bars", raw(again, later))
        draft.append("raw_bars", raw(again.with_columns(vwap=pl.lit(1.1)), later + timedelta(days=1)))
    told = lake.revisions().select("field", "before", "after", "seen_at").rows()
    assert told == [
        ("close", 1.0, 1.25, later),
        ("high", 1.0, 1.25, later),
        ("volume", 10.0, 11.0, later),
        ("vwap", None, 1.1, later + timedelta(days=1)),
    ]
    assert lake.revisions(symbols=["B"]).is_empty()
    assert lake.revisions(start=DAYS[1]).is_empty()
    assert lake.sql("select close from raw_latest order by symbol, date")["close"].to_list() == [1.25, 1.5, 5.0]


def test_sql_keeps_instants_in_utc_and_knows_empty_tables_and_the_book(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    with writing(lake) as draft:
        draft.append("raw_bars", raw(bars({("A", DAYS[0]): 1.0}), NOW))
        draft.merge("universe", pl.DataFrame(schema=TABLES["universe"].schema))
        draft.merge("bars", bars({}))
    assert lake.sql("select ingested_at from raw_bars").rows() == [(NOW,)]
    assert lake.sql("select count(*) as n from universe").rows() == [(0,)]
    assert lake.sql("select count(*) as n from bars where adj_close > 0").rows() == [(0,)]
    assert lake.sql("select number, as_of from vintages").rows() == [(1, DAYS[-1])]


@pytest.mark.parametrize(
    "query",
    ["drop table bars", "create table t as select 1", "select 1; select 2", "", "copy (select 1) to '{here}/x.csv'", "set threads=1",
     "explain analyze copy (select 1) to '{here}/x.csv'", "copy (pivot (select 1 a, 2 b) on a using sum(b)) to '{here}/x.csv'", "attach '{here}/x.db'"],
)  # fmt: skip
def test_sql_that_does_anything_but_ask_is_refused(tmp_path: Path, query: str) -> None:
    with pytest.raises(LakeError, match="expected one SELECT") as caught:
        Lake(tmp_path).sql(query.format(here=tmp_path))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_rows_that_lack_parts_of_their_key_can_be_kept_changed_and_dropped(tmp_path: Path) -> None:
    lake, at = Lake(tmp_path), {"found_at": pl.Datetime("us", "UTC")}
    row = {"symbol": "A", "date": DAYS[0], "check": "missing", "reason": "no close", "found_at": NOW}
    rows = pl.DataFrame([row, row | {"symbol": "B", "date": None}], schema_overrides=at)
    rows = rows.with_columns(pl.lit(None, pl.Float64).alias(c) for c in (*PRICES, "volume"))
    with writing(lake) as draft:
        assert draft.merge("quarantine", rows).inserted == 2
        assert not draft.merge("quarantine", rows).changed
        assert draft.merge("quarantine", rows.with_columns(pl.lit("none").alias("reason"))).updated == 2
        assert draft.merge("quarantine", rows.clear(), draft.read("quarantine", symbols=["B"])).removed == 1
    assert lake.read("quarantine").select("symbol", "reason").rows() == [("A", "none")]


BAD = pl.DataFrame({"symbol": ["A"], "date": DAYS[:1], **{price: ["dear"] for price in PRICES}, "volume": [1]})


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda lake, draft: Lake("/nowhere").read("bars"), "run the ETL first"),
        (lambda lake, draft: lake.read("prices"), "its tables are"),
        (lambda lake, draft: lake.at({"bars": 3}).read("bars"), "never written"),
        (lambda lake, draft: lake.at(7), "there is no vintage 7"),
        (lambda lake, draft: lake.known(date(1999, 1, 4)), "knew nothing on 1999-01-04"),
        (lambda lake, draft: lake.at({}).writing().__enter__(), "read only"),
        (lambda lake, draft: lake.sql("selec 1"), "the query failed"),
        (lambda lake, draft: draft.record(None, "test", NOW), "say up to which session"),
        (lambda lake, draft: draft.merge("bars", pl.DataFrame({"symbol": ["A"]})), "lack date"),
        (lambda lake, draft: draft.merge("bars", BAD), "do not fit"),
        (lambda lake, draft: draft.merge("bars", bars({("A", DAYS[0]): 1.0}).vstack(bars({("A", DAYS[0]): 2.0}))), "a key twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(tmp_path: Path, act: object, says: str) -> None:
    lake = Lake(tmp_path)
    with lake.writing() as draft:
        draft.merge("bars", bars({}))
        with pytest.raises(LakeError, match=says) as caught:
            act(lake, draft)  # type: ignore[operator]
    assert "\n" not in str(caught.value)


WRITER = Path(__file__).with_name("lake_writer.py")
_spec = importlib.util.spec_from_file_location("lake_writer", WRITER)
assert _spec is not None and _spec.loader is not None
writer = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(writer)


def picture(lake: Lake) -> dict[str, list[tuple]]:
    return {table: lake.read(table).rows() for table in lake.vintage()}


def test_a_writer_killed_after_any_of_its_writes_has_done_nothing_and_the_next_one_does_it_all(tmp_path: Path) -> None:
    base, whole = Lake(tmp_path / "base"), Lake(tmp_path / "whole")
    writer.work(base, writer.SECOND, writer.FIRST)
    shutil.copytree(str(base.root), str(whole.root))
    writer.work(whole, writer.THIRD, writer.SECOND)
    before, after, outcomes = picture(base), picture(whole), []
    for writes in range(1, 20):
        lake = Lake(tmp_path / f"killed{writes}")
        shutil.copytree(str(base.root), str(lake.root))
        done = subprocess.run([sys.executable, str(WRITER), str(lake.root), "day", str(writes)], timeout=60)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        outcomes.append(picture(lake))
        writer.work(lake, writer.THIRD, writer.SECOND)
        assert picture(lake) == after
        assert picture(lake.at(1)) == before
        assert lake.vintages().height == 2
    assert outcomes == [before] * 6 + [after]


def test_a_reader_of_a_busy_lake_sees_whole_days_only(tmp_path: Path) -> None:
    "And a writer killed at any moment leaves the last one."
    lake = Lake(tmp_path / "lake")
    for wait in (0.0, 0.03, 0.07):
        process = subprocess.Popen([sys.executable, "-c", BUSY, str(lake.root)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
            view = lake.latest()
            assert view.read("bars")["volume"].unique().to_list() == view.read("raw_bars")["volume"].tail(1).to_list()
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        view = lake.latest()
        assert view.read("bars").height == 20_000
        assert view.read("bars")["volume"].unique().to_list() == view.read("raw_bars")["volume"].tail(1).to_list()


BUSY = """
import sys, polars as pl
from datetime import date, datetime, timedelta, UTC
from tradenb.market.lake import Lake
lake, start = Lake(sys.argv[1]), datetime(2024, 1, 2, tzinfo=UTC)
prices = dict.fromkeys(("open", "high", "low", "close"), pl.lit(1.0))
rows = pl.DataFrame({"symbol": [f"S{i:05d}" for i in range(20_000)]}).with_columns(date=pl.lit(date(2024, 1, 2)), **prices)
first = lake.vintages().height
for tag in range(first + 1, first + 1000):
    with lake.writing() as draft:
        one = rows.with_columns(volume=pl.lit(tag))
        draft.merge("bars", one)
        draft.append("raw_bars", one.head(1).with_columns(date=start.date() + timedelta(days=tag), source=pl.lit("x"), ingested_at=start))
        draft.record(date(2024, 1, 2), "test", start)
    print(tag, flush=True)
"""


def test_a_second_writer_waits_and_is_told_who_writes_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    holder = subprocess.Popen([sys.executable, str(WRITER), str(tmp_path), "hold"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LakeError, match=rf"process {holder.pid} since 2\d{{3}}-.* waited 0.2 s"), lake.writing(0.2):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with lake.writing(0.2) as draft:
        assert draft.vintage() == {}


def test_a_cell_of_sql_asks_the_lake_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.setenv("TRADENB_CORE__ROOT", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    lake = Lake(tmp_path / "lake")
    for number, close in enumerate((1.0, 2.0)):
        with writing(lake, DAYS[number]) as draft:
            draft.merge("bars", bars({("A", DAYS[0]): close}))
    shell = InteractiveShell()
    shell.run_cell("%load_ext tradenb.market.sql").raise_error()
    closes = [
        shell.run_cell(f"%%sql {options}\nselect close from bars").result
        for options in ("", "--vintage 1", f"--as-of {DAYS[0]}")
    ]
    assert [answer.item() for answer in closes] == [2.0, 1.0, 1.0]
    shell.run_cell("%%sql --into kept\nselect adj_close from bars").raise_error()
    assert shell.user_ns["kept"].item() == 2.0
    with pytest.raises(InputError, match="YYYY-MM-DD"):
        shell.run_cell("%%sql --as-of soon\nselect 1").raise_error()


def test_a_damaged_file_of_a_table_is_named_as_such(tmp_path):
    lake = Lake(tmp_path / "lake")
    bars = pl.DataFrame(
        {
            "symbol": ["A"],
            "date": [date(2024, 1, 2)],
            "open": [1.0],
            "high": [1.0],
            "low": [1.0],
            "close": [1.0],
            "volume": [5],
        }
    )
    with lake.writing() as draft:
        draft.merge("bars", bars.with_columns(vwap=pl.lit(None, pl.Float64)))
        draft.record(date(2024, 1, 2), "test", datetime(2024, 1, 2, 22, tzinfo=UTC))
    for file in (tmp_path / "lake" / "bars").rglob("*.parquet"):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(LakeError, match="table bars cannot be read"):
        lake.read("bars")
