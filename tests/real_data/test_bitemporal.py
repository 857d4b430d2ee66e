"Two years of a vendor that revises: every day's vintage reads back exactly as it was delivered that day. All of it: make bench BENCH=bitemporal."

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipelines.benchmarks.bitemporal import (
    DELIVERED,
    SETTINGS,
    Evenings,
    exact,
    good_of,
    ingest,
    known_by,
    read_back,
    read_evenings,
)
from tradenb.core.settings import Settings
from tradenb.market.etl import EtlReport
from tradenb.market.lake import Lake

STRETCH = slice(120, 145)  # sessions of September and October 2015


@pytest.fixture(scope="module")
def evenings(real_data: Path) -> Evenings:
    return read_evenings(real_data)


@pytest.fixture
def taken_in(
    evenings: Evenings, make_settings: Callable[..., Settings], tmp_path: Path
) -> tuple[Lake, list[EtlReport]]:
    lake = Lake(tmp_path / "lake")
    reports = ingest(make_settings(**SETTINGS), evenings, lake, evenings.days[STRETCH])
    return lake, [report for report in reports if report is not None]


def test_each_days_vintage_reads_back_as_delivered_and_every_revision_is_counted_and_listed(
    evenings: Evenings, taken_in: tuple[Lake, list[EtlReport]]
) -> None:
    (lake, reports), days = taken_in, evenings.days[STRETCH]
    for day, report in zip(days, reports, strict=True):
        assert exact(lake, evenings, day, day)
        then, whole = lake.at(report.vintage), known_by(evenings, days[0], day)
        assert read_back(then).equals(whole)
        assert then.read("bars", columns=DELIVERED).equals(good_of(then, whole))
    told = evenings.rows.filter(pl.col("evening").is_between(days[0], days[-1]))
    listed = lake.revisions()
    for field in ("volume", "close"):
        twice = told.group_by("symbol", "date").agg(pl.col(field).n_unique()).filter(pl.col(field) > 1)
        found = listed.filter(field=field).select("symbol", "date").unique()
        assert found.sort("symbol", "date").equals(twice.select("symbol", "date").sort("symbol", "date"))
    assert listed.filter(field="volume").height > 100
    assert sum(report.counts["revised"] for report in reports) == listed.select("symbol", "date").n_unique()
