"No training label ever touches a bar on which the model is judged: every sample's bars are written out and compared."

from itertools import combinations, pairwise
from math import comb

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import TimeSeriesSplit

from tradenb.core.errors import InputError
from tradenb.models.splits import (
    Combinatorial,
    WalkForward,
    combinatorial_folds,
    folds,
    gap,
    group_windows,
    latest,
    on_paths,
    path_folds,
    sessions_needed,
)

lengths = st.integers(1, 60)
plans = st.builds(
    WalkForward,
    scheme=st.sampled_from(["rolling", "expanding"]),
    train=lengths,
    valid=lengths,
    test=lengths,
    embargo=st.integers(0, 10),
    horizon=st.integers(1, 20),
    warmup=st.integers(0, 60),
)


def label_sessions(window, horizon):
    "Every session whose price is in a label of the window, worked out from the definition of the label."
    return {t + 1 + h for t in range(window.start, window.stop) for h in range(horizon + 1)}


@given(plans, st.integers(0, 400))
def test_no_label_of_a_window_touches_a_later_window_or_its_embargo(walk, extra):
    for fold in folds(walk, sessions_needed(walk) + extra):
        for before, after in ((fold.train, fold.valid), (fold.valid, fold.test), (fold.train, fold.test)):
            guarded = set(range(after.start - walk.embargo, after.stop)) | label_sessions(after, walk.horizon)
            assert not set(range(before.start, before.stop)) & guarded
            assert max(label_sessions(before, walk.horizon)) < after.start - walk.embargo


@given(plans, st.integers(0, 400))
def test_test_windows_follow_one_another_and_reach_the_last_session(walk, extra):
    sessions = sessions_needed(walk) + extra
    plan = folds(walk, sessions)
    assert all(a.test.stop == b.test.start for a, b in pairwise(plan))
    assert plan[-1].test.stop == sessions
    assert [f.number for f in plan] == list(range(1, len(plan) + 1))


@given(plans, st.integers(0, 300), st.integers(0, 100))
def test_a_longer_history_leaves_earlier_folds_as_they_were(walk, extra, more):
    sessions = sessions_needed(walk) + extra
    assert folds(walk, sessions + more)[: len(folds(walk, sessions)) - 1] == folds(walk, sessions)[:-1]


@given(plans, st.integers(0, 300))
def test_windows_have_the_lengths_asked_for_and_respect_the_warmup(walk, extra):
    for fold in folds(walk, sessions_needed(walk) + extra):
        assert fold.train.start >= walk.warmup
        assert len(fold.valid) == walk.valid
        assert 1 <= len(fold.test) <= walk.test
        assert len(fold.train) == walk.train if walk.scheme == "rolling" else len(fold.train) >= walk.train


@given(plans, st.integers(0, 300))
def test_the_production_model_uses_every_label_that_is_known_and_no_other(walk, extra):
    sessions = walk.warmup + walk.train + walk.valid + gap(walk) + 1 + walk.horizon + extra
    fold = latest(walk, sessions)
    assert max(label_sessions(fold.valid, walk.horizon)) == sessions - 1
    assert max(label_sessions(fold.train, walk.horizon)) < fold.valid.start
    assert not len(fold.test)


@given(plans)
def test_one_session_too_few_is_refused_with_the_number_needed(walk):
    with pytest.raises(InputError, match=str(sessions_needed(walk))):
        folds(walk, sessions_needed(walk) - 1)
    need = walk.warmup + walk.train + walk.valid + gap(walk) + 1 + walk.horizon
    assert latest(walk, need)
    with pytest.raises(InputError, match=f"expected {need}"):
        latest(walk, need - 1)


@pytest.mark.parametrize("bad", [{"scheme": "sideways"}, {"train": 0}, {"embargo": -1}, {"horizon": 0}])
def test_an_impossible_plan_is_refused(bad):
    with pytest.raises(InputError):
        WalkForward(**bad)


def label_bars(t, horizon):
    "The bars that a label is made of, from `Ref($close, -1-h) / Ref($close, -1) - 1`: bought at t + 1, sold at t + 1 + h."
    return set(range(t + 1, t + 2 + horizon))


def feature_bars(t, halo):
    return set(range(t - halo, t + 1))


def bars_of(rows, horizon, halo):
    labels = set().union(*(label_bars(t, horizon) for t in rows), set())
    features = set().union(*(feature_bars(t, halo) for t in rows), set())
    return labels, features


@given(plans, st.integers(0, 200))
def test_a_walk_never_learns_from_a_bar_that_judges_it(walk, extra):
    for fold in [
        *folds(walk, sessions_needed(walk) + extra),
        latest(walk, sessions_needed(walk) + extra + walk.horizon),
    ]:
        train, valid, test = (range(w.start, w.stop) for w in (fold.train, fold.valid, fold.test))
        for learnt, judged in ((train, valid), (train, test), (valid, test)):
            labels, features = bars_of(learnt, walk.horizon, 0)
            exam, _ = bars_of(judged, walk.horizon, 0)
            assert not (labels | features) & (exam | set(judged))


@given(st.integers(5, 30), st.integers(1, 20), st.integers(1, 8), st.integers(0, 6), st.integers(0, 100))
def test_a_rolling_walk_equals_scikit_learns_with_the_same_gap(train, step, horizon, embargo, extra):
    walk = WalkForward("rolling", train, step, step, embargo, horizon)
    plan = folds(walk, sessions_needed(walk) + extra)
    assume(len(plan) > 1)
    theirs = TimeSeriesSplit(len(plan), max_train_size=train, test_size=step, gap=gap(walk))
    for fold, (fit, judge) in zip(plan, theirs.split(np.zeros(plan[-1].valid.stop)), strict=True):
        assert (fold.train.start, fold.train.stop - 1) == (fit[0], fit[-1])
        assert (fold.valid.start, fold.valid.stop - 1) == (judge[0], judge[-1])


plans_in_groups = st.builds(
    lambda groups, share, embargo, horizon, halo: Combinatorial(
        groups, 1 + share % (groups - 1), embargo, horizon, halo
    ),
    st.integers(2, 7),
    st.integers(0, 6),
    st.none() | st.integers(0, 12),
    st.integers(1, 6),
    st.integers(0, 12),
)


def laid_out(plan, sessions):
    try:
        return combinatorial_folds(plan, sessions)
    except InputError:
        assume(False)


@given(plans_in_groups, st.integers(20, 160))
@settings(max_examples=60, deadline=None)
def test_no_training_label_of_a_combinatorial_fold_touches_a_bar_of_the_test(plan, sessions):
    for fold in laid_out(plan, sessions):
        train, test = (np.flatnonzero(m) for m in (fold.train_mask(sessions), fold.test_mask(sessions)))
        learnt, _ = bars_of(train, plan.horizon, plan.halo)
        exam, _ = bars_of(test, plan.horizon, plan.halo)
        assert not learnt & (exam | set(test))
        assert not set(train) & exam


@given(plans_in_groups, st.integers(20, 160))
@settings(max_examples=60, deadline=None)
def test_by_default_no_feature_after_a_test_block_looks_back_on_it(plan, sessions):
    plan = Combinatorial(plan.groups, plan.test_groups, None, plan.horizon, plan.halo)
    for fold in laid_out(plan, sessions):
        for w in fold.test:
            exam = bars_of(range(w.start, w.stop), plan.horizon, 0)[0] | set(range(w.start, w.stop))
            later = [t for t in np.flatnonzero(fold.train_mask(sessions)) if t >= w.stop]
            assert not bars_of(later, plan.horizon, plan.halo)[1] & exam


@given(plans_in_groups, st.integers(20, 120))
@settings(max_examples=60, deadline=None)
def test_nothing_more_is_left_out_than_a_search_over_all_samples_finds(plan, sessions):
    "Independent of the windows: sample by sample, by the sets of bars alone."
    plan = Combinatorial(plan.groups, plan.test_groups, None, plan.horizon, plan.halo)
    for fold in laid_out(plan, sessions)[:6]:
        keep = np.zeros(sessions, bool)
        for t in range(plan.halo, sessions):
            clear = not fold.test_mask(sessions)[t]
            for w in fold.test:
                exam = bars_of(range(w.start, w.stop), plan.horizon, 0)[0] | set(range(w.start, w.stop))
                after = t >= w.stop and (feature_bars(t, plan.halo) & exam)
                clear &= not (label_bars(t, plan.horizon) & exam) and not after
            keep[t] = clear
        assert np.array_equal(fold.train_mask(sessions), keep)


@given(plans_in_groups, st.integers(20, 160))
@settings(max_examples=60, deadline=None)
def test_folds_hold_out_every_choice_of_groups_and_each_session_equally_often(plan, sessions):
    plan_folds = laid_out(plan, sessions)
    assert [f.held_out for f in plan_folds] == list(combinations(range(plan.groups), plan.test_groups))
    held = np.sum([f.test_mask(sessions) for f in plan_folds], axis=0)
    assert set(held[plan.halo :]) == {plan.paths}
    assert not held[: plan.halo].any()
    lengths = [len(w) for w in group_windows(plan, sessions)]
    assert max(lengths) - min(lengths) <= 1


@given(plans_in_groups)
def test_paths_use_every_held_out_group_of_every_fold_once(plan):
    table = path_folds(plan)
    assert table.shape == (plan.paths, plan.groups)
    assert plan.paths == comb(plan.groups, plan.test_groups) * plan.test_groups // plan.groups
    held = list(combinations(range(plan.groups), plan.test_groups))
    used = sorted((int(fold), g) for row in table for g, fold in enumerate(row))
    assert used == sorted((n, g) for n, groups in enumerate(held, 1) for g in groups)


@given(plans_in_groups, st.integers(20, 90))
@settings(max_examples=30, deadline=None)
def test_each_path_is_one_complete_history_and_uses_each_prediction_once(plan, sessions):
    dates = np.datetime64("2020-01-01") + np.arange(sessions)
    plan_folds = laid_out(plan, sessions)
    rows = [(d, f.number, f"{f.number}/{d}") for f in plan_folds for d in dates[f.test_mask(sessions)].tolist()]
    frame = pl.DataFrame(rows, {"date": pl.Date, "fold": pl.Int32, "id": pl.String}, orient="row")
    joined = on_paths(plan, frame, dates)
    assert sorted(joined["id"]) == sorted(frame["id"])
    for (_,), path in joined.group_by("path"):
        assert path["date"].to_list() == dates[plan.halo :].tolist()


@pytest.mark.parametrize(
    "bad", [{"test_groups": 0}, {"test_groups": 10}, {"embargo": -1}, {"horizon": 0}, {"halo": -1}]
)
def test_an_impossible_choice_of_groups_is_refused(bad):
    with pytest.raises(InputError):
        Combinatorial(**bad)
    with pytest.raises(InputError, match="at least 70"):
        group_windows(Combinatorial(halo=60), 69)
