"Whatever is asked, no answer is a crash, and every answer is as the service's own description says."

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.schemas import BaseSchema

from tests.fuzzing import addresses, fuzz
from tradenb.core.web import serving
from tradenb.signals.service import create_app

from .conftest import KEY, House

ADDRESSES = [
    ("GET", "/"),
    ("GET", "/health"),
    ("POST", "/api/v1/signals/generate"),
    ("GET", "/api/v1/model/info"),
    ("GET", "/api/v1/model/shadow"),
    ("POST", "/api/v1/model/reload"),
]
WITH_PARAMETERS = [("POST", "/api/v1/signals/generate"), ("GET", "/api/v1/model/shadow")]  # that can be wrong
# A symbol may be well formed and yet unknown, a date a Sunday: a good question has not always an answer.
LEFT_OUT = {"positive_data_acceptance"}


@pytest.fixture(scope="module")
def described(house: House) -> Iterator[BaseSchema]:
    house.registry.activate(house.versions[0], "test", "fuzz")
    with serving(create_app(house.settings, house.clock)) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


ASK: dict[str, Any] = {"examples": 30, "left_out": LEFT_OUT, "headers": {"X-API-Key": KEY}}


def test_every_address_is_fuzzed(described: BaseSchema) -> None:
    assert addresses(described) == sorted(ADDRESSES)


@pytest.mark.parametrize(("method", "path"), ADDRESSES)
def test_answers_to_good_questions_conform(described: BaseSchema, method: str, path: str) -> None:
    fuzz(described, method, path, GenerationMode.POSITIVE, **ASK)


@pytest.mark.parametrize(("method", "path"), WITH_PARAMETERS)
def test_bad_questions_are_refused_and_crash_nothing(described: BaseSchema, method: str, path: str) -> None:
    fuzz(described, method, path, GenerationMode.NEGATIVE, **ASK)
