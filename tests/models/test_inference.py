"Intervals keep their promise on simulated histories, and formulas equal the papers and other libraries."

import math
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.api import OLS

from tradenb.core.errors import InputError
from tradenb.models import inference as m
from tradenb.models.inference import Record, Trials
from tradenb.models.performance import sharpe


def ar1(rng, phi, samples, sessions):
    "Autoregressive series with mean 0, shape (samples, sessions)."
    x, noise = np.zeros((samples, sessions + 50)), rng.standard_normal((samples, sessions + 50))
    for t in range(1, sessions + 50):
        x[:, t] = phi * x[:, t - 1] + noise[:, t]
    return x[:, 50:]


def overlapping(rng, samples, sessions, horizon):
    noise = rng.standard_normal((samples, sessions + horizon - 1))
    return np.lib.stride_tricks.sliding_window_view(noise, horizon, axis=1).sum(axis=2)


@given(st.integers(0, 10_000), st.integers(5, 200), st.integers(0, 12), st.floats(-0.6, 0.9))
@settings(max_examples=40, deadline=None)
def test_newey_west_equals_statsmodels_to_the_last_digits(seed, sessions, lags, phi):
    x = 0.1 + ar1(np.random.default_rng(seed), phi, 1, sessions)[0]
    lags = min(lags, sessions - 1)
    fit = OLS(x, np.ones(sessions)).fit(cov_type="HAC", cov_kwds={"maxlags": lags, "use_correction": True}, use_t=True)
    ours = m.newey_west(x, lags)
    assert (ours.value, ours.error, ours.p) == pytest.approx((fit.params[0], fit.bse[0], fit.pvalues[0]), rel=1e-9)
    assert (ours.low, ours.high) == pytest.approx(tuple(fit.conf_int()[0]), rel=1e-9)
    assert ours.t == pytest.approx(fit.tvalues[0], rel=1e-9)


def test_without_lags_it_is_students_interval():
    x = np.random.default_rng(1).normal(0.1, 1, 40)
    ours, theirs = m.newey_west(x, lags=0, level=0.9), stats.ttest_1samp(x, 0)
    assert (ours.t, ours.p) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.9)))


def test_the_lags_follow_the_rule_of_newey_and_west_and_never_fall_below_the_overlap():
    x = np.random.default_rng(2).standard_normal(500)
    c = [((x - x.mean())[k:] * (x - x.mean())[: 500 - k]).mean() * (500 - k) / 500 for k in range(6)]
    assert math.floor(4 * 5 ** (2 / 9)) == 5
    slope, level = 2 * sum(k * c[k] for k in range(1, 6)), c[0] + 2 * sum(c[1:])
    assert m.bandwidth(x) == math.floor(1.1447 * ((slope / level) ** 2 * 500) ** (1 / 3))
    assert m.bandwidth(x, horizon=60) == 59
    assert m.bandwidth(x[:8], horizon=60) == 7
    assert m.newey_west(x, horizon=60).memory == 59


def test_a_series_without_enough_to_say_has_nan_bounds():
    for x in ([], [0.1], pl.Series([0.1, None])):
        interval = m.newey_west(x)
        assert math.isnan(interval.low)
        assert 0.0 not in interval
    constant = m.newey_west([0.25] * 5)
    assert (constant.value, constant.low, constant.high) == (0.25, 0.25, 0.25)
    assert math.isnan(constant.t)
    assert math.isnan(m.block_bootstrap([]).low)


def test_missing_sessions_are_left_out():
    x = np.random.default_rng(2).standard_normal(60)
    gaps = pl.Series([*x[:30], None, float("nan"), *x[30:]])
    assert m.newey_west(gaps) == m.newey_west(x)
    assert m.block_bootstrap(gaps) == m.block_bootstrap(x)


def test_coverage_of_newey_west_on_independent_and_overlapping_days():
    rng = np.random.default_rng(11)
    share = lambda samples, **kw: np.mean([0 in m.newey_west(x, **kw) for x in samples])
    assert 0.925 < share(rng.standard_t(4, (600, 250))) < 0.975
    weeks = overlapping(rng, 600, 500, 5)
    assert 0.90 < share(weeks, horizon=5) < 0.97
    assert share(weeks, lags=0) < 0.70
    assert 0.89 < share(ar1(rng, 0.5, 600, 500)) < 0.97


def test_coverage_of_the_block_bootstrap():
    rng = np.random.default_rng(12)
    share = lambda samples, kind: np.mean([0 in m.block_bootstrap(x, draws=300, kind=kind) for x in samples])
    assert 0.90 < share(rng.standard_t(4, (250, 250)), "stationary") < 0.98
    weeks = overlapping(rng, 250, 500, 5)
    assert 0.87 < share(weeks, "stationary") < 0.98
    assert 0.87 < share(weeks, "circular") < 0.98
    assert np.mean([0 in m.block_bootstrap(x, block=1, draws=300) for x in weeks]) < 0.72


def test_coverage_of_the_sharpe_interval_under_fat_tails():
    rng = np.random.default_rng(13)
    truth = 1.0
    samples = truth / np.sqrt(252) + rng.standard_t(5, (250, 504)) * np.sqrt(3 / 5)
    assert 0.91 < np.mean([truth in m.sharpe_interval(x, draws=300) for x in samples]) < 0.98


def test_block_length_equals_the_papers_rule_written_out():
    x = ar1(np.random.default_rng(3), 0.6, 1, 800)[0]
    n, c = 800, x - x.mean()
    rho = [(c[k:] @ c[: n - k]) / (c @ c) for k in range(60)]
    loud = 2 * math.sqrt(math.log10(n) / n)
    reach = 2 * next(k for k in range(1, 40) if all(abs(rho[k + j]) < loud for j in range(1, 6)))
    flat = lambda k: 1 if k <= reach / 2 else 2 * (1 - k / reach)
    g = 2 * sum(flat(k) * k * rho[k] for k in range(1, reach + 1))
    d = 2 * (1 + 2 * sum(flat(k) * rho[k] for k in range(1, reach + 1))) ** 2
    assert m.block_length(x) == pytest.approx((2 * g**2 / d * n) ** (1 / 3))
    assert m.block_length(x, "circular") == pytest.approx((2 * g**2 / (2 / 3 * d) * n) ** (1 / 3))


def test_block_length_grows_with_memory_and_is_bounded():
    rng = np.random.default_rng(4)
    lengths = [np.mean([m.block_length(x) for x in ar1(rng, phi, 20, 1000)]) for phi in (0.0, 0.3, 0.6, 0.9)]
    assert lengths == sorted(lengths)
    # An AR(1) with 0.6: lag sum 2φ/(1-φ)², level (1+φ)/(1-φ), hence (2φ/(1-φ²))^(2/3) n^(1/3) = 15.2 (Politis and White 2004)
    assert lengths[2] == pytest.approx((2 * 0.6 / (1 - 0.36)) ** (2 / 3) * 10, rel=0.35)
    assert m.block_length(np.arange(300.0)) <= math.ceil(3 * math.sqrt(300))
    assert m.block_length(np.ones(50)) == m.block_length([1.0, 2.0]) == 1.0


@given(st.integers(1, 60), st.floats(1, 30), st.sampled_from(["stationary", "circular"]))
@settings(max_examples=40, deadline=None)
def test_drawn_histories_have_the_right_shape_and_use_every_session_alike(sessions, block, kind):
    rows = np.concatenate(list(m.resamples(sessions, block, 50, np.random.default_rng(1), kind)))
    assert rows.shape == (50, sessions)
    assert rows.min() >= 0
    assert rows.max() < sessions


def test_blocks_have_the_mean_length_asked_for_and_sessions_are_drawn_evenly():
    rows = next(m.resamples(400, 12, 2000, np.random.default_rng(2)))
    breaks = (np.diff(rows) % 400 != 1).mean()
    assert 1 / breaks == pytest.approx(12 / (1 - 1 / 400), rel=0.05)
    counts = np.bincount(rows.ravel(), minlength=400) / rows.size * 400
    assert counts.std() < 0.2
    circular = next(m.resamples(100, 10, 50, np.random.default_rng(2), "circular")).reshape(50, 10, 10)
    assert (np.diff(circular, axis=2) % 100 == 1).all()


def test_the_same_seed_gives_the_same_interval_and_another_seed_nearly_so():
    x = np.random.default_rng(5).normal(0.05, 1, 500)
    assert m.block_bootstrap(x, seed=3) == m.block_bootstrap(x, seed=3)
    one, other = m.block_bootstrap(x, seed=3), m.block_bootstrap(x, seed=4)
    assert one != other
    assert abs(one.low - other.low) < 0.3 * one.error


def test_the_bootstraps_error_of_the_mean_equals_its_closed_form():
    "The variance of the stationary bootstrap's mean is known exactly (Politis and Romano 1994, lemma 1)."
    x, p = ar1(np.random.default_rng(6), 0.5, 1, 120)[0], 1 / 8
    n, c = len(x), x - x.mean()
    ring = [(c * np.roll(c, k)).mean() for k in range(n)]
    exact = (ring[0] + 2 * sum((1 - k / n) * (1 - p) ** k * ring[k] for k in range(1, n))) / n
    found = m.bootstrap(x, block=8, draws=20_000, seed=1)
    assert found.std() == pytest.approx(math.sqrt(exact), rel=0.03)


def test_columns_of_one_session_stay_together():
    x = np.random.default_rng(7).standard_normal((200, 1))
    together = np.hstack([x, x + 0.001])
    gap = m.block_bootstrap(together, lambda s: s[..., 1].mean(axis=1) - s[..., 0].mean(axis=1))
    assert gap.high - gap.low < 1e-12


def test_the_deflated_sharpe_ratio_of_the_paper():
    chosen = Record(2.5, 1250, skew=-3, kurtosis=10, periods=250)
    found = m.deflated_sharpe(chosen, Trials(100, 0.5))
    assert round(found.probability, 4) == 0.9004
    assert round(Trials(100, 0.5).hurdle / math.sqrt(250), 4) == 0.1132
    assert round(m.deflated_sharpe(chosen, Trials(46, 0.5)).probability, 4) == 0.9505
    normal = Record(2.5, 1250, periods=250)
    assert round(m.deflated_sharpe(normal, Trials(88, 0.5)).probability, 4) == 0.9505


def test_minimum_track_records_of_the_paper():
    years = lambda per_year, **kw: m.minimum_track_record(Record(2, 10, periods=per_year, **kw), 1) / per_year
    assert round(years(12), 2) == 3.24
    assert round(years(52), 2) == 2.83
    assert round(years(252), 2) == 2.73
    assert round(years(12, skew=-0.72, kurtosis=5.78), 2) == 4.99


@given(st.floats(0.1, 2), st.floats(-2, 2), st.floats(0.9, 0.99))
@settings(max_examples=40, deadline=None)
def test_a_record_of_the_minimum_length_is_just_significant(value, skew, confidence):
    record = Record(value, 100, skew=skew, kurtosis=3 + skew**2)
    long = m.minimum_track_record(record, 0.0, confidence)
    exact = Record(value, long, skew=skew, kurtosis=3 + skew**2)
    assert m.probabilistic_sharpe(exact) == pytest.approx(confidence, abs=1e-9)
    assert m.minimum_track_record(record, benchmark=value + 0.1) == math.inf


def test_the_probability_of_a_sharpe_ratio_is_uniform_when_the_benchmark_is_the_truth():
    rng = np.random.default_rng(14)
    truth = 1.5
    samples = truth / np.sqrt(252) + rng.standard_t(6, (800, 504)) * np.sqrt(4 / 6)
    shares = [m.probabilistic_sharpe(x, truth) for x in samples]
    assert stats.kstest(shares, "uniform").pvalue > 0.01
    assert math.isnan(m.probabilistic_sharpe([0.01] * 20))
    assert math.isnan(m.minimum_track_record([0.01]))


def test_quantstats_agrees_on_the_probabilistic_sharpe_ratio_but_for_its_moments():
    import warnings

    import pandas as pd

    x = 0.0008 + 0.01 * np.random.default_rng(15).standard_t(4, 750)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from quantstats import stats as qs

        theirs = qs.probabilistic_sharpe_ratio(pd.Series(x, pd.bdate_range("2020-01-01", periods=750)))
    unbiased = Record(sharpe(x), 750, stats.skew(x, bias=False), stats.kurtosis(x, bias=False) + 3)
    assert m.probabilistic_sharpe(unbiased) == pytest.approx(theirs, rel=1e-9)
    assert m.probabilistic_sharpe(x) == pytest.approx(theirs, abs=1e-3)


def test_the_hurdle_is_the_expected_maximum_of_trials_without_merit():
    rng = np.random.default_rng(16)
    for count in (2, 5, 20, 100, 1000):
        simulated = rng.standard_normal((4000, count)).max(axis=1).mean() * 0.7
        assert Trials(count, 0.49).hurdle == pytest.approx(simulated, abs=0.06)
    assert Trials(1, 0.5).hurdle == Trials.of([1.2]).hurdle == 0.0


def test_searches_among_noise_are_not_taken_for_skill():
    rng = np.random.default_rng(17)
    found, alone, searches, trials = 0, 0, 300, 30
    for _ in range(searches):
        returns = 0.01 * rng.standard_t(5, (500, trials))
        ratios = m.sharpe_of(returns.T)
        best = returns[:, ratios.argmax()]
        found += m.deflated_sharpe(best, ratios).probability > 0.95
        alone += m.probabilistic_sharpe(best) > 0.95
    assert found / searches <= 0.05
    assert alone / searches > 0.7


def test_true_skill_survives_the_deflation():
    rng = np.random.default_rng(18)
    returns = 0.01 * rng.standard_normal((2520, 20))
    returns[:, 3] += 2 / np.sqrt(252) * 0.01
    best = m.deflated_sharpe(returns[:, 3], m.sharpe_of(returns.T))
    assert best.probability > 0.95
    assert best.trials == 20


def test_trials_that_resemble_one_another_count_less():
    rng = np.random.default_rng(19)
    common, own = rng.standard_normal((1000, 1)), rng.standard_normal((1000, 10))
    assert Trials.of_returns(own).count == pytest.approx(10, abs=0.5)
    assert Trials.of_returns(np.sqrt(0.8) * common + np.sqrt(0.2) * own).count == pytest.approx(0.8 + 0.2 * 10, abs=0.3)
    assert Trials.of_returns(own[:, :1]).count == 1


def test_a_failed_trial_counts_although_it_has_no_sharpe_ratio():
    ratios = [0.3, float("nan"), -0.2, 1.1]
    assert Trials.of(ratios).count == 4
    assert Trials.of(ratios).variance == pytest.approx(np.var([0.3, -0.2, 1.1], ddof=1))


def test_moments_that_no_distribution_has_are_refused():
    with pytest.raises(InputError, match="normal one has 3"):
        Record(1.0, 100, skew=-1, kurtosis=1.9)
    coin = np.tile([0.01, -0.01], 50)
    assert Record.of(coin).kurtosis == pytest.approx(1.0)
    assert m.probabilistic_sharpe(coin) == pytest.approx(0.5)


def brute_force(returns, partitions):
    "The definition, one split after the other."
    parts = np.array_split(np.arange(len(returns)), partitions)
    logits, seen, unseen = [], [], []
    for chosen in combinations(range(partitions), partitions // 2):
        inside = np.concatenate([parts[i] for i in chosen])
        outside = np.setdiff1d(np.arange(len(returns)), inside)
        scores = [[sharpe(returns[rows, k]) for k in range(returns.shape[1])] for rows in (inside, outside)]
        best = int(np.argmax(scores[0]))
        share = stats.rankdata(scores[1])[best] / (returns.shape[1] + 1)
        logits.append(math.log(share / (1 - share)))
        seen.append(scores[0][best])
        unseen.append(scores[1][best])
    return np.array(logits), np.array(seen), np.array(unseen)


@given(st.integers(0, 1000), st.integers(2, 6), st.sampled_from([2, 4, 6]))
@settings(max_examples=15, deadline=None)
def test_the_probability_of_overfitting_equals_its_definition(seed, trials, partitions):
    rng = np.random.default_rng(seed)
    returns = 0.0003 + 0.01 * rng.standard_t(4, (partitions * 12, trials))
    ours, (logits, seen, unseen) = m.overfitting_probability(returns, partitions), brute_force(returns, partitions)
    assert ours.logits == pytest.approx(logits, abs=1e-9)
    assert ours.in_sample == pytest.approx(seen, rel=1e-9)
    assert ours.out_of_sample == pytest.approx(unseen, rel=1e-9)
    assert ours.probability == (logits <= 0).mean()


def test_on_noise_choosing_is_worth_nothing_and_skill_is_found():
    rng = np.random.default_rng(20)
    fields = [0.01 * rng.standard_normal((480, 20)) for _ in range(60)]
    noise = np.mean([m.overfitting_probability(f, 8).probability for f in fields])
    assert 0.42 < noise < 0.58
    for field in fields:
        field[:, 7] += 4 / np.sqrt(252) * 0.01
    assert np.mean([m.overfitting_probability(f, 8).probability for f in fields]) < 0.05


def test_identical_trials_and_idle_ones_do_no_harm():
    x = 0.01 * np.random.default_rng(21).standard_normal((160, 1))
    same = m.overfitting_probability(np.hstack([x, x, x]), 8)
    assert same.probability == 1.0
    assert set(same.logits) == {0.0}
    idle = m.overfitting_probability(np.hstack([x, np.zeros((160, 1))]), 8)
    assert np.isfinite(idle.logits).all()
    missing = np.hstack([x, -x])
    missing[5, 0] = np.nan
    assert m.overfitting_probability(missing, 8).logits.shape == (70,)


@pytest.mark.parametrize(
    ("shape", "partitions"), [((100, 1), 4), ((100,), 4), ((100, 3), 5), ((7, 3), 4), ((100, 3), 0)]
)
def test_a_search_that_cannot_be_judged_is_refused(shape, partitions):
    with pytest.raises(InputError):
        m.overfitting_probability(np.zeros(shape), partitions)
