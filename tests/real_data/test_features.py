"""Features on real bars: pyqlib's values, and one day equal to the batch, with all the defects that real files have."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tradenb.features.engine import FeatureBlock, compute
from tradenb.features.oracle import disagreement, qlib_alpha158, qlib_alpha360, qlib_values, write_store
from tradenb.features.panel import Panel
from tradenb.features.sets import feature_set

FOLDER = Path(os.environ.get("TRADENB_REAL_DATA", Path(__file__).parents[2] / "../shared/data"))
FILE = FOLDER / "sp500_daily_2013_2018.parquet"
FSET = feature_set("alpha158")
pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"no real data in {FOLDER}: set TRADENB_REAL_DATA")


@pytest.fixture(scope="module")
def panel() -> Panel:
    "A hundred members, with listings inside the period and the file's missing fields."
    bars = pl.read_parquet(FILE)
    chosen = bars["symbol"].unique().sort().gather_every(5)[:100]
    prices = bars.filter(pl.col("symbol").is_in(chosen.to_list())).with_columns(vwap=pl.lit(None, pl.Float64))
    return Panel.from_bars(prices, adjusted=False)


@pytest.fixture(scope="module")
def batch(panel: Panel) -> FeatureBlock:
    return compute(panel, FSET)


@pytest.fixture(scope="module")
def store(panel: Panel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(panel, tmp_path_factory.mktemp("qlib"))


def test_alpha158_is_pyqlib_s(panel: Panel, batch: FeatureBlock, store: Path) -> None:
    found = disagreement(batch.values, qlib_values(panel, store, qlib_alpha158()))
    assert found["missing"] == found["infinite"] == 0, found
    assert found["relative"] < 1e-5, found
    assert found["bits"] < 1e-4 * found["cells"], found


@pytest.mark.long
def test_alpha360_is_pyqlib_s_to_the_bit(panel: Panel, store: Path) -> None:
    theirs = qlib_values(panel, store, qlib_alpha360())
    np.testing.assert_array_equal(compute(panel, feature_set("alpha360")).values, theirs)


def test_one_day_is_the_batch_bit_for_bit(panel: Panel, batch: FeatureBlock) -> None:
    for t in range(60, panel.shape[1], 97):
        day = panel.until(panel.dates[t]).tail(FSET.halo + 1)
        alone = compute(day, FSET, start=day.dates[-1])
        assert alone.values.tobytes() == np.ascontiguousarray(batch.values[:, :, t]).tobytes()
