"The study behind the training defaults: its trials are what they say, and its quick form runs."

import sys
from pathlib import Path

import lightgbm
import numpy as np
import pytest

from pipelines.studies import _table, _trial, defaults
from pipelines.studies._trial import Recipe, early_stop, read_off, windows
from tradenb.models.splits import WalkForward, gap


@pytest.fixture(scope="module")
def table(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> _table.Table:
    "Few symbols, five years."
    return _table.stored(tmp_path_factory.mktemp("study"), quick=True)


@pytest.fixture(scope="module")
def grown(table: _table.Table) -> tuple[lightgbm.Booster, list[float]]:
    "Forty trees, and the loss that each left on the validation window."
    fold = windows(Recipe(), len(table.dates) - 63, len(table.dates))[0]
    train, valid = (table.samples(window, "rank") for window in (fold.train, fold.valid))
    told, losses = Recipe().trees().params(7, 1), {}
    data = lightgbm.Dataset(train.x, train.y, params=told)
    other = lightgbm.Dataset(valid.x, valid.y, reference=data)
    booster = lightgbm.train(told, data, 40, [other], ["v"], callbacks=[lightgbm.record_evaluation(losses)])
    return booster, losses["v"]["l2"]


def test_every_trial_is_judged_on_the_same_sessions_after_purged_windows() -> None:
    for train in (252, 504, 1008, 0):
        plan = windows(Recipe(train=train), 1145, 2400)
        assert plan[0].test.start == 1145 and plan[-1].test.stop == 2400
        for fold in plan:
            assert fold.valid.start - fold.train.stop == fold.test.start - fold.valid.stop == gap(WalkForward())
            assert len(fold.train) == train or (train == 0 and fold.train.start == _trial.HALO)


def test_a_booster_read_off_at_several_numbers_of_trees_is_as_if_grown_to_each(table, grown) -> None:
    booster, _ = grown
    x = np.ascontiguousarray(table.x[:500])
    for trees, predicted in dict(read_off(booster, x, {"a": 7, "b": 40, "c": 20})).values():
        np.testing.assert_allclose(predicted, booster.predict(x, num_iteration=trees), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("patience", [1, 3, 10])
def test_the_early_stop_is_lightgbms(table, grown, patience: int) -> None:
    _, losses = grown
    stop = lightgbm.early_stopping(patience, verbose=False)
    fold = windows(Recipe(), len(table.dates) - 63, len(table.dates))[0]
    train, valid = (table.samples(window, "rank") for window in (fold.train, fold.valid))
    told = Recipe().trees().params(7, 1)
    data = lightgbm.Dataset(train.x, train.y, params=told)
    other = lightgbm.Dataset(valid.x, valid.y, reference=data)
    stopped = lightgbm.train(told, data, 40, [other], callbacks=[stop])
    assert early_stop(losses, patience, least=1) == stopped.best_iteration


def test_the_quick_study_runs_and_its_trials_can_be_read_back(real_data: Path, tmp_path: Path, capsys) -> None:
    assert defaults.main(["--quick", "--folder", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "the choice:" in said and "deflated Sharpe ratio" in said and "probability of overfitting" in said
    assert "ridge" in said


def test_a_trial_survives_its_line(table) -> None:
    trial = _trial.tried(table, Recipe("ridge", every=1), "baselines", len(table.dates) - 40, len(table.dates))[0]
    assert _trial.Trial.of(trial.line()) == trial
    assert trial.sessions == len(trial.daily["net"]) == 38  # the newest two labels are not known
    assert sys.float_info.min < trial.seconds
