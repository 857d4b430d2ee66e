"Every kind of model repeats itself, is read back as it was written, and says of a row what it says of that row alone."

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.errors import InputError, ModelError
from tradenb.models.regressors import (
    Ensemble,
    LightGBM,
    LightGBMModel,
    Ridge,
    Samples,
    XGBoost,
    _load_pyfunc,
    binned,
    fingerprint,
    folder_digest,
    load_fitted,
)

NAMES = tuple(f"F{i}" for i in range(12))
SMALL = {"rounds": 40, "early_stopping": 15, "num_leaves": 6, "min_data_in_leaf": 40, "feature_fraction": 0.7}
KINDS = {
    "lightgbm": LightGBM(**SMALL),
    "xgboost": XGBoost(**SMALL),
    "ridge": Ridge(0.05),
    "ensemble": Ensemble(LightGBM(**SMALL), seeds=3),
    "mixed": Ensemble(Ridge(), seeds=2),
}


def drawn(rows: int, seed: int, weighted: bool = False) -> Samples:
    "Samples with missing values, an infinite one, a constant feature and one that is missing altogether."
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, len(NAMES))).astype(np.float32)
    y = 0.3 * x[:, 0] + 0.3 * np.abs(x[:, 1]) + rng.standard_normal(rows)
    x[rng.random(x.shape) < 0.03] = np.nan
    x[:, 9], x[:, 10], x[0, 2] = 3.0, np.nan, np.inf
    return Samples(x, y.astype(np.float32), NAMES, rng.uniform(0.5, 2, rows).astype(np.float32) if weighted else None)


TRAIN, VALID, UNSEEN = drawn(3000, 1), drawn(800, 2), drawn(300, 3).x
MODELS = {name: recipe.fit(TRAIN, VALID, seed=7, threads=1) for name, recipe in KINDS.items()}
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@given(st.integers(0, 299), st.integers(1, 300))
@settings(max_examples=25, deadline=None)
def test_a_row_is_predicted_from_that_row_alone(kind, start, count):
    model = MODELS[kind]
    rows = UNSEEN[start : start + count]
    assert model.predict(rows).tobytes() == model.predict(UNSEEN)[start : start + count].tobytes()
    strided = np.asfortranarray(rows)
    assert model.predict(strided).tobytes() == model.predict(rows).tobytes()


@every_kind
def test_one_row_and_five_hundred_have_the_same_bits(kind):
    model, rows = MODELS[kind], np.tile(UNSEEN, (2, 1))[:500]
    whole = model.predict(rows)
    assert b"".join(model.predict(row[None]).tobytes() for row in rows) == whole.tobytes()
    assert model.predict(rows[:0]).shape == (0,) and model.contributions(rows[:0]).shape == (0, len(NAMES) + 1)


@every_kind
def test_a_model_is_read_back_as_it_was_written(kind, tmp_path):
    model = MODELS[kind]
    model.save(tmp_path / "one")
    again = load_fitted(tmp_path / "one")
    again.save(tmp_path / "two")
    assert again.predict(UNSEEN).tobytes() == model.predict(UNSEEN).tobytes()
    assert (again.kind, again.names, again.rounds) == (model.kind, model.names, model.rounds)
    assert again.importance().equals(model.importance())
    assert folder_digest(tmp_path / "one") == folder_digest(tmp_path / "two") == fingerprint(model)


@every_kind
def test_contributions_add_up_to_the_prediction(kind):
    "Within a millionth: XGBoost keeps both in float32."
    parts = MODELS[kind].contributions(UNSEEN)
    assert parts.shape == (len(UNSEEN), len(NAMES) + 1)
    tolerance = 2e-6 if kind == "xgboost" else 1e-12
    assert np.allclose(parts.sum(axis=1), MODELS[kind].predict(UNSEEN), rtol=0, atol=tolerance)


@every_kind
def test_importance_is_a_share_and_the_bend_is_found_by_trees_alone(kind):
    table = MODELS[kind].importance()
    assert table["gain"].sum() == pytest.approx(1) and table["gain"].is_sorted(descending=True)
    assert set(table["feature"]) == set(NAMES) and table["feature"][0] in {"F0", "F1"}
    bend = table.row(by_predicate=pl.col("feature") == "F1", named=True)["gain"]
    assert bend > 0.1 if MODELS[kind].rounds else bend < 0.1


@every_kind
def test_samples_and_seed_decide_the_bytes_whatever_the_number_of_threads(kind):
    recipe = KINDS[kind]
    assert fingerprint(recipe.fit(TRAIN, VALID, seed=7, threads=1)) == fingerprint(MODELS[kind])
    two = recipe.fit(TRAIN, VALID, seed=7, threads=2)
    assert two.predict(UNSEEN).tobytes() == MODELS[kind].predict(UNSEEN).tobytes()
    other = recipe.fit(TRAIN, VALID, seed=8, threads=1)
    assert (fingerprint(other) == fingerprint(MODELS[kind])) == (kind in {"ridge", "mixed"})


def test_another_process_makes_the_same_bytes():
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_regressors as t
print({{name: t.fingerprint(model) for name, model in t.MODELS.items()}})
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str({name: fingerprint(model) for name, model in MODELS.items()})


@every_kind
def test_weights_count(kind):
    "Twice the weight on all changes no ranking; other weights do."
    weighted = drawn(3000, 1, weighted=True)
    model = KINDS[kind].fit(weighted, VALID, seed=7, threads=1)
    assert not np.array_equal(model.predict(UNSEEN), MODELS[kind].predict(UNSEEN))


@pytest.mark.parametrize("kind", ["lightgbm", "ridge", "xgboost"])
def test_a_sample_twice_is_a_sample_of_twice_the_weight(kind):
    "Exact for the ridge; for trees the bins move a little."
    half = replace(TRAIN, weight=np.where(np.arange(3000) < 500, 2, 1).astype(np.float32))
    again = np.concatenate([np.arange(3000), np.arange(500)])
    twice = replace(TRAIN, x=TRAIN.x[again], y=TRAIN.y[again])
    recipe = KINDS[kind] if kind == "ridge" else replace(KINDS[kind], bagging_fraction=1.0, feature_fraction=1.0)
    one, other = (recipe.fit(part, VALID, 7, 1).predict(UNSEEN) for part in (half, twice))
    assert np.corrcoef(one, other)[0, 1] > (1 - 1e-12 if kind == "ridge" else 0.95)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: replace(s, y=np.ones_like(s.y)), "targets are all the same"),
        (lambda s: Samples(s.x[:1], s.y[:1], s.names), "1 samples to train on"),
        (lambda s: Samples(s.x[:0], s.y[:0], s.names), "0 samples to train on"),
        (lambda s: replace(s, x=np.full_like(s.x, np.nan)), "none of the 12 features has a value"),
        (lambda s: replace(s, y=np.where(np.arange(len(s)) == 5, np.nan, s.y)), "has no target"),
        (lambda s: replace(s, weight=np.zeros(len(s), np.float32)), "weighs nothing"),
    ],
)
@pytest.mark.parametrize("kind", ["lightgbm", "ridge", "xgboost"])
def test_samples_that_teach_nothing_are_refused_in_words(kind, change, message):
    with pytest.raises(InputError, match=message):
        KINDS[kind].fit(change(TRAIN), VALID, 7, 1)


@pytest.mark.parametrize("kind", ["lightgbm", "ridge", "xgboost"])
def test_a_window_without_validation_samples_is_refused(kind):
    with pytest.raises(InputError, match="no sample to validate on"):
        KINDS[kind].fit(TRAIN, Samples(VALID.x[:0], VALID.y[:0], NAMES), 7, 1)


@every_kind
def test_rows_of_another_width_are_refused(kind):
    for ask in (MODELS[kind].predict, MODELS[kind].contributions):
        with pytest.raises(InputError, match=r"\(rows, 12\)"):
            ask(UNSEEN[:, :5])


def test_samples_whose_shapes_do_not_fit_are_refused():
    with pytest.raises(InputError, match="as many names as columns"):
        Samples(TRAIN.x, TRAIN.y[:5], NAMES)


def test_the_ridge_is_scikit_learns_on_the_same_standardised_features():
    from sklearn.linear_model import Ridge as Reference

    samples, alpha = drawn(2500, 5, weighted=True), 0.02
    model = Ridge(alpha).fit(samples, VALID, 0, 1)
    w = samples.weight.astype(float)[:, None]
    x = np.where(np.isfinite(samples.x), samples.x, np.nan).astype(float)
    share = w * np.isfinite(x)
    mean = np.nansum(share * np.nan_to_num(x), axis=0) / np.maximum(share.sum(axis=0), 1)
    std = np.sqrt(np.nansum(share * np.nan_to_num((x - mean) ** 2), axis=0) / np.maximum(share.sum(axis=0), 1))
    scaled = lambda v: np.nan_to_num(np.clip((v - mean) / np.where(std > 0, std, 1), -3, 3))
    reference = Reference(alpha * w.sum()).fit(scaled(x), samples.y, sample_weight=w[:, 0])
    unseen = np.where(np.isfinite(UNSEEN), UNSEEN, np.nan).astype(float)
    assert np.allclose(model.slopes, reference.coef_, rtol=1e-9, atol=1e-12)
    assert np.allclose(model.predict(UNSEEN), reference.predict(scaled(unseen)), rtol=0, atol=1e-10)


def test_the_penalty_does_not_weaken_with_the_number_of_samples():
    once = Ridge(0.5).fit(TRAIN, VALID, 0, 1)
    again = np.tile(np.arange(3000), 4)
    four = Ridge(0.5).fit(replace(TRAIN, x=TRAIN.x[again], y=TRAIN.y[again]), VALID, 0, 1)
    assert np.allclose(once.slopes, four.slopes, rtol=1e-9)


def test_xgboost_takes_an_infinite_value_as_missing():
    row = UNSEEN[:1].copy()
    missing, infinite = row.copy(), row.copy()
    missing[0, 0], infinite[0, 0] = np.nan, -np.inf
    assert MODELS["xgboost"].predict(infinite) == MODELS["xgboost"].predict(missing)


def test_an_ensemble_is_the_mean_of_models_that_differ_by_their_seed():
    members = MODELS["ensemble"].members
    assert len({fingerprint(m) for m in members}) == 3
    mean = (members[0].predict(UNSEEN) + members[1].predict(UNSEEN) + members[2].predict(UNSEEN)) / 3
    assert np.array_equal(MODELS["ensemble"].predict(UNSEEN), mean)
    with pytest.raises(InputError, match="ensemble of 0"):
        Ensemble(Ridge(), 0)


def test_bins_from_the_training_rows_give_the_same_trees_as_the_rows_themselves():
    recipe = LightGBM(**SMALL)
    rows = np.concatenate([drawn(500, 8).x, TRAIN.x, VALID.x])
    cuts = [0, 1111, 2222, len(rows)]
    parts = [(b - a, lambda a=a, b=b: rows[a:b]) for a, b in pairwise(cuts)]
    bins = binned(recipe, TRAIN.x, parts, NAMES, threads=1)
    sets = bins.window(slice(500, 3500), TRAIN.y), bins.window(slice(3500, 4300), VALID.y)
    assert fingerprint(next(recipe.unfiltered().grown(*sets, (7,), 1))) == fingerprint(
        recipe.unfiltered().fit(TRAIN, VALID, 7, 1)
    )


def test_trees_are_kept_and_stopped():
    noise = replace(TRAIN, y=np.random.default_rng(0).standard_normal(3000).astype(np.float32))
    for kind in (LightGBM, XGBoost):
        assert kind(**SMALL, min_rounds=12).fit(noise, VALID, 7, 1).rounds >= 12
        assert kind(**SMALL | {"rounds": 5}, min_rounds=17).fit(noise, VALID, 7, 1).rounds == 5


def test_a_folder_without_a_model_or_with_a_damaged_one_is_refused(tmp_path):
    with pytest.raises(ModelError, match="holds 0 models"):
        load_fitted(tmp_path)
    for kind, name in (("lightgbm", "model.lgb"), ("ridge", "ridge.json"), ("xgboost", "xgboost.json")):
        folder = tmp_path / kind
        MODELS[kind].save(folder)
        whole = (folder / name).read_text()
        for damage in ("", "nonsense", whole[: len(whole) // 2]):
            (folder / name).write_text(damage)
            with pytest.raises(ModelError):
                load_fitted(folder)
    both = tmp_path / "both"
    MODELS["lightgbm"].save(both)
    MODELS["ridge"].save(both)
    with pytest.raises(ModelError, match="holds 2 models"):
        load_fitted(both)


def test_an_ensemble_that_lost_a_member_is_refused(tmp_path):
    MODELS["ensemble"].save(tmp_path)
    (tmp_path / "members" / "2" / "model.lgb").unlink()
    with pytest.raises(ModelError, match="holds 0 models"):
        load_fitted(tmp_path)
    (tmp_path / "ensemble.json").write_text(json.dumps({"members": 0}))
    with pytest.raises(ModelError, match="members"):
        load_fitted(tmp_path)


def test_mlflow_loads_any_kind_by_its_folder(tmp_path):
    frame = pl.DataFrame(UNSEEN, schema=list(NAMES), orient="row").with_columns(other=1.0).to_pandas()
    for kind, model in MODELS.items():
        model.save(tmp_path / kind)
        served = _load_pyfunc(str(tmp_path / kind)).predict(frame[["other", *reversed(NAMES)]])
        assert np.array_equal(served, model.predict(UNSEEN))


def test_the_digest_of_a_folder_knows_names_and_bytes(tmp_path):
    MODELS["ridge"].save(tmp_path)
    before = folder_digest(tmp_path)
    (tmp_path / "ridge.json").rename(tmp_path / "other.json")
    renamed = folder_digest(tmp_path)
    text = (tmp_path / "other.json").read_text()
    (tmp_path / "other.json").write_text(text.replace("1", "2", 1))
    assert len({before, renamed, folder_digest(tmp_path)}) == 3
    assert len(before) == len(hashlib.sha256().hexdigest())


@pytest.mark.parametrize("objective", ["binary", "poisson", "multiclass"])
def test_a_lightgbm_file_that_predicts_something_else_than_a_sum_of_leaves_is_refused(objective):
    import lightgbm

    y = (TRAIN.y > 0).astype(float)
    told = {"objective": objective, "verbosity": -1, "num_threads": 1} | (
        {"num_class": 2} if objective == "multiclass" else {}
    )
    booster = lightgbm.train(told, lightgbm.Dataset(TRAIN.x, y, params={"verbosity": -1}), 3)
    with pytest.raises(ModelError, match="expected one number per row"):
        LightGBMModel.of(booster.model_to_string())


@pytest.mark.parametrize("cut", [0.0, 0.2, 0.5, 0.9, 0.995])
def test_a_lightgbm_file_cut_short_is_refused_and_does_not_end_the_process(cut):
    text = MODELS["lightgbm"].booster.model_to_string()
    with pytest.raises(ModelError, match="no whole LightGBM model"):
        LightGBMModel.of(text[: int(cut * len(text))])


def test_a_tree_with_a_loop_is_refused():
    "A walk down such a tree would never end."
    text = MODELS["lightgbm"].booster.model_to_string()
    first = next(line for line in text.splitlines() if line.startswith("left_child="))
    children = first.removeprefix("left_child=").split()
    looped = "left_child=" + " ".join("0" if int(c) > 0 and len(c) == 1 else c for c in children)
    assert looped != first and len(looped) == len(first)
    with pytest.raises(ModelError, match="branches to where nothing is"):
        LightGBMModel.of(text.replace(first, looped, 1))


@every_kind
def test_threads_may_share_a_model(kind):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda start: MODELS[kind].predict(UNSEEN[start:]).tobytes(), range(40)))
    whole = MODELS[kind].predict(UNSEEN)
    assert found == [whole[start:].tobytes() for start in range(40)]


def test_a_fixed_number_of_trees_needs_no_validation_and_is_the_same_model_with_it():
    "Bytes of the model without validation samples, and of one whose early stop cannot come."
    import lightgbm

    rng = np.random.default_rng(4)
    x, names = rng.normal(size=(400, 6)).astype(np.float32), tuple("abcdef")
    train, valid = (
        Samples(x[rows], x[rows, 0] + rng.normal(size=200), names) for rows in (slice(200), slice(200, 400))
    )
    recipe = LightGBM(rounds=12, early_stopping=12, min_rounds=12, min_data_in_leaf=10)
    told = recipe.params(3, 1)
    binned = lightgbm.Dataset(train.x, train.y, feature_name=list(names), params=told)
    watched = lightgbm.Dataset(valid.x, valid.y, reference=binned, params=told)
    one, other = recipe.fit(train, valid, 3, 1), next(recipe.grown(binned, watched, (3,), 1))
    assert recipe.fixed
    assert one.rounds == other.rounds == 12
    assert one.booster.model_to_string() == other.booster.model_to_string()
    assert not LightGBM(rounds=12, early_stopping=5, min_rounds=12).fixed
    assert not LightGBM(rounds=12, early_stopping=12, min_rounds=5).fixed
