"The same predictions and terms through Qlib's executor and through ours: the same trades, the same money, and every difference accounted for."

import os
import subprocess
import sys
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tradenb.features.oracle import write_store
from tradenb.features.panel import Panel
from tradenb.portfolio.backtest import Backtest, Plan, backtest
from tradenb.portfolio.constructors import TopkDropout
from tradenb.portfolio.costs import Costs
from tradenb.portfolio.market import Market

BP = 1e-4
# Terms of Qlib's examples: 5 bp to buy, 15 bp to sell, 5 USD at least; 95 % of the cash is spent; any fraction of a share.
TERMS = Plan(
    TopkDropout(10, 2, sell_cost=0.0015),
    capital=Decimal(1_000_000),
    compounding=True,
    costs=Costs(buy_bps=5, sell_bps=15, min_commission=5),
    fractional=True,
    max_volume_share=0,
    sized_at="fill",
)


@pytest.fixture(scope="module", params=["as traded", "with suspensions"])
def panel(real_data: Path, request: pytest.FixtureRequest) -> Panel:
    "Sixty members of the S&P 500 in 2015 and 2016, split-adjusted; with days planted on which some do not trade."
    bars = pl.read_parquet(real_data / "sp500_daily_2013_2018.parquet").drop_nulls()
    some = bars["symbol"].unique().sort().gather_every(8).to_list()[:60]
    years = pl.col("date").is_between(date(2015, 1, 2), date(2016, 12, 30))
    bars = bars.filter(pl.col("symbol").is_in(some), years).with_columns(vwap=pl.lit(None, pl.Float64))
    plain = Panel.from_bars(bars, adjusted=False)
    return plain if request.param == "as traded" else suspended(plain, np.random.default_rng(9))


def suspended(panel: Panel, rng: np.random.Generator) -> Panel:
    "Two names at a time stop for some sessions. With more than `n_drop` held and unpredicted Qlib sells whichever a hash puts last."
    off, t = np.zeros(panel.shape, bool), 3
    while t < panel.shape[1] - 6:
        sessions = int(rng.integers(1, 4))
        off[rng.choice(len(panel.symbols), 2, replace=False), t : t + sessions] = True
        t += sessions
    return replace(panel, fields={k: np.where(off, np.float32(np.nan), x) for k, x in panel.fields.items()})


@pytest.fixture(scope="module")
def market(panel: Panel) -> Market:
    return Market.from_panel(panel)


@pytest.fixture(scope="module")
def predictions(market: Market) -> pl.DataFrame:
    "A signal that lasts some days, as one that is worth trading does."
    x = np.random.default_rng(5).normal(size=market.shape)
    for t in range(1, x.shape[1]):
        x[:, t] = 0.9 * x[:, t - 1] + 0.19**0.5 * x[:, t]
    i, t = np.nonzero(np.isfinite(market.close))
    names = pl.Series(market.symbols).gather(pl.Series(i))
    return pl.DataFrame({"date": pl.Series(market.dates[t]).cast(pl.Date), "symbol": names, "prediction": x[i, t]})


@pytest.fixture(scope="module")
def theirs(
    panel: Panel, market: Market, predictions: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pl.DataFrame, pl.DataFrame]:
    "Qlib's report (date, account, net return) and its positions (date, symbol, shares)."
    folder = tmp_path_factory.mktemp("qlib")
    write_store(panel, folder / "store")
    signal = predictions.select(
        datetime=pl.col("date").cast(pl.Datetime("ns")), instrument="symbol", prediction="prediction"
    )
    signal.write_parquet(folder / "predictions.parquet")
    script = Path(__file__).with_name("qlib_executor.py")
    fixed = {**os.environ, "PYTHONHASHSEED": "0"}  # its order lists come from sets
    subprocess.run([sys.executable, str(script), str(folder), str(market.dates[-2])], env=fixed, check=True, capture_output=True)  # fmt: skip
    report = pl.read_parquet(folder / "report.parquet").select(
        pl.col("datetime").cast(pl.Date).alias("date"), "account", net_return=pl.col("return") - pl.col("cost")
    )
    positions = pl.read_parquet(folder / "positions.parquet").with_columns(pl.col("date").cast(pl.Date))
    return report, positions


@pytest.fixture(scope="module")
def ours(market: Market, predictions: pl.DataFrame) -> Backtest:
    return backtest(predictions, market, TERMS)


def gap(ours: Backtest, theirs: pl.DataFrame) -> np.ndarray:
    both = ours.daily.join(theirs, on="date")
    assert both.height == theirs.height > 480
    return (both["return"] - both["net_return"]).to_numpy()


def test_daily_returns_are_those_of_qlibs_executor_to_a_hundredth_of_a_basis_point(ours, theirs):
    assert np.abs(gap(ours, theirs[0])).max() < 0.01 * BP
    last = ours.daily.join(theirs[0], on="date").tail(1)
    assert last["equity"][0] == pytest.approx(last["account"][0], rel=1e-6)


def test_the_same_shares_are_held_every_evening(ours, theirs):
    report, positions = theirs
    held = ours.positions.filter(pl.col("date") <= report["date"].max())
    both = held.join(
        positions.filter(pl.col("date") <= report["date"].max()), ["date", "symbol"], "full", suffix="_qlib"
    )
    assert both.null_count().sum_horizontal().item() == 0
    np.testing.assert_allclose(both["shares"], both["shares_qlib"], rtol=1e-4)


def test_what_remains_without_the_look_ahead_is_the_sizing_alone(ours, theirs, panel, market, predictions):
    "Qlib sizes a purchase at the close that it then pays. Sized at the close before, as one must, a position differs by the move of a day."
    honest = backtest(predictions, market, replace(TERMS, sized_at="last_close"))
    difference = gap(honest, theirs[0])
    explained = (honest.daily["return"] - ours.daily["return"]).to_numpy()[: len(difference)]
    assert np.abs(difference - explained).max() < 0.01 * BP
    if panel.traded.all():  # nobody was suspended: the same names are held, in amounts that differ by a day's move
        names = [b.positions.select("date", "symbol").sort("date", "symbol") for b in (honest, ours)]
        assert names[0].equals(names[1])
        assert np.abs(difference).mean() < 1 * BP
        moved = np.nanmax(np.abs(market.close[:, 1:] / market.close[:, :-1] - 1), axis=0)
        assert np.abs(difference).max() < 0.3 * (moved.max() ** 2)


def test_whole_shares_cost_less_than_a_basis_point_a_day(market, predictions, ours):
    whole = backtest(predictions, market, replace(TERMS, fractional=False))
    difference = (whole.daily["return"] - ours.daily["return"]).to_numpy()
    assert np.abs(difference).mean() < 0.1 * BP and np.abs(difference).max() < 1 * BP
