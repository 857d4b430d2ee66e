"""Look-ahead on real bars: Qlib's sets know nothing of the future, whatever the file has of gaps and late listings."""

import os
from pathlib import Path

import polars as pl
import pytest

from tradenb.features.labels import label_expression
from tradenb.features.leaks import leak_check
from tradenb.features.panel import Panel
from tradenb.features.sets import FeatureSet, feature_set

FOLDER = Path(os.environ.get("TRADENB_REAL_DATA", Path(__file__).parents[2] / "../shared/data"))
FILE = FOLDER / "sp500_daily_2013_2018.parquet"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"no real data in {FOLDER}: set TRADENB_REAL_DATA")


@pytest.fixture(scope="module")
def panel() -> Panel:
    "Every twentieth member."
    bars = pl.read_parquet(FILE)
    chosen = bars["symbol"].unique().sort().gather_every(20)
    prices = bars.filter(pl.col("symbol").is_in(chosen.to_list())).with_columns(vwap=pl.lit(None, pl.Float64))
    return Panel.from_bars(prices, adjusted=False)


@pytest.mark.parametrize("name", ["alpha158", "alpha360"])
def test_no_feature_of_qlibs_sets_changes_with_the_future(panel: Panel, name: str) -> None:
    report = leak_check(panel, feature_set(name), cuts=4)
    assert report.clean and report.agree, report


def test_one_leaking_feature_among_158_is_found(panel: Panel) -> None:
    hidden = feature_set("alpha158").expressions | {"CORV": "Corr($close, Log(Ref($volume,-1)+1), 20)"}
    report = leak_check(panel, FeatureSet.of("hidden", hidden), cuts=2)
    assert report.leaking == ("CORV",) and report.agree
    assert report.leaks[0].parts == ("Ref($volume,-1)",)


def test_the_label_looks_ahead_as_it_should(panel: Panel) -> None:
    report = leak_check(panel, FeatureSet.of("label", {"LABEL": label_expression(5)}), cuts=2)
    assert report.leaking == ("LABEL",) and report.agree
