"Qlib's published workflow and ours on the same real bars: the same samples and windows give the same model, tree by tree."

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from pipelines.benchmarks._qlib_case import CASES, Answer, Case, agreement, purged
from pipelines.benchmarks._qlib_ours import as_ours
from pipelines.benchmarks._qlib_ours import walked as walked_forward
from pipelines.benchmarks.qlib_workflow import answer, defaults, prepare
from tradenb.features.panel import Panel
from tradenb.models.splits import WalkForward, gap

CASE = replace(
    CASES["sp500_daily_2013_2018"],
    every=12,
    train=(date(2013, 2, 8), date(2014, 9, 30)),
    valid=(date(2014, 10, 1), date(2014, 12, 31)),
    test=(date(2015, 1, 1), date(2015, 8, 31)),
    rounds=80,
    threads=1,
)


@pytest.fixture(scope="module")
def folder(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Some forty members, as bars and as Qlib's store."
    home = tmp_path_factory.mktemp("workflow")
    prepare(CASE, home)
    return home


@pytest.fixture(scope="module")
def both(folder: Path) -> Callable[[Case], tuple[Answer, Answer]]:
    return lambda case: (answer("same", case, folder), answer("qlib", case, folder))


@pytest.mark.parametrize("patience", [0, 50], ids=["all trees", "stopped early"])
def test_both_make_the_same_of_the_same_bars(both: Callable[[Case], tuple[Answer, Answer]], patience: int) -> None:
    mine, his = both(replace(CASE, early_stopping=patience))
    found = agreement(mine, his)
    assert found["unpaired"] == 0
    assert mine.trees == his.trees if patience else mine.trees > 50
    assert found["corr"] > 0.999999
    assert found["distance"] < 1e-6
    assert found["ic_gap"] < 5e-5 and found["rank_ic_gap"] < 5e-5


def test_our_own_recipe_is_judged_on_the_same_sessions_once_or_walked_forward(folder: Path) -> None:
    walk = WalkForward(train=252, valid=42, test=63)
    config = replace(defaults(), walk=walk, rounds=10, early_stopping=10, min_rounds=10)
    bars = pl.read_parquet(folder / "bars.parquet")
    once, walked = as_ours(CASE, bars, config), walked_forward(CASE, bars, config)
    days = walked.predictions["date"].unique().sort()
    assert days[0] == date(2015, 1, 2) and days[-1] == date(2015, 8, 31)
    assert walked.daily.height == days.len() - 2  # the newest labels are not known yet
    assert once.predictions.select("date", "symbol").equals(walked.predictions.select("date", "symbol"))


def test_windows_that_are_purged_leave_what_labels_and_features_ask_for(folder: Path) -> None:
    dates = Panel.from_bars(pl.read_parquet(folder / "bars.parquet"), adjusted=False).dates
    touching, walk = CASE.fold(dates), WalkForward()
    cut = purged(touching, walk)
    assert touching.train.stop == touching.valid.start and touching.valid.stop == touching.test.start
    assert cut.valid.start - cut.train.stop == cut.test.start - cut.valid.stop == gap(walk)
    assert cut.train.start == 60 and cut.test == touching.test
