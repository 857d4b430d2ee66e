"Walk-forward windows never let a training label see the future on which the model is judged."

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradenb.core.errors import InputError
from tradenb.models.splits import WalkForward, folds, gap, latest, sessions_needed

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
