"The recipe on real prices: it runs, it repeats, and it finds no more than real markets have."

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from tradenb.features.panel import Panel
from tradenb.features.sets import feature_set
from tradenb.models.splits import WalkForward
from tradenb.models.training import TrainingConfig, TrainingResult, train

RECIPE = TrainingConfig(
    WalkForward(train=252, valid=63, test=126, warmup=60),
    rounds=60,
    early_stopping=20,
    min_rounds=20,
    threads=1,
    top_n=10,
    bottom_n=10,
)


@pytest.fixture(scope="module")
def panel(real_data: Path) -> Panel:
    "Every eighth member of the S&P 500, split-adjusted, 2013 to 2018."
    bars = pl.read_parquet(real_data / "sp500_daily_2013_2018.parquet").drop_nulls()
    some = bars["symbol"].unique().sort().gather_every(8).to_list()
    bars = bars.filter(pl.col("symbol").is_in(some)).with_columns(vwap=pl.lit(None, pl.Float64))
    return Panel.from_bars(bars, adjusted=False)


@pytest.fixture(scope="module")
def result(panel: Panel) -> TrainingResult:
    return train(panel, feature_set("alpha158"), RECIPE)


def test_five_real_years_give_a_record_without_gaps_and_without_a_miracle(panel, result):
    "A daily rank IC beyond 0.05 over years of large US stocks would be a leak, not a discovery."
    assert result.predictions["date"].unique().sort().to_list() == panel.dates[result.folds[0].test.start :].tolist()
    assert abs(result.metrics["rank_ic"]) < 0.05
    assert result.fold_metrics["trees"].min() >= RECIPE.min_rounds


def test_the_rank_coefficients_are_scipys(result):
    known = result.predictions.drop_nulls()
    for day, value in result.ic.select("date", "rank_ic").gather_every(50).rows():
        one = known.filter(pl.col("date") == day)
        assert value == pytest.approx(stats.spearmanr(one["prediction"], one["label"])[0], abs=1e-12)


def test_a_peek_at_the_label_would_be_seen(panel, result):
    "Shifting the prices by the label's reach plants a leak, and the record shows it at once: the quiet record above means something."
    known = np.where(panel.listed, np.roll(panel.fields["vwap"], -2, axis=1), np.float32(np.nan))
    peek = panel.fields | {"vwap": known}
    leaky = train(replace(panel, fields=peek), feature_set("alpha158"), RECIPE)
    assert leaky.metrics["rank_ic"] > 0.2
