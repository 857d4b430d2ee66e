"The registry keeps a model's whole story and lets only what proves itself trade."

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.clock import SimulatedClock
from tradenb.core.db import connect, migrate
from tradenb.core.errors import InputError, ModelError, NoModelError, ServiceUnavailable
from tradenb.models.registry import (
    Entry,
    Gate,
    Registry,
    World,
    aliases,
    golden_check,
    happened,
    recorded,
    settled,
    standing,
    stored,
)
from tradenb.models.tracking import GOLDEN, ModelCard, log_training

CARD = ModelCard(
    vintage={"bars": 4, "universe": 1}, settings_hash="0123456789abcdef", code_version="0.1.0", run_id="r1"
)
NOW = datetime(2024, 3, 4, 14, tzinfo=UTC)


@pytest.fixture(scope="module")
def registered(tmp_path_factory, root_with_mlflow, result):
    "A registry with three versions; tests that decide about them take a copy of their own."
    registry = Registry(root_with_mlflow(tmp_path_factory.mktemp("root")), "momentum", clock=SimulatedClock(NOW))
    return registry, [registry.log_and_register(result, CARD) for _ in range(3)]


@pytest.fixture
def fresh(registered):
    "The registry with nothing active and an empty journal: what a test left is undone."
    registry, versions = registered
    client = registry.client
    for alias in aliases(registry):
        client.delete_registered_model_alias(registry.name, alias)
    for key in client.get_registered_model(registry.name).tags:
        client.delete_registered_model_tag(registry.name, key)
    for version in versions:
        for what in ("by", "why", "at"):
            if f"retired_{what}" in client.get_model_version(registry.name, str(version)).tags:
                client.delete_model_version_tag(registry.name, str(version), f"retired_{what}")
    return registry, versions


# Versions


def test_versions_count_from_one_and_none_is_active_at_first(registered):
    registry, versions = registered
    assert versions == [1, 2, 3]
    assert registry.champion_version() is None
    with pytest.raises(NoModelError, match="momentum"):
        registry.champion()


def test_a_loaded_model_predicts_like_the_one_that_was_trained(registered, result):
    registry, (version, *_) = registered
    x = np.random.default_rng(0).normal(size=(40, 158)).astype(np.float32)
    assert np.array_equal(registry.load(version).predict(x), result.model.predict(x))


def test_a_version_tells_what_it_was_trained_on_and_brings_its_papers(registered, result):
    registry, (version, *_) = registered
    model = registry.load(version)
    assert model.trained_through == result.trained_through
    assert model.feature_hash == result.feature_set.hash
    assert model.metrics["rank_ic"] == pytest.approx(result.metrics["rank_ic"])
    assert model.tags["vintage"] == '{"bars": 4, "universe": 1}'
    told = tuple(model.tags[name] for name in ("settings_hash", "code_version", "seed", "model", "registered_by"))
    assert told == ("0123456789abcdef", "0.1.0", "7", "lightgbm", "run r1")
    assert model.reference is not None and model.reference.to_json() == result.reference.to_json()
    assert np.array_equal(model.golden.x, result.golden.x, equal_nan=True)
    model.prove()


def test_a_run_becomes_a_version_once(registered):
    registry, (version, *_) = registered
    with pytest.raises(InputError, match="is version 1 of momentum already"):
        registry.register(stored(registry, version).run_id, "ada", "twice")
    with pytest.raises(ModelError, match="no run 0000"):
        registry.register("0000", "ada", "guess")


def test_an_unfinished_training_is_not_registered(registered):
    registry, _ = registered
    run = registry.client.create_run(registry.experiment_id()).info.run_id
    with pytest.raises(ModelError, match="is RUNNING and has 0 models"):
        registry.register(run, "ada", "impatient")


# Who trades


def test_each_act_is_recorded_with_who_when_and_why_in_mlflow_and_in_the_platform_s_database(fresh, engine):
    plain, (first, second, third) = fresh
    clock = SimulatedClock(NOW)
    registry = Registry(plain.root, plain.name, engine=engine, clock=clock)
    assert registry.activate(first, "ada", "first").tags["activated_why"] == "first"
    clock.advance(timedelta(hours=1))
    registry.challenge(third, "ada", "other seed")
    registry.activate(second, "job train", "21 sessions old")
    assert (registry.champion().version, registry.challenger().version) == (second, third)
    clock.advance(timedelta(hours=1))
    assert registry.rollback("grace", "turnover doubled").version == first
    registry.challenge(None, "ada", "enough seen")
    registry.retire(second, "grace", "never again")
    assert registry.versions()["state"].to_list() == ["registered", "retired", "champion"]
    registry.deactivate("grace", "holiday")
    assert registry.champion_version() is None
    story = registry.history()
    done = ["activate", "challenge", "activate", "rollback", "withdraw", "retire", "deactivate"]
    assert story["action"].to_list() == done
    assert story["version"].to_list() == [first, third, second, first, third, second, first]
    said = {"version": first, "action": "rollback", "who": "grace", "why": "turnover doubled"}
    assert story.row(3, named=True) == said | {"at": NOW + timedelta(hours=2)}
    assert recorded(engine, registry.name).equals(story)


def test_a_challenger_that_becomes_champion_is_no_longer_the_challenger(fresh):
    registry, (first, second, _) = fresh
    registry.activate(first, "ada", "first")
    registry.challenge(second, "ada", "try")
    with pytest.raises(ModelError, match="is the champion"):
        registry.challenge(first, "ada", "oops")
    assert registry.activate(second, "ada", "better").version == second
    assert dict(aliases(registry)) == {"champion": second}


def test_the_champion_is_not_retired_and_the_retired_never_trade_again(fresh):
    registry, (first, second, _) = fresh
    registry.activate(first, "ada", "first")
    with pytest.raises(ModelError, match="activate another one, or deactivate it, before it is retired"):
        registry.retire(first, "ada", "old")
    registry.challenge(second, "ada", "try")
    registry.retire(second, "ada", "overfitted")
    assert dict(aliases(registry)) == {"champion": first}
    for act in (registry.activate, registry.challenge):
        with pytest.raises(ModelError, match="retired: found by ada because overfitted, expected not retired"):
            act(second, "bob", "hope")
    with pytest.raises(ModelError, match="was retired by ada"):
        registry.retire(second, "bob", "again")


def test_an_act_without_a_name_or_a_reason_is_refused(registered):
    registry, (first, *_) = registered
    for who, why in ((" ", "why not"), ("ada", "")):
        with pytest.raises(InputError, match="needs who and why"):
            registry.activate(first, who, why)


def test_a_registry_that_was_never_used_answers_without_being_made(tmp_path):
    registry = Registry(tmp_path / "nothing")
    assert (registry.champion_version(), registry.challenger(), len(registry.versions())) == (None, None, 0)
    assert (len(registry.history()), len(registry.trials())) == (0, 0)
    for act in (registry.champion, lambda: registry.load(1), lambda: registry.rollback("ada", "why"), lambda: registry.activate(1, "ada", "w")):  # fmt: skip
        with pytest.raises(NoModelError):
            act()
    assert not (tmp_path / "nothing").exists()


# Rollback


def test_rollbacks_step_back_one_champion_at_a_time_and_end_with_a_clear_error(fresh):
    registry, (first, second, third) = fresh
    for version in (first, second, third):
        registry.activate(version, "ada", "newer")
    assert registry.rollback("grace", "bad").version == second
    assert registry.rollback("grace", "bad too").version == first
    with pytest.raises(ModelError, match="no earlier champion of momentum to go back to, version 1 stays the champion"):
        registry.rollback("grace", "all bad")
    assert registry.champion_version() == first


def test_a_rollback_passes_over_versions_that_may_not_trade(fresh):
    registry, (first, second, third) = fresh
    for version in (first, second, third):
        registry.activate(version, "ada", "newer")
    registry.retire(second, "ada", "leaky")
    assert registry.rollback("grace", "bad").version == first


@given(st.lists(st.tuples(st.sampled_from(["activate", "rollback", "deactivate"]), st.integers(1, 4)), max_size=25))
@settings(max_examples=200)
def test_no_rollback_returns_to_what_was_rolled_back_from(acts):
    entries: list[Entry] = []
    for number, (action, version) in enumerate(acts):
        before = standing(entries)
        if action == "rollback":
            choice = before.before()
            assert not before.line or before.line[-1] not in choice
            assert not before.left & set(choice)
            if not choice:
                continue
            version = choice[0]
        elif action == "deactivate" and before.champion is None:
            continue
        entries.append(Entry(number, action, version, "ada", "why", NOW, True))
        after = standing(entries)
        assert after.champion == (None if action == "deactivate" else version)
        if action == "rollback":
            assert before.line[-1] in after.left
            assert len(after.line) < len(before.line)


# The gate


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("feature_hash", "0" * 64, "feature hash: found .* by this code, expected 000000000000"),
        ("digest", "f" * 64, "digest: found .* expected ffffffffffff… as registered: a file was changed"),
        ("feature_set", "alpha159", "feature set: found alpha158, expected alpha159"),
    ],
)
def test_a_version_that_does_not_fit_is_refused_and_the_champion_stays(fresh, tag, value, message):
    registry, (first, second, _) = fresh
    registry.activate(first, "ada", "baseline")
    kept = registry.load(second).tags[tag]
    registry.client.set_model_version_tag(registry.name, str(second), tag, value)
    try:
        with pytest.raises(ModelError, match=message):
            registry.activate(second, "ada", "hope")
        assert registry.champion_version() == first
    finally:
        registry.client.set_model_version_tag(registry.name, str(second), tag, kept)


def test_everything_that_is_wrong_is_said_at_once(registered, engine):
    plain, (version, *_) = registered
    registry = replace(plain, gate=Gate(min_test_sessions=10_000, min_names=500))
    folder = stored(registry, version)
    golden = folder.papers / GOLDEN
    kept = golden.read_bytes()
    with np.load(golden) as arrays:
        x, prediction = arrays["x"], arrays["prediction"]
    try:
        np.savez(golden.open("wb"), x=x, prediction=np.nextafter(prediction, 1))
        failed = [check.name for check in registry.checks(version) if not check.passed]
        assert failed == ["digest", "golden", "sessions", "names"]
        with pytest.raises(
            ModelError, match=r"\(4 of \d+ checks\): digest.*; golden: .* rows differ.*; sessions.*; names"
        ):
            registry.activate(version, "ada", "hope")
    finally:
        golden.write_bytes(kept)


def test_a_golden_prediction_differs_by_its_last_bit(registered):
    registry, (version, *_) = registered
    model = registry.load(version)
    assert golden_check(model).passed
    moved = model.golden.prediction.copy()
    moved[3] = np.nextafter(moved[3], 1)
    other = replace(model, golden=replace(model.golden, prediction=moved))
    assert str(golden_check(other)).startswith("golden: found ")
    with pytest.raises(ModelError, match="in row 3, 1 rows differ"):
        other.prove()


@pytest.mark.parametrize("file", ["MLmodel", "data/fitted/model.lgb", "requirements.txt"])
def test_every_file_of_a_model_is_under_its_digest(registered, file):
    registry, (version, *_) = registered
    path = stored(registry, version).model / file
    kept = path.read_bytes()
    try:
        path.write_bytes(kept + b"\n")
        with pytest.raises(ModelError, match="digest"):
            registry.load(version)
    finally:
        path.write_bytes(kept)


def test_a_lost_artifact_and_an_unknown_version_are_named(registered, tmp_path):
    registry, (_, second, _) = registered
    path = stored(registry, second).fitted / "model.lgb"
    path.rename(tmp_path / "away")
    try:
        with pytest.raises(ModelError, match=r"model\.lgb"):
            registry.load(second)
    finally:
        (tmp_path / "away").rename(path)
    with pytest.raises(NoModelError, match="no version 99"):
        registry.load(99)


def test_a_model_that_was_registered_without_golden_predictions_is_trained_again(registered, tmp_path):
    registry, (_, second, _) = registered
    path = stored(registry, second).papers / GOLDEN
    path.rename(tmp_path / "away")
    try:
        with pytest.raises(ModelError, match=r"golden: found no golden\.npz.*train again"):
            registry.load(second)
    finally:
        (tmp_path / "away").rename(path)


def test_a_model_as_older_versions_stored_it_is_trained_again(registered, result):
    import mlflow

    plain, _ = registered
    registry = replace(plain, name="older")
    client, tags = registry.client, {"feature_set": "alpha158", "feature_hash": "0" * 64, "digest": "1" * 64}
    run = client.create_run(registry.experiment_id(), tags=tags)
    mlflow.set_tracking_uri(registry.tracking_uri)
    with mlflow.start_run(run_id=run.info.run_id):
        info = mlflow.lightgbm.log_model(result.model.booster, name="model", pip_requirements=["lightgbm"])
    client.create_registered_model("older")
    client.create_model_version("older", info.model_uri, run.info.run_id, tags, model_id=info.model_id)
    client.set_registered_model_alias("older", "champion", "1")
    with pytest.raises(ModelError, match=r"model older 1 is refused .* golden: found no golden\.npz.*; train again"):
        registry.champion()
    assert registry.activate(registry.log_and_register(result, CARD), "job", "train again").version == 2
    assert registry.history()["action"].to_list() == ["moved", "register", "activate"]


def test_a_journal_that_somebody_wrote_into_is_named(fresh):
    registry, _ = fresh
    registry.client.set_registered_model_tag(registry.name, "journal.000001", "scribble")
    with pytest.raises(ModelError, match=r"journal\.000001 of the registry's journal cannot be read"):
        registry.history()


# A model from a file


@pytest.fixture(scope="module")
def text(tmp_path_factory, result) -> Path:
    folder = tmp_path_factory.mktemp("bought")
    result.model.save(folder)
    return folder / "model.lgb"


EVIDENCE = {"rank_ic": 0.03, "sessions": 250, "names": 400}


def from_file(registry, path, result, metrics=EVIDENCE, features=None):
    config = {"num_leaves": 7, "windows": [504, 63]}
    told = (features or result.feature_set, metrics, config, date(2024, 2, 28), CARD, "ada", "bought")
    return registry.register_file(path, *told)


def test_a_lightgbm_file_is_registered_proven_and_activated(fresh, text, result):
    registry, _ = fresh
    version = from_file(registry, text, result)
    model = registry.activate(version, "ada", "try it")
    x = np.random.default_rng(0).normal(size=(40, 158)).astype(np.float32)
    assert np.array_equal(model.predict(x), result.model.predict(x))
    assert model.reference is None and model.trained_through == date(2024, 2, 28)
    assert np.isnan(model.golden.x).any() and len(np.unique(model.golden.prediction)) > 5
    params = registry.client.get_run(model.run_id).data.params
    assert (params["num_leaves"], json.loads(params["windows"])) == ("7", [504, 63])


@pytest.mark.parametrize("missing", ["sessions", "names"])
def test_a_file_without_evidence_is_not_activated(fresh, text, result, missing):
    registry, _ = fresh
    version = from_file(registry, text, result, {k: v for k, v in EVIDENCE.items() if k != missing})
    with pytest.raises(ModelError, match=f"{missing}: found no metric '{missing}'"):
        registry.activate(version, "ada", "trust me")


def test_what_is_no_model_of_these_features_is_refused(registered, text, result, tmp_path):
    registry, _ = registered
    before = len(registry.versions())
    (tmp_path / "other.lgb").write_text(text.read_text().replace("KMID ", "KMIX ", 1))
    (tmp_path / "noise.lgb").write_text("not a tree in sight")
    for path, error, said in (
        (tmp_path / "other.lgb", ModelError, "KMIX where KMID belongs"),
        (tmp_path / "noise.lgb", ModelError, "LightGBM model"),
        (tmp_path / "absent.lgb", InputError, "no such file"),
    ):
        with pytest.raises(error, match=said):
            from_file(registry, path, result)
    with pytest.raises(InputError, match="names with numbers"):
        from_file(registry, text, result, {"rank_ic": "good"})
    assert len(registry.versions()) == before


# An outage is not a deactivation


def test_a_database_that_vanished_is_an_outage_and_is_not_made_anew(fresh):
    registry, (first, *_) = fresh
    registry.activate(first, "ada", "first")
    file = registry.root / "mlflow" / "mlflow.db"
    file.rename(file.with_suffix(".away"))
    try:
        for ask in (registry.champion_version, registry.champion, registry.versions, registry.history, registry.trials):
            with pytest.raises(ServiceUnavailable, match="restore it"):
                ask()
        assert not file.exists()
        file.touch()
        with pytest.raises(ServiceUnavailable, match="restore it"):
            registry.champion_version()
        file.write_bytes(b"this is no database" * 100)
        with pytest.raises(ServiceUnavailable, match="does not answer"):
            registry.champion_version()
    finally:
        file.with_suffix(".away").replace(file)
    assert registry.champion_version() == first


def test_a_table_that_vanished_while_one_is_connected_is_an_outage(tmp_path, root_with_mlflow):
    import sqlite3

    registry = Registry(root_with_mlflow(tmp_path), "gone")
    registry.client.create_registered_model("gone")
    with sqlite3.connect(tmp_path / "mlflow" / "mlflow.db") as connection:
        connection.execute("ALTER TABLE registered_model_aliases RENAME TO away")
    with pytest.raises(ServiceUnavailable, match="does not answer"):
        registry.champion_version()


def test_an_unreachable_server_is_named_without_its_password(tmp_path):
    registry = Registry(tmp_path, "far", uri="postgresql://quant:s3cret@127.0.0.1:9/mlflow")
    with pytest.raises(ServiceUnavailable, match=r"postgresql://quant:\*\*\*@127\.0\.0\.1:9/mlflow") as refused:
        registry.champion_version()
    assert "s3cret" not in str(refused.value)


def test_the_platform_s_database_out_of_order_refuses_before_anything_changes(fresh):
    from sqlalchemy import create_engine

    plain, (first, *_) = fresh
    registry = replace(plain, engine=create_engine("sqlite://"))  # without its tables
    with pytest.raises(ServiceUnavailable, match="history of momentum cannot be kept"):
        registry.activate(first, "ada", "first")
    assert (plain.champion_version(), len(plain.history())) == (None, 0)


# Interrupted, and by other means


def world(champion=None, challenger=None, retired=(), runs=()):
    named = {"champion": champion, "challenger": challenger}
    return World({k: v for k, v in named.items() if v}, frozenset(retired), dict(runs))


def test_an_intended_act_happened_if_its_effect_is_visible():
    intended = lambda action, version, run=None: Entry(1, action, version, "ada", "why", NOW, run_id=run)
    assert happened(intended("activate", 2), world(champion=2)) and not happened(intended("activate", 2), world(1))
    assert happened(intended("deactivate", 1), world()) and not happened(intended("deactivate", 1), world(1))
    assert happened(intended("challenge", 2), world(1, 2)) and not happened(intended("challenge", 2), world(1))
    assert happened(intended("withdraw", 2), world(1)) and not happened(intended("withdraw", 2), world(1, 2))
    assert happened(intended("retire", 2), world(retired=[2])) and not happened(intended("retire", 2), world())
    assert happened(intended("register", None, "r"), world(runs={"r": 4}.items()))
    (entry,) = settled([intended("register", None, "r")], world(runs={"r": 4}.items()), NOW)
    assert (entry.version, entry.done) == (4, True)
    assert settled([intended("activate", 2)], world(), NOW) == ()


def test_an_alias_moved_in_mlflow_itself_is_part_of_the_history(fresh):
    registry, (first, second, _) = fresh
    registry.activate(first, "ada", "first")
    registry.client.set_registered_model_alias(registry.name, "champion", str(second))
    assert registry.history().row(-1)[:3] == (second, "moved", "outside of tradenb")
    assert registry.rollback("ada", "who was that?").version == first
    assert registry.history()["action"].to_list() == ["activate", "moved", "rollback"]
    registry.client.delete_registered_model_alias(registry.name, "champion")
    assert registry.history().row(-1)[:3] == (first, "removed", "outside of tradenb")


def test_the_registry_runs_on_postgresql_too(tmp_path, postgres_url, result):
    registry = Registry(tmp_path, "onpg", uri=postgres_url)
    first, second = (registry.log_and_register(result, CARD) for _ in range(2))
    registry.activate(first, "ada", "first")
    registry.activate(second, "ada", "second")
    assert registry.rollback("ada", "back").version == registry.champion().version == first
    assert registry.history()["action"].to_list() == ["register", "register", "activate", "activate", "rollback"]


# Killed half-way, and two at once

WRITER = Path(__file__).with_name("registry_writer.py")


def writer(*arguments: object, within: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(WRITER), *map(str, arguments)]
    alone = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}  # MLflow's way to speak to its children
    alone |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=alone, cwd=within)


@pytest.fixture(scope="module")
def busy(tmp_path_factory, registered, result):
    "A copy of the registry: 1 is the champion, 2 was, 3 is the challenger, and a training waits to be registered."
    plain, _ = registered
    root = tmp_path_factory.mktemp("busy")
    (root / "mlflow").mkdir()
    shutil.copyfile(plain.root / "mlflow" / "mlflow.db", root / "mlflow" / "mlflow.db")
    engine = migrate(connect(f"sqlite:///{root}/platform.db"))
    registry = Registry(root, plain.name, engine=engine, clock=SimulatedClock(NOW))
    for alias in aliases(registry):
        registry.client.delete_registered_model_alias(registry.name, alias)
    for key in registry.client.get_registered_model(registry.name).tags:
        registry.client.delete_registered_model_tag(registry.name, key)
    for version in (2, 1, 2, 1):
        registry.activate(version, "ada", "setting up")
    registry.challenge(3, "ada", "setting up")
    run_id = log_training(registry.tracking, result, CARD, NOW)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    return registry, run_id


LONG = [pytest.param(act, marks=pytest.mark.long) for act in ("retire", "deactivate")]


@pytest.mark.parametrize("act", ["activate", "register", *LONG])
def test_a_process_killed_at_any_write_leaves_a_history_that_says_what_the_alias_says(busy, act):
    registry, run_id = busy
    done = writer("kill", registry.root, run_id, act, within=registry.root)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (registry.root / "mlflow.db").exists()  # where MLflow would write by itself
    found = [json.loads(line) for line in done.stdout.splitlines()]
    setting_up = ["activate"] * 4 + ["challenge"]
    for row in found:
        assert row["says"] == row["champion"], row
        assert row["seen"] in (setting_up, [*setting_up, act]), row
        assert row["pending"] == [] and row["copied"], row
        assert row["after"] == [*row["seen"], "activate"], row
        assert row["aliases"]["champion"] == 1, row
        challenging = row["seen"] == setting_up or act in ("deactivate", "register")
        assert ("challenger" in row["aliases"]) == challenging, row
    assert [row["lived"] for row in found] == [False] * (len(found) - 1) + [True]
    assert len(found) > 4
    happened = [len(row["seen"]) > len(setting_up) for row in found]
    assert happened == sorted(happened) and happened[-1] and not happened[0]


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.long)])
def test_of_two_processes_that_activate_at_once_the_last_wins_and_the_history_knows(database, busy, result, tmp_path, request):  # fmt: skip
    registry = busy[0]
    if database == "sqlite":
        shutil.copyfile(registry.root / "mlflow" / "mlflow.db", tmp_path / "copy.db")
        registry = Registry(registry.root, registry.name, uri=f"sqlite:///{tmp_path}/copy.db", clock=registry.clock)
    else:
        registry = Registry(tmp_path, registry.name, uri=request.getfixturevalue("postgres_url"), clock=registry.clock)
        for _ in range(2):
            registry.log_and_register(result, CARD)
    before, times = len(registry.history()), 4
    done = writer("race", registry.tracking_uri, registry.root, times, within=tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("[0, 0]", "")
    acts = registry.history()[before:]
    assert acts["action"].to_list() == ["activate"] * 2 * times
    for version in (1, 2):
        mine = acts.filter(version=version)
        assert mine["why"].to_list() == [f"time {n}" for n in range(times)]
        assert set(mine["who"]) == {f"process {version}"}
    assert registry.champion_version() == acts["version"][-1]


def test_a_version_that_others_have_loaded_through_mlflow_is_still_itself(fresh):
    "MLflow leaves a note beside the model whenever somebody loads it by its version."
    import mlflow

    registry, (version, *_) = fresh
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    try:
        mlflow.set_tracking_uri(registry.tracking_uri)
        mlflow.set_registry_uri(registry.tracking_uri)
        mlflow.pyfunc.load_model(f"models:/{registry.name}/{version}")
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])
    assert registry.load(version).version == version
