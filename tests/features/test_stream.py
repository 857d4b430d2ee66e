"Streamed features: the values of one computation in memory, in files that are whole or not there."

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.core.errors import DataError, InputError
from tradenb.core.progress import heard_by
from tradenb.features.engine import Engine, compute
from tradenb.features.panel import Panel, panels, random_panel
from tradenb.features.sets import feature_set
from tradenb.features.stream import COMPLETE, in_order, scan, stream

FSET = feature_set("alpha158")
MARKET = random_panel(23, 120, seed=4, suspended=0.02)
WHOLE = compute(MARKET, FSET).frame()
SLOWLY = """
import sys, time
from tradenb.features.panel import random_panel
from tradenb.features.sets import feature_set
from tradenb.features.stream import stream
def slowly():
    market = random_panel(23, 120, seed=4, suspended=0.02)
    for n, symbol in enumerate(market.symbols):
        if n == 9:
            print("begun", flush=True)
            time.sleep(300)
        yield market.select([symbol])
stream(slowly, feature_set("alpha158"), sys.argv[1], 1)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock" and path.name != ".lock")


def killed_on_the_way(to: Path) -> None:
    "Start a stream in a process of its own and kill it after some pieces."
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, str(to)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"begun\n"
    for _ in range(1200):
        if not to.is_dir() or len(list(to.glob("part-*.parquet"))) >= 4:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunk=st.integers(1, 30), threads=st.integers(1, 3), one_file=st.booleans())
def test_pieces_of_any_size_hold_the_same_values(tmp_path: Path, chunk: int, threads: int, one_file: bool) -> None:
    to = tmp_path / ("all.parquet" if one_file else "all")
    report = stream(MARKET, FSET, to, chunk, threads=threads)
    assert scan(to).collect().equals(WHOLE, null_equal=True)
    assert (report.symbols, report.rows) == (23, WHOLE.height)
    assert report.peak > 0


def test_any_source_will_do(tmp_path: Path) -> None:
    MARKET.frame().write_parquet(tmp_path / "bars.parquet")
    options = {"sessions": MARKET.dates, "adjusted": False}
    sources = [
        panels(tmp_path / "bars.parquet", 7, **options),
        lambda: panels(tmp_path / "bars.parquet", 5, **options),
        [MARKET.select(MARKET.symbols[:9]), MARKET.select(MARKET.symbols[9:])],
    ]
    for n, source in enumerate(sources):
        stream(source, FSET, tmp_path / str(n), 4)
        assert scan(tmp_path / str(n)).collect().equals(WHOLE, null_equal=True)


def test_the_lake_s_bars_come_from_a_path_on_the_exchange_s_own_sessions(tmp_path: Path) -> None:
    days = pl.date_range(pl.date(2024, 1, 2), pl.date(2024, 1, 5), eager=True)
    prices = {f"adj_{f}": 5.0 for f in ("open", "high", "low", "close", "volume", "vwap")}
    bars = pl.DataFrame({"symbol": "A", "date": days} | prices).select("symbol", "date", *prices)
    bars.write_parquet(tmp_path / "bars.parquet")
    assert stream(tmp_path / "bars.parquet", FSET, tmp_path / "out").rows == 4


def test_values_from_a_day_on_are_the_same_values(tmp_path: Path) -> None:
    day = MARKET.dates[100].item()
    stream(MARKET, FSET, tmp_path / "late", 5, start=day)
    assert scan(tmp_path / "late").collect().equals(WHOLE.filter(pl.col("date") >= day), null_equal=True)


def test_a_killed_run_leaves_whole_pieces_and_a_repeated_one_uses_them(tmp_path: Path) -> None:
    killed_on_the_way(tmp_path / "out")
    there = [n for n in names(tmp_path / "out") if n.startswith("part")]
    assert 4 <= len(there) < 23
    with pytest.raises(DataError, match="not complete"):
        scan(tmp_path / "out")
    report = stream(MARKET, FSET, tmp_path / "out", 1)
    assert report.reused >= 4
    assert scan(tmp_path / "out").collect().equals(WHOLE, null_equal=True)
    assert len(names(tmp_path / "out")) == 23 + 1


def test_a_killed_run_leaves_the_former_file(tmp_path: Path) -> None:
    file = tmp_path / "all.parquet"
    stream(MARKET, FSET, file)
    before = file.read_bytes()
    killed_on_the_way(file)
    assert file.read_bytes() == before
    stream(MARKET, FSET, file)
    assert [n for n in names(tmp_path) if "unfinished" in n] == []


@pytest.mark.parametrize("harm", ["cut", "empty", "foreign"])
def test_a_damaged_piece_is_written_anew(tmp_path: Path, harm: str) -> None:
    stream(MARKET, FSET, tmp_path, 10)
    piece = tmp_path / "part-00001.parquet"
    whole = piece.read_bytes()
    piece.write_bytes({"cut": whole[: len(whole) // 2], "empty": b""}.get(harm, b""))
    if harm == "foreign":
        pl.DataFrame({"symbol": ["A"]}).write_parquet(piece)
    assert stream(MARKET, FSET, tmp_path, 10).reused == 2
    assert scan(tmp_path).collect().equals(WHOLE, null_equal=True)


def test_other_bars_another_start_or_other_pieces_are_never_taken_for_the_same(tmp_path: Path) -> None:
    assert stream(MARKET, FSET, tmp_path, 10).reused == 0
    assert stream(MARKET, FSET, tmp_path, 10).reused == 3
    assert stream(MARKET, FSET, tmp_path, 10, start=MARKET.dates[3]).reused == 0
    assert stream(MARKET, FSET, tmp_path, 4).reused == 0
    assert stream(MARKET, FSET, tmp_path, 10).reused == 0
    assert names(tmp_path) == [COMPLETE, "part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    (tmp_path / "notes.txt").write_text("mine")
    stream(MARKET.until(MARKET.dates[50]), FSET, tmp_path, 10)
    assert json.loads((tmp_path / COMPLETE).read_text())["hash"] == FSET.hash
    assert (tmp_path / "notes.txt").exists()


def test_an_error_on_the_way_comes_out_and_leaves_no_half_file(tmp_path: Path) -> None:
    def broken() -> Iterator[Panel]:
        yield MARKET.select(MARKET.symbols[:5])
        raise DataError("the vendor's file ends in the middle")

    for to in (tmp_path / "out", tmp_path / "out.parquet"):
        with pytest.raises(DataError, match="ends in the middle"):
            stream(broken, FSET, to)
    assert not (tmp_path / "out.parquet").exists()
    assert not (tmp_path / "out" / COMPLETE).exists()
    assert [n for n in [*names(tmp_path), *names(tmp_path / "out")] if "unfinished" in n] == []


@pytest.mark.parametrize("source", [[], [MARKET.select([])]])
def test_nothing_to_compute_is_an_error(tmp_path: Path, source: list[Panel]) -> None:
    for to in (tmp_path / "out", tmp_path / "out.parquet"):
        with pytest.raises(DataError, match="no bars to compute features of"):
            stream(source, FSET, to)


def test_a_symbol_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="S0000 is in two panels"):
        stream([MARKET, MARKET], FSET, tmp_path / "out")


def test_a_second_run_into_the_same_place_is_refused(tmp_path: Path) -> None:
    def meanwhile() -> Iterator[Panel]:
        with pytest.raises(DataError, match="another run is writing"):
            stream(MARKET, FSET, tmp_path / "out")
        yield MARKET

    assert stream(meanwhile, FSET, tmp_path / "out").symbols == 23


def test_who_listens_hears_how_far_it_is(tmp_path: Path) -> None:
    said: list[str] = []
    with heard_by(said.append):
        stream(MARKET, FSET, tmp_path / "out", 10)
    assert said == ["Features: 10 symbols", "Features: 20 symbols", "Features: 23 symbols"]


def test_jobs_are_drawn_only_as_far_ahead_as_there_are_workers() -> None:
    drawn: list[int] = []

    def jobs() -> Iterator:
        for n in range(20):
            drawn.append(n)
            yield lambda n=n: n

    for done, n in enumerate(in_order(jobs(), workers=2)):
        assert n == done
        assert len(drawn) - done <= 3


def test_missing_values_stay_nan_and_floats_stay_32_bits(tmp_path: Path) -> None:
    stream(MARKET, FSET, tmp_path / "all.parquet")
    read = pl.read_parquet(tmp_path / "all.parquet")
    assert read.schema == {"symbol": pl.String, "date": pl.Date} | dict.fromkeys(FSET.names, pl.Float32)
    assert sum(read.null_count().row(0)) == 0
    assert np.isnan(read["STD5"].to_numpy()).any()


@pytest.mark.parametrize("engine", ["numpy", "auto"])
def test_either_engine_writes_the_same_files(tmp_path: Path, engine: Engine) -> None:
    report = stream(MARKET, FSET, tmp_path / engine, 5, engine=engine)
    assert scan(tmp_path / engine).collect().equals(WHOLE, null_equal=True)
    assert stream(MARKET, FSET, tmp_path / engine, 5).reused == len(report.files)
