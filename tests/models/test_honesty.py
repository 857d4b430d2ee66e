"What is there is found, what is not there is not found, and a peek at the answer is caught."

from dataclasses import replace
from datetime import date

import numpy as np
import polars as pl
import pytest

from tradenb.core.errors import ExpressionError
from tradenb.features.engine import FeatureBlock
from tradenb.features.labels import label_expression
from tradenb.features.leaks import leak_check
from tradenb.features.panel import Panel
from tradenb.features.sets import FeatureSet, feature_set
from tradenb.market.actions import adjust
from tradenb.market.demo import DemoMarket, simulate
from tradenb.models import metrics
from tradenb.models.splits import WalkForward
from tradenb.models.training import Steps, TrainingConfig, learnt, predict, prepared, sharing, train, verdict, walked

ALPHA158 = feature_set("alpha158")
SMALL = TrainingConfig(
    WalkForward(train=252, valid=42, test=126, warmup=60),
    rounds=40,
    early_stopping=10,
    min_rounds=10,
    min_data_in_leaf=200,
    threads=1,
    top_n=8,
    bottom_n=8,
)


def market(seed: int, strength: float) -> DemoMarket:
    "Three years of forty names."
    return simulate(40, date(2018, 1, 2), date(2020, 12, 31), seed=seed, strength=strength, bad_rows=0)


def panel_of(demo: DemoMarket) -> Panel:
    return Panel.from_bars(adjust(demo.truth, demo.actions, "total_return", "prev_close"))


def test_on_the_demo_market_the_recipe_reaches_four_fifths_of_what_the_oracle_knows():
    "The oracle knows every name's expected return; both are judged on the same names and sessions, after purged folds."
    demo = simulate(bad_rows=0)
    result = train(panel_of(demo), ALPHA158, TrainingConfig(WalkForward(warmup=60), threads=1))
    both = result.predictions.join(demo.oracle, on=["symbol", "date"])
    ours = metrics.rank_ic(both)["rank_ic"].mean()
    oracle = metrics.rank_ic(both.with_columns(prediction="expected"))["rank_ic"].mean()
    assert both.height == result.predictions.height
    assert ours >= 0.8 * oracle, f"rank IC {ours:.4f}, the oracle has {oracle:.4f}"
    assert verdict(result.predictions, result.config).found


@pytest.mark.long
def test_where_nothing_is_planted_nothing_is_found_in_nineteen_of_twenty_markets():
    """At the level of the verdict, 99 % two-sided, luck passes at most one market in two hundred: two of twenty would be a fault.

    When the level was chosen, two of these twenty passed at 95 %, where one in forty is expected, and none of seeds 100 to 171. The market
    without a planted signal is not quite without one: it pays a little for beta, a rank IC of 0.004 to who knows every beta.
    """
    found = []
    for seed in range(20):
        said = verdict(train(panel_of(market(seed, strength=0)), ALPHA158, SMALL).predictions, SMALL)
        if said.found:
            found.append(f"seed {seed}: {said}")
    assert len(found) <= 1, found


def test_shuffled_labels_leave_nothing_to_find():
    "The labels of each day change hands among its names, before training and judging: the interval covers zero, which it did not before."
    panel, rng = panel_of(market(7, strength=0.1)), np.random.default_rng(7)
    task = prepared(panel, ALPHA158, SMALL)
    shuffled = task.returns.copy()
    for t in range(shuffled.shape[1]):
        known = np.flatnonzero(np.isfinite(shuffled[:, t]))
        shuffled[known, t] = rng.permutation(shuffled[known, t])
    mixed = replace(task, returns=shuffled, target=learnt(shuffled))
    records = []
    for one in (task, mixed):
        models = walked(one, Steps(lambda *_: None, 0), sharing(one.plan))
        records.append(verdict(pl.concat([predict(m, one.block, one.returns, fold) for fold, m in models]), SMALL))
    true, luck = records
    assert true.found and true.rank_ic.low > 0
    assert not luck.found and luck.rank_ic.low < 0 < luck.rank_ic.high


def test_a_label_among_the_features_is_caught_however_it_came_there():
    "Written as an expression it is refused; slipped in behind the expressions it changes with the future, a day of it too."
    panel = panel_of(market(7, strength=0.1)).tail(120)
    written = FeatureSet.of("written", {"MOM5": "$close/Ref($close,5)-1", "LABEL": label_expression()})
    assert leak_check(panel, written).leaking == ("LABEL",)
    with pytest.raises(ExpressionError, match="feature LABEL"):
        train(panel, written, SMALL)
    honest = FeatureSet.of("honest", {"MOM5": "$close/Ref($close,5)-1", "STD5": "Std($close,5)/$close"})

    def slipped(block: FeatureBlock) -> FeatureBlock:
        close = block.values[0]
        tomorrow = np.concatenate([close[:, 1:], np.full((len(close), 1), np.nan, np.float32)], axis=1)
        return replace(block, values=np.stack([block.values[0], tomorrow]))

    assert leak_check(panel, honest).clean
    assert leak_check(panel, honest, then=slipped).leaking == ("STD5",)
