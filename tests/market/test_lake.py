"The lake keeps every version whole, writes only what changed, and answers SQL about any of them."

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.core.errors import LakeError
from tradenb.market.lake import TABLES, Lake

DAYS = [date(2023, 12, 28), date(2023, 12, 29), date(2024, 1, 2), date(2024, 1, 3)]


def bars(rows: dict[tuple[str, date], float]) -> pl.DataFrame:
    numbers = [name for name, kind in TABLES["bars"].schema.items() if kind == pl.Float64 and name != "vwap"]
    return pl.DataFrame(
        [{"symbol": s, "date": d, "volume": 1} | dict.fromkeys(numbers, value) for (s, d), value in rows.items()],
        schema=TABLES["bars"].schema,
    )


BAD = {"symbol": "A", "date": DAYS[0], "close": "dear"}

keys = st.tuples(st.sampled_from(["A", "B", "C"]), st.sampled_from(DAYS))
steps = st.lists(
    st.tuples(st.dictionaries(keys, st.sampled_from([1.0, 2.0]), max_size=5), st.sets(keys, max_size=3)), max_size=5
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_merging_is_an_upsert_and_makes_a_version_only_when_something_changed(
    tmp_path_factory: pytest.TempPathFactory, steps: list
) -> None:
    lake, model = Lake(tmp_path_factory.mktemp("lake")), {}
    lake.merge("bars", bars({}))
    for rows, gone in steps:
        version, before = lake.version("bars"), dict(model)
        model = {k: v for k, v in model.items() if k not in gone} | rows
        remove = pl.DataFrame(sorted(gone), schema={"symbol": pl.String, "date": pl.Date}, orient="row")
        written = lake.merge("bars", bars(rows), remove)
        assert written.changed == (model != before)
        assert written.version == version + written.changed
        assert lake.read("bars").select("symbol", "date", "close").rows() == [(*k, v) for k, v in sorted(model.items())]


def test_every_vintage_reads_as_it_was_when_it_was_current(tmp_path: Path) -> None:
    lake, kept = Lake(tmp_path), []
    for value in (1.0, 2.0, 3.0):
        lake.merge("bars", bars({("A", DAYS[0]): value, ("B", DAYS[2]): 7.0}))
        kept.append((lake.vintage(), value))
    for vintage, value in kept:
        assert lake.at(vintage).read("bars", symbols=["A"])["close"].to_list() == [value]
        assert lake.sql("select close from bars where symbol = 'A'", vintage=vintage)["close"].to_list() == [value]


def test_sql_keeps_instants_in_utc_and_knows_empty_tables(tmp_path: Path) -> None:
    lake, at = Lake(tmp_path), datetime(2024, 1, 2, 22, 0, tzinfo=UTC)
    raw = bars({("A", DAYS[0]): 1.0}).with_columns(pl.lit("x").alias("source"), pl.lit(at).alias("ingested_at"))
    lake.append("raw_bars", raw.select(list(TABLES["raw_bars"].schema)))
    lake.merge("universe", pl.DataFrame(schema=TABLES["universe"].schema))
    assert lake.sql("select ingested_at from raw_bars").rows() == [(at,)]
    assert lake.sql("select count(*) as n from universe").rows() == [(0,)]


def test_rows_that_lack_parts_of_their_key_can_be_kept_and_found_again(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    row = {
        "symbol": "A",
        "date": DAYS[0],
        "check": "missing",
        "reason": "no close",
        "found_at": datetime(2024, 1, 2, tzinfo=UTC),
    }
    rows = pl.DataFrame([row], schema_overrides={"found_at": pl.Datetime("us", "UTC")})
    rows = rows.with_columns(pl.lit(None, pl.Float64).alias(c) for c in ("open", "high", "low", "close", "volume"))
    assert lake.merge("quarantine", rows).inserted == 1
    assert not lake.merge("quarantine", rows).changed


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda lake: lake.read("bars"), "run the ETL first"),
        (lambda lake: lake.read("prices"), "its tables are"),
        (lambda lake: lake.at({"bars": 3}).read("bars"), "never written"),
        (lambda lake: lake.at({}).append("bars", bars({})), "read only"),
        (lambda lake: lake.sql("selec 1"), "the query failed"),
        (lambda lake: lake.merge("bars", pl.DataFrame({"symbol": ["A"]})), "lack date"),
        (lambda lake: lake.merge("bars", bars({}).cast({"close": pl.String}).vstack(pl.DataFrame([BAD], schema=bars({}).cast({"close": pl.String}).schema))), "do not fit"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(tmp_path: Path, act: object, says: str) -> None:
    with pytest.raises(LakeError, match=says) as caught:
        act(Lake(tmp_path))  # type: ignore[operator]
    assert "\n" not in str(caught.value)


WRITER = """
import sys, polars as pl
from datetime import date
from tradenb.market.lake import Lake, TABLES
lake = Lake(sys.argv[1])
numbers = {n: pl.lit(0.0) for n, k in TABLES["bars"].schema.items() if k == pl.Float64}
keys = pl.DataFrame({"symbol": [f"S{i:05d}" for i in range(40_000)]})
for tag in range(1, 10_000):
    rows = keys.with_columns(pl.lit(date(2024, 1, 2)).alias("date"), pl.lit(tag).alias("volume"), **numbers)
    lake.merge("bars", rows)
    print(tag, flush=True)
"""


def test_a_killed_writer_leaves_the_last_good_version(tmp_path: Path) -> None:
    for wait in (0.02, 0.07, 0.11):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "lake")], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        said = [int(writer.stdout.readline()) for _ in range(2)]
        time.sleep(wait)
        os.kill(writer.pid, signal.SIGKILL)
        said += [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        left = Lake(tmp_path / "lake").read("bars")
        assert len(left) == 40_000
        assert left["volume"].n_unique() == 1
        assert left["volume"][0] in (said[-1], said[-1] + 1)
