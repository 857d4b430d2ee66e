"What both sides of the workflow are given, bars, windows and LightGBM's parameters, and what each gives back."

import os
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tradenb.features.panel import Panel
from tradenb.market.actions import adjust
from tradenb.models.regressors import FIXED
from tradenb.models.splits import Fold, WalkForward, Window, gap
from tradenb.models.training import TrainingConfig

from .gate import Delivery, delivery

Days = tuple[date, date]  # first and last, both inside
SEED = 7
EVERY = int(os.environ.get("TRADENB_BENCH_EVERY", 1))


@dataclass(frozen=True)
class Case:
    "A file and three windows. They touch, as those of Qlib's examples do: nothing is purged."

    file: str
    train: Days
    valid: Days
    test: Days
    every: int = EVERY  # of so many symbols, one is taken
    rounds: int = 1000
    early_stopping: int = 50  # 0: all trees
    threads: int = 2

    @property
    def windows(self) -> dict[str, Days]:
        return {"train": self.train, "valid": self.valid, "test": self.test}

    def fold(self, dates: np.ndarray) -> Fold:
        "The windows as positions among sessions."
        edge = lambda day, side: int(np.searchsorted(dates, np.datetime64(day, "D"), side))
        return Fold(1, *(Window(edge(first, "left"), edge(last, "right")) for first, last in self.windows.values()))


# Windows of proportions like those of Qlib's examples: seven years, two, three and a half.
CASES = {
    "sp500_daily_2013_2018": Case(
        "sp500_daily_2013_2018",
        (date(2013, 2, 8), date(2015, 12, 31)), (date(2016, 1, 1), date(2016, 9, 30)), (date(2016, 10, 1), date(2018, 2, 7)),
    ),
    "sp_raw_adj_1998_2014": Case(
        "sp_raw_adj_1998_2014",
        (date(1998, 1, 2), date(2006, 12, 31)), (date(2007, 1, 1), date(2009, 12, 31)), (date(2010, 1, 1), date(2014, 3, 28)),
    ),
}  # fmt: skip

# examples/benchmarks/LightGBM/workflow_config_lightgbm_Alpha158.yaml; subsample without subsample_freq samples nothing.
PUBLISHED: dict[str, Any] = {
    "colsample_bytree": 0.8879, "learning_rate": 0.2, "subsample": 0.8789, "lambda_l1": 205.6999, "lambda_l2": 580.9768,
    "max_depth": 8, "num_leaves": 210,
}  # fmt: skip


def theirs(case: Case) -> dict[str, Any]:
    "Qlib's published parameters, and those of ours that make LightGBM repeat itself."
    kept = {
        name: value for name, value in FIXED.items() if name not in ("objective", "metric", "verbosity", "bagging_freq")
    }
    return PUBLISHED | kept | {"seed": SEED, "num_threads": case.threads}


def ours(case: Case) -> TrainingConfig:
    "The same recipe in our words."
    return TrainingConfig(
        target="zscore", rounds=case.rounds, early_stopping=case.early_stopping, min_rounds=1 if case.early_stopping else case.rounds, learning_rate=0.2, num_leaves=210,
        max_depth=8, min_data_in_leaf=20, feature_fraction=0.8879, bagging_fraction=1.0, lambda_l1=205.6999, lambda_l2=580.9768,
        threads=case.threads, seed=SEED,
    )  # fmt: skip


def purged(fold: Fold, walk: WalkForward, halo: int = 60) -> Fold:
    "The windows without the sessions whose features are not full yet, or whose labels reach into the next window."
    short = lambda window: Window(max(window.start, halo), window.stop - gap(walk))
    return replace(fold, train=short(fold.train), valid=short(fold.valid))


def begun(
    walk: WalkForward,
    test_start: int,  # the session on which the first test window is to begin
    halo: int = 60,  # sessions before the first full feature window
) -> WalkForward:
    "The plan on less history: a rolling training window as long as there is room for, an expanding one from the first full features on."
    room = test_start - walk.valid - 2 * gap(walk) - halo
    train = min(walk.train, room) if walk.scheme == "rolling" else room
    return replace(walk, train=train, warmup=halo + room - train)


def bars(case: Case) -> pl.DataFrame:  # symbol, date, open, high, low, close, volume, vwap
    "The file's rows that the gate lets pass, adjusted for splits: what both sides begin with."
    whole = delivery(case.file)
    chosen = pl.col("symbol").is_in(whole.rows["symbol"].unique().sort().gather_every(case.every).to_list())
    some = Delivery(whole.rows.filter(chosen), whole.actions.filter(chosen))
    good = some.gate().good.with_columns(vwap=pl.lit(None, pl.Float64))
    return Panel.from_bars(adjust(good, some.actions, "split", "prev_close")).frame()


@dataclass(frozen=True, eq=False)
class Answer:
    "What one side makes of a case."

    predictions: pl.DataFrame  # date, symbol, prediction, label (return, null unknown)
    daily: pl.DataFrame  # date, ic, rank_ic
    trees: float
    seconds: dict[str, float]  # by part of the work

    @property
    def whole(self) -> float:
        return sum(self.seconds.values())

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.predictions.write_parquet(folder / "predictions.parquet")
        self.daily.write_parquet(folder / "daily.parquet")
        pl.DataFrame({"trees": self.trees} | self.seconds).write_parquet(folder / "run.parquet")

    @classmethod
    def load(cls, folder: Path) -> "Answer":
        run = pl.read_parquet(folder / "run.parquet").row(0, named=True)
        read = lambda name: pl.read_parquet(folder / f"{name}.parquet")
        return cls(read("predictions"), read("daily"), run.pop("trees"), run)


def agreement(one: Answer, other: Answer) -> dict[str, float]:
    "How alike two answers are: rows that only one has, correlation and largest distance of predictions, distance of mean IC and rank IC."
    both = one.predictions.join(other.predictions, on=["date", "symbol"], how="inner", suffix="_other")
    mine, his = both["prediction"].to_numpy(), both["prediction_other"].to_numpy()
    means = [answer.daily.select(pl.col("ic", "rank_ic").fill_nan(None).mean()).row(0) for answer in (one, other)]
    return {
        "unpaired": len(one.predictions) + len(other.predictions) - 2 * len(both),
        "corr": float(np.corrcoef(mine, his)[0, 1]),
        "distance": float(np.abs(mine - his).max()),
        "ic_gap": abs(means[0][0] - means[1][0]),
        "rank_ic_gap": abs(means[0][1] - means[1][1]),
    }
