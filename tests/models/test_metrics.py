"Metrics equal independent implementations, missing labels and ties included."

import math
from datetime import date, timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tradenb.models import metrics as m


def frame(prediction, label):
    "Predictions of shape (days, names) as the long frame."
    days, names = prediction.shape
    dates = [date(2024, 1, 1) + timedelta(days=i) for i in range(days)]
    return pl.DataFrame(
        {
            "date": [d for d in dates for _ in range(names)],
            "symbol": [f"S{i:03d}" for i in range(names)] * days,
            "prediction": prediction.ravel(),
            "label": label.ravel(),
        }
    )


def market(seed, days=30, names=25, ties=False, missing=0.1):
    rng = np.random.default_rng(seed)
    prediction = rng.integers(0, 6, (days, names)).astype(float) if ties else rng.normal(size=(days, names))
    label = 0.01 * rng.standard_t(4, (days, names)) + 0.001 * prediction
    label[rng.random(label.shape) < missing] = np.nan
    return prediction, label


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=25, deadline=None)
def test_both_coefficients_equal_scipy_day_by_day(seed, ties):
    prediction, label = market(seed, ties=ties)
    ours = m.ic(frame(prediction, label)).join(m.rank_ic(frame(prediction, label)), on="date")
    for i, (pearson, spearman) in enumerate(ours.select("ic", "rank_ic").rows()):
        ok = np.isfinite(label[i])
        assert math.isclose(pearson, stats.pearsonr(prediction[i][ok], label[i][ok])[0], abs_tol=1e-12)
        assert math.isclose(spearman, stats.spearmanr(prediction[i][ok], label[i][ok])[0], abs_tol=1e-12)


def test_a_session_with_nothing_to_correlate_is_null_and_left_out_of_the_mean():
    prediction, label = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]]), np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    assert m.rank_ic(frame(prediction, label))["rank_ic"].to_list() == [None, pytest.approx(1.0)]
    assert m.summary(frame(prediction, label), 1, 1)["rank_ic"] == pytest.approx(1.0)


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 8), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_the_spread_equals_a_loop_over_sorted_names(seed, top, bottom, horizon):
    prediction, label = market(seed, ties=True)
    ours = m.long_short_returns(frame(prediction, label), top, bottom, horizon)["return"].to_list()
    for i, value in enumerate(ours):
        known = [(-p, s, y) for s, (p, y) in enumerate(zip(prediction[i], label[i], strict=True)) if np.isfinite(y)]
        ordered = [y for _, _, y in sorted(known)]
        assert math.isclose(value, (np.mean(ordered[:top]) - np.mean(ordered[-bottom:])) / horizon, abs_tol=1e-14)


def test_sessions_with_fewer_names_than_both_groups_have_no_spread():
    prediction, label = market(1, days=4, names=5, missing=0)
    assert m.long_short_returns(frame(prediction, label), 3, 3).is_empty()
    assert math.isnan(m.summary(frame(prediction, label), 3, 3)["long_short_sharpe"])


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_turnover_equals_sets_of_names(seed):
    prediction, label = market(seed, days=8)
    ours = m.turnover(frame(prediction, label), 4, 3)["turnover"].to_list()
    order = np.argsort(-prediction, axis=1)
    books = [{(s, 1) for s in row[:4]} | {(s, -1) for s in row[-3:]} for row in order]
    hand = [len(now - before) / 7 for before, now in pairwise(books)]
    assert ours == pytest.approx(hand)


def test_quantiles_are_as_even_as_the_names_allow_and_ordered_by_prediction():
    prediction = np.tile(np.arange(12.0), (3, 1))
    table = m.quantile_returns(frame(prediction, prediction * 0.01), 5)
    assert table["quantile"].to_list() == [1, 2, 3, 4, 5]
    assert table["mean"].is_sorted()


@given(st.floats(0.1, 10), st.floats(-1, 1))
@settings(max_examples=20, deadline=None)
def test_rank_metrics_do_not_change_under_a_monotone_rescaling(scale, shift):
    prediction, label = market(3)
    before, after = (m.rank_ic(frame(p, label))["rank_ic"] for p in (prediction, prediction * scale + shift))
    assert np.allclose(before, after)
