"The calendar says what the library says, of every day that it covers."

from datetime import UTC, datetime

import exchange_calendars
import pytest

from tradenb.core.calendar import FIRST_DAY, LAST_DAY, Session, session, sessions


@pytest.fixture(scope="module")
def library():
    return exchange_calendars.get_calendar("XNYS", start=str(FIRST_DAY), end=str(LAST_DAY))


def test_every_session_is_the_library_s_with_its_open_its_close_and_whether_that_is_early(library):
    early = set(library.early_closes)
    theirs = [
        Session(day.date(), utc(library.session_open(day)), utc(library.session_close(day)), day in early)
        for day in library.sessions
    ]
    assert [session(day) for day in sessions(FIRST_DAY, LAST_DAY)] == theirs
    assert len(early) > 100


def test_a_session_holds_plain_values():
    one = session(sessions(FIRST_DAY, LAST_DAY)[-1])
    assert [type(value) for value in (one.date, one.open, one.close, one.early_close)] == [
        type(LAST_DAY),
        datetime,
        datetime,
        bool,
    ]
    assert one.open.tzinfo is one.close.tzinfo is UTC


def utc(at):
    return at.to_pydatetime().astimezone(UTC)
