"When what runs: schedules on the calendar of the NYSE."

import logging
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from typing import Any

import httpx
import pytest
from dateutil.rrule import rrulestr

from pipelines.deploy import deployments, every_session, last_known, register, weekly, working_hours
from pipelines.scheduler import written_down
from pipelines.shown import logged_too
from tests.environment import put_back
from tradenb.core.calendar import sessions
from tradenb.core.clock import NEW_YORK
from tradenb.core.errors import ServiceUnavailable
from tradenb.core.progress import LISTENER, heard_by, say
from tradenb.core.settings import Settings, load

TODAY = date(2026, 11, 21)
FLOWS = ("daily", "train", "reconcile", "maintenance", "backfill")


def due(rule: str, start: date, end: date) -> list[datetime]:
    "When a rule is due, in New York's time."
    return rrulestr(rule).between(datetime.combine(start, time()), datetime.combine(end, time(23)), inc=True)


def test_the_daily_run_is_due_on_every_session_and_on_no_other_day():
    rule = every_session(time(9), TODAY)
    moments = due(rule, TODAY, last_known(TODAY))
    assert [moment.date() for moment in moments] == sessions(TODAY, last_known(TODAY))
    assert {moment.time() for moment in moments} == {time(9)}
    assert date(2026, 11, 26) not in {moment.date() for moment in moments}  # Thanksgiving
    assert date(2026, 11, 27) in {moment.date() for moment in moments}  # an early close is a session


def test_a_schedule_is_as_prefect_takes_it_and_keeps_new_yorks_time_over_the_change_of_clocks():
    from prefect.server.schemas.schedules import RRuleSchedule

    schedule = RRuleSchedule(rrule=every_session(time(9), date(2027, 3, 1)), timezone=str(NEW_YORK))
    found = list(schedule._get_dates_generator(n=15, start=datetime(2027, 3, 8, tzinfo=NEW_YORK)))
    assert [moment.date() for moment in found] == sessions(date(2027, 3, 8), date(2027, 3, 30))[:15]
    assert {moment.hour for moment in found} == {9}
    assert {moment.utcoffset() for moment in found} == {timedelta(hours=-5), timedelta(hours=-4)}


def test_a_weekly_time_is_a_cron_line():
    assert weekly("sat 06:00") == "0 6 * * SAT"
    assert weekly("sun 23:15") == "15 23 * * SUN"


def test_every_flow_is_deployed_and_only_the_backfill_waits_for_a_hand(make_settings):
    found = {d.flow: d for d in deployments(make_settings().schedule, TODAY)}
    assert tuple(found) == FLOWS
    assert [name for name, d in found.items() if not (d.rrule or d.cron)] == ["backfill"]
    seldom = deployments(make_settings(**{"schedule.reconcile_minutes": 0}).schedule, TODAY)
    assert [d.flow for d in seldom if not (d.rrule or d.cron)] == ["reconcile", "backfill"]


@pytest.mark.parametrize(("minutes", "times"), [(30, 18), (15, 36), (60, 9), (120, 5)])
def test_the_books_are_compared_every_so_many_minutes(minutes, times):
    from prefect.server.schemas.schedules import CronSchedule

    schedule, day = CronSchedule(cron=working_hours(minutes), timezone=str(NEW_YORK)), date(2026, 11, 24)
    start = datetime.combine(day, time(), NEW_YORK)
    assert len(list(schedule._get_dates_generator(start=start, end=start + timedelta(days=1)))) == times


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, str]]:
    "A Prefect server of its own, and settings."
    from pipelines.scheduler import prepare, served

    settings = load({"core.root": tmp_path_factory.mktemp("desk")}, env={})
    with put_back():
        prepare(settings.root)
        with served() as url:
            yield settings, url


def on_server(url: str) -> dict[str, Any]:
    "The deployments there, by flow."
    rows = httpx.post(f"{url}/deployments/filter", json={}, timeout=60).json()
    return {row["entrypoint"].rpartition(".")[2]: row for row in rows}


def test_a_server_learns_all_flows_and_a_second_time_changes_nothing_but_the_times(server):
    settings, url = server
    assert register(settings, url) == [f"{name}/alpha158_ls" for name in FLOWS]
    first = on_server(url)
    assert set(first) == set(FLOWS)
    assert {row["work_pool_name"] for row in first.values()} == {"tradenb"}
    assert [s["slug"] for s in first["daily"]["schedules"]] == ["every NYSE session"]
    assert first["train"]["schedules"][0]["schedule"]["cron"] == "0 6 * * SAT"
    limit = httpx.get(f"{url}/v2/concurrency_limits/broker", timeout=60).json()
    assert (limit["limit"], limit["active"]) == (1, True)

    (schedule,) = first["train"]["schedules"]
    at = f"{url}/deployments/{first['train']['id']}/schedules/{schedule['id']}"
    httpx.patch(at, json={"active": False}, timeout=60).raise_for_status()
    later = load({"core.root": settings.root, "schedule.train": "fri 18:30", "schedule.reconcile_minutes": 0}, env={})
    register(later, url)
    second = on_server(url)
    assert {name: row["id"] for name, row in second.items()} == {name: row["id"] for name, row in first.items()}
    (schedule,) = second["train"]["schedules"]
    assert (schedule["schedule"]["cron"], schedule["active"]) == (
        "30 18 * * FRI",
        False,
    )  # paused by somebody: it stays so
    assert second["reconcile"]["schedules"] == []
    assert len(second["daily"]["schedules"]) == 1


def test_what_is_said_is_heard_once_however_many_flows_are_within_each_other():
    said: list[str] = []
    with heard_by(said.append), heard_by(outer := logged_too(LISTENER.get())), heard_by(logged_too(LISTENER.get())):
        say("of the day")
        assert LISTENER.get() is outer
    assert said == ["of the day"]


@pytest.mark.parametrize(("level", "talks"), [("CRITICAL", True), ("INFO", False)])
def test_flows_talk_to_their_server_and_not_to_a_terminal_unless_somebody_chose_otherwise(monkeypatch, level, talks):
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", level)
    loggers = [logging.getLogger(f"prefect.{kind}_runs") for kind in ("flow", "task")]
    states = lambda: [(logger.level, logger.propagate) for logger in loggers]
    with written_down():
        changed = [(logging.INFO, False)] * 2
        assert (states() == changed) is talks
    assert states() != changed
    assert all(logger.propagate for logger in loggers)


def test_a_server_that_is_not_there_is_said_in_one_line(make_settings):
    with pytest.raises(ServiceUnavailable, match=r"http://127\.0\.0\.1:9/api does not answer"):
        register(make_settings(), "http://127.0.0.1:9/api")
