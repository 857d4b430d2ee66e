"Old data stops a run, and the error says how old."

from collections.abc import Mapping
from datetime import date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradenb.core.calendar import latest_complete, next_session, session, sessions, shift
from tradenb.core.clock import NEW_YORK, new_york
from tradenb.core.errors import FreshnessError
from tradenb.market.freshness import measure, measure_live, oldest_allowed, require_fresh, require_live

TODAY = date(2024, 3, 28)
HALF_DAYS = [date(2024, 11, 29), date(2024, 12, 24), date(2025, 7, 3), date(2023, 7, 3), date(2018, 11, 23)]
GONE = 21


def last_bars(behind: list[int]) -> pl.DataFrame:
    return pl.DataFrame(
        {"symbol": [f"S{i:03d}" for i in range(len(behind))], "date": [shift(TODAY, -n) for n in behind]}
    )


@given(st.lists(st.integers(0, 60), min_size=1, max_size=40), st.integers(1, 50))
def test_every_symbol_is_fresh_or_stale_or_gone(behind: list[int], gone_after: int) -> None:
    state = measure(last_bars(behind), TODAY, gone_after)
    assert state.fresh == behind.count(0)
    assert sorted(state.stale["behind"]) == sorted(n for n in behind if 0 < n <= gone_after)
    assert sorted(state.gone["behind"]) == sorted(n for n in behind if n > gone_after)


def test_a_feed_without_the_session_stops_even_when_every_stale_symbol_is_tolerated() -> None:
    with pytest.raises(FreshnessError, match="newest bar is of 2024-03-27, 1 session"):
        require_fresh(measure(last_bars([1, 1]), TODAY, GONE), max_stale_share=1.0)
    with pytest.raises(FreshnessError, match="there are no bars"):
        require_fresh(measure(last_bars([]).cast({"symbol": pl.String, "date": pl.Date}), TODAY, GONE), 1.0)


def test_the_error_names_the_worst_symbols() -> None:
    with pytest.raises(FreshnessError, match=r"2 of 4 symbols \(50%\).*S002 2024-03-21 \(5 behind\)"):
        require_fresh(measure(last_bars([0, 0, 5, 1]), TODAY, GONE), max_stale_share=0.4)


def test_a_symbol_that_has_left_is_not_late() -> None:
    left = pl.DataFrame({"symbol": ["S001"]})
    assert len(measure(last_bars([0, 3]), TODAY, GONE, left).stale) == 0


@pytest.mark.parametrize("day", HALF_DAYS)
def test_a_half_day_s_bar_is_due_at_one(day: date) -> None:
    before = shift(day, -1)
    assert session(day).close == new_york(day, 13)
    assert [latest_complete(new_york(day, *at)) for at in ((9, 30), (12, 59), (13, 0), (13, 1), (16, 0))] == [
        before, before, day, day, day,
    ]  # fmt: skip
    bars = lambda *days: pl.DataFrame({"symbol": ["AAPL"] * len(days), "date": days})
    due = lambda *at: latest_complete(new_york(day, *at))
    require_fresh(measure(bars(before), due(12, 59), GONE), 0)
    with pytest.raises(FreshnessError, match=rf"newest bar is of {before}, 1 session.*expected the session {day}"):
        require_fresh(measure(bars(before), due(13, 19), GONE), 0)
    require_fresh(measure(bars(before, day), due(13, 20), GONE), 0)
    require_fresh(measure(bars(before, day), latest_complete(new_york(next_session(day), 9)), GONE), 0)


def closes_at(day: date) -> int:
    close = session(day).close.astimezone(NEW_YORK)
    return close.hour * 60 + close.minute


@given(
    st.sampled_from([TODAY, *HALF_DAYS]),
    st.integers(0, 24 * 60 - 1),
    st.integers(0, 2000),
    st.sampled_from([5, 30, 90]),
)
def test_the_live_rule_speaks_only_while_the_market_is_open(day: date, minute: int, age: int, limit: int) -> None:
    now = new_york(day, minute // 60, minute % 60)
    asked: list[datetime] = []

    def newest() -> Mapping[str, datetime]:
        asked.append(now)
        return {"AAPL": now - timedelta(minutes=age)}

    opened = 9 * 60 + 30
    late = opened <= minute < closes_at(day) and min(age, minute - opened) > limit
    if late:
        with pytest.raises(FreshnessError, match=rf"newest data is {age} minutes old.*AAPL {age} min"):
            require_live(newest, now, limit, 1.0)
    else:
        require_live(newest, now, limit, 0.0)
    assert bool(asked) == (opened + limit < minute < closes_at(day))


@pytest.mark.parametrize("day", HALF_DAYS)
def test_right_after_an_early_close_nothing_has_to_move(day: date) -> None:
    stale = lambda: {"AAPL": new_york(day, 10)}
    with pytest.raises(FreshnessError):
        require_live(stale, new_york(day, 12, 59), 30, 0)
    for at in (new_york(day, 13), new_york(day, 13, 1), new_york(day, 15, 59)):
        assert require_live(stale, at, 30, 0) is None


def test_a_holiday_has_no_live_rule() -> None:
    noon = new_york(date(2024, 3, 29), 12)
    assert require_live(lambda: {"AAPL": noon - timedelta(days=1)}, noon, 30, 0) is None
    assert date(2024, 3, 29) not in sessions(TODAY, date(2024, 4, 1))


def test_a_few_late_names_are_life_and_many_are_not() -> None:
    now = new_york(TODAY, 14)
    newest = {f"S{n}": now - timedelta(minutes=minutes) for n, minutes in enumerate((1, 5, 29, 31, 300))}
    live = require_live(lambda: newest, now, 30, 0.4)
    assert live is not None and (live.moving, live.late["symbol"].to_list()) == (3, ["S4", "S3"])
    with pytest.raises(FreshnessError) as failed:
        require_live(lambda: newest, now, 30, 0.39)
    said = str(failed.value)
    assert "2 of 5 symbols (40%) are late, market.max_stale_share is 39%" in said
    assert "data from 13:30 New York on was expected; worst: S4 300 min (since 09:00), S3 31 min (since 13:29)" in said


def test_a_source_of_daily_bars_has_no_live_rule() -> None:
    assert require_live(dict, new_york(TODAY, 14), 30, 0) is None


@given(st.dictionaries(st.text("ABC", min_size=1), st.integers(0, 500), min_size=1), st.integers(1, 60))
def test_every_symbol_moves_or_is_late(ages: dict[str, int], limit: int) -> None:
    now = new_york(TODAY, 15, 30)
    oldest = oldest_allowed(now, limit)
    assert oldest is not None
    live = measure_live({name: now - timedelta(minutes=age) for name, age in ages.items()}, now, oldest)
    assert live.moving + len(live.late) == len(ages)
    assert live.feed_minutes == min(ages.values())
    assert live.late["minutes"].to_list() == sorted((float(a) for a in ages.values() if a > limit), reverse=True)
