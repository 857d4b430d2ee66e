"A training leaves a record that can be read back, compared and counted; one that is killed leaves nothing in the way."

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

from tradenb.core.errors import ModelError
from tradenb.features.sets import feature_set
from tradenb.models.drift import Reference
from tradenb.models.inference import newey_west
from tradenb.models.registry import Registry
from tradenb.models.search import Whole, search
from tradenb.models.tracking import (
    GOLDEN,
    REFERENCE,
    ModelCard,
    Tracking,
    compare,
    environment,
    every_run,
    intervals,
    local,
    log_search,
    log_training,
    paired,
    record,
    trials,
)
from tradenb.models.training import train

from .conftest import SMALL

CARD = ModelCard(vintage={"bars": 4, "universe": 1}, settings_hash="0123456789abcdef", run_id="r1")
NOW = datetime(2024, 3, 4, 14, tzinfo=UTC)


@pytest.fixture(scope="module")
def logged(tmp_path_factory, root_with_mlflow, result) -> tuple[Tracking, str]:
    tracking = Tracking(root_with_mlflow(tmp_path_factory.mktemp("root")), "momentum")
    return tracking, log_training(tracking, result, CARD, NOW)


@pytest.fixture(scope="module")
def ridge(market):
    return train(market, feature_set("alpha158"), replace(SMALL, model="ridge"))


def test_the_run_holds_params_metrics_and_a_child_per_fold(logged, result):
    tracking, run_id = logged
    client = tracking.client
    runs = list(every_run(client, tracking.experiment_id()))
    (parent,) = (run for run in runs if run.data.tags["kind"] == "training")
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == run_id]
    assert parent.info.run_id == run_id and len(children) == len(result.folds) == len(runs) - 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.info.start_time for run in runs} == {int(NOW.timestamp() * 1000)}
    params = {name: str(value) for name, value in result.config.params().items() if value is not None}
    assert parent.data.params == params
    assert parent.data.metrics["rank_ic"] == result.metrics["rank_ic"]
    assert parent.data.metrics["names"] == result.ic["names"].median()
    scores = client.get_metric_history(run_id, "fold_rank_ic")
    assert [m.value for m in sorted(scores, key=lambda m: m.step)] == result.fold_metrics["rank_ic"].to_list()


def test_the_run_says_on_what_by_which_code_and_where(logged, result):
    tracking, run_id = logged
    tags = tracking.client.get_run(run_id).data.tags
    assert tags["vintage"] == '{"bars": 4, "universe": 1}'
    told = {
        name: tags[name] for name in ("settings_hash", "run_id", "feature_hash", "seed", "trained_through", "model")
    }
    assert told == {
        "settings_hash": "0123456789abcdef", "run_id": "r1", "feature_hash": result.feature_set.hash, "seed": "7",
        "trained_through": result.trained_through.isoformat(), "model": "lightgbm",
    }  # fmt: skip
    assert "survivorship" not in tags
    said = "Survivorship: the symbols of 'files' have no membership history"
    assert replace(CARD, survivorship=said).tags()["survivorship"] == said
    here = environment()
    assert {"python", "platform", "lightgbm", "numpy", "mlflow", "lock"} <= set(here)


def test_pictures_are_svg_and_tables_and_papers_are_beside_them(logged, result):
    tracking, run_id = logged
    folder = local(tracking, tracking.client.get_run(run_id).info.artifact_uri)
    pictures = {path.stem: ElementTree.parse(path).getroot().tag for path in (folder / "figures").iterdir()}
    assert set(pictures) == {"folds", "ic", "rank_ic_by_month", "quantile_returns", "importance"}
    assert set(pictures.values()) == {"{http://www.w3.org/2000/svg}svg"}
    kept = record(tracking, run_id)
    assert set(kept.tables) == {"predictions", "ic", "fold_metrics", "importance", "shap"}
    assert kept.tables["predictions"].equals(result.predictions)
    assert kept.tables["shap"].equals(result.shap)
    with np.load(folder / GOLDEN) as golden:
        assert np.array_equal(golden["x"], result.golden.x, equal_nan=True)
        assert np.array_equal(golden["prediction"], result.golden.prediction)
    reference = Reference.from_json((folder / REFERENCE).read_text())
    assert np.array_equal(reference.shares, result.reference.shares)


@pytest.mark.parametrize("kind", ["lightgbm", "ridge"])
def test_mlflow_s_own_loader_serves_every_kind_with_the_same_bits(kind, logged, result, ridge):
    import mlflow

    tracking, run_id = logged
    fitted = {"lightgbm": result, "ridge": ridge}[kind]
    if kind == "ridge":
        run_id = log_training(tracking, ridge, CARD, NOW)
    model_id = tracking.client.get_run(run_id).outputs.model_outputs[0].model_id
    mlflow.set_tracking_uri(tracking.tracking_uri)
    served = mlflow.pyfunc.load_model(f"models:/{model_id}")
    assert tuple(served.metadata.signature.inputs.input_names()) == fitted.feature_set.names
    rows = pl.DataFrame(fitted.golden.x, schema=list(fitted.model.names), orient="row").to_pandas()
    assert np.asarray(served.predict(rows)).tobytes() == fitted.golden.prediction.tobytes()
    shuffled = rows[rows.columns[::-1]]
    assert np.asarray(served.predict(shuffled)).tobytes() == fitted.golden.prediction.tobytes()


def test_a_run_that_is_not_there_is_named(logged, tmp_path):
    with pytest.raises(ModelError, match="no run 0000 in momentum"):
        record(logged[0], "0000")
    with pytest.raises(ModelError, match="no training is recorded"):
        record(Tracking(tmp_path / "nothing", "momentum"), "0000")


# Counting


def test_every_training_and_every_trial_counts_once(market, tmp_path, root_with_mlflow, result):
    tracking = Tracking(root_with_mlflow(tmp_path), "counted")
    log_training(tracking, result, CARD, NOW)
    few = replace(SMALL, rounds=3)
    space = {"num_leaves": Whole(2, 6)}
    asked = (market, feature_set("alpha158"), few, market.dates[-1].item(), space)
    storage = f"sqlite:///{tmp_path}/search.db"
    log_search(tracking, search(*asked, trials=1, storage=storage), CARD, NOW)
    whole = search(*asked, trials=3, storage=storage)  # went on later
    run_id = log_search(tracking, whole, CARD, NOW)
    counted = trials(tracking)
    assert sorted(counted["kind"]) == ["search"] * 3 + ["training"]
    assert counted["at"].to_list() == [NOW] * 4
    assert sorted(counted.filter(kind="search")["sharpe"]) == pytest.approx(sorted(whole.trials["sharpe"]))
    parent = tracking.client.get_run(run_id)
    assert parent.data.metrics["trials"] == 3 and parent.data.tags["verdict"] == whole.verdict


def test_a_killed_training_leaves_a_run_that_is_in_nobody_s_way(tmp_path, root_with_mlflow, result):
    root_with_mlflow(tmp_path)
    writer = Path(__file__).with_name("registry_writer.py")
    died = subprocess.run([sys.executable, "-W", "ignore", str(writer), "log", str(tmp_path)], capture_output=True)
    assert died.returncode == -9
    registry = Registry(tmp_path, "momentum")
    runs = list(every_run(registry.client, registry.experiment_id()))
    (left,) = (run for run in runs if run.data.tags["kind"] == "training")
    assert left.info.status == "RUNNING"
    assert len(registry.versions()) == 0 and registry.champion_version() is None
    with pytest.raises(ModelError, match="is RUNNING and has 0 models"):
        registry.register(left.info.run_id, "ada", "hope")
    version = registry.log_and_register(result, CARD)
    assert version == 1
    assert registry.activate(version, "ada", "first").version == 1


# Comparing


def test_a_difference_is_judged_on_the_rows_that_both_predicted(result):
    rows = result.predictions
    better = rows.with_columns(prediction=pl.col("label").fill_null(0.0))
    fourth = sorted(set(rows["symbol"]))[3]
    daily = paired(rows, better.filter(pl.col("symbol") > fourth))
    assert len(daily) == rows["date"].n_unique()
    assert daily["b"].to_list()[:-2] == pytest.approx([1.0] * (len(daily) - 2)) and daily["a"].mean() < 0.5
    one = daily["date"][5]
    shared = rows.filter((pl.col("date") == one) & (pl.col("symbol") > fourth))
    by_hand = spearmanr(shared["prediction"], shared["label"]).statistic
    assert daily.filter(date=one)["a"].item() == pytest.approx(by_hand)


def test_a_better_model_is_called_better_and_noise_is_not(logged, result, ridge):
    tracking, run_id = logged
    kept = record(tracking, run_id)
    noise = np.random.default_rng(3).normal(0, 1, kept.tables["predictions"].height)
    blind = replace(kept, tables={"predictions": kept.tables["predictions"].with_columns(prediction=noise)})
    assert compare(blind, kept).verdict.startswith("B ranks better")
    assert compare(kept, blind).verdict.startswith("A ranks better")
    same = compare(kept, kept)
    assert same.verdict.startswith("Neither") and same.correlation == pytest.approx(1.0)
    later = replace(kept, tables={"predictions": kept.tables["predictions"].with_columns(pl.col("date").dt.offset_by("9y"))})  # fmt: skip
    assert compare(kept, later).rank_ic is None and "no session in common" in compare(kept, later).verdict


def test_what_differs_is_listed_with_its_intervals(logged, ridge, result):
    tracking, run_id = logged
    a, b = record(tracking, run_id), record(tracking, log_training(tracking, ridge, CARD, NOW))
    found = compare(a, b)
    assert found.params.rows() == [("model", "lightgbm", "ridge")]
    row = found.metrics.row(by_predicate=pl.col("metric") == "rank_ic", named=True)
    expected = newey_west(result.ic["rank_ic"])
    assert (row["a"], row["a_low"], row["a_high"]) == pytest.approx((expected.value, expected.low, expected.high))
    spans = intervals(b)
    assert spans["long_short_sharpe"][0] <= row_of(found, "long_short_sharpe")["b"] <= spans["long_short_sharpe"][1]
    assert date(2018, 1, 2) < found.daily["date"][0]


def row_of(found, metric: str) -> dict[str, float]:
    return found.metrics.row(by_predicate=pl.col("metric") == metric, named=True)
