"One trial of the study: a recipe, walked forward in purged folds, judged out of sample before and after costs."

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.benchmarks._measure import cores
from pipelines.benchmarks._qlib_case import begun
from tradenb.models import metrics
from tradenb.models.performance import ratio, sharpe
from tradenb.models.regressors import LightGBM, Ridge
from tradenb.models.splits import Fold, WalkForward, Window, folds

from ._table import Table

COST_BPS = 5.0  # of the value traded, bought and sold alike
TOP = 20  # names held long, and as many short
HALO = 60  # sessions before the first full feature window
SEED = 7
STRIDES = (2.5, 5.0, 10.0, 20.0)  # trees × learning rate: where a booster is read off, beside its early stop


@dataclass(frozen=True)
class Recipe:
    "What is fitted, and when. The defaults are those of settings.ini before the study, but for `test` and `every`."

    model: str = "lightgbm"  # or ridge
    target: str = "rank"  # rank, zscore or return
    train: int = 504  # sessions; 0: all that came before
    valid: int = 63
    test: int = 252  # sessions until the next fit
    every: int = 2  # of so many symbols, one is learnt from
    learning_rate: float = 0.05
    num_leaves: int = 8
    max_depth: int = 0
    min_data_in_leaf: int = 500
    feature_fraction: float = 0.3
    bagging_fraction: float = 0.8
    lambda_l1: float = 0.0
    lambda_l2: float = 10.0
    ridge_alpha: float = 0.01
    rounds: int = 0  # trees grown; 0: ten strides
    patience: int = 40  # of the early stop

    @property
    def grown(self) -> int:
        "Trees."
        return self.rounds or round(10 / self.learning_rate)

    def trees(self) -> LightGBM:
        "What LightGBM is told; it is stopped here, not there."
        names = ("learning_rate", "num_leaves", "max_depth", "min_data_in_leaf", "feature_fraction", "bagging_fraction", "lambda_l1", "lambda_l2")  # fmt: skip
        return LightGBM(
            rounds=self.grown,
            also=(("bin_construct_sample_cnt", 50_000),),
            **{name: getattr(self, name) for name in names},
        )

    def __str__(self) -> str:
        windows = f"{self.target}, train {self.train or 'all'}, valid {self.valid}, test {self.test}"
        if self.model == "ridge":
            return f"ridge {self.ridge_alpha:g}; {windows}"
        return (
            f"rate {self.learning_rate:g}, leaves {self.num_leaves}, least {self.min_data_in_leaf}, features {self.feature_fraction:.2g}, "
            f"rows {self.bagging_fraction:g}, l1 {self.lambda_l1:g}, l2 {self.lambda_l2:g}; {windows}"
        )


Stops = dict[
    str, tuple[int, NDArray[np.float64]]
]  # where a model is read off → its trees, its predictions of the test window


def with_ridge(table: Table, fold: Fold, recipe: Recipe) -> Stops:
    "The line that trees have to beat."
    train, valid = (table.samples(window, recipe.target, recipe.every) for window in (fold.train, fold.valid))
    model = Ridge(recipe.ridge_alpha).fit(train, valid, SEED, 1)
    return {"": (0, model.predict(table.x[table.rows(fold.test)]))}


def with_trees(table: Table, fold: Fold, recipe: Recipe) -> Stops:
    "One booster, read off at its early stop and after fixed numbers of trees: trials at the price of one."
    import lightgbm

    train, valid = (table.samples(window, recipe.target, recipe.every) for window in (fold.train, fold.valid))
    told = recipe.trees().params(SEED, 1)
    data = lightgbm.Dataset(train.x, train.y, params=told)
    losses: dict[str, Any] = {}
    heard = [lightgbm.record_evaluation(losses)]
    grown = lightgbm.train(told, data, recipe.grown, [lightgbm.Dataset(valid.x, valid.y, reference=data)], ["valid"], callbacks=heard)  # fmt: skip
    stops = {"early": early_stop(losses["valid"]["l2"], recipe.patience)}
    counts = {f"stride {s:g}": round(s / recipe.learning_rate) for s in STRIDES}
    stops |= {name: count for name, count in counts.items() if count <= recipe.grown}
    return dict(read_off(grown, table.x[table.rows(fold.test)], stops))


def early_stop(losses: Sequence[float], patience: int, least: int = 20) -> int:
    "Trees of a booster that stops after `patience` trees without progress, but keeps at least `least`."
    best = 0
    for at, loss in enumerate(losses):
        if loss < losses[best]:
            best = at
        elif at - best >= patience:
            break
    return max(best + 1, min(least, len(losses)))


def read_off(booster: Any, x: NDArray, stops: dict[str, int]) -> Iterator[tuple[str, tuple[int, NDArray]]]:
    "Predictions of the first trees for several numbers of them; each tree is walked once."
    total, done = np.zeros(len(x)), 0
    for stop, trees in sorted(stops.items(), key=lambda item: item[1]):
        if trees > done:
            total = total + booster.predict(x, start_iteration=done, num_iteration=trees - done, num_threads=1)
        done = trees
        yield stop, (trees, total)


FIT: dict[str, Callable[[Table, Fold, Recipe], Stops]] = {"ridge": with_ridge, "lightgbm": with_trees}


def windows(recipe: Recipe, first: int, last: int) -> list[Fold]:
    "Purged folds whose tests cover the sessions from `first` to before `last`, however long the training window is."
    walk = WalkForward("rolling" if recipe.train else "expanding", recipe.train or 1, recipe.valid, recipe.test)
    return folds(begun(walk, first, HALO), last)


@dataclass(frozen=True)
class Trial:
    "What a recipe is worth, read off at one number of trees."

    stage: str
    recipe: Recipe
    stop: str
    trees: float  # mean over folds
    rank_ic: float  # mean over sessions
    rank_icir: float
    gross: float  # annualised Sharpe ratio of the long-short spread
    net: float  # the same after COST_BPS
    turnover: float
    sessions: int
    seconds: float  # of one core, all stops of the recipe together
    daily: dict[str, list[float]]  # rank_ic, gross and net by session

    @property
    def cost(self) -> float:
        "Seconds that this stop took."
        return self.seconds * self.trees / self.recipe.grown if self.trees else self.seconds

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def of(cls, line: str) -> "Trial":
        kept = json.loads(line)
        return cls(**kept | {"recipe": Recipe(**kept["recipe"])})

    def __str__(self) -> str:
        return (
            f"{self.stage:9} {self.stop:10} rank IC {self.rank_ic:.4f}, ICIR {self.rank_icir:.3f}, Sharpe {self.gross:5.2f}, after costs {self.net:5.2f}, "
            f"turnover {self.turnover:.2f}, {self.trees:4.0f} trees, {self.cost:4.0f} s: {self.recipe}"
        )


def judged(predictions: pl.DataFrame) -> dict[str, Any]:
    "Rank IC and the long-short spread before and after costs, as means and by session."
    ranks, spread = metrics.rank_ic(predictions), metrics.long_short_returns(predictions, TOP, TOP)
    turned = metrics.turnover(predictions, TOP, TOP)
    days = spread.select("date", "return").join(ranks, on="date").join(turned, on="date", how="left").sort("date")
    traded = 4 * pl.col("turnover").fill_null(0.5)  # what is new was bought, as much was sold, on both sides
    days = days.with_columns(net=pl.col("return") - traded * COST_BPS / 1e4)
    daily = {"rank_ic": days["rank_ic"], "gross": days["return"], "net": days["net"]}
    return {
        "rank_ic": ranks["rank_ic"].mean(), "rank_icir": ratio(ranks["rank_ic"]), "turnover": turned["turnover"].mean(),
        "gross": sharpe(days["return"]), "net": sharpe(days["net"]), "sessions": len(days),
        "daily": {name: [round(v, 7) for v in values.to_list()] for name, values in daily.items()},
    }  # fmt: skip


def tried(table: Table, recipe: Recipe, stage: str, first: int, last: int) -> list[Trial]:
    "Walk a recipe forward: a trial for each stop."
    parts: dict[str, list[tuple[int, NDArray]]] = {}
    plan, begun = windows(recipe, first, last), cores()
    for fold in plan:
        for stop, one in FIT[recipe.model](table, fold, recipe).items():
            parts.setdefault(stop, []).append(one)
    seconds, keys = cores() - begun, table.keys(Window(plan[0].test.start, plan[-1].test.stop))
    values = {stop: np.concatenate([predicted for _, predicted in found]) for stop, found in parts.items()}
    trees = {stop: float(np.mean([count for count, _ in found])) for stop, found in parts.items()}
    worth = {stop: judged(keys.with_columns(prediction=predicted)) for stop, predicted in values.items()}
    return [Trial(stage, recipe, stop, trees[stop], seconds=seconds, **worth[stop]) for stop in parts]
