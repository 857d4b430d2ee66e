"Models change and break under the feet of four clients in another process, and none of them notices."

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipelines.benchmarks._load import Job, Load, Outcome
from tradenb.core.web import serving
from tradenb.features.panel import Panel
from tradenb.models.registry import stored
from tradenb.portfolio.weights import LongShort
from tradenb.signals.generator import generate
from tradenb.signals.service import create_app

from .conftest import KEY, House

GENERATE = "/api/v1/signals/generate"


@pytest.fixture(scope="module")
def expected(house: House, tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Each version's signals, worked out offline from all of the bars."
    panel = Panel.from_bars(house.bars)
    told = {v: generate(house.registry.load(v), panel, LongShort(3, 3)).signals.to_dicts() for v in house.versions}
    assert told[house.versions[0]] != told[house.versions[1]]
    file = tmp_path_factory.mktemp("expected") / "signals.json"
    file.write_text(json.dumps(told))
    return file


@pytest.fixture
def service(house: House) -> Iterator[httpx.Client]:
    house.registry.activate(house.versions[0], "test", "start")
    with serving(create_app(house.settings, house.clock)) as url, httpx.Client(base_url=url) as client:
        assert client.post(GENERATE, json={}).status_code == 200
        yield client


def under(service: httpx.Client, expected: Path, seconds: float) -> Load:
    names = [signal["symbol"] for signal in json.loads(expected.read_text())["1"]]
    return Load(Job(f"{service.base_url}{GENERATE}", json.dumps({"symbols": names}), seconds, 4, str(expected)))


def reload(service: httpx.Client) -> httpx.Response:
    return service.post("/api/v1/model/reload", headers={"X-API-Key": KEY}, timeout=60)


def trouble(service: httpx.Client) -> dict:
    health = service.get("/health", timeout=60)
    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    return health.json()["model_error"]


def undisturbed(outcome: Outcome) -> bool:
    assert outcome.failed == []
    return len(outcome.ms) > 20


def test_every_answer_is_wholly_of_one_version_while_models_are_swapped(house, service, expected):
    with under(service, expected, 5) as load:
        for n in range(6):
            house.registry.activate(house.versions[(n + 1) % 2], "test", "swap")
            assert reload(service).json()["reloaded"]
        outcome = load.outcome()
    assert undisturbed(outcome)
    assert set(outcome.versions) == {str(v) for v in house.versions}


def test_a_corrupt_model_file_is_refused_and_the_old_model_serves_on(house, service, expected):
    file = stored(house.registry, house.versions[1]).fitted / "model.lgb"
    house.registry.activate(house.versions[1], "test", "about to be spoiled")
    whole = file.read_bytes()
    with under(service, expected, 3) as load:
        try:
            file.write_bytes(whole[: len(whole) // 2])
            assert reload(service).status_code == 409
            said = trouble(service)
        finally:
            file.write_bytes(whole)
        assert reload(service).json()["model_version"] == house.versions[1]
        outcome = load.outcome()
    assert "digest" in said["reason"] and said["since"] == "2023-07-03T13:00:00Z"
    assert undisturbed(outcome)
    assert service.get("/health").json()["status"] == "ok"


def test_a_missing_artifact_is_refused_and_the_old_model_serves_on(house, service, expected):
    folder = stored(house.registry, house.versions[1]).model
    house.registry.activate(house.versions[1], "test", "about to go")
    with under(service, expected, 3) as load:
        shutil.move(folder, folder.with_name("away"))
        try:
            assert reload(service).status_code == 409
            said = trouble(service)
        finally:
            shutil.move(folder.with_name("away"), folder)
        assert reload(service).json()["reloaded"]
        outcome = load.outcome()
    assert said["code"] == "ModelError" and said["attempts"] == 1
    assert undisturbed(outcome)


def test_while_the_registrys_database_is_away_the_old_model_serves_on(house, service, expected):
    file = house.settings.root / "mlflow" / "mlflow.db"
    house.registry.activate(house.versions[1], "test", "cannot be seen")
    with under(service, expected, 4) as load:
        shutil.move(file, file.with_name("away.db"))
        try:
            assert reload(service).status_code == 503
            said = trouble(service)
        finally:
            for left in file.parent.glob("mlflow.db*"):
                left.unlink()
            shutil.move(file.with_name("away.db"), file)
        assert reload(service).json()["model_version"] == house.versions[1]
        outcome = load.outcome()
    assert said["code"] == "ServiceUnavailable"
    assert undisturbed(outcome)
    assert service.get("/health").json()["status"] == "ok"
