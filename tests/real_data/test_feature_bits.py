"Real bars, both built-in sets: in whatever pieces, order, engine or place they are computed, the same bytes."

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from distributed import LocalCluster
from numpy.typing import NDArray

from tradenb.features import compiled
from tradenb.features.cluster import compute_on
from tradenb.features.engine import FeatureBlock, compute
from tradenb.features.panel import Panel, panels
from tradenb.features.sets import FeatureSet, feature_set
from tradenb.features.stream import scan, stream

FOLDER = Path(os.environ.get("TRADENB_REAL_DATA", Path(__file__).parents[2] / "../shared/data"))
FILE = FOLDER / "sp500_daily_2013_2018.parquet"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"no real data in {FOLDER}: set TRADENB_REAL_DATA")


def digest(values: NDArray) -> str:
    return sha256(np.ascontiguousarray(values).view(np.uint8).data).hexdigest()


@pytest.fixture(scope="module")
def bars() -> pl.DataFrame:
    bars = pl.read_parquet(FILE).with_columns(vwap=pl.lit(None, pl.Float64))
    return bars.filter(pl.col("symbol").is_in(bars["symbol"].unique().sort().gather_every(8).to_list()))


@pytest.fixture(scope="module")
def panel(bars: pl.DataFrame) -> Panel:
    return Panel.from_bars(bars, adjusted=False)


@pytest.fixture(scope="module", params=["alpha158", "alpha360"])
def fset(request: pytest.FixtureRequest) -> FeatureSet:
    return feature_set(request.param)


@pytest.fixture(scope="module")
def batch(panel: Panel, fset: FeatureSet) -> FeatureBlock:
    return compute(panel, fset, engine="numpy", threads=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as cluster:
        yield cluster


def test_by_compiled_code(panel: Panel, fset: FeatureSet, batch: FeatureBlock) -> None:
    if compiled.load() is None:
        pytest.skip("no kernels are compiled here")
    assert digest(compute(panel, fset, engine="numba").values) == digest(batch.values)


def test_in_pieces_from_the_last_to_the_first(panel: Panel, fset: FeatureSet, batch: FeatureBlock) -> None:
    values = np.empty_like(batch.values)
    for at in reversed(range(0, panel.shape[0], 7)):
        rows = slice(at, at + 7)
        values[:, rows] = compute(panel.select(panel.symbols[rows]), fset).values
    assert digest(values) == digest(batch.values)


def test_day_by_day_from_the_halo_alone(panel: Panel, fset: FeatureSet, batch: FeatureBlock) -> None:
    for t in range(fset.halo or 0, panel.shape[1], 149):
        day = panel.until(panel.dates[t]).tail((fset.halo or 0) + 1)
        assert digest(compute(day, fset, start=day.dates[-1]).values[:, :, 0]) == digest(batch.values[:, :, t])


def test_on_two_worker_processes(panel: Panel, fset: FeatureSet, batch: FeatureBlock, cluster: LocalCluster) -> None:
    there = compute_on(cluster.scheduler_address, panel, fset, symbols_per_chunk=11)
    assert digest(there.values) == digest(batch.values)


def test_streamed_to_files_and_read_back(
    bars: pl.DataFrame, panel: Panel, fset: FeatureSet, batch: FeatureBlock, tmp_path: Path
) -> None:
    bars.sort("date").write_parquet(tmp_path / "bars.parquet")
    groups = panels(tmp_path / "bars.parquet", 16, sessions=panel.dates, adjusted=False)
    report = stream(groups, fset, tmp_path / "features", 5)
    read, whole = scan(tmp_path / "features").collect(), batch.frame()
    assert read.select("symbol", "date").equals(whole.select("symbol", "date"))
    for name in fset.names:
        assert read[name].to_numpy().tobytes() == whole[name].to_numpy().tobytes(), name
    assert report.rows == panel.traded.sum()
