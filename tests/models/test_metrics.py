"Metrics equal independent implementations, missing labels and ties included."

import math
import warnings
from datetime import date, timedelta
from itertools import pairwise

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tradenb.core.errors import InputError
from tradenb.models import metrics as m
from tradenb.models.inference import newey_west


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


def alphalens_frame(prediction, label, quantiles=5):
    days, names = prediction.shape
    index = pd.MultiIndex.from_product(
        [pd.date_range("2024-01-01", periods=days), [f"S{i:03d}" for i in range(names)]], names=["date", "asset"]
    )
    data = pd.DataFrame({"1D": label.ravel(), "factor": prediction.ravel()}, index=index)
    cut = lambda x: pd.qcut(x, quantiles, labels=False) + 1
    return data.assign(factor_quantile=data.groupby(level="date")["factor"].transform(cut).astype(int))


@given(st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_alphalens_agrees_on_coefficients_quantiles_turnover_and_autocorrelation(seed):
    prediction, label = market(seed, days=12, names=20, missing=0)
    prediction = prediction.cumsum(axis=0)
    ours, theirs = frame(prediction, label), alphalens_frame(prediction, label)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from alphalens import performance as a

        coefficients = a.factor_information_coefficient(theirs)["1D"]
        returns = a.mean_return_by_quantile(theirs, by_date=True, demeaned=False)[0]["1D"]
        autocorrelation = [a.factor_rank_autocorrelation(theirs, lag).dropna() for lag in (1, 3)]
        turned = {q: a.quantile_turnover(theirs["factor_quantile"], q).dropna() for q in (1, 5)}
    assert np.allclose(m.rank_ic(ours)["rank_ic"], coefficients)
    assert np.allclose(m.quantile_series(ours).sort("quantile", "date")["label"], returns)
    for lag, expected in zip((1, 3), autocorrelation, strict=True):
        assert np.allclose(m.rank_autocorrelation(ours, lag)["autocorrelation"], expected)
    for q, expected in turned.items():
        assert np.allclose(m.quantile_turnover(ours).filter(pl.col("quantile") == q)["turnover"], expected)


def aged_by_hand(prediction, label, n):
    late, held = [], []
    for t in range(len(label) - n + 1):
        window = label[t : t + n]
        ok = np.isfinite(prediction[t]) & np.isfinite(window).all(axis=0) & np.isfinite(label[t])
        ok &= np.isfinite(label[t + n - 1])
        if ok.sum() > 1:
            late.append(stats.spearmanr(prediction[t][ok], window[-1][ok])[0])
            held.append(stats.spearmanr(prediction[t][ok], (1 + window[:, ok]).prod(axis=0))[0])
    return late, held


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.15]))
@settings(max_examples=8, deadline=None)
def test_decay_equals_a_loop_over_sessions(seed, missing):
    prediction, label = market(seed, days=25, names=12, missing=missing)
    table = m.decay(frame(prediction, label), horizons=[1, 2, 5])
    for row in table.iter_rows(named=True):
        late, held = aged_by_hand(prediction, label, row["sessions"])
        assert row["late"] == pytest.approx(np.mean(late), abs=1e-12)
        assert row["held"] == pytest.approx(np.mean(held), abs=1e-12)
        assert row["late_low"] < row["late"] < row["late_high"]


@pytest.mark.parametrize("horizons", [(), (0, 1)])
def test_decay_over_horizons_that_are_none_is_refused(horizons):
    with pytest.raises(InputError, match="a decay over the horizons"):
        m.decay(frame(np.ones((2, 3)), np.ones((2, 3))), horizons)


def test_decay_takes_labels_of_one_session_from_elsewhere():
    prediction, label = market(4, days=25, names=12, missing=0)
    weekly = frame(prediction, label).with_columns(label=pl.lit(9.9))
    labels = frame(prediction, label).select("date", "symbol", "label")
    assert m.decay(weekly, [1, 3], labels).equals(m.decay(frame(prediction, label), [1, 3]))


def test_an_age_beyond_the_record_is_unknown():
    prediction, label = market(4, days=5, names=6, missing=0)
    table = m.decay(frame(prediction, label), [1, 7, 30])
    assert table["late"].is_nan().to_list() == [False, True, True]


def test_a_label_of_minus_one_hundred_per_cent_spoils_no_other_window():
    prediction, label = market(4, days=12, names=6, missing=0)
    label[5, 2] = -1.0
    table = m.decay(frame(prediction, label), [3])
    _, held = aged_by_hand(prediction, label, 3)
    assert table["held"][0] == pytest.approx(np.mean(held))


def test_the_interval_of_the_summary_is_newey_wests_with_the_labels_overlap():
    prediction, label = market(7, days=60)
    ours = frame(prediction, label)
    for horizon in (1, 5):
        found = newey_west(m.rank_ic(ours)["rank_ic"], horizon=horizon)
        figures = m.summary(ours, 4, 4, horizon)
        assert (figures["rank_ic_low"], figures["rank_ic_high"]) == (found.low, found.high)
        assert m.information(m.rank_ic(ours), horizon)["low"].to_list() == [found.low]


def test_predictions_of_noise_have_an_interval_that_holds_zero_nineteen_times_in_twenty():
    covered = []
    for seed in range(100):
        prediction, label = market(seed, days=60, names=15, missing=0)
        figures = m.summary(frame(prediction, label - 0.001 * prediction), 3, 3)
        covered.append(figures["rank_ic_low"] <= 0 <= figures["rank_ic_high"])
    assert np.mean(covered) >= 0.9


def test_quantile_errors_know_that_labels_overlap():
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.01, (304, 10)) + rng.normal(0, 0.01, (304, 1))
    label = np.lib.stride_tricks.sliding_window_view(noise, 5, axis=0).sum(axis=2)
    ours = frame(rng.standard_normal((300, 10)), label)
    naive = m.quantile_series(ours, 2).filter(pl.col("quantile") == 1)["label"].std() / math.sqrt(300)
    assert m.quantile_returns(ours, 2, horizon=5)["error"][0] > 1.5 * naive


def test_every_name_stands_in_one_quantile_and_names_without_a_prediction_in_none():
    prediction, label = market(2, days=3, names=11, ties=True)
    prediction[1, 4] = np.nan
    placed = m.in_quantiles(frame(prediction, label), 4)
    assert len(placed) == 32
    sizes = placed.group_by("date", "quantile").len()["len"]
    assert sizes.max() - sizes.min() <= 1
    first = placed.filter(pl.col("date") == date(2024, 1, 1)).sort("prediction", "symbol")
    assert first["quantile"].is_sorted()


def test_charts_of_single_sessions_and_gaps_are_drawn():
    prediction, label = market(1, days=70, names=8)
    prediction[10] = 1.0
    ours = frame(prediction, label)
    daily = m.ic(ours).join(m.rank_ic(ours).drop("names"), on="date")
    figures = [m.plot_ic(daily, window=20), m.plot_by_month(daily, "ic")]
    figures += [m.plot_quantiles(m.quantile_returns(ours.head(8))), m.plot_quantile_growth(m.quantile_growth(ours, 3))]
    assert all(f.axes[0].has_data() for f in [*figures, m.plot_decay(m.decay(ours, [1, 2]))])


def test_the_calendar_of_coefficients_weighs_months_by_their_sessions():
    prediction, label = market(1, days=70, names=8)
    daily = m.rank_ic(frame(prediction, label))
    table = m.monthly_table(daily)
    assert table["Year"].to_list() == pytest.approx([daily["rank_ic"].mean()])
    assert table["Jan"][0] == pytest.approx(daily.filter(pl.col("date").dt.month() == 1)["rank_ic"].mean())
    assert table["Dec"].to_list() == [None]


def test_quantiles_grow_by_what_they_earn_above_all_names():
    prediction, label = market(9, days=6, names=10, missing=0)
    table = m.quantile_growth(frame(prediction, label), 2, horizon=2)
    halves = [np.sort(np.argsort(p)[5:]) for p in prediction]
    above = np.cumsum([(y[top].mean() - y.mean()) / 2 for y, top in zip(label, halves, strict=True)])
    assert table.filter(pl.col("quantile") == 2)["sum"].to_list() == pytest.approx(above.tolist())
    assert table.filter(pl.col("quantile") == 1)["sum"].to_list() == pytest.approx((-above).tolist())
