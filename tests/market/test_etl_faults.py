"An ETL that is killed, that runs twice at once, or that finds the disk full: readers keep the last vintage, and the next ETL ends as if nothing had been."

import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import date
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tradenb.core.calendar import next_session, sessions
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.errors import LakeError
from tradenb.core.settings import Settings, load
from tradenb.market import versions
from tradenb.market.catalog import open_source
from tradenb.market.etl import EtlReport, run_etl
from tradenb.market.lake import Lake, open_lake
from tradenb.market.quality import sample_bars
from tradenb.market.tables import TABLES

DAYS = sessions(date(2023, 12, 1), date(2024, 1, 31))
TODAY, YESTERDAY = DAYS[-1], DAYS[-2]
SIZE = ["symbol", "date", "open", "high", "low", "close", "volume"]
STAMPS = ("ingested_at", "found_at")
EACH = int(os.environ.get("TRADENB_TEST_EACH_WRITE", "3"))  # 1: killed before every write, 3: before every third
COLUMNS = ("symbol", "ex_date", "kind", "ratio", "cash")


def bars(evening: date) -> pl.DataFrame:
    "What the vendor has on an evening: on the second one a close of last week is corrected, a row is bad, and a symbol is new."
    rows = sample_bars(DAYS, symbols=8, seed=3).select(SIZE).filter(pl.col("date") <= evening)
    if evening < TODAY:
        return rows.filter(pl.col("symbol") != "S007")
    corrected = (pl.col("symbol") == "S002") & (pl.col("date") == DAYS[-6])
    bad = (pl.col("symbol") == "S003") & (pl.col("date") == TODAY)
    return rows.with_columns(
        pl.when(corrected).then(pl.col("close") * 1.001).otherwise("close").alias("close"),
        pl.when(bad).then(-1).otherwise("volume").alias("volume"),
    )


def events(evening: date) -> pl.DataFrame:
    "A dividend that is taken back, one that goes ex today, and one that is heard of late."
    first = [("S001", DAYS[10], "dividend", 1.0, 0.5), ("S004", TODAY, "dividend", 1.0, 0.3)]
    second = [("S004", TODAY, "dividend", 1.0, 0.3), ("S005", DAYS[12], "split", 2.0, 0.0)]
    return pl.DataFrame(first if evening < TODAY else second, schema=COLUMNS, orient="row")


def settings_of(root: Path, **overrides: object) -> Settings:
    files = {"files.bars": str(root / "bars.parquet"), "files.actions": str(root / "actions.parquet")}
    return load({"core.root": str(root), "market.source": "files"} | files | overrides, env={})


def evening(root: Path, day: date, **overrides: object) -> EtlReport:
    "The vendor's files of a day, and the ETL of the morning after."
    root.mkdir(exist_ok=True)
    bars(day).write_parquet(root / "bars.parquet")
    events(day).write_parquet(root / "actions.parquet")
    settings, clock = settings_of(root, **overrides), SimulatedClock(new_york(next_session(day), 8))
    return run_etl(settings, open_source(settings), open_lake(settings), day, clock)


def content(lake: Lake) -> dict[str, pl.DataFrame]:
    "All that a reader sees, the times of arrival left out."
    there = [table for table in TABLES if lake.exists(table)]
    return {table: lake.read(table).drop(STAMPS, strict=False) for table in there}


def same(one: dict[str, pl.DataFrame], other: dict[str, pl.DataFrame]) -> bool:
    return one.keys() == other.keys() and all(one[table].equals(other[table]) for table in one)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A lake as of yesterday."
    root = tmp_path_factory.mktemp("faults") / "base"
    evening(root, YESTERDAY)
    return root


@pytest.fixture(scope="module")
def undisturbed(base: Path) -> Callable[[bool], dict[str, pl.DataFrame]]:
    "What today's lake is when nothing goes wrong: after yesterday's, and as the first one."
    root = shutil.copytree(base, base.parent / "undisturbed")
    evening(root, TODAY)
    evening(base.parent / "first", TODAY)
    return lambda first: content(open_lake(settings_of(base.parent / "first" if first else root)))


# A process of its own, imports done: it is told when to die


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["great_expectations", "tradenb.market.etl", "tradenb.market.catalog", "deltalake"])

    def run(**given: object) -> Any:
        whole = {"init_globals": {"GIVEN": given}, "run_name": "__etl__"}
        process = context.Process(target=runpy.run_path, args=(__file__,), kwargs=whole)
        process.start()
        return process

    yield run
    forkserver._forkserver._stop()


def ended(process: Any) -> int:
    process.join(60)
    assert process.exitcode is not None, "the ETL hangs"
    return process.exitcode


def die_at(write: int) -> None:
    "Let the process die of SIGKILL before its `write`-th commit, counted from 0."
    commit = versions.commit
    done: list[str] = []

    def mortal(path: str, rows: pl.DataFrame, **how: Any) -> None:
        if len(done) == write:
            os.kill(os.getpid(), signal.SIGKILL)
        commit(path, rows, **how)
        done.append(path)

    versions.commit = mortal


def writes_of(root: Path, day: date) -> list[str]:
    "The tables that an ETL commits to, in order, as their logs tell by their times."
    before = set((root / "lake").glob("*/_delta_log/*.json"))
    evening(root, day)
    new = [path for path in (root / "lake").glob("*/_delta_log/*.json") if path not in before]
    return [path.parts[-3] for path in sorted(new, key=lambda path: path.stat().st_mtime_ns)]


@pytest.mark.parametrize("first", [False, True], ids=["a later day", "the first day"])
def test_killed_before_any_write_the_last_vintage_stands_and_the_next_run_ends_as_an_undisturbed_one(
    base: Path, undisturbed: Callable[[bool], dict], start: Callable[..., Any], tmp_path: Path, first: bool
) -> None:
    def fresh(name: str) -> Path:
        return tmp_path / name if first else shutil.copytree(base, tmp_path / name)

    tables = writes_of(fresh("counted"), TODAY)
    assert {*TABLES, "vintages"} <= {*tables}
    last, goal = content(open_lake(settings_of(fresh("last")))), undisturbed(first)
    processes = [(fresh(f"killed{write}"), write) for write in range(int(first), len(tables), EACH)]
    for root, write in processes:
        assert ended(start(root=root, die_at=write)) == -signal.SIGKILL, f"write {write} of {tables}"
        assert same(content(open_lake(settings_of(root))), last), f"killed before write {write} of {tables}"
        evening(root, TODAY)
        assert same(content(open_lake(settings_of(root))), goal), f"finished after write {write} of {tables}"
        assert open_lake(settings_of(root)).revisions().height == (0 if first else 1)


@pytest.mark.long
def test_killed_again_and_again_it_still_ends_as_an_undisturbed_one(
    base: Path, undisturbed: Callable[[bool], dict], start: Callable[..., Any], tmp_path: Path
) -> None:
    root = shutil.copytree(base, tmp_path / "often")
    last = content(open_lake(settings_of(root)))
    for write in (3, 1, 4, 2):
        assert ended(start(root=root, die_at=write)) == -signal.SIGKILL
        assert same(content(open_lake(settings_of(root))), last)
    evening(root, TODAY)
    assert same(content(open_lake(settings_of(root))), undisturbed(False))


def test_two_at_once_take_turns_and_nothing_is_torn(
    base: Path, undisturbed: Callable[[bool], dict], start: Callable[..., Any], tmp_path: Path
) -> None:
    root = shutil.copytree(base, tmp_path / "both")
    processes = [start(root=root) for _ in range(2)]
    assert [ended(process) for process in processes] == [0, 0]
    assert same(content(open_lake(settings_of(root))), undisturbed(False))
    assert len(open_lake(settings_of(root)).vintages()) == 2


def test_one_that_has_waited_too_long_is_told_who_is_at_work(
    base: Path, start: Callable[..., Any], tmp_path: Path
) -> None:
    root = shutil.copytree(base, tmp_path / "busy")
    said = tmp_path / "said"
    with open_lake(settings_of(root)).writing():
        assert ended(start(root=root, said=said, overrides={"lake.lock_timeout_s": 0.2})) == LakeError("").exit_code
    assert f"is being written by process {os.getpid()} since" in said.read_text()
    assert "waited 0.2 s" in said.read_text()


@pytest.mark.parametrize("most", [1500, *(pytest.param(most, marks=pytest.mark.long) for most in (300, 3000, 5000))])
def test_a_full_disk_is_a_clear_error_and_the_last_vintage_stands(
    base: Path, undisturbed: Callable[[bool], dict], start: Callable[..., Any], tmp_path: Path, most: int
) -> None:
    root, said = shutil.copytree(base, tmp_path / "full"), tmp_path / "said"
    last = content(open_lake(settings_of(root)))
    assert ended(start(root=root, said=said, largest_file=most)) == LakeError("").exit_code
    assert said.read_text().count("\n") == 0
    assert "cannot be written" in said.read_text()
    assert same(content(open_lake(settings_of(root))), last)
    evening(root, TODAY)
    assert same(content(open_lake(settings_of(root))), undisturbed(False))


def main(root: Path, die_at: int | None = None, said: Path | None = None, largest_file: int | None = None, overrides: dict | None = None) -> None:  # fmt: skip
    "Today's ETL in a process of its own."
    if die_at is not None:
        globals()["die_at"](die_at)
    root.mkdir(exist_ok=True)
    bars(TODAY).write_parquet(root / "bars.parquet")
    events(TODAY).write_parquet(root / "actions.parquet")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, unlimited[1]))
    settings = settings_of(root, **(overrides or {}))
    clock = SimulatedClock(new_york(next_session(TODAY), 8))
    try:
        run_etl(settings, open_source(settings), open_lake(settings), TODAY, clock)
    except LakeError as error:
        if said is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
            said.write_text(str(error))
        sys.exit(error.exit_code)


if __name__ == "__etl__":
    main(**GIVEN)  # type: ignore[name-defined]  # noqa: F821
