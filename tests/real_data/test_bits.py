"""Both of Qlib's sets on a hundred real stocks: the same bytes in one go, evening by evening, in pieces and from other processes."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from distributed import LocalCluster

from tradenb.features import engine as module
from tradenb.features.engine import FeatureBlock, compute
from tradenb.features.panel import Panel, panels
from tradenb.features.sets import FeatureSet, feature_set
from tradenb.features.stream import scan, stream

FOLDER = Path(os.environ.get("TRADENB_REAL_DATA", Path(__file__).parents[2] / "../shared/data"))
FILE = FOLDER / "sp500_daily_2013_2018.parquet"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"no real data in {FOLDER}: set TRADENB_REAL_DATA")


@pytest.fixture(scope="module")
def prices() -> pl.DataFrame:
    "A hundred members, with listings inside the period and the file's missing fields."
    bars = pl.read_parquet(FILE)
    chosen = bars["symbol"].unique().sort().gather_every(5)[:100]
    return bars.filter(pl.col("symbol").is_in(chosen.to_list())).with_columns(vwap=pl.lit(None, pl.Float64))


@pytest.fixture(scope="module")
def panel(prices: pl.DataFrame) -> Panel:
    return Panel.from_bars(prices, adjusted=False)


@pytest.fixture(scope="module", params=["alpha158", "alpha360"])
def fset(request: pytest.FixtureRequest) -> FeatureSet:
    return feature_set(request.param)


@pytest.fixture(scope="module")
def batch(panel: Panel, fset: FeatureSet) -> FeatureBlock:
    block = compute(panel, fset, engine="numba")
    assert block.values.shape == (len(fset.names), 100, 1259)
    assert np.isfinite(block.values).mean() > 0.9
    return block


def same(one: np.ndarray, other: np.ndarray) -> bool:
    "Byte by byte."
    return np.array_equal(np.ascontiguousarray(one).view("u4"), np.ascontiguousarray(other).view("u4"))


def test_numpy_gives_the_bytes_of_the_kernels(panel: Panel, fset: FeatureSet, batch: FeatureBlock) -> None:
    assert same(compute(panel, fset, engine="numpy").values, batch.values)


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_a_day_from_the_last_bars_is_the_batch(
    panel: Panel, fset: FeatureSet, batch: FeatureBlock, engine: str
) -> None:
    sessions = panel.shape[1]
    for t in sorted({*range(sessions - 30, sessions), *range(0, sessions, 97)}):
        day = panel.sessions_between(0, t + 1).tail(fset.halo + 1)
        alone = compute(day, fset, start=day.dates[-1], engine=engine)
        assert same(alone.values, batch.values[:, :, t : t + 1]), day.dates[-1]


@pytest.mark.parametrize("bars", [1_259, 10_000, 10**9])
def test_pieces_of_any_size_and_order_are_the_batch(
    panel: Panel, fset: FeatureSet, batch: FeatureBlock, bars: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = module.chunks
    monkeypatch.setattr(module, "CHUNK_BARS", dict.fromkeys(module.CHUNK_BARS, bars))
    assert same(compute(panel, fset, threads=2).values, batch.values)
    monkeypatch.setattr(module, "chunks", lambda *of: whole(*of)[::-1])
    assert same(compute(panel, fset, threads=2).values, batch.values)


def test_symbols_backwards_are_the_batch(panel: Panel, fset: FeatureSet, batch: FeatureBlock) -> None:
    backwards = Panel(
        panel.symbols[::-1], panel.dates, {f: x[::-1] for f, x in panel.fields.items()}, panel.listed[::-1]
    )
    assert same(compute(backwards, fset).values[:, ::-1], batch.values)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    ours = {"n_workers": 2, "processes": True, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**ours, silence_logs=50) as cluster:
        yield cluster


def test_two_worker_processes_give_the_batch(
    panel: Panel, fset: FeatureSet, batch: FeatureBlock, cluster: LocalCluster
) -> None:
    assert same(compute(panel, fset, scheduler=cluster.scheduler_address).values, batch.values)


def test_what_is_streamed_to_files_is_the_batch(
    prices: pl.DataFrame, panel: Panel, fset: FeatureSet, batch: FeatureBlock, tmp_path: Path
) -> None:
    prices.sort("date").write_parquet(tmp_path / "bars.parquet")
    groups = panels(tmp_path / "bars.parquet", 16, sessions=panel.dates, adjusted=False)
    report = stream(groups, fset, tmp_path / "features", 5)
    read, whole = scan(tmp_path / "features").collect(), batch.frame()
    assert read.select("symbol", "date").equals(whole.select("symbol", "date"))
    for name in fset.names:
        assert read[name].to_numpy().tobytes() == whole[name].to_numpy().tobytes(), name
    assert report.rows == panel.traded.sum()
