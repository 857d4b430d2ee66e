"The flows between the days, and how a scheduler sees them, in this process on a real Prefect server."

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import httpx
import pytest
from prefect import flow, runtime, task
from prefect.cache_policies import NO_CACHE

from pipelines import day as days
from pipelines.flows import REPEATABLE, STAGES, daily, maintenance, prepared, reconcile, train, worth_repeating
from pipelines.scheduler import server_of
from tradenb.core import db
from tradenb.core.errors import BrokerUnavailable, QualityError, ServiceUnavailable, SourceError, TradenbError
from tradenb.core.notify import settle
from tradenb.core.settings import Settings, load

DAY = date(2020, 1, 3)


@pytest.fixture
def settings(desk) -> Settings:
    "Those of the finished first day."
    return load({"core.root": desk.root} | desk.settings)


@pytest.fixture
def told(settings: Settings) -> Iterator[dict[str, Any]]:
    "What a flow is told about it, while the desk is ours and a server runs in this process."
    with days.desk(settings):
        yield days.differing(settings)


def artifacts() -> dict[str, Any]:
    "The newest artifacts on the server, by key."
    from prefect.settings import PREFECT_API_URL

    rows = httpx.post(f"{PREFECT_API_URL.value()}/artifacts/latest/filter", json={}, timeout=60).json()
    return {row["key"]: row for row in rows}


def test_what_happens_between_the_days_is_seen_in_the_scheduler(settings, told, desk):
    assert server_of(settings) is None  # nothing runs by itself: this process has brought its own
    state = daily(str(DAY), told, return_state=True)
    assert (state.name, state.is_completed()) == ("Skipped", True)
    assert "is completed already: nothing was changed" in str(state.message)

    answer = reconcile(told)
    assert answer["matched"] is True and answer["orders"] == len(desk.plan(DAY))
    assert artifacts()["books"]["description"].endswith("they agree")

    state = train(settings=told | {"schedule.retrain_on_drift": False}, return_state=True)
    assert state.name == "Skipped" and "version 1, trained through 2020-01-02, is good" in str(state.message)

    done = maintenance(told)
    assert list(done) == ["compact", "vacuum", "snapshot", "prune", "renew_schedules"]
    assert {"tradenb.db", "exchange.db", "mlflow.db"} == {file.name for file in (desk.root / "snapshots").rglob("*.db")}
    assert len(artifacts()["maintenance"]["data"]) > 10
    desk.check_books()


def test_a_flow_that_could_not_do_what_it_is_for_tells_people(settings, told, desk, monkeypatch):
    (desk.root / "snapshots").write_text("no folder")
    assert maintenance(told, return_state=True).is_failed()
    done = {row["job"]: row["what"] for row in json.loads(artifacts()["maintenance"]["data"])}
    assert "snapshots" in done["snapshot"] and "schedule" in done["renew_schedules"]  # its turn came all the same

    assert daily("2020-01-04", told, return_state=True).is_failed()  # a Saturday: there is no run to tell of

    monkeypatch.setitem(vars(runtime.flow_run), "scheduled_start_time", datetime(2024, 1, 8, 14, tzinfo=UTC))
    assert train(settings=told, return_state=True).name == "Missed"

    assert settle(30)
    messages = {row["title"]: row["body"] for row in desk.rows(db.notifications, kind="failure")}
    assert set(messages) == {"maintenance FAILED", "daily FAILED", "train FAILED"}
    assert "2020-01-04" in messages["daily FAILED"] and "again: tradenb paper-run" in messages["daily FAILED"]
    assert "no worker took it that day" in messages["train FAILED"]


def attempts(error: TradenbError, settings: Settings) -> int:
    "How often a task with a stage's options runs that always fails with `error`."
    ran: list[int] = []
    options = prepared("etl", settings)

    @task(retries=options.retries, retry_delay_seconds=0, retry_condition_fn=worth_repeating, cache_policy=NO_CACHE)
    def fails() -> None:
        ran.append(1)
        raise error

    @flow
    def tries() -> None:
        fails()

    assert tries(return_state=True).is_failed()
    return len(ran)


def test_what_did_not_answer_is_asked_again_and_what_is_wrong_stays_wrong(settings, told):
    assert attempts(ServiceUnavailable("the gateway does not answer"), settings) == 3
    assert attempts(BrokerUnavailable("the broker does not answer"), settings) == 3
    assert attempts(SourceError("the vendor does not answer"), settings) == 3
    assert attempts(QualityError("3 % of the rows are bad"), settings) == 1


def test_orders_and_trainings_are_never_repeated_by_the_scheduler(make_settings):
    assert {name: prepared(name, make_settings()).retries for name in STAGES if name not in REPEATABLE} == {
        "train": 0,
        "trade": 0,
    }
