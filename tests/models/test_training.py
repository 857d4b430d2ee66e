"Training is honest, repeatable and blind to the future."

from dataclasses import replace
from datetime import date

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from tradenb.core.errors import InputError
from tradenb.features.engine import compute
from tradenb.features.labels import label
from tradenb.features.panel import Panel, random_panel
from tradenb.features.sets import feature_set
from tradenb.models.regressors import Ensemble, fingerprint
from tradenb.models.splits import WalkForward, Window, folds
from tradenb.models.training import (
    fit,
    learnt,
    predict,
    recency,
    retrain_due,
    samples,
    sharing,
    train,
    training_config,
)

from .conftest import SMALL

ALPHA158 = feature_set("alpha158")


def with_future(market: Panel, session: int, factor: float) -> Panel:
    "The same panel with other prices from `session` on."
    fields = {f: x.copy() for f, x in market.fields.items()}
    rng = np.random.default_rng(1)
    for x in fields.values():
        x[:, session:] *= factor * rng.uniform(0.5, 2, x[:, session:].shape).astype(np.float32)
    return Panel(market.symbols, market.dates, fields, market.listed)


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_target_is_scipys_rank_spread_evenly_with_mean_zero(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-4, 5, (30, 3)) * 0.01
    labels[rng.random(labels.shape) < 0.2] = np.nan
    target = learnt(labels)
    for day in range(3):
        known = np.isfinite(labels[:, day])
        n = known.sum()
        expected = (rankdata(labels[known, day]) - (n + 1) / 2) / n * np.sqrt(12)
        assert np.allclose(target[known, day], expected, atol=1e-6)
        assert np.isnan(target[~known, day]).all()


def test_a_wild_return_moves_the_target_no_more_than_the_best_one_does():
    calm, wild = np.linspace(-0.02, 0.02, 9)[:, None], np.linspace(-0.02, 0.02, 9)[:, None]
    wild[-1] = 40.0
    assert np.array_equal(learnt(calm), learnt(wild))


def test_training_twice_gives_the_same_bits(market, result):
    again = train(market, ALPHA158, result.config)
    assert fingerprint(again.model) == fingerprint(result.model)
    assert again.predictions.equals(result.predictions)


def test_another_seed_gives_another_model(market, result):
    other = train(market.tail(300), ALPHA158, replace(result.config, seed=8))
    same = train(market.tail(300), ALPHA158, result.config)
    assert fingerprint(other.model) != fingerprint(same.model)


def test_predictions_of_a_fold_do_not_depend_on_anything_after_their_session(market, result):
    "Everything after the middle of the first test window is replaced; what was predicted before stays to the bit."
    middle = result.folds[0].test.start + len(result.folds[0].test) // 2
    changed = train(with_future(market, middle + 1, 3.0), ALPHA158, result.config)
    cut = market.dates[middle].item()
    before, after = (r.predictions.filter(r.predictions["date"] <= cut).drop("label") for r in (result, changed))
    assert before.height > 0
    assert before.equals(after)


def test_no_fold_is_fitted_on_a_price_of_its_test_window(market, result):
    "The labels that a fold may train on are the same when every price from its test window on is another."
    for fold in result.folds:
        truth, other = (label(p) for p in (market, with_future(market, fold.test.start, 2.0)))
        for window in (fold.train, fold.valid):
            assert np.array_equal(truth[:, window.slice], other[:, window.slice], equal_nan=True)
        features = (
            compute(p, ALPHA158).values[:, :, : fold.valid.stop]
            for p in (market, with_future(market, fold.test.start, 2.0))
        )
        assert np.array_equal(*features, equal_nan=True)


def test_the_planted_order_is_found_out_of_sample(result):
    assert result.metrics["rank_ic"] > 4 / np.sqrt(result.ic["names"].sum())
    assert result.fold_metrics["rank_ic"].min() > 0


def test_a_market_without_signal_still_gives_a_ranking_that_is_not_the_alphabets():
    config = replace(SMALL, rounds=60, early_stopping=25, min_rounds=20)
    noise = train(random_panel(24, 300, seed=2), ALPHA158, config)
    assert noise.fold_metrics["trees"].min() >= 20
    assert noise.model.rounds >= 20
    last = noise.predictions.filter(noise.predictions["date"] == noise.predictions["date"].max())
    assert last["prediction"].n_unique() == last.height
    assert abs(noise.metrics["rank_ic"]) < 4 / np.sqrt(noise.ic["names"].sum())


def test_the_record_covers_every_traded_name_of_every_test_session_once(market, result):
    first = result.folds[0].test.start
    assert result.predictions.height == market.traded[:, first:].sum()
    assert not result.predictions.select("date", "symbol").is_duplicated().any()
    unknown = result.predictions.filter(result.predictions["label"].is_null())["date"].unique().sort().to_list()
    assert unknown[-2:] == market.dates[-2:].tolist()


def test_the_production_model_ends_with_the_newest_label(market, result):
    assert result.trained_through == market.dates[-1].item()
    assert result.final.valid == Window(len(market.dates) - 2 - 30, len(market.dates) - 2)


def test_too_short_a_history_is_refused(market, result):
    with pytest.raises(InputError, match="expected at least"):
        train(market.tail(150), ALPHA158, result.config)


def test_the_recipe_comes_from_the_settings(make_settings):
    settings = make_settings(**{"training.train_sessions": 300, "core.seed": 3, "label.horizon": 2})
    config = training_config(settings, warmup=60)
    assert (config.walk.train, config.walk.horizon, config.walk.warmup, config.seed) == (300, 2, 60, 3)
    assert config.learning_rate == settings.training.learning_rate
    assert config == training_config(settings, warmup=60)
    assert set(config.params()) >= {"scheme", "train", "embargo", "seed", "num_leaves"}


def test_a_model_is_due_when_it_is_old_or_missing():
    assert retrain_due(None, date(2024, 1, 3), 21)
    assert not retrain_due(date(2024, 1, 3), date(2024, 1, 3), 1)
    assert retrain_due(date(2024, 1, 2), date(2024, 1, 3), 1)


def test_a_rule_that_bars_nobody_changes_no_bit(market, result):
    everyone = train(market, ALPHA158, SMALL, eligible=np.ones(market.shape, bool))
    assert everyone.predictions.equals(result.predictions)
    assert fingerprint(everyone.model) == fingerprint(result.model)


def test_a_name_that_could_never_be_held_is_as_if_it_were_not_there(market):
    "Neither learnt from, nor ranked against, nor judged."
    barred, others = market.symbols[:3], market.symbols[3:]
    mask = np.isin(market.symbols, others)[:, None] & np.ones(market.shape, bool)
    among, alone = train(market, ALPHA158, SMALL, eligible=mask), train(market.select(others), ALPHA158, SMALL)
    assert not set(barred) & set(among.predictions["symbol"])
    assert among.predictions.equals(alone.predictions) and among.metrics == alone.metrics
    assert fingerprint(among.model) == fingerprint(alone.model)


def test_the_last_day_in_the_index_is_judged_by_the_return_after_it(market, result):
    left = result.folds[0].test.start + 5
    mask = np.ones(market.shape, bool)
    mask[0, left + 1 :] = False
    rows = train(market, ALPHA158, SMALL, eligible=mask).predictions.filter(symbol=market.symbols[0])
    whole = result.predictions.filter(symbol=market.symbols[0])
    assert rows["date"].max() == market.dates[left].item()
    assert rows["label"].to_list() == whole.filter(pl.col("date") <= rows["date"].max())["label"].to_list()


def test_the_number_of_threads_changes_no_bit(market, result):
    two = train(market, ALPHA158, replace(SMALL, threads=2))
    assert fingerprint(two.model) == fingerprint(result.model) and two.predictions.equals(result.predictions)


def test_folds_share_the_bins_of_one_whose_training_window_they_overlap():
    for walk in (WalkForward(train=100, test=30), WalkForward("expanding", train=100, test=30)):
        plan = folds(walk, 600)
        groups = sharing(plan)
        assert [fold for group in groups for fold in group] == plan and len(groups) > 1
        for group in groups:
            oldest = group[0].train
            assert all(0 <= fold.train.stop - oldest.stop <= len(oldest) for fold in group)
            assert all(fold.train.start >= oldest.start for fold in group)


def test_the_production_model_does_not_depend_on_how_long_the_walk_before_it_was(market, result):
    "Its bins come from its own window; the newest sessions that a rolling walk needs give the same bytes."
    needed = SMALL.walk.warmup + 200
    shorter = train(market.tail(needed), ALPHA158, SMALL)
    assert len(shorter.folds) < len(result.folds)
    assert fingerprint(shorter.model) == fingerprint(result.model)


def test_a_fold_with_its_own_bins_is_what_fit_gives(market):
    config = replace(SMALL, share_bins=False)
    block, returns = compute(market, ALPHA158), label(market)
    result = train(market, ALPHA158, config)
    alone = predict(fit(block, learnt(returns), result.folds[1], config), block, returns, result.folds[1])
    assert result.predictions.filter(fold=2).equals(alone)


def test_a_sample_loses_half_its_weight_in_a_half_life():
    mask = np.array([[1, 1, 0, 1, 1], [1, 1, 1, 1, 0]], bool)
    weights = recency(mask, Window(1, 5), half_life=2)
    assert np.allclose(weights, 0.5 ** (np.array([3, 3, 2, 1, 1, 0]) / 2))
    assert recency(mask, Window(1, 5), half_life=0) is None


def test_samples_stand_by_session_and_then_by_symbol(market):
    block, target = compute(market, ALPHA158), learnt(label(market))
    window = Window(80, 120)
    found = samples(block, target, window, half_life=20)
    rows = [
        (t, s)
        for t in range(80, 120)
        for s in range(len(market.symbols))
        if block.traded[s, t] and np.isfinite(target[s, t])
    ]
    assert np.array_equal(found.x, np.stack([block.values[:, s, t] for t, s in rows]), equal_nan=True)
    assert np.array_equal(found.y, np.array([target[s, t] for t, s in rows]))
    assert found.weight[-1] == 1 and (np.diff(found.weight) >= 0).all()


@pytest.mark.parametrize("kind", ["ridge", "xgboost"])
def test_other_regressors_walk_forward_too_and_find_the_order(market, kind):
    result = train(market, ALPHA158, replace(SMALL, model=kind))
    assert result.model.kind == kind and result.metrics["rank_ic"] > 3 / np.sqrt(result.ic["names"].sum())
    assert np.array_equal(result.golden.prediction, result.model.predict(result.golden.x))


def test_an_ensemble_is_walked_forward_with_a_step_for_each_model(market):
    heard = []
    config = replace(SMALL, seeds=2, threads=2)
    result = train(market, ALPHA158, config, progress=lambda *step: heard.append(step))
    fits = 2 * (len(result.folds) + 1)
    assert [done for done, _, _ in heard] == list(range(fits + 1)) and {of for _, of, _ in heard} == {fits}
    assert result.model.kind == "ensemble" and len(result.model.members) == 2


@pytest.mark.parametrize("target", ["zscore", "return"])
def test_other_targets_are_learnt(market, target):
    config = replace(SMALL, target=target, half_life_sessions=60)
    result = train(market.tail(260), ALPHA158, config)
    assert result.config.params()["target"] == target and np.isfinite(result.metrics["rank_ic"])


def test_a_result_carries_what_a_model_is_proven_and_watched_by(market, result):
    golden = result.golden
    block = compute(market, ALPHA158)
    assert golden.x.shape == (SMALL.golden_rows, 158) and golden.x.flags.c_contiguous
    assert np.array_equal(golden.x[-1], block.values[:, np.flatnonzero(block.traded[:, -1])[-1], -1], equal_nan=True)
    assert np.array_equal(golden.prediction, result.model.predict(golden.x))
    assert result.reference.names == (*ALPHA158.names, "prediction")
    assert set(result.shap["feature"]) == set(ALPHA158.names) and result.shap["mean_abs_shap"].is_sorted(
        descending=True
    )


def test_an_unknown_model_or_target_is_refused(market):
    for change, message in (
        ({"model": "oracle"}, "training.model is 'oracle'"),
        ({"target": "wish"}, "training.target"),
    ):
        with pytest.raises(InputError, match=message):
            train(market, ALPHA158, replace(SMALL, **change))


def test_every_setting_of_the_training_reaches_the_recipe(make_settings):
    "A key that is read nowhere would be a promise that is not kept."
    changed = {"model": "xgboost", "target": "zscore", "seeds": 3, "half_life_sessions": 250, "rounds": 99, "early_stopping": 9,
               "min_rounds": 3, "learning_rate": 0.07, "num_leaves": 5, "max_depth": 4, "min_data_in_leaf": 77, "feature_fraction": 0.6,
               "bagging_fraction": 0.5, "lambda_l1": 0.1, "lambda_l2": 3.0, "ridge_alpha": 0.5, "threads": 1}  # fmt: skip
    config = training_config(make_settings(**{f"training.{k}": v for k, v in changed.items()}), warmup=60)
    assert {k: getattr(config, k) for k in changed} == changed
    assert config.regressor() == Ensemble(config.recipe(), 3)
    assert config.recipe().params(1, 1)["max_leaves"] == 5
