"When what runs: schedules on the calendar of the NYSE."

from datetime import date, datetime, time, timedelta

import pytest
from dateutil.rrule import rrulestr

from pipelines.deploy import deployments, every_session, last_known, weekly, working_hours
from tradenb.core.calendar import sessions
from tradenb.core.clock import NEW_YORK

TODAY = date(2026, 11, 21)


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
    assert list(found) == ["daily", "train", "reconcile", "maintenance", "backfill"]
    assert [name for name, d in found.items() if not (d.rrule or d.cron)] == ["backfill"]
    seldom = deployments(make_settings(**{"schedule.reconcile_minutes": 0}).schedule, TODAY)
    assert [d.flow for d in seldom if not (d.rrule or d.cron)] == ["reconcile", "backfill"]


@pytest.mark.parametrize(("minutes", "times"), [(30, 18), (15, 36), (60, 9), (120, 5)])
def test_the_books_are_compared_every_so_many_minutes(minutes, times):
    from prefect.server.schemas.schedules import CronSchedule

    schedule, day = CronSchedule(cron=working_hours(minutes), timezone=str(NEW_YORK)), date(2026, 11, 24)
    start = datetime.combine(day, time(), NEW_YORK)
    assert len(list(schedule._get_dates_generator(start=start, end=start + timedelta(days=1)))) == times
