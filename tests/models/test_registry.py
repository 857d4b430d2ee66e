"The registry keeps a model's whole story and lets only what fits the code trade."

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from tradenb.core.clock import SimulatedClock
from tradenb.core.errors import InputError, ModelError, NoModelError
from tradenb.models.registry import ModelCard, Registry, booster_file, history, model_tags

CARD = ModelCard(
    vintage={"bars": 4, "universe": 1}, settings_hash="0123456789abcdef", code_version="0.1.0", run_id="r1"
)
CLOCK = SimulatedClock(datetime(2024, 3, 4, 14, tzinfo=UTC))


@pytest.fixture(scope="module")
def registered(tmp_path_factory, result):
    "A registry with two versions, both inactive."
    registry = Registry(tmp_path_factory.mktemp("root"), "momentum", clock=CLOCK)
    return registry, [registry.log_and_register(result, CARD) for _ in range(2)]


def test_versions_count_from_one_and_none_is_active_at_first(registered):
    registry, versions = registered
    assert versions == [1, 2]
    assert registry.champion_version() is None
    with pytest.raises(NoModelError, match="momentum"):
        registry.champion()


def test_a_loaded_model_predicts_like_the_one_that_was_trained(registered, result):
    registry, (version, _) = registered
    x = np.random.default_rng(0).normal(size=(40, 158)).astype(np.float32)
    assert np.array_equal(registry.load(version).predict(x), result.model.predict(x))


def test_a_version_tells_what_it_was_trained_on(registered, result):
    registry, (version, _) = registered
    model = registry.load(version)
    assert model.trained_through == result.trained_through
    assert model.feature_hash == result.feature_set.hash
    assert model.metrics["rank_ic"] == pytest.approx(result.metrics["rank_ic"])
    assert model.tags["vintage"] == '{"bars": 4, "universe": 1}'
    assert (model.tags["settings_hash"], model.tags["code_version"], model.tags["seed"]) == (
        "0123456789abcdef",
        "0.1.0",
        "7",
    )


def test_a_version_says_when_it_learnt_from_survivors(result):
    said = "Survivorship: the symbols of 'files' have no membership history"
    assert model_tags(result, replace(CARD, survivorship=said))["survivorship"] == said
    assert "survivorship" not in model_tags(result, CARD)


def test_the_run_holds_params_pictures_tables_and_a_child_per_fold(registered, result):
    registry, _ = registered
    client = registry.client
    runs = client.search_runs([registry.experiment_id()], max_results=100)
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(parents) == 2
    assert len(children) == len(result.folds)
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert parents[0].data.params["num_leaves"] == "7"
    files = {f.path for f in client.list_artifacts(parents[0].info.run_id)}
    assert files >= {"folds.png", "rank_ic_by_month.png", "quantile_returns.png", "importance.png", "tables"}
    scores = client.get_metric_history(parents[0].info.run_id, "fold_rank_ic")
    assert [m.value for m in sorted(scores, key=lambda m: m.step)] == result.fold_metrics["rank_ic"].to_list()


def test_the_signature_names_every_feature_in_order(registered, result):
    from mlflow.models import get_model_info

    registry, (version, _) = registered
    inputs = get_model_info(f"models:/{registry.name}/{version}").signature.inputs
    assert tuple(inputs.input_names()) == result.feature_set.names


def test_activation_rollback_and_deactivation_are_recorded_with_who_when_and_why(registered, engine):
    plain, (first, second) = registered
    registry = Registry(plain.root, plain.name, engine=engine, clock=CLOCK)
    registry.activate(first, "ada", "first")
    registry.activate(second, "job train", "21 sessions old")
    assert registry.champion().version == second
    registry.activate(first, "grace", "rollback")
    assert registry.champion().version == first
    assert registry.versions().filter(registry.versions()["champion"])["version"].to_list() == [first]
    registry.deactivate("grace", "holiday")
    assert registry.champion_version() is None
    story = history(engine, registry.name)
    assert story["action"].to_list() == ["activate", "activate", "activate", "deactivate"]
    assert story.row(2, named=True) == {
        "version": first,
        "action": "activate",
        "who": "grace",
        "why": "rollback",
        "at": CLOCK.now(),
    }


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("feature_hash", "0" * 64, "train again"),
        ("digest", "f" * 64, "was changed"),
        ("feature_set", "alpha159", "alpha159"),
    ],
)
def test_a_version_that_does_not_fit_is_refused_and_the_champion_stays(registered, tag, value, message):
    registry, (first, second) = registered
    registry.activate(first, "ada", "baseline")
    kept = registry.load(second).tags[tag]
    registry.client.set_model_version_tag(registry.name, str(second), tag, value)
    try:
        with pytest.raises(ModelError, match=message):
            registry.activate(second, "ada", "hope")
        assert registry.champion_version() == first
    finally:
        registry.client.set_model_version_tag(registry.name, str(second), tag, kept)


def test_a_lost_artifact_and_an_unknown_version_are_named(registered, tmp_path):
    registry, (_, second) = registered
    path = booster_file(registry, f"models:/{registry.name}/{second}")
    path.rename(tmp_path / "away")
    try:
        with pytest.raises(ModelError, match=r"model\.lgb"):
            registry.load(second)
    finally:
        (tmp_path / "away").rename(path)
    with pytest.raises(NoModelError, match="no version 99"):
        registry.load(99)


def test_an_activation_without_a_name_or_a_reason_is_refused(registered):
    registry, (first, _) = registered
    with pytest.raises(InputError):
        registry.activate(first, " ", "why not")


def test_the_registry_runs_on_postgresql_too(tmp_path, postgres_url, result):
    registry = Registry(tmp_path, "onpg", uri=postgres_url.replace("+psycopg", "+psycopg"))
    registry.activate(registry.log_and_register(result, CARD), "ada", "first")
    assert registry.champion().version == 1
