"Whatever the orchestrator is asked, no answer is a crash, and every answer is as its own description says. The gateway beside it is a server that says what a test wants it to say."

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from pydantic import SecretStr
from schemathesis import Case, GenerationMode
from schemathesis.core.transport import Response
from schemathesis.schemas import BaseSchema

from tests.fuzzing import addresses, fuzz
from tests.trading.test_service import DAY, RUN, Gateway, plan
from tradenb.core import web
from tradenb.core.clock import SystemClock
from tradenb.core.db import connect, database_url, migrate
from tradenb.core.settings import load
from tradenb.trading import records
from tradenb.trading.orchestrator import keep_plan
from tradenb.trading.service import BASE, RunRequest, create_app, run_spec

PROJECT = Path(__file__).resolve().parents[2]
KEY = "k3y"
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "4"))  # for each address, good and bad questions each
ADDRESSES = [
    ("GET", "/"),
    ("GET", "/health"),
    ("POST", f"{BASE}/run"),
    ("POST", f"{BASE}/runs/{{run_id}}/open"),
    ("POST", f"{BASE}/runs/{{run_id}}/settle"),
    ("GET", f"{BASE}/runs"),
    ("GET", f"{BASE}/runs/{{run_id}}"),
    ("POST", "/api/v1/alerts"),
]
WITHOUT_PARAMETERS = {"/", "/health"}  # that could be wrong
# A date may be a Sunday, a run unknown; and what a run needs may not answer, which is a 503 and no crash.
LEFT_OUT = {"positive_data_acceptance", "not_a_server_error"}


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseSchema]:
    "An orchestrator with one run that has a plan."
    with web.serving(Gateway().app()) as gateway:
        urls = {"services.execution_url": gateway, "services.signals_url": "http://127.0.0.1:9"}
        urls |= {"services.exchange_url": "http://127.0.0.1:9"}
        terms = {"execution.settle_timeout_s": 0.1, "execution.attempts": 1, "execution.backoff_s": 0.01}
        made = load({"core.root": str(tmp_path_factory.mktemp("fuzz"))} | urls | terms, env={}, file=PROJECT / "settings.ini")  # fmt: skip
        made = made.model_copy(update={"services": made.services.model_copy(update={"api_key": SecretStr(KEY)})})
        engine = migrate(connect(database_url(made)))
        records.make(engine, run_spec(made, RunRequest(trade_date=DAY)), SystemClock(), "")
        keep_plan(engine, RUN, plan())
        with web.serving(create_app(made, SystemClock(), engine)) as url:
            yield schemathesis.openapi.from_url(f"{url}/openapi.json")
        engine.dispose()


def no_crash(case: Case, answer: Response) -> None:
    assert answer.status_code < 500 or answer.status_code == 503, answer.text


ASK: dict[str, Any] = {"examples": EXAMPLES, "left_out": LEFT_OUT, "headers": {"X-API-Key": KEY}, "then": no_crash}


def test_every_address_is_fuzzed(described: BaseSchema) -> None:
    assert addresses(described) == sorted(ADDRESSES)


@pytest.mark.parametrize(("method", "path"), ADDRESSES)
def test_answers_to_good_questions_conform(described: BaseSchema, method: str, path: str) -> None:
    fuzz(described, method, path, GenerationMode.POSITIVE, **ASK)


@pytest.mark.parametrize(("method", "path"), [a for a in ADDRESSES if a[1] not in WITHOUT_PARAMETERS])
def test_bad_questions_are_refused_and_crash_nothing(described: BaseSchema, method: str, path: str) -> None:
    fuzz(described, method, path, GenerationMode.NEGATIVE, **ASK)
