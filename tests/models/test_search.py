"A search keeps every trial, goes on where it was killed, and never sees the sessions its winner is judged on."

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tradenb.core.errors import InputError
from tradenb.features.sets import FeatureSet
from tradenb.models.search import OneOf, Real, Search, Whole, outcome, search
from tradenb.models.training import prepared, train

from .conftest import SMALL, reverting_panel

FEW = FeatureSet.of(
    "few", {"LAST": "$close/Ref($close,1)-1", "MA5": "Mean($close,5)/$close", "STD10": "Std($close,10)/$close"}
)
SPACE = {"learning_rate": Real(0.02, 0.3, log=True), "num_leaves": Whole(2, 12), "bagging_fraction": Real(0.5, 1.0)}
CONFIG = replace(SMALL, walk=replace(SMALL.walk, warmup=10))
MARKET = reverting_panel(24, 330, seed=11)
UNTIL = MARKET.dates[279].item()


@pytest.fixture(scope="module")
def found() -> Search:
    return search(MARKET, FEW, CONFIG, UNTIL, SPACE, trials=6)


def test_the_recipe_as_it_stands_is_the_first_trial(found):
    first = found.trials.row(0, named=True)
    assert {name: first[name] for name in SPACE} == {name: getattr(CONFIG, name) for name in SPACE}
    assert first["rank_ic"] == outcome(prepared(MARKET.until(UNTIL), FEW, CONFIG), CONFIG).rank_ic


def test_a_trial_is_what_a_training_on_the_same_sessions_shows(found):
    "The shared bins of a search change nothing."
    result = train(MARKET.until(UNTIL), FEW, found.best)
    assert found.rank_ic == pytest.approx(result.metrics["rank_ic"], abs=1e-15)
    chosen = found.trials.row(found.chosen, named=True)
    assert chosen["sharpe"] == pytest.approx(result.metrics["long_short_sharpe"], rel=1e-12)
    assert chosen["trees"] == result.fold_metrics["trees"].mean()


def test_the_best_trial_is_chosen_and_all_are_kept(found):
    assert found.trials["trial"].to_list() == list(range(6))
    assert found.rank_ic == found.trials["rank_ic"].max()
    assert found.returns.columns == ["date", *map(str, range(6))]
    assert found.deflated.trials <= 6 and found.deflated.hurdle > 0
    assert f"after {UNTIL}" in found.verdict and "6 trials" in found.verdict
    assert set(found.importance["field"]) == set(SPACE)


def test_the_sessions_after_until_change_nothing(found):
    later = MARKET.dates > np.datetime64(UNTIL)
    fields = {f: np.where(later, x * np.float32(2), x) for f, x in MARKET.fields.items()}
    other = search(replace(MARKET, fields=fields), FEW, CONFIG, UNTIL, SPACE, trials=6)
    assert other.trials.equals(found.trials) and other.name == found.name
    assert found.returns["date"].max() < UNTIL


def test_changed_bars_or_another_seed_are_another_search(found):
    fields = MARKET.fields | {"close": MARKET.fields["close"] * np.float32(1.5)}
    changed = search(replace(MARKET, fields=fields), FEW, CONFIG, UNTIL, SPACE, trials=1)
    assert len({found.name, changed.name, search(MARKET, FEW, CONFIG, UNTIL, SPACE, trials=1, seed=8).name}) == 3


def test_a_killed_search_goes_on_where_it_stood(found, tmp_path):
    "The process is killed in the middle of a trial, which counts as failed; the trials before it are not repeated."
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.models.test_search import *
search(MARKET, FEW, CONFIG, UNTIL, SPACE, trials=500, storage="sqlite:///{tmp_path}/s.db", progress=lambda *a: print(*a, flush=True))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ)
    for line in process.stdout:
        if "trial 3 of" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = search(MARKET, FEW, CONFIG, UNTIL, SPACE, trials=6, storage=f"sqlite:///{tmp_path}/s.db")
    assert resumed.trials.head(2).drop("reason").equals(found.trials.head(2).drop("reason"))
    assert resumed.trials.height == 6
    failed = resumed.trials.filter(state="failed")
    assert set(failed["reason"]) <= {"interrupted"} and failed.height <= 1


def test_a_trial_that_fails_is_kept_with_its_reason():
    space = {"target": OneOf(("rank", "wish")), "num_leaves": Whole(2, 4)}
    mixed = search(MARKET, FEW, CONFIG, UNTIL, space, trials=5)
    failed = mixed.trials.filter(state="failed")
    assert failed.height and mixed.trials.height == 5
    assert all("training.target is 'wish'" in reason for reason in failed["reason"])
    assert str(failed["trial"][0]) not in mixed.returns.columns
    assert f"{failed.height} of them failed" in mixed.verdict


def test_a_search_for_the_line_has_its_own_space():
    line = search(MARKET, FEW, replace(CONFIG, model="ridge"), UNTIL, trials=2)
    assert line.best.model == "ridge" and "ridge_alpha" in line.trials.columns
    assert line.overfitting(8) is not None


@pytest.mark.parametrize(
    ("space", "message"),
    [({}, "over nothing"), ({"walk": OneOf((1,))}, "over walk"), ({"leaves": Whole(2, 3)}, "over leaves")],
)
def test_what_cannot_be_searched_is_refused(space, message):
    with pytest.raises(InputError, match=message):
        search(MARKET, FEW, CONFIG, UNTIL, space, trials=1)
